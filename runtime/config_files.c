// config_files.c - finds and reads configuration files; config_files.h holds the contract.

#include "runtime/config_files.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/config.h"

#define SYSTEM_DIRECTORY "/etc/luna"

const char *config_variable(char *const *environment, const char *name)
{
    assert(environment != NULL);
    assert(name != NULL);
    size_t length = strlen(name);
    for (; *environment != NULL; environment++) {
        if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=') {
            return *environment + length + 1;
        }
    }
    return NULL;
}

// The value when it is an absolute path.
static const char *directory_variable(char *const *environment, const char *name)
{
    const char *value = config_variable(environment, name);
    return value != NULL && value[0] == '/' ? value : NULL;
}

void config_runtime_directory(char *out, size_t out_bytes, char *const *environment)
{
    assert(out != NULL);
    assert(out_bytes > 0);
    const char *user = directory_variable(environment, "XDG_RUNTIME_DIR");
    const char *temporary = directory_variable(environment, "TMPDIR");
    if (geteuid() == 0) {
        snprintf(out, out_bytes, "/run/luna");
    } else if (user != NULL) {
        snprintf(out, out_bytes, "%s/luna", user);
    } else {
        snprintf(out, out_bytes, "%s/luna-%u", temporary != NULL ? temporary : P_tmpdir,
                 (unsigned)geteuid());
    }
}

// Adds a path; false when there is no room for it.
__attribute__((format(printf, 2, 3))) static bool add(struct config_paths *self, const char *format,
                                                      ...)
{
    if (self->count == CONFIG_PATHS_MAX) return false;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(self->paths[self->count], PATH_MAX, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= PATH_MAX) return false;
    self->count++;
    return true;
}

static int is_configuration(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length > 5 && entry->d_name[0] != '.' &&
           strcmp(entry->d_name + length - 5, ".conf") == 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);  // not of the locale
}

// Adds conf.d/*.conf in the order of their names.
static bool add_directory(struct config_paths *self, const char *etc)
{
    char directory[PATH_MAX];
    int length = snprintf(directory, sizeof directory, "%s/conf.d", etc);
    if (length < 0 || (size_t)length >= sizeof directory) return false;
    struct dirent **entries = NULL;
    int count = scandir(directory, &entries, is_configuration, compare_names);
    bool has_room = true;
    for (int i = 0; i < count; i++) {
        has_room = has_room && add(self, "%s/%s", directory, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return has_room;
}

enum status config_find_files(struct config_paths **out, const char *etc, char *const *environment,
                              struct error *error)
{
    assert(out != NULL);
    assert(environment != NULL);
    if (etc == NULL) etc = SYSTEM_DIRECTORY;
    struct config_paths *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    const char *user = directory_variable(environment, "XDG_CONFIG_HOME");
    const char *home = directory_variable(environment, "HOME");
    bool has_room = add(self, "%s/luna.conf", etc) && add_directory(self, etc);
    if (user != NULL) {
        has_room = has_room && add(self, "%s/luna/luna.conf", user);
    } else if (home != NULL) {
        has_room = has_room && add(self, "%s/.config/luna/luna.conf", home);
    }
    if (!has_room) {
        free(self);
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s: more than %u configuration files, or too long a path", etc,
                         CONFIG_PATHS_MAX);
    }
    *out = self;
    return STATUS_OK;
}

static enum status check_file(int descriptor, const char *path, struct error *error)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0) {
        return error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s is no regular file", path);
    }
    if (status.st_size > (off_t)CONFIG_FILE_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s has %lld bytes, a configuration has at most %u", path,
                         (long long)status.st_size, CONFIG_FILE_BYTES_MAX);
    }
    return STATUS_OK;
}

enum status config_read_file(const char *path, char **text, size_t *size, struct error *error)
{
    assert(path != NULL);
    assert(text != NULL);
    assert(size != NULL);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not hang us
    if (descriptor < 0) {
        enum status status = errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND
                             : errno == EACCES                   ? STATUS_PERMISSION_DENIED
                                                                 : STATUS_INTERNAL;
        return error_set(error, status, "%s: %s", path, strerror(errno));
    }
    char *buffer = NULL;
    size_t used = 0;
    enum status status = check_file(descriptor, path, error);
    if (status != STATUS_OK) goto done;
    status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "%s: no memory to read it", path);
    buffer = malloc(CONFIG_FILE_BYTES_MAX);
    if (buffer == NULL) goto done;
    ssize_t got = 1;
    while (got > 0 && used < CONFIG_FILE_BYTES_MAX) {
        got = read(descriptor, buffer + used, CONFIG_FILE_BYTES_MAX - used);
        if (got > 0) used += (size_t)got;
    }
    status = error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    if (got < 0) goto done;
    status = STATUS_OK;
    *text = buffer;
    *size = used;
    buffer = NULL;

done:
    free(buffer);
    close(descriptor);
    return status;
}
