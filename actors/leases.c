// leases.c - the actor that lends memory to clients of this machine.
//
//     client    --lease.sock--> acquire, release; its connection is the session, EOF gives all back
//     worker    --pools.sock--> the descriptor of a pool of shared memory
//     executor  --pools.sock--> device memory, lent and taken back (leases_devices.c)
//     router    --PAIR--------> pin for a job, unpin
//
// Each uid has a pool of shared memory of its own: a sealed, sparse memfd whose size nobody can
// change, so no mapping of it can ever fault. Numbers of pools begin at a random one, so that a
// worker that outlived a core never takes a new pool for one that it has mapped. When a pool's last
// session ends, its pages go back to the system. A lease of device memory is a pool of its own.

#include "actors/leases_state.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "actors/event.h"
#include "actors/packet.h"
#include "actors/post.h"
#include "actors/topology.h"
#include "runtime/socket.h"
#include "runtime/system_memory.h"

#define POOL_BYTES_MAX (UINT64_C(1) << 30)
#define POOL_SHARE 4u  // a pool has at most this part of the machine's memory
#define COUNTS_AFTER_MS 100u

// ---- pools

void leases_close_pool(struct pool *pool)
{
    if (pool->number == 0) return;
    lease_table_destroy(&pool->table);
    shared_memory_destroy(&pool->memory);
    *pool = (struct pool){.memory = {.descriptor = -1}};
}

uint32_t leases_next_number(struct leases *self)
{
    self->pool_number = self->pool_number == UINT32_MAX ? 1 : self->pool_number + 1;
    return self->pool_number;
}

static enum status open_pool(struct leases *self, struct pool *pool, uint32_t uid,
                             struct error *error)
{
    enum status status = lease_table_create(&pool->table, self->pool_bytes, error);
    if (status != STATUS_OK) return status;
    status = shared_memory_create(&pool->memory, "luna-pool", self->pool_bytes, error);
    if (status != STATUS_OK) {
        lease_table_destroy(&pool->table);
        return status;
    }
    pool->number = leases_next_number(self);
    pool->uid = uid;
    return STATUS_OK;
}

// The pool of a uid, made when it has none; one that nobody uses makes room.
static enum status take_pool(struct leases *self, uint32_t uid, struct pool **out,
                             struct error *error)
{
    struct pool *room = NULL;
    for (uint32_t i = 0; i < LEASES_SHARED_MAX; i++) {
        struct pool *pool = &self->pools[i];
        if (pool->number != 0 && pool->uid == uid) {
            *out = pool;
            return STATUS_OK;
        }
        bool is_free =
            pool->number == 0 || (pool->sessions == 0 && lease_table_slots(pool->table) == 0);
        if (is_free && (room == NULL || pool->number == 0)) room = pool;
    }
    if (room == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "%u users share memory already, no more fit", LEASES_SHARED_MAX);
    }
    leases_close_pool(room);
    enum status status = open_pool(self, room, uid, error);
    if (status == STATUS_OK) *out = room;
    return status;
}

struct pool *leases_find_pool(struct leases *self, uint32_t number)
{
    for (uint32_t i = 0; number != 0 && i < LEASES_POOLS_MAX; i++) {
        if (self->pools[i].number == number) return &self->pools[i];
    }
    return NULL;
}

// Gives the pages of a pool that nobody uses back; its size and its descriptors stay. Device memory
// goes back whole.
static void trim(struct leases *self, struct pool *pool)
{
    if (pool->loan != LOAN_NONE) leases_trim_loan(self, pool);
    if (pool->number == 0 || pool->loan != LOAN_NONE) return;
    if (pool->sessions > 0 || lease_table_slots(pool->table) > 0) return;
    fallocate(pool->memory.descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
              (off_t)pool->memory.bytes);
}

// ---- what the monitor is told

void leases_changed(struct leases *self)
{
    loop_timer_restart(self->tell, COUNTS_AFTER_MS);
}

static void on_tell(void *state)
{
    struct leases *self = state;
    luna_Letter letter = {.which_letter = luna_Letter_lease_counts_tag};
    luna_LeaseCounts *counts = &letter.letter.lease_counts;
    for (uint32_t i = 0; i < LEASES_POOLS_MAX; i++) {
        if (self->pools[i].number == 0) continue;
        counts->leases += lease_table_slots(self->pools[i].table);
        counts->bytes += lease_table_bytes(self->pools[i].table);
    }
    post_letter(self->events, &letter, NULL);
}

static void tell_reclaimed(struct leases *self, const struct door_guest *guest, uint32_t slots)
{
    char text[128];
    snprintf(text, sizeof text, "a client of uid %u is gone: %u leases come back", guest->uid,
             slots);
    luna_Letter letter = event_make("lease.reclaimed", "leases", text);
    letter.letter.event.value = slots;
    post_letter(self->events, &letter, NULL);
}

// ---- guests: a client's number is its session, its data the pool that it has acquired from

static void on_gone(void *state, struct door_guest *guest)
{
    struct leases *self = state;
    struct pool *pool = guest->data;
    if (!guest->is_client) leases_forget_lender(self, guest);
    uint32_t slots = leases_end_loans(self, guest);
    if (pool != NULL) {
        slots += lease_table_end_session(pool->table, guest->number);
        pool->sessions -= 1;
        trim(self, pool);
    }
    if (slots > 0) tell_reclaimed(self, guest, slots);
    leases_changed(self);
}

static enum status acquire(struct leases *self, struct door_guest *guest, uint64_t bytes,
                           luna_LeaseReply *reply, struct error *error)
{
    struct pool *pool = guest->data;
    enum status status = STATUS_OK;
    if (pool == NULL) status = take_pool(self, guest->uid, &pool, error);
    if (status != STATUS_OK) return status;
    struct lease lease;
    status = lease_table_acquire(pool->table, guest->number, bytes, &lease, error);
    if (status != STATUS_OK) return status;
    if (guest->data == NULL) pool->sessions += 1;
    guest->data = pool;
    reply->pool = pool->number;
    reply->pool_bytes = pool->memory.bytes;
    reply->slot = lease.slot;
    reply->generation = lease.generation;
    reply->offset = lease.offset;
    reply->bytes = lease.bytes;
    return STATUS_OK;
}

static enum status release(struct leases *self, struct door_guest *guest,
                           const luna_LeaseRequest *request, struct error *error)
{
    struct pool *pool = guest->data;
    if (request->release_pool != 0) return leases_release_loan(self, guest, request, error);
    if (pool == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "this connection has no leases");
    }
    return lease_table_release(pool->table, guest->number, request->release_slot,
                               request->release_generation, error);
}

static bool serve_client(void *state, struct door_guest *guest, struct bytes packet)
{
    struct leases *self = state;
    luna_LeaseRequest request = luna_LeaseRequest_init_zero;
    luna_LeaseReply reply = luna_LeaseReply_init_zero;
    struct error error = {0};
    const bool had_pool = guest->data != NULL;
    enum status status = codec_decode(luna_LeaseRequest_fields, packet, &request, &error);
    if (status == STATUS_OK && request.acquire_bytes > 0 && request.device[0] != '\0') {
        status = leases_acquire_loan(self, guest, &request, &error);
        if (status == STATUS_OK) return true;
    } else if (status == STATUS_OK && request.acquire_bytes > 0) {
        status = acquire(self, guest, request.acquire_bytes, &reply, &error);
    } else if (status == STATUS_OK) {
        status = release(self, guest, &request, &error);
    }
    reply.code = (luna_Code)status;
    if (status != STATUS_OK) text_set(reply.message, sizeof reply.message, error.message);
    leases_changed(self);
    // The first reply that names a pool carries its descriptor.
    const struct pool *pool = guest->data;
    const int descriptor = pool != NULL && !had_pool ? pool->memory.descriptor : -1;
    return door_reply(guest, luna_LeaseReply_fields, &reply, descriptor) == STATUS_OK;
}

static bool serve_own(void *state, struct door_guest *guest, struct bytes packet)
{
    luna_Letter letter;
    if (letter_decode(packet, &letter, NULL) != STATUS_OK) return false;
    if (letter.which_letter != luna_Letter_pool_request_tag) {
        return leases_hear_lender(state, guest, &letter);
    }
    uint32_t number = letter.letter.pool_request.pool;
    const struct pool *pool = leases_find_pool(state, number);
    if (pool != NULL && pool->loan != LOAN_NONE) pool = NULL;
    letter = (luna_Letter){.which_letter = luna_Letter_pool_answer_tag};
    luna_PoolAnswer *answer = &letter.letter.pool_answer;
    answer->pool = number;
    answer->bytes = pool != NULL ? pool->memory.bytes : 0;
    answer->code = pool != NULL ? luna_Code_OK : luna_Code_NOT_FOUND;
    return packet_send_letter(guest->socket, &letter,
                              pool != NULL ? pool->memory.descriptor : -1) == STATUS_OK;
}

// ---- the router

static enum status pin(struct leases *self, const luna_PinLease *request, uint64_t *pool_offset,
                       struct error *error)
{
    struct pool *pool = leases_find_pool(self, request->shared.pool);
    if (pool == NULL || pool->uid != request->user) {
        return error_set(error, STATUS_NOT_FOUND, "%s %u is not yours",
                         request->device ? "device lease" : "pool", request->shared.pool);
    }
    if (request->device != (pool->loan != LOAN_NONE)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "pool %u is %s memory, not %s memory",
                         pool->number, request->device ? "shared" : "device",
                         request->device ? "device" : "shared");
    }
    if (pool->loan == LOAN_VOID) {
        return error_set(error, STATUS_NOT_FOUND,
                         "device lease %u is void: the process of its device ended", pool->number);
    }
    if (request->job == 0) return error_set(error, STATUS_INTERNAL, "a pin without a job");
    const struct lease_range range = {.slot = request->shared.slot,
                                      .generation = request->shared.generation,
                                      .offset = request->shared.offset,
                                      .bytes = request->bytes};
    return lease_table_pin(pool->table, request->job, &range, pool_offset, error);
}

static void on_pin(struct leases *self, const luna_PinLease *request)
{
    luna_Letter letter = {.which_letter = luna_Letter_pin_answer_tag};
    luna_PinAnswer *answer = &letter.letter.pin_answer;
    struct error error = {0};
    uint64_t pool_offset = 0;
    enum status status = pin(self, request, &pool_offset, &error);
    answer->job = request->job;
    answer->tensor = request->tensor;
    answer->pool_offset = pool_offset;
    answer->code = (luna_Code)status;
    if (status != STATUS_OK) {
        text_set(answer->message, sizeof answer->message, error.message);
    } else {
        const struct pool *pool = leases_find_pool(self, request->shared.pool);
        const char *device = leases_device_of(self, pool);
        if (device != NULL) text_set(answer->device, sizeof answer->device, device);
    }
    if (post_letter(self->router, &letter, NULL) != STATUS_OK) {
        log_event(self->context->log, LOG_ERROR, "pin.lost", "job=%lu",
                  (unsigned long)request->job);
    }
}

static void on_unpin(struct leases *self, uint64_t job)
{
    for (uint32_t i = 0; job != 0 && i < LEASES_POOLS_MAX; i++) {
        struct pool *pool = &self->pools[i];
        if (pool->number == 0 || lease_table_unpin(pool->table, job) == 0) continue;
        trim(self, pool);
        leases_changed(self);
    }
}

static void on_router_letter(void *state, const luna_Letter *letter, struct message *frames)
{
    (void)frames;
    if (letter->which_letter == luna_Letter_pin_lease_tag) {
        on_pin(state, &letter->letter.pin_lease);
    } else if (letter->which_letter == luna_Letter_unpin_leases_tag) {
        on_unpin(state, letter->letter.unpin_leases.job);
    }
}

static void on_router(void *state)
{
    struct leases *self = state;
    post_each(self->router, on_router_letter, self);
}

// ---- life

static enum status plan_pools(struct leases *self, struct error *error)
{
    struct system_memory memory;
    if (system_memory_read(&memory) != STATUS_OK) {
        return error_set(error, STATUS_INTERNAL, "the machine does not say how much memory it has");
    }
    uint64_t share = memory.total_bytes / POOL_SHARE;
    uint64_t bytes = share < POOL_BYTES_MAX ? share : POOL_BYTES_MAX;
    self->pool_bytes = bytes / LEASE_UNIT_BYTES * LEASE_UNIT_BYTES;
    if (self->pool_bytes > 0) return STATUS_OK;
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%lu bytes of memory are too few",
                     (unsigned long)memory.total_bytes);
}

static enum status open_sockets(struct leases *self, const struct core_arguments *core,
                                struct error *error)
{
    void *zmq = self->context->zmq;
    enum status status = socket_open(&self->events, zmq, EDGE_EVENTS, error);
    if (status == STATUS_OK) status = socket_connect(self->events, ADDRESS_EVENTS, error);
    if (status == STATUS_OK) status = socket_open(&self->router, zmq, EDGE_ROUTER_LEASES, error);
    if (status == STATUS_OK) status = socket_connect(self->router, ADDRESS_ROUTER_LEASES, error);
    if (status != STATUS_OK) return status;
    status = loop_add_socket(self->context->loop, self->router, true, on_router, self,
                             &self->watch_router, error);
    if (status != STATUS_OK) return status;
    status =
        loop_add_timer(self->context->loop, COUNTS_AFTER_MS, 0, on_tell, self, &self->tell, error);
    if (status != STATUS_OK) return status;
    char workers_path[SOCKET_ENDPOINT_BYTES];
    snprintf(workers_path, sizeof workers_path, "%s/%s", core->private_directory, SOCKET_POOLS);
    return door_open(&self->door, core->lease_path, workers_path, error);
}

static void leases_destroy(void *state)
{
    struct leases *self = state;
    if (self == NULL) return;
    door_close(&self->door);
    for (uint32_t i = 0; i < LEASES_POOLS_MAX; i++) leases_close_pool(&self->pools[i]);
    loop_timer_remove(&self->tell);
    loop_socket_remove(&self->watch_router);
    socket_close(&self->router);
    socket_close(&self->events);
    free(self);
}

static enum status leases_create(void **state, const struct actor_context *context,
                                 const void *arguments, struct error *error)
{
    assert(state != NULL);
    assert(arguments != NULL);
    struct leases *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for the lease manager");
    }
    self->context = context;
    const struct door_actor actor = {.state = self,
                                     .serve_client = serve_client,
                                     .serve_own = serve_own,
                                     .gone = on_gone,
                                     .refused = "lease.refused"};
    door_init(&self->door, context, &actor);
    for (uint32_t i = 0; i < LEASES_POOLS_MAX; i++) self->pools[i].memory.descriptor = -1;
    enum status status = STATUS_OK;
    if (getrandom(&self->pool_number, sizeof self->pool_number, 0) != sizeof self->pool_number) {
        status = error_set(error, STATUS_INTERNAL, "getrandom: %s", strerror(errno));
    }
    if (status == STATUS_OK) status = plan_pools(self, error);
    if (status == STATUS_OK) status = open_sockets(self, arguments, error);
    if (status != STATUS_OK) {
        leases_destroy(self);
        return status;
    }
    *state = self;
    return STATUS_OK;
}

const struct actor_kind leases_kind = {"leases", leases_create, leases_destroy, NULL};
