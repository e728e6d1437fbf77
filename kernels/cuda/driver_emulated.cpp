// driver_emulated.cpp - driver.h over the emulator: everything happens at once, in the caller's
// thread, one launch at a time whatever the lane.
//
// A fault in a kernel breaks the device, as an illegal address breaks a CUDA context: from then on
// every call fails with the report of the fault.

#include <pthread.h>

#include <cstdio>
#include <cstdlib>

#include "kernels/emulation/emulation.h"

#include "kernels/cuda/driver.h"

struct gpu_card {
    char label[96];
};

struct gpu_stream {
    struct gpu_signals *signals;
    bool has_failed;
    char message[1024];  // why
};

namespace
{

// The emulator has one device and runs one launch; this lock orders its users.
struct device_state {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    bool is_broken = false;
    char message[1024] = "";
};

device_state &device()
{
    static device_state made;
    return made;
}

class guard
{
  public:
    guard()
    {
        pthread_mutex_lock(&device().lock);
    }
    ~guard()
    {
        pthread_mutex_unlock(&device().lock);
    }
    guard(const guard &) = delete;
    guard &operator=(const guard &) = delete;
};

bool is_cancelled(const struct gpu_stream *stream)
{
    return __atomic_load_n(&stream->signals->is_cancelled, __ATOMIC_RELAXED) != 0;
}

// What a launch asks between two blocks.
bool count_and_go_on(void *context)
{
    auto *stream = static_cast<struct gpu_stream *>(context);
    __atomic_fetch_add(&stream->signals->progress, 1, __ATOMIC_RELAXED);
    return !is_cancelled(stream);
}

enum status fail_broken(struct error *error)
{
    return error_set(error, STATUS_INTERNAL, "the emulated device is broken: %s", device().message);
}

// The caller holds the lock.
void set_failure(struct gpu_stream *stream, const char *what, const char *why)
{
    if (!stream->has_failed) {
        snprintf(stream->message, sizeof stream->message, "kernel %s failed: %s", what, why);
    }
    stream->has_failed = true;
    if (!device().is_broken) {
        snprintf(device().message, sizeof device().message, "%s", stream->message);
    }
    device().is_broken = true;
}

// Copies between host and device memory, which is open only meanwhile.
void copy_plane(struct gpu_stream *stream, void *to, const void *from, struct gpu_plane plane)
{
    guard held;
    if (stream->has_failed || device().is_broken || is_cancelled(stream)) return;
    emulation::open_memory();
    for (uint64_t row = 0; row < plane.rows; row++) {
        memcpy(static_cast<char *>(to) + row * plane.to_pitch,
               static_cast<const char *>(from) + row * plane.from_pitch, plane.width);
    }
    emulation::shut_memory();
}

}  // namespace

extern "C" {

const char *const gpu_driver_name = "emulated";

enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error)
{
    static_cast<void>(number);
    auto *self = static_cast<struct gpu_card *>(calloc(1, sizeof(struct gpu_card)));
    if (self == nullptr) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    }
    snprintf(self->label, sizeof self->label, "CUDA kernels emulated on the processor, seed %llu",
             static_cast<unsigned long long>(emulation::settings().seed));
    *out = self;
    return STATUS_OK;
}

void gpu_close(struct gpu_card **self_p)
{
    free(*self_p);
    *self_p = nullptr;
}

const char *gpu_label(const struct gpu_card *self)
{
    return self->label;
}

enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    static_cast<void>(self);
    guard held;
    if (device().is_broken) return fail_broken(error);
    void *memory = emulation::allocate(bytes);
    if (memory == nullptr) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "no device memory for %llu bytes beside the %llu in use",
                         static_cast<unsigned long long>(bytes),
                         static_cast<unsigned long long>(emulation::allocated_bytes()));
    }
    *out = memory;
    return STATUS_OK;
}

void gpu_free(struct gpu_card *self, void *memory)
{
    static_cast<void>(self);
    guard held;
    emulation::release(memory);
}

enum status gpu_upload(struct gpu_card *self, void *to, const void *from, uint64_t bytes,
                       struct error *error)
{
    static_cast<void>(self);
    guard held;
    if (device().is_broken) return fail_broken(error);
    emulation::open_memory();
    memcpy(to, from, bytes);
    emulation::shut_memory();
    return STATUS_OK;
}

enum status gpu_stream_create(struct gpu_stream **out, struct gpu_card *card,
                              struct gpu_signals *signals, struct error *error)
{
    static_cast<void>(card);
    auto *self = static_cast<struct gpu_stream *>(calloc(1, sizeof(struct gpu_stream)));
    if (self == nullptr) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stream");
    }
    self->signals = signals;
    *out = self;
    return STATUS_OK;
}

void gpu_stream_destroy(struct gpu_stream **self_p)
{
    free(*self_p);
    *self_p = nullptr;
}

void gpu_stream_reset(struct gpu_stream *self)
{
    self->has_failed = false;
}

void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, to, from, plane);
}

void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, to, from, plane);
}

void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes)
{
    guard held;
    if (self->has_failed || device().is_broken || is_cancelled(self)) return;
    emulation::open_memory();
    memset(to, 0, bytes);
    emulation::shut_memory();
}

void gpu_step_end(struct gpu_stream *self, uint32_t step)
{
    static_cast<void>(self);
    static_cast<void>(step);
}

void gpu_step_wait(struct gpu_stream *self, uint32_t step)
{
    static_cast<void>(self);
    static_cast<void>(step);
}

enum status gpu_stream_wait(struct gpu_stream *self, struct error *error)
{
    guard held;
    if (self->has_failed) return error_set(error, STATUS_INTERNAL, "%s", self->message);
    if (device().is_broken) return fail_broken(error);
    if (is_cancelled(self)) return error_set(error, STATUS_CANCELLED, "the run was cancelled");
    return STATUS_OK;
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self;
}

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    guard held;
    set_failure(self, what, why);
}

bool gpu_stream_begin_launch(struct gpu_stream *self)
{
    pthread_mutex_lock(&device().lock);
    bool may_begin = !self->has_failed && !device().is_broken && !is_cancelled(self);
    if (may_begin) {
        emulation::watch({count_and_go_on, self});
    } else {
        pthread_mutex_unlock(&device().lock);
    }
    return may_begin;
}

void gpu_stream_end_launch(struct gpu_stream *self, const char *what, const char *why)
{
    if (why != nullptr) set_failure(self, what, why);
    pthread_mutex_unlock(&device().lock);
}

}  // extern "C"
