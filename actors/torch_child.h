// torch_child.h - reads torch files in a short-lived child process with limits.
//
// A pickle is the most complicated thing that the daemon reads from strangers. So a child that has
// no descriptors but the file and a pipe, and little memory and time, reads it; what it says is
// checked again by tensor_table_open.

#ifndef ACTORS_TORCH_CHILD_H
#define ACTORS_TORCH_CHILD_H

#include "models/files/tensors.h"

// The first word of the child's command line.
#define TORCH_CHILD_WORD "torch-list"

#define TORCH_CHILD_SECONDS 20u                       // that a child may take, waiting included
#define TORCH_CHILD_MEMORY_BYTES (UINT64_C(1) << 30)  // that it may map
#define TORCH_CHILD_LISTING_BYTES_MAX (UINT64_C(64) << 20)

// Makes *out a reader that starts this program again as the child; the program's main hands it to
// torch_child_main.
// Errors:    list gives those of torch_zip_list; RESOURCE_EXHAUSTED when the child broke its
// limits; INTERNAL when
//            it cannot be started.
// Thread:    any; list waits for the child.
void torch_child_reader(struct torch_reader *out);

// The child: lists the file behind its descriptor 3 to the pipe behind 4.
// Returns:   the exit status.
// Thread:    the main thread of the child.
int torch_child_main(void);

#endif  // ACTORS_TORCH_CHILD_H
