// convolution_plan.h - how a convolution is cut: shared by convolution.c, statistics.c and the
// bodies.
//
// The workspace of a convolution, in this order, each part aligned to 64 bytes:
//
//     norm      [n][3][depth]   mean, scale, offset of each input channel: (x - mean) * scale +
//                               offset
//     range     [n][2][c]       of an input channel: its largest squared, its mean square
//     asks      [n][k / 16]     not 0 where a panel of columns asks for the direct way
//     bands     [n][bands][2][c]  what range is made of where there is no norm
//     shortcut                  packed weight of the 1x1 shortcut
//     weight                    packed or transformed weight of the convolution itself
//     partials  [items][16 + 4 * columns]   statistics of what one item wrote: count, means, M2,
//                               lowest, highest
//
// Winograd mixes the pixels of a tile: its rounding errors are as large as the largest input of the
// tile asks for, in all of the tile's outputs, and a single bright pixel spoils its neighbours. So
// each image's error is bounded before it is computed, from what is known of each channel c of the
// input (its largest magnitude m and its mean square r2) and from the weight:
//
//     error of output k      at most about gain * 2^-24 * sqrt(sum over c of m^2 |w_kc|^2)
//     size of output k       about sqrt(sum over c of r2 |w_kc|^2)
//
// An image where error / size is beyond WINOGRAD_ERROR_MAX for some k goes the direct way, alone.
// The gain is measured: 18 (F4 and F5). So that a few bright pixels do not make everything look
// large, r2 is taken without the square of the largest for up to nine pixels (a pixel that went
// through a 3x3 filter), of 256 each. Channels that are large everywhere change nothing.

#ifndef KERNELS_CPU_CONVOLUTION_PLAN_H
#define KERNELS_CPU_CONVOLUTION_PLAN_H

#include "kernels/cpu/compute.h"

// Elements of (tap, channel) that the direct way sums from zero: the nine taps of 32 channels.
#define DIRECT_CHUNK 288u
// Channels that Winograd sums from zero.
#define WINOGRAD_CHUNK 128u
// The most outputs of a convolution whose taps become columns; narrow_body.h loads eight at once.
#define NARROW_COLUMNS 8u
// Points of a transformed tile, 6 x 6.
#define WINOGRAD_POINTS 36u
// Columns that one block of a Winograd item takes through product and output transform.
#define WINOGRAD_BLOCK 32u
// The most strips (of 6 tiles) of a Winograd item.
#define WINOGRAD_ITEM_STRIPS 16u
// Strips that an item transforms into a shared input.
#define WINOGRAD_INPUT_STRIPS 2u
// About the most multiplications and additions of one item, some 40 ms of one core.
#define WINOGRAD_ITEM_OPERATIONS 4000000000u
// Rounding errors of Winograd over those of one multiplication, measured on normal inputs.
#define WINOGRAD_ERROR_GAIN 18.0
// The most error that Winograd may make, over the rms of the output: a third of what images may be
// off, so that some layers of a network may come this near.
#define WINOGRAD_ERROR_MAX 4e-5
// Channels and, at most, pixels that one item takes the range of: some 10 ms of one core.
#define RANGE_CHANNELS 32u
#define RANGE_PIXELS (1u << 18)

// The direct way: tiles of output pixels as rows, (tap, channel) as depth.
struct direct_plan {
    uint32_t side;          // taps along one side, 1 or 3
    uint32_t out_h, out_w;  // of the output; a 1x1 takes the image as one long row
    uint32_t in_h, in_w;    // of the input as stored, likewise
    uint32_t tile_h;        // output pixels of one item
    uint32_t tile_w;        // output pixels of one item
    uint32_t tiles_x;       // items along a row
    uint32_t tiles;         // items of one image
    uint32_t channels;      // input channels, rounded up to 8
    uint32_t depth;         // side * side * channels
    uint32_t columns;       // output channels, rounded up to 16
    uint32_t strips;        // of 6 pixels in a full tile
    uint32_t patch_h;       // rows of input that a full tile reads
    uint32_t patch_w;       // columns of input that a full tile reads
    bool narrow;            // few outputs: depth is channels, columns are (tap, output)
    bool patched;           // the input is copied (and normalised) into scratch first
    uint64_t weight_bytes;  // of the packed weight
    uint64_t pack_bytes;    // scratch of an item that packs the weight
    uint64_t item_bytes;    // scratch of an item
};

// Winograd F(4x4, 3x3), or with upsampling four phases F(5x5, 2x2) that share the input transform.
//
// An image whose transformed input is smaller than the transformed weight is transformed as a
// whole, into the workspace; then items are a group of tiles, a phase and a split of the columns,
// so that many threads find work and each reads few weights. A larger image has tiles enough: there
// an item transforms its own group, in scratch, and does all phases and columns.
struct winograd_plan {
    bool shared;            // the transformed input is in the workspace
    uint32_t side;          // output pixels (of a phase) along a tile: 4 or 5
    uint32_t phases;        // 1, or 4 with upsampling
    uint32_t tiles_x;       // tiles along a row
    uint32_t tiles;         // of one image
    uint32_t strips;        // of 6 tiles, of one image
    uint32_t groups;        // of strips, of one image
    uint32_t item_strips;   // the most strips of a group
    uint32_t item_phases;   // phases of one item: all, or 1 where shared
    uint32_t splits;        // of the columns
    uint32_t split_blocks;  // blocks of columns in a split
    uint32_t parts;         // items of one group: splits * phases / item_phases
    uint32_t partials;      // of one image's statistics
    uint32_t input_items;   // of one image, to transform a shared input
    size_t input_stride;    // floats from point to point of the transformed input
    size_t product_stride;  // floats from point to point of the product
    size_t weight_stride;   // floats from point to point of a transformed weight panel
    uint64_t input_bytes;   // of one image's transformed input in the workspace, or 0
    uint64_t weight_bytes;  // of the transformed weight
    uint64_t pack_bytes;    // scratch of an item that transforms the weight
    uint64_t item_bytes;    // scratch of an item
};

struct convolution_plan {
    uint32_t out_h, out_w;        // of the output
    bool winograd;                // for images that do not ask for the direct way
    bool has_norm;                // the input is normalised
    bool has_shortcut;            // a 1x1 convolution of another input goes first, into the output
    bool has_statistics;          // of the output are wanted
    struct direct_plan direct;    // of images that go the direct way
    struct winograd_plan tiles;   // with winograd
    struct direct_plan shortcut;  // with has_shortcut
    uint32_t panels;              // of the output's columns
    uint32_t range_bands;         // of an input without norm, for Winograd; else 0
    uint32_t items;               // of Winograd
    uint32_t direct_items;        // of the direct way
    uint32_t partials;            // room of one image
    size_t norm_stride;           // floats from image to image of norm
    size_t partial_stride;        // floats from one of partials to the next
    uint64_t range_offset;        // bytes from the start of the workspace
    uint64_t asks_offset;         // likewise
    uint64_t bands_offset;        // likewise
    uint64_t shortcut_offset;     // likewise
    uint64_t weight_offset;       // likewise
    uint64_t input_offset;        // likewise
    uint64_t partials_offset;     // likewise
    uint64_t workspace_bytes;     // all of it
};

// Thread:    any.
struct convolution_plan cpu_convolution_plan(const struct convolution *op);

// Items: fold the statistics of one image's input into norm and, with Winograd, into range; merge
// the partials of 16 columns of one image into the output's statistics.
// Thread:    any.
void cpu_norm_fold(const struct operation *op, const struct cpu_run *run, uint32_t item,
                   void *scratch);
void cpu_statistics_merge(const struct operation *op, const struct cpu_run *run, uint32_t item,
                          void *scratch);

// An item: the range of an image from what the bands of its input left.
// Thread:    any.
void cpu_range_merge(const struct operation *op, const struct cpu_run *run, uint32_t item,
                     void *scratch);

// Where a band of an image leaves the largest magnitudes of its channels; the sums of their squares
// lie behind them.
static inline float *cpu_convolution_band(const struct operation *operation,
                                          const struct cpu_run *run,
                                          const struct convolution_plan *plan, uint32_t image,
                                          uint32_t band)
{
    uint8_t *workspace = (uint8_t *)cpu_address(run, &operation->workspace);
    float *bands = (float *)(void *)(workspace + plan->bands_offset);
    size_t index = (size_t)image * plan->range_bands + band;
    return bands + index * 2 * operation->convolution.c;
}

// The squares of the largest inputs of an image's channels; their mean squares lie behind them.
static inline float *cpu_convolution_range(const struct operation *operation,
                                           const struct cpu_run *run,
                                           const struct convolution_plan *plan, uint32_t image)
{
    uint8_t *workspace = (uint8_t *)cpu_address(run, &operation->workspace);
    float *range = (float *)(void *)(workspace + plan->range_offset);
    return range + (size_t)image * 2 * operation->convolution.c;
}

// Where the panels of an image say whether they ask for the direct way.
static inline float *cpu_convolution_asks(const struct operation *operation,
                                          const struct cpu_run *run,
                                          const struct convolution_plan *plan, uint32_t image)
{
    uint8_t *workspace = (uint8_t *)cpu_address(run, &operation->workspace);
    return (float *)(void *)(workspace + plan->asks_offset) + (size_t)image * plan->panels;
}

// True when an image goes the direct way; known once the weight is packed.
static inline bool cpu_image_is_direct(const struct operation *operation, const struct cpu_run *run,
                                       const struct convolution_plan *plan, uint32_t image)
{
    if (!plan->winograd) return true;
    const float *asks = cpu_convolution_asks(operation, run, plan, image);
    for (uint32_t i = 0; i < plan->panels; i++) {
        if (asks[i] > 0) return true;
    }
    return false;
}

// Side of the filter, from the weight.
static inline uint32_t cpu_filter_side(const struct weight *weight)
{
    return weight->form == WEIGHT_CONVOLUTION ? weight->dims[2] : 1;
}

// Strips begin .. end of a Winograd item of one image.
static inline uint32_t cpu_winograd_strip(const struct winograd_plan *plan, uint32_t group)
{
    return (uint32_t)((uint64_t)plan->strips * group / plan->groups);
}

#endif  // KERNELS_CPU_CONVOLUTION_PLAN_H
