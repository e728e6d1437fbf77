// letter.c - one Letter a frame; both ends are of one build, so only its form is checked.

#include "messages/letter.h"

#include <assert.h>

enum status letter_encode(const luna_Letter *letter, struct codec_buffer *out, struct error *error)
{
    assert(letter != NULL);
    assert(letter->which_letter != 0);
    return codec_encode(luna_Letter_fields, letter, out, error);
}

enum status letter_decode(struct bytes frame, luna_Letter *out, struct error *error)
{
    assert(out != NULL);
    enum status status = codec_decode(luna_Letter_fields, frame, out, error);
    if (status != STATUS_OK) return status;
    if (out->which_letter == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a letter of no known kind");
    }
    return STATUS_OK;
}
