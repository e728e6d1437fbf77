// subjects.h - the devices that the conformance suite runs on. An implementation that is added here
// is held to everything; a device that is named twice must give the same bytes both times.

#ifndef TESTS_UNIT_KERNELS_SUBJECTS_H
#define TESTS_UNIT_KERNELS_SUBJECTS_H

#include "tests/unit/kernels/kit.h"

static const struct {
    const char *name;
    uint32_t threads;
} subjects[] = {{"reference", 1}, {"cpu", 1}, {"cpu", 2}, {"cpu", 4}, {"cpu:plain", 2}};
#define SUBJECTS (sizeof subjects / sizeof subjects[0])

// Opens all of them for the whole group.
static inline int subjects_open(void **state)
{
    struct device **devices = calloc(SUBJECTS, sizeof *devices);
    assert_non_null(devices);
    for (size_t i = 0; i < SUBJECTS; i++) {
        devices[i] = open_device(subjects[i].name, subjects[i].threads);
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
    return subject > 0 && strcmp(subjects[subject].name, subjects[subject - 1].name) == 0;
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
