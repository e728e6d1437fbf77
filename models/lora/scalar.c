// scalar.c - see scalar.h.

#include "models/lora/scalar.h"

#include <assert.h>
#include <string.h>

bool scalar_read(const struct tensor *tensor, uint64_t index, double *out)
{
    assert(tensor != NULL);
    assert(out != NULL);
    uint32_t size = dtype_bytes(tensor->dtype);
    uint64_t bits = 0;
    double value = 0;
    if (size == 0 || size > sizeof bits || index >= tensor->bytes / size) return false;
    memcpy(&bits, (const uint8_t *)tensor->data + index * size, size);
    switch (tensor->dtype) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16: {
        float real = 0;
        dtype_convert(&real, DTYPE_F32, &bits, tensor->dtype, 1);
        *out = (double)real;
        return true;
    }
    case DTYPE_F64:
        memcpy(&value, &bits, sizeof value);
        *out = value;
        return true;
    case DTYPE_I64:
    case DTYPE_U64:
        *out = (double)(int64_t)bits;
        return true;
    case DTYPE_I32:
        *out = (double)(int32_t)(uint32_t)bits;
        return true;
    case DTYPE_I16:
        *out = (double)(int16_t)(uint16_t)bits;
        return true;
    case DTYPE_I8:
        *out = (double)(int8_t)(uint8_t)bits;
        return true;
    case DTYPE_U8:
    case DTYPE_U16:
    case DTYPE_U32:
        *out = (double)bits;
        return true;
    case DTYPE_NONE:
    case DTYPE_BOOL:
    case DTYPE_F8_E4M3:
    case DTYPE_F8_E5M2:
    case DTYPE_COUNT:
        break;
    }
    return false;
}
