// tensors.h - named tensors in memory that somebody mapped: what every file format becomes.
//
// A table is immutable, sorted by name, and owns the mapping its tensors point into (or shares it:
// tables are counted). Nothing in it was believed before it was checked: names are valid UTF-8 and
// unique, dims multiply to the byte count, every range lies inside the file, and in safetensors
// none overlap. (In torch files tied weights may share bytes.)
//
// Files must be replaced by rename, not written in place: a mapping keeps the old file's bytes, but
// reading a tensor of a file that was cut short is SIGBUS. Opening and hashing are immune; whoever
// is about to read tensors asks tensor_table_unchanged first. See file_map.h.

#ifndef MODELS_FILES_TENSORS_H
#define MODELS_FILES_TENSORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/error.h"

#define TENSOR_RANK_MAX 8u

struct tensor {
    const char *name;                // NUL-terminated, lives as long as the table
    enum dtype dtype;                // as the file has it
    uint32_t rank;                   // 0 to TENSOR_RANK_MAX
    uint64_t dims[TENSOR_RANK_MAX];  // outermost first; as the reader sees it, transposed or not
    const void *data;                // little-endian, any alignment
    uint64_t bytes;                  // of data
    bool transposed;  // rank 2: memory holds [dims[1], dims[0]] (OpenCLIP's text_projection)
};

struct tensor_table;

// The short-lived child that reads a torch file: list() gets a descriptor of the file and returns a
// listing (see torch_zip.h) that tensor_table_open validates again before it maps anything.
struct torch_reader {
    // Ownership: on success the caller frees listing->data with free().
    // Errors:    those of torch_zip_list; RESOURCE_EXHAUSTED when the child broke its limits.
    enum status (*list)(void *context, int descriptor, struct bytes *listing, struct error *error);
    void *context;  // handed to list
};

// Opens a file of tensors, whatever its suffix says: safetensors, or a torch zip (.pt .pth .ckpt
// .bin). path must already be trusted to lie where it may (the caller checked the configured
// folders). A NULL reader refuses torch files. One descriptor stays open as long as the table.
//
// Ownership: on success the caller owns one count of *out.
// Errors:    NOT_FOUND; PERMISSION_DENIED; INVALID_ARGUMENT names what is wrong with which tensor;
//            RESOURCE_EXHAUSTED. Messages name the file by its last component only.
// Thread:    any.
enum status tensor_table_open(struct tensor_table **out, const char *path,
                              const struct torch_reader *reader, struct error *error);

// The same for a file that is open for reading (memory of memfd_create too); name is what messages
// call it.
// Ownership: as above; the descriptor stays the caller's, the table has a duplicate.
// Thread:    any.
enum status tensor_table_open_descriptor(struct tensor_table **out, int descriptor,
                                         const char *name, const struct torch_reader *reader,
                                         struct error *error);

// The same for safetensors bytes that the caller keeps alive and unchanged as long as the table.
// Thread:    any.
enum status tensor_table_from_bytes(struct tensor_table **out, struct bytes safetensors,
                                    struct error *error);

// Makes a table of tensors that point into others: copies names, keeps a count of each source.
// Ownership: the caller owns *out; the sources are shared.
// Errors:    INVALID_ARGUMENT for a name that comes twice; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status tensor_table_from_tensors(struct tensor_table **out, const struct tensor *tensors,
                                      uint32_t count, struct tensor_table *const *sources,
                                      uint32_t sources_count, struct error *error);

// Adds a count, and takes one away (the last frees). NULL is allowed in release.
// Thread:    any.
struct tensor_table *tensor_table_share(struct tensor_table *self);
void tensor_table_release(struct tensor_table **self_p);

// How many tensors, the i-th in ascending byte order of names, and by name (NULL when there is
// none).
// Thread:    any.
uint32_t tensor_table_count(const struct tensor_table *self);
const struct tensor *tensor_table_at(const struct tensor_table *self, uint32_t index);
const struct tensor *tensor_table_find(const struct tensor_table *self, const char *name);

// Metadata of a safetensors file; NULL when the key is not there.
// Thread:    any.
const char *tensor_table_metadata(const struct tensor_table *self, const char *key);

// True while the files behind the table have the size and the mtime they were opened with; ask it
// before a job reads the tensors. Cheap: one fstat a file.
// Thread:    any.
bool tensor_table_unchanged(const struct tensor_table *self);

// The same as a sentence for people, which names the file that changed (its last component).
// Errors:    FAILED_PRECONDITION.
// Thread:    any.
enum status tensor_table_check_unchanged(const struct tensor_table *self, struct error *error);

// The content hash over all tensors, in the canonical form of the interface: for each tensor in
// ascending byte order of its key: key length (u32), key, dtype name (length u32, bytes), rank
// (u32), dims (u64 each), byte length (u64), bytes (of a transposed tensor: turned, as dims say).
// Reads every byte: seconds for a large file; the caller runs it in a background thread.
// should_stop (may be NULL) is asked at least once a MiB.
//
// Errors:    CANCELLED when should_stop said so; FAILED_PRECONDITION when a file became shorter;
//            RESOURCE_EXHAUSTED; INTERNAL when the hash library does not start.
// Thread:    any.
enum status tensor_table_hash(const struct tensor_table *self, bool (*should_stop)(void *),
                              void *context, struct hash *out);

// One tensor to write.
struct tensor_write {
    const char *name;                // unique in the file
    enum dtype dtype;                // of data
    uint32_t rank;                   // of dims
    uint64_t dims[TENSOR_RANK_MAX];  // outermost first
    const void *data;                // dims' product times the element size
};

// Writes a safetensors file to a descriptor. metadata is pairs of key and value, ended by NULL; may
// be NULL.
// Errors:    INVALID_ARGUMENT; RESOURCE_EXHAUSTED; INTERNAL names what write(2) said.
// Thread:    any.
enum status safetensors_write(int descriptor, const struct tensor_write *tensors, uint32_t count,
                              const char *const *metadata, struct error *error);

#endif  // MODELS_FILES_TENSORS_H
