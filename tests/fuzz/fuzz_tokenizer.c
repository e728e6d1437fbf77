// fuzz_tokenizer.c - any bytes as a text: valid UTF-8 becomes ids of the vocabulary, the same ones
// every time; anything else is refused.

#include <stdlib.h>
#include <string.h>

#include "models/text/tokenizer.h"
#include "models/text/vocabulary.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Ends the program, so that the fuzzer keeps the input.
static void require(bool truth)
{
    if (!truth) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes text = {data, size};
    struct tokenizer tokenizer = {0};
    struct token_ids first = {0}, second = {0};
    struct error error;
    enum status status = tokenizer_encode(&tokenizer, text, &first, &error);
    require((status == STATUS_OK) == utf8_valid(text));
    require(status == STATUS_OK || status == STATUS_INVALID_ARGUMENT);
    if (status == STATUS_OK) {
        require(first.count <= 4 * size);
        for (uint32_t i = 0; i < first.count; i++) {
            require(first.items[i] >= 0 && first.items[i] < (int32_t)VOCABULARY_COUNT);
        }
        require(tokenizer_encode(&tokenizer, text, &second, &error) == STATUS_OK);
        require(first.count == second.count);
        require(first.count == 0 ||
                memcmp(first.items, second.items, first.count * sizeof *first.items) == 0);
    }
    free(first.items);
    free(second.items);
    tokenizer_clear(&tokenizer);
    return 0;
}
