// text_adapter.h - what an adapter is made of, for the files that put it into stacks.

#ifndef MODELS_TEXT_TEXT_ADAPTER_H
#define MODELS_TEXT_TEXT_ADAPTER_H

#include "models/text/stack.h"
#include "models/text/text_model.h"

// The factors of one module on the device.
struct adapter_factors {
    const struct lora_module *module;  // of the lora
    struct weight *down, *up;          // [rank, c], [k, rank]
};

struct text_adapter {
    const struct text_model *model;   // the caller's
    struct lora *lora;                // owned
    struct adapter_factors *factors;  // one a module; none where not all are low-rank
    uint32_t factors_count;           // of those
    uint64_t bytes;                   // of tensors that are read in place, and beside them
};

// True when a module at a strength changes its tensor: neither is zero where both are factors.
// Thread:    any.
bool adapter_module_counts(const struct lora_module *module, float strength);

// True when the model reads the tensor that a module changes: a projection may be in the files and
// not be used.
// Thread:    any.
bool adapter_module_is_read(const struct text_model *model, const struct lora_module *module);

#endif  // MODELS_TEXT_TEXT_ADAPTER_H
