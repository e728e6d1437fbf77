// enqueue.c - operations on rows and images become launches; slots are copied to the operation's
// workspace first, or from it at the end, because kernels see device memory alone.

#include <assert.h>
#include <math.h>

#include "base/checked.h"
#include "kernels/cuda/device_gpu.h"
#include "kernels/operation.h"

void *gpu_address(const struct gpu_run *run, const struct value *value)
{
    if (value->place == VALUE_NONE) return NULL;
    assert(value->place == VALUE_ARENA);
    return run->arena + value->offset;
}

void *gpu_host_address(const struct gpu_run *run, const struct value *value)
{
    if (value->place == VALUE_NONE) return NULL;
    assert(value->place == VALUE_SLOT);
    return (uint8_t *)run->bindings[value->slot] + value->offset;
}

void *gpu_workspace(const struct gpu_run *run, uint64_t offset)
{
    assert(offset <= run->operation->workspace.bytes);
    return run->arena + run->operation->workspace.offset + offset;
}

static struct gpu_plane line_of(uint64_t bytes)
{
    return (struct gpu_plane){.width = bytes, .rows = 1};
}

// ---------------------------------------------------------------------------------------------
// Text

// Vectors lie behind the ids.
static uint64_t vectors_offset(const struct embedding *op)
{
    return round_up((uint64_t)op->rows * sizeof(int32_t), ARENA_ALIGNMENT);
}

static void enqueue_embedding(const struct gpu_run *run, const struct embedding *op)
{
    int32_t *ids = gpu_workspace(run, 0);
    float *vectors = NULL;
    gpu_copy_in(run->stream, ids, gpu_host_address(run, &op->ids),
                line_of((uint64_t)op->rows * sizeof *ids));
    if (op->vectors_count > 0) {
        vectors = gpu_workspace(run, vectors_offset(op));
        gpu_copy_in(run->stream, vectors, gpu_host_address(run, &op->vectors),
                    line_of((uint64_t)op->vectors_count * op->width * sizeof *vectors));
    }
    gpu_launch_embedding(run->stream, &(struct gpu_embedding){
                                          .ids = ids,
                                          .vectors = vectors,
                                          .table = gpu_weight_data(op->table),
                                          .positions = gpu_weight_data(op->positions),
                                          .output = gpu_address(run, &op->output),
                                          .rows = op->rows,
                                          .tokens = op->tokens,
                                          .width = op->width,
                                          .table_type = gpu_weight_of(op->table)->type,
                                          .positions_type = gpu_weight_of(op->positions)->type,
                                          .storage = run->device->storage,
                                      });
}

static void enqueue_gather(const struct gpu_run *run, const struct gather *op)
{
    int32_t *indices = gpu_workspace(run, 0);
    gpu_copy_in(run->stream, indices, gpu_host_address(run, &op->indices),
                line_of((uint64_t)op->count * sizeof *indices));
    gpu_launch_gather(run->stream, &(struct gpu_gather){.input = gpu_address(run, &op->input),
                                                        .indices = indices,
                                                        .output = gpu_address(run, &op->output),
                                                        .count = op->count,
                                                        .width = op->width,
                                                        .storage = run->device->storage});
}

struct gpu_layer_norm gpu_norm_of(const struct gpu_run *run, const struct operation *norm)
{
    const struct layer_norm *op = &norm->layer_norm;
    const struct operation *behind = gpu_behind(run, norm);
    struct gpu_layer_norm made = {.input = gpu_address(run, &op->input),
                                  .output = gpu_address(run, &op->output),
                                  .gamma = gpu_weight_data(op->gamma),
                                  .beta = gpu_weight_data(op->beta),
                                  .rows = op->rows,
                                  .width = op->width,
                                  .epsilon = op->epsilon,
                                  .storage = run->device->storage};
    if (gpu_makes_split(run, norm, behind)) made.next = gpu_linear_split(run, behind);
    return made;
}

static void enqueue_layer_norm(const struct gpu_run *run)
{
    if (gpu_makes_norm(run, gpu_before(run, run->operation), run->operation)) return;
    struct gpu_layer_norm norm = gpu_norm_of(run, run->operation);
    gpu_launch_layer_norm(run->stream, &norm);
}

// ---------------------------------------------------------------------------------------------
// Images

static void enqueue_pixels_load(const struct gpu_run *run, const struct pixels_load *op)
{
    const struct window *window = &op->window;
    uint64_t row = (uint64_t)window->full_w * op->channels * dtype_bytes(op->dtype);
    const uint8_t *source = gpu_host_address(run, &op->source);
    void *staged = gpu_workspace(run, 0);
    gpu_copy_in(run->stream, staged, source + window->y * row, line_of(window->h * row));
    gpu_launch_load_pixels(run->stream,
                           &(struct gpu_load){.source = staged,
                                              .output = gpu_address(run, &op->output),
                                              .channels = op->channels,
                                              .full_w = window->full_w,
                                              .x = window->x,
                                              .h = window->h,
                                              .w = window->w,
                                              .source_type = op->dtype,
                                              .storage = run->device->storage,
                                              .not_finite = gpu_address(run, &op->not_finite)});
}

static void enqueue_latent_load(const struct gpu_run *run, const struct latent_load *op)
{
    const struct window *window = &op->window;
    uint64_t row = (uint64_t)window->full_w * dtype_bytes(op->dtype);
    const uint8_t *source = gpu_host_address(run, &op->source);
    void *staged = gpu_workspace(run, 0);
    gpu_copy_in(run->stream, staged, source + window->y * row,
                (struct gpu_plane){.width = window->h * row,
                                   .rows = op->channels,
                                   .to_pitch = window->h * row,
                                   .from_pitch = window->full_h * row});
    gpu_launch_load_latent(run->stream,
                           &(struct gpu_load){.source = staged,
                                              .output = gpu_address(run, &op->output),
                                              .channels = op->channels,
                                              .full_w = window->full_w,
                                              .x = window->x,
                                              .h = window->h,
                                              .w = window->w,
                                              .source_type = op->dtype,
                                              .storage = run->device->storage,
                                              .not_finite = gpu_address(run, &op->not_finite)});
}

static void enqueue_pixels_store(const struct gpu_run *run, const struct pixels_store *op)
{
    void *staged = gpu_workspace(run, 0);
    gpu_launch_store_pixels(
        run->stream,
        &(struct gpu_store){.input = gpu_address(run, &op->input),
                            .output = staged,
                            .h = op->h,
                            .w = op->w,
                            .channels = 3,
                            .stride = 3,
                            .clamp = op->clamp,
                            .input_type = op->input_f32 ? DTYPE_F32 : run->device->storage,
                            .output_type = op->dtype,
                            .limit = op->clamp ? INFINITY : operation_limit(op->dtype),
                            .not_finite = gpu_address(run, &op->not_finite)});
    gpu_copy_out(run->stream, gpu_host_address(run, &op->output), staged,
                 line_of(3ull * op->h * op->w * dtype_bytes(op->dtype)));
}

static void enqueue_latent_store(const struct gpu_run *run, const struct latent_store *op)
{
    void *staged = gpu_workspace(run, 0);
    gpu_launch_store_latent(
        run->stream,
        &(struct gpu_store){.input = gpu_address(run, &op->input),
                            .output = staged,
                            .h = op->h,
                            .w = op->w,
                            .channels = op->channels,
                            .stride = op->stride,
                            .input_type = op->input_f32 ? DTYPE_F32 : run->device->storage,
                            .output_type = op->dtype,
                            .limit = operation_limit(op->dtype),
                            .not_finite = gpu_address(run, &op->not_finite)});
    gpu_copy_out(run->stream, gpu_host_address(run, &op->output), staged,
                 line_of((uint64_t)op->channels * op->h * op->w * dtype_bytes(op->dtype)));
}

static void enqueue_words_store(const struct gpu_run *run, const struct words_store *op)
{
    gpu_copy_out(run->stream, gpu_host_address(run, &op->output), gpu_address(run, &op->input),
                 line_of((uint64_t)op->count * sizeof(uint32_t)));
}

static void enqueue_store(const struct gpu_run *run, const struct store *op)
{
    const void *from = gpu_address(run, &op->input);
    if (run->device->storage != DTYPE_F32) {
        float *staged = gpu_workspace(run, 0);
        gpu_launch_widen(run->stream, &(struct gpu_widen){.input = from,
                                                          .output = staged,
                                                          .count = op->count,
                                                          .storage = run->device->storage});
        from = staged;
    }
    gpu_copy_out(run->stream, gpu_host_address(run, &op->output), from,
                 line_of(op->count * sizeof(float)));
}

static void enqueue_blend(const struct gpu_run *run, const struct blend *op)
{
    gpu_launch_blend(run->stream, &(struct gpu_blend){.tile = gpu_address(run, &op->tile),
                                                      .sum = gpu_address(run, &op->sum),
                                                      .weight = gpu_address(run, &op->weight),
                                                      .channels = op->channels,
                                                      .stride = op->stride,
                                                      .full_w = op->window.full_w,
                                                      .y = op->window.y,
                                                      .x = op->window.x,
                                                      .h = op->window.h,
                                                      .w = op->window.w,
                                                      .feather = op->feather,
                                                      .storage = run->device->storage});
}

static void enqueue_blend_end(const struct gpu_run *run, const struct blend_end *op)
{
    gpu_launch_blend_end(run->stream,
                         &(struct gpu_blend_end){.sum = gpu_address(run, &op->sum),
                                                 .weight = gpu_address(run, &op->weight),
                                                 .total = gpu_address(run, &op->total),
                                                 .pixels = (uint64_t)op->full_h * op->full_w,
                                                 .channels = op->channels,
                                                 .pass = op->pass,
                                                 .passes = op->passes});
}

// ---------------------------------------------------------------------------------------------
// Attention

static bool is_aligned(const struct value *value, uint32_t stride)
{
    return stride % 8 == 0 && value->offset % 16 == 0;
}

// The arena begins at a multiple of 256, so offsets tell the alignment.
static bool takes_mma(const struct gpu_device *device, const struct attention *op)
{
    bool is_narrow = op->head_width % 8 == 0 && op->head_width <= GPU_MMA_HEAD_MAX;
    return device->storage != DTYPE_F32 && is_narrow && is_aligned(&op->q, op->q_stride) &&
           is_aligned(&op->k, op->k_stride) && is_aligned(&op->v, op->v_stride) &&
           is_aligned(&op->output, op->heads * op->head_width);
}

static bool is_short(const struct gpu_device *device, const struct attention *op)
{
    return device->storage == DTYPE_F32 && op->tokens <= GPU_SHORT_TOKENS_MAX &&
           op->head_width <= GPU_SHORT_HEAD_MAX;
}

void gpu_enqueue_attention(const struct gpu_run *run)
{
    const struct attention *op = &run->operation->attention;
    struct gpu_attention arguments = {.q = gpu_address(run, &op->q),
                                      .k = gpu_address(run, &op->k),
                                      .v = gpu_address(run, &op->v),
                                      .output = gpu_address(run, &op->output),
                                      .q_stride = op->q_stride,
                                      .k_stride = op->k_stride,
                                      .v_stride = op->v_stride,
                                      .batch = op->batch,
                                      .tokens = op->tokens,
                                      .heads = op->heads,
                                      .head_width = op->head_width,
                                      .scale = op->scale,
                                      .causal = op->causal,
                                      .storage = run->device->storage};
    if (takes_mma(run->device, op)) {
        gpu_launch_attention_mma(run->stream, &arguments);
    } else if (is_short(run->device, op)) {
        gpu_launch_attention_short(run->stream, &arguments);
    } else {
        gpu_launch_attention_plain(run->stream, &arguments);
    }
}

// ---------------------------------------------------------------------------------------------
// All of them

uint64_t gpu_simple_bytes(const struct operation *op)
{
    const struct window *window = &op->pixels_load.window;
    switch ((int)op->kind) {
    case OPERATION_EMBEDDING:
        return vectors_offset(&op->embedding) +
               (uint64_t)op->embedding.vectors_count * op->embedding.width * sizeof(float);
    case OPERATION_GATHER:
        return (uint64_t)op->gather.count * sizeof(int32_t);
    case OPERATION_PIXELS_LOAD:
        return (uint64_t)window->h * window->full_w * op->pixels_load.channels *
               dtype_bytes(op->pixels_load.dtype);
    case OPERATION_LATENT_LOAD:
        window = &op->latent_load.window;
        return (uint64_t)window->h * window->full_w * op->latent_load.channels *
               dtype_bytes(op->latent_load.dtype);
    case OPERATION_PIXELS_STORE:  // bytes are written four at a time
        return round_up(3ull * op->pixels_store.h * op->pixels_store.w, 4) *
               dtype_bytes(op->pixels_store.dtype);
    case OPERATION_LATENT_STORE:
        return (uint64_t)op->latent_store.channels * op->latent_store.h * op->latent_store.w *
               dtype_bytes(op->latent_store.dtype);
    default:
        return 0;
    }
}

uint64_t gpu_workspace_bytes(const struct device *device, const struct operation *op)
{
    const struct gpu_device *self = (const struct gpu_device *)device;
    if (op->kind == OPERATION_CONVOLUTION) return gpu_convolution_bytes(self, &op->convolution);
    if (op->kind == OPERATION_LINEAR) return gpu_linear_bytes(self, &op->linear);
    if (op->kind == OPERATION_STORE && self->storage != DTYPE_F32) {
        return op->store.count * sizeof(float);
    }
    return gpu_simple_bytes(op);
}

void gpu_enqueue_simple(const struct gpu_run *run)
{
    const struct operation *op = run->operation;
    switch ((int)op->kind) {
    case OPERATION_LAYER_NORM:
        enqueue_layer_norm(run);
        break;
    case OPERATION_EMBEDDING:
        enqueue_embedding(run, &op->embedding);
        break;
    case OPERATION_GATHER:
        enqueue_gather(run, &op->gather);
        break;
    case OPERATION_STORE:
        enqueue_store(run, &op->store);
        break;
    case OPERATION_PIXELS_LOAD:
        enqueue_pixels_load(run, &op->pixels_load);
        break;
    case OPERATION_PIXELS_STORE:
        enqueue_pixels_store(run, &op->pixels_store);
        break;
    case OPERATION_LATENT_LOAD:
        enqueue_latent_load(run, &op->latent_load);
        break;
    case OPERATION_LATENT_STORE:
        enqueue_latent_store(run, &op->latent_store);
        break;
    case OPERATION_WORDS_STORE:
        enqueue_words_store(run, &op->words_store);
        break;
    case OPERATION_CLEAR:
        gpu_zero(run->stream, gpu_address(run, &op->clear.output), op->clear.bytes);
        break;
    case OPERATION_BLEND:
        enqueue_blend(run, &op->blend);
        break;
    case OPERATION_BLEND_END:
        enqueue_blend_end(run, &op->blend_end);
        break;
    default:
        assert(op->kind == OPERATION_MARK);  // counted when the step has ended
    }
}

void gpu_enqueue(const struct gpu_run *run)
{
    assert(run != NULL);
    assert(run->operation != NULL);
    if (run->operation->kind == OPERATION_CONVOLUTION) {
        gpu_enqueue_convolution(run);
    } else if (run->operation->kind == OPERATION_LINEAR) {
        gpu_enqueue_linear(run);
    } else if (run->operation->kind == OPERATION_ATTENTION) {
        gpu_enqueue_attention(run);
    } else {
        gpu_enqueue_simple(run);
    }
}
