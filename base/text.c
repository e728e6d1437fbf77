// text.c - formats text so that nothing a client sent can break a line, a terminal or a protobuf.

#include "base/text.h"

#include <assert.h>
#include <string.h>

// Length of the UTF-8 sequence at text, 1 to 4, or 0 when it is malformed or a control character.
static size_t printable_sequence(const unsigned char *text)
{
    if (text[0] >= 0x20 && text[0] < 0x7f) return 1;
    size_t length = 0;
    if (text[0] >= 0xc2 && text[0] <= 0xdf)
        length = 2;
    else if (text[0] >= 0xe0 && text[0] <= 0xef)
        length = 3;
    else if (text[0] >= 0xf0 && text[0] <= 0xf4)
        length = 4;
    if (length == 0) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) return 0;
    }
    if (text[0] == 0xc2 && text[1] < 0xa0) return 0;  // C1 controls
    if (text[0] == 0xe0 && text[1] < 0xa0) return 0;  // overlong
    if (text[0] == 0xed && text[1] > 0x9f) return 0;  // surrogates
    if (text[0] == 0xf0 && text[1] < 0x90) return 0;  // overlong
    if (text[0] == 0xf4 && text[1] > 0x8f) return 0;  // above U+10FFFF
    return length;
}

void text_copy_printable(char *out, size_t out_bytes, const char *text)
{
    assert(out_bytes >= 4);
    assert(text != NULL);
    const size_t limit = out_bytes - 1;
    const unsigned char *in = (const unsigned char *)text;
    size_t used = 0;
    size_t before_dots = 0;  // the last border at which "..." still fits
    while (*in != '\0') {
        size_t length = printable_sequence(in);
        size_t wanted = length > 0 ? length : 4;
        if (used + wanted > limit) {
            memcpy(out + before_dots, "...", 4);
            return;
        }
        if (length > 0) {
            memcpy(out + used, in, length);
        } else {
            static const char digits[] = "0123456789abcdef";
            const char escaped[4] = {'\\', 'x', digits[*in >> 4], digits[*in & 15]};
            memcpy(out + used, escaped, sizeof escaped);
        }
        used += wanted;
        in += length > 0 ? length : 1;
        if (used + 3 <= limit) before_dots = used;
    }
    out[used] = '\0';
}

void text_set(char *out, size_t out_bytes, const char *text)
{
    assert(out != NULL);
    assert(out_bytes > 0);
    assert(text != NULL);
    size_t length = strnlen(text, out_bytes);
    if (length == out_bytes) {
        length = out_bytes - 1;
        while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) length -= 1;
    }
    memmove(out, text, length);
    memset(out + length, 0, out_bytes - length);
}
