// batch_pass.h - how the sorted rows of an encoder are cut into passes, and each pass into runs.

#ifndef MODELS_TEXT_BATCH_PASS_H
#define MODELS_TEXT_BATCH_PASS_H

#include "models/text/batch_rows.h"

// The most rows of one pass, which bound the arena.
#define ROWS_PER_PASS 64u

// A pass over the sorted rows [begin, begin + count), all of one network.
struct batch_pass {
    uint32_t begin, count;                               // rows
    uint32_t pooled_begin, pooled_count;                 // pooled rows among them
    const struct text_network *network;                  // NULL: the model's own
    struct text_tap taps[ROWS_PER_PASS];                 // what to store
    uint32_t taps_count;                                 // of those
    struct text_segment segments[ROWS_PER_PASS];         // rows with adapters
    uint32_t segments_count;                             // of those
    struct text_segment pooled_segments[ROWS_PER_PASS];  // pooled rows with adapters
    uint32_t pooled_segments_count;                      // of those
    uint32_t low_ranks;                                  // beside one operation, at most
};

// Cuts off the pass that begins at row `begin` and pooled row `pooled_begin`.
// Thread:    the owner's.
void batch_pass_cut(const struct batch_rows *rows, uint32_t begin, uint32_t pooled_begin,
                    struct batch_pass *out);

#endif  // MODELS_TEXT_BATCH_PASS_H
