// torch_child.c - both sides of the child that reads torch files; torch_child.h holds the contract.
//
// What the child writes to the pipe, little-endian: u32 status, u32 bytes of the message, the
// message, and with status OK the listing, to the end of the pipe. A child that ends without that
// has broken a limit.

#include "actors/torch_child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "models/files/torch_zip.h"

#define FILE_DESCRIPTOR 3
#define PIPE_DESCRIPTOR 4
#define HEAD_BYTES 8u
#define READ_BYTES 65536u

extern char **environ;

// ---- the child

static bool write_all(const void *data, uint64_t size)
{
    const uint8_t *at = data;
    while (size > 0) {
        ssize_t written = write(PIPE_DESCRIPTOR, at, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        at += written;
        size -= (uint64_t)written;
    }
    return true;
}

static void limit(int what, uint64_t value)
{
    const struct rlimit both = {.rlim_cur = value, .rlim_max = value};
    setrlimit((__rlimit_resource_t)what, &both);
}

static void set_limits(void)
{
    limit(RLIMIT_CPU, TORCH_CHILD_SECONDS);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_FSIZE, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    // The sanitizers map terabytes of shadow, open files and trace their own process at the end.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    limit(RLIMIT_AS, TORCH_CHILD_MEMORY_BYTES);
    limit(RLIMIT_NOFILE, PIPE_DESCRIPTOR + 1);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

int torch_child_main(void)
{
    set_limits();
    struct bytes listing = {.data = NULL, .size = 0};
    struct error error = {0};
    enum status status = torch_zip_list(FILE_DESCRIPTOR, &listing, &error);
    uint8_t head[HEAD_BYTES];
    uint32_t length = status == STATUS_OK ? 0 : (uint32_t)strlen(error.message);
    store_u32(head, (uint32_t)status);
    store_u32(head + 4, length);
    bool written = write_all(head, sizeof head) && write_all(error.message, length) &&
                   (status != STATUS_OK || write_all(listing.data, listing.size));
    union {
        const void *data;
        void *owned;
    } release = {.data = listing.data};
    free(release.owned);
    return written ? 0 : 1;
}

// ---- the parent

struct child {
    pid_t pid;          // 0: none
    int pipe;           // its end that is read; -1: closed
    uint8_t *data;      // what came so far
    uint64_t size;      // of it
    uint64_t capacity;  // of data
};

static void free_child(struct child *child)
{
    if (child->pipe >= 0) close(child->pipe);
    free(child->data);
}

// Above 4, so that neither is overwritten while the other is put into its place.
static int duplicate_high(int descriptor)
{
    return fcntl(descriptor, F_DUPFD_CLOEXEC, PIPE_DESCRIPTOR + 1);
}

static int spawn_child(struct child *child, int file, int pipe)
{
    char program[] = "luna";
    char word[] = TORCH_CHILD_WORD;
    char *const argv[] = {program, word, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    if (posix_spawn_file_actions_init(&actions) != 0) return ENOMEM;
    if (posix_spawnattr_init(&attributes) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return ENOMEM;
    }
    int failed = posix_spawn_file_actions_adddup2(&actions, file, FILE_DESCRIPTOR);
    if (failed == 0) failed = posix_spawn_file_actions_adddup2(&actions, pipe, PIPE_DESCRIPTOR);
    if (failed == 0) {
        failed = posix_spawn_file_actions_addclosefrom_np(&actions, PIPE_DESCRIPTOR + 1);
    }
    if (failed == 0) failed = posix_spawnattr_setsigmask(&attributes, &none);
    if (failed == 0) failed = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    if (failed == 0) {
        failed = posix_spawn(&child->pid, "/proc/self/exe", &actions, &attributes, argv, environ);
    }
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return failed;
}

static enum status start(struct child *child, int descriptor, struct error *error)
{
    int ends[2] = {-1, -1};
    int failed = pipe2(ends, O_CLOEXEC) == 0 ? 0 : errno;
    int file = failed == 0 ? duplicate_high(descriptor) : -1;
    int pipe = failed == 0 ? duplicate_high(ends[1]) : -1;
    if (failed == 0 && (file < 0 || pipe < 0)) failed = errno;
    if (failed == 0) failed = spawn_child(child, file, pipe);
    if (file >= 0) close(file);
    if (pipe >= 0) close(pipe);
    if (ends[1] >= 0) close(ends[1]);
    child->pipe = ends[0];
    if (failed == 0) return STATUS_OK;
    child->pid = 0;
    return error_set(error, STATUS_INTERNAL, "cannot start the reader of torch files: %s",
                     strerror(failed));
}

static bool grow(struct child *child)
{
    if (child->capacity - child->size >= READ_BYTES) return true;
    uint64_t capacity = child->capacity == 0 ? 2 * READ_BYTES : 2 * child->capacity;
    uint8_t *data = realloc(child->data, capacity);
    if (data == NULL) return false;
    child->data = data;
    child->capacity = capacity;
    return true;
}

// Reads to the end of the pipe; false when it takes too long or too much.
static bool read_all(struct child *child)
{
    const struct clock *clock = clock_system();
    uint64_t end_ms = clock_ms(clock) + 1000u * TORCH_CHILD_SECONDS;
    while (child->size <= HEAD_BYTES + ERROR_MESSAGE_BYTES + TORCH_CHILD_LISTING_BYTES_MAX) {
        uint64_t now_ms = clock_ms(clock);
        struct pollfd entry = {.fd = child->pipe, .events = POLLIN};
        if (now_ms >= end_ms || !grow(child)) return false;
        if (poll(&entry, 1, (int)(end_ms - now_ms)) <= 0) continue;
        ssize_t got = read(child->pipe, child->data + child->size, READ_BYTES);
        if (got == 0) return true;
        if (got < 0 && errno != EINTR) return false;
        if (got > 0) child->size += (uint64_t)got;
    }
    return false;
}

// Ends the child for good; returns whether it ended by itself with 0.
static bool reap(struct child *child, bool kill_it)
{
    int wait_status = 0;
    pid_t got = 0;
    if (kill_it) kill(child->pid, SIGKILL);
    do {
        got = waitpid(child->pid, &wait_status, 0);
    } while (got < 0 && errno == EINTR);
    child->pid = 0;
    return got > 0 && WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0;
}

static enum status take_listing(const struct child *child, struct bytes *listing,
                                struct error *error)
{
    uint32_t status = load_u32(child->data);
    uint32_t length = load_u32(child->data + 4);
    if (length >= ERROR_MESSAGE_BYTES || length > child->size - HEAD_BYTES) {
        return error_set(error, STATUS_INTERNAL, "the reader of torch files answered nonsense");
    }
    const uint8_t *rest = child->data + HEAD_BYTES;
    if (status != STATUS_OK) {
        return error_set(error, (enum status)status, "%.*s", (int)length, (const char *)rest);
    }
    uint64_t bytes = child->size - HEAD_BYTES - length;
    void *copy = malloc(bytes > 0 ? bytes : 1);
    if (copy == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a listing");
    memcpy(copy, rest + length, bytes);
    *listing = (struct bytes){.data = copy, .size = bytes};
    return STATUS_OK;
}

static enum status list_in_child(void *context, int descriptor, struct bytes *listing,
                                 struct error *error)
{
    (void)context;
    assert(descriptor >= 0);
    assert(listing != NULL);
    struct child child = {.pipe = -1};
    enum status status = start(&child, descriptor, error);
    if (status != STATUS_OK) goto done;
    bool read = read_all(&child);
    bool ended = reap(&child, !read);
    if (!read || !ended || child.size < HEAD_BYTES) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED,
                           "reading the torch file took more than %u s, too much memory, or died",
                           TORCH_CHILD_SECONDS);
        goto done;
    }
    status = take_listing(&child, listing, error);

done:
    free_child(&child);
    return status;
}

void torch_child_reader(struct torch_reader *out)
{
    assert(out != NULL);
    *out = (struct torch_reader){.list = list_in_child, .context = NULL};
}
