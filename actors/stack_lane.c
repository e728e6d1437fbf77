// stack_lane.c - see stack_lane.h. An adapter comes as a descriptor of a file, from the LoRA
// store's private socket; only the tensors of text encoders are kept of it.

#include "actors/stack_lane.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "actors/packet.h"
#include "actors/pair.h"
#include "actors/topology.h"

#define ANSWER_MS 5000                   // of the store, which may be busy
#define PROGRESS_NS UINT64_C(500000000)  // between two signs of life

struct stack_lane {
    const struct actor_context *context;    // as actor.h gives it
    struct stack_lane_arguments arguments;  // as the executor gave them
    struct pair pair;                       // to the executor
    uint64_t told_ns;                       // last sign of life
};

static void post(struct stack_lane *self, const struct stack_letter *letter)
{
    enum status status = pair_send(&self->pair, letter, sizeof *letter);
    assert(status == STATUS_OK || letter->kind == STACK_PROGRESS);
    (void)status;
}

// ---- fetching

// Opens what the store hands out for a hash.
static enum status fetch_file(const struct stack_lane *self, const struct hash *hash,
                              struct tensor_table **out, struct error *error)
{
    luna_Letter letter = {.which_letter = luna_Letter_adapter_fetch_tag};
    letter.letter.adapter_fetch.encoder_hash.size = sizeof hash->value;
    memcpy(letter.letter.adapter_fetch.encoder_hash.bytes, hash->value, sizeof hash->value);
    int descriptor = -1;
    enum status status = packet_ask(self->arguments.private_directory, SOCKET_ADAPTERS, ANSWER_MS,
                                    &letter, &descriptor);
    const luna_AdapterFetched *fetched = &letter.letter.adapter_fetched;
    if (status != STATUS_OK || letter.which_letter != luna_Letter_adapter_fetched_tag) {
        status = error_set(error, STATUS_UNAVAILABLE, "the LoRA store does not answer");
    } else if (fetched->code != luna_Code_OK) {
        status = error_set(error, (enum status)fetched->code, "%s", fetched->message);
    } else if (descriptor < 0) {
        status = error_set(error, STATUS_INTERNAL, "the LoRA store handed out no file");
    } else {
        status = tensor_table_open_descriptor(out, descriptor, "adapter", NULL, error);
    }
    if (descriptor >= 0) close(descriptor);
    return status;
}

static void fetch(const struct stack_lane *self, struct stack_letter *letter)
{
    struct tensor_table *file = NULL;
    struct tensor_table *tensors = NULL;
    struct error *error = &letter->error;
    enum status status = fetch_file(self, &letter->fetch.hash, &file, error);
    if (status == STATUS_OK) status = lora_encoder_tensors(&tensors, file, error);
    if (status == STATUS_OK) {
        status = text_adapter_create(&letter->adapter, letter->fetch.model, tensors, error);
    }
    tensor_table_release(&tensors);
    tensor_table_release(&file);
    if (status != STATUS_OK) return;
    letter->bytes = text_adapter_bytes(letter->adapter);
    error->status = STATUS_OK;
}

// ---- merging

static bool should_stop(void *context)
{
    struct stack_lane *self = context;
    uint64_t now = clock_ns(loop_clock(self->context->loop));
    if (now - self->told_ns >= PROGRESS_NS) {
        const struct stack_letter letter = {.kind = STACK_PROGRESS};
        self->told_ns = now;
        post(self, &letter);
    }
    return pair_has_message(&self->pair);
}

static void merge(struct stack_lane *self, struct stack_letter *letter)
{
    const struct stack_merge *order = &letter->merge;
    const struct text_stack_options options = {
        .merged = true, .stop = {.should_stop = should_stop, .context = self}};
    self->told_ns = clock_ns(loop_clock(self->context->loop));
    enum status status = text_stack_create(&letter->stack, order->model, order->entries,
                                           order->count, &options, &letter->error);
    if (status != STATUS_OK) return;
    letter->bytes = text_stack_bytes(letter->stack);
    letter->error.status = STATUS_OK;
}

static void on_letter(void *state)
{
    struct stack_lane *self = state;
    struct stack_letter letter;
    if (!pair_receive(&self->pair, &letter, sizeof letter)) return;
    if (letter.kind == STACK_STOP) return;  // it came too late
    if (letter.kind == STACK_FETCH)
        fetch(self, &letter);
    else
        merge(self, &letter);
    post(self, &letter);
}

// ---- life

static void stack_lane_destroy(void *state)
{
    struct stack_lane *self = state;
    if (self == NULL) return;
    pair_close(&self->pair);
    free(self);
}

static enum status stack_lane_create(void **state, const struct actor_context *context,
                                     const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct stack_lane *self = calloc(1, sizeof *self);
    if (self == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a lane of stacks");
    self->context = context;
    self->arguments = *(const struct stack_lane_arguments *)arguments;
    // It yields to the compute threads.
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 5);
    const struct pair_end end = {
        .address = self->arguments.address, .on_readable = on_letter, .state = self};
    enum status status = pair_open(&self->pair, context, &end, error);
    if (status != STATUS_OK) {
        stack_lane_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind stack_lane_kind = {"stack_lane", stack_lane_create, stack_lane_destroy,
                                           NULL};
