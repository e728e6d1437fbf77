// job_table.h - the router's jobs: a fixed pool, found by number and by (user, id); and its users.
//
// Nothing here allocates after creation. A job lives from the arrival of its request to its one
// answer.

#ifndef ACTORS_JOB_TABLE_H
#define ACTORS_JOB_TABLE_H

#include "actors/job_queue.h"
#include "messages/actors.pb.h"
#include "runtime/message.h"

#define JOB_ID_BYTES 16u
#define ROUTE_BYTES_MAX 255u

// Where an answer goes: the client's connection, and whether it sent an empty delimiter (REQ does).
struct route {
    uint8_t length;                       // bytes of connection in use
    uint8_t connection[ROUTE_BYTES_MAX];  // as the ROUTER socket named it
    bool delimiter;                       // the answer needs one too
};

enum job_state {
    JOB_NEW,        // counted nowhere yet
    JOB_PINNING,    // its leases of shared memory are being checked
    JOB_RESOLVING,  // the LoRA store looks up its stack
    JOB_WAITING,    // in the queue
    JOB_RUNNING,    // given to a worker
    JOB_ASKED,      // given to another actor of the core, or about to be answered
};

struct job {
    struct job_entry entry;   // its place in the queue; first member
    struct job *next_by_key;  // hash chains
    struct job *next_by_number;
    struct job *next;  // list of all jobs, or of free ones
    struct job *previous;
    uint64_t number;           // unique while the core lives, above 0
    uint8_t id[JOB_ID_BYTES];  // the client's
    uint32_t user;             // index of the user
    uint64_t digest;           // of what was asked
    enum job_state state;      // see above
    uint32_t operation;        // luna_Operation
    struct route route;        // of the newest message with this id
    struct message frames;     // header, body, payloads as they came
    uint64_t bytes;            // of frames
    bool want_progress;        // PROGRESS messages are welcome
    bool admin;                // asked with the admin role
    uint64_t arrived_ns;       // when the request came
    uint64_t deadline_ns;      // when it is answered DEADLINE_EXCEEDED
    uint64_t started_ns;       // when it was given to the worker; 0 before
    uint64_t held_ns;          // when it first came back for want of memory; 0: never
    uint64_t worker;           // that runs it
    uint32_t attempts;         // times that it died alone
    uint64_t pool_offsets[8];  // of its tensors in shared memory, as leases told
    uint32_t pins_pending;     // PinAnswers still to come
    bool pinned;               // leases were pinned and must be unpinned
    uint32_t ask_to;           // enum router_socket of the actor that answers it; 0: a worker does
    uint32_t loras;            // adapters that it asks for
    bool resolve_sent;         // a ReleaseStack is owed
    luna_StackEntry *stack;    // its adapters, resolved; NULL before
    uint32_t stack_count;      // of stack
    uint64_t keep_model;       // number of the model whose answer may be kept; 0: it may not be
};

struct job_table;

// Makes a table for jobs_max jobs, whose numbers grow from first_number on. Numbers must not come
// twice even across restarts of the core: a worker that outlived one may still answer an old job.
// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    one, as all here.
enum status job_table_create(struct job_table **out, uint32_t jobs_max, uint64_t first_number,
                             struct error *error);

// Destroys the table, and the frames and stacks of the jobs in it. NULL is allowed.
void job_table_destroy(struct job_table **self_p);

// A new job with a number of its own, or NULL when the table is full.
struct job *job_table_add(struct job_table *self, uint32_t user, const uint8_t id[JOB_ID_BYTES]);

// Forgets a job that is in no queue, and releases its frames and its stack (malloc'ed).
void job_table_remove(struct job_table *self, struct job *job);

// Each returns NULL when there is none.
struct job *job_table_find(struct job_table *self, uint32_t user, const uint8_t id[JOB_ID_BYTES]);
struct job *job_table_find_number(struct job_table *self, uint64_t number);

// The first job of all; next follows. The job in hand may be removed while walking if next was read
// before.
struct job *job_table_first(struct job_table *self);

// How many jobs there are.
uint32_t job_table_count(const struct job_table *self);

// A 64-bit digest of frames from index first on, continued from seed. Not for adversaries: it tells
// an honest retry from a careless reuse of an id.
uint64_t message_digest(const struct message *message, uint32_t first, uint64_t seed);

#endif  // ACTORS_JOB_TABLE_H
