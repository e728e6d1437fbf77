// devices.c - names out of the configuration and the probe's answer; devices.h holds the contract.

#include "actors/devices.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

#define CUDA_PREFIX "cuda:"

static bool is_cuda(const char *name)
{
    return strncmp(name, CUDA_PREFIX, strlen(CUDA_PREFIX)) == 0;
}

static bool contains(const struct device_list *list, const char *name)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (strcmp(list->names[i], name) == 0) return true;
    }
    return false;
}

enum status devices_named(const struct config *config, struct device_list *out, struct error *error)
{
    assert(config != NULL);
    assert(out != NULL);
    const struct config_list *lists[] = {&config->service.devices, &config->service.vae_devices,
                                         &config->service.clip_devices};
    struct device_list named = {.count = 0};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (uint32_t k = 0; k < lists[i]->count; k++) {
            const char *name = lists[i]->items[k];
            if (contains(&named, name)) continue;
            if (named.count == DEVICE_TABLE_MAX) {
                return error_set(error, STATUS_INVALID_ARGUMENT,
                                 "device \"%s\" is one more than the %u that a daemon may have",
                                 name, DEVICE_TABLE_MAX);
            }
            text_set(named.names[named.count], DEVICE_NAME_BYTES, name);
            named.count += 1;
        }
    }
    *out = named;
    return STATUS_OK;
}

bool devices_need_probe(const struct device_list *named)
{
    assert(named != NULL);
    for (uint32_t i = 0; i < named->count; i++) {
        if (is_cuda(named->names[i])) return true;
    }
    return named->count == 0;
}

static enum status check_cuda(const char *name, const luna_GpuNotice *found, struct error *error)
{
    unsigned long number = strtoul(name + strlen(CUDA_PREFIX), NULL, 10);
    if (found->count == 0) {
        return error_set(error, STATUS_UNAVAILABLE, "device \"%s\" cannot be used: %s", name,
                         found->message);
    }
    if (number >= found->count) {
        return error_set(error, STATUS_NOT_FOUND,
                         "there is no device \"%s\": the last CUDA device is cuda:%u", name,
                         found->count - 1);
    }
    if (number < 64 && (found->usable >> number & 1) != 0) return STATUS_OK;
    return error_set(error, STATUS_UNAVAILABLE, "device \"%s\" cannot be used: %s", name,
                     found->message);
}

// A processor computes in float32 and in nothing else.
static enum status check_precision(const struct config *config, const char *name,
                                   struct error *error)
{
    const enum precision_choice wanted[] = {config_vae_precision(config),
                                            config_clip_precision(config)};
    const char *groups[] = {"vae", "clip"};
    for (uint32_t i = 0; i < 2 && strcmp(name, "cpu") == 0; i++) {
        if (!device_serves(&config->service, name, i == 0)) continue;
        if (wanted[i] == PRECISION_AUTO || wanted[i] == PRECISION_F32) continue;
        return error_set(error, STATUS_FAILED_PRECONDITION,
                         "device \"cpu\" has no %s for %s, its precision is f32",
                         wanted[i] == PRECISION_BF16 ? "bf16" : "f16", groups[i]);
    }
    return STATUS_OK;
}

static void take_usable(const luna_GpuNotice *found, struct device_list *out)
{
    for (uint32_t i = 0; i < found->count && i < 64 && out->count < DEVICE_TABLE_MAX; i++) {
        if ((found->usable >> i & 1) == 0) continue;
        snprintf(out->names[out->count], DEVICE_NAME_BYTES, CUDA_PREFIX "%u", i);
        out->count += 1;
    }
}

enum status devices_choose(const struct config *config, const struct device_list *named,
                           const luna_GpuNotice *found, struct device_list *out,
                           struct error *error)
{
    assert(config != NULL);
    assert(named != NULL);
    assert(found != NULL);
    struct device_list chosen = *named;
    if (named->count == 0) take_usable(found, &chosen);
    if (chosen.count == 0) {
        text_set(chosen.names[0], DEVICE_NAME_BYTES, "cpu");
        chosen.count = 1;
    }
    for (uint32_t i = 0; i < chosen.count; i++) {
        enum status status = check_precision(config, chosen.names[i], error);
        if (status == STATUS_OK && is_cuda(chosen.names[i])) {
            status = check_cuda(chosen.names[i], found, error);
        }
        if (status != STATUS_OK) return status;
    }
    *out = chosen;
    return STATUS_OK;
}
