// driver_cuda.c - driver.h over the CUDA runtime: streams and graphs. What the card is and its
// memory are in driver_cuda_card.c.
//
// A stream keeps a ring of events that were made to be waited for asleep. Copies are from and to
// memory that the system may page, so the runtime stages them and may keep the calling thread for
// as long as they take: it is the lane's own. What is traced has an event of its own behind it, so
// that neighbours are a begin and an end.

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/driver_cuda.h"
#include "kernels/cuda/spans.h"

struct gpu_stream {
    struct gpu_card *card;              // on which it runs
    struct gpu_signals *signals;        // of the lane
    cudaStream_t handle;                // of the runtime
    cudaEvent_t ends[GPU_STEPS_MAX];    // of the last steps
    struct gpu_spans spans;             // of the last run
    cudaEvent_t *times;                 // of the run's begin and its spans' ends; NULL: not kept
    uint32_t times_made;                // events of times that exist
    char message[ERROR_MESSAGE_BYTES];  // of the first failure; empty without
    bool lacks_memory;                  // that failure was the want of device memory
};

// A failure that is not taken back by being read broke the context: nothing works from then on.
static bool is_broken(void)
{
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    cudaGetLastError();
    return cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess;
}

static void drop_times(struct gpu_stream *self)
{
    spans_free(&self->spans);
    for (uint32_t i = 0; i < self->times_made; i++) cudaEventDestroy(self->times[i]);
    free(self->times);
    self->times = NULL;
    self->times_made = 0;
}

void gpu_stream_destroy(struct gpu_stream **self_p)
{
    assert(self_p != NULL);
    struct gpu_stream *self = *self_p;
    if (self == NULL) return;
    cudaSetDevice(self->card->number);
    for (uint32_t i = 0; i < GPU_STEPS_MAX; i++) {
        if (self->ends[i] != NULL) cudaEventDestroy(self->ends[i]);
    }
    drop_times(self);
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
        return gpu_cuda_fail(error, STATUS_INTERNAL, "no CUDA stream", result);
    }
    *out = self;
    return STATUS_OK;
}

// Records an event of the run that is being traced; the first is its begin. Events that cannot be
// made are times that are not known.
static bool record_time(struct gpu_stream *self, uint32_t index)
{
    cudaError_t result = cudaSuccess;
    if (index == self->times_made) {
        result = cudaEventCreateWithFlags(&self->times[index], cudaEventBlockingSync);
        if (result == cudaSuccess) self->times_made += 1;
    }
    if (result == cudaSuccess) result = cudaEventRecord(self->times[index], self->handle);
    if (result != cudaSuccess) cudaGetLastError();  // the next launch shall not find it
    return result == cudaSuccess;
}

// The begin is waited for, so that the host's clock can tell when it was.
static void begin_times(struct gpu_stream *self)
{
    struct timespec now;
    if (!record_time(self, 0)) return;
    if (cudaEventSynchronize(self->times[0]) != cudaSuccess) {
        cudaGetLastError();
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    spans_begin(&self->spans, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

// When all is done: what belongs to no step that ended is not told.
static void read_times(struct gpu_stream *self)
{
    spans_cut(&self->spans, self->spans.count);
    for (uint32_t i = 0; i < self->spans.count; i++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, self->times[0], self->times[i + 1]) != cudaSuccess) {
            cudaGetLastError();
            spans_cut(&self->spans, i);
            return;
        }
        spans_time(&self->spans, i, self->spans.begin_ns + (uint64_t)((double)ms * 1e6));
    }
}

enum status gpu_stream_trace(struct gpu_stream *self, bool is_kept, struct error *error)
{
    assert(self != NULL);
    if (is_kept == (self->times != NULL)) return STATUS_OK;
    cudaSetDevice(self->card->number);
    drop_times(self);
    if (!is_kept) return STATUS_OK;
    enum status status = spans_make(&self->spans, error);
    if (status != STATUS_OK) return status;
    self->times = calloc(GPU_SPANS_MAX + 1, sizeof(cudaEvent_t));
    if (self->times != NULL) return STATUS_OK;
    drop_times(self);
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the events of a trace");
}

const struct gpu_spans *gpu_stream_spans(const struct gpu_stream *self)
{
    assert(self != NULL);
    return &self->spans;
}

void gpu_stream_note(struct gpu_stream *self, const char *name)
{
    if (!self->spans.is_noting || self->message[0] != '\0') return;
    uint32_t index = self->spans.count;
    if (index < GPU_SPANS_MAX && record_time(self, index + 1)) {
        spans_add(&self->spans, name);
    } else {
        spans_cut(&self->spans, index);
    }
}

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    if (self->message[0] != '\0') return;
    snprintf(self->message, sizeof self->message, "%.100s failed: %.200s", what, why);
}

void gpu_stream_lack(struct gpu_stream *self, const char *what)
{
    if (self->message[0] != '\0') return;
    gpu_stream_fail(self, what, "the device has no memory for it");
    self->lacks_memory = true;
}

static void check(struct gpu_stream *self, const char *what, cudaError_t result)
{
    if (result == cudaErrorMemoryAllocation) {
        gpu_stream_lack(self, what);
    } else if (result != cudaSuccess) {
        gpu_stream_fail(self, what, cudaGetErrorString(result));
    }
}

void gpu_stream_reset(struct gpu_stream *self)
{
    assert(self != NULL);
    self->message[0] = '\0';
    self->lacks_memory = false;
    check(self, "cudaSetDevice", cudaSetDevice(self->card->number));
    spans_forget(&self->spans);
    if (self->times != NULL) begin_times(self);
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self->handle;
}

// Where the memory of a slot is, the host's or a loan's, its address tells.
static void copy_plane(struct gpu_stream *self, const char *name, void *to, const void *from,
                       struct gpu_plane plane)
{
    if (self->message[0] != '\0') return;
    if (plane.rows == 1) {
        check(self, "cudaMemcpyAsync",
              cudaMemcpyAsync(to, from, plane.width, cudaMemcpyDefault, self->handle));
    } else {
        check(self, "cudaMemcpy2DAsync",
              cudaMemcpy2DAsync(to, plane.to_pitch, from, plane.from_pitch, plane.width, plane.rows,
                                cudaMemcpyDefault, self->handle));
    }
    gpu_stream_note(self, name);
}

void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, "copy in", to, from, plane);
}

void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, "copy out", to, from, plane);
}

void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes)
{
    if (self->message[0] != '\0') return;
    check(self, "cudaMemsetAsync", cudaMemsetAsync(to, 0, bytes, self->handle));
    gpu_stream_note(self, "zero");
}

// ---------------------------------------------------------------------------------------------
// Graphs

struct gpu_graph {
    struct gpu_card *card;  // whose runtime keeps it
    cudaGraphExec_t exec;   // ready to be launched
    uint32_t size;          // nodes
};

// Calls of other threads that may not be made while something is recorded are none of ours.
bool gpu_graph_begin(struct gpu_stream *self)
{
    assert(self != NULL);
    assert(!self->spans.is_noting);
    if (self->message[0] != '\0') return false;
    if (cudaStreamBeginCapture(self->handle, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
        return true;
    }
    cudaGetLastError();
    return false;
}

enum status gpu_graph_end(struct gpu_stream *self, struct gpu_graph **out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    cudaGraph_t recorded = NULL;
    size_t nodes = 0;
    enum status status = STATUS_INTERNAL;
    struct gpu_graph *made = calloc(1, sizeof *made);
    cudaError_t result = cudaStreamEndCapture(self->handle, &recorded);
    if (made == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a graph");
        goto done;
    }
    made->card = self->card;
    if (self->message[0] != '\0') {
        error_set(error, status, "%s", self->message);
        goto done;
    }
    if (result == cudaSuccess) result = cudaGraphGetNodes(recorded, NULL, &nodes);
    if (result == cudaSuccess) result = cudaGraphInstantiate(&made->exec, recorded, 0);
    if (result != cudaSuccess) {
        gpu_cuda_fail(error, status, "no CUDA graph", result);
        goto done;
    }
    made->size = (uint32_t)nodes;
    *out = made;
    made = NULL;
    status = STATUS_OK;

done:
    if (recorded != NULL) cudaGraphDestroy(recorded);
    if (status != STATUS_OK) cudaGetLastError();
    self->message[0] = '\0';
    self->lacks_memory = false;
    free(made);
    return status;
}

uint32_t gpu_graph_size(const struct gpu_graph *graph)
{
    assert(graph != NULL);
    return graph->size;
}

bool gpu_graph_launch(struct gpu_stream *self, struct gpu_graph *graph)
{
    assert(self != NULL);
    assert(graph != NULL);
    assert(!self->spans.is_noting);
    if (self->message[0] != '\0') return false;
    if (cudaGraphLaunch(graph->exec, self->handle) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
}

void gpu_graph_destroy(struct gpu_graph **graph_p)
{
    assert(graph_p != NULL);
    struct gpu_graph *graph = *graph_p;
    if (graph == NULL) return;
    cudaSetDevice(graph->card->number);
    cudaGraphExecDestroy(graph->exec);
    free(graph);
    *graph_p = NULL;
}

// ---------------------------------------------------------------------------------------------
// Steps

void gpu_step_end(struct gpu_stream *self, uint32_t step)
{
    if (self->message[0] != '\0') return;
    check(self, "cudaEventRecord", cudaEventRecord(self->ends[step % GPU_STEPS_MAX], self->handle));
    spans_end_step(&self->spans);
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
    if (self->message[0] != '\0') {
        spans_forget(&self->spans);
        enum status status = self->lacks_memory ? STATUS_RESOURCE_EXHAUSTED : STATUS_INTERNAL;
        if (is_broken()) status = STATUS_UNAVAILABLE;
        return error_set(error, status, "%s", self->message);
    }
    if (__atomic_load_n(&self->signals->is_cancelled, __ATOMIC_RELAXED) != 0) {
        spans_forget(&self->spans);
        return error_set(error, STATUS_CANCELLED, "the run was cancelled");
    }
    read_times(self);
    return STATUS_OK;
}
