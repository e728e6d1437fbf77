// test_lora_merge.c - adapters merged into weights: the numbers of an independent implementation
// for every family, strength and dtype; order, stops, and what must not depend on anything.

#include "models/lora/lora.h"

#include <float.h>
#include <math.h>
#include <time.h>

#include "models/lora/matrix.h"
#include "tests/unit/models/lora_kit.h"
#include "tests/unit/models/text_weights.h"

#define BAR_F32 3e-6  // largest difference, relative to the largest value
#define BAR_F16 2e-4

// The tiny encoders' weights.
struct bases {
    struct golden_encoder *parts[2][MODEL_PART_COUNT];  // f32, f16
};

static int open_bases(void **state)
{
    struct bases *self = calloc(1, sizeof *self);
    assert_non_null(self);
    for (int i = 0; i < 2; i++) {
        enum dtype dtype = i == 0 ? DTYPE_F32 : DTYPE_F16;
        self->parts[i][MODEL_CLIP_L] = golden_encoder_open("clip_l", lora_narrow, dtype);
        self->parts[i][MODEL_CLIP_G] = golden_encoder_open("clip_g", lora_wide, dtype);
    }
    *state = self;
    return 0;
}

static int close_bases(void **state)
{
    struct bases *self = *state;
    for (int i = 0; i < 2; i++) {
        golden_encoder_close(&self->parts[i][MODEL_CLIP_L]);
        golden_encoder_close(&self->parts[i][MODEL_CLIP_G]);
    }
    free(self);
    return 0;
}

static const struct tensor *base_of(const struct bases *self, enum dtype dtype,
                                    enum model_part part, const char *target)
{
    const struct golden_encoder *encoder = self->parts[dtype == DTYPE_F16][part];
    const struct tensor *tensor = tensor_table_find(encoder->weights.table, target);
    assert_non_null(tensor);
    return tensor;
}

// Merges patches into a fresh buffer that the caller frees.
static void *merge(const struct tensor *base, const struct lora_patch *patches, uint32_t count)
{
    struct error error = {0};
    void *out = malloc(base->bytes);
    assert_non_null(out);
    expect_ok(lora_merge(base, patches, count, NULL, out, &error), &error);
    return out;
}

static double element(const void *data, enum dtype dtype, uint64_t index)
{
    float value = 0;
    dtype_convert(&value, DTYPE_F32, (const uint8_t *)data + index * dtype_bytes(dtype), dtype, 1);
    return (double)value;
}

// The largest difference between count elements, relative to the largest expected one.
static double distance(const void *got, const void *expected, enum dtype dtype, uint64_t count)
{
    double largest = 0;
    double worst = 0;
    for (uint64_t i = 0; i < count; i++) {
        double want = element(expected, dtype, i);
        double difference = fabs(element(got, dtype, i) - want);
        if (fabs(want) > largest) largest = fabs(want);
        if (!(difference <= worst)) worst = difference;
    }
    assert_true(largest > 0);
    return worst / largest;
}

static void check_merge(const struct bases *bases, const json_t *entry, const struct tensor *want)
{
    const char *adapter = json_string_value(json_object_get(entry, "adapter"));
    const char *target = json_string_value(json_object_get(entry, "target"));
    enum model_part part = lora_part(json_string_value(json_object_get(entry, "part")));
    float strength = (float)json_number_value(json_object_get(entry, "strength"));
    struct model_description model = lora_golden_model(adapter);
    struct lora *lora = lora_golden_create(adapter, &model);
    struct lora_patch patch = {lora_find(lora, part, target), strength};
    if (patch.module == NULL) fail_msg("%s: no module for %s", adapter, target);
    const struct tensor *base = base_of(bases, want->dtype, part, target);
    uint8_t *merged = merge(base, &patch, 1);
    uint64_t row = base->rank == 2 ? base->dims[0] / 3 : 0;
    uint64_t skipped = row * (base->rank == 2 ? base->dims[1] : 0) * dtype_bytes(base->dtype);
    uint64_t count = want->bytes / dtype_bytes(want->dtype);
    double error = distance(merged + skipped, want->data, want->dtype, count);
    double bar = want->dtype == DTYPE_F32 ? BAR_F32 : BAR_F16;
    if (error > bar) {
        fail_msg("%s at %g, %s: %.2g", adapter, (double)strength, target, error);
    }
    free(merged);
    lora_destroy(&lora);
}

static void every_family_gives_the_reference_numbers(void **state)
{
    struct error error = {0};
    struct tensor_table *wanted = NULL;
    json_t *listing = lora_golden_json("merges.json");
    expect_ok(tensor_table_open(&wanted, LORA_GOLDEN "merges.safetensors", NULL, &error), &error);
    assert_true(json_array_size(listing) > 300);
    for (size_t i = 0; i < json_array_size(listing); i++) {
        char name[32];
        snprintf(name, sizeof name, "%zu", i);
        const struct tensor *want = tensor_table_find(wanted, name);
        assert_non_null(want);
        check_merge(*state, json_array_get(listing, i), want);
    }
    tensor_table_release(&wanted);
    json_decref(listing);
}

#define V_PROJ "text_model.encoder.layers.0.self_attn.v_proj.weight"
#define FC2 "text_model.encoder.layers.1.mlp.fc2.weight"

static void patches_apply_in_order_and_round_once(void **state)
{
    struct model_description model = lora_model("lg");
    struct lora *low = lora_golden_create("peft.safetensors", &model);
    struct lora *dora = lora_golden_create("dora.safetensors", &model);
    const struct tensor *base = base_of(*state, DTYPE_F16, MODEL_CLIP_G, FC2);
    struct lora_patch patches[] = {{lora_find(low, MODEL_CLIP_G, FC2), 0.7f},
                                   {lora_find(dora, MODEL_CLIP_G, FC2), 0.7f}};
    struct lora_patch turned[] = {patches[1], patches[0]};
    void *a = merge(base, patches, 2);
    void *b = merge(base, turned, 2);
    assert_true(distance(a, b, DTYPE_F16, base->bytes / 2) > 1e-2);

    // In fp32, from the same base, one patch after the other is the same as both.
    float *wide = malloc(base->bytes * 2);
    uint16_t *rounded = malloc(base->bytes);
    assert_non_null(wide);
    assert_non_null(rounded);
    uint64_t count = base->bytes / 2;
    dtype_convert(wide, DTYPE_F32, base->data, DTYPE_F16, count);
    struct tensor step = *base;
    step.dtype = DTYPE_F32;
    step.bytes = base->bytes * 2;
    step.data = wide;
    float *first = merge(&step, &patches[0], 1);
    step.data = first;
    float *second = merge(&step, &patches[1], 1);
    dtype_convert(rounded, DTYPE_F16, second, DTYPE_F32, count);
    assert_memory_equal(rounded, a, base->bytes);
    free(rounded);
    free(second);
    free(first);
    free(wide);
    free(a);
    free(b);
    lora_destroy(&low);
    lora_destroy(&dora);
}

static void no_patches_copy_the_tensor(void **state)
{
    const struct tensor *base = base_of(*state, DTYPE_F16, MODEL_CLIP_L, V_PROJ);
    void *copy = merge(base, NULL, 0);
    assert_memory_equal(copy, base->data, base->bytes);
    free(copy);
    base = base_of(*state, DTYPE_F32, MODEL_CLIP_G, "text_projection.weight");
    assert_true(base->transposed);
    copy = merge(base, NULL, 0);
    for (uint64_t i = 0; i < base->dims[0]; i++) {
        for (uint64_t j = 0; j < base->dims[1]; j++) {
            double straight = element(copy, DTYPE_F32, i * base->dims[1] + j);
            assert_true(straight == element(base->data, DTYPE_F32, j * base->dims[0] + i));
        }
    }
    free(copy);
}

static void a_strength_of_0_changes_nothing_but_what_is_set(void **state)
{
    static const char *const adapters[] = {"peft", "loha", "lokr", "glora", "dora",
                                           "oft",  "boft", "diff", "set"};
    for (size_t i = 0; i < sizeof adapters / sizeof adapters[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.safetensors", adapters[i]);
        struct model_description model = lora_model("lg");
        struct lora *lora = lora_golden_create(name, &model);
        struct lora_patch patch = {lora_find(lora, MODEL_CLIP_L, V_PROJ), 0};
        assert_non_null(patch.module);
        const struct tensor *base = base_of(*state, DTYPE_F32, MODEL_CLIP_L, V_PROJ);
        void *merged = merge(base, &patch, 1);
        bool same = distance(merged, base->data, DTYPE_F32, base->bytes / 4) == 0;
        if (same != (strcmp(adapters[i], "set") != 0)) fail_msg("%s", name);
        free(merged);
        lora_destroy(&lora);
    }
}

static void an_alpha_of_0_takes_the_product_away(void **state)
{
    struct error error = {0};
    struct golden_weights file = {.dtype = DTYPE_F32};
    struct model_description model = lora_model("l");
    struct lora *lora = NULL;
    const char *stem = "lora_te_text_model_encoder_layers_0_self_attn_v_proj";
    char name[128];
    adapter_add_pair(&file, stem, 64, 4, 64);
    snprintf(name, sizeof name, "%s.alpha", stem);
    adapter_add_scalar(&file, name, 0);
    golden_finish(&file);
    expect_ok(lora_create(&lora, file.table, &model, &error), &error);
    struct lora_patch patch = {lora_find(lora, MODEL_CLIP_L, V_PROJ), 1};
    assert_non_null(patch.module);
    assert_true(patch.module->has_alpha);
    assert_true(patch.module->factor == 0);
    const struct tensor *base = base_of(*state, DTYPE_F32, MODEL_CLIP_L, V_PROJ);
    void *merged = merge(base, &patch, 1);
    assert_memory_equal(merged, base->data, base->bytes);
    free(merged);
    lora_destroy(&lora);
    golden_close(&file);
}

static void a_block_that_cannot_be_inverted_is_an_error(void **state)
{
    struct error error = {0};
    struct golden_weights file = {.dtype = DTYPE_F32};
    struct model_description model = lora_model("l");
    struct lora *lora = NULL;
    struct tensor shape = {.rank = 3, .dims = {8, 8, 8}};
    const char *key = "lora_te_text_model_encoder_layers_0_self_attn_v_proj.oft_blocks";
    struct tensor *blocks = golden_add(&file, key, key, &shape, (struct golden_rule){0.25f, 0});
    golden_set(blocks, 3 * 64 + 1, NAN);
    golden_finish(&file);
    expect_ok(lora_create(&lora, file.table, &model, &error), &error);
    struct lora_patch patch = {lora_find(lora, MODEL_CLIP_L, V_PROJ), 1};
    const struct tensor *base = base_of(*state, DTYPE_F32, MODEL_CLIP_L, V_PROJ);
    void *out = malloc(base->bytes);
    assert_int_equal(lora_merge(base, &patch, 1, NULL, out, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "block 3"));
    assert_non_null(strstr(error.message, key));
    free(out);
    lora_destroy(&lora);
    golden_close(&file);
}

// ---------------------------------------------------------------------------------------------
// Large tensors

#define LARGE_ROWS 2048u
#define LARGE_COLUMNS 4096u

struct large {
    struct golden_weights base;     // one tensor
    struct golden_weights adapter;  // up and down
    struct lora_module module;
};

static struct large make_large(uint64_t rank)
{
    struct large self = {.base = {.dtype = DTYPE_F16}, .adapter = {.dtype = DTYPE_F16}};
    struct tensor shape = {.rank = 2, .dims = {LARGE_ROWS, LARGE_COLUMNS}};
    golden_add(&self.base, "base", "base", &shape, (struct golden_rule){0.1f, 0});
    golden_finish(&self.base);
    adapter_add(&self.adapter, "a_up", LARGE_ROWS, rank);
    adapter_add(&self.adapter, "b_down", rank, LARGE_COLUMNS);
    golden_finish(&self.adapter);
    self.module = (struct lora_module){.family = LORA_LOW_RANK,
                                       .product = LORA_LOW_RANK,
                                       .target = "base",
                                       .rank = (uint32_t)rank,
                                       .factor = 1.0f};
    self.module.operands[LORA_ROLE_UP] = tensor_table_at(self.adapter.table, 0);
    self.module.operands[LORA_ROLE_DOWN] = tensor_table_at(self.adapter.table, 1);
    return self;
}

static void free_large(struct large *self)
{
    golden_close(&self->base);
    golden_close(&self->adapter);
}

// Some rows of a tensor, as a view.
static struct tensor rows_of(const struct tensor *tensor, uint64_t first, uint64_t rows)
{
    struct tensor view = *tensor;
    uint64_t row_bytes = tensor->bytes / tensor->dims[0];
    view.dims[0] = rows;
    view.data = (const uint8_t *)tensor->data + first * row_bytes;
    view.bytes = rows * row_bytes;
    return view;
}

static void a_tensor_of_many_blocks_gives_the_rows_that_one_block_gives(void **state)
{
    (void)state;
    static const uint64_t firsts[] = {0, 12, 1024, LARGE_ROWS - 8};
    struct large large = make_large(5);
    const struct tensor *base = tensor_table_at(large.base.table, 0);
    struct lora_patch patch = {&large.module, 0.7f};
    uint8_t *whole = merge(base, &patch, 1);
    for (size_t i = 0; i < sizeof firsts / sizeof firsts[0]; i++) {
        struct tensor few = rows_of(base, firsts[i], 8);
        struct tensor up = rows_of(large.module.operands[LORA_ROLE_UP], firsts[i], 8);
        struct lora_module module = large.module;
        module.operands[LORA_ROLE_UP] = &up;
        struct lora_patch small = {&module, 0.7f};
        void *part = merge(&few, &small, 1);
        assert_memory_equal(part, whole + firsts[i] * LARGE_COLUMNS * 2, few.bytes);
        free(part);
    }
    free(whole);
    free_large(&large);
}

static void rotations_of_a_large_tensor_see_all_of_their_rows(void **state)
{
    (void)state;
    struct large large = make_large(5);
    struct golden_weights blocks = {.dtype = DTYPE_F16};
    // Blocks of 32 rows, which are no multiple of what the cache holds.
    struct tensor shape = {.rank = 3, .dims = {LARGE_ROWS / 32, 32, 32}};
    golden_add(&blocks, "blocks", "blocks", &shape, (struct golden_rule){0.1f, 0});
    golden_finish(&blocks);
    const struct tensor *all = tensor_table_at(blocks.table, 0);
    struct lora_module module = {.family = LORA_OFT, .product = LORA_OFT, .factor = 1.0f};
    module.operands[LORA_ROLE_BLOCKS] = all;
    struct lora_patch patch = {&module, 0.7f};
    const struct tensor *base = tensor_table_at(large.base.table, 0);
    uint8_t *whole = merge(base, &patch, 1);
    for (uint64_t block = 0; block < LARGE_ROWS / 32; block += 21) {
        struct tensor few = rows_of(base, block * 32, 32);
        struct tensor one = rows_of(all, block, 1);
        module.operands[LORA_ROLE_BLOCKS] = &one;
        void *part = merge(&few, &patch, 1);
        assert_memory_equal(part, whole + block * 32 * LARGE_COLUMNS * 2, few.bytes);
        free(part);
    }
    free(whole);
    golden_close(&blocks);
    free_large(&large);
}

static void dora_of_rows_without_any_length_stays_finite(void **state)
{
    (void)state;
    struct model_description model = lora_model("lg");
    struct lora *lora = lora_golden_create("dora.safetensors", &model);
    struct lora_patch patch = {lora_find(lora, MODEL_CLIP_L, V_PROJ), 1};
    static float zeros[64 * 64];
    struct tensor base = {
        .dtype = DTYPE_F32, .rank = 2, .dims = {64, 64}, .data = zeros, .bytes = sizeof zeros};
    float *merged = merge(&base, &patch, 1);
    for (uint32_t i = 0; i < 64 * 64; i++) assert_true(isfinite(merged[i]));
    free(merged);
    lora_destroy(&lora);
}

// Of processor time.
static double seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

struct stopping {
    uint32_t asked;    // so far
    uint32_t allowed;  // before it says stop
    double last;       // when it was asked last
    double longest;    // between two questions, of processor time
};

static bool should_stop(void *context)
{
    struct stopping *self = context;
    double now = seconds();
    if (self->asked > 0 && now - self->last > self->longest) self->longest = now - self->last;
    self->last = now;
    self->asked += 1;
    return self->asked > self->allowed;
}

static void a_long_merge_asks_often_and_stops_when_told(void **state)
{
    (void)state;
    struct error error = {0};
    struct large large = make_large(256);
    const struct tensor *base = tensor_table_at(large.base.table, 0);
    struct lora_patch patches[2] = {{&large.module, 1}, {&large.module, -0.5f}};
    void *out = malloc(base->bytes);
    assert_non_null(out);
    struct stopping stopping = {.allowed = UINT32_MAX};
    struct lora_stop stop = {should_stop, &stopping};
    expect_ok(lora_merge(base, patches, 2, &stop, out, &error), &error);
    assert_true(stopping.asked >= 50);
    print_message("asked %u times, at most %.0f ms apart\n", stopping.asked,
                  stopping.longest * 1e3);
    stopping = (struct stopping){.allowed = 3};
    assert_int_equal(lora_merge(base, patches, 2, &stop, out, &error), STATUS_CANCELLED);
    assert_int_equal(stopping.asked, 4);
    free(out);
    free_large(&large);
}

static void the_speed_of_merging_is_printed(void **state)
{
    (void)state;
    struct large large = make_large(32);
    const struct tensor *base = tensor_table_at(large.base.table, 0);
    struct lora_patch patch = {&large.module, 1};
    double best = DBL_MAX;
    for (int i = 0; i < 5; i++) {
        double begun = seconds();
        free(merge(base, &patch, 1));
        double took = seconds() - begun;
        if (took < best) best = took;
    }
    double elements = LARGE_ROWS * LARGE_COLUMNS;
    print_message("rank 32 into f16: %.2f ns a weight, %.2f s for 800 M\n", best / elements * 1e9,
                  best / elements * 800e6);
    assert_true(best < 60);
    free_large(&large);
}

// ---------------------------------------------------------------------------------------------
// Elements

static void all_halves_convert_as_the_slow_way_does(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DTYPE_F16, DTYPE_BF16};
    static uint16_t halves[65536];
    static float fast[65536];
    static float slow[65536];
    for (uint32_t i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
    for (int i = 0; i < 2; i++) {
        reals_load(fast, halves, dtypes[i], 65536);
        dtype_convert(slow, DTYPE_F32, halves, dtypes[i], 65536);
        assert_memory_equal(fast, slow, sizeof fast);
    }
}

static void floats_round_as_the_slow_way_does(void **state)
{
    (void)state;
    static const enum dtype dtypes[] = {DTYPE_F16, DTYPE_BF16};
    static float values[65536 + 5];  // not only whole lanes
    static uint16_t fast[65536 + 5];
    static uint16_t slow[65536 + 5];
    uint32_t count = 65536 + 5;
    for (uint32_t round = 0; round < 64; round++) {
        for (uint32_t i = 0; i < count; i++) {
            // Every exponent, and mantissas around each border of rounding.
            uint32_t bits = i << 16 | (round * 0x0411u & 0xffffu);
            if (round % 2 == 1) bits = i << 16 | (0x0fffu + round / 2 * 0x1000u) % 0x10000u;
            if (round % 4 == 2) bits = i * 65537u + round;
            memcpy(&values[i], &bits, sizeof bits);
        }
        for (int j = 0; j < 2; j++) {
            reals_store(fast, dtypes[j], values, count);
            dtype_convert(slow, dtypes[j], values, DTYPE_F32, count);
            assert_memory_equal(fast, slow, sizeof fast);
        }
    }
}

static void products_of_any_size_are_those_of_three_loops(void **state)
{
    (void)state;
    struct error error = {0};
    struct work work = {.error = &error};
    for (uint64_t size = 1; size < 40; size += 1 + size / 8) {
        struct matrix left = matrix_create(&work, size, 41 - size);
        struct matrix right = matrix_create(&work, 41 - size, 2 * size + 1);
        for (uint64_t i = 0; i < left.rows * left.columns; i++) {
            left.values[i] = golden_noise(1, i);
        }
        for (uint64_t i = 0; i < right.rows * right.columns; i++) {
            right.values[i] = golden_noise(2, i);
        }
        struct matrix out = matrix_product(&work, &left, &right);
        assert_int_equal(work.status, STATUS_OK);
        for (uint64_t i = 0; i < out.rows * out.columns; i++) {
            float sum = 0;
            for (uint64_t k = 0; k < left.columns; k++) {
                sum += left.values[i / out.columns * left.columns + k] *
                       right.values[k * right.columns + i % out.columns];
            }
            assert_true(sum == out.values[i]);
        }
        matrix_free(&left);
        matrix_free(&right);
        matrix_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_gives_the_reference_numbers),
        cmocka_unit_test(patches_apply_in_order_and_round_once),
        cmocka_unit_test(no_patches_copy_the_tensor),
        cmocka_unit_test(a_strength_of_0_changes_nothing_but_what_is_set),
        cmocka_unit_test(an_alpha_of_0_takes_the_product_away),
        cmocka_unit_test(a_block_that_cannot_be_inverted_is_an_error),
        cmocka_unit_test(a_tensor_of_many_blocks_gives_the_rows_that_one_block_gives),
        cmocka_unit_test(rotations_of_a_large_tensor_see_all_of_their_rows),
        cmocka_unit_test(dora_of_rows_without_any_length_stays_finite),
        cmocka_unit_test(a_long_merge_asks_often_and_stops_when_told),
        cmocka_unit_test(the_speed_of_merging_is_printed),
        cmocka_unit_test(all_halves_convert_as_the_slow_way_does),
        cmocka_unit_test(floats_round_as_the_slow_way_does),
        cmocka_unit_test(products_of_any_size_are_those_of_three_loops),
    };
    return cmocka_run_group_tests(tests, open_bases, close_bases);
}
