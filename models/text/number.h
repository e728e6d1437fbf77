// number.h - Python's float(), for the weights of prompts.

#ifndef MODELS_TEXT_NUMBER_H
#define MODELS_TEXT_NUMBER_H

#include <stdbool.h>

#include "base/bytes.h"

// Reads the whole of text (UTF-8) as float() does: white space around it, a sign, digits of any
// script with single underscores between them, a fraction, an exponent, "inf", "infinity", "nan".
// Returns false, *out untouched, for anything else and when memory ran out.
// Thread:    any.
bool number_parse(struct bytes text, double *out);

#endif  // MODELS_TEXT_NUMBER_H
