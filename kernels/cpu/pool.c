// pool.c - threads that take items of the head launch of any running job.
//
// One mutex guards the list of jobs, where each job stands, and who sleeps. A thread joins a job
// under the mutex, takes items with an atomic counter and without the mutex, and leaves under the
// mutex when there are no more. Whoever leaves last a launch that is used up moves the job to its
// next launch, or ends it: so launches follow each other without a coordinator, and what one
// launch wrote is visible to the next.
//
//     job A: [launch: 0 1 2 3 4 ... 40]  <- thread 0, thread 2      least threads first,
//     job B: [launch: 0 1 2 3]           <- thread 1                then the one served longest ago
//
// Fairness: a thread joins a favoured job before others, then the one with the fewest threads, of
// equals the one that was joined longest ago, and as long as several jobs run it stays for SLICE_NS
// at most. A job alone is never left before its items are taken.
//
// Waiting: a thread that finds nothing spins for some microseconds, because the next launch of a
// network is usually that near, and then sleeps on the condition.
//
// Scratch: whoever starts a job allocates, under the mutex, what threads will need (scratch_next);
// each thread takes it over at its next join. The threads themselves never allocate. Huge pages
// were tried for it: no difference that could be measured.

#include "kernels/cpu/pool.h"

#include <assert.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"

#define SLICE_NS 500000u       // a thread stays in one of several jobs, plus the item it is at
#define SPINS_MAX 2000u        // pauses before a thread sleeps: 20 to 100 us
#define SCRATCH_ALIGNMENT 64u  // bytes

struct pool_thread {
    struct pool *pool;   // that it belongs to
    pthread_t id;        // valid in the first threads_started
    void *scratch;       // the thread's own
    void *scratch_next;  // larger, to be taken over; guarded by the pool's mutex
};

struct pool {
    pthread_mutex_t mutex;        // guards all but the atomics and each thread's scratch
    pthread_cond_t changed;       // epoch moved
    _Atomic uint32_t epoch;       // counts changes that may mean work; written under the mutex
    _Atomic uint32_t jobs_count;  // running jobs; written under the mutex
    struct pool_job *jobs;        // running jobs, the one joined longest ago first
    uint32_t sleepers;            // threads in pthread_cond_wait
    bool is_ending;               // threads are to return
    uint64_t scratch_bytes;       // of every thread, once it has taken over
    uint32_t threads_count;       // of threads
    uint32_t threads_started;     // of those, with a thread behind them
    struct pool_thread *threads;  // one each
};

// ---------------------------------------------------------------------------------------------
// The list of jobs, under the mutex

static void append_job(struct pool *self, struct pool_job *job)
{
    struct pool_job **at = &self->jobs;
    while (*at != NULL) at = &(*at)->next;
    job->next = NULL;
    *at = job;
}

static void remove_job(struct pool *self, struct pool_job *job)
{
    struct pool_job **at = &self->jobs;
    while (*at != job) {
        assert(*at != NULL);
        at = &(*at)->next;
    }
    *at = job->next;
}

static const struct cpu_launch *head_launch(const struct pool_job *job)
{
    assert(job->list_index < job->list_count);
    return &job->list[job->list_index];
}

static bool has_items(const struct pool_job *job)
{
    return !atomic_load(&job->is_cancelled) &&
           atomic_load(&job->next_item) < head_launch(job)->items;
}

static bool goes_before(const struct pool_job *a, const struct pool_job *b)
{
    if (a->is_favoured != b->is_favoured) return a->is_favoured;
    return a->threads < b->threads;
}

static struct pool_job *pick_job(struct pool *self)
{
    struct pool_job *best = NULL;
    for (struct pool_job *job = self->jobs; job != NULL; job = job->next) {
        if (has_items(job) && (best == NULL || goes_before(job, best))) best = job;
    }
    return best;
}

static void tell_change(struct pool *self)
{
    atomic_fetch_add(&self->epoch, 1);
    if (self->sleepers > 0) pthread_cond_broadcast(&self->changed);
}

// ---------------------------------------------------------------------------------------------
// The course of a job, under the mutex

static void end_job(struct pool *self, struct pool_job *job, enum status status)
{
    assert(job->threads == 0);
    remove_job(self, job);
    atomic_fetch_sub(&self->jobs_count, 1);
    job->is_running = false;
    job->status = status;
    uint64_t one = 1;
    ssize_t written = write(job->descriptor, &one, sizeof one);
    assert(written == sizeof one);
}

// Takes the next operation that has launches; false at the end of the program.
static bool next_operation(struct pool_job *job)
{
    const struct program *program = job->program;
    while (job->operation_index < program->operations_count) {
        const struct operation *op = &program->operations[job->operation_index];
        if (op->kind == OPERATION_MARK) atomic_fetch_add(&job->marks, 1);
        job->list_index = 0;
        job->list_count = op->kind == OPERATION_MARK ? 0 : job->launches(op, job->list);
        assert(job->list_count <= CPU_LAUNCHES_MAX);
        if (job->list_count > 0) return true;
        job->operation_index++;
    }
    return false;
}

// Moves a job whose launch is used up to the next launch that has items, or ends it.
static void advance_job(struct pool *self, struct pool_job *job)
{
    assert(job->threads == 0);
    if (atomic_load(&job->is_cancelled)) {
        end_job(self, job, STATUS_CANCELLED);
        return;
    }
    do {
        if (++job->list_index < job->list_count) continue;
        job->operation_index++;
        atomic_fetch_add(&job->progress, 1);
        if (next_operation(job)) continue;
        end_job(self, job, STATUS_OK);
        return;
    } while (head_launch(job)->items == 0);
    atomic_store(&job->next_item, 0);
    tell_change(self);
}

static void join_job(struct pool *self, struct pool_job *job, struct pool_thread *thread)
{
    remove_job(self, job);
    append_job(self, job);
    job->threads++;
    if (thread->scratch_next == NULL) return;
    free(thread->scratch);
    thread->scratch = thread->scratch_next;
    thread->scratch_next = NULL;
}

static void leave_job(struct pool *self, struct pool_job *job)
{
    assert(job->threads > 0);
    job->threads--;
    if (job->threads == 0 && !has_items(job)) advance_job(self, job);
}

// ---------------------------------------------------------------------------------------------
// The threads

// Without the mutex: the launch stays the head while this thread is counted in the job.
static void run_items(struct pool *self, struct pool_job *job, void *scratch)
{
    const struct cpu_launch *launch = head_launch(job);
    const struct operation *op = &job->program->operations[job->operation_index];
    uint64_t begin_ns = 0;
    while (!atomic_load_explicit(&job->is_cancelled, memory_order_relaxed)) {
        uint64_t item = atomic_fetch_add_explicit(&job->next_item, 1, memory_order_relaxed);
        if (item >= launch->items) return;
        launch->run(op, &job->run, (uint32_t)item, scratch);
        atomic_fetch_add_explicit(&job->progress, 1, memory_order_relaxed);
        if (atomic_load_explicit(&self->jobs_count, memory_order_relaxed) < 2) continue;
        uint64_t now_ns = clock_ns(clock_system());
        if (begin_ns == 0) begin_ns = now_ns;
        if (now_ns - begin_ns >= SLICE_NS) return;
    }
}

static void spin(const struct pool *self, uint32_t epoch)
{
    for (uint32_t i = 0; i < SPINS_MAX; i++) {
        if (atomic_load_explicit(&self->epoch, memory_order_relaxed) != epoch) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

// Returns, with the mutex, when something has changed.
static void wait_for_change(struct pool *self)
{
    uint32_t epoch = atomic_load(&self->epoch);
    pthread_mutex_unlock(&self->mutex);
    spin(self, epoch);
    pthread_mutex_lock(&self->mutex);
    self->sleepers++;
    while (atomic_load(&self->epoch) == epoch) pthread_cond_wait(&self->changed, &self->mutex);
    self->sleepers--;
}

// Denormal numbers count as zero in this thread, as operands and as results: with them, products
// are up to a hundred times slower. What is lost is below 1.2e-38.
static void flush_denormals(void)
{
#if defined(__x86_64__)
    const unsigned results = 0x8000;   // flush to zero
    const unsigned operands = 0x0040;  // denormals are zeros
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | results | operands);
#endif
}

static void *run_thread(void *argument)
{
    struct pool_thread *thread = argument;
    struct pool *self = thread->pool;
    flush_denormals();
    pthread_mutex_lock(&self->mutex);
    while (!self->is_ending) {
        struct pool_job *job = pick_job(self);
        if (job == NULL) {
            wait_for_change(self);
            continue;
        }
        join_job(self, job, thread);
        pthread_mutex_unlock(&self->mutex);
        run_items(self, job, thread->scratch);
        pthread_mutex_lock(&self->mutex);
        leave_job(self, job);
    }
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

// ---------------------------------------------------------------------------------------------
// The public calls

static bool start_threads(struct pool *self)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool good = true;
    for (uint32_t i = 0; i < self->threads_count && good; i++) {
        struct pool_thread *thread = &self->threads[i];
        thread->pool = self;
        good = pthread_create(&thread->id, NULL, run_thread, thread) == 0;
        if (good) self->threads_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return good;
}

enum status pool_create(struct pool **out, uint32_t threads, struct error *error)
{
    assert(out != NULL);
    assert(threads >= 1);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct pool *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, status, "no memory for a pool of threads");
    pthread_mutex_init(&self->mutex, NULL);  // with default attributes glibc always returns 0
    pthread_cond_init(&self->changed, NULL);
    self->threads_count = threads;
    self->threads = calloc(threads, sizeof *self->threads);
    if (self->threads == NULL || !start_threads(self)) {
        error_set(error, status, "cannot start %u compute threads, %u started", threads,
                  self->threads_started);
        goto done;
    }
    status = STATUS_OK;
    *out = self;
    self = NULL;

done:
    pool_destroy(&self);
    return status;
}

void pool_destroy(struct pool **self_p)
{
    assert(self_p != NULL);
    struct pool *self = *self_p;
    if (self == NULL) return;
    pthread_mutex_lock(&self->mutex);
    assert(self->jobs == NULL);
    self->is_ending = true;
    tell_change(self);
    pthread_mutex_unlock(&self->mutex);
    for (uint32_t i = 0; i < self->threads_started; i++) pthread_join(self->threads[i].id, NULL);
    for (uint32_t i = 0; self->threads != NULL && i < self->threads_count; i++) {
        free(self->threads[i].scratch);
        free(self->threads[i].scratch_next);
    }
    free(self->threads);
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->mutex);
    free(self);
    *self_p = NULL;
}

// The most scratch that a launch of the program asks for.
static uint64_t scratch_needed(const struct program *program, pool_launches *launches)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < program->operations_count; i++) {
        struct cpu_launch list[CPU_LAUNCHES_MAX];
        const struct operation *op = &program->operations[i];
        uint32_t count = op->kind == OPERATION_MARK ? 0 : launches(op, list);
        for (uint32_t j = 0; j < count; j++) {
            if (list[j].scratch_bytes > most) most = list[j].scratch_bytes;
        }
    }
    return round_up(most, SCRATCH_ALIGNMENT);
}

// Under the mutex. All threads get it or none does.
static bool grow_scratch(struct pool *self, uint64_t bytes)
{
    void **fresh = calloc(self->threads_count, sizeof *fresh);
    bool good = fresh != NULL;
    for (uint32_t i = 0; i < self->threads_count && good; i++) {
        fresh[i] = aligned_alloc(SCRATCH_ALIGNMENT, bytes);
        good = fresh[i] != NULL;
    }
    for (uint32_t i = 0; i < self->threads_count && fresh != NULL; i++) {
        void *unused = good ? self->threads[i].scratch_next : fresh[i];
        if (good) self->threads[i].scratch_next = fresh[i];
        free(unused);
    }
    free(fresh);
    if (good) self->scratch_bytes = bytes;
    return good;
}

enum status pool_prepare(struct pool *self, const struct program *program, pool_launches *launches,
                         struct error *error)
{
    assert(self != NULL);
    assert(program != NULL);
    uint64_t bytes = scratch_needed(program, launches);
    pthread_mutex_lock(&self->mutex);
    bool good = bytes <= self->scratch_bytes || grow_scratch(self, bytes);
    pthread_mutex_unlock(&self->mutex);
    if (good) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                     "no memory for %llu bytes of scratch in each of %u threads",
                     (unsigned long long)bytes, self->threads_count);
}

void pool_start(struct pool *self, struct pool_job *job)
{
    assert(self != NULL);
    assert(job != NULL);
    assert(!job->is_running);
    atomic_store(&job->marks, 0);
    pthread_mutex_lock(&self->mutex);
    atomic_store(&job->is_cancelled, false);
    job->is_running = true;
    job->threads = 0;
    job->operation_index = 0;
    append_job(self, job);
    atomic_fetch_add(&self->jobs_count, 1);
    atomic_store(&job->next_item, 0);
    if (!next_operation(job)) {
        end_job(self, job, STATUS_OK);
    } else if (head_launch(job)->items == 0) {
        advance_job(self, job);
    }
    tell_change(self);
    pthread_mutex_unlock(&self->mutex);
}

void pool_cancel(struct pool *self, struct pool_job *job)
{
    assert(self != NULL);
    assert(job != NULL);
    pthread_mutex_lock(&self->mutex);
    if (job->is_running) {
        atomic_store(&job->is_cancelled, true);
        if (job->threads == 0) advance_job(self, job);
    }
    pthread_mutex_unlock(&self->mutex);
}

void pool_favour(struct pool *self, struct pool_job *job, bool favoured)
{
    assert(self != NULL);
    assert(job != NULL);
    pthread_mutex_lock(&self->mutex);
    job->is_favoured = favoured;
    pthread_mutex_unlock(&self->mutex);
}

enum status pool_end(struct pool *self, struct pool_job *job)
{
    assert(self != NULL);
    assert(job != NULL);
    struct pollfd entry = {.fd = job->descriptor, .events = POLLIN};
    while (poll(&entry, 1, -1) != 1) continue;
    uint64_t count = 0;
    ssize_t got = read(job->descriptor, &count, sizeof count);
    assert(got == sizeof count);
    assert(count == 1);
    pthread_mutex_lock(&self->mutex);  // whoever wrote to the descriptor has let go of the job
    assert(!job->is_running);
    enum status status = job->status;
    pthread_mutex_unlock(&self->mutex);
    return status;
}
