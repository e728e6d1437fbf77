// band.h - bands of rows: which of them an item does.

#ifndef KERNELS_CPU_BAND_H
#define KERNELS_CPU_BAND_H

#include "kernels/cpu/compute.h"

#define ITEM_ELEMENTS 8192u  // about as many elements make an item

struct band {
    uint32_t begin, end;  // rows
};

static inline uint32_t band_rows(uint64_t row_elements)
{
    uint64_t rows = ITEM_ELEMENTS / (row_elements + 1);
    return rows < 1 ? 1 : (uint32_t)rows;
}

static inline uint32_t bands(uint32_t rows, uint64_t row_elements)
{
    return cpu_divide_up(rows, band_rows(row_elements));
}

static inline struct band band_of(uint32_t item, uint32_t rows, uint64_t row_elements)
{
    uint32_t height = band_rows(row_elements);
    uint32_t begin = item * height;
    assert(begin < rows);
    return (struct band){.begin = begin, .end = begin + cpu_min(height, rows - begin)};
}

#endif  // KERNELS_CPU_BAND_H
