// config_table.c - the one table of keys. Reading, checking, dumping and comparing walk over it, so
// a key that is added here is complete.

#include "runtime/config_table.h"

#include <assert.h>
#include <string.h>

#define AT(member) offsetof(struct config, member)
#define MEGABYTES_MAX (UINT64_MAX >> 20)
#define ANY 0, 0, NULL

const struct setting config_settings[] = {
    {"service", "type", SETTING_CHOICE, AT(service.type), false, "full", SERVICE_FULL, 0,
     "full|vae|clip"},
    {"service", "threads", SETTING_U64_AUTO, AT(service.threads), false, "auto", 1, 1024, NULL},
    {"service", "devices", SETTING_DEVICES, AT(service.devices), false, "auto", ANY},
    {"service", "vae_device", SETTING_DEVICES, AT(service.vae_devices), false, "auto", ANY},
    {"service", "clip_device", SETTING_DEVICES, AT(service.clip_devices), false, "auto", ANY},
    {"service", "precision", SETTING_CHOICE, AT(service.precision), false, "auto", PRECISION_AUTO,
     0, "auto|f32|bf16|f16"},
    {"service", "vae_precision", SETTING_CHOICE, AT(service.vae_precision), false, "inherit",
     PRECISION_INHERIT, 0, "inherit|auto|f32|bf16|f16"},
    {"service", "clip_precision", SETTING_CHOICE, AT(service.clip_precision), false, "inherit",
     PRECISION_INHERIT, 0, "inherit|auto|f32|bf16|f16"},
    {"service", "memory_limit_mb", SETTING_U64_AUTO, AT(service.memory_limit_mb), false, "auto", 64,
     MEGABYTES_MAX, NULL},
    {"service", "log_level", SETTING_LOG_LEVEL, AT(service.log_levels.level), false, "info", ANY},
    {"listen", "requests", SETTING_ENDPOINTS, AT(listen.requests), false,
     "tcp://127.0.0.1:19283, ipc://@runtime@/luna.sock", ANY},
    {"listen", "page", SETTING_HOST_PORT, AT(listen.page), false, "127.0.0.1:19284", ANY},
    {"listen", "events", SETTING_TCP, AT(listen.events), false, "tcp://127.0.0.1:19285", ANY},
    {"models", "directories", SETTING_LIST, AT(models.directories), true, "./models", 0,
     CONFIG_LIST_MAX, NULL},
    {"models", "default_vae", SETTING_TEXT, AT(models.default_vae), true, "", ANY},
    {"models", "default_text", SETTING_TEXT, AT(models.default_text), true, "", ANY},
    {"lora", "directories", SETTING_LIST, AT(lora.directories), true, "./loras", 0, CONFIG_LIST_MAX,
     NULL},
    {"lora", "memory_limit_mb", SETTING_U64, AT(lora.memory_limit_mb), true, "4096", 1,
     MEGABYTES_MAX, NULL},
    {"lora", "cleanup_threshold", SETTING_SHARE, AT(lora.cleanup_threshold), true, "0.8", ANY},
    {"lora", "entries_max", SETTING_U32, AT(lora.entries_max), true, "100", 1, 100000, NULL},
    {"lora", "time_to_live_s", SETTING_U64, AT(lora.time_to_live_s), true, "0", 0, UINT32_MAX,
     NULL},
    {"lora", "stack_max", SETTING_U32, AT(lora.stack_max), true, "8", 1, 64, NULL},
    {"lora", "execution", SETTING_FLAG, AT(lora.merged), false, "functional", 0, 0,
     "functional|merged"},
    {"lora", "merged_limit_mb", SETTING_U64, AT(lora.merged_limit_mb), false, "1536", 0,
     MEGABYTES_MAX, NULL},
    {"scaling", "vae_workers", SETTING_RANGE, AT(scaling.vae_workers), true, "0-2", 1, 16, NULL},
    {"scaling", "clip_workers", SETTING_RANGE, AT(scaling.clip_workers), true, "0-2", 1, 16, NULL},
    {"scaling", "queue_threshold", SETTING_U32, AT(scaling.queue_threshold), true, "2", 1, 100000,
     NULL},
    {"scaling", "scale_up_delay_ms", SETTING_U32, AT(scaling.scale_up_delay_ms), true, "1000", 0,
     3600000, NULL},
    {"scaling", "idle_timeout_s", SETTING_U32, AT(scaling.idle_timeout_s), true, "30", 0, 31536000,
     NULL},
    {"scaling", "memory_margin_mb", SETTING_U64_AUTO, AT(scaling.memory_margin_mb), true, "auto", 0,
     MEGABYTES_MAX, NULL},
    {"cache", "conditioning_mb", SETTING_U64, AT(cache_conditioning_mb), false, "256", 0,
     MEGABYTES_MAX, NULL},
    {"limits", "queue_requests_max", SETTING_U32, AT(limits.queue_requests_max), false, "256", 1,
     16384, NULL},
    {"limits", "queue_bytes_max", SETTING_U64, AT(limits.queue_bytes_max), true, "2147483648", 1,
     INT64_MAX, NULL},
    {"limits", "message_bytes_max", SETTING_U64, AT(limits.message_bytes_max), false, "1073741824",
     65536, INT64_MAX, NULL},
    {"limits", "image_pixels_max", SETTING_U64, AT(limits.image_pixels_max), true, "67108864", 64,
     1ull << 40, NULL},
    {"limits", "text_bytes_max", SETTING_U32, AT(limits.text_bytes_max), true, "65536", 1, 1u << 24,
     NULL},
    {"limits", "restarts_max", SETTING_U32, AT(limits.restarts_max), true, "5", 0, 1024, NULL},
    {"limits", "restarts_period_s", SETTING_U32, AT(limits.restarts_period_s), true, "60", 1, 86400,
     NULL},
    {"security", "curve", SETTING_FLAG, AT(security.curve), false, "off", 0, 0, "off|on"},
    {"security", "loopback_role", SETTING_FLAG, AT(security.loopback_admin), false, "user", 0, 0,
     "user|admin"},
    {"cluster", "peers", SETTING_ENDPOINTS, AT(cluster.peers), false, "", ANY},
    {"cluster", "etcd", SETTING_TEXT, AT(cluster.etcd), false, "", ANY},
};

const uint32_t config_setting_count = sizeof config_settings / sizeof config_settings[0];
_Static_assert(sizeof config_settings / sizeof config_settings[0] + LOG_ACTORS_MAX <=
                   CONFIG_CHANGES_MAX,
               "config_compare has room for every key");

const struct setting *config_find(const char *section, const char *key)
{
    assert(section != NULL);
    assert(key != NULL);
    for (uint32_t i = 0; i < config_setting_count; i++) {
        const struct setting *setting = &config_settings[i];
        if (strcmp(setting->section, section) == 0 && strcmp(setting->key, key) == 0) {
            return setting;
        }
    }
    return NULL;
}
