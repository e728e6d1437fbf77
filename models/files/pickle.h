// pickle.h - a pickle as data: containers, strings, numbers, and tensors that lie elsewhere.
//
// Nothing is ever called. A pickle names functions; the few that torch.save needs are known here
// and build the values below, the few that only decorate a checkpoint (numpy scalars, dtypes) build
// a value that is ignored, and every other name is an error that says it.

#ifndef MODELS_FILES_PICKLE_H
#define MODELS_FILES_PICKLE_H

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/error.h"
#include "models/files/tensors.h"

enum pickle_kind {
    PICKLE_IGNORED,  // None, floats, large integers, numpy scalars, torch dtypes
    PICKLE_NUMBER,   // integers and booleans
    PICKLE_STRING,   // text
    PICKLE_TUPLE,    // items
    PICKLE_LIST,     // items
    PICKLE_DICT,     // items: key, value, key, value
    PICKLE_GLOBAL,   // a function or class that is known
    PICKLE_STORAGE,  // tensor: dtype, storage, storage_elements
    PICKLE_TENSOR,   // tensor: everything
};

struct pickle_tensor {
    enum dtype dtype;                   // of the storage
    struct bytes storage;               // its key, "0", text in the pickle
    uint64_t storage_elements;          // as the pickle claims
    uint64_t offset;                    // elements from the storage's begin
    uint32_t rank;                      // of dims and strides
    uint64_t dims[TENSOR_RANK_MAX];     // outermost first
    uint64_t strides[TENSOR_RANK_MAX];  // elements
};

struct pickle_value {
    enum pickle_kind kind;         // says which of the following is used
    uint32_t count;                // of items
    uint32_t room;                 // of items
    int64_t number;                // NUMBER; of a GLOBAL, its row in the table of known names
    struct bytes text;             // STRING: inside the pickle
    struct pickle_value **items;   // TUPLE, LIST, DICT
    struct pickle_tensor *tensor;  // STORAGE, TENSOR
};

struct pickle;

// Interprets a pickle of protocol 2 to 5. Work is linear in its bytes; values, items, stack and
// memo are bounded.
// Ownership: on success the caller owns *out and keeps text alive as long.
// Errors:    INVALID_ARGUMENT names the opcode or the name that is not allowed;
//            RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pickle_read(struct pickle **out, struct bytes text, struct error *error);
void pickle_destroy(struct pickle **self_p);

// What the pickle leaves. Containers may be shared and may even hold themselves: whoever walks them
// bounds depth and steps.
// Thread:    any.
const struct pickle_value *pickle_root(const struct pickle *self);

#endif  // MODELS_FILES_PICKLE_H
