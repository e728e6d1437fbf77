// pages.c - anonymous mappings; pages.h holds the contract. Neighbours that are sealed alike become
// one mapping of the kernel's, so that many small ones are no burden.

#include "base/pages.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

#define READ_BYTES 64u  // at once, at most

uint64_t pages_round(uint64_t bytes)
{
    return round_up(bytes, (uint64_t)sysconf(_SC_PAGESIZE));
}

enum status pages_take(struct pages *out, uint64_t bytes, struct error *error)
{
    assert(out != NULL);
    assert(bytes > 0);
    uint64_t size = pages_round(bytes);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no pages for %llu bytes: %s",
                         (unsigned long long)bytes, strerror(errno));
    }
    *out = (struct pages){.data = data, .bytes = size};
    return STATUS_OK;
}

enum status pages_seal(const struct pages *self, uint64_t used, struct error *error)
{
    assert(self != NULL && self->data != NULL);
    assert(used <= self->bytes);
    if (mprotect(self->data, self->bytes, PROT_READ) != 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%llu bytes cannot be sealed: %s",
                         (unsigned long long)self->bytes, strerror(errno));
    }
    uint64_t end = round_up(used, READ_BYTES);
    ASAN_POISON_MEMORY_REGION((char *)self->data + end, self->bytes - end);
    return STATUS_OK;
}

void pages_release(struct pages *self)
{
    assert(self != NULL);
    if (self->data == NULL) return;
    ASAN_UNPOISON_MEMORY_REGION(self->data, self->bytes);
    int failed = munmap(self->data, self->bytes);
    assert(failed == 0);
    (void)failed;
    *self = (struct pages){.data = NULL};
}
