// clip_request.c - texts and tokens of a request; the shapes were checked by the codec.

#include "actors/clip_request.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status optional_text(struct worker *worker, struct worker_job *job, const char *name,
                                 struct bytes *out, struct error *error)
{
    const luna_Tensor *tensor = codec_find_tensor(&job->header, name, NULL);
    if (tensor == NULL) return STATUS_OK;
    enum status status = worker_input(worker, job, name, &tensor, out, error);
    if (status == STATUS_OK && out->data == NULL) out->data = "";  // there, and empty
    return status;
}

static enum status read_texts(struct worker *worker, struct worker_job *job, struct text_job **out,
                              struct error *error)
{
    struct text_request request = {.has_negative = false};
    const struct {
        const char *name;
        struct bytes *bytes;
    } texts[] = {
        {"prompt", &request.prompt},
        {"prompt_2", &request.prompt_2},
        {"negative", &request.negative},
        {"negative_2", &request.negative_2},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        enum status status = optional_text(worker, job, texts[i].name, texts[i].bytes, error);
        if (status != STATUS_OK) return status;
    }
    request.has_prompt_2 = request.prompt_2.data != NULL;
    request.has_negative = request.negative.data != NULL;
    request.has_negative_2 = request.negative_2.data != NULL;
    if (job->header.operation == luna_Operation_TOKENIZE) {
        request.disable_weights = job->body.tokenize.disable_weights;
    } else {
        request.disable_weights = job->body.encode_text.disable_weights;
        request.clip_skip = job->body.encode_text.clip_skip;
    }
    return text_job_create(out, worker->arguments.loaded->text, &request, error);
}

// A copy of a tensor's bytes with malloc's alignment; frames have none. *out stays NULL when the
// request has no such tensor.
static enum status copy_tensor(struct worker *worker, struct worker_job *job, const char *name,
                               void **out, const luna_Tensor **tensor, struct error *error)
{
    struct bytes bytes;
    *tensor = codec_find_tensor(&job->header, name, NULL);
    if (*tensor == NULL) return STATUS_OK;
    enum status status = worker_input(worker, job, name, tensor, &bytes, error);
    if (status != STATUS_OK) return status;
    void *copy = malloc(bytes.size);
    if (copy == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for tensor \"%s\"", name);
    }
    memcpy(copy, bytes.data, bytes.size);
    *out = copy;
    return STATUS_OK;
}

static enum status read_tokens_of(struct worker *worker, struct worker_job *job, const char *stem,
                                  struct text_tokens *out, struct error *error)
{
    char name[sizeof((luna_Tensor *)NULL)->name];
    void *ids = NULL;
    void *weights = NULL;
    const luna_Tensor *tensor = NULL;
    snprintf(name, sizeof name, "%s.weights", stem);
    enum status status = copy_tensor(worker, job, name, &weights, &tensor, error);
    out->weights = weights;
    if (status != STATUS_OK) return status;
    snprintf(name, sizeof name, "%s.ids", stem);
    status = copy_tensor(worker, job, name, &ids, &tensor, error);
    out->ids = ids;
    if (status != STATUS_OK || tensor == NULL) return status;
    assert(tensor->dims_count == 2);
    if (tensor->dims[0] > UINT32_MAX || tensor->dims[1] > UINT32_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tensor \"%s\" has %lu chunks", name,
                         (unsigned long)tensor->dims[0]);
    }
    out->chunks = (uint32_t)tensor->dims[0];
    out->length = (uint32_t)tensor->dims[1];
    return STATUS_OK;
}

static enum status read_tokens(struct worker *worker, struct worker_job *job, struct text_job **out,
                               struct error *error)
{
    static const struct {
        const char *stem;
        enum model_part part;
        uint32_t which;
    } stems[] = {
        {"l", MODEL_CLIP_L, 0},          {"g", MODEL_CLIP_G, 0},
        {"h", MODEL_CLIP_H, 0},          {"negative.l", MODEL_CLIP_L, 1},
        {"negative.g", MODEL_CLIP_G, 1}, {"negative.h", MODEL_CLIP_H, 1},
    };
    struct text_tokens_request request = {.clip_skip = job->body.encode_text.clip_skip};
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < sizeof stems / sizeof stems[0]; i++) {
        struct text_tokens *tokens = &request.tokens[stems[i].part][stems[i].which];
        status = read_tokens_of(worker, job, stems[i].stem, tokens, error);
    }
    if (status == STATUS_OK) {
        status = text_job_create_from_tokens(out, worker->arguments.loaded->text, &request, error);
    }
    for (int part = 0; part < MODEL_PART_COUNT; part++) {
        for (int which = 0; which < 2; which++) {
            free((void *)(uintptr_t)request.tokens[part][which].ids);
            free((void *)(uintptr_t)request.tokens[part][which].weights);
        }
    }
    return status;
}

enum status clip_read_request(struct worker *worker, struct worker_job *job, struct text_job **out,
                              struct error *error)
{
    assert(job->in_hand);
    assert(out != NULL);
    assert(!job->waits_for_stack);
    bool tokens = job->header.operation == luna_Operation_ENCODE_TOKENS;
    enum status status =
        tokens ? read_tokens(worker, job, out, error) : read_texts(worker, job, out, error);
    if (status == STATUS_OK && job->stack_count > 0) text_job_apply(*out, job->grant.stack);
    return status;
}
