// job.h - how a plan becomes the operations of a program.

#ifndef MODELS_VAE_JOB_H
#define MODELS_VAE_JOB_H

#include "models/vae/network.h"
#include "models/vae/tiling.h"
#include "models/vae/vae.h"

struct vae {
    struct network network;
};

struct job {
    const struct network *network;
    const struct vae_plan *plan;  // sizes, crop and dtypes are filled in
    const struct tiling *tiling;  // NULL: each image at once
    bool outline;  // leave out what repeats: other images, and tiles of a shape that came before
};

// Builds and finishes the program of a job. An outline has the peak of the whole job, since a tile
// leaves nothing behind in the arena, and is only good for asking for that.
// Ownership: the caller owns *out.
// Errors:    as program_finish.
// Thread:    any.
enum status job_build(struct program **out, const struct job *job, struct error *error);

// The tiles of a plan.
// Errors:    as tiling_lay_out.
// Thread:    any.
enum status vae_lay_out(const struct vae *self, const struct vae_plan *plan, struct tiling *out,
                        struct error *error);

#endif  // MODELS_VAE_JOB_H
