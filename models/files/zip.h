// zip.h - the directory of a zip file whose entries are stored, not compressed, and where they lie.
//
// All that is wanted of an entry is where it begins, because stored entries are mapped; that is
// what libraries for zip files do not tell. The directory at the end of the file is the only one
// believed; the header in front of an entry must agree with it about the name.

#ifndef MODELS_FILES_ZIP_H
#define MODELS_FILES_ZIP_H

#include "base/bytes.h"
#include "base/error.h"
#include "models/files/file_map.h"

struct zip_entry {
    const char *name;       // not ended by a NUL
    uint32_t name_bytes;    // of name
    uint32_t method;        // 0: stored
    uint32_t flags;         // bit 0: encrypted
    uint32_t crc;           // CRC-32 of the contents
    uint64_t bytes;         // of the contents
    uint64_t stored_bytes;  // of what the file has for them
    uint64_t header;        // offset of the local header
};

struct zip_directory {
    struct file_map file;       // without a mapping; the descriptor is the caller's
    uint8_t *text;              // the directory as the file has it
    struct zip_entry *entries;  // ascending by name
    uint32_t count;             // of entries
};

// Reads the directory.
// Ownership: on success the caller ends *out with zip_directory_end; the descriptor stays his.
// Errors:    INVALID_ARGUMENT names what is wrong; RESOURCE_EXHAUSTED; FAILED_PRECONDITION when the
//            file became shorter.
// Thread:    any.
enum status zip_directory_read(struct zip_directory *out, int descriptor, struct error *error);
void zip_directory_end(struct zip_directory *self);

// The entry called name, or NULL.
// Thread:    any.
const struct zip_entry *zip_find(const struct zip_directory *self, struct bytes name);

// Where the contents of a stored entry begin; they end inside the file.
// Errors:    INVALID_ARGUMENT for one that is compressed or encrypted, or whose header disagrees.
// Thread:    any.
enum status zip_locate(const struct zip_directory *self, const struct zip_entry *entry,
                       uint64_t *offset, struct error *error);

// Reads the contents of a stored entry of at most bytes_max, and checks their CRC.
// Ownership: on success the caller frees *out with free().
// Errors:    those of zip_locate; INVALID_ARGUMENT for a wrong CRC; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status zip_read(const struct zip_directory *self, const struct zip_entry *entry,
                     uint64_t bytes_max, uint8_t **out, struct error *error);

#endif  // MODELS_FILES_ZIP_H
