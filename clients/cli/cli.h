// cli.h - what the subcommands of `luna` share: options, exit statuses, output.

#ifndef CLIENTS_CLI_CLI_H
#define CLIENTS_CLI_CLI_H

#include <jansson.h>
#include <stdio.h>

#include "clients/c/lora.h"
#include "clients/c/luna.h"
#include "models/files/image_file.h"
#include "models/files/tensors.h"

#define CLI_LORAS_MAX 64u

// What `luna` ends with.
enum cli_exit {
    EXIT_DONE = 0,
    EXIT_ANSWERED_ERROR = 1,  // the daemon's error, or one of the machine
    EXIT_USAGE = 2,
    EXIT_NOBODY = 3,    // nobody answers at the endpoint
    EXIT_DEADLINE = 4,  // the deadline passed
};

struct cli_options {
    const char *command;                   // "decode"
    const char *connect;                   // --connect; NULL: found
    uint32_t timeout_ms;                   // --timeout
    bool json;                             // --json
    bool progress;                         // bar on stderr
    const char *server_key, *key;          // --server-key FILE, --key FILE
    const char *output;                    // -o; NULL: the command's default, "-": stdout
    const char *model;                     // --model
    int32_t priority;                      // --priority
    enum dtype dtype;                      // --dtype; DTYPE_NONE: f32
    luna_Tiling tiling;                    // --tiling
    bool has_tile, has_overlap;            // --tile, --overlap given
    uint32_t tile, overlap, passes;        // pixels; passes 0: default
    const char *negative, *prompt_2;       // --negative, --prompt-2; NULL: none
    int32_t clip_skip;                     // --clip-skip; 0: default
    uint32_t size[2], crop[2], target[2];  // --size WxH (text, bench), --crop X,Y, --target WxH
    bool has_size, has_crop, has_target;   // given
    const char *loras[CLI_LORAS_MAX];      // --lora, in order
    uint32_t loras_count;                  // of loras
    double lora_multiplier;                // --lora-multiplier
    const char *name;                      // --name
    uint32_t clients;                      // bench: --clients
    double duration_s, rate;               // bench: --duration, --rate (0: closed loop)
    const char *mix;                       // bench: --mix
    const char *trace;                     // bench: --trace; NULL: none
    char **words;                          // what is not an option
    int words_count;                       // of words
    volatile sig_atomic_t *stop;           // set by SIGINT
};

// Reads the words behind the subcommand. Prints what is wrong and returns false for wrong usage.
// Thread:    the main thread, as everything here.
bool cli_parse(struct cli_options *out, const char *command, int argc, char **argv);

// Prints "luna: STATUS: message" and returns the exit status that belongs to it.
enum cli_exit cli_error(const struct error *error);

// Prints "luna: COMMAND: text" and returns EXIT_USAGE.
enum cli_exit cli_usage(const struct cli_options *options, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// Connects as the options say.
// Errors:    those of luna_client_create.
enum status cli_connect(const struct cli_options *options, struct luna_client **out,
                        struct error *error);

// As cli_connect; prints why not.
enum cli_exit cli_open(const struct cli_options *options, struct luna_client **out);

// Calls with the options' timeout, model and priority, a progress bar and Ctrl-C as cancel.
// Ownership: the caller owns *out.
// Errors:    those of luna_client_call.
enum status cli_call(const struct cli_options *options, struct luna_client *client,
                     struct luna_request *request, struct luna_answer **out, struct error *error);

// Connects, calls an operation whose body is all there is to it, and keeps the connection in
// *client.
enum status cli_ask(const struct cli_options *options, luna_Operation operation, const void *body,
                    struct luna_client **client, struct luna_answer **out, struct error *error);

// As cli_ask; prints the error if there is one. *client and *answer may be there all the same.
enum cli_exit cli_try(const struct cli_options *options, luna_Operation operation, const void *body,
                      struct luna_client **client, struct luna_answer **answer);

// How a transfer goes by the options: timeout, a progress bar, Ctrl-C.
// Ownership: options is borrowed by what comes back.
struct luna_transfer cli_transfer(const struct cli_options *options);

// Copies standard input, which may be a pipe, into memory that has a descriptor.
// Ownership: on success the caller closes *out.
// Errors:    INVALID_ARGUMENT; RESOURCE_EXHAUSTED.
enum status cli_copy_stdin(int *out, struct error *error);

// Prints one JSON document and frees it.
void cli_print_json(json_t *document);

// Writes tensors as safetensors to path ("-": stdout).
// Errors:    those of safetensors_write; INTERNAL when the file cannot be made.
enum status cli_write_tensors(const char *path, const struct tensor_write *tensors, uint32_t count,
                              const char *const *metadata, struct error *error);

// True when path ends in suffix, whatever the case.
bool cli_has_suffix(const char *path, const char *suffix);

// The subcommands.
enum cli_exit command_encode(const struct cli_options *options);
enum cli_exit command_decode(const struct cli_options *options);
enum cli_exit command_text(const struct cli_options *options);
enum cli_exit command_tokenize(const struct cli_options *options);
enum cli_exit command_models(const struct cli_options *options);
enum cli_exit command_loras(const struct cli_options *options);
enum cli_exit command_status(const struct cli_options *options);
enum cli_exit command_top(const struct cli_options *options);
enum cli_exit command_ping(const struct cli_options *options);
enum cli_exit command_drain(const struct cli_options *options);
enum cli_exit command_shutdown(const struct cli_options *options);
enum cli_exit command_bench(const struct cli_options *options);

// A status, and its part about adapters, as the JSON documents of the interface.
// Ownership: the caller's.
json_t *cli_status_json(const luna_Status *status);
json_t *cli_lora_totals_json(const luna_LoraTotals *totals);

// A number of JSON, and bytes as people read them.
json_t *cli_integer(uint64_t value);
double cli_mebibytes(uint64_t bytes);

#endif  // CLIENTS_CLI_CLI_H
