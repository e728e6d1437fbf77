// clip_request.h - what a text request asks for, from its tensors to a job of models/text.

#ifndef ACTORS_CLIP_REQUEST_H
#define ACTORS_CLIP_REQUEST_H

#include "actors/worker.h"

// Reads ENCODE_TEXT, ENCODE_TOKENS and TOKENIZE: texts, or tokens that the client made itself. The
// job's stack is applied.
// Ownership: the caller ends *out with text_job_destroy.
// Errors:    INVALID_ARGUMENT names the tensor or the value; RESOURCE_EXHAUSTED.
// Thread:    the worker's.
enum status clip_read_request(struct worker *worker, struct worker_job *job, struct text_job **out,
                              struct error *error);

#endif  // ACTORS_CLIP_REQUEST_H
