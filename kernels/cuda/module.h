// module.h - how the program finds the devices that live in libraries of their own.
//
// libluna_cuda.so and libluna_emulated.so are opened at run time, so that the one binary starts on
// machines without a driver. Each exports the one function below under GPU_MODULE_SYMBOL. A library
// of another build is refused by its version and by the size of what both sides share.

#ifndef KERNELS_CUDA_MODULE_H
#define KERNELS_CUDA_MODULE_H

#include "kernels/device.h"

#define GPU_MODULE_SYMBOL "luna_gpu_module"

struct gpu_module {
    const char *version;       // LUNA_VERSION
    uint32_t operation_bytes;  // sizeof(struct operation)
    uint32_t device_bytes;     // sizeof(struct device_class)
    // As device_open, for the names of this module, and device_probe.
    enum status (*open)(struct device **out, const struct device_options *options,
                        struct error *error);
    enum status (*probe)(struct device_probe *out, struct error *error);
};

// What the library is.
// Thread:    any.
const struct gpu_module *luna_gpu_module(void);

#endif  // KERNELS_CUDA_MODULE_H
