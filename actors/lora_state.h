// lora_state.h - the LoRA store's private state, shared by its files and nobody else.
//
//     lora_store.c    the actor: creation, timers, lanes, executors, eviction
//     lora_wants.c    from a reference to a content: scanning and loading where it has to be
//     lora_stacks.c   ResolveStack, ReleaseStack
//     lora_asks.c     what clients ask
//     lora_uploads.c  LORA_PUT
//     lora_socket.c   descriptors, for executors and for clients of this machine

#ifndef ACTORS_LORA_STATE_H
#define ACTORS_LORA_STATE_H

#include "actors/ask.h"
#include "actors/door.h"
#include "actors/lora_files.h"
#include "actors/lora_lane.h"
#include "actors/pair.h"
#include "actors/topology.h"
#include "runtime/socket.h"

#define LORA_CHUNK_BYTES (8u << 20)  // of Put and Get, as Ping tells
#define LORA_FLIGHTS_MAX 1024u       // orders that the lanes have
#define LORA_WANTS_MAX 1024u         // references that wait for a scan or a load
#define LORA_STACKS_MAX 4096u        // requests between ResolveStack and ReleaseStack
#define LORA_STACK_MAX 64u           // entries of one
#define LORA_UPLOADS_MAX 64u         // that are open
#define LORA_UPLOADS_OF_USER_MAX 8u
#define LORA_UPLOAD_REST_MS 60000u  // after which one that rests is dropped
#define LORA_EXECUTORS_MAX 8u
#define LORA_SCAN_ASKS_MAX 64u

struct lora_store;
struct lora_want;

// What a reference came to.
struct lora_target {
    struct lora_file *file;        // NULL when it is not one of a file
    struct lora_content *content;  // NULL for a file that was never read
    bool loaded;                   // it had to be loaded for this
};

// Told once for each want: target is NULL when error says why.
typedef void lora_want_done(struct lora_store *self, struct lora_want *want,
                            const struct lora_target *target, const struct error *error);

// A reference and who asks.
struct lora_want {
    struct lora_want *next;           // in the store's list
    char reference[LORA_NAME_BYTES];  // name or hash
    bool load;                        // it has to be resident
    bool exact;                       // from the very file that is named, not from one like it
    bool scanned;                     // a scan was ordered since it came
    uint64_t scan;                    // number of the scan that it waits for; 0: none
    uint64_t ticket;                  // of the load that it waits for; 0: none
    lora_want_done *done;             // whom to tell
    void *context;                    // for done: the stack, the ask, the connection
    uint64_t key;                     // for done: number of the context, where it may be gone
    uint32_t index;                   // for done
};

// A request of a client that waits for something.
struct lora_ask {
    struct ask ask;                // to be answered
    uint32_t user;                 // uid
    union codec_request request;   // of it
    struct lora_content *content;  // GET: held
    uint64_t offset, bytes;        // GET: the range
    uint64_t upload;               // PUT: number; 0: none
    uint64_t reserved;             // PUT of a whole file: bytes
};

struct lora_stack_entry {
    struct lora_content *content;  // held; NULL when it counts for nothing
    float strength_l, strength_g;  // all factors multiplied
    uint64_t bytes;                // of the encoder tensors
    uint32_t keys_other;           // in the file
    bool one_shot;                 // came with the request
};

struct lora_stack {
    uint64_t job;          // number
    bool released;         // nobody waits for the answer
    uint32_t count;        // of entries
    uint32_t pending;      // entries that are not known yet
    uint32_t error_index;  // entry that error is about
    struct error error;    // of the first entry that failed
    struct lora_stack_entry entries[LORA_STACK_MAX];
};

struct lora_upload {
    uint64_t id;        // random; 0: the entry is free
    uint32_t user;      // uid
    struct hash hash;   // that the content has to have
    uint64_t bytes;     // of the file; reserved in the table
    uint64_t received;  // so far
    uint32_t busy;      // orders about it that the lane has
    bool closing;       // goes when it is not busy any more
    int descriptor;     // memory
    uint32_t lane;      // that writes it
    uint64_t used_ns;   // when something came
};

// An order that a lane has.
struct lora_flight {
    uint64_t ticket;             // 0: the entry is free
    uint32_t lane;               // that has it
    enum lora_order_kind kind;   // of the order
    uint32_t directory;          // LOAD
    char path[LORA_PATH_BYTES];  // LOAD
    uint64_t scan;               // SCAN: number
    struct lora_ask *ask;        // that it is for, owned; NULL
    struct lora_stack *stack;    // TAKE of a one-shot; else NULL
    uint32_t index;              // of its entry
    uint64_t reserved;           // TAKE of a one-shot: bytes
};

struct lora_executor {
    char device[32];            // "" for a free entry
    uint8_t connection[32];     // of the ROUTER
    uint8_t connection_bytes;   // of it
    luna_AdapterCounts counts;  // as told last
};

struct lora_store {
    const struct actor_context *context;  // as actor.h gives it
    const struct config *config;          // of the daemon
    struct core_arguments core;           // as core.c gave them
    struct lora_table *table;             // contents, names
    struct lora_files *files;             // of the directories
    void *router;                         // PAIR
    void *executors_socket;               // ROUTER
    void *events;                         // PUSH, never read
    struct loop_socket *watch_router;     // of router
    struct loop_socket *watch_executors;  // of executors_socket
    struct loop_timer *housekeeping;      // time to live, uploads that rest
    struct loop_timer *trim;              // soon after something was loaded
    struct loop_timer *rescan;            // soon after something changed
    struct loop_timer *tell;              // totals to the monitor

    _Atomic bool stop;                   // lanes are to give up what takes long
    struct actor *lanes[LORA_LANES];     // threads
    struct pair lane_pairs[LORA_LANES];  // to the lanes
    uint32_t lane_loads[LORA_LANES];     // orders that each has
    uint64_t tickets;                    // the last one given out
    struct lora_flight flights[LORA_FLIGHTS_MAX];

    int inotify;                            // descriptor; -1: nobody tells of changes
    struct loop_descriptor *watch_inotify;  // of inotify
    uint64_t scans_ordered, scans_taken;    // numbers of the last ones
    uint64_t scan_due;                      // a scan of at least this number is wanted
    struct lora_scan_facts {
        uint32_t found, added, removed, refused, unwatched;
        double ms;
    } last_scan;                                     // what it told
    struct lora_want *wants;                         // that wait
    uint32_t wants_count;                            // of them
    struct lora_ask *scan_asks[LORA_SCAN_ASKS_MAX];  // LORA_SCAN, owned; NULL: free
    uint64_t scan_ask_numbers[LORA_SCAN_ASKS_MAX];   // of the scans that they wait for

    uint32_t stacks_count;
    struct lora_stack *stacks[LORA_STACKS_MAX];  // in no order, owned
    struct lora_upload uploads[LORA_UPLOADS_MAX];

    struct door door;  // executors and clients
    struct lora_executor executors[LORA_EXECUTORS_MAX];
    luna_CacheCounts cache;  // as the router told last
};

// lora_store.c

// Now, on the actor's clock, in nanoseconds.
uint64_t lora_store_now(const struct lora_store *self);

// A tensor of a request, whose bytes an order is about.
struct lora_cargo {
    const luna_Header *header;     // of the request
    const char *tensor;            // its name there, where it is
    struct message *frames;        // of the request
    const uint64_t *pool_offsets;  // of the header's tensors, where they are in shared memory
    uint32_t pool_offsets_count;   // of those
};

// Sends an order; the flight it becomes is *out (may be NULL). With cargo (NULL: none) the order is
// told where its bytes are, and how many, and a frame of them goes along.
// Errors:    RESOURCE_EXHAUSTED.
enum status lora_store_order(struct lora_store *self, struct lora_order *order,
                             const struct lora_cargo *cargo, struct lora_flight **out,
                             struct error *error);

// Makes what a result brought resident, or finds that it is already. What is not taken out of the
// result is closed with it.
// Errors:    RESOURCE_EXHAUSTED.
struct lora_adoption {
    bool in_memory;    // the result's file is memory of ours
    bool one_shot;     // see struct lora_content
    bool uploaded;     // see there
    uint32_t user;     // uid of who put it
    const char *name;  // in messages
};
enum status lora_store_adopt(struct lora_store *self, struct lora_result *result,
                             const struct lora_adoption *how, struct lora_content **out,
                             struct error *error);

// Evicts until so many bytes fit.
// Errors:    RESOURCE_EXHAUSTED, with nothing evicted for more than the store ever holds.
enum status lora_store_make_room(struct lora_store *self, const char *name, uint64_t bytes,
                                 struct error *error);

// Unloads a resident content that nobody holds, forgets it unless a file has it, and tells why.
// evicted: it counts and is told as an eviction. The pointer is not to be used afterwards.
void lora_store_unload(struct lora_store *self, struct lora_content *content, const char *why,
                       bool evicted);

// Lets go of a content; what was doomed and what was a one-shot goes with its last hold.
void lora_store_release(struct lora_store *self, struct lora_content *content);

// Unloads now, or when the last hold goes.
void lora_store_doom(struct lora_store *self, struct lora_content *content, const char *why);

// Closes descriptors in a lane, where it may take its time. -1 is allowed.
void lora_store_close(struct lora_store *self, int a, int b);

// Something changed: the monitor is told soon, the threshold looked at.
void lora_store_changed(struct lora_store *self);

// An event for everybody.
void lora_store_event(struct lora_store *self, const char *topic, const char *message,
                      const char *signal, double value, double threshold);

// lora_wants.c

// Looks a reference up; tells done before it returns when nothing has to be waited for.
// want holds reference, load, done, context, key, index; the rest is zero. It is copied.
void lora_want_start(struct lora_store *self, const struct lora_want *want);

// Orders a scan that begins after this moment; returns its number.
uint64_t lora_want_scan(struct lora_store *self);

// Reads what changed in the directories since it was read last.
void lora_want_watch(struct lora_store *self);

// What a lane found, or opened.
void lora_want_on_scan(struct lora_store *self, const struct lora_flight *flight,
                       struct lora_result *result);
void lora_want_on_load(struct lora_store *self, const struct lora_flight *flight,
                       struct lora_result *result);

// Ends every want that waits, with UNAVAILABLE.
void lora_want_free_all(struct lora_store *self);

// Counts for every content how many files have it, and lets go of those that nobody names.
void lora_want_recount(struct lora_store *self);

// lora_stacks.c
void lora_stacks_on_resolve(struct lora_store *self, const luna_ResolveStack *letter,
                            struct message *frames);
void lora_stacks_on_release(struct lora_store *self, uint64_t job);
void lora_stacks_on_take(struct lora_store *self, const struct lora_flight *flight,
                         struct lora_result *result);

// lora_asks.c
void lora_asks_on_ask(struct lora_store *self, const luna_Ask *letter, struct message *frames);
void lora_asks_on_read(struct lora_store *self, struct lora_ask *ask, struct lora_result *result);
void lora_asks_on_scan(struct lora_store *self);
// Answers with an adapter, or with error when it is not NULL; frees the ask.
void lora_asks_answer(struct lora_store *self, struct lora_ask *ask, const luna_LoraReply *reply,
                      const struct error *error);
void lora_asks_fill_totals(const struct lora_store *self, const struct lora_counts *counts,
                           luna_LoraTotals *out);
// What clients see of a target; name may be NULL.
void lora_asks_describe(struct lora_store *self, const struct lora_target *target, const char *name,
                        luna_Lora *out);

// lora_uploads.c

// Takes the ask over.
void lora_uploads_on_put(struct lora_store *self, struct lora_ask *ask, const luna_Ask *letter,
                         struct message *frames);
void lora_uploads_on_write(struct lora_store *self, struct lora_ask *ask,
                           struct lora_result *result);
void lora_uploads_on_finish(struct lora_store *self, struct lora_ask *ask,
                            struct lora_result *result);
void lora_uploads_on_take(struct lora_store *self, struct lora_ask *ask,
                          struct lora_result *result);
// Drops those that rest; all: every one.
void lora_uploads_drop(struct lora_store *self, bool all);

// lora_socket.c
// Makes the door; door_close ends what follows.
void lora_socket_init(struct lora_store *self);
enum status lora_socket_listen(struct lora_store *self, struct error *error);

#endif  // ACTORS_LORA_STATE_H
