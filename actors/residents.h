// residents.h - what a device holds besides its models, and who needs it: a counted table with a
// bound.
//
// A resident is made once for whoever asks for its key, is held while somebody uses it, and stays
// afterwards until its room is wanted: then the one that nobody used for the longest time goes. It
// goes at once when it was made for one use, or when it was doomed meanwhile.
//
// Pure bookkeeping. Values are opaque; the owner says how they end.

#ifndef ACTORS_RESIDENTS_H
#define ACTORS_RESIDENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/error.h"

enum resident_state {
    RESIDENT_WANTED,  // somebody has to make it
    RESIDENT_MAKING,  // somebody does
    RESIDENT_READY,   // value is there
};

struct residents;

struct resident {
    struct resident *newer, *older;  // by last use; NULL at the ends
    enum resident_state state;       // see above
    void *value;                     // with READY; owned by the table
    const void *model;               // that it was made for; identity only
    uint64_t bytes;                  // that it holds, or will hold
    uint32_t uses;                   // of those who need it
    bool keep;                       // stays when nobody uses it
    bool doomed;                     // does not, whatever keep says
    uint64_t mark;                   // the owner's own
    uint64_t key_bytes;              // of key
    uint8_t key[];                   // of the content, unique together with model
};

// Ownership: the caller owns *out. end is called with each value that goes.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as all here.
enum status residents_create(struct residents **out, void (*end)(void *context, void *value),
                             void *context, struct error *error);

// Ends everything; nobody uses any of it. NULL is allowed.
void residents_destroy(struct residents **self_p);

// The resident of a key that is not doomed; NULL when there is none.
struct resident *residents_find(struct residents *self, const void *model, struct bytes key);

// Adds one that is wanted, with one use. NULL when there is no memory.
struct resident *residents_add(struct residents *self, const void *model, struct bytes key);

// Says how many bytes a resident holds.
void residents_weigh(struct residents *self, struct resident *resident, uint64_t bytes);

// Gives one that was being made its value; its bytes are what it holds.
void residents_ready(struct residents *self, struct resident *resident, void *value,
                     uint64_t bytes);

// One more use, one less. With the last one a resident that need not stay goes, unless it is being
// made: then it goes when residents_settle says that this is over.
void residents_hold(struct residents *self, struct resident *resident);
void residents_release(struct residents *self, struct resident *resident);

// It is made, or could not be: when nobody uses it, it stays only if it is ready and may.
void residents_settle(struct residents *self, struct resident *resident);

// Nobody finds it any more; it goes with its last use.
void residents_doom(struct residents *self, struct resident *resident);

// Ends the one that nobody used for the longest time; false when all are used.
bool residents_evict_one(struct residents *self);

// Ends as many as it takes for so many more bytes to stay below a bound, as far as that goes.
void residents_make_room(struct residents *self, uint64_t bytes, uint64_t bytes_max);

// The one of last use, and so on by older; NULL when there is none.
struct resident *residents_newest(struct residents *self);

// Of all.
uint64_t residents_bytes(const struct residents *self);
uint32_t residents_count(const struct residents *self);

// Asserts every invariant; for tests.
void residents_check(const struct residents *self);

#endif  // ACTORS_RESIDENTS_H
