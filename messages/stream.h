// stream.h - how the codec's own files hand bytes to nanopb.

#ifndef MESSAGES_STREAM_H
#define MESSAGES_STREAM_H

#include <pb_decode.h>

#include "base/bytes.h"

// A stream over borrowed bytes; nanopb wants an address even for none.
static inline pb_istream_t codec_stream(struct bytes frame)
{
    return pb_istream_from_buffer(frame.size > 0 ? frame.data : "", (size_t)frame.size);
}

#endif  // MESSAGES_STREAM_H
