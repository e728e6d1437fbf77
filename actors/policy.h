// policy.h - when a worker is spawned, and where; when one retires; when waiting is hopeless.
//
// A pure module: it is told what happens (demand, devices, models, workers) and the time, and says
// what to do. It knows no sockets, no threads and no clock of its own, so each rule has its test.
//
// The rules, for each service (one operation group of one model):
//
//   - work waits and nobody is there: spawn now ("queue_depth" above 0).
//   - fewer than min workers: spawn ("workers_min").
//   - the queue is queue_threshold long, or its oldest job is scale_up_delay old, and either has
//   lasted for
//     scale_up_delay: spawn one more, up to max; another device first, then a second lane.
//   - a device where the tensors of jobs lie comes before another device. While jobs come for it,
//   no further apart than idle_timeout, and have for scale_up_delay, one worker is spawned there
//   ("device_wanted_s"), up to max, beside those elsewhere, which serve such jobs by the host only.
//   No worker has to go for this, and a start that failed ends the wish. The last worker there
//   stays while the wish lasts; another one that is spare retires in its place.
//   - each only where the device's free memory covers plan + margin. plan is the model's weights
//   where they are not
//     loaded, and the largest arena that a waiting job needs. Weights of models that nobody uses
//     count as free, since the executor drops them when it must; what spawns under way will take
//     does not.
//   - what weights take on a device depends on its type of storage. They count as in their file, of
//     which a device may need half, until its executor has said more, when a worker came up or
//     found no room: one that has room for the half is asked, by a spawn that it may refuse.
//   - memory lacks: an idle worker of another service without demand retires, the longest idle
//   first. Where there
//     is none, the refusal is told, and after 5 s without a single worker those who wait are
//     answered.
//   - fewer jobs than workers for idle_timeout: the last worker to come retires, when nothing runs
//   at that
//     moment; never below min.
//   - a worker that failed to start: those who wait are answered with its reason, and the next try
//   comes after 1 s,
//     2 s, ... 30 s; for lack of memory every 2 s.

#ifndef ACTORS_POLICY_H
#define ACTORS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define POLICY_NAME_BYTES 64u    // of a model
#define POLICY_DEVICE_BYTES 32u  // of a device's name
#define POLICY_MESSAGE_BYTES 224u
#define POLICY_MODELS_MAX 128u
#define POLICY_SERVICES_MAX (2u * POLICY_MODELS_MAX)
#define POLICY_DEVICES_MAX 8u
#define POLICY_WORKERS_MAX 256u
#define POLICY_MARGIN_AUTO UINT64_MAX  // as each device tells

enum policy_group { POLICY_VAE, POLICY_TEXT, POLICY_GROUP_COUNT };

struct policy_limits {
    uint32_t workers_min;  // kept up even without work
    uint32_t workers_max;  // of one service, over all devices
};

struct policy_settings {
    bool serves[POLICY_GROUP_COUNT];                  // by the type of this node
    struct policy_limits limits[POLICY_GROUP_COUNT];  // for every service of the group
    uint32_t queue_threshold;                         // jobs
    uint32_t scale_up_delay_ms;
    uint32_t idle_timeout_ms;
    uint64_t margin_bytes;        // of a device's memory that stays free; POLICY_MARGIN_AUTO
    uint64_t memory_limit_bytes;  // of one device that this daemon may use; 0: all
};

// Of a service's jobs, those whose tensors lie on one device.
struct policy_device_demand {
    char name[POLICY_DEVICE_BYTES];  // of the device
    uint64_t jobs_total;             // that came since the start
    uint32_t depth;                  // waiting jobs
};

// What the router tells about one service.
struct policy_demand {
    uint32_t depth;           // waiting jobs
    uint32_t age_ms;          // of the oldest
    uint32_t running;         // jobs that workers hold
    uint64_t needs_bytes;     // the largest arena that a waiting job needs
    uint64_t requests_total;  // since the start
    uint32_t devices_count;   // entries of devices
    struct policy_device_demand devices[POLICY_DEVICES_MAX];  // that jobs came for
};

// What an executor tells about its device.
struct policy_device {
    char name[POLICY_DEVICE_BYTES];
    uint64_t epoch;                    // of its executor
    uint64_t memory_free_bytes;        // as the driver or the system tells it
    uint64_t used_bytes;               // weights and arenas of this daemon on it
    uint64_t margin_bytes;             // where the settings leave it to the device
    bool refuses[POLICY_GROUP_COUNT];  // the configuration keeps the group off this device
};

// What the registry tells about one model.
struct policy_model {
    char name[POLICY_NAME_BYTES];
    bool offers[POLICY_GROUP_COUNT];
    uint64_t weights_bytes[POLICY_GROUP_COUNT];  // of the part that the group needs, in the file
    char loaded_on[POLICY_DEVICES_MAX][POLICY_DEVICE_BYTES];
    uint32_t loaded_count;  // entries of loaded_on
};

// A worker that came or went.
struct policy_worker {
    uint64_t worker;  // its number
    enum policy_group group;
    char model[POLICY_NAME_BYTES];
    char device[POLICY_DEVICE_BYTES];
    uint64_t weights_bytes;  // that its networks take on that device; 0: not told
};

enum policy_action {
    POLICY_SPAWN,   // a worker for group, model on device
    POLICY_RETIRE,  // worker, on device
    POLICY_REFUSE,  // an event only: no worker could be spawned, and why
    POLICY_ANSWER,  // those who wait for the service are to be answered with code, message
};

struct policy_decision {
    enum policy_action action;
    enum policy_group group;
    char model[POLICY_NAME_BYTES];
    char device[POLICY_DEVICE_BYTES];  // "" when no device is meant
    uint64_t worker;                   // with POLICY_RETIRE
    uint32_t workers;                  // of the service once this is done
    const char *signal;                // what decided, "queue_depth" and the like
    double value;                      // of the signal ...
    double threshold;                  // ... which this was compared with
    uint64_t free_bytes;               // memory behind it; 0 where memory played no part
    uint64_t plan_bytes;
    uint64_t margin_bytes;
    enum status code;                    // with POLICY_ANSWER
    uint32_t retry_after_ms;             // with POLICY_ANSWER
    char message[POLICY_MESSAGE_BYTES];  // one sentence for people
};

enum policy_state { POLICY_IDLE, POLICY_LOADING, POLICY_SERVING, POLICY_FAILED };

// A service as people see it.
struct policy_service {
    enum policy_group group;
    const char *model;   // lives until the model is removed
    const char *device;  // of the first worker; "" when there is none
    uint32_t workers;    // that are up
    uint32_t workers_min;
    uint32_t workers_max;
    struct policy_demand demand;  // as last told
    enum policy_state state;
    enum status code;     // why it failed last; STATUS_OK when it did not
    const char *message;  // why it failed, or has to wait; "" otherwise
};

struct policy;

// Creates a policy that knows no devices and no models.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any; one thread at a time from then on, as everything here.
enum status policy_create(struct policy **out, const struct policy_settings *settings,
                          struct error *error);

// Ends it. A NULL *self_p is allowed.
void policy_destroy(struct policy **self_p);

// The settings in force, and others. Workers that are too many then retire as their turn comes.
const struct policy_settings *policy_settings(const struct policy *self);
void policy_change(struct policy *self, const struct policy_settings *settings);

// Each tells what happened; names that are unknown are taken in (devices) or left aside (services
// of models that nobody told).
// Errors:    RESOURCE_EXHAUSTED when a table is full.
enum status policy_tell_device(struct policy *self, const struct policy_device *device,
                               struct error *error);
enum status policy_tell_model(struct policy *self, const struct policy_model *model,
                              struct error *error);
enum status policy_tell_worker_up(struct policy *self, const struct policy_worker *worker,
                                  uint64_t now_ms, struct error *error);
void policy_tell_model_removed(struct policy *self, const char *name);
void policy_tell_demand(struct policy *self, enum policy_group group, const char *model,
                        const struct policy_demand *demand, uint64_t now_ms);

// A worker is gone, or never came: then code is its reason (not OK) and worker->worker may be 0.
void policy_tell_worker_down(struct policy *self, const struct policy_worker *worker,
                             enum status code, const char *reason, uint64_t now_ms);

// A device's executor is gone with all its workers; given_up: and nobody will start it again.
void policy_tell_device_down(struct policy *self, const char *name, uint64_t epoch, bool given_up);

// A spawn could not be sent, since the device's executor is gone and nobody has told yet: nothing
// is spawned there until it reports again.
void policy_tell_device_silent(struct policy *self, const char *name);

// Decides what is to be done now; returns how many decisions were written, 0 when all is as it
// should be. A decision counts as done: the next step knows that the spawn is under way.
uint32_t policy_step(struct policy *self, uint64_t now_ms, struct policy_decision *out,
                     uint32_t out_max);

// How many services there are, and the i-th, in no order that lasts.
uint32_t policy_service_count(const struct policy *self);
struct policy_service policy_service_at(const struct policy *self, uint32_t index);

// "vae", "text"; "idle", "loading", "serving", "failed".
const char *policy_group_name(enum policy_group group);
const char *policy_state_name(enum policy_state state);

#endif  // ACTORS_POLICY_H
