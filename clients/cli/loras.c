// loras.c - `luna loras`: the adapters that the daemon knows, and their files up and down.
//
// A file that comes down appears under its name whole or not at all: it is written beside it and
// renamed. What is no regular file (a pipe, a device) is written to as it is.

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "clients/cli/adapter.h"

// ---- output

json_t *cli_lora_totals_json(const luna_LoraTotals *totals)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:f}", "entries", cli_integer(totals->entries),
                     "bytes", cli_integer(totals->bytes), "limit_bytes",
                     cli_integer(totals->limit_bytes), "hits", cli_integer(totals->hits), "misses",
                     cli_integer(totals->misses), "evictions", cli_integer(totals->evictions),
                     "hit_ratio", totals->hit_ratio);
}

// The fields of the interface first, in its order; then what else is known.
static json_t *lora_json(const luna_Lora *lora)
{
    json_t *encoders = json_array();
    for (uint32_t i = 0; i < lora->encoders_count; i++) {
        json_array_append_new(encoders, json_string(lora->encoders[i]));
    }
    json_t *out = json_pack(
        "{s:s, s:s, s:s, s:o, s:s, s:s, s:o, s:o, s:o, s:f, s:f, s:b, s:b}", "name", lora->name,
        "hash", lora->hash, "encoder_hash", lora->encoder_hash, "bytes", cli_integer(lora->bytes),
        "format", lora->format, "path", lora->path, "rank", cli_integer(lora->rank), "encoders",
        encoders, "uses", cli_integer(lora->uses), "load_ms", lora->load_ms, "age_seconds",
        lora->age_seconds, "pinned", (int)lora->pinned, "resident", (int)lora->resident);
    json_t *more =
        json_pack("{s:s, s:o, s:o, s:o, s:f, s:o, s:b}", "family", lora->family, "modules",
                  cli_integer(lora->modules), "memory_bytes", cli_integer(lora->memory_bytes),
                  "hits", cli_integer(lora->hits), "idle_seconds", lora->idle_seconds, "pins",
                  cli_integer(lora->pins), "uploaded", (int)lora->uploaded);
    json_object_update_missing(out, more);
    json_decref(more);
    return out;
}

static void print_head(void)
{
    printf("%-28s %-12s %-7s %-5s %-8s %-9s %-7s %-9s %s\n", "NAME", "HASH", "FAMILY", "RANK",
           "ENCODERS", "MiB", "USES", "LOAD ms", "STATE");
}

static void print_lora(const luna_Lora *lora)
{
    char encoders[16] = "";
    for (uint32_t i = 0; i < lora->encoders_count; i++) {
        size_t used = strlen(encoders);
        snprintf(encoders + used, sizeof encoders - used, "%s%s", used > 0 ? "," : "",
                 lora->encoders[i]);
    }
    printf("%-28s %-12.12s %-7s %-5u %-8s %-9.1f %-7lu %-9.1f %s%s%s\n",
           lora->name[0] != '\0' ? lora->name : "-", lora->hash[0] != '\0' ? lora->hash : "-",
           lora->family[0] != '\0' ? lora->family : "-", lora->rank,
           encoders[0] != '\0' ? encoders : "-", cli_mebibytes(lora->bytes),
           (unsigned long)lora->uses, lora->load_ms, lora->resident ? "resident" : "-",
           lora->pinned ? ",pinned" : "", lora->uploaded ? ",uploaded" : "");
}

static void show_lora(const struct cli_options *options, const luna_Lora *lora)
{
    if (options->json) {
        cli_print_json(lora_json(lora));
        return;
    }
    print_head();
    print_lora(lora);
}

// ---- list, scan, stats

static enum cli_exit list_loras(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct error error;
    json_t *loras = json_array();
    luna_Page page = {.offset = 0};
    enum cli_exit result = cli_try(options, luna_Operation_LORA_LIST, &page, &client, &answer);
    if (result == EXIT_DONE && !options->json) print_head();
    while (result == EXIT_DONE) {
        const luna_LoraListReply *reply = answer->body;
        for (uint32_t i = 0; i < reply->loras_count; i++) {
            if (options->json)
                json_array_append_new(loras, lora_json(&reply->loras[i]));
            else
                print_lora(&reply->loras[i]);
        }
        page.offset += (uint32_t)reply->loras_count;
        if (reply->loras_count == 0 || page.offset >= reply->total) break;
        luna_answer_destroy(&answer);
        struct luna_request request = {.operation = luna_Operation_LORA_LIST,
                                       .body = &page,
                                       .timeout_ms = options->timeout_ms};
        if (luna_client_call(client, &request, &answer, &error) != STATUS_OK)
            result = cli_error(&error);
    }
    if (result == EXIT_DONE && options->json)
        cli_print_json(loras);
    else
        json_decref(loras);
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

static void show_scan(const struct cli_options *options, const luna_LoraScanReply *reply)
{
    if (options->json) {
        cli_print_json(json_pack("{s:o, s:o, s:o, s:o, s:f}", "found", cli_integer(reply->found),
                                 "added", cli_integer(reply->added), "removed",
                                 cli_integer(reply->removed), "refused",
                                 cli_integer(reply->refused), "scan_ms", reply->scan_ms));
        return;
    }
    printf("%u files found, %u new, %u gone, %u refused, %.1f ms\n", reply->found, reply->added,
           reply->removed, reply->refused, reply->scan_ms);
}

static json_t *stats_json(const luna_LoraStats *stats)
{
    json_t *out = cli_lora_totals_json(&stats->totals);
    json_t *more =
        json_pack("{s:o, s:o, s:o, s:o, s:f, s:f, s:o, s:o}", "files", cli_integer(stats->files),
                  "uploads", cli_integer(stats->uploads), "one_shots",
                  cli_integer(stats->one_shots), "loads", cli_integer(stats->loads), "load_ms_p50",
                  stats->load_ms_p50, "load_ms_p99", stats->load_ms_p99, "pinned",
                  cli_integer(stats->pinned), "entries_max", cli_integer(stats->entries_max));
    json_t *last = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:f, s:o, s:o, s:o}", "conditioning_entries",
        cli_integer(stats->conditioning_entries), "conditioning_bytes",
        cli_integer(stats->conditioning_bytes), "conditioning_limit_bytes",
        cli_integer(stats->conditioning_limit_bytes), "conditioning_hits",
        cli_integer(stats->conditioning_hits), "conditioning_misses",
        cli_integer(stats->conditioning_misses), "conditioning_hit_ratio",
        stats->conditioning_hit_ratio, "merged_entries", cli_integer(stats->merged_entries),
        "merged_bytes", cli_integer(stats->merged_bytes), "adapter_bytes",
        cli_integer(stats->adapter_bytes));
    json_object_update(out, more);
    json_object_update(out, last);
    json_decref(more);
    json_decref(last);
    return out;
}

static void show_stats(const struct cli_options *options, const luna_LoraStats *stats)
{
    const luna_LoraTotals *totals = &stats->totals;
    if (options->json) {
        cli_print_json(stats_json(stats));
        return;
    }
    printf("entries       %lu of %lu resident, %lu pinned; %lu files known, %lu uploads, "
           "%lu one-shots\n",
           (unsigned long)totals->entries, (unsigned long)stats->entries_max,
           (unsigned long)stats->pinned, (unsigned long)stats->files, (unsigned long)stats->uploads,
           (unsigned long)stats->one_shots);
    printf("memory        %.1f of %.0f MiB\n", cli_mebibytes(totals->bytes),
           cli_mebibytes(totals->limit_bytes));
    printf("uses          hits %lu  misses %lu (%.1f %% hits)  evictions %lu\n",
           (unsigned long)totals->hits, (unsigned long)totals->misses, 100.0 * totals->hit_ratio,
           (unsigned long)totals->evictions);
    printf("loads         %lu  p50 %.1f ms  p99 %.1f ms\n", (unsigned long)stats->loads,
           stats->load_ms_p50, stats->load_ms_p99);
    printf("on devices    adapters %.1f MiB, %lu merged stacks %.1f MiB\n",
           cli_mebibytes(stats->adapter_bytes), (unsigned long)stats->merged_entries,
           cli_mebibytes(stats->merged_bytes));
    printf("conditioning  %lu answers, %.1f of %.0f MiB  hits %lu  misses %lu (%.1f %% hits)\n",
           (unsigned long)stats->conditioning_entries, cli_mebibytes(stats->conditioning_bytes),
           cli_mebibytes(stats->conditioning_limit_bytes), (unsigned long)stats->conditioning_hits,
           (unsigned long)stats->conditioning_misses, 100.0 * stats->conditioning_hit_ratio);
}

static enum cli_exit scan_or_stats(const struct cli_options *options, luna_Operation operation)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    enum cli_exit result = cli_try(options, operation, NULL, &client, &answer);
    if (result == EXIT_DONE && operation == luna_Operation_LORA_SCAN)
        show_scan(options, answer->body);
    else if (result == EXIT_DONE)
        show_stats(options, answer->body);
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

// ---- pin, unpin, evict

static enum cli_exit change_lora(const struct cli_options *options, luna_Operation operation)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    luna_LoraName body = luna_LoraName_init_zero;
    text_set(body.reference, sizeof body.reference, options->words[1]);
    enum cli_exit result = cli_try(options, operation, &body, &client, &answer);
    if (result == EXIT_DONE) {
        const luna_LoraReply *reply = answer->body;
        show_lora(options, &reply->lora);
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

// ---- put, get

static enum cli_exit put_lora(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct adapter file = ADAPTER_NONE;
    luna_Lora lora;
    bool moved = false;
    struct error error;
    if (adapter_open(&file, options->words[1], &error) != STATUS_OK) return cli_error(&error);
    enum cli_exit result = cli_open(options, &client);
    if (result != EXIT_DONE) goto done;
    if (adapter_put(&file, options, client, &lora, &moved, &error) != STATUS_OK) {
        result = cli_error(&error);
        goto done;
    }
    if (!moved) fprintf(stderr, "luna: note: the daemon has it already, nothing was sent\n");
    show_lora(options, &lora);

done:
    adapter_close(&file);
    luna_client_destroy(&client);
    return result;
}

// Opens what is written to: path itself, or a file beside it, whose name *temporary becomes.
static int open_output(const char *path, char **temporary)
{
    struct stat entry;
    *temporary = NULL;
    if (strcmp(path, "-") == 0) return fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    if (stat(path, &entry) == 0 && !S_ISREG(entry.st_mode)) {
        return open(path, O_WRONLY | O_CLOEXEC);
    }
    if (asprintf(temporary, "%s.XXXXXX", path) < 0) {
        *temporary = NULL;
        return -1;
    }
    int descriptor = mkostemp(*temporary, O_CLOEXEC);
    mode_t mask = umask(0);  // is read by setting it
    umask(mask);
    if (descriptor >= 0 && fchmod(descriptor, 0666 & ~mask) == 0) return descriptor;
    if (descriptor >= 0) {
        close(descriptor);
        unlink(*temporary);
    }
    free(*temporary);
    *temporary = NULL;
    return -1;
}

static enum status get_file(const struct cli_options *options, struct luna_client *client,
                            const char *path, luna_Lora *out, struct error *error)
{
    char *temporary = NULL;
    const struct luna_transfer transfer = cli_transfer(options);
    int descriptor = open_output(path, &temporary);
    if (descriptor < 0) return error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    enum status status =
        luna_lora_get(client, options->words[1], descriptor, &transfer, out, error);
    if (close(descriptor) != 0 && status == STATUS_OK) {
        status = error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    if (status == STATUS_OK && temporary != NULL && rename(temporary, path) != 0) {
        status = error_set(error, STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    if (status != STATUS_OK && temporary != NULL) unlink(temporary);
    free(temporary);
    return status;
}

static enum cli_exit get_lora(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    luna_Lora lora;
    struct error error;
    if (options->output == NULL) return cli_usage(options, "get needs -o FILE");
    if (options->json && strcmp(options->output, "-") == 0)
        return cli_usage(options, "--json and -o - both want stdout");
    enum cli_exit result = cli_open(options, &client);
    if (result == EXIT_DONE) {
        if (get_file(options, client, options->output, &lora, &error) != STATUS_OK)
            result = cli_error(&error);
        else if (options->json)
            cli_print_json(lora_json(&lora));
    }
    luna_client_destroy(&client);
    return result;
}

// ---- the command

static const struct {
    const char *name;
    const char *word;          // what it takes; NULL: nothing
    luna_Operation operation;  // OPERATION_NONE: it has a function of its own
    enum cli_exit (*run)(const struct cli_options *options);
} subcommands[] = {
    {"list", NULL, luna_Operation_OPERATION_NONE, list_loras},
    {"scan", NULL, luna_Operation_LORA_SCAN, NULL},
    {"stats", NULL, luna_Operation_LORA_STATS, NULL},
    {"put", "FILE", luna_Operation_OPERATION_NONE, put_lora},
    {"get", "NAME", luna_Operation_OPERATION_NONE, get_lora},
    {"pin", "NAME", luna_Operation_LORA_PIN, NULL},
    {"unpin", "NAME", luna_Operation_LORA_UNPIN, NULL},
    {"evict", "NAME", luna_Operation_LORA_EVICT, NULL},
};

enum cli_exit command_loras(const struct cli_options *options)
{
    const char *what = options->words_count > 0 ? options->words[0] : "list";
    int words = options->words_count > 0 ? options->words_count - 1 : 0;
    for (size_t i = 0; i < sizeof subcommands / sizeof subcommands[0]; i++) {
        if (strcmp(what, subcommands[i].name) != 0) continue;
        const char *word = subcommands[i].word;
        if (words != (word != NULL)) {
            return cli_usage(options, "%s takes %s%s", what, word != NULL ? "one " : "no word",
                             word != NULL ? word : "");
        }
        if (options->name != NULL && strcmp(what, "put") != 0)
            return cli_usage(options, "--name is for put");
        if (options->output != NULL && strcmp(what, "get") != 0)
            return cli_usage(options, "-o is for get");
        if (word != NULL && strcmp(what, "put") != 0 &&
            strlen(options->words[1]) >= sizeof((luna_LoraName *)0)->reference)
            return cli_usage(options, "the name has %zu bytes, at most 255",
                             strlen(options->words[1]));
        if (subcommands[i].run != NULL) return subcommands[i].run(options);
        if (word != NULL) return change_lora(options, subcommands[i].operation);
        return scan_or_stats(options, subcommands[i].operation);
    }
    return cli_usage(options, "no such subcommand: %s", what);
}
