// spans.c - an array that fills up in the order of the stream; steps counts how many of its steps
// have ended, so it is also the number of the step at hand.

#include "kernels/cuda/spans.h"

#include <assert.h>
#include <stdlib.h>

enum status spans_make(struct gpu_spans *self, struct error *error)
{
    assert(self != NULL);
    assert(self->all == NULL);
    self->all = calloc(GPU_SPANS_MAX, sizeof *self->all);
    if (self->all != NULL) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the times of a trace");
}

void spans_free(struct gpu_spans *self)
{
    assert(self != NULL);
    free(self->all);
    *self = (struct gpu_spans){.all = NULL};
}

void spans_forget(struct gpu_spans *self)
{
    assert(self != NULL);
    *self = (struct gpu_spans){.all = self->all};
}

void spans_begin(struct gpu_spans *self, uint64_t begin_ns)
{
    assert(self->all != NULL);
    assert(self->count == 0 && self->steps == 0);
    self->begin_ns = begin_ns;
    self->is_noting = true;
}

void spans_add(struct gpu_spans *self, const char *name)
{
    assert(self->is_noting);
    assert(self->count < GPU_SPANS_MAX);
    self->all[self->count++] = (struct gpu_span){.name = name, .step = self->steps};
}

void spans_end_step(struct gpu_spans *self)
{
    if (self->is_noting) self->steps += 1;
}

void spans_time(struct gpu_spans *self, uint32_t i, uint64_t end_ns)
{
    assert(i < self->count);
    uint64_t begin_ns = i == 0 ? self->begin_ns : self->all[i - 1].end_ns;
    self->all[i].begin_ns = begin_ns;
    self->all[i].end_ns = end_ns > begin_ns ? end_ns : begin_ns;
}

void spans_cut(struct gpu_spans *self, uint32_t count)
{
    assert(count <= self->count);
    if (count < self->count) self->steps = self->all[count].step;
    while (count > 0 && self->all[count - 1].step == self->steps) count--;
    self->count = count;
    self->is_noting = false;
}
