// leases_devices.c - device memory for clients: the lease manager keeps who holds it, the executor
// of the device owns it.
//
//     client    acquire(bytes, UUID)                           release, or EOF
//                    |                 ^ LeaseReply: handle          |
//     leases    LOAN_ASKED ---------> LOAN_LENT -------------------> +--> TakeBackMemory
//                    | LendMemory      ^ MemoryLent
//     executor       +----device_lend--+                             device_take_back
//                                      a descriptor, passed on -----> once it has ended
//
// The executor lends where it is asked to, because it alone knows the device and its ledger; who
// holds what, for how long, and how much of it one user may have is known here, for both kinds of
// memory. A client that waits for its executor is not read meanwhile. When the executor's
// connection ends, its loans are void: they keep their numbers until the clients let go of them, so
// that a request that names one is told what happened.
//
// That a client has closed what it had mapped the executor learns from the client itself:
// MemoryLent brings a descriptor that is passed on and not kept here, so that it tells that whether
// this process lives or not.

#include "actors/leases_state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "actors/packet.h"
#include "base/checked.h"
#include "base/text.h"

#define LOAN_UNIT_BYTES (UINT64_C(2) << 20)
#define NAMES_BYTES 140u  // for the UUIDs of three GPUs

_Static_assert(LOAN_UNIT_BYTES % LEASE_UNIT_BYTES == 0, "a loan is a pool");

// ---- lenders

// The executor that came last for a UUID: its predecessor's end may not have been heard yet.
static struct lender *find_lender(struct leases *self, const char *uuid)
{
    struct lender *found = NULL;
    for (uint32_t i = 0; i < LEASES_DEVICES_MAX; i++) {
        struct lender *lender = &self->lenders[i];
        if (lender->guest == NULL || strcmp(lender->uuid, uuid) != 0) continue;
        if (found == NULL || lender->guest->number > found->guest->number) found = lender;
    }
    return found;
}

static struct lender *lender_of(struct leases *self, uint64_t number)
{
    for (uint32_t i = 0; i < LEASES_DEVICES_MAX; i++) {
        struct lender *lender = &self->lenders[i];
        if (lender->guest != NULL && lender->guest->number == number) return lender;
    }
    return NULL;
}

const char *leases_device_of(struct leases *self, const struct pool *pool)
{
    assert(self != NULL);
    const struct lender *lender = pool->loan != LOAN_NONE ? lender_of(self, pool->executor) : NULL;
    return lender != NULL ? lender->name : NULL;
}

static enum status fail_unknown(const struct leases *self, const char *uuid, struct error *error)
{
    char names[NAMES_BYTES] = "";
    for (uint32_t i = 0; i < LEASES_DEVICES_MAX; i++) {
        size_t used = strlen(names);
        if (self->lenders[i].guest == NULL) continue;
        snprintf(names + used, sizeof names - used, "%s%s", used == 0 ? "" : ", ",
                 self->lenders[i].uuid);
    }
    return error_set(error, STATUS_NOT_FOUND, "no GPU \"%.47s\" lends memory here, %s", uuid,
                     names[0] == '\0' ? "nor any other" : names);
}

static void add_lender(struct leases *self, struct door_guest *guest,
                       const luna_DeviceReport *report)
{
    struct lender *lender = NULL;
    for (uint32_t i = 0; i < LEASES_DEVICES_MAX && lender == NULL; i++) {
        if (self->lenders[i].guest == NULL) lender = &self->lenders[i];
    }
    if (lender == NULL || lender_of(self, guest->number) != NULL) return;
    lender->guest = guest;
    text_set(lender->name, sizeof lender->name, report->name);
    text_set(lender->uuid, sizeof lender->uuid, report->uuid);
    log_event(self->context->log, LOG_INFO, "lender.up", "device=%s uuid=%s", lender->name,
              lender->uuid);
}

// ---- the end of a loan

static void reply_error(struct leases *self, const struct pool *pool, const struct error *error)
{
    struct door_guest *guest = door_find(&self->door, pool->place, pool->session);
    if (guest == NULL) return;
    luna_LeaseReply reply = luna_LeaseReply_init_zero;
    reply.code = (luna_Code)error->status;
    text_set(reply.message, sizeof reply.message, error->message);
    if (door_reply(guest, luna_LeaseReply_fields, &reply, -1) == STATUS_OK) {
        door_resume(guest);
    } else {
        door_dismiss(guest);
    }
}

void leases_trim_loan(struct leases *self, struct pool *pool)
{
    assert(pool->loan != LOAN_NONE);
    if (pool->loan == LOAN_ASKED || lease_table_slots(pool->table) > 0) return;
    struct lender *lender = lender_of(self, pool->executor);
    if (pool->loan == LOAN_LENT && lender != NULL) {
        luna_Letter letter = {.which_letter = luna_Letter_take_back_memory_tag};
        letter.letter.take_back_memory.pool = pool->number;
        // An executor that does not read is one that hangs: its end gives everything back.
        if (packet_send_letter(lender->guest->socket, &letter, -1) != STATUS_OK) {
            log_event(self->context->log, LOG_ERROR, "loan.stuck", "device=%s pool=%u",
                      lender->name, pool->number);
        }
    }
    leases_close_pool(pool);
}

void leases_forget_lender(struct leases *self, const struct door_guest *guest)
{
    struct lender *lender = lender_of(self, guest->number);
    if (lender == NULL) return;
    struct error error;
    error_set(&error, STATUS_UNAVAILABLE, "the process of device %s ended", lender->name);
    log_event(self->context->log, LOG_INFO, "lender.down", "device=%s uuid=%s", lender->name,
              lender->uuid);
    *lender = (struct lender){.guest = NULL};
    for (uint32_t i = LEASES_SHARED_MAX; i < LEASES_POOLS_MAX; i++) {
        struct pool *pool = &self->pools[i];
        if (pool->number == 0 || pool->executor != guest->number) continue;
        if (pool->loan == LOAN_ASKED) {
            struct pool asked = *pool;
            *pool = (struct pool){.memory = {.descriptor = -1}};
            reply_error(self, &asked, &error);
            lease_table_destroy(&asked.table);
        } else {
            pool->loan = LOAN_VOID;
        }
    }
}

enum status leases_release_loan(struct leases *self, struct door_guest *guest,
                                const luna_LeaseRequest *request, struct error *error)
{
    struct pool *pool = leases_find_pool(self, request->release_pool);
    if (pool == NULL || pool->loan == LOAN_NONE || pool->session != guest->number) {
        return error_set(error, STATUS_NOT_FOUND, "device lease %u is not yours",
                         request->release_pool);
    }
    enum status status = lease_table_release(pool->table, guest->number, request->release_slot,
                                             request->release_generation, error);
    if (status == STATUS_OK) leases_trim_loan(self, pool);
    return status;
}

uint32_t leases_end_loans(struct leases *self, const struct door_guest *guest)
{
    uint32_t ended = 0;
    for (uint32_t i = LEASES_SHARED_MAX; i < LEASES_POOLS_MAX; i++) {
        struct pool *pool = &self->pools[i];
        if (pool->number == 0 || pool->session != guest->number) continue;
        ended += lease_table_end_session(pool->table, guest->number);
        leases_trim_loan(self, pool);
    }
    return ended;
}

// ---- a new loan

// What the user may have; *pool gets a free entry.
static enum status check_quota(struct leases *self, uint32_t uid, uint64_t bytes,
                               struct pool **pool, struct error *error)
{
    uint32_t count = 0;
    uint64_t held_bytes = 0;
    struct pool *room = NULL;
    for (uint32_t i = LEASES_SHARED_MAX; i < LEASES_POOLS_MAX; i++) {
        struct pool *other = &self->pools[i];
        if (other->number == 0) room = other;
        if (other->number == 0 || other->uid != uid) continue;
        count += 1;
        held_bytes += other->bytes;
    }
    if (bytes > LOANS_HELD_BY_USER_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a lease of %llu bytes of device memory was asked for, a user may have "
                         "%llu",
                         (unsigned long long)bytes,
                         (unsigned long long)LOANS_HELD_BY_USER_BYTES_MAX);
    }
    if (count >= LOANS_HELD_BY_USER_MAX || bytes > LOANS_HELD_BY_USER_BYTES_MAX - held_bytes) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "%u leases of device memory are yours, of %llu bytes; %u leases and %llu "
                         "bytes may be",
                         count, (unsigned long long)held_bytes, LOANS_HELD_BY_USER_MAX,
                         (unsigned long long)LOANS_HELD_BY_USER_BYTES_MAX);
    }
    if (room == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "all %u leases of device memory are out",
                         LOANS_HELD_MAX);
    }
    *pool = room;
    return STATUS_OK;
}

enum status leases_acquire_loan(struct leases *self, struct door_guest *guest,
                                const luna_LeaseRequest *request, struct error *error)
{
    assert(request->acquire_bytes > 0);
    struct lender *lender = find_lender(self, request->device);
    if (lender == NULL) return fail_unknown(self, request->device, error);
    struct pool *pool = NULL;
    enum status status = check_quota(self, guest->uid, request->acquire_bytes, &pool, error);
    if (status != STATUS_OK) return status;
    struct pool made = {.number = leases_next_number(self),
                        .uid = guest->uid,
                        .memory = {.descriptor = -1},
                        .loan = LOAN_ASKED,
                        .bytes = round_up(request->acquire_bytes, LOAN_UNIT_BYTES),
                        .session = guest->number,
                        .place = door_place(guest),
                        .executor = lender->guest->number};
    status = lease_table_create(&made.table, made.bytes, error);
    if (status != STATUS_OK) return status;
    luna_Letter letter = {.which_letter = luna_Letter_lend_memory_tag};
    letter.letter.lend_memory.pool = made.number;
    letter.letter.lend_memory.bytes = made.bytes;
    letter.letter.lend_memory.user = made.uid;
    if (packet_send_letter(lender->guest->socket, &letter, -1) != STATUS_OK) {
        lease_table_destroy(&made.table);
        return error_set(error, STATUS_UNAVAILABLE, "the process of device %s does not listen",
                         lender->name);
    }
    *pool = made;
    door_pause(guest);
    return STATUS_OK;
}

// hold goes to the client: see executor_loans.c.
static bool reply_lent(struct door_guest *guest, const struct pool *pool,
                       const luna_MemoryLent *lent, int hold)
{
    struct lease lease;
    enum status status = lease_table_acquire(pool->table, pool->session, pool->bytes, &lease, NULL);
    assert(status == STATUS_OK);  // the whole of an empty pool
    luna_LeaseReply reply = luna_LeaseReply_init_zero;
    reply.pool = pool->number;
    reply.pool_bytes = pool->bytes;
    reply.slot = lease.slot;
    reply.generation = lease.generation;
    reply.bytes = lease.bytes;
    reply.handle.size = lent->handle.size;
    memcpy(reply.handle.bytes, lent->handle.bytes, lent->handle.size);
    return door_reply(guest, luna_LeaseReply_fields, &reply, hold) == STATUS_OK;
}

static void on_lent(struct leases *self, const struct door_guest *executor,
                    const luna_MemoryLent *lent)
{
    struct pool *pool = leases_find_pool(self, lent->pool);
    if (pool == NULL || pool->loan != LOAN_ASKED || pool->executor != executor->number) return;
    if (lent->code != luna_Code_OK) {
        struct error error;
        error_set(&error, (enum status)lent->code, "%s", lent->message);
        reply_error(self, pool, &error);
        leases_close_pool(pool);
        return;
    }
    struct door_guest *guest = door_find(&self->door, pool->place, pool->session);
    pool->loan = LOAN_LENT;
    if (guest == NULL) {
        leases_trim_loan(self, pool);
        return;
    }
    leases_changed(self);
    if (reply_lent(guest, pool, lent, executor->passed)) {
        door_resume(guest);
    } else {
        door_dismiss(guest);
    }
}

bool leases_hear_lender(struct leases *self, struct door_guest *guest, const luna_Letter *letter)
{
    if (letter->which_letter == luna_Letter_device_tag) {
        add_lender(self, guest, &letter->letter.device);
        return true;
    }
    if (letter->which_letter != luna_Letter_memory_lent_tag) return false;
    on_lent(self, guest, &letter->letter.memory_lent);
    return true;
}
