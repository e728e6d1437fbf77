// test_text_stack_golden.c - stacks of every family on the tiny encoders give the conditioning of
// tests/golden/make_lora.py, merged and, where that can be, beside the weights.

#include "models/text/stack.h"

#include "tests/unit/models/text_bench.h"

#define ENTRIES_MAX 8u
// Beside fp16 weights there is one rounding less than in merged ones.
#define BAR_WITHOUT_ROUNDING 4e-3

// A stack with what it needs.
struct golden_stack {
    struct text_adapter *adapters[ENTRIES_MAX];
    struct text_stack_entry entries[ENTRIES_MAX];
    uint32_t count;
};

static void read_strength(const json_t *value, float out[MODEL_PART_COUNT])
{
    static const char *const keys[MODEL_PART_COUNT] = {"", "clip_l", "clip_h", "clip_g"};
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) {
        const json_t *number = json_is_object(value) ? json_object_get(value, keys[i]) : value;
        out[i] = number != NULL ? (float)json_number_value(number) : 0;
    }
}

static struct golden_stack read_stack(const struct bench *bench, const json_t *list)
{
    struct golden_stack self = {.count = (uint32_t)json_array_size(list)};
    assert_true(self.count <= ENTRIES_MAX);
    for (uint32_t i = 0; i < self.count; i++) {
        struct error error;
        const json_t *entry = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(entry, "adapter"));
        struct tensor_table *file = lora_golden_open(name);
        struct tensor_table *tensors = NULL;
        expect_ok(lora_encoder_tensors(&tensors, file, &error), &error);
        expect_ok(text_adapter_create(&self.adapters[i], bench->model, tensors, &error), &error);
        tensor_table_release(&tensors);
        tensor_table_release(&file);
        self.entries[i].adapter = self.adapters[i];
        read_strength(json_object_get(entry, "strength"), self.entries[i].strength);
    }
    return self;
}

static void clear_stack(struct golden_stack *self)
{
    for (uint32_t i = 0; i < self->count; i++) text_adapter_destroy(&self->adapters[i]);
}

static const struct tensor *find_output(const struct tensor_table *cases, const char *name,
                                        const char *what)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", name, what);
    const struct tensor *tensor = tensor_table_find(cases, key);
    if (tensor == NULL) fail_msg("no tensor %s", key);
    assert_int_equal(tensor->dtype, DTYPE_F32);
    return tensor;
}

// Encodes the case's prompt with a stack and compares.
static void check_run(const struct bench *bench, const struct tensor_table *cases,
                      const json_t *entry, const struct text_stack *stack, double bar)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    const struct tensor *cond = find_output(cases, name, "cond");
    const struct tensor *pooled = find_output(cases, name, "pooled");
    struct text_request request = {.prompt = json_bytes(json_object_get(entry, "prompt"))};
    struct text_job *job = make_job(bench, &request);
    text_job_apply(job, stack);
    run_jobs(bench, &job, 1);
    struct text_output output = text_job_output(job, 0);
    uint32_t stride = (uint32_t)atoi(tensor_table_metadata(cases, "stride"));
    uint32_t rows = (output.tokens + stride - 1) / stride;
    assert_int_equal(cond->bytes, (size_t)rows * output.width * sizeof(float));
    assert_int_equal(pooled->bytes, output.pooled_width * sizeof(float));
    float *picked = malloc(cond->bytes);
    assert_non_null(picked);
    for (uint32_t i = 0; i < rows; i++) {
        memcpy(picked + (size_t)i * output.width, output.cond + (size_t)i * stride * output.width,
               output.width * sizeof *picked);
    }
    expect_close_within(cond->name, picked, cond, bar);
    expect_close_within(pooled->name, output.pooled, pooled, bar);
    free(picked);
    text_job_destroy(&job);
}

// Encodes one case in each way that it has; returns how many those were.
static uint32_t check_case(struct encoders *encoders, const char *device,
                           const struct tensor_table *cases, const json_t *entry)
{
    struct error error;
    bool is_half = strcmp(json_string_value(json_object_get(entry, "dtype")), "F16") == 0;
    struct bench bench =
        open_bench(encoders, device, json_string_value(json_object_get(entry, "kind")));
    struct golden_stack read = read_stack(&bench, json_object_get(entry, "stack"));
    uint32_t ways = text_stack_must_merge(read.entries, read.count) ? 1 : 2;
    for (uint32_t i = 0; i < ways; i++) {
        struct text_stack *stack = NULL;
        struct text_stack_options options = {.merged = i == 0};
        expect_ok(
            text_stack_create(&stack, bench.model, read.entries, read.count, &options, &error),
            &error);
        check_run(&bench, cases, entry, stack, i == 1 && is_half ? BAR_WITHOUT_ROUNDING : BAR);
        text_stack_destroy(&stack);
    }
    clear_stack(&read);
    close_bench(&bench);
    return ways;
}

static void check_cases(const char *device, const char *dtype, const char *prefix)
{
    struct error error;
    struct tensor_table *cases = NULL;
    struct encoders *encoders = encoders_open(strcmp(dtype, "F16") == 0 ? DTYPE_F16 : DTYPE_F32);
    json_t *list = lora_golden_json("cases.json");
    uint32_t ways = 0;
    uint32_t count = 0;
    expect_ok(tensor_table_open(&cases, LORA_GOLDEN "cases.safetensors", NULL, &error), &error);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (strcmp(json_string_value(json_object_get(entry, "dtype")), dtype) != 0) continue;
        if (strncmp(name, prefix, strlen(prefix)) != 0) continue;
        ways += check_case(encoders, device, cases, entry);
        count += 1;
    }
    assert_true(count > 0);
    assert_true(ways > count);
    json_decref(list);
    tensor_table_release(&cases);
    encoders_close(encoders);
}

static void stacks_of_every_family_are_those_of_the_reference(void **state)
{
    (void)state;
    check_cases("cpu", "F32", "");
}

static void stacks_on_fp16_weights_are_rounded_once(void **state)
{
    (void)state;
    check_cases("cpu", "F16", "");
}

static void the_reference_device_applies_them_too(void **state)
{
    (void)state;
    check_cases("reference", "F32", "eight");
    check_cases("reference", "F32", "two");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stacks_of_every_family_are_those_of_the_reference),
        cmocka_unit_test(stacks_on_fp16_weights_are_rounded_once),
        cmocka_unit_test(the_reference_device_applies_them_too),
    };
    return cmocka_run_group_tests_name("golden stacks", tests, NULL, NULL);
}
