// reference.h - operations as their formulas say, float32 in memory and sums in float64.
//
// Written to be obviously right, as the oracle of the conformance suite, and never to be fast. It
// speaks the launches of cpu/launch.h, so that the CPU device can run it in its pool where the
// processor lacks the vector instructions that the fast operations need.

#ifndef KERNELS_REFERENCE_REFERENCE_H
#define KERNELS_REFERENCE_REFERENCE_H

#include "kernels/cpu/launch.h"
#include "kernels/device.h"

// A weight as the reference keeps it.
struct reference_weight {
    struct weight base;  // what every weight has
    float *data;         // all parts, widened, in the order of dims
};

// Statistics are one of these for each image and channel.
struct reference_moments {
    double mean;      // over the h x w pixels
    double variance;  // over the h x w pixels, divided by their number
};

// Bytes of the statistics of [n, h, w, k].
// Thread:    any.
uint64_t reference_statistics_bytes(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                                    uint32_t k);

// Bytes of arena that an operation needs for itself: none.
// Thread:    any.
uint64_t reference_workspace_bytes(const struct device *device, const struct operation *op);

// See weight_plan, weight_create and weight_destroy of kernels.h.
uint64_t reference_weight_plan(const struct device *device, const struct weight_source *source);
enum status reference_weight_create(struct weight **out, struct device *device,
                                    const struct weight_source *source, struct error *error);
void reference_weight_destroy(struct weight *weight);

// The elements of a weight in the order of its dims; NULL for a NULL weight.
// Ownership: they stay with the weight.
// Thread:    any.
const float *reference_data(const struct weight *weight);

// Writes the launches of an operation, in order, and returns how many.
// Thread:    any.
uint32_t reference_launches(const struct operation *op, struct cpu_launch out[CPU_LAUNCHES_MAX]);

// The same for the operations of one file each; reference_launches picks.
// Thread:    any.
uint32_t reference_convolution_launches(const struct operation *op,
                                        struct cpu_launch out[CPU_LAUNCHES_MAX]);
uint32_t reference_matrix_launches(const struct operation *op,
                                   struct cpu_launch out[CPU_LAUNCHES_MAX]);
uint32_t reference_image_launches(const struct operation *op,
                                  struct cpu_launch out[CPU_LAUNCHES_MAX]);

#endif  // KERNELS_REFERENCE_REFERENCE_H
