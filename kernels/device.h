// device.h - what an implementation of kernels.h provides, and what it gets from program.c.
//
// kernels.h calls into program.c, which checks operands once for everybody, plans the arena and
// keeps the list of operations; a lane then hands that list to the device's class.

#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "kernels/kernels.h"

enum operation_kind {
    OPERATION_CONVOLUTION,
    OPERATION_LINEAR,
    OPERATION_ATTENTION,
    OPERATION_LAYER_NORM,
    OPERATION_EMBEDDING,
    OPERATION_GATHER,
    OPERATION_STORE,
    OPERATION_PIXELS_LOAD,
    OPERATION_PIXELS_STORE,
    OPERATION_LATENT_LOAD,
    OPERATION_LATENT_STORE,
    OPERATION_WORDS_STORE,
    OPERATION_CLEAR,
    OPERATION_BLEND,
    OPERATION_BLEND_END,
    OPERATION_MARK,
    OPERATION_COUNT
};

struct operation {
    enum operation_kind kind;
    struct value workspace;  // arena bytes for this operation alone, as the class asked for
    uint64_t live_bytes;     // of the arena while it runs: what is kept, and what it works with
    union {
        struct convolution convolution;
        struct linear linear;  // low_rank points into the program
        struct attention attention;
        struct layer_norm layer_norm;
        struct embedding embedding;
        struct gather gather;
        struct store store;
        struct pixels_load pixels_load;
        struct pixels_store pixels_store;
        struct latent_load latent_load;
        struct latent_store latent_store;
        struct words_store words_store;
        struct clear clear;
        struct blend blend;
        struct blend_end blend_end;
    };
};

struct program {
    const struct device *device;
    struct operation *operations;  // operations_count of them, in order
    uint32_t operations_count;
    uint32_t operations_capacity;
    uint32_t marks_count;
    uint32_t slots_count;  // one more than the highest slot named
    uint64_t slot_bytes[PROGRAM_SLOTS_MAX];
    uint64_t peak_bytes;
    uint64_t floating_point_operations;
    bool finished;
    struct error error;           // the first one
    struct arena_plan *plan;      // live ranges while building; NULL once finished
    struct value held;            // the last linear's workspace, see holds_workspace
    struct low_rank **low_ranks;  // owned copies that operations point into
    uint32_t low_ranks_count;
};

// A weight as every class begins it; a class embeds this as its first member.
struct weight {
    struct device *device;
    enum weight_form form;
    enum dtype dtype;
    uint32_t dims[4];  // dims[0] counts all parts
    bool upsample;     // only for convolutions that upsample
    uint64_t bytes;    // held beside the parts
    uint64_t serial;   // that no other weight of this device has or had
};

struct device_class {
    const char *name;

    // Bytes of arena for the statistics of an output [n, h, w, k].
    uint64_t (*statistics_bytes)(const struct device *device, uint32_t n, uint32_t h, uint32_t w,
                                 uint32_t k);
    // Bytes of arena that the (already checked) operation needs for itself.
    uint64_t (*workspace_bytes)(const struct device *device, const struct operation *operation);
    // What a linear has there is still its own when the next operation that needs some gets it: it
    // does work for those behind it.
    bool holds_workspace;

    // What weight_create is going to hold for an already checked source; its parts may be NULL.
    uint64_t (*weight_plan)(const struct device *device, const struct weight_source *source);
    enum status (*weight_create)(struct weight **out, struct device *device,
                                 const struct weight_source *source, struct error *error);
    void (*weight_destroy)(struct weight *weight);

    enum status (*lane_create)(struct lane **out, struct device *device, struct error *error);
    void (*lane_destroy)(struct lane *lane);
    // Only to make an idle lane's arena larger; lane_collect tells how that went, and arena_bytes
    // is new from then on.
    void (*lane_grow)(struct lane *lane, uint64_t bytes);
    void (*lane_release)(struct lane *lane);
    void (*lane_run)(struct lane *lane, const struct program *program, void *const *bindings,
                     uint32_t bindings_count);
    enum status (*lane_collect)(struct lane *lane, struct error *error);
    void (*lane_cancel)(struct lane *lane);
    void (*lane_favour)(struct lane *lane, bool favoured);  // NULL: lanes do not share anything
    uint64_t (*lane_progress)(const struct lane *lane);
    uint32_t (*lane_marks)(const struct lane *lane);

    // Times of operations and launches, see lane_trace, lane_times and lane_launches; all NULL: not
    // known.
    enum status (*lane_trace)(struct lane *lane, bool is_kept, struct error *error);
    uint32_t (*lane_times)(const struct lane *lane, uint64_t *out, uint32_t count);
    uint32_t (*lane_launches)(const struct lane *lane, struct lane_launch *out, uint32_t count);

    // See lane_graphs; NULL: there are none.
    struct lane_graphs (*lane_graphs)(const struct lane *lane);

    // NULL: the device uses the system's memory.
    enum status (*memory)(const struct device *device, struct device_memory *out,
                          struct error *error);

    // See device_lend; both NULL: its memory cannot be shared.
    enum status (*lend)(struct device *device, uint64_t bytes, struct device_loan *out,
                        struct error *error);
    void (*take_back)(struct device *device, const struct device_loan *loan);

    void (*close)(struct device *device);
};

// A device and a lane as every class begins them; a class embeds these as its first member.
struct device {
    const struct device_class *class;
    struct device_info info;
    _Atomic uint32_t users;         // lanes, weights and loans that live; device.c counts
    _Atomic uint64_t weights_made;  // the last weight's serial
};

struct lane {
    struct device *device;
    int descriptor;  // eventfd or the like
    uint64_t arena_bytes;
    bool running;  // between lane_run or lane_grow and lane_collect
};

// Arena alignment of every value, in bytes.
#define ARENA_ALIGNMENT 128u

// The two classes on a CPU. Both return as device_open does.
enum status reference_device_open(struct device **out, const struct device_options *options,
                                  struct error *error);
enum status cpu_device_open(struct device **out, const struct device_options *options,
                            struct error *error);

// A device out of a library that is opened at run time, see cuda/module.h. As device_open and
// device_probe.
enum status module_device_open(struct device **out, const char *library,
                               const struct device_options *options, struct error *error);
enum status module_probe(struct device_probe *out, const char *library, struct error *error);

#endif  // KERNELS_DEVICE_H
