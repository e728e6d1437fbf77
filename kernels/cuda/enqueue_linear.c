// enqueue_linear.c - a linear: operands, product, adapters, and what is done to the sums.
//
// The product is always sums in float32 in the workspace. On a fast device both operands are 16-bit
// already. On a faithful one the weight stays as the file has it: fp16 and bf16 weights are
// multiplied by activations that were split into two or three 16-bit parts, stacked as rows, so
// that the weight streams once; float32 weights are multiplied in float32.
//
// Where the device has a library for products (driver_blas.h) it makes them, in blocks of at most
// GPU_BLAS_ROWS_MAX rows: an algorithm is good for a range of rows, and its workspace grows with
// them. It adds the bias, too, where the sums are not still in parts.

#include <assert.h>

#include "base/checked.h"
#include "kernels/cuda/device_gpu.h"

// Offsets in the workspace.
struct layout {
    uint64_t products;   // [parts, rows, k] sums
    uint64_t inner;      // [row_count, rank] of each adapter
    uint64_t operand;    // [parts, rows, pitch] 16-bit parts of the input
    uint64_t scales;     // [rows]
    uint64_t workspace;  // of the library, where it makes the product
    uint64_t bytes;      // of all
    uint32_t parts;      // 1 where the input serves as it is
};

uint32_t gpu_linear_parts(const struct gpu_device *device, enum dtype weight_type)
{
    if (device->storage != DTYPE_F32 || weight_type == DTYPE_F32) return 1;
    return weight_type == DTYPE_F16 ? 2 : 3;
}

// Moves on by bytes, rounded up, and returns where they begin.
static uint64_t take(uint64_t *at, uint64_t bytes)
{
    uint64_t begin = *at;
    *at += round_up(bytes, ARENA_ALIGNMENT);
    return begin;
}

static struct layout layout_of(const struct gpu_device *device, const struct linear *op)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    struct layout layout = {.parts = gpu_linear_parts(device, weight->type)};
    uint64_t at = 0;
    layout.products = take(&at, (uint64_t)layout.parts * op->rows * op->k * sizeof(float));
    layout.inner = at;
    for (uint32_t i = 0; i < op->low_rank_count; i++) {
        const struct low_rank *path = &op->low_rank[i];
        take(&at, (uint64_t)path->row_count * path->rank * sizeof(float));
    }
    if (layout.parts > 1) {
        layout.operand = take(&at, (uint64_t)layout.parts * op->rows * weight->pitch * 2);
        layout.scales = take(&at, op->rows * sizeof(float));
    }
    if (weight->choice != NULL) layout.workspace = take(&at, GPU_BLAS_WORKSPACE_BYTES);
    layout.bytes = at;
    return layout;
}

uint64_t gpu_linear_bytes(const struct gpu_device *device, const struct linear *op)
{
    assert(op != NULL);
    return layout_of(device, op).bytes;
}

static void enqueue_split(const struct gpu_run *run, const struct linear *op,
                          const struct layout *layout, struct gpu_product_mma *product)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    void *parts = gpu_workspace(run, layout->operand);
    gpu_launch_split(run->stream, &(struct gpu_split){.input = gpu_address(run, &op->input),
                                                      .parts = parts,
                                                      .scales = gpu_workspace(run, layout->scales),
                                                      .rows = op->rows,
                                                      .c = op->c,
                                                      .pitch = weight->pitch,
                                                      .is_bf16 = product->is_bf16});
    product->a = parts;
    product->m = layout->parts * op->rows;
    product->a_pitch = weight->pitch;
}

// Rows of the (maybe split) input in blocks.
static void enqueue_library(const struct gpu_run *run, const struct linear *op,
                            const struct layout *layout, const struct gpu_product_mma *whole)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    uint64_t a_bytes = (uint64_t)whole->a_pitch * dtype_bytes(weight->type);
    struct gpu_blas_product block = {.choice = weight->choice,
                                     .b = whole->b,
                                     .workspace = gpu_workspace(run, layout->workspace)};
    if (layout->parts == 1) block.bias = gpu_weight_data(op->bias);
    for (uint32_t row = 0; row < whole->m; row += block.m) {
        uint32_t left = whole->m - row;
        block.m = left < GPU_BLAS_ROWS_MAX ? left : GPU_BLAS_ROWS_MAX;
        block.a = (const uint8_t *)whole->a + row * a_bytes;
        block.c = whole->c + (uint64_t)row * whole->n;
        gpu_blas_multiply(run->device->blas, run->stream, &block);
    }
}

static void enqueue_products(const struct gpu_run *run, const struct linear *op,
                             const struct layout *layout)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    float *sums = gpu_workspace(run, layout->products);
    if (weight->type == DTYPE_F32 && weight->choice == NULL) {
        gpu_launch_multiply_plain(run->stream,
                                  &(struct gpu_product_plain){.a = gpu_address(run, &op->input),
                                                              .b = weight->data,
                                                              .c = sums,
                                                              .m = op->rows,
                                                              .n = op->k,
                                                              .k = op->c,
                                                              .b_pitch = weight->pitch});
        return;
    }
    struct gpu_product_mma product = {.a = gpu_address(run, &op->input),
                                      .b = weight->data,
                                      .c = sums,
                                      .m = op->rows,
                                      .n = op->k,
                                      .k = op->c,
                                      .a_pitch = op->c,
                                      .b_pitch = weight->pitch,
                                      .is_bf16 = weight->type == DTYPE_BF16};
    if (layout->parts > 1) enqueue_split(run, op, layout, &product);
    if (weight->choice != NULL) {
        enqueue_library(run, op, layout, &product);
    } else {
        gpu_launch_multiply_mma(run->stream, &product);
    }
}

// Whether what is in the sums lacks something: parts, or a bias that nobody added.
static bool needs_join(const struct linear *op, const struct layout *layout)
{
    return layout->parts > 1 || (op->bias != NULL && gpu_weight_of(op->weight)->choice == NULL);
}

static struct gpu_path path_of(const struct low_rank *path, float *inner)
{
    const struct gpu_weight *down = gpu_weight_of(path->down);
    const struct gpu_weight *up = gpu_weight_of(path->up);
    return (struct gpu_path){.down = down->data,
                             .up = up->data,
                             .inner = inner,
                             .down_type = down->type,
                             .up_type = up->type,
                             .down_pitch = down->pitch,
                             .up_pitch = up->pitch,
                             .row_begin = path->row_begin,
                             .row_count = path->row_count,
                             .column_begin = path->column_begin,
                             .column_count = path->column_count,
                             .rank = path->rank,
                             .scale = path->scale};
}

// Adapters in groups of one launch each.
static void enqueue_paths(const struct gpu_run *run, const struct linear *op,
                          const struct layout *layout)
{
    uint64_t inner = layout->inner;
    for (uint32_t first = 0; first < op->low_rank_count; first += GPU_PATHS_MAX) {
        struct gpu_linear_paths paths = {
            .input = gpu_address(run, &op->input), .c = op->c, .storage = run->device->storage};
        for (uint32_t i = first; i < op->low_rank_count && paths.count < GPU_PATHS_MAX; i++) {
            const struct low_rank *path = &op->low_rank[i];
            uint64_t bytes = (uint64_t)path->row_count * path->rank * sizeof(float);
            paths.paths[paths.count++] = path_of(path, gpu_workspace(run, take(&inner, bytes)));
        }
        gpu_launch_low_rank_down(run->stream, &paths);
        gpu_launch_low_rank_up(run->stream, &paths, gpu_workspace(run, layout->products), op->k);
    }
}

static enum gpu_activation activation_of(enum activation activation)
{
    if (activation == ACTIVATION_QUICK_GELU) return GPU_ACTIVATION_QUICK_GELU;
    return activation == ACTIVATION_GELU ? GPU_ACTIVATION_GELU : GPU_ACTIVATION_NONE;
}

void gpu_enqueue_linear(const struct gpu_run *run)
{
    const struct linear *op = &run->operation->linear;
    struct layout layout = layout_of(run->device, op);
    float *sums = gpu_workspace(run, layout.products);
    enqueue_products(run, op, &layout);
    if (needs_join(op, &layout)) {
        float *scales = layout.parts > 1 ? gpu_workspace(run, layout.scales) : NULL;
        gpu_launch_join_parts(run->stream, &(struct gpu_join){.products = sums,
                                                              .scales = scales,
                                                              .bias = gpu_weight_data(op->bias),
                                                              .parts = layout.parts,
                                                              .rows = op->rows,
                                                              .k = op->k});
    }
    enqueue_paths(run, op, &layout);
    gpu_launch_finish_linear(run->stream,
                             &(struct gpu_finish){.sums = sums,
                                                  .residual = gpu_address(run, &op->residual),
                                                  .output = gpu_address(run, &op->output),
                                                  .count = (uint64_t)op->rows * op->k,
                                                  .activation = activation_of(op->activation),
                                                  .storage = run->device->storage});
}
