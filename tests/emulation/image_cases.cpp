// image_cases.cpp - what loads and stores of images and latents tell of NaN and infinity, for
// inject.py, which compiles it with a kernel that it has broken. The exit code is the verdict:
//
//     0  right        1  a wrong word        2  a report of the emulator

#include <cmath>

#include "tests/emulation/cases.h"

namespace
{

// Rows of an image or a latent of four channels: columns X to X + W of FULL_W.
constexpr uint32_t H = 3;
constexpr uint32_t FULL_W = 9;
constexpr uint32_t X = 2;
constexpr uint32_t W = 5;
constexpr uint32_t CHANNELS = 4;

// The word that is set, between two that stay 0.
uint32_t *new_words()
{
    return upload(std::vector<uint32_t>{0, 0, 0});
}

bool is_told(const uint32_t *words, bool want, const char *what, uint64_t at)
{
    emulation::open_memory();
    bool good = words[0] == 0 && words[1] == (want ? 1u : 0u) && words[2] == 0;
    if (!good) printf("%s, element %llu\n", what, static_cast<unsigned long long>(at));
    emulation::shut_memory();
    return good;
}

// ---------------------------------------------------------------------------------------------
// Loads: every element is spoiled once

bool is_taken(bool is_latent, uint64_t at)
{
    uint64_t x = is_latent ? at % FULL_W : at / CHANNELS % FULL_W;
    bool is_alpha = !is_latent && at % CHANNELS == 3;
    return x >= X && x < X + W && !is_alpha;
}

bool load_is_told(bool is_latent, uint64_t at, float bad, struct gpu_stream *stream)
{
    floats source(static_cast<size_t>(H) * FULL_W * CHANNELS, 0.5f);
    uint32_t *words = new_words();
    source[at] = bad;
    struct gpu_load a = {};
    a.source = upload(source);
    a.output = emulation::allocate(sizeof(float) * H * W * CHANNELS);
    a.channels = CHANNELS;
    a.full_w = FULL_W;
    a.x = X;
    a.h = H;
    a.w = W;
    a.source_type = a.storage = DTYPE_F32;
    a.not_finite = words + 1;
    auto *launch = is_latent ? gpu_launch_load_latent : gpu_launch_load_pixels;
    launch(stream, &a);
    bool want = is_taken(is_latent, at) && !std::isfinite(bad);
    return stream->has_failed || is_told(words, want, is_latent ? "latent" : "pixels", at);
}

// ---------------------------------------------------------------------------------------------
// Stores of three channels: every element is spoiled once

struct store_case {
    const char *what;
    bool is_latent, clamp;
    enum dtype type;
    float limit;
};

const store_case store_cases[] = {
    {"pixels as they are", false, false, DTYPE_F16, 65520.0f},
    {"clamped pixels", false, true, DTYPE_F32, INFINITY},
    {"bytes", false, true, DTYPE_U8, INFINITY},
    {"a stored latent", true, false, DTYPE_F16, 65520.0f},
};

bool store_is_told(const store_case &test, uint64_t at, float bad, struct gpu_stream *stream)
{
    uint32_t stride = test.is_latent ? CHANNELS : 3;
    floats input(static_cast<size_t>(H) * W * CHANNELS, 0.5f);
    uint32_t *words = new_words();
    input[at] = bad;
    struct gpu_store a = {};
    a.input = upload(input);
    a.output = emulation::allocate(sizeof(float) * H * W * CHANNELS);
    a.h = H;
    a.w = W;
    a.channels = 3;
    a.stride = stride;
    a.clamp = test.clamp;
    a.input_type = DTYPE_F32;
    a.output_type = test.type;
    a.limit = test.limit;
    a.not_finite = words + 1;
    auto *launch = test.is_latent ? gpu_launch_store_latent : gpu_launch_store_pixels;
    launch(stream, &a);
    bool is_stored = at < static_cast<uint64_t>(H) * W * stride && at % stride < 3;
    return stream->has_failed ||
           is_told(words, is_stored && !(fabsf(bad) < test.limit), test.what, at);
}

bool all_is_told(struct gpu_stream *stream)
{
    const float bads[] = {NAN, INFINITY, -INFINITY, 65519.0f, -65520.0f};
    for (float bad : bads) {
        for (uint64_t at = 0; at < static_cast<uint64_t>(H) * FULL_W * CHANNELS; at++) {
            if (!load_is_told(false, at, bad, stream)) return false;
            if (!load_is_told(true, at, bad, stream)) return false;
        }
        for (uint64_t at = 0; at < static_cast<uint64_t>(H) * W * CHANNELS; at++) {
            for (const store_case &test : store_cases) {
                if (!store_is_told(test, at, bad, stream)) return false;
            }
        }
    }
    return true;
}

// Many threads find something at once.
bool a_picture_of_nothing_else_is_told(struct gpu_stream *stream)
{
    floats input(static_cast<size_t>(H) * W * CHANNELS * 8, NAN);
    uint32_t *words = new_words();
    struct gpu_store a = {};
    a.input = upload(input);
    a.output = emulation::allocate(sizeof(float) * input.size());
    a.h = H * 8;
    a.w = W;
    a.channels = 3;
    a.stride = CHANNELS;
    a.input_type = a.output_type = DTYPE_F32;
    a.limit = INFINITY;
    a.not_finite = words + 1;
    gpu_launch_store_latent(stream, &a);
    return stream->has_failed || is_told(words, true, "nothing else", 0);
}

}  // namespace

int main()
{
    struct gpu_stream stream = {};
    bool good = all_is_told(&stream) && a_picture_of_nothing_else_is_told(&stream);
    if (stream.has_failed) {
        printf("%s\n", stream.report);
        return 2;
    }
    return good ? 0 : 1;
}
