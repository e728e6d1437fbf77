// config_table.h - the keys of luna.conf: where each lives, what it may be, what it is by default.
//
// Shared by the files of the configuration and nobody else.

#ifndef RUNTIME_CONFIG_TABLE_H
#define RUNTIME_CONFIG_TABLE_H

#include <stddef.h>

#include "runtime/config.h"

enum setting_kind {
    SETTING_CHOICE,     // int; words separated by '|', numbered from minimum
    SETTING_FLAG,       // bool; "word of false|word of true"
    SETTING_U32,        // uint32_t from minimum to maximum
    SETTING_U64,        // uint64_t from minimum to maximum
    SETTING_U64_AUTO,   // the same, or CONFIG_AUTO
    SETTING_SHARE,      // double above 0, at most 1
    SETTING_RANGE,      // struct config_range, "0-2" or "2"; max from minimum to maximum
    SETTING_TEXT,       // const char *
    SETTING_LIST,       // struct config_list, at most maximum items
    SETTING_DEVICES,    // struct config_list of "cpu" and "cuda:N"; "auto" is the empty one
    SETTING_ENDPOINTS,  // struct config_list of tcp:// and ipc://
    SETTING_TCP,        // const char *, "" or "tcp://HOST:PORT"
    SETTING_HOST_PORT,  // const char *, "" or "HOST:PORT"
    SETTING_LOG_LEVEL,  // enum log_level
};

struct setting {
    const char *section;     // "lora"
    const char *key;         // "memory_limit_mb"
    enum setting_kind kind;  // see above
    size_t offset;           // of the value in struct config
    bool is_live;            // takes effect without a restart
    const char *fallback;    // the default, as people would write it
    uint64_t minimum;        // of numbers
    uint64_t maximum;        // of numbers, of list items
    const char *words;       // of SETTING_CHOICE
};

// All of them, in the order of the file; [model NAME] and log_level_ACTOR are not among them.
extern const struct setting config_settings[];
extern const uint32_t config_setting_count;

// Strings that live as long as a configuration.
struct config_text {
    struct config_text *next;  // older one
    char text[];               // NUL-terminated
};

// What loading adds to a configuration.
struct config_owned {
    struct config config;       // first member: what everybody sees
    struct config_text *texts;  // all strings that config points to
};

// The row of a key, or NULL.
const struct setting *config_find(const char *section, const char *key);

// Copies a string for the configuration's life; NULL when memory ran out.
const char *config_keep(struct config_owned *self, const char *text, size_t length);

// Parses text into the setting's place. The error says what is wrong with the value, and not where.
// Errors:    INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
enum status config_parse(struct config_owned *self, const struct setting *setting, const char *text,
                         struct error *error);

// Keeps text that a file can hold.
enum status config_parse_text(struct config_owned *self, const char *text, size_t length,
                              const char **out, struct error *error);

// Splits a comma-separated list of at most items_max words.
enum status config_parse_list(struct config_owned *self, const char *text, uint32_t items_max,
                              struct config_list *out, struct error *error);

// Writes the setting's value as people would, into a buffer that holds the longest.
#define CONFIG_VALUE_BYTES ((size_t)CONFIG_LIST_MAX * (CONFIG_TEXT_BYTES + 2u))
void config_format(const struct config *self, const struct setting *setting, char *out);
void config_format_list(const struct config_list *list, char *out);

#endif  // RUNTIME_CONFIG_TABLE_H
