// winograd_weight_body.h - transforms a 3x3 weight for winograd_body.h, one panel of columns an
// item.

#ifndef KERNELS_CPU_WINOGRAD_WEIGHT_BODY_H
#define KERNELS_CPU_WINOGRAD_WEIGHT_BODY_H

#include "kernels/cpu/convolution_plan.h"
#include "kernels/cpu/gemm_body.h"
#include "kernels/cpu/winograd_bound_body.h"
#include "kernels/cpu/winograd_transform_body.h"

// Adds up the taps of a 3x3 filter that fall on the same small pixel: three become two.
LANES_INLINE void winograd_phase_taps(uint32_t odd, lanes a, lanes b, lanes c, lanes out[2])
{
    out[0] = odd != 0 ? lanes_add(a, b) : a;
    out[1] = odd != 0 ? c : lanes_add(b, c);
}

// taps[9] of eight columns to points[36], for a phase of the upsampling or, without, phase 4.
LANES_INLINE void winograd_weight_transform(uint32_t phase, const lanes taps[9],
                                            lanes points[WINOGRAD_POINTS])
{
    lanes rows[3][WINOGRAD_SIDE];
    if (phase == 4) {
        for (uint32_t j = 0; j < 3; j++) {
            winograd_transform_weight3(taps[j], taps[3 + j], taps[6 + j], rows[j]);
        }
        for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
            winograd_transform_weight3(rows[0][i], rows[1][i], rows[2][i],
                                       points + i * WINOGRAD_SIDE);
        }
        return;
    }
    lanes small[3][2];
    for (uint32_t j = 0; j < 3; j++) {
        winograd_phase_taps(phase / 2, taps[j], taps[3 + j], taps[6 + j], small[j]);
        winograd_transform_weight2(small[j][0], small[j][1], rows[j]);
    }
    for (uint32_t i = 0; i < WINOGRAD_SIDE; i++) {
        lanes pair[2];
        winograd_phase_taps(phase % 2, rows[0][i], rows[1][i], rows[2][i], pair);
        winograd_transform_weight2(pair[0], pair[1], points + i * WINOGRAD_SIDE);
    }
}

// Transforms a panel from [c][9][16] to [36][c][16].
LANES_INLINE void winograd_pack_phase(uint32_t phase, const float *panel, uint32_t c, size_t stride,
                                      float *out)
{
    for (uint32_t channel = 0; channel < c; channel++) {
        for (uint32_t half = 0; half < 16; half += 8) {
            const float *from = panel + (size_t)channel * 9 * PANEL_COLUMNS + half;
            float *to = out + (size_t)channel * PANEL_COLUMNS + half;
            lanes taps[9];
            lanes points[WINOGRAD_POINTS];
            for (uint32_t i = 0; i < 9; i++) taps[i] = lanes_load(from + i * PANEL_COLUMNS);
            winograd_weight_transform(phase, taps, points);
            for (uint32_t i = 0; i < WINOGRAD_POINTS; i++) lanes_store(to + i * stride, points[i]);
        }
    }
}

static void winograd_pack(const struct operation *operation, const struct cpu_run *run,
                          uint32_t item, void *scratch)
{
    const struct convolution *op = &operation->convolution;
    struct convolution_plan plan = cpu_convolution_plan(op);
    const struct cpu_weight *weight = cpu_weight_of(op->weight);
    uint8_t *workspace = cpu_address(run, &operation->workspace);
    size_t panel_floats = WINOGRAD_POINTS * plan.tiles.weight_stride;
    float *out = (float *)(void *)(workspace + plan.weight_offset) + item * panel_floats;
    const uint8_t *rows[PANEL_COLUMNS];
    panel_rows(weight, (int64_t)item * PANEL_COLUMNS, rows);
    panel_pack(rows, weight->base.dtype, 0, op->c * 9, scratch);
    winograd_bound(operation, run, &plan, item, scratch);
    if (plan.tiles.phases == 1) {
        winograd_pack_phase(4, scratch, op->c, plan.tiles.weight_stride, out);
        return;
    }
    size_t phase_floats = op->k / PANEL_COLUMNS * panel_floats;
    for (uint32_t phase = 0; phase < 4; phase++) {
        winograd_pack_phase(phase, scratch, op->c, plan.tiles.weight_stride,
                            out + phase * phase_floats);
    }
}

#endif  // KERNELS_CPU_WINOGRAD_WEIGHT_BODY_H
