// config_value.c - one value of the configuration: from text, and back to the same text.

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "runtime/config_table.h"

#define WORD_BYTES 32u
#define CUDA_DEVICES_MAX 64u
#define IPC_PATH_BYTES_MAX 107u  // what a socket's address holds

const char *config_keep(struct config_owned *self, const char *text, size_t length)
{
    assert(self != NULL);
    assert(text != NULL);
    struct config_text *kept = malloc(sizeof *kept + length + 1);
    if (kept == NULL) return NULL;
    memcpy(kept->text, text, length);
    kept->text[length] = '\0';
    kept->next = self->texts;
    self->texts = kept;
    return kept->text;
}

static enum status invalid(struct error *error, const char *text, const char *wanted)
{
    return error_set(error, STATUS_INVALID_ARGUMENT, "\"%.100s\" is not %s", text, wanted);
}

// --- Words

// The index of word among words separated by '|'; -1 for none.
static int find_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    int index = 0;
    for (const char *at = words; at != NULL; index++) {
        const char *end = strchr(at, '|');
        size_t here = end != NULL ? (size_t)(end - at) : strlen(at);
        if (here == length && memcmp(at, word, length) == 0) return index;
        at = end != NULL ? end + 1 : NULL;
    }
    return -1;
}

static void copy_word(char out[WORD_BYTES], const char *words, int index)
{
    const char *at = words;
    for (int i = 0; i < index; i++) {
        at = strchr(at, '|');
        assert(at != NULL);
        at++;
    }
    size_t length = strcspn(at, "|");
    assert(length < WORD_BYTES);
    memcpy(out, at, length);
    out[length] = '\0';
}

static enum status parse_word(const struct setting *setting, void *at, const char *text,
                              struct error *error)
{
    int index = find_word(setting->words, text);
    if (index < 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "\"%.100s\" is not one of %s", text,
                         setting->words);
    }
    if (setting->kind == SETTING_FLAG) {
        *(bool *)at = index == 1;
    } else {
        *(int *)at = index + (int)setting->minimum;
    }
    return STATUS_OK;
}

// --- Numbers

// Reads decimal digits up to end.
static bool parse_digits(const char *text, const char *end, uint64_t *out)
{
    uint64_t value = 0;
    if (text == end) return false;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9') return false;
        if (__builtin_mul_overflow(value, 10u, &value)) return false;
        if (__builtin_add_overflow(value, (uint64_t)(*text - '0'), &value)) return false;
    }
    *out = value;
    return true;
}

static enum status parse_number(const struct setting *setting, void *at, const char *text,
                                struct error *error)
{
    uint64_t value = 0;
    bool may_be_auto = setting->kind == SETTING_U64_AUTO;
    if (may_be_auto && strcmp(text, "auto") == 0) {
        *(uint64_t *)at = CONFIG_AUTO;
        return STATUS_OK;
    }
    if (!parse_digits(text, text + strlen(text), &value) || value < setting->minimum ||
        value > setting->maximum) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "\"%.100s\" is not %sa whole number from %" PRIu64 " to %" PRIu64, text,
                         may_be_auto ? "auto or " : "", setting->minimum, setting->maximum);
    }
    if (setting->kind == SETTING_U32) {
        *(uint32_t *)at = (uint32_t)value;
    } else {
        *(uint64_t *)at = value;
    }
    return STATUS_OK;
}

// A decimal fraction; strtod would take hexadecimals, exponents and the locale's comma as well.
static enum status parse_share(void *at, const char *text, struct error *error)
{
    const char *wanted = "a number above 0 and at most 1";
    const char *dot = strchr(text, '.');
    const char *end = text + strlen(text);
    uint64_t whole = 0;
    uint64_t digits = 0;
    double scale = 1;
    if (!parse_digits(text, dot != NULL ? dot : end, &whole)) return invalid(error, text, wanted);
    if (dot != NULL) {
        if (end - dot > 10 || !parse_digits(dot + 1, end, &digits)) {
            return invalid(error, text, wanted);
        }
        for (const char *c = dot + 1; c < end; c++) scale *= 10;
    }
    double value = (double)whole + (double)digits / scale;
    if (value <= 0 || value > 1) return invalid(error, text, wanted);
    *(double *)at = value;
    return STATUS_OK;
}

static enum status parse_range(const struct setting *setting, void *at, const char *text,
                               struct error *error)
{
    const char *dash = strchr(text, '-');
    const char *end = text + strlen(text);
    uint64_t min = 0;
    uint64_t max = 0;
    bool is_range = parse_digits(text, dash != NULL ? dash : end, &min);
    if (is_range) is_range = parse_digits(dash != NULL ? dash + 1 : text, end, &max);
    if (!is_range || min > max || max < setting->minimum || max > setting->maximum) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "\"%.100s\" is not a range like 0-2 that ends between %" PRIu64
                         " and %" PRIu64,
                         text, setting->minimum, setting->maximum);
    }
    *(struct config_range *)at = (struct config_range){(uint32_t)min, (uint32_t)max};
    return STATUS_OK;
}

// --- Text

// What may stand in a value so that a file can hold it.
static enum status check_text(const char *text, size_t length, struct error *error)
{
    if (length >= CONFIG_TEXT_BYTES) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "has %zu bytes, at most %u are allowed",
                         length, CONFIG_TEXT_BYTES - 1);
    }
    if (!utf8_valid((struct bytes){text, length})) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "is not UTF-8");
    }
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "has a control character");
        }
        if (text[i] == ';' && (i == 0 || text[i - 1] == ' ')) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "has a ';' that starts a comment in a file");
        }
    }
    return STATUS_OK;
}

enum status config_parse_text(struct config_owned *self, const char *text, size_t length,
                              const char **out, struct error *error)
{
    enum status status = check_text(text, length, error);
    if (status != STATUS_OK) return status;
    const char *kept = config_keep(self, text, length);
    if (kept == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory");
    *out = kept;
    return STATUS_OK;
}

enum status config_parse_list(struct config_owned *self, const char *text, uint32_t items_max,
                              struct config_list *out, struct error *error)
{
    assert(items_max <= CONFIG_LIST_MAX);
    assert(out != NULL);
    struct config_list list = {0};
    const char *at = text;
    while (*text != '\0') {
        at += strspn(at, " \t");
        size_t length = strcspn(at, ",");
        const char *next = at + length;
        while (length > 0 && (at[length - 1] == ' ' || at[length - 1] == '\t')) length--;
        if (length == 0) return error_set(error, STATUS_INVALID_ARGUMENT, "has an empty item");
        if (list.count == items_max) {
            return error_set(error, STATUS_INVALID_ARGUMENT, "has more than %u items", items_max);
        }
        enum status status = config_parse_text(self, at, length, &list.items[list.count], error);
        if (status != STATUS_OK) return status;
        list.count++;
        if (*next == '\0') break;
        at = next + 1;
    }
    *out = list;
    return STATUS_OK;
}

// True for "HOST:PORT", "[::1]:PORT", "*:PORT".
static bool is_host_port(const char *text)
{
    const char *colon = strrchr(text, ':');
    uint64_t port = 0;
    if (colon == NULL || colon == text) return false;
    if (!parse_digits(colon + 1, colon + strlen(colon), &port) || port > 65535) return false;
    bool is_bracketed = text[0] == '[' && colon[-1] == ']' && colon - text > 2;
    for (const char *c = text; c < colon; c++) {
        if (isalnum((unsigned char)*c) || *c == '.' || *c == '-' || *c == '*') continue;
        if (is_bracketed && (*c == ':' || *c == '[' || *c == ']')) continue;
        return false;
    }
    return true;
}

static bool is_endpoint(const char *text)
{
    if (strncmp(text, "tcp://", 6) == 0) return is_host_port(text + 6);
    if (strncmp(text, "ipc://", 6) != 0) return false;
    return text[6] == '/' && strlen(text + 6) <= IPC_PATH_BYTES_MAX;
}

static bool is_device(const char *text)
{
    uint64_t number = 0;
    if (strcmp(text, "cpu") == 0) return true;
    if (strcmp(text, "emulated") == 0) return true;  // for tests: not in the manual
    return strncmp(text, "cuda:", 5) == 0 && strlen(text) <= 7 &&
           parse_digits(text + 5, text + strlen(text), &number) && number < CUDA_DEVICES_MAX;
}

// A list whose every item passes, and none twice.
static enum status parse_checked_list(struct config_owned *self, struct config_list *out,
                                      const char *text, bool (*is_item)(const char *text),
                                      const char *wanted, struct error *error)
{
    struct config_list list = {0};
    enum status status = config_parse_list(self, text, CONFIG_LIST_MAX, &list, error);
    if (status != STATUS_OK) return status;
    for (uint32_t i = 0; i < list.count; i++) {
        assert(list.items[i] != NULL);
        if (!is_item(list.items[i])) return invalid(error, list.items[i], wanted);
        for (uint32_t j = 0; j < i; j++) {
            if (strcmp(list.items[i], list.items[j]) != 0) continue;
            return error_set(error, STATUS_INVALID_ARGUMENT, "names \"%.100s\" twice",
                             list.items[i]);
        }
    }
    *out = list;
    return STATUS_OK;
}

static enum status parse_text(struct config_owned *self, const struct setting *setting, void *at,
                              const char *text, struct error *error)
{
    bool is_tcp = setting->kind == SETTING_TCP;
    if (*text != '\0' && is_tcp && !(strncmp(text, "tcp://", 6) == 0 && is_endpoint(text))) {
        return invalid(error, text, "an address like tcp://127.0.0.1:19285");
    }
    if (*text != '\0' && setting->kind == SETTING_HOST_PORT && !is_host_port(text)) {
        return invalid(error, text, "an address like 127.0.0.1:19284");
    }
    return config_parse_text(self, text, strlen(text), (const char **)at, error);
}

enum status config_parse(struct config_owned *self, const struct setting *setting, const char *text,
                         struct error *error)
{
    assert(self != NULL);
    assert(setting != NULL);
    assert(text != NULL);
    void *at = (char *)&self->config + setting->offset;
    switch (setting->kind) {
    case SETTING_CHOICE:
    case SETTING_FLAG:
        return parse_word(setting, at, text, error);
    case SETTING_U32:
    case SETTING_U64:
    case SETTING_U64_AUTO:
        return parse_number(setting, at, text, error);
    case SETTING_SHARE:
        return parse_share(at, text, error);
    case SETTING_RANGE:
        return parse_range(setting, at, text, error);
    case SETTING_TEXT:
    case SETTING_TCP:
    case SETTING_HOST_PORT:
        return parse_text(self, setting, at, text, error);
    case SETTING_LIST:
        return config_parse_list(self, text, (uint32_t)setting->maximum, at, error);
    case SETTING_DEVICES:
        if (strcmp(text, "auto") == 0) text = "";
        return parse_checked_list(self, at, text, is_device, "auto, cpu or cuda:N", error);
    case SETTING_ENDPOINTS:
        return parse_checked_list(self, at, text, is_endpoint,
                                  "an address like tcp://127.0.0.1:19283 or ipc:///run/luna.sock "
                                  "(at most 107 bytes of path)",
                                  error);
    case SETTING_LOG_LEVEL:
        if (log_level_from_name(text, at)) return STATUS_OK;
        return invalid(error, text, "one of error, warning, info, debug");
    }
    assert(!"a kind of setting that nobody parses");
    return STATUS_INTERNAL;
}

// --- Back to text

void config_format_list(const struct config_list *list, char *out)
{
    assert(list != NULL);
    assert(out != NULL);
    size_t used = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < list->count; i++) {
        int length = snprintf(out + used, CONFIG_VALUE_BYTES - used, "%s%s", i > 0 ? ", " : "",
                              list->items[i]);
        assert(length > 0);
        used += (size_t)length;
        assert(used < CONFIG_VALUE_BYTES);
    }
}

static void format_number(const struct setting *setting, const void *at, char *out)
{
    uint64_t value = setting->kind == SETTING_U32 ? *(const uint32_t *)at : *(const uint64_t *)at;
    if (setting->kind == SETTING_U64_AUTO && value == CONFIG_AUTO) {
        snprintf(out, CONFIG_VALUE_BYTES, "auto");
    } else {
        snprintf(out, CONFIG_VALUE_BYTES, "%" PRIu64, value);
    }
}

void config_format(const struct config *self, const struct setting *setting, char *out)
{
    assert(self != NULL);
    assert(setting != NULL);
    const void *at = (const char *)self + setting->offset;
    switch (setting->kind) {
    case SETTING_CHOICE:
        copy_word(out, setting->words, *(const int *)at - (int)setting->minimum);
        return;
    case SETTING_FLAG:
        copy_word(out, setting->words, *(const bool *)at ? 1 : 0);
        return;
    case SETTING_U32:
    case SETTING_U64:
    case SETTING_U64_AUTO:
        format_number(setting, at, out);
        return;
    case SETTING_SHARE:
        snprintf(out, CONFIG_VALUE_BYTES, "%.9g", *(const double *)at);
        return;
    case SETTING_RANGE:
        snprintf(out, CONFIG_VALUE_BYTES, "%u-%u", ((const struct config_range *)at)->min,
                 ((const struct config_range *)at)->max);
        return;
    case SETTING_TEXT:
    case SETTING_TCP:
    case SETTING_HOST_PORT:
        snprintf(out, CONFIG_VALUE_BYTES, "%s", *(const char *const *)at);
        return;
    case SETTING_LIST:
    case SETTING_ENDPOINTS:
        config_format_list(at, out);
        return;
    case SETTING_DEVICES:
        config_format_list(at, out);
        if (*out == '\0') memcpy(out, "auto", sizeof "auto");
        return;
    case SETTING_LOG_LEVEL:
        snprintf(out, CONFIG_VALUE_BYTES, "%s", log_level_name(*(const enum log_level *)at));
        return;
    }
    assert(!"a kind of setting that nobody formats");
}
