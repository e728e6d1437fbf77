// scalar.h - single numbers in adapter files: alpha and the like, which trainers save in any type.

#ifndef MODELS_LORA_SCALAR_H
#define MODELS_LORA_SCALAR_H

#include "models/files/tensors.h"

// The index-th element of a tensor of any numeric type; false when the tensor is shorter or its
// type is none that trainers use for numbers (bool, 8-bit floats).
// Thread:    any.
bool scalar_read(const struct tensor *tensor, uint64_t index, double *out);

#endif  // MODELS_LORA_SCALAR_H
