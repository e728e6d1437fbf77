// graphs.h - the programs that a lane runs as one graph each: those of a text, some three hundred
// launches of a few microseconds, which take the host as long as the card.

#ifndef KERNELS_CUDA_GRAPHS_H
#define KERNELS_CUDA_GRAPHS_H

#include "kernels/cuda/device_gpu.h"
#include "kernels/cuda/graph_key.h"

#define GRAPHS_MAX 24u       // that a lane keeps: rows of a batch times stacks that come again
#define GRAPHS_SEEN_MAX 32u  // programs that it remembers to have run

// A graph takes memory of the card that stands in no book of ours. What it took, the driver's
// figure of free memory lacks; what it will take comes out of the margin that stays free
// (ledger.h). So there is a bound: a launch takes some 10 KB, as NVIDIA's own cache of graphs
// reckons (CCCL, pull request 3768), and 24 graphs of SDXL with an adapter are 30,000 launches.
#define GRAPHS_LAUNCHES_MAX 32768u  // in all graphs that a lane keeps
#define GRAPHS_BYTES_MAX (GRAPHS_LAUNCHES_MAX * (UINT64_C(10) << 10))  // 320 MiB

struct recorded_graph {
    struct graph_key key;     // of the program
    struct gpu_graph *graph;  // NULL: this place is free
    uint32_t launches;        // in it
    uint64_t used;            // by the clock of the lane
};

// All zeros but for the card, at first. The lane's thread uses it, but for the three counters.
struct graphs {
    struct gpu_card *card;                    // of the lane
    bool is_off;                              // the lane runs plain launches alone
    void *staging;                            // pinned host memory for all slots; NULL: none yet
    struct recorded_graph items[GRAPHS_MAX];  //
    struct graph_key key;                     // of the program that is asked for
    uint64_t seen[GRAPHS_SEEN_MAX];           // hashes of keys
    uint32_t seen_next;                       // the place of the next one
    uint64_t clock;                           // counts runs
    uint32_t failures;                        // of graphs, one after the other
    _Atomic uint64_t recorded, replayed;      // see lane_graphs
    _Atomic uint64_t launches;                // likewise
};

// Enqueues a program's graph, recorded now where the program comes for the second time. False:
// nothing was enqueued, it is for plain launches. run: with the stream, the arena and the bindings.
// Thread:    the lane's.
bool graphs_run(struct graphs *self, const struct gpu_run *run, const struct program *program);

// After such a run has ended: brings its results to the bindings.
// Thread:    the lane's.
void graphs_deliver(const struct graphs *self, const struct gpu_run *run,
                    const struct program *program);

// Forgets all of them: the arena is going to lie elsewhere, or the lane ends. Nothing runs.
// Thread:    the lane's, or its driver's while it is idle.
void graphs_clear(struct graphs *self);

// The same, and gives everything back.
// Thread:    the lane's driver's.
void graphs_end(struct graphs *self);

#endif  // KERNELS_CUDA_GRAPHS_H
