// host_arena.c - anonymous pages, in huge ones where the system has them: a decode of 256 x 256
// takes 2.3 % more processor time without them (two AVX2 cores, medians of 7 turns).
//
// The system hands out pages at their first touch. Touching them all here would close the door on
// processes that race for the same memory, but it takes 0.3 s a GiB at best and was measured at 9 s
// on a virtual machine whose host had taken its memory back: too long for a driver that must answer
// heartbeats. So the compute threads touch them, as they come to them, and what is checked here is
// that the machine has so much memory at all and that the system accounts for it (no
// MAP_NORESERVE). A growing arena is moved by its page tables (mremap) instead of being copied,
// which would need the old and the new one together.
//
// A page that nobody may touch stands behind the last: a kernel that writes beyond what was planned
// dies at once, instead of spoiling somebody else's tensor.

#include "kernels/host_arena.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"

static enum status fail(uint64_t bytes, const char *why, struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for an arena of %llu bytes: %s",
                     (unsigned long long)bytes, why);
}

enum status host_arena_grow(struct host_arena *self, uint64_t bytes, struct error *error)
{
    assert(self != NULL);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (bytes <= self->bytes) return STATUS_OK;
    if (bytes / page >= (uint64_t)sysconf(_SC_PHYS_PAGES)) {
        return fail(bytes, "the machine has less", error);
    }
    uint64_t size = round_up(bytes, page);
    void *data = NULL;
    if (self->data == NULL) {
        data = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    } else {
        data = mremap(self->data, self->bytes, size + page, MREMAP_MAYMOVE);
    }
    if (data == MAP_FAILED) return fail(bytes, strerror(errno), error);
    if (self->data != NULL) {
        // The old guard kept the pages from growing where they were.
        assert(data != self->data);
        int unmapped = munmap(self->data + self->bytes, page);
        assert(unmapped == 0);
    }
    self->data = data;
    self->bytes = size;
    // Both are help only: what fails here changes nothing that is right.
    mprotect(self->data + size, page, PROT_NONE);
    madvise(self->data, size, MADV_HUGEPAGE);
    return STATUS_OK;
}

void host_arena_release(struct host_arena *self)
{
    assert(self != NULL);
    if (self->data == NULL) return;
    int unmapped = munmap(self->data, self->bytes + (uint64_t)sysconf(_SC_PAGESIZE));
    assert(unmapped == 0);
    *self = (struct host_arena){.data = NULL};
}
