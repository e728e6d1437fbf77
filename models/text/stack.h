// stack.h - adapters applied to the encoders of a model, per request, on weights that nobody
// writes.
//
//     adapter    one lora understood for one model, its low-rank factors on the device
//     stack      an ordered list of adapters with strengths: what a request brings
//
// A stack is applied in one of two ways (DESIGN 4.1):
//
//     functional    y = x W^T + sum of s a/r (x down^T) up^T for the rows of that request; requests
//                   with different stacks share one batch and one pass over W
//     merged        an immutable copy of the touched tensors, built in fp32 in stack order and
//                   rounded once; rows of a merged stack are encoded with that copy
//
// Which one follows from the stack and the configuration alone. Both are immutable once made and
// shared by all lanes of the device.

#ifndef MODELS_TEXT_STACK_H
#define MODELS_TEXT_STACK_H

#include "models/lora/lora.h"
#include "models/text/text.h"

struct text_adapter;

// Understands an adapter for a model and puts the factors of low-rank modules on the device.
// encoder_tensors: as lora_encoder_tensors gives them; NULL: an adapter without any.
// Ownership: the caller owns *out and keeps the model as long; the table stays shared.
// Errors:    those of lora_create and weight_create.
// Thread:    any.
enum status text_adapter_create(struct text_adapter **out, const struct text_model *model,
                                struct tensor_table *encoder_tensors, struct error *error);
void text_adapter_destroy(struct text_adapter **self_p);

// What it means, and the memory that it holds.
// Thread:    any.
const struct lora *text_adapter_lora(const struct text_adapter *self);
uint64_t text_adapter_bytes(const struct text_adapter *self);

// One entry of a stack. A strength of 0 on an encoder leaves that encoder out.
struct text_stack_entry {
    const struct text_adapter *adapter;  // of the same model
    float strength[MODEL_PART_COUNT];    // all factors multiplied
};

// True when the stack can only be merged: an entry that counts is not of the low-rank family.
// Thread:    any.
bool text_stack_must_merge(const struct text_stack_entry *entries, uint32_t count);

// Bytes of the copies that merging would make, for the ledger, before it is done; UINT64_MAX when
// there is no memory to count them.
// Thread:    any.
uint64_t text_stack_merged_bytes(const struct text_model *model,
                                 const struct text_stack_entry *entries, uint32_t count);

struct text_stack_options {
    bool merged;            // else functional, which text_stack_must_merge must allow
    struct lora_stop stop;  // merging takes seconds
};

struct text_stack;

// Makes a stack; functional ones in microseconds.
// Ownership: the caller owns *out and keeps model and adapters as long.
// Errors:    CANCELLED, RESOURCE_EXHAUSTED, those of lora_merge.
// Thread:    any; merging is for a thread that may take its time.
enum status text_stack_create(struct text_stack **out, const struct text_model *model,
                              const struct text_stack_entry *entries, uint32_t count,
                              const struct text_stack_options *options, struct error *error);
void text_stack_destroy(struct text_stack **self_p);

// How an entry's adapter came out: tensors that were changed (0 where nothing counts).
// Thread:    any.
uint32_t text_stack_modules(const struct text_stack *self, uint32_t entry);

// Bytes of its merged copies; 0 for a functional one.
// Thread:    any.
uint64_t text_stack_bytes(const struct text_stack *self);

// Lets a job's rows be encoded with a stack; before the job is put into a batch. NULL: none.
// Ownership: the stack is the caller's, until the job is destroyed.
// Thread:    the job's.
void text_job_apply(struct text_job *job, const struct text_stack *stack);

#endif  // MODELS_TEXT_STACK_H
