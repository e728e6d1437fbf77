// serve.c - `luna serve`: from the words of the command line to a running supervisor, and what is
// left tidied up.

#include "actors/serve.h"

#include <assert.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actors/devices.h"
#include "actors/event.h"
#include "actors/probe.h"
#include "actors/process.h"
#include "actors/supervisor.h"
#include "actors/topology.h"
#include "actors/torch_child.h"
#include "messages/codec.h"
#include "runtime/signals.h"

#define SETS_MAX 64u

struct serve {
    struct config_sources sources;                     // where the configuration comes from
    const char *sets[SETS_MAX];                        // of --set
    bool check;                                        // --check-config
    bool dump;                                         // --dump-config
    uint64_t started_ns;                               // on the system's clock
    struct config *config;                             // in force
    char private_directory[SOCKET_ENDPOINT_BYTES];     // "" until it is made
    char lease_path[SOCKET_ENDPOINT_BYTES];            // "" when there is no ipc address
    struct listener listeners[PROCESS_LISTENERS_MAX];  // the first listeners_count are open
    uint32_t listeners_count;                          // see listeners
    int signals;                                       // descriptor; -1: none
};

static void say_usage(FILE *out)
{
    fprintf(out, "usage: luna serve [-c FILE] [--set section.key=value]... [--check-config] "
                 "[--dump-config]\n");
}

// Reads the options; returns an exit status, or -1 to go on.
static int read_options(struct serve *self, int argc, char **argv)
{
    enum { OPTION_SET = 256, OPTION_CHECK, OPTION_DUMP, OPTION_HELP };
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"set", required_argument, NULL, OPTION_SET},
                                            {"check-config", no_argument, NULL, OPTION_CHECK},
                                            {"dump-config", no_argument, NULL, OPTION_DUMP},
                                            {"help", no_argument, NULL, OPTION_HELP},
                                            {NULL, 0, NULL, 0}};
    // getopt skips the first word, which here is the caller's business.
    char name[] = "luna";  // what getopt's complaints begin with
    char **words = calloc((size_t)argc + 2, sizeof *words);
    if (words == NULL) return 1;
    words[0] = name;
    for (int i = 0; i < argc; i++) words[i + 1] = argv[i];
    int result = -1;
    int found = 0;
    optind = 0;
    while (result < 0 && (found = getopt_long(argc + 1, words, "c:", options, NULL)) != -1) {
        if (found == 'c') {
            self->sources.file = optarg;
        } else if (found == OPTION_SET && self->sources.set_count < SETS_MAX) {
            self->sets[self->sources.set_count] = optarg;
            self->sources.set_count += 1;
        } else if (found == OPTION_CHECK) {
            self->check = true;
        } else if (found == OPTION_DUMP) {
            self->dump = true;
        } else if (found == OPTION_HELP) {
            say_usage(stdout);
            result = 0;
        } else {
            say_usage(stderr);
            result = 2;
        }
    }
    if (result < 0 && optind != argc + 1) {
        fprintf(stderr, "luna: serve takes no word \"%s\"\n", words[optind]);
        say_usage(stderr);
        result = 2;
    }
    free(words);
    self->sources.sets = self->sets;
    return result;
}

// A name that no message can carry would be a model that nobody can ask for.
static enum status check_names(const struct config *config, struct error *error)
{
    for (uint32_t i = 0; i < config->model_count; i++) {
        const char *name = config->model[i].name;
        if (codec_name_valid(name)) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "[model %s]: a model's name has letters, digits, and . _ - inside", name);
    }
    return STATUS_OK;
}

static enum status load(void *context, struct config **out, struct error *error)
{
    const struct serve *self = context;
    struct config *config = NULL;
    struct device_list devices;
    enum status status = config_load(&config, &self->sources, error);
    if (status == STATUS_OK) status = config_check(config, error);
    if (status == STATUS_OK) status = check_names(config, error);
    if (status == STATUS_OK) status = devices_named(config, &devices, error);
    if (status != STATUS_OK) {
        config_destroy(&config);
        return status;
    }
    *out = config;
    return STATUS_OK;
}

static enum status dump(const struct serve *self, struct error *error)
{
    char *text = NULL;
    enum status status = config_dump(self->config, &text, error);
    if (status == STATUS_OK) fputs(text, stdout);
    free(text);
    return status;
}

// lease.sock beside luna.sock; a socket of another name gets .lease behind it, since several may
// lie in one folder.
static void name_lease_path(struct serve *self, const char *endpoint)
{
    const char *path = endpoint + strlen("ipc://");
    const char *base = strrchr(path, '/');
    base = base != NULL ? base + 1 : path;
    if (strcmp(base, "luna.sock") == 0) {
        snprintf(self->lease_path, sizeof self->lease_path, "%.*s%s", (int)(base - path), path,
                 SOCKET_LEASES);
    } else {
        snprintf(self->lease_path, sizeof self->lease_path, "%.300s.lease", path);
    }
}

static enum status open_listeners(struct serve *self, struct error *error)
{
    const struct config_list *requests = &self->config->listen.requests;
    if (requests->count > PROCESS_LISTENERS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%u addresses for requests, at most %u",
                         requests->count, PROCESS_LISTENERS_MAX);
    }
    for (uint32_t i = 0; i < requests->count; i++) {
        enum status status = listener_open(&self->listeners[i], requests->items[i], error);
        if (status != STATUS_OK) return status;
        self->listeners_count += 1;
        bool is_ipc = strncmp(requests->items[i], "ipc://", strlen("ipc://")) == 0;
        if (is_ipc && self->lease_path[0] == '\0') {
            name_lease_path(self, self->listeners[i].endpoint);
        }
    }
    return STATUS_OK;
}

static enum status prepare(struct serve *self, struct error *error)
{
    const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    const char *runtime = self->config->runtime_directory;
    umask(077);
    enum status status = signals_open(&self->signals, signals, 3, error);
    if (status == STATUS_OK) status = runtime_directory_create(runtime, error);
    if (status == STATUS_OK) {
        status = private_directory_create(self->private_directory, sizeof self->private_directory,
                                          runtime, error);
    }
    if (status == STATUS_OK) status = open_listeners(self, error);
    return status;
}

static void tidy_up(struct serve *self)
{
    for (uint32_t i = 0; i < self->listeners_count; i++) listener_close(&self->listeners[i]);
    if (self->listeners_count > 0 && self->lease_path[0] != '\0') {
        char loras_path[SOCKET_ENDPOINT_BYTES];
        process_loras_path(loras_path, sizeof loras_path, self->lease_path);
        unlink(self->lease_path);
        unlink(loras_path);
    }
    if (self->private_directory[0] != '\0') private_directory_remove(self->private_directory);
    if (self->signals >= 0) close(self->signals);
    config_destroy(&self->config);
}

static int run(struct serve *self, struct error *error)
{
    enum status status = load(self, &self->config, error);
    if (status == STATUS_OK && self->dump) {
        status = dump(self, error);
        return status == STATUS_OK ? 0 : -1;
    }
    if (status == STATUS_OK && self->check) return 0;
    if (status == STATUS_OK) status = prepare(self, error);
    if (status != STATUS_OK) return -1;
    const struct supervisor_options options = {.private_directory = self->private_directory,
                                               .lease_path = self->lease_path,
                                               .listeners = self->listeners,
                                               .listeners_count = self->listeners_count,
                                               .started_ns = self->started_ns,
                                               .signals = self->signals,
                                               .notify_socket = getenv("NOTIFY_SOCKET"),
                                               .reload = load,
                                               .context = self};
    return supervisor_run(&self->config, &options);
}

// A client that went and a file that may not grow are errors of the call, not our end.
static void ignore_signals(void)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

int serve_main(int argc, char **argv)
{
    assert(argc >= 0);
    struct serve self = {.signals = -1, .started_ns = clock_ns(clock_system())};
    struct error error = {0};
    ignore_signals();
    int exit_status = read_options(&self, argc, argv);
    if (exit_status >= 0) return exit_status;
    exit_status = run(&self, &error);
    if (exit_status < 0) {
        process_say_error(&error);
        exit_status = 1;
    }
    tidy_up(&self);
    return exit_status;
}

int serve_child_main(int argc, char **argv)
{
    if (argc < 2) return -1;
    if (strcmp(argv[1], TORCH_CHILD_WORD) == 0) return torch_child_main();
    if (strcmp(argv[1], PROBE_WORD) == 0) return probe_process_main();
    bool is_core = strcmp(argv[1], PROCESS_CORE_WORD) == 0;
    bool is_executor = strcmp(argv[1], PROCESS_EXECUTOR_WORD) == 0;
    if (!is_core && !is_executor) return -1;
    ignore_signals();
    umask(077);
    return is_core ? core_process_main(argc, argv) : executor_process_main(argc, argv);
}
