// worker_loans.c - device memory of clients that a worker's jobs read and write: borrowed from the
// executor, which owns it, when a job comes, and returned when the job is over. So the memory
// outlives whatever becomes of the client meanwhile.

#include <assert.h>
#include <string.h>

#include "actors/worker.h"
#include "base/checked.h"

static struct worker_loan *find_loan(struct worker_job *job, uint32_t pool)
{
    for (uint32_t i = 0; i < job->loans_count; i++) {
        if (job->loans[i].pool == pool) return &job->loans[i];
    }
    return NULL;
}

void worker_borrow(struct worker *self, struct worker_job *job)
{
    assert(job->number != 0);
    assert(job->loans_count == 0);
    for (uint32_t i = 0; i < job->header.tensors_count; i++) {
        const luna_Tensor *tensor = &job->header.tensors[i];
        if (tensor->where != luna_Where_DEVICE) continue;
        if (find_loan(job, tensor->shared.pool) != NULL) continue;
        job->loans[job->loans_count++] = (struct worker_loan){.pool = tensor->shared.pool};
        job->loans_awaited += 1;
        const struct executor_letter letter = {.kind = EXECUTOR_BORROW,
                                               .worker = self->arguments.id,
                                               .job = job->number,
                                               .pool = tensor->shared.pool};
        worker_tell_executor(self, &letter, NULL);
    }
}

static void give_back(struct worker *self, uint32_t pool)
{
    const struct executor_letter letter = {
        .kind = EXECUTOR_RETURN, .worker = self->arguments.id, .pool = pool};
    worker_tell_executor(self, &letter, NULL);
}

void worker_take_loan(struct worker *self, const struct executor_letter *letter)
{
    struct worker_job *job = worker_find_job(self, letter->job);
    struct worker_loan *loan = job != NULL ? find_loan(job, letter->pool) : NULL;
    if (loan == NULL) {  // the job is over
        if (letter->memory != NULL) give_back(self, letter->pool);
        return;
    }
    assert(loan->memory == NULL);
    assert(job->loans_awaited > 0);
    job->loans_awaited -= 1;
    if (letter->memory != NULL) {
        loan->memory = letter->memory;
        loan->bytes = letter->bytes;
        return;
    }
    struct error error;
    error_set(&error, STATUS_NOT_FOUND,
              "device lease %u is none of device %s, where this would run", letter->pool,
              self->arguments.device_name);
    worker_fail(self, job, &error);
}

void worker_return_loans(struct worker *self, struct worker_job *job)
{
    for (uint32_t i = 0; i < job->loans_count; i++) {
        if (job->loans[i].memory != NULL) give_back(self, job->loans[i].pool);
    }
    job->loans_count = 0;
    job->loans_awaited = 0;
}

enum status worker_loan_address(const struct worker_job *job, uint32_t index, void **out,
                                struct error *error)
{
    assert(index < job->header.tensors_count);
    const luna_Tensor *tensor = &job->header.tensors[index];
    uint64_t offset = job->pool_offsets[index];
    uint64_t end = 0;
    for (uint32_t i = 0; i < job->loans_count; i++) {
        const struct worker_loan *loan = &job->loans[i];
        if (loan->pool != tensor->shared.pool || loan->memory == NULL) continue;
        if (!checked_add(offset, tensor->bytes, &end) || end > loan->bytes) break;
        *out = loan->memory + offset;
        return STATUS_OK;
    }
    return error_set(error, STATUS_INTERNAL, "%lu bytes at %lu lie outside device lease %u",
                     (unsigned long)tensor->bytes, (unsigned long)offset, tensor->shared.pool);
}
