// zip.c - see zip.h. Structures and numbers are those of PKWARE's APPNOTE 6.3.

#include "models/files/zip.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"

#define END_BYTES 22u  // without its comment
#define END_COMMENT_MAX 65535u
#define END64_LOCATOR_BYTES 20u
#define END64_BYTES 56u
#define CENTRAL_BYTES 46u  // without name, extra and comment
#define LOCAL_BYTES 30u    // likewise
#define DIRECTORY_BYTES_MAX (64u << 20)
#define ENTRIES_MAX 200000u

static enum status damaged(struct error *error, const char *what)
{
    return error_set(error, STATUS_INVALID_ARGUMENT, "it is a damaged zip file: %s", what);
}

struct end {
    uint64_t count, bytes, offset;  // of the directory
};

// The 64-bit end record, when the locator in front of the end at position says there is one.
static enum status read_end64(const struct file_map *file, uint64_t position, struct end *out,
                              struct error *error)
{
    uint8_t locator[END64_LOCATOR_BYTES];
    uint8_t record[END64_BYTES];
    if (position < sizeof locator) return STATUS_OK;
    enum status status =
        file_map_read(file, position - sizeof locator, locator, sizeof locator, error);
    if (status != STATUS_OK) return status;
    if (memcmp(locator, "PK\x06\x07", 4) != 0) return STATUS_OK;
    uint64_t at = load_u64(locator + 8);
    if (position - sizeof locator < sizeof record ||
        at > position - sizeof locator - sizeof record) {
        return damaged(error, "its 64-bit end lies outside");
    }
    status = file_map_read(file, at, record, sizeof record, error);
    if (status != STATUS_OK) return status;
    if (memcmp(record, "PK\x06\x06", 4) != 0) return damaged(error, "its 64-bit end is missing");
    *out = (struct end){load_u64(record + 32), load_u64(record + 40), load_u64(record + 48)};
    return STATUS_OK;
}

// The end record: the last one whose comment reaches exactly to the end of the file.
static enum status read_end(const struct file_map *file, struct end *out, struct error *error)
{
    uint64_t bytes = END_BYTES + END_COMMENT_MAX;
    if (bytes > file->bytes) bytes = file->bytes;
    if (bytes < END_BYTES) return damaged(error, "it is too short");
    uint8_t *tail = malloc(bytes);
    if (tail == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a zip");
    enum status status = file_map_read(file, file->bytes - bytes, tail, bytes, error);
    const uint8_t *end = NULL;
    for (uint64_t i = bytes - END_BYTES + 1; status == STATUS_OK && end == NULL && i-- > 0;) {
        if (memcmp(tail + i, "PK\x05\x06", 4) == 0 &&
            load_u16(tail + i + 20) == bytes - END_BYTES - i) {
            end = tail + i;
        }
    }
    if (status == STATUS_OK && end == NULL) status = damaged(error, "its directory is missing");
    if (status == STATUS_OK) {
        assert(end != NULL);
        *out = (struct end){load_u16(end + 10), load_u32(end + 12), load_u32(end + 16)};
        status = read_end64(file, file->bytes - bytes + (uint64_t)(end - tail), out, error);
    }
    free(tail);
    return status;
}

// Replaces the fields that are all ones by those of the 64-bit extra field.
static bool read_extra64(struct zip_entry *entry, const uint8_t *extra, uint64_t extra_bytes)
{
    uint64_t *const fields[] = {&entry->bytes, &entry->stored_bytes, &entry->header};
    while (extra_bytes >= 4) {
        uint64_t size = load_u16(extra + 2);
        if (size > extra_bytes - 4) return false;
        if (load_u16(extra) == 1) {
            const uint8_t *at = extra + 4;
            for (int i = 0; i < 3; i++) {
                if (*fields[i] != UINT32_MAX) continue;
                if (size < 8) return false;
                *fields[i] = load_u64(at);
                at += 8;
                size -= 8;
            }
            return true;
        }
        extra += 4 + size;
        extra_bytes -= 4 + size;
    }
    return true;
}

// Reads one entry at *at_p and moves it behind. False when it is malformed.
static bool read_entry(struct zip_entry *entry, const uint8_t **at_p, uint64_t *left)
{
    const uint8_t *at = *at_p;
    if (*left < CENTRAL_BYTES || memcmp(at, "PK\x01\x02", 4) != 0) return false;
    uint64_t name_bytes = load_u16(at + 28);
    uint64_t extra_bytes = load_u16(at + 30);
    uint64_t whole = CENTRAL_BYTES + name_bytes + extra_bytes + load_u16(at + 32);
    if (whole > *left) return false;
    *entry = (struct zip_entry){
        .name = (const char *)at + CENTRAL_BYTES,
        .name_bytes = (uint32_t)name_bytes,
        .flags = load_u16(at + 8),
        .method = load_u16(at + 10),
        .crc = load_u32(at + 16),
        .stored_bytes = load_u32(at + 20),
        .bytes = load_u32(at + 24),
        .header = load_u32(at + 42),
    };
    *at_p = at + whole;
    *left -= whole;
    return read_extra64(entry, at + CENTRAL_BYTES + name_bytes, extra_bytes);
}

static int compare_entries(const void *a, const void *b)
{
    const struct zip_entry *left = a;
    const struct zip_entry *right = b;
    uint32_t common = left->name_bytes < right->name_bytes ? left->name_bytes : right->name_bytes;
    int order = memcmp(left->name, right->name, common);
    if (order != 0) return order;
    return left->name_bytes < right->name_bytes ? -1 : left->name_bytes > right->name_bytes;
}

static enum status read_entries(struct zip_directory *self, uint64_t bytes, struct error *error)
{
    const uint8_t *at = self->text;
    for (uint32_t i = 0; i < self->count; i++) {
        if (!read_entry(&self->entries[i], &at, &bytes)) {
            return damaged(error, "an entry of its directory is malformed");
        }
    }
    if (bytes != 0) return damaged(error, "its directory is longer than its entries");
    qsort(self->entries, self->count, sizeof *self->entries, compare_entries);
    for (uint32_t i = 1; i < self->count; i++) {
        const struct zip_entry *entry = &self->entries[i];
        if (compare_entries(entry - 1, entry) != 0) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT, "zip entry \"%.*s\" comes twice",
                         (int)entry->name_bytes, entry->name);
    }
    return STATUS_OK;
}

enum status zip_directory_read(struct zip_directory *out, int descriptor, struct error *error)
{
    assert(out != NULL);
    assert(descriptor >= 0);
    struct zip_directory self = {.file = FILE_MAP_NONE};
    struct end end = {0, 0, 0};
    struct stat facts;
    uint64_t last = 0;
    self.file.descriptor = descriptor;
    if (fstat(descriptor, &facts) != 0 || facts.st_size < 0) {
        return error_set(error, STATUS_INTERNAL, "fstat: %s", strerror(errno));
    }
    self.file.bytes = (uint64_t)facts.st_size;
    enum status status = read_end(&self.file, &end, error);
    if (status != STATUS_OK) return status;
    if (end.count > ENTRIES_MAX || end.bytes > DIRECTORY_BYTES_MAX ||
        end.count > end.bytes / CENTRAL_BYTES || !checked_add(end.offset, end.bytes, &last) ||
        last > self.file.bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "it is a damaged zip file: %llu entries in %llu bytes at %llu",
                         (unsigned long long)end.count, (unsigned long long)end.bytes,
                         (unsigned long long)end.offset);
    }
    self.count = (uint32_t)end.count;
    self.text = malloc(end.bytes + 1);
    self.entries = calloc(end.count + 1, sizeof *self.entries);
    if (self.text == NULL || self.entries == NULL) {
        status =
            error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u zip entries", self.count);
        goto done;
    }
    status = file_map_read(&self.file, end.offset, self.text, end.bytes, error);
    if (status == STATUS_OK) status = read_entries(&self, end.bytes, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = (struct zip_directory){.file = FILE_MAP_NONE};

done:
    zip_directory_end(&self);
    return status;
}

void zip_directory_end(struct zip_directory *self)
{
    assert(self != NULL);
    free(self->text);
    free(self->entries);
    *self = (struct zip_directory){.file = FILE_MAP_NONE};
}

const struct zip_entry *zip_find(const struct zip_directory *self, struct bytes name)
{
    assert(self != NULL);
    assert(name.size <= UINT32_MAX);
    struct zip_entry key = {.name = name.data, .name_bytes = (uint32_t)name.size};
    return bsearch(&key, self->entries, self->count, sizeof key, compare_entries);
}

enum status zip_locate(const struct zip_directory *self, const struct zip_entry *entry,
                       uint64_t *offset, struct error *error)
{
    assert(self != NULL);
    assert(entry != NULL);
    uint8_t local[LOCAL_BYTES];
    char name[512];
    uint64_t end = 0;
    int shown = entry->name_bytes < 200 ? (int)entry->name_bytes : 200;
    if (entry->method != 0 || (entry->flags & 1) != 0 || entry->stored_bytes != entry->bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "zip entry \"%.*s\" is %s; only stored entries are supported", shown,
                         entry->name, (entry->flags & 1) != 0 ? "encrypted" : "compressed");
    }
    if (entry->name_bytes > sizeof name || !checked_add(entry->header, LOCAL_BYTES, &end) ||
        end + entry->name_bytes > self->file.bytes) {
        return damaged(error, "the header of an entry lies outside");
    }
    enum status status = file_map_read(&self->file, entry->header, local, sizeof local, error);
    if (status == STATUS_OK) {
        status = file_map_read(&self->file, end, name, entry->name_bytes, error);
    }
    if (status != STATUS_OK) return status;
    if (memcmp(local, "PK\x03\x04", 4) != 0 || load_u16(local + 26) != entry->name_bytes ||
        memcmp(name, entry->name, entry->name_bytes) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "zip entry \"%.*s\" is not where the directory says", shown, entry->name);
    }
    uint64_t begin = end + entry->name_bytes + load_u16(local + 28);
    if (!checked_add(begin, entry->bytes, &end) || end > self->file.bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "zip entry \"%.*s\" has %llu bytes at %llu of a file of %llu", shown,
                         entry->name, (unsigned long long)entry->bytes, (unsigned long long)begin,
                         (unsigned long long)self->file.bytes);
    }
    *offset = begin;
    return STATUS_OK;
}

// CRC-32 of IEEE 802.3, a bit at a time: pickles are small.
static uint32_t crc32_of(const uint8_t *data, uint64_t bytes)
{
    uint32_t crc = UINT32_MAX;
    for (uint64_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

enum status zip_read(const struct zip_directory *self, const struct zip_entry *entry,
                     uint64_t bytes_max, uint8_t **out, struct error *error)
{
    assert(out != NULL);
    uint64_t offset = 0;
    uint8_t *data = NULL;
    enum status status = zip_locate(self, entry, &offset, error);
    if (status != STATUS_OK) return status;
    if (entry->bytes > bytes_max) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "zip entry \"%.*s\" has %llu bytes, at most %llu", (int)entry->name_bytes,
                         entry->name, (unsigned long long)entry->bytes,
                         (unsigned long long)bytes_max);
    }
    data = malloc(entry->bytes + 1);
    if (data == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a zip entry");
    }
    status = file_map_read(&self->file, offset, data, entry->bytes, error);
    if (status == STATUS_OK && crc32_of(data, entry->bytes) != entry->crc) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "zip entry \"%.*s\" has a wrong CRC",
                           (int)entry->name_bytes, entry->name);
    }
    if (status == STATUS_OK) {
        *out = data;
        data = NULL;
    }
    free(data);
    return status;
}
