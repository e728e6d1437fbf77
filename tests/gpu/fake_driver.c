// fake_driver.c - a driver of no card, for gpu_oom_test.c: it hands out its functions as
// libcuda.so.1 does, by cuGetProcAddress, and counts what it is asked for.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int cuGetProcAddress(const char *name, void **out, int version, uint64_t flags);
int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status);
int cuMemAlloc_v2(uint64_t *out, size_t bytes);
int cuMemFree_v2(uint64_t memory);
int cuMemHostAlloc(void **out, size_t bytes, unsigned flags);
int cuMemFreeHost(void *memory);
int cuInit(unsigned flags);
int cuMemAllocAsync(uint64_t *out, size_t bytes, void *stream);
int cuMemAllocAsync_ptsz(uint64_t *out, size_t bytes, void *stream);
uint64_t fake_allocations(void);

static uint64_t allocations;

uint64_t fake_allocations(void)
{
    return allocations;
}

int cuInit(unsigned flags)
{
    return (int)flags + 77;
}

int cuMemAlloc_v2(uint64_t *out, size_t bytes)
{
    allocations += 1;
    *out = (uint64_t)bytes + 1;
    return 0;
}

int cuMemAllocAsync(uint64_t *out, size_t bytes, void *stream)
{
    return stream == NULL ? cuMemAlloc_v2(out, bytes) : 1;
}

int cuMemAllocAsync_ptsz(uint64_t *out, size_t bytes, void *stream)
{
    (void)stream;
    *out = (uint64_t)bytes + 2;
    return 0;
}

int cuMemFree_v2(uint64_t memory)
{
    return memory == 13 ? 1 : 0;  // CUDA_ERROR_INVALID_VALUE
}

int cuMemHostAlloc(void **out, size_t bytes, unsigned flags)
{
    (void)bytes;
    (void)flags;
    allocations += 1;
    *out = &allocations;
    return 0;
}

int cuMemFreeHost(void *memory)
{
    return memory == &allocations ? 0 : 1;
}

// Function pointers of different types are brought home as bytes.
#define FIND(called, function)                                                                     \
    if (strcmp(name, called) == 0) {                                                               \
        __typeof__(&(function)) found = function;                                                  \
        memcpy(out, &found, sizeof found);                                                         \
    }

int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *status)
{
    *out = NULL;
    if (status != NULL) *status = 0;
    FIND("cuInit", cuInit)
    FIND("cuMemAlloc", cuMemAlloc_v2)
    FIND("cuMemFree", cuMemFree_v2)
    FIND("cuMemHostAlloc", cuMemHostAlloc)
    FIND("cuMemFreeHost", cuMemFreeHost)
    if (flags == 0) FIND("cuMemAllocAsync", cuMemAllocAsync)
    if (flags == 2) FIND("cuMemAllocAsync", cuMemAllocAsync_ptsz)
    if (version >= 12000) FIND("cuGetProcAddress", cuGetProcAddress_v2)
    if (version < 12000) FIND("cuGetProcAddress", cuGetProcAddress)
    return *out == NULL ? 500 : 0;  // CUDA_ERROR_NOT_FOUND
}

int cuGetProcAddress(const char *name, void **out, int version, uint64_t flags)
{
    int status = 0;
    return cuGetProcAddress_v2(name, out, version, flags, &status);
}
