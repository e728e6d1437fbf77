// lora_files.h - the files that the last scan found, and what people call them.
//
// A reference is looked for as a path below one of the directories (absolute, or as the
// configuration writes the directory), as a relative path, as a file name, as a stem (a file name
// without its suffix). Two files of one name are an error that lists both. Hashes that are known
// stay with the identity of a file, whatever it is called.
//
// Pure bookkeeping.

#ifndef ACTORS_LORA_FILES_H
#define ACTORS_LORA_FILES_H

#include "actors/lora_scan.h"

struct lora_file {
    uint32_t directory;             // index
    char *path;                     // below it
    const char *name;               // last component of path
    uint32_t stem_bytes;            // of name without its suffix
    int watch;                      // inotify's number of its folder; -1: none
    struct lora_identity identity;  // as it was found, or opened last
    bool has_hash;                  // it was read:
    struct hash hash;               // over all its tensors
    uint64_t dirty;                 // number of the scan before which it is not to be believed; 0
};

struct lora_files;

// directories live as long as the catalog.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one at a time, as everything here.
enum status lora_files_create(struct lora_files **out, const char *const *directories,
                              uint32_t directories_count, struct error *error);

// A NULL *self_p is allowed.
void lora_files_destroy(struct lora_files **self_p);

struct lora_files_change {
    uint32_t added, removed;  // files
};

// Takes what the scan of that number found, which is empty afterwards. All struct lora_file are new
// ones; those that are dirty for a later scan stay so.
// Errors:    RESOURCE_EXHAUSTED; then the catalog is as it was.
enum status lora_files_take(struct lora_files *self, struct lora_scan *scan, uint64_t number,
                            struct lora_files_change *change, struct error *error);

// All files, in the order of their directories and paths.
uint32_t lora_files_count(const struct lora_files *self);
struct lora_file *lora_files_at(struct lora_files *self, uint32_t index);

// The file of exactly that path below that directory; NULL.
struct lora_file *lora_files_find_path(struct lora_files *self, uint32_t directory,
                                       const char *path);

// Some file with that hash; NULL.
struct lora_file *lora_files_find_hash(struct lora_files *self, const struct hash *hash);

// By which of its names a reference is a file's.
enum lora_files_level {
    LORA_FILES_PATH,  // a path below a directory, or a relative path
    LORA_FILES_NAME,  // a file name, or else a stem
};

// Finds a file; *out is NULL when there is none.
// Errors:    INVALID_ARGUMENT lists two files of that name.
enum status lora_files_find(struct lora_files *self, const char *reference,
                            enum lora_files_level level, struct lora_file **out,
                            struct error *error);

// The shortest reference that finds the file, of at most LORA_NAME_BYTES; else the beginning of its
// path.
void lora_files_name(struct lora_files *self, const struct lora_file *file,
                     char out[LORA_NAME_BYTES]);

// Something in a folder changed: the file of that name, if there is one, is dirty until the scan of
// that number.
void lora_files_changed(struct lora_files *self, int watch, const char *name, uint64_t number);

// Writes up to three stems that resemble the reference, quoted, with commas; "" when there are
// none.
void lora_files_resembling(struct lora_files *self, const char *reference, char *out,
                           size_t out_bytes);

// True when both differ in a few letters or in case only.
bool lora_names_resemble(const char *a, size_t a_bytes, const char *b, size_t b_bytes);

#endif  // ACTORS_LORA_FILES_H
