// device_gpu.h - the class of GPU devices: what its files share. One lane is one thread that
// enqueues on one stream.

#ifndef KERNELS_CUDA_DEVICE_GPU_H
#define KERNELS_CUDA_DEVICE_GPU_H

#include <pthread.h>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/driver_blas.h"
#include "kernels/cuda/launch.h"
#include "kernels/device.h"

struct gpu_device {
    struct device base;        // what every device has
    struct gpu_card *card;     // opened by the driver
    struct gpu_blas *blas;     // makes the products of linears; NULL: our own kernels do
    bool has_no_graphs;        // its lanes run plain launches alone: $LUNA_CUDA_GRAPHS is 0
    enum dtype storage;        // of activations: f32, or f16 and bf16 where precision is fast
    bool has_wgmma;            // convolutions of 16 bits run convolution_wgmma.cu
    bool has_wgmma_linears;    // and products of linears multiply_wgmma.cu
    uint32_t multiprocessors;  // of the card
};

// A weight in device memory: vectors as float32, tables and the matrices of a faithful device as
// the file has them, everything else as storage.
struct gpu_weight {
    struct weight base;                    // what every weight has
    void *data;                            // device memory
    enum dtype type;                       // of its elements
    uint32_t pitch;                        // elements from row to row of a matrix, a multiple of 8
    const struct gpu_blas_choice *choice;  // how it is multiplied; NULL: by our own kernels
};

// An operation that is being enqueued.
struct gpu_run {
    const struct gpu_device *device;    //
    struct gpu_stream *stream;          //
    uint8_t *arena;                     // device memory
    void *const *bindings;              // host memory, or a loan's
    const struct program *program;      //
    const struct operation *operation;  // of the program
};

static inline const struct gpu_weight *gpu_weight_of(const struct weight *weight)
{
    return (const struct gpu_weight *)weight;
}

// Device memory of a weight; NULL for a NULL weight.
static inline void *gpu_weight_data(const struct weight *weight)
{
    return weight == NULL ? NULL : gpu_weight_of(weight)->data;
}

// Device memory of a value of the arena; NULL for VALUE_NONE.
// Thread:    the lane's.
void *gpu_address(const struct gpu_run *run, const struct value *value);

// Memory of a value in a slot; NULL for VALUE_NONE.
// Thread:    the lane's.
void *gpu_host_address(const struct gpu_run *run, const struct value *value);

// Device memory of the operation's workspace from offset on.
// Thread:    the lane's.
void *gpu_workspace(const struct gpu_run *run, uint64_t offset);

// Bytes of arena that an operation needs for itself, and those of a convolution's statistics; as
// struct device_class has them.
// Thread:    any.
uint64_t gpu_workspace_bytes(const struct device *device, const struct operation *op);
uint64_t gpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k);
uint64_t gpu_convolution_bytes(const struct gpu_device *device, const struct convolution *op);
uint64_t gpu_linear_bytes(const struct gpu_device *device, const struct linear *op);
uint64_t gpu_simple_bytes(const struct operation *op);

// 16-bit parts of float32 activations that a matrix of this type is multiplied with; 1 where they
// serve as they are.
// Thread:    any.
uint32_t gpu_linear_parts(const struct gpu_device *device, enum dtype weight_type);

// What an operation does by the way for the one behind it, see ahead.c: a linear makes the layer
// norm of its output, and either splits it for a linear.
// Thread:    any.
bool gpu_makes_norm(const struct gpu_run *run, const struct operation *linear,
                    const struct operation *norm);
bool gpu_makes_split(const struct gpu_run *run, const struct operation *maker,
                     const struct operation *linear);

// The operation before or behind another one, marks left out; NULL: there is none.
// Thread:    any.
const struct operation *gpu_before(const struct gpu_run *run, const struct operation *operation);
const struct operation *gpu_behind(const struct gpu_run *run, const struct operation *operation);

// What a layer norm launches, with what it does for the linear behind it.
// Thread:    the lane's.
struct gpu_layer_norm gpu_norm_of(const struct gpu_run *run, const struct operation *norm);

// How the input of a linear is split, and where to in its workspace.
// Thread:    the lane's.
struct gpu_split gpu_linear_split(const struct gpu_run *run, const struct operation *linear);

// Each enqueues its operations.
// Thread:    the lane's.
void gpu_enqueue(const struct gpu_run *run);
void gpu_enqueue_convolution(const struct gpu_run *run);
void gpu_enqueue_linear(const struct gpu_run *run);
void gpu_enqueue_attention(const struct gpu_run *run);
void gpu_enqueue_simple(const struct gpu_run *run);

// See weight_plan, weight_create and weight_destroy of kernels.h.
uint64_t gpu_weight_plan(const struct device *device, const struct weight_source *source);
enum status gpu_weight_create(struct weight **out, struct device *device,
                              const struct weight_source *source, struct error *error);
void gpu_weight_destroy(struct weight *weight);

// As struct device_class has them.
enum status gpu_lane_create(struct lane **out, struct device *device, struct error *error);
void gpu_lane_destroy(struct lane *lane);
void gpu_lane_grow(struct lane *lane, uint64_t bytes);
void gpu_lane_release(struct lane *lane);
void gpu_lane_run(struct lane *lane, const struct program *program, void *const *bindings,
                  uint32_t bindings_count);
enum status gpu_lane_collect(struct lane *lane, struct error *error);
void gpu_lane_cancel(struct lane *lane);
uint64_t gpu_lane_progress(const struct lane *lane);
uint32_t gpu_lane_marks(const struct lane *lane);
enum status gpu_lane_trace(struct lane *lane, bool is_kept, struct error *error);
uint32_t gpu_lane_times(const struct lane *lane, uint64_t *out, uint32_t count);
uint32_t gpu_lane_launches(const struct lane *lane, struct lane_launch *out, uint32_t count);
struct lane_graphs gpu_lane_graphs(const struct lane *lane);

#endif  // KERNELS_CUDA_DEVICE_GPU_H
