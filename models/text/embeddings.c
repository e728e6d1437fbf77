// embeddings.c - the listing of an embeddings folder, made once, and the files in it, opened when
// first asked for.
//
// A file a/b/c.pt answers to the names c.pt, b/c.pt and a/b/c.pt: every suffix of its path at a
// folder's border is one entry of a sorted index, so that a name costs four binary searches however
// large the folder is. Where a name has several files, the folder decides, then the suffix.
//
// Nothing is opened by a path that was put together: openat2 resolves beneath the folder's own
// descriptor, so that neither a name nor a symbolic link leads outside. The tables that were opened
// are the only thing that changes after the listing; the lock guards them.

#include "models/text/embeddings.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "models/text/array.h"

#define FOLDER_DEPTH_MAX 16u
#define FILES_MAX 65536u
#define PATH_BYTES_MAX 4096u

static const char *const extensions[] = {"", ".safetensors", ".pt", ".bin"};
#define EXTENSIONS_COUNT (sizeof extensions / sizeof extensions[0])

struct embedding_file {
    char *path;                  // below the folder
    struct tensor_table *table;  // NULL until it was opened; guarded by lock
};

// One name of one file.
struct embedding_name {
    const char *name;  // the end of the file's path
    uint32_t file;     // index into files
    uint32_t folder;   // bytes of the path in front of name
};

struct text_embeddings {
    struct {
        struct embedding_file *items;  // in the order found
        uint32_t count;                // files in use
        uint32_t capacity;             // files there is room for
    } files;                           // all regular files of the folder
    struct {
        struct embedding_name *items;  // sorted by name, then by folder
        uint32_t count;                // names in use
        uint32_t capacity;             // names there is room for
    } names;                           // under which the files are found
    struct torch_reader reader;        // a copy; list is NULL when torch files are refused
    int descriptor;                    // of the folder; -1 when it could not be opened
    pthread_mutex_t lock;              // guards the tables of files
};

// Opens a path for reading, where it may not leave the folder by any way.
static int open_beneath(const struct text_embeddings *self, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    return (int)syscall(SYS_openat2, self->descriptor, path, &how, sizeof how);
}

static bool is_regular_file(const struct text_embeddings *self, const char *path)
{
    struct stat facts;
    int descriptor = open_beneath(self, path);
    if (descriptor < 0) return false;
    bool regular = fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode);
    close(descriptor);
    return regular;
}

static enum status add_file(struct text_embeddings *self, const char *path)
{
    if (self->files.count == FILES_MAX) return STATUS_OK;
    if (!is_regular_file(self, path)) return STATUS_OK;
    if (!ARRAY_RESERVE(&self->files, (uint64_t)self->files.count + 1)) {
        return STATUS_RESOURCE_EXHAUSTED;
    }
    char *copy = strdup(path);
    if (copy == NULL) return STATUS_RESOURCE_EXHAUSTED;
    self->files.items[self->files.count++] = (struct embedding_file){.path = copy};
    return STATUS_OK;
}

static enum status scan_folder(struct text_embeddings *self, const char *folder, uint32_t depth);

// Adds a file, or what is in a folder. Links to folders are not followed: they could form a ring.
static enum status scan_entry(struct text_embeddings *self, const char *folder,
                              const struct dirent *entry, uint32_t depth)
{
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) return STATUS_OK;
    char path[PATH_BYTES_MAX];
    bool is_root = strcmp(folder, ".") == 0;
    int length = snprintf(path, sizeof path, "%s%s%s", is_root ? "" : folder, is_root ? "" : "/",
                          entry->d_name);
    if (length < 0 || (size_t)length >= sizeof path) return STATUS_OK;

    struct stat facts;
    if (fstatat(self->descriptor, path, &facts, AT_SYMLINK_NOFOLLOW) != 0) return STATUS_OK;
    if (S_ISDIR(facts.st_mode)) return scan_folder(self, path, depth + 1);
    if (S_ISREG(facts.st_mode) || S_ISLNK(facts.st_mode)) return add_file(self, path);
    return STATUS_OK;
}

// Lists a folder; one that cannot be read is taken for empty.
static enum status scan_folder(struct text_embeddings *self, const char *folder, uint32_t depth)
{
    if (depth > FOLDER_DEPTH_MAX) return STATUS_OK;
    int descriptor = open_beneath(self, folder);
    if (descriptor < 0) return STATUS_OK;
    DIR *listing = fdopendir(descriptor);
    if (listing == NULL) {
        close(descriptor);
        return STATUS_OK;
    }
    enum status status = STATUS_OK;
    const struct dirent *entry = NULL;
    while (status == STATUS_OK && (entry = readdir(listing)) != NULL) {
        status = scan_entry(self, folder, entry, depth);
    }
    closedir(listing);
    return status;
}

static enum status add_names(struct text_embeddings *self, uint32_t file)
{
    const char *path = self->files.items[file].path;
    for (const char *name = path; name != NULL;) {
        if (!ARRAY_RESERVE(&self->names, (uint64_t)self->names.count + 1)) {
            return STATUS_RESOURCE_EXHAUSTED;
        }
        self->names.items[self->names.count++] =
            (struct embedding_name){.name = name, .file = file, .folder = (uint32_t)(name - path)};
        const char *slash = strchr(name, '/');
        name = slash != NULL ? slash + 1 : NULL;
    }
    return STATUS_OK;
}

// The folder in front of a name: its first byte is that of the path.
static int compare_folders(const struct embedding_name *a, const struct embedding_name *b)
{
    uint32_t shared = a->folder < b->folder ? a->folder : b->folder;
    int order = memcmp(a->name - a->folder, b->name - b->folder, shared);
    if (order != 0) return order;
    return (a->folder > b->folder) - (a->folder < b->folder);
}

static int compare_names(const void *left, const void *right)
{
    const struct embedding_name *a = left;
    const struct embedding_name *b = right;
    int order = strcmp(a->name, b->name);
    return order != 0 ? order : compare_folders(a, b);
}

enum status text_embeddings_open(struct text_embeddings **out, const char *folder,
                                 const struct torch_reader *reader, struct error *error)
{
    assert(out != NULL);
    assert(folder != NULL);

    const char *slash = strrchr(folder, '/');
    const char *last = slash != NULL && slash[1] != '\0' ? slash + 1 : folder;
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    struct text_embeddings *self = calloc(1, sizeof *self);
    if (self == NULL) goto done;
    pthread_mutex_init(&self->lock, NULL);
    if (reader != NULL) self->reader = *reader;
    self->descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (self->descriptor < 0) {
        status = error_set(error, STATUS_NOT_FOUND, "embeddings folder \"%.100s\": %s", last,
                           strerror(errno));
        text_embeddings_close(&self);
        return status;
    }
    status = scan_folder(self, ".", 0);
    for (uint32_t i = 0; status == STATUS_OK && i < self->files.count; i++) {
        status = add_names(self, i);
    }
    if (status != STATUS_OK) goto done;
    if (self->names.count > 0) {
        qsort(self->names.items, self->names.count, sizeof *self->names.items, compare_names);
    }
    *out = self;
    self = NULL;

done:
    text_embeddings_close(&self);
    if (status == STATUS_RESOURCE_EXHAUSTED) {
        error_set(error, status, "no memory for the listing of embeddings folder \"%.100s\"", last);
    }
    return status;
}

void text_embeddings_close(struct text_embeddings **self_p)
{
    assert(self_p != NULL);
    struct text_embeddings *self = *self_p;
    if (self == NULL) return;
    for (uint32_t i = 0; i < self->files.count; i++) {
        tensor_table_release(&self->files.items[i].table);
        free(self->files.items[i].path);
    }
    free(self->files.items);
    free(self->names.items);
    if (self->descriptor >= 0) close(self->descriptor);
    pthread_mutex_destroy(&self->lock);
    free(self);
    *self_p = NULL;
}

// The first entry with exactly this name, or NULL.
static const struct embedding_name *find_name(const struct text_embeddings *self, const char *name)
{
    uint32_t begin = 0;
    uint32_t end = self->names.count;
    while (begin < end) {
        uint32_t middle = begin + (end - begin) / 2;
        if (strcmp(self->names.items[middle].name, name) < 0) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    if (begin == self->names.count) return NULL;
    const struct embedding_name *found = &self->names.items[begin];
    return strcmp(found->name, name) == 0 ? found : NULL;
}

int64_t text_embeddings_find(const struct text_embeddings *self, struct bytes name)
{
    assert(self != NULL);
    assert(name.data != NULL || name.size == 0);
    char text[PATH_BYTES_MAX];
    if (name.size == 0 || name.size > sizeof text - sizeof ".safetensors") return -1;
    if (memchr(name.data, '\0', name.size) != NULL) return -1;
    memcpy(text, name.data, name.size);

    const struct embedding_name *best = NULL;
    for (size_t i = 0; i < EXTENSIONS_COUNT; i++) {
        memcpy(text + name.size, extensions[i], strlen(extensions[i]) + 1);
        const struct embedding_name *found = find_name(self, text);
        if (found == NULL) continue;
        if (best == NULL || compare_folders(found, best) < 0) best = found;
    }
    return best == NULL ? -1 : (int64_t)best->file;
}

const char *text_embeddings_path(const struct text_embeddings *self, uint32_t index)
{
    assert(self != NULL);
    assert(index < self->files.count);
    return self->files.items[index].path;
}

// Opens a file that is not open yet.
static enum status open_table(const struct text_embeddings *self, const char *path,
                              struct tensor_table **out, struct error *error)
{
    char opened[64];
    int descriptor = open_beneath(self, path);
    if (descriptor < 0) {
        return error_set(error, STATUS_NOT_FOUND, "embedding file: %s", strerror(errno));
    }
    snprintf(opened, sizeof opened, "/proc/self/fd/%d", descriptor);
    const struct torch_reader *reader = self->reader.list != NULL ? &self->reader : NULL;
    enum status status = tensor_table_open(out, opened, reader, error);
    close(descriptor);
    return status;
}

// The table of a file, with a count for the caller. Two threads may open the same file at the same
// time; the first one's table stays.
static enum status share_table(struct text_embeddings *self, uint32_t index,
                               struct tensor_table **out, struct error *error)
{
    struct embedding_file *file = &self->files.items[index];
    struct tensor_table *opened = NULL;
    pthread_mutex_lock(&self->lock);
    struct tensor_table *table = file->table != NULL ? tensor_table_share(file->table) : NULL;
    pthread_mutex_unlock(&self->lock);
    if (table == NULL) {
        enum status status = open_table(self, file->path, &opened, error);
        if (status != STATUS_OK) return status;
        pthread_mutex_lock(&self->lock);
        if (file->table == NULL) {
            file->table = opened;
            opened = NULL;
        }
        table = tensor_table_share(file->table);
        pthread_mutex_unlock(&self->lock);
        tensor_table_release(&opened);
    }
    *out = table;
    return STATUS_OK;
}

enum status text_embeddings_read(struct text_embeddings *self, uint32_t index, const char *key,
                                 uint32_t width, struct embedding_vectors *out, struct error *error)
{
    assert(self != NULL);
    assert(index < self->files.count);
    struct tensor_table *table = NULL;
    enum status status = share_table(self, index, &table, error);
    if (status == STATUS_OK) status = embedding_select(table, key, width, out, error);
    tensor_table_release(&table);
    return status;
}
