// fake_cuda.c - libcuda.so.1 for clients of the emulated device: as much of CUDA's driver as
// clients/python/luna/cuda.py calls, without a card.
//
// There are two devices, and the numbers are not the daemon's: device 0 has the UUID of the second
// emulated card, device 1 that of the first. Memory is the process's own. A copy on a device
// happens when its stream is waited for, as late as a device may. Handles are those of
// kernels/cuda/driver_emulated_loan.cpp.

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES 2
#define ENTRIES_MAX 256u
#define SUCCESS 0
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define INVALID_CONTEXT 201

struct handle {
    char magic[8];
    uint64_t process, descriptor, inode, bytes, zero[3];
};

struct entry {
    uint64_t address;  // 0: free
    uint64_t bytes;    // from there on
    int device;        // whose
    int is_mapped;     // of another process
};

struct copy {
    uint64_t to, from;  // addresses
    size_t bytes;       //
    void *stream;       // that it was asked of
};

static struct fake {
    int contexts[DEVICES];  // their addresses are the contexts
    void *current[8];       // pushed
    int depth;
    struct entry entries[ENTRIES_MAX];
    struct copy copies[ENTRIES_MAX];
    uint32_t copies_count;
    int fails_to_open;
} fake;

int cuDeviceGet(int *device, int ordinal);
int cuDeviceGetUuid_v2(uint8_t uuid[16], int device);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxPushCurrent_v2(void *context);
int cuCtxPopCurrent_v2(void **context);
int cuGetErrorName(int error, const char **out);
int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer);
int cuMemAlloc_v2(uint64_t *out, size_t bytes);
int cuMemFree_v2(uint64_t pointer);
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream);
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes);
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes);
int cuStreamSynchronize(void *stream);
int cuIpcOpenMemHandle_v2(uint64_t *out, struct handle handle, unsigned flags);
int cuIpcCloseMemHandle(uint64_t pointer);
uint64_t fake_allocate(int device, uint64_t bytes);
uint32_t fake_count(int is_mapped);
void fake_fail_to_open(int fails);

static void *pointer_of(uint64_t address)
{
    return (void *)(uintptr_t)address;
}

static struct entry *find(uint64_t address)
{
    for (uint32_t i = 0; i < ENTRIES_MAX; i++) {
        struct entry *entry = &fake.entries[i];
        if (entry->address != 0 && address - entry->address < entry->bytes) return entry;
    }
    return NULL;
}

static int add(uint64_t *out, void *memory, uint64_t bytes, int device, int is_mapped)
{
    for (uint32_t i = 0; i < ENTRIES_MAX; i++) {
        if (fake.entries[i].address != 0) continue;
        *out = (uint64_t)(uintptr_t)memory;
        fake.entries[i] = (struct entry){*out, bytes, device, is_mapped};
        return SUCCESS;
    }
    return OUT_OF_MEMORY;
}

// Whether the bytes lie in one block of the device that is current.
static int is_inside(uint64_t address, size_t bytes)
{
    const struct entry *entry = find(address);
    if (entry == NULL || fake.depth == 0) return 0;
    return address + bytes <= entry->address + entry->bytes &&
           fake.current[fake.depth - 1] == &fake.contexts[entry->device];
}

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return ordinal >= 0 && ordinal < DEVICES ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetUuid_v2(uint8_t uuid[16], int device)
{
    memset(uuid, 0, 16);
    uuid[15] = (uint8_t)(1 - device);
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device)
{
    *context = &fake.contexts[device];
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context)
{
    if (fake.depth == 8) return INVALID_CONTEXT;
    fake.current[fake.depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context)
{
    if (fake.depth == 0) return INVALID_CONTEXT;
    *context = fake.current[--fake.depth];
    return SUCCESS;
}

int cuGetErrorName(int error, const char **out)
{
    *out = error == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_OTHER";
    return SUCCESS;
}

int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer)
{
    const struct entry *entry = find(pointer);
    if (attribute != 9 || entry == NULL) return INVALID_VALUE;
    *(int *)out = entry->device;
    return SUCCESS;
}

uint64_t fake_allocate(int device, uint64_t bytes)
{
    uint64_t address = 0;
    void *memory = malloc(bytes);
    if (memory == NULL || add(&address, memory, bytes, device, 0) != SUCCESS) abort();
    memset(memory, 0xff, bytes);
    return address;
}

int cuMemAlloc_v2(uint64_t *out, size_t bytes)
{
    if (fake.depth == 0) return INVALID_CONTEXT;
    *out = fake_allocate(fake.current[fake.depth - 1] == &fake.contexts[1], bytes);
    return SUCCESS;
}

int cuMemFree_v2(uint64_t pointer)
{
    struct entry *entry = find(pointer);
    if (entry == NULL || entry->address != pointer || entry->is_mapped) return INVALID_VALUE;
    free(pointer_of(pointer));
    entry->address = 0;
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream)
{
    if (!is_inside(to, bytes) || !is_inside(from, bytes)) return INVALID_VALUE;
    if (fake.copies_count == ENTRIES_MAX) return OUT_OF_MEMORY;
    fake.copies[fake.copies_count++] = (struct copy){to, from, bytes, stream};
    return SUCCESS;
}

int cuStreamSynchronize(void *stream)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < fake.copies_count; i++) {
        const struct copy *copy = &fake.copies[i];
        if (copy->stream != stream) {
            fake.copies[kept++] = *copy;
        } else {
            memcpy(pointer_of(copy->to), pointer_of(copy->from), copy->bytes);
        }
    }
    fake.copies_count = kept;
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes)
{
    if (!is_inside(from, bytes)) return INVALID_VALUE;
    memcpy(to, pointer_of(from), bytes);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes)
{
    if (!is_inside(to, bytes)) return INVALID_VALUE;
    memcpy(pointer_of(to), from, bytes);
    return SUCCESS;
}

int cuIpcOpenMemHandle_v2(uint64_t *out, struct handle handle, unsigned flags)
{
    char path[64];
    struct stat facts;
    if (fake.fails_to_open || flags != 1 || fake.depth == 0) return INVALID_CONTEXT;
    if (memcmp(handle.magic, "luna-emu", 8) != 0) return INVALID_VALUE;
    if (handle.process == (uint64_t)getpid()) return INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%llu/fd/%llu", (unsigned long long)handle.process,
             (unsigned long long)handle.descriptor);
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return INVALID_VALUE;
    void *memory = MAP_FAILED;
    if (fstat(descriptor, &facts) == 0 && facts.st_ino == handle.inode) {
        memory = mmap(NULL, handle.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    }
    close(descriptor);
    if (memory == MAP_FAILED) return INVALID_VALUE;
    return add(out, memory, handle.bytes, fake.current[fake.depth - 1] == &fake.contexts[1], 1);
}

int cuIpcCloseMemHandle(uint64_t pointer)
{
    struct entry *entry = find(pointer);
    if (entry == NULL || entry->address != pointer || !entry->is_mapped) return INVALID_VALUE;
    munmap(pointer_of(pointer), entry->bytes);
    entry->address = 0;
    return SUCCESS;
}

uint32_t fake_count(int is_mapped)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ENTRIES_MAX; i++) {
        const struct entry *entry = &fake.entries[i];
        count += entry->address != 0 && entry->is_mapped == is_mapped;
    }
    return count;
}

void fake_fail_to_open(int fails)
{
    fake.fails_to_open = fails;
}
