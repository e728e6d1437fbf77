// network_load.c - tensors by Hugging Face's names become weights.
//
// The loader keeps the first error and does nothing afterwards, so that a network reads as the list
// of its layers. Every tensor must have the dimensions that the configuration implies.
//
// A variant is loaded in the same order as its base: the n-th weight of one is the n-th of the
// other, and it is borrowed unless one of its tensors is touched. Query, key and value are one
// weight, of which untouched parts are read where the base reads them.

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/network.h"

// The longest name of a tensor here is below 80 characters.
#define NAME_BYTES 128u
#define WEIGHTS_PER_LAYER 12u
#define WEIGHTS_BESIDE_LAYERS 5u

struct loader {
    struct text_network *network;
    struct device *device;
    struct error *error;
    enum status status;                  // the first error, or OK
    const struct tensor_table *touched;  // of a variant: tensors that differ from the base's
    bool is_plan;                        // weights are not made, what they would hold is counted
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

static bool has_dims(const struct tensor *tensor, const struct weight_source *source)
{
    uint32_t rank = source->form == WEIGHT_VECTOR ? 1 : 2;
    if (tensor->rank != rank) return false;
    for (uint32_t i = 0; i < rank; i++) {
        if (tensor->dims[i] != source->dims[i]) return false;
    }
    return true;
}

// Copies a transposed matrix of 2- or 4-byte elements row by row.
static enum status transpose(const struct tensor *tensor, struct pages *out, struct error *error)
{
    assert(tensor->rank == 2);
    uint64_t rows = tensor->dims[0];
    uint64_t columns = tensor->dims[1];
    uint64_t element = dtype_bytes(tensor->dtype);
    enum status status = pages_take(out, tensor->bytes, error);
    if (status != STATUS_OK) return status;
    uint8_t *copy = out->data;
    const uint8_t *stored = tensor->data;  // [columns, rows]
    for (uint64_t row = 0; row < rows; row++) {
        for (uint64_t column = 0; column < columns; column++) {
            memcpy(copy + (row * columns + column) * element,
                   stored + (column * rows + row) * element, element);
        }
    }
    return pages_seal(out, tensor->bytes, error);
}

// The bytes of a tensor as they are wanted. Only the projection is ever stored transposed.
static const void *straight_data(struct loader *self, const struct tensor *tensor)
{
    if (!tensor->transposed) return tensor->data;
    struct pages *copy = &self->network->projection_copy;
    if (copy->data != NULL) {
        self->status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "tensor \"%s\" is transposed", tensor->name);
        return NULL;
    }
    if (!device_has_memory(self->device)) self->network->bytes += pages_round(tensor->bytes);
    if (self->is_plan) return tensor->data;
    self->status = transpose(tensor, copy, self->error);
    if (self->status != STATUS_OK) {
        error_prefix(self->error, "tensor \"%s\"", tensor->name);
        return NULL;
    }
    return copy->data;
}

static bool is_touched(const struct loader *self, const char *name)
{
    return self->touched != NULL && tensor_table_find(self->touched, name) != NULL;
}

static const struct tensor *find_tensor(const struct loader *self, const char *name)
{
    if (is_touched(self, name)) return tensor_table_find(self->touched, name);
    return tensor_table_find(self->network->tensors, name);
}

// Finds one part and checks it; all parts of a source have one dtype.
static void find_part(struct loader *self, struct weight_source *source, const char *name)
{
    if (self->status != STATUS_OK) return;
    const struct tensor *tensor = find_tensor(self, name);
    if (tensor == NULL) {
        self->status =
            error_set(self->error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" is missing", name);
        return;
    }
    if (!has_dims(tensor, source)) {
        self->status = error_set(
            self->error, STATUS_INVALID_ARGUMENT,
            "tensor \"%s\" has rank %u and dimensions [%llu, %llu], expected [%u, %u]", name,
            tensor->rank, tensor->rank > 0 ? (unsigned long long)tensor->dims[0] : 0,
            tensor->rank > 1 ? (unsigned long long)tensor->dims[1] : 0, source->dims[0],
            source->dims[1]);
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
    source->parts[source->parts_count++] = straight_data(self, tensor);
    bool is_own = self->network->base == NULL || is_touched(self, name);
    if (is_own && !device_has_memory(self->device)) {
        self->network->bytes += tensor->bytes;
    }
}

static struct weight *create(struct loader *self, const struct weight_source *source)
{
    if (self->status != STATUS_OK) return NULL;
    struct text_network *network = self->network;
    if (self->is_plan) {
        uint64_t bytes = 0;
        self->status = weight_plan(self->device, source, &bytes, self->error);
        network->bytes += bytes;
        return NULL;
    }
    assert(network->weights_count < network->weights_room);
    struct weight *weight = NULL;
    self->status = weight_create(&weight, self->device, source, self->error);
    if (self->status != STATUS_OK) return NULL;
    network->weights[network->weights_count++] = weight;
    network->bytes += weight_bytes(weight);
    return weight;
}

// The base's weight that stands where the next one would.
static struct weight *borrow(struct loader *self)
{
    if (self->status != STATUS_OK) return NULL;
    struct text_network *network = self->network;
    assert(network->weights_count < network->base->weights_count);
    struct weight *weight = network->base->weights[network->weights_count];
    network->weights[network->weights_count++] = weight;
    return weight;
}

static struct weight *load_parts(struct loader *self, struct weight_source source,
                                 const char *const *names, uint32_t count)
{
    bool is_own = self->network->base == NULL;
    for (uint32_t i = 0; i < count; i++) is_own = is_own || is_touched(self, names[i]);
    if (!is_own) return borrow(self);
    for (uint32_t i = 0; i < count; i++) find_part(self, &source, names[i]);
    return create(self, &source);
}

static struct weight *load(struct loader *self, struct weight_source source, const char *name)
{
    return load_parts(self, source, &name, 1);
}

static struct weight *load_vector(struct loader *self, uint32_t k, const char *name)
{
    return load(self, (struct weight_source){.form = WEIGHT_VECTOR, .dims = {k}}, name);
}

static struct weight *load_matrix(struct loader *self, uint32_t k, uint32_t c, const char *name)
{
    return load(self, (struct weight_source){.form = WEIGHT_MATRIX, .dims = {k, c}}, name);
}

static struct weight *load_table(struct loader *self, uint32_t rows, uint32_t width,
                                 const char *name)
{
    return load(self, (struct weight_source){.form = WEIGHT_TABLE, .dims = {rows, width}}, name);
}

// Query, key and value of one layer, stacked. kind is "weight" or "bias".
static struct weight *load_qkv(struct loader *self, uint32_t layer, const char *kind)
{
    static const char *const letters[WEIGHT_PARTS_MAX] = {"q", "k", "v"};
    uint32_t width = self->network->config.width;
    bool is_weight = strcmp(kind, "weight") == 0;
    struct weight_source source = {.form = is_weight ? WEIGHT_MATRIX : WEIGHT_VECTOR,
                                   .dims = {width, is_weight ? width : 0}};
    char names[WEIGHT_PARTS_MAX][NAME_BYTES];
    const char *list[WEIGHT_PARTS_MAX];
    for (uint32_t i = 0; i < WEIGHT_PARTS_MAX; i++) {
        format_name(names[i], "text_model.encoder.layers.%u.self_attn.%s_proj.%s", layer,
                    letters[i], kind);
        list[i] = names[i];
    }
    return load_parts(self, source, list, WEIGHT_PARTS_MAX);
}

static struct weight *load_layer_vector(struct loader *self, uint32_t layer, uint32_t k,
                                        const char *rest)
{
    char name[NAME_BYTES];
    format_name(name, "text_model.encoder.layers.%u.%s", layer, rest);
    return load_vector(self, k, name);
}

static struct weight *load_layer_matrix(struct loader *self, uint32_t layer, uint32_t k,
                                        const char *rest)
{
    const struct clip_config *config = &self->network->config;
    char name[NAME_BYTES];
    format_name(name, "text_model.encoder.layers.%u.%s", layer, rest);
    bool from_mlp = strcmp(rest, "mlp.fc2.weight") == 0;
    return load_matrix(self, k, from_mlp ? config->mlp_width : config->width, name);
}

static void load_layer(struct loader *self, struct text_layer *out, uint32_t layer)
{
    uint32_t width = self->network->config.width;
    uint32_t mlp = self->network->config.mlp_width;
    *out = (struct text_layer){
        .norm1_gamma = load_layer_vector(self, layer, width, "layer_norm1.weight"),
        .norm1_beta = load_layer_vector(self, layer, width, "layer_norm1.bias"),
        .qkv = load_qkv(self, layer, "weight"),
        .qkv_bias = load_qkv(self, layer, "bias"),
        .out = load_layer_matrix(self, layer, width, "self_attn.out_proj.weight"),
        .out_bias = load_layer_vector(self, layer, width, "self_attn.out_proj.bias"),
        .norm2_gamma = load_layer_vector(self, layer, width, "layer_norm2.weight"),
        .norm2_beta = load_layer_vector(self, layer, width, "layer_norm2.bias"),
        .fc1 = load_layer_matrix(self, layer, mlp, "mlp.fc1.weight"),
        .fc1_bias = load_layer_vector(self, layer, mlp, "mlp.fc1.bias"),
        .fc2 = load_layer_matrix(self, layer, width, "mlp.fc2.weight"),
        .fc2_bias = load_layer_vector(self, layer, width, "mlp.fc2.bias"),
    };
}

static void load_all(struct loader *self, bool want_projection)
{
    struct text_network *network = self->network;
    const struct clip_config *config = &network->config;
    network->tokens = load_table(self, config->vocabulary, config->width,
                                 "text_model.embeddings.token_embedding.weight");
    network->positions = load_table(self, config->tokens, config->width,
                                    "text_model.embeddings.position_embedding.weight");
    for (uint32_t i = 0; i < config->layers; i++) load_layer(self, &network->layers[i], i);
    network->final_gamma = load_vector(self, config->width, "text_model.final_layer_norm.weight");
    network->final_beta = load_vector(self, config->width, "text_model.final_layer_norm.bias");
    if (want_projection && config->projection > 0) {
        network->projection =
            load_matrix(self, config->projection, config->width, "text_projection.weight");
    }
    // A device with memory of its own has read it.
    if (device_has_memory(self->device)) pages_release(&network->projection_copy);
}

// Loads all weights, from the tensors or, with touched, as a variant of a base.
static enum status load_network(struct text_network **out, struct text_network network,
                                struct loader loader, bool want_projection)
{
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct text_network *self = malloc(sizeof *self);
    if (self == NULL) goto done;
    *self = network;
    self->tensors = tensor_table_share(network.tensors);
    self->layers = calloc(self->config.layers, sizeof *self->layers);
    self->weights_room = self->config.layers * WEIGHTS_PER_LAYER + WEIGHTS_BESIDE_LAYERS;
    self->weights = calloc(self->weights_room, sizeof(struct weight *));
    if (self->layers == NULL || self->weights == NULL) goto done;

    loader.network = self;
    load_all(&loader, want_projection);
    status = loader.status;
    if (status != STATUS_OK) {
        text_network_destroy(&self);
        return status;
    }
    *out = self;
    self = NULL;

done:
    text_network_destroy(&self);
    if (status != STATUS_OK) error_set(loader.error, status, "no memory for a text encoder");
    return status;
}

static enum status check_config(const struct clip_config *config, struct error *error)
{
    if (config->layers > 0 && config->heads > 0 && config->width == config->heads * 64 &&
        config->tokens >= 3) {
        return STATUS_OK;
    }
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "an encoder of %u layers, width %u, %u heads, %u tokens does not work",
                     config->layers, config->width, config->heads, config->tokens);
}

enum status text_network_create(struct text_network **out, struct device *device,
                                struct tensor_table *tensors, const struct clip_config *config,
                                bool want_projection, struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    assert(tensors != NULL);
    enum status status = check_config(config, error);
    if (status != STATUS_OK) return status;
    return load_network(out, (struct text_network){.config = *config, .tensors = tensors},
                        (struct loader){.device = device, .error = error}, want_projection);
}

enum status text_network_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                              const struct clip_config *config, bool want_projection,
                              struct error *error)
{
    assert(out != NULL);
    assert(device != NULL);
    assert(tensors != NULL);
    struct text_network *network = NULL;
    enum status status = check_config(config, error);
    if (status != STATUS_OK) return status;
    status = load_network(&network, (struct text_network){.config = *config, .tensors = tensors},
                          (struct loader){.device = device, .error = error, .is_plan = true},
                          want_projection);
    if (status == STATUS_OK) *out = network->bytes;
    text_network_destroy(&network);
    return status;
}

enum status text_network_vary(struct text_network **out, const struct text_network *base,
                              struct device *device, const struct tensor_table *touched,
                              struct error *error)
{
    assert(out != NULL);
    assert(base != NULL);
    assert(base->base == NULL);
    assert(touched != NULL);
    return load_network(
        out, (struct text_network){.config = base->config, .tensors = base->tensors, .base = base},
        (struct loader){.device = device, .error = error, .touched = touched},
        base->projection != NULL);
}

void text_network_destroy(struct text_network **self_p)
{
    assert(self_p != NULL);
    struct text_network *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < self->weights_count; i++) {
        bool is_borrowed = self->base != NULL && self->weights[i] == self->base->weights[i];
        if (!is_borrowed) weight_destroy(&self->weights[i]);
    }
    free(self->weights);
    free(self->layers);
    pages_release(&self->projection_copy);
    tensor_table_release(&self->tensors);
    free(self);
    *self_p = NULL;
}
