// lora.h - adapters through libluna: a file goes up and comes down in pieces, or is handed over as
// a descriptor when the daemon is on the same machine.
//
// Everything else about adapters is one request and one answer: luna_client_call.

#ifndef CLIENTS_C_LORA_H
#define CLIENTS_C_LORA_H

#include "clients/c/luna.h"

// How a transfer goes; all zero is fine.
struct luna_transfer {
    uint32_t timeout_ms;  // of all its requests together; 0: CODEC_TIMEOUT_MS_DEFAULT
    // Called after every piece, on the caller's thread, within the call; NULL: not wanted.
    void (*on_bytes)(void *context, uint64_t done, uint64_t total);
    void *context;                      // of on_bytes
    const volatile sig_atomic_t *stop;  // becoming non-zero cancels; NULL: never
};

// A file to put.
struct luna_lora_file {
    int descriptor;    // read with pread(2)
    uint64_t bytes;    // of the file, above 0
    const char *hash;  // of its tensors, 64 hexadecimal digits (tensor_table_hash)
    const char *name;  // alias that it gets; NULL or "": none
};

// Puts a file. One whose hash the daemon has moves no bytes. An upload that the daemon lost (it was
// restarted) is begun once more.
//
// *moved (may be NULL) becomes false when no bytes had to go.
// Ownership: the file stays the caller's.
// Errors:    what the daemon answered; FAILED_PRECONDITION when the file became shorter; those of
//            luna_client_call.
// Thread:    the client's.
enum status luna_lora_put(struct luna_client *self, const struct luna_lora_file *file,
                          const struct luna_transfer *transfer, luna_Lora *out, bool *moved,
                          struct error *error);

// Writes the whole file of an adapter to a descriptor, from its position on. After a failure some
// of it may have been written.
// Errors:    what the daemon answered; FAILED_PRECONDITION when another file got the reference
//            meanwhile; INTERNAL names what write(2) said; those of luna_client_call.
// Thread:    the client's.
enum status luna_lora_get(struct luna_client *self, const char *reference, int descriptor,
                          const struct luna_transfer *transfer, luna_Lora *out,
                          struct error *error);

#endif  // CLIENTS_C_LORA_H
