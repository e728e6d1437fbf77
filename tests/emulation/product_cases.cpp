// product_cases.cpp - attention and products against plain loops, for inject.py, which compiles it
// with a kernel that it has broken. It takes a word, which of the kernels: attention, multiply or
// group, the product of warpgroups, on tensor cores, or short, attention in float32. The exit code
// is the verdict:
//
//     0  right, and no bank conflict        1  wrong values
//     2  a report of the emulator           3  right, but with bank conflicts

#include <cmath>

#include "kernels/cuda/elements.h"
#include "tests/emulation/cases.h"

namespace
{

bool is_near(double got, double want, double bound, uint64_t at)
{
    if (fabs(got - want) <= bound) return true;
    printf("element %llu: %g, expected %g +- %g\n", static_cast<unsigned long long>(at), got, want,
           bound);
    return false;
}

// ---------------------------------------------------------------------------------------------
// Attention

struct attention_case {
    uint32_t batch, tokens, heads, head_width;
    bool causal;
};

// A text of two blocks of queries, tails of keys, one chunk of columns alone, several in halves.
const attention_case attention_cases[] = {
    {1, 77, 2, 64, true},
    {2, 40, 1, 40, false},
    {1, 70, 1, 104, false},
    {1, 37, 2, 16, true},
};

// Three blocks of queries, every tile of keys, tails of all.
const attention_case short_cases[] = {
    {2, 77, 2, 64, true},
    {1, 90, 1, 64, false},
    {1, 13, 3, 20, true},
};

struct attention_numbers {
    floats q, k, v;
    uint32_t stride;
    double scale;
};

// One output: the weighted middle of the values. Rounded weights err by 2^-9 above and below.
bool output_is_right(const attention_case &test, const attention_numbers &all, uint64_t at,
                     double got, double rounding)
{
    uint32_t width = test.heads * test.head_width;
    uint64_t column = at % width;
    uint64_t head = column / test.head_width * test.head_width;
    uint64_t query = at / width % test.tokens;
    uint64_t first = at / width / test.tokens * test.tokens;
    uint64_t end = test.causal ? query + 1 : test.tokens;
    double sum = 0;
    double total = 0;
    double magnitude = 0;
    for (uint64_t key = 0; key < end; key++) {
        double score = 0;
        for (uint64_t c = head; c < head + test.head_width; c++) {
            score += static_cast<double>(all.q[(first + query) * all.stride + c]) *
                     static_cast<double>(all.k[(first + key) * all.stride + c]);
        }
        double weight = exp(score * all.scale);
        double value = static_cast<double>(all.v[(first + key) * all.stride + column]);
        sum += weight * value;
        magnitude += weight * fabs(value);
        total += weight;
    }
    double bound = rounding * (fabs(sum / total) + 2 * magnitude / total);
    return is_near(got, sum / total, bound, at);
}

// The verdict.
int try_attention(const attention_case &test, bool is_short, struct gpu_stream *stream)
{
    dice dice;
    uint32_t width = test.heads * test.head_width;
    uint32_t stride = width + 8;
    uint64_t rows = static_cast<uint64_t>(test.batch) * test.tokens;
    // Values are not around 0, so that a key too many among the weights shows.
    attention_numbers all = {random_elements(&dice, rows * stride, 0, 1),
                             random_elements(&dice, rows * stride, 0, 1),
                             random_elements(&dice, rows * stride, 1, 0.5f), stride,
                             5 / sqrt(static_cast<double>(test.head_width))};
    struct gpu_attention a = {};
    auto put = [&](const floats &values) {
        return is_short ? static_cast<void *>(upload(values)) : upload_elements(values);
    };
    a.q = put(all.q);
    a.k = put(all.k);
    a.v = put(all.v);
    a.output = emulation::allocate(rows * width * (is_short ? sizeof(float) : sizeof(element)));
    a.q_stride = a.k_stride = a.v_stride = stride;
    a.batch = test.batch;
    a.tokens = test.tokens;
    a.heads = test.heads;
    a.head_width = test.head_width;
    a.scale = static_cast<float>(all.scale);
    a.causal = test.causal;
    a.storage = is_short ? DTYPE_F32 : DTYPE_BF16;
    if (is_short) {
        gpu_launch_attention_short(stream, &a);
    } else {
        gpu_launch_attention_mma(stream, &a);
    }
    if (stream->has_failed) return 2;
    bool good = true;
    emulation::open_memory();
    for (uint64_t i = 0; good && i < rows * width; i++) {
        float got = gpu::load_element(a.output, i, a.storage);
        double rounding = is_short ? 0x1p-18 : 0x1p-8;
        good = output_is_right(test, all, i, static_cast<double>(got), rounding);
    }
    emulation::shut_memory();
    return good ? 0 : 1;
}

// ---------------------------------------------------------------------------------------------
// Products

struct product_case {
    uint32_t m, n, k, pitch, parts;
    bool is_apart;
};

// Tails of rows, of columns and of sums, of slices too; both heights of a tile; more stages than
// the ring has places; rows that no copy of 16 bytes can begin at. Behind a row's elements lie
// others.
const product_case product_cases[] = {
    {70, 72, 100, 104, 1, false},  {5, 130, 264, 272, 3, true},   {66, 3, 45, 51, 1, false},
    {163, 36, 520, 520, 1, false}, {90, 130, 296, 296, 3, false},
};

int try_product(const product_case &test, bool is_group, struct gpu_stream *stream)
{
    dice dice;
    uint64_t rows = static_cast<uint64_t>(test.m) * test.parts;
    floats left = random_elements(&dice, rows * test.pitch, 0, 1);
    floats right = random_elements(&dice, static_cast<uint64_t>(test.n) * test.pitch, 0, 1);
    uint64_t count = static_cast<uint64_t>(test.m) * test.n;
    struct gpu_product_mma a = {};
    a.a = upload_elements(left);
    a.b = upload_elements(right);
    a.slices = gpu_product_slices(test.n, test.k);
    uint32_t addends = test.is_apart ? a.slices : 1;
    a.c = static_cast<float *>(emulation::allocate(addends * count * sizeof(float)));
    a.m = test.m;
    a.n = test.n;
    a.k = test.k;
    a.a_pitch = a.b_pitch = test.pitch;
    a.parts = test.parts;
    a.is_apart = test.is_apart;
    a.is_bf16 = true;
    if (is_group) {
        gpu_launch_multiply_wgmma(stream, &a);
    } else {
        gpu_launch_multiply_mma(stream, &a);
    }
    if (stream->has_failed) return 2;
    bool good = true;
    emulation::open_memory();
    for (uint64_t i = 0; good && i < count; i++) {
        double sum = 0;
        double magnitude = 0;
        for (uint64_t j = 0; j < test.parts * test.k; j++) {
            uint64_t row = j / test.k * test.m + i / test.n;
            double product = static_cast<double>(left[row * test.pitch + j % test.k]) *
                             static_cast<double>(right[i % test.n * test.pitch + j % test.k]);
            sum += product;
            magnitude += fabs(product);
        }
        double got = 0;
        for (uint32_t j = 0; j < addends; j++) got += static_cast<double>(a.c[j * count + i]);
        good = is_near(got, sum, test.parts * test.k * 0x1p-23 * magnitude, i);
    }
    emulation::shut_memory();
    return good ? 0 : 1;
}

int try_all(const char *word, struct gpu_stream *stream)
{
    int verdict = 0;
    bool is_short = strcmp(word, "short") == 0;
    for (const attention_case &test : attention_cases) {
        if (strcmp(word, "attention") == 0 && verdict == 0) {
            verdict = try_attention(test, false, stream);
        }
    }
    for (const attention_case &test : short_cases) {
        if (is_short && verdict == 0) verdict = try_attention(test, true, stream);
    }
    bool is_group = strcmp(word, "group") == 0;
    for (const product_case &test : product_cases) {
        if ((is_group || strcmp(word, "multiply") == 0) && verdict == 0) {
            verdict = try_product(test, is_group, stream);
        }
    }
    return verdict;
}

}  // namespace

int main(int count, char **words)
{
    struct gpu_stream stream = {};
    int verdict = try_all(count > 1 ? words[1] : "", &stream);
    if (verdict != 0) {
        printf("%s\n", verdict == 2 ? stream.report : "wrong");
        return verdict;
    }
    printf("%llu conflicts\n", static_cast<unsigned long long>(emulation::counts().bank_conflicts));
    return emulation::counts().bank_conflicts > 0 ? 3 : 0;
}
