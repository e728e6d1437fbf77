// primitives.h - what the tests of the emulator share: arrays in device memory, a launch that must
// be sound.

#ifndef TESTS_EMULATION_PRIMITIVES_H
#define TESTS_EMULATION_PRIMITIVES_H

#include <cstdio>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "tests/emulation/stream.h"

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
}

namespace
{

#ifdef LUNA_TEST_RACES
constexpr bool HAS_RACES = true;
#else
constexpr bool HAS_RACES = false;
#endif

constexpr uint64_t SEEDS = 4;

template <class T> T *device_array(uint64_t count)
{
    auto *made = static_cast<T *>(emulation::allocate(count * sizeof(T)));
    assert_non_null(made);
    return made;
}

template <class T> T *upload(const std::vector<T> &values)
{
    T *made = device_array<T>(values.size());
    emulation::open_memory();
    memcpy(made, values.data(), values.size() * sizeof(T));
    emulation::shut_memory();
    return made;
}

template <class T> std::vector<T> take(T *from, uint64_t count)
{
    std::vector<T> values(count);
    emulation::open_memory();
    memcpy(values.data(), from, count * sizeof(T));
    emulation::shut_memory();
    emulation::release(from);
    return values;
}

void must_run(const struct gpu_stream &stream)
{
    if (stream.has_failed) fail_msg("%s", stream.report);
}

}  // namespace

#endif  // TESTS_EMULATION_PRIMITIVES_H
