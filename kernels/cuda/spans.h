// spans.h - how a driver keeps what a traced run did (struct gpu_spans of driver.h): the spans that
// are added between two ends of steps are those of a step. What is known has no gap: behind a span
// that cannot be kept, or whose time cannot be told, nothing is, nor is the step that lacks it.

#ifndef KERNELS_CUDA_SPANS_H
#define KERNELS_CUDA_SPANS_H

#include "kernels/cuda/driver.h"

#ifdef __cplusplus
extern "C" {
#endif

// Makes room for a run's spans, of which there are none yet.
// Errors:    RESOURCE_EXHAUSTED, there is no room.
// Thread:    the stream's user's, as for all of these.
enum status spans_make(struct gpu_spans *self, struct error *error);

// Gives the room back, where there is any.
void spans_free(struct gpu_spans *self);

// Nothing is known; nothing is added until spans_begin, with which a run begins.
void spans_forget(struct gpu_spans *self);
void spans_begin(struct gpu_spans *self, uint64_t begin_ns);

// Adds a span of the step at hand. There is room, and is_noting.
void spans_add(struct gpu_spans *self, const char *name);

// The step at hand has ended.
void spans_end_step(struct gpu_spans *self);

// When the i-th span ended; those before it are known. Time never goes back.
void spans_time(struct gpu_spans *self, uint32_t i, uint64_t end_ns);

// Keeps no more than count spans, and of these the ones of whole steps; adds no more.
void spans_cut(struct gpu_spans *self, uint32_t count);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_SPANS_H
