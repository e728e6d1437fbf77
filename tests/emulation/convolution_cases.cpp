// convolution_cases.cpp - a few convolutions on tensor cores against loops over the plain layout,
// for inject.py, which compiles it with a kernel that it has broken. It takes a word, which of the
// kernels: mma or wgmma. The exit code is the verdict:
//
//     0  right, and no bank conflict        1  wrong values
//     2  a report of the emulator           3  right, but with bank conflicts
//
// The reference reads weights as PyTorch keeps them; packing is written here a second time.

#include <cmath>

#include "tests/emulation/cases.h"

namespace
{

struct test_case {
    uint32_t n, h, w, c, k, r, stride;
    bool upsample, norm, silu, residual;
    uint32_t shortcut_c;
};

// Small, and odd where the form is: 3x3 with tails everywhere, several chunks, few outputs, stride
// 2, more chunks than a ring has places, phases, 1x1 with a shortcut.
const test_case cases[] = {
    {2, 7, 5, 40, 130, 3, 1, false, true, true, true, 0},
    {1, 17, 18, 64, 32, 3, 1, false, true, true, false, 24},
    {1, 18, 17, 32, 5, 3, 1, false, false, false, false, 0},
    {1, 19, 20, 72, 72, 3, 2, false, false, false, false, 0},
    {1, 3, 4, 136, 8, 3, 1, false, false, false, false, 0},
    {1, 9, 17, 32, 40, 3, 1, true, false, false, false, 0},
    {1, 16, 20, 100, 24, 1, 1, false, true, false, true, 40},
};

// [k, c, taps] to [tap][chunk][k][32], units of 8 channels exchanged as launch.h says.
floats pack(const floats &weight, uint32_t k, uint32_t c, uint32_t taps)
{
    uint32_t chunks = (c + 31) / 32;
    floats packed(static_cast<uint64_t>(taps) * chunks * k * 32, 0.0f);
    for (uint32_t i = 0; i < k; i++) {
        for (uint32_t j = 0; j < c; j++) {
            for (uint32_t tap = 0; tap < taps; tap++) {
                uint64_t row = (tap * chunks + j / 32) * static_cast<uint64_t>(k) + i;
                uint64_t at = row * 32 + (j % 32 / 8 ^ i % 8 / 2) * 8 + j % 8;
                packed[at] = weight[(i * static_cast<uint64_t>(c) + j) * taps + tap];
            }
        }
    }
    return packed;
}

// The taps of 3x3 windows over the doubled image as those of 2x2 windows over the image itself: to
// [k, c, 16], by the output's row and column, odd or even, then row and column of the window.
floats add_up(const floats &weight)
{
    // Rows of the 3x3 window that the two of the 2x2 one stand for: of even rows, of odd ones.
    const uint32_t begin[2][3] = {{0, 1, 3}, {0, 2, 3}};
    floats sums;
    for (size_t filter = 0; filter < weight.size(); filter += 9) {
        for (uint32_t tap = 0; tap < 16; tap++) {
            const uint32_t *rows = begin[tap / 8] + tap / 2 % 2;
            const uint32_t *columns = begin[tap / 4 % 2] + tap % 2;
            float sum = 0;
            for (uint32_t y = rows[0]; y < rows[1]; y++) {
                for (uint32_t x = columns[0]; x < columns[1]; x++)
                    sum += weight[filter + y * 3 + x];
            }
            sums.push_back(sum);
        }
    }
    return sums;
}

struct numbers {
    floats x, weight, bias, residual, shortcut, shortcut_weight;
    std::vector<struct gpu_factors> factors;
    uint32_t oh, ow;
};

numbers make_numbers(const test_case &test)
{
    dice dice;
    numbers made;
    made.oh = test.upsample ? 2 * test.h : test.stride == 2 ? (test.h - 2) / 2 + 1 : test.h;
    made.ow = test.upsample ? 2 * test.w : test.stride == 2 ? (test.w - 2) / 2 + 1 : test.w;
    uint64_t rows = static_cast<uint64_t>(test.n) * made.oh * made.ow;
    made.x = random_elements(&dice, static_cast<uint64_t>(test.n) * test.h * test.w * test.c, 0, 2);
    // Multiples of 1/64, so that the sums of an upsampling window are exact.
    made.weight = floats(static_cast<uint64_t>(test.k) * test.c * test.r * test.r);
    for (float &value : made.weight) value = rintf(dice.next() * 16) / 64;
    made.bias = random_elements(&dice, test.k, 0, 1);
    made.residual = random_elements(&dice, test.residual ? rows * test.k : 0, 0, 1);
    made.shortcut = random_elements(&dice, rows * test.shortcut_c, 0, 1);
    made.shortcut_weight =
        random_elements(&dice, static_cast<uint64_t>(test.k) * test.shortcut_c, 0, 0.25f);
    for (uint32_t i = 0; test.norm && i < test.n * test.c; i++) {
        made.factors.push_back({1 + 0.5f * dice.next(), 0.5f * dice.next()});
    }
    return made;
}

float input_at(const test_case &test, const numbers &all, uint32_t image, int64_t y, int64_t x,
               uint32_t c)
{
    int64_t scale = test.upsample ? 2 : 1;
    if (y < 0 || x < 0 || y >= test.h * scale || x >= test.w * scale) return 0;
    uint64_t pixel =
        (static_cast<uint64_t>(image) * test.h + static_cast<uint64_t>(y / scale)) * test.w +
        static_cast<uint64_t>(x / scale);
    float value = all.x[pixel * test.c + c];
    if (!test.norm) return value;
    struct gpu_factors factors = all.factors[image * test.c + c];
    value = value * factors.scale + factors.shift;
    if (test.silu) value = value / (1 + expf(-value));
    return gpu::widen(gpu::narrow<element>(value));
}

// The sum and the sum of magnitudes of one output.
void expect(const test_case &test, const numbers &all, uint64_t at, double *sum, double *magnitude)
{
    uint32_t k = static_cast<uint32_t>(at % test.k);
    uint64_t pixel = at / test.k;
    int64_t pad = test.stride == 2 ? 0 : test.r / 2;
    *sum = static_cast<double>(all.bias[k]);
    *magnitude = 1;
    for (uint32_t tap = 0; tap < test.r * test.r; tap++) {
        int64_t y =
            static_cast<int64_t>(pixel / all.ow % all.oh) * test.stride + tap / test.r - pad;
        int64_t x = static_cast<int64_t>(pixel % all.ow) * test.stride + tap % test.r - pad;
        for (uint32_t c = 0; c < test.c; c++) {
            uint64_t from = (k * static_cast<uint64_t>(test.c) + c) * test.r * test.r + tap;
            double product =
                static_cast<double>(all.weight[from]) *
                static_cast<double>(
                    input_at(test, all, static_cast<uint32_t>(pixel / all.ow / all.oh), y, x, c));
            *sum += product;
            *magnitude += fabs(product);
        }
    }
    for (uint32_t c = 0; c < test.shortcut_c; c++) {
        double product = static_cast<double>(all.shortcut[pixel * test.shortcut_c + c]) *
                         static_cast<double>(
                             all.shortcut_weight[k * static_cast<uint64_t>(test.shortcut_c) + c]);
        *sum += product;
        *magnitude += fabs(product);
    }
    if (test.residual) *sum += static_cast<double>(all.residual[at]);
}

struct gpu_convolution arguments_of(const test_case &test, const numbers &all)
{
    struct gpu_convolution a = {};
    a.n = test.n;
    a.h = test.h;
    a.w = test.w;
    a.c = test.c;
    a.k = test.k;
    a.r = test.r;
    a.oh = all.oh;
    a.ow = all.ow;
    a.shortcut_c = test.shortcut_c;
    a.stride = test.stride;
    a.upsample = test.upsample;
    a.silu = test.silu;
    a.storage = DTYPE_BF16;
    a.input = upload_elements(all.x);
    a.weight = upload_elements(test.upsample ? pack(add_up(all.weight), test.k, test.c, 16)
                                             : pack(all.weight, test.k, test.c, test.r * test.r));
    a.bias = upload(all.bias);
    if (test.norm) a.factors = upload(all.factors);
    if (test.residual) a.residual = upload_elements(all.residual);
    if (test.shortcut_c > 0) {
        a.shortcut = upload_elements(all.shortcut);
        a.shortcut_weight = upload_elements(pack(all.shortcut_weight, test.k, test.shortcut_c, 1));
    }
    a.output = emulation::allocate(static_cast<uint64_t>(test.n) * all.oh * all.ow * test.k *
                                   sizeof(element));
    a.partials = static_cast<struct gpu_partial *>(
        emulation::allocate(static_cast<uint64_t>(test.n) * gpu_convolution_mma_slots(&a) * test.k *
                            sizeof(struct gpu_partial)));
    return a;
}

// Sums of the stored outputs by channel, against what the partials add up to.
bool partials_are_right(const test_case &test, const numbers &all, const struct gpu_convolution &a,
                        const floats &stored)
{
    uint32_t slots = gpu_convolution_mma_slots(&a);
    uint64_t pixels = static_cast<uint64_t>(all.oh) * all.ow;
    for (uint64_t i = 0; i < static_cast<uint64_t>(test.n) * test.k; i++) {
        double want = 0;
        double got = 0;
        double count = 0;
        uint64_t image = i / test.k;
        uint64_t k = i % test.k;
        for (uint64_t p = 0; p < pixels; p++) {
            want += static_cast<double>(stored[(image * pixels + p) * test.k + k]);
        }
        for (uint64_t slot = 0; slot < slots; slot++) {
            const struct gpu_partial &partial = a.partials[(image * slots + slot) * test.k + k];
            got += static_cast<double>(partial.mean) * static_cast<double>(partial.count);
            count += static_cast<double>(partial.count);
        }
        double error = fabs(got - want);
        if (!(error <= 1e-3 * (1 + fabs(want)))) return false;
        if (!(fabs(count - static_cast<double>(pixels)) < 0.5)) return false;
    }
    return true;
}

bool values_are_right(const test_case &test, const numbers &all, const struct gpu_convolution &a)
{
    uint64_t count = static_cast<uint64_t>(test.n) * all.oh * all.ow * test.k;
    floats stored(count);
    for (uint64_t i = 0; i < count; i++) {
        stored[i] = gpu::widen(static_cast<const element *>(a.output)[i]);
        double sum = 0;
        double magnitude = 0;
        expect(test, all, i, &sum, &magnitude);
        // The rounding of the result, and one unit of the approximated SiLU for every operand.
        double bound = 0x1p-7 * fabs(sum) + (test.silu ? 0x1p-8 : 0x1p-18) * magnitude;
        if (!(fabs(static_cast<double>(stored[i]) - sum) <= bound)) {
            printf("element %llu: %g, expected %g +- %g\n", static_cast<unsigned long long>(i),
                   static_cast<double>(stored[i]), sum, bound);
            return false;
        }
    }
    return partials_are_right(test, all, a, stored);
}

}  // namespace

int main(int count, char **words)
{
    bool is_wgmma = count > 1 && strcmp(words[1], "wgmma") == 0;
    auto *launch = is_wgmma ? gpu_launch_convolution_wgmma : gpu_launch_convolution_mma;
    struct gpu_stream stream = {};
    for (const test_case &test : cases) {
        numbers all = make_numbers(test);
        struct gpu_convolution a = arguments_of(test, all);
        launch(&stream, &a);
        if (stream.has_failed) {
            printf("%s\n", stream.report);
            return 2;
        }
        emulation::open_memory();
        bool good = values_are_right(test, all, a);
        emulation::shut_memory();
        if (!good) {
            printf("wrong: c %u k %u r %u stride %u upsample %d\n", test.c, test.k, test.r,
                   test.stride, test.upsample);
            return 1;
        }
    }
    printf("%llu conflicts\n", static_cast<unsigned long long>(emulation::counts().bank_conflicts));
    return emulation::counts().bank_conflicts > 0 ? 3 : 0;
}
