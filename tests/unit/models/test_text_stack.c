// test_text_stack.c - stacks of adapters on shared weights: the two ways agree, jobs with different
// stacks share a pass and change no byte of each other, and nothing is ever written.

#include "models/text/stack.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cpu/launch.h"
#include "tests/unit/models/text_toys.h"

static void expect_other_jobs(const struct text_job *a, const struct text_job *b)
{
    struct text_output left = text_job_output(a, 0);
    struct text_output right = text_job_output(b, 0);
    size_t bytes = (size_t)left.tokens * left.width * sizeof(float);
    assert_memory_not_equal(left.cond, right.cond, bytes);
    assert_memory_not_equal(left.pooled, right.pooled, left.pooled_width * sizeof(float));
}

static int open_encoders(void **state)
{
    *state = encoders_open(DTYPE_F32);
    return 0;
}

static int close_encoders(void **state)
{
    encoders_close(*state);
    return 0;
}

// ---------------------------------------------------------------------------------------------
// The numbers

static void expect_near(const float *found, const float *expected, size_t count, const char *what)
{
    double difference = 0;
    double size = 0;
    for (size_t i = 0; i < count; i++) {
        double here = fabs((double)found[i] - (double)expected[i]);
        if (isnan(here) || here > difference) difference = here;
        size = fmax(size, fabs((double)expected[i]));
    }
    if (!(difference <= BAR * size)) fail_msg("%s: %g of %g", what, difference, size);
}

static void check_ways(const struct bench *bench, const struct text_job *plain,
                       const struct text_stack_entry *entries, uint32_t count)
{
    struct text_stack *functional = make_stack(bench, entries, count, false);
    struct text_stack *merged = make_stack(bench, entries, count, true);
    struct text_job *beside = encode(bench, functional);
    struct text_job *inside = encode(bench, merged);
    for (uint32_t which = 0; which < 2; which++) {
        struct text_output a = text_job_output(beside, which);
        struct text_output b = text_job_output(inside, which);
        expect_near(a.cond, b.cond, (size_t)a.tokens * a.width, "cond");
        expect_near(a.pooled, b.pooled, a.pooled_width, "pooled");
    }
    expect_other_jobs(plain, beside);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(text_stack_modules(functional, i), text_stack_modules(merged, i));
    }
    assert_int_equal(text_stack_bytes(functional), 0);
    assert_int_equal(text_stack_bytes(merged),
                     text_stack_merged_bytes(bench->model, entries, count));
    text_job_destroy(&beside);
    text_job_destroy(&inside);
    text_stack_destroy(&functional);
    text_stack_destroy(&merged);
}

static void check_all_ways(struct encoders *encoders, const char *device, uint32_t strengths_count)
{
    static const float strengths[] = {1, 0.7f, -0.5f};
    struct bench bench = open_bench(encoders, device, "sdxl");
    struct text_job *plain = encode(&bench, NULL);
    struct toy toys[STACKS];
    toys_open(&bench, toys);
    struct text_stack_entry all[STACKS];
    for (uint32_t i = 0; i < strengths_count; i++) {
        struct text_stack_entry one = entry_of(&toys[2], strengths[i]);
        check_ways(&bench, plain, &one, 1);
    }
    struct text_stack_entry two[] = {entry_of(&toys[3], 0.7f), entry_of(&toys[3], -0.5f)};
    check_ways(&bench, plain, two, 2);
    two[1] = entry_of(&toys[4], 1);
    two[1].strength[MODEL_CLIP_L] = 0;
    check_ways(&bench, plain, two, 2);
    for (uint32_t i = 0; i < STACKS; i++) all[i] = entry_of(&toys[i], strengths[i % 3] / 4);
    check_ways(&bench, plain, all, STACKS);
    toys_close(toys);
    text_job_destroy(&plain);
    close_bench(&bench);
}

static void beside_and_inside_the_weights_agree_on_the_cpu(void **state)
{
    check_all_ways(*state, "cpu", 3);
}

static void beside_and_inside_the_weights_agree_on_the_reference_device(void **state)
{
    check_all_ways(*state, "reference", 0);
}

static void what_has_no_strength_changes_no_byte(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy_shape shape = {.rank = 4, .dtype = DTYPE_F32, .alpha = 0, .scale = 0.2f};
    struct toy still = toy_open(&bench, "still", shape);
    shape.alpha = 4;
    struct toy loud = toy_open(&bench, "loud", shape);
    struct text_stack_entry entries[] = {entry_of(&still, 1), entry_of(&loud, 0)};
    struct text_job *plain = encode(&bench, NULL);
    for (int merged = 0; merged < 2; merged++) {
        struct text_stack *stack = make_stack(&bench, entries, 2, merged == 1);
        struct text_stack *empty = make_stack(&bench, NULL, 0, merged == 1);
        struct text_job *job = encode(&bench, stack);
        struct text_job *other = encode(&bench, empty);
        expect_same_jobs(plain, job);
        expect_same_jobs(plain, other);
        assert_int_equal(text_stack_modules(stack, 0), 0);
        assert_int_equal(text_stack_modules(stack, 1), 0);
        assert_int_equal(text_stack_bytes(stack), 0);
        text_job_destroy(&job);
        text_job_destroy(&other);
        text_stack_destroy(&stack);
        text_stack_destroy(&empty);
    }
    text_job_destroy(&plain);
    toy_close(&still);
    toy_close(&loud);
    close_bench(&bench);
}

static void a_strength_of_one_encoder_leaves_the_other_alone(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = toy_open(&bench, "toy", (struct toy_shape){3, DTYPE_F16, 3, 0.2f});
    struct text_stack_entry entry = entry_of(&toy, 1);
    entry.strength[MODEL_CLIP_G] = 0;
    struct text_job *plain = encode(&bench, NULL);
    for (int merged = 0; merged < 2; merged++) {
        struct text_stack *stack = make_stack(&bench, &entry, 1, merged == 1);
        struct text_job *job = encode(&bench, stack);
        struct text_output a = text_job_output(plain, 0);
        struct text_output b = text_job_output(job, 0);
        uint32_t narrow = bench.description.clip[MODEL_CLIP_L].width;
        for (uint32_t i = 0; i < a.tokens; i++) {
            const float *left = a.cond + (size_t)i * a.width;
            const float *right = b.cond + (size_t)i * b.width;
            assert_memory_not_equal(left, right, narrow * sizeof(float));
            assert_memory_equal(left + narrow, right + narrow, (a.width - narrow) * sizeof(float));
        }
        assert_memory_equal(a.pooled, b.pooled, a.pooled_width * sizeof(float));
        assert_int_equal(text_stack_modules(stack, 0), LAYERS * 6);
        text_job_destroy(&job);
        text_stack_destroy(&stack);
    }
    text_job_destroy(&plain);
    toy_close(&toy);
    close_bench(&bench);
}

// ---------------------------------------------------------------------------------------------
// What company must not change

// Eight stacks: of 1, 2 and 8 adapters, the same one twice, merged ones, one that is empty.
static void stacks_open(const struct bench *bench, const struct toy toys[STACKS],
                        struct text_stack *stacks[STACKS])
{
    struct text_stack_entry entries[ENTRIES_MAX];
    for (uint32_t i = 0; i < ENTRIES_MAX; i++) {
        entries[i] = entry_of(&toys[i], 0.1f * (float)(i + 1));
    }
    stacks[0] = make_stack(bench, entries, 1, false);
    stacks[1] = make_stack(bench, entries + 1, 2, false);
    stacks[2] = make_stack(bench, entries, 8, false);
    stacks[3] = make_stack(bench, (struct text_stack_entry[]){entries[5], entries[5]}, 2, false);
    stacks[4] = make_stack(bench, entries + 6, 1, true);
    stacks[5] = make_stack(bench, entries + 2, 3, true);
    stacks[6] = make_stack(bench, NULL, 0, false);
    stacks[7] = make_stack(bench, entries + 7, 1, false);
}

// A job of several rows in several places of the batch's order.
static struct text_job *make_mate(const struct bench *bench, uint32_t i,
                                  const struct text_stack *stack)
{
    static const char *const prompts[] = {"a (red:1.3) fox", "a fox", "a fox",
                                          "a photo of a cat, masterpiece, best quality"};
    struct text_request request = prompt_request(prompts[i % 4]);
    request.has_negative = true;
    request.negative = text_of(i % 3 == 0 ? "(blurry:0.5)" : "");
    request.clip_skip = (int32_t)(i % 3);
    struct text_job *job = make_job(bench, &request);
    text_job_apply(job, stack);
    return job;
}

static void check_mates(struct encoders *encoders, uint32_t threads, bool reversed,
                        struct text_job *const alone[2 * STACKS])
{
    struct bench bench = open_bench_of(encoders, "cpu", threads, "sdxl");
    struct toy toys[STACKS];
    struct text_stack *stacks[STACKS];
    toys_open(&bench, toys);
    stacks_open(&bench, toys, stacks);
    struct text_job *together[2 * STACKS];
    for (uint32_t i = 0; i < 2 * STACKS; i++) {
        uint32_t at = reversed ? 2 * STACKS - 1 - i : i;
        together[at] = make_mate(&bench, i, stacks[i % STACKS]);
    }
    run_jobs(&bench, together, 2 * STACKS);
    for (uint32_t i = 0; i < 2 * STACKS; i++) {
        expect_same_jobs(alone[i], together[reversed ? 2 * STACKS - 1 - i : i]);
    }
    for (uint32_t i = 0; i < 2 * STACKS; i++) text_job_destroy(&together[i]);
    for (uint32_t i = 0; i < STACKS; i++) text_stack_destroy(&stacks[i]);
    toys_close(toys);
    close_bench(&bench);
}

static void neither_mates_nor_threads_nor_order_change_a_byte(void **state)
{
    struct bench bench = open_bench_of(*state, "cpu", 1, "sdxl");
    struct toy toys[STACKS];
    struct text_stack *stacks[STACKS];
    toys_open(&bench, toys);
    stacks_open(&bench, toys, stacks);
    struct text_job *alone[2 * STACKS];
    for (uint32_t i = 0; i < 2 * STACKS; i++) {
        alone[i] = make_mate(&bench, i, stacks[i % STACKS]);
        run_jobs(&bench, &alone[i], 1);
    }
    check_mates(*state, 2, false, alone);
    check_mates(*state, 3, true, alone);
    for (uint32_t i = 0; i < 2 * STACKS; i++) text_job_destroy(&alone[i]);
    for (uint32_t i = 0; i < STACKS; i++) text_stack_destroy(&stacks[i]);
    toys_close(toys);
    close_bench(&bench);
}

static void one_then_another_then_the_first_gives_its_bytes_again(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toys[STACKS];
    struct text_stack *stacks[STACKS];
    toys_open(&bench, toys);
    stacks_open(&bench, toys, stacks);
    struct text_job *plain = encode(&bench, NULL);
    for (uint32_t i = 0; i + 1 < STACKS; i++) {
        struct text_job *a = encode(&bench, stacks[i]);
        struct text_job *b = encode(&bench, stacks[i + 1]);
        struct text_job *again = encode(&bench, stacks[i]);
        expect_same_jobs(a, again);
        expect_other_jobs(a, b);
        text_job_destroy(&a);
        text_job_destroy(&b);
        text_job_destroy(&again);
    }
    struct text_job *last = encode(&bench, NULL);
    expect_same_jobs(plain, last);
    text_job_destroy(&plain);
    text_job_destroy(&last);
    for (uint32_t i = 0; i < STACKS; i++) text_stack_destroy(&stacks[i]);
    toys_close(toys);
    close_bench(&bench);
}

static void two_lanes_share_a_stack(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toys[STACKS];
    struct text_stack *stacks[STACKS];
    toys_open(&bench, toys);
    stacks_open(&bench, toys, stacks);
    struct lane *lanes[2] = {NULL};
    struct text_job *jobs[2][STACKS];
    struct text_batch *batches[2];
    struct error error;
    for (uint32_t i = 0; i < 2; i++) {
        expect_ok(lane_create(&lanes[i], bench.device, &error), &error);
        for (uint32_t j = 0; j < STACKS; j++) jobs[i][j] = make_mate(&bench, j, stacks[j]);
        batches[i] = make_batch(&bench, jobs[i], STACKS);
    }
    for (uint32_t i = 0; i < 2; i++) start_batch(batches[i], lanes[i]);
    for (uint32_t i = 0; i < 2; i++) end_batch(&batches[i], lanes[i]);
    for (uint32_t j = 0; j < STACKS; j++) {
        expect_same_jobs(jobs[0][j], jobs[1][j]);
        for (uint32_t i = 0; i < 2; i++) text_job_destroy(&jobs[i][j]);
        text_stack_destroy(&stacks[j]);
    }
    for (uint32_t i = 0; i < 2; i++) lane_destroy(&lanes[i]);
    toys_close(toys);
    close_bench(&bench);
}

// ---------------------------------------------------------------------------------------------
// Memory

static void leave_child(int signal)
{
    (void)signal;
    _exit(42);
}

static void expect_write_crashes(void *address)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, leave_child);
        *(volatile uint8_t *)address = 1;
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), 42);
}

static void a_write_to_a_merged_copy_is_a_crash(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = toy_open(&bench, "toy", (struct toy_shape){3, DTYPE_F32, 3, 0.2f});
    struct text_stack_entry entry = entry_of(&toy, 1);
    struct text_stack *stack = make_stack(&bench, &entry, 1, true);
    for (uint64_t at = 0; at < stack->copies.bytes; at += stack->copies.bytes / 4 + 1) {
        expect_write_crashes((uint8_t *)stack->copies.data + at);
    }
    text_stack_destroy(&stack);
    toy_close(&toy);
    close_bench(&bench);
}

static void *floats_of(const struct weight *weight)
{
    return ((const struct cpu_weight *)weight)->vector.data;
}

static void a_write_to_a_vector_is_a_crash_in_the_model_and_in_its_variant(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = {.weights = {.dtype = DTYPE_F16}};
    struct error error;
    const char key[] = "lora_te1_text_model_encoder_layers_1_self_attn_k_proj.diff_b";
    golden_add(&toy.weights, key, key, &(struct tensor){.rank = 1, .dims = {64}},
               (struct golden_rule){0.2f, 0});
    golden_finish(&toy.weights);
    expect_ok(text_adapter_create(&toy.adapter, bench.model, toy.weights.table, &error), &error);
    struct text_stack_entry entry = entry_of(&toy, 1);
    struct text_stack *stack = make_stack(&bench, &entry, 1, true);
    const struct text_layer *own = &stack->networks[MODEL_CLIP_L]->layers[1];
    const struct text_layer *base = &bench.model->networks[MODEL_CLIP_L]->layers[1];
    assert_ptr_not_equal(own->qkv_bias, base->qkv_bias);
    assert_ptr_equal(own->norm1_gamma, base->norm1_gamma);
    const struct weight *const vectors[] = {own->qkv_bias, base->qkv_bias, base->norm1_gamma,
                                            base->norm2_beta, base->fc1_bias};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        expect_write_crashes(floats_of(vectors[i]));
    }
    expect_write_crashes(stack->copies.data);
    // The budget knows of the vector that lies beside the copy.
    assert_true(text_stack_bytes(stack) >= stack->copies.bytes + weight_bytes(own->qkv_bias));
    assert_int_equal(text_stack_bytes(stack), text_stack_merged_bytes(bench.model, &entry, 1));
    text_stack_destroy(&stack);
    toy_close(&toy);
    close_bench(&bench);
}

static void only_touched_tensors_are_copied(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = {.weights = {.dtype = DTYPE_F32}};
    struct error error;
    add_pair(&toy, "one", "lora_te1_text_model_encoder_layers_1_self_attn_k_proj", 64, 64,
             &(struct toy_shape){2, DTYPE_F32, 2, 0.2f});
    golden_finish(&toy.weights);
    expect_ok(text_adapter_create(&toy.adapter, bench.model, toy.weights.table, &error), &error);
    struct text_stack_entry entry = entry_of(&toy, 1);
    struct text_stack *stack = make_stack(&bench, &entry, 1, true);
    assert_int_equal(text_stack_bytes(stack), 64 * 64 * sizeof(float));  // a few pages exactly
    assert_int_equal(text_stack_modules(stack, 0), 1);
    assert_null(stack->networks[MODEL_CLIP_G]);
    const struct text_network *own = stack->networks[MODEL_CLIP_L];
    const struct text_network *base = bench.model->networks[MODEL_CLIP_L];
    uint32_t differ = 0;
    assert_int_equal(own->weights_count, base->weights_count);
    for (uint32_t i = 0; i < own->weights_count; i++) differ += own->weights[i] != base->weights[i];
    assert_int_equal(differ, 1);
    assert_ptr_not_equal(own->layers[1].qkv, base->layers[1].qkv);
    text_stack_destroy(&stack);
    toy_close(&toy);
    close_bench(&bench);
}

static bool always(void *context)
{
    *(uint32_t *)context += 1;
    return true;
}

static void merging_can_be_cancelled(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = toy_open(&bench, "toy", (struct toy_shape){3, DTYPE_F32, 3, 0.2f});
    struct text_stack_entry entry = entry_of(&toy, 1);
    struct text_stack *stack = NULL;
    struct error error;
    uint32_t asked = 0;
    struct text_stack_options options = {.merged = true, .stop = {always, &asked}};
    assert_int_equal(text_stack_create(&stack, bench.model, &entry, 1, &options, &error),
                     STATUS_CANCELLED);
    assert_null(stack);
    assert_int_equal(asked, 1);
    toy_close(&toy);
    close_bench(&bench);
}

static void an_adapter_without_tensors_changes_nothing(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct toy toy = {.adapter = NULL};
    struct error error;
    expect_ok(text_adapter_create(&toy.adapter, bench.model, NULL, &error), &error);
    struct text_stack_entry entry = entry_of(&toy, 1);
    assert_false(text_stack_must_merge(&entry, 1));
    assert_int_equal(text_adapter_bytes(toy.adapter), 0);
    struct text_stack *stack = make_stack(&bench, &entry, 1, false);
    assert_int_equal(text_stack_modules(stack, 0), 0);
    struct text_job *plain = encode(&bench, NULL);
    struct text_job *job = encode(&bench, stack);
    expect_same_jobs(plain, job);
    text_job_destroy(&plain);
    text_job_destroy(&job);
    text_stack_destroy(&stack);
    text_adapter_destroy(&toy.adapter);
    close_bench(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_lanes_share_a_stack),
        cmocka_unit_test(beside_and_inside_the_weights_agree_on_the_cpu),
        cmocka_unit_test(beside_and_inside_the_weights_agree_on_the_reference_device),
        cmocka_unit_test(what_has_no_strength_changes_no_byte),
        cmocka_unit_test(a_strength_of_one_encoder_leaves_the_other_alone),
        cmocka_unit_test(neither_mates_nor_threads_nor_order_change_a_byte),
        cmocka_unit_test(one_then_another_then_the_first_gives_its_bytes_again),
        cmocka_unit_test(a_write_to_a_merged_copy_is_a_crash),
        cmocka_unit_test(a_write_to_a_vector_is_a_crash_in_the_model_and_in_its_variant),
        cmocka_unit_test(only_touched_tensors_are_copied),
        cmocka_unit_test(merging_can_be_cancelled),
        cmocka_unit_test(an_adapter_without_tensors_changes_nothing),
    };
    return cmocka_run_group_tests_name("text stacks", tests, open_encoders, close_encoders);
}
