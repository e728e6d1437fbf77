// lora_files.c - one array of files, and indices of it in the order of each kind of name.

#include "actors/lora_files.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/text.h"

#define RESEMBLING_FILES_MAX 4096u  // that are looked at
#define RESEMBLING_BYTES_MAX 64u    // of a name that is compared letter by letter

// The orders in which files are found.
enum order { BY_PATH, BY_NAME, BY_STEM, ORDERS };

struct lora_files {
    const char *const *directories;  // as configured
    uint32_t directories_count;      // of directories
    char **real;                     // the same without links; NULL where there is none
    uint32_t count;                  // of files
    struct lora_file *files;         // in the order of their directories and paths
    struct lora_file **orders[ORDERS];
};

enum status lora_files_create(struct lora_files **out, const char *const *directories,
                              uint32_t directories_count, struct error *error)
{
    assert(out != NULL);
    assert(directories != NULL || directories_count == 0);
    struct lora_files *self = calloc(1, sizeof *self);
    if (self != NULL) self->real = calloc(directories_count + 1u, sizeof *self->real);
    if (self == NULL || self->real == NULL) {
        free(self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a catalog of files");
    }
    self->directories = directories;
    self->directories_count = directories_count;
    for (uint32_t i = 0; i < directories_count; i++) self->real[i] = realpath(directories[i], NULL);
    *out = self;
    return STATUS_OK;
}

static void free_files(struct lora_file *files, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) free(files[i].path);
    free(files);
}

void lora_files_destroy(struct lora_files **self_p)
{
    assert(self_p != NULL);
    struct lora_files *self = *self_p;
    if (self == NULL) return;
    free_files(self->files, self->count);
    for (int i = 0; i < ORDERS; i++) free(self->orders[i]);
    for (uint32_t i = 0; i < self->directories_count; i++) free(self->real[i]);
    free(self->real);
    free(self);
    *self_p = NULL;
}

// ---- orders

static int compare_text(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);
    if (order != 0) return order;
    return (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static struct bytes key_of(const struct lora_file *file, enum order order)
{
    if (order == BY_PATH) return (struct bytes){file->path, strlen(file->path)};
    if (order == BY_NAME) return (struct bytes){file->name, strlen(file->name)};
    return (struct bytes){file->name, file->stem_bytes};
}

static int compare_keys(const struct lora_file *a, const struct lora_file *b, enum order order)
{
    const struct bytes left = key_of(a, order);
    const struct bytes right = key_of(b, order);
    return compare_text(left.data, left.size, right.data, right.size);
}

static int compare_paths(const void *a, const void *b)
{
    return compare_keys(*(struct lora_file *const *)a, *(struct lora_file *const *)b, BY_PATH);
}

static int compare_names(const void *a, const void *b)
{
    return compare_keys(*(struct lora_file *const *)a, *(struct lora_file *const *)b, BY_NAME);
}

static int compare_stems(const void *a, const void *b)
{
    return compare_keys(*(struct lora_file *const *)a, *(struct lora_file *const *)b, BY_STEM);
}

static int compare_files(const void *a, const void *b)
{
    const struct lora_file *left = a;
    const struct lora_file *right = b;
    if (left->directory != right->directory) return left->directory < right->directory ? -1 : 1;
    return strcmp(left->path, right->path);
}

static int compare_identities(const void *a, const void *b)
{
    const struct lora_identity *left = &(*(struct lora_file *const *)a)->identity;
    const struct lora_identity *right = &(*(struct lora_file *const *)b)->identity;
    if (left->device != right->device) return left->device < right->device ? -1 : 1;
    if (left->inode != right->inode) return left->inode < right->inode ? -1 : 1;
    if (left->size != right->size) return left->size < right->size ? -1 : 1;
    if (left->modified_ns != right->modified_ns) {
        return left->modified_ns < right->modified_ns ? -1 : 1;
    }
    return 0;
}

// ---- taking a scan

static void fill_file(struct lora_file *file, struct lora_found *found)
{
    const char *slash = strrchr(found->path, '/');
    *file = (struct lora_file){.directory = found->directory,
                               .path = found->path,
                               .name = slash != NULL ? slash + 1 : found->path,
                               .watch = found->watch,
                               .identity = found->identity};
    const char *dot = strrchr(file->name, '.');
    assert(dot != NULL && dot > file->name);
    file->stem_bytes = (uint32_t)(dot - file->name);
    found->path = NULL;
}

// Hands what is known of a file over to the one with the same identity.
static void keep_hashes(struct lora_file *files, uint32_t count, struct lora_file **known,
                        uint32_t known_count)
{
    if (known_count == 0) return;
    qsort(known, known_count, sizeof(struct lora_file *), compare_identities);
    for (uint32_t i = 0; i < count; i++) {
        struct lora_file *file = &files[i];
        struct lora_file *const *found =
            bsearch(&file, known, known_count, sizeof(struct lora_file *), compare_identities);
        if (found == NULL) continue;
        file->has_hash = true;
        file->hash = (*found)->hash;
    }
}

// Walks both lists side by side.
static void compare_lists(struct lora_files *self, struct lora_file *files, uint32_t count,
                          uint64_t number, struct lora_files_change *out)
{
    *out = (struct lora_files_change){.added = 0};
    uint32_t i = 0;
    uint32_t j = 0;
    while (i < self->count || j < count) {
        int order = i == self->count ? 1
                    : j == count     ? -1
                                     : compare_files(&self->files[i], &files[j]);
        out->removed += order < 0;
        out->added += order > 0;
        if (order == 0 && self->files[i].dirty > number) files[j].dirty = self->files[i].dirty;
        i += order <= 0;
        j += order >= 0;
    }
}

enum status lora_files_take(struct lora_files *self, struct lora_scan *scan, uint64_t number,
                            struct lora_files_change *change, struct error *error)
{
    assert(self != NULL);
    assert(scan != NULL);
    assert(change != NULL);
    static int (*const compare[ORDERS])(const void *, const void *) = {compare_paths, compare_names,
                                                                       compare_stems};
    struct lora_file **orders[ORDERS] = {NULL};
    struct lora_file **known = calloc(self->count + 1u, sizeof(struct lora_file *));
    struct lora_file *files = calloc(scan->count + 1u, sizeof *files);
    bool memory = files != NULL && known != NULL;
    for (int i = 0; i < ORDERS; i++) {
        orders[i] = calloc(scan->count + 1u, sizeof(struct lora_file *));
        memory = memory && orders[i] != NULL;
    }
    if (!memory) {
        for (int i = 0; i < ORDERS; i++) free(orders[i]);
        free(files);
        free(known);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u files", scan->count);
    }
    const uint32_t count = scan->count;
    for (uint32_t i = 0; i < count; i++) fill_file(&files[i], &scan->found[i]);
    lora_scan_free(scan);
    qsort(files, count, sizeof *files, compare_files);
    uint32_t known_count = 0;
    for (uint32_t i = 0; i < self->count; i++) {
        if (self->files[i].has_hash) known[known_count++] = &self->files[i];
    }
    keep_hashes(files, count, known, known_count);
    compare_lists(self, files, count, number, change);
    for (int i = 0; i < ORDERS; i++) {
        for (uint32_t j = 0; j < count; j++) orders[i][j] = &files[j];
        qsort(orders[i], count, sizeof(struct lora_file *), compare[i]);
        free(self->orders[i]);
        self->orders[i] = orders[i];
    }
    free(known);
    free_files(self->files, self->count);
    self->files = files;
    self->count = count;
    return STATUS_OK;
}

uint32_t lora_files_count(const struct lora_files *self)
{
    assert(self != NULL);
    return self->count;
}

struct lora_file *lora_files_at(struct lora_files *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->count);
    return &self->files[index];
}

// ---- finding

// The files whose key in that order is text: *first and how many follow it.
static uint32_t find_equal(const struct lora_files *self, enum order order, const char *text,
                           uint32_t *first)
{
    const size_t length = strlen(text);
    uint32_t low = 0;
    uint32_t high = self->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct bytes key = key_of(self->orders[order][middle], order);
        if (compare_text(key.data, key.size, text, length) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    *first = low;
    uint32_t count = 0;
    while (low + count < self->count) {
        const struct bytes key = key_of(self->orders[order][low + count], order);
        if (compare_text(key.data, key.size, text, length) != 0) break;
        count += 1;
    }
    return count;
}

static enum status find_one(struct lora_files *self, enum order order, const char *text,
                            struct lora_file **out, struct error *error)
{
    uint32_t first = 0;
    uint32_t count = find_equal(self, order, text, &first);
    if (count == 1) *out = self->orders[order][first];
    if (count <= 1) return STATUS_OK;
    const struct lora_file *a = self->orders[order][first];
    const struct lora_file *b = self->orders[order][first + 1];
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "%u files are called \"%s\": \"%s/%s\" and \"%s/%s\"; say which by its path",
                     count, text, self->directories[a->directory], a->path,
                     self->directories[b->directory], b->path);
}

// The rest of path behind a folder; NULL when it does not lie below.
static const char *strip_folder(const char *folder, const char *path)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/') length -= 1;
    if (strncmp(path, folder, length) != 0 || path[length] != '/') return NULL;
    path += length;
    while (*path == '/') path += 1;
    return *path == '\0' ? NULL : path;
}

struct lora_file *lora_files_find_path(struct lora_files *self, uint32_t directory,
                                       const char *path)
{
    assert(self != NULL);
    assert(path != NULL);
    uint32_t first = 0;
    uint32_t count = find_equal(self, BY_PATH, path, &first);
    for (uint32_t i = 0; i < count; i++) {
        struct lora_file *file = self->orders[BY_PATH][first + i];
        if (file->directory == directory) return file;
    }
    return NULL;
}

struct lora_file *lora_files_find_hash(struct lora_files *self, const struct hash *hash)
{
    assert(self != NULL);
    assert(hash != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        if (self->files[i].has_hash && hash_equal(&self->files[i].hash, hash)) {
            return &self->files[i];
        }
    }
    return NULL;
}

static struct lora_file *find_below(struct lora_files *self, const char *reference)
{
    for (uint32_t i = 0; i < self->directories_count; i++) {
        const char *rest = strip_folder(self->directories[i], reference);
        if (rest == NULL && self->real[i] != NULL) rest = strip_folder(self->real[i], reference);
        struct lora_file *file = rest != NULL ? lora_files_find_path(self, i, rest) : NULL;
        if (file != NULL) return file;
    }
    return NULL;
}

enum status lora_files_find(struct lora_files *self, const char *reference,
                            enum lora_files_level level, struct lora_file **out,
                            struct error *error)
{
    assert(self != NULL);
    assert(reference != NULL);
    assert(out != NULL);
    *out = NULL;
    if (level == LORA_FILES_PATH) {
        *out = find_below(self, reference);
        return *out != NULL ? STATUS_OK : find_one(self, BY_PATH, reference, out, error);
    }
    enum status status = find_one(self, BY_NAME, reference, out, error);
    if (status != STATUS_OK || *out != NULL) return status;
    return find_one(self, BY_STEM, reference, out, error);
}

void lora_files_name(struct lora_files *self, const struct lora_file *file,
                     char out[LORA_NAME_BYTES])
{
    assert(self != NULL);
    assert(file != NULL);
    uint32_t first = 0;
    if (file->stem_bytes < LORA_NAME_BYTES) {
        memcpy(out, file->name, file->stem_bytes);
        out[file->stem_bytes] = '\0';
        if (find_equal(self, BY_STEM, out, &first) == 1) return;
    }
    bool is_name = find_equal(self, BY_NAME, file->name, &first) == 1;
    text_set(out, LORA_NAME_BYTES, is_name ? file->name : file->path);
}

void lora_files_changed(struct lora_files *self, int watch, const char *name, uint64_t number)
{
    assert(self != NULL);
    assert(name != NULL);
    uint32_t first = 0;
    uint32_t count = find_equal(self, BY_NAME, name, &first);
    for (uint32_t i = 0; i < count; i++) {
        struct lora_file *file = self->orders[BY_NAME][first + i];
        if (file->watch == watch) file->dirty = number;
    }
}

// ---- names that were mistyped

static size_t smallest(size_t a, size_t b, size_t c)
{
    size_t least = a < b ? a : b;
    return least < c ? least : c;
}

// Letters to change, insert or leave out.
static size_t distance(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    size_t row[RESEMBLING_BYTES_MAX + 1];
    for (size_t j = 0; j <= b_bytes; j++) row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t above = row[j];
            bool same = strncasecmp(&a[i - 1], &b[j - 1], 1) == 0;
            row[j] = smallest(row[j] + 1, row[j - 1] + 1, corner + !same);
            corner = above;
        }
    }
    return row[b_bytes];
}

bool lora_names_resemble(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    assert(a != NULL);
    assert(b != NULL);
    if (a_bytes == 0 || b_bytes == 0) return false;
    if (a_bytes > RESEMBLING_BYTES_MAX || b_bytes > RESEMBLING_BYTES_MAX) return false;
    size_t longer = a_bytes > b_bytes ? a_bytes : b_bytes;
    size_t shorter = a_bytes + b_bytes - longer;
    size_t allowed = longer <= 4 ? 1 : longer <= 8 ? 2 : 3;
    if (longer - shorter > allowed) {
        return shorter >= 4 && strncasecmp(a, b, shorter) == 0;
    }
    return distance(a, a_bytes, b, b_bytes) <= allowed;
}

void lora_files_resembling(struct lora_files *self, const char *reference, char *out,
                           size_t out_bytes)
{
    assert(self != NULL);
    assert(out_bytes > 0);
    const char *slash = strrchr(reference, '/');
    const char *name = slash != NULL ? slash + 1 : reference;
    const char *dot = lora_scan_wants(name) ? strrchr(name, '.') : NULL;
    size_t bytes = dot != NULL ? (size_t)(dot - name) : strlen(name);
    size_t used = 0;
    uint32_t found = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < self->count && i < RESEMBLING_FILES_MAX && found < 3; i++) {
        const struct lora_file *file = &self->files[i];
        if (!lora_names_resemble(name, bytes, file->name, file->stem_bytes)) continue;
        int length = snprintf(out + used, out_bytes - used, "%s\"%.*s\"", found > 0 ? ", " : "",
                              (int)file->stem_bytes, file->name);
        if (length < 0 || (size_t)length >= out_bytes - used) {
            out[used] = '\0';
            return;
        }
        used += (size_t)length;
        found += 1;
    }
}
