// adapter.c - from --lora REF[:STRENGTH] to a stack that the daemon can apply.
//
// A file of this machine is named to the daemon by its content: hashed here, referred to by hash,
// and sent only when the daemon answers NOT_FOUND. Which of the stack's entries it lacked is not
// looked up: putting one that it has moves no bytes.

#include "clients/cli/adapter.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "models/files/torch_zip.h"

// ---- files

static enum status hash_file(struct adapter *self, const char *path, struct error *error)
{
    struct hash hash;
    struct tensor_table *table = NULL;
    const struct torch_reader reader = torch_reader_in_process();
    enum status status = tensor_table_open(&table, path, &reader, error);
    if (status != STATUS_OK) return status;
    status = tensor_table_hash(table, NULL, NULL, &hash);
    tensor_table_release(&table);
    if (status != STATUS_OK) {
        return error_set(error, status, "%s: its tensors cannot be hashed", path);
    }
    hash_to_hex(&hash, self->hash);
    return STATUS_OK;
}

enum status adapter_open(struct adapter *out, const char *path, struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct adapter self = ADAPTER_NONE;
    struct stat entry;
    char copy_path[32];
    enum status status = STATUS_OK;
    if (strcmp(path, "-") == 0) {
        status = cli_copy_stdin(&self.descriptor, error);
        if (status != STATUS_OK) return status;
        snprintf(copy_path, sizeof copy_path, "/proc/self/fd/%d", self.descriptor);
        path = copy_path;
    } else {
        self.descriptor = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (self.descriptor < 0 || fstat(self.descriptor, &entry) != 0) {
        status = error_set(error, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_INVALID_ARGUMENT,
                           "%s: %s", path, strerror(errno));
        goto done;
    }
    self.bytes = (uint64_t)entry.st_size;
    status = hash_file(&self, path, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = ADAPTER_NONE;

done:
    adapter_close(&self);
    return status;
}

void adapter_close(struct adapter *self)
{
    assert(self != NULL);
    if (self->descriptor >= 0) close(self->descriptor);
    self->descriptor = -1;
}

enum status adapter_put(const struct adapter *self, const struct cli_options *options,
                        struct luna_client *client, luna_Lora *out, bool *moved,
                        struct error *error)
{
    assert(self != NULL && self->descriptor >= 0);
    const struct luna_transfer transfer = cli_transfer(options);
    const struct luna_lora_file file = {.descriptor = self->descriptor,
                                        .bytes = self->bytes,
                                        .hash = self->hash,
                                        .name = options->name};
    return luna_lora_put(client, &file, &transfer, out, moved, error);
}

// ---- REF[:STRENGTH]

static bool is_file(const char *path)
{
    struct stat entry;
    return stat(path, &entry) == 0 && S_ISREG(entry.st_mode);
}

static bool looks_like_path(const char *text)
{
    static const char *const suffixes[] = {".safetensors", ".pt", ".pth", ".ckpt", ".bin"};
    if (strchr(text, '/') != NULL) return true;
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        if (cli_has_suffix(text, suffixes[i])) return true;
    }
    return false;
}

// Splits at the last colon when a number follows it and the whole is not a file's name.
static enum status split(struct stack_entry *out, const char *text, struct error *error)
{
    size_t length = strlen(text);
    const char *colon = strrchr(text, ':');
    out->strength = 1.0f;
    if (colon != NULL && !is_file(text)) {
        char *end = NULL;
        float strength = strtof(colon + 1, &end);
        if (end != colon + 1 && *end == '\0') {
            out->strength = strength;
            length = (size_t)(colon - text);
        }
    }
    if (length == 0 || length >= sizeof out->said) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "--lora \"%.100s\": the name has %zu bytes, not 1 to %zu", text, length,
                         sizeof out->said - 1);
    }
    memcpy(out->said, text, length);
    out->said[length] = '\0';
    return STATUS_OK;
}

static enum status open_local(struct stack_entry *entry, struct error *error)
{
    enum status status = adapter_open(&entry->file, entry->said, error);
    entry->local = status == STATUS_OK;
    entry->maybe_local = false;
    return status;
}

enum status stack_read(struct stack *out, const struct cli_options *options, struct error *error)
{
    assert(out != NULL);
    assert(options->loras_count <= CLI_LORAS_MAX);
    out->count = 0;
    for (uint32_t i = 0; i < options->loras_count; i++) {
        struct stack_entry *entry = &out->entries[i];
        *entry = (struct stack_entry){.file = ADAPTER_NONE};
        out->count++;
        enum status status = split(entry, options->loras[i], error);
        if (status != STATUS_OK) return status;
        entry->maybe_local = is_file(entry->said);
        if (entry->maybe_local && looks_like_path(entry->said)) status = open_local(entry, error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

void stack_end(struct stack *self)
{
    assert(self != NULL);
    for (uint32_t i = 0; i < self->count; i++) adapter_close(&self->entries[i].file);
    self->count = 0;
}

void stack_fill(const struct stack *self, const struct cli_options *options, luna_EncodeText *out)
{
    assert(self != NULL);
    assert(self->count <= sizeof out->loras / sizeof out->loras[0]);
    for (uint32_t i = 0; i < self->count; i++) {
        const struct stack_entry *entry = &self->entries[i];
        out->loras[i] = (luna_LoraEntry){.strength = entry->strength};
        text_set(out->loras[i].reference, sizeof out->loras[i].reference,
                 entry->local ? entry->file.hash : entry->said);
    }
    out->loras_count = (pb_size_t)self->count;
    out->has_lora_multiplier = true;
    out->lora_multiplier = (float)options->lora_multiplier;
}

bool stack_put(struct stack *self, const struct cli_options *options, struct luna_client *client,
               enum status *status, struct error *error)
{
    assert(self != NULL);
    luna_Lora lora;
    uint32_t put = 0;
    struct cli_options nameless = *options;
    nameless.name = NULL;
    nameless.command = "upload";
    *status = STATUS_OK;
    for (uint32_t i = 0; i < self->count; i++) {
        struct stack_entry *entry = &self->entries[i];
        if (entry->maybe_local) *status = open_local(entry, error);
        if (*status == STATUS_OK && entry->local) {
            *status = adapter_put(&entry->file, &nameless, client, &lora, NULL, error);
            put++;
        }
        if (*status != STATUS_OK) return false;
    }
    return put > 0;
}

void stack_explain(const struct stack *self, struct error *error)
{
    assert(self != NULL);
    assert(error != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        const struct stack_entry *entry = &self->entries[i];
        bool meant = !entry->local && !entry->maybe_local && looks_like_path(entry->said);
        if (!meant || strstr(error->message, entry->said) == NULL) continue;
        struct error daemons = *error;
        error_set(error, daemons.status, "%s, and no file here", daemons.message);
        return;
    }
}

void stack_retell(const struct stack *self, char *text, size_t text_bytes)
{
    assert(self != NULL);
    assert(text != NULL);
    for (uint32_t i = 0; i < self->count; i++) {
        const struct stack_entry *entry = &self->entries[i];
        char *at = entry->local ? strstr(text, entry->file.hash) : NULL;
        char *rest = at != NULL ? strdup(at + strlen(entry->file.hash)) : NULL;
        if (rest == NULL) continue;
        size_t room = text_bytes - (size_t)(at - text);
        snprintf(at, room, "%s%s", entry->said, rest);
        free(rest);
    }
}

json_t *stack_json(const struct stack *self, const luna_TextReply *reply)
{
    json_t *uses = json_array();
    for (uint32_t i = 0; i < reply->loras_count; i++) {
        const luna_LoraUse *use = &reply->loras[i];
        const char *said = i < self->count ? self->entries[i].said : use->reference;
        double strength = i < self->count ? (double)self->entries[i].strength : 1.0;
        json_array_append_new(
            uses, json_pack("{s:s, s:f, s:I, s:I, s:I, s:s}", "reference", said, "strength",
                            strength, "modules", (json_int_t)use->modules, "keys_unused",
                            (json_int_t)use->keys_unused, "keys_other", (json_int_t)use->keys_other,
                            "encoder_hash", use->encoder_hash));
    }
    return uses;
}
