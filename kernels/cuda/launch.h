// launch.h - what the host code may launch: arguments as plain C structs, one function a kernel.
//
// All pointers are device memory. Activations are [rows, channels] of the type `storage`. Functions
// enqueue on the stream and return; a failure sticks to the stream (driver.h). The caller has
// checked all sizes: rows and their products with widths fit 31 and 64 bits.
//
// Legend: n images, h rows, w columns, c channels in, k channels out, r x r taps.

#ifndef KERNELS_CUDA_LAUNCH_H
#define KERNELS_CUDA_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/cuda/driver.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "base/dtype.h"

// ---------------------------------------------------------------------------------------------
// Rows

// float32 activations as a sum of 16-bit parts, stacked as rows [parts, rows, pitch]; columns from
// c on are zero. fp16: two parts of x / scale, where scale is a power of two for each row, so that
// nothing overflows or gets lost; bf16: three parts, scale is 1.
struct gpu_split {
    const float *input;  // [rows, c]
    void *parts;         // [parts, rows, pitch]; NULL: none
    float *scales;       // [rows]
    uint32_t rows, c, pitch;
    bool is_bf16;
};

struct gpu_layer_norm {
    const void *input;          // [rows, width]
    void *output;               // may be the input
    const float *gamma, *beta;  // [width]
    uint32_t rows, width;
    float epsilon;
    enum dtype storage;
    struct gpu_split next;  // of the output, by the way; no parts: not wanted
};
// Thread:    the stream's user's, as for all of these.
void gpu_launch_layer_norm(struct gpu_stream *stream, const struct gpu_layer_norm *arguments);

struct gpu_embedding {
    const int32_t *ids;             // [rows]
    const float *vectors;           // of the negative ids, or NULL
    const void *table, *positions;  // [vocabulary, width], [tokens, width]
    void *output;                   // [rows, width]
    uint32_t rows, tokens, width;
    enum dtype table_type, positions_type;  // f32, f16, bf16
    enum dtype storage;
};
// output[row] = table[id] + positions[row mod tokens], or vectors[-1 - id] in place of the word.
void gpu_launch_embedding(struct gpu_stream *stream, const struct gpu_embedding *arguments);

struct gpu_gather {
    const void *input;
    const int32_t *indices;  // [count]
    void *output;            // [count, width]
    uint32_t count, width;
    enum dtype storage;
};
// output[i] = input[indices[i]].
void gpu_launch_gather(struct gpu_stream *stream, const struct gpu_gather *arguments);

// ---------------------------------------------------------------------------------------------
// Images

// Rows of one image or of the planes of one latent, as the host's slot has them.
struct gpu_load {
    const void *source;  // pixels: [h, full_w, channels]; latents: [channels, h, full_w]
    void *output;        // [h, w, 3], [h, w, channels]
    uint32_t channels;
    uint32_t full_w, x;      // width of the source's rows, first column that is taken
    uint32_t h, w;           // of the output
    enum dtype source_type;  // f32, f16, bf16; pixels: u8 too
    enum dtype storage;
    uint32_t *not_finite;  // set to 1 when an element that is taken is NaN or infinite; or NULL
};
// Pixels 0..1 (u8 / 255) to 2x - 1.
void gpu_launch_load_pixels(struct gpu_stream *stream, const struct gpu_load *arguments);
void gpu_launch_load_latent(struct gpu_stream *stream, const struct gpu_load *arguments);

struct gpu_store {
    const void *input;  // [h, w, stride] of input_type
    void *output;       // pixels: [h, w, 3]; latents: [channels, h, w]
    uint32_t h, w;
    uint32_t channels;  // 3 for pixels
    uint32_t stride;    // elements from pixel to pixel; 3 for pixels
    bool clamp;         // pixels: (y + 1) / 2 within 0..1
    enum dtype input_type;
    enum dtype output_type;  // f32, f16, bf16; pixels: u8 too
    float limit;             // from this magnitude on, an input or what becomes of it is infinite
    uint32_t *not_finite;    // set to 1 when an input is, or is NaN; or NULL
};
// Activations or accumulators to what a slot takes. The output of u8 pixels has room for whole
// words of four.
void gpu_launch_store_pixels(struct gpu_stream *stream, const struct gpu_store *arguments);
void gpu_launch_store_latent(struct gpu_stream *stream, const struct gpu_store *arguments);

// output[i] = input[i], count elements.
struct gpu_widen {
    const void *input;
    float *output;
    uint64_t count;
    enum dtype storage;
};
void gpu_launch_widen(struct gpu_stream *stream, const struct gpu_widen *arguments);

struct gpu_blend {
    const void *tile;  // [h, w, stride]
    float *sum;        // [full_h, full_w, channels]
    float *weight;     // [full_h, full_w]
    uint32_t channels, stride;
    uint32_t full_w, y, x, h, w;
    uint32_t feather;  // lines
    enum dtype storage;
};
// sum += tile * mask; weight += mask, as kernels.h defines the mask.
void gpu_launch_blend(struct gpu_stream *stream, const struct gpu_blend *arguments);

struct gpu_blend_end {
    const float *sum, *weight;
    float *total;  // may be sum
    uint64_t pixels;
    uint32_t channels, pass, passes;
};
// total = sum / weight, or the mean over passes, as kernels.h says.
void gpu_launch_blend_end(struct gpu_stream *stream, const struct gpu_blend_end *arguments);

// ---------------------------------------------------------------------------------------------
// GroupNorm in two halves: moments of an output, factors for the next input

struct gpu_moments {
    float mean, variance;  // over the pixels of one image
};

// What one block of a convolution leaves of one channel: its pixels, their mean, the sum of squares
// around it.
struct gpu_partial {
    float count, mean, squares;
};

struct gpu_fold {
    const struct gpu_partial *partials;  // [n, slots, k]
    struct gpu_moments *moments;         // [n, k]
    uint32_t n, slots, k;
};
// The moments of each channel from its partials, merged in a fixed order.
void gpu_launch_fold_moments(struct gpu_stream *stream, const struct gpu_fold *arguments);

// y = x * scale + shift.
struct gpu_factors {
    float scale, shift;
};

struct gpu_normalize {
    const struct gpu_moments *moments;  // [n, c]
    const float *gamma, *beta;          // [c]
    struct gpu_factors *factors;        // [n, c]
    uint32_t n, c, groups;
    float epsilon;
};
// What the convolution applies to its input: the moments of a group are those of its channels.
void gpu_launch_normalize(struct gpu_stream *stream, const struct gpu_normalize *arguments);

// ---------------------------------------------------------------------------------------------
// Convolution

// Weights are packed [tap][chunk][k][GPU_CHUNK]: chunks of input channels, the last one padded with
// zeros. Within a row of a chunk, units of 8 channels lie in the order in which tensor cores read
// them from shared memory without a conflict of banks (tiles.h), so that a block of rows is copied
// as it is: channel c of output channel k is element GPU_CHUNK_PLACE(k, c) of its row.
//
// A 3x3 window over an image that was doubled by its nearest pixels is one of four 2x2 windows over
// the image itself, as the output's row and column are even or odd: taps that fall on one pixel are
// added. Such a weight is packed as 16 taps, [row odd][column odd][2][2].
#define GPU_CHUNK 32u
#define GPU_CHUNK_PLACE(k, c) ((((c) >> 3 ^ ((k) >> 1 & 3u)) << 3) + ((c)&7u))

struct gpu_convolution {
    const void *input;                  // [n, h, w, c]
    const void *weight;                 // packed; with upsample as 16 taps
    const float *bias;                  // [k] or NULL
    const struct gpu_factors *factors;  // [n, c]: applied to the input before its padding; or NULL
    const void *residual;               // [n, oh, ow, k] or NULL; may be the output
    const void *shortcut;               // [n, oh, ow, shortcut_c] or NULL
    const void *shortcut_weight;        // packed, one tap
    const float *shortcut_bias;         // [k] or NULL
    void *output;                       // [n, oh, ow, k]
    struct gpu_partial *partials;       // [n, slots, k] or NULL
    uint32_t n, h, w, c, k, r;
    uint32_t oh, ow, shortcut_c;
    uint32_t stride;
    bool upsample, silu;
    enum dtype storage;
};

// Any shape and any type, on ordinary cores.
void gpu_launch_convolution_plain(struct gpu_stream *stream,
                                  const struct gpu_convolution *arguments);

// 16-bit types on tensor cores. With upsample there is no shortcut.
void gpu_launch_convolution_mma(struct gpu_stream *stream, const struct gpu_convolution *arguments);

// The same by the instructions of compute capability 9.0 alone; partials have as many slots.
void gpu_launch_convolution_wgmma(struct gpu_stream *stream,
                                  const struct gpu_convolution *arguments);

// How many partials an image of such an output has.
// Thread:    any.
uint32_t gpu_convolution_plain_slots(const struct gpu_convolution *arguments);
uint32_t gpu_convolution_mma_slots(const struct gpu_convolution *arguments);

// ---------------------------------------------------------------------------------------------
// Linear

// The parts of all rows.
void gpu_launch_split(struct gpu_stream *stream, const struct gpu_split *arguments);

struct gpu_product_plain {
    const float *a, *b;  // [m, k], [n, k]; rows of k and b_pitch elements
    float *c;            // [m, n]
    uint32_t m, n, k, b_pitch;
};
// c = a b^T in float32.
void gpu_launch_multiply_plain(struct gpu_stream *stream,
                               const struct gpu_product_plain *arguments);

// 16-bit operands; slow where a pitch is not a multiple of 8. The columns are summed in slices.
struct gpu_product_mma {
    const void *a;              // [parts, m, k]: its parts are summed; rows of a_pitch elements
    const void *b;              // [n, k]; rows of b_pitch elements
    float *c;                   // [m, n], or [slices, m, n] where they are apart
    uint32_t m, n, k;           //
    uint32_t a_pitch, b_pitch;  // elements
    uint32_t parts;             // of a: 1, or as gpu_split makes them
    uint32_t slices;            // gpu_product_slices(n, k)
    bool is_apart;              // each slice's sums for themselves, to be added in their order
    bool is_bf16;               // else fp16
};
// c = a b^T with sums in float32, whose order depends on n and k alone: apart and added in order,
// slices make the same bits.
void gpu_launch_multiply_mma(struct gpu_stream *stream, const struct gpu_product_mma *arguments);

// The same by the instructions of compute capability 9.0 alone.
void gpu_launch_multiply_wgmma(struct gpu_stream *stream, const struct gpu_product_mma *arguments);

// How many tiles c has.
// Thread:    any.
uint32_t gpu_product_tiles(uint32_t m, uint32_t n);
// How many slices the columns of a and b are cut into, 1 or more.
// Thread:    any.
uint32_t gpu_product_slices(uint32_t n, uint32_t k);

// One adapter of a linear.
struct gpu_path {
    const void *down;  // [rank, pitch of c]
    const void *up;    // [column_count, pitch of rank]
    float *inner;      // [row_count, rank]: scale * down(x)
    enum dtype down_type, up_type;
    uint32_t down_pitch, up_pitch;  // elements
    uint32_t row_begin, row_count, column_begin, column_count, rank;
    float scale;
};

// The most adapters of one launch; linears with more take several.
#define GPU_PATHS_MAX 16u

struct gpu_linear_paths {
    const void *input;  // [rows, c]
    uint32_t c;
    enum dtype storage;
    uint32_t count;
    struct gpu_path paths[GPU_PATHS_MAX];
};
// inner = scale * down(x), all adapters in one launch.
void gpu_launch_low_rank_down(struct gpu_stream *stream, const struct gpu_linear_paths *arguments);
// sums[row, column] += up(inner).
void gpu_launch_low_rank_up(struct gpu_stream *stream, const struct gpu_linear_paths *arguments,
                            float *sums, uint32_t k);

enum gpu_activation { GPU_ACTIVATION_NONE, GPU_ACTIVATION_QUICK_GELU, GPU_ACTIVATION_GELU };

// output = activation(scales[row] * (sums of all addends) + bias) + residual.
struct gpu_finish {
    const float *sums;     // [addends, rows, k], added in this order
    const float *scales;   // [rows] or NULL
    const float *bias;     // [k] or NULL
    const void *residual;  // [rows, k] or NULL; may be the output
    void *output;          // [rows, k]; may be the sums where storage is f32
    uint32_t addends, rows, k;
    enum gpu_activation activation;
    enum dtype storage;
    struct gpu_layer_norm norm;  // of the output, by the way; no gamma: not wanted
    struct gpu_split next;       // else of the output; no parts: not wanted
};
void gpu_launch_finish_linear(struct gpu_stream *stream, const struct gpu_finish *arguments);

// ---------------------------------------------------------------------------------------------
// Attention

struct gpu_attention {
    const void *q, *k, *v;  // row t of batch b begins at element (b * tokens + t) * stride
    void *output;           // [batch, tokens, heads * head_width]
    uint32_t q_stride, k_stride, v_stride;
    uint32_t batch, tokens, heads, head_width;
    float scale;
    bool causal;
    enum dtype storage;
};

// Any shape, on ordinary cores.
void gpu_launch_attention_plain(struct gpu_stream *stream, const struct gpu_attention *arguments);

// float32, as few tokens and as narrow heads as these.
#define GPU_SHORT_TOKENS_MAX 96u
#define GPU_SHORT_HEAD_MAX 64u
void gpu_launch_attention_short(struct gpu_stream *stream, const struct gpu_attention *arguments);

// 16-bit types, head widths and strides that are multiples of 8, up to GPU_MMA_HEAD_MAX.
#define GPU_MMA_HEAD_MAX 512u
void gpu_launch_attention_mma(struct gpu_stream *stream, const struct gpu_attention *arguments);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_LAUNCH_H
