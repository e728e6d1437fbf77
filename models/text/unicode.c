// unicode.c - categories, NFC and lower case over utf8proc's tables.
//
// utf8proc's own NFC sorts combining marks by insertion, which a hostile text makes quadratic. Here
// each code point is decomposed alone, runs of marks are sorted by counting, and only the (linear)
// composition is utf8proc's.

#include "models/text/unicode.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "models/text/array.h"

#define CODE_DOTTED_I 0x130          // its lower case is two code points
#define CODE_SIGMA 0x3A3             // its lower case depends on the neighbours
#define CODE_SIGMA_FINAL 0x3C2       // at the end of a word
#define CODE_COMBINING_DOT 0x307     // the second half of U+0130's lower case
#define CODE_HANGUL_BEFORE_T 0x11A7  // one before the first trailing consonant
#define DECOMPOSITION_MAX 32u        // Unicode's longest canonical decomposition has 4
#define MARKS_INSERTION_MAX 8u       // above it marks are sorted by counting
#define COMBINING_CLASS_COUNT 256u   // classes are one byte

_Static_assert(sizeof(utf8proc_int32_t) == sizeof(int32_t), "both hold a code point");

bool code_points_append(struct code_points *self, int32_t code)
{
    assert(self != NULL);
    assert(self->count <= self->capacity);
    if (!ARRAY_RESERVE(self, (uint64_t)self->count + 1)) return false;
    self->items[self->count++] = code;
    return true;
}

bool unicode_is_letter(int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool unicode_is_number(int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool unicode_is_control(int32_t code)
{
    if (code == '\t' || code == '\n' || code == '\r') return false;
    utf8proc_category_t category = utf8proc_category(code);
    return category == UTF8PROC_CATEGORY_CN || category >= UTF8PROC_CATEGORY_CC;
}

bool unicode_is_blank(int32_t code)
{
    return utf8proc_category(code) == UTF8PROC_CATEGORY_ZS;
}

bool unicode_is_space(int32_t code)
{
    if (code >= 0x1C && code <= 0x20) return true;
    if (code >= '\t' && code <= '\r') return true;
    if (code == 0x85) return true;
    utf8proc_category_t category = utf8proc_category(code);
    return category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
}

int32_t unicode_decimal(int32_t code)
{
    if (utf8proc_category(code) != UTF8PROC_CATEGORY_ND) return -1;
    // Digits come in blocks of ten, zero first; no run of blocks is longer than the 50 mathematical
    // ones.
    int32_t first = code;
    while (utf8proc_category(first - 1) == UTF8PROC_CATEGORY_ND) first -= 1;
    return (code - first) % 10;
}

static uint32_t combining_class(int32_t code)
{
    return (uint32_t)(uint16_t)utf8proc_get_property(code)->combining_class % COMBINING_CLASS_COUNT;
}

static void sort_by_insertion(int32_t *marks, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        int32_t mark = marks[i];
        uint32_t hole = i;
        for (; hole > 0 && combining_class(marks[hole - 1]) > combining_class(mark); hole--) {
            marks[hole] = marks[hole - 1];
        }
        marks[hole] = mark;
    }
}

// Sorts by combining class and keeps the order of equals. spare has room for count code points.
static void sort_marks(int32_t *marks, uint32_t count, int32_t *spare)
{
    if (count <= MARKS_INSERTION_MAX) {
        sort_by_insertion(marks, count);
        return;
    }
    uint32_t begins[COMBINING_CLASS_COUNT + 1] = {0};
    for (uint32_t i = 0; i < count; i++) begins[combining_class(marks[i]) + 1] += 1;
    for (uint32_t c = 0; c < COMBINING_CLASS_COUNT; c++) begins[c + 1] += begins[c];
    memcpy(spare, marks, count * sizeof *marks);
    for (uint32_t i = 0; i < count; i++) marks[begins[combining_class(spare[i])]++] = spare[i];
}

static enum status decompose(const int32_t *text, uint32_t count, struct code_points *out)
{
    int32_t codes[DECOMPOSITION_MAX];
    for (uint32_t i = 0; i < count; i++) {
        int last_boundclass = 0;
        utf8proc_ssize_t length =
            utf8proc_decompose_char(text[i], codes, DECOMPOSITION_MAX,
                                    UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &last_boundclass);
        if (length < 0 || length > (utf8proc_ssize_t)DECOMPOSITION_MAX) {
            return STATUS_INVALID_ARGUMENT;
        }
        for (utf8proc_ssize_t j = 0; j < length; j++) {
            if (!code_points_append(out, codes[j])) return STATUS_RESOURCE_EXHAUSTED;
        }
    }
    return STATUS_OK;
}

static enum status order_marks(int32_t *text, uint32_t count)
{
    int32_t *spare = NULL;
    for (uint32_t begin = 0; begin < count;) {
        uint32_t end = begin;
        while (end < count && combining_class(text[end]) != 0) end += 1;
        if (end - begin > MARKS_INSERTION_MAX && spare == NULL) {
            spare = malloc(count * sizeof *spare);
            if (spare == NULL) return STATUS_RESOURCE_EXHAUSTED;
        }
        sort_marks(text + begin, end - begin, spare);
        begin = end + 1;
    }
    free(spare);
    return STATUS_OK;
}

// Composes text in place, which is decomposed and in order, and tells its new length. Pieces
// between U+11A7 are composed apart: nothing composes with it, but some releases of utf8proc drop
// it after a Hangul syllable.
static enum status compose_pieces(int32_t *text, uint32_t count, uint32_t *composed_count)
{
    uint32_t written = 0;
    for (uint32_t begin = 0; begin < count;) {
        uint32_t end = begin;
        while (end < count && text[end] != CODE_HANGUL_BEFORE_T) end += 1;
        utf8proc_ssize_t length = 0;
        if (end > begin) {
            length = utf8proc_normalize_utf32(text + begin, (utf8proc_ssize_t)(end - begin),
                                              UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        }
        if (length < 0 || length > (utf8proc_ssize_t)(end - begin)) return STATUS_INVALID_ARGUMENT;
        memmove(text + written, text + begin, (size_t)length * sizeof *text);
        written += (uint32_t)length;
        if (end < count) text[written++] = CODE_HANGUL_BEFORE_T;
        begin = end + 1;
    }
    *composed_count = written;
    return STATUS_OK;
}

enum status unicode_compose(const int32_t *text, uint32_t count, struct code_points *out)
{
    assert(text != NULL || count == 0);
    assert(out != NULL);

    uint32_t begin = out->count;
    enum status status = decompose(text, count, out);
    if (status != STATUS_OK || out->count == begin) return status;
    int32_t *decomposed = out->items + begin;
    uint32_t length = out->count - begin;
    status = order_marks(decomposed, length);
    if (status != STATUS_OK) return status;
    status = compose_pieces(decomposed, length, &length);
    out->count = begin + length;
    return status;
}

// The derived property Case_Ignorable: marks, formats, modifiers, and the punctuation inside words.
static bool is_case_ignorable(int32_t code)
{
    static const uint16_t inside_words[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,
                                            0x5F4,  0x2018, 0x2019, 0x2024, 0x2027, 0xFE13,
                                            0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return true;
    default:
        break;
    }
    for (size_t i = 0; i < sizeof inside_words / sizeof inside_words[0]; i++) {
        if (code == inside_words[i]) return true;
    }
    return false;
}

// The derived property Cased, for code points that are not case-ignorable.
static bool is_cased(int32_t code)
{
    utf8proc_category_t category = utf8proc_category(code);
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LT) return true;
    if (code == 0xAA || code == 0xBA) return true;        // ordinal indicators
    if (code >= 0x2160 && code <= 0x217F) return true;    // Roman numerals
    if (code >= 0x24B6 && code <= 0x24E9) return true;    // circled letters
    if (code >= 0x1F130 && code <= 0x1F149) return true;  // squared letters
    if (code >= 0x1F150 && code <= 0x1F169) return true;  // negative circled letters
    return code >= 0x1F170 && code <= 0x1F189;            // negative squared letters
}

// Unicode's Final_Sigma: a cased letter in front and none behind, ignorable ones not counted. Each
// ignorable run is walked by the sigmas at its two ends only, so that a word costs linear time.
static bool is_final_sigma(const int32_t *word, uint32_t count, uint32_t index)
{
    uint32_t before = index;
    while (before > 0 && is_case_ignorable(word[before - 1])) before -= 1;
    if (before == 0 || !is_cased(word[before - 1])) return false;
    uint32_t after = index + 1;
    while (after < count && is_case_ignorable(word[after])) after += 1;
    return after == count || !is_cased(word[after]);
}

enum status unicode_lower(const int32_t *word, uint32_t count, struct code_points *out)
{
    assert(word != NULL || count == 0);
    assert(out != NULL);

    bool room = true;
    for (uint32_t i = 0; room && i < count; i++) {
        int32_t code = word[i];
        if (code == CODE_DOTTED_I) {
            room = code_points_append(out, 'i') && code_points_append(out, CODE_COMBINING_DOT);
        } else if (code == CODE_SIGMA && is_final_sigma(word, count, i)) {
            room = code_points_append(out, CODE_SIGMA_FINAL);
        } else {
            room = code_points_append(out, utf8proc_tolower(code));
        }
    }
    return room ? STATUS_OK : STATUS_RESOURCE_EXHAUSTED;
}
