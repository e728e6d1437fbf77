// edges.c - the table. Message bounds are sums, a line for each consumer, above what credit and
// queues allow: a full edge means that somebody broke the rules, not that he is slow.

#include "runtime/edges.h"

#include <assert.h>
#include <stddef.h>
#include <zmq.h>

// A connection's answers: 16 requests in flight, each with an ACCEPTED, an answer, and 14 notes of
// progress that the client has not read yet.
#define CLIENT_MESSAGES_MAX 256u
// A worker: 64 rows of text in flight, as many cancellations, a second of progress and heartbeats.
#define WORKER_MESSAGES_MAX 256u
// An executor: 64 workers up or down, 64 models, a report each second.
#define EXECUTOR_MESSAGES_MAX 256u
// An executor and the LoRA store: every entry of a full store dropped at once, one-shots of a
// second.
#define STORE_MESSAGES_MAX 1024u
// Inside the core: 256 waiting requests with 16 pins each may change hands at once.
#define CORE_MESSAGES_MAX 4096u
// A lane answers one order after the other.
#define LANE_MESSAGES_MAX 1024u
// Events of a second of 1000 requests, and a burst of state from every actor.
#define EVENT_MESSAGES_MAX 4096u
// A subscriber that is slower than this loses events, nobody waits for it.
#define PUBLISH_MESSAGES_MAX 1000u

// Letters without frames of a client's behind them.
#define LETTER_BYTES_MAX 65536u
// What a subscriber may send: a subscription.
#define SUBSCRIPTION_BYTES_MAX 256u

#define LINGER_ANSWERS_MS 500u  // the last answers of a daemon that ends
#define LINGER_RESULTS_MS 200u  // the last results and goodbyes of a worker

static const struct edge_end ends[EDGE_COUNT] = {
    [EDGE_CLIENTS] = {"clients", ZMQ_ROUTER, true, CLIENT_MESSAGES_MAX, 0, SOCKET_DOMAIN_CLIENTS,
                      LINGER_ANSWERS_MS, "clients: requests; router: answers, progress"},
    [EDGE_PUBLISH] = {"publish", ZMQ_XPUB, true, PUBLISH_MESSAGES_MAX, SUBSCRIPTION_BYTES_MAX,
                      SOCKET_DOMAIN_CLIENTS, 0, "monitor: events"},
    [EDGE_WORKER_DATA] = {"worker data", ZMQ_ROUTER, true, WORKER_MESSAGES_MAX, 0,
                          SOCKET_DOMAIN_WORKERS, 0, "router: jobs"},
    [EDGE_WORKER_DATA_PEER] = {"worker data", ZMQ_DEALER, false, WORKER_MESSAGES_MAX, 0, NULL,
                               LINGER_RESULTS_MS, "worker: hello, results, progress"},
    [EDGE_WORKER_CONTROL] = {"worker control", ZMQ_ROUTER, true, WORKER_MESSAGES_MAX,
                             LETTER_BYTES_MAX, SOCKET_DOMAIN_WORKERS, 0,
                             "router: cancel, drain, who"},
    [EDGE_WORKER_CONTROL_PEER] = {"worker control", ZMQ_DEALER, false, WORKER_MESSAGES_MAX,
                                  LETTER_BYTES_MAX, NULL, LINGER_RESULTS_MS,
                                  "worker: ready, heartbeat, goodbye"},
    [EDGE_SCALER] = {"scaler", ZMQ_ROUTER, true, EXECUTOR_MESSAGES_MAX, LETTER_BYTES_MAX,
                     SOCKET_DOMAIN_WORKERS, 0, "scaler: spawn, retire, who"},
    [EDGE_SCALER_PEER] = {"scaler", ZMQ_DEALER, false, EXECUTOR_MESSAGES_MAX, LETTER_BYTES_MAX,
                          NULL, LINGER_RESULTS_MS, "executor: device reports, workers up and down"},
    [EDGE_REGISTRY] = {"registry", ZMQ_ROUTER, true, EXECUTOR_MESSAGES_MAX, LETTER_BYTES_MAX,
                       SOCKET_DOMAIN_WORKERS, 0, "registry: definitions, load, unload"},
    [EDGE_REGISTRY_PEER] = {"registry", ZMQ_DEALER, false, EXECUTOR_MESSAGES_MAX, LETTER_BYTES_MAX,
                            NULL, LINGER_RESULTS_MS, "executor: device reports, models loaded"},
    [EDGE_STORE] = {"store", ZMQ_ROUTER, true, STORE_MESSAGES_MAX, LETTER_BYTES_MAX,
                    SOCKET_DOMAIN_WORKERS, 0, "LoRA store: adapters to drop"},
    [EDGE_STORE_PEER] = {"store", ZMQ_DEALER, false, STORE_MESSAGES_MAX, LETTER_BYTES_MAX, NULL,
                         LINGER_RESULTS_MS, "executor: counts"},
    [EDGE_ROUTER_CORE] = {"router-core", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                          "core: drain, reload; router: drained, kill"},
    [EDGE_ROUTER_SCALER] = {"router-scaler", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                            "router: demand, asks; scaler: notices, answers"},
    [EDGE_ROUTER_REGISTRY] = {"router-registry", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                              "router: asks; registry: notices, answers"},
    [EDGE_ROUTER_LEASES] = {"router-leases", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                            "router: pins; leases: answers"},
    [EDGE_ROUTER_MONITOR] = {"router-monitor", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                             "router: asks; monitor: answers"},
    [EDGE_ROUTER_STORE] = {"router-store", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                           "router: asks; LoRA store: answers"},
    [EDGE_REGISTRY_SCALER] = {"registry-scaler", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                              "registry: notices"},
    [EDGE_SCALER_CORE] = {"scaler-core", ZMQ_PAIR, true, CORE_MESSAGES_MAX, 0, NULL, 0,
                          "core: devices down"},
    [EDGE_EXECUTOR] = {"executor", ZMQ_ROUTER, true, WORKER_MESSAGES_MAX, 0, NULL, 0,
                       "executor: memory granted or not"},
    [EDGE_EXECUTOR_PEER] = {"executor", ZMQ_DEALER, false, WORKER_MESSAGES_MAX, 0, NULL, 0,
                            "worker: memory wanted, retired, broken"},
    [EDGE_LANE] = {"lane", ZMQ_PAIR, true, LANE_MESSAGES_MAX, 0, NULL, 0,
                   "actor: orders; thread: what is done"},
    [EDGE_EVENTS] = {"events", ZMQ_PUSH, false, EVENT_MESSAGES_MAX, 0, NULL, 0,
                     "actors: events, reports, counts"},
    [EDGE_EVENTS_SINK] = {"events", ZMQ_PULL, true, EVENT_MESSAGES_MAX, 0, NULL, 0, "nobody"},
    [EDGE_ZAP] = {"zap", ZMQ_REP, true, 1000, 0, NULL, 0, "libzmq: who may connect?"},
};

const struct edge_end *edge_end(enum edge edge)
{
    assert((unsigned)edge < EDGE_COUNT);
    assert(ends[edge].name != NULL);
    return &ends[edge];
}
