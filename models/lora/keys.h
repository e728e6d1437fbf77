// keys.h - keys of adapters: whose they are, and what they say about which tensor.
//
// A key is a prefix (the naming), a path (the tensor that it is about) and a suffix (an operand of
// a formula): "lora_te1_" "text_model_encoder_layers_3_mlp_fc1" ".lora_up.weight". Prefix and path
// together are the stem. Spec lora 1 and 2.

#ifndef MODELS_LORA_KEYS_H
#define MODELS_LORA_KEYS_H

#include "models/lora/lora.h"

#define LORA_LAYERS_MAX 128u
#define LORA_TARGET_BYTES 96u

// The namings, in the order in which ComfyUI looks at them: where two name the same tensor, the
// later one wins.
enum lora_naming {
    NAMING_GENERIC,      // text_encoders.clip_l.transformer.PATH: any weight
    NAMING_KOHYA,        // lora_te_
    NAMING_KOHYA_1,      // lora_te1_
    NAMING_DIFFUSERS,    // text_encoder.
    NAMING_PRIOR,        // lora_prior_te_
    NAMING_KOHYA_2,      // lora_te2_
    NAMING_DIFFUSERS_2,  // text_encoder_2.
    NAMING_COUNT,
};

// The weights of an encoder; the linears in the order of enum lora_linear.
enum lora_place {
    PLACE_Q = LORA_Q,
    PLACE_K = LORA_K,
    PLACE_V = LORA_V,
    PLACE_OUT = LORA_OUT,
    PLACE_FC1 = LORA_FC1,
    PLACE_FC2 = LORA_FC2,
    PLACE_PROJECTION = LORA_PROJECTION,
    PLACE_NORM_1,
    PLACE_NORM_2,
    PLACE_FINAL_NORM,
    PLACE_TOKENS,
    PLACE_POSITIONS,
    PLACE_COUNT,
};

// What a suffix says. Low-rank pairs come in seven spellings, in the order of their precedence.
#define LORA_SPELLINGS 7
enum lora_slot {
    SLOT_UP,
    SLOT_DOWN = SLOT_UP + LORA_SPELLINGS,
    SLOT_MID = SLOT_DOWN + LORA_SPELLINGS,
    SLOT_ALPHA,
    SLOT_DORA_SCALE,
    SLOT_RESHAPE,
    SLOT_HADA_W1_A,
    SLOT_HADA_W1_B,
    SLOT_HADA_W2_A,
    SLOT_HADA_W2_B,
    SLOT_HADA_T1,
    SLOT_HADA_T2,
    SLOT_LOKR_W1,
    SLOT_LOKR_W1_A,
    SLOT_LOKR_W1_B,
    SLOT_LOKR_W2,
    SLOT_LOKR_W2_A,
    SLOT_LOKR_W2_B,
    SLOT_LOKR_T2,
    SLOT_A1,
    SLOT_A2,
    SLOT_B1,
    SLOT_B2,
    SLOT_BLOCKS,
    SLOT_RESCALE,
    SLOT_W_NORM,
    SLOT_B_NORM,
    SLOT_DIFF,
    SLOT_DIFF_B,
    SLOT_SET_WEIGHT,
    SLOT_COUNT,
};
_Static_assert(SLOT_COUNT <= 64, "slots are bits of a uint64_t");

struct lora_key {
    enum lora_naming naming;  // by its prefix
    enum model_part part;     // that the prefix names; of those that name none CLIP-L or bigG,
                              // as they are meant where both are there
    enum lora_place place;    // by its path
    uint32_t layer;           // of a place in a layer, else 0
    enum lora_slot slot;      // by its suffix
};

// Takes a text encoder's key apart; false when it is none, or names no tensor that an encoder could
// have, or ends in nothing known.
// Thread:    any.
bool lora_key_parse(const char *key, struct lora_key *out);

// True for a key that ends as adapters' keys do, of whatever network.
// Thread:    any.
bool lora_key_is_adapter(const char *key);

// Which encoder a key means among those that a model has; false for none of them.
// Thread:    any.
bool lora_key_part(const struct lora_key *key, const bool has[MODEL_PART_COUNT],
                   enum model_part *out);

// ".lora_up.weight" and so on.
// Thread:    any.
const char *lora_slot_suffix(enum lora_slot slot);

// The canonical name of a weight or a bias.
// Thread:    any.
void lora_place_name(enum lora_place place, uint32_t layer, bool bias, char out[LORA_TARGET_BYTES]);

// The shape of a weight or a bias in an encoder; false when the encoder lacks it. Unused dims are
// 1.
// Thread:    any.
struct lora_shape {
    uint32_t rank;           // 1 or 2
    uint64_t rows, columns;  // columns is 1 for a vector
};
bool lora_place_shape(enum lora_place place, uint32_t layer, bool bias,
                      const struct clip_config *config, struct lora_shape *out);

#endif  // MODELS_LORA_KEYS_H
