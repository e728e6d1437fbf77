// model_path.h - which files a model may be made of: those below the configured folders, and no
// others.

#ifndef ACTORS_MODEL_PATH_H
#define ACTORS_MODEL_PATH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define MODEL_PATH_BYTES 512u  // of an absolute path, its NUL included

// A file as it was when it was looked at.
struct model_file {
    char path[MODEL_PATH_BYTES];  // absolute, without links
    uint64_t device;              // with inode: which file
    uint64_t inode;               // see device
    uint64_t size;                // bytes
    uint64_t modified_ns;         // since 1970
};

// Finds a file, or with want_folder a folder, that is named relative to one of the folders, or
// absolutely below one. Links are followed as long as they stay below. Nothing that the name holds
// leads outside.
// Errors:    NOT_FOUND, in the same words whether it does not exist or may not be named;
//            INVALID_ARGUMENT for a path that is too long, and for what is not a plain file
//            (folder).
// Thread:    any; it waits for the disk.
enum status model_path_find(const char *const *folders, uint32_t folders_count, const char *name,
                            bool want_folder, struct model_file *out, struct error *error);

// True when both are the same file with the same size and time.
// Thread:    any.
bool model_file_equal(const struct model_file *a, const struct model_file *b);

#endif  // ACTORS_MODEL_PATH_H
