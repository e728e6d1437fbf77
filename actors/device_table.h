// device_table.h - which executor is behind which connection: for the actors that executors report
// to.

#ifndef ACTORS_DEVICE_TABLE_H
#define ACTORS_DEVICE_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "messages/actors.pb.h"
#include "runtime/config.h"

#define DEVICE_TABLE_MAX 8u
#define DEVICE_CONNECTION_BYTES_MAX 32u  // of a name that a ROUTER socket gives; it gives 5

struct device_entry {
    uint8_t connection[DEVICE_CONNECTION_BYTES_MAX];  // as the ROUTER socket named it
    uint8_t length;                                   // of connection; 0: expected, not here yet
    luna_DeviceReport report;                         // its last
    uint64_t heard_ms;                                // when that came
};

struct device_table {
    uint32_t count;                                 // entries in use
    uint64_t asked_ms;                              // when silent ones were asked for last
    struct device_entry entries[DEVICE_TABLE_MAX];  // one for each device that ever reported
};

// Takes a report in. A new executor of a known device takes the entry over.
// Thread:    the owner's, as everything here.
// Returns:   true when this executor was not known: it is to be asked Who. False also when the
// table is full.
bool device_table_report(struct device_table *self, struct bytes connection,
                         const luna_DeviceReport *report, uint64_t now_ms);

// An executor that should report soon, and is silent from now on if it does not. One that has
// reported already is known better.
void device_table_expect(struct device_table *self, const luna_ExecutorExpected *expected,
                         uint64_t now_ms);

// An executor that has said nothing for silence_ms, once for each such time; NULL when all speak.
// The owner asks all the time: after a pause of its own longer than a quarter of silence_ms all
// start anew, for what they said meanwhile is still to be read.
struct device_entry *device_table_find_silent(struct device_table *self, uint64_t now_ms,
                                              uint64_t silence_ms);

// The entry of a connection, and of a device's name; NULL when it is unknown. One that is only
// expected has no connection.
struct device_entry *device_table_find(struct device_table *self, struct bytes connection);
struct device_entry *device_table_find_name(struct device_table *self, const char *name);

// Forgets the device's executor, if it is still the one of that epoch.
void device_table_remove(struct device_table *self, const char *name, uint64_t epoch);

// True when the configuration lets the device serve a group: the VAE's devices, the text encoders'.
// Thread:    any.
bool device_serves(const struct config_service *service, const char *name, bool is_vae);

// The connection of an entry, borrowed.
struct bytes device_entry_connection(const struct device_entry *entry);

#endif  // ACTORS_DEVICE_TABLE_H
