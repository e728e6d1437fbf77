// names_vae.c - AutoencoderKL in a file: LDM's names and diffusers', old and new.
//
// First the shape is read from a few tensors (how many levels, blocks, channels), then the whole
// network is walked once and every tensor asked for. The dialects differ in the names of blocks and
// in the order of the decoder's levels (LDM counts them from the image, diffusers from the middle):
// struct dialect holds the words, and no other place knows them.
//
// Legend: L levels, B blocks a level in the encoder (B + 1 in the decoder), C channels, Z latent
// channels.

#include <assert.h>
#include <string.h>

#include "models/finder.h"
#include "models/names.h"

#define TENSORS_MAX 2048u
#define BLOCKS_MAX 8u
#define CHANNELS_MAX 8192u
#define GROUPS 32u

struct dialect {
    bool ldm;                  // decoder levels are counted from the image
    const char *down, *up;     // "encoder.X.LEVEL.", "decoder.X.LEVEL."
    const char *block;         // "X.BLOCK"
    const char *downsample;    // of a level
    const char *upsample;      // of a level
    const char *mid_block[2];  // of a half
    const char *shortcut;      // of a block
    const char *norm_out;      // of a half
    const char *attention;     // of a half
    const char *attention_norm;
    const char *attention_linear[2][4];  // query, key, value, output; two spellings
};

static const struct dialect dialects[] = {
    {.ldm = false,
     .down = "down_blocks",
     .up = "up_blocks",
     .block = "resnets",
     .downsample = "downsamplers.0.conv",
     .upsample = "upsamplers.0.conv",
     .mid_block = {"mid_block.resnets.0", "mid_block.resnets.1"},
     .shortcut = "conv_shortcut",
     .norm_out = "conv_norm_out",
     .attention = "mid_block.attentions.0",
     .attention_norm = "group_norm",
     .attention_linear = {{"to_q", "to_k", "to_v", "to_out.0"},
                          {"query", "key", "value", "proj_attn"}}},
    {.ldm = true,
     .down = "down",
     .up = "up",
     .block = "block",
     .downsample = "downsample.conv",
     .upsample = "upsample.conv",
     .mid_block = {"mid.block_1", "mid.block_2"},
     .shortcut = "nin_shortcut",
     .norm_out = "norm_out",
     .attention = "mid.attn_1",
     .attention_norm = "norm",
     .attention_linear = {{"q", "k", "v", "proj_out"}, {"to_q", "to_k", "to_v", "to_out.0"}}},
};
static const struct dialect *const canonical = &dialects[0];

static const char *const prefixes[] = {"", "first_stage_model.", "vae."};

struct walk {
    struct finder finder;           // what was found
    const struct dialect *dialect;  // the file's words
    struct vae_config config;       // the network's shape
};

static struct wanted vector(uint64_t c)
{
    return (struct wanted){.rank = 1, .dims = {c}};
}

static struct wanted convolution(uint64_t out, uint64_t in, uint64_t size)
{
    return (struct wanted){.rank = 4, .dims = {out, in, size, size}};
}

// ---------------------------------------------------------------------------------------------
// The shape

static bool has_half(const struct finder *finder, const struct dialect *dialect, const char *half)
{
    return finder_look(finder, "%s.conv_in.weight", half) != NULL ||
           finder_look(finder, "%s.%s.conv1.weight", half, dialect->mid_block[0]) != NULL ||
           finder_look(finder, "%s.%s.conv1.weight", half, dialect->mid_block[1]) != NULL;
}

// The middle's words tell the dialect; the ends are called the same in both.
static bool speaks(const struct finder *finder, const struct dialect *dialect)
{
    static const char *const halves[] = {"encoder", "decoder"};
    for (int i = 0; i < 2; i++) {
        const char *half = halves[i];
        const char *levels = i == 0 ? dialect->down : dialect->up;
        if (finder_look(finder, "%s.%s.conv1.weight", half, dialect->mid_block[0]) != NULL ||
            finder_look(finder, "%s.%s.conv1.weight", half, dialect->mid_block[1]) != NULL ||
            finder_look(finder, "%s.%s.0.%s.0.norm1.weight", half, levels, dialect->block) !=
                NULL) {
            return true;
        }
    }
    return false;
}

// The first convolution of a block of the file's level, or NULL.
static const struct tensor *block_tensor(const struct walk *walk, bool decoder, uint32_t level,
                                         uint32_t block)
{
    const struct dialect *words = walk->dialect;
    return finder_look(&walk->finder, "%s.%s.%u.%s.%u.conv1.weight",
                       decoder ? "decoder" : "encoder", decoder ? words->up : words->down, level,
                       words->block, block);
}

// Counts levels and blocks of one half: the highest index at which something is, plus one.
static void count_half(const struct walk *walk, bool decoder, uint32_t *levels, uint32_t *blocks)
{
    for (uint32_t level = 0; level <= VAE_LEVELS_MAX; level++) {
        for (uint32_t block = 0; block <= BLOCKS_MAX + 1; block++) {
            if (block_tensor(walk, decoder, level, block) == NULL) continue;
            uint32_t count = block + 1 - (decoder && block > 0);
            if (level + 1 > *levels) *levels = level + 1;
            if (count > *blocks) *blocks = count;
        }
    }
}

static uint32_t dim_or_zero(const struct tensor *tensor, uint32_t index)
{
    if (tensor == NULL || index >= tensor->rank || tensor->dims[index] > CHANNELS_MAX) return 0;
    return (uint32_t)tensor->dims[index];
}

// Channels of a level, from either half; 0 when neither tells.
static uint32_t level_channels(const struct walk *walk, uint32_t level)
{
    uint32_t last = walk->config.levels - 1;
    uint32_t decoder_level = walk->dialect->ldm ? level : last - level;
    for (uint32_t block = 0; block <= BLOCKS_MAX + 1; block++) {
        uint32_t channels = dim_or_zero(block_tensor(walk, false, level, block), 0);
        if (channels == 0)
            channels = dim_or_zero(block_tensor(walk, true, decoder_level, block), 0);
        if (channels > 0) return channels;
    }
    return 0;
}

// 32, or the largest number of groups below it that divides every level's channels.
static uint32_t choose_groups(const struct vae_config *config)
{
    for (uint32_t groups = GROUPS; groups > 1; groups--) {
        bool divides = true;
        for (uint32_t i = 0; i < config->levels; i++) {
            if (config->block_channels[i] % groups != 0) divides = false;
        }
        if (divides) return groups;
    }
    return 1;
}

static void read_ends(struct walk *walk)
{
    struct vae_config *config = &walk->config;
    const struct finder *finder = &walk->finder;
    if (config->encoder) {
        config->image_channels = dim_or_zero(finder_look(finder, "encoder.conv_in.weight"), 1);
        config->latent_channels =
            dim_or_zero(finder_look(finder, "encoder.conv_out.weight"), 0) / 2;
    }
    if (config->decoder) {
        uint32_t image = dim_or_zero(finder_look(finder, "decoder.conv_out.weight"), 0);
        uint32_t latent = dim_or_zero(finder_look(finder, "decoder.conv_in.weight"), 1);
        if (image > 0) config->image_channels = image;
        if (latent > 0) config->latent_channels = latent;
    }
}

static enum status read_shape(struct walk *walk)
{
    struct vae_config *config = &walk->config;
    struct finder *finder = &walk->finder;
    const struct dialect *words = walk->dialect;
    config->encoder = has_half(finder, words, "encoder");
    config->decoder = has_half(finder, words, "decoder");
    count_half(walk, false, &config->levels, &config->blocks_per_level);
    count_half(walk, true, &config->levels, &config->blocks_per_level);
    if (config->levels == 0 || config->levels > VAE_LEVELS_MAX ||
        config->blocks_per_level > BLOCKS_MAX) {
        return error_set(finder->error, STATUS_INVALID_ARGUMENT,
                         "VAE has %u levels of %u blocks, supported are 1 to %u of 1 to %u",
                         config->levels, config->blocks_per_level, VAE_LEVELS_MAX, BLOCKS_MAX);
    }
    for (uint32_t i = 0; i < config->levels; i++) {
        config->block_channels[i] = level_channels(walk, i);
        if (config->block_channels[i] > 0) continue;
        return error_set(finder->error, STATUS_INVALID_ARGUMENT,
                         "VAE: the channels of level %u are missing or above %u", i, CHANNELS_MAX);
    }
    read_ends(walk);
    config->groups = choose_groups(config);
    config->quant_conv = finder_look(finder, "quant_conv.weight") != NULL;
    config->post_quant_conv = finder_look(finder, "post_quant_conv.weight") != NULL;
    for (int half = 0; half < 2; half++) {
        const char *name = half == 0 ? "encoder" : "decoder";
        if (finder_look(finder, "%s.%s.%s.weight", name, words->attention, words->attention_norm) !=
            NULL) {
            config->mid_attention = true;
        }
    }
    return STATUS_OK;
}

// ---------------------------------------------------------------------------------------------
// The walk

// The pair of a tensor and its bias, and the four pairs of a block, under both names.
static void need(struct walk *walk, struct name canonical_name, struct name file_name,
                 struct wanted weight)
{
    finder_need_pair(&walk->finder, canonical_name.text, file_name.text, &weight);
}

static void need_block(struct walk *walk, struct name to, struct name from, uint64_t in,
                       uint64_t out)
{
    const char *a = to.text;
    const char *b = from.text;
    need(walk, name_of("%s.norm1", a), name_of("%s.norm1", b), vector(in));
    need(walk, name_of("%s.conv1", a), name_of("%s.conv1", b), convolution(out, in, 3));
    need(walk, name_of("%s.norm2", a), name_of("%s.norm2", b), vector(out));
    need(walk, name_of("%s.conv2", a), name_of("%s.conv2", b), convolution(out, out, 3));
    if (in == out) return;
    need(walk, name_of("%s.%s", a, canonical->shortcut),
         name_of("%s.%s", b, walk->dialect->shortcut), convolution(out, in, 1));
}

static void need_attention(struct walk *walk, const char *half, uint64_t c)
{
    const struct dialect *words = walk->dialect;
    const struct wanted square = {.rank = 2, .dims = {c, c}, .squeeze = true};
    struct name to = name_of("%s.%s", half, canonical->attention);
    struct name from = name_of("%s.%s", half, words->attention);
    need(walk, name_of("%s.%s", to.text, canonical->attention_norm),
         name_of("%s.%s", from.text, words->attention_norm), vector(c));
    for (int i = 0; i < 4; i++) {
        int spelling = finder_look(&walk->finder, "%s.%s.weight", from.text,
                                   words->attention_linear[1][i]) != NULL;
        need(walk, name_of("%s.%s", to.text, canonical->attention_linear[0][i]),
             name_of("%s.%s", from.text, words->attention_linear[spelling][i]), square);
    }
}

static void need_middle(struct walk *walk, const char *half, uint64_t c)
{
    for (int i = 0; i < 2; i++) {
        need_block(walk, name_of("%s.%s", half, canonical->mid_block[i]),
                   name_of("%s.%s", half, walk->dialect->mid_block[i]), c, c);
    }
    if (walk->config.mid_attention) need_attention(walk, half, c);
}

// One level: its blocks from in to out channels, and the sampler behind them.
static void need_level(struct walk *walk, bool decoder, uint32_t level, uint64_t in, uint64_t out)
{
    const struct dialect *words = walk->dialect;
    const char *half = decoder ? "decoder" : "encoder";
    uint32_t last = walk->config.levels - 1;
    uint32_t blocks = walk->config.blocks_per_level + decoder;
    struct name to = name_of("%s.%s.%u", half, decoder ? canonical->up : canonical->down, level);
    struct name from = name_of("%s.%s.%u", half, decoder ? words->up : words->down,
                               decoder && words->ldm ? last - level : level);
    for (uint32_t i = 0; i < blocks; i++) {
        need_block(walk, name_of("%s.%s.%u", to.text, canonical->block, i),
                   name_of("%s.%s.%u", from.text, words->block, i), i == 0 ? in : out, out);
    }
    if (level == last) return;
    need(walk, name_of("%s.%s", to.text, decoder ? canonical->upsample : canonical->downsample),
         name_of("%s.%s", from.text, decoder ? words->upsample : words->downsample),
         convolution(out, out, 3));
}

// conv_in, conv_out, quant_conv, post_quant_conv: called the same by everybody.
static void need_same(struct walk *walk, const char *name, struct wanted weight)
{
    finder_need_pair(&walk->finder, name, NULL, &weight);
}

static void need_encoder(struct walk *walk)
{
    const struct vae_config *config = &walk->config;
    const uint32_t *c = config->block_channels;
    uint32_t last = config->levels - 1;
    uint64_t moments = 2 * (uint64_t)config->latent_channels;  // mean and variance
    need_same(walk, "encoder.conv_in", convolution(c[0], config->image_channels, 3));
    for (uint32_t i = 0; i <= last; i++) need_level(walk, false, i, c[i > 0 ? i - 1 : 0], c[i]);
    need_middle(walk, "encoder", c[last]);
    need(walk, name_of("encoder.%s", canonical->norm_out),
         name_of("encoder.%s", walk->dialect->norm_out), vector(c[last]));
    need_same(walk, "encoder.conv_out", convolution(moments, c[last], 3));
    if (config->quant_conv) need_same(walk, "quant_conv", convolution(moments, moments, 1));
}

static void need_decoder(struct walk *walk)
{
    const struct vae_config *config = &walk->config;
    const uint32_t *c = config->block_channels;
    uint32_t last = config->levels - 1;
    uint64_t latent = config->latent_channels;
    if (config->post_quant_conv) need_same(walk, "post_quant_conv", convolution(latent, latent, 1));
    need_same(walk, "decoder.conv_in", convolution(c[last], latent, 3));
    need_middle(walk, "decoder", c[last]);
    for (uint32_t i = 0; i <= last; i++) {
        need_level(walk, true, i, c[i > 0 ? last - i + 1 : last], c[last - i]);
    }
    need(walk, name_of("decoder.%s", canonical->norm_out),
         name_of("decoder.%s", walk->dialect->norm_out), vector(c[0]));
    need_same(walk, "decoder.conv_out", convolution(config->image_channels, c[0], 3));
}

static enum status walk_all(struct walk *walk, struct tensor_table *file, struct tensor_table **out)
{
    enum status status = read_shape(walk);
    if (status != STATUS_OK) return status;
    status = finder_begin(&walk->finder, TENSORS_MAX);
    if (status != STATUS_OK) return status;
    if (walk->config.encoder) need_encoder(walk);
    if (walk->config.decoder) need_decoder(walk);
    status = finder_table(&walk->finder, file, out);
    finder_end(&walk->finder);
    return status;
}

enum status names_vae_find(struct tensor_table *file, struct tensor_table **out,
                           struct vae_config *config, struct error *error)
{
    assert(out != NULL);
    assert(config != NULL);
    *out = NULL;
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        for (size_t j = 0; j < sizeof dialects / sizeof dialects[0]; j++) {
            struct walk walk = {
                .finder = {.what = "VAE", .table = file, .prefix = prefixes[i], .error = error},
                .dialect = &dialects[j],
            };
            if (!speaks(&walk.finder, &dialects[j])) continue;
            enum status status = walk_all(&walk, file, out);
            if (status == STATUS_OK) *config = walk.config;
            return status;
        }
    }
    return STATUS_OK;
}
