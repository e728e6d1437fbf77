// test_conformance_finite.c - NaN and infinity are found by what reads and writes images and
// latents, on every device, wherever one stands, and nothing else is. Each program runs many times
// with one element changed, so that a word that is not cleared shows in the run behind.

#include "tests/unit/kernels/subjects.h"

#include <float.h>

// A program with one element to spoil and the word that tells.
struct probe {
    struct rig rig;            // the program
    struct lane *lane;         // it runs on
    uint8_t *source;           // slot: elements of dtype
    enum dtype dtype;          // of the source
    struct value words;        // of the arena: the one that tells between two that stay 0
    const uint8_t *told;       // slot: a copy of them, between two guards of a byte
    uint64_t count;            // elements of the source
    char what[96];             // for messages
    enum dtype types[2];       // that values pass through before the operation sees them
    enum dtype written_dtype;  // of what leaves; DTYPE_NONE: nothing does that could overflow
};

#define WORDS 3u
#define GUARD_BYTE 0xa5

static const enum dtype reals[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
// The numbers on both sides of each edge, and what is none.
static const float values[] = {
    NAN,      -NAN,     INFINITY,  -INFINITY,       FLT_MAX,      -FLT_MAX, 65504.0f,
    65519.0f, 65520.0f, -65520.0f, 0x1.fefffep127f, -0x1.ffp127f, 1e-40f};
#define VALUES (sizeof values / sizeof values[0])

static float through(float value, enum dtype dtype)
{
    uint8_t bytes[4];
    float back = 0;
    dtype_convert(bytes, dtype, &value, DTYPE_F32, 1);
    dtype_convert(&back, DTYPE_F32, bytes, dtype, 1);
    return back;
}

// ---------------------------------------------------------------------------------------------
// Probes

static void probe_begin(struct probe *self, struct device *device, enum dtype dtype, uint64_t count)
{
    struct dice dice = {seed_of_run() + count};
    *self = (struct probe){.dtype = dtype, .count = count, .types = {dtype, DTYPE_F32}};
    rig_begin(&self->rig, device);
    uint64_t bytes = count * dtype_bytes(dtype);
    self->source = (uint8_t *)rig_own(&self->rig, malloc(bytes + 1)) + 1;
    for (uint64_t i = 0; i < count; i++) {
        float value = dice_normal(&dice);
        if (dtype == DTYPE_U8)
            self->source[i] = (uint8_t)dice_below(&dice, 256);
        else
            dtype_convert(self->source + i * dtype_bytes(dtype), dtype, &value, DTYPE_F32, 1);
    }
    self->words = program_bytes(self->rig.program, WORDS * sizeof(uint32_t));
    program_clear(self->rig.program, &(struct clear){self->words, self->words.bytes});
}

static struct value probe_source(struct probe *self)
{
    return rig_slot(&self->rig, self->source, self->count * dtype_bytes(self->dtype));
}

// The word that an operation is to set.
static struct value probe_word(const struct probe *self)
{
    struct value word = self->words;
    word.offset += sizeof(uint32_t);
    word.bytes = sizeof(uint32_t);
    return word;
}

// Ends the program and makes it ready to run, over NaN.
static void probe_finish(struct probe *self)
{
    struct error error = {.status = STATUS_OK};
    uint64_t bytes = WORDS * sizeof(uint32_t);
    uint8_t *told = rig_own(&self->rig, malloc(bytes + 2));
    memset(told, GUARD_BYTE, bytes + 2);
    self->told = told + 1;
    program_words_store(self->rig.program,
                        &(struct words_store){.input = self->words,
                                              .output = rig_slot(&self->rig, told + 1, bytes),
                                              .count = WORDS});
    must(program_finish(self->rig.program, &error), &error);
    must(lane_create(&self->lane, self->rig.device, &error), &error);
    must(lane_reserve(self->lane, program_peak_bytes(self->rig.program), &error), &error);
    poison_arena(self->lane, self->rig.device);
}

static void probe_end(struct probe *self)
{
    lane_destroy(&self->lane);
    rig_end(&self->rig);
}

static void expect_told(struct probe *self, bool want, uint64_t at, float value)
{
    uint32_t told[WORDS];
    run_to_end(self->lane, self->rig.program, self->rig.bindings, self->rig.slots_count);
    memcpy(told, self->told, sizeof told);
    if (told[1] != want) {
        fail_msg("%s: %g at element %llu of %llu told as %u", self->what, (double)value,
                 (unsigned long long)at, (unsigned long long)self->count, told[1]);
    }
    assert_int_equal(told[0] | told[2], 0);
    assert_int_equal(self->told[-1], GUARD_BYTE);
    assert_int_equal(self->told[sizeof told], GUARD_BYTE);
}

// Runs with one element changed; it may be one that the operation leaves alone.
static void spoil(struct probe *self, uint64_t at, float value, bool is_read)
{
    uint8_t before[4];
    uint64_t element = dtype_bytes(self->dtype);
    assert_true(at < self->count);
    memcpy(before, self->source + at * element, element);
    dtype_convert(self->source + at * element, self->dtype, &value, DTYPE_F32, 1);
    float seen = through(through(value, self->types[0]), self->types[1]);
    float written = self->written_dtype == DTYPE_NONE ? seen : through(seen, self->written_dtype);
    expect_told(self, is_read && (!isfinite(seen) || !isfinite(written)), at, value);
    memcpy(self->source + at * element, before, element);
}

static void expect_clean(struct probe *self)
{
    expect_told(self, false, 0, 0);
}

// ---------------------------------------------------------------------------------------------
// Loads

static const struct window windows[] = {
    {1, 1, 0, 0, 1, 1}, {9, 13, 0, 0, 9, 13}, {9, 13, 2, 5, 4, 7}, {40, 300, 1, 2, 38, 297}};
#define WINDOWS (sizeof windows / sizeof windows[0])

struct load_case {
    bool is_latent;
    enum dtype dtype;
    uint32_t channels;     // of the source
    struct window window;  // of it
};

static uint64_t element_of(const struct load_case *test, uint32_t y, uint32_t x, uint32_t channel)
{
    const struct window *window = &test->window;
    if (test->is_latent) {
        return ((uint64_t)channel * window->full_h + y) * window->full_w + x;
    }
    return ((uint64_t)y * window->full_w + x) * test->channels + channel;
}

static void append_load(struct probe *self, const struct load_case *test, struct value source)
{
    const struct window *window = &test->window;
    uint32_t taken = test->is_latent ? test->channels : 3;
    struct value output = rig_tensor(&self->rig, window->h * window->w, taken);
    if (test->is_latent) {
        program_latent_load(self->rig.program,
                            &(struct latent_load){.source = source,
                                                  .dtype = test->dtype,
                                                  .channels = test->channels,
                                                  .window = *window,
                                                  .output = output,
                                                  .not_finite = probe_word(self)});
    } else {
        program_pixels_load(self->rig.program,
                            &(struct pixels_load){.source = source,
                                                  .dtype = test->dtype,
                                                  .channels = test->channels,
                                                  .window = *window,
                                                  .output = output,
                                                  .not_finite = probe_word(self)});
    }
}

static void begin_load(struct probe *self, struct device *device, const struct load_case *test)
{
    const struct window *window = &test->window;
    uint64_t full = (uint64_t)window->full_h * window->full_w * test->channels;
    probe_begin(self, device, test->dtype, full);
    snprintf(self->what, sizeof self->what, "%s, %s, %s %u x %u of %u x %u x %u",
             device_info(device)->name, test->is_latent ? "latent_load" : "pixels_load",
             dtype_name(test->dtype), window->h, window->w, window->full_h, window->full_w,
             test->channels);
    append_load(self, test, probe_source(self));
}

// The elements around the window, and alpha inside of it.
static void spoil_the_outside(struct probe *self, const struct load_case *test)
{
    const struct window *window = &test->window;
    uint32_t bottom = window->y + window->h;
    uint32_t right = window->x + window->w;
    if (window->y > 0) {
        spoil(self, element_of(test, window->y - 1, window->x, 0), NAN, false);
    }
    if (window->x > 0) {
        spoil(self, element_of(test, window->y, window->x - 1, 2), INFINITY, false);
    }
    if (bottom < window->full_h) {
        spoil(self, element_of(test, bottom, right - 1, 0), NAN, false);
    }
    if (right < window->full_w) spoil(self, element_of(test, bottom - 1, right, 0), NAN, false);
    for (uint32_t i = 3; !test->is_latent && i < test->channels; i++) {
        spoil(self, element_of(test, window->y, window->x, i), NAN, false);
        spoil(self, element_of(test, bottom - 1, right - 1, i), INFINITY, false);
    }
}

static void try_load(struct device *device, const struct load_case *test)
{
    const struct window *window = &test->window;
    uint32_t last = test->is_latent ? test->channels - 1 : 2;
    uint64_t end = element_of(test, window->y + window->h - 1, window->x + window->w - 1, last);
    bool is_large = window->h > 20;
    struct probe probe;
    begin_load(&probe, device, test);
    probe_finish(&probe);
    expect_clean(&probe);
    for (size_t i = 0; i < (is_large ? 1 : VALUES); i++) {
        spoil(&probe, element_of(test, window->y, window->x, 0), values[i], true);
        spoil(&probe, end, values[i], true);
    }
    spoil(&probe, element_of(test, window->y + window->h / 2, window->x + window->w / 2, last / 2),
          NAN, true);
    spoil_the_outside(&probe, test);
    expect_clean(&probe);
    probe_end(&probe);
}

static void a_load_finds_what_is_not_finite_in_its_window_and_nowhere_else(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t i = 0; i < WINDOWS; i++) {
            for (size_t d = 0; d < 3; d++) {
                if (i == WINDOWS - 1 && d != s % 3) continue;  // the large one, once a device
                struct load_case pixels = {false, reals[d], 3 + (uint32_t)(i + d) % 3, windows[i]};
                struct load_case latent = {true, reals[d], i % 2 == 0 ? 4 : 3, windows[i]};
                try_load(devices[s], &pixels);
                try_load(devices[s], &latent);
            }
        }
    }
}

static void bytes_are_always_finite(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        struct probe probe;
        begin_load(&probe, devices[s], &(struct load_case){false, DTYPE_U8, 4, windows[2]});
        probe_finish(&probe);
        expect_clean(&probe);
        memset(probe.source, 0xff, probe.count);
        expect_clean(&probe);
        probe_end(&probe);
    }
}

static void many_loads_share_a_word_that_none_sets_back(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        struct load_case test = {true, DTYPE_F32, 2, {6, 8, 0, 0, 3, 8}};
        struct probe probe;
        begin_load(&probe, devices[s], &test);
        struct value source = {.place = VALUE_SLOT, .slot = probe.rig.slots_count - 1};
        source.bytes = probe.count * sizeof(float);
        test.window.y = 2;
        append_load(&probe, &test, source);
        test.window.h = 1;
        append_load(&probe, &test, source);
        probe_finish(&probe);
        expect_clean(&probe);
        for (uint32_t y = 0; y < 6; y++) {
            spoil(&probe, element_of(&test, y, 7, 1), NAN, y < 5);
        }
        probe_end(&probe);
    }
}

// ---------------------------------------------------------------------------------------------
// Stores

struct store_case {
    bool is_latent;
    bool clamp;      // of pixels
    bool input_f32;  // an accumulator, not an activation
    enum dtype dtype;
    uint32_t h, w, stride;  // of what is stored; three channels leave
};

// An accumulator of the first three channels of a tile, with weight 1 everywhere.
static struct value accumulated(struct rig *rig, struct value tile, const struct store_case *test)
{
    uint64_t pixels = (uint64_t)test->h * test->w;
    struct value sum = program_bytes(rig->program, pixels * 3 * sizeof(float));
    struct value weight = program_bytes(rig->program, pixels * sizeof(float));
    program_clear(rig->program, &(struct clear){sum, sum.bytes});
    program_clear(rig->program, &(struct clear){weight, weight.bytes});
    program_blend(rig->program,
                  &(struct blend){.tile = tile,
                                  .channels = 3,
                                  .stride = test->stride,
                                  .sum = sum,
                                  .weight = weight,
                                  .window = {test->h, test->w, 0, 0, test->h, test->w}});
    return sum;
}

static void append_store(struct probe *self, const struct store_case *test, struct value input)
{
    uint64_t bytes = 3ull * test->h * test->w * dtype_bytes(test->dtype);
    struct value output = rig_slot(&self->rig, rig_own(&self->rig, malloc(bytes)), bytes);
    if (test->is_latent) {
        program_latent_store(self->rig.program,
                             &(struct latent_store){.input = input,
                                                    .input_f32 = test->input_f32,
                                                    .h = test->h,
                                                    .w = test->w,
                                                    .channels = 3,
                                                    .stride = test->input_f32 ? 3 : test->stride,
                                                    .output = output,
                                                    .dtype = test->dtype,
                                                    .not_finite = probe_word(self)});
    } else {
        program_pixels_store(self->rig.program,
                             &(struct pixels_store){.input = input,
                                                    .input_f32 = test->input_f32,
                                                    .clamp = test->clamp,
                                                    .h = test->h,
                                                    .w = test->w,
                                                    .output = output,
                                                    .dtype = test->dtype,
                                                    .not_finite = probe_word(self)});
    }
}

static void begin_store(struct probe *self, struct device *device, const struct store_case *test,
                        enum dtype storage)
{
    uint32_t pixels = test->h * test->w;
    probe_begin(self, device, DTYPE_F32, (uint64_t)pixels * test->stride);
    self->types[1] = storage;
    if (!test->clamp) self->written_dtype = test->dtype;
    snprintf(self->what, sizeof self->what, "%s, %s%s%s to %s, %u x %u x %u",
             device_info(device)->name, test->is_latent ? "latent_store" : "pixels_store",
             test->clamp ? " clamped" : "", test->input_f32 ? " of sums" : "",
             dtype_name(test->dtype), test->h, test->w, test->stride);
    struct value input = rig_tensor(&self->rig, pixels, test->stride);
    rig_copy(&self->rig, probe_source(self), input, pixels, test->stride);
    if (test->input_f32) input = accumulated(&self->rig, input, test);
    append_store(self, test, input);
}

static void try_store(struct device *device, const struct store_case *test, enum dtype storage)
{
    uint64_t pixels = (uint64_t)test->h * test->w;  // the source is stored channel by channel
    bool is_large = pixels > 1000;
    struct probe probe;
    begin_store(&probe, device, test, storage);
    probe_finish(&probe);
    expect_clean(&probe);
    for (size_t i = 0; i < (is_large ? 1 : VALUES); i++) {
        spoil(&probe, 0, values[i], true);
        spoil(&probe, 3 * pixels - 1, values[i], true);
        if (test->stride > 3) spoil(&probe, 3 * pixels + i % pixels, values[i], false);
    }
    spoil(&probe, pixels + pixels / 2, -INFINITY, true);
    expect_clean(&probe);
    probe_end(&probe);
}

static void a_store_finds_what_the_clamp_and_the_type_would_hide(void **state)
{
    struct device **devices = *state;
    static const uint32_t sides[][2] = {{1, 1}, {5, 7}, {3, 2}, {38, 297}};
    for (size_t s = 0; s < SUBJECTS; s++) {
        enum dtype storage = subjects[s].storage;
        for (uint32_t i = 0; i < 4; i++) {
            uint32_t h = sides[i][0];
            uint32_t w = sides[i][1];
            bool is_sum = (s + i) % 2 == 0;
            for (size_t d = 0; d < 3; d++) {
                if (i == 3 && d != s % 3) continue;  // the large one, once a device
                enum dtype dtype = reals[d];
                try_store(devices[s], &(struct store_case){true, false, is_sum, dtype, h, w, 5},
                          storage);
                try_store(devices[s], &(struct store_case){false, false, is_sum, dtype, h, w, 3},
                          storage);
                try_store(devices[s], &(struct store_case){false, true, !is_sum, dtype, h, w, 3},
                          storage);
            }
            try_store(devices[s], &(struct store_case){false, true, is_sum, DTYPE_U8, h, w, 3},
                      storage);
        }
    }
}

// More elements than a GPU has threads for: the first of a thread's counts as its last does.
static void what_is_found_first_is_not_forgotten(void **state)
{
    struct device **devices = *state;
    const uint32_t side = 600;
    for (size_t s = 0; s < SUBJECTS && subjects[s].storage == DTYPE_F32; s++) {
        for (int is_latent = 0; is_latent < 2; is_latent++) {
            struct load_case load = {is_latent != 0, DTYPE_F32, 3, {side, side, 0, 0, side, side}};
            struct store_case store = {is_latent != 0, false, false, DTYPE_F32, side, side, 3};
            struct probe probe;
            begin_load(&probe, devices[s], &load);
            probe_finish(&probe);
            spoil(&probe, 0, NAN, true);
            probe_end(&probe);
            begin_store(&probe, devices[s], &store, DTYPE_F32);
            probe_finish(&probe);
            spoil(&probe, 0, NAN, true);
            probe_end(&probe);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_load_finds_what_is_not_finite_in_its_window_and_nowhere_else),
        cmocka_unit_test(bytes_are_always_finite),
        cmocka_unit_test(many_loads_share_a_word_that_none_sets_back),
        cmocka_unit_test(a_store_finds_what_the_clamp_and_the_type_would_hide),
        cmocka_unit_test(what_is_found_first_is_not_forgotten),
    };
    return cmocka_run_group_tests_name("conformance, finite", tests, subjects_open, subjects_close);
}
