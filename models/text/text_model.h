// text_model.h - what a model is made of, for the files that load, build and run it.

#ifndef MODELS_TEXT_TEXT_MODEL_H
#define MODELS_TEXT_TEXT_MODEL_H

#include "models/text/network.h"
#include "models/text/text.h"

struct text_model {
    struct device *device;                            // the caller's
    struct model_description description;             // a copy
    struct text_embeddings *embeddings;               // the caller's, or NULL
    struct text_network *networks[MODEL_PART_COUNT];  // NULL where the kind has no encoder
};

// The parts that a kind encodes with, in the order in which their hidden states lie side by side;
// returns how many.
// Thread:    any.
uint32_t text_parts(enum text_kind kind, enum model_part parts[MODEL_PART_COUNT]);

// The part whose pooled output is the model's.
// Thread:    any.
enum model_part text_pooled_part(enum text_kind kind);

// What files and people call a part: "clip_l".
// Thread:    any.
const char *text_part_key(enum model_part part);

#endif  // MODELS_TEXT_TEXT_MODEL_H
