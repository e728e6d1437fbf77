// test_conformance_exact.c - what is fixed to the last bit, on every device: embedding, gather,
// store, clear, pixels, latents, blending. Slots begin at odd addresses, because what a client
// sends may. A device that stores activations in 16 bits rounds once, at the end.

#include "tests/unit/kernels/subjects.h"

// Binds count elements of dtype, converted from values (u8: bytes as they are), at an odd address.
static struct value odd_slot(struct rig *rig, const void *bytes, uint64_t size)
{
    uint8_t *memory = rig_own(rig, malloc(size + 1));
    memcpy(memory + 1, bytes, size);
    return rig_slot(rig, memory + 1, size);
}

static struct value slot_of(struct rig *rig, const float *values, enum dtype dtype, uint64_t count)
{
    uint64_t size = count * dtype_bytes(dtype);
    uint8_t *converted = rig_own(rig, malloc(size));
    dtype_convert(converted, dtype, values, DTYPE_F32, count);
    return odd_slot(rig, converted, size);
}

// An output slot at an odd address, full of 0xa5.
static struct value output_slot(struct rig *rig, uint64_t size, const uint8_t **memory)
{
    uint8_t *bytes = rig_own(rig, malloc(size + 1));
    memset(bytes, 0xa5, size + 1);
    *memory = bytes + 1;
    return rig_slot(rig, bytes + 1, size);
}

static float through(float value, enum dtype dtype)
{
    uint8_t bytes[4];
    float back = 0;
    dtype_convert(bytes, dtype, &value, DTYPE_F32, 1);
    dtype_convert(&back, DTYPE_F32, bytes, dtype, 1);
    return back;
}

static void expect_floats(const float *got, const float *want, uint64_t count, const char *what)
{
    for (uint64_t i = 0; i < count; i++) {
        if (memcmp(&got[i], &want[i], sizeof *got) == 0) continue;
        if (isnan(got[i]) && isnan(want[i])) continue;
        fail_msg("%s: element %llu is %.9g, expected %.9g", what, (unsigned long long)i,
                 (double)got[i], (double)want[i]);
    }
}

static const enum dtype reals[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};

// ---------------------------------------------------------------------------------------------
// Text

static struct weight *new_table(struct rig *rig, float *values, uint32_t rows, uint32_t width,
                                enum dtype dtype)
{
    struct weight_source source = {
        .form = WEIGHT_TABLE, .dtype = dtype, .dims = {rows, width}, .parts_count = 1};
    return rig_weight(rig, source, values, (uint64_t)rows * width);
}

#define ROWS 12u
#define TOKENS 4u

static void embed(struct device *device, uint32_t width, enum dtype dtype, enum dtype storage)
{
    static const int32_t ids[ROWS] = {0, 9, -1, 3, 3, -2, 8, -1, 0, 0, 5, -2};
    struct dice dice = {seed_of_run() + width};
    float *table = dice_array(&dice, 10ull * width, 0, 1);
    float *positions = dice_array(&dice, 6ull * width, 0, 1);
    float *vectors = dice_array(&dice, 2ull * width, 0, 1);
    float *want = malloc(ROWS * width * sizeof *want);
    assert_non_null(want);
    struct rig rig;
    rig_begin(&rig, device);
    struct embedding op = {.rows = ROWS, .tokens = TOKENS, .width = width, .vectors_count = 2};
    op.ids = odd_slot(&rig, ids, sizeof ids);
    op.vectors = slot_of(&rig, vectors, DTYPE_F32, 2ull * width);
    op.table = new_table(&rig, table, 10, width, dtype);
    op.positions = new_table(&rig, positions, 6, width, dtype);
    op.output = rig_tensor(&rig, ROWS, width);
    program_embedding(rig.program, &op);
    const float *got = rig_store(&rig, op.output, ROWS * width);
    rig_run(&rig);
    for (uint32_t row = 0; row < ROWS; row++) {
        for (uint32_t i = 0; i < width; i++) {
            float word = ids[row] >= 0 ? table[(uint32_t)ids[row] * width + i]
                                       : vectors[(uint32_t)(-1 - ids[row]) * width + i];
            float sum = word + positions[row % TOKENS * width + i];
            want[row * width + i] = through(sum, storage);
        }
    }
    expect_floats(got, want, ROWS * width, "embedding");
    rig_end(&rig);
    free(table);
    free(positions);
    free(vectors);
    free(want);
}

static void an_embedding_adds_word_or_vector_and_position(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t d = 0; d < 3; d++) {
            embed(devices[s], 1, reals[d], subjects[s].storage);
            embed(devices[s], 37, reals[d], subjects[s].storage);
            embed(devices[s], 1280, reals[d], subjects[s].storage);
        }
    }
}

static void gather_takes_rows_in_the_order_of_the_indices(void **state)
{
    struct device **devices = *state;
    static const int32_t indices[5] = {6, 0, 6, 3, 1};
    for (size_t s = 0; s < SUBJECTS; s++) {
        struct dice dice = {seed_of_run()};
        float *x = dice_array(&dice, 7 * 19, 0, 1);
        float want[5 * 19];
        round_all(x, 7 * 19, subjects[s].storage);
        for (uint32_t i = 0; i < 5 * 19; i++) want[i] = x[indices[i / 19] * 19 + (int)(i % 19)];
        struct rig rig;
        rig_begin(&rig, devices[s]);
        struct gather op = {.rows = 7, .count = 5, .width = 19};
        op.input = rig_load(&rig, x, 7, 19);
        op.indices = odd_slot(&rig, indices, sizeof indices);
        op.output = rig_tensor(&rig, 5, 19);
        program_gather(rig.program, &op);
        const float *got = rig_store(&rig, op.output, 5 * 19);
        rig_run(&rig);
        expect_floats(got, want, 5 * 19, "gather");
        rig_end(&rig);
        free(x);
    }
}

// ---------------------------------------------------------------------------------------------
// Memory

static void store_and_clear_stop_where_they_should(void **state)
{
    struct device **devices = *state;
    static const uint32_t counts[] = {1, 3, 65536, 65537, 200000};
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            uint32_t count = counts[i];
            struct dice dice = {seed_of_run()};
            float *x = dice_array(&dice, count, 0, 1);
            uint64_t element = device_info(devices[s])->activation_bytes;
            struct rig rig;
            round_all(x, count, subjects[s].storage);
            rig_begin(&rig, devices[s]);
            struct value value = rig_tensor(&rig, count, 1);
            rig_copy(&rig, slot_of(&rig, x, DTYPE_F32, count), value, count, 1);
            uint32_t cleared = count - count / 3;
            program_clear(rig.program,
                          &(struct clear){.output = value, .bytes = cleared * element});
            const float *got = rig_store(&rig, value, count);
            rig_run(&rig);
            for (uint32_t j = 0; j < cleared; j++) x[j] = 0;
            expect_floats(got, x, count, "clear and store");
            assert_true(isnan(got[count]));
            rig_end(&rig);
            free(x);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Pixels

static const struct window windows[] = {
    {1, 1, 0, 0, 1, 1}, {9, 13, 0, 0, 9, 13}, {9, 13, 2, 5, 4, 7}, {40, 300, 1, 2, 39, 298}};
#define WINDOWS (sizeof windows / sizeof windows[0])

static void load_pixels(struct device *device, const struct window *window, enum dtype dtype,
                        uint32_t channels, enum dtype storage)
{
    struct dice dice = {seed_of_run() + channels};
    uint64_t full = (uint64_t)window->full_h * window->full_w * channels;
    uint64_t count = 3ull * window->h * window->w;
    float *pixels = dice_array(&dice, full, 0.5f, 0.3f);
    uint8_t *bytes = malloc(full);
    float *want = malloc(count * sizeof *want);
    assert_non_null(bytes);
    assert_non_null(want);
    for (uint64_t i = 0; i < full; i++) bytes[i] = (uint8_t)dice_below(&dice, 256);
    struct rig rig;
    rig_begin(&rig, device);
    struct pixels_load op = {.dtype = dtype, .channels = channels, .window = *window};
    op.source =
        dtype == DTYPE_U8 ? odd_slot(&rig, bytes, full) : slot_of(&rig, pixels, dtype, full);
    op.output = rig_tensor(&rig, window->h * window->w, 3);
    program_pixels_load(rig.program, &op);
    const float *got = rig_store(&rig, op.output, count);
    rig_run(&rig);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t pixel =
            (window->y + i / 3 / window->w) * window->full_w + window->x + i / 3 % window->w;
        uint64_t at = pixel * channels + i % 3;
        float value = dtype == DTYPE_U8 ? (float)bytes[at] / 255.0f : through(pixels[at], dtype);
        want[i] = through(2.0f * value - 1.0f, storage);
    }
    expect_floats(got, want, count, "pixels_load");
    rig_end(&rig);
    free(pixels);
    free(bytes);
    free(want);
}

static void pixels_become_minus_one_to_one(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t i = 0; i < WINDOWS; i++) {
            for (uint32_t channels = 3; channels <= 5; channels++) {
                enum dtype storage = subjects[s].storage;
                load_pixels(devices[s], &windows[i], DTYPE_U8, channels, storage);
                for (size_t d = 0; d < 3; d++) {
                    load_pixels(devices[s], &windows[i], reals[d], channels, storage);
                }
            }
        }
    }
}

// Values below, in and above the range, halves between two bytes among them, and NaN.
static float *awkward_pixels(uint64_t count, bool with_nan)
{
    struct dice dice = {seed_of_run()};
    float *x = dice_array(&dice, count, 0, 1);
    for (uint64_t i = 0; i < count; i += 3) {
        x[i] = ((float)dice_below(&dice, 511) / 2.0f / 255.0f) * 2.0f - 1.0f;
    }
    if (with_nan) x[count / 2] = NAN;
    return x;
}

// An accumulator [h, w, 3] of float32 that holds x: one tile of it, with weight 1 everywhere.
static struct value accumulated(struct rig *rig, const float *x, uint32_t h, uint32_t w)
{
    uint64_t pixels = (uint64_t)h * w;
    struct value tile = rig_load(rig, x, (uint32_t)pixels, 3);
    struct value sum = program_bytes(rig->program, pixels * 3 * sizeof(float));
    struct value weight = program_bytes(rig->program, pixels * sizeof(float));
    program_clear(rig->program, &(struct clear){sum, sum.bytes});
    program_clear(rig->program, &(struct clear){weight, weight.bytes});
    program_blend(rig->program, &(struct blend){.tile = tile,
                                                .channels = 3,
                                                .stride = 3,
                                                .sum = sum,
                                                .weight = weight,
                                                .window = {h, w, 0, 0, h, w}});
    return sum;
}

static void store_pixels(struct device *device, enum dtype dtype, bool clamp, bool input_f32,
                         enum dtype storage)
{
    const uint32_t h = 11;
    const uint32_t w = 130;
    const uint64_t count = 3ull * h * w;
    float *x = awkward_pixels(count, dtype != DTYPE_U8);
    round_all(x, count, storage);
    uint64_t size = count * dtype_bytes(dtype);
    struct rig rig;
    const uint8_t *got = NULL;
    rig_begin(&rig, device);
    struct pixels_store op = {.h = h, .w = w, .dtype = dtype, .clamp = clamp};
    op.input_f32 = input_f32;
    op.input = input_f32 ? accumulated(&rig, x, h, w) : rig_load(&rig, x, h * w, 3);
    op.output = output_slot(&rig, size, &got);
    program_pixels_store(rig.program, &op);
    rig_run(&rig);
    for (uint64_t i = 0; i < count; i++) {
        float value = clamp ? (x[i] + 1.0f) / 2.0f : x[i];
        if (clamp && value < 0) value = 0;
        if (clamp && value > 1) value = 1;
        if (dtype == DTYPE_U8) {
            assert_int_equal(got[i], (int)nearbyint((double)(value * 255.0f)));
        } else {
            float element = 0;
            float want = through(value, dtype);
            dtype_convert(&element, DTYPE_F32, got + i * dtype_bytes(dtype), dtype, 1);
            expect_floats(&element, &want, 1, "pixels_store");
        }
    }
    rig_end(&rig);
    free(x);
}

static void pixels_leave_clamped_and_rounded(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        enum dtype storage = subjects[s].storage;
        store_pixels(devices[s], DTYPE_U8, true, false, storage);
        store_pixels(devices[s], DTYPE_U8, true, true, storage);
        for (size_t d = 0; d < 3; d++) {
            store_pixels(devices[s], reals[d], true, d % 2 == 0, storage);
            store_pixels(devices[s], reals[d], false, d % 2 == 1, storage);
        }
    }
}

static void every_byte_survives_the_round_trip(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        uint8_t bytes[256 * 3];
        const uint8_t *got = NULL;
        for (uint32_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i / 3);
        struct rig rig;
        rig_begin(&rig, devices[s]);
        struct value x = rig_tensor(&rig, 256, 3);
        program_pixels_load(rig.program,
                            &(struct pixels_load){.source = odd_slot(&rig, bytes, sizeof bytes),
                                                  .dtype = DTYPE_U8,
                                                  .channels = 3,
                                                  .window = {16, 16, 0, 0, 16, 16},
                                                  .output = x});
        program_pixels_store(rig.program,
                             &(struct pixels_store){.input = x,
                                                    .clamp = true,
                                                    .h = 16,
                                                    .w = 16,
                                                    .output = output_slot(&rig, sizeof bytes, &got),
                                                    .dtype = DTYPE_U8});
        rig_run(&rig);
        assert_memory_equal(got, bytes, sizeof bytes);
        rig_end(&rig);
    }
}

// ---------------------------------------------------------------------------------------------
// Latents

static void load_and_store_latent(struct device *device, const struct window *window,
                                  enum dtype dtype, uint32_t channels, enum dtype storage)
{
    struct dice dice = {seed_of_run() + channels};
    uint64_t full = (uint64_t)window->full_h * window->full_w * channels;
    uint64_t pixels = (uint64_t)window->h * window->w;
    float *latent = dice_array(&dice, full, 0, 3);
    float *want = malloc(pixels * channels * sizeof *want);
    assert_non_null(want);
    const uint8_t *left = NULL;
    uint32_t taken = (channels + 1) / 2;
    struct rig rig;
    rig_begin(&rig, device);
    struct latent_load load = {.dtype = dtype, .channels = channels, .window = *window};
    load.source = slot_of(&rig, latent, dtype, full);
    load.output = rig_tensor(&rig, (uint32_t)pixels, channels);
    program_latent_load(rig.program, &load);
    struct latent_store store = {.input = load.output, .h = window->h, .w = window->w};
    store.channels = taken;
    store.stride = channels;
    store.dtype = dtype;
    store.output = output_slot(&rig, pixels * taken * dtype_bytes(dtype), &left);
    program_latent_store(rig.program, &store);
    const float *got = rig_store(&rig, load.output, pixels * channels);
    rig_run(&rig);
    for (uint64_t i = 0; i < pixels * channels; i++) {
        uint64_t y = window->y + i / channels / window->w;
        uint64_t x = window->x + i / channels % window->w;
        uint64_t at = (i % channels * window->full_h + y) * window->full_w + x;
        want[i] = through(through(latent[at], dtype), storage);
    }
    expect_floats(got, want, pixels * channels, "latent_load");
    for (uint64_t i = 0; i < pixels * taken; i++) {
        float element = 0;
        dtype_convert(&element, DTYPE_F32, left + i * dtype_bytes(dtype), dtype, 1);
        float left_over = through(want[i % pixels * channels + i / pixels], dtype);
        expect_floats(&element, &left_over, 1, "latent_store");
    }
    rig_end(&rig);
    free(latent);
    free(want);
}

static void latents_turn_from_planes_to_pixels_and_back(void **state)
{
    struct device **devices = *state;
    static const uint32_t channels[] = {1, 4, 16, 33};
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t i = 0; i < WINDOWS; i++) {
            for (size_t j = 0; j < 4; j++) {
                load_and_store_latent(devices[s], &windows[i], reals[(i + j) % 3], channels[j],
                                      subjects[s].storage);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Blending, against the loops of ComfyUI's tiled_scale written over whole masks

struct tiling {
    uint32_t h, w, tile_h, tile_w, overlap;  // of the image and its tiles
};

// The image's three passes, as the VAE's decoder makes them; then odd ones.
static const struct tiling tilings[][3] = {
    {{40, 56, 32, 8, 4}, {40, 56, 8, 32, 4}, {40, 56, 16, 16, 4}},
    {{17, 9, 17, 9, 3}, {17, 9, 5, 7, 4}, {17, 9, 16, 3, 2}},
    {{9, 300, 9, 130, 60}, {9, 300, 6, 64, 5}, {9, 300, 4, 299, 0}},
};
#define TILINGS (sizeof tilings / sizeof tilings[0])
#define CHANNELS 3u
#define STRIDE 5u

// What both sides keep of one image.
struct canvas {
    uint32_t h, w;                // of the image
    float *sum, *weight, *total;  // as in struct blend and blend_end
    float *tiles;                 // content of all tiles comes from here, [h * w + 97, STRIDE]
};

static void multiply_line(float *mask, uint32_t first, uint32_t step, uint32_t count, float factor)
{
    for (uint32_t i = 0; i < count; i++) mask[first + i * step] *= factor;
}

// mask [h, w]: ones, then the feathers of y, then those of x, each from both ends.
static void make_mask(float *mask, uint32_t h, uint32_t w, uint32_t feather)
{
    for (uint32_t i = 0; i < h * w; i++) mask[i] = 1;
    for (uint32_t t = 0; t < feather && feather < h; t++) {
        float factor = (float)((double)(t + 1) / (double)feather);
        multiply_line(mask, t * w, 1, w, factor);
        multiply_line(mask, (h - 1 - t) * w, 1, w, factor);
    }
    for (uint32_t t = 0; t < feather && feather < w; t++) {
        float factor = (float)((double)(t + 1) / (double)feather);
        multiply_line(mask, t, w, h, factor);
        multiply_line(mask, w - 1 - t, w, h, factor);
    }
}

static void blend_by_hand(struct canvas *canvas, const struct window *window, uint32_t feather,
                          const float *tile)
{
    float *mask = malloc((uint64_t)window->h * window->w * sizeof *mask);
    assert_non_null(mask);
    make_mask(mask, window->h, window->w, feather);
    for (uint64_t i = 0; i < (uint64_t)window->h * window->w; i++) {
        uint64_t at = (window->y + i / window->w) * canvas->w + window->x + i % window->w;
        for (uint32_t c = 0; c < CHANNELS; c++) {
            float product = tile[i * STRIDE + c] * mask[i];
            canvas->sum[at * CHANNELS + c] += product;
        }
        canvas->weight[at] += mask[i];
    }
    free(mask);
}

static void end_by_hand(struct canvas *canvas, uint32_t pass, uint32_t passes)
{
    for (uint64_t i = 0; i < (uint64_t)canvas->h * canvas->w * CHANNELS; i++) {
        float value = canvas->sum[i] / canvas->weight[i / CHANNELS];
        canvas->total[i] = pass == 0 ? value : canvas->total[i] + value;
        if (passes > 1 && pass == passes - 1) canvas->total[i] /= (float)passes;
    }
    memset(canvas->sum, 0, (uint64_t)canvas->h * canvas->w * CHANNELS * sizeof(float));
    memset(canvas->weight, 0, (uint64_t)canvas->h * canvas->w * sizeof(float));
}

// Values of the device's side.
struct blending {
    struct value content;             // slot: all of canvas->tiles
    struct value sum, weight, total;  // of the arena
};

static void append_tile(struct rig *rig, struct canvas *canvas, const struct blending *blending,
                        const struct window *window, uint32_t feather)
{
    uint32_t skipped = window->y * 3 + window->x;  // so that tiles differ where they overlap
    uint32_t pixels = window->h * window->w;
    struct value tile = program_tensor(rig->program, 1, window->h, window->w, STRIDE);
    struct value part = blending->content;
    part.offset = (uint64_t)skipped % 97 * STRIDE * sizeof(float);
    part.bytes = (uint64_t)pixels * STRIDE * sizeof(float);
    rig_copy(rig, part, tile, pixels * STRIDE, 1);
    program_blend(rig->program, &(struct blend){.tile = tile,
                                                .channels = CHANNELS,
                                                .stride = STRIDE,
                                                .sum = blending->sum,
                                                .weight = blending->weight,
                                                .window = *window,
                                                .feather = feather});
    program_release(rig->program, tile);
    blend_by_hand(canvas, window, feather, canvas->tiles + part.offset / sizeof(float));
}

static uint32_t step_of(uint32_t side, uint32_t tile, uint32_t overlap)
{
    return side > tile ? tile - overlap : side;
}

static void append_pass(struct rig *rig, struct canvas *canvas, const struct blending *blending,
                        const struct tiling *tiling)
{
    program_clear(rig->program, &(struct clear){blending->sum, blending->sum.bytes});
    program_clear(rig->program, &(struct clear){blending->weight, blending->weight.bytes});
    for (uint32_t y = 0; y == 0 || y + tiling->overlap < tiling->h;
         y += step_of(tiling->h, tiling->tile_h, tiling->overlap)) {
        for (uint32_t x = 0; x == 0 || x + tiling->overlap < tiling->w;
             x += step_of(tiling->w, tiling->tile_w, tiling->overlap)) {
            struct window window = {tiling->h, tiling->w, y, x, 0, 0};
            window.h = tiling->h - y < tiling->tile_h ? tiling->h - y : tiling->tile_h;
            window.w = tiling->w - x < tiling->tile_w ? tiling->w - x : tiling->tile_w;
            append_tile(rig, canvas, blending, &window, tiling->overlap);
        }
    }
}

static void blend_image(struct device *device, const struct tiling passes[3], uint32_t count,
                        enum dtype storage)
{
    struct dice dice = {seed_of_run()};
    uint64_t pixels = (uint64_t)passes[0].h * passes[0].w;
    struct canvas canvas = {.h = passes[0].h, .w = passes[0].w};
    canvas.tiles = dice_array(&dice, (pixels + 97) * STRIDE, 0, 1);
    round_all(canvas.tiles, (pixels + 97) * STRIDE, storage);
    canvas.sum = calloc(pixels * CHANNELS, sizeof(float));
    canvas.weight = calloc(pixels, sizeof(float));
    canvas.total = calloc(pixels * CHANNELS, sizeof(float));
    struct rig rig;
    rig_begin(&rig, device);
    struct blending blending = {.content =
                                    slot_of(&rig, canvas.tiles, DTYPE_F32, (pixels + 97) * STRIDE)};
    rig_guard(&rig);
    blending.sum = program_bytes(rig.program, pixels * CHANNELS * sizeof(float));
    blending.weight = program_bytes(rig.program, pixels * sizeof(float));
    blending.total = program_bytes(rig.program, pixels * CHANNELS * sizeof(float));
    rig_guard(&rig);
    if (count == 1) blending.total = blending.sum;
    for (uint32_t pass = 0; pass < count; pass++) {
        append_pass(&rig, &canvas, &blending, &passes[pass]);
        program_blend_end(rig.program, &(struct blend_end){.sum = blending.sum,
                                                           .weight = blending.weight,
                                                           .total = blending.total,
                                                           .full_h = canvas.h,
                                                           .full_w = canvas.w,
                                                           .channels = CHANNELS,
                                                           .pass = pass,
                                                           .passes = count});
        end_by_hand(&canvas, pass, count);
    }
    float *got = rig_own(&rig, malloc(pixels * CHANNELS * sizeof *got));
    struct value output = rig_slot(&rig, got, pixels * CHANNELS * sizeof *got);
    program_pixels_store(rig.program, &(struct pixels_store){.input = blending.total,
                                                             .input_f32 = true,
                                                             .h = canvas.h,
                                                             .w = canvas.w,
                                                             .output = output,
                                                             .dtype = DTYPE_F32});
    rig_run(&rig);
    expect_floats(got, canvas.total, pixels * CHANNELS, "blend");
    rig_end(&rig);
    free(canvas.tiles);
    free(canvas.sum);
    free(canvas.weight);
    free(canvas.total);
}

static void tiles_blend_as_in_tiled_scale(void **state)
{
    struct device **devices = *state;
    for (size_t s = 0; s < SUBJECTS; s++) {
        for (size_t i = 0; i < TILINGS; i++) {
            for (uint32_t passes = 1; passes <= 3; passes++) {
                blend_image(devices[s], tilings[i], passes, subjects[s].storage);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_embedding_adds_word_or_vector_and_position),
        cmocka_unit_test(gather_takes_rows_in_the_order_of_the_indices),
        cmocka_unit_test(store_and_clear_stop_where_they_should),
        cmocka_unit_test(pixels_become_minus_one_to_one),
        cmocka_unit_test(pixels_leave_clamped_and_rounded),
        cmocka_unit_test(every_byte_survives_the_round_trip),
        cmocka_unit_test(latents_turn_from_planes_to_pixels_and_back),
        cmocka_unit_test(tiles_blend_as_in_tiled_scale),
    };
    return cmocka_run_group_tests_name("conformance, exact", tests, subjects_open, subjects_close);
}
