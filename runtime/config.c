// config.c - reads all sources of the configuration, in their order; config.h holds the contract.
//
// inih splits lines. It cuts section names at 49 bytes, takes indented lines for continuations, and
// tells its handler no line numbers, so it gets its lines from us: read_line counts them, takes the
// indentation away, and keeps the section's name itself.

#include "runtime/config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "runtime/config_files.h"
#include "runtime/config_table.h"

#define LINE_BYTES_MAX (CONFIG_VALUE_BYTES + 256u)
#define SECTION_BYTES 128u
#define MODEL_PREFIX "model "
#define LOG_LEVEL_PREFIX "log_level_"

extern char **environ;

// --- One value

static bool is_section(const char *section)
{
    if (strncmp(section, MODEL_PREFIX, strlen(MODEL_PREFIX)) == 0) return true;
    for (uint32_t i = 0; i < config_setting_count; i++) {
        if (strcmp(config_settings[i].section, section) == 0) return true;
    }
    return false;
}

// The model with that name, a new one when there is none yet.
static enum status find_model(struct config_owned *self, const char *name,
                              struct config_model **out, struct error *error)
{
    struct config *config = &self->config;
    size_t length = strlen(name);
    for (uint32_t i = 0; i < config->model_count; i++) {
        if (strcmp(config->model[i].name, name) != 0) continue;
        *out = &config->model[i];
        return STATUS_OK;
    }
    if (length == 0 || length >= CONFIG_MODEL_NAME_BYTES ||
        !utf8_valid((struct bytes){name, length}) || strpbrk(name, "\t[];") != NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "\"%.100s\" is not a model's name of 1 to %u bytes", name,
                         CONFIG_MODEL_NAME_BYTES - 1);
    }
    if (config->model_count == CONFIG_MODELS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "there are more than %u models",
                         CONFIG_MODELS_MAX);
    }
    struct config_model *added = &config->model[config->model_count];
    added->name = config_keep(self, name, length);
    added->embeddings = "";
    if (added->name == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    config->model_count++;
    *out = added;
    return STATUS_OK;
}

static enum status assign_model(struct config_owned *self, const char *name, const char *key,
                                const char *value, struct error *error)
{
    struct config_model *model = NULL;
    enum status status = find_model(self, name, &model, error);
    if (status != STATUS_OK) return status;
    if (strcmp(key, "files") == 0) {
        return config_parse_list(self, value, CONFIG_MODEL_FILES_MAX, &model->files, error);
    }
    if (strcmp(key, "embeddings") != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "unknown key, a model has files and embeddings");
    }
    return config_parse_text(self, value, strlen(value), &model->embeddings, error);
}

static enum status assign_log_level(struct log_levels *levels, const char *actor, const char *value,
                                    struct error *error)
{
    enum log_level level = LOG_INFO;
    if (!log_level_from_name(value, &level)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "\"%.100s\" is not one of error, warning, info, debug", value);
    }
    size_t length = strlen(actor);
    if (length == 0 || length >= LOG_ACTOR_BYTES ||
        strspn(actor, "abcdefghijklmnopqrstuvwxyz_") != length) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "\"%.100s\" is not an actor's name",
                         actor);
    }
    uint32_t i = 0;
    while (i < levels->count && strcmp(levels->actors[i].actor, actor) != 0) i++;
    if (i == LOG_ACTORS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "more than %u actors have a log level",
                         LOG_ACTORS_MAX);
    }
    if (i == levels->count) levels->count++;
    memcpy(levels->actors[i].actor, actor, length + 1);
    levels->actors[i].level = level;
    return STATUS_OK;
}

// Replaces @runtime@.
static enum status expand(const struct config *config, const char *value, char *out,
                          size_t out_bytes, struct error *error)
{
    static const char mark[] = "@runtime@";
    size_t used = 0;
    while (true) {
        const char *found = strstr(value, mark);
        size_t length = found != NULL ? (size_t)(found - value) : strlen(value);
        size_t added = found != NULL ? strlen(config->runtime_directory) : 0;
        if (used + length + added >= out_bytes) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "is longer than %zu bytes",
                             out_bytes - 1);
        }
        memcpy(out + used, value, length);
        if (found != NULL) memcpy(out + used + length, config->runtime_directory, added);
        used += length + added;
        if (found == NULL) break;
        value = found + strlen(mark);
    }
    out[used] = '\0';
    return STATUS_OK;
}

// Sets one value. The error names section and key, and not where they were written.
static enum status assign(struct config_owned *self, const char *section, const char *key,
                          const char *value, struct error *error)
{
    const char *log_actor = NULL;
    if (strcmp(section, "service") == 0 &&
        strncmp(key, LOG_LEVEL_PREFIX, strlen(LOG_LEVEL_PREFIX)) == 0) {
        log_actor = key + strlen(LOG_LEVEL_PREFIX);
    }
    const struct setting *setting = config_find(section, key);
    bool is_model = strncmp(section, MODEL_PREFIX, strlen(MODEL_PREFIX)) == 0;
    if (!is_section(section)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "unknown section [%.100s]", section);
    }
    if (setting == NULL && !is_model && log_actor == NULL) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "unknown key \"%.100s\" in [%s]", key,
                         section);
    }
    char *expanded = malloc(LINE_BYTES_MAX);
    if (expanded == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    enum status status = expand(&self->config, value, expanded, LINE_BYTES_MAX, error);
    if (status == STATUS_OK && is_model) {
        const char *name = section + strlen(MODEL_PREFIX);
        status = assign_model(self, name + strspn(name, " \t"), key, expanded, error);
    } else if (status == STATUS_OK && log_actor != NULL) {
        status = assign_log_level(&self->config.service.log_levels, log_actor, expanded, error);
    } else if (status == STATUS_OK) {
        status = config_parse(self, setting, expanded, error);
    }
    free(expanded);
    if (status != STATUS_OK) error_prefix(error, "[%.100s] %.100s", section, key);
    return status;
}

// --- Files

// A file while inih reads it.
struct reader {
    struct config_owned *self;    // what is filled
    const char *at;               // next byte of its text
    const char *end;              // behind the last
    uint32_t line;                // number of the line that inih has now
    char section[SECTION_BYTES];  // it is in
    uint64_t seen;                // settings that it has had already, a bit each
    uint32_t failed_line;         // of the first error; 0: none
    struct error error;           // the first one
};
_Static_assert(CONFIG_CHANGES_MAX <= 64, "every setting has a bit");

// Keeps the first error.
static void fail(struct reader *self, enum status status, const struct error *error)
{
    if (self->failed_line != 0) return;
    self->failed_line = self->line;
    self->error = *error;
    self->error.status = status;
}

static void fail_text(struct reader *self, const char *text)
{
    struct error error;
    error_set(&error, STATUS_INVALID_ARGUMENT, "%s", text);
    fail(self, STATUS_INVALID_ARGUMENT, &error);
}

// Takes the name out of "[NAME]"; a line without ']' is left to inih.
static void enter_section(struct reader *self, const char *line, size_t length)
{
    const char *close = memchr(line, ']', length);
    if (close == NULL) return;
    const char *rest = close + 1;
    while (rest < line + length && isspace((unsigned char)*rest)) rest++;
    if (rest < line + length && *rest != ';' && *rest != '#') {
        fail_text(self, "there is something behind the section's ]");
        return;
    }
    const char *name = line + 1;
    while (name < close && isspace((unsigned char)*name)) name++;
    while (name < close && isspace((unsigned char)close[-1])) close--;
    size_t name_length = (size_t)(close - name);
    if (name_length >= SECTION_BYTES) {
        fail_text(self, "the section's name is too long");
        return;
    }
    memcpy(self->section, name, name_length);
    self->section[name_length] = '\0';
    if (is_section(self->section)) return;
    struct error error;
    error_set(&error, STATUS_INVALID_ARGUMENT, "unknown section [%s]", self->section);
    fail(self, STATUS_INVALID_ARGUMENT, &error);
}

// inih's fgets.
static char *read_line(char *out, int out_bytes, void *stream)
{
    struct reader *self = stream;
    if (self->at == self->end) return NULL;
    self->line++;
    const char *line = self->at;
    const char *newline = memchr(line, '\n', (size_t)(self->end - line));
    self->at = newline != NULL ? newline + 1 : self->end;
    size_t length = (size_t)((newline != NULL ? newline : self->end) - line);
    while (length > 0 && isspace((unsigned char)*line)) {
        line++;
        length--;
    }
    if (memchr(line, '\0', length) != NULL) {
        fail_text(self, "the line has a zero byte");
        length = 0;
    }
    if (length + 3 > (size_t)out_bytes) {
        fail_text(self, "the line is too long");
        length = 0;
    }
    if (length > 0 && *line == '[') enter_section(self, line, length);
    memcpy(out, line, length);
    out[length] = '\n';
    out[length + 1] = '\0';
    return out;
}

// inih's handler.
static int take_value(void *user, const char *section, const char *key, const char *value)
{
    (void)section;  // cut off by inih
    struct reader *self = user;
    if (self->failed_line != 0) return 1;
    struct error error = {0};
    const struct setting *setting = config_find(self->section, key);
    uint64_t bit = setting != NULL ? 1ull << (setting - config_settings) : 0;
    enum status status = STATUS_INVALID_ARGUMENT;
    if (self->section[0] == '\0') {
        error_set(&error, status, "key \"%.100s\" stands before the first section", key);
    } else if (self->seen & bit) {
        error_set(&error, status, "[%s] %s is there twice", self->section, key);
    } else {
        self->seen |= bit;
        status = assign(self->self, self->section, key, value, &error);
    }
    if (status != STATUS_OK) fail(self, status, &error);
    return 1;
}

// Parses the text of a file.
static enum status parse_file(struct config_owned *self, const char *path, struct bytes text,
                              struct error *error)
{
    struct reader reader = {.self = self, .at = text.data};
    reader.end = reader.at + text.size;
    if (text.size >= 3 && memcmp(reader.at, "\xef\xbb\xbf", 3) == 0) reader.at += 3;
    ini_max_line = (int)LINE_BYTES_MAX + 3;
    int bad_line = ini_parse_stream(read_line, &reader, take_value, &reader);
    if (bad_line > 0 && (reader.failed_line == 0 || (uint32_t)bad_line < reader.failed_line)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s:%d: neither [section] nor key = value",
                         path, bad_line);
    }
    if (bad_line < 0) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "%s: no memory to read it", path);
    }
    if (reader.failed_line == 0) return STATUS_OK;
    if (error != NULL) *error = reader.error;
    error_prefix(error, "%s:%u", path, reader.failed_line);
    return reader.error.status;
}

// Reads and parses one file. is_required: its absence is an error.
static enum status load_file(struct config_owned *self, const char *path, bool is_required,
                             struct error *error)
{
    char *text = NULL;
    size_t size = 0;
    enum status status = config_read_file(path, &text, &size, error);
    if (status == STATUS_NOT_FOUND && !is_required) return STATUS_OK;
    if (status == STATUS_OK) {
        status = parse_file(self, path, (struct bytes){text, size}, error);
    }
    free(text);
    return status;
}

static enum status load_files(struct config_owned *self, const struct config_sources *sources,
                              char *const *environment, struct error *error)
{
    if (sources->file != NULL) return load_file(self, sources->file, true, error);
    struct config_paths *paths = NULL;
    enum status status = config_find_files(&paths, sources->etc, environment, error);
    for (uint32_t i = 0; status == STATUS_OK && i < paths->count; i++) {
        status = load_file(self, paths->paths[i], false, error);
    }
    free(paths);
    return status;
}

// --- Everything else

static enum status load_environment(struct config_owned *self, char *const *environment,
                                    struct error *error)
{
    // Unknown LUNA_ names are not ours to judge: container managers set LUNA_SERVICE_PORT and the
    // like for a service that is called luna.
    for (uint32_t i = 0; i < config_setting_count; i++) {
        const struct setting *setting = &config_settings[i];
        char name[128];
        int length = snprintf(name, sizeof name, "LUNA_%s_%s", setting->section, setting->key);
        assert(length > 0 && (size_t)length < sizeof name);
        for (char *c = name; *c != '\0'; c++) *c = (char)toupper((unsigned char)*c);
        const char *value = config_variable(environment, name);
        if (value == NULL) continue;
        enum status status = assign(self, setting->section, setting->key, value, error);
        if (status == STATUS_OK) continue;
        error_prefix(error, "%s", name);
        return status;
    }
    return STATUS_OK;
}

static enum status load_set(struct config_owned *self, const char *set, struct error *error)
{
    const char *equals = strchr(set, '=');
    const char *dot = equals != NULL ? memrchr(set, '.', (size_t)(equals - set)) : NULL;
    char section[SECTION_BYTES];
    char key[SECTION_BYTES];
    if (dot == NULL || dot == set || dot + 1 == equals || (size_t)(dot - set) >= sizeof section ||
        (size_t)(equals - dot) > sizeof key) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "--set \"%.100s\" is not section.key=value", set);
    }
    snprintf(section, sizeof section, "%.*s", (int)(dot - set), set);
    snprintf(key, sizeof key, "%.*s", (int)(equals - dot - 1), dot + 1);
    const char *value = equals + 1 + strspn(equals + 1, " \t");
    enum status status = assign(self, section, key, value, error);
    if (status != STATUS_OK) error_prefix(error, "--set");
    return status;
}

static enum status load_defaults(struct config_owned *self, char *const *environment,
                                 struct error *error)
{
    char directory[PATH_MAX];
    config_runtime_directory(directory, sizeof directory, environment);
    self->config.runtime_directory = config_keep(self, directory, strlen(directory));
    if (self->config.runtime_directory == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    }
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < config_setting_count; i++) {
        const struct setting *setting = &config_settings[i];
        status = assign(self, setting->section, setting->key, setting->fallback, error);
    }
    return status;
}

enum status config_load(struct config **out, const struct config_sources *sources,
                        struct error *error)
{
    assert(out != NULL);
    assert(sources != NULL);
    assert(sources->sets != NULL || sources->set_count == 0);
    char *const *environment = sources->environment != NULL ? sources->environment : environ;
    struct config_owned *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    struct config *config = &self->config;

    enum status status = load_defaults(self, environment, error);
    if (status == STATUS_OK) status = load_files(self, sources, environment, error);
    if (status == STATUS_OK) status = load_environment(self, environment, error);
    for (uint32_t i = 0; status == STATUS_OK && i < sources->set_count; i++) {
        status = load_set(self, sources->sets[i], error);
    }
    if (status == STATUS_OK) {
        *out = config;
        config = NULL;
    }
    config_destroy(&config);
    return status;
}

void config_destroy(struct config **self_p)
{
    assert(self_p != NULL);
    if (*self_p == NULL) return;
    struct config_owned *self = (struct config_owned *)*self_p;
    while (self->texts != NULL) {
        struct config_text *text = self->texts;
        self->texts = text->next;
        free(text);
    }
    free(self);
    *self_p = NULL;
}
