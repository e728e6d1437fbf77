// fit.h - whether the operands of a formula fit a tensor of an encoder.

#ifndef MODELS_LORA_FIT_H
#define MODELS_LORA_FIT_H

#include "models/lora/stems.h"

// Checks a choice against the tensor that it changes, and fills out's family, rank, factor, alpha
// and operands. target and part are for messages.
// Errors:    INVALID_ARGUMENT names the key and both shapes, or the value.
// Thread:    any.
enum status choice_fit(const struct choice *choice, const struct lora_shape *shape,
                       const char *target, enum model_part part, struct lora_module *out,
                       struct error *error);

// GLoRA comes in two layouts: W a1 a2 + b1 b2, and the old W a2 a1 + b2 b1. Which one the operands
// of a module have, for a tensor of that shape; as ComfyUI decides. 0: neither.
// Thread:    any.
enum glora_layout { GLORA_NEITHER, GLORA_NEW, GLORA_OLD };
enum glora_layout glora_layout(const struct tensor *const operands[LORA_ROLE_COUNT],
                               const struct lora_shape *shape);

#endif  // MODELS_LORA_FIT_H
