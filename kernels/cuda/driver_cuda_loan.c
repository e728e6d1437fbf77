// driver_cuda_loan.c - driver_loan.h by CUDA IPC.
//
// A loan is one cudaMalloc of whole mapping units, so that the other process, which maps the whole
// block, sees nothing else. It is zeroed, because what lay there before was somebody's picture.

#include <assert.h>
#include <string.h>

#include "kernels/cuda/driver_cuda.h"
#include "kernels/cuda/driver_loan.h"

_Static_assert(sizeof(cudaIpcMemHandle_t) == GPU_HANDLE_BYTES, "a handle is as long as we say");

enum status gpu_lend(struct gpu_card *self, uint64_t bytes, void **memory,
                     uint8_t handle[GPU_HANDLE_BYTES], struct error *error)
{
    assert(self != NULL);
    assert(memory != NULL);
    void *lent = NULL;
    cudaIpcMemHandle_t made;
    enum status status = gpu_allocate(self, bytes, &lent, error);
    if (status != STATUS_OK) return status;
    cudaError_t result = cudaIpcGetMemHandle(&made, lent);
    if (result != cudaSuccess) {
        cudaGetLastError();  // a system that cannot share is no broken device
        status = gpu_cuda_fail(error, STATUS_UNIMPLEMENTED, "cudaIpcGetMemHandle", result);
        goto done;
    }
    result = cudaMemsetAsync(lent, 0, bytes, NULL);
    if (result == cudaSuccess) result = cudaStreamSynchronize(NULL);
    if (result != cudaSuccess) {
        status = gpu_cuda_fail(error, STATUS_UNAVAILABLE, "zeroing a loan", result);
        goto done;
    }
    memcpy(handle, &made, sizeof made);
    *memory = lent;
    lent = NULL;

done:
    gpu_free(self, lent, bytes);
    return status;
}

void gpu_take_back(struct gpu_card *self, void *memory, uint64_t bytes,
                   const uint8_t handle[GPU_HANDLE_BYTES])
{
    (void)handle;  // ends with the memory
    gpu_free(self, memory, bytes);
}
