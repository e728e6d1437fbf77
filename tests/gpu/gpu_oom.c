// gpu_oom.c - stands between the CUDA runtime and the driver, and lets the driver run out of memory
// at the n-th allocation. Preloaded:
//
//     LD_PRELOAD=.../gpu_oom.so gpu_run cuda:0 ...
//
// The runtime is linked into libluna_cuda.so. It asks dlsym for cuGetProcAddress of libcuda.so.1
// and that for every other function, so these two are replaced here, and through them the functions
// that take and give memory of the device (and pinned memory of the host). Everything else is the
// driver's own. What the types are is read from cuda.h's documentation; no CUDA header is needed.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define RESULT_OUT_OF_MEMORY 2  // CUDA_ERROR_OUT_OF_MEMORY
#define FLAG_PER_THREAD 2  // asks for the variant of a stream per thread, which nobody here uses

// The driver's own, as they were asked for, and the numbers of this process. Plain integers behind
// __atomic_ functions: the driver may be called from any thread.
static struct {
    int (*get_v1)(const char *name, void **out, int version, uint64_t flags);
    int (*get_v2)(const char *name, void **out, int version, uint64_t flags, int *status);
    int (*allocate)(uint64_t *out, size_t bytes);
    int (*release)(uint64_t memory);
    int (*allocate_host)(void **out, size_t bytes, unsigned flags);
    int (*release_host)(void *memory);
    int (*allocate_later)(uint64_t *out, size_t bytes, void *stream);
    int (*allocate_pooled)(uint64_t *out, size_t bytes, void *pool, void *stream);
    int (*release_later)(uint64_t memory, void *stream);
    uint64_t calls;    // allocations since gpu_oom_arm
    uint64_t fail_at;  // which of them fails; 0: none
    uint64_t held;     // allocations that were not given back
} driver;

// ---------------------------------------------------------------------------------------------
// What tests ask; see gpu_run.c. All take and give a number, so that one pointer type fits.

uint64_t gpu_oom_arm(uint64_t fail_at);
uint64_t gpu_oom_calls(uint64_t ignored);
uint64_t gpu_oom_held(uint64_t ignored);

uint64_t gpu_oom_arm(uint64_t fail_at)
{
    __atomic_store_n(&driver.calls, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&driver.fail_at, fail_at, __ATOMIC_SEQ_CST);
    return 0;
}

uint64_t gpu_oom_calls(uint64_t ignored)
{
    (void)ignored;
    return __atomic_load_n(&driver.calls, __ATOMIC_SEQ_CST);
}

uint64_t gpu_oom_held(uint64_t ignored)
{
    (void)ignored;
    return __atomic_load_n(&driver.held, __ATOMIC_SEQ_CST);
}

// ---------------------------------------------------------------------------------------------
// Memory

static int must_fail(void)
{
    uint64_t call = __atomic_add_fetch(&driver.calls, 1, __ATOMIC_SEQ_CST);
    return call == __atomic_load_n(&driver.fail_at, __ATOMIC_SEQ_CST);
}

static int keep_count(int result, int64_t change)
{
    if (result == 0) __atomic_add_fetch(&driver.held, (uint64_t)change, __ATOMIC_SEQ_CST);
    return result;
}

static int allocate(uint64_t *out, size_t bytes)
{
    if (must_fail()) return RESULT_OUT_OF_MEMORY;
    return keep_count(driver.allocate(out, bytes), 1);
}

static int release(uint64_t memory)
{
    return keep_count(driver.release(memory), memory == 0 ? 0 : -1);
}

static int allocate_host(void **out, size_t bytes, unsigned flags)
{
    if (must_fail()) return RESULT_OUT_OF_MEMORY;
    return keep_count(driver.allocate_host(out, bytes, flags), 1);
}

static int release_host(void *memory)
{
    return keep_count(driver.release_host(memory), memory == NULL ? 0 : -1);
}

static int allocate_later(uint64_t *out, size_t bytes, void *stream)
{
    if (must_fail()) return RESULT_OUT_OF_MEMORY;
    return keep_count(driver.allocate_later(out, bytes, stream), 1);
}

static int allocate_pooled(uint64_t *out, size_t bytes, void *pool, void *stream)
{
    if (must_fail()) return RESULT_OUT_OF_MEMORY;
    return keep_count(driver.allocate_pooled(out, bytes, pool, stream), 1);
}

static int release_later(uint64_t memory, void *stream)
{
    return keep_count(driver.release_later(memory, stream), memory == 0 ? 0 : -1);
}

// ---------------------------------------------------------------------------------------------
// Names

static int get_v1(const char *name, void **out, int version, uint64_t flags);
static int get_v2(const char *name, void **out, int version, uint64_t flags, int *status);

// Puts ours in the place of the driver's, which is remembered. POSIX lets an object pointer hold a
// function; C has no cast for it, so bytes are copied.
#define REPLACE(field, ours)                                                                       \
    do {                                                                                           \
        memcpy(&driver.field, found, sizeof *found);                                               \
        __typeof__(driver.field) function = ours;                                                  \
        memcpy(found, &function, sizeof *found);                                                   \
    } while (0)

static void replace(const char *name, void **found)
{
    if (*found == NULL) return;
    if (strcmp(name, "cuMemAlloc") == 0 || strcmp(name, "cuMemAlloc_v2") == 0) {
        REPLACE(allocate, allocate);
    } else if (strcmp(name, "cuMemFree") == 0 || strcmp(name, "cuMemFree_v2") == 0) {
        REPLACE(release, release);
    } else if (strcmp(name, "cuMemHostAlloc") == 0) {
        REPLACE(allocate_host, allocate_host);
    } else if (strcmp(name, "cuMemFreeHost") == 0) {
        REPLACE(release_host, release_host);
    } else if (strcmp(name, "cuMemAllocAsync") == 0) {
        REPLACE(allocate_later, allocate_later);
    } else if (strcmp(name, "cuMemAllocFromPoolAsync") == 0) {
        REPLACE(allocate_pooled, allocate_pooled);
    } else if (strcmp(name, "cuMemFreeAsync") == 0) {
        REPLACE(release_later, release_later);
    }
}

// cuGetProcAddress has one name and two shapes: the second came with version 12.0.
static void replace_get(const char *name, int version, void **found)
{
    if (*found == NULL) return;
    if (strcmp(name, "cuGetProcAddress_v2") == 0 ||
        (strcmp(name, "cuGetProcAddress") == 0 && version >= 12000)) {
        REPLACE(get_v2, get_v2);
    } else if (strcmp(name, "cuGetProcAddress") == 0) {
        REPLACE(get_v1, get_v1);
    }
}

static int get_v1(const char *name, void **out, int version, uint64_t flags)
{
    int result = driver.get_v1(name, out, version, flags);
    if (result == 0 && out != NULL) replace_get(name, version, out);
    if (result == 0 && out != NULL && (flags & FLAG_PER_THREAD) == 0) replace(name, out);
    return result;
}

static int get_v2(const char *name, void **out, int version, uint64_t flags, int *status)
{
    int result = driver.get_v2(name, out, version, flags, status);
    if (result == 0 && out != NULL) replace_get(name, version, out);
    if (result == 0 && out != NULL && (flags & FLAG_PER_THREAD) == 0) replace(name, out);
    return result;
}

// In front of the C library's. "GLIBC_2.2.5" is x86-64's oldest name of it, which stays.
void *dlsym(void *restrict handle, const char *restrict name)
{
    static void *(*original)(void *handle, const char *name);
    if (original == NULL) {
        void *symbol = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
        if (symbol == NULL) return NULL;
        memcpy(&original, &symbol, sizeof original);
    }
    void *found = original(handle, name);
    if (strncmp(name, "cu", 2) == 0) {
        replace_get(name, 0, &found);
        replace(name, &found);
    }
    return found;
}
