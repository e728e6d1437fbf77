// pages.h - memory that is written once and then only read: a write to it is a crash.
//
// What all requests share (weights, and copies of them) lies in such memory or in files that are
// mapped for reading, so that no mistake of one request can change another's answer.

#ifndef BASE_PAGES_H
#define BASE_PAGES_H

#include <stdint.h>

#include "base/error.h"

struct pages {
    void *data;      // at the start of a page; NULL: none
    uint64_t bytes;  // whole pages
};

// Bytes that so many take in whole pages.
// Thread:    any.
uint64_t pages_round(uint64_t bytes);

// Takes pages for at least so many bytes, all 0, that can be written.
// Ownership: the caller gives them back with pages_release.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pages_take(struct pages *out, uint64_t bytes, struct error *error);

// From now on nobody writes them. used: bytes from the start that are read; under AddressSanitizer
// what lies behind them must not even be read (in steps of 64 bytes, which is what vectors of
// processors load).
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status pages_seal(const struct pages *self, uint64_t used, struct error *error);

// Gives pages back. Those that were never taken are allowed.
// Thread:    any; nobody reads them any more.
void pages_release(struct pages *self);

#endif  // BASE_PAGES_H
