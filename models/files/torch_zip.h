// torch_zip.h - torch's zip files (.pt .pth .ckpt .bin): where their tensors lie, and nothing else.
//
// A torch file is a zip of one pickle and one stored entry a storage. A pickle is a program; here
// it is read by an interpreter that knows containers, numbers, strings and the calls that make
// tensors, and that refuses everything else by name. It never calls anything. Because it is still
// the most complicated reader of hostile bytes in the daemon, a short-lived child runs it, and what
// comes back is a listing: a flat table that the parent checks against the file again.
//
// The listing, little-endian:
//     u32 magic "LTL1", u32 tensors
//     each: u32 name bytes, name, u32 dtype (base/dtype.h), u32 rank, u64 dims[rank],
//           u64 offset in the file, u64 bytes
//
// Names: nested dictionaries and lists are joined by dots ("string_to_param.*", "0.weight"); a
// dictionary "state_dict" at the top is the root; a file that is one tensor calls it "tensor".

#ifndef MODELS_FILES_TORCH_ZIP_H
#define MODELS_FILES_TORCH_ZIP_H

#include "models/files/tensors.h"

#define TORCH_LISTING_MAGIC 0x314c544cu

// Reads the zip's directory and its pickle, and lists the tensors.
// Ownership: on success the caller frees listing->data with free(); the descriptor stays open.
// Errors:    INVALID_ARGUMENT names what is wrong (a compressed storage, a call of "os.system", a
//            tensor that is not contiguous); RESOURCE_EXHAUSTED; FAILED_PRECONDITION when the file
//            became shorter.
// Thread:    any. Reads with pread(2): the descriptor's position is not moved.
enum status torch_zip_list(int descriptor, struct bytes *listing, struct error *error);

// A reader that does it in this process: for command-line tools and tests.
// Thread:    any.
struct torch_reader torch_reader_in_process(void);

#endif  // MODELS_FILES_TORCH_ZIP_H
