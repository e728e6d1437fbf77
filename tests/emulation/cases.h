// cases.h - for programs that inject.py compiles with a kernel that it has broken: random numbers
// and their way to the device.

#ifndef TESTS_EMULATION_CASES_H
#define TESTS_EMULATION_CASES_H

#include <cstdlib>
#include <vector>

#include "kernels/cuda/gpu.h"
#include "tests/emulation/stream.h"

namespace
{

using element = __nv_bfloat16;
using floats = std::vector<float>;

struct dice {
    uint64_t state = 88172645463325252ull;

    // From -1 up to 1.
    float next()
    {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<float>((state >> 40) & 0xffffff) / 8388608.0f - 1.0f;
    }
};

// Numbers that elements hold exactly.
floats random_elements(dice *dice, uint64_t count, float middle, float spread)
{
    floats made(count);
    for (float &value : made) {
        value = gpu::widen(gpu::narrow<element>(middle + dice->next() * spread));
    }
    return made;
}

template <class T> T *upload(const std::vector<T> &values)
{
    uint64_t bytes = values.size() * sizeof(T);
    auto *memory = static_cast<T *>(emulation::allocate(bytes == 0 ? 1 : bytes));
    if (memory == nullptr) abort();
    emulation::open_memory();
    if (bytes > 0) memcpy(memory, values.data(), bytes);
    emulation::shut_memory();
    return memory;
}

element *upload_elements(const floats &values)
{
    std::vector<element> narrow;
    for (float value : values) narrow.push_back(gpu::narrow<element>(value));
    return upload(narrow);
}

}  // namespace

#endif  // TESTS_EMULATION_CASES_H
