// winograd_transform_body.h - the one-dimensional transforms of Winograd's convolution.
//
// Six points: 0, +-1/sqrt 2, +-sqrt 2 and infinity. Against the usual 0, +-1, +-2 they halve the
// rounding error. Three taps give four outputs, two taps (a phase of the upsampling convolution)
// five, and the input transform is the same for both.

#ifndef KERNELS_CPU_WINOGRAD_TRANSFORM_BODY_H
#define KERNELS_CPU_WINOGRAD_TRANSFORM_BODY_H

#include "kernels/cpu/lanes.h"

#define WINOGRAD_SIDE 6u
#define SQRT2 1.41421356237309505f

// out[6] = B^T d[6]
LANES_INLINE void winograd_transform_input(const lanes d[WINOGRAD_SIDE], lanes out[WINOGRAD_SIDE])
{
    lanes root = lanes_set(SQRT2);
    lanes minus_root = lanes_set(-SQRT2);
    lanes even = lanes_multiply_add(lanes_set(-2.0f), d[2], d[4]);
    lanes odd = lanes_multiply_add(lanes_set(-0.5f), d[3], d[1]);
    out[0] = lanes_multiply_add(lanes_set(-2.5f), d[2], lanes_add(d[0], d[4]));
    out[1] = lanes_multiply_add(minus_root, odd, even);
    out[2] = lanes_multiply_add(root, odd, even);
    even = lanes_multiply_add(lanes_set(-0.5f), d[2], d[4]);
    odd = lanes_multiply_add(lanes_set(-0.5f), d[1], d[3]);
    out[3] = lanes_multiply_add(root, odd, even);
    out[4] = lanes_multiply_add(minus_root, odd, even);
    out[5] = lanes_multiply_add(lanes_set(-2.5f), d[3], lanes_add(d[1], d[5]));
}

// out[6] = G g[3]
LANES_INLINE void winograd_transform_weight3(lanes a, lanes b, lanes c, lanes out[WINOGRAD_SIDE])
{
    lanes even = lanes_multiply(lanes_set(-1.0f / 3.0f), lanes_multiply_add(lanes_set(2.0f), a, c));
    lanes odd = lanes_multiply(lanes_set(SQRT2 / 3.0f), b);
    out[0] = a;
    out[1] = lanes_subtract(even, odd);
    out[2] = lanes_add(even, odd);
    even = lanes_multiply(lanes_set(1.0f / 6.0f), lanes_multiply_add(lanes_set(2.0f), c, a));
    odd = lanes_multiply(lanes_set(SQRT2 / 6.0f), b);
    out[3] = lanes_add(even, odd);
    out[4] = lanes_subtract(even, odd);
    out[5] = c;
}

// out[6] = G g[2]
LANES_INLINE void winograd_transform_weight2(lanes a, lanes b, lanes out[WINOGRAD_SIDE])
{
    lanes even = lanes_multiply(lanes_set(-2.0f / 3.0f), a);
    lanes odd = lanes_multiply(lanes_set(SQRT2 / 3.0f), b);
    out[0] = a;
    out[1] = lanes_subtract(even, odd);
    out[2] = lanes_add(even, odd);
    even = lanes_multiply(lanes_set(1.0f / 6.0f), a);
    odd = lanes_multiply(lanes_set(SQRT2 / 6.0f), b);
    out[3] = lanes_add(even, odd);
    out[4] = lanes_subtract(even, odd);
    out[5] = b;
}

// out[side] = A^T m[6], side 4 or 5
LANES_INLINE void winograd_transform_output(uint32_t side, const lanes m[WINOGRAD_SIDE],
                                            lanes out[5])
{
    lanes p1 = lanes_add(m[1], m[2]);
    lanes q1 = lanes_subtract(m[1], m[2]);
    lanes p2 = lanes_add(m[3], m[4]);
    lanes q2 = lanes_subtract(m[3], m[4]);
    lanes root = lanes_set(SQRT2);
    lanes cubes = lanes_multiply_add(lanes_set(0.25f), q1, lanes_add(q2, q2));
    out[0] = lanes_add(lanes_add(m[0], p1), p2);
    out[1] = lanes_multiply(root, lanes_multiply_add(lanes_set(0.5f), q1, q2));
    out[2] = lanes_multiply_add(lanes_set(0.5f), p1, lanes_add(p2, p2));
    if (side == 4) {
        out[3] = lanes_multiply_add(root, cubes, m[5]);
    } else {
        out[3] = lanes_multiply(root, cubes);
        out[4] =
            lanes_multiply_add(lanes_set(4.0f), p2, lanes_multiply_add(lanes_set(0.25f), p1, m[5]));
    }
}

#endif  // KERNELS_CPU_WINOGRAD_TRANSFORM_BODY_H
