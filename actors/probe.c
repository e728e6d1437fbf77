// probe.c - the asking and the answering side; probe.h holds the contract.

#include "actors/probe.h"

#include <assert.h>
#include <poll.h>
#include <stdio.h>

#include "actors/packet.h"
#include "base/text.h"
#include "kernels/kernels.h"
#include "runtime/child.h"

#define PROBE_MS_MAX 30000  // for a driver that wakes many cards

static luna_GpuNotice none(const char *why)
{
    luna_GpuNotice notice = luna_GpuNotice_init_zero;
    text_set(notice.message, sizeof notice.message, why);
    return notice;
}

// The child's letter; its end without one closes the channel.
static luna_GpuNotice wait_for_answer(int channel)
{
    struct pollfd entry = {.fd = channel, .events = POLLIN};
    luna_Letter letter;
    if (poll(&entry, 1, PROBE_MS_MAX) <= 0) return none("the driver did not answer within 30 s");
    if (packet_receive_letter(channel, &letter) != STATUS_OK ||
        letter.which_letter != luna_Letter_gpu_notice_tag) {
        return none("the process that asked the driver died");
    }
    return letter.letter.gpu_notice;
}

void probe_gpus(luna_GpuNotice *out)
{
    assert(out != NULL);
    char program[] = "luna";
    char word[] = PROBE_WORD;
    char *argv[] = {program, word, NULL};
    struct child *child = NULL;
    struct error error;
    const struct child_options options = {.argv = argv};
    if (child_spawn(&child, &options, &error) != STATUS_OK) {
        *out = none(error.message);
        return;
    }
    *out = wait_for_answer(child_channel(child));
    child_destroy(&child);
}

int probe_process_main(void)
{
    struct device_probe found;
    struct error error;
    luna_Letter letter = {.which_letter = luna_Letter_gpu_notice_tag};
    luna_GpuNotice *notice = &letter.letter.gpu_notice;
    if (device_probe(&found, &error) != STATUS_OK) {
        *notice = none(error.message);
    } else {
        *notice = none(found.refusal);
        notice->count = found.count;
        notice->usable = found.usable;
        text_set(notice->driver, sizeof notice->driver, found.driver);
    }
    return packet_send_letter(CHILD_CHANNEL, &letter, -1) == STATUS_OK ? 0 : 1;
}
