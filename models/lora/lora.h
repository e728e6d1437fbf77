// lora.h - an adapter file: which tensors of the text encoders it changes, and how.
//
// Three nouns:
//
//     file      all tensors of an adapter, for the UNet too, in any naming that people have
//     lora      what the file's text-encoder tensors mean for the encoders of one model
//     module    one tensor of one encoder that a lora changes, with the formula's operands
//
// A file is first described without any model (the store does that), then understood for a model
// (an executor does that). Modules are applied in two ways: those of the low-rank family beside
// the weights (models/text/stack.h), all of them by lora_merge into a copy of the tensor.
//
// Keys, formulas and their order: spec lora 1 to 3. Pure functions over memory.

#ifndef MODELS_LORA_LORA_H
#define MODELS_LORA_LORA_H

#include "models/files/tensors.h"
#include "models/model.h"

enum lora_family {
    LORA_LOW_RANK,  // W += s a/r up down; LoCon on a linear is the same
    LORA_LOHA,      // Hadamard product of two low-rank products
    LORA_LOKR,      // Kronecker product
    LORA_GLORA,     // W a1 a2 + b1 b2
    LORA_DORA,      // low rank (or another product) with dora_scale
    LORA_OFT,       // orthogonal blocks
    LORA_BOFT,      // butterfly of orthogonal blocks
    LORA_DIFF,      // W += s diff: diff, diff_b, w_norm, b_norm
    LORA_SET,       // W = set_weight
    LORA_FAMILY_COUNT,
};

// "lora", "loha", "lokr", "glora", "dora", "oft", "boft", "diff", "set".
// Thread:    any.
const char *lora_family_name(enum lora_family family);

// The linears of an encoder: what a low-rank module may change beside the weights.
enum lora_linear {
    LORA_Q,
    LORA_K,
    LORA_V,
    LORA_OUT,
    LORA_FC1,
    LORA_FC2,
    LORA_PROJECTION,  // text_projection; layer is 0
    LORA_NO_LINEAR,   // an embedding, a LayerNorm, a bias
};

// What is in a file, whatever the model.
struct lora_description {
    bool low_rank;                    // every text-encoder module is of that family
    enum lora_family family;          // of the text-encoder modules ...
    bool mixed;                       // ... unless they are of several
    uint32_t rank;                    // the largest; 0 where there is none
    uint32_t modules;                 // tensors of text encoders that it changes
    bool encoders[MODEL_PART_COUNT];  // which its keys name; those of SD1.5's naming name L
    uint32_t keys_encoder;            // keys of text encoders
    uint32_t keys_other;              // all others
    uint64_t bytes_encoder;           // of the text-encoder tensors
};

// True for a key of a text encoder in any of the namings (spec lora 1): what encoder_hash is taken
// over, and what executors keep. It begins with one of
//     lora_te_ lora_te1_ lora_te2_ lora_prior_te_ text_encoder. text_encoder_2.
//     text_encoders.clip_l. text_encoders.clip_h. text_encoders.clip_g.
// Thread:    any.
bool lora_key_is_encoder(const char *key);

// Describes a file: reads names and shapes only. Modules that are incomplete are not counted; it is
// lora_create that refuses them.
// Errors:    INVALID_ARGUMENT for a file without any adapter's key (says its first key);
//            RESOURCE_EXHAUSTED.
// Thread:    any.
enum status lora_describe(const struct tensor_table *file, struct lora_description *out,
                          struct error *error);

// The tensors of text encoders, under the names of the file; may be empty (NULL table, OK).
// Ownership: the caller owns one count of *out; the file stays shared.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status lora_encoder_tensors(struct tensor_table **out, struct tensor_table *file,
                                 struct error *error);

// The operands of a formula, by role; NULL where the family does not have it or it is absent.
enum lora_role {
    LORA_ROLE_DOWN,  // LOW_RANK, DORA: down [r, in], up [out, r]
    LORA_ROLE_UP,
    LORA_ROLE_W1_A,  // LOHA, LOKR: factors (LOKR: W1, W2 when not factored)
    LORA_ROLE_W1_B,
    LORA_ROLE_W2_A,
    LORA_ROLE_W2_B,
    LORA_ROLE_W1,
    LORA_ROLE_W2,
    LORA_ROLE_T1,
    LORA_ROLE_T2,
    LORA_ROLE_A1,  // GLORA
    LORA_ROLE_A2,
    LORA_ROLE_B1,
    LORA_ROLE_B2,
    LORA_ROLE_BLOCKS,  // OFT [n, b, b], BOFT [m, n, b, b]
    LORA_ROLE_RESCALE,
    LORA_ROLE_DORA_SCALE,
    LORA_ROLE_DIFF,  // DIFF, SET
    LORA_ROLE_COUNT,
};

struct lora_module {
    enum model_part part;     // which encoder
    const char *target;       // canonical name in that encoder's table (models/model.h), lives
                              // as long as the lora
    enum lora_family family;  // by which formula
    enum lora_family
        product;              // under DORA: the family of what the scale is applied to; else family
    enum lora_linear linear;  // which linear's weight, or LORA_NO_LINEAR
    uint32_t layer;           // of the linear
    uint32_t rank;            // r; 0 where there is none
    float factor;             // alpha / r, or 1; the strength is not in it
    bool has_alpha;           // the file says alpha ...
    float alpha;              // ... this
    const struct tensor *operands[LORA_ROLE_COUNT];  // in the table
};

struct lora;

// Understands an adapter for the encoders of a model: maps keys to canonical tensors and checks
// that every module is complete and fits. A NULL table is an adapter without modules.
//
// As in ComfyUI one formula counts for each tensor: set_weight before diff, w_norm, OFT, GLoRA,
// LoKr, LoHa and low rank; of two namings that mean the same tensor the later of enum lora_naming
// (keys.h). The keys of the others are unused.
// Ownership: the caller owns *out, which keeps a count of the table.
// Errors:    INVALID_ARGUMENT names the key and both shapes: a half without the other, a rank of 0
//            or above the layer, another model's shapes, an alpha that is not finite, a dtype that
//            is no number; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status lora_create(struct lora **out, struct tensor_table *encoder_tensors,
                        const struct model_description *model, struct error *error);
void lora_destroy(struct lora **self_p);

// The modules, sorted by part and target, one for each.
// Thread:    any.
const struct lora_module *lora_modules(const struct lora *self, uint32_t *count);

// Keys of text encoders that change nothing here: this model has no tensor for them, they say
// nothing that is known, or another key won. And the i-th of them, ascending.
// Thread:    any.
uint32_t lora_unused_count(const struct lora *self);
const char *lora_unused_key(const struct lora *self, uint32_t index);

// True when every module is LORA_LOW_RANK on a linear's weight, so that it can be applied beside
// the weights. True for a lora without modules.
// Thread:    any.
bool lora_is_low_rank(const struct lora *self);

// False when the file under the tensors was changed in place: its bytes are not to be believed.
// Thread:    any.
bool lora_unchanged(const struct lora *self);

// One module at a strength.
struct lora_patch {
    const struct lora_module *module;  // of a lora that lives
    float strength;                    // all factors of the stack multiplied
};

// Looked at at least every 100 ms by what takes long; may be all zero.
struct lora_stop {
    bool (*should_stop)(void *context);  // true: give up with CANCELLED
    void *context;                       // handed to it
};

// Applies patches in order to a copy of a tensor, in fp32, and rounds once to the tensor's type
// (f32, f16, bf16; to nearest even), as ComfyUI does. out: dense, row-major, dims as base says
// (a transposed view is written in its own order of dims). The modules' target must be base.
//
// As in ComfyUI the strength of OFT and BOFT counts twice, inside the rotation and outside;
// set_weight replaces whatever the strength; DoRA of rows takes the norms of the tensor as it was
// before the patch. Beside out it needs 12 bytes an element where rows mix (DoRA of columns, OFT;
// BOFT 16), else little more than the adapter in fp32.
// Errors:    CANCELLED; RESOURCE_EXHAUSTED; INVALID_ARGUMENT for a singular OFT block.
// Thread:    any.
enum status lora_merge(const struct tensor *base, const struct lora_patch *patches, uint32_t count,
                       const struct lora_stop *stop, void *out, struct error *error);

#endif  // MODELS_LORA_LORA_H
