// describe.c - what is in an adapter file, whatever the model; and the part of it that executors
// keep. Here every key means the encoder that its prefix names.

#include <assert.h>
#include <stdlib.h>

#include "models/lora/stems.h"

static enum status reject_file(const struct tensor_table *file, struct error *error)
{
    if (tensor_table_count(file) == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the file holds no tensors");
    }
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "the file is no adapter, none of its %u keys is an adapter's; the first is "
                     "\"%.200s\"",
                     tensor_table_count(file), tensor_table_at(file, 0)->name);
}

static bool count_keys(const struct tensor_table *file, struct lora_description *out)
{
    bool any = false;
    for (uint32_t i = 0; i < tensor_table_count(file); i++) {
        const struct tensor *tensor = tensor_table_at(file, i);
        any = any || lora_key_is_adapter(tensor->name);
        if (lora_key_is_encoder(tensor->name)) {
            out->keys_encoder += 1;
            out->bytes_encoder += tensor->bytes;
        } else {
            out->keys_other += 1;
        }
    }
    return any;
}

static void add_module(struct lora_description *out, const struct choice *choice, bool linear)
{
    uint64_t rank = choice_rank(choice);
    if (out->modules == 0) out->family = choice->family;
    if (choice->family != out->family) out->mixed = true;
    if (choice->family != LORA_LOW_RANK || !linear) out->low_rank = false;
    if (rank > out->rank && rank <= UINT32_MAX) out->rank = (uint32_t)rank;
    out->modules += 1;
}

static void add_stem(struct lora_description *out, const struct stem *stem)
{
    struct choice choice;
    bool weight = false;
    bool bias = false;
    bool linear = stem->place <= PLACE_PROJECTION;
    out->encoders[stem->part] = true;
    if (stem_choose_weight(stem, &choice, &weight, NULL) == STATUS_OK && weight) {
        add_module(out, &choice, linear);
    }
    if (stem_choose_bias(stem, &choice, &bias, NULL) == STATUS_OK && bias) {
        add_module(out, &choice, false);
    }
}

enum status lora_describe(const struct tensor_table *file, struct lora_description *out,
                          struct error *error)
{
    assert(file != NULL);
    assert(out != NULL);
    struct lora_description description = {.low_rank = true};
    struct stems stems;
    struct stem stem;
    if (!count_keys(file, &description)) return reject_file(file, error);
    enum status status = stems_begin(&stems, file, NULL, error);
    if (status != STATUS_OK) return status;
    while (stems_next(&stems, &stem)) add_stem(&description, &stem);
    stems_end(&stems);
    *out = description;
    return STATUS_OK;
}

enum status lora_encoder_tensors(struct tensor_table **out, struct tensor_table *file,
                                 struct error *error)
{
    assert(out != NULL);
    assert(file != NULL);
    uint32_t all = tensor_table_count(file);
    uint32_t count = 0;
    struct tensor *tensors = calloc(all + 1u, sizeof *tensors);
    if (tensors == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u tensors", all);
    }
    for (uint32_t i = 0; i < all; i++) {
        const struct tensor *tensor = tensor_table_at(file, i);
        if (lora_key_is_encoder(tensor->name)) tensors[count++] = *tensor;
    }
    struct tensor_table *table = NULL;
    enum status status = STATUS_OK;
    if (count > 0) status = tensor_table_from_tensors(&table, tensors, count, &file, 1, error);
    free(tensors);
    if (status == STATUS_OK) *out = table;
    return status;
}
