// test_driver_blas.c - the CUDA driver's products by cuBLASLt against one that multiplies on the
// host: what it is told, which algorithm is taken, and what happens when a call fails.

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_blas.h"
#include "kernels/cuda/driver_cuda.h"
#include "tests/emulation/fake_cublaslt.h"
#include "tests/test.h"

// ---- what the driver's other files give

struct gpu_stream {
    char failure[128];
    uint32_t products;  // that were noted
};

static cudaError_t set_device_result;

cudaError_t cudaSetDevice(int number)
{
    assert_int_equal(number, 3);
    return set_device_result;
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self;
}

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    snprintf(self->failure, sizeof self->failure, "%s: %s", what, why);
}

void gpu_stream_note(struct gpu_stream *self, const char *name)
{
    assert_string_equal(name, "cublasLtMatmul");
    self->products += 1;
}

// ---- the tests

static struct gpu_card card = {.number = 3};

static struct fake_cublaslt *reset(void)
{
    static void *library;
    if (library == NULL) library = dlopen(getenv("LUNA_CUBLASLT"), RTLD_NOW);
    assert_non_null(library);
    struct fake_cublaslt *(*get)(void) = NULL;
    void *symbol = dlsym(library, "fake_cublaslt");
    assert_non_null(symbol);
    memcpy(&get, &symbol, sizeof get);
    struct fake_cublaslt *fake = get();
    assert_int_equal(fake->live, 0);
    *fake = (struct fake_cublaslt){.version = 130100, .algorithms_count = 1};
    set_device_result = cudaSuccess;
    return fake;
}

static struct gpu_blas *open_blas(void)
{
    struct gpu_blas *blas = NULL;
    struct error error;
    if (gpu_blas_open(&blas, &card, &error) != STATUS_OK) fail_msg("%s", error.message);
    return blas;
}

static void a_library_that_is_not_there_is_a_reason(void **state)
{
    (void)state;
    struct fake_cublaslt *fake = reset();
    struct gpu_blas *blas = NULL;
    struct error error;
    char path[512];
    snprintf(path, sizeof path, "%s", getenv("LUNA_CUBLASLT"));
    setenv("LUNA_CUBLASLT", "/nowhere/libcublasLt.so", 1);
    assert_int_equal(gpu_blas_open(&blas, &card, &error), STATUS_UNAVAILABLE);
    assert_non_null(strstr(error.message, "/nowhere/libcublasLt.so"));
    setenv("LUNA_CUBLASLT", "libm.so.6", 1);
    assert_int_equal(gpu_blas_open(&blas, &card, &error), STATUS_UNAVAILABLE);
    assert_non_null(strstr(error.message, "lacks cublasLt"));
    setenv("LUNA_CUBLASLT", path, 1);
    fake->version = 120904;
    assert_int_equal(gpu_blas_open(&blas, &card, &error), STATUS_UNAVAILABLE);
    assert_string_equal(error.message, "cuBLASLt is of version 12, 13 is needed");
    fake->version = 130100;
    set_device_result = cudaErrorUnknown;
    assert_int_equal(gpu_blas_open(&blas, &card, &error), STATUS_UNAVAILABLE);
    set_device_result = cudaSuccess;
    fake->fail_at = fake->calls + 1;
    assert_int_equal(gpu_blas_open(&blas, &card, &error), STATUS_UNAVAILABLE);
    assert_null(blas);
    blas = open_blas();
    assert_string_equal(gpu_blas_name(blas), "cuBLASLt 13.1.0");
    gpu_blas_close(&blas);
    assert_int_equal(fake->live, 0);
}

// Operands of one product, row-major, with room behind their rows.
struct operands {
    struct gpu_blas_shape shape;
    uint32_t m;
    void *a, *b;
    float *bias, *c, *want;
    void *workspace;
};

static float noise(uint32_t i)
{
    return (float)(i * 2654435761u % 64) / 16 - 2;  // exact in every type
}

static void fill(void *to, enum dtype type, uint64_t count, uint32_t seed)
{
    for (uint64_t i = 0; i < count; i++) {
        float value = noise((uint32_t)i + seed);
        dtype_convert((char *)to + i * dtype_bytes(type), type, &value, DTYPE_F32, 1);
    }
}

static struct operands make_operands(struct gpu_blas_shape shape, uint32_t m)
{
    struct operands self = {.shape = shape, .m = m};
    uint64_t element = dtype_bytes(shape.type);
    self.a = malloc((uint64_t)m * shape.a_pitch * element);
    self.b = malloc((uint64_t)shape.n * shape.b_pitch * element);
    self.bias = malloc(shape.n * sizeof(float));
    self.c = malloc((uint64_t)m * shape.n * sizeof(float));
    self.want = malloc((uint64_t)m * shape.n * sizeof(float));
    self.workspace = malloc(GPU_BLAS_WORKSPACE_BYTES);
    assert_non_null(self.a);
    assert_non_null(self.b);
    fill(self.a, shape.type, (uint64_t)m * shape.a_pitch, 1);
    fill(self.b, shape.type, (uint64_t)shape.n * shape.b_pitch, 100);
    fill(self.bias, DTYPE_F32, shape.n, 1000);
    memset(self.c, 0x7f, (uint64_t)m * shape.n * sizeof(float));
    return self;
}

static void drop_operands(struct operands *self)
{
    free(self->a);
    free(self->b);
    free(self->bias);
    free(self->c);
    free(self->want);
    free(self->workspace);
}

// c[i, j] = sum of a[i, l] * b[j, l], as we say it: row-major, no library.
static void multiply(struct operands *self, bool has_bias)
{
    const struct gpu_blas_shape *shape = &self->shape;
    uint32_t element = dtype_bytes(shape->type);
    for (uint32_t i = 0; i < self->m; i++) {
        for (uint32_t j = 0; j < shape->n; j++) {
            float sum = has_bias ? self->bias[j] : 0;
            for (uint32_t l = 0; l < shape->k; l++) {
                float x = 0;
                float y = 0;
                dtype_convert(&x, DTYPE_F32, (char *)self->a + (i * shape->a_pitch + l) * element,
                              shape->type, 1);
                dtype_convert(&y, DTYPE_F32, (char *)self->b + (j * shape->b_pitch + l) * element,
                              shape->type, 1);
                sum += x * y;  // exact: few bits, few terms
            }
            self->want[(uint64_t)i * shape->n + j] = sum;
        }
    }
}

static void enqueue(struct gpu_blas *blas, struct gpu_stream *stream, const struct operands *self,
                    const struct gpu_blas_choice *choice, bool has_bias)
{
    gpu_blas_multiply(blas, stream,
                      &(struct gpu_blas_product){.choice = choice,
                                                 .a = self->a,
                                                 .b = self->b,
                                                 .c = self->c,
                                                 .bias = has_bias ? self->bias : NULL,
                                                 .workspace = self->workspace,
                                                 .m = self->m});
}

static void products_are_those_of_row_major_matrices(void **state)
{
    (void)state;
    struct fake_cublaslt *fake = reset();
    struct gpu_blas *blas = open_blas();
    static const enum dtype types[] = {DTYPE_F16, DTYPE_BF16, DTYPE_F32};
    static const uint32_t rows[] = {1, 5, 77};
    for (uint32_t i = 0; i < 9; i++) {
        struct gpu_stream stream = {.failure = ""};
        struct gpu_blas_shape shape = {.n = 12,
                                       .k = 9,
                                       .b_pitch = 16,
                                       .a_pitch = 11,
                                       .type = types[i / 3],
                                       .has_bias = i % 2 == 0};
        struct operands operands = make_operands(shape, rows[i % 3]);
        const struct gpu_blas_choice *choice = gpu_blas_choose(blas, &shape);
        assert_non_null(choice);
        for (int has_bias = 0; has_bias <= shape.has_bias; has_bias++) {
            multiply(&operands, has_bias);
            uint32_t products = stream.products;
            enqueue(blas, &stream, &operands, choice, has_bias);
            assert_int_equal(stream.products, products + 1);
            assert_memory_equal(operands.c, operands.want,
                                (uint64_t)operands.m * shape.n * sizeof(float));
            assert_ptr_equal(fake->last_stream, &stream);
            assert_int_equal(fake->last_m, operands.m);
            assert_int_equal(fake->last_workspace_bytes, GPU_BLAS_WORKSPACE_BYTES);
        }
        assert_string_equal(stream.failure, "");
        drop_operands(&operands);
    }
    assert_null(fake->complaint);
    gpu_blas_close(&blas);
    assert_int_equal(fake->live, 0);
}

static const struct gpu_blas_shape square = {
    .n = 64, .k = 64, .b_pitch = 64, .a_pitch = 64, .type = DTYPE_F16, .has_bias = true};

static void the_first_algorithm_that_takes_every_row_count_is_taken_for_good(void **state)
{
    (void)state;
    struct fake_cublaslt *fake = reset();
    struct gpu_blas *blas = open_blas();
    struct gpu_stream stream = {.failure = ""};
    fake->algorithms_count = 4;
    fake->algorithms[0].is_unusable = true;
    fake->algorithms[1].refused_m = GPU_BLAS_ROWS_MAX;
    fake->algorithms[2].workspace_of_m = GPU_BLAS_WORKSPACE_BYTES / GPU_BLAS_ROWS_MAX + 1;
    fake->algorithms[3].workspace_of_m = GPU_BLAS_WORKSPACE_BYTES / GPU_BLAS_ROWS_MAX;
    const struct gpu_blas_choice *choice = gpu_blas_choose(blas, &square);
    assert_non_null(choice);
    for (uint32_t m = 1; m <= 5; m += 4) {
        struct operands operands = make_operands(square, m);
        enqueue(blas, &stream, &operands, choice, false);
        assert_int_equal(fake->last_algorithm, 3);
        drop_operands(&operands);
    }
    // What the library would say now does not matter any more.
    fake->algorithms[1].refused_m = 0;
    assert_ptr_equal(gpu_blas_choose(blas, &square), choice);
    assert_int_equal(fake->asked, 1);
    struct gpu_blas_shape other = square;
    other.n = 128;
    assert_ptr_not_equal(gpu_blas_choose(blas, &other), choice);
    assert_int_equal(fake->asked, 2);
    assert_null(fake->complaint);
    gpu_blas_close(&blas);
    assert_int_equal(fake->live, 0);
}

static void without_an_algorithm_for_all_there_is_no_choice(void **state)
{
    (void)state;
    struct fake_cublaslt *fake = reset();
    struct gpu_blas *blas = open_blas();
    fake->algorithms[0].refuses_bias = true;
    assert_null(gpu_blas_choose(blas, &square));
    assert_null(gpu_blas_choose(blas, &square));
    assert_int_equal(fake->asked, 1);  // that is known, too
    struct gpu_blas_shape bare = square;
    bare.has_bias = false;
    assert_non_null(gpu_blas_choose(blas, &bare));
    fake->algorithms_count = 0;
    struct gpu_blas_shape other = square;
    other.k = 128;
    assert_null(gpu_blas_choose(blas, &other));
    gpu_blas_close(&blas);
    assert_int_equal(fake->live, 0);
}

// Opens, chooses, multiplies, with the n-th call failing; true when all went well.
static bool do_everything(const struct operands *operands, uint64_t fail_at, uint64_t *calls)
{
    struct fake_cublaslt *fake = reset();
    struct gpu_blas *blas = NULL;
    struct gpu_stream stream = {.failure = ""};
    const struct gpu_blas_choice *choice = NULL;
    fake->fail_at = fail_at;
    if (gpu_blas_open(&blas, &card, NULL) == STATUS_OK) choice = gpu_blas_choose(blas, &square);
    if (choice != NULL) enqueue(blas, &stream, operands, choice, true);
    bool is_whole = choice != NULL && stream.failure[0] == '\0';
    assert_int_equal(stream.products, is_whole);
    assert_int_equal(is_whole, fake->multiplied);
    gpu_blas_close(&blas);
    assert_int_equal(fake->live, 0);
    assert_null(fake->complaint);
    *calls = fake->calls;
    return is_whole;
}

// Of some thousand checks, the first and the last.
static void any_call_may_fail_and_nothing_is_left_behind(void **state)
{
    (void)state;
    struct operands operands = make_operands(square, 2);
    uint64_t all = 0;
    uint64_t calls = 0;
    assert_true(do_everything(&operands, 0, &all));
    assert_true(all > 2 * GPU_BLAS_ROWS_MAX);
    for (uint64_t number = 1; number <= all; number++) {
        if (number == 101) number = all - 100;
        assert_false(do_everything(&operands, number, &calls));
    }
    drop_operands(&operands);
}

int main(void)
{
    setenv("LUNA_CUBLASLT", FAKE_CUBLASLT, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_library_that_is_not_there_is_a_reason),
        cmocka_unit_test(products_are_those_of_row_major_matrices),
        cmocka_unit_test(the_first_algorithm_that_takes_every_row_count_is_taken_for_good),
        cmocka_unit_test(without_an_algorithm_for_all_there_is_no_choice),
        cmocka_unit_test(any_call_may_fail_and_nothing_is_left_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
