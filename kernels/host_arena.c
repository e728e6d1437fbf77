// host_arena.c - anonymous pages, taken from the system at once.
//
// mmap alone only promises: Linux hands out pages at the first touch, when another process may have
// taken them. So the new part is populated here, and a growing arena is moved by its page tables
// (mremap) instead of being copied, which would need the old and the new one together.

#include "kernels/host_arena.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older kernels answer EINVAL
#endif

static enum status fail(uint64_t bytes, int code, struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an arena of %llu bytes: %s",
                     (unsigned long long)bytes, strerror(code));
}

enum status host_arena_grow(struct host_arena *self, uint64_t bytes, struct error *error)
{
    assert(self != NULL);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (bytes <= self->bytes) return STATUS_OK;
    if (bytes > SIZE_MAX / 2) return fail(bytes, ENOMEM, error);
    uint64_t old = self->bytes;
    uint64_t size = round_up(bytes, page);
    void *data = NULL;
    if (old == 0) {
        data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    } else {
        data = mremap(self->data, old, size, MREMAP_MAYMOVE);
    }
    if (data == MAP_FAILED) return fail(bytes, errno, error);
    self->data = data;
    self->bytes = size;
    madvise(self->data, size, MADV_HUGEPAGE);  // advice: its failure changes nothing but speed
    if (madvise(self->data + old, size - old, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
        int code = errno;
        int unmapped = munmap(self->data + old, size - old);
        assert(unmapped == 0);
        self->bytes = old;
        if (old == 0) self->data = NULL;
        return fail(bytes, code, error);
    }
    return STATUS_OK;
}

void host_arena_release(struct host_arena *self)
{
    assert(self != NULL);
    if (self->data == NULL) return;
    int unmapped = munmap(self->data, self->bytes);
    assert(unmapped == 0);
    *self = (struct host_arena){.data = NULL};
}
