// process.c - what the daemon's processes share; process.h holds the contract.

#include "actors/process.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "actors/topology.h"
#include "base/text.h"

static bool write_all(int descriptor, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t written = write(descriptor, text, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        text += written;
        size -= (size_t)written;
    }
    return true;
}

enum status process_write_config(const struct config *config, int *out, struct error *error)
{
    assert(config != NULL);
    assert(out != NULL);
    char *text = NULL;
    enum status status = config_dump(config, &text, error);
    if (status != STATUS_OK) return status;
    int descriptor = memfd_create("luna.conf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    bool written = descriptor >= 0 && write_all(descriptor, text, strlen(text)) &&
                   fcntl(descriptor, F_ADD_SEALS,
                         F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0;
    free(text);
    if (written) {
        *out = descriptor;
        return STATUS_OK;
    }
    error_set(error, STATUS_RESOURCE_EXHAUSTED, "cannot hand on the configuration: %s",
              strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return STATUS_RESOURCE_EXHAUSTED;
}

enum status process_read_config(struct config **out, struct error *error)
{
    char path[64];
    char *const nothing[] = {NULL};
    snprintf(path, sizeof path, "/proc/self/fd/%d", PROCESS_CONFIG_DESCRIPTOR);
    const struct config_sources sources = {.file = path, .environment = nothing};
    return config_load(out, &sources, error);
}

struct log process_log(const struct config *config, const char *name)
{
    return (struct log){.actor = name,
                        .level = log_level_of(&config->service.log_levels, name),
                        .descriptor = STDERR_FILENO};
}

bool process_number(const char *text, uint64_t *out)
{
    assert(text != NULL);
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0) return false;
    *out = value;
    return true;
}

void process_loras_path(char *out, size_t out_bytes, const char *lease_path)
{
    assert(out != NULL);
    assert(lease_path != NULL);
    const size_t length = strlen(lease_path);
    const size_t name = strlen(SOCKET_LEASES);
    const size_t suffix = strlen(".lease");
    text_set(out, out_bytes, "");
    if (length >= name && strcmp(lease_path + length - name, SOCKET_LEASES) == 0) {
        snprintf(out, out_bytes, "%.*s%s", (int)(length - name), lease_path, SOCKET_LORAS);
    } else if (length >= suffix) {
        snprintf(out, out_bytes, "%.*s.lora", (int)(length - suffix), lease_path);
    }
}

void process_say_error(const struct error *error)
{
    fprintf(stderr, "luna: %s: %s\n", status_name(error->status), error->message);
}
