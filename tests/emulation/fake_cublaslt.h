// fake_cublaslt.h - a cuBLASLt of no card: what it was told, what it offers, and where it fails.

#ifndef TESTS_EMULATION_FAKE_CUBLASLT_H
#define TESTS_EMULATION_FAKE_CUBLASLT_H

#include <stdbool.h>
#include <stdint.h>

#define FAKE_ALGORITHMS_MAX 4u

// An algorithm that the heuristics name, by its number from 0 on.
struct fake_algorithm {
    bool is_unusable;         // its state says so
    uint64_t refused_m;       // rows of a product that it does not take; 0: it takes all
    bool refuses_bias;        // with the epilogue that adds one
    uint64_t workspace_of_m;  // bytes for each row
};

struct fake_cublaslt {
    struct fake_algorithm algorithms[FAKE_ALGORITHMS_MAX];
    uint32_t algorithms_count;
    uint64_t version;         // as cublasLtGetVersion gives it
    uint64_t calls, fail_at;  // the n-th call that may fail does; 0: none
    uint32_t live;            // handles, descriptors, layouts and preferences that exist
    uint32_t asked;           // of the heuristics
    uint32_t multiplied;      // products
    uint64_t last_algorithm;  // of the last product
    uint64_t last_m;          // its rows
    void *last_stream;        // where it was enqueued
    uint64_t last_workspace_bytes;
    const char *complaint;  // the first thing that the library would not have liked
};

// The one of the library, which exports this.
struct fake_cublaslt *fake_cublaslt(void);

#endif  // TESTS_EMULATION_FAKE_CUBLASLT_H
