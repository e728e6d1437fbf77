// devices.h - which devices this daemon runs an executor for.
//
// The configuration names them, or leaves it to the machine: then every CUDA device that our
// kernels run on, or the processor where there is none. Only what is asked of CUDA devices needs to
// be looked for, in a process of its own (probe.h), since the driver that tells is never unloaded.

#ifndef ACTORS_DEVICES_H
#define ACTORS_DEVICES_H

#include <stdbool.h>
#include <stdint.h>

#include "actors/device_table.h"
#include "messages/actors.pb.h"

#define DEVICE_NAME_BYTES 32u

struct device_list {
    uint32_t count;                                   // names in use
    char names[DEVICE_TABLE_MAX][DEVICE_NAME_BYTES];  // "cpu", "cuda:0"
};

// The devices that the configuration names, of all operation groups, each once; none for auto.
// Errors:    INVALID_ARGUMENT for more than DEVICE_TABLE_MAX.
// Thread:    any, as everything here.
enum status devices_named(const struct config *config, struct device_list *out,
                          struct error *error);

// True when CUDA devices are to be looked for: one is named, or nothing is.
bool devices_need_probe(const struct device_list *named);

// Names the devices to run out of those named and what was found.
// Errors:    UNAVAILABLE or NOT_FOUND for a CUDA device that is named and cannot be used;
//            FAILED_PRECONDITION where the configuration wants a precision that a device has not.
enum status devices_choose(const struct config *config, const struct device_list *named,
                           const luna_GpuNotice *found, struct device_list *out,
                           struct error *error);

#endif  // ACTORS_DEVICES_H
