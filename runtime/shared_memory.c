// shared_memory.c - memfd with seals; shared_memory.h holds the contract.

#include "runtime/shared_memory.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

static enum status exhausted(struct error *error, uint64_t bytes)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no shared memory of %lu bytes: %s",
                     (unsigned long)bytes, strerror(errno));
}

// Maps what the descriptor holds; its size is known to be right.
static void *map(int descriptor, uint64_t bytes, bool is_writable)
{
    int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *address = mmap(NULL, bytes, protection, MAP_SHARED, descriptor, 0);
    return address != MAP_FAILED ? address : NULL;
}

enum status shared_memory_create(struct shared_memory *out, const char *name, uint64_t bytes,
                                 struct error *error)
{
    assert(out != NULL);
    assert(name != NULL);
    assert(bytes > 0);
    struct shared_memory self = {.descriptor = -1, .bytes = bytes};
    if (bytes > INT64_MAX) {
        errno = EFBIG;
        return exhausted(error, bytes);
    }
    self.descriptor = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (self.descriptor < 0) return exhausted(error, bytes);
    if (ftruncate(self.descriptor, (off_t)bytes) != 0) goto failed;
    if (fcntl(self.descriptor, F_ADD_SEALS, SIZE_SEALS | F_SEAL_SEAL) != 0) goto failed;
    self.address = map(self.descriptor, bytes, true);
    if (self.address == NULL) goto failed;
    *out = self;
    return STATUS_OK;

failed:
    exhausted(error, bytes);
    shared_memory_destroy(&self);
    return STATUS_RESOURCE_EXHAUSTED;
}

static enum status check_foreign(int descriptor, uint64_t expected_bytes, uint64_t bytes_max,
                                 uint64_t *bytes, struct error *error)
{
    struct stat found;
    int seals = fcntl(descriptor, F_GET_SEALS);
    if (seals < 0 || (seals & SIZE_SEALS) != SIZE_SEALS || fstat(descriptor, &found) != 0 ||
        !S_ISREG(found.st_mode)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the descriptor is not shared memory whose size is sealed");
    }
    uint64_t size = (uint64_t)found.st_size;
    if (size == 0 || size > bytes_max || (expected_bytes != 0 && size != expected_bytes)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the shared memory has %lu bytes instead of %lu, at most %lu",
                         (unsigned long)size, (unsigned long)expected_bytes,
                         (unsigned long)bytes_max);
    }
    *bytes = size;
    return STATUS_OK;
}

enum status shared_memory_map(struct shared_memory *out, int descriptor, uint64_t expected_bytes,
                              uint64_t bytes_max, bool is_writable, struct error *error)
{
    assert(out != NULL);
    assert(descriptor >= 0);
    uint64_t bytes = 0;
    enum status status = check_foreign(descriptor, expected_bytes, bytes_max, &bytes, error);
    if (status != STATUS_OK) return status;
    void *address = map(descriptor, bytes, is_writable);
    if (address == NULL && (errno == EACCES || errno == EPERM)) {
        return error_set(error, STATUS_PERMISSION_DENIED, "the shared memory may only be read");
    }
    if (address == NULL) return exhausted(error, bytes);
    *out = (struct shared_memory){.descriptor = descriptor, .bytes = bytes, .address = address};
    return STATUS_OK;
}

enum status shared_memory_read_only(const struct shared_memory *self, int *out, struct error *error)
{
    assert(self != NULL);
    assert(self->descriptor >= 0);
    assert(out != NULL);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", self->descriptor);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return exhausted(error, self->bytes);
    *out = descriptor;
    return STATUS_OK;
}

void *shared_memory_range(const struct shared_memory *self, uint64_t offset, uint64_t bytes)
{
    assert(self != NULL);
    assert(self->address != NULL);
    if (offset > self->bytes || bytes > self->bytes - offset) return NULL;
    return (char *)self->address + offset;
}

void shared_memory_destroy(struct shared_memory *self)
{
    assert(self != NULL);
    if (self->address != NULL) {
        int failed = munmap(self->address, self->bytes);
        assert(failed == 0);
    }
    if (self->descriptor >= 0) close(self->descriptor);
    *self = (struct shared_memory){.descriptor = -1};
}
