// vae_plan.c - from a request to a plan: check, crop, decide whether to tile, learn the peak.
//
// The peak is not estimated: the program is built in outline, which touches no tensor, and asked.

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "models/vae/job.h"

// The longest side of an image, in pixels, and the most tiles of one request. Both are far beyond
// use; they keep sizes in 32 bits and a program's list of operations below some 300 MB.
#define SIDE_MAX 65536u
#define TILES_MAX 16384u

// The smallest tile that is tried on its own account, in pixels.
#define TILE_MIN 64u

static unsigned long long mebibytes_up(uint64_t bytes)
{
    return bytes / (1u << 20) + (bytes % (1u << 20) != 0);
}

static unsigned long long mebibytes_down(uint64_t bytes)
{
    return bytes / (1u << 20);
}

// ---------------------------------------------------------------------------------------------
// Checks

static enum status check_dtype(const char *what, enum dtype dtype, bool allow_u8,
                               struct error *error)
{
    if (dtype_is_real(dtype) || (allow_u8 && dtype == DTYPE_U8)) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s cannot be %s, only F32, F16%s", what,
                     dtype_name(dtype), allow_u8 ? ", BF16 or U8" : " or BF16");
}

static enum status check_dtypes(const struct vae_request *request, struct error *error)
{
    bool decode = request->direction == VAE_DECODE;
    enum status status =
        check_dtype(decode ? "the latent" : "the image", request->input_dtype, !decode, error);
    if (status != STATUS_OK) return status;
    if (decode && request->raw && request->output_dtype == DTYPE_U8) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "raw pixels cannot be U8");
    }
    return check_dtype(decode ? "the image" : "the latent", request->output_dtype, decode, error);
}

static enum status check_half(const struct vae_config *config, const struct vae_request *request,
                              struct error *error)
{
    if (request->direction == VAE_ENCODE && !config->encoder) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "the model has no encoder");
    }
    if (request->direction == VAE_DECODE && !config->decoder) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "the model has no decoder");
    }
    return STATUS_OK;
}

// "the model", or its name as people know it.
static void name_model(const struct vae_request *request, char out[80])
{
    if (request->model == NULL)
        snprintf(out, 80, "the model");
    else
        snprintf(out, 80, "model \"%.63s\"", request->model);
}

static enum status check_channels(const struct vae_config *config,
                                  const struct vae_request *request, struct error *error)
{
    char model[80];
    name_model(request, model);
    if (request->direction == VAE_ENCODE && request->c != 3 && request->c != 4) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "image has %u channels, %s takes 3, or 4 with alpha", request->c, model);
    }
    if (request->direction == VAE_DECODE && request->c != config->latent_channels) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "latent has %u channels, %s takes %u",
                         request->c, model, config->latent_channels);
    }
    return STATUS_OK;
}

static enum status check_sides(const struct vae_config *config, const struct vae_request *request,
                               struct error *error)
{
    bool decode = request->direction == VAE_DECODE;
    const char *what = decode ? "latent" : "image";
    uint32_t least = decode ? 1 : network_factor(config);
    uint32_t most = decode ? SIDE_MAX / network_factor(config) : SIDE_MAX;
    if (request->n == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a batch of 0 %ss", what);
    }
    if (request->h < least || request->w < least) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s of %u x %u is below %u x %u", what,
                         request->h, request->w, least, least);
    }
    if (request->h > most || request->w > most) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s of %u x %u is above %u x %u", what,
                         request->h, request->w, most, most);
    }
    return STATUS_OK;
}

static enum status check_request(const struct vae_config *config, const struct vae_request *request,
                                 struct error *error)
{
    if (request->direction != VAE_ENCODE && request->direction != VAE_DECODE) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "direction is %u",
                         (unsigned)request->direction);
    }
    if ((unsigned)request->tiling > VAE_TILING_ALWAYS) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tiling is %u", (unsigned)request->tiling);
    }
    enum status status = check_half(config, request, error);
    if (status == STATUS_OK) status = check_channels(config, request, error);
    if (status == STATUS_OK) status = check_sides(config, request, error);
    if (status == STATUS_OK) status = check_dtypes(request, error);
    return status;
}

// ---------------------------------------------------------------------------------------------
// Geometry

// Sides and channels of input and output; sides were checked, so nothing here overflows.
static void fill_sides(const struct vae_config *config, struct vae_plan *plan)
{
    const struct vae_request *request = &plan->request;
    uint32_t factor = network_factor(config);
    plan->output_n = request->n;
    plan->h = request->h;
    plan->w = request->w;
    if (request->direction == VAE_DECODE) {
        plan->output_h = request->h * factor;
        plan->output_w = request->w * factor;
        plan->output_c = config->image_channels;
        return;
    }
    plan->crop_y = request->h % factor / 2;
    plan->crop_x = request->w % factor / 2;
    plan->h -= request->h % factor;
    plan->w -= request->w % factor;
    plan->output_h = plan->h / factor;
    plan->output_w = plan->w / factor;
    plan->output_c = config->latent_channels;
}

static enum status fill_bytes(struct vae_plan *plan, struct error *error)
{
    const struct vae_request *request = &plan->request;
    const uint64_t input[5] = {request->n, request->h, request->w, request->c,
                               dtype_bytes(request->input_dtype)};
    const uint64_t output[5] = {plan->output_n, plan->output_h, plan->output_w, plan->output_c,
                                dtype_bytes(request->output_dtype)};
    if (checked_product(input, 5, &plan->input_bytes) &&
        checked_product(output, 5, &plan->output_bytes)) {
        return STATUS_OK;
    }
    return error_set(error, STATUS_INVALID_ARGUMENT, "a batch of %u times %u x %u is too large",
                     request->n, request->h, request->w);
}

static enum status lay_out(const struct vae_config *config, const struct vae_plan *plan,
                           struct tiling *out, struct error *error)
{
    const struct vae_request *request = &plan->request;
    bool decode = request->direction == VAE_DECODE;
    return tiling_lay_out(out,
                          &(struct tiling_options){.decode = decode,
                                                   .factor = network_factor(config),
                                                   .h = decode ? plan->h : plan->output_h,
                                                   .w = decode ? plan->w : plan->output_w,
                                                   .tile = request->tile,
                                                   .overlap = request->overlap,
                                                   .passes = request->passes},
                          error);
}

enum status vae_lay_out(const struct vae *self, const struct vae_plan *plan, struct tiling *out,
                        struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    return lay_out(&self->network.config, plan, out, error);
}

static enum status check_tiles(const struct vae_plan *plan, uint64_t tiles, struct error *error)
{
    if (tiles <= TILES_MAX / plan->request.n) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "%u images of %llu tiles are more than %u tiles in one request",
                     plan->request.n, (unsigned long long)tiles, TILES_MAX);
}

// ---------------------------------------------------------------------------------------------
// Peaks and the decision

static enum status measure(const struct vae *self, const struct vae_plan *plan,
                           const struct tiling *tiling, uint64_t *peak_bytes, struct error *error)
{
    struct program *program = NULL;
    struct job job = {.network = &self->network, .plan = plan, .tiling = tiling, .outline = true};
    enum status status = job_build(&program, &job, error);
    if (status != STATUS_OK) return status;
    *peak_bytes = program_peak_bytes(program);
    program_destroy(&program);
    return STATUS_OK;
}

static enum status plan_whole(const struct vae *self, struct vae_plan *plan, struct error *error)
{
    enum status status = check_tiles(plan, 1, error);
    if (status != STATUS_OK) return status;
    plan->tiled = false;
    plan->tiles = plan->request.n;
    return measure(self, plan, NULL, &plan->peak_bytes, error);
}

static enum status plan_tiled(const struct vae *self, struct vae_plan *plan,
                              const struct tiling *tiling, struct error *error)
{
    enum status status = check_tiles(plan, tiling->tiles, error);
    if (status != STATUS_OK) return status;
    plan->tiled = true;
    plan->tiles = plan->request.n * (uint32_t)tiling->tiles;
    return measure(self, plan, tiling, &plan->peak_bytes, error);
}

// Takes tile and overlap as they came out of the layout, so that plans say what is done.
static void settle(struct vae_plan *plan, const struct tiling *tiling, uint32_t factor)
{
    plan->request.tile = tiling->tile * factor;
    plan->request.overlap = tiling->overlap * factor;
    plan->request.passes = tiling->passes_count;
}

// Halves the tile until the job fits. tiling is the layout of the request as it came.
static enum status shrink(const struct vae *self, struct vae_plan *plan, struct tiling *tiling,
                          struct error *error)
{
    uint32_t factor = network_factor(&self->network.config);
    uint64_t whole_bytes = plan->peak_bytes;
    uint64_t bytes_max = plan->request.bytes_max;
    for (;;) {
        if (!tiling->whole) {
            enum status status = plan_tiled(self, plan, tiling, error);
            if (status != STATUS_OK) return status;
            if (plan->peak_bytes <= bytes_max) break;
        }
        uint32_t tile = plan->request.tile / 2;
        if (tile < TILE_MIN || tile / factor < 4) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "needs %llu MiB, %llu are free",
                             mebibytes_up(plan->peak_bytes), mebibytes_down(bytes_max));
        }
        plan->request.tile = tile;
        if (plan->request.overlap > tile / 4) plan->request.overlap = tile / 4;
        enum status status = lay_out(&self->network.config, plan, tiling, error);
        if (status != STATUS_OK) return status;
        settle(plan, tiling, factor);
    }
    snprintf(plan->tiled_why, sizeof plan->tiled_why, "whole needs %llu MiB of %llu",
             mebibytes_up(whole_bytes), mebibytes_down(bytes_max));
    return STATUS_OK;
}

static enum status decide(const struct vae *self, struct vae_plan *plan, struct error *error)
{
    enum vae_tiling mode = plan->request.tiling;
    struct tiling tiling;
    enum status status = lay_out(&self->network.config, plan, &tiling, error);
    if (status != STATUS_OK) return status;
    settle(plan, &tiling, network_factor(&self->network.config));
    if (mode == VAE_TILING_ALWAYS && !tiling.whole) {
        snprintf(plan->tiled_why, sizeof plan->tiled_why, "asked for");
        return plan_tiled(self, plan, &tiling, error);
    }
    status = plan_whole(self, plan, error);
    if (status != STATUS_OK || mode != VAE_TILING_AUTO) return status;
    uint64_t bytes_max = plan->request.bytes_max;
    if (bytes_max == 0 || plan->peak_bytes <= bytes_max) return STATUS_OK;
    return shrink(self, plan, &tiling, error);
}

enum status vae_plan(const struct vae *self, const struct vae_request *request,
                     struct vae_plan *out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    const struct vae_config *config = &self->network.config;
    enum status status = check_request(config, request, error);
    if (status != STATUS_OK) return status;
    struct vae_plan plan = {.request = *request};
    fill_sides(config, &plan);
    status = fill_bytes(&plan, error);
    if (status != STATUS_OK) return status;
    status = decide(self, &plan, error);
    if (status != STATUS_OK) return status;
    *out = plan;
    return STATUS_OK;
}
