// Any bytes as a torch file: an input that begins with "PK" is the whole file, any other is a
// pickle without its zip, so that the fuzzer need not find out about checksums.

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "models/files/pickle.h"
#include "models/files/tensors.h"
#include "models/files/torch_zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// The pickle alone: every value must be of a kind that is known.
static void check_pickle(const uint8_t *data, size_t size)
{
    struct error error = {0};
    struct pickle *pickle = NULL;
    enum status status = pickle_read(&pickle, (struct bytes){data, size}, &error);
    assert((status == STATUS_OK) == (pickle != NULL));
    if (pickle != NULL) assert(pickle_root(pickle)->kind <= PICKLE_TENSOR);
    pickle_destroy(&pickle);
}

// The file, through the child's side and the parent's.
static void check_file(const uint8_t *data, size_t size)
{
    char path[64];
    struct error error = {0};
    struct tensor_table *table = NULL;
    struct torch_reader reader = torch_reader_in_process();
    int descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    assert(descriptor >= 0);
    assert(write(descriptor, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    enum status status = tensor_table_open(&table, path, &reader, &error);
    assert((status == STATUS_OK) == (table != NULL));
    if (table != NULL) {
        struct hash hash;
        assert(tensor_table_hash(table, NULL, NULL, &hash) == STATUS_OK);
    }
    tensor_table_release(&table);
    close(descriptor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size >= 2 && data[0] == 'P' && data[1] == 'K') {
        check_file(data, size);
    } else if (size > 0) {
        check_pickle(data, size);
    }
    return 0;
}
