// topology.h - who speaks with whom: the addresses of the actors and the letters on each edge.
//
// clang-format off
//
//                 clients (DEALER, REQ)                             etc. over tcp, ipc
//                        |
//   +--------------------|------------------------- core process ------------------------------+
//   |               [ router ]---PAIR---[ scaler ]---PAIR---[ registry ]   [ auth: ZAP ]        |
//   |   PAIR to: core, scaler, registry, leases, loras, monitor   all: PUSH --> [ monitor ]      |
//   +----ROUTER|ROUTER-----------------ROUTER-----------------ROUTER---------------AF_UNIX-----+
//          data|control                   |                      |                    | leases
//   +----------|--------------------------|----------------------|--- executor process, per device
//   |   [ vae_worker ] [ clip_worker ]  [ executor ]-------------+                                |
//   +---------------------------------------------------------------------------------------------+
//
// Letters (messages/actors.proto), by edge; the first named end binds:
//
//   router data      ROUTER / worker DEALER   up: Hello, Result + frames, JobProgress
//                                             down: Job + frames
//   router control   ROUTER / worker DEALER   up: Ready, Heartbeat, Goodbye
//                                             down: CancelJob, Hello (to be said on data), Who
//   scaler           ROUTER / executor DEALER up: DeviceReport (each second, at changes), WorkerUp,
//                                             WorkerDown
//                                             down: Spawn, Retire, Who (say all WorkerUp again)
//   registry         ROUTER / executor DEALER up: DeviceReport, ModelLoaded
//                                             down: ModelDefinition, LoadModel, UnloadModel, Who
//   store            ROUTER / executor DEALER up: AdapterCounts; down: DropAdapter
//   router-core      PAIR                     to the router: DrainAll, DeviceDown
//                                             from it: Drained, KillChild, StopAll, DrainAll
//   router-scaler    PAIR                     to the scaler: Demand, Ask (LIMITS)
//                                             from it: ServiceNotice, Answer
//   router-registry  PAIR                     to the registry: Ask + frames (MODEL_*)
//                                             from it: ModelNotice, Answer + frames
//   router-leases    PAIR                     to the leases: PinLease, UnpinLeases
//                                             from it: PinAnswer
//   leases           AF_UNIX / executor       up: DeviceReport (first), MemoryLent
//                                             down: LendMemory, TakeBackMemory
//   router-monitor   PAIR                     to the monitor: Ask + frames (STATUS)
//                                             from it: Answer + frames
//   router-loras     PAIR                     to the store: Ask + frames (LORA_*), ResolveStack +
//                                             frames, ReleaseStack, CacheCounts
//                                             from it: Answer + frames, StackResolved
//   registry-scaler  PAIR                     to the scaler: ModelNotice
//   scaler-core      PAIR                     to the scaler: DeviceDown; from it: DeviceReport
//   events           PULL (monitor) / PUSH    Event, ServiceNotice, DeviceReport, ModelNotice,
//                                             RequestCounts, TransportCounts, LeaseCounts, LoraTotals,
//                                             DrainAll
//
// clang-format on
//
// Whoever hears a letter of a peer it does not know answers Who; the peer then introduces itself
// again (Hello, Ready; WorkerUp). So a core may be restarted under its executors.

#ifndef ACTORS_TOPOLOGY_H
#define ACTORS_TOPOLOGY_H

#include <stdint.h>

#include "runtime/config.h"

// Inside the core.
#define ADDRESS_EVENTS "inproc://events"
#define ADDRESS_ROUTER_CORE "inproc://router-core"
#define ADDRESS_ROUTER_SCALER "inproc://router-scaler"
#define ADDRESS_ROUTER_REGISTRY "inproc://router-registry"
#define ADDRESS_ROUTER_LEASES "inproc://router-leases"
#define ADDRESS_ROUTER_MONITOR "inproc://router-monitor"
#define ADDRESS_ROUTER_LORAS "inproc://router-loras"
#define ADDRESS_REGISTRY_SCALER "inproc://registry-scaler"
#define ADDRESS_SCALER_CORE "inproc://scaler-core"

// Between processes: names in the private directory, as ipc://DIRECTORY/NAME.
#define SOCKET_ROUTER_DATA "data.sock"
#define SOCKET_ROUTER_CONTROL "control.sock"
#define SOCKET_SCALER "scaler.sock"
#define SOCKET_REGISTRY "registry.sock"
#define SOCKET_LORA_STORE "loras.sock"
// Plain AF_UNIX, SOCK_SEQPACKET: for executors in the private directory, for clients beside
// luna.sock.
#define SOCKET_POOLS "pools.sock"
#define SOCKET_LEASES "lease.sock"
#define SOCKET_ADAPTERS "adapters.sock"  // executors: AdapterFetch, AdapterFetched
#define SOCKET_LORAS "lora.sock"         // clients: AdapterRequest, AdapterReply

// What every actor of the core gets as its arguments; each takes what it needs.
struct core_arguments {
    const struct config *config;  // lives as long as the core
    const char
        *private_directory;  // mode 0700, of this daemon alone; sockets between its processes
    const char *lease_path;  // of SOCKET_LEASES; "" when there is no ipc address
    const char *loras_path;  // of SOCKET_LORAS; "" when there is no ipc address
    const int *listen_descriptors;        // bound and listening, for ZMQ_USE_FD; in the order of
                                          // listen_endpoints
    const char *const *listen_endpoints;  // as people type them
    uint32_t listen_count;
    uint32_t supervisor_pid;  // "pid" of the status: the process that was started
    uint64_t started_ns;      // of the daemon, on the system's clock
};

// What an executor and its workers get.
struct executor_arguments {
    const struct config *config;    // lives as long as the executor
    const char *private_directory;  // as above
    const char *device;             // "cpu"
    uint64_t epoch;                 // unique for every executor process this daemon ever starts
};

// Every actor of the core; the kinds live in actors/NAME.c.
struct actor_kind;
extern const struct actor_kind router_kind;  // arguments: struct core_arguments
extern const struct actor_kind scaler_kind;
extern const struct actor_kind registry_kind;
extern const struct actor_kind leases_kind;
extern const struct actor_kind lora_store_kind;
extern const struct actor_kind auth_kind;
extern const struct actor_kind monitor_kind;
extern const struct actor_kind executor_kind;  // arguments: struct executor_arguments

#endif  // ACTORS_TOPOLOGY_H
