// lease_table.c - first fit over the held slots in the order of their place; lease_table.h holds
// the contract.
//
//     pool   |  slot 0  |....free....| slot 7 | slot 2 |.......free.......|
//     order      [0]                    [1]      [2]
//
// order lists the held slots by place, so the gaps are read off between neighbours and nothing has
// to be merged when a slot comes back. A slot's number is its index in slots; free numbers are
// found by a scan, starting behind the one given out last, so that a number with its generation is
// reused late.

#include "actors/lease_table.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

struct slot {
    uint64_t first;       // unit
    uint64_t units;       // 0: the slot is free
    uint64_t session;     // that holds it; 0: ended, or gave it back
    uint32_t generation;  // of the last holding
    uint32_t pins;        // entries of pins that name it
};

struct pin {
    uint64_t job;   // that holds the slot
    uint32_t slot;  // index
};

struct lease_table {
    uint64_t units;                      // of the pool
    uint64_t units_held;                 // sum over the held slots
    uint32_t count;                      // held slots
    uint32_t next;                       // number at which the search for a free one begins
    uint32_t pins_count;                 // entries of pins in use
    uint32_t order[LEASE_SLOTS_MAX];     // held slots by place
    struct slot slots[LEASE_SLOTS_MAX];  // by number
    struct pin pins[LEASE_PINS_MAX];     // in no order
};

enum status lease_table_create(struct lease_table **out, uint64_t pool_bytes, struct error *error)
{
    assert(out != NULL);
    assert(pool_bytes >= LEASE_UNIT_BYTES);
    assert(pool_bytes % LEASE_UNIT_BYTES == 0);

    struct lease_table *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a table of leases");
    }
    self->units = pool_bytes / LEASE_UNIT_BYTES;
    *out = self;
    return STATUS_OK;
}

void lease_table_destroy(struct lease_table **self_p)
{
    assert(self_p != NULL);
    free(*self_p);
    *self_p = NULL;
}

// Finds the first gap of so many units. position: where in order the new slot goes.
static bool find_gap(const struct lease_table *self, uint64_t units, uint64_t *first,
                     uint32_t *position)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i <= self->count; i++) {
        uint64_t next = i < self->count ? self->slots[self->order[i]].first : self->units;
        assert(next >= end);
        if (next - end >= units) {
            *first = end;
            *position = i;
            return true;
        }
        if (i < self->count) end = next + self->slots[self->order[i]].units;
    }
    return false;
}

// Finds a free number; there is one when count is below LEASE_SLOTS_MAX.
static uint32_t find_number(struct lease_table *self)
{
    assert(self->count < LEASE_SLOTS_MAX);
    while (self->slots[self->next].units != 0) self->next = (self->next + 1) % LEASE_SLOTS_MAX;
    uint32_t number = self->next;
    self->next = (self->next + 1) % LEASE_SLOTS_MAX;
    return number;
}

static void insert_slot(struct lease_table *self, uint32_t number, uint32_t position)
{
    assert(position <= self->count);
    memmove(&self->order[position + 1], &self->order[position],
            (self->count - position) * sizeof self->order[0]);
    self->order[position] = number;
    self->count += 1;
    self->units_held += self->slots[number].units;
}

static void free_slot(struct lease_table *self, uint32_t number)
{
    struct slot *slot = &self->slots[number];
    assert(slot->session == 0);
    assert(slot->pins == 0);
    uint32_t position = 0;
    while (self->order[position] != number) position += 1;
    assert(position < self->count);
    memmove(&self->order[position], &self->order[position + 1],
            (self->count - position - 1) * sizeof self->order[0]);
    self->count -= 1;
    self->units_held -= slot->units;
    slot->units = 0;
}

static void free_if_unheld(struct lease_table *self, uint32_t number)
{
    const struct slot *slot = &self->slots[number];
    assert(slot->units > 0);
    if (slot->session == 0 && slot->pins == 0) free_slot(self, number);
}

// The slot of that number and generation; NULL when there is none that is held.
static struct slot *find_slot(struct lease_table *self, uint32_t number, uint32_t generation)
{
    if (number >= LEASE_SLOTS_MAX) return NULL;
    struct slot *slot = &self->slots[number];
    return slot->units > 0 && slot->generation == generation ? slot : NULL;
}

enum status lease_table_acquire(struct lease_table *self, uint64_t session, uint64_t bytes,
                                struct lease *out, struct error *error)
{
    assert(self != NULL);
    assert(session > 0);
    assert(out != NULL);

    uint64_t pool_bytes = self->units * LEASE_UNIT_BYTES;
    if (bytes == 0 || bytes > pool_bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a lease of %llu bytes was asked for, a pool has %llu",
                         (unsigned long long)bytes, (unsigned long long)pool_bytes);
    }
    if (self->count == LEASE_SLOTS_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "all %u leases of the pool are out",
                         LEASE_SLOTS_MAX);
    }
    uint64_t units = round_up(bytes, LEASE_UNIT_BYTES) / LEASE_UNIT_BYTES;
    uint64_t first = 0;
    uint32_t position = 0;
    if (!find_gap(self, units, &first, &position)) {
        uint64_t held_bytes = self->units_held * LEASE_UNIT_BYTES;
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "no %llu bytes in a row: %llu of the pool's %llu are leased",
                         (unsigned long long)bytes, (unsigned long long)held_bytes,
                         (unsigned long long)pool_bytes);
    }
    uint32_t number = find_number(self);
    struct slot *slot = &self->slots[number];
    uint32_t generation = slot->generation == UINT32_MAX ? 1 : slot->generation + 1;
    *slot =
        (struct slot){.first = first, .units = units, .session = session, .generation = generation};
    insert_slot(self, number, position);
    *out = (struct lease){.slot = number,
                          .generation = generation,
                          .offset = first * LEASE_UNIT_BYTES,
                          .bytes = units * LEASE_UNIT_BYTES};
    return STATUS_OK;
}

enum status lease_table_release(struct lease_table *self, uint64_t session, uint32_t slot,
                                uint32_t generation, struct error *error)
{
    assert(self != NULL);
    assert(session > 0);
    struct slot *found = find_slot(self, slot, generation);
    if (found == NULL || found->session != session) {
        return error_set(error, STATUS_NOT_FOUND, "slot %u of generation %u is not leased to you",
                         slot, generation);
    }
    found->session = 0;
    free_if_unheld(self, slot);
    return STATUS_OK;
}

uint32_t lease_table_end_session(struct lease_table *self, uint64_t session)
{
    assert(self != NULL);
    assert(session > 0);
    uint32_t ended = 0;
    for (uint32_t i = self->count; i > 0; i--) {
        uint32_t number = self->order[i - 1];
        if (self->slots[number].session != session) continue;
        self->slots[number].session = 0;
        free_if_unheld(self, number);
        ended += 1;
    }
    return ended;
}

enum status lease_table_pin(struct lease_table *self, uint64_t job, const struct lease_range *range,
                            uint64_t *pool_offset, struct error *error)
{
    assert(self != NULL);
    assert(job > 0);
    assert(pool_offset != NULL);

    struct slot *slot = find_slot(self, range->slot, range->generation);
    if (slot == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "slot %u of generation %u is not leased",
                         range->slot, range->generation);
    }
    uint64_t end = 0;
    uint64_t slot_bytes = slot->units * LEASE_UNIT_BYTES;
    if (range->bytes == 0 || !checked_add(range->offset, range->bytes, &end) || end > slot_bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%llu bytes at %llu are not within slot %u of %llu bytes",
                         (unsigned long long)range->bytes, (unsigned long long)range->offset,
                         range->slot, (unsigned long long)slot_bytes);
    }
    if (self->pins_count == LEASE_PINS_MAX) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "%u tensors of running requests are in the pool, no more fit",
                         LEASE_PINS_MAX);
    }
    self->pins[self->pins_count] = (struct pin){.job = job, .slot = range->slot};
    self->pins_count += 1;
    slot->pins += 1;
    *pool_offset = slot->first * LEASE_UNIT_BYTES + range->offset;
    return STATUS_OK;
}

uint32_t lease_table_unpin(struct lease_table *self, uint64_t job)
{
    assert(self != NULL);
    assert(job > 0);
    uint32_t unpinned = 0;
    for (uint32_t i = self->pins_count; i > 0; i--) {
        struct pin pin = self->pins[i - 1];
        if (pin.job != job) continue;
        self->pins_count -= 1;
        self->pins[i - 1] = self->pins[self->pins_count];
        assert(self->slots[pin.slot].pins > 0);
        self->slots[pin.slot].pins -= 1;
        free_if_unheld(self, pin.slot);
        unpinned += 1;
    }
    return unpinned;
}

uint32_t lease_table_slots(const struct lease_table *self)
{
    assert(self != NULL);
    assert(self->count <= LEASE_SLOTS_MAX);
    return self->count;
}

uint64_t lease_table_bytes(const struct lease_table *self)
{
    assert(self != NULL);
    assert(self->units_held <= self->units);
    return self->units_held * LEASE_UNIT_BYTES;
}

void lease_table_check(const struct lease_table *self)
{
    uint64_t end = 0;
    uint64_t held = 0;
    uint32_t pins = 0;
    for (uint32_t i = 0; i < self->count; i++) {
        const struct slot *slot = &self->slots[self->order[i]];
        assert(slot->units > 0);
        assert(slot->first >= end);
        assert(slot->session != 0 || slot->pins > 0);
        end = slot->first + slot->units;
        held += slot->units;
        pins += slot->pins;
    }
    assert(end <= self->units);
    assert(held == self->units_held);
    assert(pins == self->pins_count);
    for (uint32_t i = 0; i < self->pins_count; i++) {
        assert(self->slots[self->pins[i].slot].units > 0);
    }
}
