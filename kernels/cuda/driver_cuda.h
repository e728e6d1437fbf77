// driver_cuda.h - what the two files of the CUDA driver share.

#ifndef KERNELS_CUDA_DRIVER_CUDA_H
#define KERNELS_CUDA_DRIVER_CUDA_H

#include <cuda_runtime_api.h>
#include <pthread.h>

#include "kernels/cuda/driver.h"

// Memory that is to be freed; lies in a list.
struct condemned {
    struct condemned *next;  // that is to go after it
    void *memory;            // of the device, or pinned
    uint64_t bytes;          // of the device
    bool is_pinned;          // memory of the host
};

// The way up for weights.
struct staging {
    pthread_mutex_t lock;   // one upload at a time
    cudaStream_t stream;    // of the copies; NULL before the first upload
    void *pieces[2];        // pinned, STAGING_BYTES each
    cudaEvent_t copied[2];  // the copy from that piece has been done
};

struct gpu_card {
    int number;                   // as the runtime counts
    struct gpu_facts facts;       // what it is
    struct staging staging;       // for weights
    pthread_t reaper;             // frees
    bool has_reaper;              // it was started
    pthread_mutex_t lock;         // guards what follows
    pthread_cond_t changed;       // the list
    struct condemned *condemned;  // to be freed
    uint64_t condemned_bytes;     // of the list, and of what is being freed now
    uint64_t used_bytes;          // given out
    bool is_ending;               // the reaper shall return
};

// Says what failed and why, in the runtime's words; returns status.
// Thread:    any.
enum status gpu_cuda_fail(struct error *error, enum status status, const char *what,
                          cudaError_t why);

#endif  // KERNELS_CUDA_DRIVER_CUDA_H
