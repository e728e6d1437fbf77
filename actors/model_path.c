// model_path.c - openat2(2) does the confinement: RESOLVE_BENEATH refuses every step that would
// leave the folder, by "..", by a link, by /proc, also while somebody renames things. The path that
// is handed on is the one the kernel gives the opened file.

#include "actors/model_path.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

bool model_file_equal(const struct model_file *a, const struct model_file *b)
{
    assert(a != NULL);
    assert(b != NULL);
    return strcmp(a->path, b->path) == 0 && a->device == b->device && a->inode == b->inode &&
           a->size == b->size && a->modified_ns == b->modified_ns;
}

// The rest of name behind folder; NULL when it does not lie below.
static const char *strip_folder(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/') length -= 1;
    if (strncmp(name, folder, length) != 0) return NULL;
    if (length == 1) return name + 1;
    if (name[length] != '/') return NULL;
    name += length;
    while (*name == '/') name += 1;
    return *name == '\0' ? NULL : name;
}

// The name relative to the folder: as it is, or what is left of an absolute one; NULL when it lies
// elsewhere.
static const char *relative_to(const char *folder, const char *name)
{
    if (name[0] != '/') return name;
    const char *rest = strip_folder(folder, name);
    if (rest != NULL) return rest;
    char real[PATH_MAX];
    return realpath(folder, real) != NULL ? strip_folder(real, name) : NULL;
}

// Opens name below folder; -1 when there is nothing that may be opened.
static int open_beneath(const char *folder, const char *name, bool want_folder)
{
    int base = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (base < 0) return -1;
    // Without O_NONBLOCK a named pipe in the folder would hold the thread for ever.
    struct open_how how = {.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    if (want_folder) how.flags |= O_DIRECTORY;
    long opened = 0;
    do {
        opened = syscall(SYS_openat2, base, name, &how, sizeof how);
    } while (opened < 0 && (errno == EAGAIN || errno == EINTR));
    close(base);
    return opened < 0 ? -1 : (int)opened;
}

static enum status describe(int descriptor, const char *name, bool want_folder,
                            struct model_file *out, struct error *error)
{
    struct stat info;
    struct model_file file = {.size = 0};
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, file.path, sizeof file.path);
    if (length < 0 || fstat(descriptor, &info) != 0) {
        return error_set(error, STATUS_INTERNAL, "cannot look at \"%s\": %s", name,
                         strerror(errno));
    }
    if ((size_t)length >= sizeof file.path) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the path of \"%s\" is longer than %u bytes", name, MODEL_PATH_BYTES - 1);
    }
    if (want_folder ? !S_ISDIR(info.st_mode) : !S_ISREG(info.st_mode)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "\"%s\" is not a %s", name,
                         want_folder ? "folder" : "plain file");
    }
    file.path[length] = '\0';
    file.device = info.st_dev;
    file.inode = info.st_ino;
    file.size = (uint64_t)info.st_size;
    file.modified_ns = (uint64_t)info.st_mtim.tv_sec * 1000000000u + (uint64_t)info.st_mtim.tv_nsec;
    *out = file;
    return STATUS_OK;
}

enum status model_path_find(const char *const *folders, uint32_t folders_count, const char *name,
                            bool want_folder, struct model_file *out, struct error *error)
{
    assert(folders != NULL || folders_count == 0);
    assert(name != NULL);
    assert(out != NULL);
    for (uint32_t i = 0; i < folders_count; i++) {
        const char *relative = relative_to(folders[i], name);
        if (relative == NULL || relative[0] == '\0') continue;
        int descriptor = open_beneath(folders[i], relative, want_folder);
        if (descriptor < 0) continue;
        enum status status = describe(descriptor, name, want_folder, out, error);
        close(descriptor);
        return status;
    }
    return error_set(error, STATUS_NOT_FOUND, "model %s \"%s\" is not below the model directories",
                     want_folder ? "folder" : "file", name);
}
