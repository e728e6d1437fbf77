// endpoint.c - where the daemon listens when nobody said so.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clients/c/luna.h"

#define SYSTEM_FOLDER "/run/luna"
#define SYSTEM_SOCKET SYSTEM_FOLDER "/luna.sock"
#define FALLBACK "tcp://127.0.0.1:19283"

static bool is_socket(const char *path)
{
    struct stat entry;
    return stat(path, &entry) == 0 && S_ISSOCK(entry.st_mode);
}

// True for a folder that only this user can have made: in a temporary folder anybody makes folders.
static bool is_own(const char *folder)
{
    struct stat entry;
    return lstat(folder, &entry) == 0 && S_ISDIR(entry.st_mode) && entry.st_uid == geteuid() &&
           (entry.st_mode & 077) == 0;
}

// The folder that spec interface calls @runtime@; false when it does not fit.
static bool runtime_folder(char *out, size_t bytes)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    const char *temporary = getenv("TMPDIR");
    int length = 0;
    if (geteuid() == 0) {
        length = snprintf(out, bytes, "%s", SYSTEM_FOLDER);
    } else if (runtime != NULL && runtime[0] == '/') {
        length = snprintf(out, bytes, "%s/luna", runtime);
    } else {
        if (temporary == NULL || temporary[0] != '/') temporary = P_tmpdir;
        length = snprintf(out, bytes, "%s/luna-%u", temporary, (unsigned)geteuid());
        if (length > 0 && (size_t)length < bytes && !is_own(out)) return false;
    }
    return length > 0 && (size_t)length < bytes;
}

static bool user_socket(char *out, size_t bytes)
{
    char folder[LUNA_ENDPOINT_BYTES];
    if (!runtime_folder(folder, sizeof folder)) return false;
    int length = snprintf(out, bytes, "%s/luna.sock", folder);
    return length > 0 && (size_t)length < bytes && is_socket(out);
}

enum status luna_find_endpoint(const char *explicit, char out[LUNA_ENDPOINT_BYTES],
                               struct error *error)
{
    char path[LUNA_ENDPOINT_BYTES - 6];  // "ipc://" goes in front
    char found[LUNA_ENDPOINT_BYTES];
    const char *variable = getenv("LUNA_ENDPOINT");
    const char *chosen = found;
    if (explicit != NULL) {
        chosen = explicit;
    } else if (variable != NULL && variable[0] != '\0') {
        chosen = variable;
    } else if (user_socket(path, sizeof path)) {
        snprintf(found, sizeof found, "ipc://%s", path);
    } else if (is_socket(SYSTEM_SOCKET)) {
        snprintf(found, sizeof found, "ipc://%s", SYSTEM_SOCKET);
    } else {
        snprintf(found, sizeof found, "%s", FALLBACK);
    }
    if (strncmp(chosen, "tcp://", 6) != 0 && strncmp(chosen, "ipc://", 6) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "endpoint \"%s\" is neither tcp://HOST:PORT nor ipc://PATH", chosen);
    }
    if (strlen(chosen) >= LUNA_ENDPOINT_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the endpoint has %zu bytes, at most %u",
                         strlen(chosen), LUNA_ENDPOINT_BYTES - 1);
    }
    memcpy(out, chosen, strlen(chosen) + 1);
    return STATUS_OK;
}
