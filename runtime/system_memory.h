// system_memory.h - how much memory there is, and is left, within the control group's limits.

#ifndef RUNTIME_SYSTEM_MEMORY_H
#define RUNTIME_SYSTEM_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct system_memory {
    uint64_t total_bytes;  // of the machine, or of the smallest limit on the way to the root group
    uint64_t available_bytes;  // without swapping: files' pages that can go count as available
};

// What the operating system says now. Reads a few small files, some ten microseconds each.
// Errors:    INTERNAL when there is no /proc.
// Thread:    any.
enum status system_memory_read(struct system_memory *out);

// The same below a folder that holds proc and sys; for tests.
enum status system_memory_read_below(const char *root, struct system_memory *out);

// What this process uses: rss_bytes counts shared pages whole, pss_bytes by its share.
// Errors:    INTERNAL.
// Thread:    any.
enum status system_memory_own(uint64_t *rss_bytes, uint64_t *pss_bytes);

// --- Parsers, for tests

// The number behind "NAME" at the start of a line, in bytes when "kB" follows; false, *out
// untouched, when there is no such line.
bool system_memory_field(const char *text, const char *name, uint64_t *out);

// The process's path in the group hierarchy that has the memory controller: "0::PATH" (version 2),
// or "N:...,memory,...:PATH" (version 1).
bool system_memory_group(const char *text, bool is_version_2, char *out, uint64_t out_bytes);

#endif  // RUNTIME_SYSTEM_MEMORY_H
