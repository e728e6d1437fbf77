// driver_loan.h - memory of the device that another process may map. Part of driver.h, implemented
// beside it: driver_cuda_loan.c by CUDA IPC, driver_emulated_loan.cpp by memory that has no name.

#ifndef KERNELS_CUDA_DRIVER_LOAN_H
#define KERNELS_CUDA_DRIVER_LOAN_H

#include "kernels/cuda/driver.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_HANDLE_BYTES 64u  // a cudaIpcMemHandle_t

// Allocates zeroed memory, counted as gpu_allocate counts, that is a block of its own, and makes
// the handle by which another process opens it.
// Ownership: the caller ends it with gpu_take_back.
// Errors:    UNIMPLEMENTED where the system has no such handles; RESOURCE_EXHAUSTED; UNAVAILABLE
//            when the device is broken.
// Thread:    any that may wait for some ms.
enum status gpu_lend(struct gpu_card *self, uint64_t bytes, void **memory,
                     uint8_t handle[GPU_HANDLE_BYTES], struct error *error);

// Frees what gpu_lend gave; nothing that runs uses it.
// Thread:    any.
void gpu_take_back(struct gpu_card *self, void *memory, uint64_t bytes,
                   const uint8_t handle[GPU_HANDLE_BYTES]);

#ifdef __cplusplus
}
#endif

#endif  // KERNELS_CUDA_DRIVER_LOAN_H
