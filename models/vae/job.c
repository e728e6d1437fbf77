// job.c - images after each other, passes after each other, tiles in rows, each tile a network.
//
// A whole image goes straight from slot to slot. A tiled one needs accumulators in float32:
//
//     for each pass:  clear sum and weight; for each tile: network, sum += tile * mask; then
//                     total (+)= sum / weight
//     at the end:     total / passes goes to the slot
//
// A tile that ends gives back everything it took, so the arena never holds more than the
// accumulators and the largest tile. What is not finite is found by the loads and the stores, in
// two words that all images and tiles share; they leave when all is done.

#include "models/vae/job.h"

#include <assert.h>
#include <stddef.h>

#define FOUND_WORDS 2u
_Static_assert(sizeof(struct vae_found) == FOUND_WORDS * sizeof(uint32_t), "two words");
_Static_assert(offsetof(struct vae_found, not_finite_output) == sizeof(uint32_t), "in this order");

struct builder {
    const struct job *job;
    struct program *program;
    bool decode;
    uint32_t factor;      // pixels of one latent
    uint32_t scale;       // elements of the output, per axis, that one latent becomes
    uint32_t h, w;        // of the output
    uint32_t channels;    // of the output
    struct value input;   // slot, all images
    struct value output;  // slot, all images
    struct value found;   // a struct vae_found of the arena, of which these are the words:
    struct value not_finite_input, not_finite_output;
    uint64_t input_bytes;  // of one image
    uint64_t output_bytes;
};

// The i-th of equal parts of a value.
static struct value part(struct value all, uint64_t bytes, uint32_t i)
{
    if (all.place == VALUE_NONE) return all;  // the program has failed already
    all.offset += i * bytes;
    all.bytes = bytes;
    return all;
}

static struct window window_of(const struct tiling_tile *tile, uint32_t scale)
{
    return (struct window){
        .y = tile->y * scale, .x = tile->x * scale, .h = tile->h * scale, .w = tile->w * scale};
}

// Reads one tile of the input into the arena.
static struct network_flow load(const struct builder *self, uint32_t image,
                                const struct tiling_tile *tile)
{
    const struct vae_plan *plan = self->job->plan;
    const struct vae_config *config = &self->job->network->config;
    struct window window = window_of(tile, self->decode ? 1 : self->factor);
    window.full_h = plan->request.h;
    window.full_w = plan->request.w;
    window.y += plan->crop_y;
    window.x += plan->crop_x;
    struct network_flow flow = {.program = self->program,
                                .h = window.h,
                                .w = window.w,
                                .c = self->decode ? config->latent_channels
                                                  : config->image_channels};
    flow.x = program_tensor(self->program, 1, flow.h, flow.w, flow.c);
    struct value source = part(self->input, self->input_bytes, image);
    if (self->decode) {
        program_latent_load(self->program,
                            &(struct latent_load){.source = source,
                                                  .dtype = plan->request.input_dtype,
                                                  .channels = flow.c,
                                                  .window = window,
                                                  .output = flow.x,
                                                  .not_finite = self->not_finite_input});
    } else {
        program_pixels_load(self->program,
                            &(struct pixels_load){.source = source,
                                                  .dtype = plan->request.input_dtype,
                                                  .channels = plan->request.c,
                                                  .window = window,
                                                  .output = flow.x,
                                                  .not_finite = self->not_finite_input});
    }
    return flow;
}

static struct network_flow run_tile(const struct builder *self, uint32_t image,
                                    const struct tiling_tile *tile)
{
    struct network_flow flow = load(self, image, tile);
    if (self->decode) {
        network_decode(self->job->network, &flow);
    } else {
        network_encode(self->job->network, &flow);
    }
    assert(flow.c >= self->channels);
    return flow;
}

// Writes a whole image [h, w, stride] to its part of the output slot.
static void store(const struct builder *self, uint32_t image, struct value x, uint32_t stride)
{
    const struct vae_request *request = &self->job->plan->request;
    struct value output = part(self->output, self->output_bytes, image);
    bool is_sum = self->job->tiling != NULL;
    if (self->decode) {
        program_pixels_store(self->program,
                             &(struct pixels_store){.input = x,
                                                    .input_f32 = is_sum,
                                                    .clamp = !request->raw,
                                                    .h = self->h,
                                                    .w = self->w,
                                                    .output = output,
                                                    .dtype = request->output_dtype,
                                                    .not_finite = self->not_finite_output});
    } else {
        program_latent_store(self->program,
                             &(struct latent_store){.input = x,
                                                    .input_f32 = is_sum,
                                                    .h = self->h,
                                                    .w = self->w,
                                                    .channels = self->channels,
                                                    .stride = stride,
                                                    .output = output,
                                                    .dtype = request->output_dtype,
                                                    .not_finite = self->not_finite_output});
    }
}

static void build_whole(const struct builder *self, uint32_t image)
{
    const struct tiling_tile all = {.h = self->h / self->scale, .w = self->w / self->scale};
    struct network_flow flow = run_tile(self, image, &all);
    store(self, image, flow.x, flow.c);
    program_release(self->program, flow.x);
    program_mark(self->program);
}

// The accumulators of one tiled image.
struct sums {
    struct value sum, weight, total;
    uint64_t sum_bytes, weight_bytes;
};

static void build_tile(const struct builder *self, uint32_t image, const struct sums *sums,
                       const struct tiling_tile *tile)
{
    struct network_flow flow = run_tile(self, image, tile);
    struct window window = window_of(tile, self->scale);
    window.full_h = self->h;
    window.full_w = self->w;
    program_blend(self->program, &(struct blend){.tile = flow.x,
                                                 .channels = self->channels,
                                                 .stride = flow.c,
                                                 .sum = sums->sum,
                                                 .weight = sums->weight,
                                                 .window = window,
                                                 .feather = tile->feather * self->scale});
    program_release(self->program, flow.x);
    program_mark(self->program);
}

// Only the last tile of an axis is shorter than the others, so the shapes of a pass are those of
// its first and last rows and columns.
static bool is_repeated(const struct tiling_pass *pass, uint32_t row, uint32_t column)
{
    bool inner_row = row > 0 && row + 1 < pass->rows;
    bool inner_column = column > 0 && column + 1 < pass->columns;
    return inner_row || inner_column;
}

static void build_pass(const struct builder *self, uint32_t image, const struct sums *sums,
                       uint32_t index)
{
    const struct tiling *tiling = self->job->tiling;
    const struct tiling_pass *pass = &tiling->passes[index];
    program_clear(self->program, &(struct clear){.output = sums->sum, .bytes = sums->sum_bytes});
    program_clear(self->program,
                  &(struct clear){.output = sums->weight, .bytes = sums->weight_bytes});
    for (uint32_t row = 0; row < pass->rows; row++) {
        for (uint32_t column = 0; column < pass->columns; column++) {
            if (self->job->outline && is_repeated(pass, row, column)) continue;
            struct tiling_tile tile = tiling_at(tiling, index, row, column);
            build_tile(self, image, sums, &tile);
        }
    }
    program_blend_end(self->program, &(struct blend_end){.sum = sums->sum,
                                                         .weight = sums->weight,
                                                         .total = sums->total,
                                                         .full_h = self->h,
                                                         .full_w = self->w,
                                                         .channels = self->channels,
                                                         .pass = index,
                                                         .passes = tiling->passes_count});
}

static void build_tiled(const struct builder *self, uint32_t image)
{
    struct program *program = self->program;
    uint64_t pixels = (uint64_t)self->h * self->w;
    struct sums sums = {.sum_bytes = pixels * self->channels * sizeof(float),
                        .weight_bytes = pixels * sizeof(float)};
    bool one_pass = self->job->tiling->passes_count == 1;
    sums.sum = program_bytes(program, sums.sum_bytes);
    sums.weight = program_bytes(program, sums.weight_bytes);
    sums.total = one_pass ? sums.sum : program_bytes(program, sums.sum_bytes);
    for (uint32_t i = 0; i < self->job->tiling->passes_count; i++) {
        build_pass(self, image, &sums, i);
    }
    store(self, image, sums.total, self->channels);
    if (!one_pass) program_release(program, sums.total);
    program_release(program, sums.weight);
    program_release(program, sums.sum);
}

static struct builder begin(const struct job *job, struct program *program)
{
    const struct vae_plan *plan = job->plan;
    bool decode = plan->request.direction == VAE_DECODE;
    struct builder self = {.job = job,
                           .program = program,
                           .decode = decode,
                           .factor = network_factor(&job->network->config),
                           .h = plan->output_h,
                           .w = plan->output_w,
                           .channels = plan->output_c,
                           .input = program_slot(program, VAE_SLOT_INPUT, plan->input_bytes),
                           .output = program_slot(program, VAE_SLOT_OUTPUT, plan->output_bytes),
                           .found = program_bytes(program, sizeof(struct vae_found)),
                           .input_bytes = plan->input_bytes / plan->request.n,
                           .output_bytes = plan->output_bytes / plan->request.n};
    self.scale = decode ? self.factor : 1;
    self.not_finite_input = part(self.found, sizeof(uint32_t), 0);
    self.not_finite_output = part(self.found, sizeof(uint32_t), 1);
    program_clear(program, &(struct clear){.output = self.found, .bytes = self.found.bytes});
    return self;
}

static void end(const struct builder *self)
{
    struct value slot = program_slot(self->program, VAE_SLOT_FOUND, sizeof(struct vae_found));
    program_words_store(
        self->program,
        &(struct words_store){.input = self->found, .output = slot, .count = FOUND_WORDS});
    program_release(self->program, self->found);
}

enum status job_build(struct program **out, const struct job *job, struct error *error)
{
    assert(out != NULL);
    assert(job->plan->request.n >= 1);

    struct program *program = NULL;
    enum status status = program_create(&program, job->network->device, error);
    if (status != STATUS_OK) goto done;
    struct builder builder = begin(job, program);
    uint32_t images = job->outline ? 1 : job->plan->request.n;
    for (uint32_t i = 0; i < images; i++) {
        if (job->tiling == NULL) {
            build_whole(&builder, i);
        } else {
            build_tiled(&builder, i);
        }
    }
    end(&builder);
    status = program_finish(program, error);
    if (status != STATUS_OK) goto done;
    *out = program;
    program = NULL;

done:
    program_destroy(&program);
    return status;
}
