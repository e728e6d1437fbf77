// network_load.c - tensors by their diffusers names become weights.
//
// The loader keeps the first error and does nothing afterwards, so that a network reads as the list
// of its layers. Every tensor must have the dimensions that the configuration implies.

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/vae/network.h"

// The longest name of a tensor here is below 70 characters.
#define NAME_BYTES 128u

// Of dimensions in a message.
#define SHAPE_BYTES 96u

struct loader {
    struct network *network;
    struct error *error;
    enum status status;  // the first error, or OK
    bool is_plan;        // weights are not made, what they would hold is counted
};

static void format_name(char out[NAME_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void format_name(char out[NAME_BYTES], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(out, NAME_BYTES, format, arguments);
    va_end(arguments);
    assert(length > 0);
    assert((unsigned)length < NAME_BYTES);
}

// True when the tensor has the dims of the source; a matrix may stand for a 1x1 convolution.
static bool has_dims(const struct tensor *tensor, const struct weight_source *source)
{
    bool is_vector = source->form == WEIGHT_VECTOR;
    bool is_matrix = tensor->rank == 2 && source->dims[2] == 1 && !tensor->transposed;
    if (tensor->rank != (is_vector ? 1u : 4u) && !(is_matrix && !is_vector)) return false;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        if (tensor->dims[i] != source->dims[i]) return false;
    }
    return true;
}

// Writes "[64, 3, 3]", or as much of it as fits.
static void format_shape(char out[SHAPE_BYTES], const struct tensor *tensor)
{
    uint32_t used = (uint32_t)snprintf(out, SHAPE_BYTES, "[");
    for (uint32_t i = 0; i < tensor->rank && used < SHAPE_BYTES; i++) {
        used += (uint32_t)snprintf(out + used, SHAPE_BYTES - used, i == 0 ? "%llu" : ", %llu",
                                   (unsigned long long)tensor->dims[i]);
    }
    if (used < SHAPE_BYTES) snprintf(out + used, SHAPE_BYTES - used, "]");
}

// Finds one part and checks it; all parts of a source have one dtype.
static void find_part(struct loader *self, struct weight_source *source, const char *name)
{
    if (self->status != STATUS_OK) return;
    const struct tensor *tensor = tensor_table_find(self->network->tensors, name);
    if (tensor == NULL) {
        self->status =
            error_set(self->error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is missing", name);
        return;
    }
    if (!has_dims(tensor, source)) {
        char got[SHAPE_BYTES];
        format_shape(got, tensor);
        self->status =
            error_set(self->error, STATUS_INVALID_ARGUMENT,
                      "tensor \"%s\" is %s, the model needs [%u, %u, %u, %u]", name, got,
                      source->dims[0], source->dims[1], source->dims[2], source->dims[3]);
        return;
    }
    bool same = source->parts_count == 0 || source->dtype == tensor->dtype;
    if (!dtype_is_real(tensor->dtype) || !same) {
        self->status =
            error_set(self->error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is %s, which is %s",
                      name, dtype_name(tensor->dtype),
                      same ? "not F32, F16 or BF16" : "not what its neighbours are");
        return;
    }
    source->dtype = tensor->dtype;
    source->parts[source->parts_count++] = tensor->data;
    if (!device_has_memory(self->network->device)) self->network->bytes += tensor->bytes;
}

static bool make_room(struct network *self)
{
    if (self->weights_count < self->weights_capacity) return true;
    uint32_t capacity = self->weights_capacity == 0 ? 256 : 2 * self->weights_capacity;
    struct weight **weights = realloc(self->weights, capacity * sizeof(struct weight *));
    if (weights == NULL) return false;
    self->weights = weights;
    self->weights_capacity = capacity;
    return true;
}

static void count(struct loader *self, const struct weight_source *source, const char *name)
{
    uint64_t bytes = 0;
    self->status = weight_plan(self->network->device, source, &bytes, self->error);
    if (self->status != STATUS_OK) error_prefix(self->error, "tensor \"%s\"", name);
    self->network->bytes += bytes;
}

static const struct weight *create(struct loader *self, const struct weight_source *source,
                                   const char *name)
{
    if (self->status != STATUS_OK) return NULL;
    if (self->is_plan) {
        count(self, source, name);
        return NULL;
    }
    struct network *network = self->network;
    if (!make_room(network)) {
        self->status = error_set(self->error, STATUS_RESOURCE_EXHAUSTED,
                                 "no memory for the list of %u weights", network->weights_count);
        return NULL;
    }
    struct weight *weight = NULL;
    self->status = weight_create(&weight, network->device, source, self->error);
    if (self->status != STATUS_OK) {
        error_prefix(self->error, "tensor \"%s\"", name);
        return NULL;
    }
    network->weights[network->weights_count++] = weight;
    network->bytes += weight_bytes(weight);
    return weight;
}

static const struct weight *load_vector(struct loader *self, const char *name, uint32_t k)
{
    struct weight_source source = {.form = WEIGHT_VECTOR, .dims = {k, 1, 1, 1}};
    find_part(self, &source, name);
    return create(self, &source, name);
}

static struct network_norm load_norm(struct loader *self, const char *prefix, uint32_t c)
{
    char gamma[NAME_BYTES];
    char beta[NAME_BYTES];
    format_name(gamma, "%s.weight", prefix);
    format_name(beta, "%s.bias", prefix);
    return (struct network_norm){.gamma = load_vector(self, gamma, c),
                                 .beta = load_vector(self, beta, c)};
}

// A convolution with bias; the source has its dims [k, c, r, r], and whether it upsamples.
static struct network_layer load_taps(struct loader *self, const char *prefix,
                                      struct weight_source source)
{
    char weight[NAME_BYTES];
    char bias[NAME_BYTES];
    format_name(weight, "%s.weight", prefix);
    format_name(bias, "%s.bias", prefix);
    source.form = WEIGHT_CONVOLUTION;
    find_part(self, &source, weight);
    return (struct network_layer){.weight = create(self, &source, weight),
                                  .bias = load_vector(self, bias, source.dims[0]),
                                  .c = source.dims[1],
                                  .k = source.dims[0]};
}

static struct network_layer load_layer(struct loader *self, const char *prefix, uint32_t c,
                                       uint32_t k, uint32_t r)
{
    return load_taps(self, prefix, (struct weight_source){.dims = {k, c, r, r}});
}

static struct network_layer load_upsampler(struct loader *self, const char *prefix, uint32_t c)
{
    return load_taps(self, prefix, (struct weight_source){.dims = {c, c, 3, 3}, .upsample = true});
}

static struct network_resnet load_resnet(struct loader *self, const char *prefix, uint32_t c,
                                         uint32_t k)
{
    char name[NAME_BYTES];
    struct network_resnet resnet = {0};
    format_name(name, "%s.norm1", prefix);
    resnet.norm1 = load_norm(self, name, c);
    format_name(name, "%s.conv1", prefix);
    resnet.conv1 = load_layer(self, name, c, k, 3);
    format_name(name, "%s.norm2", prefix);
    resnet.norm2 = load_norm(self, name, k);
    format_name(name, "%s.conv2", prefix);
    resnet.conv2 = load_layer(self, name, k, k, 3);
    if (c == k) return resnet;
    format_name(name, "%s.conv_shortcut", prefix);
    resnet.shortcut = load_layer(self, name, c, k, 1);
    return resnet;
}

// Query, key and value as one weight; what is "weight" or "bias".
static const struct weight *load_qkv(struct loader *self, const char *prefix, const char *what,
                                     uint32_t c)
{
    static const char *const names[3] = {"to_q", "to_k", "to_v"};
    bool is_bias = strcmp(what, "bias") == 0;
    struct weight_source source = {.form = is_bias ? WEIGHT_VECTOR : WEIGHT_CONVOLUTION,
                                   .dims = {c, is_bias ? 1 : c, 1, 1}};
    char name[NAME_BYTES];
    for (uint32_t i = 0; i < 3; i++) {
        format_name(name, "%s.%s.%s", prefix, names[i], what);
        find_part(self, &source, name);
    }
    return create(self, &source, name);
}

static struct network_attention load_attention(struct loader *self, const char *prefix, uint32_t c)
{
    char name[NAME_BYTES];
    struct network_attention attention = {.qkv = {.c = c, .k = 3 * c}};
    format_name(name, "%s.group_norm", prefix);
    attention.norm = load_norm(self, name, c);
    attention.qkv.weight = load_qkv(self, prefix, "weight", c);
    attention.qkv.bias = load_qkv(self, prefix, "bias", c);
    format_name(name, "%s.to_out.0", prefix);
    attention.out = load_layer(self, name, c, c, 1);
    return attention;
}

// What both halves have at the same places: half is "encoder" or "decoder".
static void load_middle(struct loader *self, struct network_half *out, const char *half)
{
    const struct vae_config *config = &self->network->config;
    uint32_t c = config->block_channels[config->levels - 1];
    char name[NAME_BYTES];
    for (uint32_t i = 0; i < 2; i++) {
        format_name(name, "%s.mid_block.resnets.%u", half, i);
        out->mid[i] = load_resnet(self, name, c, c);
    }
    if (config->mid_attention) {
        format_name(name, "%s.mid_block.attentions.0", half);
        out->attention = load_attention(self, name, c);
    }
}

static void load_encoder(struct loader *self)
{
    const struct vae_config *config = &self->network->config;
    struct network_half *half = &self->network->encoder;
    char name[NAME_BYTES];
    uint32_t c = config->block_channels[0];
    half->conv_in = load_layer(self, "encoder.conv_in", config->image_channels, c, 3);
    for (uint32_t i = 0; i < config->levels; i++) {
        struct network_level *level = &half->levels[i];
        uint32_t k = config->block_channels[i];
        for (uint32_t j = 0; j < config->blocks_per_level; j++, c = k) {
            format_name(name, "encoder.down_blocks.%u.resnets.%u", i, j);
            level->resnets[level->resnets_count++] = load_resnet(self, name, c, k);
        }
        if (i + 1 == config->levels) continue;
        format_name(name, "encoder.down_blocks.%u.downsamplers.0.conv", i);
        level->sample = load_layer(self, name, k, k, 3);
    }
    load_middle(self, half, "encoder");
    uint32_t moments = 2 * config->latent_channels;
    half->norm_out = load_norm(self, "encoder.conv_norm_out", c);
    half->conv_out = load_layer(self, "encoder.conv_out", c, moments, 3);
    if (config->quant_conv) half->quant = load_layer(self, "quant_conv", moments, moments, 1);
}

static void load_decoder(struct loader *self)
{
    const struct vae_config *config = &self->network->config;
    struct network_half *half = &self->network->decoder;
    char name[NAME_BYTES];
    uint32_t latent = config->latent_channels;
    uint32_t c = config->block_channels[config->levels - 1];
    if (config->post_quant_conv)
        half->quant = load_layer(self, "post_quant_conv", latent, latent, 1);
    half->conv_in = load_layer(self, "decoder.conv_in", latent, c, 3);
    load_middle(self, half, "decoder");
    for (uint32_t i = 0; i < config->levels; i++) {
        struct network_level *level = &half->levels[i];
        uint32_t k = config->block_channels[config->levels - 1 - i];
        for (uint32_t j = 0; j < config->blocks_per_level + 1; j++, c = k) {
            format_name(name, "decoder.up_blocks.%u.resnets.%u", i, j);
            level->resnets[level->resnets_count++] = load_resnet(self, name, c, k);
        }
        if (i + 1 == config->levels) continue;
        format_name(name, "decoder.up_blocks.%u.upsamplers.0.conv", i);
        level->sample = load_upsampler(self, name, k);
    }
    half->norm_out = load_norm(self, "decoder.conv_norm_out", c);
    half->conv_out = load_layer(self, "decoder.conv_out", c, config->image_channels, 3);
}

static enum status check_range(struct error *error, const char *what, uint32_t got, uint32_t max)
{
    if (got >= 1 && got <= max) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "the model has %u %s, it may be 1 to %u", got,
                     what, max);
}

static enum status check_config(const struct vae_config *config, struct error *error)
{
    enum status status = check_range(error, "levels", config->levels, VAE_LEVELS_MAX);
    if (status == STATUS_OK) {
        status = check_range(error, "blocks in a level", config->blocks_per_level,
                             NETWORK_RESNETS_MAX - 1);
    }
    if (status == STATUS_OK) {
        status = check_range(error, "latent channels", config->latent_channels,
                             NETWORK_LATENT_CHANNELS_MAX);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < config->levels; i++) {
        uint32_t c = config->block_channels[i];
        status = check_range(error, "channels in a level", c, NETWORK_CHANNELS_MAX);
        if (status == STATUS_OK && (config->groups == 0 || c % config->groups != 0)) {
            status =
                error_set(error, STATUS_INVALID_ARGUMENT,
                          "%u groups of the norms do not divide %u channels", config->groups, c);
        }
    }
    if (status == STATUS_OK && config->image_channels != 3) {
        status =
            error_set(error, STATUS_INVALID_ARGUMENT,
                      "the model has %u image channels, it must have 3", config->image_channels);
    }
    return status;
}

static enum status load(struct network *self, struct loader loader)
{
    const struct vae_config *config = &self->config;
    assert(self->device != NULL);
    assert(self->tensors != NULL);
    loader.network = self;
    loader.status = check_config(config, loader.error);
    if (loader.status == STATUS_OK && config->encoder) load_encoder(&loader);
    if (loader.status == STATUS_OK && config->decoder) load_decoder(&loader);
    return loader.status;
}

enum status network_load(struct network *self, struct device *device, struct tensor_table *tensors,
                         const struct vae_config *config, struct error *error)
{
    assert(self->weights == NULL);
    self->config = *config;
    self->device = device;
    self->tensors = tensor_table_share(tensors);
    return load(self, (struct loader){.error = error});
}

enum status network_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                         const struct vae_config *config, struct error *error)
{
    assert(out != NULL);
    struct network network = {.config = *config, .device = device, .tensors = tensors};
    enum status status = load(&network, (struct loader){.error = error, .is_plan = true});
    assert(network.weights == NULL);
    if (status == STATUS_OK) *out = network.bytes;
    return status;
}

void network_clear(struct network *self)
{
    assert(self->weights_count <= self->weights_capacity);
    for (uint32_t i = 0; i < self->weights_count; i++) weight_destroy(&self->weights[i]);
    free(self->weights);
    tensor_table_release(&self->tensors);
    *self = (struct network){0};
}

uint32_t network_factor(const struct vae_config *config)
{
    assert(config->levels >= 1);
    assert(config->levels <= VAE_LEVELS_MAX);
    return 1u << (config->levels - 1);
}
