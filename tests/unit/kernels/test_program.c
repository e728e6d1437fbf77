// test_program.c - the plan of the arena, the checks of operands, the book-keeping of a program.

#include "kernels/arena_plan.h"
#include "kernels/device.h"
#include "tests/unit/kernels/kit.h"

// ---------------------------------------------------------------------------------------------
// The plan

struct shadow {
    uint64_t offset;  // where the plan put it
    uint64_t bytes;   // as asked for
};

static bool meet(const struct shadow *a, const struct shadow *b)
{
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static void check_shadows(const struct arena_plan *plan, const struct shadow *live, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(live[i].offset % ARENA_ALIGNMENT, 0);
        assert_true(arena_plan_holds(plan, live[i].offset, live[i].bytes));
        assert_false(arena_plan_holds(plan, live[i].offset, live[i].bytes + 1));
        for (uint32_t j = 0; j < i; j++) assert_false(meet(&live[i], &live[j]));
    }
}

static void live_values_never_overlap_and_the_peak_is_their_highest_end(void **state)
{
    (void)state;
    struct dice dice = {seed_of_run()};
    for (int round = 0; round < 50; round++) {
        struct arena_plan *plan = NULL;
        struct shadow live[40];
        uint32_t count = 0;
        uint64_t highest = 0;
        assert_int_equal(arena_plan_create(&plan, NULL), STATUS_OK);
        for (int step = 0; step < 300; step++) {
            if (count == 40 || (count > 0 && dice_below(&dice, 5) < 2)) {
                uint32_t victim = dice_below(&dice, count);
                arena_plan_give(plan, live[victim].offset);
                live[victim] = live[--count];
            } else {
                struct shadow *fresh = &live[count++];
                fresh->bytes = 1 + dice_below(&dice, 1u << dice_below(&dice, 16));
                assert_int_equal(arena_plan_take(plan, fresh->bytes, &fresh->offset, NULL), 0);
                uint64_t end = (fresh->offset + fresh->bytes + 127) / 128 * 128;
                if (end > highest) highest = end;
            }
            check_shadows(plan, live, count);
            assert_int_equal(arena_plan_peak_bytes(plan), highest);
        }
        arena_plan_destroy(&plan);
        assert_null(plan);
    }
}

static void a_stack_needs_exactly_its_deepest_sum(void **state)
{
    (void)state;
    struct dice dice = {seed_of_run()};
    struct arena_plan *plan = NULL;
    assert_int_equal(arena_plan_create(&plan, NULL), STATUS_OK);
    uint64_t offsets[64];
    uint64_t sizes[64];
    uint64_t depth = 0;
    uint64_t deepest = 0;
    uint32_t count = 0;
    for (int step = 0; step < 2000; step++) {
        if (count == 64 || (count > 0 && dice_below(&dice, 2) == 0)) {
            arena_plan_give(plan, offsets[--count]);
            depth -= sizes[count];
        } else {
            uint64_t bytes = 1 + dice_below(&dice, 5000);
            assert_int_equal(arena_plan_take(plan, bytes, &offsets[count], NULL), STATUS_OK);
            assert_int_equal(offsets[count], depth);
            sizes[count] = (bytes + 127) / 128 * 128;
            depth += sizes[count++];
            if (depth > deepest) deepest = depth;
        }
    }
    assert_int_equal(arena_plan_peak_bytes(plan), deepest);
    arena_plan_destroy(&plan);
}

static void the_lowest_gap_that_fits_is_taken(void **state)
{
    (void)state;
    struct arena_plan *plan = NULL;
    uint64_t a = 0;
    uint64_t b = 0;
    uint64_t c = 0;
    assert_int_equal(arena_plan_create(&plan, NULL), STATUS_OK);
    assert_int_equal(arena_plan_take(plan, 256, &a, NULL), STATUS_OK);
    assert_int_equal(arena_plan_take(plan, 128, &b, NULL), STATUS_OK);
    arena_plan_give(plan, a);
    assert_int_equal(arena_plan_take(plan, 257, &c, NULL), STATUS_OK);
    assert_int_equal(c, 384);
    assert_int_equal(arena_plan_take(plan, 256, &a, NULL), STATUS_OK);
    assert_int_equal(a, 0);
    arena_plan_destroy(&plan);
}

static void a_plan_refuses_what_no_machine_has(void **state)
{
    (void)state;
    struct arena_plan *plan = NULL;
    struct error error;
    uint64_t offset = 7;
    assert_int_equal(arena_plan_create(&plan, NULL), STATUS_OK);
    assert_int_equal(arena_plan_take(plan, UINT64_MAX, &offset, &error), STATUS_INVALID_ARGUMENT);
    assert_int_equal(arena_plan_take(plan, ARENA_BYTES_MAX, &offset, &error), STATUS_OK);
    assert_int_equal(arena_plan_take(plan, 1, &offset, &error), STATUS_INVALID_ARGUMENT);
    assert_int_equal(offset, 0);
    assert_int_equal(arena_plan_peak_bytes(plan), ARENA_BYTES_MAX);
    arena_plan_destroy(&plan);
}

// ---------------------------------------------------------------------------------------------
// A device that computes nothing: 2 bytes an element, 1000 bytes of workspace, 12 of statistics per
// image and channel.

static uint64_t fake_statistics(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                                uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return 12ull * n * k;
}

static uint64_t fake_workspace(const struct device *device, const struct operation *op)
{
    (void)device;
    return op->kind == OPERATION_CONVOLUTION || op->kind == OPERATION_LINEAR ? 1000 : 0;
}

static const struct device_class fake_class = {
    .name = "fake", .statistics_bytes = fake_statistics, .workspace_bytes = fake_workspace};

// A program and what its operations are made of: one good operation of each kind.
struct bench {
    struct device device;     // the fake
    struct program *program;  // under construction
    struct weight vector8, vector16, matrix, taps3, taps1, down, up, table, positions;
    struct value a, b, c, statistics, f32, slot;  // large enough for the good operations
    struct low_rank low_rank;
    struct convolution convolution;
    struct linear linear;
    struct attention attention;
    struct layer_norm layer_norm;
    struct embedding embedding;
    struct gather gather;
    struct store store;
    struct pixels_load pixels_load;
    struct pixels_store pixels_store;
    struct latent_load latent_load;
    struct latent_store latent_store;
    struct words_store words_store;
    struct clear clear;
    struct blend blend;
    struct blend_end blend_end;
};

static struct weight weight(struct bench *self, enum weight_form form, uint32_t a, uint32_t b,
                            uint32_t r)
{
    return (struct weight){.device = &self->device, .form = form, .dims = {a, b, r, r}};
}

static void fill_weights(struct bench *self)
{
    self->vector8 = weight(self, WEIGHT_VECTOR, 8, 1, 1);
    self->vector16 = weight(self, WEIGHT_VECTOR, 16, 1, 1);
    self->matrix = weight(self, WEIGHT_MATRIX, 16, 8, 1);
    self->taps3 = weight(self, WEIGHT_CONVOLUTION, 16, 8, 3);
    self->taps1 = weight(self, WEIGHT_CONVOLUTION, 16, 4, 1);
    self->down = weight(self, WEIGHT_MATRIX, 2, 8, 1);
    self->up = weight(self, WEIGHT_MATRIX, 4, 2, 1);
    self->table = weight(self, WEIGHT_TABLE, 100, 8, 1);
    self->positions = weight(self, WEIGHT_TABLE, 5, 8, 1);
}

static void fill_text(struct bench *self)
{
    self->low_rank = (struct low_rank){.row_begin = 4,
                                       .row_count = 6,
                                       .column_begin = 12,
                                       .column_count = 4,
                                       .rank = 2,
                                       .down = &self->down,
                                       .up = &self->up,
                                       .scale = 1};
    self->linear = (struct linear){.input = self->a,
                                   .rows = 10,
                                   .c = 8,
                                   .output = self->b,
                                   .k = 16,
                                   .weight = &self->matrix,
                                   .bias = &self->vector16,
                                   .residual = self->b,
                                   .low_rank = &self->low_rank,
                                   .low_rank_count = 1};
    struct value k = self->a;
    k.offset += 16;
    k.bytes -= 16;
    self->attention = (struct attention){self->a, k, k, 24, 24, 24, self->b, 2, 5, 2, 4, 1, true};
    self->layer_norm =
        (struct layer_norm){self->a, self->a, 10, 8, &self->vector8, &self->vector8, 1e-5f};
    self->embedding = (struct embedding){.ids = self->slot,
                                         .table = &self->table,
                                         .positions = &self->positions,
                                         .output = self->a,
                                         .rows = 10,
                                         .tokens = 5,
                                         .width = 8};
    self->gather = (struct gather){self->a, self->slot, self->b, 10, 3, 8};
    self->store = (struct store){self->a, self->slot, 80};
}

static void fill_images(struct bench *self)
{
    struct window window = {8, 9, 2, 3, 6, 6};
    self->convolution = (struct convolution){
        .input = self->a,
        .n = 2,
        .h = 4,
        .w = 5,
        .c = 8,
        .output = self->b,
        .k = 16,
        .weight = &self->taps3,
        .bias = &self->vector16,
        .stride = 1,
        .norm = {self->statistics, &self->vector8, &self->vector8, 4, 1e-6f, true},
        .residual = self->b,
        .shortcut = self->c,
        .shortcut_c = 4,
        .shortcut_weight = &self->taps1,
        .statistics = self->f32};
    struct value word = self->f32;
    word.offset += 8;
    word.bytes = 4;
    self->pixels_load = (struct pixels_load){self->slot, DTYPE_U8, 4, window, self->a, word};
    self->pixels_store =
        (struct pixels_store){self->a, false, true, 6, 6, self->slot, DTYPE_U8, word};
    self->latent_load = (struct latent_load){self->slot, DTYPE_BF16, 4, window, self->a, word};
    self->latent_store =
        (struct latent_store){self->a, false, 6, 6, 4, 8, self->slot, DTYPE_F16, word};
    self->words_store = (struct words_store){self->f32, self->slot, 5};
    self->clear = (struct clear){self->a, 100};
    self->blend = (struct blend){self->a, 3, 4, self->b, self->f32, window, 2};
    self->blend_end = (struct blend_end){self->b, self->f32, self->b, 8, 9, 3, 0, 1};
}

static void bench_begin(struct bench *self)
{
    struct error error;
    memset(self, 0, sizeof *self);
    self->device.class = &fake_class;
    self->device.info.activation_bytes = 2;
    must(program_create(&self->program, &self->device, &error), &error);
    self->a = program_tensor(self->program, 2, 4, 5, 8);
    self->b = program_tensor(self->program, 2, 4, 5, 16);
    self->c = program_tensor(self->program, 2, 4, 5, 4);
    self->statistics = program_statistics(self->program, 2, 4, 5, 8);
    self->f32 = program_bytes(self->program, 2 * 16 * 12);
    self->slot = program_slot(self->program, 3, 8 * 9 * 4 * 4);
    fill_weights(self);
    fill_text(self);
    fill_images(self);
}

static void append_kind(struct bench *self, enum operation_kind kind)
{
    switch (kind) {
    case OPERATION_CONVOLUTION:
        program_convolution(self->program, &self->convolution);
        break;
    case OPERATION_LINEAR:
        program_linear(self->program, &self->linear);
        break;
    case OPERATION_ATTENTION:
        program_attention(self->program, &self->attention);
        break;
    case OPERATION_LAYER_NORM:
        program_layer_norm(self->program, &self->layer_norm);
        break;
    case OPERATION_EMBEDDING:
        program_embedding(self->program, &self->embedding);
        break;
    case OPERATION_GATHER:
        program_gather(self->program, &self->gather);
        break;
    case OPERATION_STORE:
        program_store(self->program, &self->store);
        break;
    case OPERATION_PIXELS_LOAD:
        program_pixels_load(self->program, &self->pixels_load);
        break;
    case OPERATION_PIXELS_STORE:
        program_pixels_store(self->program, &self->pixels_store);
        break;
    case OPERATION_LATENT_LOAD:
        program_latent_load(self->program, &self->latent_load);
        break;
    case OPERATION_LATENT_STORE:
        program_latent_store(self->program, &self->latent_store);
        break;
    case OPERATION_WORDS_STORE:
        program_words_store(self->program, &self->words_store);
        break;
    case OPERATION_CLEAR:
        program_clear(self->program, &self->clear);
        break;
    case OPERATION_BLEND:
        program_blend(self->program, &self->blend);
        break;
    case OPERATION_BLEND_END:
        program_blend_end(self->program, &self->blend_end);
        break;
    case OPERATION_MARK:
        program_mark(self->program);
        break;
    case OPERATION_COUNT:
        fail();
        break;
    }
}

static void every_good_operation_is_taken(void **state)
{
    (void)state;
    struct bench bench;
    struct error error = {.status = STATUS_OK};
    bench_begin(&bench);
    for (int kind = 0; kind < OPERATION_COUNT; kind++) {
        append_kind(&bench, (enum operation_kind)kind);
    }
    must(program_finish(bench.program, &error), &error);
    assert_int_equal(bench.program->operations_count, OPERATION_COUNT);
    assert_int_equal(program_marks(bench.program), 1);
    assert_int_equal(bench.program->slots_count, 4);
    program_destroy(&bench.program);
}

static void operations_are_counted_as_twice_the_products(void **state)
{
    (void)state;
    struct bench bench;
    bench_begin(&bench);
    append_kind(&bench, OPERATION_CONVOLUTION);
    uint64_t convolution = 2ull * 40 * 16 * (8 * 9 + 4);
    assert_int_equal(program_operations(bench.program), convolution);
    append_kind(&bench, OPERATION_LINEAR);
    uint64_t linear = 2ull * 10 * 16 * 8 + 2ull * 6 * 2 * (8 + 4);
    assert_int_equal(program_operations(bench.program), convolution + linear);
    append_kind(&bench, OPERATION_ATTENTION);
    uint64_t attention = 4ull * 2 * 2 * 4 * (5 * 6 / 2);
    assert_int_equal(program_operations(bench.program), convolution + linear + attention);
    program_destroy(&bench.program);
}

static void workspace_lives_beside_the_operands_and_only_for_one_operation(void **state)
{
    (void)state;
    struct bench bench;
    bench_begin(&bench);
    append_kind(&bench, OPERATION_CONVOLUTION);
    append_kind(&bench, OPERATION_LINEAR);
    struct value after = program_bytes(bench.program, 500);
    const struct operation *operations = bench.program->operations;
    uint64_t behind = (bench.f32.offset + bench.f32.bytes + 127) / 128 * 128;
    assert_int_equal(operations[0].workspace.place, VALUE_ARENA);
    assert_int_equal(operations[0].workspace.bytes, 1000);
    assert_int_equal(operations[0].workspace.offset, behind);
    assert_int_equal(operations[1].workspace.offset, behind);
    assert_int_equal(after.offset, behind);
    assert_int_equal(program_finish(bench.program, NULL), STATUS_OK);
    assert_int_equal(program_peak_bytes(bench.program), behind + 1024);
    program_destroy(&bench.program);
}

static void adapters_are_copied(void **state)
{
    (void)state;
    struct bench bench;
    bench_begin(&bench);
    append_kind(&bench, OPERATION_LINEAR);
    bench.low_rank.rank = 99;
    const struct linear *linear = &bench.program->operations[0].linear;
    assert_ptr_not_equal(linear->low_rank, &bench.low_rank);
    assert_int_equal(linear->low_rank[0].rank, 2);
    program_destroy(&bench.program);
}

// Spoils the bench, appends the operation and expects a complaint that has all the words.
#define REFUSES(kind, words, spoil)                                                                \
    do {                                                                                           \
        struct bench bench;                                                                        \
        bench_begin(&bench);                                                                       \
        spoil;                                                                                     \
        expect_refusal(&bench, kind, words);                                                       \
    } while (0)

static void expect_refusal(struct bench *self, enum operation_kind kind, const char *words)
{
    struct error error = {.status = STATUS_OK};
    append_kind(self, kind);
    assert_int_equal(self->program->operations_count, 0);
    assert_int_equal(program_finish(self->program, &error), STATUS_INVALID_ARGUMENT);
    if (strstr(error.message, words) == NULL) fail_msg("\"%s\" lacks \"%s\"", error.message, words);
    assert_non_null(strstr(error.message, "operation 0, "));
    program_destroy(&self->program);
}

static void a_convolution_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    const enum operation_kind kind = OPERATION_CONVOLUTION;
    REFUSES(kind, "n x h x w", bench.convolution.h = 0);
    REFUSES(kind, "n x h x w", bench.convolution.n = UINT32_MAX);
    REFUSES(kind, "c is 0", bench.convolution.c = 0);
    REFUSES(kind, "weight has dimension 16, must be 17", bench.convolution.k = 17);
    REFUSES(kind, "weight is [16, 8, 3, 3], must be [16, 4", bench.convolution.c = 4);
    REFUSES(kind, "weight is missing", bench.convolution.weight = NULL);
    REFUSES(kind, "weight must be a convolution", bench.convolution.weight = &bench.matrix);
    REFUSES(kind, "another device", bench.taps3.device = NULL);
    REFUSES(kind, "bias has dimension 8", bench.convolution.bias = &bench.vector8);
    REFUSES(kind, "stride is 3", bench.convolution.stride = 3);
    REFUSES(kind, "r = 1", bench.taps3.dims[2] = 1; bench.convolution.stride = 2);
    REFUSES(kind, "upsample", bench.convolution.upsample = true; bench.convolution.stride = 2);
    REFUSES(kind, "output has 1280 bytes, needs 5120", bench.convolution.upsample = true;
            bench.taps3.upsample = true);
    REFUSES(kind, "made for one that does not", bench.convolution.upsample = true);
    REFUSES(kind, "made for one that does", bench.taps3.upsample = true);
    REFUSES(kind, "output n x oh x ow", bench.convolution.h = 1; bench.convolution.stride = 2);
    REFUSES(kind, "input must be a value of the arena", bench.convolution.input = bench.slot);
    REFUSES(kind, "input has 639 bytes", bench.convolution.input.bytes--);
    REFUSES(kind, "between two elements", bench.convolution.input.offset++;
            bench.convolution.input.bytes--; bench.convolution.n = 1);
    REFUSES(kind, "not inside a live value", bench.convolution.input.offset += 128);
    REFUSES(kind, "input and output overlap", bench.convolution.output = bench.a;
            bench.convolution.n = 1; bench.convolution.input.bytes /= 2;);
    REFUSES(kind, "norm.groups is 3", bench.convolution.norm.groups = 3);
    REFUSES(kind, "norm.groups is 0", bench.convolution.norm.groups = 0);
    REFUSES(kind, "norm.gamma is missing", bench.convolution.norm.gamma = NULL);
    REFUSES(kind, "norm.beta has dimension 16", bench.convolution.norm.beta = &bench.vector16);
    REFUSES(kind, "epsilon", bench.convolution.norm.epsilon = NAN);
    REFUSES(kind, "norm.statistics has 191", bench.convolution.norm.statistics.bytes--);
    REFUSES(kind, "without statistics", bench.convolution.norm.statistics.place = VALUE_NONE);
    REFUSES(kind, "residual has", bench.convolution.residual = bench.a);
    REFUSES(kind, "shortcut_weight is [16, 4", bench.convolution.shortcut_c = 3);
    REFUSES(kind, "shortcut_weight is missing", bench.convolution.shortcut_weight = NULL);
    REFUSES(kind, "width of shortcut_weight", bench.taps1.dims[2] = 3);
    REFUSES(kind, "without the shortcut", bench.convolution.shortcut.place = VALUE_NONE);
    REFUSES(kind, "statistics has 383", bench.convolution.statistics.bytes--);
}

static void a_linear_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    const enum operation_kind kind = OPERATION_LINEAR;
    REFUSES(kind, "rows", bench.linear.rows = 0);
    REFUSES(kind, "input has 640 bytes, needs 656", bench.linear.rows = 41);
    REFUSES(kind, "weight is [16, 8], must be [16, 7]", bench.linear.c = 7);
    REFUSES(kind, "must be a matrix", bench.linear.weight = &bench.table);
    REFUSES(kind, "activation is 9", bench.linear.activation = (enum activation)9);
    REFUSES(kind, "residual and output overlap", bench.linear.residual.offset += 2;
            bench.linear.residual.bytes -= 2);
    REFUSES(kind, "rows 4 + 7 of 10", bench.low_rank.row_count = 7);
    REFUSES(kind, "rows 4294967295 + 6", bench.low_rank.row_begin = UINT32_MAX);
    REFUSES(kind, "columns 13 + 4 of 16", bench.low_rank.column_begin = 13);
    REFUSES(kind, "low_rank.down is missing", bench.low_rank.down = NULL);
    REFUSES(kind, "low_rank.up has dimension 4, must be 3", bench.low_rank.column_count = 3);
    REFUSES(kind, "rank is 0", bench.low_rank.rank = 0);
    REFUSES(kind, "scale is inf", bench.low_rank.scale = INFINITY);
    REFUSES(kind, "low_rank is missing", bench.linear.low_rank = NULL);
}

static void text_operations_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSES(OPERATION_ATTENTION, "stride 7", bench.attention.k_stride = 7);
    REFUSES(OPERATION_ATTENTION, "k has 624 bytes", bench.attention.k_stride = 40);
    REFUSES(OPERATION_ATTENTION, "heads is 0", bench.attention.heads = 0);
    REFUSES(OPERATION_ATTENTION, "batch x tokens", bench.attention.tokens = 0);
    REFUSES(OPERATION_ATTENTION, "scale", bench.attention.scale = NAN);
    REFUSES(OPERATION_ATTENTION, "overlap", bench.attention.output = bench.a);
    REFUSES(OPERATION_LAYER_NORM, "gamma has dimension 8", bench.layer_norm.width = 4);
    REFUSES(OPERATION_LAYER_NORM, "epsilon is -1", bench.layer_norm.epsilon = -1);
    REFUSES(OPERATION_EMBEDDING, "multiple of tokens", bench.embedding.tokens = 3);
    REFUSES(OPERATION_EMBEDDING, "positions has 5", bench.embedding.tokens = 10);
    REFUSES(OPERATION_EMBEDDING, "ids must be in a slot", bench.embedding.ids = bench.a);
    REFUSES(OPERATION_EMBEDDING, "table has rows of 7", bench.table.dims[1] = 7);
    REFUSES(OPERATION_EMBEDDING, "vectors_count", bench.embedding.vectors_count = 2);
    REFUSES(OPERATION_EMBEDDING, "vectors has 1152", bench.embedding.vectors = bench.slot;
            bench.embedding.vectors_count = 37);
    REFUSES(OPERATION_GATHER, "count", bench.gather.count = 0);
    REFUSES(OPERATION_GATHER, "input has", bench.gather.rows = 1000);
    REFUSES(OPERATION_STORE, "output has 1152 bytes, needs 1280", bench.store.count = 320);
    REFUSES(OPERATION_STORE, "input", bench.store.count = UINT64_MAX);
}

static void image_operations_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSES(OPERATION_PIXELS_LOAD, "window 6 x 6 at (3, 3)", bench.pixels_load.window.y = 3);
    REFUSES(OPERATION_PIXELS_LOAD, "window", bench.pixels_load.window.x = UINT32_MAX);
    REFUSES(OPERATION_PIXELS_LOAD, "channels is 2", bench.pixels_load.channels = 2);
    REFUSES(OPERATION_PIXELS_LOAD, "dtype is I32", bench.pixels_load.dtype = DTYPE_I32);
    REFUSES(OPERATION_PIXELS_LOAD, "source has", bench.pixels_load.window.full_w = 1000);
    REFUSES(OPERATION_PIXELS_STORE, "dtype is U8", bench.pixels_store.clamp = false);
    REFUSES(OPERATION_PIXELS_STORE, "beyond slot 3", bench.pixels_store.output.offset = 1100);
    REFUSES(OPERATION_LATENT_LOAD, "dtype is U8", bench.latent_load.dtype = DTYPE_U8);
    REFUSES(OPERATION_LATENT_LOAD, "source", bench.latent_load.channels = 0);
    REFUSES(OPERATION_LATENT_STORE, "stride is 3", bench.latent_store.stride = 3);
    REFUSES(OPERATION_PIXELS_LOAD, "not_finite must be", bench.pixels_load.not_finite = bench.slot);
    REFUSES(OPERATION_PIXELS_STORE, "overlap", bench.pixels_store.not_finite = bench.a);
    REFUSES(OPERATION_LATENT_LOAD, "not_finite has 3 bytes",
            bench.latent_load.not_finite.bytes = 3);
    REFUSES(OPERATION_LATENT_STORE, "between two words", bench.latent_store.not_finite.offset += 2);
    REFUSES(OPERATION_WORDS_STORE, "input has 384", bench.words_store.count = 97);
    REFUSES(OPERATION_WORDS_STORE, "between two words", bench.words_store.input.bytes = 32;
            bench.words_store.input.offset += 2);
    REFUSES(OPERATION_WORDS_STORE, "input: 0", bench.words_store.count = 0);
    REFUSES(OPERATION_CLEAR, "output has 640", bench.clear.bytes = 641);
    REFUSES(OPERATION_CLEAR, "bytes is 0", bench.clear.bytes = 0);
    REFUSES(OPERATION_BLEND, "tile and sum overlap", bench.blend.sum = bench.b;
            bench.blend.tile = bench.b);
    REFUSES(OPERATION_BLEND, "weight has", bench.blend.weight.bytes = 10);
    REFUSES(OPERATION_BLEND_END, "pass 1 of 1", bench.blend_end.pass = 1);
    REFUSES(OPERATION_BLEND_END, "total and sum overlap", bench.blend_end.passes = 3);
}

static void the_first_error_sticks(void **state)
{
    (void)state;
    struct bench bench;
    struct error error = {.status = STATUS_OK};
    bench_begin(&bench);
    assert_int_equal(program_tensor(bench.program, 1, 0, 3, 4).place, VALUE_NONE);
    assert_int_equal(program_tensor(bench.program, 1, 2, 3, 4).place, VALUE_NONE);
    assert_int_equal(program_slot(bench.program, 99, 4).place, VALUE_NONE);
    append_kind(&bench, OPERATION_LINEAR);
    append_kind(&bench, OPERATION_MARK);
    program_release(bench.program, bench.a);
    program_release(bench.program, bench.a);
    assert_int_equal(program_finish(bench.program, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "[1, 0, 3, 4]"));
    assert_int_equal(bench.program->operations_count, 0);
    program_destroy(&bench.program);
}

static void sizes_that_overflow_are_refused(void **state)
{
    (void)state;
    const uint32_t dims[][4] = {{UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
                                {65536, 65536, 1, 1},
                                {1, 1, 0x7fffffff, UINT32_MAX},
                                {0, 1, 1, 1},
                                {1, 1, 1, 0}};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        const uint32_t *d = dims[i];
        struct bench bench;
        bench_begin(&bench);
        assert_int_equal(program_tensor(bench.program, d[0], d[1], d[2], d[3]).place, VALUE_NONE);
        assert_int_equal(program_finish(bench.program, NULL), STATUS_INVALID_ARGUMENT);
        program_destroy(&bench.program);
        bench_begin(&bench);
        program_statistics(bench.program, d[0], d[1], d[2], d[3]);
        // Statistics of the fake device do not grow with w: 2^31 x 2^32 is all right for it.
        if (i != 2) {
            assert_int_equal(program_finish(bench.program, NULL), STATUS_INVALID_ARGUMENT);
        }
        program_destroy(&bench.program);
    }
}

static void a_slot_is_as_large_as_its_largest_name(void **state)
{
    (void)state;
    struct bench bench;
    bench_begin(&bench);
    program_slot(bench.program, 5, 100);
    program_slot(bench.program, 5, 300);
    program_slot(bench.program, 5, 200);
    assert_int_equal(bench.program->slots_count, 6);
    assert_int_equal(bench.program->slot_bytes[5], 300);
    assert_int_equal(bench.program->slot_bytes[4], 0);
    assert_int_equal(program_finish(bench.program, NULL), STATUS_OK);
    program_destroy(&bench.program);
}

static void a_released_value_cannot_be_used(void **state)
{
    (void)state;
    struct bench bench;
    bench_begin(&bench);
    program_release(bench.program, bench.a);
    expect_refusal(&bench, OPERATION_LINEAR, "not inside a live value");
}

static void releasing_lets_a_chain_run_in_two_tensors(void **state)
{
    (void)state;
    struct bench bench;
    memset(&bench, 0, sizeof bench);
    bench.device.class = &fake_class;
    bench.device.info.activation_bytes = 2;
    assert_int_equal(program_create(&bench.program, &bench.device, NULL), STATUS_OK);
    struct value last = program_tensor(bench.program, 1, 8, 8, 16);
    for (int i = 0; i < 10; i++) {
        struct value next = program_tensor(bench.program, 1, 8, 8, 16);
        program_release(bench.program, last);
        last = next;
    }
    assert_int_equal(program_finish(bench.program, NULL), STATUS_OK);
    assert_int_equal(program_peak_bytes(bench.program), 2 * 8 * 8 * 16 * 2);
    program_destroy(&bench.program);
}

static void unknown_devices_and_precisions_are_refused(void **state)
{
    (void)state;
    struct device *device = NULL;
    struct error error;
    struct device_options options = {.name = "abacus"};
    assert_int_equal(device_open(&device, &options, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.message, "abacus"));
    options.name = NULL;
    assert_int_equal(device_open(&device, &options, &error), STATUS_NOT_FOUND);
    options = (struct device_options){.name = "cpu", .precision_fast = true};
    assert_int_equal(device_open(&device, &options, &error), STATUS_UNIMPLEMENTED);
    options = (struct device_options){.name = "cpu", .threads = 100000};
    assert_int_equal(device_open(&device, &options, &error), STATUS_INVALID_ARGUMENT);
    assert_null(device);
}

static void weights_out_of_range_are_refused(void **state)
{
    (void)state;
    static const float data[16] = {0};
    static const char *const devices[] = {"reference", "cpu"};
    const struct weight_source good = {.form = WEIGHT_CONVOLUTION,
                                       .dtype = DTYPE_F32,
                                       .dims = {1, 1, 3, 3},
                                       .parts_count = 1,
                                       .parts = {data}};
    for (size_t i = 0; i < 2; i++) {
        struct device *device = open_device(devices[i], 1);
        struct weight_source bad[11];
        for (int j = 0; j < 11; j++) bad[j] = good;
        bad[0].dims[0] = 0;
        bad[1].dims[2] = 1;
        bad[2].dims[2] = bad[2].dims[3] = 2;
        bad[3].dtype = DTYPE_I32;
        bad[4].parts_count = 0;
        bad[5].parts_count = 4;
        bad[6].parts[0] = NULL;
        bad[7].dims[0] = bad[7].dims[1] = UINT32_MAX;
        bad[8].form = (enum weight_form)17;
        bad[9].upsample = bad[10].upsample = true;
        bad[9].dims[2] = bad[9].dims[3] = 1;
        bad[10].form = WEIGHT_MATRIX;
        for (int j = 0; j < 11; j++) {
            struct weight *weight = NULL;
            assert_int_equal(weight_create(&weight, device, &bad[j], NULL),
                             STATUS_INVALID_ARGUMENT);
            assert_null(weight);
        }
        struct weight *weight = NULL;
        assert_int_equal(weight_create(&weight, device, &good, NULL), STATUS_OK);
        weight_destroy(&weight);
        assert_null(weight);
        device_close(&device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(live_values_never_overlap_and_the_peak_is_their_highest_end),
        cmocka_unit_test(a_stack_needs_exactly_its_deepest_sum),
        cmocka_unit_test(the_lowest_gap_that_fits_is_taken),
        cmocka_unit_test(a_plan_refuses_what_no_machine_has),
        cmocka_unit_test(every_good_operation_is_taken),
        cmocka_unit_test(operations_are_counted_as_twice_the_products),
        cmocka_unit_test(workspace_lives_beside_the_operands_and_only_for_one_operation),
        cmocka_unit_test(adapters_are_copied),
        cmocka_unit_test(a_convolution_that_does_not_fit_is_refused),
        cmocka_unit_test(a_linear_that_does_not_fit_is_refused),
        cmocka_unit_test(text_operations_that_do_not_fit_are_refused),
        cmocka_unit_test(image_operations_that_do_not_fit_are_refused),
        cmocka_unit_test(the_first_error_sticks),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(a_slot_is_as_large_as_its_largest_name),
        cmocka_unit_test(a_released_value_cannot_be_used),
        cmocka_unit_test(releasing_lets_a_chain_run_in_two_tensors),
        cmocka_unit_test(unknown_devices_and_precisions_are_refused),
        cmocka_unit_test(weights_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
