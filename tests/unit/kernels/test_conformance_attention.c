// test_conformance_attention.c - attention of every device against the formula in float64
// (oracle.h), over NaN and between guards.

#include "tests/unit/kernels/oracle.h"
#include "tests/unit/kernels/subjects.h"

struct attention_case {
    uint32_t batch, tokens, heads, head_width;
    bool causal;
    uint32_t padding;  // elements behind q, k, v in a row
    float sigma;       // of q, k, v; large makes the softmax sharp
};

static const struct attention_case attentions[] = {
    {1, 1, 1, 1, false, 0, 1},     {1, 1, 2, 8, true, 0, 1},     {1, 7, 1, 5, false, 3, 1},
    {2, 77, 5, 64, true, 0, 1},    {3, 77, 2, 64, true, 32, 4},  {1, 33, 3, 40, false, 1, 2},
    {1, 130, 1, 512, false, 0, 1}, {2, 65, 1, 512, false, 8, 2}, {1, 200, 1, 32, true, 0, 1},
    {1, 257, 1, 128, false, 0, 3},
};
#define ATTENTIONS (sizeof attentions / sizeof attentions[0])

static float *run_attention(struct device *device, const struct oracle_attention *a, uint32_t batch)
{
    struct rig rig;
    rig_begin(&rig, device);
    uint32_t width = a->heads * a->head_width;
    uint64_t rows = (uint64_t)batch * a->tokens;
    struct value qkv = rig_load(&rig, a->qkv, (uint32_t)rows, a->stride);
    struct attention op = {.batch = batch, .tokens = a->tokens, .heads = a->heads};
    op.head_width = a->head_width;
    op.scale = a->scale;
    op.causal = a->causal;
    op.q_stride = op.k_stride = op.v_stride = a->stride;
    op.q = op.k = op.v = qkv;
    uint32_t element = device_info(device)->activation_bytes;
    op.k.offset += width * element;
    op.k.bytes -= width * element;
    op.v.offset += 2 * width * element;
    op.v.bytes -= 2 * width * element;
    op.output = rig_tensor(&rig, (uint32_t)rows, width);
    program_attention(rig.program, &op);
    const float *memory = rig_store(&rig, op.output, rows * width);
    rig_run(&rig);
    float *y = malloc(rows * width * sizeof *y);
    assert_non_null(y);
    memcpy(y, memory, rows * width * sizeof *y);
    rig_end(&rig);
    return y;
}

static struct oracle oracle_of_attention(const struct oracle_attention *op)
{
    uint64_t rows = (uint64_t)op->batch * op->tokens;
    struct oracle oracle = oracle_new(rows * op->heads * op->head_width);
    for (uint64_t row = 0; row < rows; row++) {
        for (uint32_t head = 0; head < op->heads; head++) oracle_attend(op, row, head, &oracle);
    }
    oracle_round(&oracle, op->storage);
    return oracle;
}

static void check_attention(struct device **devices, size_t i, const struct subject_group *group)
{
    const struct attention_case *c = &attentions[i];
    struct dice dice = {seed_of_run() + 200 + i};
    uint32_t stride = 3 * c->heads * c->head_width + c->padding;
    uint64_t elements = (uint64_t)c->batch * c->tokens * stride;
    float *qkv = dice_array(&dice, elements, 0, c->sigma);
    round_all(qkv, elements, group->storage);
    struct oracle_attention op = {.batch = c->batch, .tokens = c->tokens, .heads = c->heads};
    op.head_width = c->head_width;
    op.stride = stride;
    op.scale = (float)(1 / sqrt((double)c->head_width));
    op.causal = c->causal;
    op.qkv = qkv;
    op.storage = group->storage;
    struct oracle oracle = oracle_of_attention(&op);
    float *before = NULL;
    for (size_t s = group->first; s < group->end; s++) {
        char what[80];
        snprintf(what, sizeof what, "attention %zu on %s, %s", i, subjects[s].name,
                 dtype_name(group->storage));
        float *y = run_attention(devices[s], &op, c->batch);
        oracle_compare(&oracle, y, what);
        if (c->batch > 1) {
            float *first = run_attention(devices[s], &op, 1);
            assert_memory_equal(first, y, oracle.count / c->batch * sizeof *y);
            free(first);
        }
        check_repeat(s, &before, y, oracle.count, what);
    }
    free(before);
    oracle_free(&oracle);
    free(qkv);
}

static void every_attention_is_right(void **state)
{
    FOR_EACH_GROUP(group)
    {
        for (size_t i = 0; i < ATTENTIONS; i++) check_attention(*state, i, &group);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_attention_is_right)};
    return cmocka_run_group_tests_name("conformance, attention", tests, subjects_open,
                                       subjects_close);
}
