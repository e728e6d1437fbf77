// text_job.h - what a job is made of, for the files that make, encode and finish it.

#ifndef MODELS_TEXT_TEXT_JOB_H
#define MODELS_TEXT_TEXT_JOB_H

#include "models/text/chunks.h"
#include "models/text/embeddings.h"
#include "models/text/notes.h"
#include "models/text/stack.h"
#include "models/text/text.h"

// A prompt and its negative.
#define JOB_TEXTS 2u

// One vector of an embedding.
struct job_vector {
    const float *values;  // width of them, in a block of the job
    uint32_t width;       // the encoder's, or the vector is left out
};

// An embedding as one encoder reads it.
struct job_embedding {
    uint32_t file;         // which of the embeddings
    enum model_part part;  // for which encoder
    uint32_t first;        // of its vectors in the job
    uint32_t count;        // vectors; 0 when it could not be read
    float *values;         // owned; what the vectors point into
};

// The hidden states that an encoder hands out: after `layers` layers, with or without final norm.
struct hidden_choice {
    uint32_t layers;
    bool norm;
};

struct text_job {
    bool has_text[JOB_TEXTS];                          // [0] is always there
    struct chunks texts[MODEL_PART_COUNT][JOB_TEXTS];  // no items where there is no encoder
    struct hidden_choice hidden[MODEL_PART_COUNT];     // by the kind and the clip skip
    struct {
        struct job_vector *items;  // a token id -1 - i means items[i]
        uint32_t count;            // vectors in use
        uint32_t capacity;         // vectors there is room for
    } vectors;                     // of all encoders
    struct {
        struct job_embedding *items;        // in the order in which they were first met
        uint32_t count;                     // embeddings in use
        uint32_t capacity;                  // embeddings there is room for
    } embeddings;                           // each is read once
    const struct text_stack *stack;         // the caller's; NULL: none
    struct notes notes;                     // for the client
    struct text_output outputs[JOB_TEXTS];  // filled by the batch
    float *output_values[JOB_TEXTS];        // owned; what outputs point into: cond, then pooled
};

// True when a weight of the text differs from 1, so that it needs the empty prompt beside it.
// Thread:    any.
bool text_job_is_weighted(const struct text_job *self, enum model_part part, uint32_t which);

#endif  // MODELS_TEXT_TEXT_JOB_H
