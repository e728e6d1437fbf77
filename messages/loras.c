// loras.c - names, stacks and uploads of adapters: what can be said about them without the store.
//
// A reference is shown to people and compared with paths, so that what no file of ours can be
// called is refused here: control characters, and steps that lead out of a folder.

#include "messages/loras.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/checked.h"

#define ONE_SHOT "lora."  // what the tensors of one-shots begin with

// Also the controls of U+0080 to U+009F, which UTF-8 writes as 0xC2 and 0x80 to 0x9F.
static bool has_control(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    for (; *at != '\0'; at++) {
        if (*at < 0x20 || *at == 0x7f) return true;
        if (at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0) return true;
    }
    return false;
}

static bool leads_up(const char *path)
{
    while (path != NULL) {
        size_t length = strcspn(path, "/\\");
        if (length == 2 && path[0] == '.' && path[1] == '.') return true;
        path = path[length] != '\0' ? path + length + 1 : NULL;
    }
    return false;
}

static enum status check_name(const char *what, const char *name, struct error *error)
{
    if (has_control(name)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s \"%s\" has control characters", what,
                         name);
    }
    if (leads_up(name)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s \"%s\" has a step \"..\"", what, name);
    }
    return STATUS_OK;
}

enum status codec_check_lora_reference(const char *reference, struct error *error)
{
    assert(reference != NULL);
    if (reference[0] == '\0') {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the request names no LoRA");
    }
    return check_name("LoRA", reference, error);
}

// ---- stacks

static enum status check_factor(const char *what, const char *of, float value, struct error *error)
{
    if (isfinite(value) && fabsf(value) <= LORAS_FACTOR_MAX) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "%s%s is %g, not within -%g to %g", what, of,
                     (double)value, (double)LORAS_FACTOR_MAX, (double)LORAS_FACTOR_MAX);
}

static enum status check_factors(luna_LoraEntry *entry, struct error *error)
{
    if (!entry->has_strength_l) entry->strength_l = entry->strength;
    if (!entry->has_strength_g) entry->strength_g = entry->strength;
    if (!entry->has_scaling) entry->scaling = 1.0f;
    entry->has_strength_l = entry->has_strength_g = entry->has_scaling = true;

    const char *name = entry->reference[0] != '\0' ? entry->reference : entry->tensor;
    const float values[] = {entry->strength, entry->strength_l, entry->strength_g, entry->scaling};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        enum status status = check_factor("a strength of LoRA ", name, values[i], error);
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static enum status check_one_shot(const luna_Header *header, const luna_LoraEntry *entry,
                                  struct error *error)
{
    if (strncmp(entry->tensor, ONE_SHOT, strlen(ONE_SHOT)) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "LoRA \"%s\" comes in tensor \"%s\"; its name has to begin with " ONE_SHOT,
                         entry->reference, entry->tensor);
    }
    if (codec_find_tensor(header, entry->tensor, NULL) != NULL) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "LoRA \"%s\" comes in tensor \"%s\", which is not there", entry->reference,
                     entry->tensor);
}

static enum status check_entry(const luna_Header *header, luna_LoraEntry *entry, uint32_t index,
                               struct error *error)
{
    bool one_shot = entry->tensor[0] != '\0';
    if (entry->reference[0] == '\0' && !one_shot) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "LoRA %" PRIu32 " has no name", index);
    }
    enum status status = check_name("LoRA", entry->reference, error);
    if (status == STATUS_OK && one_shot) status = check_one_shot(header, entry, error);
    return status != STATUS_OK ? status : check_factors(entry, error);
}

// Each tensor of an adapter belongs to exactly one entry.
static enum status check_owners(const luna_Header *header, const luna_EncodeText *message,
                                struct error *error)
{
    for (uint32_t i = 0; i < header->tensors_count; i++) {
        const luna_Tensor *tensor = &header->tensors[i];
        if (tensor->room || strncmp(tensor->name, ONE_SHOT, strlen(ONE_SHOT)) != 0) continue;
        uint32_t owners = 0;
        for (uint32_t j = 0; j < message->loras_count; j++) {
            owners += strcmp(message->loras[j].tensor, tensor->name) == 0;
        }
        if (owners == 1) continue;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tensor \"%s\" is the file of %" PRIu32 " LoRAs, not of one", tensor->name,
                         owners);
    }
    return STATUS_OK;
}

enum status codec_check_stack(const luna_Header *header, luna_EncodeText *message,
                              struct error *error)
{
    assert(header != NULL);
    assert(message != NULL);
    if (!message->has_lora_multiplier) message->lora_multiplier = 1.0f;
    if (!message->has_lora_scaling) message->lora_scaling = 1.0f;
    message->has_lora_multiplier = message->has_lora_scaling = true;

    enum status status = check_factor("the LoRA multiplier", "", message->lora_multiplier, error);
    if (status == STATUS_OK) {
        status = check_factor("the LoRA scaling", "", message->lora_scaling, error);
    }
    for (uint32_t i = 0; i < message->loras_count && status == STATUS_OK; i++) {
        status = check_entry(header, &message->loras[i], i, error);
    }
    return status == STATUS_OK ? check_owners(header, message, error) : status;
}

// ---- uploads

static enum status check_begin(const luna_LoraPut *message, struct error *error)
{
    if (message->hash[0] == '\0') {
        return error_set(error, STATUS_INVALID_ARGUMENT, "an upload begins with its hash");
    }
    if (message->bytes == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "an upload of 0 bytes");
    }
    return STATUS_OK;
}

static enum status check_upload(const luna_Header *header, const luna_LoraPut *message,
                                struct error *error)
{
    if (message->upload == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "the step names no upload");
    }
    if (message->step != luna_LoraPutStep_PUT_CHUNK) return STATUS_OK;
    const luna_Tensor *file = codec_find_tensor(header, "file", NULL);
    uint64_t end = 0;
    if (file == NULL || checked_add(message->offset, file->bytes, &end)) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "a chunk of %" PRIu64 " bytes cannot start at %" PRIu64, file->bytes,
                     message->offset);
}

static enum status check_file(const luna_Header *header, luna_LoraPutStep step, struct error *error)
{
    bool wanted = step == luna_LoraPutStep_PUT_WHOLE || step == luna_LoraPutStep_PUT_CHUNK;
    bool there = codec_find_tensor(header, "file", NULL) != NULL;
    if (wanted == there) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "this step of LORA_PUT %s tensor \"file\"",
                     wanted ? "needs a" : "takes no");
}

enum status codec_check_lora_put(const luna_Header *header, const luna_LoraPut *message,
                                 struct error *error)
{
    assert(header != NULL);
    assert(message != NULL);
    struct hash hash;
    if (message->step > _luna_LoraPutStep_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "step %d is none of 0 to %d",
                         (int)message->step, (int)_luna_LoraPutStep_MAX);
    }
    if (message->hash[0] != '\0' && !hash_from_hex(message->hash, &hash)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "hash \"%s\" is not 64 hexadecimal digits",
                         message->hash);
    }
    if (hash_from_hex(message->name, &hash)) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a LoRA cannot be called \"%s\": that is what a hash looks like",
                         message->name);
    }
    enum status status = check_name("LoRA", message->name, error);
    if (status == STATUS_OK) status = check_file(header, message->step, error);
    if (status != STATUS_OK) return status;
    switch (message->step) {
    case luna_LoraPutStep_PUT_WHOLE:
        return STATUS_OK;
    case luna_LoraPutStep_PUT_BEGIN:
        return check_begin(message, error);
    default:
        return check_upload(header, message, error);
    }
}
