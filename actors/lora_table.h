// lora_table.h - what the LoRA store knows: contents, who holds them, what they cost, who goes
// first.
//
//     alias ---+
//     alias ---> content <--- file          (one content, any number of names)
//                  |  resident: descriptors, bytes
//                  |  holds: requests that run with it     pins: users who want it to stay
//
// A content is told by its hashes. It is resident while the store has its descriptors; a content
// of a file may be known without being resident, an upload may not. Bytes of residents and of
// uploads that are still coming together stay below the limit. Contents keep their address as long
// as they are known.
//
// Pure bookkeeping: it closes nothing and tells nobody; the store does when it asks for victims.

#ifndef ACTORS_LORA_TABLE_H
#define ACTORS_LORA_TABLE_H

#include "base/bytes.h"
#include "base/error.h"
#include "models/lora/lora.h"

#define LORA_NAME_BYTES 256u  // of an alias or a reference, its NUL included
#define LORA_PINS_MAX 8u      // users that pin one content
#define LORA_LOADS_MAX 1024u  // times of loading that percentiles are taken from

// What reading a file told, once.
struct lora_facts {
    bool has_hash;                        // false: of a one-shot, whose whole file nobody hashed
    struct hash hash;                     // over all its tensors
    struct hash encoder_hash;             // over those of the text encoders
    uint64_t file_bytes;                  // of the file
    bool torch;                           // format; else safetensors
    struct lora_description description;  // see there
};

// A file as it was when it was looked at.
struct lora_identity {
    uint64_t device;       // with inode: which file
    uint64_t inode;        // see device
    uint64_t size;         // bytes
    uint64_t modified_ns;  // since 1970
};

struct lora_pin {
    uint32_t user;   // uid
    uint32_t count;  // how often
};

struct lora_content {
    struct lora_facts facts;              // file_bytes and torch are those of file
    bool resident;                        // the descriptors are open
    int file;                             // the whole file, read-only; -1
    int encoder;                          // a safetensors file of its encoder tensors; -1: file is
    bool in_memory;                       // file is memory of ours; else a file with this identity:
    struct lora_identity identity;        // as file was opened
    uint64_t memory_bytes;                // that it counts while resident
    bool uploaded;                        // came by LORA_PUT
    bool one_shot;                        // came with a request, goes with it
    bool doomed;                          // evicted while held: goes with its last request
    uint32_t owner;                       // uid of who put it
    uint32_t files;                       // files of the directories that hold it
    uint32_t aliases;                     // aliases that name it
    uint32_t holds;                       // requests, reads and answers that need it
    uint32_t pins_count;                  // entries of pins
    struct lora_pin pins[LORA_PINS_MAX];  // in no order
    uint64_t uses, hits;         // requests with it; of these, those that found it resident
    uint64_t first_ns, used_ns;  // when it was first known, and needed last
    double load_ms;              // of the last load
};

struct lora_alias {
    char name[LORA_NAME_BYTES];    // unique
    uint32_t owner;                // uid of who gave it
    struct lora_content *content;  // what it names
};

struct lora_limits {
    uint64_t bytes_max;        // of residents and uploads that are coming
    double threshold;          // share of bytes_max above which trim has victims
    uint32_t entries_max;      // residents
    uint64_t time_to_live_ns;  // without use; 0: no limit
};

struct lora_counts {
    uint64_t entries, bytes;      // residents
    uint64_t reserved_bytes;      // of what arrives
    uint64_t hits, misses;        // since start
    uint64_t evictions, loads;    // since start
    uint64_t uploads, one_shots;  // uploads that are known; one-shots since start
    uint64_t pinned;              // contents
    double load_ms_p50, load_ms_p99;
};

struct lora_table;

// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one at a time, as everything here.
enum status lora_table_create(struct lora_table **out, const struct lora_limits *limits,
                              struct error *error);

// Destroys the table, whatever is in it; descriptors stay open. A NULL *self_p is allowed.
void lora_table_destroy(struct lora_table **self_p);

// ---- contents

// The content with that hash, or else with that encoder hash (a resident one first); NULL when it
// is not known. Doomed uploads are not found.
struct lora_content *lora_table_find(const struct lora_table *self, const struct hash *hash);

// A resident content with that encoder hash, doomed or not; NULL.
struct lora_content *lora_table_find_encoder(const struct lora_table *self,
                                             const struct hash *encoder_hash);

// The content with exactly that hash, doomed or not; NULL.
struct lora_content *lora_table_find_exact(const struct lora_table *self, const struct hash *hash);

// Makes a content known, not resident.
// Errors:    RESOURCE_EXHAUSTED.
enum status lora_table_add(struct lora_table *self, const struct lora_facts *facts, uint64_t now_ns,
                           struct lora_content **out, struct error *error);

// Forgets a content that is not resident, not held and of no file, with its aliases; else does
// nothing. Returns whether it is forgotten.
bool lora_table_forget(struct lora_table *self, struct lora_content *content);

// All contents, in no order.
uint32_t lora_table_count(const struct lora_table *self);
struct lora_content *lora_table_at(const struct lora_table *self, uint32_t index);

// The descriptors were opened: counts memory_bytes. There is room: lora_table_fits.
void lora_table_load(struct lora_table *self, struct lora_content *content, uint64_t memory_bytes,
                     double load_ms);

// The descriptors are about to be closed; evicted: it counts as an eviction.
void lora_table_unload(struct lora_table *self, struct lora_content *content, bool evicted);

// ---- use

// A request, a read or an answer needs the content, and does so no more.
void lora_table_hold(struct lora_table *self, struct lora_content *content);
void lora_table_release(struct lora_table *self, struct lora_content *content);

// A request has it in its stack; hit: it was resident.
void lora_table_use(struct lora_table *self, struct lora_content *content, bool hit,
                    uint64_t now_ns);
// Counts an adapter that came with a request.
void lora_table_use_one_shot(struct lora_table *self);

// Errors:    RESOURCE_EXHAUSTED when too many users pin it.
enum status lora_table_pin(struct lora_table *self, struct lora_content *content, uint32_t user,
                           struct error *error);
// False when the user has no pin on it.
bool lora_table_unpin(struct lora_table *self, struct lora_content *content, uint32_t user);
uint32_t lora_content_pins(const struct lora_content *content);

// ---- aliases

// Gives a content a name; a name that the user gave before moves. The content that lost it stays
// known: the caller looks whether anybody still names it.
// Errors:    PERMISSION_DENIED for a name that another user gave to another content, unless admin;
//            RESOURCE_EXHAUSTED.
enum status lora_table_name(struct lora_table *self, const char *name, uint32_t user, bool admin,
                            struct lora_content *content, struct error *error);
const struct lora_alias *lora_table_find_name(const struct lora_table *self, const char *name);
// Forgets one name, or all of a content.
void lora_table_unname(struct lora_table *self, const char *name);
void lora_table_unname_all(struct lora_table *self, const struct lora_content *content);
uint32_t lora_table_names(const struct lora_table *self);
const struct lora_alias *lora_table_name_at(const struct lora_table *self, uint32_t index);

// ---- room

// Errors:    RESOURCE_EXHAUSTED for bytes above the limit: nothing needs to be evicted for that.
enum status lora_table_check_size(const struct lora_table *self, const char *name, uint64_t bytes,
                                  struct error *error);

// True when one more resident of so many bytes fits.
bool lora_table_fits(const struct lora_table *self, uint64_t bytes);

// Whom to evict so that so many bytes come to fit: the least recently used that nobody holds or
// pins. NULL when nobody can go.
struct lora_content *lora_table_victim(const struct lora_table *self);

// Whom to evict because the bytes are above the threshold; NULL when they are not, or nobody can
// go. The one that was used last stays: it is within the limit.
struct lora_content *lora_table_trim(const struct lora_table *self);

// Whom to evict because it was not used for so long; NULL.
struct lora_content *lora_table_expired(const struct lora_table *self, uint64_t now_ns);

// Keeps room for an upload that is coming, and gives it back. It fits: lora_table_fits.
void lora_table_reserve(struct lora_table *self, uint64_t bytes);
void lora_table_unreserve(struct lora_table *self, uint64_t bytes);

// How many there are of everything, since start and now.
struct lora_counts lora_table_counts(const struct lora_table *self);

// Asserts everything that must hold: sums agree, residents fit, names are unique and name what is
// known.
void lora_table_check(const struct lora_table *self);

#endif  // ACTORS_LORA_TABLE_H
