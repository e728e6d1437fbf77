// golden_weights.h - tensors whose elements follow from their names, as tests/golden/make_text.py
// and make_real.py compute them: element i is noise(name, i) * scale + offset, rounded to the type.

#ifndef TESTS_UNIT_MODELS_GOLDEN_WEIGHTS_H
#define TESTS_UNIT_MODELS_GOLDEN_WEIGHTS_H

#include "tests/test.h"

#include <stdlib.h>
#include <string.h>

#include "models/files/tensors.h"

// A growing list of tensors that own their names and elements; then a table of them.
struct golden_weights {
    enum dtype dtype;            // of all elements: F32, F16 or BF16
    struct tensor *tensors;      // name and data are ours
    uint32_t count, capacity;    // of tensors
    struct tensor_table *table;  // after golden_finish
};

// What turns noise into elements.
struct golden_rule {
    float scale, offset;
};

static inline uint64_t golden_seed(const char *name)
{
    uint64_t seed = 0xCBF29CE484222325u;
    for (const char *at = name; *at != '\0'; at++) {
        seed = (seed ^ (uint8_t)*at) * 0x100000001B3u;
    }
    return seed;
}

// The top 24 bits of splitmix64 as a number from -1 up to 1.
static inline float golden_noise(uint64_t seed, uint64_t index)
{
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (float)(z >> 40) / 8388608.0f - 1.0f;
}

// The elements of a tensor's memory, which the table sees as const.
static inline void *golden_elements(const struct tensor *tensor)
{
    union {
        const void *constant;
        void *data;
    } owned = {.constant = tensor->data};
    return owned.data;
}

static inline void golden_set(const struct tensor *tensor, uint64_t index, float value)
{
    if (tensor->dtype == DTYPE_F16) {
        ((uint16_t *)golden_elements(tensor))[index] = f32_to_f16(value);
    } else if (tensor->dtype == DTYPE_BF16) {
        ((uint16_t *)golden_elements(tensor))[index] = f32_to_bf16(value);
    } else {
        assert_int_equal(tensor->dtype, DTYPE_F32);
        ((float *)golden_elements(tensor))[index] = value;
    }
}

// Elements first to first + count - 1, from the noise of `name`.
static inline void golden_fill(const struct tensor *tensor, const char *name, uint64_t first,
                               uint64_t count, struct golden_rule rule)
{
    uint64_t seed = golden_seed(name);
    for (uint64_t i = first; i < first + count; i++) {
        golden_set(tensor, i, golden_noise(seed, i) * rule.scale + rule.offset);
    }
}

// Adds a tensor called `name` whose noise is that of `noise_name`. The result lasts until the next
// one is added.
static inline struct tensor *golden_add(struct golden_weights *self, const char *name,
                                        const char *noise_name, const struct tensor *shape,
                                        struct golden_rule rule)
{
    if (self->count == self->capacity) {
        self->capacity = self->capacity == 0 ? 64 : 2 * self->capacity;
        self->tensors = realloc(self->tensors, self->capacity * sizeof *self->tensors);
        assert_non_null(self->tensors);
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < shape->rank; i++) elements *= shape->dims[i];
    struct tensor *tensor = &self->tensors[self->count++];
    *tensor = *shape;
    tensor->name = strdup(name);
    tensor->dtype = self->dtype;
    tensor->bytes = elements * dtype_bytes(self->dtype);
    tensor->data = malloc(tensor->bytes);
    assert_non_null(tensor->name);
    assert_non_null(tensor->data);
    golden_fill(tensor, noise_name, 0, elements, rule);
    return tensor;
}

static inline void golden_finish(struct golden_weights *self)
{
    struct error error;
    enum status status =
        tensor_table_from_tensors(&self->table, self->tensors, self->count, NULL, 0, &error);
    if (status != STATUS_OK) fail_msg("%s", error.message);
}

static inline void golden_close(struct golden_weights *self)
{
    tensor_table_release(&self->table);
    for (uint32_t i = 0; i < self->count; i++) {
        union {
            const char *constant;
            char *name;
        } owned = {.constant = self->tensors[i].name};
        free(owned.name);
        free(golden_elements(&self->tensors[i]));
    }
    free(self->tensors);
    *self = (struct golden_weights){0};
}

#endif  // TESTS_UNIT_MODELS_GOLDEN_WEIGHTS_H
