// executor_loans.c - loans, their uses, and the connection to the lease manager.
//
// Memory that a process has open must not be freed, and the core is not who knows that: a client
// may outlive it, or end its connection with memory open. So each loan has a channel on which
// nothing is ever said, whose other end goes to the client with the lease. It ends when the client
// closes it, shuts it down, or dies. A loan is taken back when three have let go of it:
//
//     lease manager   TakeBackMemory, or its end: all leases end with it
//     client          the channel has ended; at once for one that does not keep its end
//     workers         the last job that uses it
//
// A client that is in no hurry is bounded by loan_limits.h: the lease manager does not count what
// was given back, here it counts until it is free.
//
// Making a loan waits for the device, so a thread of its own does it (loan_lane.h). What is asked
// of it counts as lent already; if the lease has ended when it comes, it is taken back.

#include "actors/executor_loans.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "actors/executor_state.h"
#include "actors/loan_lane.h"
#include "actors/loan_limits.h"
#include "actors/packet.h"
#include "base/text.h"
#include "runtime/channel.h"

struct loan {
    struct executor_loans *loans;   // back to them
    uint32_t pool;                  // 0: the entry is free
    uint32_t user;                  // uid of the client
    uint32_t uses;                  // jobs that have it
    bool is_leased;                 // the lease manager has not let go
    bool is_asked;                  // of the lane: there are only its bytes so far
    int hold;                       // channel to the client; -1: it has let go
    struct loop_descriptor *watch;  // of hold
    struct device_loan memory;      // of the device
};

struct executor_loans {
    struct executor *executor;          // whose
    struct device *device;              // that lends
    int channel;                        // to the lease manager; -1: not connected
    struct loop_descriptor *watch;      // of channel
    struct actor *lane;                 // makes loans
    struct pair lane_pair;              // to it
    struct loan loans[LOANS_OPEN_MAX];  // in no order
};

static struct loan *find_loan(struct executor_loans *self, uint32_t pool)
{
    for (uint32_t i = 0; i < LOANS_OPEN_MAX; i++) {
        if (self->loans[i].pool == pool) return &self->loans[i];
    }
    return NULL;
}

static void let_go(struct loan *loan)
{
    loop_descriptor_remove(&loan->watch);
    if (loan->hold >= 0) close(loan->hold);
    loan->hold = -1;
}

// Frees an entry, and what was made for it.
static void take_back(struct executor_loans *self, struct loan *loan)
{
    assert(loan->pool != 0);
    assert(loan->uses == 0);
    uint64_t bytes = loan->memory.bytes;
    let_go(loan);
    if (loan->memory.memory != NULL) device_take_back(self->device, &loan->memory);
    *loan = (struct loan){.pool = 0};
    ledger_take_back(&self->executor->ledger, bytes);
    executor_forget_memory(self->executor);
}

static void take_back_if_unheld(struct executor_loans *self, struct loan *loan)
{
    if (loan->is_asked || loan->is_leased || loan->hold >= 0 || loan->uses > 0) return;
    take_back(self, loan);
}

// Nothing is said on it: whatever can be read is the end.
static void on_hold(void *state)
{
    struct loan *loan = state;
    struct executor_loans *self = loan->loans;
    let_go(loan);
    take_back_if_unheld(self, loan);
    executor_report(self->executor);
}

static void end_lease(struct executor_loans *self, struct loan *loan)
{
    loan->is_leased = false;
    take_back_if_unheld(self, loan);
}

// ---- the lease manager

static void disconnect(struct executor_loans *self)
{
    loop_descriptor_remove(&self->watch);
    if (self->channel >= 0) close(self->channel);
    self->channel = -1;
    for (uint32_t i = 0; i < LOANS_OPEN_MAX; i++) {
        if (self->loans[i].pool != 0) end_lease(self, &self->loans[i]);
    }
}

// A user has so much open at most, given back or not.
static enum status check_user(const struct executor_loans *self, const luna_LendMemory *asked,
                              struct error *error)
{
    uint32_t count = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < LOANS_OPEN_MAX; i++) {
        const struct loan *loan = &self->loans[i];
        if (loan->pool == 0 || loan->user != asked->user) continue;
        count += 1;
        bytes += loan->memory.bytes;
    }
    assert(bytes <= LOANS_OPEN_BY_USER_BYTES_MAX);
    if (count < LOANS_OPEN_BY_USER_MAX && asked->bytes <= LOANS_OPEN_BY_USER_BYTES_MAX - bytes) {
        return STATUS_OK;
    }
    return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                     "%u allocations of device %s are open by you, of %lu MB: %lu MB more are too "
                     "much until some are closed",
                     count, self->executor->arguments.device, (unsigned long)(bytes >> 20),
                     (unsigned long)(asked->bytes >> 20));
}

// Books what is asked for, where it fits.
static enum status promise(struct executor_loans *self, const luna_LendMemory *asked,
                           struct error *error)
{
    struct executor *executor = self->executor;
    executor_read_memory(executor);
    uint64_t free_bytes = ledger_free(&executor->ledger);
    uint64_t margin = executor->margin_bytes;
    bool fits = free_bytes >= margin && asked->bytes <= free_bytes - margin;
    if (fits && ledger_lend(&executor->ledger, asked->bytes)) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                     "a lease of %lu MB of device %s beside a margin of %lu MB, of which %lu MB "
                     "are free",
                     (unsigned long)(asked->bytes >> 20), executor->arguments.device,
                     (unsigned long)(margin >> 20), (unsigned long)(free_bytes >> 20));
}

// Makes the channel of a loan; *end is the client's, and the caller closes it.
static enum status make_hold(struct executor_loans *self, struct loan *loan, int *end,
                             struct error *error)
{
    int ends[2];
    enum status status = channel_pair(ends, error);
    if (status != STATUS_OK) return status;
    status = loop_add_descriptor(self->executor->context->loop, ends[0], on_hold, loan,
                                 &loan->watch, error);
    if (status != STATUS_OK) {
        close(ends[0]);
        close(ends[1]);
        return status;
    }
    loan->hold = ends[0];
    *end = ends[1];
    return STATUS_OK;
}

// Books the loan and has it made.
static enum status ask_lane(struct executor_loans *self, const luna_LendMemory *asked,
                            struct error *error)
{
    struct loan *loan = find_loan(self, 0);
    if (loan == NULL || asked->pool == 0 || find_loan(self, asked->pool) != NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no entry is left for one more loan");
    }
    enum status status = check_user(self, asked, error);
    if (status == STATUS_OK) status = promise(self, asked, error);
    if (status != STATUS_OK) return status;
    *loan = (struct loan){.loans = self,
                          .pool = asked->pool,
                          .user = asked->user,
                          .is_leased = true,
                          .is_asked = true,
                          .hold = -1,
                          .memory = {.bytes = asked->bytes}};
    const struct loan_letter order = {.pool = asked->pool, .bytes = asked->bytes};
    status = pair_send(&self->lane_pair, &order, sizeof order);
    if (status == STATUS_OK) return STATUS_OK;
    take_back(self, loan);
    return error_set(error, status, "too many loans are being made");
}

// Tells the lease manager; end is the client's end of the loan's channel, -1 where there is none.
static void tell_lent(struct executor_loans *self, const struct loan_letter *made, int end)
{
    luna_Letter letter = {.which_letter = luna_Letter_memory_lent_tag};
    luna_MemoryLent *lent = &letter.letter.memory_lent;
    lent->pool = made->pool;
    lent->code = (luna_Code)made->error.status;
    if (made->error.status == STATUS_OK) {
        assert(end >= 0);
        lent->handle.size = sizeof made->memory.handle;
        memcpy(lent->handle.bytes, made->memory.handle, sizeof made->memory.handle);
    } else {
        text_set(lent->message, sizeof lent->message, made->error.message);
    }
    if (packet_send_letter(self->channel, &letter, end) != STATUS_OK) disconnect(self);
}

static void on_lend(struct executor_loans *self, const luna_LendMemory *asked)
{
    struct loan_letter refused = {.pool = asked->pool};
    refused.error.status = ask_lane(self, asked, &refused.error);
    if (refused.error.status != STATUS_OK) tell_lent(self, &refused, -1);
}

// The lease manager that asked for it may be gone.
static void on_made(struct executor_loans *self, struct loan_letter *made)
{
    struct loan *loan = find_loan(self, made->pool);
    assert(loan != NULL && loan->is_asked);
    if (made->error.status == STATUS_UNAVAILABLE) {
        executor_end_broken(self->executor, made->error.message);
    }
    int end = -1;
    const bool is_leased = loan->is_leased;
    loan->is_asked = false;
    if (made->error.status == STATUS_OK) loan->memory = made->memory;
    if (made->error.status == STATUS_OK && is_leased) {
        made->error.status = make_hold(self, loan, &end, &made->error);
    }
    executor_forget_memory(self->executor);
    if (made->error.status != STATUS_OK || !is_leased) take_back(self, loan);
    executor_report(self->executor);
    if (is_leased) tell_lent(self, made, end);
    if (end >= 0) close(end);
}

static void on_lane(void *state)
{
    struct executor_loans *self = state;
    struct loan_letter made;
    if (pair_receive(&self->lane_pair, &made, sizeof made)) on_made(self, &made);
}

static void on_take_back(struct executor_loans *self, uint32_t pool)
{
    struct loan *loan = pool != 0 ? find_loan(self, pool) : NULL;
    if (loan != NULL) end_lease(self, loan);
    executor_report(self->executor);
}

static void on_channel(void *state)
{
    struct executor_loans *self = state;
    for (uint32_t i = 0; i < LOOP_BATCH_MAX && self->channel >= 0; i++) {
        luna_Letter letter;
        enum status status = packet_receive_letter(self->channel, &letter);
        if (status == STATUS_UNAVAILABLE) return;
        if (status == STATUS_OK && letter.which_letter == luna_Letter_lend_memory_tag) {
            on_lend(self, &letter.letter.lend_memory);
        } else if (status == STATUS_OK && letter.which_letter == luna_Letter_take_back_memory_tag) {
            on_take_back(self, letter.letter.take_back_memory.pool);
        } else {
            disconnect(self);
            executor_report(self->executor);
        }
    }
}

void executor_loans_look(struct executor_loans *self)
{
    assert(self != NULL);
    if (self->channel >= 0) return;
    struct executor *executor = self->executor;
    if (packet_connect(&self->channel, executor->arguments.private_directory, SOCKET_POOLS) !=
        STATUS_OK) {
        return;
    }
    luna_Letter letter = {.which_letter = luna_Letter_device_tag};
    executor_describe(executor, &letter.letter.device);
    enum status status = packet_send_letter(self->channel, &letter, -1);
    if (status == STATUS_OK) {
        status = loop_add_descriptor(executor->context->loop, self->channel, on_channel, self,
                                     &self->watch, NULL);
    }
    if (status != STATUS_OK) disconnect(self);
}

// ---- workers

void executor_loans_borrow(struct executor_loans *self, struct executor_letter *letter)
{
    assert(letter->kind == EXECUTOR_BORROW);
    struct loan *loan = self != NULL && letter->pool != 0 ? find_loan(self, letter->pool) : NULL;
    letter->kind = EXECUTOR_LENT;
    letter->memory = NULL;
    if (loan == NULL || !loan->is_leased || loan->is_asked) return;
    loan->uses += 1;
    letter->memory = loan->memory.memory;
    letter->bytes = loan->memory.bytes;
}

void executor_loans_return(struct executor_loans *self, uint32_t pool)
{
    assert(self != NULL);
    assert(pool != 0);
    struct loan *loan = find_loan(self, pool);
    assert(loan != NULL);
    assert(loan->uses > 0);
    loan->uses -= 1;
    take_back_if_unheld(self, loan);
    if (loan->pool == 0) executor_report(self->executor);
}

// ---- life

void executor_loans_destroy(struct executor_loans **self_p)
{
    assert(self_p != NULL);
    struct executor_loans *self = *self_p;
    if (self == NULL) return;
    disconnect(self);
    actor_stop(&self->lane);
    // Loans that the lane made and nobody has read of.
    struct loan_letter made;
    while (pair_receive(&self->lane_pair, &made, sizeof made)) {
        if (made.error.status == STATUS_OK) device_take_back(self->device, &made.memory);
    }
    pair_close(&self->lane_pair);
    for (uint32_t i = 0; i < LOANS_OPEN_MAX; i++) {
        if (self->loans[i].pool != 0) take_back(self, &self->loans[i]);
    }
    free(self);
    *self_p = NULL;
}

enum status executor_loans_create(struct executor_loans **out, struct executor *executor,
                                  struct error *error)
{
    assert(out != NULL);
    assert(executor != NULL);
    struct executor_loans *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for loans");
    self->executor = executor;
    self->device = executor->devices[luna_Group_VAE];
    self->channel = -1;
    const struct pair_end end = {
        .address = LOAN_LANE_ADDRESS, .binds = true, .on_readable = on_lane, .state = self};
    enum status status = pair_open(&self->lane_pair, executor->context, &end, error);
    if (status == STATUS_OK) {
        const struct loan_lane_arguments lane = {.device = self->device};
        status = actor_start(&self->lane, &loan_lane_kind, &executor->host, &lane, error);
    }
    if (status != STATUS_OK) {
        executor_loans_destroy(&self);
        return status;
    }
    *out = self;
    return STATUS_OK;
}
