// tokenizer.c - the steps of CLIPTokenizer, one function each.
//
//     text -> split at <|startoftext|>, <|endoftext|> (as written)
//          -> clean: drop controls, blanks to ' ', ' ' around CJK ideographs
//          -> NFC -> words -> lower case
//          -> pattern: special | 's 't 're 've 'm 'll 'd | letters | one number | the rest
//          -> UTF-8 bytes -> merges (bpe.h)

#include "models/text/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "models/text/array.h"
#include "models/text/vocabulary.h"

#define CODE_REPLACEMENT 0xFFFD
#define CODE_IOTA_BELOW                                                                            \
    0x345  // a mark whose case variants are letters: the pattern has no place for it
#define CODE_LONG_S 0x17F  // equals s when case does not count, and is lower case already

static const char start_text[] = "<|startoftext|>";
static const char end_text[] = "<|endoftext|>";

void tokenizer_clear(struct tokenizer *self)
{
    assert(self != NULL);
    free(self->cleaned.items);
    free(self->composed.items);
    free(self->words.items);
    free(self->word.items);
    bpe_clear(&self->bpe);
    *self = (struct tokenizer){0};
}

static bool is_ideograph(int32_t code)
{
    static const struct {
        int32_t first, last;
    } ranges[] = {
        {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
        {0x2B740, 0x2B81F}, {0x2B820, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (code >= ranges[i].first && code <= ranges[i].last) return true;
    }
    return false;
}

static bool append_cleaned(struct code_points *out, int32_t code)
{
    if (code == 0 || code == CODE_REPLACEMENT || unicode_is_control(code)) return true;
    bool is_break = code == '\t' || code == '\n' || code == '\r';
    if (is_break || unicode_is_blank(code)) return code_points_append(out, ' ');
    if (!is_ideograph(code)) return code_points_append(out, code);
    return code_points_append(out, ' ') && code_points_append(out, code) &&
           code_points_append(out, ' ');
}

static enum status clean(struct tokenizer *self, const uint8_t *text, uint64_t size)
{
    self->cleaned.count = 0;
    for (uint64_t at = 0; at < size;) {
        int32_t code = 0;
        utf8proc_ssize_t length = utf8proc_iterate(text + at, (utf8proc_ssize_t)(size - at), &code);
        if (length <= 0) return STATUS_INVALID_ARGUMENT;
        if (!append_cleaned(&self->cleaned, code)) return STATUS_RESOURCE_EXHAUSTED;
        at += (uint64_t)length;
    }
    return STATUS_OK;
}

// Lower-cases each word of composed on its own and joins them by single spaces.
static enum status lower_words(struct tokenizer *self)
{
    const struct code_points *text = &self->composed;
    self->words.count = 0;
    for (uint32_t begin = 0; begin < text->count;) {
        uint32_t end = begin;
        while (end < text->count && !unicode_is_space(text->items[end])) end += 1;
        if (end > begin) {
            bool first = self->words.count == 0;
            if (!first && !code_points_append(&self->words, ' ')) return STATUS_RESOURCE_EXHAUSTED;
            enum status status = unicode_lower(text->items + begin, end - begin, &self->words);
            if (status != STATUS_OK) return status;
        }
        begin = end + 1;
    }
    return STATUS_OK;
}

// How many code points at the front equal an ASCII literal when case does not count; 0 when they
// do not.
static uint32_t match_literal(const int32_t *text, uint32_t count, const char *literal)
{
    uint32_t length = 0;
    for (; literal[length] != '\0'; length++) {
        if (length == count) return 0;
        int32_t code = text[length] == CODE_LONG_S ? 's' : text[length];
        if (code != literal[length]) return 0;
    }
    return length;
}

enum character { CHARACTER_NONE, CHARACTER_LETTER, CHARACTER_NUMBER, CHARACTER_OTHER };

static enum character classify(int32_t code)
{
    if (code == ' ' || code == CODE_IOTA_BELOW) return CHARACTER_NONE;
    if (unicode_is_letter(code)) return CHARACTER_LETTER;
    return unicode_is_number(code) ? CHARACTER_NUMBER : CHARACTER_OTHER;
}

// The length of the pattern's match at the front of text, which does not start with a character
// that nothing matches.
static uint32_t match_length(const int32_t *text, uint32_t count)
{
    static const char *const literals[] = {start_text, end_text, "'s",  "'t", "'re",
                                           "'ve",      "'m",     "'ll", "'d"};
    assert(count > 0);
    assert(classify(text[0]) != CHARACTER_NONE);
    if (text[0] == '<' || text[0] == '\'') {
        for (size_t i = 0; i < sizeof literals / sizeof literals[0]; i++) {
            uint32_t length = match_literal(text, count, literals[i]);
            if (length > 0) return length;
        }
    }
    enum character first = classify(text[0]);
    if (first == CHARACTER_NUMBER) return 1;
    uint32_t length = 1;
    while (length < count && classify(text[length]) == first) length += 1;
    return length;
}

static enum status append_id(struct token_ids *out, int32_t id)
{
    if (!ARRAY_RESERVE(out, (uint64_t)out->count + 1)) return STATUS_RESOURCE_EXHAUSTED;
    out->items[out->count++] = id;
    return STATUS_OK;
}

static enum status encode_word(struct tokenizer *self, const int32_t *text, uint32_t count,
                               struct token_ids *out)
{
    if (!ARRAY_RESERVE(&self->word, 4 * (uint64_t)count)) return STATUS_RESOURCE_EXHAUSTED;
    self->word.count = 0;
    for (uint32_t i = 0; i < count; i++) {
        self->word.count +=
            (uint32_t)utf8proc_encode_char(text[i], self->word.items + self->word.count);
    }
    struct bytes word = {.data = self->word.items, .size = self->word.count};
    if (word.size == sizeof start_text - 1 && memcmp(word.data, start_text, word.size) == 0) {
        return append_id(out, VOCABULARY_START);
    }
    if (word.size == sizeof end_text - 1 && memcmp(word.data, end_text, word.size) == 0) {
        return append_id(out, VOCABULARY_END);
    }
    return bpe_encode(&self->bpe, word, out);
}

// Encodes text that holds no special token as written.
static enum status encode_plain(struct tokenizer *self, const uint8_t *text, uint64_t size,
                                struct token_ids *out)
{
    enum status status = clean(self, text, size);
    if (status != STATUS_OK) return status;
    self->composed.count = 0;
    status = unicode_compose(self->cleaned.items, self->cleaned.count, &self->composed);
    if (status != STATUS_OK) return status;
    status = lower_words(self);
    for (uint32_t at = 0; status == STATUS_OK && at < self->words.count;) {
        const int32_t *front = self->words.items + at;
        uint32_t length = 1;
        if (classify(front[0]) != CHARACTER_NONE) {
            length = match_length(front, self->words.count - at);
            status = encode_word(self, front, length, out);
        }
        at += length;
    }
    return status;
}

// Where the next special token begins, as written; size when there is none.
static uint64_t find_special(const char *text, uint64_t begin, uint64_t size, int32_t *id)
{
    for (uint64_t at = begin; at < size; at++) {
        const char *found = memchr(text + at, '<', size - at);
        if (found == NULL) break;
        at = (uint64_t)(found - text);
        bool is_start = size - at >= sizeof start_text - 1 &&
                        memcmp(found, start_text, sizeof start_text - 1) == 0;
        bool is_end =
            size - at >= sizeof end_text - 1 && memcmp(found, end_text, sizeof end_text - 1) == 0;
        if (!is_start && !is_end) continue;
        *id = is_start ? VOCABULARY_START : VOCABULARY_END;
        return at;
    }
    return size;
}

enum status tokenizer_encode(struct tokenizer *self, struct bytes text, struct token_ids *out,
                             struct error *error)
{
    assert(self != NULL);
    assert(out != NULL);
    assert(text.data != NULL || text.size == 0);
    if (text.size > INT32_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a text of %llu bytes is too long",
                         (unsigned long long)text.size);
    }

    const char *bytes = text.data;
    enum status status = STATUS_OK;
    for (uint64_t at = 0; status == STATUS_OK && at < text.size;) {
        int32_t id = 0;
        uint64_t special = find_special(bytes, at, text.size, &id);
        status = encode_plain(self, (const uint8_t *)bytes + at, special - at, out);
        if (status != STATUS_OK || special == text.size) break;
        status = append_id(out, id);
        at = special + (id == VOCABULARY_START ? sizeof start_text : sizeof end_text) - 1;
    }
    if (status == STATUS_INVALID_ARGUMENT) {
        return error_set(error, status, "the text is not valid UTF-8");
    }
    if (status != STATUS_OK) {
        return error_set(error, status, "no memory to tokenise %llu bytes",
                         (unsigned long long)text.size);
    }
    return STATUS_OK;
}
