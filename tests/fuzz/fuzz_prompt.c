// fuzz_prompt.c - any bytes as a prompt: what is read equals what a naive reader of the same rules
// reads, and becomes pieces of a text that is valid.

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/number.h"
#include "models/text/pieces.h"
#include "models/text/prompt.h"

// The naive reader is recursive and quadratic.
#define NAIVE_BYTES_MAX 256u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Ends the program, so that the fuzzer keeps the input.
static void require(bool truth)
{
    if (!truth) abort();
}

static bool same_number(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

// The segments that were found, compared one by one as the naive reader comes to them.
struct naive {
    const struct prompt *found;  // what prompt_parse says
    uint32_t next;               // segment to compare
};

static void expect_segment(struct naive *self, const char *text, size_t size, double weight)
{
    char plain[NAIVE_BYTES_MAX];
    size_t written = 0;
    for (size_t i = 0; i < size; i++) {
        bool pair = text[i] == '\0' && i + 1 < size && (text[i + 1] == 1 || text[i + 1] == 2);
        plain[written++] = !pair ? text[i] : text[++i] == 1 ? ')' : '(';
    }
    require(self->next < self->found->count);
    const struct prompt_segment *segment = &self->found->items[self->next++];
    require(segment->text.size == written);
    require(memcmp(segment->text.data, plain, written) == 0);
    require(same_number(segment->weight, weight));
}

static void read_naively(struct naive *self, const char *text, size_t size, double weight);

static void read_item(struct naive *self, const char *text, size_t size, double weight)
{
    if (size == 0) return;
    if (size < 2 || text[0] != '(' || text[size - 1] != ')') {
        expect_segment(self, text, size, weight);
        return;
    }
    const char *inside = text + 1;
    size_t length = size - 2;
    size_t colon = length;
    double inner = weight * 1.1;
    while (colon > 0 && inside[colon - 1] != ':') colon -= 1;
    if (colon > 1) {  // one past the last ':', which is not the first byte
        struct bytes tail = {inside + colon, length - colon};
        if (number_parse(tail, &inner)) length = colon - 1;
    }
    read_naively(self, inside, length, inner);
}

static void read_naively(struct naive *self, const char *text, size_t size, double weight)
{
    size_t begin = 0;
    long level = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '(' && level++ == 0) {
            read_item(self, text + begin, i - begin, weight);
            begin = i;
        } else if (text[i] == ')' && --level == 0) {
            read_item(self, text + begin, i + 1 - begin, weight);
            begin = i + 1;
        }
    }
    read_item(self, text + begin, size - begin, weight);
}

static void compare(const struct prompt *found, const uint8_t *data, size_t size)
{
    char escaped[NAIVE_BYTES_MAX];
    size_t written = 0;
    for (size_t i = 0; i < size; i++) {
        bool pair = data[i] == '\\' && i + 1 < size && (data[i + 1] == ')' || data[i + 1] == '(');
        escaped[written++] = pair ? '\0' : (char)data[i];
        if (pair) escaped[written++] = data[++i] == ')' ? 1 : 2;
    }
    struct naive naive = {.found = found};
    read_naively(&naive, escaped, written, 1.0);
    require(naive.next == found->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes text = {data, size};
    struct prompt prompt = {0};
    struct error error;
    require(prompt_parse(&prompt, text, false, &error) == STATUS_OK);
    uint64_t total = 0;
    for (uint32_t i = 0; i < prompt.count; i++) {
        require(prompt.items[i].text.size > 0);
        total += prompt.items[i].text.size;
    }
    require(total <= size);
    if (size <= NAIVE_BYTES_MAX) compare(&prompt, data, size);
    prompt_clear(&prompt);

    struct notes notes = {0};
    struct pieces pieces = {0};
    enum status status = pieces_read(&pieces, text, size % 2 == 1, NULL, &notes, &error);
    require((status == STATUS_OK) == utf8_valid(text));
    pieces_clear(&pieces);
    return 0;
}
