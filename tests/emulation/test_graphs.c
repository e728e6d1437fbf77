// test_graphs.c - programs that come again run as one graph on the emulated device: the same bytes
// as plain launches, whatever changes between two runs, and whatever fails about a graph.

#include <sys/stat.h>
#include <unistd.h>

#include "kernels/cuda/graphs.h"
#include "tests/unit/models/text_toys.h"

#define PROMPTS 4u
#define SDXL_LAYERS (12u + 32u)

// Texts without weights: those with some encode an empty row beside theirs.
static const char *const prompts[PROMPTS] = {"a red fox", "two grey geese", "the sea, at night",
                                             "oak"};

struct fixture {
    struct encoders *encoders;  // float32
    struct bench plain;         // its lane never sees a program twice: it gets new ones
    char folder[64];            // of faults
};

static void set_fault(const struct fixture *self, const char *name, uint64_t number)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", self->folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "%llu", (unsigned long long)number);
    assert_int_equal(fclose(file), 0);
}

static bool is_set(const struct fixture *self, const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", self->folder, name);
    return access(path, F_OK) == 0;
}

// Without graphs.
static struct bench open_plain(struct encoders *encoders, const char *kind)
{
    setenv("LUNA_CUDA_GRAPHS", "0", 1);
    struct bench bench = open_bench(encoders, "emulated", kind);
    unsetenv("LUNA_CUDA_GRAPHS");
    return bench;
}

static int open_fixture(void **state)
{
    struct fixture *self = calloc(1, sizeof *self);
    assert_non_null(self);
    snprintf(self->folder, sizeof self->folder, "%s/luna-graphs-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(self->folder));
    setenv("LUNA_EMULATION_FAULTS", self->folder, 1);
    self->encoders = encoders_open(DTYPE_F16);
    self->plain = open_plain(self->encoders, "sd1");
    *state = self;
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *self = *state;
    struct lane_graphs graphs = lane_graphs(self->plain.lane);
    assert_int_equal(graphs.recorded + graphs.replayed, 0);
    close_bench(&self->plain);
    encoders_close(self->encoders);
    assert_int_equal(rmdir(self->folder), 0);
    free(self);
    return 0;
}

static void expect_graphs(const struct bench *bench, uint64_t recorded, uint64_t replayed)
{
    struct lane_graphs graphs = lane_graphs(bench->lane);
    assert_int_equal(graphs.recorded, recorded);
    assert_int_equal(graphs.replayed, replayed);
}

// As many graphs as a lane keeps, of as many launches as these in all would be with the layers of
// SDXL, are below the bound.
static void expect_room_for_sdxl(const struct bench *bench, uint32_t graphs, uint32_t layers)
{
    uint64_t launches = lane_graphs(bench->lane).launches;
    assert_true(launches > (uint64_t)graphs * layers);
    assert_true(launches * SDXL_LAYERS / layers / graphs * GRAPHS_MAX <= GRAPHS_LAUNCHES_MAX);
}

// Encodes `count` prompts from `first` on as one batch, on the bench and by plain launches.
static void check_batch_with(const struct bench *plain, const struct bench *bench, uint32_t first,
                             uint32_t count)
{
    struct text_job *jobs[2][PROMPTS];
    for (uint32_t i = 0; i < count; i++) {
        struct text_request request = prompt_request(prompts[(first + i) % PROMPTS]);
        jobs[0][i] = make_job(bench, &request);
        jobs[1][i] = make_job(plain, &request);
    }
    run_jobs(bench, jobs[0], count);
    run_jobs(plain, jobs[1], count);
    for (uint32_t i = 0; i < count; i++) {
        expect_same_jobs(jobs[0][i], jobs[1][i]);
        text_job_destroy(&jobs[0][i]);
        text_job_destroy(&jobs[1][i]);
    }
}

static void check_batch(const struct fixture *self, const struct bench *bench, uint32_t first)
{
    check_batch_with(&self->plain, bench, first, 1);
}

static void a_program_that_comes_again_is_one_graph_with_the_same_bytes(void **state)
{
    const struct fixture *self = *state;
    struct bench plain = open_plain(self->encoders, "sdxl");
    struct bench bench = open_bench(self->encoders, "emulated", "sdxl");
    for (uint32_t i = 0; i < 3; i++) {
        check_batch_with(&plain, &bench, i, 1);  // other ids in the same places
        expect_graphs(&bench, i >= 1, i);
    }
    expect_room_for_sdxl(&bench, 1, 2 * LAYERS);
    // Norms are made by the linears in front of them.
    assert_in_range(lane_graphs(bench.lane).launches, 1, 10 * 2 * LAYERS + 10);
    close_bench(&plain);
    close_bench(&bench);
}

static void every_size_of_a_batch_has_its_graph(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    expect_ok(lane_reserve(bench.lane, 32 << 20, NULL), NULL);  // it moves no more
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t rows = 1; rows <= 3; rows++)
            check_batch_with(&self->plain, &bench, round, rows);
    }
    expect_graphs(&bench, 3, 6);
    close_bench(&bench);
}

static void an_arena_that_moves_takes_its_graphs_along(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    check_batch(self, &bench, 0);
    check_batch(self, &bench, 1);
    expect_graphs(&bench, 1, 1);
    expect_ok(lane_reserve(bench.lane, 4 * lane_arena_bytes(bench.lane), NULL), NULL);
    check_batch(self, &bench, 2);
    check_batch(self, &bench, 3);
    expect_graphs(&bench, 2, 3);
    lane_release(bench.lane);
    check_batch(self, &bench, 0);
    expect_graphs(&bench, 3, 4);
    close_bench(&bench);
}

// The weights of a model that was evicted and loaded again may lie where others lay.
static void a_model_that_is_loaded_again_has_new_graphs(void **state)
{
    const struct fixture *self = *state;
    struct encoders *others = encoders_open(DTYPE_F32);
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    struct tensor_table *tables[2][MODEL_PART_COUNT] = {{NULL}};
    struct error error;
    for (int part = MODEL_CLIP_L; part < MODEL_PART_COUNT; part++) {
        tables[0][part] = self->encoders->parts[part]->weights.table;
        tables[1][part] = others->parts[part]->weights.table;
    }
    expect_ok(lane_reserve(bench.lane, 16 << 20, NULL), NULL);
    check_batch(self, &bench, 0);
    check_batch(self, &bench, 1);
    for (uint32_t i = 1; i <= 2; i++) {
        text_model_destroy(&bench.model);
        expect_ok(text_model_create(&bench.model, bench.device, tables[i % 2], &bench.description,
                                    self->encoders->embeddings, &error),
                  &error);
        if (i == 1) {
            struct text_request request = prompt_request(prompts[0]);
            struct text_job *job = make_job(&bench, &request);
            run_jobs(&bench, &job, 1);
            text_job_destroy(&job);
            continue;
        }
        check_batch(self, &bench, 0);
    }
    expect_graphs(&bench, 1, 1);
    check_batch(self, &bench, 1);
    expect_graphs(&bench, 2, 2);
    close_bench(&bench);
    encoders_close(others);
}

static void a_stack_that_stays_has_its_graph_and_no_other_gets_it(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    struct text_job *plain[2][2];
    struct toy toys[2];
    struct text_stack *stacks[2][2];
    const struct bench *benches[2] = {&self->plain, &bench};
    const struct toy_shape shape = {.rank = 4, .dtype = DTYPE_F16, .alpha = 2, .scale = 0.2f};
    expect_ok(lane_reserve(bench.lane, 32 << 20, NULL), NULL);
    for (int i = 0; i < 2; i++) {
        toys[i] = toy_open(benches[i], "one", shape);
        for (int j = 0; j < 2; j++) {
            struct text_stack_entry entry = entry_of(&toys[i], j == 0 ? 0.8f : -0.3f);
            stacks[i][j] = make_stack(benches[i], &entry, 1, false);
        }
    }
    for (int j = 0; j < 2; j++) plain[0][j] = encode(&self->plain, stacks[0][j]);
    for (uint32_t round = 0; round < 3; round++) {
        for (int j = 0; j < 2; j++) {
            struct text_job *job = encode(&bench, stacks[1][j]);
            expect_same_jobs(job, plain[0][j]);
            text_job_destroy(&job);
        }
    }
    expect_graphs(&bench, 2, 4);
    expect_room_for_sdxl(&bench, 2, LAYERS);
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) text_stack_destroy(&stacks[i][j]);
        text_job_destroy(&plain[0][i]);
        toy_close(&toys[i]);
    }
    close_bench(&bench);
}

static void what_fails_about_a_graph_costs_a_plain_run(void **state)
{
    const struct fixture *self = *state;
    for (int at = 1; at <= 3; at++) {  // begin, end, launch
        struct bench bench = open_bench(self->encoders, "emulated", "sd1");
        check_batch(self, &bench, 0);
        set_fault(self, "graph", (uint64_t)at);
        check_batch(self, &bench, 1);
        assert_false(is_set(self, "graph"));
        expect_graphs(&bench, at == 3, 0);
        check_batch(self, &bench, 2);
        expect_graphs(&bench, at == 3 ? 2 : 1, 1);
        close_bench(&bench);
    }
}

static void a_lane_whose_graphs_fail_again_and_again_leaves_them_alone(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    check_batch(self, &bench, 0);
    for (uint32_t i = 0; i < 3; i++) {
        set_fault(self, "graph", 1);
        check_batch(self, &bench, i);
        assert_false(is_set(self, "graph"));
    }
    set_fault(self, "graph", 1);
    check_batch(self, &bench, 3);
    expect_graphs(&bench, 0, 0);
    assert_true(is_set(self, "graph"));  // nobody asked
    char path[128];
    snprintf(path, sizeof path, "%s/graph", self->folder);
    assert_int_equal(unlink(path), 0);
    close_bench(&bench);
}

#define TRACED_MAX 1000u

// Launches follow each other within their operations; returns how many are of that name.
static uint32_t check_launches(const struct lane *lane, const char *name)
{
    struct lane_launch launches[TRACED_MAX];
    uint64_t times[TRACED_MAX + 1];
    uint32_t found = 0;
    uint32_t operations = lane_times(lane, times, TRACED_MAX);
    uint32_t count = lane_launches(lane, launches, TRACED_MAX);
    assert_in_range(count, 1, TRACED_MAX - 1);
    for (uint32_t i = 0; i < count; i++) {
        const struct lane_launch *launch = &launches[i];
        bool is_first = i == 0 || launch->operation > launches[i - 1].operation;
        bool is_last = i + 1 == count || launch->operation < launches[i + 1].operation;
        assert_true(launch->operation < operations);
        assert_true(is_first || launch->operation == launches[i - 1].operation);
        assert_int_equal(launch->begin_ns,
                         is_first ? times[launch->operation] : launches[i - 1].end_ns);
        assert_true(launch->end_ns >= launch->begin_ns);
        if (is_last) assert_int_equal(launch->end_ns, times[launch->operation + 1]);
        found += strcmp(launch->name, name) == 0;
    }
    return found;
}

static void a_traced_run_takes_plain_launches_and_tells_their_times(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    uint64_t times[2] = {0};
    check_batch(self, &bench, 0);
    check_batch(self, &bench, 1);
    expect_ok(lane_trace(bench.lane, true, NULL), NULL);
    check_batch(self, &bench, 2);
    assert_int_equal(lane_times(bench.lane, times, 1), 1);
    assert_true(check_launches(bench.lane, "split_rows") > 0);
    uint32_t products = check_launches(bench.lane, "products_mma");
    assert_true(products > 4 && check_launches(bench.lane, "copy in") > 0);
    expect_graphs(&bench, 1, 1);
    expect_ok(lane_trace(bench.lane, false, NULL), NULL);
    check_batch(self, &bench, 3);
    expect_graphs(&bench, 1, 2);
    close_bench(&bench);
}

// Cancelled before it began, or while the emulator goes through it.
static void a_graph_that_is_cancelled_ends_so_and_runs_again(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    check_batch(self, &bench, 0);
    check_batch(self, &bench, 1);
    struct text_request request = prompt_request(prompts[2]);
    struct text_job *job = make_job(&bench, &request);
    struct text_batch *batch = make_batch(&bench, &job, 1);
    start_batch(batch, bench.lane);
    lane_cancel(bench.lane);
    assert_int_equal(lane_collect(bench.lane, NULL), STATUS_CANCELLED);
    text_batch_destroy(&batch);
    text_job_destroy(&job);
    check_batch(self, &bench, 2);
    assert_int_equal(lane_graphs(bench.lane).recorded, 1);
    close_bench(&bench);
}

static void marks_and_progress_are_those_of_plain_launches(void **state)
{
    const struct fixture *self = *state;
    struct bench bench = open_bench(self->encoders, "emulated", "sd1");
    uint32_t marks[3];
    for (uint32_t i = 0; i < 3; i++) {
        uint64_t before = lane_progress(bench.lane);
        check_batch(self, &bench, i);
        marks[i] = lane_marks(bench.lane);
        assert_true(lane_progress(bench.lane) > before);
    }
    assert_true(marks[0] > 0);
    assert_int_equal(marks[0], marks[1]);
    assert_int_equal(marks[1], marks[2]);
    close_bench(&bench);
}

// ---------------------------------------------------------------------------------------------
// Small programs

// x = norm(x), some times, and its first element to a slot, some times.
static struct program *make_small(struct device *device, struct weight *gamma, uint32_t count,
                                  uint32_t stores)
{
    struct error error;
    struct program *program = NULL;
    expect_ok(program_create(&program, device, &error), &error);
    struct value x = program_tensor(program, 1, 1, 1, 8);
    for (uint32_t i = 0; i < count; i++) {
        program_layer_norm(program, &(struct layer_norm){.input = x,
                                                         .output = x,
                                                         .rows = 1,
                                                         .width = 8,
                                                         .gamma = gamma,
                                                         .beta = gamma,
                                                         .epsilon = 1e-5f});
    }
    struct value slot = program_slot(program, 0, 4);
    for (uint32_t i = 0; i < stores; i++) {
        program_store(program, &(struct store){.input = x, .output = slot, .count = 1});
    }
    expect_ok(program_finish(program, &error), &error);
    return program;
}

static struct weight *make_vector(struct device *device)
{
    static const float values[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct error error;
    struct weight *weight = NULL;
    struct weight_source source = {.form = WEIGHT_VECTOR,
                                   .dtype = DTYPE_F32,
                                   .dims = {8},
                                   .parts_count = 1,
                                   .parts = {values}};
    expect_ok(weight_create(&weight, device, &source, &error), &error);
    return weight;
}

// A device with a lane and a weight.
struct small {
    struct device *device;
    struct lane *lane;
    struct weight *gamma;
};

static struct small open_small(void)
{
    struct error error;
    struct small self = {.device = NULL};
    struct device_options options = {.name = "emulated"};
    expect_ok(device_open(&self.device, &options, &error), &error);
    expect_ok(lane_create(&self.lane, self.device, &error), &error);
    self.gamma = make_vector(self.device);
    return self;
}

static void close_small(struct small *self)
{
    weight_destroy(&self->gamma);
    lane_destroy(&self->lane);
    device_close(&self->device);
}

static void run(const struct small *self, uint32_t count, uint32_t stores)
{
    float got = 0;
    struct program *program = make_small(self->device, self->gamma, count, stores);
    expect_ok(lane_reserve(self->lane, 1 << 16, NULL), NULL);
    lane_run(self->lane, program, (void *const[]){&got}, 1);
    expect_ok(lane_collect(self->lane, NULL), NULL);
    program_destroy(&program);
}

static void graphs_of_too_many_launches_push_out_those_that_were_used_longest_ago(void **state)
{
    (void)state;
    const uint32_t third = GRAPHS_LAUNCHES_MAX / 3 - 8;
    struct small self = open_small();
    for (uint32_t i = 1; i <= 4; i++) {
        run(&self, i, third);
        run(&self, i, third);
        assert_in_range(lane_graphs(self.lane).launches, (i < 4 ? i : 3) * third,
                        GRAPHS_LAUNCHES_MAX);
    }
    assert_int_equal(lane_graphs(self.lane).recorded, 4);
    run(&self, 2, third);  // is there
    assert_int_equal(lane_graphs(self.lane).recorded, 4);
    run(&self, 1, third);  // has gone, and comes again
    assert_int_equal(lane_graphs(self.lane).recorded, 5);
    expect_ok(lane_reserve(self.lane, 1 << 20, NULL), NULL);  // all go
    assert_int_equal(lane_graphs(self.lane).launches, 0);
    close_small(&self);
}

static void a_program_above_the_bound_of_launches_takes_plain_ones(void **state)
{
    (void)state;
    struct small self = open_small();
    run(&self, 1, 1);
    run(&self, 1, 1);
    for (uint32_t i = 0; i < 2; i++) run(&self, 1, GRAPHS_LAUNCHES_MAX);
    assert_int_equal(lane_graphs(self.lane).recorded, 1);
    assert_in_range(lane_graphs(self.lane).launches, 2, 8);  // the small one is there still
    close_small(&self);
}

static void a_lane_keeps_the_graphs_that_were_used_last(void **state)
{
    (void)state;
    struct small self = open_small();
    for (uint32_t i = 1; i <= GRAPHS_MAX + 1; i++) {
        run(&self, i, 1);
        run(&self, i, 1);
        run(&self, 1, 1);  // stays
    }
    assert_int_equal(lane_graphs(self.lane).recorded, GRAPHS_MAX + 1);
    run(&self, 1, 1);
    run(&self, GRAPHS_MAX + 1, 1);
    assert_int_equal(lane_graphs(self.lane).recorded, GRAPHS_MAX + 1);
    run(&self, 2, 1);  // went for the last one, and comes again
    assert_int_equal(lane_graphs(self.lane).recorded, GRAPHS_MAX + 2);
    close_small(&self);
}

// ---------------------------------------------------------------------------------------------
// Keys

// A program of every operation that a key knows, with one number changed.
struct varied {
    struct program *program;  // being written
    struct weight *tables[2];
    struct weight *weights[4];  // two of 8 x 8, one of 24 x 8, a vector
    uint32_t chosen;            // which number is the other; 0 for none
    uint32_t numbers;           // asked for so far
    struct value ids, out, extra, x, y;
};

// True for the chosen number.
static bool vary(struct varied *self)
{
    self->numbers += 1;
    return self->chosen == self->numbers;
}

static void add_tokens(struct varied *self)
{
    uint32_t rows = vary(self) ? 4 : 8;
    struct embedding op = {.ids = self->ids, .output = self->x, .rows = rows, .width = 8};
    if (vary(self)) op.vectors = self->extra, op.vectors_count = 1;
    op.table = self->tables[vary(self) ? 1 : 0];
    op.positions = self->tables[vary(self) ? 1 : 0];
    op.tokens = vary(self) ? 2 : 4;
    program_embedding(self->program, &op);

    struct layer_norm norm = {.input = self->x, .width = 8};
    norm.output = vary(self) ? self->y : self->x;
    norm.rows = vary(self) ? 7 : 8;
    norm.gamma = norm.beta = self->weights[3];
    norm.epsilon = vary(self) ? 1e-6f : 1e-5f;
    program_layer_norm(self->program, &norm);
}

static void add_linear(struct varied *self)
{
    struct low_rank paths[2];
    for (int i = 0; i < 2; i++) {
        paths[i] = (struct low_rank){.column_count = 8, .rank = 8};
        paths[i].row_begin = vary(self) ? 1 : 0;
        paths[i].row_count = vary(self) ? 3 : 2;
        paths[i].column_begin = vary(self) ? 8 : 0;
        paths[i].down = self->weights[vary(self) ? 1 : 0];
        paths[i].up = self->weights[vary(self) ? 1 : 0];
        paths[i].scale = vary(self) ? 2 : 1;
    }
    struct linear op = {.input = self->x, .c = 8, .output = self->y, .k = 24};
    op.rows = vary(self) ? 7 : 8;
    op.weight = self->weights[2];
    op.activation = vary(self) ? ACTIVATION_GELU : ACTIVATION_QUICK_GELU;
    if (vary(self)) op.residual = self->y;
    op.low_rank = paths;
    op.low_rank_count = vary(self) ? 1 : 2;
    program_linear(self->program, &op);
}

static void add_attention(struct varied *self)
{
    struct value keys = self->y;
    keys.offset += 8 * sizeof(float);
    keys.bytes -= 8 * sizeof(float);
    struct attention op = {.q = self->y, .output = self->x, .head_width = 4};
    op.k = vary(self) ? self->y : keys;
    op.v = vary(self) ? self->y : keys;
    op.q_stride = op.k_stride = 24;
    op.v_stride = vary(self) ? 16 : 24;
    op.batch = vary(self) ? 1 : 2;
    op.tokens = vary(self) ? 3 : 4;
    op.heads = vary(self) ? 1 : 2;
    op.scale = vary(self) ? 0.5f : 1;
    op.causal = vary(self);
    program_attention(self->program, &op);
}

static void add_stores(struct varied *self)
{
    struct value few = program_tensor(self->program, 1, 1, 8, 8);
    struct gather gather = {.input = self->x, .output = few, .width = 8};
    gather.indices = vary(self) ? self->extra : self->ids;
    gather.rows = vary(self) ? 7 : 8;
    gather.count = vary(self) ? 1 : 2;
    program_gather(self->program, &gather);
    struct value from = vary(self) ? few : self->x;
    program_store(self->program, &(struct store){.input = from, .output = self->out, .count = 8});
    struct value behind = self->out;
    behind.offset += vary(self) ? 64 : 32;
    behind.bytes -= 64;
    uint32_t count = vary(self) ? 7 : 8;
    program_store(self->program,
                  &(struct store){.input = self->x, .output = behind, .count = count});
}

// The program whose chosen number is the other; NULL where there are fewer.
static struct program *make_varied(struct device *device, struct varied *self, uint32_t chosen)
{
    struct error error;
    self->program = NULL;
    self->chosen = chosen;
    self->numbers = 0;
    expect_ok(program_create(&self->program, device, &error), &error);
    self->ids = program_slot(self->program, 0, 64);
    self->out = program_slot(self->program, 1, vary(self) ? 4096 : 2048);
    self->extra = program_slot(self->program, 2, 256);
    if (vary(self)) program_tensor(self->program, 1, 1, 1, 64);
    self->x = program_tensor(self->program, 1, 1, 8, 8);
    self->y = program_tensor(self->program, 1, 1, 8, 24);
    add_tokens(self);
    add_linear(self);
    add_attention(self);
    if (vary(self)) program_mark(self->program);
    add_stores(self);
    expect_ok(program_finish(self->program, &error), &error);
    if (chosen > self->numbers) program_destroy(&self->program);
    return self->program;
}

static struct weight *make_zeros(struct device *device, enum weight_form form, uint32_t rows)
{
    static const float zeros[192] = {0};
    struct error error;
    struct weight *weight = NULL;
    struct weight_source source = {
        .form = form, .dtype = DTYPE_F32, .dims = {rows, 8}, .parts_count = 1, .parts = {zeros}};
    expect_ok(weight_create(&weight, device, &source, &error), &error);
    return weight;
}

static void a_key_differs_whatever_differs(void **state)
{
    (void)state;
    struct error error;
    struct device *device = NULL;
    struct graph_key keys[64] = {{.words = NULL}};
    struct device_options options = {.name = "reference"};
    uint32_t count = 0;
    expect_ok(device_open(&device, &options, &error), &error);
    struct varied varied = {.weights[3] = make_vector(device)};
    static const uint32_t rows[3] = {8, 8, 24};
    for (int i = 0; i < 2; i++) varied.tables[i] = make_zeros(device, WEIGHT_TABLE, 8);
    for (int i = 0; i < 3; i++) varied.weights[i] = make_zeros(device, WEIGHT_MATRIX, rows[i]);
    for (; count < 64; count++) {
        struct program *program = make_varied(device, &varied, count);
        if (program == NULL) break;
        assert_true(graph_key_write(&keys[count], program));
        program_destroy(&program);
        program = make_varied(device, &varied, count);
        struct graph_key again = {.words = NULL};
        assert_true(graph_key_write(&again, program));
        assert_true(graph_key_is(&again, &keys[count]));
        graph_key_clear(&again);
        program_destroy(&program);
        for (uint32_t i = 0; i < count; i++) {
            if (graph_key_is(&keys[i], &keys[count])) fail_msg("%u is as %u", count, i);
        }
    }
    assert_in_range(count, 40, 63);
    for (uint32_t i = 0; i < count; i++) graph_key_clear(&keys[i]);
    for (int i = 0; i < 2; i++) weight_destroy(&varied.tables[i]);
    for (int i = 0; i < 4; i++) weight_destroy(&varied.weights[i]);
    device_close(&device);
}

static void a_program_with_other_operations_has_no_key(void **state)
{
    (void)state;
    struct error error;
    struct device *device = NULL;
    struct program *program = NULL;
    struct graph_key key = {.words = NULL};
    struct device_options options = {.name = "reference"};
    expect_ok(device_open(&device, &options, &error), &error);
    expect_ok(program_create(&program, device, &error), &error);
    struct value x = program_tensor(program, 1, 1, 1, 8);
    program_clear(program, &(struct clear){.output = x, .bytes = x.bytes});
    expect_ok(program_finish(program, &error), &error);
    assert_false(graph_key_write(&key, program));
    graph_key_clear(&key);
    program_destroy(&program);
    device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_program_that_comes_again_is_one_graph_with_the_same_bytes),
        cmocka_unit_test(every_size_of_a_batch_has_its_graph),
        cmocka_unit_test(an_arena_that_moves_takes_its_graphs_along),
        cmocka_unit_test(a_model_that_is_loaded_again_has_new_graphs),
        cmocka_unit_test(a_stack_that_stays_has_its_graph_and_no_other_gets_it),
        cmocka_unit_test(what_fails_about_a_graph_costs_a_plain_run),
        cmocka_unit_test(a_lane_whose_graphs_fail_again_and_again_leaves_them_alone),
        cmocka_unit_test(a_traced_run_takes_plain_launches_and_tells_their_times),
        cmocka_unit_test(a_graph_that_is_cancelled_ends_so_and_runs_again),
        cmocka_unit_test(marks_and_progress_are_those_of_plain_launches),
        cmocka_unit_test(a_lane_keeps_the_graphs_that_were_used_last),
        cmocka_unit_test(graphs_of_too_many_launches_push_out_those_that_were_used_longest_ago),
        cmocka_unit_test(a_program_above_the_bound_of_launches_takes_plain_ones),
        cmocka_unit_test(a_key_differs_whatever_differs),
        cmocka_unit_test(a_program_with_other_operations_has_no_key),
    };
    choose_tests();
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
