// system_memory.c - /proc/meminfo, and the limits of every control group from ours to the root.
//
// Both versions of control groups are asked, at their usual places, because a machine may have the
// memory controller in either. A container sees its own group as the root, or is told a path that
// it has no folder of: folders that are not there are skipped on the way up.

#include "runtime/system_memory.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES 8192u

// The files of one version.
struct version {
    bool is_2;             // 2, else 1
    const char *mount;     // where its groups are
    const char *limit;     // file of the limit
    const char *usage;     // file of what is used
    const char *inactive;  // line of memory.stat: file pages that can go
};

static const struct version versions[] = {
    {true, "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "},
    {true, "/sys/fs/cgroup/unified", "memory.max", "memory.current", "inactive_file "},
    {false, "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file "},
};

// Reads the start of a file as text; false when it cannot be read.
__attribute__((format(printf, 2, 3))) static bool read_text(char text[TEXT_BYTES],
                                                            const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof path) return false;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return false;
    ssize_t got = read(descriptor, text, TEXT_BYTES - 1);
    close(descriptor);
    if (got < 0) return false;
    text[got] = '\0';
    return true;
}

// Reads a decimal number; false for "max" and anything else.
static bool parse_number(const char *text, uint64_t *out, const char **end)
{
    if (*text < '0' || *text > '9') return false;
    char *stop = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &stop, 10);
    if (errno != 0) return false;
    *out = value;
    *end = stop;
    return true;
}

bool system_memory_field(const char *text, const char *name, uint64_t *out)
{
    assert(text != NULL);
    assert(name != NULL);
    assert(out != NULL);
    size_t length = strlen(name);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) != 0) continue;
        uint64_t value = 0;
        const char *end = NULL;
        const char *number = line + length + strspn(line + length, " \t");
        if (!parse_number(number, &value, &end)) return false;
        if (strncmp(end, " kB", 3) == 0 && __builtin_mul_overflow(value, 1024u, &value)) {
            return false;
        }
        *out = value;
        return true;
    }
    return false;
}

// True when a comma-separated list of length bytes has the word.
static bool has_word(const char *list, size_t length, const char *word)
{
    size_t word_length = strlen(word);
    while (true) {
        size_t here = strcspn(list, ",:\n");
        if (here > length) here = length;
        if (here == word_length && memcmp(list, word, here) == 0) return true;
        if (here >= length) return false;
        list += here + 1;
        length -= here + 1;
    }
}

bool system_memory_group(const char *text, bool is_version_2, char *out, uint64_t out_bytes)
{
    assert(text != NULL);
    assert(out != NULL);
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        size_t whole = strcspn(line, "\n");
        const char *first = memchr(line, ':', whole);
        if (first == NULL) continue;
        const char *second = memchr(first + 1, ':', whole - (size_t)(first + 1 - line));
        if (second == NULL) continue;
        size_t names = (size_t)(second - first - 1);
        bool is_ours = is_version_2 ? names == 0 : has_word(first + 1, names, "memory");
        size_t length = whole - (size_t)(second + 1 - line);
        if (!is_ours || length >= out_bytes) continue;
        memcpy(out, second + 1, length);
        out[length] = '\0';
        return true;
    }
    return false;
}

// Lowers *memory to what one group allows.
static void apply_group(const struct version *version, const char *root, const char *path,
                        struct system_memory *memory)
{
    char text[TEXT_BYTES];
    const char *end = NULL;
    uint64_t limit = 0;
    uint64_t usage = 0;
    uint64_t inactive = 0;
    if (!read_text(text, "%s%s%s/%s", root, version->mount, path, version->limit)) return;
    if (!parse_number(text, &limit, &end)) return;
    if (!read_text(text, "%s%s%s/%s", root, version->mount, path, version->usage)) return;
    if (!parse_number(text, &usage, &end)) return;
    if (read_text(text, "%s%s%s/memory.stat", root, version->mount, path)) {
        system_memory_field(text, version->inactive, &inactive);
    }
    uint64_t needed = usage > inactive ? usage - inactive : 0;
    uint64_t left = limit > needed ? limit - needed : 0;
    if (limit < memory->total_bytes) memory->total_bytes = limit;
    if (left < memory->available_bytes) memory->available_bytes = left;
}

// Applies our group and all above it.
static void apply_version(const struct version *version, const char *root, const char *groups,
                          struct system_memory *memory)
{
    char path[PATH_MAX];
    if (!system_memory_group(groups, version->is_2, path, sizeof path)) return;
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/') path[--length] = '\0';
    while (true) {
        apply_group(version, root, path, memory);
        char *slash = strrchr(path, '/');
        if (slash == NULL) return;
        *slash = '\0';
    }
}

enum status system_memory_read_below(const char *root, struct system_memory *out)
{
    assert(root != NULL);
    assert(out != NULL);
    char text[TEXT_BYTES];
    struct system_memory memory = {0};
    if (!read_text(text, "%s/proc/meminfo", root)) return STATUS_INTERNAL;
    if (!system_memory_field(text, "MemTotal:", &memory.total_bytes)) return STATUS_INTERNAL;
    if (!system_memory_field(text, "MemAvailable:", &memory.available_bytes)) {
        return STATUS_INTERNAL;
    }
    if (read_text(text, "%s/proc/self/cgroup", root)) {
        for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
            apply_version(&versions[i], root, text, &memory);
        }
    }
    *out = memory;
    return STATUS_OK;
}

enum status system_memory_read(struct system_memory *out)
{
    return system_memory_read_below("", out);
}

enum status system_memory_own(uint64_t *rss_bytes, uint64_t *pss_bytes)
{
    assert(rss_bytes != NULL);
    assert(pss_bytes != NULL);
    char text[TEXT_BYTES];
    uint64_t rss = 0;
    uint64_t pss = 0;
    if (!read_text(text, "/proc/self/smaps_rollup")) return STATUS_INTERNAL;
    if (!system_memory_field(text, "Rss:", &rss)) return STATUS_INTERNAL;
    if (!system_memory_field(text, "Pss:", &pss)) return STATUS_INTERNAL;
    *rss_bytes = rss;
    *pss_bytes = pss;
    return STATUS_OK;
}
