// pickle_calls.c - the names that a pickle may say, and what calling them leaves. Nothing here runs
// anything: a call of _rebuild_tensor_v2 is a description of a tensor.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/files/pickle_machine.h"

enum meaning {
    MEANS_DICT,       // OrderedDict() and OrderedDict([(key, value), ...])
    MEANS_TENSOR,     // (storage, offset, dims, strides, requires_grad, hooks, ...)
    MEANS_PARAMETER,  // (tensor, requires_grad, hooks)
    MEANS_FIRST,      // a tuple of its argument, such as torch.Size
    MEANS_STORAGE,    // the type of a storage: only in persistent ids
    MEANS_IGNORED,    // a call or a constant of no interest
};

static const struct {
    const char *module, *name;
    enum meaning meaning;
    enum dtype dtype;  // of a storage
} known[] = {
    {"collections", "OrderedDict", MEANS_DICT, DTYPE_NONE},
    {"torch._utils", "_rebuild_tensor_v2", MEANS_TENSOR, DTYPE_NONE},
    {"torch._utils", "_rebuild_parameter", MEANS_PARAMETER, DTYPE_NONE},
    {"torch", "Size", MEANS_FIRST, DTYPE_NONE},
    {"torch", "FloatStorage", MEANS_STORAGE, DTYPE_F32},
    {"torch", "HalfStorage", MEANS_STORAGE, DTYPE_F16},
    {"torch", "BFloat16Storage", MEANS_STORAGE, DTYPE_BF16},
    {"torch", "DoubleStorage", MEANS_STORAGE, DTYPE_F64},
    {"torch", "LongStorage", MEANS_STORAGE, DTYPE_I64},
    {"torch", "IntStorage", MEANS_STORAGE, DTYPE_I32},
    {"torch", "ShortStorage", MEANS_STORAGE, DTYPE_I16},
    {"torch", "CharStorage", MEANS_STORAGE, DTYPE_I8},
    {"torch", "ByteStorage", MEANS_STORAGE, DTYPE_U8},
    {"torch", "BoolStorage", MEANS_STORAGE, DTYPE_BOOL},
    {"torch", "float32", MEANS_IGNORED, DTYPE_NONE},
    {"torch", "float16", MEANS_IGNORED, DTYPE_NONE},
    {"torch", "bfloat16", MEANS_IGNORED, DTYPE_NONE},
    {"torch", "device", MEANS_IGNORED, DTYPE_NONE},
    {"numpy.core.multiarray", "scalar", MEANS_IGNORED, DTYPE_NONE},
    {"numpy._core.multiarray", "scalar", MEANS_IGNORED, DTYPE_NONE},
    {"numpy", "dtype", MEANS_IGNORED, DTYPE_NONE},
    {"_codecs", "encode", MEANS_IGNORED, DTYPE_NONE},
    // A key among what the trainer of the first Stable Diffusion checkpoints left beside the
    // tensors.
    {"pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", MEANS_IGNORED, DTYPE_NONE},
};

static bool is_text(struct bytes bytes, const char *text)
{
    return bytes.size == strlen(text) && memcmp(bytes.data, text, bytes.size) == 0;
}

static int shown(struct bytes text)
{
    return text.size < 80 ? (int)text.size : 80;
}

struct pickle_value *pickle_global(struct pickle *self, struct bytes module, struct bytes name)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (!is_text(module, known[i].module) || !is_text(name, known[i].name)) continue;
        struct pickle_value *value = pickle_make(self, PICKLE_GLOBAL);
        if (value != NULL) value->number = (int64_t)i;
        return value;
    }
    return pickle_fail(self, STATUS_INVALID_ARGUMENT, "uses %.*s.%.*s, which is not allowed",
                       shown(module), (const char *)module.data, shown(name),
                       (const char *)name.data);
}

static bool is_kind(const struct pickle_value *tuple, uint32_t index, enum pickle_kind kind)
{
    return index < tuple->count && tuple->items[index]->kind == kind;
}

static struct pickle_value *wrong(struct pickle *self, const char *what)
{
    return pickle_fail(self, STATUS_INVALID_ARGUMENT, "has %s of a wrong form", what);
}

static struct pickle_value *make_dict(struct pickle *self, const struct pickle_value *arguments)
{
    struct pickle_value *dict = pickle_make(self, PICKLE_DICT);
    if (dict == NULL || arguments->count == 0) return dict;
    if (!is_kind(arguments, 0, PICKLE_LIST)) return wrong(self, "an OrderedDict");
    const struct pickle_value *pairs = arguments->items[0];
    for (uint32_t i = 0; i < pairs->count; i++) {
        const struct pickle_value *pair = pairs->items[i];
        if ((pair->kind != PICKLE_TUPLE && pair->kind != PICKLE_LIST) || pair->count != 2) {
            return wrong(self, "an OrderedDict");
        }
        if (!pickle_append(self, dict, pair->items[0])) return NULL;
        if (!pickle_append(self, dict, pair->items[1])) return NULL;
    }
    return dict;
}

// A tuple of whole numbers that are not negative.
static bool read_numbers(const struct pickle_value *tuple, uint64_t out[TENSOR_RANK_MAX])
{
    if (tuple->count > TENSOR_RANK_MAX) return false;
    for (uint32_t i = 0; i < tuple->count; i++) {
        if (!is_kind(tuple, i, PICKLE_NUMBER) || tuple->items[i]->number < 0) return false;
        out[i] = (uint64_t)tuple->items[i]->number;
    }
    return true;
}

static struct pickle_value *make_tensor(struct pickle *self, const struct pickle_value *arguments)
{
    if (arguments->count < 6 || !is_kind(arguments, 0, PICKLE_STORAGE) ||
        !is_kind(arguments, 1, PICKLE_NUMBER) || arguments->items[1]->number < 0 ||
        !is_kind(arguments, 2, PICKLE_TUPLE) || !is_kind(arguments, 3, PICKLE_TUPLE)) {
        return wrong(self, "a tensor");
    }
    const struct pickle_value *dims = arguments->items[2];
    const struct pickle_value *strides = arguments->items[3];
    struct pickle_tensor tensor = *arguments->items[0]->tensor;
    tensor.offset = (uint64_t)arguments->items[1]->number;
    tensor.rank = dims->count;
    if (dims->count != strides->count || !read_numbers(dims, tensor.dims) ||
        !read_numbers(strides, tensor.strides)) {
        return wrong(self, "a tensor");
    }
    struct pickle_value *value = pickle_make(self, PICKLE_TENSOR);
    if (value == NULL) return NULL;
    value->tensor = malloc(sizeof tensor);
    if (value->tensor == NULL) {
        return pickle_fail(self, STATUS_RESOURCE_EXHAUSTED, "does not fit into memory");
    }
    *value->tensor = tensor;
    return value;
}

struct pickle_value *pickle_call(struct pickle *self, const struct pickle_value *callable,
                                 struct pickle_value *arguments)
{
    assert(callable != NULL);
    assert(arguments != NULL);
    if (callable->kind != PICKLE_GLOBAL || arguments->kind != PICKLE_TUPLE) {
        return pickle_fail(self, STATUS_INVALID_ARGUMENT, "calls what is not a function");
    }
    switch (known[callable->number].meaning) {
    case MEANS_DICT:
        return make_dict(self, arguments);
    case MEANS_TENSOR:
        return make_tensor(self, arguments);
    case MEANS_PARAMETER:
        if (!is_kind(arguments, 0, PICKLE_TENSOR)) return wrong(self, "a parameter");
        return arguments->items[0];
    case MEANS_FIRST:
        if (!is_kind(arguments, 0, PICKLE_TUPLE)) return wrong(self, "a torch.Size");
        return arguments->items[0];
    case MEANS_IGNORED:
        return pickle_make(self, PICKLE_IGNORED);
    case MEANS_STORAGE:
        break;
    }
    return pickle_fail(self, STATUS_INVALID_ARGUMENT, "calls %s.%s", known[callable->number].module,
                       known[callable->number].name);
}

struct pickle_value *pickle_persistent(struct pickle *self, const struct pickle_value *id)
{
    if (id == NULL) return NULL;
    if (id->kind != PICKLE_TUPLE || id->count < 5 || !is_kind(id, 0, PICKLE_STRING) ||
        !is_text(id->items[0]->text, "storage") || !is_kind(id, 1, PICKLE_GLOBAL) ||
        known[id->items[1]->number].meaning != MEANS_STORAGE || !is_kind(id, 2, PICKLE_STRING) ||
        !is_kind(id, 4, PICKLE_NUMBER) || id->items[4]->number < 0) {
        return wrong(self, "a persistent id");
    }
    struct pickle_value *value = pickle_make(self, PICKLE_STORAGE);
    if (value == NULL) return NULL;
    value->tensor = calloc(1, sizeof *value->tensor);
    if (value->tensor == NULL) {
        return pickle_fail(self, STATUS_RESOURCE_EXHAUSTED, "does not fit into memory");
    }
    value->tensor->dtype = known[id->items[1]->number].dtype;
    value->tensor->storage = id->items[2]->text;
    value->tensor->storage_elements = (uint64_t)id->items[4]->number;
    return value;
}
