// worker.c - the part of a worker that talks; see worker.h.

#include "actors/worker.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/event.h"
#include "actors/pool_map.h"
#include "actors/post.h"
#include "runtime/socket.h"

#define BEAT_MS 250u
#define ARENA_KEPT_NS UINT64_C(5000000000)

enum worker_watch {
    WATCH_DATA,
    WATCH_CONTROL,
    WATCH_EXECUTOR,
};

static uint64_t now_ns(const struct worker *self)
{
    return clock_ns(loop_clock(self->context->loop));
}

// ---- sending

static enum status post(struct worker *self, enum worker_watch to, const luna_Letter *letter,
                        struct message *frames)
{
    enum status status = post_letter(to == WATCH_DATA ? self->data : self->control, letter, frames);
    loop_socket_touch(self->watches[to]);
    return status;
}

static void say_ready(struct worker *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_ready_tag};
    luna_Ready *ready = &letter.letter.ready;
    ready->worker = self->arguments.id;
    ready->has_service = true;
    ready->service.group = self->calls->group;
    text_set(ready->service.model, sizeof ready->service.model, self->arguments.model);
    text_set(ready->device, sizeof ready->device, self->arguments.device_name);
    ready->credit = self->calls->credit;
    ready->executor_pid = (uint32_t)getpid();
    post(self, WATCH_CONTROL, &letter, NULL);
}

static void say_hello(struct worker *self)
{
    luna_Letter letter = {.which_letter = luna_Letter_hello_tag};
    letter.letter.hello.worker = self->arguments.id;
    post(self, WATCH_DATA, &letter, NULL);
}

// 0 finds a free entry.
static struct worker_job *find_job(struct worker *self, uint64_t number)
{
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        if (self->jobs[i].number == number) return &self->jobs[i];
    }
    return NULL;
}

struct worker_job *worker_find_job(struct worker *self, uint64_t number)
{
    assert(number != 0);
    return find_job(self, number);
}

static void tell_progress(struct worker *self)
{
    uint32_t marks = lane_marks(self->lane);
    if (!self->running || marks == self->marks_told) return;
    self->marks_told = marks;
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        const struct worker_job *job = &self->jobs[i];
        if (job->number == 0 || !job->in_hand || !job->header.want_progress) continue;
        luna_Letter letter = {.which_letter = luna_Letter_progress_tag};
        letter.letter.progress.job = job->number;
        letter.letter.progress.done = marks;
        letter.letter.progress.total = self->marks_total;
        post(self, WATCH_DATA, &letter, NULL);
    }
}

static void on_beat(void *state)
{
    struct worker *self = state;
    luna_Letter letter = {.which_letter = luna_Letter_heartbeat_tag};
    letter.letter.heartbeat.worker = self->arguments.id;
    letter.letter.heartbeat.progress = self->jobs_done + lane_progress(self->lane);
    post(self, WATCH_CONTROL, &letter, NULL);
    tell_progress(self);
    bool idle = !self->busy && self->reserved_bytes > 0;
    if (idle && now_ns(self) - self->idle_since_ns > ARENA_KEPT_NS) {
        lane_release(self->lane);
        self->reserved_bytes = 0;  // at once: the next job asks anew
        worker_reserve(self, 0);
    }
}

static void send_result(struct worker *self, const struct worker_job *job, uint64_t needs_bytes,
                        struct message *frames)
{
    luna_Letter letter = {.which_letter = luna_Letter_result_tag};
    luna_Result *result = &letter.letter.result;
    result->job = job->number;
    result->worker = self->arguments.id;
    result->needs_bytes = needs_bytes;
    result->execute_ms = worker_execute_ms(self, job);
    result->frame_bytes = job->frame_bytes;
    result->shared_bytes = job->shared_bytes;
    result->device_bytes = job->device_bytes;
    result->arena_bytes = self->reserved_bytes;
    if (post(self, WATCH_DATA, &letter, frames) != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "result.dropped", "job=%lu",
                  (unsigned long)job->number);
    }
}

// A job that overtakes hurries the lane from its arrival on: what runs before it is in its way.
static void set_favour(struct worker *self)
{
    bool favoured = false;
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        favoured |= self->jobs[i].number != 0 && self->jobs[i].overtakes;
    }
    lane_favour(self->lane, favoured);
}

static void forget_job(struct worker *self, struct worker_job *job)
{
    if (job->stack_owed) worker_give_back_stack(self, job->number);
    job->stack_owed = false;
    job->waits_for_stack = false;
    worker_return_loans(self, job);
    message_clear(&job->frames);
    job->number = 0;
    job->in_hand = false;
    self->jobs_done += 1;
    if (job->overtakes) set_favour(self);
}

uint32_t worker_execute_ms(const struct worker *self, const struct worker_job *job)
{
    return job->started_ns == 0 ? 0 : (uint32_t)((now_ns(self) - job->started_ns) / 1000000u);
}

void worker_reply_start(struct worker_reply *reply, struct worker_job *job)
{
    assert(reply != NULL);
    assert(job->number != 0);
    reply->job = job;
    codec_start_reply(&job->header, &reply->header);
    message_init(&reply->payloads);
}

void worker_reply_drop(struct worker_reply *reply)
{
    message_clear(&reply->payloads);
    reply->job = NULL;
}

void worker_answer(struct worker *self, struct worker_reply *reply, const pb_msgdesc_t *type,
                   const void *body)
{
    assert(reply->job != NULL);
    assert(reply->job->number != 0);
    uint8_t buffer[luna_TextReply_size > luna_ImageReply_size ? luna_TextReply_size
                                                              : luna_ImageReply_size];
    uint8_t header_buffer[CODEC_HEADER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    struct codec_buffer encoded_header = {.data = header_buffer, .capacity = sizeof header_buffer};
    struct message frames;
    message_init(&frames);
    worker_trace_add(self, reply);
    enum status status = codec_encode_header(&reply->header, &encoded_header, NULL);
    if (status == STATUS_OK && type != NULL) status = codec_encode(type, body, &encoded, NULL);
    if (status == STATUS_OK) {
        status = message_append(&frames,
                                (struct bytes){.data = header_buffer, .size = encoded_header.size});
    }
    if (status == STATUS_OK)
        status = message_append(&frames, (struct bytes){.data = buffer, .size = encoded.size});
    for (uint32_t i = 0; status == STATUS_OK && i < reply->payloads.count; i++) {
        status = message_append_shared(&frames, &reply->payloads, i);
    }
    if (status != STATUS_OK)
        message_clear(&frames);  // the router answers INTERNAL for an empty result
    send_result(self, reply->job, 0, &frames);
    forget_job(self, reply->job);
    worker_reply_drop(reply);
}

void worker_fail(struct worker *self, struct worker_job *job, const struct error *error)
{
    assert(error->status != STATUS_OK);
    struct worker_reply reply;
    worker_reply_start(&reply, job);
    codec_set_error(&reply.header, error);
    worker_answer(self, &reply, NULL, NULL);
}

void worker_postpone(struct worker *self, struct worker_job *job, uint64_t needs_bytes)
{
    assert(needs_bytes > 0);
    send_result(self, job, needs_bytes, NULL);
    forget_job(self, job);
}

// ---- work

static bool goes_before(const struct worker_job *a, const struct worker_job *b)
{
    if (a->overtakes != b->overtakes) return a->overtakes;
    return a->order < b->order;
}

struct worker_job *worker_next(struct worker *self)
{
    for (;;) {
        struct worker_job *first = NULL;
        for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
            struct worker_job *job = &self->jobs[i];
            if (job->number == 0 || job->in_hand || job->waits_for_stack) continue;
            if (job->loans_awaited > 0) continue;
            if (first == NULL || goes_before(job, first)) first = job;
        }
        if (first == NULL) return NULL;
        struct error error;
        if (first->cancelled) {
            error_set(&error, STATUS_CANCELLED, "cancelled before it began");
        } else if (now_ns(self) >= first->deadline_ns) {
            error_set(&error, STATUS_DEADLINE_EXCEEDED, "time ran out before it began");
        } else if (loaded_check(self->arguments.loaded, &error) == STATUS_OK) {
            first->in_hand = true;
            first->started_ns = now_ns(self);
            self->busy = true;
            return first;
        }
        worker_fail(self, first, &error);
    }
}

static bool has_jobs(const struct worker *self)
{
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        if (self->jobs[i].number != 0) return true;
    }
    return false;
}

static void try_work(struct worker *self)
{
    if (self->busy) return;
    self->calls->work(self);
    if (self->busy || !self->draining || has_jobs(self)) return;
    luna_Letter letter = {.which_letter = luna_Letter_goodbye_tag};
    letter.letter.goodbye.worker = self->arguments.id;
    post(self, WATCH_CONTROL, &letter, NULL);
    const struct executor_letter retired = {.kind = EXECUTOR_RETIRED, .worker = self->arguments.id};
    worker_tell_executor(self, &retired, NULL);
    self->draining = false;  // said once; the executor stops this actor now
    self->busy = true;
    actor_drained(self->context->actor);
}

void worker_idle(struct worker *self)
{
    self->busy = false;
    self->running = false;
    worker_trace_drop(self);
    self->idle_since_ns = now_ns(self);
    try_work(self);
}

void worker_tell_executor(struct worker *self, const struct executor_letter *letter,
                          const struct bytes *frame)
{
    struct message message;
    message_init(&message);
    enum status status =
        message_append(&message, (struct bytes){.data = letter, .size = sizeof *letter});
    if (status == STATUS_OK && frame != NULL) status = message_append(&message, *frame);
    if (status == STATUS_OK) status = message_send(&message, self->executor);
    assert(status == STATUS_OK);  // on an edge inside the process, with room for all jobs
    message_clear(&message);
    loop_socket_touch(self->watches[WATCH_EXECUTOR]);
}

void worker_reserve(struct worker *self, uint64_t bytes)
{
    const struct executor_letter letter = {
        .kind = EXECUTOR_RESERVE, .worker = self->arguments.id, .bytes = bytes};
    worker_tell_executor(self, &letter, NULL);
}

static void say_broken(struct worker *self, const struct error *error)
{
    log_event(self->context->log, LOG_ERROR, "device.broken", "worker=%lu why=\"%s\"",
              (unsigned long)self->arguments.id, error->message);
    const struct executor_letter broken = {.kind = EXECUTOR_BROKEN, .worker = self->arguments.id};
    worker_tell_executor(self, &broken, NULL);
}

bool worker_take_arena(struct worker *self, uint64_t bytes)
{
    assert(self->busy);
    assert(self->growing_bytes == 0);
    if (bytes <= lane_arena_bytes(self->lane)) return true;
    self->growing_bytes = bytes;
    lane_grow(self->lane, bytes);
    return false;
}

// The device had less than was granted: the executor hears of it, and answers as if it had refused.
static void say_fell_short(struct worker *self, uint64_t bytes)
{
    self->reserved_bytes = lane_arena_bytes(self->lane);
    const struct executor_letter letter = {.kind = EXECUTOR_FELL_SHORT,
                                           .worker = self->arguments.id,
                                           .bytes = bytes,
                                           .capacity = self->reserved_bytes};
    worker_tell_executor(self, &letter, NULL);
}

// The lane has its arena, or it could not be had.
static void on_grown(struct worker *self)
{
    struct error error;
    uint64_t bytes = self->growing_bytes;
    enum status status = lane_collect(self->lane, &error);
    self->growing_bytes = 0;
    if (status == STATUS_OK) {
        self->calls->granted(self, true, self->reserved_bytes, 0);
        return;
    }
    if (status == STATUS_UNAVAILABLE) {
        say_broken(self, &error);
        return;
    }
    say_fell_short(self, bytes);
}

// False when nobody in the batch wants the result any more.
static bool is_wanted(const struct worker *self)
{
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        const struct worker_job *job = &self->jobs[i];
        if (job->number != 0 && job->in_hand && !job->cancelled) return true;
    }
    return false;
}

void worker_run(struct worker *self, const struct program *program, void *const *bindings,
                uint32_t count)
{
    assert(self->busy);
    assert(!self->running);
    self->running = true;
    self->marks_told = 0;
    self->marks_total = program_marks(program);
    worker_trace_begin(self, program);
    lane_run(self->lane, program, bindings, count);
    if (!is_wanted(self)) lane_cancel(self->lane);
}

static void on_lane(void *state)
{
    struct worker *self = state;
    if (self->growing_bytes > 0) {
        on_grown(self);
        return;
    }
    if (!self->running) return;
    struct error error = {.status = STATUS_OK};
    tell_progress(self);
    error.status = lane_collect(self->lane, &error);
    self->running = false;
    if (error.status == STATUS_UNAVAILABLE) {
        say_broken(self, &error);
        return;
    }
    if (error.status == STATUS_RESOURCE_EXHAUSTED) {
        // What ran wanted more than its arena, and others have the rest.
        uint64_t bytes = self->reserved_bytes;
        worker_trace_drop(self);
        lane_release(self->lane);
        say_fell_short(self, bytes);
        return;
    }
    if (error.status == STATUS_OK) worker_trace_end(self);
    self->calls->ran(self, &error);
}

static void on_reserved(struct worker *self, const struct executor_letter *letter)
{
    if (letter->granted) self->reserved_bytes = letter->bytes;
    if (letter->bytes == 0 && letter->granted) return;  // the arena went back
    self->calls->granted(self, letter->granted, letter->bytes, letter->capacity);
}

static void on_executor(void *state)
{
    struct worker *self = state;
    struct message message;
    struct executor_letter letter;
    struct stack_grant grant;
    message_init(&message);
    if (message_receive(&message, self->executor) != STATUS_OK) return;
    assert(message_frame(&message, 0).size == sizeof letter);
    memcpy(&letter, message_frame(&message, 0).data, sizeof letter);
    if (letter.kind == EXECUTOR_STACK) {
        assert(message_frame(&message, 1).size == sizeof grant);
        memcpy(&grant, message_frame(&message, 1).data, sizeof grant);
    }
    message_clear(&message);
    switch (letter.kind) {
    case EXECUTOR_RESERVED:
        on_reserved(self, &letter);
        break;
    case EXECUTOR_STACK:
        worker_take_stack(self, &grant);
        try_work(self);
        break;
    case EXECUTOR_STACK_PROGRESS:
        self->jobs_done += 1;  // the router sees that the wait is no hang
        break;
    case EXECUTOR_LENT:
        worker_take_loan(self, &letter);
        try_work(self);
        break;
    default:
        assert(!"a letter that only workers send");
    }
}

// ---- letters from the router

// Letters on the control socket may overtake those on the other one. Numbers never come twice, so
// one that stays here because its job was just done does no harm.
static bool was_cancelled_early(const struct worker *self, uint64_t number)
{
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        if (self->early[i] == number) return true;
    }
    return false;
}

static void on_job(struct worker *self, const luna_Job *letter, struct message *frames)
{
    struct worker_job *job = find_job(self, 0);
    if (job == NULL || frames->count < 2) {
        log_event(self->context->log, LOG_ERROR, "job.refused", "job=%lu frames=%u",
                  (unsigned long)letter->job, frames->count);
        return;
    }
    job->number = letter->job;
    job->order = self->jobs_seen++;
    job->deadline_ns = now_ns(self) + (uint64_t)letter->timeout_ms * 1000000u;
    job->started_ns = 0;
    job->queue_ms = letter->queue_ms;
    job->in_hand = false;
    job->cancelled = false;
    job->overtakes = letter->overtakes;
    if (job->overtakes) set_favour(self);
    job->frame_bytes = 0;
    job->shared_bytes = 0;
    job->device_bytes = 0;
    job->loans_count = 0;
    job->loans_awaited = 0;
    job->waits_for_stack = false;
    job->stack_owed = false;
    job->stack_count = letter->stack_count;
    memcpy(job->stack, letter->stack, letter->stack_count * sizeof job->stack[0]);
    memset(job->pool_offsets, 0, sizeof job->pool_offsets);
    memcpy(job->pool_offsets, letter->pool_offsets,
           letter->pool_offsets_count * sizeof job->pool_offsets[0]);
    message_init(&job->frames);
    message_move(&job->frames, frames);
    struct error error;
    enum status status = codec_decode_header(message_frame(&job->frames, 0), &job->header, &error);
    if (status == STATUS_OK) {
        status =
            codec_decode_request(&job->header, message_frame(&job->frames, 1), &job->body, &error);
    }
    if (status == STATUS_OK && was_cancelled_early(self, job->number)) {
        status = error_set(&error, STATUS_CANCELLED, "cancelled before it came");
    }
    if (status != STATUS_OK)
        worker_fail(self, job, &error);  // what it says was checked by the router
    else if (job->stack_count > 0)
        worker_ask_stack(self, job);
    else
        worker_borrow(self, job);
}

static void on_data_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    if (letter->which_letter == luna_Letter_job_tag) on_job(state, &letter->letter.job, frames);
}

static void on_data(void *state)
{
    struct worker *self = state;
    post_each(self->data, on_data_letter, self);
    try_work(self);
}

static void on_cancel(struct worker *self, uint64_t number)
{
    if (number == 0) return;
    struct worker_job *job = find_job(self, number);
    if (job == NULL) {
        self->early[self->early_next++ % WORKER_JOBS_MAX] = number;
        return;
    }
    job->cancelled = true;
    if (!job->in_hand) {
        struct error error;
        error_set(&error, STATUS_CANCELLED, "cancelled before it began");
        worker_fail(self, job, &error);
        return;
    }
    if (self->running && !is_wanted(self)) lane_cancel(self->lane);
}

static void on_control_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    struct worker *self = state;
    switch (letter->which_letter) {
    case luna_Letter_cancel_job_tag:
        on_cancel(self, letter->letter.cancel_job.job);
        break;
    case luna_Letter_who_tag:
        say_ready(self);
        break;
    case luna_Letter_hello_tag:
        say_hello(self);
        break;
    default:
        break;
    }
}

static void on_control(void *state)
{
    struct worker *self = state;
    post_each(self->control, on_control_letter, self);
}

// ---- tensors

static enum status leased_bytes(struct worker *self, struct worker_job *job,
                                const luna_Tensor *tensor, void **out, struct error *error)
{
    ptrdiff_t index = tensor - job->header.tensors;
    assert(index >= 0);
    assert(index < (ptrdiff_t)CODEC_TENSORS_MAX);
    if (tensor->where == luna_Where_DEVICE) {
        return worker_loan_address(job, (uint32_t)index, out, error);
    }
    return pool_map_find(self->pools, tensor->shared.pool, job->pool_offsets[index], tensor->bytes,
                         out, error);
}

static void count_leased(struct worker_job *job, luna_Where where, uint64_t bytes)
{
    assert(where != luna_Where_FRAME);
    if (where == luna_Where_DEVICE)
        job->device_bytes += bytes;
    else
        job->shared_bytes += bytes;
}

enum status worker_input(struct worker *self, struct worker_job *job, const char *name,
                         const luna_Tensor **tensor_out, struct bytes *out, struct error *error)
{
    uint32_t payload = UINT32_MAX;
    const luna_Tensor *tensor = codec_find_tensor(&job->header, name, &payload);
    if (tensor == NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the request has no tensor \"%s\"", name);
    }
    if (payload == UINT32_MAX) {
        void *data = NULL;
        enum status status = leased_bytes(self, job, tensor, &data, error);
        if (status != STATUS_OK) return status;
        *out = (struct bytes){.data = data, .size = tensor->bytes};
        count_leased(job, tensor->where, tensor->bytes);
    } else {
        *out = message_frame(&job->frames, 2 + payload);
        job->frame_bytes += tensor->bytes;
    }
    *tensor_out = tensor;
    return STATUS_OK;
}

enum status worker_output_open(struct worker *self, struct worker_job *job, const char *name,
                               uint64_t bytes, struct worker_output *out, struct error *error)
{
    struct worker_output output = {.bytes = bytes};
    const luna_Tensor *room = codec_find_room(&job->header, name);
    if (room != NULL && room->bytes >= bytes) {
        enum status status = leased_bytes(self, job, room, &output.data, error);
        if (status != STATUS_OK) return status;
        output.where = room->where;
        output.room = room->shared;
    } else {
        output.data = malloc(bytes);
        if (output.data == NULL) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                             "no memory for an answer of %lu bytes", (unsigned long)bytes);
        }
    }
    *out = output;
    return STATUS_OK;
}

static void free_payload(void *data, void *hint)
{
    (void)hint;
    free(data);
}

enum status worker_output_add(struct worker_reply *reply, struct worker_output *output,
                              const luna_Tensor *tensor, struct error *error)
{
    assert(reply->job != NULL);
    assert(reply->header.tensors_count < CODEC_TENSORS_MAX);
    luna_Tensor described = *tensor;
    described.bytes = output->bytes;
    if (output->where != luna_Where_FRAME) {
        described.where = output->where;
        described.has_shared = true;
        described.shared = output->room;
        count_leased(reply->job, output->where, output->bytes);
    } else {
        enum status status =
            message_append_owned(&reply->payloads, output->data, output->bytes, free_payload, NULL);
        if (status != STATUS_OK) {
            worker_output_drop(output);
            return error_set(error, status, "no memory for an answer of %lu bytes",
                             (unsigned long)tensor->bytes);
        }
        reply->job->frame_bytes += output->bytes;
    }
    reply->header.tensors[reply->header.tensors_count] = described;
    reply->header.tensors_count += 1;
    *output = (struct worker_output){.data = NULL};
    return STATUS_OK;
}

void worker_output_drop(struct worker_output *output)
{
    if (output->where == luna_Where_FRAME) free(output->data);
    *output = (struct worker_output){.data = NULL};
}

// ---- life

void worker_drain(void *state)
{
    struct worker *self = state;
    self->draining = true;
    try_work(self);
}

void worker_destroy(void *state)
{
    struct worker *self = state;
    if (self == NULL) return;
    loop_timer_remove(&self->beat);
    loop_descriptor_remove(&self->lane_watch);
    lane_destroy(&self->lane);
    if (self->own != NULL) self->calls->destroy(self);
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        if (self->jobs[i].number != 0) message_clear(&self->jobs[i].frames);
    }
    for (size_t i = 0; i < sizeof self->watches / sizeof self->watches[0]; i++) {
        loop_socket_remove(&self->watches[i]);
    }
    socket_close(&self->data);
    socket_close(&self->control);
    socket_close(&self->executor);
    pool_map_destroy(&self->pools);
    worker_trace_drop(self);
    free(self);
}

static enum status open_sockets(struct worker *self, struct error *error)
{
    const char *directory = self->arguments.executor->private_directory;
    char data[SOCKET_ENDPOINT_BYTES], control[SOCKET_ENDPOINT_BYTES];
    socket_ipc_endpoint(data, sizeof data, directory, SOCKET_ROUTER_DATA);
    socket_ipc_endpoint(control, sizeof control, directory, SOCKET_ROUTER_CONTROL);
    const struct {
        void **socket;
        enum edge edge;
        const char *endpoint;
        bool control;
        void (*on_readable)(void *state);
    } edges[] = {
        {&self->data, EDGE_WORKER_DATA_PEER, data, false, on_data},
        {&self->control, EDGE_WORKER_CONTROL_PEER, control, true, on_control},
        {&self->executor, EDGE_EXECUTOR_PEER, EXECUTOR_ADDRESS, true, on_executor},
    };
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        enum status status = socket_open(edges[i].socket, self->context->zmq, edges[i].edge, error);
        if (status == STATUS_OK)
            status = socket_connect(*edges[i].socket, edges[i].endpoint, error);
        if (status == STATUS_OK) {
            status = loop_add_socket(self->context->loop, *edges[i].socket, edges[i].control,
                                     edges[i].on_readable, self, &self->watches[i], error);
        }
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

enum status worker_create(void **state, const struct worker_calls *calls,
                          const struct actor_context *context, const void *arguments,
                          struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct worker *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a worker");
    self->context = context;
    self->arguments = *(const struct worker_arguments *)arguments;
    self->calls = calls;
    self->idle_since_ns = now_ns(self);
    enum status status =
        pool_map_create(&self->pools, self->arguments.executor->private_directory, error);
    if (status == STATUS_OK) status = lane_create(&self->lane, self->arguments.device, error);
    if (status == STATUS_OK) status = calls->create(self, error);
    if (status == STATUS_OK) status = open_sockets(self, error);
    if (status == STATUS_OK) {
        status = loop_add_descriptor(context->loop, lane_descriptor(self->lane), on_lane, self,
                                     &self->lane_watch, error);
    }
    if (status == STATUS_OK) {
        status = loop_add_timer(context->loop, BEAT_MS, BEAT_MS, on_beat, self, &self->beat, error);
    }
    if (status != STATUS_OK) {
        worker_destroy(self);
        return status;
    }
    say_ready(self);
    *state = self;
    return STATUS_OK;
}
