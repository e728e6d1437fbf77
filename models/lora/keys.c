// keys.c - see keys.h. Keys are taken apart from the left, so that a stem that holds what looks
// like a suffix ("lora_te_...") is no trouble, and by tables alone: no key is ever searched for.

#include "models/lora/keys.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

struct prefix {
    const char *text;         // that makes a key one of a text encoder
    const char *inner;        // that must follow it to name a tensor
    enum lora_naming naming;  // what it is
    enum model_part part;     // which encoder it means
    char dot;                 // between the words of the path
    bool projection;          // whether it can name the projection
};

static const struct prefix prefixes[] = {
    {"lora_te_", "", NAMING_KOHYA, MODEL_CLIP_L, '_', false},
    {"lora_te1_", "", NAMING_KOHYA_1, MODEL_CLIP_L, '_', true},
    {"lora_te2_", "", NAMING_KOHYA_2, MODEL_CLIP_G, '_', true},
    {"lora_prior_te_", "", NAMING_PRIOR, MODEL_CLIP_G, '_', true},
    {"text_encoder.", "", NAMING_DIFFUSERS, MODEL_CLIP_L, '.', false},
    {"text_encoder_2.", "", NAMING_DIFFUSERS_2, MODEL_CLIP_G, '.', false},
    {"text_encoders.clip_l.", "transformer.", NAMING_GENERIC, MODEL_CLIP_L, '.', true},
    {"text_encoders.clip_h.", "transformer.", NAMING_GENERIC, MODEL_CLIP_H, '.', true},
    {"text_encoders.clip_g.", "transformer.", NAMING_GENERIC, MODEL_CLIP_G, '.', true},
};
#define PREFIXES (sizeof prefixes / sizeof prefixes[0])

#define LAYERS_PATH "text_model.encoder.layers."

static const struct {
    const char *path;  // after LAYERS_PATH and the number, or the whole
    bool in_layer;     // one in every layer
    bool has_bias;     // a bias beside the weight
} places[] = {
    [PLACE_Q] = {"self_attn.q_proj", true, true},
    [PLACE_K] = {"self_attn.k_proj", true, true},
    [PLACE_V] = {"self_attn.v_proj", true, true},
    [PLACE_OUT] = {"self_attn.out_proj", true, true},
    [PLACE_FC1] = {"mlp.fc1", true, true},
    [PLACE_FC2] = {"mlp.fc2", true, true},
    [PLACE_PROJECTION] = {"text_projection", false, false},
    [PLACE_NORM_1] = {"layer_norm1", true, true},
    [PLACE_NORM_2] = {"layer_norm2", true, true},
    [PLACE_FINAL_NORM] = {"text_model.final_layer_norm", false, true},
    [PLACE_TOKENS] = {"text_model.embeddings.token_embedding", false, false},
    [PLACE_POSITIONS] = {"text_model.embeddings.position_embedding", false, false},
};
_Static_assert(sizeof places / sizeof places[0] == PLACE_COUNT, "every place has a path");

static const char *const suffixes[] = {
    [SLOT_UP + 0] = ".lora_up.weight",
    [SLOT_UP + 1] = "_lora.up.weight",
    [SLOT_UP + 2] = ".lora_B.weight",
    [SLOT_UP + 3] = ".lora.up.weight",
    [SLOT_UP + 4] = ".lora_B",
    [SLOT_UP + 5] = ".lora_linear_layer.up.weight",
    [SLOT_UP + 6] = ".lora_B.default.weight",
    [SLOT_DOWN + 0] = ".lora_down.weight",
    [SLOT_DOWN + 1] = "_lora.down.weight",
    [SLOT_DOWN + 2] = ".lora_A.weight",
    [SLOT_DOWN + 3] = ".lora.down.weight",
    [SLOT_DOWN + 4] = ".lora_A",
    [SLOT_DOWN + 5] = ".lora_linear_layer.down.weight",
    [SLOT_DOWN + 6] = ".lora_A.default.weight",
    [SLOT_MID] = ".lora_mid.weight",
    [SLOT_ALPHA] = ".alpha",
    [SLOT_DORA_SCALE] = ".dora_scale",
    [SLOT_RESHAPE] = ".reshape_weight",
    [SLOT_HADA_W1_A] = ".hada_w1_a",
    [SLOT_HADA_W1_B] = ".hada_w1_b",
    [SLOT_HADA_W2_A] = ".hada_w2_a",
    [SLOT_HADA_W2_B] = ".hada_w2_b",
    [SLOT_HADA_T1] = ".hada_t1",
    [SLOT_HADA_T2] = ".hada_t2",
    [SLOT_LOKR_W1] = ".lokr_w1",
    [SLOT_LOKR_W1_A] = ".lokr_w1_a",
    [SLOT_LOKR_W1_B] = ".lokr_w1_b",
    [SLOT_LOKR_W2] = ".lokr_w2",
    [SLOT_LOKR_W2_A] = ".lokr_w2_a",
    [SLOT_LOKR_W2_B] = ".lokr_w2_b",
    [SLOT_LOKR_T2] = ".lokr_t2",
    [SLOT_A1] = ".a1.weight",
    [SLOT_A2] = ".a2.weight",
    [SLOT_B1] = ".b1.weight",
    [SLOT_B2] = ".b2.weight",
    [SLOT_BLOCKS] = ".oft_blocks",
    [SLOT_RESCALE] = ".rescale",
    [SLOT_W_NORM] = ".w_norm",
    [SLOT_B_NORM] = ".b_norm",
    [SLOT_DIFF] = ".diff",
    [SLOT_DIFF_B] = ".diff_b",
    [SLOT_SET_WEIGHT] = ".set_weight",
};
_Static_assert(sizeof suffixes / sizeof suffixes[0] == SLOT_COUNT, "every slot has a suffix");

// What follows path in text, where path's dots may be written otherwise; NULL when it is not there.
static const char *after(const char *text, const char *path, char dot)
{
    for (; *path != '\0'; path++, text++) {
        if (*text != (*path == '.' ? dot : *path)) return NULL;
    }
    return text;
}

// A layer's number without leading zeros, and what follows it; NULL when there is none that a model
// could have.
static const char *after_number(const char *text, uint32_t *out)
{
    uint32_t value = 0;
    uint32_t digits = 0;
    for (; text[digits] >= '0' && text[digits] <= '9' && digits < 4; digits++) {
        value = value * 10 + (uint32_t)(text[digits] - '0');
    }
    if (digits == 0 || (digits > 1 && text[0] == '0') || value >= LORA_LAYERS_MAX) return NULL;
    *out = value;
    return text + digits;
}

static bool find_suffix(const char *text, enum lora_slot *out)
{
    for (int i = 0; i < SLOT_COUNT; i++) {
        if (strcmp(text, suffixes[i]) != 0) continue;
        *out = (enum lora_slot)i;
        return true;
    }
    return false;
}

// Whether a naming's stems reach a place.
static bool reaches(const struct prefix *prefix, enum lora_place place)
{
    if (prefix->naming == NAMING_GENERIC) return true;
    if (place == PLACE_PROJECTION) return prefix->projection;
    return place <= PLACE_FC2;
}

static bool parse_path(const struct prefix *prefix, const char *path, struct lora_key *out)
{
    struct lora_key key = {.naming = prefix->naming, .part = prefix->part};
    uint32_t layer = 0;
    const char *inside = after(path, LAYERS_PATH, prefix->dot);
    if (inside != NULL) inside = after_number(inside, &layer);
    if (inside != NULL) inside = after(inside, ".", prefix->dot);
    for (int i = 0; i < PLACE_COUNT; i++) {
        const char *from = places[i].in_layer ? inside : path;
        if (from == NULL || !reaches(prefix, (enum lora_place)i)) continue;
        const char *rest = after(from, places[i].path, prefix->dot);
        if (rest == NULL || !find_suffix(rest, &key.slot)) continue;
        key.place = (enum lora_place)i;
        key.layer = places[i].in_layer ? layer : 0;
        *out = key;
        return true;
    }
    return false;
}

static const struct prefix *find_prefix(const char *key)
{
    for (size_t i = 0; i < PREFIXES; i++) {
        if (strncmp(key, prefixes[i].text, strlen(prefixes[i].text)) == 0) return &prefixes[i];
    }
    return NULL;
}

bool lora_key_is_encoder(const char *key)
{
    assert(key != NULL);
    return find_prefix(key) != NULL;
}

bool lora_key_parse(const char *key, struct lora_key *out)
{
    assert(key != NULL);
    assert(out != NULL);
    const struct prefix *prefix = find_prefix(key);
    if (prefix == NULL) return false;
    const char *path = after(key + strlen(prefix->text), prefix->inner, '.');
    return path != NULL && parse_path(prefix, path, out);
}

bool lora_key_is_adapter(const char *key)
{
    assert(key != NULL);
    size_t length = strlen(key);
    for (int i = 0; i < SLOT_COUNT; i++) {
        size_t suffix = strlen(suffixes[i]);
        if (length > suffix && strcmp(key + length - suffix, suffixes[i]) == 0) return true;
    }
    return false;
}

// The encoder that "the first" or "the only one" means.
static enum model_part first_part(const struct lora_key *key, const bool has[MODEL_PART_COUNT])
{
    if (has[MODEL_CLIP_L]) return MODEL_CLIP_L;
    if (key->place == PLACE_PROJECTION) return MODEL_PART_COUNT;
    if (has[MODEL_CLIP_H]) return MODEL_CLIP_H;
    return key->naming == NAMING_KOHYA_1 ? MODEL_PART_COUNT : MODEL_CLIP_G;
}

bool lora_key_part(const struct lora_key *key, const bool has[MODEL_PART_COUNT],
                   enum model_part *out)
{
    assert(key != NULL);
    assert(has != NULL);
    enum model_part part = key->part;
    bool both = has[MODEL_CLIP_L] && has[MODEL_CLIP_G];
    bool projection = key->place == PLACE_PROJECTION;
    switch (key->naming) {
    case NAMING_KOHYA:
    case NAMING_KOHYA_1:
    case NAMING_DIFFUSERS:
        part = first_part(key, has);
        break;
    case NAMING_KOHYA_2:
    case NAMING_DIFFUSERS_2:
        if (!both && !projection) return false;
        break;
    case NAMING_PRIOR:
        if (both && !projection) return false;
        break;
    case NAMING_GENERIC:
    case NAMING_COUNT:
        break;
    }
    if (part >= MODEL_PART_COUNT || !has[part]) return false;
    *out = part;
    return true;
}

const char *lora_slot_suffix(enum lora_slot slot)
{
    assert(slot < SLOT_COUNT);
    return suffixes[slot];
}

void lora_place_name(enum lora_place place, uint32_t layer, bool bias, char out[LORA_TARGET_BYTES])
{
    assert(place < PLACE_COUNT);
    assert(layer < LORA_LAYERS_MAX);
    const char *end = bias ? "bias" : "weight";
    if (places[place].in_layer) {
        snprintf(out, LORA_TARGET_BYTES, LAYERS_PATH "%u.%s.%s", layer, places[place].path, end);
    } else {
        snprintf(out, LORA_TARGET_BYTES, "%s.%s", places[place].path, end);
    }
}

bool lora_place_shape(enum lora_place place, uint32_t layer, bool bias,
                      const struct clip_config *config, struct lora_shape *out)
{
    assert(place < PLACE_COUNT);
    assert(config != NULL);
    struct lora_shape shape = {2, config->width, config->width};
    if (places[place].in_layer && layer >= config->layers) return false;
    if (bias && !places[place].has_bias) return false;
    switch (place) {
    case PLACE_FC1:
        shape.rows = config->mlp_width;
        break;
    case PLACE_FC2:
        shape.columns = config->mlp_width;
        break;
    case PLACE_PROJECTION:
        shape.rows = config->projection;
        break;
    case PLACE_TOKENS:
        shape.rows = config->vocabulary;
        break;
    case PLACE_POSITIONS:
        shape.rows = config->tokens;
        break;
    case PLACE_NORM_1:
    case PLACE_NORM_2:
    case PLACE_FINAL_NORM:
        shape.rank = 1;
        break;
    case PLACE_Q:
    case PLACE_K:
    case PLACE_V:
    case PLACE_OUT:
    case PLACE_COUNT:
        break;
    }
    if (bias) shape.rank = 1;
    if (shape.rank == 1) shape.columns = 1;
    if (shape.rows == 0) return false;
    *out = shape;
    return true;
}
