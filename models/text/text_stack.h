// text_stack.h - what a stack is made of, for the files that make it and encode with it.

#ifndef MODELS_TEXT_TEXT_STACK_H
#define MODELS_TEXT_TEXT_STACK_H

#include "base/pages.h"
#include "models/text/text_adapter.h"

struct text_stack {
    const struct text_model *model;                   // the caller's
    uint32_t *modules;                                // [count]: tensors that an entry changes
    uint32_t count;                                   // entries
    struct text_paths paths[MODEL_PART_COUNT];        // functional; without items where none
    struct text_network *networks[MODEL_PART_COUNT];  // merged; NULL where nothing is touched
    struct pages copies;                              // merged tensors; nobody writes them
    uint64_t vectors_bytes;                           // that the device takes beside them
};

// How rows of one encoder are encoded; rows of the same way know no difference.
struct text_way {
    const struct text_network *network;  // NULL: the model's own
    const struct text_paths *paths;      // NULL: none
};

// The way of a stack, which may be NULL, through one encoder.
// Thread:    any.
struct text_way text_stack_way(const struct text_stack *self, enum model_part part);

// Fills copies and networks of a stack that has everything else.
// Errors:    those of text_stack_create.
// Thread:    the one that makes the stack.
enum status text_stack_merge(struct text_stack *self, const struct text_stack_entry *entries,
                             const struct lora_stop *stop, struct error *error);

#endif  // MODELS_TEXT_TEXT_STACK_H
