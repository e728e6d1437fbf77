// text.h - prompts to conditioning: tokens, chunks, weights, encoders, SDXL's side by side.
//
// A request becomes a job (tokens and rows; no encoder needed), any number of jobs become one batch
// (one program over all their rows), and after its run every job's outputs are ready. A row is 77
// tokens; rows do not influence each other, so a job's bytes do not depend on its batch-mates.

#ifndef MODELS_TEXT_TEXT_H
#define MODELS_TEXT_TEXT_H

#include "kernels/kernels.h"
#include "models/model.h"

struct text_request {
    struct bytes prompt;      // UTF-8; feeds every encoder
    struct bytes prompt_2;    // UTF-8; feeds bigG instead of prompt when has_prompt_2
    struct bytes negative;    // UTF-8; encoded too when has_negative
    struct bytes negative_2;  // likewise for bigG when has_negative_2
    bool has_prompt_2, has_negative, has_negative_2;
    int32_t clip_skip;     // 0: the model's default; N or -N: the N-th layer from the end
    bool disable_weights;  // (a:1.2) is plain text
};

// A token as clients may send and see it.
struct text_token {
    int32_t id;     // below the vocabulary; -1 - i: vector i of the job, from an embedding
    double weight;  // 1.0 for plain text and special tokens
};

// Where textual inversion vectors come from; see spec text 1.2.
struct text_embeddings;

// Scans a folder (and its subfolders) of embeddings; nothing outside is followed. The listing is
// sorted, so that the same folder always resolves a name to the same file.
// Ownership: the caller owns *out.
// Errors:    NOT_FOUND, RESOURCE_EXHAUSTED.
// Thread:    any.
enum status text_embeddings_open(struct text_embeddings **out, const char *folder,
                                 const struct torch_reader *reader, struct error *error);
void text_embeddings_close(struct text_embeddings **self_p);

// The encoders of one model on a device. Immutable; shared by all lanes.
struct text_model;

// Puts the weights on a device. tensors[] and config are those of the description; entries of parts
// that text does not use are ignored; embeddings may be NULL and stay the caller's.
// Ownership: the caller owns *out; tables stay shared until text_model_destroy.
// Errors:    INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
// Thread:    any.
enum status text_model_create(struct text_model **out, struct device *device,
                              struct tensor_table *const tensors[MODEL_PART_COUNT],
                              const struct model_description *description,
                              struct text_embeddings *embeddings, struct error *error);
void text_model_destroy(struct text_model **self_p);

// As vae_bytes.
uint64_t text_model_bytes(const struct text_model *self);

// As vae_weights_plan.
enum status text_model_plan(uint64_t *out, struct device *device,
                            struct tensor_table *const tensors[MODEL_PART_COUNT],
                            const struct model_description *description, struct error *error);

struct text_job;

// Tokenises a request. As in ComfyUI a clip skip beyond an encoder's layers is its last layer with
// the final norm; one beyond all layers (and 24, the most that ComfyUI asks for) is refused.
// Ownership: the caller owns *out; the request's bytes are not needed afterwards.
// Errors:    INVALID_ARGUMENT (invalid UTF-8, clip skip, a text of too many chunks);
//            RESOURCE_EXHAUSTED.
// Thread:    any, while batches of the same model run elsewhere.
enum status text_job_create(struct text_job **out, const struct text_model *model,
                            const struct text_request *request, struct error *error);

// The tokens of one text for one encoder, as a client made them.
struct text_tokens {
    const int32_t *ids;     // [chunks, length]; NULL: the text is not there
    const double *weights;  // the same shape; NULL: all 1
    uint32_t chunks;        // at least 1
    uint32_t length;        // the encoder's: 77
};

struct text_tokens_request {
    // By part; [0] of the prompt, [1] of the negative. The prompt must be there for every encoder
    // of the model, the negative for all or for none.
    struct text_tokens tokens[MODEL_PART_COUNT][2];
    int32_t clip_skip;  // as in text_request
};

// Makes a job of tokens. Encoders of different chunk counts are cut to the shorter one.
// Ownership: the caller owns *out; the request's arrays are not needed afterwards.
// Errors:    INVALID_ARGUMENT (an id beyond the vocabulary, chunks or length that do not fit, a
// text
//            that is missing); RESOURCE_EXHAUSTED.
// Thread:    as text_job_create.
enum status text_job_create_from_tokens(struct text_job **out, const struct text_model *model,
                                        const struct text_tokens_request *request,
                                        struct error *error);
void text_job_destroy(struct text_job **self_p);

// Rows of all encoders together: what the job costs in the worker's credit.
uint32_t text_job_rows(const struct text_job *self);

// Notes for the client, one per line ("embedding \"foo\" was not found"); "" when there are none.
// At most 16 lines of at most 190 bytes.
const char *text_job_notes(const struct text_job *self);

// The tokens of one encoder: chunks x tokens; NULL when the model lacks it. part is MODEL_CLIP_…;
// which is 0 for the prompt and 1 for the negative.
const struct text_token *text_job_tokens(const struct text_job *self, enum model_part part,
                                         uint32_t which, uint32_t *chunks, uint32_t *tokens);

// The job's outputs, valid after text_batch_finish until the job is destroyed: f32 [1, tokens,
// width].
struct text_output {
    const float *cond;    // [1, tokens, width]
    uint32_t tokens;      // 77 n
    uint32_t width;       // 768, 1024, 1280 or 2048
    const float *pooled;  // [1, pooled_width]
    uint32_t pooled_width;
};
// which: 0 the prompt, 1 the negative (both NULL pointers when none was asked for).
struct text_output text_job_output(const struct text_job *self, uint32_t which);

struct text_batch;

// Builds one program over the rows of all jobs.
// Ownership: the caller owns *out and keeps the jobs and the model until it is destroyed.
// Errors:    INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
// Thread:    any.
enum status text_batch_create(struct text_batch **out, const struct text_model *model,
                              struct text_job *const *jobs, uint32_t jobs_count,
                              struct error *error);
void text_batch_destroy(struct text_batch **self_p);

// What to reserve and run on a lane.
const struct program *text_batch_program(const struct text_batch *self);
void *const *text_batch_bindings(const struct text_batch *self, uint32_t *count);

// After a run that ended OK: applies prompt weights, joins chunks and encoders, fills every job's
// outputs.
void text_batch_finish(struct text_batch *self);

// An upper estimate of the arena for rows of 77 tokens, before any weight is loaded, for the
// scaler.
uint64_t text_estimate_bytes(const struct model_description *description, uint32_t rows);

#endif  // MODELS_TEXT_TEXT_H
