// open.c - which format a file has is read from its first bytes, never from its name.

#include <assert.h>
#include <string.h>

#include "models/files/table.h"

// Torch's format before 1.6: bare pickles, the first of them the number 0x1950a86a20f9469cfc6c.
static const uint8_t torch_legacy_magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
                                             0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

static enum status open_by_content(struct tensor_table **out, struct file_map *map,
                                   const struct torch_reader *reader, struct error *error)
{
    uint8_t start[sizeof torch_legacy_magic] = {0};
    uint64_t bytes = map->bytes < sizeof start ? map->bytes : sizeof start;
    enum status status = file_map_read(map, 0, start, bytes, error);
    if (status != STATUS_OK) return status;
    if (memcmp(start, "PK\x03\x04", 4) == 0) {
        if (reader == NULL) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "torch files are not read here; convert it to safetensors");
        }
        return torch_open(out, map, reader, error);
    }
    if (memcmp(start, torch_legacy_magic, sizeof start) == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the torch format from before version 1.6 is not supported; save it "
                         "again or convert it to safetensors");
    }
    return safetensors_open(out, map, error);
}

static enum status open_map(struct tensor_table **out, struct file_map *map, const char *name,
                            const struct torch_reader *reader, struct error *error)
{
    enum status status = open_by_content(out, map, reader, error);
    if (status != STATUS_OK) error_prefix(error, "file \"%.100s\"", file_name(name));
    file_map_close(map);
    return status;
}

enum status tensor_table_open(struct tensor_table **out, const char *path,
                              const struct torch_reader *reader, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct file_map map = FILE_MAP_NONE;
    enum status status = file_map_open(&map, path, error);
    if (status != STATUS_OK) return status;
    return open_map(out, &map, path, reader, error);
}

enum status tensor_table_open_descriptor(struct tensor_table **out, int descriptor,
                                         const char *name, const struct torch_reader *reader,
                                         struct error *error)
{
    assert(out != NULL);
    assert(name != NULL);
    struct file_map map = FILE_MAP_NONE;
    enum status status = file_map_open_descriptor(&map, descriptor, name, error);
    if (status != STATUS_OK) return status;
    return open_map(out, &map, name, reader, error);
}
