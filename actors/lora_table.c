// lora_table.c - contents by address, aliases by value; lora_table.h holds the contract.
//
// There are a hundred contents in a usual store, so that everything is a scan: nothing has to be
// kept in two orders.

#include "actors/lora_table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

struct lora_table {
    struct lora_limits limits;
    uint32_t count, capacity;        // of contents
    struct lora_content **contents;  // in no order
    uint32_t names, names_capacity;  // of aliases
    struct lora_alias *aliases;      // in no order
    uint64_t residents;              // contents
    uint64_t resident_bytes;         // sum of their memory_bytes
    uint64_t reserved_bytes;         // of uploads that are coming
    uint64_t reserved;               // how many
    uint64_t hits, misses;           // since start
    uint64_t evictions, loads;       // since start
    uint64_t one_shots;              // since start
    float load_ms[LORA_LOADS_MAX];   // of the last loads; the next goes to loads % LORA_LOADS_MAX
};

enum status lora_table_create(struct lora_table **out, const struct lora_limits *limits,
                              struct error *error)
{
    assert(out != NULL);
    assert(limits->bytes_max > 0);
    assert(limits->entries_max > 0);
    struct lora_table *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a table of LoRAs");
    }
    self->limits = *limits;
    *out = self;
    return STATUS_OK;
}

void lora_table_destroy(struct lora_table **self_p)
{
    assert(self_p != NULL);
    struct lora_table *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < self->count; i++) free(self->contents[i]);
    free(self->contents);
    free(self->aliases);
    free(self);
    *self_p = NULL;
}

// ---- contents

struct lora_content *lora_table_find_exact(const struct lora_table *self, const struct hash *hash)
{
    assert(self != NULL);
    assert(hash != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        struct lora_content *content = self->contents[i];
        if (content->facts.has_hash && hash_equal(&content->facts.hash, hash)) return content;
    }
    return NULL;
}

struct lora_content *lora_table_find_encoder(const struct lora_table *self,
                                             const struct hash *encoder_hash)
{
    assert(self != NULL);
    assert(encoder_hash != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        struct lora_content *content = self->contents[i];
        if (content->resident && hash_equal(&content->facts.encoder_hash, encoder_hash)) {
            return content;
        }
    }
    return NULL;
}

static bool can_be_found(const struct lora_content *content)
{
    return !content->one_shot && (!content->doomed || content->files > 0);
}

struct lora_content *lora_table_find(const struct lora_table *self, const struct hash *hash)
{
    assert(self != NULL);
    struct lora_content *exact = lora_table_find_exact(self, hash);
    if (exact != NULL && can_be_found(exact)) return exact;
    struct lora_content *found = NULL;
    for (uint32_t i = 0; i < self->count; i++) {
        struct lora_content *content = self->contents[i];
        if (!can_be_found(content) || !hash_equal(&content->facts.encoder_hash, hash)) continue;
        if (found == NULL || (content->resident && !found->resident)) found = content;
    }
    return found;
}

enum status lora_table_add(struct lora_table *self, const struct lora_facts *facts, uint64_t now_ns,
                           struct lora_content **out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    assert(!facts->has_hash || lora_table_find_exact(self, &facts->hash) == NULL);
    struct lora_content *content = calloc(1, sizeof *content);
    if (content != NULL && self->count == self->capacity) {
        uint32_t capacity = self->capacity == 0 ? 64 : 2 * self->capacity;
        struct lora_content **contents =
            realloc(self->contents, capacity * sizeof(struct lora_content *));
        if (contents != NULL) {
            self->contents = contents;
            self->capacity = capacity;
        }
    }
    if (content == NULL || self->count == self->capacity) {
        free(content);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for one more LoRA");
    }
    *content = (struct lora_content){
        .facts = *facts, .file = -1, .encoder = -1, .first_ns = now_ns, .used_ns = now_ns};
    self->contents[self->count] = content;
    self->count += 1;
    *out = content;
    return STATUS_OK;
}

bool lora_table_forget(struct lora_table *self, struct lora_content *content)
{
    assert(self != NULL);
    assert(content != NULL);
    if (content->resident || content->holds > 0 || content->files > 0) return false;
    lora_table_unname_all(self, content);
    uint32_t i = 0;
    while (i < self->count && self->contents[i] != content) i += 1;
    assert(i < self->count);
    self->count -= 1;
    self->contents[i] = self->contents[self->count];
    free(content);
    return true;
}

uint32_t lora_table_count(const struct lora_table *self)
{
    assert(self != NULL);
    return self->count;
}

struct lora_content *lora_table_at(const struct lora_table *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->count);
    return self->contents[index];
}

void lora_table_load(struct lora_table *self, struct lora_content *content, uint64_t memory_bytes,
                     double load_ms)
{
    assert(!content->resident);
    assert(lora_table_fits(self, memory_bytes));
    content->resident = true;
    content->doomed = false;
    content->memory_bytes = memory_bytes;
    content->load_ms = load_ms;
    self->residents += 1;
    self->resident_bytes += memory_bytes;
    self->load_ms[self->loads % LORA_LOADS_MAX] = (float)load_ms;
    self->loads += 1;
}

void lora_table_unload(struct lora_table *self, struct lora_content *content, bool evicted)
{
    assert(content->resident);
    assert(self->resident_bytes >= content->memory_bytes);
    assert(self->residents > 0);
    self->residents -= 1;
    self->resident_bytes -= content->memory_bytes;
    self->evictions += evicted;
    content->resident = false;
    content->doomed = false;
    content->memory_bytes = 0;
}

// ---- use

void lora_table_hold(struct lora_table *self, struct lora_content *content)
{
    assert(self != NULL);
    assert(content != NULL);
    content->holds += 1;
}

void lora_table_release(struct lora_table *self, struct lora_content *content)
{
    assert(self != NULL);
    assert(content->holds > 0);
    content->holds -= 1;
}

void lora_table_use(struct lora_table *self, struct lora_content *content, bool hit,
                    uint64_t now_ns)
{
    assert(self != NULL);
    assert(content != NULL);
    content->uses += 1;
    content->hits += hit;
    content->used_ns = now_ns;
    self->hits += hit;
    self->misses += !hit;
}

void lora_table_use_one_shot(struct lora_table *self)
{
    assert(self != NULL);
    self->one_shots += 1;
}

static struct lora_pin *find_pin(struct lora_content *content, uint32_t user)
{
    for (uint32_t i = 0; i < content->pins_count; i++) {
        if (content->pins[i].user == user) return &content->pins[i];
    }
    return NULL;
}

enum status lora_table_pin(struct lora_table *self, struct lora_content *content, uint32_t user,
                           struct error *error)
{
    assert(self != NULL);
    assert(content != NULL);
    struct lora_pin *pin = find_pin(content, user);
    if (pin != NULL && pin->count < UINT32_MAX) {
        pin->count += 1;
        return STATUS_OK;
    }
    if (content->pins_count == LORA_PINS_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%u users pin this LoRA, no more can",
                         LORA_PINS_MAX);
    }
    content->pins[content->pins_count] = (struct lora_pin){.user = user, .count = 1};
    content->pins_count += 1;
    return STATUS_OK;
}

bool lora_table_unpin(struct lora_table *self, struct lora_content *content, uint32_t user)
{
    assert(self != NULL);
    assert(content != NULL);
    struct lora_pin *pin = find_pin(content, user);
    if (pin == NULL) return false;
    assert(pin->count > 0);
    pin->count -= 1;
    if (pin->count > 0) return true;
    content->pins_count -= 1;
    *pin = content->pins[content->pins_count];
    return true;
}

uint32_t lora_content_pins(const struct lora_content *content)
{
    assert(content != NULL);
    uint32_t pins = 0;
    for (uint32_t i = 0; i < content->pins_count; i++) pins += content->pins[i].count;
    return pins;
}

// ---- aliases

static struct lora_alias *find_alias(const struct lora_table *self, const char *name)
{
    for (uint32_t i = 0; i < self->names; i++) {
        if (strcmp(self->aliases[i].name, name) == 0) return &self->aliases[i];
    }
    return NULL;
}

static enum status make_alias(struct lora_table *self, struct lora_alias **out, struct error *error)
{
    if (self->names == self->names_capacity) {
        uint32_t capacity = self->names_capacity == 0 ? 64 : 2 * self->names_capacity;
        struct lora_alias *aliases = realloc(self->aliases, capacity * sizeof *aliases);
        if (aliases == NULL) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for one more name");
        }
        self->aliases = aliases;
        self->names_capacity = capacity;
    }
    *out = &self->aliases[self->names];
    self->names += 1;
    return STATUS_OK;
}

enum status lora_table_name(struct lora_table *self, const char *name, uint32_t user, bool admin,
                            struct lora_content *content, struct error *error)
{
    assert(self != NULL);
    assert(name[0] != '\0');
    assert(content != NULL);
    struct lora_alias *alias = find_alias(self, name);
    if (alias != NULL && alias->content == content) return STATUS_OK;
    if (alias != NULL && alias->owner != user && !admin) {
        return error_set(error, STATUS_PERMISSION_DENIED,
                         "LoRA \"%s\" is another user's and has another content", name);
    }
    if (alias != NULL) {
        assert(alias->content->aliases > 0);
        alias->content->aliases -= 1;
    } else {
        enum status status = make_alias(self, &alias, error);
        if (status != STATUS_OK) return status;
    }
    assert(alias != NULL);
    text_set(alias->name, sizeof alias->name, name);
    alias->owner = user;
    alias->content = content;
    content->aliases += 1;
    return STATUS_OK;
}

const struct lora_alias *lora_table_find_name(const struct lora_table *self, const char *name)
{
    assert(self != NULL);
    assert(name != NULL);
    return find_alias(self, name);
}

static void drop_alias(struct lora_table *self, uint32_t index)
{
    assert(self->aliases[index].content->aliases > 0);
    self->aliases[index].content->aliases -= 1;
    self->names -= 1;
    if (index != self->names) self->aliases[index] = self->aliases[self->names];
}

void lora_table_unname(struct lora_table *self, const char *name)
{
    assert(self != NULL);
    const struct lora_alias *alias = find_alias(self, name);
    if (alias != NULL) drop_alias(self, (uint32_t)(alias - self->aliases));
}

void lora_table_unname_all(struct lora_table *self, const struct lora_content *content)
{
    assert(self != NULL);
    assert(content != NULL);
    for (uint32_t i = self->names; i > 0; i--) {
        if (self->aliases[i - 1].content == content) drop_alias(self, i - 1);
    }
    assert(content->aliases == 0);
}

uint32_t lora_table_names(const struct lora_table *self)
{
    assert(self != NULL);
    return self->names;
}

const struct lora_alias *lora_table_name_at(const struct lora_table *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->names);
    return &self->aliases[index];
}

// ---- room

enum status lora_table_check_size(const struct lora_table *self, const char *name, uint64_t bytes,
                                  struct error *error)
{
    assert(self != NULL);
    if (bytes <= self->limits.bytes_max) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                     "LoRA \"%s\" takes %llu bytes, the store holds at most %llu", name,
                     (unsigned long long)bytes, (unsigned long long)self->limits.bytes_max);
}

bool lora_table_fits(const struct lora_table *self, uint64_t bytes)
{
    assert(self != NULL);
    uint64_t taken = self->resident_bytes + self->reserved_bytes;
    assert(taken <= self->limits.bytes_max);
    return self->residents + self->reserved < self->limits.entries_max &&
           bytes <= self->limits.bytes_max - taken;
}

static bool can_go(const struct lora_content *content)
{
    return content->resident && content->holds == 0 && content->pins_count == 0;
}

struct lora_content *lora_table_victim(const struct lora_table *self)
{
    assert(self != NULL);
    struct lora_content *victim = NULL;
    for (uint32_t i = 0; i < self->count; i++) {
        struct lora_content *content = self->contents[i];
        if (!can_go(content)) continue;
        if (victim == NULL || content->used_ns < victim->used_ns) victim = content;
    }
    return victim;
}

struct lora_content *lora_table_trim(const struct lora_table *self)
{
    assert(self != NULL);
    uint64_t taken = self->resident_bytes + self->reserved_bytes;
    if ((double)taken <= self->limits.threshold * (double)self->limits.bytes_max) return NULL;
    struct lora_content *victim = lora_table_victim(self);
    if (victim == NULL) return NULL;
    for (uint32_t i = 0; i < self->count; i++) {
        const struct lora_content *content = self->contents[i];
        if (content->resident && content->used_ns > victim->used_ns) return victim;
    }
    return NULL;
}

struct lora_content *lora_table_expired(const struct lora_table *self, uint64_t now_ns)
{
    assert(self != NULL);
    if (self->limits.time_to_live_ns == 0) return NULL;
    struct lora_content *victim = lora_table_victim(self);
    if (victim == NULL || now_ns - victim->used_ns < self->limits.time_to_live_ns) return NULL;
    return victim;
}

void lora_table_reserve(struct lora_table *self, uint64_t bytes)
{
    assert(lora_table_fits(self, bytes));
    self->reserved += 1;
    self->reserved_bytes += bytes;
}

void lora_table_unreserve(struct lora_table *self, uint64_t bytes)
{
    assert(self->reserved > 0);
    assert(self->reserved_bytes >= bytes);
    self->reserved -= 1;
    self->reserved_bytes -= bytes;
}

static int compare_ms(const void *a, const void *b)
{
    float left = *(const float *)a;
    float right = *(const float *)b;
    return (left > right) - (left < right);
}

static void fill_percentiles(const struct lora_table *self, struct lora_counts *out)
{
    uint32_t count = self->loads < LORA_LOADS_MAX ? (uint32_t)self->loads : LORA_LOADS_MAX;
    if (count == 0) return;
    float sorted[LORA_LOADS_MAX];
    memcpy(sorted, self->load_ms, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], compare_ms);
    out->load_ms_p50 = (double)sorted[(count - 1) / 2];
    out->load_ms_p99 = (double)sorted[(uint64_t)(count - 1) * 99 / 100];
}

struct lora_counts lora_table_counts(const struct lora_table *self)
{
    assert(self != NULL);
    struct lora_counts counts = {.entries = self->residents,
                                 .bytes = self->resident_bytes,
                                 .reserved_bytes = self->reserved_bytes,
                                 .hits = self->hits,
                                 .misses = self->misses,
                                 .evictions = self->evictions,
                                 .loads = self->loads,
                                 .one_shots = self->one_shots};
    for (uint32_t i = 0; i < self->count; i++) {
        counts.uploads += self->contents[i]->uploaded;
        counts.pinned += self->contents[i]->pins_count > 0;
    }
    fill_percentiles(self, &counts);
    return counts;
}

static void check_content(const struct lora_table *self, const struct lora_content *content)
{
    uint32_t aliases = 0;
    for (uint32_t i = 0; i < self->names; i++) aliases += self->aliases[i].content == content;
    assert(aliases == content->aliases);
    assert(content->pins_count <= LORA_PINS_MAX);
    assert(content->resident || content->memory_bytes == 0);
    assert(content->resident || !content->doomed);
    assert(content->hits <= content->uses);
    for (uint32_t i = 0; i < content->pins_count; i++) assert(content->pins[i].count > 0);
}

void lora_table_check(const struct lora_table *self)
{
    assert(self != NULL);
    uint64_t residents = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < self->count; i++) {
        const struct lora_content *content = self->contents[i];
        check_content(self, content);
        residents += content->resident;
        bytes += content->memory_bytes;
        for (uint32_t j = 0; j < i; j++) {
            const struct lora_content *other = self->contents[j];
            bool both = content->facts.has_hash && other->facts.has_hash;
            assert(!both || !hash_equal(&content->facts.hash, &other->facts.hash));
        }
    }
    assert(residents == self->residents);
    assert(bytes == self->resident_bytes);
    assert(bytes + self->reserved_bytes <= self->limits.bytes_max);
    assert(residents + self->reserved <= self->limits.entries_max);
    for (uint32_t i = 0; i < self->names; i++) {
        assert(find_alias(self, self->aliases[i].name) == &self->aliases[i]);
    }
}
