// batch_rows.h - the rows of a batch for one encoder: each different row once, in the order in
// which they are encoded.

#ifndef MODELS_TEXT_BATCH_ROWS_H
#define MODELS_TEXT_BATCH_ROWS_H

#include "models/text/network.h"
#include "models/text/text_job.h"
#include "models/text/text_stack.h"

// A row as it was asked for.
struct batch_row {
    uint64_t hash;                // of its ids
    struct hidden_choice hidden;  // what is wanted of it
    bool pooled;                  // its pooled output is wanted, too
    bool has_vectors;             // ids that only this batch understands
    uint32_t pooled_token;        // of which token: the end token
    uint32_t layers;              // that it must go through
    uint32_t way;                 // by which it is encoded: in the list of ways
    uint32_t group;               // of rows that are encoded with one network
    uint32_t position;            // among the sorted rows
    uint32_t pooled_index;        // among the pooled rows, with pooled
};

struct batch_rows {
    uint32_t tokens;  // of a row
    uint32_t width;   // of a vector
    uint32_t layers;  // of the encoder
    struct {
        struct batch_row *items;  // in the order in which they came
        uint32_t count;           // rows in use
        uint32_t capacity;        // rows there is room for
    } rows;                       // different ones
    struct {
        int32_t *items;     // tokens a row, in the order in which they came
        uint32_t count;     // ids in use
        uint32_t capacity;  // ids there is room for
    } ids;                  // of the rows
    struct {
        float *items;       // [vectors, width]
        uint32_t count;     // floats in use
        uint32_t capacity;  // floats there is room for
    } vectors;              // what the ids -1 - i of this batch mean
    struct {
        struct text_way *items;  // in the order in which they came
        uint32_t count;          // ways in use
        uint32_t capacity;       // ways there is room for
    } ways;                      // of the jobs' stacks
    uint32_t *order;             // [rows]: the sorted rows
    int32_t *sorted_ids;         // [rows, tokens], in that order
    uint32_t *sorted_layers;     // [rows], in that order, descending
    uint32_t *pooled_rows;       // [pooled_count]: positions, ascending
    uint32_t pooled_count;       // rows whose pooled output is wanted
};

// Adds one chunk of a text, or the empty chunk when tokens is NULL, and tells its row. pooled: its
// pooled output is wanted. Rows of different stacks are different rows.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status batch_rows_add(struct batch_rows *self, const struct text_job *job,
                           enum model_part part, const struct text_token *tokens, bool pooled,
                           uint32_t *row);

// Sorts the rows once all are there.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    the owner's.
enum status batch_rows_sort(struct batch_rows *self);

// Frees what the rows own.
// Thread:    the owner's.
void batch_rows_clear(struct batch_rows *self);

#endif  // MODELS_TEXT_BATCH_ROWS_H
