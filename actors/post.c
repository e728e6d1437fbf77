// post.c - a letter is the first frame (behind the connection, on a ROUTER); frames follow as they
// are.

#include "actors/post.h"

#include <assert.h>
#include <string.h>

#include "messages/letter.h"
#include "runtime/loop.h"

#define CONNECTION_BYTES_MAX 255u  // of a name that a ROUTER socket gives

static enum status send_letter(void *socket, struct bytes connection, const luna_Letter *letter,
                               struct message *frames)
{
    assert(socket != NULL);
    assert(letter != NULL);
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    struct message message;
    message_init(&message);
    enum status status = letter_encode(letter, &encoded, NULL);
    if (status == STATUS_OK && connection.size > 0) status = message_append(&message, connection);
    if (status == STATUS_OK) {
        status = message_append(&message, (struct bytes){.data = buffer, .size = encoded.size});
    }
    for (uint32_t i = 0; status == STATUS_OK && frames != NULL && i < frames->count; i++) {
        status = message_append_shared(&message, frames, i);
    }
    if (status == STATUS_OK) status = message_send(&message, socket);
    message_clear(&message);
    if (frames != NULL) message_clear(frames);
    return status;
}

enum status post_letter(void *socket, const luna_Letter *letter, struct message *frames)
{
    return send_letter(socket, (struct bytes){.data = NULL, .size = 0}, letter, frames);
}

enum status post_letter_to(void *socket, struct bytes connection, const luna_Letter *letter,
                           struct message *frames)
{
    assert(connection.size > 0);
    return send_letter(socket, connection, letter, frames);
}

bool post_read(struct message *message, luna_Letter *out)
{
    assert(message != NULL);
    assert(out != NULL);
    if (message->count == 0 || message->overlong) return false;
    if (letter_decode(message_frame(message, 0), out, NULL) != STATUS_OK) return false;
    message_drop_first(message);
    return true;
}

void post_each(void *socket,
               void (*on_letter)(void *state, const luna_Letter *letter, struct message *frames),
               void *state)
{
    assert(socket != NULL);
    assert(on_letter != NULL);
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        luna_Letter letter;
        message_init(&message);
        if (message_receive(&message, socket) != STATUS_OK) return;
        if (post_read(&message, &letter)) on_letter(state, &letter, &message);
        message_clear(&message);
    }
}

void post_each_from(void *socket,
                    void (*on_letter)(void *state, struct bytes from, const luna_Letter *letter,
                                      struct message *frames),
                    void *state)
{
    assert(socket != NULL);
    assert(on_letter != NULL);
    for (uint32_t i = 0; i < LOOP_BATCH_MAX; i++) {
        struct message message;
        luna_Letter letter;
        uint8_t connection[CONNECTION_BYTES_MAX];
        message_init(&message);
        if (message_receive(&message, socket) != STATUS_OK) return;
        struct bytes from = {.data = connection, .size = message_frame(&message, 0).size};
        assert(from.size > 0);
        assert(from.size <= sizeof connection);
        memcpy(connection, message_frame(&message, 0).data, from.size);
        message_drop_first(&message);
        if (post_read(&message, &letter)) on_letter(state, from, &letter, &message);
        message_clear(&message);
    }
}
