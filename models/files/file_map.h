// file_map.h - one regular file, open and mapped read-only.
//
// What happens when somebody changes a file under a mapping: the kernel shows the new bytes, and a
// read beyond the new end is SIGBUS. The policy (spec: faults F11): model files are replaced by
// rename, never written in place, so the mapping keeps the old inode and its bytes. Everything that
// decides whether to believe a file (headers, pickles, hashes) is read with pread(2), which answers
// a short count where a mapping would end the process; and whoever is about to compute over a
// mapping asks file_map_unchanged() first.

#ifndef MODELS_FILES_FILE_MAP_H
#define MODELS_FILES_FILE_MAP_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/error.h"

struct file_map {
    int descriptor;            // -1 when there is no file
    const uint8_t *data;       // the mapping; NULL when there is none
    uint64_t bytes;            // of the file when it was opened
    struct timespec modified;  // its mtime then
    char name[96];             // last component of its path, for messages; may be cut
};

// A map of nothing.
#define FILE_MAP_NONE ((struct file_map){.descriptor = -1})

// The last component of a path: the only part of it that messages may show.
// Thread:    any.
const char *file_name(const char *path);

// Opens a regular file and maps all of it; no byte is read.
// Ownership: on success the caller ends it with file_map_close.
// Errors:    NOT_FOUND; PERMISSION_DENIED; INVALID_ARGUMENT for what is no regular file or is
//            empty; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status file_map_open(struct file_map *out, const char *path, struct error *error);

// The same for a file that is open for reading; name is what messages call it.
// Ownership: as above; the descriptor stays the caller's, the map has a duplicate.
// Errors:    as above.
// Thread:    any.
enum status file_map_open_descriptor(struct file_map *out, int descriptor, const char *name,
                                     struct error *error);

// Unmaps and closes. Allowed on FILE_MAP_NONE and twice.
// Thread:    any, once.
void file_map_close(struct file_map *self);

// Reads exactly bytes at an offset, without touching the mapping.
// Errors:    FAILED_PRECONDITION when the file has become shorter; INTERNAL.
// Thread:    any.
enum status file_map_read(const struct file_map *self, uint64_t offset, void *out, uint64_t bytes,
                          struct error *error);

// True while size and mtime are those the file was opened with. True for FILE_MAP_NONE.
// Thread:    any.
bool file_map_unchanged(const struct file_map *self);

#endif  // MODELS_FILES_FILE_MAP_H
