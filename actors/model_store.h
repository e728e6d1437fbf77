// model_store.h - a small file that keeps which models clients registered while a core dies and
// another starts.
//
// It lies in the daemon's private directory and goes with it, so that a new daemon begins with what
// its configuration says.

#ifndef ACTORS_MODEL_STORE_H
#define ACTORS_MODEL_STORE_H

#include "actors/registry_lane.h"

#define MODEL_STORE_NAME "models"

struct model_store_entry {
    char name[64];            // of the model
    struct lane_order order;  // files and embeddings, as the client named them; the rest is 0
};

// Replaces the file at once by one with these entries, mode 0600.
// Errors:    INTERNAL names what the system said; the old file is as it was then.
// Thread:    any; it writes a file.
enum status model_store_write(const char *path, const struct model_store_entry *entries,
                              uint32_t count, struct error *error);

// Reads at most entries_max of them; no file holds none.
// Errors:    INVALID_ARGUMENT for a file that is none of ours, INTERNAL for one that cannot be
//            read; *count entries in front of the damage are good.
// Thread:    any; it reads a file.
enum status model_store_read(const char *path, struct model_store_entry *entries,
                             uint32_t entries_max, uint32_t *count, struct error *error);

#endif  // ACTORS_MODEL_STORE_H
