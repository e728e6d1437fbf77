// driver_cuda_card.c - driver.h over the CUDA runtime: cards and their memory. The runtime is
// linked in; it opens the driver, libcuda.so.1, when it is first used, and says so when there is
// none.
//
// cudaFree waits for whatever runs on the device, so a thread of the card's own does it, and what
// it has not come to yet counts as free. Weights go up through two pieces of pinned memory, one
// being filled while the other is copied, one weight at a time.

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_cuda.h"

#define STAGING_BYTES (UINT64_C(8) << 20)  // of one piece: 0.3 ms of PCI Express 4.0
#define CARDS_MAX 1000u                    // more than a machine has
#define CAPABILITY_MIN 8                   // the oldest cards that our kernels are compiled for

enum status gpu_cuda_fail(struct error *error, enum status status, const char *what,
                          cudaError_t why)
{
    return error_set(error, status, "%s: %s (%s)", what, cudaGetErrorString(why),
                     cudaGetErrorName(why));
}

// ---------------------------------------------------------------------------------------------
// The card

// The driver's own version stands in a file; the runtime knows only which CUDA it can do.
static void read_driver(char *out, size_t out_bytes)
{
    int cuda = 0;
    char version[32] = "";
    FILE *file = fopen("/sys/module/nvidia/version", "re");
    if (file != NULL) {
        if (fgets(version, sizeof version, file) == NULL) version[0] = '\0';
        fclose(file);
    }
    version[strcspn(version, "\n")] = '\0';
    cudaDriverGetVersion(&cuda);
    snprintf(out, out_bytes, "NVIDIA %s, CUDA %d.%d", version[0] != '\0' ? version : "?",
             cuda / 1000, cuda % 1000 / 10);
}

static enum status count_cards(uint32_t *out, struct error *error)
{
    int count = 0;
    int cuda = 0;
    if (cudaDriverGetVersion(&cuda) == cudaSuccess && cuda == 0) {
        return error_set(error, STATUS_UNAVAILABLE,
                         "there is no NVIDIA driver, libcuda.so.1 cannot be opened");
    }
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess) {
        return gpu_cuda_fail(error, STATUS_UNAVAILABLE, "there is no CUDA device", result);
    }
    *out = (uint32_t)count;
    return STATUS_OK;
}

// What the card is, and whether our kernels run on it.
static enum status read_card(uint32_t number, struct gpu_facts *out, struct error *error)
{
    struct cudaDeviceProp properties;
    cudaError_t result = cudaGetDeviceProperties(&properties, (int)number);
    if (result != cudaSuccess)
        return gpu_cuda_fail(error, STATUS_UNAVAILABLE, "the card is silent", result);
    const uint8_t *id = (const uint8_t *)properties.uuid.bytes;
    snprintf(out->label, sizeof out->label, "%.80s", properties.name);
    snprintf(out->capability, sizeof out->capability, "%d.%d", properties.major % 100,
             properties.minor % 100);
    out->multiprocessors = (uint32_t)properties.multiProcessorCount;
    snprintf(out->uuid, sizeof out->uuid,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", id[0],
             id[1], id[2], id[3], id[4], id[5], id[6], id[7], id[8], id[9], id[10], id[11], id[12],
             id[13], id[14], id[15]);
    read_driver(out->driver, sizeof out->driver);
    if (properties.major >= CAPABILITY_MIN) return STATUS_OK;
    return error_set(error, STATUS_UNAVAILABLE, "%.64s has compute capability %s, %d.0 is needed",
                     properties.name, out->capability, CAPABILITY_MIN);
}

bool gpu_driver_takes(const char *name, uint32_t *number, const char **rest)
{
    const size_t prefix = strlen("cuda:");
    if (strncmp(name, "cuda:", prefix) != 0) return false;
    if (name[prefix] < '0' || name[prefix] > '9') return false;
    char *end = NULL;
    unsigned long card = strtoul(name + prefix, &end, 10);
    if (card >= CARDS_MAX) return false;
    *number = (uint32_t)card;
    *rest = end;
    return true;
}

enum status gpu_probe(struct gpu_count *out, struct error *error)
{
    assert(out != NULL);
    struct gpu_count found = {.count = 0};
    enum status status = count_cards(&found.count, error);
    if (status != STATUS_OK) return status;
    read_driver(found.driver, sizeof found.driver);
    for (uint32_t i = 0; i < found.count && i < 64; i++) {
        struct gpu_facts facts;
        struct error why;
        if (read_card(i, &facts, &why) == STATUS_OK) {
            found.usable |= UINT64_C(1) << i;
        } else if (found.refusal[0] == '\0') {
            snprintf(found.refusal, sizeof found.refusal, "cuda:%u: %.100s", i, why.message);
        }
    }
    *out = found;
    return STATUS_OK;
}

// ---------------------------------------------------------------------------------------------
// The reaper

// Both wait for the device when it is busy, and fail only on a broken one, whose memory is gone
// anyway.
static void end_memory(const struct condemned *what)
{
    if (what->is_pinned) {
        cudaFreeHost(what->memory);
    } else {
        cudaFree(what->memory);
    }
}

// Frees what is condemned until there is nothing more and it is told to end.
static void *run_reaper(void *argument)
{
    struct gpu_card *self = argument;
    cudaSetDevice(self->number);
    pthread_mutex_lock(&self->lock);
    for (;;) {
        struct condemned *first = self->condemned;
        if (first == NULL) {
            if (self->is_ending) break;
            pthread_cond_wait(&self->changed, &self->lock);
            continue;
        }
        self->condemned = first->next;
        pthread_mutex_unlock(&self->lock);
        end_memory(first);
        pthread_mutex_lock(&self->lock);
        self->condemned_bytes -= first->bytes;
        pthread_cond_broadcast(&self->changed);
        free(first);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

// Waits until all that is condemned has gone; returns whether there was any.
static bool wait_for_reaper(struct gpu_card *self)
{
    pthread_mutex_lock(&self->lock);
    bool waited = self->condemned_bytes > 0;
    while (self->condemned_bytes > 0) pthread_cond_wait(&self->changed, &self->lock);
    pthread_mutex_unlock(&self->lock);
    return waited;
}

static void condemn(struct gpu_card *self, struct condemned what)
{
    struct condemned *entry = malloc(sizeof *entry);
    pthread_mutex_lock(&self->lock);
    assert(self->used_bytes >= what.bytes);
    self->used_bytes -= what.bytes;
    if (entry != NULL) {
        *entry = what;
        entry->next = self->condemned;
        self->condemned = entry;
        self->condemned_bytes += what.bytes;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
    if (entry != NULL) return;
    cudaSetDevice(self->number);
    end_memory(&what);  // late, but no leak
}

void gpu_free(struct gpu_card *self, void *memory, uint64_t bytes)
{
    assert(self != NULL);
    if (memory != NULL) condemn(self, (struct condemned){.memory = memory, .bytes = bytes});
}

void gpu_unpin(struct gpu_card *self, void *memory)
{
    assert(self != NULL);
    if (memory != NULL) condemn(self, (struct condemned){.memory = memory, .is_pinned = true});
}

// ---------------------------------------------------------------------------------------------
// The card

static void close_staging(struct staging *self)
{
    for (uint32_t i = 0; i < 2; i++) {
        if (self->copied[i] != NULL) cudaEventDestroy(self->copied[i]);
        if (self->pieces[i] != NULL) cudaFreeHost(self->pieces[i]);
    }
    if (self->stream != NULL) cudaStreamDestroy(self->stream);
    memset(self->pieces, 0, sizeof self->pieces);
    memset(self->copied, 0, sizeof self->copied);
    self->stream = NULL;
}

void gpu_close(struct gpu_card **self_p)
{
    assert(self_p != NULL);
    struct gpu_card *self = *self_p;
    if (self == NULL) return;
    if (self->has_reaper) {
        pthread_mutex_lock(&self->lock);
        self->is_ending = true;
        pthread_cond_broadcast(&self->changed);
        pthread_mutex_unlock(&self->lock);
        pthread_join(self->reaper, NULL);
    }
    assert(self->used_bytes == 0);
    close_staging(&self->staging);
    pthread_mutex_destroy(&self->staging.lock);
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *self_p = NULL;
}

enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error)
{
    assert(out != NULL);
    uint32_t count = 0;
    // Our kernels are loaded with the context. Loaded by their first launch, as is the runtime's
    // habit, they would ask for memory when others may have taken the rest.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    enum status status = count_cards(&count, error);
    if (status != STATUS_OK) return status;
    if (number >= count) {
        return error_set(error, STATUS_NOT_FOUND,
                         "there is no device \"cuda:%u\", this machine has %u", number, count);
    }
    struct gpu_card *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    self->number = (int)number;
    pthread_mutex_init(&self->lock, NULL);
    pthread_mutex_init(&self->staging.lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    status = read_card(number, &self->facts, error);
    if (status != STATUS_OK) goto done;
    // Whatever waits inside the runtime sleeps, too; a context that exists already is as it is.
    cudaError_t result = cudaSetDevice(self->number);
    if (cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync) != cudaSuccess) cudaGetLastError();
    if (result == cudaSuccess) result = cudaFree(NULL);  // makes the context
    if (result != cudaSuccess) {
        status =
            gpu_cuda_fail(error, STATUS_UNAVAILABLE, "the CUDA device cannot be opened", result);
        goto done;
    }
    self->has_reaper = pthread_create(&self->reaper, NULL, run_reaper, self) == 0;
    if (!self->has_reaper) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no thread is left for a device");
        goto done;
    }
    *out = self;
    self = NULL;

done:
    gpu_close(&self);
    return status;
}

const struct gpu_facts *gpu_describe(const struct gpu_card *self)
{
    assert(self != NULL);
    return &self->facts;
}

// ---------------------------------------------------------------------------------------------
// Memory

enum status gpu_read_memory(struct gpu_card *self, struct gpu_memory *out, struct error *error)
{
    assert(out != NULL);
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    // Asked for first: what goes meanwhile is then missed, never counted twice.
    pthread_mutex_lock(&self->lock);
    uint64_t used_bytes = self->used_bytes;
    pthread_mutex_unlock(&self->lock);
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaMemGetInfo(&free_bytes, &total_bytes);
    if (result != cudaSuccess)
        return gpu_cuda_fail(error, STATUS_UNAVAILABLE, "cudaMemGetInfo", result);
    pthread_mutex_lock(&self->lock);
    uint64_t condemned_bytes = self->condemned_bytes;
    pthread_mutex_unlock(&self->lock);
    *out = (struct gpu_memory){.total_bytes = total_bytes,
                               .free_bytes = free_bytes + condemned_bytes,
                               .used_bytes = used_bytes};
    return STATUS_OK;
}

enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    assert(out != NULL);
    void *memory = NULL;
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaMalloc(&memory, bytes);
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // not sticky: taken back
        if (wait_for_reaper(self)) result = cudaMalloc(&memory, bytes);
    }
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no device memory for %llu bytes",
                         (unsigned long long)bytes);
    }
    if (result != cudaSuccess)
        return gpu_cuda_fail(error, STATUS_UNAVAILABLE, "cudaMalloc", result);
    pthread_mutex_lock(&self->lock);
    self->used_bytes += bytes;
    pthread_mutex_unlock(&self->lock);
    *out = memory;
    return STATUS_OK;
}

enum status gpu_pin(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    void *memory = NULL;
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
    if (result != cudaSuccess) {
        cudaGetLastError();
        return gpu_cuda_fail(error, STATUS_RESOURCE_EXHAUSTED, "no pinned memory", result);
    }
    *out = memory;
    return STATUS_OK;
}

// The first upload makes it, so that a device that holds nothing pins nothing.
static cudaError_t open_staging(struct staging *self)
{
    if (self->stream != NULL) return cudaSuccess;
    cudaError_t result = cudaStreamCreateWithFlags(&self->stream, cudaStreamNonBlocking);
    for (uint32_t i = 0; i < 2 && result == cudaSuccess; i++) {
        result = cudaHostAlloc(&self->pieces[i], STAGING_BYTES, cudaHostAllocDefault);
        if (result != cudaSuccess) break;
        result = cudaEventCreateWithFlags(&self->copied[i],
                                          cudaEventBlockingSync | cudaEventDisableTiming);
    }
    if (result != cudaSuccess) close_staging(self);
    return result;
}

static cudaError_t upload(struct staging *self, char *to, const struct gpu_source *source)
{
    uint64_t piece = STAGING_BYTES / source->element_bytes;
    cudaError_t result = cudaSuccess;
    uint32_t turn = 0;
    for (uint64_t first = 0; first < source->count && result == cudaSuccess; first += piece) {
        uint64_t left = source->count - first;
        uint64_t count = left < piece ? left : piece;
        result = cudaEventSynchronize(self->copied[turn]);  // of the last time but one
        if (result != cudaSuccess) break;
        source->fill(source->context, self->pieces[turn], first, count);
        result =
            cudaMemcpyAsync(to + first * source->element_bytes, self->pieces[turn],
                            count * source->element_bytes, cudaMemcpyHostToDevice, self->stream);
        if (result == cudaSuccess) result = cudaEventRecord(self->copied[turn], self->stream);
        turn = 1 - turn;
    }
    // Copies run in order: the last one's end is the end of all.
    if (result == cudaSuccess) result = cudaEventSynchronize(self->copied[1 - turn]);
    return result;
}

enum status gpu_upload(struct gpu_card *self, void *to, const struct gpu_source *source,
                       struct error *error)
{
    assert(self != NULL);
    assert(source->count > 0);
    pthread_mutex_lock(&self->staging.lock);
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = open_staging(&self->staging);
    if (result == cudaSuccess) result = upload(&self->staging, to, source);
    pthread_mutex_unlock(&self->staging.lock);
    if (result == cudaSuccess) return STATUS_OK;
    bool lacks = result == cudaErrorMemoryAllocation;
    cudaGetLastError();
    return gpu_cuda_fail(error, lacks ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE, "an upload",
                         result);
}
