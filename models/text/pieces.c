// pieces.c - "embedding:NAME" is cut out of each segment, the rest goes to the tokenizer.
//
// A segment is split where a space or a line feed stands in front of "embedding:" (and is lost); a
// part that begins with "embedding:" names one up to the next white space, and what follows is text
// again. A name that is no file is tried once more without the commas around it.

#include "models/text/pieces.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "models/text/array.h"
#include "models/text/embeddings.h"
#include "models/text/prompt.h"

#define NOTE_NAME_BYTES 100

static const char identifier[] = "embedding:";
#define IDENTIFIER_BYTES (sizeof identifier - 1)

struct reader {
    struct pieces *pieces;                     // where to append
    const struct text_embeddings *embeddings;  // or NULL
    struct notes *notes;                       // for names that are not found
    struct tokenizer tokenizer;                // scratch
    struct error *error;                       // where to tell the first failure
};

static struct bytes slice(struct bytes text, uint64_t begin, uint64_t end)
{
    assert(begin <= end);
    assert(end <= text.size);
    return (struct bytes){.data = (const char *)text.data + begin, .size = end - begin};
}

static enum status append_piece(struct reader *self, struct piece piece)
{
    if (!ARRAY_RESERVE(self->pieces, (uint64_t)self->pieces->count + 1)) {
        return error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt's pieces");
    }
    self->pieces->items[self->pieces->count++] = piece;
    return STATUS_OK;
}

static enum status read_text(struct reader *self, struct bytes text, double weight)
{
    struct token_ids *ids = &self->pieces->ids;
    uint32_t begin = ids->count;
    enum status status = tokenizer_encode(&self->tokenizer, text, ids, self->error);
    if (status != STATUS_OK) return status;
    return append_piece(
        self, (struct piece){.begin = begin, .count = ids->count - begin, .weight = weight});
}

// The bytes of the character at `at`, and whether str.split would split there.
static uint64_t step(struct bytes text, uint64_t at, bool *is_space)
{
    int32_t code = 0;
    utf8proc_ssize_t length = utf8proc_iterate((const uint8_t *)text.data + at,
                                               (utf8proc_ssize_t)(text.size - at), &code);
    *is_space = length > 0 && unicode_is_space(code);
    return length > 0 ? (uint64_t)length : 1;
}

// The next word at or after *at_p, which moves behind it; empty at the end.
static struct bytes next_word(struct bytes text, uint64_t *at_p)
{
    bool is_space = true;
    uint64_t begin = *at_p;
    uint64_t length = 0;
    for (; begin < text.size; begin += length) {
        length = step(text, begin, &is_space);
        if (!is_space) break;
    }
    uint64_t end = begin;
    for (; end < text.size; end += length) {
        length = step(text, end, &is_space);
        if (is_space) break;
    }
    *at_p = end;
    return slice(text, begin, end);
}

static struct bytes strip_commas(struct bytes name)
{
    const char *text = name.data;
    uint64_t begin = 0;
    uint64_t end = name.size;
    while (begin < end && text[begin] == ',') begin += 1;
    while (end > begin && text[end - 1] == ',') end -= 1;
    return slice(name, begin, end);
}

// What is left of a part behind the name: `front`, then the words after it, joined by single
// spaces. out has room for the part and two more bytes. Returns the bytes written.
static uint64_t join_rest(char *out, const struct bytes *front, struct bytes part, uint64_t at)
{
    assert(out != NULL);
    uint64_t written = 0;
    if (front != NULL) {
        memcpy(out, front->data, front->size);
        written = front->size;
        out[written++] = ' ';
    }
    for (bool first = true;; first = false) {
        struct bytes word = next_word(part, &at);
        if (word.size == 0) return written;
        if (!first) out[written++] = ' ';
        memcpy(out + written, word.data, word.size);
        written += word.size;
    }
}

// Finds the name, with or without its commas. Tells the bytes of the name that stripping left over.
static int64_t find_embedding(const struct reader *self, struct bytes name, struct bytes *over)
{
    int64_t file = text_embeddings_find(self->embeddings, name);
    if (file >= 0) return file;
    struct bytes stripped = strip_commas(name);
    if (stripped.size == name.size) return -1;
    *over = slice(name, stripped.size, name.size);
    return text_embeddings_find(self->embeddings, stripped);
}

// Reads what stands behind "embedding:".
static enum status read_embedding(struct reader *self, struct bytes part, double weight)
{
    uint64_t at = 0;
    struct bytes over = {0};
    struct bytes name = next_word(part, &at);
    int64_t file = find_embedding(self, name, &over);
    enum status status = STATUS_OK;
    if (file >= 0) {
        struct piece piece = {.is_embedding = true, .begin = (uint32_t)file, .weight = weight};
        status = append_piece(self, piece);
    } else {
        struct bytes shown = over.size > 0 ? strip_commas(name) : name;
        int length = shown.size < NOTE_NAME_BYTES ? (int)shown.size : NOTE_NAME_BYTES;
        notes_add(self->notes, "embedding \"%.*s\" was not found", length,
                  (const char *)shown.data);
    }
    char *rest = malloc(part.size + 2);
    if (status == STATUS_OK && rest == NULL) {
        status = error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt");
    }
    if (status == STATUS_OK) {
        uint64_t size = join_rest(rest, over.size > 0 ? &over : NULL, part, at);
        if (size > 0) status = read_text(self, (struct bytes){rest, size}, weight);
    }
    free(rest);
    return status;
}

static bool is_identifier(struct bytes text, uint64_t at)
{
    return text.size - at >= IDENTIFIER_BYTES &&
           memcmp((const char *)text.data + at, identifier, IDENTIFIER_BYTES) == 0;
}

// Where the part that begins at `at` ends: in front of white space and "embedding:".
static uint64_t part_end(struct bytes text, uint64_t at)
{
    const char *bytes = text.data;
    for (; at < text.size; at++) {
        bool is_separator = bytes[at] == ' ' || bytes[at] == '\n';
        if (is_separator && is_identifier(text, at + 1)) break;
    }
    return at;
}

static enum status read_segment(struct reader *self, const struct prompt_segment *segment)
{
    struct bytes text = segment->text;
    enum status status = STATUS_OK;
    for (uint64_t at = 0; status == STATUS_OK && at < text.size;) {
        uint64_t end = part_end(text, at);
        struct bytes part = slice(text, at, end);
        if (part.size > 0 && is_identifier(part, 0) && self->embeddings != NULL) {
            status =
                read_embedding(self, slice(part, IDENTIFIER_BYTES, part.size), segment->weight);
        } else if (part.size > 0) {
            status = read_text(self, part, segment->weight);
        }
        at = end + 1;
    }
    return status;
}

enum status pieces_read(struct pieces *self, struct bytes text, bool disable_weights,
                        const struct text_embeddings *embeddings, struct notes *notes,
                        struct error *error)
{
    assert(self != NULL);
    assert(notes != NULL);
    if (!utf8_valid(text)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the text is not valid UTF-8");
    }
    struct prompt prompt = {0};
    enum status status = prompt_parse(&prompt, text, disable_weights, error);
    if (status != STATUS_OK) return status;
    struct reader reader = {
        .pieces = self, .embeddings = embeddings, .notes = notes, .error = error};
    for (uint32_t i = 0; status == STATUS_OK && i < prompt.count; i++) {
        status = read_segment(&reader, &prompt.items[i]);
    }
    tokenizer_clear(&reader.tokenizer);
    prompt_clear(&prompt);
    return status;
}

void pieces_clear(struct pieces *self)
{
    assert(self != NULL);
    free(self->items);
    free(self->ids.items);
    *self = (struct pieces){0};
}
