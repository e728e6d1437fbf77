// bytes.c - hexadecimal and UTF-8.

#include "base/bytes.h"

#include <assert.h>
#include <string.h>

void hash_to_hex(const struct hash *hash, char out[HASH_HEX_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof hash->value; i++) {
        out[2 * i] = digits[hash->value[i] >> 4];
        out[2 * i + 1] = digits[hash->value[i] & 15];
    }
    out[HASH_HEX_BYTES - 1] = '\0';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

bool hash_from_hex(const char *text, struct hash *out)
{
    assert(text != NULL);
    if (strnlen(text, HASH_HEX_BYTES) != HASH_HEX_BYTES - 1) return false;
    struct hash hash;
    for (size_t i = 0; i < sizeof hash.value; i++) {
        int high = hex_digit(text[2 * i]);
        int low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        hash.value[i] = (uint8_t)(high << 4 | low);
    }
    *out = hash;
    return true;
}

bool hash_equal(const struct hash *a, const struct hash *b)
{
    return memcmp(a->value, b->value, sizeof a->value) == 0;
}

bool utf8_valid(struct bytes text)
{
    const uint8_t *in = text.data;
    uint64_t i = 0;
    while (i < text.size) {
        uint8_t lead = in[i];
        uint64_t more = lead < 0x80                    ? 0
                        : lead >= 0xc2 && lead <= 0xdf ? 1
                        : (lead & 0xf0) == 0xe0        ? 2
                        : lead >= 0xf0 && lead <= 0xf4 ? 3
                                                       : UINT64_MAX;
        if (more >= text.size - i) return false;
        for (uint64_t j = 1; j <= more; j++) {
            if ((in[i + j] & 0xc0) != 0x80) return false;
        }
        if (lead == 0xe0 && in[i + 1] < 0xa0) return false;  // overlong
        if (lead == 0xed && in[i + 1] > 0x9f) return false;  // surrogates
        if (lead == 0xf0 && in[i + 1] < 0x90) return false;  // overlong
        if (lead == 0xf4 && in[i + 1] > 0x8f) return false;  // above U+10FFFF
        i += more + 1;
    }
    return true;
}
