// stream.h - the little of driver.h that kernels need, for tests that launch them directly: a
// stream that remembers the first report.

#ifndef TESTS_EMULATION_STREAM_H
#define TESTS_EMULATION_STREAM_H

#include <cstdio>

#include "kernels/cuda/driver.h"

struct gpu_stream {
    bool has_failed;
    char report[2048];
};

extern "C" {

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    snprintf(self->report, sizeof self->report, "%s: %s", what, why);
    self->has_failed = true;
}

bool gpu_stream_begin_launch(struct gpu_stream *self)
{
    return !self->has_failed;
}

void gpu_stream_end_launch(struct gpu_stream *self, const char *what, const char *why)
{
    if (why != nullptr) gpu_stream_fail(self, what, why);
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self;
}

bool gpu_stream_is_recording(const struct gpu_stream *self)
{
    static_cast<void>(self);
    return false;
}

void gpu_stream_record(struct gpu_stream *self, void (*launch)(void *context),
                       void (*release)(void *context), void *context)
{
    gpu_stream_fail(self, "a recording", "these tests have none");
    static_cast<void>(launch);
    release(context);
}
}

#endif  // TESTS_EMULATION_STREAM_H
