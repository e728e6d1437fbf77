// device_gpu.c - opening a GPU, and its class. Names are "cuda:0" or "emulated"; behind a further
// colon stands the storage type of a fast device, "cuda:0:f16", bf16 where it is not said.
//
// $LUNA_CUDA_CONVOLUTION says which kernel convolves 16-bit activations, $LUNA_CUDA_LINEARS which
// one multiplies the 16-bit operands of linears: "mma", which every card has and which is the
// default; "wgmma", for compute capability 9.0 alone, any other card is refused; or "auto", wgmma
// where the card has it and mma elsewhere, for a machine with both. Linears may also be
// "cublaslt", the vendor's library (driver_blas.h), and "own" is mma.

#include "kernels/cuda/device_gpu.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_loan.h"
#include "kernels/cuda/module.h"

uint64_t gpu_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                              uint32_t k)
{
    (void)device;
    (void)h;
    (void)w;
    return (uint64_t)n * k * sizeof(struct gpu_moments);
}

static void close_gpu(struct device *device)
{
    struct gpu_device *self = (struct gpu_device *)device;
    gpu_blas_close(&self->blas);
    gpu_close(&self->card);
    free(self);
}

static enum status read_memory(const struct device *device, struct device_memory *out,
                               struct error *error)
{
    const struct gpu_device *self = (const struct gpu_device *)device;
    struct gpu_memory memory;
    enum status status = gpu_read_memory(self->card, &memory, error);
    if (status != STATUS_OK) return status;
    *out = (struct device_memory){.total_bytes = memory.total_bytes,
                                  .free_bytes = memory.free_bytes,
                                  .used_bytes = memory.used_bytes};
    return STATUS_OK;
}

static enum status lend(struct device *device, uint64_t bytes, struct device_loan *out,
                        struct error *error)
{
    _Static_assert(GPU_HANDLE_BYTES == DEVICE_HANDLE_BYTES, "a handle is as long on both sides");
    const struct gpu_device *self = (const struct gpu_device *)device;
    struct device_loan loan = {.bytes = bytes};
    enum status status = gpu_lend(self->card, bytes, &loan.memory, loan.handle, error);
    if (status == STATUS_OK) *out = loan;
    return status;
}

static void take_back(struct device *device, const struct device_loan *loan)
{
    const struct gpu_device *self = (const struct gpu_device *)device;
    gpu_take_back(self->card, loan->memory, loan->bytes, loan->handle);
}

static const struct device_class gpu_class = {
    .name = "gpu",
    .statistics_bytes = gpu_statistics_bytes,
    .workspace_bytes = gpu_workspace_bytes,
    .holds_workspace = true,
    .weight_plan = gpu_weight_plan,
    .weight_create = gpu_weight_create,
    .weight_destroy = gpu_weight_destroy,
    .lane_create = gpu_lane_create,
    .lane_destroy = gpu_lane_destroy,
    .lane_grow = gpu_lane_grow,
    .lane_release = gpu_lane_release,
    .lane_run = gpu_lane_run,
    .lane_collect = gpu_lane_collect,
    .lane_cancel = gpu_lane_cancel,
    .lane_progress = gpu_lane_progress,
    .lane_marks = gpu_lane_marks,
    .lane_trace = gpu_lane_trace,
    .lane_times = gpu_lane_times,
    .lane_launches = gpu_lane_launches,
    .lane_graphs = gpu_lane_graphs,
    .memory = read_memory,
    .lend = lend,
    .take_back = take_back,
    .close = close_gpu,
};

// What a device's name says.
struct gpu_name {
    uint32_t number;       // of the card
    enum dtype fast_type;  // f16 or bf16
};

static enum status read_name(struct gpu_name *out, const char *name, struct error *error)
{
    struct gpu_name read = {.fast_type = DTYPE_BF16};
    const char *rest = name;
    bool good = gpu_driver_takes(name, &read.number, &rest);
    if (good && strcmp(rest, ":f16") == 0) {
        read.fast_type = DTYPE_F16;
    } else if (good && strcmp(rest, ":bf16") != 0) {
        good = *rest == '\0';
    }
    if (!good) return error_set(error, STATUS_NOT_FOUND, "there is no device \"%s\"", name);
    *out = read;
    return STATUS_OK;
}

// What a variable of the environment says about kernels: mma, wgmma or auto.
static enum status choose_wgmma(bool *out, const char *variable, const char *name,
                                const struct gpu_facts *facts, struct error *error)
{
    bool has_wgmma = strcmp(facts->capability, "9.0") == 0;
    bool is_wgmma = strcmp(name, "wgmma") == 0;
    bool is_auto = strcmp(name, "auto") == 0;
    if (!is_wgmma && !is_auto && strcmp(name, "mma") != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s is \"%s\", neither mma nor wgmma nor auto", variable, name);
    }
    if (is_wgmma && !has_wgmma) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s is wgmma, which needs compute capability 9.0: %s has %s", variable,
                         facts->label, facts->capability);
    }
    *out = is_wgmma || (is_auto && has_wgmma);
    return STATUS_OK;
}

static enum status choose_convolution(struct gpu_device *self, struct error *error)
{
    const char *name = getenv("LUNA_CUDA_CONVOLUTION");
    if (name == NULL) return STATUS_OK;
    return choose_wgmma(&self->has_wgmma, "LUNA_CUDA_CONVOLUTION", name, gpu_describe(self->card),
                        error);
}

static void fill_info(struct device_info *info, const char *name, const struct gpu_facts *facts)
{
    snprintf(info->name, sizeof info->name, "%s", name);
    snprintf(info->label, sizeof info->label, "%s", facts->label);
    snprintf(info->driver, sizeof info->driver, "%s", facts->driver);
    snprintf(info->uuid, sizeof info->uuid, "%s", facts->uuid);
    snprintf(info->capability, sizeof info->capability, "%s", facts->capability);
}

// A library that is not there is no reason not to work.
static void open_blas(struct gpu_device *self)
{
    char *note = self->base.info.note;
    struct error why;
    if (gpu_blas_open(&self->blas, self->card, &why) == STATUS_OK) {
        snprintf(note, sizeof self->base.info.note, "linears by %s", gpu_blas_name(self->blas));
    } else {
        snprintf(note, sizeof self->base.info.note, "linears by our own kernels: %.200s",
                 why.message);
    }
}

static enum status choose_linears(struct gpu_device *self, struct error *error)
{
    const char *name = getenv("LUNA_CUDA_LINEARS");
    if (name == NULL || strcmp(name, "own") == 0) return STATUS_OK;
    if (strcmp(name, "cublaslt") == 0) {
        open_blas(self);
        return STATUS_OK;
    }
    return choose_wgmma(&self->has_wgmma_linears, "LUNA_CUDA_LINEARS", name,
                        gpu_describe(self->card), error);
}

static enum status open_gpu(struct device **out, const struct device_options *options,
                            struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    struct gpu_name name = {.number = 0};
    enum status status = read_name(&name, options->name, error);
    if (status != STATUS_OK) return status;
    struct gpu_device *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    status = gpu_open(&self->card, name.number, error);
    if (status != STATUS_OK) goto done;
    status = choose_convolution(self, error);
    if (status != STATUS_OK) goto done;
    self->base.class = &gpu_class;
    self->storage = options->precision_fast ? name.fast_type : DTYPE_F32;
    const char *graphs = getenv("LUNA_CUDA_GRAPHS");
    self->has_no_graphs = graphs != NULL && strcmp(graphs, "0") == 0;
    self->base.info.activation_bytes = dtype_bytes(self->storage);
    fill_info(&self->base.info, options->name, gpu_describe(self->card));
    self->multiprocessors = gpu_describe(self->card)->multiprocessors;
    status = choose_linears(self, error);
    if (status != STATUS_OK) goto done;
    *out = &self->base;
    self = NULL;

done:
    if (self != NULL && self->card != NULL) gpu_close(&self->card);
    free(self);
    return status;
}

static enum status probe_gpus(struct device_probe *out, struct error *error)
{
    struct gpu_count found;
    enum status status = gpu_probe(&found, error);
    if (status != STATUS_OK) return status;
    *out = (struct device_probe){.count = found.count, .usable = found.usable};
    snprintf(out->driver, sizeof out->driver, "%s", found.driver);
    snprintf(out->refusal, sizeof out->refusal, "%s", found.refusal);
    return STATUS_OK;
}

__attribute__((visibility("default"))) const struct gpu_module *luna_gpu_module(void)
{
    static const struct gpu_module module = {.version = LUNA_VERSION,
                                             .operation_bytes = sizeof(struct operation),
                                             .device_bytes = sizeof(struct device_class),
                                             .open = open_gpu,
                                             .probe = probe_gpus};
    return &module;
}
