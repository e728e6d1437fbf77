// formula.h - one patch of a tensor, ready to be applied: its operands as floats, packed for
// products. A formula whose rows do not mix is applied to any block of rows; the others want all
// rows at once.
//
// Thread of everything here: that of its work.

#ifndef MODELS_LORA_FORMULA_H
#define MODELS_LORA_FORMULA_H

#include "models/lora/matrix.h"

// Rows first to first + rows - 1 of the tensor at hand, [rows, columns] each.
struct block {
    uint64_t first, rows, columns;
    float *weight;  // changed in place
    float *delta;   // room
    float *other;   // room
};

struct formula {
    const struct lora_module *module;
    float strength;
    uint64_t rows, columns;   // of the tensor
    struct matrix left[2];    // on the left of products; its rows are the tensor's
    struct panels right[3];   // on the right
    struct matrix factor[2];  // of a Kronecker product
    struct matrix rotations;  // [stages blocks size, size], the strength in them
    struct matrix rescale;    // [rows, 1]
    struct matrix scale;      // DoRA's magnitudes
};

// Reads and packs the operands of a patch for a tensor of [rows, columns].
// Ownership: the caller frees it with formula_free, also after an error.
struct formula formula_create(struct work *work, const struct lora_patch *patch, uint64_t rows,
                              uint64_t columns);
void formula_free(struct formula *self);

// True when rows do not mix.
bool formula_is_local(const struct formula *self);

// Changes a block's weight.
void formula_apply(const struct formula *self, struct work *work, const struct block *block);

// The rotations of an OFT or BOFT tensor of blocks: R = (I + Q)(I - Q)^-1 of Q = B - B', with the
// strength in them as each family has it, and how they turn a block of all rows: delta becomes what
// they add to weight, without the strength that all families have outside. (rotation.c)
struct matrix rotation_create(struct work *work, const struct lora_patch *patch);
void rotation_apply(const struct formula *self, struct work *work, const struct block *block);

#endif  // MODELS_LORA_FORMULA_H
