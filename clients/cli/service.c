// service.c - what the daemon says of itself: status, top, ping, models; drain and shutdown.

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clients/cli/cli.h"

enum cli_exit cli_try(const struct cli_options *options, luna_Operation operation, const void *body,
                      struct luna_client **client, struct luna_answer **answer)
{
    struct error error;
    *client = NULL;
    *answer = NULL;
    enum status status = cli_ask(options, operation, body, client, answer, &error);
    if (status == STATUS_OK) return EXIT_DONE;
    enum cli_exit result = cli_error(&error);
    return *client == NULL && status == STATUS_UNAVAILABLE ? EXIT_NOBODY : result;
}

static enum cli_exit ask_and_forget(const struct cli_options *options, luna_Operation operation)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    if (options->words_count != 0) return cli_usage(options, "no word is wanted");
    enum cli_exit result = cli_try(options, operation, NULL, &client, &answer);
    if (result == EXIT_DONE && options->json) cli_print_json(json_object());
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

enum cli_exit command_drain(const struct cli_options *options)
{
    return ask_and_forget(options, luna_Operation_DRAIN);
}

enum cli_exit command_shutdown(const struct cli_options *options)
{
    return ask_and_forget(options, luna_Operation_SHUTDOWN);
}

enum cli_exit command_ping(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct timespec before, after;
    if (options->words_count != 0) return cli_usage(options, "no word is wanted");
    enum cli_exit result = cli_try(options, luna_Operation_PING, NULL, &client, &answer);
    if (result != EXIT_DONE) return result;
    luna_answer_destroy(&answer);
    clock_gettime(CLOCK_MONOTONIC, &before);
    struct luna_request request = {.operation = luna_Operation_PING,
                                   .timeout_ms = options->timeout_ms};
    struct error error;
    if (luna_client_call(client, &request, &answer, &error) != STATUS_OK) {
        result = cli_error(&error);
    } else {
        clock_gettime(CLOCK_MONOTONIC, &after);
        double ms = (double)(after.tv_sec - before.tv_sec) * 1e3 +
                    (double)(after.tv_nsec - before.tv_nsec) / 1e6;
        const luna_PingReply *reply = answer->body;
        if (options->json) {
            cli_print_json(json_pack("{s:s, s:s, s:s, s:i, s:f}", "endpoint",
                                     luna_client_endpoint(client), "version", reply->version,
                                     "state", reply->state, "protocol", (int)reply->major,
                                     "milliseconds", ms));
        } else {
            printf("luna %s at %s: %s, protocol %u.%u, %.2f ms\n", reply->version,
                   luna_client_endpoint(client), reply->state, reply->major, reply->minor_max, ms);
        }
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

// ---- status

static json_t *device_json(const luna_DeviceStatus *device)
{
    return json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:s, s:s}", "name", device->name, "label",
        device->label, "executor_pid", cli_integer(device->executor_pid), "memory_total_bytes",
        cli_integer(device->memory_total_bytes), "memory_free_bytes",
        cli_integer(device->memory_free_bytes), "weights_bytes", cli_integer(device->weights_bytes),
        "reserved_bytes", cli_integer(device->reserved_bytes), "lent_bytes",
        cli_integer(device->lent_bytes), "driver", device->driver, "uuid", device->uuid,
        "compute_capability", device->compute_capability);
}

static json_t *service_json(const luna_ServiceStatus *service)
{
    return json_pack(
        "{s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:f, s:o, s:s}", "operation", service->operation,
        "model", service->model, "device", service->device, "workers",
        cli_integer(service->workers), "workers_busy", cli_integer(service->workers_busy),
        "workers_min", cli_integer(service->workers_min), "workers_max",
        cli_integer(service->workers_max), "queue_depth", cli_integer(service->queue_depth),
        "queue_age_seconds", service->queue_age_seconds, "requests_total",
        cli_integer(service->requests_total), "state", service->state);
}

static json_t *model_json(const luna_Model *model)
{
    json_t *offers = json_array();
    json_t *loaded = json_array();
    if (model->offers_vae) json_array_append_new(offers, json_string("vae"));
    if (model->offers_text) json_array_append_new(offers, json_string("text"));
    for (uint32_t i = 0; i < model->loaded_on_count; i++) {
        json_array_append_new(loaded, json_string(model->loaded_on[i]));
    }
    return json_pack("{s:s, s:o, s:s, s:o, s:o, s:s, s:o, s:s, s:s, s:s}", "name", model->name,
                     "offers", offers, "kind", model->kind, "bytes", cli_integer(model->bytes),
                     "loaded_on", loaded, "state", model->state, "users", cli_integer(model->users),
                     "hash_vae", model->hash_vae, "hash_text", model->hash_text, "message",
                     model->message);
}

json_t *cli_status_json(const luna_Status *status)
{
    json_t *devices = json_array();
    json_t *services = json_array();
    json_t *models = json_array();
    for (uint32_t i = 0; i < status->devices_count; i++) {
        json_array_append_new(devices, device_json(&status->devices[i]));
    }
    for (uint32_t i = 0; i < status->services_count; i++) {
        json_array_append_new(services, service_json(&status->services[i]));
    }
    for (uint32_t i = 0; i < status->models_count; i++) {
        json_array_append_new(models, model_json(&status->models[i]));
    }
    const luna_RequestCounts *requests = &status->requests;
    const luna_TransportCounts *transport = &status->transport;
    json_t *document = json_object();
    json_object_set_new(document, "version", json_string(status->version));
    json_object_set_new(document, "pid", cli_integer(status->pid));
    json_object_set_new(document, "uptime_seconds", json_real(status->uptime_seconds));
    json_object_set_new(document, "service_type", json_string(status->service_type));
    json_object_set_new(document, "state", json_string(status->state));
    json_object_set_new(
        document, "requests",
        json_pack("{s:o, s:o, s:o, s:o, s:o}", "total", cli_integer(requests->total), "running",
                  cli_integer(requests->running), "queued", cli_integer(requests->queued), "failed",
                  cli_integer(requests->failed), "cancelled", cli_integer(requests->cancelled)));
    json_object_set_new(document, "gpus", json_string(status->gpus));
    json_object_set_new(document, "devices", devices);
    json_object_set_new(document, "services", services);
    json_object_set_new(document, "models", models);
    json_object_set_new(document, "loras", cli_lora_totals_json(&status->loras));
    json_object_set_new(
        document, "transport",
        json_pack("{s:o, s:o, s:o, s:o}", "frame_bytes", cli_integer(transport->frame_bytes),
                  "shared_bytes", cli_integer(transport->shared_bytes), "device_bytes",
                  cli_integer(transport->device_bytes), "leases", cli_integer(transport->leases)));
    return document;
}

static void print_status(const luna_Status *status)
{
    printf("luna %s  pid %u  up %.0f s  %s  %s\n", status->version, status->pid,
           status->uptime_seconds, status->service_type, status->state);
    printf("requests  total %lu  running %lu  queued %lu  failed %lu  cancelled %lu\n",
           (unsigned long)status->requests.total, (unsigned long)status->requests.running,
           (unsigned long)status->requests.queued, (unsigned long)status->requests.failed,
           (unsigned long)status->requests.cancelled);
    printf("tensors   %.1f MiB in frames, %.1f MiB in shared memory, %.1f MiB in device memory\n",
           cli_mebibytes(status->transport.frame_bytes),
           cli_mebibytes(status->transport.shared_bytes),
           cli_mebibytes(status->transport.device_bytes));
    const luna_LoraTotals *loras = &status->loras;
    printf("loras     %lu  %.1f of %.0f MiB  hits %lu  misses %lu (%.0f %%)  evictions %lu\n\n",
           (unsigned long)loras->entries, cli_mebibytes(loras->bytes),
           cli_mebibytes(loras->limit_bytes), (unsigned long)loras->hits,
           (unsigned long)loras->misses, 100.0 * loras->hit_ratio, (unsigned long)loras->evictions);
    printf("%-10s %-10s %-12s %-12s %-12s %s\n", "DEVICE", "PID", "FREE MiB", "WEIGHTS MiB",
           "ARENAS MiB", "LABEL");
    for (uint32_t i = 0; i < status->devices_count; i++) {
        const luna_DeviceStatus *device = &status->devices[i];
        printf("%-10s %-10u %-12.0f %-12.0f %-12.0f %s\n", device->name, device->executor_pid,
               cli_mebibytes(device->memory_free_bytes), cli_mebibytes(device->weights_bytes),
               cli_mebibytes(device->reserved_bytes), device->label);
        if (device->uuid[0] == '\0') continue;
        printf("%-10s %s, compute capability %s, %s\n", "", device->uuid,
               device->compute_capability, device->driver);
    }
    printf("gpus      %s\n", status->gpus);
    printf("\n%-6s %-20s %-8s %-12s %-6s %-8s %-10s %s\n", "WHAT", "MODEL", "DEVICE", "WORKERS",
           "BUSY", "QUEUED", "REQUESTS", "STATE");
    for (uint32_t i = 0; i < status->services_count; i++) {
        const luna_ServiceStatus *service = &status->services[i];
        char workers[32];
        snprintf(workers, sizeof workers, "%u (%u-%u)", service->workers, service->workers_min,
                 service->workers_max);
        printf("%-6s %-20s %-8s %-12s %-6u %-8u %-10lu %s\n", service->operation, service->model,
               service->device, workers, service->workers_busy, service->queue_depth,
               (unsigned long)service->requests_total, service->state);
    }
}

enum cli_exit command_status(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    if (options->words_count != 0) return cli_usage(options, "no word is wanted");
    enum cli_exit result = cli_try(options, luna_Operation_STATUS, NULL, &client, &answer);
    if (result == EXIT_DONE) {
        if (options->json)
            cli_print_json(cli_status_json(answer->body));
        else
            print_status(answer->body);
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

enum cli_exit command_top(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct error error;
    if (options->words_count != 0) return cli_usage(options, "no word is wanted");
    enum cli_exit result = cli_try(options, luna_Operation_STATUS, NULL, &client, &answer);
    while (result == EXIT_DONE) {
        if (options->json) {
            cli_print_json(cli_status_json(answer->body));
        } else {
            printf("\033[H\033[2J");
            print_status(answer->body);
        }
        fflush(stdout);
        luna_answer_destroy(&answer);
        sleep(1);
        if (*options->stop != 0) break;
        struct luna_request request = {.operation = luna_Operation_STATUS,
                                       .timeout_ms = options->timeout_ms};
        if (luna_client_call(client, &request, &answer, &error) != STATUS_OK)
            result = cli_error(&error);
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

// ---- models

static void print_model(const luna_Model *model)
{
    char loaded[8 * 33] = "";
    for (uint32_t i = 0; i < model->loaded_on_count; i++) {
        size_t used = strlen(loaded);
        snprintf(loaded + used, sizeof loaded - used, "%s%s", used > 0 ? "," : "",
                 model->loaded_on[i]);
    }
    printf("%-20s %-9s %-10s %-10.1f %-10s %-6u %-10s %s\n", model->name,
           model->offers_vae && model->offers_text ? "vae,text"
           : model->offers_vae                     ? "vae"
                                                   : "text",
           model->kind, cli_mebibytes(model->bytes), loaded[0] != '\0' ? loaded : "-", model->users,
           model->state, model->message);
}

static enum cli_exit list_models(const struct cli_options *options)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    struct error error;
    json_t *models = json_array();
    luna_Page page = {.offset = 0};
    enum cli_exit result = cli_try(options, luna_Operation_MODEL_LIST, &page, &client, &answer);
    if (result == EXIT_DONE && !options->json) {
        printf("%-20s %-9s %-10s %-10s %-10s %-6s %-10s\n", "NAME", "OFFERS", "KIND", "MiB",
               "DEVICE", "USERS", "STATE");
    }
    while (result == EXIT_DONE) {
        const luna_ModelListReply *reply = answer->body;
        for (uint32_t i = 0; i < reply->models_count; i++) {
            if (options->json)
                json_array_append_new(models, model_json(&reply->models[i]));
            else
                print_model(&reply->models[i]);
        }
        page.offset += (uint32_t)reply->models_count;
        if (reply->models_count == 0 || page.offset >= reply->total) break;
        luna_answer_destroy(&answer);
        struct luna_request request = {.operation = luna_Operation_MODEL_LIST, .body = &page};
        if (luna_client_call(client, &request, &answer, &error) != STATUS_OK)
            result = cli_error(&error);
    }
    if (result == EXIT_DONE && options->json)
        cli_print_json(models);
    else
        json_decref(models);
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

static enum cli_exit change_model(const struct cli_options *options, luna_Operation operation,
                                  const void *body)
{
    struct luna_client *client = NULL;
    struct luna_answer *answer = NULL;
    enum cli_exit result = cli_try(options, operation, body, &client, &answer);
    if (result == EXIT_DONE) {
        const luna_ModelReply *reply = answer->body;
        if (options->json)
            cli_print_json(model_json(&reply->model));
        else
            print_model(&reply->model);
    }
    luna_answer_destroy(&answer);
    luna_client_destroy(&client);
    return result;
}

static enum cli_exit register_model(const struct cli_options *options)
{
    luna_ModelRegister body = luna_ModelRegister_init_zero;
    uint32_t files = (uint32_t)options->words_count - 2;
    if (files > sizeof body.files / sizeof body.files[0])
        return cli_usage(options, "at most 8 files make a model");
    if (strlen(options->words[1]) >= sizeof body.name)
        return cli_usage(options, "the name is too long");
    strncpy(body.name, options->words[1], sizeof body.name - 1);
    for (uint32_t i = 0; i < files; i++) {
        const char *file = options->words[2 + i];
        if (strlen(file) >= sizeof body.files[0])
            return cli_usage(options, "a file name is too long");
        strncpy(body.files[i], file, sizeof body.files[0] - 1);
    }
    body.files_count = (pb_size_t)files;
    return change_model(options, luna_Operation_MODEL_REGISTER, &body);
}

enum cli_exit command_models(const struct cli_options *options)
{
    const char *what = options->words_count > 0 ? options->words[0] : "list";
    if (strcmp(what, "list") == 0) {
        if (options->words_count > 1) return cli_usage(options, "list takes no word");
        return list_models(options);
    }
    if (strcmp(what, "register") == 0) {
        if (options->words_count < 3)
            return cli_usage(options, "register takes a NAME and at least one FILE");
        return register_model(options);
    }
    bool load = strcmp(what, "load") == 0;
    if (!load && strcmp(what, "unload") != 0)
        return cli_usage(options, "no such subcommand: %s", what);
    luna_ModelName body = luna_ModelName_init_zero;
    if (options->words_count != 2 || strlen(options->words[1]) >= sizeof body.name) {
        return cli_usage(options, "%s takes one NAME", what);
    }
    strncpy(body.name, options->words[1], sizeof body.name - 1);
    return change_model(options, load ? luna_Operation_MODEL_LOAD : luna_Operation_MODEL_UNLOAD,
                        &body);
}
