// dtype.h - element types of tensors, in files, in messages and in memory.

#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

// The numbers travel in messages (messages/luna.proto): add at the end, never renumber.
enum dtype {
    DTYPE_NONE = 0,
    DTYPE_F32 = 1,
    DTYPE_F16 = 2,
    DTYPE_BF16 = 3,
    DTYPE_U8 = 4,
    DTYPE_I32 = 5,
    DTYPE_I64 = 6,
    DTYPE_F64 = 7,
    DTYPE_I8 = 8,
    DTYPE_I16 = 9,
    DTYPE_BOOL = 10,
    DTYPE_F8_E4M3 = 11,
    DTYPE_F8_E5M2 = 12,
    DTYPE_U16 = 13,
    DTYPE_U32 = 14,
    DTYPE_U64 = 15,
    DTYPE_COUNT
};

// Bytes of one element; 0 for DTYPE_NONE and for numbers that are none of ours.
// Thread:    any.
uint32_t dtype_bytes(enum dtype dtype);

// The name as safetensors writes it, "F32", "BF16", "F8_E4M3"; "?" for numbers that are none of
// ours.
// Thread:    any.
const char *dtype_name(enum dtype dtype);

// The type that safetensors calls name (length bytes, no NUL needed); DTYPE_NONE when unknown.
// Thread:    any.
enum dtype dtype_from_name(const char *name, uint64_t length);

// True for the three types in which weights, images and latents may travel: f32, f16, bf16.
// Thread:    any.
bool dtype_is_real(enum dtype dtype);

// One element to float32, exactly, and back with round to nearest, ties to even. NaN stays NaN.
// Thread:    any.
float f16_to_f32(uint16_t half);
uint16_t f32_to_f16(float value);
float bf16_to_f32(uint16_t bfloat);
uint16_t f32_to_bf16(float value);

// Converts count elements between any two of f32, f16 and bf16. The buffers must not overlap and
// need no alignment.
// Thread:    any.
void dtype_convert(void *out, enum dtype out_dtype, const void *in, enum dtype in_dtype,
                   uint64_t count);

#endif  // BASE_DTYPE_H
