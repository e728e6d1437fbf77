// enqueue_linear.c - a linear: operands, product, adapters, and what is done to the sums.
//
// The product is always sums in float32 in the workspace. On a fast device both operands are 16-bit
// already. On a faithful one the weight stays as the file has it: fp16 and bf16 weights are
// multiplied by activations that were split into two or three 16-bit parts, so that the weight
// streams once; float32 weights are multiplied in float32. Who makes the input may split it by the
// way (ahead.c).
//
// The product may leave its sums in addends, slices of the columns or the parts of the input; one
// launch adds them up and does the rest. Only where adapters come between are there two.
//
// Where the device has a library for products (driver_blas.h) it makes them, in blocks of at most
// GPU_BLAS_ROWS_MAX rows: an algorithm is good for a range of rows, and its workspace grows with
// them. It adds the bias, too, where the sums are not still in parts.

#include <assert.h>

#include "base/checked.h"
#include "kernels/cuda/device_gpu.h"

// Offsets in the workspace.
struct layout {
    uint64_t products;   // [addends, rows, k] sums
    uint64_t inner;      // [row_count, rank] of each adapter
    uint64_t operand;    // [parts, rows, pitch] 16-bit parts of the input
    uint64_t scales;     // [rows]
    uint64_t workspace;  // of the library, where it makes the product
    uint64_t bytes;      // of all
    uint32_t parts;      // 1 where the input serves as it is
    uint32_t slices;     // of the columns, where our own kernel multiplies 16-bit operands
    uint32_t addends;    // of each sum
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

// The parts of a library's sums are apart; the slices of ours, where the card has room for more
// blocks than there are tiles.
static void count_addends(struct layout *layout, const struct gpu_device *device,
                          const struct linear *op)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    layout->parts = gpu_linear_parts(device, weight->type);
    layout->slices = 1;
    layout->addends = 1;
    if (weight->choice != NULL) {
        layout->addends = layout->parts;
    } else if (weight->type != DTYPE_F32) {
        layout->slices = gpu_product_slices(op->k, op->c);
        bool is_apart = gpu_product_tiles(op->rows, op->k) < device->multiprocessors;
        if (is_apart) layout->addends = layout->slices;
    }
}

static struct layout layout_of(const struct gpu_device *device, const struct linear *op)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    struct layout layout;
    count_addends(&layout, device, op);
    uint64_t at = 0;
    layout.products = take(&at, (uint64_t)layout.addends * op->rows * op->k * sizeof(float));
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

struct gpu_split gpu_linear_split(const struct gpu_run *run, const struct operation *operation)
{
    const struct linear *op = &operation->linear;
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    struct layout layout = layout_of(run->device, op);
    uint8_t *workspace = run->arena + operation->workspace.offset;
    assert(layout.parts > 1);
    return (struct gpu_split){.input = gpu_address(run, &op->input),
                              .parts = workspace + layout.operand,
                              .scales = (float *)(void *)(workspace + layout.scales),
                              .rows = op->rows,
                              .c = op->c,
                              .pitch = weight->pitch,
                              .is_bf16 = weight->type == DTYPE_BF16};
}

// Rows of the (maybe split) input in blocks.
static void enqueue_library(const struct gpu_run *run, const struct linear *op,
                            const struct layout *layout, const struct gpu_product_mma *whole)
{
    const struct gpu_weight *weight = gpu_weight_of(op->weight);
    uint64_t a_bytes = (uint64_t)whole->a_pitch * dtype_bytes(weight->type);
    uint32_t rows = layout->parts * op->rows;
    struct gpu_blas_product block = {.choice = weight->choice,
                                     .b = whole->b,
                                     .workspace = gpu_workspace(run, layout->workspace)};
    if (layout->parts == 1) block.bias = gpu_weight_data(op->bias);
    for (uint32_t row = 0; row < rows; row += block.m) {
        uint32_t left = rows - row;
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
                                      .parts = layout->parts,
                                      .slices = layout->slices,
                                      .is_apart = layout->addends > 1,
                                      .is_bf16 = weight->type == DTYPE_BF16};
    if (layout->parts > 1) {
        struct gpu_split split = gpu_linear_split(run, run->operation);
        if (!gpu_makes_split(run, gpu_before(run, run->operation), run->operation)) {
            gpu_launch_split(run->stream, &split);
        }
        product.a = split.parts;
        product.a_pitch = split.pitch;
    }
    if (weight->choice != NULL) {
        enqueue_library(run, op, layout, &product);
    } else if (run->device->has_wgmma_linears) {
        gpu_launch_multiply_wgmma(run->stream, &product);
    } else {
        gpu_launch_multiply_mma(run->stream, &product);
    }
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
    bool has_bias = layout.parts == 1 && gpu_weight_of(op->weight)->choice != NULL;
    struct gpu_finish finish = {.sums = sums,
                                .scales =
                                    layout.parts > 1 ? gpu_workspace(run, layout.scales) : NULL,
                                .bias = has_bias ? NULL : gpu_weight_data(op->bias),
                                .output = sums,
                                .addends = layout.addends,
                                .rows = op->rows,
                                .k = op->k,
                                .storage = DTYPE_F32};
    enqueue_products(run, op, &layout);
    if (op->low_rank_count > 0) {
        gpu_launch_finish_linear(run->stream, &finish);
        enqueue_paths(run, op, &layout);
        finish.scales = NULL;
        finish.bias = NULL;
        finish.addends = 1;
    }
    finish.activation = activation_of(op->activation);
    finish.residual = gpu_address(run, &op->residual);
    finish.output = gpu_address(run, &op->output);
    finish.storage = run->device->storage;
    const struct operation *behind = gpu_behind(run, run->operation);
    if (gpu_makes_norm(run, run->operation, behind)) {
        finish.norm = gpu_norm_of(run, behind);
    } else if (gpu_makes_split(run, run->operation, behind)) {
        finish.next = gpu_linear_split(run, behind);
    }
    gpu_launch_finish_linear(run->stream, &finish);
}
