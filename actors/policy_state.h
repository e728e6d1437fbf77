// policy_state.h - what policy.c keeps, policy_place.c weighs and policy_step.c decides over;
// nobody else includes it.

#ifndef ACTORS_POLICY_STATE_H
#define ACTORS_POLICY_STATE_H

#include "actors/policy.h"

// Loads above this are not told apart when an idle worker is looked for.
#define POLICY_LOAD_MAX 64u

struct policy_lane {
    bool used;                // the entry is one
    bool retiring;            // told to, and has not gone yet
    uint64_t worker;          // 0: the spawn is under way
    enum policy_group group;  // of its service
    uint32_t model;           // index; models keep theirs as long as lanes name them
    uint32_t device;          // index
    uint64_t since_ms;        // of the spawn, then of being up
    uint64_t plan_bytes;      // memory that the spawn under way will take
};

// A service is wanted on a device, because tensors of its jobs lie there. Jobs that come no further
// apart than the idle timeout are one wish.
struct policy_wish {
    uint64_t jobs_total;  // as told last
    uint32_t depth;       // likewise: jobs that wait
    uint64_t since_ms;    // when its first job came
    uint64_t last_ms;     // when its last job came; 0: there is none
};

struct policy_demand_state {
    struct policy_demand told;              // by the router
    uint64_t told_ms;                       // when
    bool over;                              // the queue is above a threshold ...
    uint64_t over_since_ms;                 // ... since then
    uint64_t load_ms[POLICY_LOAD_MAX + 1];  // [k]: when at least k jobs ran or waited last
    uint32_t failures;                      // in a row
    uint64_t retry_ms;                      // no spawn before
    enum status code;                       // of the last failure
    char message[POLICY_MESSAGE_BYTES];     // of the last failure, or refusal
    bool starving;                          // work waits, nobody is there, memory lacks ...
    uint64_t starving_since_ms;             // ... since then
    const char *refused_signal;             // of the last refusal told; NULL: none
    uint64_t refused_plan_bytes;            // of it
    uint64_t refused_ms;                    // when
    // By device, those of clients whose tensors lie there.
    struct policy_wish wishes[POLICY_DEVICES_MAX];
};

struct policy_model_state {
    bool used;                 // the entry is one
    bool known;                // the registry told it, and did not take it back
    struct policy_model told;  // by the registry
    struct policy_demand_state demand[POLICY_GROUP_COUNT];
    // What each group's weights take on a device, as its executor told; 0: it has not.
    uint64_t exact_bytes[POLICY_DEVICES_MAX][POLICY_GROUP_COUNT];
};

struct policy_device_state {
    struct policy_device told;  // by its executor
    bool alive;                 // its executor runs
    uint64_t down_epoch;        // of the executor that died last; 0: none
    bool given_up;              // and nobody will start it again
};

struct policy {
    struct policy_settings settings;  // in force
    uint32_t devices_count;           // entries of devices
    uint32_t turn;                    // model whose turn it is to be looked at first
    struct policy_device_state devices[POLICY_DEVICES_MAX];
    struct policy_lane lanes[POLICY_WORKERS_MAX];         // used ones anywhere
    struct policy_model_state models[POLICY_MODELS_MAX];  // used ones anywhere
};

// A service by its indices; what the functions below work on.
struct policy_key {
    uint32_t model;           // index, used
    enum policy_group group;  // that it may or may not offer
};

// Lanes of a service: that are up, of these not retiring, under way; on one device or (UINT32_MAX)
// anywhere.
struct policy_lanes {
    uint32_t up;
    uint32_t live;
    uint32_t pending;
};
struct policy_lanes policy_count(const struct policy *self, struct policy_key key, uint32_t device);

// True when this node serves the service.
bool policy_offers(const struct policy *self, struct policy_key key);

// True when the registry said that the model's weights are on the device.
bool policy_loaded(const struct policy *self, uint32_t model, uint32_t device);

// What the service's weights take on the device, as far as is known.
uint64_t policy_weights_bytes(const struct policy *self, struct policy_key key, uint32_t device);

// A device and what speaks for or against it.
struct policy_place {
    uint32_t device;       // index; UINT32_MAX: none
    uint32_t lanes;        // of the service there
    bool serves_wishes;    // of those whose tensors lie there
    uint64_t free_bytes;   // there would be, without what idle models hold
    uint64_t plan_bytes;   // that the worker would take
    uint64_t guess_bytes;  // of plan_bytes: weights as in their file; here they may take half
};

// The best place for one more worker of the service; device UINT32_MAX when no device lives.
struct policy_place policy_find_place(const struct policy *self, struct policy_key key,
                                      uint64_t now_ms);
// The best without a worker of the service, of those that a wish has lasted for; device UINT32_MAX
// when there is none.
struct policy_place policy_find_wished(const struct policy *self, struct policy_key key,
                                       uint64_t now_ms);

// True when what is planned leaves the margin free there; when half of what is guessed would: then
// its executor knows.
bool policy_fits(const struct policy *self, struct policy_place place);
bool policy_may_fit(const struct policy *self, struct policy_place place);

// What stays free on a device; UINT32_MAX: on any.
uint64_t policy_margin_bytes(const struct policy *self, uint32_t device);

// What the router told of jobs whose tensors lie on the device.
void policy_hear_wish(struct policy *self, struct policy_key key, uint32_t device,
                      const struct policy_device_demand *told, uint64_t now_ms);
// True while there is such a wish; how long it lasted when its last job came.
bool policy_is_wished(const struct policy *self, struct policy_key key, uint32_t device,
                      uint64_t now_ms);
uint64_t policy_wish_ms(const struct policy *self, struct policy_key key, uint32_t device);

// Brings the marks of time up to date with the service's load.
void policy_observe(struct policy *self, struct policy_key key, uint64_t now_ms);

#endif  // ACTORS_POLICY_STATE_H
