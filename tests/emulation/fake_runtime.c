// fake_runtime.c - what the driver calls of the CUDA runtime, in a process without a card; the head
// of fake_runtime.h tells how it behaves.

#include "tests/emulation/fake_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

struct fake_runtime fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

void fake_reset(void)
{
    fake.is_busy = false;
    fake.calls = fake.fail_at = 0;
    fake.failure = cudaErrorUnknown;
    fake.sticky = fake.last = cudaSuccess;
    fake.cards = 2;
    fake.driver = 13000;
    fake.copies_asked = fake.copies_done = 0;
    fake.capturing = NULL;
    memset(fake.objects, 0, sizeof fake.objects);
}

// What every call begins with: cudaSuccess to go on.
static cudaError_t begin(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.calls += 1;
    cudaError_t result = fake.sticky;
    if (result == cudaSuccess && fake.calls == fake.fail_at) result = fake.failure;
    if (result != cudaSuccess) fake.last = result;
    pthread_mutex_unlock(&fake.lock);
    return result;
}

static void copy_until(uint64_t count)
{
    while (fake.copies_done < count) {
        const struct fake_copy *copy = &fake.copies[fake.copies_done++ % COPIES_MAX];
        if (copy->from != NULL) {
            memcpy(copy->to, copy->from, copy->bytes);
        } else {
            memset(copy->to, 0, copy->bytes);
        }
    }
}

static cudaError_t ask_copy(void *to, const void *from, uint64_t bytes)
{
    cudaError_t result = begin();
    struct fake_graph *graph = fake.capturing;
    if (graph != NULL && result != cudaSuccess) fake.is_broken_capture = true;
    if (result != cudaSuccess) return result;
    if (graph != NULL) {
        assert_true(graph->count < COPIES_MAX);
        graph->copies[graph->count++] = (struct fake_copy){to, from, bytes};
        return cudaSuccess;
    }
    assert_true(fake.copies_asked - fake.copies_done < COPIES_MAX);
    fake.copies[fake.copies_asked++ % COPIES_MAX] = (struct fake_copy){to, from, bytes};
    return cudaSuccess;
}

static cudaError_t make(void **out)
{
    cudaError_t result = begin();
    for (uint32_t i = 0; i < OBJECTS_MAX && result == cudaSuccess; i++) {
        if (fake.objects[i].is_live) continue;
        fake.objects[i] = (struct fake_object){.is_live = true};
        *out = &fake.objects[i];
        return cudaSuccess;
    }
    return result;
}

static void end(void *object)
{
    struct fake_object *self = object;
    assert_true(self->is_live);
    self->is_live = false;
}

uint32_t fake_live_objects(void)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < OBJECTS_MAX; i++) count += fake.objects[i].is_live;
    return count;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t last = fake.last;
    fake.last = fake.sticky;
    return last;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaErrorIllegalAddress ? "an illegal address" : "what the test wanted";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaErrorOther";
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = fake.driver;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = fake.cards;
    return fake.cards == 0 ? cudaErrorNoDevice : begin();
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int number)
{
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "Card %d", number);
    out->major = number == 1 ? 7 : 8;
    out->minor = number == 1 ? 5 : 9;
    for (int i = 0; i < 16; i++) out->uuid.bytes[i] = (char)(0xf0 + i);
    return begin();
}

cudaError_t cudaSetDevice(int number)
{
    assert_true(number >= 0 && number < fake.cards);
    return begin();
}

cudaError_t cudaSetDeviceFlags(unsigned flags)
{
    assert_int_equal(flags, cudaDeviceScheduleBlockingSync);
    return begin();
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    pthread_mutex_lock(&fake.lock);
    *free_bytes = CARD_BYTES - fake.allocated_bytes;
    *total_bytes = CARD_BYTES;
    pthread_mutex_unlock(&fake.lock);
    return begin();
}

// The size stands in front of the memory; large pieces are never touched.
cudaError_t cudaMalloc(void **out, size_t bytes)
{
    cudaError_t result = begin();
    if (result != cudaSuccess) return result;
    pthread_mutex_lock(&fake.lock);
    bool fits = bytes <= CARD_BYTES - fake.allocated_bytes;
    if (fits) {
        fake.allocated_bytes += bytes;
    } else {
        fake.is_busy = false;
        fake.last = cudaErrorMemoryAllocation;
        pthread_cond_broadcast(&fake.idle);
    }
    pthread_mutex_unlock(&fake.lock);
    if (!fits) return cudaErrorMemoryAllocation;
    uint64_t *memory = malloc(bytes + 16);
    assert_non_null(memory);
    memory[0] = bytes;
    *out = memory + 2;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    cudaError_t result = begin();
    if (memory == NULL) return result;
    uint64_t *start = (uint64_t *)memory - 2;
    pthread_mutex_lock(&fake.lock);
    while (fake.is_busy) pthread_cond_wait(&fake.idle, &fake.lock);
    fake.allocated_bytes -= start[0];
    pthread_mutex_unlock(&fake.lock);
    free(start);
    return result;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    assert_int_equal(flags, cudaHostAllocDefault);
    cudaError_t result = begin();
    if (result != cudaSuccess) return result;
    uint64_t *memory = malloc(bytes + 16);
    assert_non_null(memory);
    memory[0] = bytes;
    *out = memory + 2;
    pthread_mutex_lock(&fake.lock);
    fake.host_bytes += bytes;
    pthread_mutex_unlock(&fake.lock);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    uint64_t *start = (uint64_t *)memory - 2;
    pthread_mutex_lock(&fake.lock);
    while (fake.is_busy) pthread_cond_wait(&fake.idle, &fake.lock);
    fake.host_bytes -= start[0];
    pthread_mutex_unlock(&fake.lock);
    free(start);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    assert_int_equal(flags, cudaStreamNonBlocking);
    return make((void **)out);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    assert_null(stream);  // of a lane an event is waited for, asleep
    cudaError_t result = begin();
    if (result == cudaSuccess) copy_until(fake.copies_asked);
    return result;
}

// A handle holds the address.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *memory)
{
    memset(out, 0, sizeof *out);
    memcpy(out->reserved, &memory, sizeof memory);
    return begin();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    end(stream);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    assert_true((flags & cudaEventBlockingSync) != 0);  // else a wait would spin
    return make((void **)out);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    end(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    assert_null(fake.capturing);
    cudaError_t result = begin();
    struct fake_object *self = (struct fake_object *)event;
    self->copies = fake.copies_asked;
    self->at = ++fake.records;
    return result;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t result = begin();
    if (result == cudaSuccess) copy_until(((struct fake_object *)event)->copies);
    return result;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    *ms = (float)(((struct fake_object *)to)->at - ((struct fake_object *)from)->at);
    return begin();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    assert_true(kind == cudaMemcpyDefault || kind == cudaMemcpyHostToDevice);
    (void)stream;
    return ask_copy(to, from, bytes);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t rows, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    assert_int_equal(kind, cudaMemcpyDefault);  // a slot may be a loan's
    (void)stream;
    cudaError_t result = cudaSuccess;
    for (size_t row = 0; row < rows && result == cudaSuccess; row++) {
        result =
            ask_copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    }
    return result;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    assert_int_equal(value, 0);
    return ask_copy(to, NULL, bytes);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    assert_non_null(stream);
    assert_int_equal(mode, cudaStreamCaptureModeThreadLocal);
    assert_null(fake.capturing);
    cudaError_t result = begin();
    if (result != cudaSuccess) return result;
    fake.capturing = calloc(1, sizeof *fake.capturing);
    fake.is_broken_capture = false;
    assert_non_null(fake.capturing);
    return cudaSuccess;
}

// A capture in which a call failed gives no graph, and is over.
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    assert_non_null(stream);
    assert_non_null(fake.capturing);
    cudaError_t result = begin();
    struct fake_graph *made = fake.capturing;
    fake.capturing = NULL;
    *out = NULL;
    if (result == cudaSuccess && fake.is_broken_capture) {
        result = fake.last = cudaErrorStreamCaptureInvalidated;
    }
    if (result != cudaSuccess) {
        free(made);
        return result;
    }
    fake.graphs += 1;
    *out = (cudaGraph_t)(void *)made;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    assert_null(nodes);
    cudaError_t result = begin();
    if (result == cudaSuccess) *count = ((const struct fake_graph *)(const void *)graph)->count;
    return result;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
{
    assert_int_equal(flags, 0);
    cudaError_t result = begin();
    if (result != cudaSuccess) return result;
    struct fake_graph *copy = malloc(sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, (void *)graph, sizeof *copy);
    fake.graphs += 1;
    *out = (cudaGraphExec_t)(void *)copy;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    fake.graphs -= 1;
    free(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    fake.graphs -= 1;
    free(exec);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    assert_non_null(stream);
    assert_null(fake.capturing);
    cudaError_t result = begin();
    const struct fake_graph *graph = (const struct fake_graph *)(const void *)exec;
    for (uint32_t i = 0; i < graph->count && result == cudaSuccess; i++) {
        fake.copies[fake.copies_asked++ % COPIES_MAX] = graph->copies[i];
        assert_true(fake.copies_asked - fake.copies_done <= COPIES_MAX);
    }
    return result;
}
