// table.h - the inside of a tensor table, for the readers in this folder only.
//
// A reader makes a table with room for what it is going to say, adds tensors, and finishes it:
// then it is sorted, its names are known to be unique, and nobody changes it any more.

#ifndef MODELS_FILES_TABLE_H
#define MODELS_FILES_TABLE_H

#include <stdatomic.h>

#include <jansson.h>

#include "models/files/file_map.h"
#include "models/files/tensors.h"

// Tensors in one file, and bytes of one name; the largest checkpoints have 3,000 and 100.
#define TABLE_TENSORS_MAX 100000u
#define TABLE_NAME_BYTES_MAX 1024u

struct tensor_table {
    _Atomic uint32_t uses;          // the last one that goes frees
    struct tensor *tensors;         // ascending byte order of names once finished
    uint32_t count;                 // tensors added
    uint32_t count_max;             // room for tensors
    char *names;                    // all names, each with its NUL
    uint64_t names_bytes;           // used
    uint64_t names_bytes_max;       // room for names
    struct file_map map;            // the file the tensors point into, or FILE_MAP_NONE
    struct tensor_table **sources;  // tables the tensors point into, each counted once
    uint32_t sources_count;         // of sources
    json_t *metadata;               // object of strings, or NULL
};

// Makes an empty table.
// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
enum status table_create(struct tensor_table **out, uint32_t count_max, uint64_t names_bytes_max,
                         struct error *error);

// Adds a tensor and copies its name; data and sizes were checked by the caller.
// Errors:    INVALID_ARGUMENT for a name that is too long, no UTF-8, or has control characters.
enum status table_add(struct tensor_table *self, const struct tensor *tensor, struct error *error);

// Sorts by name.
// Errors:    INVALID_ARGUMENT for a name that comes twice.
enum status table_finish(struct tensor_table *self, struct error *error);

// Checks that dims and dtype make exactly bytes; what names the tensor in the message.
enum status table_check_size(const char *name, const struct tensor *tensor, struct error *error);

// Reads a safetensors file that was mapped; the table takes the mapping over on success.
enum status safetensors_open(struct tensor_table **out, struct file_map *map, struct error *error);

// Lets the reader list a torch zip that was mapped, and checks the listing against the file; the
// table takes the mapping over on success.
enum status torch_open(struct tensor_table **out, struct file_map *map,
                       const struct torch_reader *reader, struct error *error);

#endif  // MODELS_FILES_TABLE_H
