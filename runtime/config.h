// config.h - luna.conf as one immutable object: file, environment, command line, defaults.
//
// Later ones win: built-in, /etc/luna/luna.conf, /etc/luna/conf.d/*.conf, the user's
// luna/luna.conf (or, instead of all files, the one that -c names), LUNA_SECTION_KEY, --set.
// The file is the table in config_table.c: a key that is not there is an error that names its line.

#ifndef RUNTIME_CONFIG_H
#define RUNTIME_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "runtime/log.h"

#define CONFIG_AUTO UINT64_MAX          // "auto" of a number
#define CONFIG_LIST_MAX 16u             // items of a list
#define CONFIG_TEXT_BYTES 1024u         // of one value, its NUL included
#define CONFIG_MODELS_MAX 64u           // [model NAME] sections
#define CONFIG_MODEL_NAME_BYTES 64u     // of NAME, its NUL included
#define CONFIG_MODEL_FILES_MAX 8u       // files of a model
#define CONFIG_FILE_BYTES_MAX 1048576u  // of a configuration file
#define CONFIG_CHANGES_MAX 64u          // keys there are, at most

enum service_type { SERVICE_FULL, SERVICE_VAE, SERVICE_CLIP };

enum precision_choice {
    PRECISION_INHERIT,  // vae_precision and clip_precision: what precision says
    PRECISION_AUTO,
    PRECISION_F32,
    PRECISION_BF16,
    PRECISION_F16,
};

// Words of a list, in order; owned by the configuration.
struct config_list {
    uint32_t count;                      // items in use
    const char *items[CONFIG_LIST_MAX];  // without blanks around them
};

// Bounds of a number of workers.
struct config_range {
    uint32_t min;  // at most max
    uint32_t max;  // at least 1
};

struct config_service {
    enum service_type type;                // what this node offers
    uint64_t threads;                      // of the CPU executor; CONFIG_AUTO
    struct config_list devices;            // "cpu", "cuda:0"; empty: auto
    struct config_list vae_devices;        // empty: as devices
    struct config_list clip_devices;       // empty: as devices
    enum precision_choice precision;       // never PRECISION_INHERIT
    enum precision_choice vae_precision;   // overrides it
    enum precision_choice clip_precision;  // overrides it
    uint64_t memory_limit_mb;              // what a CPU device calls its memory; CONFIG_AUTO
    struct log_levels log_levels;          // log_level, log_level_ACTOR
};

struct config_listen {
    struct config_list requests;  // "tcp://HOST:PORT", "ipc://PATH"
    const char *page;             // "HOST:PORT"; "": off
    const char *events;           // "tcp://HOST:PORT"; "": off
};

struct config_models {
    struct config_list directories;  // below which files may be named
    const char *default_vae;         // model's name; ""
    const char *default_text;        // model's name; ""
};

struct config_model {
    const char *name;          // of the section
    struct config_list files;  // relative to directories, or absolute; at least 1
    const char *embeddings;    // folder; ""
};

struct config_lora {
    struct config_list directories;  // that are scanned
    uint64_t memory_limit_mb;        // of adapters in RAM
    double cleanup_threshold;        // share of the limit above which the least used go
    uint32_t entries_max;            // adapters
    uint64_t time_to_live_s;         // 0: no limit
    uint32_t stack_max;              // adapters of one request
    bool merged;                     // execution = merged
    uint64_t merged_limit_mb;        // of merged copies
};

struct config_scaling {
    struct config_range vae_workers;   // per service
    struct config_range clip_workers;  // per service
    uint32_t queue_threshold;          // waiting requests
    uint32_t scale_up_delay_ms;        // for which it must last
    uint32_t idle_timeout_s;           // after which a worker retires
    uint64_t memory_margin_mb;         // CONFIG_AUTO: 2048 on GPUs, 512 on a CPU
};

struct config_limits {
    uint32_t queue_requests_max;  // waiting
    uint64_t queue_bytes_max;     // waiting
    uint64_t message_bytes_max;   // of one message
    uint64_t image_pixels_max;    // of one request
    uint32_t text_bytes_max;      // of one text
    uint32_t restarts_max;        // of one child within restarts_period_s
    uint32_t restarts_period_s;   // see there
};

struct config_security {
    bool curve;           // keys are required
    bool loopback_admin;  // TCP on loopback has the role admin
};

struct config_cluster {
    struct config_list peers;  // "tcp://HOST:PORT"
    const char *etcd;          // "http://HOST:PORT"; ""
};

struct config {
    struct config_service service;
    struct config_listen listen;
    struct config_models models;
    uint32_t model_count;                          // of model
    struct config_model model[CONFIG_MODELS_MAX];  // sections, in order
    struct config_lora lora;
    struct config_scaling scaling;
    uint64_t cache_conditioning_mb;  // 0: off
    struct config_limits limits;
    struct config_security security;
    struct config_cluster cluster;
    const char *runtime_directory;  // what @runtime@ stands for
};

// Where values come from.
struct config_sources {
    const char *file;          // -c; NULL: the system's and the user's files, as far as they exist
    const char *etc;           // directory of the system's files; NULL: the usual one
    char *const *environment;  // "NAME=VALUE", NULL at the end; NULL: the process's own
    const char *const *sets;   // of --set: "section.key=value", "model NAME.key=value"
    uint32_t set_count;        // of sets
};

// Reads everything and checks every value by itself. config_check checks what they mean together.
// Ownership: the caller owns *out until config_destroy; nothing of sources is kept.
// Errors:    INVALID_ARGUMENT with FILE:LINE, the variable or the --set, section, key and value;
//            NOT_FOUND for a file that -c names; RESOURCE_EXHAUSTED.
// Thread:    one at a time in a process: inih has global settings. The result is immutable.
enum status config_load(struct config **out, const struct config_sources *sources,
                        struct error *error);

// NULL is allowed.
// Thread:    any.
void config_destroy(struct config **self_p);

// What would keep a daemon from starting with these values.
// Errors:    UNIMPLEMENTED for curve and cluster; FAILED_PRECONDITION for an address that is not
//            loopback without curve; INVALID_ARGUMENT for values that contradict each other.
// Thread:    any.
enum status config_check(const struct config *self, struct error *error);

// Writes the configuration as a file that config_load reads back to the same values.
// Ownership: *out is malloc'ed text, the caller's.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any.
enum status config_dump(const struct config *self, char **out, struct error *error);

// A key whose value differs.
struct config_change {
    char key[64];  // "lora.memory_limit_mb"; "model NAME" for anything of a model's section
    bool is_live;  // takes effect without a restart
};

// Compares two configurations; returns the number of changes, all of them in changes.
// Thread:    any.
uint32_t config_compare(const struct config *before, const struct config *after,
                        struct config_change changes[CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX]);

// The precision of an operation group after inheritance; never PRECISION_INHERIT.
// Thread:    any.
enum precision_choice config_vae_precision(const struct config *self);
enum precision_choice config_clip_precision(const struct config *self);

#endif  // RUNTIME_CONFIG_H
