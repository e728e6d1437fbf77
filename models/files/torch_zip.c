// torch_zip.c - from a torch zip to a listing: the directory, the pickle, and a walk over what the
// pickle left. A tensor is listed when its storage is stored, has the size that the pickle claims,
// and holds the tensor in one run.

#include "models/files/torch_zip.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "models/files/pickle.h"
#include "models/files/table.h"
#include "models/files/zip.h"

#define PICKLE_BYTES_MAX (32u << 20)
#define DEPTH_MAX 16u
#define STEPS_MAX 1000000u  // values visited; shared containers are visited again
#define ROOT_BYTES_MAX 256u

struct lister {
    struct zip_directory zip;             // the file
    char root[ROOT_BYTES_MAX];            // "archive/": what every entry's name begins with
    uint8_t *listing;                     // so far
    uint64_t bytes, room;                 // of listing
    uint32_t count;                       // tensors listed
    uint32_t steps;                       // values visited
    char name[TABLE_NAME_BYTES_MAX + 1];  // of the value being visited
    size_t name_bytes;                    // of name
    struct error *error;                  // for messages
};

// ---------------------------------------------------------------------------------------------
// Writing the listing

static bool reserve(struct lister *self, uint64_t bytes)
{
    if (bytes <= self->room - self->bytes) return true;
    uint64_t room = self->room * 2 + bytes + 4096;
    uint8_t *listing = realloc(self->listing, room);
    if (listing == NULL) return false;
    self->listing = listing;
    self->room = room;
    return true;
}

static void put_u32(struct lister *self, uint32_t value)
{
    store_u32(self->listing + self->bytes, value);
    self->bytes += 4;
}

static void put_u64(struct lister *self, uint64_t value)
{
    store_u64(self->listing + self->bytes, value);
    self->bytes += 8;
}

static enum status put_tensor(struct lister *self, const struct pickle_tensor *tensor,
                              uint64_t offset, uint64_t bytes)
{
    if (self->count == TABLE_TENSORS_MAX) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT, "it has more than %u tensors",
                         TABLE_TENSORS_MAX);
    }
    if (!reserve(self, self->name_bytes + 12 + 8 * (uint64_t)tensor->rank + 16)) {
        return error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for a listing");
    }
    put_u32(self, (uint32_t)self->name_bytes);
    memcpy(self->listing + self->bytes, self->name, self->name_bytes);
    self->bytes += self->name_bytes;
    put_u32(self, (uint32_t)tensor->dtype);
    put_u32(self, tensor->rank);
    for (uint32_t i = 0; i < tensor->rank; i++) put_u64(self, tensor->dims[i]);
    put_u64(self, offset);
    put_u64(self, bytes);
    self->count += 1;
    return STATUS_OK;
}

// ---------------------------------------------------------------------------------------------
// Tensors

static enum status refuse(const struct lister *self, const char *what)
{
    return error_set(self->error, STATUS_INVALID_ARGUMENT, "tensor \"%.200s\" %s", self->name,
                     what);
}

static bool is_contiguous(const struct pickle_tensor *tensor)
{
    uint64_t stride = 1;
    for (uint32_t i = tensor->rank; i-- > 0;) {
        if (tensor->dims[i] != 1 && tensor->strides[i] != stride) return false;
        if (!checked_multiply(stride, tensor->dims[i], &stride)) return false;
    }
    return true;
}

// Finds the entry of a storage and where it begins.
static enum status locate_storage(const struct lister *self, const struct pickle_tensor *tensor,
                                  uint64_t *offset)
{
    char name[ROOT_BYTES_MAX + 128];
    uint64_t bytes = 0;
    if (tensor->storage.size > 64) return refuse(self, "has a storage with a long name");
    int length = snprintf(name, sizeof name, "%sdata/%.*s", self->root, (int)tensor->storage.size,
                          (const char *)tensor->storage.data);
    const struct zip_entry *entry =
        zip_find(&self->zip, (struct bytes){name, (uint64_t)(unsigned)length});
    if (entry == NULL) return refuse(self, "has a storage that the file lacks");
    if (!checked_multiply(tensor->storage_elements, dtype_bytes(tensor->dtype), &bytes) ||
        bytes != entry->bytes) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%.150s\" claims a storage of %llu elements of %s, the file has "
                         "%llu bytes",
                         self->name, (unsigned long long)tensor->storage_elements,
                         dtype_name(tensor->dtype), (unsigned long long)entry->bytes);
    }
    return zip_locate(&self->zip, entry, offset, self->error);
}

static enum status list_tensor(struct lister *self, const struct pickle_tensor *tensor)
{
    uint64_t begin = 0;
    uint64_t elements = 0;
    uint64_t end = 0;
    enum status status = locate_storage(self, tensor, &begin);
    if (status != STATUS_OK) return status;
    if (!checked_product(tensor->dims, tensor->rank, &elements) ||
        !checked_add(tensor->offset, elements, &end) || end > tensor->storage_elements) {
        return refuse(self, "does not lie inside its storage");
    }
    if (elements > 0 && !is_contiguous(tensor)) {
        return refuse(self, "is not contiguous; save it with .contiguous()");
    }
    uint64_t size = dtype_bytes(tensor->dtype);
    return put_tensor(self, tensor, begin + tensor->offset * size, elements * size);
}

// ---------------------------------------------------------------------------------------------
// The walk

static enum status visit(struct lister *self, const struct pickle_value *value, uint32_t depth);

static bool holds_more(const struct pickle_value *value)
{
    return value->kind == PICKLE_TENSOR || value->kind == PICKLE_DICT ||
           value->kind == PICKLE_LIST || value->kind == PICKLE_TUPLE;
}

// Visits a value under the name so far and one part more.
static enum status visit_part(struct lister *self, struct bytes part,
                              const struct pickle_value *value, uint32_t depth)
{
    size_t before = self->name_bytes;
    size_t dot = before > 0;
    if (part.size > TABLE_NAME_BYTES_MAX - dot ||
        before > TABLE_NAME_BYTES_MAX - dot - (size_t)part.size) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "a tensor's name has more than %u bytes", TABLE_NAME_BYTES_MAX);
    }
    if (part.size > 0 && memchr(part.data, 0, part.size) != NULL) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT, "a tensor's name has a NUL in it");
    }
    if (dot > 0) self->name[before] = '.';
    if (part.size > 0) memcpy(self->name + before + dot, part.data, part.size);
    self->name_bytes = before + dot + part.size;
    self->name[self->name_bytes] = '\0';
    enum status status = visit(self, value, depth + 1);
    self->name_bytes = before;
    self->name[before] = '\0';
    return status;
}

static enum status visit_number(struct lister *self, int64_t number,
                                const struct pickle_value *value, uint32_t depth)
{
    char text[24];
    int length = snprintf(text, sizeof text, "%lld", (long long)number);
    return visit_part(self, (struct bytes){text, (uint64_t)(unsigned)length}, value, depth);
}

static enum status visit_dict(struct lister *self, const struct pickle_value *dict, uint32_t depth)
{
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i + 1 < dict->count && status == STATUS_OK; i += 2) {
        const struct pickle_value *key = dict->items[i];
        const struct pickle_value *value = dict->items[i + 1];
        if (!holds_more(value)) continue;
        if (key->kind == PICKLE_STRING) {
            status = visit_part(self, key->text, value, depth);
        } else if (key->kind == PICKLE_NUMBER) {
            status = visit_number(self, key->number, value, depth);
        }
    }
    return status;
}

// Values that hold no tensor are passed over.
static enum status visit(struct lister *self, const struct pickle_value *value, uint32_t depth)
{
    enum status status = STATUS_OK;
    self->steps += 1;
    if (depth > DEPTH_MAX || self->steps > STEPS_MAX) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "its containers nest deeper than %u or are more than %u", DEPTH_MAX,
                         STEPS_MAX);
    }
    switch (value->kind) {
    case PICKLE_TENSOR:
        return list_tensor(self, value->tensor);
    case PICKLE_DICT:
        return visit_dict(self, value, depth);
    case PICKLE_LIST:
    case PICKLE_TUPLE:
        for (uint32_t i = 0; i < value->count && status == STATUS_OK; i++) {
            if (!holds_more(value->items[i])) continue;
            status = visit_number(self, i, value->items[i], depth);
        }
        return status;
    case PICKLE_IGNORED:
    case PICKLE_NUMBER:
    case PICKLE_STRING:
    case PICKLE_GLOBAL:
    case PICKLE_STORAGE:
        break;
    }
    return STATUS_OK;
}

// The dictionary "state_dict" of a training checkpoint, or the value itself.
static const struct pickle_value *find_root(const struct pickle_value *value)
{
    static const char key[] = "state_dict";
    if (value->kind != PICKLE_DICT) return value;
    for (uint32_t i = 0; i + 1 < value->count; i += 2) {
        struct bytes text = value->items[i]->text;
        if (value->items[i]->kind == PICKLE_STRING && text.size == sizeof key - 1 &&
            memcmp(text.data, key, text.size) == 0 && value->items[i + 1]->kind == PICKLE_DICT) {
            return value->items[i + 1];
        }
    }
    return value;
}

// ---------------------------------------------------------------------------------------------
// The file

// Finds FOLDER/data.pkl, and with it the folder of all entries.
static const struct zip_entry *find_pickle(struct lister *self)
{
    static const char suffix[] = "/data.pkl";
    const uint32_t suffix_bytes = sizeof suffix - 1;
    const struct zip_entry *found = NULL;
    for (uint32_t i = 0; i < self->zip.count; i++) {
        const struct zip_entry *entry = &self->zip.entries[i];
        if (entry->name_bytes < suffix_bytes || entry->name_bytes >= ROOT_BYTES_MAX) continue;
        uint32_t root = entry->name_bytes - suffix_bytes;
        if (memcmp(entry->name + root, suffix, suffix_bytes) != 0 ||
            memchr(entry->name, '/', root) != NULL || memchr(entry->name, 0, root) != NULL) {
            continue;
        }
        if (found != NULL) return NULL;
        found = entry;
        memcpy(self->root, entry->name, root + 1);
        self->root[root + 1] = '\0';
    }
    return found;
}

// Torch writes FOLDER/byteorder since 2.0: "little" or "big".
static enum status check_byte_order(struct lister *self)
{
    char name[ROOT_BYTES_MAX + 16];
    int length = snprintf(name, sizeof name, "%sbyteorder", self->root);
    uint8_t *text = NULL;
    const struct zip_entry *entry =
        zip_find(&self->zip, (struct bytes){name, (uint64_t)(unsigned)length});
    if (entry == NULL) return STATUS_OK;
    enum status status = zip_read(&self->zip, entry, 16, &text, self->error);
    if (status == STATUS_OK && (entry->bytes != 6 || memcmp(text, "little", 6) != 0)) {
        status = error_set(self->error, STATUS_INVALID_ARGUMENT,
                           "it was saved on a machine that is not little-endian");
    }
    free(text);
    return status;
}

static enum status list_file(struct lister *self)
{
    uint8_t *text = NULL;
    struct pickle *pickle = NULL;
    const struct zip_entry *entry = find_pickle(self);
    if (entry == NULL) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "it is a zip file, but not one that torch.save wrote");
    }
    enum status status = check_byte_order(self);
    if (status == STATUS_OK) {
        status = zip_read(&self->zip, entry, PICKLE_BYTES_MAX, &text, self->error);
    }
    if (status == STATUS_OK) {
        status = pickle_read(&pickle, (struct bytes){text, entry->bytes}, self->error);
    }
    if (status == STATUS_OK && !reserve(self, 8)) {
        status = error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for a listing");
    }
    if (status != STATUS_OK) goto done;
    self->bytes = 8;  // magic and count, written last
    const struct pickle_value *root = find_root(pickle_root(pickle));
    if (root->kind == PICKLE_TENSOR) {
        status = visit_part(self, (struct bytes){"tensor", 6}, root, 0);
    } else {
        status = visit(self, root, 0);
    }
    if (status != STATUS_OK) goto done;
    store_u32(self->listing, TORCH_LISTING_MAGIC);
    store_u32(self->listing + 4, self->count);

done:
    pickle_destroy(&pickle);
    free(text);
    return status;
}

enum status torch_zip_list(int descriptor, struct bytes *listing, struct error *error)
{
    assert(descriptor >= 0);
    assert(listing != NULL);
    struct lister *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a listing");
    self->error = error;
    enum status status = zip_directory_read(&self->zip, descriptor, error);
    if (status == STATUS_OK) status = list_file(self);
    if (status == STATUS_OK) {
        *listing = (struct bytes){self->listing, self->bytes};
        self->listing = NULL;
    }
    free(self->listing);
    zip_directory_end(&self->zip);
    free(self);
    return status;
}

static enum status list_in_process(void *context, int descriptor, struct bytes *listing,
                                   struct error *error)
{
    (void)context;
    return torch_zip_list(descriptor, listing, error);
}

struct torch_reader torch_reader_in_process(void)
{
    return (struct torch_reader){.list = list_in_process};
}
