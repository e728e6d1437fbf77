// worker_trace.c - what a lane did when, as events that Chrome's trace viewer reads: one array in
// JSON, a tensor of the answer to each request that wanted it.
//
//     process    the executor, by its device
//     thread     the worker
//     X          the run, with how many of the lane's earlier runs were one graph (a traced one
//                never is); in it each operation, and in that what the device did for it, launch by
//                launch, by the device's own clock where it tells
//     C          bytes of the arena in use, and of the device, over time
//
// Times are those of CLOCK_MONOTONIC, in microseconds: a client on the same machine lays its own
// beside them.

#include "actors/worker.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"

#define OPERATIONS_MAX 4096u
#define LAUNCHES_MAX 8192u

void worker_trace_drop(struct worker *self)
{
    free(self->trace.text);
    self->trace = (struct worker_trace){.text = NULL};
}

static uint64_t now_ns(const struct worker *self)
{
    return clock_ns(loop_clock(self->context->loop));
}

void worker_trace_begin(struct worker *self, const struct program *program)
{
    assert(program != NULL);
    bool wanted = false;
    worker_trace_drop(self);
    for (uint32_t i = 0; i < WORKER_JOBS_MAX; i++) {
        const struct worker_job *job = &self->jobs[i];
        wanted |= job->number != 0 && job->in_hand && job->header.want_trace;
    }
    // A device that does not time its operations still has a run to show.
    if (wanted || self->lane_is_traced) {
        self->lane_is_traced = lane_trace(self->lane, wanted, NULL) == STATUS_OK && wanted;
    }
    if (!wanted) return;
    self->trace.program = program;
    self->trace.begun_ns = now_ns(self);
}

static double microseconds(uint64_t ns)
{
    return (double)ns / 1e3;
}

// Where an event belongs: what every line has.
struct place {
    FILE *out;
    long pid;      // of the executor
    uint32_t tid;  // of the worker, by its number
};

static void write_names(const struct place *place, const struct worker *self)
{
    const char *kind = self->calls->group == luna_Group_VAE ? "vae_worker" : "clip_worker";
    fprintf(place->out,
            "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":%ld,\"args\":{\"name\":"
            "\"luna executor %s\"}},\n",
            place->pid, self->arguments.device_name);
    fprintf(place->out,
            "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":%ld,\"tid\":%u,\"args\":{\"name\":"
            "\"%s %s\"}},\n",
            place->pid, place->tid, kind, self->arguments.model);
}

static void write_memory(const struct place *place, const struct worker *self, uint64_t at_ns)
{
    struct device_memory memory;
    if (device_memory(self->arguments.device, &memory, NULL) != STATUS_OK) return;
    fprintf(place->out,
            "{\"name\":\"device memory\",\"ph\":\"C\",\"ts\":%.3f,\"pid\":%ld,\"args\":{"
            "\"used_bytes\":%lu,\"free_bytes\":%lu}},\n",
            microseconds(at_ns), place->pid, (unsigned long)memory.used_bytes,
            (unsigned long)memory.free_bytes);
}

static void write_operation(const struct place *place, const struct operation_facts *facts,
                            uint64_t begin_ns, uint64_t end_ns)
{
    fprintf(place->out,
            "{\"name\":\"%s\",\"cat\":\"operation\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,"
            "\"pid\":%ld,\"tid\":%u,\"args\":{\"flop\":%lu,\"live_bytes\":%lu}},\n",
            facts->name, microseconds(begin_ns), microseconds(end_ns - begin_ns), place->pid,
            place->tid, (unsigned long)facts->floating_point_operations,
            (unsigned long)facts->live_bytes);
    fprintf(place->out,
            "{\"name\":\"arena of %u\",\"ph\":\"C\",\"ts\":%.3f,\"pid\":%ld,\"args\":{"
            "\"live_bytes\":%lu}},\n",
            place->tid, microseconds(begin_ns), place->pid, (unsigned long)facts->live_bytes);
}

static void write_launch(const struct place *place, const struct lane_launch *launch)
{
    fprintf(place->out,
            "{\"name\":\"%s\",\"cat\":\"kernel\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,"
            "\"pid\":%ld,\"tid\":%u,\"args\":{\"operation\":%u}},\n",
            launch->name, microseconds(launch->begin_ns),
            microseconds(launch->end_ns - launch->begin_ns), place->pid, place->tid,
            launch->operation);
}

// Viewers nest by time. An operation stands before its launches: one of them may be as long as it.
static void write_operations(const struct place *place, const struct worker *self)
{
    const struct program *program = self->trace.program;
    uint32_t count = program_operations_count(program);
    if (count > OPERATIONS_MAX) count = OPERATIONS_MAX;
    uint64_t *times = calloc(count + 1, sizeof *times);
    struct lane_launch *launches = calloc(LAUNCHES_MAX, sizeof *launches);
    if (times == NULL || launches == NULL) goto done;
    uint32_t known = lane_times(self->lane, times, count);
    uint32_t launches_count = lane_launches(self->lane, launches, LAUNCHES_MAX);
    uint32_t launch = 0;
    for (uint32_t i = 0; i < known; i++) {
        struct operation_facts facts = program_operation(program, i);
        assert(times[i + 1] >= times[i]);
        write_operation(place, &facts, times[i], times[i + 1]);
        for (; launch < launches_count && launches[launch].operation == i; launch++) {
            write_launch(place, &launches[launch]);
        }
    }

done:
    free(launches);
    free(times);
}

void worker_trace_end(struct worker *self)
{
    if (self->trace.program == NULL) return;
    char *text = NULL;
    size_t bytes = 0;
    uint64_t now = now_ns(self);
    struct place place = {.out = open_memstream(&text, &bytes),
                          .pid = (long)getpid(),
                          .tid = (uint32_t)(self->arguments.id & 0xffffu)};
    if (place.out == NULL) return;
    fprintf(place.out, "[");
    write_names(&place, self);
    write_memory(&place, self, now);
    write_operations(&place, self);
    struct lane_graphs graphs = lane_graphs(self->lane);
    fprintf(place.out,
            "{\"name\":\"run\",\"cat\":\"run\",\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f,\"pid\":%ld,"
            "\"tid\":%u,\"args\":{\"arena_bytes\":%lu,\"peak_bytes\":%lu,\"graphs_recorded\":%lu,"
            "\"graphs_replayed\":%lu}}]",
            microseconds(self->trace.begun_ns), microseconds(now - self->trace.begun_ns), place.pid,
            place.tid, (unsigned long)lane_arena_bytes(self->lane),
            (unsigned long)program_peak_bytes(self->trace.program), (unsigned long)graphs.recorded,
            (unsigned long)graphs.replayed);
    bool written = fclose(place.out) == 0;
    self->trace.program = NULL;  // it may go now
    self->trace.text = written ? text : NULL;
    self->trace.bytes = written ? bytes : 0;
    if (!written) free(text);
}

void worker_trace_add(struct worker *self, struct worker_reply *reply)
{
    const struct worker_job *job = reply->job;
    bool wanted = job->header.want_trace && job->in_hand && self->trace.text != NULL;
    bool has_room = reply->header.tensors_count < CODEC_TENSORS_MAX;
    if (!wanted || !has_room || reply->header.code != luna_Code_OK) return;
    struct worker_output output = {.data = malloc(self->trace.bytes), .bytes = self->trace.bytes};
    if (output.data == NULL) return;
    memcpy(output.data, self->trace.text, self->trace.bytes);
    luna_Tensor tensor = {.dtype = luna_Dtype_U8, .dims_count = 1, .dims = {self->trace.bytes}};
    text_set(tensor.name, sizeof tensor.name, CODEC_TRACE_TENSOR);
    worker_output_add(reply, &output, &tensor, NULL);  // an answer without it is an answer too
}
