// subjects.h - the devices that the conformance suite runs on. An implementation that is added here
// is held to everything; a device that is named twice must give the same bytes both times.

#ifndef TESTS_UNIT_KERNELS_SUBJECTS_H
#define TESTS_UNIT_KERNELS_SUBJECTS_H

#include "tests/unit/kernels/kit.h"

// Devices of the same storage type stand together: they share the numbers of a case, which are made
// so that the type can hold them.
struct subject {
    const char *name;
    uint32_t threads;
    bool fast;           // precision_fast
    enum dtype storage;  // of activations
};

#ifdef LUNA_TEST_GPU
// A device of kernels/cuda/: "emulated", or "cuda:0" in the programs of tests/gpu/. The emulator
// stops the suite at the first breach, so once each is enough.
static const struct subject subjects[] = {{LUNA_TEST_GPU, 0, false, DTYPE_F32},
                                          {LUNA_TEST_GPU, 0, true, DTYPE_BF16},
                                          {LUNA_TEST_GPU ":f16", 0, true, DTYPE_F16}};
#else
static const struct subject subjects[] = {
    {"reference", 1, false, DTYPE_F32}, {"cpu", 1, false, DTYPE_F32},
    {"cpu", 2, false, DTYPE_F32},       {"cpu", 4, false, DTYPE_F32},
    {"cpu:wide", 2, false, DTYPE_F32},  {"cpu:plain", 2, false, DTYPE_F32}};
#endif
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

// Subjects first .. end - 1 have one storage type.
struct subject_group {
    size_t first, end;
    enum dtype storage;
};

// The group behind the one that ends at `end`; empty when there is none.
static inline struct subject_group next_group(size_t end)
{
    struct subject_group group = {.first = end, .end = end};
    if (end < SUBJECTS) group.storage = subjects[end].storage;
    while (group.end < SUBJECTS && subjects[group.end].storage == group.storage) group.end++;
    return group;
}

#define FOR_EACH_GROUP(group)                                                                      \
    for (struct subject_group group = next_group(0); group.first < group.end;                      \
         group = next_group(group.end))

// Opens all of them for the whole group.
static inline int subjects_open(void **state)
{
    struct device **devices = calloc(SUBJECTS, sizeof *devices);
    assert_non_null(devices);
    for (size_t i = 0; i < SUBJECTS; i++) {
        devices[i] = open_device_with(&(struct device_options){.name = subjects[i].name,
                                                               .threads = subjects[i].threads,
                                                               .precision_fast = subjects[i].fast});
        print_message("device %zu: %s, %u threads\n", i, device_info(devices[i])->label,
                      device_info(devices[i])->threads);
    }
    print_message("seed %llu (LUNA_SEED)\n", (unsigned long long)seed_of_run());
    *state = devices;
    return 0;
}

static inline int subjects_close(void **state)
{
    struct device **devices = *state;
    for (size_t i = 0; i < SUBJECTS; i++) device_close(&devices[i]);
    free(devices);
    return 0;
}

// True when the subject in front of this one is the same device with another number of threads.
static inline bool is_repeat(size_t subject)
{
    return subject > 0 && strcmp(subjects[subject].name, subjects[subject - 1].name) == 0 &&
           subjects[subject].storage == subjects[subject - 1].storage;
}

// The bytes of a device do not depend on its number of threads: compares what the subject gave with
// what the one in front of it gave, keeps the new one, frees the old one.
static inline void check_repeat(size_t subject, float **before, float *now, uint64_t count,
                                const char *what)
{
    if (is_repeat(subject) && memcmp(*before, now, count * sizeof *now) != 0) {
        fail_msg("%s: other bytes with %u threads on %s", what, subjects[subject].threads,
                 subjects[subject].name);
    }
    free(*before);
    *before = now;
}

#endif  // TESTS_UNIT_KERNELS_SUBJECTS_H
