// router_state.h - the router's private state, shared by its six files and nobody else.
//
//     router.c          the actor: creation, timer, letters of the core's other actors
//     router_clients.c  requests in, answers out
//     router_jobs.c     a job's way from arrival to its one answer
//     router_text.c     a text request before it is queued: its stack, an answer that is known
//     router_workers.c  workers: ready, heartbeat, dispatch, result, death
//     router_places.c   jobs whose tensors lie on a device

#ifndef ACTORS_ROUTER_STATE_H
#define ACTORS_ROUTER_STATE_H

#include "actors/conditioning_cache.h"
#include "actors/job_table.h"
#include "actors/reply_cache.h"
#include "actors/topology.h"
#include "base/patience.h"
#include "messages/letter.h"
#include "runtime/actor.h"

#define ROUTER_MODELS_MAX 64u
#define ROUTER_WORKERS_MAX 64u
#define ROUTER_FLIGHTS_MAX 64u

// Times, in milliseconds. A worker beats every 250; four missed beats are a death (spec:
// runtime 2.3).
#define ROUTER_HEARTBEAT_LOST_MS (1500u * PATIENCE)
#define ROUTER_STUCK_MS (15000u * PATIENCE)
#define ROUTER_HELD_MS 5000u
#define ROUTER_TICK_BUSY_MS 20u
#define ROUTER_TICK_IDLE_MS 250u
#define ROUTER_CACHE_TOLD_MS 1000u
// How long clients are not read for want of the configured models, which the registry is opening.
#define ROUTER_OPEN_MS 3000u

// The sockets that the router reads.
enum router_socket {
    ROUTER_CLIENTS,  // ROUTER: requests
    ROUTER_DATA,     // ROUTER: workers' jobs and results
    ROUTER_CONTROL,  // ROUTER: workers' heartbeats
    ROUTER_CORE,     // PAIR, as those that follow
    ROUTER_SCALER,
    ROUTER_REGISTRY,
    ROUTER_LEASES,
    ROUTER_LORAS,
    ROUTER_MONITOR,
    ROUTER_SOCKETS
};

// Who asks, as auth names it in the connection's metadata.
struct user {
    char name[64];     // "uid:1000", "tcp"; "" for a free entry
    uint32_t uid;      // UINT32_MAX when it is none
    bool admin;        // role
    bool shared;       // many people behind one name: fair between its connections
    uint32_t jobs;     // that it has
    uint64_t seen_ns;  // when it asked last
};

// One operation group of one model.
struct service {
    luna_Group group;          // GROUP_NONE for a free entry
    char model[64];            // name
    uint64_t requests_total;   // that were accepted
    uint32_t running;          // given to workers
    uint64_t execute_ns_mean;  // of recent jobs, exponentially weighted
    uint64_t
        needs_bytes;  // largest arena that a job was refused for; 0 when none is waiting for it
    uint64_t arena_bytes;             // of the lane that answered last
    uint64_t held_until_ns;           // jobs that came back for want of memory wait until then
    uint32_t depth_sent;              // what the scaler was told last
    uint32_t running_sent;            // see depth_sent
    uint64_t told_ns;                 // when
    uint64_t placed[JOB_PLACES_MAX];  // jobs that came whose tensors lie there
};

// A job that a worker holds, whatever became of the client.
struct flight {
    uint64_t job;     // number; 0 for a free entry
    uint32_t credit;  // that comes back with its result
    uint64_t order;   // of being given to the worker; the smallest of its flights runs
    bool overtakes;   // goes before those that wait there
};

struct worker {
    uint64_t id;                   // 0 for a free entry; executor epoch << 16 | number
    uint32_t service;              // index
    char device[32];               // name
    uint32_t place;                // of that device
    uint32_t executor_pid;         // of its process
    struct route control, data;    // connections; data.length 0 until its Hello
    uint32_t credit, credit_free;  // in all, and now
    bool draining;                 // gets nothing new
    uint64_t heard_ns;             // its last letter
    uint64_t progress;             // as its last heartbeat told it
    uint64_t progress_ns;          // when that changed, or when it got work
    uint64_t used_ns;              // last dispatch, for least recently used
    uint32_t in_flight;            // entries of flights in use
    struct flight flights[ROUTER_FLIGHTS_MAX];
};

struct router {
    const struct actor_context *context;  // as actor.h gives it
    const struct config *config;          // of the daemon
    struct core_arguments arguments;      // as core.c gave them

    void *sockets[ROUTER_SOCKETS];                // see enum router_socket
    struct loop_socket *watches[ROUTER_SOCKETS];  // in the same order
    void *events;                                 // PUSH, never read
    struct loop_timer *tick;                      // deadlines, heartbeats, demand

    struct job_table *jobs;
    struct job_queue *queue;
    struct reply_cache *replies;
    struct conditioning_cache *conditioning;  // answers to text requests
    luna_CacheCounts cache_counts;            // as the LoRA store was told last
    uint64_t cache_told_ns;                   // when
    struct user users[JOB_USERS_MAX];
    struct service services[JOB_SERVICES_MAX];
    struct worker workers[ROUTER_WORKERS_MAX];
    char places[JOB_PLACES_MAX][32];  // names of devices; "" at JOB_ANYWHERE, and where none is yet
    luna_ModelNotice models[ROUTER_MODELS_MAX];
    uint64_t model_numbers[ROUTER_MODELS_MAX];  // of each as it is now; another one when it changes
    uint64_t model_number_last;                 // given out
    uint32_t models_count;

    uint32_t waiting;           // jobs pinning, resolving, or in the queue
    uint64_t waiting_bytes;     // of their frames
    uint64_t asked_bytes;       // of the frames of jobs that other actors answer
    uint32_t alone_waiting;     // jobs that must run alone and wait
    uint64_t flights_given;     // order of the last one
    uint64_t quarantined;       // number of the job that runs alone; 0: none
    uint64_t created_ns;        // of this router
    bool draining;              // nothing new
    bool drained_told;          // the core knows
    uint32_t own_uid;           // of the daemon
    uint64_t events_dropped;    // the monitor's queue was full
    luna_RequestCounts counts;  // since start, and now
    luna_TransportCounts transport;
    bool counts_changed;  // the monitor does not know yet
    uint64_t malformed;   // messages that had no id to answer to
};

// A request as it was received, before it is a job.
struct request {
    struct message *message;  // route, delimiter?, header, body, payloads
    struct route route;       // where the answer goes
    uint32_t first;           // index of the header's frame
    luna_Header header;       // decoded and validated
    bool has_id;              // header.id can be answered to
    uint32_t user;            // index
};

// Now, on the actor's clock, in nanoseconds.
uint64_t router_now(const struct router *self);
// Posts a letter to another actor of the core; frames (may be NULL) are empty afterwards.
enum status router_post(struct router *self, enum router_socket to, const luna_Letter *letter,
                        struct message *frames);

// Tells the monitor what changed in the counts.
void router_tell_counts(struct router *self);

// Counts tensors that came or went without a worker: one, and all in the frames of a message
// (header, body, payloads).
void router_count_tensor(struct router *self, const luna_Tensor *tensor);
void router_count_payloads(struct router *self, const struct message *frames);

// router_clients.c
void router_on_clients(void *state);
// Answers a request that never became a job.
void router_refuse(struct router *self, const struct request *request, const struct error *error);
// Sends [route][header][body][payloads]; frames is empty afterwards, sent or not.
void router_send(struct router *self, const struct route *route, struct message *frames);
// Sends an answer made of a header and an encoded body (may be empty).
void router_send_reply(struct router *self, const struct route *route, const luna_Header *header,
                       struct bytes body);

// router_jobs.c
// Accepts a request for a worker or refuses it; consumes the message.
void router_submit(struct router *self, struct request *request, const union codec_request *body);
// Hands a request to another actor of the core; consumes the message.
void router_ask(struct router *self, struct request *request, enum router_socket to);
// Ends a job with an error.
void router_fail(struct router *self, struct job *job, const struct error *error);
// Ends a job that no worker has with the frames of its answer (header, body, payloads), which are
// consumed.
void router_finish(struct router *self, struct job *job, struct message *reply);
// Counts a job as waiting, in a state in which it waits.
void router_wait(struct router *self, struct job *job, enum job_state state);
// Puts a job behind in the queue, or back into it after its worker died.
void router_enqueue(struct router *self, struct job *job);
// Cancels one; false when there is no such job.
bool router_cancel(struct router *self, uint32_t user, const uint8_t id[JOB_ID_BYTES]);
void router_on_leases(void *state);
void router_expire(struct router *self);
const char *router_operation_name(uint32_t operation);
void router_event(struct router *self, const char *topic, const struct job *job,
                  const struct error *error, uint32_t execute_ms);

// router_text.c
// True for ENCODE_TEXT and ENCODE_TOKENS.
bool router_encodes(const luna_Header *header);
// What the router hears of a model: answers of one that changed are forgotten.
void router_see_model(struct router *self, uint32_t index, const luna_ModelNotice *notice);
void router_lose_model(struct router *self, uint32_t index);
// Decides whether the answer to a text request may be kept, and makes it come in frames if so.
// Returns the model's number; 0 when it may not.
uint64_t router_plan_keeping(struct router *self, struct request *request,
                             const luna_EncodeText *body, const char *model);
// Answers a job whose answer is known; false when it is not.
bool router_answer_known(struct router *self, struct job *job);
// Keeps the answer (OK) to a job, if it may be kept.
void router_keep_answer(struct router *self, const struct job *job, struct message *answer);
// Asks the LoRA store for a job's stack; the job goes to the queue, or is answered, when it is
// there.
void router_resolve(struct router *self, struct job *job);
void router_on_resolved(struct router *self, const luna_StackResolved *resolved);
// Lets go of a job's stack, once.
void router_release_stack(struct router *self, struct job *job);
// Tells the LoRA store how the cache stands, if that has changed.
void router_tell_cache(struct router *self);

// router_workers.c
void router_on_control(void *state);
void router_on_data(void *state);
void router_dispatch(struct router *self, uint32_t service);
void router_dispatch_all(struct router *self);
// Takes a job from the worker that runs it, for good: the worker is told to stop.
void router_recall(struct router *self, struct job *job);
void router_check_workers(struct router *self);
// Every worker of an executor is dead.
void router_device_down(struct router *self, uint64_t epoch);
// The index of a service; makes it when create is set. JOB_SERVICES_MAX when there is none (left).
uint32_t router_service(struct router *self, luna_Group group, const char *model, bool create);
// Tells the scaler what waits.
void router_tell_demand(struct router *self, uint32_t service, bool always);

// router_places.c
// The number of a device, for job_entry.place; JOB_ANYWHERE when there are too many.
uint32_t router_place(struct router *self, const char *device);
// True for a worker that may get jobs of the service.
bool router_serves(const struct worker *worker, uint32_t service);
// Counts a job that came, and tells what came for each device.
void router_count_place(struct router *self, const struct job_entry *entry);
void router_tell_places(const struct router *self, uint32_t service, luna_Demand *demand);
// The entry's own place while a worker of its service is there, else JOB_ANYWHERE: on any other
// device its leases are none.
uint32_t router_place_of(const struct router *self, const struct job_entry *entry);
// True while workers of its service are on other devices only.
bool router_is_astray(const struct router *self, const struct job_entry *entry);
// Ends a job that is astray: its client brings the tensors by the host.
void router_turn_away(struct router *self, struct job *job);
// A worker lacked memory for a job that it no longer has. True when the job has been answered:
// another device may have the memory, and its client brings the tensors by the host.
bool router_lacks_memory_there(struct router *self, struct job *job);

#endif  // ACTORS_ROUTER_STATE_H
