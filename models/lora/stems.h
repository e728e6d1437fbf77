// stems.h - the keys of an adapter by the tensor that they are about, and by which formula.
//
//     stem      all keys of one naming about one weight (and its bias)
//     choice    the formula that a stem asks for, with its operands; shapes are not looked at yet
//
// A stem may hold more than one formula; as in ComfyUI one counts: set_weight before diff, w_norm,
// OFT, GLoRA, LoKr, LoHa and low rank.

#ifndef MODELS_LORA_STEMS_H
#define MODELS_LORA_STEMS_H

#include "models/lora/keys.h"

// One key of a text encoder that means something.
struct stem_entry {
    uint32_t order;  // by part, layer, place and naming
    uint32_t index;  // of the tensor in the table
    enum lora_slot slot;
};

struct stems {
    const struct tensor_table *table;  // the adapter's
    struct stem_entry *entries;        // sorted by order
    uint32_t count;                    // of entries
    uint32_t next;                     // first entry of the next stem
};

struct stem {
    enum model_part part;
    enum lora_place place;
    uint32_t layer;
    const struct tensor *slots[SLOT_COUNT];  // NULL where the stem has no such key
    uint32_t indices[SLOT_COUNT];            // of slots in the table
    char key[LORA_TARGET_BYTES * 2];         // the stem, for messages
};

struct choice {
    enum lora_family family;
    enum lora_family product;                        // under DoRA: of what; else as family
    const struct tensor *operands[LORA_ROLE_COUNT];  // NULL where there is none
    const struct tensor *alpha;                      // or NULL
    const struct tensor *reshape;                    // or NULL
    uint64_t used;                                   // bits of the slots that it takes
};

// Sorts the keys of a file. has says which encoders a model has; NULL: whatever keys name.
// Ownership: ended by stems_end, also after an error; the table stays the caller's.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status stems_begin(struct stems *self, const struct tensor_table *table, const bool *has,
                        struct error *error);
void stems_end(struct stems *self);

// The next stem, ascending by part, layer, place and naming; false after the last.
// Thread:    any.
bool stems_next(struct stems *self, struct stem *out);

// The formula for the weight, and for the bias. *out is written and *found set when there is one.
// Errors:    INVALID_ARGUMENT names the operand that is missing, and one that is no number.
// Thread:    any.
enum status stem_choose_weight(const struct stem *self, struct choice *out, bool *found,
                               struct error *error);
enum status stem_choose_bias(const struct stem *self, struct choice *out, bool *found,
                             struct error *error);

// r of a formula: by what alpha is divided; 0 where nothing is factored.
// Thread:    any.
uint64_t choice_rank(const struct choice *self);

#endif  // MODELS_LORA_STEMS_H
