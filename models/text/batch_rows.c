// batch_rows.c - chunks become rows of ids: equal rows are encoded once, whoever asked for them.
//
// An embedding's vector stands where its token stood. A vector of another width is left out, as
// ComfyUI does: what follows moves up, and padding fills the end of the row. Which token is pooled
// is counted the same way: ComfyUI sums a mask of the tokens up to the first end token, plus all
// vectors that were put in.

#include "models/text/batch_rows.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/array.h"
#include "models/text/vocabulary.h"

#define HASH_START 0xcbf29ce484222325u
#define HASH_FACTOR 0x100000001b3u

static enum status add_vector(struct batch_rows *self, const struct job_vector *vector, int32_t *id)
{
    assert(vector->width == self->width);
    uint64_t count = (uint64_t)self->vectors.count + self->width;
    if (!ARRAY_RESERVE(&self->vectors, count)) return STATUS_RESOURCE_EXHAUSTED;
    memcpy(self->vectors.items + self->vectors.count, vector->values, self->width * sizeof(float));
    *id = -1 - (int32_t)(self->vectors.count / self->width);
    self->vectors.count += self->width;
    return STATUS_OK;
}

// Writes the ids of a chunk at the end of the list, which has room, and fills *row.
static enum status write_ids(struct batch_rows *self, const struct text_job *job, int32_t pad,
                             const struct text_token *tokens, struct batch_row *row)
{
    int32_t *ids = self->ids.items + self->ids.count;
    uint32_t written = 0;
    uint32_t counted = 0;
    bool ended = false;
    for (uint32_t i = 0; i < self->tokens; i++) {
        int32_t id = tokens[i].id;
        if (id < 0) {
            const struct job_vector *vector = &job->vectors.items[-1 - id];
            if (vector->width != self->width) continue;
            enum status status = add_vector(self, vector, &id);
            if (status != STATUS_OK) return status;
            row->has_vectors = true;
            counted += 1;
        } else if (!ended) {
            counted += 1;
            ended = id == VOCABULARY_END;
        }
        ids[written++] = id;
    }
    while (written < self->tokens) ids[written++] = pad;
    row->pooled_token = counted > 0 ? counted - 1 : 0;
    row->hash = HASH_START;
    for (uint32_t i = 0; i < self->tokens; i++) {
        row->hash = (row->hash ^ (uint32_t)ids[i]) * HASH_FACTOR;
    }
    return STATUS_OK;
}

static void write_empty(struct batch_rows *self, int32_t pad, struct text_token *tokens)
{
    for (uint32_t i = 0; i < self->tokens; i++) {
        int32_t id = i == 0 ? VOCABULARY_START : i == 1 ? VOCABULARY_END : pad;
        tokens[i] = (struct text_token){.id = id, .weight = 1.0};
    }
}

// An equal row that is there already, or its number of rows.
static uint32_t find_equal(const struct batch_rows *self, const struct batch_row *row)
{
    const int32_t *ids = self->ids.items + self->ids.count;
    uint32_t i = row->has_vectors ? self->rows.count : 0;
    for (; i < self->rows.count; i++) {
        const struct batch_row *other = &self->rows.items[i];
        if (other->hash != row->hash || other->has_vectors) continue;
        if (other->way != row->way) continue;
        if (other->hidden.layers != row->hidden.layers) continue;
        if (other->hidden.norm != row->hidden.norm) continue;
        const int32_t *other_ids = self->ids.items + (uint64_t)i * self->tokens;
        if (memcmp(ids, other_ids, self->tokens * sizeof *ids) == 0) break;
    }
    return i;
}

// The number of a way, which is added when it is new.
static enum status find_way(struct batch_rows *self, struct text_way way, uint32_t *number)
{
    uint32_t i = 0;
    for (; i < self->ways.count; i++) {
        const struct text_way *other = &self->ways.items[i];
        if (other->network == way.network && other->paths == way.paths) break;
    }
    if (i == self->ways.count) {
        if (!ARRAY_RESERVE(&self->ways, (uint64_t)i + 1)) return STATUS_RESOURCE_EXHAUSTED;
        self->ways.items[self->ways.count++] = way;
    }
    *number = i;
    return STATUS_OK;
}

enum status batch_rows_add(struct batch_rows *self, const struct text_job *job,
                           enum model_part part, const struct text_token *tokens, bool pooled,
                           uint32_t *row)
{
    assert(self != NULL);
    assert(job != NULL);
    assert(self->ids.count == self->rows.count * self->tokens);
    int32_t pad = job->texts[part][0].pad;
    struct batch_row added = {.hidden = job->hidden[part]};
    if (!ARRAY_RESERVE(&self->rows, (uint64_t)self->rows.count + 1) ||
        !ARRAY_RESERVE(&self->ids, (uint64_t)self->ids.count + self->tokens)) {
        return STATUS_RESOURCE_EXHAUSTED;
    }
    enum status status = find_way(self, text_stack_way(job->stack, part), &added.way);
    if (status != STATUS_OK) return status;
    struct text_token *empty = NULL;
    if (tokens == NULL) {
        empty = malloc(self->tokens * sizeof *empty);
        if (empty == NULL) return STATUS_RESOURCE_EXHAUSTED;
        write_empty(self, pad, empty);
    }
    status = write_ids(self, job, pad, tokens != NULL ? tokens : empty, &added);
    free(empty);
    if (status != STATUS_OK) return status;
    uint32_t found = find_equal(self, &added);
    if (found == self->rows.count) {
        self->rows.items[self->rows.count++] = added;
        self->ids.count += self->tokens;
    }
    if (pooled) self->rows.items[found].pooled = true;
    *row = found;
    return STATUS_OK;
}

// Rows of the model's own network first, then those of each merged stack; among them, rows that
// need more layers first, those of one tap side by side, and there those of one way; else as they
// came.
static int compare_rows(const void *left, const void *right)
{
    const struct batch_row *a = *(const struct batch_row *const *)left;
    const struct batch_row *b = *(const struct batch_row *const *)right;
    if (a->group != b->group) return a->group < b->group ? -1 : 1;
    if (a->layers != b->layers) return a->layers > b->layers ? -1 : 1;
    if (a->hidden.layers != b->hidden.layers) return a->hidden.layers > b->hidden.layers ? -1 : 1;
    if (a->hidden.norm != b->hidden.norm) return a->hidden.norm ? -1 : 1;
    if (a->way != b->way) return a->way < b->way ? -1 : 1;
    return (a > b) - (a < b);
}

static bool make_room(struct batch_rows *self)
{
    uint64_t count = self->rows.count;
    self->order = malloc(count * sizeof *self->order);
    self->sorted_ids = malloc(count * self->tokens * sizeof *self->sorted_ids);
    self->sorted_layers = malloc(count * sizeof *self->sorted_layers);
    self->pooled_rows = malloc(count * sizeof *self->pooled_rows);
    return self->order != NULL && self->sorted_ids != NULL && self->sorted_layers != NULL &&
           self->pooled_rows != NULL;
}

enum status batch_rows_sort(struct batch_rows *self)
{
    assert(self != NULL);
    assert(self->rows.count > 0);
    assert(self->order == NULL);
    struct batch_row **sorted = malloc(self->rows.count * sizeof(struct batch_row *));
    if (sorted == NULL || !make_room(self)) {
        free(sorted);
        return STATUS_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < self->rows.count; i++) {
        struct batch_row *row = &self->rows.items[i];
        row->layers = row->pooled ? self->layers : row->hidden.layers;
        row->group = self->ways.items[row->way].network == NULL ? 0 : row->way + 1;
        sorted[i] = row;
    }
    qsort(sorted, self->rows.count, sizeof(struct batch_row *), compare_rows);
    for (uint32_t i = 0; i < self->rows.count; i++) {
        struct batch_row *row = sorted[i];
        row->position = i;
        self->order[i] = (uint32_t)(row - self->rows.items);
        self->sorted_layers[i] = row->layers;
        memcpy(self->sorted_ids + (uint64_t)i * self->tokens,
               self->ids.items + (uint64_t)self->order[i] * self->tokens,
               self->tokens * sizeof(int32_t));
        if (!row->pooled) continue;
        row->pooled_index = self->pooled_count;
        self->pooled_rows[self->pooled_count++] = i;
    }
    free(sorted);
    return STATUS_OK;
}

void batch_rows_clear(struct batch_rows *self)
{
    assert(self != NULL);
    free(self->rows.items);
    free(self->ids.items);
    free(self->vectors.items);
    free(self->ways.items);
    free(self->order);
    free(self->sorted_ids);
    free(self->sorted_layers);
    free(self->pooled_rows);
    *self = (struct batch_rows){0};
}
