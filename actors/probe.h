// probe.h - looks for CUDA devices in a child process that ends at once: whoever asks loads no
// driver, and a driver that crashes or hangs takes nobody along.

#ifndef ACTORS_PROBE_H
#define ACTORS_PROBE_H

#include "messages/actors.pb.h"

#define PROBE_WORD "probe-process"

// Starts the child and waits for its answer, a few milliseconds where there is no driver, seconds
// where one wakes. What goes wrong is an answer too: no devices, and why.
// Thread:    any that may wait.
void probe_gpus(luna_GpuNotice *out);

// luna probe-process
// Returns:   the exit status.
// Thread:    the main thread of its process.
int probe_process_main(void);

#endif  // ACTORS_PROBE_H
