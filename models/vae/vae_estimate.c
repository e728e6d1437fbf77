// vae_estimate.c - how much arena a request will want at most, from the shape of the model alone.
//
// It walks the levels as the network does and takes the largest set of tensors that are alive at
// once (network.c says which), in float32. What the arena loses to gaps (a level's first tensor
// lies above the quarter of it that it was made from), and what convolutions keep for themselves,
// is covered by a quarter on top; the packed keys and values of the attention are counted in full.

#include <assert.h>

#include "models/vae/network.h"
#include "models/vae/tiling.h"
#include "models/vae/vae.h"

// Statistics and partial sums of the convolutions, which small images do not outgrow.
#define SMALL_BYTES (UINT64_C(8) << 20)

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

// Elements a pixel that live in a run of resnets from c to k channels.
static uint64_t resnet_width(uint64_t c, uint64_t k)
{
    return c == k ? 2 * k : c + 2 * k;
}

// The arena of one pass of the network over h x w latents, in bytes.
static uint64_t network_estimate(const struct vae_config *config, bool decode, uint64_t latents)
{
    uint32_t last = config->levels - 1;
    uint64_t inner = config->block_channels[last];
    uint64_t attention = config->mid_attention ? 8 * inner : 0;
    uint64_t elements = latents * larger(attention, 2 * inner + 4ull * config->latent_channels);
    for (uint32_t i = 0; i <= last; i++) {
        uint64_t pixels = latents << (2 * (last - i));
        uint64_t k = config->block_channels[i];
        uint64_t in = decode ? config->block_channels[i < last ? i + 1 : i]
                             : config->block_channels[i > 0 ? i - 1 : 0];
        elements = larger(elements, pixels * resnet_width(in, k));
        if (decode && i < last) elements = larger(elements, pixels * in + pixels / 4 * in);
        if (!decode && i < last) elements = larger(elements, pixels * k + pixels / 4 * k);
        if (i == 0) elements = larger(elements, pixels * (k + config->image_channels));
    }
    uint64_t bytes = elements * sizeof(float);
    return bytes + bytes / 4 + SMALL_BYTES;
}

// The largest tile of a layout, in latents.
static uint64_t largest_tile(const struct tiling *tiling)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < tiling->passes_count; i++) {
        struct tiling_tile tile = tiling_at(tiling, i, 0, 0);
        largest = larger(largest, (uint64_t)tile.h * tile.w);
    }
    return largest;
}

uint64_t vae_estimate_bytes(const struct vae_config *config, const struct vae_request *request)
{
    assert(config->levels >= 1);
    assert(config->levels <= VAE_LEVELS_MAX);
    bool decode = request->direction == VAE_DECODE;
    uint32_t factor = network_factor(config);
    struct tiling_options options = {.decode = decode,
                                     .factor = factor,
                                     .h = decode ? request->h : request->h / factor,
                                     .w = decode ? request->w : request->w / factor,
                                     .tile = request->tile,
                                     .overlap = request->overlap,
                                     .passes = request->passes};
    struct tiling tiling;
    if (options.h == 0 || options.w == 0) return 0;
    uint64_t latents = (uint64_t)options.h * options.w;
    uint64_t whole = network_estimate(config, decode, latents);
    if (request->tiling == VAE_TILING_NEVER) return whole;
    bool fits = request->bytes_max == 0 || whole <= request->bytes_max;
    if (request->tiling == VAE_TILING_AUTO && fits) return whole;
    if (tiling_lay_out(&tiling, &options, NULL) != STATUS_OK || tiling.whole) return whole;

    uint64_t pixels = decode ? latents * factor * factor : latents;
    uint64_t channels = decode ? config->image_channels : config->latent_channels;
    uint64_t sums = pixels * (2 * channels + 1) * sizeof(float);
    return sums + network_estimate(config, decode, largest_tile(&tiling));
}
