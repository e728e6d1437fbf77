// vae.h - AutoencoderKL: images to latents and back, whole or in tiles.
//
// Images are NHWC 0..1, latents NCHW as the network leaves them (unscaled; the mean of the
// posterior). A request becomes a plan (geometry: exact, no memory touched), the plan becomes one
// program that does all its images, tiles and passes; the caller reserves the program's peak on a
// lane and runs it.

#ifndef MODELS_VAE_VAE_H
#define MODELS_VAE_VAE_H

#include "kernels/kernels.h"
#include "models/model.h"

enum vae_direction {
    VAE_ENCODE,
    VAE_DECODE,
};

enum vae_tiling {
    VAE_TILING_AUTO,  // tiled when the whole does not fit bytes_max
    VAE_TILING_NEVER,
    VAE_TILING_ALWAYS,  // tiled unless one tile of each pass covers the image: two of three passes
                        // have tiles of half the side one way, so it must be half as large
};

struct vae_request {
    enum vae_direction direction;
    uint32_t n, h, w, c;      // of the input: [n,h,w,c] pixels (c 3 or 4) or [n,c,h,w] latents
    enum dtype input_dtype;   // pixels u8, f32, f16, bf16; latents f32, f16, bf16
    enum dtype output_dtype;  // likewise
    enum vae_tiling tiling;
    uint32_t tile;       // pixels; 0: 512. Taken down to whole latents, a multiple of 8
    uint32_t overlap;    // pixels; UINT32_MAX: 64, less for small tiles. Taken down like the tile
    uint32_t passes;     // 3 or 1; 0: 3
    bool raw;            // decode: leave y instead of clamp((y + 1) / 2); for tests
    uint64_t bytes_max;  // with AUTO: the arena that may be used; 0: no limit
    const char *model;   // its name, for messages; NULL: none
};

struct vae_plan {
    struct vae_request request;  // with defaults filled in and sizes rounded
    uint32_t crop_y, crop_x;     // encode: pixels cut off above and on the left
    uint32_t h, w;               // of the cropped input
    uint32_t output_n, output_h, output_w, output_c;  // [n,h,w,3] pixels or [n,c,h,w] latents
    uint64_t input_bytes, output_bytes;
    bool tiled;
    char tiled_why[64];   // "", "asked for", "whole needs N MiB of M"
    uint32_t tiles;       // of all images and passes; 1 per image when not tiled
    uint64_t peak_bytes;  // of the arena, as vae_program will need it
};

// The slots of a plan's program.
enum vae_slot {
    VAE_SLOT_INPUT,   // plan.input_bytes
    VAE_SLOT_OUTPUT,  // plan.output_bytes
    VAE_SLOT_FOUND,   // a struct vae_found
    VAE_SLOTS
};

// What a run came upon, in all images of its request: 0 or 1 each. See not_finite in kernels.h.
struct vae_found {
    uint32_t not_finite_input;   // NaN or infinity among what was read: not in what is cropped, not
                                 // in alpha
    uint32_t not_finite_output;  // among what the network made, before pixels are clamped or bytes,
                                 // or a number too large for the output's type
};

struct vae;

// Puts the network's weights on a device. The table stays shared until vae_destroy.
// Ownership: the caller owns *out; on failure it is untouched.
// Errors:    INVALID_ARGUMENT names the tensor that is missing or has another shape than the
//            configuration, or the number of the configuration that cannot be; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status vae_create(struct vae **out, struct device *device, struct tensor_table *tensors,
                       const struct vae_config *config, struct error *error);

// What vae_create is going to hold, vae_bytes of its result, exactly: from shapes and types, no
// tensor is read.
// Errors:    INVALID_ARGUMENT as vae_create.
// Thread:    any.
enum status vae_weights_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                             const struct vae_config *config, struct error *error);

// Frees the weights; no program of it runs any more. NULL is allowed.
// Thread:    any.
void vae_destroy(struct vae **self_p);

// Bytes of memory held for the weights: the mapped tensors that are read in place and the device's
// copies.
// Thread:    any.
uint64_t vae_bytes(const struct vae *self);

// Checks a request and lays it out; see vae_plan. Cheap (it builds the program to learn its peak,
// no tensor is touched). *out is written on success only.
//
// Errors:    INVALID_ARGUMENT names the value ("latent has 5 channels, the model takes 4"; zero and
//            overflowing sizes, sides above 65,536 pixels, more than 16,384 tiles; an overlap not
//            below the narrowest tile; passes other than 1 and 3; dtypes);
//            FAILED_PRECONDITION when the model lacks the half that is asked for;
//            RESOURCE_EXHAUSTED when even tiles do not fit bytes_max.
// Thread:    any.
enum status vae_plan(const struct vae *self, const struct vae_request *request,
                     struct vae_plan *out, struct error *error);

// Builds the program of a plan: its slots are those of enum vae_slot, one mark after each tile.
// Ownership: the caller owns *out and keeps the vae until it is destroyed.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status vae_program(const struct vae *self, const struct vae_plan *plan, struct program **out,
                        struct error *error);

// An upper estimate of a request's arena from the shape alone, before any weight is loaded, for the
// scaler; 0 for an image without a latent. With AUTO and bytes_max it is that of the first tiles
// that are tried when the whole does not fit.
// Thread:    any.
uint64_t vae_estimate_bytes(const struct vae_config *config, const struct vae_request *request);

#endif  // MODELS_VAE_VAE_H
