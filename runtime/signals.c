// signals.c - signalfd; signals.h holds the contract.

#include "runtime/signals.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum status signals_open(int *out, const int *signals, uint32_t count, struct error *error)
{
    assert(out != NULL);
    assert(count > 0);
    sigset_t set;
    sigemptyset(&set);
    for (uint32_t i = 0; i < count; i++) {
        int failed = sigaddset(&set, signals[i]);
        assert(failed == 0);
    }
    int descriptor = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (descriptor < 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no descriptor for signals: %s",
                         strerror(errno));
    }
    int failure = pthread_sigmask(SIG_BLOCK, &set, NULL);
    assert(failure == 0);
    *out = descriptor;
    return STATUS_OK;
}

int signals_take(int descriptor)
{
    assert(descriptor >= 0);
    struct signalfd_siginfo info;
    ssize_t got = read(descriptor, &info, sizeof info);
    if (got != sizeof info) return 0;
    assert(info.ssi_signo > 0);
    return (int)info.ssi_signo;
}
