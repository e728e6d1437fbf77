// prompt.c - one pass over the parentheses, a stack of regions instead of recursion.
//
// A region is the inside of a group. In it a level counts from 0; '(' at level 0 opens an item that
// ends with the ')' that brings the level back to 0, and a stray ')' makes the level negative, so
// that the next '(' is text. Where an item ends does not depend on the region: it is the partner of
// the '(', if that lies inside, else the region's end. Partners, the last ':' and the last ')' in
// front of every position are found once, so that every byte is looked at a fixed number of times.
//
// Escaped parentheses travel as two bytes that no text should hold: NUL 1 for \), NUL 2 for \(.

#include "models/text/prompt.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/array.h"
#include "models/text/number.h"

#define TEXT_BYTES_MAX (1u << 30)
#define POSITION_NONE UINT32_MAX
#define GROUP_WEIGHT 1.1

struct region {
    uint32_t at;    // where the next item begins
    uint32_t end;   // one past the last byte
    double weight;  // of its text
};

struct parser {
    const char *text;    // escaped
    uint32_t size;       // bytes of text
    uint32_t *partners;  // of each '(': the ')' that closes it, or POSITION_NONE
    uint32_t *colons;    // the last ':' at or before each byte, or POSITION_NONE
    uint32_t *closes;    // the last ')' at or before each byte, or POSITION_NONE
    struct {
        struct region *items;  // innermost last
        uint32_t count;        // regions in use
        uint32_t capacity;     // regions there is room for
    } regions;                 // what is being read
};

// Copies text with \) and \( as the pairs above; returns the bytes written, at most as many.
static uint32_t escape(char *out, const char *text, uint32_t size)
{
    uint32_t written = 0;
    for (uint32_t i = 0; i < size; i++) {
        bool escaped =
            text[i] == '\\' && i + 1 < size && (text[i + 1] == ')' || text[i + 1] == '(');
        if (escaped) {
            out[written++] = '\0';
            out[written++] = text[++i] == ')' ? 1 : 2;
        } else {
            out[written++] = text[i];
        }
    }
    return written;
}

// Turns the pairs of one segment into parentheses, in place; returns the bytes left.
static uint32_t unescape(char *text, uint32_t size)
{
    uint32_t written = 0;
    for (uint32_t i = 0; i < size; i++) {
        bool pair = text[i] == '\0' && i + 1 < size && (text[i + 1] == 1 || text[i + 1] == 2);
        text[written++] = !pair ? text[i] : text[++i] == 1 ? ')' : '(';
    }
    return written;
}

// Fills partners, colons and closes. The '(' that wait for a partner are chained through partners.
static void find_partners(struct parser *self)
{
    uint32_t waiting = POSITION_NONE;
    uint32_t colon = POSITION_NONE;
    uint32_t close = POSITION_NONE;
    for (uint32_t i = 0; i < self->size; i++) {
        char c = self->text[i];
        if (c == ':') colon = i;
        if (c == ')') close = i;
        if (c == '(') {
            self->partners[i] = waiting;
            waiting = i;
        } else if (c == ')' && waiting != POSITION_NONE) {
            uint32_t open = waiting;
            waiting = self->partners[open];
            self->partners[open] = i;
        }
        self->colons[i] = colon;
        self->closes[i] = close;
    }
    while (waiting != POSITION_NONE) {
        uint32_t open = waiting;
        waiting = self->partners[open];
        self->partners[open] = POSITION_NONE;
    }
}

static bool push_region(struct parser *self, struct region region)
{
    if (!ARRAY_RESERVE(&self->regions, (uint64_t)self->regions.count + 1)) return false;
    self->regions.items[self->regions.count++] = region;
    return true;
}

// Pushes the inside [begin, end) of a group. A number after its last ':' is its weight, unless
// nothing stands in front of the ':'. A ')' in that tail is no part of a number: looking for it
// first means that no two groups ever parse the same tail.
static bool push_group(struct parser *self, uint32_t begin, uint32_t end, double weight)
{
    assert(begin <= end);
    struct region region = {.at = begin, .end = end, .weight = weight * GROUP_WEIGHT};
    uint32_t colon = end > begin ? self->colons[end - 1] : POSITION_NONE;
    if (colon != POSITION_NONE && colon > begin) {
        uint32_t close = self->closes[end - 1];
        bool has_close = close != POSITION_NONE && close > colon;
        struct bytes tail = {.data = self->text + colon + 1, .size = end - colon - 1};
        if (!has_close && number_parse(tail, &region.weight)) region.end = colon;
    }
    return push_region(self, region);
}

static bool push_segment(const struct parser *self, struct prompt *out, uint32_t begin,
                         const struct region *end_and_weight)
{
    if (!ARRAY_RESERVE(out, (uint64_t)out->count + 1)) return false;
    out->items[out->count++] = (struct prompt_segment){
        .text = {.data = self->text + begin, .size = end_and_weight->end - begin},
        .weight = end_and_weight->weight,
    };
    return true;
}

// The end of the text at the front of a region: the next '(' at level 0.
static uint32_t text_end(const struct parser *self, const struct region *region)
{
    int64_t level = 0;
    uint32_t at = region->at;
    for (; at < region->end; at++) {
        if (self->text[at] == '(' && level == 0) break;
        if (self->text[at] == '(') level += 1;
        if (self->text[at] == ')') level -= 1;
    }
    return at;
}

// Reads the next item of the innermost region.
static bool read_item(struct parser *self, struct prompt *out)
{
    struct region *region = &self->regions.items[self->regions.count - 1];
    uint32_t begin = region->at;
    if (begin == region->end) {
        self->regions.count -= 1;
        return true;
    }
    uint32_t end = text_end(self, region);
    bool is_group = false;
    if (end == begin) {
        uint32_t partner = self->partners[begin];
        end = partner < region->end ? partner + 1 : region->end;
        is_group = end - begin >= 2 && self->text[end - 1] == ')';
    }
    region->at = end;
    if (is_group) return push_group(self, begin + 1, end - 1, region->weight);
    struct region item = {.end = end, .weight = region->weight};
    return push_segment(self, out, begin, &item);
}

static bool parse_groups(struct parser *self, struct prompt *out)
{
    uint64_t count = self->size;
    self->partners = malloc(count * sizeof *self->partners);
    self->colons = malloc(count * sizeof *self->colons);
    self->closes = malloc(count * sizeof *self->closes);
    bool room = self->partners != NULL && self->colons != NULL && self->closes != NULL;
    if (room) {
        find_partners(self);
        room = push_region(self, (struct region){.end = self->size, .weight = 1.0});
    }
    while (room && self->regions.count > 0) room = read_item(self, out);
    free(self->partners);
    free(self->colons);
    free(self->closes);
    free(self->regions.items);
    return room;
}

// Undoes the escapes of every segment, once all of them are known.
static void unescape_segments(struct prompt *self)
{
    for (uint32_t i = 0; i < self->count; i++) {
        struct bytes *text = &self->items[i].text;
        uint64_t begin = (uint64_t)((const char *)text->data - self->text);
        text->size = unescape(self->text + begin, (uint32_t)text->size);
    }
}

enum status prompt_parse(struct prompt *out, struct bytes text, bool disable_weights,
                         struct error *error)
{
    assert(out != NULL);
    assert(text.data != NULL || text.size == 0);
    if (text.size > TEXT_BYTES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a prompt of %llu bytes is too long",
                         (unsigned long long)text.size);
    }

    struct prompt self = {.text = malloc(text.size + 1)};
    bool room = self.text != NULL;
    if (room && text.size > 0) {
        struct parser parser = {.text = self.text};
        parser.size = escape(self.text, text.data, (uint32_t)text.size);
        struct region whole = {.end = parser.size, .weight = 1.0};
        room = disable_weights ? push_segment(&parser, &self, 0, &whole)
                               : parse_groups(&parser, &self);
        unescape_segments(&self);
    }
    if (!room) {
        prompt_clear(&self);
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a prompt of %llu bytes",
                         (unsigned long long)text.size);
    }
    *out = self;
    return STATUS_OK;
}

void prompt_clear(struct prompt *self)
{
    assert(self != NULL);
    free(self->items);
    free(self->text);
    *self = (struct prompt){0};
}
