// vae_estimate.c - how much arena a request will want at most, from the shape of the model alone.
//
// It walks the levels as the network does and takes the largest sum of what is alive at once: the
// tensors (network.c says which), and what the operation keeps for itself. That is, on the CPU, the
// convolution's transformed weights (36 points instead of 9 taps, four sets when it upsamples) or
// the attention's packed keys and values. What the arena loses to gaps (a level's first tensor lies
// above the quarter of it that it was made from) is covered by a quarter of the tensors.

#include <assert.h>

#include "models/vae/network.h"
#include "models/vae/tiling.h"
#include "models/vae/vae.h"

// What a convolution of a small image may keep beside its weights: its whole input, transformed, of
// which the CPU takes up to 24 MiB; statistics and partial sums.
#define SMALL_BYTES (UINT64_C(32) << 20)

#define POINTS 36u            // of a transformed 3x3 filter
#define POINTS_UPSAMPLE 144u  // of one with nearest 2x in front

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

// A step's bytes: elements of tensors, with room for gaps, and elements that it keeps for itself.
static uint64_t step_bytes(uint64_t tensors, uint64_t own)
{
    return (tensors + tensors / 4 + own) * sizeof(float);
}

static uint64_t resnet_bytes(uint64_t pixels, uint64_t c, uint64_t k)
{
    uint64_t width = c == k ? 2 * k : c + 2 * k;
    return step_bytes(pixels * width, POINTS * k * larger(c, k) + c * k);
}

// From k channels at so many pixels to the next level.
static uint64_t sample_bytes(uint64_t pixels, uint64_t k, bool decode)
{
    uint64_t next = decode ? pixels * 4 : pixels / 4;
    return step_bytes((pixels + next) * k, (decode ? POINTS_UPSAMPLE : POINTS) * k * k);
}

// The middle, and the convolutions between it and the latents.
static uint64_t middle_bytes(const struct vae_config *config, uint64_t latents)
{
    uint64_t c = config->block_channels[config->levels - 1];
    uint64_t bytes = resnet_bytes(latents, c, c);
    if (config->mid_attention) {
        bytes = larger(bytes, step_bytes(latents * 5 * c, latents * 3 * c + 3 * c * c));
    }
    uint64_t outer = latents * (c + 4ull * config->latent_channels);
    return larger(bytes, step_bytes(outer, POINTS * c * 2 * config->latent_channels));
}

// The arena of one pass of the network over so many latents.
static uint64_t network_estimate(const struct vae_config *config, bool decode, uint64_t latents)
{
    uint32_t last = config->levels - 1;
    uint64_t bytes = middle_bytes(config, latents);
    for (uint32_t i = 0; i <= last; i++) {
        uint64_t pixels = latents << (2 * (last - i));
        uint64_t k = config->block_channels[i];
        uint64_t c = decode ? config->block_channels[i < last ? i + 1 : i]
                            : config->block_channels[i > 0 ? i - 1 : 0];
        bytes = larger(bytes, resnet_bytes(pixels, c, k));
        if (i < last && !decode) bytes = larger(bytes, sample_bytes(pixels, k, decode));
        if (i > 0 && decode) bytes = larger(bytes, sample_bytes(pixels, k, decode));
    }
    uint64_t k = config->block_channels[0];
    uint64_t image = (latents << (2 * last)) * (k + config->image_channels);
    bytes = larger(bytes, step_bytes(image, POINTS * k * config->image_channels));
    return bytes + SMALL_BYTES;
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
