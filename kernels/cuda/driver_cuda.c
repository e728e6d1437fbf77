// driver_cuda.c - driver.h over the CUDA runtime. The runtime is linked in; it opens the driver,
// libcuda.so.1, when it is first used, and says so when there is none.
//
// A stream keeps a ring of events that were made to be waited for asleep. Copies are from and to
// memory that the system may page, so the runtime stages them and may keep the calling thread for
// as long as they take: it is the lane's own.

#include <assert.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver.h"

struct gpu_card {
    int number;       // as the runtime counts
    char label[128];  // for people
};

struct gpu_stream {
    struct gpu_card *card;              // on which it runs
    struct gpu_signals *signals;        // of the lane
    cudaStream_t handle;                // of the runtime
    cudaEvent_t ends[GPU_STEPS_MAX];    // of the last steps
    char message[ERROR_MESSAGE_BYTES];  // of the first failure; empty without
};

const char *const gpu_driver_name = "cuda:";

static enum status fail(struct error *error, enum status status, const char *what, cudaError_t why)
{
    return error_set(error, status, "%s: %s (%s)", what, cudaGetErrorString(why),
                     cudaGetErrorName(why));
}

// ---------------------------------------------------------------------------------------------
// The card

static enum status check_count(uint32_t number, struct error *error)
{
    int count = 0;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess) return fail(error, STATUS_UNAVAILABLE, "no CUDA device", result);
    if (number < (uint32_t)count) return STATUS_OK;
    return error_set(error, STATUS_NOT_FOUND, "there is no device \"cuda:%u\", this machine has %d",
                     number, count);
}

enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error)
{
    assert(out != NULL);
    struct cudaDeviceProp properties;
    enum status status = check_count(number, error);
    if (status != STATUS_OK) return status;
    struct gpu_card *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    self->number = (int)number;
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaGetDeviceProperties(&properties, self->number);
    if (result == cudaSuccess) result = cudaFree(NULL);  // makes the context
    if (result != cudaSuccess) {
        status = fail(error, STATUS_UNAVAILABLE, "the CUDA device cannot be opened", result);
        goto done;
    }
    if (properties.major < 8) {
        status = error_set(error, STATUS_UNAVAILABLE,
                           "%.64s has compute capability %d.%d, 8.0 is needed", properties.name,
                           properties.major, properties.minor);
        goto done;
    }
    snprintf(self->label, sizeof self->label, "%.64s, compute capability %d.%d", properties.name,
             properties.major, properties.minor);
    *out = self;
    self = NULL;

done:
    free(self);
    return status;
}

void gpu_close(struct gpu_card **self_p)
{
    assert(self_p != NULL);
    free(*self_p);
    *self_p = NULL;
}

const char *gpu_label(const struct gpu_card *self)
{
    assert(self != NULL);
    return self->label;
}

// ---------------------------------------------------------------------------------------------
// Memory

enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    assert(out != NULL);
    void *memory = NULL;
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaMalloc(&memory, bytes);
    if (result == cudaErrorMemoryAllocation) {
        cudaGetLastError();  // not sticky: taken back
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no device memory for %llu bytes",
                         (unsigned long long)bytes);
    }
    if (result != cudaSuccess) return fail(error, STATUS_INTERNAL, "cudaMalloc", result);
    *out = memory;
    return STATUS_OK;
}

void gpu_free(struct gpu_card *self, void *memory)
{
    if (memory == NULL) return;
    cudaSetDevice(self->number);
    cudaFree(memory);  // fails on a broken device only, whose memory is gone anyway
}

enum status gpu_upload(struct gpu_card *self, void *to, const void *from, uint64_t bytes,
                       struct error *error)
{
    cudaError_t result = cudaSetDevice(self->number);
    if (result == cudaSuccess) result = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
    if (result != cudaSuccess) return fail(error, STATUS_INTERNAL, "cudaMemcpy", result);
    return STATUS_OK;
}

// ---------------------------------------------------------------------------------------------
// Streams

void gpu_stream_destroy(struct gpu_stream **self_p)
{
    assert(self_p != NULL);
    struct gpu_stream *self = *self_p;
    if (self == NULL) return;
    cudaSetDevice(self->card->number);
    for (uint32_t i = 0; i < GPU_STEPS_MAX; i++) {
        if (self->ends[i] != NULL) cudaEventDestroy(self->ends[i]);
    }
    if (self->handle != NULL) cudaStreamDestroy(self->handle);
    free(self);
    *self_p = NULL;
}

enum status gpu_stream_create(struct gpu_stream **out, struct gpu_card *card,
                              struct gpu_signals *signals, struct error *error)
{
    assert(out != NULL);
    assert(signals != NULL);
    struct gpu_stream *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stream");
    self->card = card;
    self->signals = signals;
    cudaError_t result = cudaSetDevice(card->number);
    if (result == cudaSuccess) {
        result = cudaStreamCreateWithFlags(&self->handle, cudaStreamNonBlocking);
    }
    for (uint32_t i = 0; i < GPU_STEPS_MAX && result == cudaSuccess; i++) {
        result = cudaEventCreateWithFlags(&self->ends[i],
                                          cudaEventBlockingSync | cudaEventDisableTiming);
    }
    if (result != cudaSuccess) {
        gpu_stream_destroy(&self);
        return fail(error, STATUS_INTERNAL, "no CUDA stream", result);
    }
    *out = self;
    return STATUS_OK;
}

void gpu_stream_reset(struct gpu_stream *self)
{
    assert(self != NULL);
    self->message[0] = '\0';
    cudaError_t result = cudaSetDevice(self->card->number);
    if (result != cudaSuccess) gpu_stream_fail(self, "cudaSetDevice", cudaGetErrorString(result));
}

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    if (self->message[0] != '\0') return;
    snprintf(self->message, sizeof self->message, "%.100s failed: %.200s", what, why);
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self->handle;
}

static void check(struct gpu_stream *self, const char *what, cudaError_t result)
{
    if (result != cudaSuccess) gpu_stream_fail(self, what, cudaGetErrorString(result));
}

static void copy_plane(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane,
                       enum cudaMemcpyKind kind)
{
    if (self->message[0] != '\0') return;
    if (plane.rows == 1) {
        check(self, "cudaMemcpyAsync", cudaMemcpyAsync(to, from, plane.width, kind, self->handle));
        return;
    }
    check(self, "cudaMemcpy2DAsync",
          cudaMemcpy2DAsync(to, plane.to_pitch, from, plane.from_pitch, plane.width, plane.rows,
                            kind, self->handle));
}

void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, to, from, plane, cudaMemcpyHostToDevice);
}

void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, to, from, plane, cudaMemcpyDeviceToHost);
}

void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes)
{
    if (self->message[0] != '\0') return;
    check(self, "cudaMemsetAsync", cudaMemsetAsync(to, 0, bytes, self->handle));
}

void gpu_step_end(struct gpu_stream *self, uint32_t step)
{
    if (self->message[0] != '\0') return;
    check(self, "cudaEventRecord", cudaEventRecord(self->ends[step % GPU_STEPS_MAX], self->handle));
}

void gpu_step_wait(struct gpu_stream *self, uint32_t step)
{
    if (self->message[0] != '\0') return;
    check(self, "a kernel", cudaEventSynchronize(self->ends[step % GPU_STEPS_MAX]));
}

// Waits by an event, because cudaStreamSynchronize may spin.
enum status gpu_stream_wait(struct gpu_stream *self, struct error *error)
{
    cudaError_t result = cudaEventRecord(self->ends[0], self->handle);
    if (result == cudaSuccess) result = cudaEventSynchronize(self->ends[0]);
    check(self, "a kernel", result);
    if (self->message[0] != '\0') return error_set(error, STATUS_INTERNAL, "%s", self->message);
    if (__atomic_load_n(&self->signals->is_cancelled, __ATOMIC_RELAXED) != 0) {
        return error_set(error, STATUS_CANCELLED, "the run was cancelled");
    }
    return STATUS_OK;
}
