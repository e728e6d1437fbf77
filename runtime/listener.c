// listener.c - directories, locks, bind and listen; listener.h holds the contract.
//
// An ipc path is guarded by a lock file beside it: bind on a path that a living process has bound
// would succeed after the unlink and steal its clients. The lock file is removed with its lock
// held, so whoever gets the lock checks that the file is still the one at that path.

#include "runtime/listener.h"

#include <arpa/inet.h>
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define PATH_BYTES sizeof((struct sockaddr_un *)NULL)->sun_path
#define PRIVATE_PREFIX "private-"
#define PRIVATE_SOCKET_BYTES 16u  // of "/" and the longest name in a private directory
#define LOCK_ATTEMPTS 16

// --- Directories

enum status runtime_directory_create(const char *path, struct error *error)
{
    assert(path != NULL);
    assert(path[0] == '/');
    if (mkdir(path, 0700) != 0 && errno != EEXIST) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "cannot make directory %s: %s", path,
                         strerror(errno));
    }
    struct stat found;
    if (lstat(path, &found) != 0 || !S_ISDIR(found.st_mode)) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "%s is no directory", path);
    }
    if (found.st_uid != geteuid()) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "%s belongs to uid %u, not to us", path,
                         (unsigned)found.st_uid);
    }
    if ((found.st_mode & 022) != 0) {
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "%s has mode %03o: others could replace what is in it", path,
                         (unsigned)(found.st_mode & 0777));
    }
    return STATUS_OK;
}

// Removes private directories whose daemons are gone.
static void remove_stale(const char *runtime_directory)
{
    DIR *directory = opendir(runtime_directory);
    if (directory == NULL) return;
    const struct dirent *entry = NULL;
    while ((entry = readdir(directory)) != NULL) {
        if (strncmp(entry->d_name, PRIVATE_PREFIX, strlen(PRIVATE_PREFIX)) != 0) continue;
        char *end = NULL;
        long pid = strtol(entry->d_name + strlen(PRIVATE_PREFIX), &end, 10);
        if (pid <= 0 || *end != '\0' || kill((pid_t)pid, 0) == 0 || errno != ESRCH) continue;
        char path[PATH_BYTES + sizeof entry->d_name];
        int length = snprintf(path, sizeof path, "%s/%s", runtime_directory, entry->d_name);
        if (length > 0 && (size_t)length < sizeof path) private_directory_remove(path);
    }
    closedir(directory);
}

enum status private_directory_create(char *out, size_t out_bytes, const char *runtime_directory,
                                     struct error *error)
{
    assert(out != NULL);
    assert(runtime_directory != NULL);
    char path[PATH_BYTES];
    int length =
        snprintf(path, sizeof path, "%s/" PRIVATE_PREFIX "%ld", runtime_directory, (long)getpid());
    if (length < 0 || (size_t)length + PRIVATE_SOCKET_BYTES >= sizeof path ||
        (size_t)length >= out_bytes) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s is too long a path for sockets",
                         runtime_directory);
    }
    remove_stale(runtime_directory);
    private_directory_remove(path);  // of a dead daemon that had our number
    enum status status = runtime_directory_create(path, error);
    if (status == STATUS_OK) memcpy(out, path, (size_t)length + 1);
    return status;
}

void private_directory_remove(const char *path)
{
    assert(path != NULL);
    assert(strstr(path, PRIVATE_PREFIX) != NULL);
    DIR *directory = opendir(path);
    if (directory == NULL) return;
    const struct dirent *entry = NULL;
    while ((entry = readdir(directory)) != NULL) {
        if (entry->d_type == DT_SOCK || entry->d_type == DT_REG || entry->d_type == DT_UNKNOWN) {
            unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
    closedir(directory);
    rmdir(path);
}

// --- ipc

// True when the descriptor is the file that is at the path now.
static bool is_at_path(int descriptor, const char *path)
{
    struct stat held;
    struct stat there;
    return fstat(descriptor, &held) == 0 && lstat(path, &there) == 0 &&
           held.st_ino == there.st_ino && held.st_dev == there.st_dev;
}

// Says who has the lock; the file holds his number.
static enum status refuse_locked(int lock, const char *path, struct error *error)
{
    char pid[16] = "";
    ssize_t got = pread(lock, pid, sizeof pid - 1, 0);
    pid[got > 0 ? got : 0] = '\0';
    return error_set(error, STATUS_FAILED_PRECONDITION, "another luna (pid %s) listens on ipc://%s",
                     *pid != '\0' ? pid : "?", path);
}

// Locks PATH.lock and writes our number into it.
static enum status lock_path(int *out, const char *path, struct error *error)
{
    char lock_path[PATH_BYTES + 8];
    snprintf(lock_path, sizeof lock_path, "%s.lock", path);
    for (int i = 0; i < LOCK_ATTEMPTS; i++) {
        int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (lock < 0) {
            return error_set(error, STATUS_FAILED_PRECONDITION, "cannot open %s: %s", lock_path,
                             strerror(errno));
        }
        if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
            enum status status = refuse_locked(lock, path, error);
            close(lock);
            return status;
        }
        if (is_at_path(lock, lock_path)) {
            char pid[16];
            int length = snprintf(pid, sizeof pid, "%ld", (long)getpid());
            if (ftruncate(lock, 0) != 0 || pwrite(lock, pid, (size_t)length, 0) != length) {
                *pid = '\0';  // the number is for people, the lock holds without it
            }
            *out = lock;
            return STATUS_OK;
        }
        close(lock);  // its last owner removed it in between
    }
    return error_set(error, STATUS_FAILED_PRECONDITION, "cannot lock %s", lock_path);
}

// Removes what a dead daemon left; anything that is no socket stays, and is an error.
static enum status clear_path(const char *path, struct error *error)
{
    struct stat found;
    if (lstat(path, &found) != 0) return STATUS_OK;
    if (!S_ISSOCK(found.st_mode)) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "%s exists and is no socket", path);
    }
    if (unlink(path) == 0) return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION, "cannot remove %s: %s", path,
                     strerror(errno));
}

static enum status listen_ipc(struct listener *self, const char *path, struct error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (path[0] != '/' || length >= sizeof address.sun_path) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "ipc://%s is not an absolute path of at most %zu bytes", path,
                         sizeof address.sun_path - 1);
    }
    memcpy(address.sun_path, path, length + 1);
    enum status status = lock_path(&self->lock, path, error);
    if (status == STATUS_OK) status = clear_path(path, error);
    if (status != STATUS_OK) return status;
    self->descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    // The mode of the descriptor becomes that of the path, with no moment in which it is wider.
    if (self->descriptor < 0 || fchmod(self->descriptor, 0600) != 0 ||
        bind(self->descriptor, (const struct sockaddr *)&address, sizeof address) != 0 ||
        listen(self->descriptor, SOMAXCONN) != 0) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "cannot listen on ipc://%s: %s", path,
                         strerror(errno));
    }
    snprintf(self->endpoint, sizeof self->endpoint, "ipc://%s", path);
    return STATUS_OK;
}

// --- tcp

// Splits "HOST:PORT", "[ADDRESS]:PORT".
static bool split_address(const char *text, char host[256], char port[8])
{
    const char *colon = strrchr(text, ':');
    if (colon == NULL || strlen(colon + 1) >= 8 || strlen(colon + 1) == 0) return false;
    size_t length = (size_t)(colon - text);
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    }
    if (length == 0 || length >= 256) return false;
    memcpy(host, text, length);
    host[length] = '\0';
    memcpy(port, colon + 1, strlen(colon + 1) + 1);
    return true;
}

// Writes the address that the descriptor is bound to.
static void name_address(struct listener *self)
{
    struct sockaddr_storage bound = {.ss_family = AF_UNSPEC};
    socklen_t size = sizeof bound;
    char host[INET6_ADDRSTRLEN];
    char port[8];
    int failed = getsockname(self->descriptor, (struct sockaddr *)&bound, &size);
    assert(failed == 0);
    failed = getnameinfo((const struct sockaddr *)&bound, size, host, sizeof host, port,
                         sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    assert(failed == 0);
    bool is_6 = bound.ss_family == AF_INET6;
    snprintf(self->endpoint, sizeof self->endpoint, "tcp://%s%s%s:%s", is_6 ? "[" : "", host,
             is_6 ? "]" : "", port);
}

// Binds and listens on one of the addresses that a name has; returns 0 or an errno.
static int listen_address(struct listener *self, const struct addrinfo *address)
{
    const int on = 1;
    int descriptor =
        socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (descriptor < 0) return errno;
    bool is_6 = address->ai_family == AF_INET6;
    if (setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (is_6 && setsockopt(descriptor, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(descriptor, address->ai_addr, address->ai_addrlen) != 0 ||
        listen(descriptor, SOMAXCONN) != 0) {
        int failure = errno;
        close(descriptor);
        return failure;
    }
    self->descriptor = descriptor;
    return 0;
}

static enum status listen_tcp(struct listener *self, const char *text, struct error *error)
{
    char host[256];
    char port[8];
    if (!split_address(text, host, port)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tcp://%s is not tcp://HOST:PORT", text);
    }
    bool is_any = strcmp(host, "*") == 0;
    const struct addrinfo wanted = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                                    .ai_family = is_any ? AF_INET : AF_UNSPEC,
                                    .ai_socktype = SOCK_STREAM};
    struct addrinfo *addresses = NULL;
    int failure = getaddrinfo(is_any ? NULL : host, port, &wanted, &addresses);
    if (failure != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tcp://%s is not an address: %s", text,
                         gai_strerror(failure));
    }
    failure = EADDRNOTAVAIL;
    for (const struct addrinfo *at = addresses; at != NULL && failure != 0; at = at->ai_next) {
        failure = listen_address(self, at);
    }
    freeaddrinfo(addresses);
    if (failure != 0) {
        return error_set(error, STATUS_FAILED_PRECONDITION, "cannot listen on tcp://%s: %s", text,
                         strerror(failure));
    }
    name_address(self);
    return STATUS_OK;
}

enum status listener_open(struct listener *out, const char *endpoint, struct error *error)
{
    assert(out != NULL);
    assert(endpoint != NULL);
    struct listener self = {.descriptor = -1, .lock = -1};
    enum status status = STATUS_INVALID_ARGUMENT;
    if (strncmp(endpoint, "tcp://", 6) == 0) {
        status = listen_tcp(&self, endpoint + 6, error);
    } else if (strncmp(endpoint, "ipc://", 6) == 0) {
        status = listen_ipc(&self, endpoint + 6, error);
    } else {
        error_set(error, status, "\"%s\" is neither tcp:// nor ipc://", endpoint);
    }
    if (status == STATUS_OK) {
        *out = self;
    } else {
        self.endpoint[0] = '\0';  // what is at an ipc path may not be ours
        listener_close(&self);
    }
    return status;
}

void listener_close(struct listener *self)
{
    assert(self != NULL);
    if (self->descriptor >= 0) close(self->descriptor);
    if (strncmp(self->endpoint, "ipc://", 6) == 0) {
        char lock_path[PATH_BYTES + 8];
        snprintf(lock_path, sizeof lock_path, "%s.lock", self->endpoint + 6);
        unlink(self->endpoint + 6);
        unlink(lock_path);
    }
    if (self->lock >= 0) close(self->lock);
    *self = (struct listener){.descriptor = -1, .lock = -1};
}
