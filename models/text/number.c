// number.c - the text becomes plain ASCII, is checked against float()'s grammar, then read by
// strtod.
//
// strtod alone would accept hexadecimal numbers and payloads of NaN. It reads the C locale, which
// the daemon never leaves.

#include "models/text/number.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <utf8proc.h>

#include "models/text/unicode.h"

#define TEXT_BYTES_INLINE 64u  // longer numbers are copied to the heap

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// Writes ASCII as it is, other spaces as ' ', other digits as ASCII ones, and a NUL; false for any
// other character. out has room for text.size + 1.
static bool copy_ascii(struct bytes text, char *out)
{
    const uint8_t *bytes = text.data;
    uint64_t written = 0;
    for (uint64_t at = 0; at < text.size;) {
        int32_t code = 0;
        utf8proc_ssize_t length =
            utf8proc_iterate(bytes + at, (utf8proc_ssize_t)(text.size - at), &code);
        if (length <= 0 || code == 0) return false;
        at += (uint64_t)length;
        int32_t digit = code < 0x7F ? -1 : unicode_decimal(code);
        if (code < 0x7F) {
            out[written++] = (char)code;
        } else if (unicode_is_space(code)) {
            out[written++] = ' ';
        } else if (digit >= 0) {
            out[written++] = (char)('0' + digit);
        } else {
            return false;
        }
    }
    out[written] = '\0';
    return true;
}

// Removes underscores between digits, in place; false when one stands elsewhere.
static bool remove_underscores(char *text)
{
    char previous = '\0';
    char *out = text;
    for (const char *in = text; *in != '\0'; previous = *in++) {
        if (*in == '_') {
            if (!is_digit(previous) || !is_digit(in[1])) return false;
        } else {
            *out++ = *in;
        }
    }
    *out = '\0';
    return true;
}

static bool skip_digits(const char **at_p)
{
    const char *begin = *at_p;
    while (is_digit(**at_p)) *at_p += 1;
    return *at_p > begin;
}

// [sign] (digits [. [digits]] | . digits) [e [sign] digits] | [sign] inf | infinity | nan
static bool is_number(const char *text)
{
    const char *at = text;
    if (*at == '+' || *at == '-') at += 1;
    if (strcasecmp(at, "inf") == 0 || strcasecmp(at, "infinity") == 0) return true;
    if (strcasecmp(at, "nan") == 0) return true;
    bool digits = skip_digits(&at);
    if (*at == '.') {
        at += 1;
        digits = skip_digits(&at) || digits;
    }
    if (!digits) return false;
    if (*at == 'e' || *at == 'E') {
        at += 1;
        if (*at == '+' || *at == '-') at += 1;
        if (!skip_digits(&at)) return false;
    }
    return *at == '\0';
}

bool number_parse(struct bytes text, double *out)
{
    assert(text.data != NULL || text.size == 0);
    assert(out != NULL);

    char inline_text[TEXT_BYTES_INLINE];
    char *copy = text.size < sizeof inline_text ? inline_text : malloc(text.size + 1);
    if (copy == NULL) return false;

    bool valid = copy_ascii(text, copy);
    if (valid) {
        char *begin = copy;
        char *end = copy + strlen(copy);
        while (is_space(*begin)) begin += 1;
        while (end > begin && is_space(end[-1])) end -= 1;
        *end = '\0';
        valid = remove_underscores(begin) && is_number(begin);
        if (valid) *out = strtod(begin, NULL);
    }
    if (copy != inline_text) free(copy);
    return valid;
}
