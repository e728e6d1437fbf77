// clip_reply.h - what the answer to a text request says of its stack.

#ifndef ACTORS_CLIP_REPLY_H
#define ACTORS_CLIP_REPLY_H

#include "actors/worker.h"

// Fills loras and loras_merged, and adds notes as far as there is room: nothing is ignored in
// silence.
// Thread:    the worker's, while the job's stack is borrowed.
void clip_fill_loras(const struct worker_job *job, luna_TextReply *reply);

#endif  // ACTORS_CLIP_REPLY_H
