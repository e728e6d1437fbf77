// edges.h - the one table of edges: every socket between actors, its type, who binds, its bounds.
//
// An edge has two ends. An EDGE_NAME is the end that binds, or either end of a PAIR; the other end
// of an edge that has two kinds of ends is EDGE_NAME_PEER. The exception is EDGE_EVENTS, which all
// actors have: it connects, and the monitor's end is EDGE_EVENTS_SINK.

#ifndef RUNTIME_EDGES_H
#define RUNTIME_EDGES_H

#include <stdbool.h>
#include <stdint.h>

enum edge {
    EDGE_CLIENTS,              // router, over tcp and ipc: requests and answers
    EDGE_PUBLISH,              // monitor, over tcp: events for anybody
    EDGE_WORKER_DATA,          // router: jobs and results
    EDGE_WORKER_DATA_PEER,     // a worker
    EDGE_WORKER_CONTROL,       // router: heartbeats, cancellation
    EDGE_WORKER_CONTROL_PEER,  // a worker
    EDGE_SCALER,               // scaler: device reports, spawn and retire
    EDGE_SCALER_PEER,          // an executor
    EDGE_REGISTRY,             // registry: model definitions, load and unload
    EDGE_REGISTRY_PEER,        // an executor
    EDGE_STORE,                // LoRA store: adapters that were evicted, counts
    EDGE_STORE_PEER,           // an executor
    EDGE_ROUTER_CORE,          // router and the core's main thread, as all that follow: PAIR
    EDGE_ROUTER_SCALER,
    EDGE_ROUTER_REGISTRY,
    EDGE_ROUTER_LEASES,
    EDGE_ROUTER_MONITOR,
    EDGE_ROUTER_STORE,
    EDGE_REGISTRY_SCALER,
    EDGE_SCALER_CORE,
    EDGE_EXECUTOR,       // executor: memory for its workers, in one process
    EDGE_EXECUTOR_PEER,  // a worker
    EDGE_LANE,           // an actor and a thread of its own that may take its time
    EDGE_EVENTS,         // everybody, to the monitor
    EDGE_EVENTS_SINK,    // monitor
    EDGE_ZAP,            // auth, to libzmq itself
    EDGE_COUNT
};

// Domains that auth tells apart.
#define SOCKET_DOMAIN_CLIENTS "clients"  // whoever is allowed to ask
#define SOCKET_DOMAIN_WORKERS "workers"  // the daemon's own processes

// One end of an edge.
struct edge_end {
    const char *name;       // of the edge, in messages
    int type;               // of the ZeroMQ socket
    bool binds;             // false: connects
    uint32_t messages_max;  // that wait in each direction for each peer (on inproc: each end's sum)
    uint64_t frame_bytes_max;  // of a frame that comes in, where there is a transport; 0: of limits
    const char *zap_domain;    // whom auth asks about who connects; NULL: nobody can from outside
    uint32_t linger_ms;        // that a close waits for what is not sent yet
    const char *senders;       // who sends what bounds messages_max
};

// The row of an end.
// Thread:    any.
const struct edge_end *edge_end(enum edge edge);

#endif  // RUNTIME_EDGES_H
