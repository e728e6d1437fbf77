// lane_gpu.c - a lane: a thread that enqueues a program's operations on a stream and sleeps until
// they are done. The same thread makes the arena, because the driver may take its time for memory
// while others use the device.
//
// Programs of many short operations run as one graph when they come again (graphs.h). Else the
// thread keeps at most GPU_STEPS_MAX operations under way, so that a cancelled run ends soon
// and marks and progress tell what has been done, not what has been asked for. Waiting is the
// driver's and sleeps. The end of a run or a growth makes the eventfd readable.

#include <assert.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kernels/cuda/graphs.h"

struct gpu_lane {
    struct lane base;                   // what every lane has
    struct gpu_stream *stream;          // used by the thread alone while a program runs
    void *arena;                        // of grown_bytes; the thread uses it while a task runs
    pthread_t thread;                   // that enqueues
    bool has_thread;                    // it was started
    pthread_mutex_t lock;               // guards program, wanted_bytes and is_ending
    pthread_cond_t changed;             // one of them
    const struct program *program;      // to be run; the thread sets it to NULL at the end
    uint64_t wanted_bytes;              // that the arena is to have; likewise 0 at the end
    uint64_t grown_bytes;               // that it has; the eventfd orders it
    bool is_ending;                     // the thread shall return
    void *bindings[PROGRAM_SLOTS_MAX];  // copied from lane_run
    struct gpu_signals signals;         // between the lane, its thread and the stream
    _Atomic uint32_t marks;             // passed by the running or last program
    struct graphs graphs;               // of programs that come again; the thread's while busy
    bool is_traced;                     // operations are timed, so they are launched one by one
    enum status status;                 // how it ended; the eventfd orders it
    struct error error;                 // and why
};

static struct gpu_device *device_of(const struct gpu_lane *self)
{
    return (struct gpu_device *)self->base.device;
}

// ---------------------------------------------------------------------------------------------
// The thread

static bool is_cancelled(struct gpu_lane *self)
{
    return __atomic_load_n(&self->signals.is_cancelled, __ATOMIC_RELAXED) != 0;
}

// Accounts for an operation that has been done.
static void pass_operation(struct gpu_lane *self, const struct operation *op)
{
    __atomic_fetch_add(&self->signals.progress, 1, __ATOMIC_RELAXED);
    if (op->kind == OPERATION_MARK && !is_cancelled(self)) atomic_fetch_add(&self->marks, 1);
}

// Enqueues the operations one by one; returns how many are known to have been done.
static uint32_t launch_operations(struct gpu_lane *self, struct gpu_run *run,
                                  const struct program *program)
{
    uint32_t done = 0;
    for (uint32_t i = 0; i < program->operations_count && !is_cancelled(self); i++) {
        run->operation = &program->operations[i];
        gpu_enqueue(run);
        gpu_step_end(self->stream, i);
        if (i + 1 < GPU_STEPS_MAX) continue;
        gpu_step_wait(self->stream, done);
        pass_operation(self, &program->operations[done++]);
    }
    return done;
}

static void run_program(struct gpu_lane *self, const struct program *program)
{
    struct gpu_run run = {.device = device_of(self),
                          .stream = self->stream,
                          .arena = self->arena,
                          .bindings = self->bindings,
                          .program = program};
    gpu_stream_reset(self->stream);
    bool is_plain = self->is_traced || is_cancelled(self);
    bool is_graph = !is_plain && graphs_run(&self->graphs, &run, program);
    uint32_t done = is_graph ? 0 : launch_operations(self, &run, program);
    self->status = gpu_stream_wait(self->stream, &self->error);
    if (is_graph && self->status == STATUS_OK) graphs_deliver(&self->graphs, &run, program);
    while (self->status == STATUS_OK && done < program->operations_count) {
        pass_operation(self, &program->operations[done++]);
    }
}

// The old arena goes before the new one is taken: the executor promised the difference, not the
// sum. Nothing runs on the lane, so it is free at once.
static void grow_arena(struct gpu_lane *self, uint64_t bytes)
{
    struct gpu_card *card = device_of(self)->card;
    uint64_t before = self->grown_bytes;
    graphs_clear(&self->graphs);
    gpu_free(card, self->arena, before);
    self->arena = NULL;
    self->grown_bytes = 0;
    self->status = gpu_allocate(card, bytes, &self->arena, &self->error);
    if (self->status == STATUS_OK) {
        self->grown_bytes = bytes;
    } else if (before > 0 && gpu_allocate(card, before, &self->arena, NULL) == STATUS_OK) {
        self->grown_bytes = before;
    }
    __atomic_fetch_add(&self->signals.progress, 1, __ATOMIC_RELAXED);
}

static void *run_thread(void *argument)
{
    struct gpu_lane *self = argument;
    pthread_mutex_lock(&self->lock);
    while (!self->is_ending) {
        if (self->program == NULL && self->wanted_bytes == 0) {
            pthread_cond_wait(&self->changed, &self->lock);
            continue;
        }
        const struct program *program = self->program;
        uint64_t wanted_bytes = self->wanted_bytes;
        pthread_mutex_unlock(&self->lock);
        if (program != NULL) {
            run_program(self, program);
        } else {
            grow_arena(self, wanted_bytes);
        }
        pthread_mutex_lock(&self->lock);
        self->program = NULL;
        self->wanted_bytes = 0;
        uint64_t one = 1;
        ssize_t written = write(self->base.descriptor, &one, sizeof one);
        assert(written == sizeof one);
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

// ---------------------------------------------------------------------------------------------
// Life

void gpu_lane_destroy(struct lane *lane)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    if (self->has_thread) {
        pthread_mutex_lock(&self->lock);
        assert(self->program == NULL);
        self->is_ending = true;
        pthread_cond_signal(&self->changed);
        pthread_mutex_unlock(&self->lock);
        pthread_join(self->thread, NULL);
    }
    graphs_end(&self->graphs);
    gpu_stream_destroy(&self->stream);
    if (self->base.descriptor >= 0) close(self->base.descriptor);
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->lock);
    free(self);
}

enum status gpu_lane_create(struct lane **out, struct device *device, struct error *error)
{
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct gpu_lane *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, status, "no memory for a lane");
    self->base.device = device;
    self->graphs.card = device_of(self)->card;
    self->graphs.is_off = device_of(self)->has_no_graphs;
    self->base.descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    if (self->base.descriptor < 0) {
        error_set(error, status, "no file descriptor is left for a lane");
        goto done;
    }
    status = gpu_stream_create(&self->stream, device_of(self)->card, &self->signals, error);
    if (status != STATUS_OK) goto done;
    self->has_thread = pthread_create(&self->thread, NULL, run_thread, self) == 0;
    if (!self->has_thread) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no thread is left for a lane");
        goto done;
    }
    *out = &self->base;
    self = NULL;

done:
    if (self != NULL) gpu_lane_destroy(&self->base);
    return status;
}

// ---------------------------------------------------------------------------------------------
// The arena

void gpu_lane_grow(struct lane *lane, uint64_t bytes)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    assert(bytes > 0);
    pthread_mutex_lock(&self->lock);
    assert(self->program == NULL);
    assert(self->wanted_bytes == 0);
    self->wanted_bytes = bytes;
    pthread_cond_signal(&self->changed);
    pthread_mutex_unlock(&self->lock);
}

void gpu_lane_release(struct lane *lane)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    graphs_clear(&self->graphs);
    gpu_free(device_of(self)->card, self->arena, lane->arena_bytes);
    self->arena = NULL;
    self->grown_bytes = 0;
    lane->arena_bytes = 0;
}

// ---------------------------------------------------------------------------------------------
// Runs

void gpu_lane_run(struct lane *lane, const struct program *program, void *const *bindings,
                  uint32_t bindings_count)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    assert(program->slots_count <= bindings_count);
    for (uint32_t i = 0; i < program->slots_count; i++) self->bindings[i] = bindings[i];
    __atomic_store_n(&self->signals.is_cancelled, 0, __ATOMIC_RELAXED);
    atomic_store(&self->marks, 0);
    pthread_mutex_lock(&self->lock);
    assert(self->program == NULL);
    assert(self->wanted_bytes == 0);
    self->program = program;
    pthread_cond_signal(&self->changed);
    pthread_mutex_unlock(&self->lock);
}

enum status gpu_lane_collect(struct lane *lane, struct error *error)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    struct pollfd entry = {.fd = lane->descriptor, .events = POLLIN};
    uint64_t count = 0;
    while (read(lane->descriptor, &count, sizeof count) != sizeof count) poll(&entry, 1, -1);
    assert(count == 1);
    pthread_mutex_lock(&self->lock);  // the thread has left the run behind
    enum status status = self->status;
    if (status != STATUS_OK && error != NULL) *error = self->error;
    lane->arena_bytes = self->grown_bytes;
    pthread_mutex_unlock(&self->lock);
    return status;
}

void gpu_lane_cancel(struct lane *lane)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    __atomic_store_n(&self->signals.is_cancelled, 1, __ATOMIC_RELAXED);
}

uint64_t gpu_lane_progress(const struct lane *lane)
{
    const struct gpu_lane *self = (const struct gpu_lane *)lane;
    return __atomic_load_n(&self->signals.progress, __ATOMIC_RELAXED);
}

uint32_t gpu_lane_marks(const struct lane *lane)
{
    return atomic_load(&((const struct gpu_lane *)lane)->marks);
}

enum status gpu_lane_trace(struct lane *lane, bool is_kept, struct error *error)
{
    struct gpu_lane *self = (struct gpu_lane *)lane;
    enum status status = gpu_stream_trace(self->stream, is_kept, error);
    self->is_traced = is_kept && status == STATUS_OK;
    return status;
}

struct lane_graphs gpu_lane_graphs(const struct lane *lane)
{
    const struct graphs *graphs = &((const struct gpu_lane *)lane)->graphs;
    return (struct lane_graphs){.recorded = atomic_load(&graphs->recorded),
                                .replayed = atomic_load(&graphs->replayed),
                                .launches = atomic_load(&graphs->launches)};
}

// ---------------------------------------------------------------------------------------------
// Traces: an operation is a step, a launch one of its spans

static const struct gpu_spans *spans_of(const struct lane *lane)
{
    return gpu_stream_spans(((const struct gpu_lane *)lane)->stream);
}

// An operation ends with its last span, and without any, as a mark, where the one before it did.
uint32_t gpu_lane_times(const struct lane *lane, uint64_t *out, uint32_t count)
{
    const struct gpu_spans *spans = spans_of(lane);
    uint32_t known = count < spans->steps ? count : spans->steps;
    uint32_t at = 0;
    out[0] = spans->begin_ns;
    for (uint32_t i = 0; i < known; i++) {
        while (at < spans->count && spans->all[at].step == i) at++;
        out[i + 1] = at == 0 ? spans->begin_ns : spans->all[at - 1].end_ns;
    }
    return known;
}

uint32_t gpu_lane_launches(const struct lane *lane, struct lane_launch *out, uint32_t count)
{
    const struct gpu_spans *spans = spans_of(lane);
    uint32_t known = count < spans->count ? count : spans->count;
    for (uint32_t i = 0; i < known; i++) {
        const struct gpu_span *span = &spans->all[i];
        out[i] = (struct lane_launch){.name = span->name,
                                      .operation = span->step,
                                      .begin_ns = span->begin_ns,
                                      .end_ns = span->end_ns};
    }
    return known;
}
