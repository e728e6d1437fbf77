// config_files.h - where configuration files are, and their text.
//
// Shared by the files of the configuration and nobody else.

#ifndef RUNTIME_CONFIG_FILES_H
#define RUNTIME_CONFIG_FILES_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CONFIG_PATHS_MAX 64u  // files of conf.d and two more

// Files in the order in which they are read.
struct config_paths {
    uint32_t count;                          // of paths
    char paths[CONFIG_PATHS_MAX][PATH_MAX];  // may not exist
};

// The value of a variable in "NAME=VALUE" strings; NULL when it is not there.
const char *config_variable(char *const *environment, const char *name);

// What @runtime@ stands for; the directory may not exist.
void config_runtime_directory(char *out, size_t out_bytes, char *const *environment);

// Lists luna.conf, conf.d/*.conf below etc (NULL: the system's), and the user's file.
// Ownership: the caller frees *out.
// Errors:    INVALID_ARGUMENT when conf.d has too many files; RESOURCE_EXHAUSTED.
enum status config_find_files(struct config_paths **out, const char *etc, char *const *environment,
                              struct error *error);

// Reads a whole regular file of at most CONFIG_FILE_BYTES_MAX.
// Ownership: the caller frees *text.
// Errors:    NOT_FOUND; INVALID_ARGUMENT for what is no regular file or too large;
//            PERMISSION_DENIED; RESOURCE_EXHAUSTED; INTERNAL.
enum status config_read_file(const char *path, char **text, size_t *size, struct error *error);

#endif  // RUNTIME_CONFIG_FILES_H
