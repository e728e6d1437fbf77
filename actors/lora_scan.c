// lora_scan.c - openat(2) folder by folder without following links; lora_scan.h holds the contract.
//
// A link to a folder is never entered: what lies below the directories is found where it lies, and
// so the walk needs no memory of where it was to come to an end.

#include "actors/lora_scan.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEPTH_MAX 16u
#define WATCHED                                                                                    \
    (IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | IN_DELETE_SELF |       \
     IN_MOVE_SELF | IN_ATTRIB | IN_ONLYDIR)

static const char *const suffixes[] = {".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin"};

// Where a walk is.
struct walk {
    struct lora_scan *scan;  // that is filled
    uint32_t directory;      // index
    int root;                // O_PATH of the directory
    int inotify;             // or -1
};

bool lora_scan_wants(const char *name)
{
    assert(name != NULL);
    size_t length = strlen(name);
    if (name[0] == '.') return false;
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        size_t suffix = strlen(suffixes[i]);
        if (length > suffix && strcasecmp(name + length - suffix, suffixes[i]) == 0) return true;
    }
    return false;
}

static struct lora_identity identity_of(const struct stat *facts)
{
    return (struct lora_identity){.device = facts->st_dev,
                                  .inode = facts->st_ino,
                                  .size = (uint64_t)facts->st_size,
                                  .modified_ns = (uint64_t)facts->st_mtim.tv_sec * 1000000000u +
                                                 (uint64_t)facts->st_mtim.tv_nsec};
}

enum status lora_scan_identify(int descriptor, struct lora_identity *out)
{
    assert(descriptor >= 0);
    assert(out != NULL);
    struct stat facts;
    if (fstat(descriptor, &facts) != 0) return STATUS_INTERNAL;
    *out = identity_of(&facts);
    return STATUS_OK;
}

bool lora_identity_equal(const struct lora_identity *a, const struct lora_identity *b)
{
    assert(a != NULL);
    assert(b != NULL);
    return a->device == b->device && a->inode == b->inode && a->size == b->size &&
           a->modified_ns == b->modified_ns;
}

static int open_beneath(int root, const char *path, uint64_t flags)
{
    const struct open_how how = {.flags = flags | O_CLOEXEC,
                                 .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    long opened = 0;
    do {
        opened = syscall(SYS_openat2, root, path, &how, sizeof how);
    } while (opened < 0 && (errno == EAGAIN || errno == EINTR));
    return opened < 0 ? -1 : (int)opened;
}

enum status lora_scan_open(int *out, struct lora_identity *identity, const char *directory,
                           const char *path, struct error *error)
{
    assert(out != NULL);
    assert(identity != NULL);
    struct stat facts;
    int root = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    // Without O_NONBLOCK a named pipe in the folder would hold the thread for ever.
    int descriptor = root >= 0 ? open_beneath(root, path, O_RDONLY | O_NONBLOCK) : -1;
    int failed = errno;
    if (root >= 0) close(root);
    if (descriptor < 0 && (failed == EMFILE || failed == ENFILE || failed == ENOMEM)) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "LoRA file \"%s\": %s", path,
                         strerror(failed));
    }
    if (descriptor < 0) {
        return error_set(error, STATUS_NOT_FOUND,
                         "LoRA file \"%s\" is not below the LoRA directories", path);
    }
    if (fstat(descriptor, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        close(descriptor);
        return error_set(error, STATUS_INVALID_ARGUMENT, "LoRA file \"%s\" is not a plain file",
                         path);
    }
    *identity = identity_of(&facts);
    *out = descriptor;
    return STATUS_OK;
}

// ---- the walk

static enum status add_found(struct walk *walk, const char *path, int watch,
                             const struct stat *facts, struct error *error)
{
    struct lora_scan *scan = walk->scan;
    if (scan->count == LORA_FILES_MAX) {
        scan->refused += 1;
        return STATUS_OK;
    }
    if (scan->count == scan->capacity) {
        uint32_t capacity = scan->capacity == 0 ? 256 : 2 * scan->capacity;
        struct lora_found *found = realloc(scan->found, capacity * sizeof *found);
        if (found == NULL) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a list of files");
        }
        scan->found = found;
        scan->capacity = capacity;
    }
    char *copy = strdup(path);
    if (copy == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a list of files");
    }
    scan->found[scan->count] = (struct lora_found){
        .directory = walk->directory, .path = copy, .watch = watch, .identity = identity_of(facts)};
    scan->count += 1;
    return STATUS_OK;
}

// What can be shown and asked for: UTF-8 without control characters, not too long.
static bool can_be_named(const char *path)
{
    size_t length = strlen(path);
    if (length >= LORA_PATH_BYTES || !utf8_valid((struct bytes){path, length})) return false;
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)path[i] < 0x20 || path[i] == 0x7f) return false;
    }
    return true;
}

// A file, or a link to one that stays below.
static enum status look_at(struct walk *walk, const char *path, int watch, struct error *error)
{
    struct stat facts;
    int descriptor = open_beneath(walk->root, path, O_PATH);
    bool found = descriptor >= 0 && fstat(descriptor, &facts) == 0;
    if (descriptor >= 0) close(descriptor);
    if (found && S_ISDIR(facts.st_mode)) return STATUS_OK;  // a link to a folder
    bool is_file = found && S_ISREG(facts.st_mode);
    if (!is_file || faccessat(walk->root, path, R_OK, AT_EACCESS) != 0 || !can_be_named(path)) {
        walk->scan->refused += 1;
        return STATUS_OK;
    }
    return add_found(walk, path, watch, &facts, error);
}

static int watch_folder(struct walk *walk, int folder)
{
    if (walk->inotify < 0) return -1;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", folder);
    int watch = inotify_add_watch(walk->inotify, path, WATCHED);
    walk->scan->unwatched += watch < 0;
    return watch;
}

static bool is_folder(int folder, const struct dirent *entry)
{
    struct stat facts;
    if (entry->d_type != DT_UNKNOWN) return entry->d_type == DT_DIR;
    return fstatat(folder, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(facts.st_mode);
}

// A link of a name that nobody looks for may still lead to a folder outside.
static void look_at_link(struct walk *walk, const char *path)
{
    int descriptor = open_beneath(walk->root, path, O_PATH);
    walk->scan->refused += descriptor < 0 && errno != ENOENT;
    if (descriptor >= 0) close(descriptor);
}

// Walks the folder behind a descriptor, which is closed. path: of the folder, with a slash at its
// end, or "".
static enum status walk_folder(struct walk *walk, int folder, const char *path, uint32_t depth,
                               struct error *error)
{
    DIR *stream = fdopendir(folder);
    if (stream == NULL) {
        close(folder);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a list of files");
    }
    int watch = watch_folder(walk, dirfd(stream));
    enum status status = STATUS_OK;
    const struct dirent *entry = NULL;
    while (status == STATUS_OK && (entry = readdir(stream)) != NULL) {
        char inside[LORA_PATH_BYTES + 256];
        if (entry->d_name[0] == '.') continue;
        int length = snprintf(inside, sizeof inside - 1, "%s%s", path, entry->d_name);
        bool fits = length > 0 && (size_t)length < LORA_PATH_BYTES;
        if (is_folder(dirfd(stream), entry)) {
            int next = fits && depth < DEPTH_MAX
                           ? openat(dirfd(stream), entry->d_name,
                                    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                           : -1;
            if (next < 0) {
                walk->scan->refused += 1;
                continue;
            }
            inside[length] = '/';
            inside[length + 1] = '\0';
            status = walk_folder(walk, next, inside, depth + 1, error);
        } else if (lora_scan_wants(entry->d_name)) {
            if (!fits) walk->scan->refused += 1;
            if (fits) status = look_at(walk, inside, watch, error);
        } else if (entry->d_type == DT_LNK && fits) {
            look_at_link(walk, inside);
        }
    }
    closedir(stream);
    return status;
}

enum status lora_scan_walk(struct lora_scan *out, const char *const *directories,
                           uint32_t directories_count, int inotify, struct error *error)
{
    assert(out != NULL);
    assert(directories != NULL || directories_count == 0);
    struct lora_scan scan = {.count = 0};
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < directories_count && status == STATUS_OK; i++) {
        struct walk walk = {.scan = &scan, .directory = i, .inotify = inotify};
        int folder = open(directories[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        walk.root = open(directories[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (folder >= 0 && walk.root >= 0) {
            status = walk_folder(&walk, folder, "", 0, error);
        } else if (folder >= 0) {
            close(folder);
        }
        if (walk.root >= 0) close(walk.root);
    }
    if (status == STATUS_OK) {
        *out = scan;
        scan = (struct lora_scan){.count = 0};
    }
    lora_scan_free(&scan);
    return status;
}

void lora_scan_free(struct lora_scan *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) free(self->found[i].path);
    free(self->found);
    *self = (struct lora_scan){.count = 0};
}
