// test_driver_cuda.c - the CUDA driver's host code against a runtime of no card.

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/driver_loan.h"
#include "tests/emulation/fake_runtime.h"
#include "tests/test.h"

static struct gpu_card *open_card(void)
{
    struct gpu_card *card = NULL;
    fake_reset();
    assert_int_equal(gpu_open(&card, 0, NULL), STATUS_OK);
    return card;
}

// A card with 16 bytes of its memory and a stream.
struct bench {
    struct gpu_card *card;       //
    struct gpu_signals signals;  // of stream
    struct gpu_stream *stream;   //
    void *memory;                // of the card
};

static void open_bench(struct bench *self)
{
    *self = (struct bench){.card = open_card()};
    assert_int_equal(gpu_allocate(self->card, 16, &self->memory, NULL), STATUS_OK);
    assert_int_equal(gpu_stream_create(&self->stream, self->card, &self->signals, NULL), STATUS_OK);
}

static void close_bench(struct bench *self)
{
    gpu_stream_destroy(&self->stream);
    gpu_free(self->card, self->memory, 16);
    gpu_close(&self->card);
}

static void cards_are_counted_and_old_ones_refused(void **state)
{
    (void)state;
    struct gpu_count found;
    struct gpu_card *card = NULL;
    struct error error;
    fake_reset();
    assert_int_equal(gpu_probe(&found, &error), STATUS_OK);
    assert_int_equal(found.count, 2);
    assert_int_equal(found.usable, 1);
    assert_string_equal(found.refusal, "cuda:1: Card 1 has compute capability 7.5, 8.0 is needed");
    assert_non_null(strstr(found.driver, "CUDA 13.0"));
    assert_int_equal(gpu_open(&card, 1, &error), STATUS_UNAVAILABLE);
    assert_int_equal(gpu_open(&card, 2, &error), STATUS_NOT_FOUND);
    fake.cards = 0;
    assert_int_equal(gpu_probe(&found, &error), STATUS_UNAVAILABLE);
    fake.driver = 0;
    assert_int_equal(gpu_probe(&found, &error), STATUS_UNAVAILABLE);
    assert_non_null(strstr(error.message, "libcuda.so.1"));
}

static void a_card_says_what_it_is(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    const struct gpu_facts *facts = gpu_describe(card);
    assert_string_equal(facts->label, "Card 0");
    assert_string_equal(facts->capability, "8.9");
    assert_string_equal(facts->uuid, "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
    uint32_t number = 9;
    const char *rest = NULL;
    assert_true(gpu_driver_takes("cuda:12:f16", &number, &rest));
    assert_int_equal(number, 12);
    assert_string_equal(rest, ":f16");
    assert_false(gpu_driver_takes("emulated", &number, &rest));
    gpu_close(&card);
}

// While the device is busy cudaFree would wait: we do not, what we freed counts as free, and who
// needs it waits no longer than it takes.
static void freeing_never_waits_and_is_believed_at_once(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    struct gpu_memory memory;
    void *large = NULL;
    void *larger = NULL;
    void *pinned = NULL;
    assert_int_equal(gpu_pin(card, 16, &pinned, NULL), STATUS_OK);
    assert_int_equal(gpu_allocate(card, 600u << 20, &large, NULL), STATUS_OK);
    assert_int_equal(gpu_read_memory(card, &memory, NULL), STATUS_OK);
    assert_int_equal(memory.used_bytes, 600u << 20);
    assert_int_equal(memory.free_bytes, CARD_BYTES - (600u << 20));
    fake.is_busy = true;
    gpu_free(card, large, 600u << 20);
    gpu_unpin(card, pinned);
    assert_int_equal(gpu_read_memory(card, &memory, NULL), STATUS_OK);
    assert_int_equal(memory.used_bytes, 0);
    assert_int_equal(memory.free_bytes, CARD_BYTES);
    assert_int_equal(gpu_allocate(card, 900u << 20, &larger, NULL), STATUS_OK);
    struct error error;
    assert_int_equal(gpu_allocate(card, 900u << 20, &large, &error), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(fake.last, cudaSuccess);  // taken back
    gpu_free(card, larger, 900u << 20);
    gpu_close(&card);
    assert_int_equal(fake.allocated_bytes, 0);
    assert_int_equal(fake.host_bytes, 0);
}

static void count_up(void *context, void *to, uint64_t first, uint64_t count)
{
    (void)context;
    uint32_t *numbers = to;
    for (uint64_t i = 0; i < count; i++) numbers[i] = (uint32_t)(first + i);
}

#define NUMBERS (UINT64_C(5) << 20)

static void an_upload_of_several_pieces_arrives_whole(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    const struct gpu_source source = {
        .fill = count_up, .count = NUMBERS, .element_bytes = sizeof(uint32_t)};
    void *memory = NULL;
    assert_int_equal(gpu_allocate(card, NUMBERS * 4, &memory, NULL), STATUS_OK);
    for (int time = 0; time < 2; time++) {
        memset(memory, 0xff, NUMBERS * 4);
        assert_int_equal(gpu_upload(card, memory, &source, NULL), STATUS_OK);
        const uint32_t *numbers = memory;
        uint64_t right = 0;
        while (right < NUMBERS && numbers[right] == right) right++;
        assert_int_equal(right, NUMBERS);
    }
    assert_in_range(fake.host_bytes, 1, 16u << 20);
    gpu_free(card, memory, NUMBERS * 4);
    gpu_close(&card);
    assert_int_equal(fake.host_bytes, 0);
    assert_int_equal(fake_live_objects(), 0);
}

static void a_loan_is_zeroed_counted_and_has_a_handle(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    struct gpu_memory told;
    uint8_t handle[GPU_HANDLE_BYTES] = {0};
    void *loan = NULL;
    void *named = NULL;
    assert_int_equal(gpu_lend(card, 2u << 20, &loan, handle, NULL), STATUS_OK);
    memcpy(&named, handle, sizeof named);
    assert_ptr_equal(named, loan);
    const uint8_t *bytes = loan;
    uint32_t set = 0;
    for (uint32_t i = 0; i < 2u << 20; i++) set |= bytes[i];
    assert_int_equal(set, 0);
    assert_int_equal(gpu_read_memory(card, &told, NULL), STATUS_OK);
    assert_int_equal(told.used_bytes, 2u << 20);
    gpu_take_back(card, loan, 2u << 20, handle);
    assert_int_equal(gpu_read_memory(card, &told, NULL), STATUS_OK);
    assert_int_equal(told.used_bytes, 0);
    gpu_close(&card);
    assert_int_equal(fake.allocated_bytes, 0);
}

static void a_system_that_cannot_share_is_no_broken_device(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    struct error error;
    uint8_t handle[GPU_HANDLE_BYTES] = {0};
    void *loan = NULL;
    fake.fail_at = fake.calls + 3;  // behind cudaSetDevice and cudaMalloc
    assert_int_equal(gpu_lend(card, 2u << 20, &loan, handle, &error), STATUS_UNIMPLEMENTED);
    assert_non_null(strstr(error.message, "cudaIpcGetMemHandle"));
    assert_int_equal(fake.last, cudaSuccess);  // taken back
    assert_null(loan);
    assert_int_equal(gpu_lend(card, CARD_BYTES * 2, &loan, handle, &error),
                     STATUS_RESOURCE_EXHAUSTED);
    fake.sticky = cudaErrorIllegalAddress;
    assert_int_equal(gpu_lend(card, 2u << 20, &loan, handle, &error), STATUS_UNAVAILABLE);
    gpu_close(&card);
    assert_int_equal(fake.allocated_bytes, 0);
}

// A run of a few steps and its times; returns how it ended.
static enum status run(struct gpu_stream *stream, void *memory, char *host, struct error *error)
{
    const struct gpu_plane line = {.width = 4, .rows = 1};
    const struct gpu_plane plane = {.width = 2, .rows = 2, .to_pitch = 2, .from_pitch = 4};
    gpu_stream_reset(stream);
    for (uint32_t i = 0; i < 20; i++) {
        gpu_zero(stream, memory, 16);
        gpu_copy_in(stream, memory, host, plane);
        gpu_step_end(stream, i);
        if (i + 1 >= GPU_STEPS_MAX) gpu_step_wait(stream, i + 1 - GPU_STEPS_MAX);
    }
    gpu_copy_out(stream, host + 8, memory, line);
    return gpu_stream_wait(stream, error);
}

// A call that finds no memory of the device left is a shortage, whichever it is, and the stream
// works when there is some.
static void a_shortage_within_a_run_is_told_from_a_failure(void **state)
{
    (void)state;
    struct bench bench;
    struct error error;
    char host[16] = "abcdefgh";
    open_bench(&bench);
    assert_string_equal(getenv("CUDA_MODULE_LOADING"), "EAGER");
    fake.failure = cudaErrorMemoryAllocation;
    for (uint64_t number = 1; number < 20; number++) {
        fake.fail_at = fake.calls + number;
        assert_int_equal(run(bench.stream, bench.memory, host, &error), STATUS_RESOURCE_EXHAUSTED);
        assert_non_null(strstr(error.message, "has no memory for it"));
        fake.fail_at = 0;
        assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_OK);
    }
    fake.failure = cudaErrorUnknown;
    fake.fail_at = fake.calls + 2;
    assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_INTERNAL);
    close_bench(&bench);
}

// The spans of run(): one after the other, two a step. Each event takes a millisecond of the fake
// runtime's clock, that of the step's end too.
static void check_spans(const struct gpu_spans *spans)
{
    uint64_t end_ns = spans->begin_ns;
    assert_int_equal(spans->steps, 20);
    assert_int_equal(spans->count, 40);  // the last copy is in no step
    for (uint32_t i = 0; i < spans->count; i++) {
        const struct gpu_span *span = &spans->all[i];
        assert_string_equal(span->name, i % 2 == 0 ? "zero" : "copy in");
        assert_int_equal(span->step, i / 2);
        assert_int_equal(span->begin_ns, end_ns);
        assert_int_equal(span->end_ns - span->begin_ns, i % 2 == 1 || i == 0 ? 1000000 : 2000000);
        end_ns = span->end_ns;
    }
}

static void a_traced_run_has_a_span_for_all_that_it_did(void **state)
{
    (void)state;
    struct bench bench;
    char host[16] = "abcdefgh";
    open_bench(&bench);
    const struct gpu_spans *spans = gpu_stream_spans(bench.stream);
    for (int time = 0; time < 4; time++) {
        bool is_kept = time == 1 || time == 2;
        assert_int_equal(gpu_stream_trace(bench.stream, is_kept, NULL), STATUS_OK);
        uint64_t before = fake.records;
        assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_OK);
        assert_memory_equal(host + 8, "abef", 4);
        // An event a step and one to wait for; traced, one for the begin and one a span.
        assert_int_equal(fake.records - before, is_kept ? 63 : 21);
        if (is_kept) check_spans(spans);
        if (!is_kept) assert_int_equal(spans->count + spans->steps, 0);
    }
    assert_int_equal(gpu_stream_trace(bench.stream, true, NULL), STATUS_OK);
    __atomic_store_n(&bench.signals.is_cancelled, 1, __ATOMIC_RELAXED);
    assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_CANCELLED);
    assert_int_equal(spans->count + spans->steps, 0);
    close_bench(&bench);
    assert_int_equal(fake_live_objects(), 0);
}

static void a_launch_is_a_span_of_its_name_and_a_step_may_have_none(void **state)
{
    (void)state;
    struct bench bench;
    open_bench(&bench);
    assert_int_equal(gpu_stream_trace(bench.stream, true, NULL), STATUS_OK);
    gpu_stream_reset(bench.stream);
    gpu_step_end(bench.stream, 0);
    gpu_stream_note(bench.stream, "split_rows");
    gpu_stream_note(bench.stream, "products_mma");
    gpu_step_end(bench.stream, 1);
    gpu_step_end(bench.stream, 2);
    assert_int_equal(gpu_stream_wait(bench.stream, NULL), STATUS_OK);
    const struct gpu_spans *spans = gpu_stream_spans(bench.stream);
    assert_int_equal(spans->steps, 3);
    assert_int_equal(spans->count, 2);
    assert_string_equal(spans->all[0].name, "split_rows");
    assert_string_equal(spans->all[1].name, "products_mma");
    assert_int_equal(spans->all[0].step, 1);
    assert_int_equal(spans->all[1].step, 1);
    gpu_stream_note(bench.stream, "nobody's");  // behind the end
    assert_int_equal(spans->count, 2);
    close_bench(&bench);
}

// Three spans a step, of which room is for a third less than a whole number: 8192 = 3 * 2730 + 2.
static void spans_beyond_the_room_cost_no_more_than_the_steps_they_are_in(void **state)
{
    (void)state;
    struct bench bench;
    open_bench(&bench);
    assert_int_equal(gpu_stream_trace(bench.stream, true, NULL), STATUS_OK);
    for (int time = 0; time < 2; time++) {
        gpu_stream_reset(bench.stream);
        uint64_t before = fake.records;
        for (uint32_t i = 0; i < 3 * GPU_SPANS_MAX; i++) {
            gpu_stream_note(bench.stream, "split_rows");
            if (i % 3 == 2) gpu_step_end(bench.stream, i / 3);
        }
        assert_int_equal(fake.records - before, GPU_SPANS_MAX + GPU_SPANS_MAX);
        assert_int_equal(gpu_stream_wait(bench.stream, NULL), STATUS_OK);
        const struct gpu_spans *spans = gpu_stream_spans(bench.stream);
        assert_int_equal(spans->steps, GPU_SPANS_MAX / 3);
        assert_int_equal(spans->count, GPU_SPANS_MAX / 3 * 3);
        assert_int_equal(spans->all[spans->count - 1].step, GPU_SPANS_MAX / 3 - 1);
    }
    close_bench(&bench);
    assert_int_equal(fake_live_objects(), 0);
}

// Events that cannot be had, or tell no time, are times that are not known: the run is none the
// worse, and what is known is a beginning of it.
static void a_trace_that_fails_anywhere_keeps_whole_steps_and_the_run(void **state)
{
    (void)state;
    uint32_t shortened = 0;
    for (uint64_t number = 1; number < 400; number++) {
        struct bench bench;
        char host[16] = "abcdefgh";
        open_bench(&bench);
        assert_int_equal(gpu_stream_trace(bench.stream, true, NULL), STATUS_OK);
        fake.fail_at = fake.calls + number;
        enum status status = run(bench.stream, bench.memory, host, NULL);
        fake.fail_at = 0;
        const struct gpu_spans *spans = gpu_stream_spans(bench.stream);
        assert_int_equal(spans->count, 2 * spans->steps);
        if (status != STATUS_OK) assert_int_equal(spans->steps, 0);
        if (status == STATUS_OK) {
            assert_memory_equal(host + 8, "abef", 4);
            assert_int_equal(fake.last, cudaSuccess);  // no launch finds what was none of its own
            shortened += spans->steps < 20;
        }
        for (uint32_t i = 0; i < spans->count; i++) assert_true(spans->all[i].end_ns > 0);
        assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_OK);
        check_spans(spans);
        close_bench(&bench);
        assert_int_equal(fake_live_objects(), 0);
    }
    // The begin's event made, recorded and waited for; 40 made, recorded and read.
    assert_int_equal(shortened, 3 + 3 * 40);
}

static void a_failure_that_stays_means_that_the_device_is_broken(void **state)
{
    (void)state;
    struct bench bench;
    struct gpu_memory told;
    char host[16] = "";
    open_bench(&bench);
    fake.fail_at = fake.calls + 9;
    assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_INTERNAL);
    assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_OK);
    fake.sticky = cudaErrorIllegalAddress;
    assert_int_equal(run(bench.stream, bench.memory, host, NULL), STATUS_UNAVAILABLE);
    assert_int_equal(gpu_read_memory(bench.card, &told, NULL), STATUS_UNAVAILABLE);
    assert_int_equal(gpu_allocate(bench.card, 16, &bench.memory, NULL), STATUS_UNAVAILABLE);
    close_bench(&bench);
}

// Takes four bytes in, doubled by a second copy, and out again, as a graph if it can be had.
// Returns how it ended.
static enum status run_graph(struct gpu_stream *stream, void *memory, char *host, bool *is_graph)
{
    const struct gpu_plane line = {.width = 4, .rows = 1};
    struct gpu_graph *graph = NULL;
    gpu_stream_reset(stream);
    *is_graph = gpu_graph_begin(stream);
    if (*is_graph) {
        gpu_zero(stream, memory, 16);
        gpu_copy_in(stream, memory, host, line);
        gpu_copy_out(stream, host + 8, memory, line);
        *is_graph = gpu_graph_end(stream, &graph, NULL) == STATUS_OK;
    }
    assert_null(fake.capturing);
    *is_graph = *is_graph && gpu_graph_launch(stream, graph);
    if (!*is_graph) {
        gpu_zero(stream, memory, 16);
        gpu_copy_in(stream, memory, host, line);
        gpu_copy_out(stream, host + 8, memory, line);
    }
    enum status status = gpu_stream_wait(stream, NULL);
    gpu_graph_destroy(&graph);
    assert_null(graph);
    return status;
}

static void a_graph_does_when_launched_what_was_recorded(void **state)
{
    (void)state;
    struct gpu_card *card = open_card();
    struct gpu_signals signals = {.is_cancelled = 0};
    struct gpu_stream *stream = NULL;
    struct gpu_graph *graph = NULL;
    const struct gpu_plane line = {.width = 4, .rows = 1};
    void *memory = NULL;
    void *pinned = NULL;
    assert_int_equal(gpu_allocate(card, 16, &memory, NULL), STATUS_OK);
    assert_int_equal(gpu_pin(card, 16, &pinned, NULL), STATUS_OK);
    assert_int_equal(gpu_stream_create(&stream, card, &signals, NULL), STATUS_OK);
    char *host = pinned;
    memcpy(host, "abcd----EFGH----", 16);
    gpu_stream_reset(stream);
    assert_true(gpu_graph_begin(stream));
    gpu_copy_in(stream, memory, host, line);
    gpu_copy_out(stream, host + 8, memory, line);
    assert_int_equal(gpu_graph_end(stream, &graph, NULL), STATUS_OK);
    assert_int_equal(gpu_stream_wait(stream, NULL), STATUS_OK);
    assert_memory_equal(host + 8, "EFGH", 4);  // nothing was done
    for (int i = 0; i < 3; i++) {
        host[0] = (char)('a' + i);
        gpu_stream_reset(stream);
        assert_true(gpu_graph_launch(stream, graph));
        assert_int_equal(gpu_stream_wait(stream, NULL), STATUS_OK);
        assert_memory_equal(host + 8, host, 4);
    }
    gpu_graph_destroy(&graph);
    gpu_stream_destroy(&stream);
    gpu_unpin(card, pinned);
    gpu_free(card, memory, 16);
    gpu_close(&card);
    assert_int_equal(fake.graphs, 0);
    assert_int_equal(fake_live_objects(), 0);
    assert_int_equal(fake.host_bytes, 0);
}

// Every call about graphs failing once: the same bytes by plain calls, and a stream that works.
static void a_graph_that_fails_anywhere_leaves_a_stream_that_works(void **state)
{
    (void)state;
    uint32_t without = 0;
    bool is_graph = false;
    for (uint64_t number = 1; number < 100; number++) {
        struct bench bench;
        char host[16] = "wxyz";
        open_bench(&bench);
        uint64_t before = fake.calls;
        fake.fail_at = before + 1 + number;  // not the device's, which gpu_stream_reset sets
        enum status status = run_graph(bench.stream, bench.memory, host, &is_graph);
        bool is_past = fake.calls < fake.fail_at;
        if (is_graph || status == STATUS_OK) {
            assert_int_equal(status == STATUS_OK, memcmp(host + 8, "wxyz", 4) == 0);
        }
        without += !is_graph && status == STATUS_OK;
        fake.fail_at = 0;
        assert_int_equal(run_graph(bench.stream, bench.memory, host, &is_graph), STATUS_OK);
        assert_true(is_graph);
        assert_memory_equal(host + 8, "wxyz", 4);
        close_bench(&bench);
        assert_int_equal(fake.graphs, 0);
        if (is_past) break;
    }
    // Begin, three recorded calls, end, its size, what is made of it, launch.
    assert_int_equal(without, 8);
}

// Everything once, with the n-th call failing; true when all went well.
static bool do_everything(void)
{
    struct gpu_card *card = NULL;
    struct gpu_signals signals = {.is_cancelled = 0};
    struct gpu_stream *stream = NULL;
    struct gpu_memory told;
    const struct gpu_source source = {
        .fill = count_up, .count = 4, .element_bytes = sizeof(uint32_t)};
    char host[16] = "";
    uint8_t handle[GPU_HANDLE_BYTES];
    void *memory = NULL;
    void *loan = NULL;
    enum status status = gpu_open(&card, 0, NULL);
    if (status == STATUS_OK) status = gpu_allocate(card, 16, &memory, NULL);
    if (status == STATUS_OK) status = gpu_lend(card, 64, &loan, handle, NULL);
    if (status == STATUS_OK) status = gpu_upload(card, memory, &source, NULL);
    if (status == STATUS_OK) status = gpu_read_memory(card, &told, NULL);
    if (status == STATUS_OK) status = gpu_stream_create(&stream, card, &signals, NULL);
    if (status == STATUS_OK) status = gpu_stream_trace(stream, true, NULL);
    if (status == STATUS_OK) status = run(stream, memory, host, NULL);
    bool is_whole = status == STATUS_OK && gpu_stream_spans(stream)->steps == 20;
    gpu_stream_destroy(&stream);
    if (card != NULL) gpu_free(card, memory, 16);
    if (loan != NULL) gpu_take_back(card, loan, 64, handle);
    gpu_close(&card);
    return is_whole;
}

static void any_call_of_the_runtime_may_fail_and_nothing_is_left_behind(void **state)
{
    (void)state;
    uint64_t failures = 0;
    bool is_whole = false;
    uint64_t number = 0;
    while (!is_whole || fake.calls >= number) {
        fake_reset();
        fake.fail_at = ++number;
        is_whole = do_everything();
        failures += !is_whole;
        assert_int_equal(fake_live_objects(), 0);
        assert_int_equal(fake.allocated_bytes, 0);
        assert_int_equal(fake.host_bytes, 0);
        assert_true(number < 1000);
    }
    assert_in_range(failures, 50, number);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cards_are_counted_and_old_ones_refused),
        cmocka_unit_test(a_card_says_what_it_is),
        cmocka_unit_test(freeing_never_waits_and_is_believed_at_once),
        cmocka_unit_test(an_upload_of_several_pieces_arrives_whole),
        cmocka_unit_test(a_loan_is_zeroed_counted_and_has_a_handle),
        cmocka_unit_test(a_system_that_cannot_share_is_no_broken_device),
        cmocka_unit_test(a_shortage_within_a_run_is_told_from_a_failure),
        cmocka_unit_test(a_traced_run_has_a_span_for_all_that_it_did),
        cmocka_unit_test(a_launch_is_a_span_of_its_name_and_a_step_may_have_none),
        cmocka_unit_test(spans_beyond_the_room_cost_no_more_than_the_steps_they_are_in),
        cmocka_unit_test(a_trace_that_fails_anywhere_keeps_whole_steps_and_the_run),
        cmocka_unit_test(a_graph_does_when_launched_what_was_recorded),
        cmocka_unit_test(a_graph_that_fails_anywhere_leaves_a_stream_that_works),
        cmocka_unit_test(a_failure_that_stays_means_that_the_device_is_broken),
        cmocka_unit_test(any_call_of_the_runtime_may_fail_and_nothing_is_left_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
