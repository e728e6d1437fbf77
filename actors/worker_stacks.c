// worker_stacks.c - the stacks of a worker's jobs: asked for when a job comes, borrowed from the
// executor until the job is over. A job whose stack is not there yet waits in the mailbox, and
// others go before it.

#include "actors/worker.h"

#include <assert.h>
#include <string.h>

void worker_ask_stack(struct worker *self, struct worker_job *job)
{
    assert(job->number != 0);
    assert(job->stack_count > 0);
    assert(!job->stack_owed);
    struct stack_question question = {.worker = self->arguments.id,
                                      .job = job->number,
                                      .model = self->arguments.loaded->text,
                                      .count = job->stack_count};
    memcpy(question.entries, job->stack, job->stack_count * sizeof job->stack[0]);
    const struct executor_letter letter = {.kind = EXECUTOR_WANT_STACK,
                                           .worker = self->arguments.id};
    const struct bytes frame = {.data = &question, .size = sizeof question};
    job->waits_for_stack = true;
    job->stack_owed = true;
    worker_tell_executor(self, &letter, &frame);
}

void worker_give_back_stack(struct worker *self, uint64_t job)
{
    assert(job != 0);
    const struct executor_letter letter = {
        .kind = EXECUTOR_GIVE_BACK, .worker = self->arguments.id, .job = job};
    worker_tell_executor(self, &letter, NULL);
}

// What went wrong, with the name by which the client knows the adapter.
static void name_entry(const struct worker_job *job, uint32_t index, struct error *error)
{
    if (index >= job->body.encode_text.loras_count) return;
    const luna_LoraEntry *entry = &job->body.encode_text.loras[index];
    error_prefix(error, "LoRA \"%.128s\"",
                 entry->reference[0] != '\0' ? entry->reference : entry->tensor);
}

void worker_take_stack(struct worker *self, const struct stack_grant *grant)
{
    struct worker_job *job = NULL;
    for (uint32_t i = 0; i < WORKER_JOBS_MAX && job == NULL; i++) {
        if (self->jobs[i].number == grant->job && self->jobs[i].waits_for_stack)
            job = &self->jobs[i];
    }
    if (job == NULL) return;  // it is over; the executor was told
    assert(grant->count == job->stack_count || grant->error.status != STATUS_OK);
    job->waits_for_stack = false;
    if (grant->error.status == STATUS_OK) {
        job->grant = *grant;
        return;
    }
    job->stack_owed = false;  // there is none
    if (grant->needs_bytes > 0) {
        worker_postpone(self, job, grant->needs_bytes);
        return;
    }
    struct error error = grant->error;
    name_entry(job, grant->entry, &error);
    worker_fail(self, job, &error);
}
