// driver_emulated.h - what the two files of the emulated driver share.

#ifndef KERNELS_CUDA_DRIVER_EMULATED_H
#define KERNELS_CUDA_DRIVER_EMULATED_H

#include "kernels/cuda/driver.h"

// Counts bytes of the device that are about to be allocated beside the emulator's own memory.
// Errors:    RESOURCE_EXHAUSTED, also when a fault asks for it; UNAVAILABLE.
// Thread:    any that may wait.
enum status gpu_emulated_take(struct gpu_card *self, uint64_t bytes, struct error *error);

// Takes that back.
// Thread:    any.
void gpu_emulated_give(struct gpu_card *self, uint64_t bytes);

#endif  // KERNELS_CUDA_DRIVER_EMULATED_H
