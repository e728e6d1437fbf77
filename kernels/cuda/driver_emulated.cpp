// driver_emulated.cpp - driver.h over the emulator: everything happens at once, in the caller's
// thread, one launch at a time whatever the lane.
//
// A fault in a kernel breaks the device, as an illegal address breaks a CUDA context: from then on
// every call fails with the report of the fault.
//
// Under the name of libluna_cuda.so this library opens "cuda:N" as well, so that what looks for
// cards and starts executors for them can be tested: $LUNA_EMULATION_CARDS says how many there are,
// 1 by default, $LUNA_EMULATION_CAPABILITY which compute capability they claim, 9.0 by default.
// What may go wrong beside a program can be arranged while it runs, by files in the folder
// $LUNA_EMULATION_FAULTS:
//
//     hog      so many bytes of the device are held by somebody else
//     graph    so many calls on, gpu_graph_begin, its end or a launch fails, once
//     refuse   the next allocation of at least so many bytes fails, once
//     stall    allocations of at least so many bytes wait until the file is gone
//     break    the next launch fails for good, once
//     lack     the next launch finds no memory of the device left, once
//     pace     every launch takes so many microseconds more

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/emulation/emulation.h"

#include "kernels/cuda/driver_emulated.h"
#include "kernels/cuda/spans.h"

struct gpu_card {
    struct gpu_facts facts;
    std::atomic<uint64_t> used_bytes;
};

struct gpu_stream {
    struct gpu_signals *signals;
    bool has_failed;
    bool lacks_memory;            // has_failed, and the device is as good as before
    char message[1024];           // why
    struct gpu_spans spans;       // of the last run
    struct gpu_graph *recording;  // NULL: what is enqueued is done
};

// What is done again, in order.
struct gpu_graph {
    std::vector<std::function<void()>> calls;
};

namespace
{

// As many as make both kinds of products from a few rows on: those whose slices have blocks of
// their own and those whose have not.
constexpr uint32_t MULTIPROCESSORS = 3;

// The emulator has one device and runs one launch; this lock orders its users. How its memory
// stands can be read without it, since a launch takes seconds here.
// Who waits goes first: a lane that launches without a pause would else keep others out.
struct device_state {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
    uint64_t tickets = 0;  // given out
    uint64_t served = 0;   // the holder's ticket, or the next one's
    std::atomic<bool> is_broken{false};
    std::atomic<uint64_t> allocated_bytes{0};
    char message[1024] = "";
};

device_state &device()
{
    static device_state made;
    return made;
}

void take_device()
{
    device_state &self = device();
    pthread_mutex_lock(&self.lock);
    uint64_t ticket = self.tickets++;
    while (ticket != self.served) pthread_cond_wait(&self.turned, &self.lock);
    pthread_mutex_unlock(&self.lock);
}

void give_device()
{
    device_state &self = device();
    pthread_mutex_lock(&self.lock);
    self.served += 1;
    pthread_cond_broadcast(&self.turned);
    pthread_mutex_unlock(&self.lock);
}

class guard
{
  public:
    guard()
    {
        take_device();
    }
    ~guard()
    {
        give_device();
    }
    guard(const guard &) = delete;
    guard &operator=(const guard &) = delete;
};

// The number in a file of the folder of faults; false when there is no such file.
bool read_fault(const char *name, uint64_t *out)
{
    const char *folder = getenv("LUNA_EMULATION_FAULTS");
    char path[512];
    if (folder == nullptr) return false;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (file == nullptr) return false;
    char text[32] = "";
    if (fgets(text, sizeof text, file) == nullptr) text[0] = '\0';
    fclose(file);
    *out = strtoull(text, nullptr, 10);
    return true;
}

// Takes a fault that happens once; false when somebody was quicker.
bool take_fault(const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", getenv("LUNA_EMULATION_FAULTS"), name);
    return unlink(path) == 0;
}

void write_fault(const char *name, uint64_t number)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", getenv("LUNA_EMULATION_FAULTS"), name);
    FILE *file = fopen(path, "we");
    if (file == nullptr) return;
    fprintf(file, "%llu", static_cast<unsigned long long>(number));
    fclose(file);
}

uint64_t free_bytes()
{
    uint64_t held = 0;
    read_fault("hog", &held);
    held += device().allocated_bytes;
    uint64_t total = emulation::settings().device_bytes;
    return held < total ? total - held : 0;
}

// A driver may take its time for memory; what runs goes on meanwhile.
void stall(uint64_t bytes)
{
    uint64_t stalled = 0;
    while (read_fault("stall", &stalled) && bytes >= stalled) usleep(1000);
}

uint64_t now_ns()
{
    struct timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

uint32_t cards_count()
{
    const char *value = getenv("LUNA_EMULATION_CARDS");
    return value == nullptr ? 1 : static_cast<uint32_t>(strtoul(value, nullptr, 10));
}

bool is_cancelled(const struct gpu_stream *stream)
{
    return __atomic_load_n(&stream->signals->is_cancelled, __ATOMIC_RELAXED) != 0;
}

// What a launch asks between two blocks.
bool count_and_go_on(void *context)
{
    auto *stream = static_cast<struct gpu_stream *>(context);
    __atomic_fetch_add(&stream->signals->progress, 1, __ATOMIC_RELAXED);
    return !is_cancelled(stream);
}

enum status fail_broken(struct error *error)
{
    return error_set(error, STATUS_UNAVAILABLE, "the emulated device is broken: %s",
                     device().message);
}

// Nothing more is done on the stream until it is reset. The caller holds the lock.
void note_failure(struct gpu_stream *stream, const char *what, const char *why)
{
    if (!stream->has_failed) {
        snprintf(stream->message, sizeof stream->message, "kernel %s failed: %s", what, why);
    }
    stream->has_failed = true;
}

// And nothing on the device. The caller holds the lock.
void set_failure(struct gpu_stream *stream, const char *what, const char *why)
{
    note_failure(stream, what, why);
    if (!device().is_broken) {
        snprintf(device().message, sizeof device().message, "%s", stream->message);
    }
    device().is_broken = true;
}

// True when a fault was arranged for this call about graphs.
bool graphs_fail()
{
    uint64_t number = 0;
    if (!read_fault("graph", &number) || !take_fault("graph")) return false;
    if (number <= 1) return true;
    write_fault("graph", number - 1);
    return false;
}

// Copies between host and device memory, which is open only meanwhile.
void copy_plane(struct gpu_stream *stream, const char *name, void *to, const void *from,
                struct gpu_plane plane)
{
    if (stream->recording != nullptr) {
        stream->recording->calls.push_back([=] { copy_plane(stream, name, to, from, plane); });
        return;
    }
    guard held;
    if (stream->has_failed || device().is_broken || is_cancelled(stream)) return;
    emulation::open_memory();
    for (uint64_t row = 0; row < plane.rows; row++) {
        memcpy(static_cast<char *>(to) + row * plane.to_pitch,
               static_cast<const char *>(from) + row * plane.from_pitch, plane.width);
    }
    emulation::shut_memory();
    gpu_stream_note(stream, name);
}

bool fits(uint64_t bytes)
{
    uint64_t refused = 0;
    bool is_refused = read_fault("refuse", &refused) && bytes >= refused && take_fault("refuse");
    return !is_refused && bytes <= free_bytes();
}

enum status fail_to_fit(uint64_t bytes, struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED,
                     "no device memory for %llu bytes beside the %llu in use",
                     static_cast<unsigned long long>(bytes),
                     static_cast<unsigned long long>(device().allocated_bytes));
}

void count_taken(struct gpu_card *card, uint64_t bytes)
{
    card->used_bytes += bytes;
    device().allocated_bytes += bytes;
}

}  // namespace

enum status gpu_emulated_take(struct gpu_card *self, uint64_t bytes, struct error *error)
{
    stall(bytes);
    guard held;
    if (device().is_broken) return fail_broken(error);
    if (!fits(bytes)) return fail_to_fit(bytes, error);
    count_taken(self, bytes);
    return STATUS_OK;
}

void gpu_emulated_give(struct gpu_card *self, uint64_t bytes)
{
    self->used_bytes -= bytes;
    device().allocated_bytes -= bytes;
}

extern "C" {

bool gpu_driver_takes(const char *name, uint32_t *number, const char **rest)
{
    const size_t prefix = strlen("cuda:");
    char *end = nullptr;
    *number = 0;
    *rest = name + strlen("emulated");
    if (strncmp(name, "emulated", strlen("emulated")) == 0) return true;
    if (strncmp(name, "cuda:", prefix) != 0 || name[prefix] < '0' || name[prefix] > '9') {
        return false;
    }
    *number = static_cast<uint32_t>(strtoul(name + prefix, &end, 10));
    *rest = end;
    return true;
}

enum status gpu_probe(struct gpu_count *out, struct error *error)
{
    struct gpu_count found = {};
    found.count = cards_count();
    if (found.count == 0 || found.count > 64) {
        return error_set(error, STATUS_UNAVAILABLE, "no card is emulated");
    }
    found.usable = ~UINT64_C(0) >> (64 - found.count);
    snprintf(found.driver, sizeof found.driver, "emulation");
    *out = found;
    return STATUS_OK;
}

enum status gpu_open(struct gpu_card **out, uint32_t number, struct error *error)
{
    if (number >= cards_count()) {
        return error_set(error, STATUS_NOT_FOUND, "there is no device \"cuda:%u\", %u are emulated",
                         number, cards_count());
    }
    auto *self = static_cast<struct gpu_card *>(calloc(1, sizeof(struct gpu_card)));
    if (self == nullptr) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a device");
    }
    struct gpu_facts *facts = &self->facts;
    snprintf(facts->label, sizeof facts->label, "CUDA kernels emulated on the processor, seed %llu",
             static_cast<unsigned long long>(emulation::settings().seed));
    snprintf(facts->driver, sizeof facts->driver, "emulation");
    snprintf(facts->uuid, sizeof facts->uuid, "GPU-00000000-0000-0000-0000-%012u", number);
    const char *capability = getenv("LUNA_EMULATION_CAPABILITY");
    snprintf(facts->capability, sizeof facts->capability, "%s",
             capability == nullptr ? "9.0" : capability);
    facts->multiprocessors = MULTIPROCESSORS;
    *out = self;
    return STATUS_OK;
}

void gpu_close(struct gpu_card **self_p)
{
    free(*self_p);
    *self_p = nullptr;
}

const struct gpu_facts *gpu_describe(const struct gpu_card *self)
{
    return &self->facts;
}

enum status gpu_read_memory(struct gpu_card *self, struct gpu_memory *out, struct error *error)
{
    if (device().is_broken) return fail_broken(error);
    *out = {emulation::settings().device_bytes, free_bytes(), self->used_bytes};
    return STATUS_OK;
}

enum status gpu_allocate(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    stall(bytes);
    guard held;
    if (device().is_broken) return fail_broken(error);
    void *memory = fits(bytes) ? emulation::allocate(bytes) : nullptr;
    if (memory == nullptr) return fail_to_fit(bytes, error);
    *out = memory;
    count_taken(self, bytes);
    return STATUS_OK;
}

void gpu_free(struct gpu_card *self, void *memory, uint64_t bytes)
{
    if (memory == nullptr) return;
    guard held;
    emulation::release(memory);
    self->used_bytes -= bytes;
    device().allocated_bytes -= bytes;
}

enum status gpu_upload(struct gpu_card *self, void *to, const struct gpu_source *source,
                       struct error *error)
{
    static_cast<void>(self);
    // Small at first, so that most weights come in several pieces, then larger: a piece may have to
    // wait for a launch.
    const uint64_t piece_max = 64000;
    uint64_t piece = 500;
    uint64_t count = 0;
    std::vector<char> memory(4 * piece_max);
    char *staging = memory.data();
    for (uint64_t first = 0; first < source->count; first += count) {
        uint64_t left = source->count - first;
        if (piece < piece_max) piece *= 2;
        count = left < piece ? left : piece;
        source->fill(source->context, staging, first, count);
        guard held;
        if (device().is_broken) return fail_broken(error);
        emulation::open_memory();
        memcpy(static_cast<char *>(to) + first * source->element_bytes, staging,
               count * source->element_bytes);
        emulation::shut_memory();
    }
    return STATUS_OK;
}

enum status gpu_stream_create(struct gpu_stream **out, struct gpu_card *card,
                              struct gpu_signals *signals, struct error *error)
{
    static_cast<void>(card);
    auto *self = static_cast<struct gpu_stream *>(calloc(1, sizeof(struct gpu_stream)));
    if (self == nullptr) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a stream");
    }
    self->signals = signals;
    *out = self;
    return STATUS_OK;
}

void gpu_stream_destroy(struct gpu_stream **self_p)
{
    if (*self_p != nullptr) spans_free(&(*self_p)->spans);
    free(*self_p);
    *self_p = nullptr;
}

void gpu_stream_reset(struct gpu_stream *self)
{
    self->has_failed = false;
    self->lacks_memory = false;
    spans_forget(&self->spans);
    if (self->spans.all != nullptr) spans_begin(&self->spans, now_ns());
}

void gpu_copy_in(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, "copy in", to, from, plane);
}

void gpu_copy_out(struct gpu_stream *self, void *to, const void *from, struct gpu_plane plane)
{
    copy_plane(self, "copy out", to, from, plane);
}

void gpu_zero(struct gpu_stream *self, void *to, uint64_t bytes)
{
    if (self->recording != nullptr) {
        self->recording->calls.push_back([=] { gpu_zero(self, to, bytes); });
        return;
    }
    guard held;
    if (self->has_failed || device().is_broken || is_cancelled(self)) return;
    emulation::open_memory();
    memset(to, 0, bytes);
    emulation::shut_memory();
    gpu_stream_note(self, "zero");
}

enum status gpu_pin(struct gpu_card *self, uint64_t bytes, void **out, struct error *error)
{
    static_cast<void>(self);
    void *memory = malloc(bytes);
    if (memory == nullptr) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory to pin");
    *out = memory;
    return STATUS_OK;
}

void gpu_unpin(struct gpu_card *self, void *memory)
{
    static_cast<void>(self);
    free(memory);
}

bool gpu_graph_begin(struct gpu_stream *self)
{
    assert(self->recording == nullptr);
    assert(!self->spans.is_noting);
    if (graphs_fail()) return false;
    self->recording = new gpu_graph;
    return true;
}

enum status gpu_graph_end(struct gpu_stream *self, struct gpu_graph **out, struct error *error)
{
    assert(self->recording != nullptr);
    struct gpu_graph *made = self->recording;
    self->recording = nullptr;
    if (graphs_fail()) {
        gpu_graph_destroy(&made);
        return error_set(error, STATUS_INTERNAL, "this graph was to fail");
    }
    *out = made;
    return STATUS_OK;
}

uint32_t gpu_graph_size(const struct gpu_graph *graph)
{
    return static_cast<uint32_t>(graph->calls.size());
}

bool gpu_graph_launch(struct gpu_stream *self, struct gpu_graph *graph)
{
    assert(self->recording == nullptr);
    assert(!self->spans.is_noting);
    if (graphs_fail()) return false;
    for (const auto &call : graph->calls) call();
    return true;
}

void gpu_graph_destroy(struct gpu_graph **graph_p)
{
    delete *graph_p;
    *graph_p = nullptr;
}

bool gpu_stream_is_recording(const struct gpu_stream *self)
{
    return self->recording != nullptr;
}

void gpu_stream_record(struct gpu_stream *self, void (*launch)(void *context),
                       void (*drop)(void *context), void *context)
{
    std::shared_ptr<void> kept(context, drop);
    self->recording->calls.push_back([=] { launch(kept.get()); });
}

void gpu_step_end(struct gpu_stream *self, uint32_t step)
{
    static_cast<void>(step);
    assert(self->recording == nullptr);
    spans_end_step(&self->spans);
}

void gpu_step_wait(struct gpu_stream *self, uint32_t step)
{
    static_cast<void>(self);
    static_cast<void>(step);
}

enum status gpu_stream_wait(struct gpu_stream *self, struct error *error)
{
    guard held;
    enum status failure = self->lacks_memory ? STATUS_RESOURCE_EXHAUSTED : STATUS_UNAVAILABLE;
    enum status status = STATUS_OK;
    if (self->has_failed) {
        status = error_set(error, failure, "%s", self->message);
    } else if (device().is_broken) {
        status = fail_broken(error);
    } else if (is_cancelled(self)) {
        status = error_set(error, STATUS_CANCELLED, "the run was cancelled");
    }
    if (status != STATUS_OK) spans_forget(&self->spans);
    spans_cut(&self->spans, self->spans.count);  // what belongs to no step that ended
    return status;
}

enum status gpu_stream_trace(struct gpu_stream *self, bool is_kept, struct error *error)
{
    if (is_kept == (self->spans.all != nullptr)) return STATUS_OK;
    spans_free(&self->spans);
    return is_kept ? spans_make(&self->spans, error) : STATUS_OK;
}

const struct gpu_spans *gpu_stream_spans(const struct gpu_stream *self)
{
    return &self->spans;
}

void gpu_stream_note(struct gpu_stream *self, const char *name)
{
    if (!self->spans.is_noting) return;
    uint32_t index = self->spans.count;
    if (index == GPU_SPANS_MAX) {
        spans_cut(&self->spans, index);
    } else {
        spans_add(&self->spans, name);
        spans_time(&self->spans, index, now_ns());
    }
}

void *gpu_stream_handle(struct gpu_stream *self)
{
    return self;
}

void gpu_stream_fail(struct gpu_stream *self, const char *what, const char *why)
{
    guard held;
    set_failure(self, what, why);
}

bool gpu_stream_begin_launch(struct gpu_stream *self)
{
    take_device();
    bool may_begin = !self->has_failed && !device().is_broken && !is_cancelled(self);
    uint64_t number = 0;
    if (may_begin && read_fault("break", &number) && take_fault("break")) {
        set_failure(self, "at hand", "this launch was to fail");
        may_begin = false;
    }
    if (may_begin && read_fault("lack", &number) && take_fault("lack")) {
        note_failure(self, "at hand", "the device has no memory for it");
        self->lacks_memory = true;
        may_begin = false;
    }
    if (may_begin && read_fault("pace", &number)) usleep(static_cast<useconds_t>(number));
    if (may_begin) {
        emulation::watch({count_and_go_on, self});
    } else {
        give_device();
    }
    return may_begin;
}

void gpu_stream_end_launch(struct gpu_stream *self, const char *what, const char *why)
{
    if (why != nullptr) {
        set_failure(self, what, why);
    } else {
        gpu_stream_note(self, what);
    }
    give_device();
}

}  // extern "C"
