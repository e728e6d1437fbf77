// clip_worker.c - prompts to conditioning: a batch is what waits in the mailbox, taken without
// waiting.
//
// Rows do not influence each other, so who shares a batch changes nothing but the time. Tokenize
// needs no lane and is answered while jobs are gathered.

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "actors/clip_reply.h"
#include "actors/clip_request.h"
#include "actors/event.h"
#include "actors/worker.h"

#define BATCH_ROWS_MAX 64u

// One request of the batch.
struct batch_entry {
    struct worker_job *job;  // in hand
    struct text_job *text;   // its tokens, and its outputs after the run
    uint64_t stack_job;      // the job's number when its stack is to be given back with the batch
};

struct clip_worker {
    struct batch_entry entries[WORKER_JOBS_MAX];  // the batch
    uint32_t count;                               // entries in use
    struct text_batch *batch;                     // their program; NULL when none is prepared
};

static struct clip_worker *own(struct worker *worker)
{
    assert(worker->own != NULL);
    return worker->own;
}

// ---- answers

static void fill_reply(struct worker *worker, const struct worker_job *job,
                       const struct text_job *text, luna_TextReply *reply)
{
    *reply = (luna_TextReply)luna_TextReply_init_zero;
    const char *line = text_job_notes(text);
    while (*line != '\0' && reply->notes_count < sizeof reply->notes / sizeof reply->notes[0]) {
        size_t length = strcspn(line, "\n");
        char note[512];  // text_set cuts it at a character's border
        snprintf(note, sizeof note, "%.*s", (int)length, line);
        text_set(reply->notes[reply->notes_count], sizeof reply->notes[0], note);
        reply->notes_count += 1;
        line += length;
        if (*line == '\n') line += 1;
    }
    reply->rows = text_job_rows(text);
    reply->queue_ms = job->queue_ms;
    reply->execute_ms = worker_execute_ms(worker, job);
    text_set(reply->device, sizeof reply->device, worker->arguments.device_name);
    clip_fill_loras(job, reply);
}

// A tensor of an answer, and the values it is made of.
struct values {
    luna_Tensor tensor;  // its name, dtype and shape
    const void *data;    // all of them, borrowed
    enum dtype dtype;    // of data
};

static enum status add_tensor(struct worker *worker, struct worker_reply *answer,
                              const struct values *values, struct error *error)
{
    const luna_Tensor *tensor = &values->tensor;
    uint64_t count = 1;
    for (uint32_t i = 0; i < tensor->dims_count; i++) count *= tensor->dims[i];
    struct worker_output output;
    uint64_t bytes = count * dtype_bytes((enum dtype)tensor->dtype);
    enum status status =
        worker_output_open(worker, answer->job, tensor->name, bytes, &output, error);
    if (status != STATUS_OK) return status;
    if (dtype_is_real(values->dtype)) {
        dtype_convert(output.data, (enum dtype)tensor->dtype, values->data, values->dtype, count);
    } else {
        memcpy(output.data, values->data, bytes);
    }
    return worker_output_add(answer, &output, tensor, error);
}

static bool all_finite(const float *values, uint64_t count)
{
    bool finite = true;
    for (uint64_t i = 0; i < count; i++) finite &= isfinite(values[i]) != 0;
    return finite;
}

static enum status add_encodings(struct worker *worker, const struct batch_entry *entry,
                                 struct worker_reply *answer, bool *is_finite, struct error *error)
{
    static const char *const names[2][2] = {{"cond", "pooled"},
                                            {"negative_cond", "negative_pooled"}};
    luna_Dtype dtype = entry->job->body.encode_text.output;
    for (uint32_t which = 0; which < 2; which++) {
        struct text_output output = text_job_output(entry->text, which);
        if (output.cond == NULL) continue;
        struct values values = {.data = output.cond, .dtype = DTYPE_F32};
        values.tensor = (luna_Tensor){
            .dtype = dtype, .dims_count = 3, .dims = {1, output.tokens, output.width}};
        text_set(values.tensor.name, sizeof values.tensor.name, names[which][0]);
        *is_finite &= all_finite(output.cond, (uint64_t)output.tokens * output.width);
        enum status status = add_tensor(worker, answer, &values, error);
        if (status != STATUS_OK) return status;
        values.data = output.pooled;
        values.tensor =
            (luna_Tensor){.dtype = dtype, .dims_count = 2, .dims = {1, output.pooled_width}};
        text_set(values.tensor.name, sizeof values.tensor.name, names[which][1]);
        *is_finite &= all_finite(output.pooled, output.pooled_width);
        status = add_tensor(worker, answer, &values, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

// Ids and weights of one encoder as two tensors [chunks, tokens].
static enum status add_tokens(struct worker *worker, struct worker_reply *answer,
                              const struct text_job *text, enum model_part part,
                              struct error *error)
{
    static const char letters[MODEL_PART_COUNT] = {
        [MODEL_CLIP_L] = 'l', [MODEL_CLIP_H] = 'h', [MODEL_CLIP_G] = 'g'};
    uint32_t chunks = 0, width = 0;
    const struct text_token *tokens = text_job_tokens(text, part, 0, &chunks, &width);
    if (tokens == NULL) return STATUS_OK;
    uint64_t count = (uint64_t)chunks * width;
    int32_t *ids = malloc(count * sizeof *ids);
    double *weights = malloc(count * sizeof *weights);
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    if (ids == NULL || weights == NULL) {
        error_set(error, status, "no memory for %lu tokens", (unsigned long)count);
        goto done;
    }
    for (uint64_t i = 0; i < count; i++) {
        ids[i] = tokens[i].id;
        weights[i] = tokens[i].weight;
    }
    struct values values = {.data = ids, .dtype = DTYPE_I32};
    luna_Tensor *tensor = &values.tensor;
    *tensor = (luna_Tensor){.dtype = luna_Dtype_I32, .dims_count = 2, .dims = {chunks, width}};
    snprintf(tensor->name, sizeof tensor->name, "%c.ids", letters[part]);
    status = add_tensor(worker, answer, &values, error);
    if (status != STATUS_OK) goto done;
    values.data = weights;
    values.dtype = DTYPE_F64;
    tensor->dtype = luna_Dtype_F64;
    snprintf(tensor->name, sizeof tensor->name, "%c.weights", letters[part]);
    status = add_tensor(worker, answer, &values, error);

done:
    free(ids);
    free(weights);
    return status;
}

static void answer_tokens(struct worker *worker, struct worker_job *job,
                          const struct text_job *text)
{
    struct worker_reply answer;
    struct error error;
    enum status status = STATUS_OK;
    worker_reply_start(&answer, job);
    for (int part = MODEL_CLIP_L; status == STATUS_OK && part < MODEL_PART_COUNT; part++) {
        status = add_tokens(worker, &answer, text, (enum model_part)part, &error);
    }
    if (status != STATUS_OK) {
        worker_reply_drop(&answer);
        worker_fail(worker, job, &error);
        return;
    }
    luna_TextReply reply;
    fill_reply(worker, job, text, &reply);
    reply.rows = 0;
    worker_answer(worker, &answer, luna_TextReply_fields, &reply);
}

static void answer_encoding(struct worker *worker, const struct batch_entry *entry)
{
    struct worker_reply answer;
    struct error error;
    bool is_finite = true;
    worker_reply_start(&answer, entry->job);
    if (add_encodings(worker, entry, &answer, &is_finite, &error) != STATUS_OK) {
        worker_reply_drop(&answer);
        worker_fail(worker, entry->job, &error);
        return;
    }
    luna_TextReply reply;
    fill_reply(worker, entry->job, entry->text, &reply);
    reply.not_finite_output = !is_finite;
    worker_answer(worker, &answer, luna_TextReply_fields, &reply);
}

// ---- batches

static void drop_batch(struct worker *worker)
{
    struct clip_worker *self = own(worker);
    text_batch_destroy(&self->batch);
    for (uint32_t i = 0; i < self->count; i++) {
        struct batch_entry *entry = &self->entries[i];
        text_job_destroy(&entry->text);
        if (entry->stack_job != 0) worker_give_back_stack(worker, entry->stack_job);
    }
    self->count = 0;
}

// A stack outlives the batch that is encoded with it, not only its job.
static void add_entry(struct clip_worker *self, struct worker_job *job, struct text_job *text)
{
    struct batch_entry *entry = &self->entries[self->count];
    *entry = (struct batch_entry){.job = job, .text = text};
    if (job->stack_owed) entry->stack_job = job->number;
    job->stack_owed = false;
    self->count += 1;
}

// Puts the last entry of the batch back into the mailbox.
static void drop_entry(struct clip_worker *self)
{
    assert(self->count > 0);
    self->count -= 1;
    struct batch_entry *entry = &self->entries[self->count];
    text_job_destroy(&entry->text);
    entry->job->in_hand = false;
    entry->job->stack_owed = entry->stack_job != 0;
}

static void fail_batch(struct worker *worker, const struct error *error)
{
    struct clip_worker *self = own(worker);
    for (uint32_t i = 0; i < self->count; i++) worker_fail(worker, self->entries[i].job, error);
    drop_batch(worker);
}

static void gather(struct worker *worker)
{
    struct clip_worker *self = own(worker);
    uint32_t rows = 0;
    struct worker_job *job = NULL;
    while (rows < BATCH_ROWS_MAX && (job = worker_next(worker)) != NULL) {
        struct text_job *text = NULL;
        struct error error;
        if (clip_read_request(worker, job, &text, &error) != STATUS_OK) {
            worker_fail(worker, job, &error);
        } else if (job->header.operation == luna_Operation_TOKENIZE) {
            answer_tokens(worker, job, text);
            text_job_destroy(&text);
        } else {
            add_entry(self, job, text);
            rows += text_job_rows(text);
        }
    }
}

static void prepare(struct worker *worker)
{
    struct clip_worker *self = own(worker);
    struct text_job *jobs[WORKER_JOBS_MAX];
    struct error error;
    for (uint32_t i = 0; i < self->count; i++) jobs[i] = self->entries[i].text;
    if (text_batch_create(&self->batch, worker->arguments.loaded->text, jobs, self->count,
                          &error) != STATUS_OK) {
        fail_batch(worker, &error);
        worker_idle(worker);
        return;
    }
    uint64_t peak = program_peak_bytes(text_batch_program(self->batch));
    if (peak > worker->reserved_bytes)
        worker_reserve(worker, peak);
    else
        worker->calls->granted(worker, true, worker->reserved_bytes, 0);
}

static void clip_work(struct worker *worker)
{
    struct clip_worker *self = own(worker);
    assert(self->count == 0);
    gather(worker);
    if (self->count > 0)
        prepare(worker);
    else
        worker->busy = false;
}

// The arena was refused: a smaller batch, else not now, else never.
static void lack_memory(struct worker *worker, uint64_t capacity)
{
    struct clip_worker *self = own(worker);
    uint64_t peak = program_peak_bytes(text_batch_program(self->batch));
    text_batch_destroy(&self->batch);
    if (self->count > 1) {
        uint32_t kept = self->count / 2;
        while (self->count > kept) drop_entry(self);
        prepare(worker);
        return;
    }
    if (peak <= capacity) {
        worker_postpone(worker, self->entries[0].job, peak);
        drop_batch(worker);
    } else {
        struct error error;
        error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                  "this needs %lu MiB of memory, device %s can give %lu MiB",
                  (unsigned long)(peak >> 20), worker->arguments.device_name,
                  (unsigned long)(capacity >> 20));
        error.retry_after_ms = 1000;
        fail_batch(worker, &error);
    }
    worker_idle(worker);
}

static void clip_granted(struct worker *worker, bool granted, uint64_t bytes, uint64_t capacity)
{
    (void)bytes;
    struct clip_worker *self = own(worker);
    if (self->batch == NULL) return;
    if (!granted) {
        lack_memory(worker, capacity);
        return;
    }
    const struct program *program = text_batch_program(self->batch);
    if (!worker_take_arena(worker, program_peak_bytes(program))) return;
    uint32_t count = 0;
    void *const *bindings = text_batch_bindings(self->batch, &count);
    worker_run(worker, program, bindings, count);
}

static void clip_ran(struct worker *worker, const struct error *error)
{
    struct clip_worker *self = own(worker);
    if (error->status != STATUS_OK) {
        fail_batch(worker, error);
    } else {
        text_batch_finish(self->batch);
        for (uint32_t i = 0; i < self->count; i++) answer_encoding(worker, &self->entries[i]);
        drop_batch(worker);
    }
    worker_idle(worker);
}

static enum status clip_worker_setup(struct worker *worker, struct error *error)
{
    assert(worker->arguments.loaded->text != NULL);
    worker->own = calloc(1, sizeof(struct clip_worker));
    if (worker->own == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a worker");
    return STATUS_OK;
}

static void clip_worker_teardown(struct worker *worker)
{
    drop_batch(worker);
    free(worker->own);
}

static const struct worker_calls calls = {
    .group = luna_Group_TEXT,
    .credit = 64,  // rows
    .create = clip_worker_setup,
    .destroy = clip_worker_teardown,
    .work = clip_work,
    .granted = clip_granted,
    .ran = clip_ran,
};

static enum status clip_worker_create(void **state, const struct actor_context *context,
                                      const void *arguments, struct error *error)
{
    return worker_create(state, &calls, context, arguments, error);
}

const struct actor_kind clip_worker_kind = {"clip_worker", clip_worker_create, worker_destroy,
                                            worker_drain};
