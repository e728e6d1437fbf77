// merge.c - patches applied to a copy of a tensor, by blocks of rows that stay in the cache: each
// block is widened to fp32, goes through all patches in order, and is rounded once. When a patch
// mixes rows there is one block, of all rows.

#include <assert.h>
#include <stdlib.h>

#include "models/lora/formula.h"

#define BLOCK_NUMBERS 65536u
#define BLOCK_ROWS 4u  // and multiples of it

// The largest block that a merge works on.
static uint64_t choose_rows(const struct formula *formulas, uint32_t count, uint64_t rows,
                            uint64_t columns)
{
    uint64_t chosen = BLOCK_NUMBERS / (columns + 1) / BLOCK_ROWS * BLOCK_ROWS + BLOCK_ROWS;
    for (uint32_t i = 0; i < count; i++) {
        if (!formula_is_local(&formulas[i])) chosen = rows;
    }
    return chosen < rows ? chosen : rows;
}

static void merge_block(struct work *work, const struct formula *formulas, uint32_t count,
                        const struct tensor *base, const struct block *block, uint8_t *out)
{
    reals_load_rows(block->weight, base, block->first, block->rows);
    for (uint32_t i = 0; i < count; i++) formula_apply(&formulas[i], work, block);
    if (work->status != STATUS_OK) return;
    uint64_t skipped = block->first * block->columns * dtype_bytes(base->dtype);
    reals_store(out + skipped, base->dtype, block->weight, block->rows * block->columns);
}

static void merge(struct work *work, const struct formula *formulas, uint32_t count,
                  const struct tensor *base, uint8_t *out)
{
    uint64_t rows = base->dims[0];
    uint64_t columns = base->rank == 2 ? base->dims[1] : 1;
    uint64_t most = choose_rows(formulas, count, rows, columns);
    struct matrix weight = matrix_create(work, most, columns);
    struct matrix delta = matrix_create(work, most, columns);
    struct matrix other = matrix_create(work, most, columns);
    for (uint64_t first = 0; first < rows && work_on(work, most * columns); first += most) {
        struct block block = {.first = first,
                              .rows = rows - first < most ? rows - first : most,
                              .columns = columns,
                              .weight = weight.values,
                              .delta = delta.values,
                              .other = other.values};
        merge_block(work, formulas, count, base, &block, out);
    }
    matrix_free(&weight);
    matrix_free(&delta);
    matrix_free(&other);
}

enum status lora_merge(const struct tensor *base, const struct lora_patch *patches, uint32_t count,
                       const struct lora_stop *stop, void *out, struct error *error)
{
    assert(base != NULL);
    assert(base->rank == 1 || base->rank == 2);
    assert(dtype_is_real(base->dtype));
    assert(patches != NULL || count == 0);
    assert(out != NULL);
    struct work work = {.stop = stop, .error = error};
    struct formula *formulas = calloc(count + 1u, sizeof *formulas);
    if (formulas == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u patches", count);
    }
    for (uint32_t i = 0; i < count; i++) {
        formulas[i] =
            formula_create(&work, &patches[i], base->dims[0], base->rank == 2 ? base->dims[1] : 1);
    }
    merge(&work, formulas, count, base, out);
    for (uint32_t i = 0; i < count; i++) formula_free(&formulas[i]);
    free(formulas);
    return work.status;
}
