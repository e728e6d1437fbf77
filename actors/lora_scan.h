// lora_scan.h - the files of adapters below the configured directories, and opening one of them.
//
// Nothing leads out of a directory: a folder is entered only if it is one (no links), a link to a
// file counts as that file when it stays below, and a file is opened with the kernel's own check
// (RESOLVE_BENEATH), so that renaming things meanwhile changes nothing about it.

#ifndef ACTORS_LORA_SCAN_H
#define ACTORS_LORA_SCAN_H

#include "actors/lora_table.h"

#define LORA_PATH_BYTES 512u   // of a path below its directory, its NUL included
#define LORA_FILES_MAX 65536u  // of all directories

struct lora_found {
    uint32_t directory;             // index
    char *path;                     // below it
    int watch;                      // inotify's number of its folder; -1: none
    struct lora_identity identity;  // as it was
};

struct lora_scan {
    uint32_t count, capacity;  // of found
    struct lora_found *found;  // in no order
    uint32_t refused;          // links that lead out, files that cannot be read or named
    uint32_t unwatched;        // folders whose changes nobody will tell
};

// Walks the directories: files called *.safetensors, .sft, .pt, .pth, .ckpt, .bin in any case; what
// begins with a dot is left out. A directory that does not exist has no files. inotify: descriptor
// that gets a watch for each folder; -1: none.
// Ownership: the caller ends *out with lora_scan_free.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any; it waits for the disk.
enum status lora_scan_walk(struct lora_scan *out, const char *const *directories,
                           uint32_t directories_count, int inotify, struct error *error);

// Frees what was found. Allowed on a scan of zeros.
// Thread:    any.
void lora_scan_free(struct lora_scan *self);

// True for the name of a file that a scan finds.
// Thread:    any.
bool lora_scan_wants(const char *name);

// Opens a file below a directory for reading and says which it is.
// Ownership: the caller closes *out.
// Errors:    NOT_FOUND, in the same words whether it does not exist or may not be named;
//            INVALID_ARGUMENT for what is no regular file; RESOURCE_EXHAUSTED.
// Thread:    any; it waits for the disk.
enum status lora_scan_open(int *out, struct lora_identity *identity, const char *directory,
                           const char *path, struct error *error);

// What an open file is now.
// Errors:    INTERNAL.
// Thread:    any.
enum status lora_scan_identify(int descriptor, struct lora_identity *out);

// True when both are the same file with the same size and time.
// Thread:    any.
bool lora_identity_equal(const struct lora_identity *a, const struct lora_identity *b);

#endif  // ACTORS_LORA_SCAN_H
