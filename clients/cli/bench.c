// bench.c - `luna bench`: load from several clients, closed loop or at a rate, and percentiles.
//
// Each client is a thread with a connection of its own. In a closed loop the next request follows
// the answer; at a rate, requests are due at fixed times whether or not answers came, and latency
// counts from the due time, so that a slow daemon cannot hide behind a waiting client.

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "clients/cli/cli.h"
#include "clients/cli/trace.h"

#define IMAGE_SIDE 256u  // pixels, unless --size says otherwise
#define SAMPLES_MAX 1048576u

enum bench_kind { BENCH_ENCODE, BENCH_DECODE, BENCH_TEXT, BENCH_KINDS };

static const char *const kind_names[BENCH_KINDS] = {"encode", "decode", "text"};

struct bench {
    const struct cli_options *options;  // of the command
    enum bench_kind mix[16];            // kinds in turn
    uint32_t mix_count;                 // in use
    uint64_t image[4];                  // dims of what is encoded, [1,H,W,3]
    uint64_t latent[4];                 // and decoded, found by a first encode; [1,c,h,w]
    struct trace *trace;                // NULL: nobody wants one
    uint64_t start_ns, end_ns;          // of the measurement
    _Atomic uint64_t next;              // number of the next request
};

struct sample {
    double ms;             // from the due time to the answer
    enum bench_kind kind;  // what it was
};

struct bench_client {
    struct bench *bench;     // shared
    uint32_t number;         // of this client, from 1 on
    pthread_t thread;        // of this client
    struct sample *samples;  // of answered requests
    uint32_t count;          // in use
    uint64_t errors;         // answers that were not OK
    struct error first;      // of the errors
    float *image, *latent;   // inputs
};

static uint64_t now_ns(void)
{
    return clock_ns(clock_system());
}

static void wait_until(uint64_t ns)
{
    struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u),
                             .tv_nsec = (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static enum status call(struct bench_client *self, struct luna_client *client, enum bench_kind kind,
                        struct luna_answer **answer, struct error *error)
{
    const struct bench *bench = self->bench;
    struct luna_tensor input = {.rank = 4, .dtype = DTYPE_F32};
    struct luna_request request = {
        .inputs = &input, .inputs_count = 1, .may_tile = true, .want_trace = bench->trace != NULL};
    char prompt[64];
    switch (kind) {
    case BENCH_ENCODE:
        request.operation = luna_Operation_ENCODE_IMAGE;
        input.name = "image";
        memcpy(input.dims, bench->image, sizeof bench->image);
        input.data = self->image;
        break;
    case BENCH_DECODE:
        request.operation = luna_Operation_DECODE_LATENT;
        input.name = "latent";
        memcpy(input.dims, bench->latent, sizeof bench->latent);
        input.data = self->latent;
        break;
    default:
        // Distinct prompts: an answer from a cache would measure the cache.
        snprintf(prompt, sizeof prompt, "a photo of a (red:1.2) fox, number %u", self->count);
        request.operation = luna_Operation_ENCODE_TEXT;
        input = luna_text("prompt", prompt);
    }
    return cli_call(bench->options, client, &request, answer, error);
}

static void run_one(struct bench_client *self, struct luna_client *client, uint64_t number)
{
    struct bench *bench = self->bench;
    uint64_t due = now_ns();
    if (bench->options->rate > 0) {
        due = bench->start_ns + (uint64_t)((double)number * 1e9 / bench->options->rate);
        if (due >= bench->end_ns) return;
        wait_until(due);
    }
    enum bench_kind kind = bench->mix[number % bench->mix_count];
    struct luna_answer *answer = NULL;
    struct error error;
    if (call(self, client, kind, &answer, &error) == STATUS_OK && self->count < SAMPLES_MAX) {
        const uint64_t times_ns[2] = {due, now_ns()};
        if (bench->trace != NULL) {
            trace_add(bench->trace, answer, kind_names[kind], self->number, times_ns);
        }
        self->samples[self->count].ms = (double)(times_ns[1] - due) / 1e6;
        self->samples[self->count].kind = kind;
        self->count += 1;
    } else {
        if (self->errors == 0) self->first = error;
        self->errors += 1;
    }
    luna_answer_destroy(&answer);
}

static void *run_client(void *argument)
{
    struct bench_client *self = argument;
    struct bench *bench = self->bench;
    struct luna_client *client = NULL;
    if (cli_connect(bench->options, &client, &self->first) != STATUS_OK) {
        self->errors += 1;
        return NULL;
    }
    while (now_ns() < bench->end_ns && *bench->options->stop == 0) {
        run_one(self, client, atomic_fetch_add(&bench->next, 1));
    }
    luna_client_destroy(&client);
    return NULL;
}

// ---- results

static int compare_ms(const void *a, const void *b)
{
    double x = ((const struct sample *)a)->ms;
    double y = ((const struct sample *)b)->ms;
    return (x > y) - (x < y);
}

static double percentile(const struct sample *sorted, uint64_t count, double share)
{
    if (count == 0) return 0;
    uint64_t index = (uint64_t)(share * (double)(count - 1) + 0.5);
    return sorted[index].ms;
}

static json_t *summary(struct sample *samples, uint64_t count, double seconds)
{
    qsort(samples, count, sizeof *samples, compare_ms);
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "requests", (json_int_t)count, "per_second",
                     (double)count / seconds, "p50_ms", percentile(samples, count, 0.5), "p90_ms",
                     percentile(samples, count, 0.9), "p99_ms", percentile(samples, count, 0.99),
                     "max_ms", percentile(samples, count, 1.0));
}

static void print_row(const char *name, json_t *row)
{
    printf("%-8s %9lld %9.2f %9.1f %9.1f %9.1f %9.1f\n", name,
           json_integer_value(json_object_get(row, "requests")),
           json_real_value(json_object_get(row, "per_second")),
           json_real_value(json_object_get(row, "p50_ms")),
           json_real_value(json_object_get(row, "p90_ms")),
           json_real_value(json_object_get(row, "p99_ms")),
           json_real_value(json_object_get(row, "max_ms")));
}

static enum cli_exit report(struct bench *bench, const struct bench_client *clients, uint32_t count)
{
    double seconds = (double)(now_ns() - bench->start_ns) / 1e9;
    uint64_t total = 0, errors = 0;
    const struct error *first = NULL;
    for (uint32_t i = 0; i < count; i++) {
        total += clients[i].count;
        errors += clients[i].errors;
        if (clients[i].errors > 0 && first == NULL) first = &clients[i].first;
    }
    struct sample *all = calloc(total + 1, sizeof *all);
    struct sample *some = calloc(total + 1, sizeof *some);
    json_t *document = json_object();
    if (all == NULL || some == NULL) {
        free(all);
        free(some);
        json_decref(document);
        fprintf(stderr, "luna: no memory for %lu samples\n", (unsigned long)total);
        return EXIT_ANSWERED_ERROR;
    }
    uint64_t used = 0;
    for (uint32_t i = 0; i < count && total > 0; i++) {
        memcpy(all + used, clients[i].samples, clients[i].count * sizeof *all);
        used += clients[i].count;
    }
    for (int kind = 0; kind < BENCH_KINDS; kind++) {
        uint64_t of_kind = 0;
        for (uint64_t i = 0; i < total; i++) {
            if ((int)all[i].kind == kind) some[of_kind++] = all[i];
        }
        if (of_kind > 0)
            json_object_set_new(document, kind_names[kind], summary(some, of_kind, seconds));
    }
    json_object_set_new(document, "all", summary(all, total, seconds));
    json_object_set_new(document, "errors", json_integer((json_int_t)errors));
    free(all);
    free(some);
    if (first != NULL)
        fprintf(stderr, "luna: %s: %s\n", status_name(first->status), first->message);
    if (bench->options->json) {
        cli_print_json(document);
    } else {
        printf("%-8s %9s %9s %9s %9s %9s %9s\n", "", "requests", "per s", "p50 ms", "p90 ms",
               "p99 ms", "max ms");
        const char *name = NULL;
        json_t *row = NULL;
        json_object_foreach(document, name, row)
        {
            if (json_is_object(row)) print_row(name, row);
        }
        printf("errors   %9lu\n", (unsigned long)errors);
        json_decref(document);
    }
    return errors > 0 ? EXIT_ANSWERED_ERROR : EXIT_DONE;
}

// ---- preparation

static bool read_mix(struct bench *bench)
{
    const char *at = bench->options->mix;
    while (*at != '\0') {
        size_t length = strcspn(at, ",");
        int kind = 0;
        while (kind < BENCH_KINDS &&
               (strlen(kind_names[kind]) != length || strncmp(kind_names[kind], at, length) != 0)) {
            kind += 1;
        }
        if (kind == BENCH_KINDS || bench->mix_count == sizeof bench->mix / sizeof bench->mix[0])
            return false;
        bench->mix[bench->mix_count++] = (enum bench_kind)kind;
        at += length;
        if (*at == ',') at += 1;
    }
    return bench->mix_count > 0;
}

static bool mix_has(const struct bench *bench, enum bench_kind kind)
{
    for (uint32_t i = 0; i < bench->mix_count; i++) {
        if (bench->mix[i] == kind) return true;
    }
    return false;
}

// Numbers of a client's image; a latent has no more numbers than its image has pixels.
static bool make_inputs(struct bench_client *self, uint32_t seed)
{
    uint64_t latents = self->bench->image[1] * self->bench->image[2];
    uint64_t pixels = 3 * latents;
    self->samples = calloc(SAMPLES_MAX, sizeof *self->samples);
    self->image = calloc(pixels, sizeof *self->image);
    self->latent = calloc(latents, sizeof *self->latent);
    if (self->samples == NULL || self->image == NULL || self->latent == NULL) return false;
    for (uint64_t i = 0; i < pixels; i++) {
        seed = seed * 1664525u + 1013904223u;
        self->image[i] = (float)(seed >> 8) / 16777216.0f;
    }
    for (uint64_t i = 0; i < latents; i++) {
        seed = seed * 1664525u + 1013904223u;
        self->latent[i] = (float)(seed >> 8) / 4194304.0f - 2.0f;
    }
    return true;
}

// A first encode tells what the model's latents look like, and wakes its worker.
static enum status find_latent(struct bench *bench, struct bench_client *probe, struct error *error)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    enum status status = cli_connect(bench->options, &client, error);
    if (status == STATUS_OK && (mix_has(bench, BENCH_DECODE) || mix_has(bench, BENCH_ENCODE))) {
        status = call(probe, client, BENCH_ENCODE, &answer, error);
        const struct luna_tensor *latent =
            status == STATUS_OK ? luna_answer_tensor(answer, "latent") : NULL;
        if (latent != NULL && latent->rank == 4 &&
            latent->bytes <= bench->image[1] * bench->image[2] * sizeof(float)) {
            memcpy(bench->latent, latent->dims, sizeof bench->latent);
        }
        luna_answer_destroy(&answer);
    }
    luna_client_destroy(&client);
    return status;
}

static enum cli_exit run_clients(struct bench *bench, struct bench_client *clients, uint32_t count)
{
    struct error error;
    if (find_latent(bench, &clients[0], &error) != STATUS_OK) {
        enum cli_exit result = cli_error(&error);
        return error.status == STATUS_UNAVAILABLE ? EXIT_NOBODY : result;
    }
    bench->start_ns = now_ns();
    bench->end_ns = bench->start_ns + (uint64_t)(bench->options->duration_s * 1e9);
    uint32_t started = 0;
    while (started < count &&
           pthread_create(&clients[started].thread, NULL, run_client, &clients[started]) == 0) {
        started += 1;
    }
    for (uint32_t i = 0; i < started; i++) pthread_join(clients[i].thread, NULL);
    return report(bench, clients, started);
}

enum cli_exit command_bench(const struct cli_options *options)
{
    struct cli_options quiet = *options;
    quiet.progress = false;
    struct bench bench = {.options = &quiet, .image = {1, IMAGE_SIDE, IMAGE_SIDE, 3}};
    if (options->has_size) {
        bench.image[1] = options->size[1];
        bench.image[2] = options->size[0];
    }
    if (options->words_count != 0) return cli_usage(options, "no word is wanted");
    if (!read_mix(&bench)) return cli_usage(options, "--mix is a list of encode, decode, text");
    if (bench.image[1] < 8 || bench.image[1] > 16384 || bench.image[2] < 8 ||
        bench.image[2] > 16384) {
        return cli_usage(options, "--size is 8x8 to 16384x16384 pixels");
    }
    struct bench_client *clients = calloc(options->clients, sizeof *clients);
    bool ready = clients != NULL;
    for (uint32_t i = 0; ready && i < options->clients; i++) {
        clients[i].bench = &bench;
        clients[i].number = i + 1;
        ready = make_inputs(&clients[i], i + 1);
    }
    enum cli_exit result = EXIT_ANSWERED_ERROR;
    if (options->trace != NULL) bench.trace = trace_create();
    ready = ready && (options->trace == NULL) == (bench.trace == NULL);
    if (ready)
        result = run_clients(&bench, clients, options->clients);
    else
        fprintf(stderr, "luna: no memory for %u clients\n", options->clients);
    for (uint32_t i = 0; clients != NULL && i < options->clients; i++) {
        free(clients[i].samples);
        free(clients[i].image);
        free(clients[i].latent);
    }
    free(clients);
    struct error error;
    if (result == EXIT_DONE && bench.trace != NULL &&
        trace_write(bench.trace, options->trace, &error) != STATUS_OK) {
        result = cli_error(&error);
    }
    trace_destroy(&bench.trace);
    return result;
}
