// embeddings.h - textual inversion: finding "embedding:NAME" in a folder and reading its vectors.

#ifndef MODELS_TEXT_EMBEDDINGS_H
#define MODELS_TEXT_EMBEDDINGS_H

#include "models/text/text.h"

// The most vectors that one embedding may have; real ones have below a hundred.
#define EMBEDDING_VECTORS_MAX 1024u

// Vectors for the token embedding of one encoder.
struct embedding_vectors {
    float *values;   // [count, width], owned; free() it
    uint32_t count;  // vectors
    uint32_t width;  // of each; the encoder's, or not
};

// The file that a name stands for: NAME, NAME.safetensors, NAME.pt or NAME.bin in the folder, else
// in the first of its subfolders in byte order. NAME may have folders in front. Returns its index,
// or -1.
// Thread:    any.
int64_t text_embeddings_find(const struct text_embeddings *self, struct bytes name);

// The file's path below the folder. Lives as long as the embeddings.
// Thread:    any.
const char *text_embeddings_path(const struct text_embeddings *self, uint32_t index);

// Reads the vectors of one file for an encoder: "clip_l", "clip_g" or "clip_h" of the given width.
// A one-dimensional tensor is one vector. Files are kept open once read.
// Ownership: the caller frees out->values.
// Errors:    those of tensor_table_open; INVALID_ARGUMENT for tensors that are no vectors.
// Thread:    any.
enum status text_embeddings_read(struct text_embeddings *self, uint32_t index, const char *key,
                                 uint32_t width, struct embedding_vectors *out,
                                 struct error *error);

// The vectors of an opened file: what text_embeddings_read reads.
// Ownership, errors, thread: as there.
enum status embedding_select(const struct tensor_table *table, const char *key, uint32_t width,
                             struct embedding_vectors *out, struct error *error);

#endif  // MODELS_TEXT_EMBEDDINGS_H
