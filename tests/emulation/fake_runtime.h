// fake_runtime.h - a CUDA runtime of no card, for the driver's host code: memory is the process's
// own, and copies happen only when somebody waits for them, as late as a device may.

#ifndef TESTS_EMULATION_FAKE_RUNTIME_H
#define TESTS_EMULATION_FAKE_RUNTIME_H

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define CARD_BYTES (UINT64_C(1) << 30)
#define COPIES_MAX 64u
#define OBJECTS_MAX 16384u

struct fake_copy {
    void *to;          //
    const void *from;  // NULL: zeros
    uint64_t bytes;    //
};

// What was captured, and what was made of it.
struct fake_graph {
    struct fake_copy copies[COPIES_MAX];
    uint32_t count;
};

// An event: how many of all copies had been asked for when it was recorded. A stream is none.
struct fake_object {
    bool is_live;
    uint64_t copies;  // before it
    uint64_t at;      // of all records, as a clock
};

struct fake_runtime {
    pthread_mutex_t lock;          // guards everything
    pthread_cond_t idle;           // is_busy fell
    bool is_busy;                  // who frees has to wait; a cudaMalloc that fails ends it
    uint64_t allocated_bytes;      // of the card
    uint64_t host_bytes;           // pinned
    uint64_t calls, fail_at;       // the n-th call that may fail does; 0: none
    cudaError_t failure;           // of that call
    cudaError_t sticky;            // of a broken device
    cudaError_t last;              // what cudaGetLastError takes back
    int cards, driver;             // that there are; its version
    struct fake_graph *capturing;  // copies go into it; NULL: they are asked for
    bool is_broken_capture;        // a call failed meanwhile
    uint32_t graphs;               // that exist, of both kinds
    struct fake_copy copies[COPIES_MAX];
    uint64_t copies_asked, copies_done;
    uint64_t records;
    struct fake_object objects[OBJECTS_MAX];  // streams and events
};

extern struct fake_runtime fake;

// Two cards, the second too old, and nothing wrong with them.
// Thread:    while no other calls the runtime.
void fake_reset(void);

// Streams and events that nobody destroyed.
// Thread:    as above.
uint32_t fake_live_objects(void);

#endif  // TESTS_EMULATION_FAKE_RUNTIME_H
