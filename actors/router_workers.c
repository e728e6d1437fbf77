// router_workers.c - what the router knows of workers, and how jobs get to them and come back.
//
// A worker holds at most its credit. When one dies with several jobs in hand, nobody knows which of
// them killed it: they come back to the head of the queue uncharged and run one at a time, with
// nothing else on any executor; a job that dies alone is charged an attempt, and the second is its
// last.

#include "actors/router_state.h"

#include <assert.h>
#include <string.h>

#include "actors/event.h"
#include "actors/post.h"

#define ATTEMPTS_MAX 2u

// ---- services

uint32_t router_service(struct router *self, luna_Group group, const char *model, bool create)
{
    uint32_t free_index = JOB_SERVICES_MAX;
    for (uint32_t i = 0; i < JOB_SERVICES_MAX; i++) {
        const struct service *service = &self->services[i];
        if (service->group == group && strcmp(service->model, model) == 0) return i;
        if (service->group == luna_Group_GROUP_NONE && free_index == JOB_SERVICES_MAX)
            free_index = i;
    }
    if (!create || free_index == JOB_SERVICES_MAX) return JOB_SERVICES_MAX;
    struct service *service = &self->services[free_index];
    *service = (struct service){.group = group};
    text_set(service->model, sizeof service->model, model);
    return free_index;
}

// What a waiting job needs: as much as one was refused for. While others run, so that one more lane
// is in question, at least the arena that the last of them had.
static uint64_t needs_of(const struct service *service)
{
    uint64_t arena_bytes = service->running > 0 ? service->arena_bytes : 0;
    return service->needs_bytes > arena_bytes ? service->needs_bytes : arena_bytes;
}

void router_tell_demand(struct router *self, uint32_t index, bool always)
{
    assert(index < JOB_SERVICES_MAX);
    struct service *service = &self->services[index];
    uint64_t now = router_now(self);
    uint32_t depth = job_queue_depth(self->queue, index);
    bool changed = (depth == 0) != (service->depth_sent == 0) ||
                   (service->running == 0) != (service->running_sent == 0);
    bool due = now - service->told_ns >= UINT64_C(100000000) &&
               (depth > 0 || service->depth_sent > 0 || service->running > 0);
    if (!always && !changed && !due) return;

    luna_Letter letter = {.which_letter = luna_Letter_demand_tag};
    luna_Demand *demand = &letter.letter.demand;
    demand->has_service = true;
    demand->service.group = service->group;
    memcpy(demand->service.model, service->model, sizeof demand->service.model);
    demand->depth = depth;
    uint64_t oldest = job_queue_oldest_ns(self->queue, index);
    demand->age_ms = oldest == 0 ? 0 : (uint32_t)((now - oldest) / 1000000u);
    demand->running = service->running;
    demand->needs_bytes = depth > 0 ? needs_of(service) : 0;
    demand->requests_total = service->requests_total;
    router_tell_places(self, index, demand);
    if (router_post(self, ROUTER_SCALER, &letter, NULL) != STATUS_OK) return;
    service->depth_sent = depth;
    service->running_sent = service->running;
    service->told_ns = now;
}

// ---- the table of workers

static struct worker *find_worker(struct router *self, uint64_t id)
{
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX && id != 0; i++) {
        if (self->workers[i].id == id) return &self->workers[i];
    }
    return NULL;
}

static struct bytes route_bytes(const struct route *route)
{
    return (struct bytes){.data = route->connection, .size = route->length};
}

static struct route route_of(struct bytes connection)
{
    assert(connection.size <= ROUTE_BYTES_MAX);
    struct route route = {.length = (uint8_t)connection.size};
    memcpy(route.connection, connection.data, connection.size);
    return route;
}

static void send_control(struct router *self, const struct route *route, const luna_Letter *letter)
{
    post_letter_to(self->sockets[ROUTER_CONTROL], route_bytes(route), letter, NULL);
    loop_socket_touch(self->watches[ROUTER_CONTROL]);
}

static struct flight *find_flight(struct worker *worker, uint64_t job)
{
    for (uint32_t i = 0; i < ROUTER_FLIGHTS_MAX; i++) {
        if (worker->flights[i].job == job) return &worker->flights[i];
    }
    return NULL;
}

static void end_flight(struct worker *worker, struct flight *flight)
{
    assert(worker->in_flight > 0);
    worker->in_flight -= 1;
    worker->credit_free += flight->credit;
    assert(worker->credit_free <= worker->credit);
    flight->job = 0;
}

// ---- dispatch

static uint32_t jobs_in_flight(const struct router *self)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        if (self->workers[i].id != 0) count += self->workers[i].in_flight;
    }
    return count;
}

// Where the entry is to go, and where nothing goes because those that have to wait there are first.
struct course {
    uint32_t place;   // JOB_ANYWHERE: any but the closed ones
    uint64_t closed;  // bits of places
};

static bool may_take(const struct worker *worker, const struct job_entry *entry,
                     struct course course)
{
    if (!router_serves(worker, entry->service)) return false;
    if (worker->data.length == 0 || worker->in_flight == ROUTER_FLIGHTS_MAX) return false;
    if (course.place != JOB_ANYWHERE) return worker->place == course.place;
    return (course.closed >> worker->place & 1) == 0;
}

// The worker that should take the entry: free credit, least in flight, then least recently used.
static struct worker *choose_worker(struct router *self, const struct job_entry *entry,
                                    struct course course)
{
    struct worker *best = NULL;
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        struct worker *worker = &self->workers[i];
        if (!may_take(worker, entry, course)) continue;
        bool fits = worker->credit_free >= entry->credit || worker->credit_free == worker->credit;
        if (!fits) continue;
        if (best == NULL || worker->in_flight < best->in_flight ||
            (worker->in_flight == best->in_flight && worker->used_ns < best->used_ns)) {
            best = worker;
        }
    }
    return best;
}

// The worker, out of credit, where the entry may go before a job that was given and has not begun:
// one such job at a time, where the running one is the oldest. So whoever asks seldom waits for
// what runs, not for what a flood has put in front of the lane besides.
static struct worker *choose_overtaking(struct router *self, const struct job_entry *entry,
                                        struct course course)
{
    struct worker *best = NULL;
    uint64_t best_order = UINT64_MAX;
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        struct worker *worker = &self->workers[i];
        if (!may_take(worker, entry, course)) continue;
        const struct flight *running = NULL, *last = NULL;
        bool taken = false;
        for (uint32_t j = 0; j < ROUTER_FLIGHTS_MAX; j++) {
            const struct flight *flight = &worker->flights[j];
            if (flight->job == 0) continue;
            taken |= flight->overtakes;
            if (running == NULL || flight->order < running->order) running = flight;
            if (last == NULL || flight->order > last->order) last = flight;
        }
        if (taken || running == last || running->order >= best_order) continue;
        const struct job *job = job_table_find_number(self->jobs, last->job);
        if (job == NULL || !job_queue_overtakes(self->queue, entry, &job->entry)) continue;
        best = worker;
        best_order = running->order;
    }
    return best;
}

static bool give(struct router *self, struct job *job, struct worker *worker)
{
    uint64_t now = router_now(self);
    luna_Letter letter = {.which_letter = luna_Letter_job_tag};
    letter.letter.job.job = job->number;
    letter.letter.job.attempt = job->attempts;
    letter.letter.job.timeout_ms =
        job->deadline_ns > now ? (uint32_t)((job->deadline_ns - now) / 1000000u) : 0;
    letter.letter.job.queue_ms = (uint32_t)((now - job->arrived_ns) / 1000000u);
    letter.letter.job.pool_offsets_count = CODEC_TENSORS_MAX;
    memcpy(letter.letter.job.pool_offsets, job->pool_offsets, sizeof job->pool_offsets);
    letter.letter.job.stack_count = (pb_size_t)job->stack_count;
    if (job->stack_count > 0) {
        memcpy(letter.letter.job.stack, job->stack, job->stack_count * sizeof *job->stack);
    }
    bool overtakes = worker->credit_free < job->entry.credit && worker->in_flight > 0;
    letter.letter.job.overtakes = overtakes;
    struct message frames;
    message_init(&frames);
    for (uint32_t i = 0; i < job->frames.count; i++) {
        if (message_append_shared(&frames, &job->frames, i) != STATUS_OK) {
            message_clear(&frames);
            return false;
        }
    }
    enum status status =
        post_letter_to(self->sockets[ROUTER_DATA], route_bytes(&worker->data), &letter, &frames);
    loop_socket_touch(self->watches[ROUTER_DATA]);
    if (status != STATUS_OK) {
        log_event(self->context->log, LOG_WARNING, "dispatch.failed", "worker=%lu status=%s",
                  (unsigned long)worker->id, status_name(status));
        return false;
    }
    struct flight *flight = find_flight(worker, 0);
    assert(flight != NULL);
    flight->job = job->number;
    flight->credit =
        job->entry.credit < worker->credit_free ? job->entry.credit : worker->credit_free;
    flight->order = ++self->flights_given;
    flight->overtakes = overtakes;
    worker->credit_free -= flight->credit;
    if (worker->in_flight == 0) worker->progress_ns = now;
    worker->in_flight += 1;
    worker->used_ns = now;

    job->state = JOB_RUNNING;
    job->worker = worker->id;
    job->started_ns = now;
    self->waiting -= 1;
    self->waiting_bytes -= job->bytes;
    if (job->entry.alone) self->alone_waiting -= 1;
    self->services[worker->service].running += 1;
    self->counts.running += 1;
    self->counts_changed = true;
    return true;
}

void router_dispatch(struct router *self, uint32_t service)
{
    assert(service < JOB_SERVICES_MAX);
    uint64_t now = router_now(self);
    if (now < self->services[service].held_until_ns) return;
    struct course course = {.closed = 0};
    for (;;) {
        struct job_entry *entry = job_queue_peek(self->queue, service, now, course.closed);
        if (entry == NULL) return;
        struct job *job = (struct job *)entry;
        if (router_is_astray(self, entry)) {
            router_turn_away(self, job);
            continue;
        }
        // While suspects wait or run, one job at a time is out.
        bool careful = self->alone_waiting > 0 || self->quarantined != 0;
        if (careful && (!job->entry.alone || jobs_in_flight(self) > 0)) return;
        course.place = router_place_of(self, entry);
        struct worker *worker = choose_worker(self, entry, course);
        if (worker == NULL) worker = choose_overtaking(self, entry, course);
        if (worker == NULL && course.place == JOB_ANYWHERE) return;
        if (worker == NULL) {  // it waits for its device, and those behind it for others
            course.closed |= UINT64_C(1) << course.place;
            continue;
        }
        job_queue_take(self->queue, entry);
        if (!give(self, job, worker)) {
            entry->returned = true;
            job_queue_push(self->queue, entry, now);
            return;
        }
        if (job->entry.alone) self->quarantined = job->number;
    }
}

void router_dispatch_all(struct router *self)
{
    for (uint32_t i = 0; i < JOB_SERVICES_MAX; i++) {
        if (self->services[i].group != luna_Group_GROUP_NONE &&
            job_queue_depth(self->queue, i) > 0) {
            router_dispatch(self, i);
        }
    }
}

// The books of a job that is no longer with its worker.
static void leave_worker(struct router *self, struct job *job, uint32_t service)
{
    assert(self->counts.running > 0);
    assert(self->services[service].running > 0);
    self->counts.running -= 1;
    self->services[service].running -= 1;
    if (self->quarantined == job->number) self->quarantined = 0;
}

void router_recall(struct router *self, struct job *job)
{
    assert(job->state == JOB_RUNNING);
    struct worker *worker = find_worker(self, job->worker);
    assert(worker != NULL);
    luna_Letter letter = {.which_letter = luna_Letter_cancel_job_tag};
    letter.letter.cancel_job.job = job->number;
    send_control(self, &worker->control, &letter);
    leave_worker(self, job, worker->service);
    // The flight stays: its credit comes back with the worker's result.
}

static void put_back(struct router *self, struct job *job)
{
    job->entry.returned = true;
    job->worker = 0;
    job->state = JOB_WAITING;
    self->waiting += 1;
    self->waiting_bytes += job->bytes;
    if (job->entry.alone) self->alone_waiting += 1;
    job_queue_push(self->queue, &job->entry, router_now(self));
}

// ---- death

static void forget_worker(struct router *self, struct worker *worker, const char *why)
{
    log_event(self->context->log, LOG_INFO, "worker.gone",
              "worker=%lu device=%s in_flight=%u why=%s", (unsigned long)worker->id, worker->device,
              worker->in_flight, why);
    for (uint32_t i = 0; i < ROUTER_FLIGHTS_MAX; i++) {
        if (worker->flights[i].job == 0) continue;
        struct job *job = job_table_find_number(self->jobs, worker->flights[i].job);
        if (job == NULL || job->state != JOB_RUNNING || job->worker != worker->id) continue;
        leave_worker(self, job, worker->service);
        put_back(self, job);
    }
    memset(worker, 0, sizeof *worker);
}

// Marks what an executor had in hand when it died.
static void suspect_jobs(struct router *self, uint64_t epoch)
{
    uint32_t count = 0;
    struct job *last = NULL;
    for (struct job *job = job_table_first(self->jobs); job != NULL; job = job->next) {
        if (job->state != JOB_RUNNING || job->worker >> 16 != epoch) continue;
        count += 1;
        last = job;
    }
    if (count == 1) last->attempts += 1;
    for (struct job *job = job_table_first(self->jobs); job != NULL && count > 0; job = job->next) {
        if (job->state == JOB_RUNNING && job->worker >> 16 == epoch) job->entry.alone = true;
    }
}

static void fail_worn_out(struct router *self)
{
    struct job *next = NULL;
    for (struct job *job = job_table_first(self->jobs); job != NULL; job = next) {
        next = job->next;
        if (job->attempts < ATTEMPTS_MAX || job->state != JOB_WAITING) continue;
        struct error error;
        error_set(&error, STATUS_INTERNAL,
                  "the executor died %u times while it ran this request alone", job->attempts);
        router_fail(self, job, &error);
    }
}

void router_device_down(struct router *self, uint64_t epoch)
{
    suspect_jobs(self, epoch);
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        struct worker *worker = &self->workers[i];
        if (worker->id != 0 && worker->id >> 16 == epoch)
            forget_worker(self, worker, "its executor died");
    }
    fail_worn_out(self);
    router_dispatch_all(self);
}

// A hung executor ends by the same path as a dead one: it is killed, and its supervisor tells.
static void kill_executor(struct router *self, const struct worker *worker, const char *reason)
{
    luna_Letter letter = {.which_letter = luna_Letter_kill_child_tag};
    letter.letter.kill_child.pid = worker->executor_pid;
    text_set(letter.letter.kill_child.reason, sizeof letter.letter.kill_child.reason, reason);
    router_post(self, ROUTER_CORE, &letter, NULL);
    log_event(self->context->log, LOG_ERROR, "executor.hung", "pid=%u worker=%lu why=%s",
              worker->executor_pid, (unsigned long)worker->id, reason);
}

void router_check_workers(struct router *self)
{
    uint64_t now = router_now(self);
    for (uint32_t i = 0; i < ROUTER_WORKERS_MAX; i++) {
        struct worker *worker = &self->workers[i];
        if (worker->id == 0) continue;
        bool silent = now - worker->heard_ns > ROUTER_HEARTBEAT_LOST_MS * UINT64_C(1000000);
        bool stuck = worker->in_flight > 0 &&
                     now - worker->progress_ns > ROUTER_STUCK_MS * UINT64_C(1000000);
        if (!silent && !stuck) continue;
        uint64_t epoch = worker->id >> 16;
        kill_executor(self, worker, silent ? "no heartbeat" : "no progress");
        router_device_down(self, epoch);
    }
}

// ---- letters on the control socket

static void on_ready(struct router *self, struct bytes connection, const luna_Ready *ready)
{
    struct worker *worker = find_worker(self, ready->worker);
    for (uint32_t i = 0; worker == NULL && i < ROUTER_WORKERS_MAX; i++) {
        if (self->workers[i].id == 0) worker = &self->workers[i];
    }
    uint32_t service = router_service(self, ready->service.group, ready->service.model, true);
    if (worker == NULL || service == JOB_SERVICES_MAX || ready->credit == 0) {
        log_event(self->context->log, LOG_ERROR, "worker.refused", "worker=%lu",
                  (unsigned long)ready->worker);
        return;
    }
    bool known = worker->id == ready->worker;
    worker->id = ready->worker;
    worker->service = service;
    memcpy(worker->device, ready->device, sizeof worker->device);
    worker->place = router_place(self, ready->device);
    worker->executor_pid = ready->executor_pid;
    worker->control = route_of(connection);
    worker->heard_ns = router_now(self);
    if (!known) {
        worker->credit = ready->credit;
        worker->credit_free = ready->credit;
        worker->progress_ns = worker->heard_ns;
    }
    // The worker answers on its data socket, so that both connections are known to be one worker's.
    luna_Letter hello = {.which_letter = luna_Letter_hello_tag};
    hello.letter.hello.worker = ready->worker;
    send_control(self, &worker->control, &hello);
}

static void on_control_letter(void *state, struct bytes connection, const luna_Letter *letter,
                              struct message *frames)
{
    (void)frames;
    struct router *self = state;
    uint64_t id = 0;
    switch (letter->which_letter) {
    case luna_Letter_ready_tag:
        on_ready(self, connection, &letter->letter.ready);
        return;
    case luna_Letter_heartbeat_tag:
        id = letter->letter.heartbeat.worker;
        break;
    case luna_Letter_goodbye_tag:
        id = letter->letter.goodbye.worker;
        break;
    default:
        return;
    }
    struct worker *worker = find_worker(self, id);
    if (worker == NULL) {
        if (letter->which_letter == luna_Letter_goodbye_tag) return;
        const struct route route = route_of(connection);
        const luna_Letter who = {.which_letter = luna_Letter_who_tag};
        send_control(self, &route, &who);
        return;
    }
    worker->heard_ns = router_now(self);
    if (letter->which_letter == luna_Letter_goodbye_tag) {
        uint32_t service = worker->service;
        forget_worker(self, worker, "it retired");
        router_dispatch(self, service);
        return;
    }
    if (letter->letter.heartbeat.progress != worker->progress || worker->in_flight == 0) {
        worker->progress = letter->letter.heartbeat.progress;
        worker->progress_ns = worker->heard_ns;
    }
}

void router_on_control(void *state)
{
    struct router *self = state;
    post_each_from(self->sockets[ROUTER_CONTROL], on_control_letter, self);
}

// ---- letters on the data socket

static void on_progress(struct router *self, const luna_JobProgress *progress)
{
    struct job *job = job_table_find_number(self->jobs, progress->job);
    if (job == NULL || job->state != JOB_RUNNING || !job->want_progress || job->route.delimiter)
        return;
    luna_Header header = luna_Header_init_zero;
    luna_Header asked = luna_Header_init_zero;
    asked.id.size = JOB_ID_BYTES;
    memcpy(asked.id.bytes, job->id, JOB_ID_BYTES);
    asked.operation = (luna_Operation)job->operation;
    codec_start_reply(&asked, &header);
    header.kind = luna_Kind_PROGRESS;
    header.progress_done = progress->done;
    header.progress_total = progress->total;
    router_send_reply(self, &job->route, &header, (struct bytes){.data = NULL, .size = 0});
}

static void learn_times(struct service *service, uint32_t execute_ms)
{
    uint64_t ns = (uint64_t)execute_ms * 1000000u;
    service->execute_ns_mean =
        service->execute_ns_mean == 0
            ? ns
            : service->execute_ns_mean - service->execute_ns_mean / 8 + ns / 8;
}

// The worker lacks memory for this job just now: it goes back, and the scaler hears how much is
// missing, so that idle workers and models make room. A job waits for that a few seconds, no more.
static void hold_for_memory(struct router *self, struct job *job, uint32_t service,
                            uint64_t needs_bytes)
{
    uint64_t now = router_now(self);
    if (needs_bytes > self->services[service].needs_bytes)
        self->services[service].needs_bytes = needs_bytes;
    router_tell_demand(self, service, true);
    if (job->held_ns == 0) job->held_ns = now;
    if (now - job->held_ns > ROUTER_HELD_MS * UINT64_C(1000000)) {
        struct error error;
        error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                  "this needs %lu MiB of memory, which did not become free",
                  (unsigned long)(needs_bytes >> 20));
        error.retry_after_ms = 1000;
        router_fail(self, job, &error);
        return;
    }
    self->services[service].held_until_ns = now + UINT64_C(200000000);
    put_back(self, job);
}

// The answer to a job that its worker no longer has.
static void take_answer(struct router *self, struct job *job, const luna_Result *result,
                        struct message *frames)
{
    struct service *service = &self->services[job->entry.service];
    luna_Header header;
    struct error error = {.status = STATUS_OK};
    if (frames->count == 0) {
        error_set(&error, STATUS_INTERNAL, "the worker had no memory for its answer");
        router_fail(self, job, &error);
        return;
    }
    if (codec_decode_header(message_frame(frames, 0), &header, NULL) == STATUS_OK) {
        codec_get_error(&header, &error);
    }
    if (error.status == STATUS_RESOURCE_EXHAUSTED && router_lacks_memory_there(self, job)) return;
    learn_times(service, result->execute_ms);
    service->needs_bytes = 0;
    service->arena_bytes = result->arena_bytes;
    self->transport.frame_bytes += result->frame_bytes;
    self->transport.shared_bytes += result->shared_bytes;
    self->transport.device_bytes += result->device_bytes;
    if (error.status != STATUS_OK) {
        self->counts.failed += 1;
    } else {
        router_keep_answer(self, job, frames);
        reply_cache_put(self->replies, job->user, job->id, job->digest, frames, router_now(self));
    }
    router_event(self, error.status == STATUS_OK ? "request.done" : "request.failed", job,
                 error.status == STATUS_OK ? NULL : &error, result->execute_ms);
    router_finish(self, job, frames);
}

static void on_result(struct router *self, const luna_Result *result, struct message *frames)
{
    struct worker *worker = find_worker(self, result->worker);
    if (worker == NULL) return;  // declared dead: its jobs were given out again
    worker->heard_ns = router_now(self);
    worker->progress_ns = worker->heard_ns;
    uint32_t service = worker->service;
    struct flight *flight = result->job != 0 ? find_flight(worker, result->job) : NULL;
    if (flight != NULL) end_flight(worker, flight);

    struct job *job = job_table_find_number(self->jobs, result->job);
    if (job != NULL && job->state == JOB_RUNNING && job->worker == worker->id) {
        leave_worker(self, job, service);
        job->state = JOB_ASKED;  // out of every queue and worker; only the answer is left
        if (result->needs_bytes == 0) {
            take_answer(self, job, result, frames);
        } else if (!router_lacks_memory_there(self, job)) {
            hold_for_memory(self, job, service, result->needs_bytes);
            return;
        }
    }
    if (self->alone_waiting > 0 || self->quarantined == 0)
        router_dispatch_all(self);
    else
        router_dispatch(self, service);
}

static void on_data_letter(void *state, struct bytes connection, const luna_Letter *letter,
                           struct message *frames)
{
    struct router *self = state;
    struct worker *worker = NULL;
    switch (letter->which_letter) {
    case luna_Letter_hello_tag:
        worker = find_worker(self, letter->letter.hello.worker);
        if (worker == NULL) return;  // died in between
        worker->data = route_of(connection);
        router_dispatch(self, worker->service);
        return;
    case luna_Letter_progress_tag:
        on_progress(self, &letter->letter.progress);
        return;
    case luna_Letter_result_tag:
        on_result(self, &letter->letter.result, frames);
        return;
    default:
        return;
    }
}

void router_on_data(void *state)
{
    struct router *self = state;
    post_each_from(self->sockets[ROUTER_DATA], on_data_letter, self);
}
