// driver.h - the thin layer between our host code and a GPU: memory, streams, copies, waiting.
//
// Two implementations: driver_cuda.c over the CUDA runtime, in libluna_cuda.so, and
// driver_emulated.cpp over kernels/emulation/, in libluna_emulated.so. Everything above it, lanes
// and weights and the order of launches, is the same code on both.
//
// What is enqueued on a stream runs in order. A failure sticks to the stream: later calls on it do
// nothing, and gpu_stream_wait tells.

#ifndef KERNELS_CUDA_DRIVER_H
#define KERNELS_CUDA_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "base/error.h"

struct gpu_card;
struct gpu_stream;

// What a lane shares with its stream: plain numbers, because C and C++ spell atomic types apart.
// They are read and written with __atomic_ functions alone.
struct gpu_signals {
    uint32_t is_cancelled;  // not 0: begin nothing more; the lane's driver sets it
    uint64_t progress;      // grows with all that has been done; the stream counts
};

// True for the name of a device that this driver may open, "cuda:0" or "emulated"; says which card
// it names, and where in the name its end is.
// Thread:    any.
bool gpu_driver_takes(const char *name, uint32_t *number, const char **rest);

// How many cards there are, and what drives them.
struct gpu_count {
    char driver[64];    // with its version
    uint32_t count;     //
    uint64_t usable;    // bit N: gpu_open takes card N
    char refusal[128];  // why it takes one not; "" when it takes all
};

// Loads the driver and counts.
// Errors:    UNAVAILABLE says that there is no driver, or no card.
// Thread:    any.
enum status gpu_probe(struct gpu_count *out, struct error *error);

// Opens the device of that number and makes it this process's: a context of some hundred MiB.
// Ownership: on success the caller owns *out.
// Errors:    UNAVAILABLE without a driver or a device, NOT_FOUND for a number that is none.
// Thread:    any.
enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error);

// Closes it; streams and memory must be gone.
// Thread:    any.
void gpu_close(struct gpu_card **self_p);

struct gpu_facts {
    char label[96];            // the card's name, for people
    char driver[64];           // with its version
    char uuid[48];             // "GPU-..."
    char capability[8];        // "8.9"
    uint32_t multiprocessors;  // that run blocks side by side
};

// What the card is. The result lives as long as the card.
// Thread:    any.
const struct gpu_facts *gpu_describe(const struct gpu_card *self);

struct gpu_memory {
    uint64_t total_bytes;  // of the card
    uint64_t free_bytes;   // all processes counted
    uint64_t used_bytes;   // given by gpu_allocate and not freed
};

// How its memory stands; what was freed a moment ago counts as free.
// Errors:    UNAVAILABLE when the device is broken.
// Thread:    any.
enum status gpu_read_memory(struct gpu_card *self, struct gpu_memory *out, struct error *error);

// Memory of the device, aligned to 256 bytes, its content undefined.
// Ownership: the caller frees *out with gpu_free.
// Errors:    RESOURCE_EXHAUSTED; UNAVAILABLE when the device is broken.
// Thread:    any.
enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error);

// Frees bytes that gpu_allocate gave; nothing that runs uses them. Never waits for the device. NULL
// is allowed.
// Thread:    any.
void gpu_free(struct gpu_card *self, void *memory, uint64_t bytes);

// Where the elements of an upload come from: fill writes count of them, from the first on, to host
// memory that the driver has pinned.
struct gpu_source {
    void (*fill)(void *context, void *to, uint64_t first, uint64_t count);
    void *context;           // of fill
    uint64_t count;          // of elements
    uint32_t element_bytes;  // 1, 2 or 4
};

// Makes device memory of a source, piece by piece: while one is copied, the next is filled. Returns
// when all is there.
// Errors:    RESOURCE_EXHAUSTED without host memory to pin; UNAVAILABLE when the device is broken.
// Thread:    any that may wait.
enum status gpu_upload(struct gpu_card *self, void *to, const struct gpu_source *source,
                       struct error *error);

// Creates an idle stream. signals outlive it.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED, INTERNAL.
// Thread:    any; afterwards one thread at a time uses it.
enum status gpu_stream_create(struct gpu_stream **out, struct gpu_card *gpu,
                              struct gpu_signals *signals, struct error *error);

// Destroys a stream on which nothing runs. NULL is allowed.
// Thread:    the user's.
void gpu_stream_destroy(struct gpu_stream **self_p);

// Forgets a failure of this stream, but not that the device is broken.
// Thread:    the user's.
void gpu_stream_reset(struct gpu_stream *self);

// A rectangle of bytes: rows of width bytes, pitches from one to the next.
struct gpu_plane {
    uint64_t width, rows;           // bytes, lines
    uint64_t to_pitch, from_pitch;  // bytes
};

// Enqueues a copy from the host to the device or back; the host's memory may as well be a loan's
// (driver_loan.h). It stays until the stream was waited for.
// Thread:    the user's.
void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane);
void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane);

// Enqueues zeroing.
// Thread:    the user's.
void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes);

// Host memory that the device copies from and to by itself.
// Ownership: the caller gives it back with gpu_unpin, which never waits. NULL is allowed there.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any that may wait for some ms.
enum status gpu_pin(struct gpu_card *self, uint64_t bytes, void **out, struct error *error);
void gpu_unpin(struct gpu_card *self, void *memory);

// What was enqueued once, to be enqueued again as one: the same launches and copies with the same
// arguments, at the same addresses.
struct gpu_graph;

// From now on what is enqueued is not done but recorded, until gpu_graph_end; host memory that is
// copied from or to is pinned, and no step is ended or waited for. False: nothing is recorded, what
// is enqueued is done.
// Thread:    the user's.
bool gpu_graph_begin(struct gpu_stream *self);

// Ends the recording; the stream is as it was before, whatever failed meanwhile.
// Ownership: on success the caller owns *out and destroys it before the stream.
// Errors:    INTERNAL, RESOURCE_EXHAUSTED.
// Thread:    the user's.
enum status gpu_graph_end(struct gpu_stream *self, struct gpu_graph **out, struct error *error);

// How many launches, copies and zeroings were recorded.
// Thread:    any.
uint32_t gpu_graph_size(const struct gpu_graph *graph);

// Enqueues what was recorded on this stream. False: nothing was enqueued.
// Thread:    the user's.
bool gpu_graph_launch(struct gpu_stream *self, struct gpu_graph *graph);

// Forgets it; it does not run. NULL is allowed.
// Thread:    the stream's user.
void gpu_graph_destroy(struct gpu_graph **graph_p);

// The most steps of a stream that may be under way at once.
#define GPU_STEPS_MAX 8u

// Ends a step (numbers repeat after GPU_STEPS_MAX), and waits for the end of one, sleeping.
// Thread:    the user's.
void gpu_step_end(struct gpu_stream *self, uint32_t step);
void gpu_step_wait(struct gpu_stream *self, uint32_t step);

// Waits for everything that was enqueued, sleeping.
// Errors:    CANCELLED when the signals said so; RESOURCE_EXHAUSTED when the device had no memory
//            for what was enqueued; INTERNAL when something failed; UNAVAILABLE when that broke the
//            device, so that everything after it fails too.
// Thread:    the user's.
enum status gpu_stream_wait(struct gpu_stream *self, struct error *error);

// The most spans of a run that are kept.
#define GPU_SPANS_MAX 8192u

// Something that a stream did: a launch, by its kernel's name, "copy in", "copy out" or "zero". It
// begins where the one before it ended: what the device waited meanwhile is in it.
struct gpu_span {
    const char *name;           // lives as long as the library
    uint32_t step;              // that it is a part of, counted from the run's first
    uint64_t begin_ns, end_ns;  // of CLOCK_MONOTONIC
};

// What is known of a run that is traced, from its first step on. How a driver keeps it: spans.h.
struct gpu_spans {
    struct gpu_span *all;  // room for GPU_SPANS_MAX; NULL: none are kept
    uint32_t count;        // of them that there are, in order
    uint32_t steps;        // that ended and whose spans are all there
    uint64_t begin_ns;     // when the run began
    bool is_noting;        // nothing has been missed: more are added
};

// From the next gpu_stream_reset on, what the stream does is kept, or is not. Keeping it takes
// memory and a little time. Graphs are neither recorded nor launched meanwhile.
// Errors:    RESOURCE_EXHAUSTED, nothing is kept.
// Thread:    the user's.
enum status gpu_stream_trace(struct gpu_stream *self, bool is_kept, struct error *error);

// What is known of the last run, after gpu_stream_wait; nothing of one that failed or was not
// traced. The result lives until the next gpu_stream_reset or gpu_stream_trace.
// Thread:    the user's.
const struct gpu_spans *gpu_stream_spans(const struct gpu_stream *self);

// For launches (gpu.h). The stream of the runtime; how a launch tells that it was enqueued, so that
// a trace has it under that name, a literal; that it failed; or that the device had no memory for
// it.
void *gpu_stream_handle(struct gpu_stream *self);
void gpu_stream_note(struct gpu_stream *self, const char *name);
void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why);
void gpu_stream_lack(struct gpu_stream *self, const char *what);

// For an emulated launch: whether it is to be recorded; what then does it when the graph is
// launched and in the end frees itself.
bool gpu_stream_is_recording(const struct gpu_stream *self);
void gpu_stream_record(struct gpu_stream *self, void (*launch)(void *context),
                       void (*drop)(void *context), void *context);

// Around an emulated launch: one at a time. begin answers false when nothing may begin; why is
// NULL, or tells how the launch failed.
bool gpu_stream_begin_launch(struct gpu_stream *self);
void gpu_stream_end_launch(struct gpu_stream *self, const char *what, const char *why);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_DRIVER_H
