// bytes.h - borrowed byte ranges, little-endian numbers, hexadecimal.

#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes that somebody else owns.
struct bytes {
    const void *data;  // may be NULL when size is 0; no alignment is promised
    uint64_t size;     // bytes
};

// A content hash: BLAKE2b-256.
struct hash {
    uint8_t value[32];
};

#define HASH_HEX_BYTES 65u  // 64 digits and a NUL

// Writes 64 lower-case hexadecimal digits and a NUL.
// Thread:    any.
void hash_to_hex(const struct hash *hash, char out[HASH_HEX_BYTES]);

// Reads exactly 64 hexadecimal digits of either case; false, *out untouched, for anything else.
// Thread:    any.
bool hash_from_hex(const char *text, struct hash *out);

// True when both are the same 32 bytes.
// Thread:    any.
bool hash_equal(const struct hash *a, const struct hash *b);

// Little-endian numbers at any address.
static inline uint16_t load_u16(const void *at)
{
    const uint8_t *b = at;
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline uint32_t load_u32(const void *at)
{
    const uint8_t *b = at;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline uint64_t load_u64(const void *at)
{
    const uint8_t *b = at;
    return load_u32(b) | (uint64_t)load_u32(b + 4) << 32;
}

static inline void store_u32(void *at, uint32_t value)
{
    uint8_t *b = at;
    for (int i = 0; i < 4; i++) b[i] = (uint8_t)(value >> (8 * i));
}

static inline void store_u64(void *at, uint64_t value)
{
    uint8_t *b = at;
    for (int i = 0; i < 8; i++) b[i] = (uint8_t)(value >> (8 * i));
}

// True when the bytes are well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
// Thread:    any.
bool utf8_valid(struct bytes text);

#endif  // BASE_BYTES_H
