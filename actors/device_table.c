// device_table.c - a few entries, searched; device_table.h holds the contract.

#include "actors/device_table.h"

#include <assert.h>
#include <string.h>

struct bytes device_entry_connection(const struct device_entry *entry)
{
    assert(entry != NULL);
    assert(entry->length > 0);
    return (struct bytes){.data = entry->connection, .size = entry->length};
}

struct device_entry *device_table_find(struct device_table *self, struct bytes connection)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        struct device_entry *entry = &self->entries[i];
        if (entry->length == connection.size &&
            memcmp(entry->connection, connection.data, entry->length) == 0) {
            return entry;
        }
    }
    return NULL;
}

struct device_entry *device_table_find_name(struct device_table *self, const char *name)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        if (strcmp(self->entries[i].report.name, name) == 0) return &self->entries[i];
    }
    return NULL;
}

static struct device_entry *add_entry(struct device_table *self)
{
    if (self->count == DEVICE_TABLE_MAX) return NULL;
    self->entries[self->count] = (struct device_entry){.length = 0};
    return &self->entries[self->count++];
}

void device_table_expect(struct device_table *self, const luna_ExecutorExpected *expected,
                         uint64_t now_ms)
{
    assert(self != NULL);
    assert(expected != NULL);
    if (device_table_find_name(self, expected->name) != NULL) return;
    struct device_entry *entry = add_entry(self);
    if (entry == NULL) return;
    memcpy(entry->report.name, expected->name, sizeof entry->report.name);
    entry->report.executor_pid = expected->pid;
    entry->report.epoch = expected->epoch;
    entry->heard_ms = now_ms;
}

bool device_table_report(struct device_table *self, struct bytes connection,
                         const luna_DeviceReport *report, uint64_t now_ms)
{
    assert(self != NULL);
    assert(report != NULL);
    if (connection.size == 0 || connection.size > DEVICE_CONNECTION_BYTES_MAX) return false;
    struct device_entry *entry = device_table_find_name(self, report->name);
    if (entry == NULL) entry = add_entry(self);
    if (entry == NULL) return false;
    bool is_new = entry->length != connection.size ||
                  memcmp(entry->connection, connection.data, connection.size) != 0;
    memcpy(entry->connection, connection.data, connection.size);
    entry->length = (uint8_t)connection.size;
    entry->report = *report;
    entry->heard_ms = now_ms;
    return is_new;
}

struct device_entry *device_table_find_silent(struct device_table *self, uint64_t now_ms,
                                              uint64_t silence_ms)
{
    assert(self != NULL);
    assert(now_ms >= self->asked_ms);
    bool paused = now_ms - self->asked_ms > silence_ms / 4;
    self->asked_ms = now_ms;
    for (uint32_t i = 0; i < self->count; i++) {
        struct device_entry *entry = &self->entries[i];
        if (paused) entry->heard_ms = now_ms;
        if (now_ms - entry->heard_ms < silence_ms) continue;
        entry->heard_ms = now_ms;
        return entry;
    }
    return NULL;
}

void device_table_remove(struct device_table *self, const char *name, uint64_t epoch)
{
    struct device_entry *entry = device_table_find_name(self, name);
    if (entry == NULL || entry->report.epoch != epoch) return;
    self->count -= 1;
    *entry = self->entries[self->count];
}

bool device_serves(const struct config_service *service, const char *name, bool is_vae)
{
    assert(service != NULL);
    const struct config_list *list = is_vae ? &service->vae_devices : &service->clip_devices;
    if (list->count == 0) list = &service->devices;
    for (uint32_t i = 0; i < list->count; i++) {
        if (strcmp(list->items[i], name) == 0) return true;
    }
    return list->count == 0;
}
