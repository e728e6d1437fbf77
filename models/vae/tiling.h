// tiling.h - where the tiles of an image lie: the geometry of ComfyUI's tiled encode and decode.
//
// Every length is counted in latents, in both directions: images are cropped to whole latents first
// and tiles and overlaps are whole latents too, so pixels are the same numbers times the factor.
//
// A tiled job is one pass or three. Three passes walk the image in tiles of three aspects of equal
// area, and their results are averaged, so that the seams fall in different places. A pass whose
// tile covers the image is one direct call without a mask.
//
//     starts of one axis (128 long, tile 64, overlap 8; the last tile is cut off, not moved):
//
//         0 .............. 64
//                     56 .............. 120
//                                   112 .... 128

#ifndef MODELS_VAE_TILING_H
#define MODELS_VAE_TILING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define TILING_PASSES_MAX 3u

// What stands for "not said" in a request, and what is taken then, in pixels.
#define TILING_TILE_DEFAULT 512u
#define TILING_OVERLAP_UNSET UINT32_MAX
#define TILING_OVERLAP_DEFAULT 64u

struct tiling_options {
    bool decode;       // decides the order of the passes and how a wide overlap is treated
    uint32_t factor;   // pixels of one latent
    uint32_t h, w;     // of the whole, in latents
    uint32_t tile;     // pixels; 0: the default
    uint32_t overlap;  // pixels; TILING_OVERLAP_UNSET: the default
    uint32_t passes;   // 3 or 1; 0: 3
};

struct tiling_pass {
    uint32_t tile_h, tile_w;  // latents
    uint32_t rows, columns;   // of tiles
    bool direct;              // one tile that covers everything, without a mask
};

struct tiling {
    uint32_t h, w;     // of the whole, in latents
    uint32_t tile;     // of the square pass, in latents
    uint32_t overlap;  // latents
    uint32_t passes_count;
    struct tiling_pass passes[TILING_PASSES_MAX];  // in the order in which they are added up
    uint64_t tiles;                                // of all passes together
    bool whole;                                    // every pass is direct: nothing is tiled
};

// One tile: rows y .. y + h and columns x .. x + w.
struct tiling_tile {
    uint32_t y, x, h, w;  // latents
    uint32_t feather;     // latents that overlap with the neighbours; 0 in a direct pass
};

// Lays the tiles out: fills in defaults and takes tile and overlap down to whole latents, in
// ComfyUI's order.
// Errors:    INVALID_ARGUMENT for a tile below two latents, an overlap that is not below the tile
//            (below half of it for an encode in three passes, whose narrowest tile is that wide),
//            passes other than 1 and 3.
// Thread:    any.
enum status tiling_lay_out(struct tiling *out, const struct tiling_options *options,
                           struct error *error);

// The tile at the given row and column of a pass.
// Thread:    any.
struct tiling_tile tiling_at(const struct tiling *self, uint32_t pass, uint32_t row,
                             uint32_t column);

#endif  // MODELS_VAE_TILING_H
