// output.c - errors, progress, JSON and files of the client subcommands.

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clients/cli/cli.h"

#define STDIN_BYTES_MAX (UINT64_C(1) << 32)

enum cli_exit cli_error(const struct error *error)
{
    fprintf(stderr, "luna: %s: %s\n", status_name(error->status), error->message);
    return error->status == STATUS_DEADLINE_EXCEEDED ? EXIT_DEADLINE : EXIT_ANSWERED_ERROR;
}

bool cli_has_suffix(const char *path, const char *suffix)
{
    size_t length = strlen(path);
    size_t wanted = strlen(suffix);
    return length >= wanted && strcasecmp(path + length - wanted, suffix) == 0;
}

void cli_print_json(json_t *document)
{
    json_dumpf(document, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(document);
}

json_t *cli_integer(uint64_t value)
{
    return json_integer((json_int_t)value);
}

double cli_mebibytes(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

// A line that is drawn over itself; the answer ends it.
static void draw_bar(const struct cli_options *options, double done, double total, const char *unit)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    double share = total > 0.0 ? done / total : 0.0;
    size_t filled = share < 1.0 ? (size_t)(share * WIDTH) : WIDTH;
    memset(bar, '.', WIDTH);
    memset(bar, '#', filled);
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %.10g/%.10g %s", options->command, bar, done, total, unit);
    fflush(stderr);
}

static void end_bar(const struct cli_options *options)
{
    if (!options->progress) return;
    fprintf(stderr, "%s", isatty(STDERR_FILENO) == 1 ? "\r\033[K" : "\n");
}

static void draw_tiles(void *context, uint32_t done, uint32_t total)
{
    draw_bar(context, done, total, "tiles");
}

static void draw_bytes(void *context, uint64_t done, uint64_t total)
{
    const uint64_t whole = (UINT64_C(1) << 20) - 1;  // so that a part of a MiB counts as one
    draw_bar(context, (double)((done + whole) >> 20), (double)((total + whole) >> 20), "MiB");
    if (done == total) end_bar(context);
}

struct luna_transfer cli_transfer(const struct cli_options *options)
{
    return (struct luna_transfer){.timeout_ms = options->timeout_ms,
                                  .on_bytes = options->progress ? draw_bytes : NULL,
                                  .context = (void *)(uintptr_t)options,
                                  .stop = options->stop};
}

static bool write_all(int descriptor, const uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(descriptor, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        data += written;
        bytes -= (size_t)written;
    }
    return true;
}

static enum status fill_from_stdin(int copy, struct error *error)
{
    uint8_t buffer[65536];
    uint64_t bytes = 0;
    while (true) {
        ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return error_set(error, STATUS_INVALID_ARGUMENT, "stdin: %s", strerror(errno));
        if (got == 0) return STATUS_OK;
        bytes += (uint64_t)got;
        if (bytes > STDIN_BYTES_MAX || !write_all(copy, buffer, (size_t)got)) {
            return error_set(error, STATUS_RESOURCE_EXHAUSTED, "stdin: no memory for %llu bytes",
                             (unsigned long long)bytes);
        }
    }
}

enum status cli_copy_stdin(int *out, struct error *error)
{
    int copy = memfd_create("stdin", MFD_CLOEXEC);
    if (copy < 0) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for stdin");
    enum status status = fill_from_stdin(copy, error);
    if (status == STATUS_OK)
        *out = copy;
    else
        close(copy);
    return status;
}

static enum status read_key(const char *path, char out[LUNA_KEY_BYTES + 1], struct error *error)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return error_set(error, STATUS_NOT_FOUND, "key file \"%s\": %s", path, strerror(errno));
    }
    size_t length = fread(out, 1, LUNA_KEY_BYTES, file);
    fclose(file);
    out[length] = '\0';
    if (length < LUNA_KEY_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "key file \"%s\" holds no key of 40 characters", path);
    }
    return STATUS_OK;
}

enum status cli_connect(const struct cli_options *options, struct luna_client **out,
                        struct error *error)
{
    char server_key[LUNA_KEY_BYTES + 1];
    struct luna_client_options client = {.endpoint = options->connect};
    if (options->key != NULL && options->server_key == NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "--key needs --server-key");
    }
    if (options->server_key != NULL) {
        enum status status = read_key(options->server_key, server_key, error);
        if (status != STATUS_OK) return status;
        client.server_key = server_key;
    }
    return luna_client_create(out, &client, error);
}

enum cli_exit cli_open(const struct cli_options *options, struct luna_client **out)
{
    struct error error;
    if (options->timeout_ms == 0) {  // libluna takes 0 for its default
        error_set(&error, STATUS_DEADLINE_EXCEEDED, "the timeout is 0 s");
        return cli_error(&error);
    }
    enum status status = cli_connect(options, out, &error);
    if (status == STATUS_OK) return EXIT_DONE;
    enum cli_exit result = cli_error(&error);
    return status == STATUS_UNAVAILABLE ? EXIT_NOBODY : result;
}

enum status cli_call(const struct cli_options *options, struct luna_client *client,
                     struct luna_request *request, struct luna_answer **out, struct error *error)
{
    if (options->timeout_ms == 0) {  // libluna takes 0 for its default
        return error_set(error, STATUS_DEADLINE_EXCEEDED, "the timeout is 0 s");
    }
    request->timeout_ms = options->timeout_ms;
    request->model = options->model;
    request->priority = options->priority;
    request->stop = options->stop;
    if (options->progress) {
        request->on_progress = draw_tiles;
        request->context = (void *)(uintptr_t)options;
    }
    enum status status = luna_client_call(client, request, out, error);
    end_bar(options);
    return status;
}

enum status cli_ask(const struct cli_options *options, luna_Operation operation, const void *body,
                    struct luna_client **client, struct luna_answer **out, struct error *error)
{
    enum status status = cli_connect(options, client, error);
    if (status != STATUS_OK) return status;
    struct cli_options quiet = *options;
    quiet.progress = false;
    struct luna_request request = {.operation = operation, .body = body};
    return cli_call(&quiet, *client, &request, out, error);
}

enum status cli_write_tensors(const char *path, const struct tensor_write *tensors, uint32_t count,
                              const char *const *metadata, struct error *error)
{
    if (strcmp(path, "-") == 0)
        return safetensors_write(STDOUT_FILENO, tensors, count, metadata, error);
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) return error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    enum status status = safetensors_write(descriptor, tensors, count, metadata, error);
    if (close(descriptor) != 0 && status == STATUS_OK) {
        status = error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    return status;
}
