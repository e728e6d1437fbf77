// batch_pass.c - runs of sorted rows: of one network, of one place to be stored from, of the same
// adapters.

#include "models/text/batch_pass.h"

#include <assert.h>

static const struct batch_row *row_at(const struct batch_rows *rows, uint32_t position)
{
    assert(position < rows->rows.count);
    return &rows->rows.items[rows->order[position]];
}

static const struct text_way *way_at(const struct batch_rows *rows, uint32_t position)
{
    return &rows->ways.items[row_at(rows, position)->way];
}

// The runs of rows that are stored at the same place of the network.
static void find_taps(struct batch_pass *self, const struct batch_rows *rows)
{
    for (uint32_t i = 0; i < self->count; i++) {
        const struct hidden_choice *hidden = &row_at(rows, self->begin + i)->hidden;
        struct text_tap *last = self->taps_count > 0 ? &self->taps[self->taps_count - 1] : NULL;
        if (last != NULL && last->layers == hidden->layers && last->norm == hidden->norm) {
            last->count += 1;
        } else {
            self->taps[self->taps_count++] = (struct text_tap){
                .begin = i, .count = 1, .layers = hidden->layers, .norm = hidden->norm};
        }
    }
}

// Adds row i to the runs of rows with the same paths; rows without any are left out.
static void add_to_segments(struct text_segment *segments, uint32_t *count,
                            const struct text_paths *paths, uint32_t i)
{
    if (paths == NULL) return;
    struct text_segment *last = *count > 0 ? &segments[*count - 1] : NULL;
    if (last != NULL && last->paths == paths && last->begin + last->count == i) {
        last->count += 1;
    } else {
        segments[(*count)++] = (struct text_segment){.begin = i, .count = 1, .paths = paths};
    }
}

void batch_pass_cut(const struct batch_rows *rows, uint32_t begin, uint32_t pooled_begin,
                    struct batch_pass *out)
{
    assert(begin < rows->rows.count);
    *out = (struct batch_pass){
        .begin = begin, .pooled_begin = pooled_begin, .network = way_at(rows, begin)->network};
    while (out->count < ROWS_PER_PASS && begin + out->count < rows->rows.count) {
        const struct text_way *way = way_at(rows, begin + out->count);
        if (way->network != out->network) break;
        add_to_segments(out->segments, &out->segments_count, way->paths, out->count);
        out->count += 1;
    }
    while (pooled_begin + out->pooled_count < rows->pooled_count) {
        uint32_t position = rows->pooled_rows[pooled_begin + out->pooled_count];
        if (position >= begin + out->count) break;
        add_to_segments(out->pooled_segments, &out->pooled_segments_count,
                        way_at(rows, position)->paths, out->pooled_count);
        out->pooled_count += 1;
    }
    find_taps(out, rows);
    for (uint32_t i = 0; i < out->segments_count; i++) {
        out->low_ranks += out->segments[i].paths->most;
    }
}
