// Any bytes as a safetensors file: whatever is believed must lie inside them.

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "models/files/tensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error error = {0};
    struct tensor_table *table = NULL;
    enum status status = tensor_table_from_bytes(&table, (struct bytes){data, size}, &error);
    if (status != STATUS_OK) {
        assert(table == NULL);
        assert(error.status == status);
        assert(error.message[0] != '\0');
        return 0;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < tensor_table_count(table); i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        const uint8_t *begin = tensor->data;
        assert(begin >= data);
        assert(begin + tensor->bytes <= data + size);
        assert(tensor_table_find(table, tensor->name) == tensor);
        assert(i == 0 || strcmp(tensor_table_at(table, i - 1)->name, tensor->name) < 0);
        sum += tensor->bytes;
    }
    assert(sum <= size);
    struct hash hash;
    assert(tensor_table_hash(table, NULL, NULL, &hash) == STATUS_OK);
    tensor_table_release(&table);
    return 0;
}
