// names.h - the two families of networks that a file may hold, and what files call their parts.

#ifndef MODELS_NAMES_H
#define MODELS_NAMES_H

#include "models/model.h"

// Looks for an AutoencoderKL in a file, in LDM's or diffusers' names and under the usual prefixes.
// When there is one, *out is the table of its canonical names and *config its shape; when there is
// none, *out stays NULL.
// Ownership: the caller owns *out.
// Errors:    INVALID_ARGUMENT for one that is incomplete or inconsistent; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status names_vae_find(struct tensor_table *file, struct tensor_table **out,
                           struct vae_config *config, struct error *error);

// The text encoders of one file, by part; what is not there stays NULL.
struct clip_found {
    struct tensor_table *tensors[MODEL_PART_COUNT];  // canonical names
    struct clip_config config[MODEL_PART_COUNT];     // with tensors
};

// Looks for CLIP text encoders in a file, in Hugging Face's or OpenCLIP's names.
// Ownership: the caller owns the tables, also after an error.
// Errors:    INVALID_ARGUMENT for one that is incomplete or inconsistent; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status names_clip_find(struct tensor_table *file, struct clip_found *out, struct error *error);

// "CLIP-L" and so on, for messages.
// Thread:    any.
const char *names_part(enum model_part part);

#endif  // MODELS_NAMES_H
