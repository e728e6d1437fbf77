// output.c - errors, progress, JSON and files of the client subcommands.

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "clients/cli/cli.h"

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

// A line that is drawn over itself; the answer ends it.
static void draw_progress(void *context, uint32_t done, uint32_t total)
{
    const struct cli_options *options = context;
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    uint32_t filled = total > 0 ? (uint32_t)((uint64_t)done * WIDTH / total) : 0;
    if (filled > WIDTH) filled = WIDTH;
    memset(bar, '.', WIDTH);
    memset(bar, '#', filled);
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %u/%u tiles", options->command, bar, done, total);
    fflush(stderr);
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
        request->on_progress = draw_progress;
        request->context = (void *)(uintptr_t)options;
    }
    enum status status = luna_client_call(client, request, out, error);
    if (options->progress && isatty(STDERR_FILENO) == 1)
        fprintf(stderr, "\r\033[K");
    else if (options->progress)
        fprintf(stderr, "\n");
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
