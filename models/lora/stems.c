// stems.c - see stems.h. Keys become numbers that sort, so that the work is n log n whatever a file
// holds; formulas are a table of which slots they need.

#include "models/lora/stems.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---------------------------------------------------------------------------------------------
// Stems

static uint32_t order_of(enum model_part part, const struct lora_key *key)
{
    uint32_t order = (uint32_t)part;
    order = order * LORA_LAYERS_MAX + key->layer;
    order = order * PLACE_COUNT + (uint32_t)key->place;
    return order * NAMING_COUNT + (uint32_t)key->naming;
}

static int compare_entries(const void *a, const void *b)
{
    const struct stem_entry *left = a;
    const struct stem_entry *right = b;
    if (left->order != right->order) return left->order < right->order ? -1 : 1;
    return left->slot < right->slot ? -1 : left->slot > right->slot;
}

enum status stems_begin(struct stems *self, const struct tensor_table *table, const bool *has,
                        struct error *error)
{
    assert(self != NULL);
    assert(table != NULL);
    uint32_t count = tensor_table_count(table);
    *self = (struct stems){.table = table};
    self->entries = calloc(count + 1u, sizeof *self->entries);
    if (self->entries == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the keys of an adapter");
    }
    for (uint32_t i = 0; i < count; i++) {
        struct lora_key key;
        if (!lora_key_parse(tensor_table_at(table, i)->name, &key)) continue;
        enum model_part part = key.part;
        if (has != NULL && !lora_key_part(&key, has, &part)) continue;
        self->entries[self->count++] = (struct stem_entry){order_of(part, &key), i, key.slot};
    }
    qsort(self->entries, self->count, sizeof *self->entries, compare_entries);
    return STATUS_OK;
}

void stems_end(struct stems *self)
{
    assert(self != NULL);
    free(self->entries);
    self->entries = NULL;
}

// The key without its suffix.
static void name_stem(struct stem *stem, const char *key, enum lora_slot slot)
{
    size_t length = strlen(key) - strlen(lora_slot_suffix(slot));
    snprintf(stem->key, sizeof stem->key, "%.*s", (int)length, key);
}

bool stems_next(struct stems *self, struct stem *out)
{
    assert(self != NULL);
    assert(out != NULL);
    if (self->next == self->count) return false;
    uint32_t order = self->entries[self->next].order;
    *out = (struct stem){.slots = {NULL}};
    out->place = (enum lora_place)(order / NAMING_COUNT % PLACE_COUNT);
    out->layer = order / (NAMING_COUNT * PLACE_COUNT) % LORA_LAYERS_MAX;
    out->part = (enum model_part)(order / (NAMING_COUNT * PLACE_COUNT * LORA_LAYERS_MAX));
    for (; self->next < self->count; self->next++) {
        const struct stem_entry *entry = &self->entries[self->next];
        if (entry->order != order) break;
        const struct tensor *tensor = tensor_table_at(self->table, entry->index);
        if (out->key[0] == '\0') name_stem(out, tensor->name, entry->slot);
        out->slots[entry->slot] = tensor;
        out->indices[entry->slot] = entry->index;
    }
    return true;
}

// ---------------------------------------------------------------------------------------------
// Formulas

struct chooser {
    const struct stem *stem;
    struct choice choice;
    struct error *error;
    enum status status;  // of the first operand that is missing or no number
};

static bool has_slot(const struct chooser *self, enum lora_slot slot)
{
    return self->stem->slots[slot] != NULL;
}

static void use(struct chooser *self, enum lora_slot slot)
{
    self->choice.used |= (uint64_t)1 << slot;
}

// Takes an operand if it is there.
static void take(struct chooser *self, enum lora_role role, enum lora_slot slot)
{
    const struct tensor *tensor = self->stem->slots[slot];
    if (tensor == NULL) return;
    if (!dtype_is_real(tensor->dtype) && self->status == STATUS_OK) {
        self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "\"%s\" is %s, supported are F32, F16 and BF16", tensor->name,
                                 dtype_name(tensor->dtype));
    }
    self->choice.operands[role] = tensor;
    use(self, slot);
}

// Takes an operand that must be there, because that of `because` is.
static void need(struct chooser *self, enum lora_role role, enum lora_slot slot,
                 enum lora_slot because)
{
    take(self, role, slot);
    if (has_slot(self, slot) || self->status != STATUS_OK) return;
    self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                             "\"%s%s\" is there, but \"%s%s\" is missing", self->stem->key,
                             lora_slot_suffix(because), self->stem->key, lora_slot_suffix(slot));
}

// What products have beside their factors.
static void take_scales(struct chooser *self)
{
    self->choice.product = self->choice.family;
    if (has_slot(self, SLOT_ALPHA)) {
        self->choice.alpha = self->stem->slots[SLOT_ALPHA];
        use(self, SLOT_ALPHA);
    }
    take(self, LORA_ROLE_DORA_SCALE, SLOT_DORA_SCALE);
    if (has_slot(self, SLOT_DORA_SCALE)) self->choice.family = LORA_DORA;
}

static bool choose_difference(struct chooser *self, enum lora_slot slot, enum lora_family family)
{
    if (!has_slot(self, slot)) return false;
    self->choice.family = family;
    self->choice.product = family;
    take(self, LORA_ROLE_DIFF, slot);
    return true;
}

static bool choose_rotation(struct chooser *self)
{
    if (!has_slot(self, SLOT_BLOCKS)) return false;
    bool butterfly = self->stem->slots[SLOT_BLOCKS]->rank == 4;
    self->choice.family = butterfly ? LORA_BOFT : LORA_OFT;
    take(self, LORA_ROLE_BLOCKS, SLOT_BLOCKS);
    if (butterfly) take(self, LORA_ROLE_RESCALE, SLOT_RESCALE);  // ComfyUI's OFT has none
    take_scales(self);
    return true;
}

static bool choose_glora(struct chooser *self)
{
    if (!has_slot(self, SLOT_A1)) return false;
    self->choice.family = LORA_GLORA;
    take(self, LORA_ROLE_A1, SLOT_A1);
    need(self, LORA_ROLE_A2, SLOT_A2, SLOT_A1);
    need(self, LORA_ROLE_B1, SLOT_B1, SLOT_A1);
    need(self, LORA_ROLE_B2, SLOT_B2, SLOT_A1);
    take_scales(self);
    return true;
}

static bool choose_lokr(struct chooser *self)
{
    static const enum lora_slot triggers[] = {SLOT_LOKR_W1, SLOT_LOKR_W2, SLOT_LOKR_W1_A,
                                              SLOT_LOKR_W2_A};
    int i = 0;
    while (i < 4 && !has_slot(self, triggers[i])) i++;
    if (i == 4) return false;
    self->choice.family = LORA_LOKR;
    take(self, LORA_ROLE_W1, SLOT_LOKR_W1);
    if (!has_slot(self, SLOT_LOKR_W1)) {
        need(self, LORA_ROLE_W1_A, SLOT_LOKR_W1_A, triggers[i]);
        need(self, LORA_ROLE_W1_B, SLOT_LOKR_W1_B, triggers[i]);
    }
    take(self, LORA_ROLE_W2, SLOT_LOKR_W2);
    if (!has_slot(self, SLOT_LOKR_W2)) {
        need(self, LORA_ROLE_W2_A, SLOT_LOKR_W2_A, triggers[i]);
        need(self, LORA_ROLE_W2_B, SLOT_LOKR_W2_B, triggers[i]);
        take(self, LORA_ROLE_T2, SLOT_LOKR_T2);
    }
    take_scales(self);
    return true;
}

static bool choose_loha(struct chooser *self)
{
    if (!has_slot(self, SLOT_HADA_W1_A)) return false;
    self->choice.family = LORA_LOHA;
    take(self, LORA_ROLE_W1_A, SLOT_HADA_W1_A);
    need(self, LORA_ROLE_W1_B, SLOT_HADA_W1_B, SLOT_HADA_W1_A);
    need(self, LORA_ROLE_W2_A, SLOT_HADA_W2_A, SLOT_HADA_W1_A);
    need(self, LORA_ROLE_W2_B, SLOT_HADA_W2_B, SLOT_HADA_W1_A);
    if (has_slot(self, SLOT_HADA_T1)) {
        take(self, LORA_ROLE_T1, SLOT_HADA_T1);
        need(self, LORA_ROLE_T2, SLOT_HADA_T2, SLOT_HADA_T1);
    }
    take_scales(self);
    return true;
}

static bool choose_low_rank(struct chooser *self)
{
    int i = 0;
    while (i < LORA_SPELLINGS && !has_slot(self, (enum lora_slot)(SLOT_UP + i))) i++;
    if (i == LORA_SPELLINGS) return false;
    self->choice.family = LORA_LOW_RANK;
    take(self, LORA_ROLE_UP, (enum lora_slot)(SLOT_UP + i));
    need(self, LORA_ROLE_DOWN, (enum lora_slot)(SLOT_DOWN + i), (enum lora_slot)(SLOT_UP + i));
    if (has_slot(self, SLOT_MID) && self->status == STATUS_OK) {
        self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "\"%s\" is for convolutions, text encoders have none",
                                 self->stem->slots[SLOT_MID]->name);
    }
    if (has_slot(self, SLOT_RESHAPE)) {
        self->choice.reshape = self->stem->slots[SLOT_RESHAPE];
        use(self, SLOT_RESHAPE);
    }
    take_scales(self);
    return true;
}

// A half that no formula took, though it cannot be anything else.
static void reject_halves(struct chooser *self)
{
    static const struct {
        enum lora_slot half, other;
    } halves[] = {
        {SLOT_HADA_W1_B, SLOT_HADA_W1_A},
        {SLOT_HADA_W2_A, SLOT_HADA_W1_A},
        {SLOT_HADA_W2_B, SLOT_HADA_W1_A},
        {SLOT_LOKR_W1_B, SLOT_LOKR_W1_A},
        {SLOT_LOKR_W2_B, SLOT_LOKR_W2_A},
        {SLOT_A2, SLOT_A1},
        {SLOT_B1, SLOT_A1},
        {SLOT_B2, SLOT_A1},
    };
    for (size_t i = 0; i < sizeof halves / sizeof halves[0]; i++) {
        if (has_slot(self, halves[i].half)) {
            need(self, LORA_ROLE_W1, halves[i].other, halves[i].half);
        }
    }
    for (int i = 0; i < LORA_SPELLINGS; i++) {
        enum lora_slot down = (enum lora_slot)(SLOT_DOWN + i);
        if (has_slot(self, down)) need(self, LORA_ROLE_UP, (enum lora_slot)(SLOT_UP + i), down);
    }
}

static enum status finish(struct chooser *self, bool chosen, struct choice *out, bool *found)
{
    if (self->status != STATUS_OK) return self->status;
    *found = chosen;
    if (chosen) *out = self->choice;
    return STATUS_OK;
}

enum status stem_choose_weight(const struct stem *self, struct choice *out, bool *found,
                               struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    struct chooser chooser = {.stem = self, .error = error};
    bool chosen = choose_difference(&chooser, SLOT_SET_WEIGHT, LORA_SET) ||
                  choose_difference(&chooser, SLOT_DIFF, LORA_DIFF) ||
                  choose_difference(&chooser, SLOT_W_NORM, LORA_DIFF) ||
                  choose_rotation(&chooser) || choose_glora(&chooser) || choose_lokr(&chooser) ||
                  choose_loha(&chooser) || choose_low_rank(&chooser);
    if (!chosen) reject_halves(&chooser);
    return finish(&chooser, chosen, out, found);
}

enum status stem_choose_bias(const struct stem *self, struct choice *out, bool *found,
                             struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    struct chooser chooser = {.stem = self, .error = error};
    bool chosen =
        choose_difference(&chooser, SLOT_DIFF_B, LORA_DIFF) ||
        (has_slot(&chooser, SLOT_W_NORM) && choose_difference(&chooser, SLOT_B_NORM, LORA_DIFF));
    return finish(&chooser, chosen, out, found);
}

static uint64_t first_dim(const struct tensor *tensor)
{
    return tensor != NULL && tensor->rank > 0 ? tensor->dims[0] : 0;
}

static uint64_t dim(const struct tensor *tensor, uint32_t index)
{
    return index < tensor->rank ? tensor->dims[index] : 0;
}

uint64_t choice_rank(const struct choice *self)
{
    assert(self != NULL);
    const struct tensor *const *operands = self->operands;
    if (operands[LORA_ROLE_DOWN] != NULL) return first_dim(operands[LORA_ROLE_DOWN]);
    if (operands[LORA_ROLE_A1] != NULL) {
        // [in, r], and [r, in] in the old layout: the rank is the smaller one.
        uint64_t rows = dim(operands[LORA_ROLE_A1], 0);
        uint64_t columns = dim(operands[LORA_ROLE_A1], 1);
        return rows < columns ? rows : columns;
    }
    if (self->product == LORA_LOKR && operands[LORA_ROLE_W2_B] != NULL)
        return first_dim(operands[LORA_ROLE_W2_B]);
    return first_dim(operands[LORA_ROLE_W1_B]);
}
