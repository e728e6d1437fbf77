// oracle.h - the formulas of the operations in float64, each with a bound of what float32 may err.
//
// Written apart from kernels/: nothing here is shared with an implementation. Every function fills
// struct oracle: what is expected, and how far a faithful float32 implementation may be from it.
// u is 2^-24, the rounding error of one operation. A sum of K products in any order errs by at most
// about K u sum|a b|; the bounds take twice that (2^-23), for the products and the last rounding.

#ifndef TESTS_UNIT_KERNELS_ORACLE_H
#define TESTS_UNIT_KERNELS_ORACLE_H

#include "tests/unit/kernels/kit.h"

//
// Where activations are stored in 16 bits, a result may be off by one unit in its last place more,
// and whatever is rounded on the way to the multiplication by half of one: the normalised input,
// and once, from what the file has, the sums of weights that an upsampling convolution multiplies
// by.

#define U 0x1p-24

struct oracle {
    double *expected;  // [count]
    double *bound;     // [count]
    uint64_t count;    // elements
};

static inline struct oracle oracle_new(uint64_t count)
{
    struct oracle self = {.expected = calloc(count, sizeof(double)),
                          .bound = calloc(count, sizeof(double)),
                          .count = count};
    assert_non_null(self.expected);
    assert_non_null(self.bound);
    return self;
}

static inline void oracle_free(struct oracle *self)
{
    free(self->expected);
    free(self->bound);
    *self = (struct oracle){.count = 0};
}

// Half a unit in the last place of the storage type, relative; 0 for float32, whose own rounding
// the bounds have already.
static inline double storage_unit(enum dtype storage)
{
    if (storage == DTYPE_F16) return 0x1p-11;
    return storage == DTYPE_BF16 ? 0x1p-8 : 0;
}

// Allows for the rounding of every result to storage. The smallest step of fp16 is 2^-24.
static inline void oracle_round(struct oracle *self, enum dtype storage)
{
    double unit = storage_unit(storage);
    for (uint64_t i = 0; i < self->count && unit > 0; i++) {
        self->bound[i] += 2 * unit * fabs(self->expected[i]) + 0x1p-24;
    }
}

// NaN fails. Returns the largest error as a part of its bound.
static inline double oracle_compare(const struct oracle *self, const float *got, const char *what)
{
    double worst = 0;
    for (uint64_t i = 0; i < self->count; i++) {
        double error = fabs((double)got[i] - self->expected[i]);
        if (!(error <= self->bound[i])) {
            fail_msg("%s, element %llu of %llu: got %.9g, expected %.9g +- %.3g", what,
                     (unsigned long long)i, (unsigned long long)self->count, (double)got[i],
                     self->expected[i], self->bound[i]);
        }
        if (error > worst * self->bound[i] && self->bound[i] > 0) worst = error / self->bound[i];
    }
    return worst;
}

// ---------------------------------------------------------------------------------------------
// Convolution. All arrays are host memory in the layouts of kernels.h.

struct oracle_convolution {
    uint32_t n, h, w, c, k, r;     // as in struct convolution
    uint32_t stride;               // 1 or 2
    bool upsample;                 // nearest 2x in front
    uint32_t groups;               // of the norm; 0: no norm
    bool silu;                     // after the norm
    float epsilon;                 // of the norm
    uint32_t shortcut_c;           // 0: none
    const float *input;            // [n, h, w, c]
    const float *weight;           // [k, c, r, r]
    const float *bias;             // [k] or NULL
    const float *gamma;            // [c]
    const float *beta;             // [c]
    const float *residual;         // [n, oh, ow, k] or NULL
    const float *shortcut;         // [n, oh, ow, shortcut_c]
    const float *shortcut_weight;  // [k, shortcut_c]
    const float *shortcut_bias;    // [k] or NULL
    enum dtype storage;            // of activations; 0 means f32
    bool is_direct;                // no Winograd
};

static inline uint32_t oracle_side(const struct oracle_convolution *op, uint32_t side)
{
    if (op->upsample) return 2 * side;
    return op->stride == 2 ? (side + 1 - 3) / 2 + 1 : side;
}

// The input as the convolution sees it, with the error that float32 may make in it.
//
// Where the mean is large against sigma, (x - mean) / sigma cannot be better than the rounding of
// what it is made of: the mean is a sum of numbers as large as |mean| + sigma that is stored in
// float32, and an implementation may fold the norm to x * scale + shift, which rounds products of
// the size of |mean| scale and |x| scale: 6 u (|mean| + sigma + |x|) scale in all. The variance
// must be good to 32 u relative, which a sum of squares minus the squared mean misses by six orders
// of magnitude at mean 1000, sigma 1. SiLU's slope is at most 1.1. In 16 bits the result is
// rounded, and SiLU may be made of approximations: of 2^-11 of tanh x/2 for bf16, of 2^-21 for
// fp16.
static inline struct oracle oracle_normalized(const struct oracle_convolution *op)
{
    uint64_t pixels = (uint64_t)op->h * op->w;
    struct oracle out = oracle_new(op->n * pixels * op->c);
    for (uint64_t i = 0; i < out.count; i++) out.expected[i] = (double)op->input[i];
    if (op->groups == 0) return out;
    uint32_t width = op->c / op->groups;
    for (uint64_t block = 0; block < (uint64_t)op->n * op->groups; block++) {
        uint64_t first = block / op->groups * pixels * op->c + block % op->groups * width;
        double count = (double)pixels * width;
        double mean = 0;
        double variance = 0;
        for (uint64_t i = 0; i < pixels * width; i++) {
            mean += (double)op->input[first + i / width * op->c + i % width] / count;
        }
        for (uint64_t i = 0; i < pixels * width; i++) {
            double away = (double)op->input[first + i / width * op->c + i % width] - mean;
            variance += away * away / count;
        }
        double inverse = 1 / sqrt(variance + (double)op->epsilon);
        for (uint64_t i = 0; i < pixels * width; i++) {
            uint64_t at = first + i / width * op->c + i % width;
            double gamma = (double)op->gamma[at % op->c];
            double beta = (double)op->beta[at % op->c];
            double x = (double)op->input[at];
            double y = (x - mean) * inverse * gamma + beta;
            double scale = fabs(inverse * gamma);
            double error = 6 * U * (fabs(mean) + fabs(x) + sqrt(variance)) * scale +
                           32 * U * (fabs(x - mean) * scale + fabs(beta) + fabs(y));
            out.expected[at] = op->silu ? y / (1 + exp(-y)) : y;
            out.bound[at] = op->silu ? 1.1 * error + 16 * U * fabs(y) : error;
            if (op->silu && op->storage == DTYPE_BF16) out.bound[at] += 0x1p-12 * fabs(y);
            if (op->silu && op->storage == DTYPE_F16) out.bound[at] += 0x1p-21 * fabs(y);
            if (storage_unit(op->storage) > 0) {
                double largest = fabs(out.expected[at]) + out.bound[at];
                out.bound[at] += storage_unit(op->storage) * largest + 0x1p-25;
            }
        }
    }
    return out;
}

// Sum of a tap's products for output (y, x, k) of an image: value, sum of magnitudes, input's
// error.
struct oracle_sum {
    double value, magnitude, error;
};

static inline struct oracle_sum oracle_taps(const struct oracle_convolution *op,
                                            const struct oracle *input, uint64_t pixel, uint32_t k)
{
    struct oracle_sum sum = {0, 0, 0};
    uint32_t ow = oracle_side(op, op->w);
    uint32_t oh = oracle_side(op, op->h);
    int64_t pad = op->stride == 2 ? 0 : op->r / 2;
    int64_t high = op->upsample ? 2 * (int64_t)op->h : op->h;
    int64_t wide = op->upsample ? 2 * (int64_t)op->w : op->w;
    for (uint32_t tap = 0; tap < op->r * op->r; tap++) {
        int64_t y = (int64_t)(pixel / ow % oh) * op->stride + tap / op->r - pad;
        int64_t x = (int64_t)(pixel % ow) * op->stride + tap % op->r - pad;
        if (y < 0 || x < 0 || y >= high || x >= wide) continue;
        if (op->upsample) y /= 2;
        if (op->upsample) x /= 2;
        uint64_t from = ((pixel / ow / oh * op->h + (uint64_t)y) * op->w + (uint64_t)x) * op->c;
        const float *weight = op->weight + (uint64_t)k * op->c * op->r * op->r + tap;
        for (uint32_t i = 0; i < op->c; i++) {
            double factor = (double)weight[(uint64_t)i * op->r * op->r];
            sum.value += input->expected[from + i] * factor;
            sum.magnitude += fabs(input->expected[from + i] * factor);
            sum.error += input->bound[from + i] * fabs(factor);
        }
    }
    return sum;
}

// An upsampling convolution may add the weights of all taps that see one pixel and round the sum:
// what that costs an output.
static inline double oracle_sums_error(const struct oracle_convolution *op,
                                       const struct oracle *input, uint64_t pixel, uint32_t k)
{
    double error = 0;
    uint32_t y = (uint32_t)(pixel / oracle_side(op, op->w) % oracle_side(op, op->h));
    uint32_t x = (uint32_t)(pixel % oracle_side(op, op->w));
    uint64_t image = pixel / oracle_side(op, op->w) / oracle_side(op, op->h);
    for (uint32_t place = 0; place < 4; place++) {
        uint32_t row = (y + 1) / 2 + place / 2 - 1;  // wraps around above the image
        uint32_t column = (x + 1) / 2 + place % 2 - 1;
        if (row >= op->h || column >= op->w) continue;
        uint64_t from = ((image * op->h + row) * op->w + column) * op->c;
        for (uint32_t i = 0; i < op->c; i++) {
            double sum = 0;
            for (uint32_t tap = 0; tap < 9; tap++) {
                bool is_seen =
                    (y + tap / 3 + 1) / 2 == row + 1 && (x + tap % 3 + 1) / 2 == column + 1;
                if (is_seen) sum += (double)op->weight[((uint64_t)k * op->c + i) * 9 + tap];
            }
            double rounding = storage_unit(op->storage) * fabs(sum) + 0x1p-25;
            error += rounding * (fabs(input->expected[from + i]) + input->bound[from + i]);
        }
    }
    return error;
}

// A Winograd transform mixes the pixels of a tile, so an output may err by what its neighbours'
// sums are worth: within a window that covers any F(4x4) tile around the pixel, the largest sum of
// magnitudes counts, with the gain of the transforms (measured 18 in units of a direct sum's
// rounding, taken as 64) in front.
#define WINOGRAD_GAIN 64.0
#define WINOGRAD_REACH 5

static inline double oracle_reach(const struct oracle *magnitudes, uint64_t at,
                                  const uint32_t dims[3])
{
    uint32_t oh = dims[0];
    uint32_t ow = dims[1];
    uint32_t k = dims[2];
    int64_t x = (int64_t)(at / k % ow);
    int64_t y = (int64_t)(at / k / ow % oh);
    double most = 0;
    for (int64_t j = y - WINOGRAD_REACH; j <= y + WINOGRAD_REACH; j++) {
        for (int64_t i = x - WINOGRAD_REACH; i <= x + WINOGRAD_REACH; i++) {
            if (i < 0 || j < 0 || i >= ow || j >= oh) continue;
            uint64_t near = at - (uint64_t)((y - j) * ow + (x - i)) * k;
            most = fmax(most, magnitudes->expected[near]);
        }
    }
    return most;
}

static inline void oracle_add_rest(const struct oracle_convolution *op, struct oracle_sum *sum,
                                   uint64_t at)
{
    uint32_t k = (uint32_t)(at % op->k);
    double rest = op->bias == NULL ? 0 : (double)op->bias[k];
    if (op->residual != NULL) rest += (double)op->residual[at];
    sum->magnitude += op->bias == NULL ? 0 : fabs((double)op->bias[k]);
    sum->magnitude += op->residual == NULL ? 0 : fabs((double)op->residual[at]);
    for (uint32_t i = 0; i < op->shortcut_c; i++) {
        double product = (double)op->shortcut[at / op->k * op->shortcut_c + i] *
                         (double)op->shortcut_weight[(uint64_t)k * op->shortcut_c + i];
        rest += product;
        sum->magnitude += fabs(product);
    }
    if (op->shortcut_bias != NULL) {
        rest += (double)op->shortcut_bias[k];
        sum->magnitude += fabs((double)op->shortcut_bias[k]);
    }
    sum->value += rest;
}

static inline struct oracle oracle_convolve(const struct oracle_convolution *op)
{
    uint32_t oh = oracle_side(op, op->h);
    uint32_t ow = oracle_side(op, op->w);
    struct oracle input = oracle_normalized(op);
    struct oracle out = oracle_new((uint64_t)op->n * oh * ow * op->k);
    struct oracle magnitudes = oracle_new(out.count);
    for (uint64_t at = 0; at < out.count; at++) {
        struct oracle_sum sum = oracle_taps(op, &input, at / op->k, (uint32_t)(at % op->k));
        oracle_add_rest(op, &sum, at);
        out.expected[at] = sum.value;
        out.bound[at] = sum.error;
        if (op->upsample && storage_unit(op->storage) > 0) {
            out.bound[at] += oracle_sums_error(op, &input, at / op->k, (uint32_t)(at % op->k));
        }
        magnitudes.expected[at] = sum.magnitude;
    }
    double terms = (double)op->c * op->r * op->r + op->shortcut_c + 4;
    bool may_transform = op->r == 3 && op->stride == 1 && !op->is_direct;
    for (uint64_t at = 0; at < out.count; at++) {
        double magnitude = magnitudes.expected[at];
        double error = terms * 2 * U * magnitude;
        if (may_transform) {
            double near = oracle_reach(&magnitudes, at, (uint32_t[3]){oh, ow, op->k});
            error += WINOGRAD_GAIN * 2 * U * near;
        }
        out.bound[at] += error;
    }
    oracle_free(&magnitudes);
    oracle_free(&input);
    oracle_round(&out, op->storage);
    return out;
}

// ---------------------------------------------------------------------------------------------
// Linear

static inline double oracle_activate(enum activation activation, double x)
{
    if (activation == ACTIVATION_QUICK_GELU) return x / (1 + exp(-1.702 * x));
    if (activation == ACTIVATION_GELU) return x * 0.5 * erfc(-x / sqrt(2.0));
    return x;
}

// Adds scale * up(down(x)) of one row and one column.
struct oracle_path {
    uint32_t row_begin, row_count, column_begin, column_count, rank;  // as in struct low_rank
    float scale;                                                      // as there
    const float *down;                                                // [rank, c]
    const float *up;                                                  // [column_count, rank]
};

struct oracle_linear {
    uint32_t rows, c, k;              // as in struct linear
    enum activation activation;       // as there
    const float *input;               // [rows, c]
    const float *weight;              // [k, c]
    const float *bias;                // [k] or NULL
    const float *residual;            // [rows, k] or NULL
    const struct oracle_path *paths;  // paths_count of them
    uint32_t paths_count;             // adapters
    enum dtype storage;               // of activations; 0 means f32
};

static inline struct oracle_sum oracle_dot(const float *a, const float *b, uint32_t count)
{
    struct oracle_sum sum = {0, 0, 0};
    for (uint32_t i = 0; i < count; i++) {
        sum.value += (double)a[i] * (double)b[i];
        sum.magnitude += fabs((double)a[i] * (double)b[i]);
    }
    sum.error = count * 2 * U * sum.magnitude;
    return sum;
}

static inline void oracle_add_path(const struct oracle_linear *op, const struct oracle_path *path,
                                   uint64_t at, struct oracle_sum *sum)
{
    uint32_t row = (uint32_t)(at / op->k);
    uint32_t column = (uint32_t)(at % op->k);
    if (row < path->row_begin || row >= path->row_begin + path->row_count) return;
    if (column < path->column_begin || column >= path->column_begin + path->column_count) return;
    for (uint32_t r = 0; r < path->rank; r++) {
        struct oracle_sum down =
            oracle_dot(op->input + (uint64_t)row * op->c, path->down + (uint64_t)r * op->c, op->c);
        double up = (double)path->scale *
                    (double)path->up[(uint64_t)(column - path->column_begin) * path->rank + r];
        sum->value += up * down.value;
        sum->magnitude += fabs(up * down.value);
        sum->error += fabs(up) * down.error + path->rank * 2 * U * fabs(up * down.value);
    }
}

// The slopes of both activations are below 1.2; their own arithmetic may err by 16 u |x|.
static inline struct oracle oracle_multiply(const struct oracle_linear *op)
{
    struct oracle out = oracle_new((uint64_t)op->rows * op->k);
    for (uint64_t at = 0; at < out.count; at++) {
        struct oracle_sum sum =
            oracle_dot(op->input + at / op->k * op->c, op->weight + at % op->k * op->c, op->c);
        if (op->bias != NULL) sum.value += (double)op->bias[at % op->k];
        if (op->bias != NULL) sum.magnitude += fabs((double)op->bias[at % op->k]);
        for (uint32_t i = 0; i < op->paths_count; i++) {
            oracle_add_path(op, &op->paths[i], at, &sum);
        }
        double y = oracle_activate(op->activation, sum.value);
        double error = 1.2 * (sum.error + 4 * 2 * U * sum.magnitude);
        if (op->activation != ACTIVATION_NONE) error += 16 * U * fabs(sum.value);
        double residual = op->residual == NULL ? 0 : (double)op->residual[at];
        out.expected[at] = y + residual;
        out.bound[at] = error + 2 * U * (fabs(y) + fabs(residual));
    }
    oracle_round(&out, op->storage);
    return out;
}

// ---------------------------------------------------------------------------------------------
// Attention: a score may err by d, so its exponential by a factor 1 +- d, and so may the total.

struct oracle_attention {
    uint32_t batch, tokens, heads, head_width;  // as in struct attention
    uint32_t stride;     // elements of a row of qkv: three parts side by side
    float scale;         // of the scores
    bool causal;         // only what came before
    const float *qkv;    // [batch, tokens, stride]; q at 0, k and v behind it
    enum dtype storage;  // of activations; 0 means f32
};

static inline void oracle_attend(const struct oracle_attention *op, uint64_t row, uint32_t head,
                                 const struct oracle *out)
{
    uint32_t width = op->heads * op->head_width;
    uint32_t seen = op->causal ? (uint32_t)(row % op->tokens) + 1 : op->tokens;
    const float *first = op->qkv + row / op->tokens * op->tokens * op->stride;
    const float *q = op->qkv + row * op->stride + (uint64_t)head * op->head_width;
    double *scores = calloc(seen, sizeof *scores);
    assert_non_null(scores);
    double highest = -INFINITY;
    double error = 0;
    double total = 0;
    for (uint32_t t = 0; t < seen; t++) {
        const float *k = first + (uint64_t)t * op->stride + width + (uint64_t)head * op->head_width;
        struct oracle_sum sum = oracle_dot(q, k, op->head_width);
        scores[t] = sum.value * (double)op->scale;
        highest = fmax(highest, scores[t]);
        error = fmax(error, (sum.error + 4 * U * sum.magnitude) * fabs((double)op->scale));
    }
    for (uint32_t t = 0; t < seen; t++) {
        // exp(x) of a rounded difference errs by u |x| more; terms below e^-100 count nothing.
        error = fmax(error, 4 * U * fmin(highest - scores[t], 100));
        scores[t] = exp(scores[t] - highest);
        total += scores[t];
    }
    for (uint32_t i = 0; i < op->head_width; i++) {
        struct oracle_sum sum = {0, 0, 0};
        for (uint32_t t = 0; t < seen; t++) {
            const float *v = first + (uint64_t)t * op->stride + 2 * width;
            double product = scores[t] / total * (double)v[(uint64_t)head * op->head_width + i];
            sum.value += product;
            sum.magnitude += fabs(product);
        }
        uint64_t at = row * width + (uint64_t)head * op->head_width + i;
        out->expected[at] = sum.value;
        // Exponentials are rounded to storage where tensor cores take them.
        double unit = 2 * storage_unit(op->storage);
        out->bound[at] = (2 * error + (seen + 16) * 2 * U + unit) * sum.magnitude;
    }
    free(scores);
}

#endif  // TESTS_UNIT_KERNELS_ORACLE_H
