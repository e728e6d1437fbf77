// file_map.c - open, fstat, mmap; the policy is in file_map.h.

#include "models/files/file_map.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"

const char *file_name(const char *path)
{
    assert(path != NULL);
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : path;
}

static enum status open_failed(const char *path, int number, struct error *error)
{
    enum status status = number == ENOENT || number == ENOTDIR ? STATUS_NOT_FOUND
                         : number == EACCES || number == EPERM ? STATUS_PERMISSION_DENIED
                         : number == EMFILE || number == ENFILE || number == ENOMEM
                             ? STATUS_RESOURCE_EXHAUSTED
                             : STATUS_INVALID_ARGUMENT;
    return error_set(error, status, "file \"%s\": %s", file_name(path), strerror(number));
}

// Maps what map->descriptor holds, which is closed on failure.
static enum status map_file(struct file_map *map, const char *path, struct error *error)
{
    struct stat facts;
    enum status status = STATUS_OK;
    if (map->descriptor < 0 || fstat(map->descriptor, &facts) != 0) {
        status = open_failed(path, errno, error);
        goto done;
    }
    if (!S_ISREG(facts.st_mode) || facts.st_size <= 0) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "file \"%s\" is %s", file_name(path),
                           S_ISREG(facts.st_mode) ? "empty" : "not a regular file");
        goto done;
    }
    map->bytes = (uint64_t)facts.st_size;
    map->modified = facts.st_mtim;
    text_set(map->name, sizeof map->name, file_name(path));
    void *data = mmap(NULL, map->bytes, PROT_READ, MAP_PRIVATE, map->descriptor, 0);
    if (data == MAP_FAILED) {
        status = open_failed(path, errno, error);
        goto done;
    }
    map->data = data;

done:
    if (status != STATUS_OK) file_map_close(map);
    return status;
}

enum status file_map_open(struct file_map *out, const char *path, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct file_map map = FILE_MAP_NONE;
    // O_NONBLOCK: a FIFO must not hold the daemon up; it has no effect on regular files.
    map.descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    enum status status = map_file(&map, path, error);
    if (status == STATUS_OK) *out = map;
    return status;
}

enum status file_map_open_descriptor(struct file_map *out, int descriptor, const char *name,
                                     struct error *error)
{
    assert(out != NULL);
    assert(descriptor >= 0);
    struct file_map map = FILE_MAP_NONE;
    map.descriptor = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    enum status status = map_file(&map, name, error);
    if (status == STATUS_OK) *out = map;
    return status;
}

void file_map_close(struct file_map *self)
{
    assert(self != NULL);
    if (self->data != NULL) munmap((void *)(uintptr_t)self->data, self->bytes);
    if (self->descriptor >= 0) close(self->descriptor);
    *self = FILE_MAP_NONE;
}

enum status file_map_read(const struct file_map *self, uint64_t offset, void *out, uint64_t bytes,
                          struct error *error)
{
    assert(self != NULL);
    assert(self->descriptor >= 0);
    uint8_t *at = out;
    while (bytes > 0) {
        ssize_t count = pread(self->descriptor, at, bytes, (off_t)offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return error_set(error, STATUS_INTERNAL, "read: %s", strerror(errno));
        if (count == 0) {
            return error_set(error, STATUS_FAILED_PRECONDITION,
                             "the file has become shorter while it was read");
        }
        at += count;
        offset += (uint64_t)count;
        bytes -= (uint64_t)count;
    }
    return STATUS_OK;
}

bool file_map_unchanged(const struct file_map *self)
{
    assert(self != NULL);
    struct stat facts;
    if (self->descriptor < 0) return true;
    if (fstat(self->descriptor, &facts) != 0) return false;
    return (uint64_t)facts.st_size == self->bytes &&
           facts.st_mtim.tv_sec == self->modified.tv_sec &&
           facts.st_mtim.tv_nsec == self->modified.tv_nsec;
}
