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

// The name of a device that this driver opens, "cuda:" (a number follows) or "emulated".
extern const char *const gpu_driver_name;

// Opens the device of that number and makes it this process's: a context of some hundred MiB.
// Ownership: on success the caller owns *out.
// Errors:    UNAVAILABLE without a driver or a device, NOT_FOUND for a number that is none.
// Thread:    any.
enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error);

// Closes it; streams and memory must be gone.
// Thread:    any.
void gpu_close(struct gpu_card **self_p);

// The card's name with its compute capability, for people.
// Thread:    any.
const char *gpu_label(const struct gpu_card *self);

// Memory of the device, aligned to 256 bytes, its content undefined.
// Ownership: the caller frees *out with gpu_free.
// Errors:    RESOURCE_EXHAUSTED; INTERNAL when the device is broken.
// Thread:    any.
enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error);

// Frees what gpu_allocate gave; nothing that runs uses it. NULL is allowed.
// Thread:    any.
void gpu_free(struct gpu_card *self, void *memory);

// Copies host memory to the device and returns when it is there.
// Errors:    INTERNAL when the device is broken.
// Thread:    any.
enum status gpu_upload(struct gpu_card *self, void *to, const void *from, uint64_t bytes,
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

// Enqueues a copy from the host to the device or back. Host memory stays until the stream was
// waited for.
// Thread:    the user's.
void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane);
void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane);

// Enqueues zeroing.
// Thread:    the user's.
void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes);

// The most steps of a stream that may be under way at once.
#define GPU_STEPS_MAX 8u

// Ends a step (numbers repeat after GPU_STEPS_MAX), and waits for the end of one, sleeping.
// Thread:    the user's.
void gpu_step_end(struct gpu_stream *self, uint32_t step);
void gpu_step_wait(struct gpu_stream *self, uint32_t step);

// Waits for everything that was enqueued, sleeping.
// Errors:    CANCELLED when the signals said so, INTERNAL when something failed: the device may be
//            broken then, and everything after it fails too.
// Thread:    the user's.
enum status gpu_stream_wait(struct gpu_stream *self, struct error *error);

// For launches (gpu.h). The stream of the runtime, and how a launch tells that it failed.
void *gpu_stream_handle(struct gpu_stream *self);
void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why);

// Around an emulated launch: one at a time. begin answers false when nothing may begin; why is
// NULL, or tells how the launch failed.
bool gpu_stream_begin_launch(struct gpu_stream *self);
void gpu_stream_end_launch(struct gpu_stream *self, const char *what, const char *why);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_DRIVER_H
