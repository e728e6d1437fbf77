// adapter.h - adapters on this side: files with their hashes, and the stack that --lora describes.

#ifndef CLIENTS_CLI_ADAPTER_H
#define CLIENTS_CLI_ADAPTER_H

#include "base/bytes.h"
#include "clients/cli/cli.h"

// A file of this machine.
struct adapter {
    int descriptor;             // -1: none
    uint64_t bytes;             // of the file
    char hash[HASH_HEX_BYTES];  // of its tensors
};

#define ADAPTER_NONE ((struct adapter){.descriptor = -1})

// Opens a file ("-": stdin), checks it, and hashes its tensors.
// Ownership: on success the caller ends *out with adapter_close.
// Errors:    those of tensor_table_open and tensor_table_hash; the message names the path.
enum status adapter_open(struct adapter *out, const char *path, struct error *error);

// Allowed on ADAPTER_NONE and twice.
void adapter_close(struct adapter *self);

// Puts the file, with a progress bar; moves no bytes when the daemon has it.
// Errors:    those of luna_lora_put.
enum status adapter_put(const struct adapter *self, const struct cli_options *options,
                        struct luna_client *client, luna_Lora *out, bool *moved,
                        struct error *error);

// One --lora.
struct stack_entry {
    char said[256];       // REF, without the strength
    float strength;       // 1 when none was said
    bool local;           // a file of this machine: file.hash is its reference
    bool maybe_local;     // a name, but there is also such a file here
    struct adapter file;  // of a local one
};

struct stack {
    uint32_t count;                             // of entries
    struct stack_entry entries[CLI_LORAS_MAX];  // in order
};

// Reads every --lora. REF is a file of this machine when it looks like a path (it has a slash or an
// adapter's suffix) and exists; everything else is for the daemon to know.
// Ownership: the caller ends *out with stack_end, whatever happened.
// Errors:    INVALID_ARGUMENT for a REF that is empty or too long; those of adapter_open.
enum status stack_read(struct stack *out, const struct cli_options *options, struct error *error);
void stack_end(struct stack *self);

// Writes the stack into a request.
void stack_fill(const struct stack *self, const struct cli_options *options, luna_EncodeText *out);

// After the daemon found something missing: puts the files of this machine, those too that only
// share their names with what was asked for; the next stack_fill refers to them. False when there
// is none, so that asking again would change nothing.
// Errors:    those of adapter_open and adapter_put, in *status.
bool stack_put(struct stack *self, const struct cli_options *options, struct luna_client *client,
               enum status *status, struct error *error);

// Adds to the daemon's "not found" that the path of a file was meant, and that it is not there
// either.
void stack_explain(const struct stack *self, struct error *error);

// Puts what was said in place of the hashes that the daemon calls this machine's files by; what
// does not fit is cut off.
void stack_retell(const struct stack *self, char *text, size_t text_bytes);

// What the entries did, as an array of objects.
// Ownership: the caller's.
json_t *stack_json(const struct stack *self, const luna_TextReply *reply);

#endif  // CLIENTS_CLI_ADAPTER_H
