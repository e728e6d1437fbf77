// network.h - one CLIP text encoder: its weights on a device, and its layers in a program.
//
//     ids -> token + position embedding -> x
//     layers times: x += out(attention(q, k, v of norm1(x)));  x += fc2(gelu(fc1(norm2(x))))
//     hidden: x after some layer, with or without the final norm
//     pooled: x after the last layer at one token, final norm, projection
//
// Legend: W width, M width of the MLP, T tokens of a row, R rows.

#ifndef MODELS_TEXT_NETWORK_H
#define MODELS_TEXT_NETWORK_H

#include "base/pages.h"
#include "kernels/kernels.h"
#include "models/lora/lora.h"
#include "models/model.h"

struct text_layer {
    struct weight *norm1_gamma, *norm1_beta;  // [W]
    struct weight *qkv, *qkv_bias;            // [3W, W], [3W]
    struct weight *out, *out_bias;            // [W, W], [W]
    struct weight *norm2_gamma, *norm2_beta;  // [W]
    struct weight *fc1, *fc1_bias;            // [M, W], [M]
    struct weight *fc2, *fc2_bias;            // [W, M], [W]
};

struct text_network {
    struct clip_config config;             // a copy
    struct tensor_table *tensors;          // a count: weights may read them as long as they live
    struct weight *tokens, *positions;     // [vocabulary, W], [T, W]
    struct text_layer *layers;             // config.layers of them
    struct weight *final_gamma;            // [W]
    struct weight *final_beta;             // [W]
    struct weight *projection;             // [P, W]; NULL when there is none
    struct pages projection_copy;          // of a tensor that a file holds transposed
    struct weight **weights;               // all of the above, to destroy them
    uint32_t weights_count, weights_room;  // of that list
    uint64_t bytes;                        // of memory: tensors that are read in place, and copies
    const struct text_network *base;       // of a variant: whose weights it borrows; else NULL
};

// Puts one encoder on a device, with the projection when it is wanted.
// Ownership: the caller owns *out.
// Errors:    INVALID_ARGUMENT names the tensor that is missing or does not fit; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status text_network_create(struct text_network **out, struct device *device,
                                struct tensor_table *tensors, const struct clip_config *config,
                                bool want_projection, struct error *error);
void text_network_destroy(struct text_network **self_p);

// What text_network_create is going to hold, exactly; no tensor is read.
// Errors:    as text_network_create.
// Thread:    any.
enum status text_network_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                              const struct clip_config *config, bool want_projection,
                              struct error *error);

// Makes a variant of an encoder, with other values for some of its tensors: a weight that has one
// of them is its own, the others are the base's.
// Ownership: the caller owns *out, keeps the base as long, and the bytes of the tensors in
//            `touched` (canonical names, the base's shapes and types); not the table.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status text_network_vary(struct text_network **out, const struct text_network *base,
                              struct device *device, const struct tensor_table *touched,
                              struct error *error);

// A low-rank product beside a linear.
struct text_path {
    const struct weight *down;  // [rank, what the linear reads]
    const struct weight *up;    // [what it writes, rank]
    uint32_t rank;              // of both
    float scale;                // strength * alpha / rank
};

// The linears of a layer that have paths, LORA_Q to LORA_FC2; the projection comes behind the last
// layer's.
#define TEXT_LAYER_LINEARS 6u
_Static_assert(LORA_FC2 + 1 == TEXT_LAYER_LINEARS, "the linears of a layer come first");

// What a stack adds to an encoder: of linear i (layer * 6 + linear) the paths begins[i] to
// begins[i + 1], in the stack's order.
struct text_paths {
    struct text_path *items;  // by linear
    uint32_t *begins;         // [layers * 6 + 2]
    uint32_t most;            // beside one operation; query, key and value are one
};

// Rows of a pass, or pooled rows of it, that have the same paths.
struct text_segment {
    uint32_t begin, count;           // rows
    const struct text_paths *paths;  // not NULL
};

// Rows of a pass whose hidden states are wanted from the same place: [begin, begin + count).
struct text_tap {
    uint32_t begin, count;  // rows
    uint32_t layers;        // after how many layers
    bool norm;              // the final norm is applied
};

// One pass over some rows. They are sorted by the layers that they need, most first, so that those
// that are done fall off the end; rows of one tap lie side by side.
struct text_pass {
    struct value ids;             // slot: i32 [R, T]
    struct value vectors;         // slot: f32 [vectors_count, W], or VALUE_NONE
    uint32_t vectors_count;       // of all passes together
    uint32_t rows;                // R
    const uint32_t *row_layers;   // [R], descending: layers that each row must go through
    const struct text_tap *taps;  // what to store
    uint32_t taps_count;
    struct value hidden;         // slot: f32 [R, T, W]
    uint32_t pooled_count;       // rows whose pooled output is wanted; all of them need all layers
    struct value pooled_tokens;  // slot: i32 [pooled_count]: row of the pass * T + token
    struct value pooled;         // slot: f32 [pooled_count, P or W]
    uint64_t activation_bytes;   // of one element on the device
    const struct text_segment *segments;         // rows with paths, ascending
    uint32_t segments_count;                     // of those
    const struct text_segment *pooled_segments;  // pooled rows with paths, ascending
    uint32_t pooled_segments_count;              // of those
    struct low_rank *low_ranks;  // scratch: the sum of all segments' most; NULL without segments
};

// Appends a pass to a program. Errors come out of program_finish.
// Thread:    the builder's.
void text_network_build(const struct text_network *self, struct program *program,
                        const struct text_pass *pass);

#endif  // MODELS_TEXT_NETWORK_H
