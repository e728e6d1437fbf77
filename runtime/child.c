// child.c - posix_spawn, pidfd, waitid; child.h holds the contract.
//
// Descriptors are moved in two steps: first, here, to high numbers, then, in the child, down to
// theirs. So no target overwrites a source that is still needed, and dup2 never meets a descriptor
// that is already in place (it would stay closed by exec).

#include "runtime/child.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/channel.h"

#define HIGH_DESCRIPTOR (CHILD_FIRST_DESCRIPTOR + (int)CHILD_DESCRIPTORS_MAX)

extern char **environ;

struct child {
    pid_t pid;               // 0: not started
    int pidfd;               // readable once it has ended; -1: none
    int channel;             // our end; -1: none
    bool has_ended;          // and is reaped: pid may be somebody else's
    struct child_exit exit;  // once has_ended
};

// Descriptors above all targets, that the child moves down.
struct high {
    int count;                                   // in use
    int descriptors[CHILD_DESCRIPTORS_MAX + 1];  // the channel first
};

static void close_high(struct high *self)
{
    for (int i = 0; i < self->count; i++) close(self->descriptors[i]);
    self->count = 0;
}

// Duplicates one descriptor; returns 0 or an errno.
static int add_high(struct high *self, int descriptor)
{
    int copy = fcntl(descriptor, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (copy < 0) return errno;
    self->descriptors[self->count++] = copy;
    return 0;
}

// Says what the child does before exec; returns 0 or an errno.
static int add_actions(posix_spawn_file_actions_t *actions, const struct high *high)
{
    int failure = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    if (failure == 0) failure = posix_spawn_file_actions_adddup2(actions, 2, 1);
    for (int i = 0; failure == 0 && i < high->count; i++) {
        failure =
            posix_spawn_file_actions_adddup2(actions, high->descriptors[i], CHILD_CHANNEL + i);
    }
    if (failure == 0) {
        failure = posix_spawn_file_actions_addclosefrom_np(actions, CHILD_CHANNEL + high->count);
    }
    return failure;
}

static int add_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    int failure = posix_spawnattr_setflags(
        attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    if (failure == 0) failure = posix_spawnattr_setsigmask(attributes, &none);
    if (failure == 0) failure = posix_spawnattr_setsigdefault(attributes, &all);
    if (failure == 0) failure = posix_spawnattr_setpgroup(attributes, 0);
    return failure;
}

// Starts the program; returns 0 or an errno.
static int spawn(pid_t *pid, const struct child_options *options, const struct high *high)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int failure = posix_spawn_file_actions_init(&actions);
    if (failure != 0) return failure;
    failure = posix_spawnattr_init(&attributes);
    if (failure == 0) {
        failure = add_actions(&actions, high);
        if (failure == 0) failure = add_attributes(&attributes);
        if (failure == 0) {
            failure =
                posix_spawn(pid, options->program != NULL ? options->program : "/proc/self/exe",
                            &actions, &attributes, options->argv,
                            options->environment != NULL ? options->environment : environ);
        }
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&actions);
    return failure;
}

static enum status refuse(struct error *error, const struct child_options *options, int failure)
{
    enum status status = failure == ENOENT || failure == ENOTDIR ? STATUS_NOT_FOUND
                         : failure == EACCES                     ? STATUS_PERMISSION_DENIED
                                                                 : STATUS_RESOURCE_EXHAUSTED;
    return error_set(error, status, "cannot start %s: %s", options->argv[0], strerror(failure));
}

enum status child_spawn(struct child **out, const struct child_options *options,
                        struct error *error)
{
    assert(out != NULL);
    assert(options != NULL);
    assert(options->argv != NULL);
    assert(options->argv[0] != NULL);
    assert(options->descriptor_count <= CHILD_DESCRIPTORS_MAX);

    int ends[2] = {-1, -1};
    struct high high = {0};
    struct child *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a child");
    self->pidfd = -1;
    self->channel = -1;
    enum status status = channel_pair(ends, error);
    if (status != STATUS_OK) goto done;
    self->channel = ends[0];

    int failure = add_high(&high, ends[1]);
    for (uint32_t i = 0; failure == 0 && i < options->descriptor_count; i++) {
        failure = add_high(&high, options->descriptors[i]);
    }
    if (failure == 0) failure = spawn(&self->pid, options, &high);
    if (failure == 0) {
        // Nobody else reaps our children, so the number is still this child's.
        self->pidfd = pidfd_open(self->pid, 0);
        if (self->pidfd < 0) failure = errno;
    }
    if (failure != 0) {
        status = refuse(error, options, failure);
        goto done;
    }
    *out = self;
    self = NULL;

done:
    close_high(&high);
    if (ends[1] >= 0) close(ends[1]);
    child_destroy(&self);
    return status;
}

int child_descriptor(const struct child *self)
{
    assert(self != NULL);
    assert(self->pidfd >= 0);
    return self->pidfd;
}

int child_channel(const struct child *self)
{
    assert(self != NULL);
    assert(self->channel >= 0);
    return self->channel;
}

pid_t child_pid(const struct child *self)
{
    assert(self != NULL);
    assert(self->pid > 0);
    return self->pid;
}

// Reaps the child; with WNOHANG only when it has ended.
static void reap(struct child *self, int flags)
{
    assert(!self->has_ended);
    siginfo_t info = {0};
    int failed = 0;
    do {
        failed = waitid(P_PID, (id_t)self->pid, &info, WEXITED | flags);
    } while (failed != 0 && errno == EINTR);
    assert(failed == 0);
    if (info.si_pid != self->pid) return;
    self->has_ended = true;
    self->exit.is_signalled = info.si_code != CLD_EXITED;
    self->exit.status = info.si_status;
}

bool child_has_ended(struct child *self, struct child_exit *out)
{
    assert(self != NULL);
    assert(out != NULL);
    if (!self->has_ended) reap(self, WNOHANG);
    if (self->has_ended) *out = self->exit;
    return self->has_ended;
}

void child_signal(struct child *self, int signal)
{
    assert(self != NULL);
    assert(signal > 0);
    if (self->has_ended) return;
    int failed = pidfd_send_signal(self->pidfd, signal, NULL, 0);
    assert(failed == 0 || errno == ESRCH);
}

void child_destroy(struct child **self_p)
{
    assert(self_p != NULL);
    struct child *self = *self_p;
    if (self == NULL) return;

    if (self->pid > 0 && !self->has_ended) {
        kill(self->pid, SIGKILL);  // not reaped yet: the number is its own
        reap(self, 0);
    }
    if (self->pidfd >= 0) close(self->pidfd);
    if (self->channel >= 0) close(self->channel);
    free(self);
    *self_p = NULL;
}

// --- When to start it again

struct restart restart_policy(const struct clock *clock, uint32_t restarts_max, uint64_t period_ms)
{
    assert(clock != NULL);
    assert(restarts_max <= RESTARTS_MAX);
    assert(period_ms > 0);
    return (struct restart){.clock = clock, .restarts_max = restarts_max, .period_ms = period_ms};
}

// How many of the remembered restarts are younger than the period.
static uint32_t count_recent(const struct restart *self, uint64_t now_ms)
{
    uint32_t recent = 0;
    uint64_t remembered = self->count < RESTARTS_MAX ? self->count : RESTARTS_MAX;
    for (uint64_t i = 0; i < remembered; i++) {
        if (now_ms - self->times_ms[i] < self->period_ms) recent++;
    }
    return recent;
}

bool restart_next(struct restart *self, uint32_t *delay_ms)
{
    assert(self != NULL);
    assert(delay_ms != NULL);
    uint64_t now_ms = clock_ms(self->clock);
    uint32_t recent = count_recent(self, now_ms);
    if (recent >= self->restarts_max) self->has_given_up = true;
    if (self->has_given_up) return false;

    bool is_series = self->count > 0 && now_ms < self->started_ms + RESTART_SERIES_MS;
    uint32_t delay = is_series ? 2 * self->delay_ms : RESTART_DELAY_MS_MIN;
    if (delay > RESTART_DELAY_MS_MAX) delay = RESTART_DELAY_MS_MAX;
    self->times_ms[self->count % RESTARTS_MAX] = now_ms;
    self->count++;
    self->started_ms = now_ms + delay;
    self->delay_ms = delay;
    *delay_ms = delay;
    return true;
}

void restart_reset(struct restart *self)
{
    assert(self != NULL);
    self->count = 0;
    self->has_given_up = false;
}
