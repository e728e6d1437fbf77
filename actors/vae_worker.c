// vae_worker.c - images to latents and back: one job in hand, one more in the mailbox.
//
// A job is planned whole first; when its arena is refused and the request lets the daemon tile, it
// is planned again within what the executor offered, and only then given back or refused.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "actors/event.h"
#include "actors/worker.h"
#include "base/checked.h"

struct vae_worker {
    struct worker_job *job;       // in hand; NULL when idle
    struct bytes input_bytes;     // of the job's tensor
    struct vae_request request;   // of the job
    struct vae_plan plan;         // of the request
    struct program *program;      // of the plan, while it runs
    struct worker_output output;  // where the answer goes
    struct vae_found found;       // by the program
    bool replanned;               // the plan was made for what the executor offered
};

static struct vae_worker *own(struct worker *worker)
{
    assert(worker->own != NULL);
    return worker->own;
}

static void drop_run(struct vae_worker *self)
{
    program_destroy(&self->program);
    worker_output_drop(&self->output);
}

static void end_job(struct worker *worker, const struct error *error)
{
    struct vae_worker *self = own(worker);
    drop_run(self);
    if (error != NULL) worker_fail(worker, self->job, error);
    self->job = NULL;
}

static enum vae_tiling tiling_of(luna_Tiling tiling, bool may_tile)
{
    if (tiling == luna_Tiling_TILING_ALWAYS) return VAE_TILING_ALWAYS;
    if (tiling == luna_Tiling_TILING_NEVER || !may_tile) return VAE_TILING_NEVER;
    return VAE_TILING_AUTO;
}

// Dims of the input as [n, ., ., .]; a latent may lack the first.
static enum status read_shape(const luna_Tensor *tensor, bool is_latent, uint32_t dims[4],
                              struct error *error)
{
    uint32_t missing = 4 - (uint32_t)tensor->dims_count;
    if (tensor->dims_count != 4 && !(is_latent && tensor->dims_count == 3)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s has %u dimensions, not %s",
                         tensor->name, (unsigned)tensor->dims_count, is_latent ? "4 or 3" : "4");
    }
    dims[0] = 1;
    for (uint32_t i = 0; i < tensor->dims_count; i++) {
        if (tensor->dims[i] > UINT32_MAX) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s has a dimension of %lu",
                             tensor->name, (unsigned long)tensor->dims[i]);
        }
        dims[missing + i] = (uint32_t)tensor->dims[i];
    }
    return STATUS_OK;
}

static enum status read_request(struct worker *worker, struct error *error)
{
    struct vae_worker *self = own(worker);
    struct worker_job *job = self->job;
    bool encode = job->header.operation == luna_Operation_ENCODE_IMAGE;
    const luna_Tensor *input = NULL;
    enum status status =
        worker_input(worker, job, encode ? "image" : "latent", &input, &self->input_bytes, error);
    if (status != STATUS_OK) return status;
    uint32_t dims[4];
    status = read_shape(input, !encode, dims, error);
    if (status != STATUS_OK) return status;
    // EncodeImage and DecodeLatent have the same fields; they are two messages for the reader's
    // sake.
    const luna_EncodeImage *image = &job->body.encode_image;
    const luna_DecodeLatent *latent = &job->body.decode_latent;
    self->request = (struct vae_request){
        .direction = encode ? VAE_ENCODE : VAE_DECODE,
        .n = dims[0],
        .h = encode ? dims[1] : dims[2],
        .w = encode ? dims[2] : dims[3],
        .c = encode ? dims[3] : dims[1],
        .input_dtype = (enum dtype)input->dtype,
        .output_dtype = (enum dtype)(encode ? image->output : latent->output),
        .tiling = tiling_of(encode ? image->tiling : latent->tiling, job->header.may_tile),
        .tile = encode ? image->tile : latent->tile,
        .overlap = encode ? image->overlap : latent->overlap,
        .passes = encode ? image->passes : latent->passes,
        .model = worker->arguments.model,
    };
    return STATUS_OK;
}

// The codec has checked images; how many pixels a latent has, only its model knows.
static enum status check_pixels(struct worker *worker, struct error *error)
{
    const struct vae_plan *plan = &own(worker)->plan;
    uint64_t pixels_max = worker->arguments.executor->config->limits.image_pixels_max;
    if (plan->request.direction == VAE_ENCODE) return STATUS_OK;
    uint64_t pixels = (uint64_t)plan->output_n * plan->output_h;
    if (checked_multiply(pixels, plan->output_w, &pixels) && pixels <= pixels_max) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "image has %lu pixels, at most %lu are taken",
                     (unsigned long)pixels, (unsigned long)pixels_max);
}

static void start_job(struct worker *worker)
{
    struct vae_worker *self = own(worker);
    struct error error;
    self->replanned = false;
    enum status status = read_request(worker, &error);
    if (status == STATUS_OK) {
        status = vae_plan(worker->arguments.loaded->vae, &self->request, &self->plan, &error);
    }
    if (status == STATUS_OK) status = check_pixels(worker, &error);
    if (status != STATUS_OK) {
        end_job(worker, &error);
        return;
    }
    if (self->plan.peak_bytes > worker->reserved_bytes)
        worker_reserve(worker, self->plan.peak_bytes);
    else
        worker->calls->granted(worker, true, worker->reserved_bytes, 0);
}

static void vae_work(struct worker *worker)
{
    struct vae_worker *self = own(worker);
    while (self->job == NULL) {
        self->job = worker_next(worker);
        if (self->job == NULL) {
            worker->busy = false;
            return;
        }
        start_job(worker);
    }
}

static void run_job(struct worker *worker)
{
    struct vae_worker *self = own(worker);
    struct error error;
    const char *name = self->request.direction == VAE_ENCODE ? "latent" : "image";
    if (!worker_take_arena(worker, self->plan.peak_bytes)) return;
    enum status status =
        vae_program(worker->arguments.loaded->vae, &self->plan, &self->program, &error);
    if (status == STATUS_OK) {
        status = worker_output_open(worker, self->job, name, self->plan.output_bytes, &self->output,
                                    &error);
    }
    if (status != STATUS_OK) {
        end_job(worker, &error);
        worker_idle(worker);
        return;
    }
    // The input is only read; the binding's type serves outputs too.
    void *bindings[VAE_SLOTS] = {[VAE_SLOT_INPUT] = (void *)(uintptr_t)self->input_bytes.data,
                                 [VAE_SLOT_OUTPUT] = self->output.data,
                                 [VAE_SLOT_FOUND] = &self->found};
    worker_run(worker, self->program, bindings, VAE_SLOTS);
}

// The arena was refused: smaller tiles if they are allowed, else not now, else never.
static void lack_memory(struct worker *worker, uint64_t offered, uint64_t capacity)
{
    struct vae_worker *self = own(worker);
    struct error error;
    drop_run(self);
    if (self->request.tiling == VAE_TILING_AUTO && !self->replanned && offered > 0) {
        struct vae_request smaller = self->request;
        smaller.bytes_max = offered;
        struct vae_plan plan;
        self->replanned = true;
        if (vae_plan(worker->arguments.loaded->vae, &smaller, &plan, NULL) == STATUS_OK) {
            self->plan = plan;
            worker_reserve(worker, plan.peak_bytes);
            return;
        }
    }
    if (self->plan.peak_bytes <= capacity) {
        uint64_t needs = self->plan.peak_bytes;
        worker_postpone(worker, self->job, needs);
        end_job(worker, NULL);
    } else {
        error_set(&error, STATUS_RESOURCE_EXHAUSTED,
                  "this needs %lu MiB of memory, device %s can give %lu MiB",
                  (unsigned long)(self->plan.peak_bytes >> 20), worker->arguments.device_name,
                  (unsigned long)(capacity >> 20));
        error.retry_after_ms = 1000;
        end_job(worker, &error);
    }
    worker_idle(worker);
}

static void vae_granted(struct worker *worker, bool granted, uint64_t bytes, uint64_t capacity)
{
    struct vae_worker *self = own(worker);
    if (self->job == NULL) return;
    if (self->job->cancelled) {
        struct error error;
        error_set(&error, STATUS_CANCELLED, "cancelled before it ran");
        end_job(worker, &error);
        worker_idle(worker);
        return;
    }
    if (granted)
        run_job(worker);
    else
        lack_memory(worker, bytes, capacity);
}

static void answer_job(struct worker *worker)
{
    struct vae_worker *self = own(worker);
    const struct vae_plan *plan = &self->plan;
    bool encode = self->request.direction == VAE_ENCODE;
    luna_ImageReply reply = luna_ImageReply_init_zero;
    reply.tiled = plan->tiled;
    text_set(reply.tiled_why, sizeof reply.tiled_why, plan->tiled_why);
    reply.tiles = plan->tiles;
    reply.not_finite_input = self->found.not_finite_input != 0;
    reply.not_finite_output = self->found.not_finite_output != 0;
    reply.queue_ms = self->job->queue_ms;
    reply.execute_ms = worker_execute_ms(worker, self->job);
    text_set(reply.device, sizeof reply.device, worker->arguments.device_name);

    luna_Tensor tensor = luna_Tensor_init_zero;
    text_set(tensor.name, sizeof tensor.name, encode ? "latent" : "image");
    tensor.dtype = (luna_Dtype)self->request.output_dtype;
    tensor.dims_count = 4;
    tensor.dims[0] = plan->output_n;
    tensor.dims[1] = encode ? plan->output_c : plan->output_h;
    tensor.dims[2] = encode ? plan->output_h : plan->output_w;
    tensor.dims[3] = encode ? plan->output_w : plan->output_c;

    struct worker_reply answer;
    struct error error;
    worker_reply_start(&answer, self->job);
    if (worker_output_add(&answer, &self->output, &tensor, &error) != STATUS_OK) {
        worker_reply_drop(&answer);
        end_job(worker, &error);
        return;
    }
    worker_answer(worker, &answer, luna_ImageReply_fields, &reply);
    end_job(worker, NULL);
}

static void vae_ran(struct worker *worker, const struct error *error)
{
    if (error->status == STATUS_OK)
        answer_job(worker);
    else
        end_job(worker, error);
    worker_idle(worker);
}

static enum status vae_worker_setup(struct worker *worker, struct error *error)
{
    assert(worker->arguments.loaded->vae != NULL);
    worker->own = calloc(1, sizeof(struct vae_worker));
    if (worker->own == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a worker");
    return STATUS_OK;
}

static void vae_worker_teardown(struct worker *worker)
{
    struct vae_worker *self = own(worker);
    drop_run(self);
    free(self);
}

static const struct worker_calls calls = {
    .group = luna_Group_VAE,
    .credit = 2,  // one runs, one is prefetched
    .create = vae_worker_setup,
    .destroy = vae_worker_teardown,
    .work = vae_work,
    .granted = vae_granted,
    .ran = vae_ran,
};

static enum status vae_worker_create(void **state, const struct actor_context *context,
                                     const void *arguments, struct error *error)
{
    return worker_create(state, &calls, context, arguments, error);
}

const struct actor_kind vae_worker_kind = {"vae_worker", vae_worker_create, worker_destroy,
                                           worker_drain};
