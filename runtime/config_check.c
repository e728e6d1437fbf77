// config_check.c - what the values mean together, how two configurations differ, and the way back
// to a file.

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/config_table.h"

// --- Check

// True for "127.x.y.z:PORT", "localhost:PORT", "[::1]:PORT", and not for names that begin like
// them.
static bool is_loopback(const char *host_port)
{
    size_t number = strspn(host_port, "0123456789.");
    bool is_number = strncmp(host_port, "127.", 4) == 0 && host_port[number] == ':';
    return is_number || strncmp(host_port, "localhost:", 10) == 0 ||
           strncmp(host_port, "[::1]:", 6) == 0;
}

static enum status check_address(const char *key, const char *host_port, struct error *error)
{
    if (*host_port == '\0' || is_loopback(host_port)) return STATUS_OK;
    return error_set(error, STATUS_FAILED_PRECONDITION,
                     "[listen] %s: %s is not loopback, which needs [security] curve = on", key,
                     host_port);
}

static enum status check_listen(const struct config *self, struct error *error)
{
    const struct config_listen *listen = &self->listen;
    if (listen->requests.count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "[listen] requests names no address");
    }
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < listen->requests.count; i++) {
        const char *endpoint = listen->requests.items[i];
        if (strncmp(endpoint, "tcp://", 6) != 0) continue;
        status = check_address("requests", endpoint + 6, error);
    }
    if (status == STATUS_OK) status = check_address("page", listen->page, error);
    if (status == STATUS_OK && *listen->events != '\0') {
        status = check_address("events", listen->events + 6, error);
    }
    return status;
}

static enum status check_models(const struct config *self, struct error *error)
{
    for (uint32_t i = 0; i < self->model_count; i++) {
        if (self->model[i].files.count > 0) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT, "[model %s] has no files",
                         self->model[i].name);
    }
    return STATUS_OK;
}

enum status config_check(const struct config *self, struct error *error)
{
    assert(self != NULL);
    if (self->security.curve) {
        return error_set(error, STATUS_UNIMPLEMENTED, "[security] curve = on does not exist yet");
    }
    if (self->cluster.peers.count > 0) {
        return error_set(error, STATUS_UNIMPLEMENTED, "[cluster] peers do not exist yet");
    }
    if (*self->cluster.etcd != '\0') {
        return error_set(error, STATUS_UNIMPLEMENTED, "[cluster] etcd does not exist yet");
    }
    enum status status = check_listen(self, error);
    if (status == STATUS_OK) status = check_models(self, error);
    return status;
}

// --- Dump

static void write_settings(const struct config *self, FILE *out, char *value)
{
    const char *section = "";
    for (uint32_t i = 0; i < config_setting_count; i++) {
        const struct setting *setting = &config_settings[i];
        if (strcmp(section, setting->section) != 0) fprintf(out, "[%s]\n", setting->section);
        section = setting->section;
        config_format(self, setting, value);
        fprintf(out, "%s =%s%s\n", setting->key, *value != '\0' ? " " : "", value);
    }
}

static void write_log_levels(const struct log_levels *levels, FILE *out)
{
    if (levels->count > 0) fprintf(out, "[service]\n");
    for (uint32_t i = 0; i < levels->count; i++) {
        fprintf(out, "log_level_%s = %s\n", levels->actors[i].actor,
                log_level_name(levels->actors[i].level));
    }
}

static void write_models(const struct config *self, FILE *out, char *value)
{
    for (uint32_t i = 0; i < self->model_count; i++) {
        const struct config_model *model = &self->model[i];
        fprintf(out, "[model %s]\n", model->name);
        config_format_list(&model->files, value);
        fprintf(out, "files =%s%s\n", *value != '\0' ? " " : "", value);
        fprintf(out, "embeddings =%s%s\n", *model->embeddings != '\0' ? " " : "",
                model->embeddings);
    }
}

enum status config_dump(const struct config *self, char **out, struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    char *text = NULL;
    size_t size = 0;
    char *value = malloc(CONFIG_VALUE_BYTES);
    FILE *file = value != NULL ? open_memstream(&text, &size) : NULL;
    bool is_written = false;
    if (file != NULL) {
        write_settings(self, file, value);
        write_log_levels(&self->service.log_levels, file);
        write_models(self, file, value);
        is_written = ferror(file) == 0;
        is_written = fclose(file) == 0 && is_written;
    }
    free(value);
    if (!is_written) {
        free(text);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                         "no memory for the configuration's text");
    }
    *out = text;
    return STATUS_OK;
}

// --- Compare

static bool same_list(const struct config_list *a, const struct config_list *b)
{
    if (a->count != b->count) return false;
    for (uint32_t i = 0; i < a->count; i++) {
        if (strcmp(a->items[i], b->items[i]) != 0) return false;
    }
    return true;
}

static bool same_value(const struct config *a, const struct config *b,
                       const struct setting *setting)
{
    const char *at_a = (const char *)a + setting->offset;
    const char *at_b = (const char *)b + setting->offset;
    switch (setting->kind) {
    case SETTING_FLAG:
        return *(const bool *)at_a == *(const bool *)at_b;
    case SETTING_CHOICE:
    case SETTING_LOG_LEVEL:
        return *(const int *)at_a == *(const int *)at_b;
    case SETTING_U32:
        return *(const uint32_t *)at_a == *(const uint32_t *)at_b;
    case SETTING_U64:
    case SETTING_U64_AUTO:
    case SETTING_SHARE:
        return memcmp(at_a, at_b, sizeof(uint64_t)) == 0;
    case SETTING_RANGE:
        return memcmp(at_a, at_b, sizeof(struct config_range)) == 0;
    case SETTING_TEXT:
    case SETTING_TCP:
    case SETTING_HOST_PORT:
        return strcmp(*(const char *const *)at_a, *(const char *const *)at_b) == 0;
    case SETTING_LIST:
    case SETTING_DEVICES:
    case SETTING_ENDPOINTS:
        return same_list((const struct config_list *)at_a, (const struct config_list *)at_b);
    }
    assert(!"a kind of setting that nobody compares");
    return false;
}

static const struct config_model *model_of(const struct config *self, const char *name)
{
    for (uint32_t i = 0; i < self->model_count; i++) {
        if (strcmp(self->model[i].name, name) == 0) return &self->model[i];
    }
    return NULL;
}

static bool same_model(const struct config_model *a, const struct config_model *b)
{
    return a != NULL && b != NULL && same_list(&a->files, &b->files) &&
           strcmp(a->embeddings, b->embeddings) == 0;
}

// Notes a model's name; changes has room for all models of both.
static void note_model(struct config_change *change, const char *name)
{
    snprintf(change->key, sizeof change->key, "model %.57s", name);
    change->is_live = true;
}

uint32_t config_compare(const struct config *before, const struct config *after,
                        struct config_change changes[CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX])
{
    assert(before != NULL);
    assert(after != NULL);
    uint32_t count = 0;
    for (uint32_t i = 0; i < config_setting_count; i++) {
        const struct setting *setting = &config_settings[i];
        if (same_value(before, after, setting)) continue;
        snprintf(changes[count].key, sizeof changes[count].key, "%s.%s", setting->section,
                 setting->key);
        changes[count++].is_live = setting->is_live;
    }
    const struct log_levels *old_levels = &before->service.log_levels;
    const struct log_levels *new_levels = &after->service.log_levels;
    if (old_levels->count != new_levels->count ||
        memcmp(old_levels->actors, new_levels->actors, sizeof old_levels->actors) != 0) {
        changes[count++] = (struct config_change){.key = "service.log_level_*", .is_live = false};
    }
    for (uint32_t i = 0; i < before->model_count; i++) {
        const struct config_model *model = &before->model[i];
        if (!same_model(model, model_of(after, model->name))) {
            note_model(&changes[count++], model->name);
        }
    }
    for (uint32_t i = 0; i < after->model_count; i++) {
        const char *name = after->model[i].name;
        if (model_of(before, name) == NULL) note_model(&changes[count++], name);
    }
    assert(count <= CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX);
    return count;
}

// --- Precision

static enum precision_choice inherit(enum precision_choice own, const struct config *self)
{
    assert(self->service.precision != PRECISION_INHERIT);
    return own != PRECISION_INHERIT ? own : self->service.precision;
}

enum precision_choice config_vae_precision(const struct config *self)
{
    return inherit(self->service.vae_precision, self);
}

enum precision_choice config_clip_precision(const struct config *self)
{
    return inherit(self->service.clip_precision, self);
}
