// product_cases.cpp - attention and products on tensor cores against plain loops, for inject.py,
// which compiles it with a kernel that it has broken. It takes a word, which of the kernels:
// attention or multiply. The exit code is the verdict:
//
//     0  right, and no bank conflict        1  wrong values
//     2  a report of the emulator           3  right, but with bank conflicts

#include <cmath>

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

struct attention_numbers {
    floats q, k, v;
    uint32_t stride;
    double scale;
};

// One output: the weighted middle of the values. Rounded weights err by 2^-9 above and below.
bool output_is_right(const attention_case &test, const attention_numbers &all, uint64_t at,
                     double got)
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
    return is_near(got, sum / total, 0x1p-8 * fabs(sum / total) + 0x1p-7 * magnitude / total, at);
}

// The verdict.
int try_attention(const attention_case &test, struct gpu_stream *stream)
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
    a.q = upload_elements(all.q);
    a.k = upload_elements(all.k);
    a.v = upload_elements(all.v);
    a.output = emulation::allocate(rows * width * sizeof(element));
    a.q_stride = a.k_stride = a.v_stride = stride;
    a.batch = test.batch;
    a.tokens = test.tokens;
    a.heads = test.heads;
    a.head_width = test.head_width;
    a.scale = static_cast<float>(all.scale);
    a.causal = test.causal;
    a.storage = DTYPE_BF16;
    gpu_launch_attention_mma(stream, &a);
    if (stream->has_failed) return 2;
    bool good = true;
    emulation::open_memory();
    for (uint64_t i = 0; good && i < rows * width; i++) {
        float got = gpu::widen(static_cast<const element *>(a.output)[i]);
        good = output_is_right(test, all, i, static_cast<double>(got));
    }
    emulation::shut_memory();
    return good ? 0 : 1;
}

// ---------------------------------------------------------------------------------------------
// Products

struct product_case {
    uint32_t m, n, k, pitch;
};

// Tails of rows, of columns and of sums; more stages than the ring has places; rows that no copy of
// 16 bytes can begin at. Behind a row's elements lie others.
const product_case product_cases[] = {
    {70, 72, 100, 104},
    {5, 130, 264, 272},
    {66, 3, 45, 51},
};

int try_product(const product_case &test, struct gpu_stream *stream)
{
    dice dice;
    floats left = random_elements(&dice, static_cast<uint64_t>(test.m) * test.pitch, 0, 1);
    floats right = random_elements(&dice, static_cast<uint64_t>(test.n) * test.pitch, 0, 1);
    uint64_t count = static_cast<uint64_t>(test.m) * test.n;
    struct gpu_product_mma a = {};
    a.a = upload_elements(left);
    a.b = upload_elements(right);
    a.c = static_cast<float *>(emulation::allocate(count * sizeof(float)));
    a.m = test.m;
    a.n = test.n;
    a.k = test.k;
    a.a_pitch = a.b_pitch = test.pitch;
    a.is_bf16 = true;
    gpu_launch_multiply_mma(stream, &a);
    if (stream->has_failed) return 2;
    bool good = true;
    emulation::open_memory();
    for (uint64_t i = 0; good && i < count; i++) {
        double sum = 0;
        double magnitude = 0;
        for (uint64_t j = 0; j < test.k; j++) {
            double product = static_cast<double>(left[i / test.n * test.pitch + j]) *
                             static_cast<double>(right[i % test.n * test.pitch + j]);
            sum += product;
            magnitude += fabs(product);
        }
        good = is_near(static_cast<double>(a.c[i]), sum, test.k * 0x1p-23 * magnitude, i);
    }
    emulation::shut_memory();
    return good ? 0 : 1;
}

int try_all(bool is_attention, struct gpu_stream *stream)
{
    int verdict = 0;
    for (const attention_case &test : attention_cases) {
        if (is_attention && verdict == 0) verdict = try_attention(test, stream);
    }
    for (const product_case &test : product_cases) {
        if (!is_attention && verdict == 0) verdict = try_product(test, stream);
    }
    return verdict;
}

}  // namespace

int main(int count, char **words)
{
    struct gpu_stream stream = {};
    int verdict = try_all(count > 1 && strcmp(words[1], "attention") == 0, &stream);
    if (verdict != 0) {
        printf("%s\n", verdict == 2 ? stream.report : "wrong");
        return verdict;
    }
    printf("%llu conflicts\n", static_cast<unsigned long long>(emulation::counts().bank_conflicts));
    return emulation::counts().bank_conflicts > 0 ? 3 : 0;
}
