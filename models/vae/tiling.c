// tiling.c - the arithmetic of tiling.h; the facts it follows are in the VAE's specification.
//
// Starts of an axis that is longer than its tile are the multiples of tile - overlap below
// length - overlap; a shorter axis has the one start 0.

#include "models/vae/tiling.h"

#include <assert.h>

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t tiles_along(uint32_t length, uint32_t tile, uint32_t overlap)
{
    assert(overlap < tile);
    if (length <= tile) return 1;
    uint32_t step = tile - overlap;
    return (length - overlap - 1) / step + 1;
}

// Writes tile and overlap in latents; they came in pixels.
static enum status take_sizes(struct tiling *out, const struct tiling_options *options,
                              uint32_t passes, struct error *error)
{
    uint32_t tile = options->tile == 0 ? TILING_TILE_DEFAULT : options->tile;
    uint32_t overlap =
        options->overlap == TILING_OVERLAP_UNSET ? TILING_OVERLAP_DEFAULT : options->overlap;
    if (options->overlap == TILING_OVERLAP_UNSET && overlap >= tile / 2) overlap = tile / 4;
    if (overlap >= tile) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "overlap of %u is not below the tile of %u", overlap, tile);
    }
    if (options->decode && tile / 4 < overlap) overlap = tile / 4;
    out->tile = tile / options->factor;
    out->overlap = overlap / options->factor;
    if (out->tile < 2) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tile of %u pixels is below the smallest, %u", tile, 2 * options->factor);
    }
    uint32_t narrowest = passes == 1 ? out->tile : out->tile / 2;
    if (out->overlap >= narrowest) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "overlap of %u is not below %u, the side of the narrowest tile", overlap,
                         narrowest * options->factor);
    }
    return STATUS_OK;
}

// The k-th pass's tile: square, wide or tall, in the order of the direction.
static struct tiling_pass shape_pass(const struct tiling *self, bool decode, uint32_t pass)
{
    uint32_t half = self->tile / 2;
    uint32_t twice = self->tile > UINT32_MAX / 2 ? UINT32_MAX : 2 * self->tile;
    const struct tiling_pass square = {.tile_h = self->tile, .tile_w = self->tile};
    const struct tiling_pass wide = {.tile_h = half, .tile_w = twice};
    const struct tiling_pass tall = {.tile_h = twice, .tile_w = half};
    if (self->passes_count == 1 || pass == (decode ? 2u : 0u)) return square;
    return pass == 1 ? wide : tall;
}

enum status tiling_lay_out(struct tiling *out, const struct tiling_options *options,
                           struct error *error)
{
    assert(options->factor >= 1);
    assert(options->h >= 1 && options->w >= 1);

    uint32_t passes = options->passes == 0 ? 3 : options->passes;
    if (passes != 1 && passes != 3) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "passes is %u, it may be 1 or 3", passes);
    }
    struct tiling self = {.h = options->h, .w = options->w, .passes_count = passes, .whole = true};
    enum status status = take_sizes(&self, options, passes, error);
    if (status != STATUS_OK) return status;

    for (uint32_t i = 0; i < passes; i++) {
        struct tiling_pass pass = shape_pass(&self, options->decode, i);
        pass.direct = self.h <= pass.tile_h && self.w <= pass.tile_w;
        pass.rows = tiles_along(self.h, pass.tile_h, self.overlap);
        pass.columns = tiles_along(self.w, pass.tile_w, self.overlap);
        self.tiles += (uint64_t)pass.rows * pass.columns;
        self.whole = self.whole && pass.direct;
        self.passes[i] = pass;
    }
    *out = self;
    return STATUS_OK;
}

struct tiling_tile tiling_at(const struct tiling *self, uint32_t pass, uint32_t row,
                             uint32_t column)
{
    assert(pass < self->passes_count);
    const struct tiling_pass *at = &self->passes[pass];
    assert(row < at->rows);
    assert(column < at->columns);

    struct tiling_tile tile = {0};
    if (row > 0) tile.y = row * (at->tile_h - self->overlap);
    if (column > 0) tile.x = column * (at->tile_w - self->overlap);
    tile.h = smaller(at->tile_h, self->h - tile.y);
    tile.w = smaller(at->tile_w, self->w - tile.x);
    tile.feather = at->direct ? 0 : self->overlap;
    return tile;
}
