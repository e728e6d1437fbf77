// kernels.h - the only thing that models/ sees of the hardware.
//
// Four nouns:
//
//     device    one implementation on one piece of hardware: "reference", "cpu", later "cuda:0"
//     weight    an immutable tensor, laid out as the device likes it, shared by all lanes
//     program   a list of fused operations over one arena; building it allocates no tensor, so its
//               peak is known before anything runs, and it can be run any number of times
//     lane      runs one program at a time in its own arena, and makes that arena; the end of
//               either arrives on a file descriptor
//
//     struct program *program = NULL;
//     program_create(&program, device);
//     struct value x = program_tensor(program, 1, 64, 64, 512);
//     program_convolution(program, &(struct convolution){.input = latent, .output = x, ...});
//     program_release(program, x);              // its bytes may serve the operations that follow
//     status = program_finish(program, &error); // the first error of all the calls above
//     ... program_peak_bytes(program) ...       // admit, or not
//     lane_grow(lane, program_peak_bytes(program));
//     status = lane_collect(lane, &error);      // lane_descriptor() tells when it need not wait
//     lane_run(lane, program, bindings, 2);     // returns at once, as lane_grow does
//     status = lane_collect(lane, &error);
//
// Legend: n images, h rows, w columns, c channels in, k channels (or columns) out, r x r taps.
// Activations are NHWC (or [rows, width]) in the device's activation type, float32 on a CPU.
//
// Which algorithm, tile or split an operation takes depends on shapes, weights and the image itself
// (a bright pixel asks for another convolution), never on load, timing, threads or batch-mates, and
// every sum has a fixed order: the same program on the same bytes gives the same bytes.

#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/error.h"

struct device;
struct lane;
struct program;
struct weight;

// ---------------------------------------------------------------------------------------------
// Devices

struct device_options {
    const char *name;     // "cpu", "cpu:plain" (without vector instructions), "reference",
                          // "emulated", "cuda:N"; behind one of the last two may stand the storage
                          // of a fast device, ":bf16" or ":f16"
    uint32_t threads;     // of a CPU; 0: one per core that this process may use
    bool precision_fast;  // 16-bit tensor cores; a CPU is always faithful and refuses it
};

struct device_info {
    char name[32];  // as it was opened, "cpu"
    char
        label[96];  // for people: the processor's or the card's name, with "AVX2" or what was found
    uint32_t threads;           // compute threads; 0 on a GPU
    uint32_t activation_bytes;  // of one activation element: 4, or 2 where storage is 16 bit
    char driver[64];            // of a GPU, with its version; "" on a CPU
    char uuid[48];              // of a GPU, as its driver writes it, "GPU-..."; "" on a CPU
    char capability[8];         // of a GPU: compute capability, "8.9"; "" on a CPU
    char note[256];             // for the log: what it does otherwise than usual; "" if nothing
};

// Opens a device and, on a CPU, starts its pool of compute threads, which all lanes share.
// Ownership: on success the caller owns *out; on failure *out is untouched.
// Errors:    NOT_FOUND for an unknown name, UNAVAILABLE when the hardware or its driver is missing,
//            UNIMPLEMENTED for a precision it does not have, RESOURCE_EXHAUSTED.
// Thread:    any.
enum status device_open(struct device **out, const struct device_options *options,
                        struct error *error);

// Closes the device. Lanes, weights and programs made on it must be gone. NULL is allowed.
// Thread:    the one that opened it.
void device_close(struct device **device_p);

// What the device is. The result lives as long as the device.
// Thread:    any.
const struct device_info *device_info(const struct device *device);

// True for a device with memory of its own: weights are copied there, and their parts are read no
// more once they are created. False where the device works on the system's memory.
// Thread:    any.
bool device_has_memory(const struct device *device);

struct device_memory {
    uint64_t total_bytes;  // of the card
    uint64_t free_bytes;   // as the driver tells it, all processes counted
    uint64_t used_bytes;   // by weights and arenas of this device
};

// How the device's own memory stands now. Asks the driver, which takes well below a millisecond.
// Errors:    UNIMPLEMENTED for a device that uses the system's memory; UNAVAILABLE when the device
//            is broken.
// Thread:    any.
enum status device_memory(const struct device *device, struct device_memory *out,
                          struct error *error);

#define DEVICE_HANDLE_BYTES 64u                     // a cudaIpcMemHandle_t
#define DEVICE_LOAN_UNIT_BYTES (UINT64_C(2) << 20)  // what a GPU maps at once

// Memory of a device that a process of this machine may map, by CUDA IPC.
struct device_loan {
    void *memory;                         // of the device; may be bound to slots of its programs
    uint64_t bytes;                       // at memory
    uint8_t handle[DEVICE_HANDLE_BYTES];  // what the other process opens
};

// Lends zeroed memory that nothing else lies in; bytes is a multiple of DEVICE_LOAN_UNIT_BYTES
// above 0. It counts as used memory of the device.
// Ownership: the caller ends the loan with device_take_back.
// Errors:    UNIMPLEMENTED where memory cannot be shared; RESOURCE_EXHAUSTED; UNAVAILABLE when the
//            device is broken.
// Thread:    any that may wait for some ms.
enum status device_lend(struct device *device, uint64_t bytes, struct device_loan *out,
                        struct error *error);

// Ends a loan that nothing runs with. The other process should have closed it, or be gone.
// Thread:    any.
void device_take_back(struct device *device, struct device_loan *loan);

// What GPUs there are.
struct device_probe {
    char driver[64];    // with its version
    uint32_t count;     // of cards, "cuda:0" to "cuda:count-1"
    uint64_t usable;    // bit N: "cuda:N" can be opened
    char refusal[128];  // why a card cannot, "" when all can
};

// Looks for CUDA devices. This loads the driver, which is never unloaded and may take seconds, so
// it belongs into a process that ends soon.
// Errors:    UNAVAILABLE says that there are none, and why: no library of ours, no driver, no card.
// Thread:    any.
enum status device_probe(struct device_probe *out, struct error *error);

// ---------------------------------------------------------------------------------------------
// Weights

enum weight_form {
    WEIGHT_VECTOR,       // [k]: biases, gamma, beta
    WEIGHT_MATRIX,       // [k, c]: linears, row-major as PyTorch's Linear keeps them
    WEIGHT_CONVOLUTION,  // [k, c, r, r]: as PyTorch's Conv2d keeps them; r is 1 or 3
    WEIGHT_TABLE,        // [rows, width]: embeddings; rows are looked up, never multiplied
};

// The most tensors that one weight may stack along k (query, key and value of one attention).
#define WEIGHT_PARTS_MAX 3u

struct weight_source {
    enum weight_form form;
    enum dtype dtype;                     // f32, f16 or bf16; the bytes as the file has them
    uint32_t dims[4];                     // of one part; as many as the form has
    uint32_t parts_count;                 // 1, or up to 3 tensors of the same shape stacked along k
    const void *parts[WEIGHT_PARTS_MAX];  // little-endian, row-major, any alignment
    bool upsample;  // for convolutions [k, c, 3, 3] that upsample, and for no others
};

// Prepares a tensor for the device.
// Ownership: the caller owns *out. A device without memory of its own keeps reading the parts until
//            the weight is destroyed, so they must live as long and stay unchanged.
// Errors:    INVALID_ARGUMENT for dims, dtype or parts out of range, or upsample with anything but
//            3x3 taps; RESOURCE_EXHAUSTED.
// Thread:    any; the result may be read by all lanes of the device at once.
enum status weight_create(struct weight **out, struct device *device,
                          const struct weight_source *source, struct error *error);

// Bytes that weight_create is going to hold for such a tensor, exactly: weight_bytes of its result.
// The parts may be NULL, they are not looked at.
// Errors:    INVALID_ARGUMENT as weight_create.
// Thread:    any.
enum status weight_plan(const struct device *device, const struct weight_source *source,
                        uint64_t *out, struct error *error);

// Destroys a weight that no running program uses. NULL is allowed.
// Thread:    any.
void weight_destroy(struct weight **weight_p);

// Bytes of memory that the device holds for this weight beside the parts themselves, for the
// ledger.
// Thread:    any.
uint64_t weight_bytes(const struct weight *weight);

// ---------------------------------------------------------------------------------------------
// Programs

enum value_place {
    VALUE_NONE = 0,  // an optional operand that is not there
    VALUE_ARENA,     // bytes of the lane's arena
    VALUE_SLOT,      // memory that the caller binds for each run: inputs and outputs
};

// A place where an operation finds or leaves a tensor. Plain data: copy it freely.
struct value {
    enum value_place place;
    uint32_t slot;    // with VALUE_SLOT: which binding
    uint64_t offset;  // bytes from the start of the arena or of the slot
    uint64_t bytes;   // from there on
};

// The most slots that one program may have.
#define PROGRAM_SLOTS_MAX 16u

// Starts an empty program. Building calls record their first error and then do nothing; it comes
// out of program_finish, so that a network reads as the list of its layers.
// Ownership: on success the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any; one thread at a time builds a program.
enum status program_create(struct program **out, const struct device *device, struct error *error);

// Destroys a program that no lane runs. NULL is allowed.
// Thread:    any.
void program_destroy(struct program **program_p);

// Reserves an activation tensor [n, h, w, c] (or [rows, width] as n = h = 1) in the arena.
// Thread:    the builder's.
struct value program_tensor(struct program *program, uint32_t n, uint32_t h, uint32_t w,
                            uint32_t c);

// Reserves bytes of the arena for anything else, float32 accumulators for instance.
// Thread:    the builder's.
struct value program_bytes(struct program *program, uint64_t bytes);

// Reserves what a convolution needs to leave the statistics of its output [n, h, w, k] for the
// GroupNorm that follows.
// Thread:    the builder's.
struct value program_statistics(struct program *program, uint32_t n, uint32_t h, uint32_t w,
                                uint32_t k);

// Names memory of the given size that the caller will bind as slot (below PROGRAM_SLOTS_MAX).
// Thread:    the builder's.
struct value program_slot(struct program *program, uint32_t slot, uint64_t bytes);

// Gives the value's bytes back to the operations that follow. Values that are not of the arena are
// ignored; giving one back twice is a programmer's error.
// Thread:    the builder's.
void program_release(struct program *program, struct value value);

// Marks the end of a step, a tile for instance: lane_marks() counts those that were passed.
// Thread:    the builder's.
void program_mark(struct program *program);

// Ends the building. Afterwards the program is immutable and may be run.
// Errors:    the first error of the building calls: INVALID_ARGUMENT for shapes that do not fit or
//            overflow, RESOURCE_EXHAUSTED.
// Thread:    the builder's.
enum status program_finish(struct program *program, struct error *error);

// The arena that a run needs, in bytes; exact, known once the program is finished.
// Thread:    any.
uint64_t program_peak_bytes(const struct program *program);

// How many steps were marked.
// Thread:    any.
uint32_t program_marks(const struct program *program);

// Multiplications and additions of one run, for cost estimates and benchmarks (2 x MAC).
// Thread:    any.
uint64_t program_operations(const struct program *program);

// ---------------------------------------------------------------------------------------------
// Operations. Each call copies *op into the program; the weights it names must outlive the program.

// GroupNorm (https://arxiv.org/abs/1803.08494) and SiLU, applied to a convolution's input while it
// is read: y = (x - mean) / sqrt(variance + epsilon) * gamma + beta per group, then y * sigmoid(y).
// The zero padding of the convolution comes after it.
struct normalization {
    struct value statistics;     // left by the convolution that made the input; VALUE_NONE: no norm
    const struct weight *gamma;  // [c]
    const struct weight *beta;   // [c]
    uint32_t groups;             // divides c
    float epsilon;
    bool silu;
};

struct convolution {
    struct value input;   // [n, h, w, c]
    uint32_t n, h, w, c;  // of the input as stored
    struct value output;  // [n, oh, ow, k]
    uint32_t k;
    const struct weight *weight;  // [k, c, r, r], made for an upsampling one or not
    const struct weight *bias;    // [k], or NULL
    uint32_t stride;  // 1: zeros r/2 wide all around. 2: r is 3, one row of zeros below and one
                      // column to the right only (AutoencoderKL), oh = (h - 2) / 2 + 1
    bool upsample;    // nearest 2x in front (stride 1, r 3): oh = 2h, ow = 2w
    struct normalization norm;  // of the input
    struct value residual;      // [n, oh, ow, k], added; may be the output itself
    struct value shortcut;  // [n, oh, ow, shortcut_c], raw input of a 1x1 convolution that is added
    uint32_t shortcut_c;
    const struct weight *shortcut_weight;  // [k, shortcut_c, 1, 1]
    const struct weight *shortcut_bias;    // [k], or NULL
    struct value statistics;               // where to leave those of the output, or VALUE_NONE
};

enum activation {
    ACTIVATION_NONE,
    ACTIVATION_QUICK_GELU,  // x * sigmoid(1.702 x)
    ACTIVATION_GELU,        // x * (1 + erf(x / sqrt 2)) / 2
};

// Adds scale * up(down(x)) to some rows and some columns of a linear: one adapter of one request.
struct low_rank {
    uint32_t row_begin, row_count;  // of the linear's rows
    uint32_t column_begin,
        column_count;  // of the linear's columns (one of q, k, v in a stacked weight)
    uint32_t rank;
    const struct weight *down;  // [rank, c]
    const struct weight *up;    // [column_count, rank]
    float scale;                // strength * alpha / rank
};

// y = activation(x W^T + bias + low-rank paths) + residual
struct linear {
    struct value input;  // [rows, c]
    uint32_t rows, c;
    struct value output;  // [rows, k]
    uint32_t k;
    const struct weight *weight;  // [k, c]
    const struct weight *bias;    // [k], or NULL; stacked like the weight
    enum activation activation;
    struct value residual;            // [rows, k], or VALUE_NONE; may be the output itself
    const struct low_rank *low_rank;  // copied; applied in this order
    uint32_t low_rank_count;
};

// softmax(scale * q k^T) v for each image or text of the batch and each head; statistics and sums
// in float32; the full score matrix is never stored.
struct attention {
    struct value q, k, v;  // row t of batch b begins at element (b * tokens + t) * stride
    uint32_t q_stride;     // elements; 3 * heads * head_width when q, k, v lie side by side
    uint32_t k_stride;
    uint32_t v_stride;
    struct value output;  // [batch, tokens, heads * head_width], dense
    uint32_t batch, tokens, heads, head_width;
    float scale;
    bool causal;  // a token sees itself and those before it
};

struct layer_norm {
    struct value input;   // [rows, width]
    struct value output;  // [rows, width]; may be the input
    uint32_t rows, width;
    const struct weight *gamma;  // [width]
    const struct weight *beta;   // [width]
    float epsilon;
};

// output[row] = table[id] + positions[row mod tokens]; a negative id -1 - i takes vectors[i]
// instead.
struct embedding {
    struct value ids;      // slot: i32 [rows]
    struct value vectors;  // slot: f32 [vectors_count, width], or VALUE_NONE
    uint32_t vectors_count;
    const struct weight *table;      // [vocabulary, width]
    const struct weight *positions;  // [tokens, width]
    struct value output;             // [rows, width]
    uint32_t rows, tokens, width;    // rows is a multiple of tokens
};

// output[i] = input[indices[i]]
struct gather {
    struct value input;    // [rows, width]
    struct value indices;  // slot: i32 [count], each below rows
    struct value output;   // [count, width]
    uint32_t rows, count, width;
};

// Copies activations to a slot as float32.
struct store {
    struct value input;   // [count]
    struct value output;  // slot: f32 [count]
    uint64_t count;
};

// A rectangle of a larger image: rows y .. y + h, columns x .. x + w of an image of full_h x
// full_w.
struct window {
    uint32_t full_h, full_w;
    uint32_t y, x, h, w;
};

// The four loads and stores below may tell that they came upon NaN or infinity: `not_finite` is a
// u32 of the arena that a clear has set to 0, and one of them, or many, set to 1. A load looks at
// the elements that it takes, as the slot has them: not outside of its window, not at alpha. A
// store looks at its input, in front of the clamp, and at what is written: a finite number too
// large for the output's type is infinite there. One that is clamped is none.

// Pixels 0..1 (u8: value / 255) of one image to activations 2x - 1, in float32 before any rounding.
struct pixels_load {
    struct value source;  // slot: [full_h, full_w, channels] of dtype
    enum dtype dtype;     // u8, f32, f16, bf16
    uint32_t channels;    // 3 or more; the first three are taken
    struct window window;
    struct value output;      // [1, h, w, 3]
    struct value not_finite;  // arena: u32, or VALUE_NONE
};

// clamp((y + 1) / 2, 0, 1) of one whole image to a slot; u8 is rounded to nearest, 255 for 1.
struct pixels_store {
    struct value input;  // [h, w, 3], activations, or float32 when input_f32
    bool input_f32;      // an accumulator of blend_end, not an activation
    bool clamp;  // false: y as it is (for comparisons before the clamp); then dtype is not u8
    uint32_t h, w;
    struct value output;      // slot: [h, w, 3] of dtype
    enum dtype dtype;         // u8, f32, f16, bf16
    struct value not_finite;  // arena: u32, or VALUE_NONE
};

// A window of one latent [channels, full_h, full_w] to activations [1, h, w, channels].
struct latent_load {
    struct value source;  // slot, of dtype
    enum dtype dtype;     // f32, f16, bf16
    uint32_t channels;
    struct window window;
    struct value output;
    struct value not_finite;  // arena: u32, or VALUE_NONE
};

// The first `channels` of input [h, w, stride] to a slot [channels, h, w].
struct latent_store {
    struct value input;  // activations, or float32 when input_f32
    bool input_f32;
    uint32_t h, w, channels, stride;
    struct value output;      // slot, of dtype
    enum dtype dtype;         // f32, f16, bf16
    struct value not_finite;  // arena: u32, or VALUE_NONE
};

// Copies words, what was found for instance, to a slot.
struct words_store {
    struct value input;   // arena: u32 [count]
    struct value output;  // slot: u32 [count]
    uint32_t count;
};

// Sets bytes of the arena to zero.
struct clear {
    struct value output;
    uint64_t bytes;
};

// sum += tile * mask; weight += mask, in float32, where mask(y, x) is the product of feathered
// edges on all four sides as in ComfyUI's tiled_scale: for t in 0 .. feather - 1, line t and line
// length - 1 - t are multiplied by (t + 1) / feather, unless feather >= the tile's length there.
struct blend {
    struct value tile;  // [1, h, w, stride], activations; the first `channels` count
    uint32_t channels, stride;
    struct value sum;     // arena: f32 [full_h, full_w, channels]
    struct value weight;  // arena: f32 [full_h, full_w]
    struct window window;
    uint32_t feather;  // lines; 0: no mask
};

// total = sum / weight of the first pass, total += sum / weight of a later one; after the last pass
// total = total / passes when passes > 1. Sums are taken from left to right in float32.
struct blend_end {
    struct value sum, weight;  // as in blend
    struct value total;  // arena: f32 [full_h, full_w, channels]; may be sum when there is one pass
    uint32_t full_h, full_w, channels;
    uint32_t pass, passes;  // pass counts from 0
};

// Append one operation each.
// Errors:    through program_finish.
// Thread:    the builder's.
void program_convolution(struct program *program, const struct convolution *op);
void program_linear(struct program *program, const struct linear *op);
void program_attention(struct program *program, const struct attention *op);
void program_layer_norm(struct program *program, const struct layer_norm *op);
void program_embedding(struct program *program, const struct embedding *op);
void program_gather(struct program *program, const struct gather *op);
void program_store(struct program *program, const struct store *op);
void program_pixels_load(struct program *program, const struct pixels_load *op);
void program_pixels_store(struct program *program, const struct pixels_store *op);
void program_latent_load(struct program *program, const struct latent_load *op);
void program_latent_store(struct program *program, const struct latent_store *op);
void program_words_store(struct program *program, const struct words_store *op);
void program_clear(struct program *program, const struct clear *op);
void program_blend(struct program *program, const struct blend *op);
void program_blend_end(struct program *program, const struct blend_end *op);

// ---------------------------------------------------------------------------------------------
// Lanes

// Creates an idle lane without an arena.
// Ownership: the caller owns *out.
// Errors:    RESOURCE_EXHAUSTED.
// Thread:    any; afterwards one thread drives the lane, but for lane_cancel and the two counters.
enum status lane_create(struct lane **out, struct device *device, struct error *error);

// Cancels what runs, waits for its end, gives the arena back. NULL is allowed.
// Thread:    the driver's.
void lane_destroy(struct lane **lane_p);

// Begins to make the arena bytes large, more than it is, and returns at once: a real allocation
// that the system accounts for, on a GPU taken as a whole so that no other process can race for it;
// on a CPU the pages come as the first run touches them. It ends as a run does, by lane_collect,
// and cannot be cancelled. The lane is idle.
// Errors:    by lane_collect. RESOURCE_EXHAUSTED: the lane keeps what it had; on a GPU, where the
//            old arena makes room for the new one, it has none when others took that room.
//            UNAVAILABLE: broken.
// Thread:    the driver's.
void lane_grow(struct lane *lane, uint64_t bytes);

// Makes the arena at least bytes large and waits until it is: for who may wait. A smaller request
// keeps the larger arena. The lane is idle.
// Errors:    those of lane_grow.
// Thread:    the driver's.
enum status lane_reserve(struct lane *lane, uint64_t bytes, struct error *error);

// Gives the arena back to the device. The lane is idle.
// Thread:    the driver's.
void lane_release(struct lane *lane);

// Bytes of the arena now; while it grows, as many as before.
// Thread:    the driver's.
uint64_t lane_arena_bytes(const struct lane *lane);

// Starts a finished program and returns at once. bindings[i] is the memory of slot i, the host's
// or, for pixels and latents, a loan's of this device, at least as large as the program named it;
// the caller keeps it and the program until lane_collect. The lane is idle, its arena is large
// enough, ids and indices in slots are in range: whoever let them in has checked them.
// Thread:    the driver's.
void lane_run(struct lane *lane, const struct program *program, void *const *bindings,
              uint32_t bindings_count);

// Becomes readable when the program has ended or the arena is made; lane_collect resets it. Poll
// it, nothing else.
// Thread:    any.
int lane_descriptor(const struct lane *lane);

// Ends the run, or the arena's growth: waits for it if need be, then tells how it went. The lane is
// idle afterwards.
// Errors:    CANCELLED, INTERNAL; RESOURCE_EXHAUSTED when threads could not get their scratch, or a
//            GPU had no memory beside the arena for what ran; UNAVAILABLE when the device is
//            broken: nothing runs on it in this process any more.
// Thread:    the driver's.
enum status lane_collect(struct lane *lane, struct error *error);

// Lets what this lane runs go before what the others run, from now until it is taken back, as far
// as threads are free to choose: for a short request that came behind long ones. It moves the time
// of a run, never its bytes.
// Thread:    the driver's.
void lane_favour(struct lane *lane, bool favoured);

// Asks the running program to stop; it ends within 100 ms as CANCELLED. Nothing happens to an idle
// lane.
// Thread:    any.
void lane_cancel(struct lane *lane);

// A number that grows at least every 100 ms while a program makes progress.
// Thread:    any.
uint64_t lane_progress(const struct lane *lane);

// How many of the running (or last) program's marks were passed.
// Thread:    any.
uint32_t lane_marks(const struct lane *lane);

// From the next run on, when operations and launches end is kept, or is not (as at first). The lane
// is idle.
// Errors:    UNIMPLEMENTED for a device that does not tell; RESOURCE_EXHAUSTED.
// Thread:    the driver's.
enum status lane_trace(struct lane *lane, bool is_kept, struct error *error);

// When the last run began and its operations ended, in nanoseconds of CLOCK_MONOTONIC: a card's own
// events, in their order. Returns how many operations from the first on are known, at most count;
// out has room for count + 1.
// Thread:    the driver's, between lane_collect and the next run.
uint32_t lane_times(const struct lane *lane, uint64_t *out, uint32_t count);

// What a device did for an operation, a part of it or all: a launch by its kernel's name, "copy
// in", "copy out" or "zero". It begins where the one before it ended.
struct lane_launch {
    const char *name;           // lives as long as the device
    uint32_t operation;         // of the program, from 0 on
    uint64_t begin_ns, end_ns;  // of CLOCK_MONOTONIC, within what lane_times tells of the operation
};

// The launches of the last run in their order, all of each operation that lane_times knows. Returns
// how many are known, at most count; 0 on a device that does not tell.
// Thread:    the driver's, between lane_collect and the next run.
uint32_t lane_launches(const struct lane *lane, struct lane_launch *out, uint32_t count);

// How often a lane recorded the launches of a program as one graph, and how often such a graph ran
// in their place. A GPU does so for programs of many small operations that come more than once.
struct lane_graphs {
    uint64_t recorded, replayed;
    uint64_t launches;  // in the graphs that it keeps now
};

// Since the lane was made; zeros on a device without graphs.
// Thread:    any.
struct lane_graphs lane_graphs(const struct lane *lane);

// One operation of a program, for people.
struct operation_facts {
    char name[64];                       // "convolution 3x3 512>512 128x128"
    uint64_t live_bytes;                 // of the arena while it runs
    uint64_t floating_point_operations;  // 2 x MAC
};

// How many operations a finished program has, and what the i-th is.
// Thread:    any.
uint32_t program_operations_count(const struct program *program);
struct operation_facts program_operation(const struct program *program, uint32_t index);

#endif  // KERNELS_KERNELS_H
