// finder.h - finds a network's tensors in a file under the file's names, and collects them under
// the canonical ones.
//
// Whoever knows a network (names_vae.c, names_clip.c) walks its structure once and asks for each
// tensor: what it is called, what the file may call it, and its shape. The finder notes what is
// missing and the first shape that is wrong, so that the walk itself needs no error paths.

#ifndef MODELS_FINDER_H
#define MODELS_FINDER_H

#include "models/model.h"

#define FINDER_NAMED_MAX 3u  // missing tensors that the message names
#define FINDER_NAME_BYTES 192u

struct finder {
    const char *what;                                         // "VAE", "CLIP-L", for messages
    const struct tensor_table *table;                         // the file
    const char *prefix;                                       // of the network's keys in the file
    struct tensor *tensors;                                   // found so far, canonical names
    char (*names)[FINDER_NAME_BYTES];                         // of tensors
    uint32_t count;                                           // of tensors
    uint32_t count_max;                                       // room for tensors
    uint32_t missing;                                         // tensors that the file lacks
    char missing_names[FINDER_NAMED_MAX][FINDER_NAME_BYTES];  // the first of them, as files say
    enum status status;                                       // of the first tensor that is wrong
    struct error *error;                                      // and what is wrong with it
};

// A short string made on the spot; it lives to the end of the expression it stands in:
//     finder_need(self, name_of("decoder.%u", i).text, ...)
struct name {
    char text[FINDER_NAME_BYTES];
};
struct name name_of(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What a tensor should look like.
struct wanted {
    uint32_t rank;     // 1, 2 or 4
    uint64_t dims[4];  // outermost first
    bool squeeze;      // rank 2, and the file may say [a, b, 1, 1]
};

// Begins a walk with room for count_max tensors.
// Ownership: ended by finder_end.
// Errors:    RESOURCE_EXHAUSTED.
enum status finder_begin(struct finder *self, uint32_t count_max);
void finder_end(struct finder *self);

// The file's tensor prefix + name, or NULL. name is a format.
const struct tensor *finder_look(const struct finder *self, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

// Checks a tensor against wanted and adds a view of it under the canonical name. A NULL tensor
// counts as missing under the file's name.
void finder_add(struct finder *self, const char *canonical, const char *file,
                const struct tensor *tensor, const struct wanted *wanted);

// finder_look and finder_add for the common case; file NULL: the same as canonical.
void finder_need(struct finder *self, const char *canonical, const char *file,
                 const struct wanted *wanted);

// Like finder_need for NAME.weight and NAME.bias [first of wanted's dims].
void finder_need_pair(struct finder *self, const char *canonical, const char *file,
                      const struct wanted *weight);

// Makes the table of what was found.
// Errors:    INVALID_ARGUMENT names the first three missing tensors, or the first wrong one.
enum status finder_table(struct finder *self, struct tensor_table *source,
                         struct tensor_table **out);

#endif  // MODELS_FINDER_H
