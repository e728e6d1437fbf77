// loras.h - what requests say about adapters; the codec's own part of codec_decode_request.

#ifndef MESSAGES_LORAS_H
#define MESSAGES_LORAS_H

#include "messages/codec.h"

#define LORAS_FACTOR_MAX 1e6f  // of a strength or a scaling

// Checks a stack together with the tensors of its one-shots, and fills in defaults: multiplier and
// scalings 1, strength_l and strength_g from strength.
// Errors:    INVALID_ARGUMENT names the entry and the value.
// Thread:    any, as everything here.
enum status codec_check_stack(const luna_Header *header, luna_EncodeText *message,
                              struct error *error);

// Checks what a step of an upload needs: its name, its hash, its tensor.
// Errors:    INVALID_ARGUMENT.
enum status codec_check_lora_put(const luna_Header *header, const luna_LoraPut *message,
                                 struct error *error);

// Checks a name or hash by which an adapter is asked for: not empty, no control characters, no
// step "..".
// Errors:    INVALID_ARGUMENT.
enum status codec_check_lora_reference(const char *reference, struct error *error);

#endif  // MESSAGES_LORAS_H
