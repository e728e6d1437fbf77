// inputs.h - which tensors an operation takes; the codec's own part of codec_decode_request.

#ifndef MESSAGES_INPUTS_H
#define MESSAGES_INPUTS_H

#include "messages/codec.h"

// Checks that a request has the inputs that its operation takes, with their ranks and types, and no
// others.
// Errors:    INVALID_ARGUMENT.
// Thread:    any.
enum status codec_check_inputs(const luna_Header *header, struct error *error);

#endif  // MESSAGES_INPUTS_H
