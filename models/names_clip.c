// names_clip.c - CLIP text encoders in a file: Hugging Face's names and OpenCLIP's.
//
// Where an encoder lies tells which one it is: a table of places pairs each prefix with its dialect
// and part. Only files of one bare encoder leave the part open; then the width decides, or the
// file's metadata (see model.h). OpenCLIP keeps query, key and value in one tensor, rows side by
// side: they become three views of it; its text_projection is stored turned and becomes a view that
// says so. No byte is copied.
//
// Legend: W width, M width of the MLP, V vocabulary, T tokens, P projection.

#include <assert.h>
#include <string.h>

#include "models/finder.h"
#include "models/names.h"

#define LAYERS_MAX 128u
#define TENSORS_PER_LAYER 16u
#define TENSORS_MAX (LAYERS_MAX * TENSORS_PER_LAYER + 8)
#define HEAD_WIDTH 64u
#define WIDTH_MAX 16384u
#define VOCABULARY_MAX 1000000u
#define TOKENS_MAX 4096u

// One part is open: asks for choose_part.
#define PART_OPEN MODEL_PART_COUNT

struct place {
    const char *prefix;    // of the encoder; Hugging Face's ends in "text_model." or what stands
                           // for it
    const char *outside;   // where text_projection lies
    bool open_clip;        // the dialect
    enum model_part part;  // or PART_OPEN
};

#define HUGGING_FACE(outside, part)                                                                \
    {                                                                                              \
        outside "text_model.", outside, false, part                                                \
    }
#define OPEN_CLIP(outside, part)                                                                   \
    {                                                                                              \
        outside, outside, true, part                                                               \
    }

static const struct place places[] = {
    HUGGING_FACE("cond_stage_model.transformer.", MODEL_CLIP_L),
    {"cond_stage_model.transformer.", "cond_stage_model.transformer.", false, MODEL_CLIP_L},
    OPEN_CLIP("cond_stage_model.model.", MODEL_CLIP_H),
    HUGGING_FACE("conditioner.embedders.0.transformer.", MODEL_CLIP_L),
    OPEN_CLIP("conditioner.embedders.0.model.", MODEL_CLIP_G),
    OPEN_CLIP("conditioner.embedders.1.model.", MODEL_CLIP_G),
    HUGGING_FACE("clip_l.transformer.", MODEL_CLIP_L),
    HUGGING_FACE("clip_h.transformer.", MODEL_CLIP_H),
    HUGGING_FACE("clip_g.transformer.", MODEL_CLIP_G),
    HUGGING_FACE("text_encoders.clip_l.transformer.", MODEL_CLIP_L),
    HUGGING_FACE("text_encoders.clip_g.transformer.", MODEL_CLIP_G),
    HUGGING_FACE("", PART_OPEN),
    OPEN_CLIP("", PART_OPEN),
};

struct clip_words {
    const char *token_embedding, *position_embedding;  // whole names
    const char *final_norm;                            // pair
    const char *layer;                                 // "X.N."
    const char *norm_1, *norm_2, *attention_out;       // of a layer, pairs
    const char *mlp_1, *mlp_2;                         // of a layer, pairs
};

static const struct clip_words hugging_face_words = {
    .token_embedding = "embeddings.token_embedding.weight",
    .position_embedding = "embeddings.position_embedding.weight",
    .final_norm = "final_layer_norm",
    .layer = "encoder.layers",
    .norm_1 = "layer_norm1",
    .norm_2 = "layer_norm2",
    .attention_out = "self_attn.out_proj",
    .mlp_1 = "mlp.fc1",
    .mlp_2 = "mlp.fc2",
};

static const struct clip_words open_clip_words = {
    .token_embedding = "token_embedding.weight",
    .position_embedding = "positional_embedding",
    .final_norm = "ln_final",
    .layer = "transformer.resblocks",
    .norm_1 = "ln_1",
    .norm_2 = "ln_2",
    .attention_out = "attn.out_proj",
    .mlp_1 = "mlp.c_fc",
    .mlp_2 = "mlp.c_proj",
};

struct walk {
    struct finder finder;            // what was found
    const struct place *place;       // where
    const struct clip_words *words;  // in which dialect
    struct clip_config config;       // of which shape
};

const char *names_part(enum model_part part)
{
    static const char *const names[] = {[MODEL_VAE] = "VAE",
                                        [MODEL_CLIP_L] = "CLIP-L",
                                        [MODEL_CLIP_H] = "CLIP-H",
                                        [MODEL_CLIP_G] = "CLIP-G"};
    _Static_assert(sizeof names / sizeof names[0] == MODEL_PART_COUNT, "every part has a name");
    assert(part < MODEL_PART_COUNT);
    return names[part];
}

// ---------------------------------------------------------------------------------------------
// The shape

static uint32_t dim_or_zero(const struct tensor *tensor, uint32_t index, uint64_t max)
{
    if (tensor == NULL || index >= tensor->rank || tensor->dims[index] > max) return 0;
    return (uint32_t)tensor->dims[index];
}

static bool is_there(const struct walk *walk)
{
    return finder_look(&walk->finder, "%s", walk->words->token_embedding) != NULL ||
           finder_look(&walk->finder, "%s.0.%s.weight", walk->words->layer, walk->words->mlp_1) !=
               NULL;
}

// text_projection: [P, W] in a tensor that says .weight, else turned.
static const struct tensor *look_projection(const struct walk *walk, bool *transposed)
{
    struct finder outside = walk->finder;
    outside.prefix = walk->place->outside;
    const struct tensor *tensor = finder_look(&outside, "text_projection.weight");
    *transposed = tensor == NULL;
    return tensor != NULL ? tensor : finder_look(&outside, "text_projection");
}

static enum status read_shape(struct walk *walk)
{
    const struct finder *finder = &walk->finder;
    const struct clip_words *words = walk->words;
    struct clip_config *config = &walk->config;
    const struct tensor *tokens = finder_look(finder, "%s", words->token_embedding);
    const struct tensor *positions = finder_look(finder, "%s", words->position_embedding);
    if (tokens == NULL || positions == NULL) {
        return error_set(finder->error, STATUS_INVALID_ARGUMENT, "%s is incomplete, it lacks %s%s",
                         finder->what, finder->prefix,
                         tokens == NULL ? words->token_embedding : words->position_embedding);
    }
    for (uint32_t i = 0; i <= LAYERS_MAX; i++) {
        const struct tensor *mlp =
            finder_look(finder, "%s.%u.%s.weight", words->layer, i, words->mlp_1);
        if (mlp == NULL) continue;
        config->layers = i + 1;
        if (config->mlp_width == 0) config->mlp_width = dim_or_zero(mlp, 0, WIDTH_MAX);
    }
    config->vocabulary = dim_or_zero(tokens, 0, VOCABULARY_MAX);
    config->width = dim_or_zero(tokens, 1, WIDTH_MAX);
    config->tokens = dim_or_zero(positions, 0, TOKENS_MAX);
    config->heads = config->width / HEAD_WIDTH;
    bool transposed = false;
    const struct tensor *projection = look_projection(walk, &transposed);
    config->projection = dim_or_zero(projection, transposed ? 1 : 0, WIDTH_MAX);
    if (config->layers >= 1 && config->layers <= LAYERS_MAX && config->width > 0 &&
        config->width % HEAD_WIDTH == 0 && config->mlp_width > 0 && config->vocabulary > 0 &&
        config->tokens > 0) {
        return STATUS_OK;
    }
    return error_set(
        finder->error, STATUS_INVALID_ARGUMENT,
        "%s has %u layers, width %u, mlp %u, vocabulary %u, tokens %u: not a CLIP text "
        "encoder with heads of %u",
        finder->what, config->layers, config->width, config->mlp_width, config->vocabulary,
        config->tokens, HEAD_WIDTH);
}

// The rule of model.h for a file of one bare encoder.
static enum status choose_part(const struct walk *walk, enum model_part *out)
{
    const char *told = tensor_table_metadata(walk->finder.table, "luna.encoder");
    if (told != NULL) {
        const char *at = strlen(told) == 1 ? strchr("lhg", told[0]) : NULL;
        if (at == NULL) {
            return error_set(walk->finder.error, STATUS_INVALID_ARGUMENT,
                             "metadata luna.encoder is \"%.40s\", known are l, h and g", told);
        }
        *out = *at == 'l' ? MODEL_CLIP_L : *at == 'h' ? MODEL_CLIP_H : MODEL_CLIP_G;
        return STATUS_OK;
    }
    switch (walk->config.width) {
    case 768:
        *out = MODEL_CLIP_L;
        break;
    case 1024:
        *out = MODEL_CLIP_H;
        break;
    case 1280:
        *out = MODEL_CLIP_G;
        break;
    default:
        *out = walk->config.projection > 0 ? MODEL_CLIP_G : MODEL_CLIP_L;
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------------------------------------
// The walk

static struct wanted vector(uint64_t w)
{
    return (struct wanted){.rank = 1, .dims = {w}};
}

static struct wanted matrix(uint64_t rows, uint64_t columns)
{
    return (struct wanted){.rank = 2, .dims = {rows, columns}};
}

static void need_pair(struct walk *walk, uint32_t layer, const char *canonical, const char *file,
                      struct wanted weight)
{
    finder_need_pair(&walk->finder,
                     name_of("text_model.encoder.layers.%u.%s", layer, canonical).text,
                     name_of("%s.%u.%s", walk->words->layer, layer, file).text, &weight);
}

// One third of in_proj_weight [3W, W] or in_proj_bias [3W], as a view.
static void need_third(struct walk *walk, const char *canonical, const char *file, uint32_t third,
                       struct wanted wanted)
{
    const struct tensor *whole = finder_look(&walk->finder, "%s", file);
    uint64_t width = walk->config.width;
    if (whole == NULL || whole->rank != wanted.rank || whole->dims[0] != 3 * width ||
        (wanted.rank == 2 && whole->dims[1] != width)) {
        wanted.dims[0] = 3 * width;  // for the message
        finder_add(&walk->finder, canonical, file, whole, &wanted);
        return;
    }
    struct tensor view = *whole;
    view.dims[0] = width;
    view.bytes = whole->bytes / 3;
    view.data = (const uint8_t *)whole->data + third * view.bytes;
    finder_add(&walk->finder, canonical, file, &view, &wanted);
}

static void need_attention_inputs(struct walk *walk, uint32_t layer)
{
    static const char *const names[] = {"q_proj", "k_proj", "v_proj"};
    uint64_t w = walk->config.width;
    const char *file = walk->words->layer;
    for (uint32_t i = 0; i < 3; i++) {
        struct name name = name_of("self_attn.%s", names[i]);
        if (!walk->place->open_clip) {
            need_pair(walk, layer, name.text, name.text, matrix(w, w));
            continue;
        }
        name = name_of("text_model.encoder.layers.%u.self_attn.%s", layer, names[i]);
        need_third(walk, name_of("%s.weight", name.text).text,
                   name_of("%s.%u.attn.in_proj_weight", file, layer).text, i, matrix(w, w));
        need_third(walk, name_of("%s.bias", name.text).text,
                   name_of("%s.%u.attn.in_proj_bias", file, layer).text, i, vector(w));
    }
}

static void need_layer(struct walk *walk, uint32_t layer)
{
    const struct clip_words *words = walk->words;
    uint64_t w = walk->config.width;
    uint64_t m = walk->config.mlp_width;
    need_pair(walk, layer, "layer_norm1", words->norm_1, vector(w));
    need_attention_inputs(walk, layer);
    need_pair(walk, layer, "self_attn.out_proj", words->attention_out, matrix(w, w));
    need_pair(walk, layer, "layer_norm2", words->norm_2, vector(w));
    need_pair(walk, layer, "mlp.fc1", words->mlp_1, matrix(m, w));
    need_pair(walk, layer, "mlp.fc2", words->mlp_2, matrix(w, m));
}

static void need_projection(struct walk *walk)
{
    bool transposed = false;
    const struct tensor *tensor = look_projection(walk, &transposed);
    struct wanted wanted = matrix(walk->config.projection, walk->config.width);
    if (tensor == NULL) return;
    struct tensor view = *tensor;
    if (transposed && tensor->rank == 2) {
        view.dims[0] = tensor->dims[1];
        view.dims[1] = tensor->dims[0];
        view.transposed = true;
    }
    finder_add(&walk->finder, "text_projection.weight", "text_projection", &view, &wanted);
}

static void need_all(struct walk *walk)
{
    const struct clip_config *config = &walk->config;
    const struct clip_words *words = walk->words;
    struct wanted wanted = matrix(config->vocabulary, config->width);
    finder_need(&walk->finder, "text_model.embeddings.token_embedding.weight",
                words->token_embedding, &wanted);
    wanted = matrix(config->tokens, config->width);
    finder_need(&walk->finder, "text_model.embeddings.position_embedding.weight",
                words->position_embedding, &wanted);
    for (uint32_t i = 0; i < config->layers; i++) need_layer(walk, i);
    wanted = vector(config->width);
    finder_need_pair(&walk->finder, "text_model.final_layer_norm", words->final_norm, &wanted);
    need_projection(walk);
}

static enum status take_encoder(struct walk *walk, struct tensor_table *file,
                                struct clip_found *out)
{
    enum model_part part = walk->place->part;
    struct finder *finder = &walk->finder;
    enum status status = read_shape(walk);
    if (status == STATUS_OK && part == PART_OPEN) status = choose_part(walk, &part);
    if (status != STATUS_OK) return status;
    finder->what = names_part(part);
    walk->config.quick_gelu = part == MODEL_CLIP_L;
    if (out->tensors[part] != NULL) {
        return error_set(finder->error, STATUS_INVALID_ARGUMENT,
                         "the file has two encoders %s, the second under \"%s\"", finder->what,
                         finder->prefix);
    }
    status = finder_begin(finder, TENSORS_MAX);
    if (status != STATUS_OK) return status;
    need_all(walk);
    status = finder_table(finder, file, &out->tensors[part]);
    if (status == STATUS_OK) out->config[part] = walk->config;
    finder_end(finder);
    return status;
}

enum status names_clip_find(struct tensor_table *file, struct clip_found *out, struct error *error)
{
    assert(file != NULL);
    assert(out != NULL);
    *out = (struct clip_found){.tensors = {NULL}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const struct place *place = &places[i];
        struct walk walk = {
            .finder = {.table = file, .prefix = place->prefix, .error = error},
            .place = place,
            .words = place->open_clip ? &open_clip_words : &hugging_face_words,
        };
        walk.finder.what = place->part == PART_OPEN ? "text encoder" : names_part(place->part);
        if (!is_there(&walk)) continue;
        enum status status = take_encoder(&walk, file, out);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}
