// checked.h - arithmetic on sizes that come from files and messages, and are lies until checked.

#ifndef BASE_CHECKED_H
#define BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Each writes the result and returns true, or returns false on overflow and leaves *out alone.
static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t sum = 0;
    if (__builtin_add_overflow(a, b, &sum)) return false;
    *out = sum;
    return true;
}

static inline bool checked_multiply(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) return false;
    *out = product;
    return true;
}

// The product of count dimensions; 1 for none.
static inline bool checked_product(const uint64_t *dims, size_t count, uint64_t *out)
{
    uint64_t product = 1;
    for (size_t i = 0; i < count; i++) {
        if (!checked_multiply(product, dims[i], &product)) return false;
    }
    *out = product;
    return true;
}

static inline uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

#endif  // BASE_CHECKED_H
