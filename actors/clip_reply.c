// clip_reply.c - one LoraUse for each entry of the stack, and a note for what people would want to
// know.

#include "actors/clip_reply.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

static void add_note(luna_TextReply *reply, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void add_note(luna_TextReply *reply, const char *format, ...)
{
    if (reply->notes_count == sizeof reply->notes / sizeof reply->notes[0]) return;
    char note[512];  // text_set cuts it at a character's border
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(note, sizeof note, format, arguments);
    va_end(arguments);
    text_set(reply->notes[reply->notes_count], sizeof reply->notes[0], note);
    reply->notes_count += 1;
}

// Modules whose alpha is 0, so that they change nothing at any strength. (In OFT it is a bound, and
// 0 means none.)
static uint32_t count_alpha_zero(const struct lora *lora)
{
    uint32_t count = 0;
    uint32_t zeros = 0;
    const struct lora_module *modules = lora_modules(lora, &count);
    for (uint32_t i = 0; i < count; i++) {
        bool is_bound = modules[i].family == LORA_OFT || modules[i].family == LORA_BOFT;
        zeros += modules[i].has_alpha && modules[i].alpha == 0.0f && !is_bound;
    }
    return zeros;
}

static void add_notes(const char *name, const struct text_adapter *adapter, luna_TextReply *reply)
{
    if (adapter == NULL) {
        add_note(reply, "LoRA \"%.64s\" has no text-encoder tensors", name);
        return;
    }
    const struct lora *lora = text_adapter_lora(adapter);
    uint32_t unused = lora_unused_count(lora);
    uint32_t zeros = count_alpha_zero(lora);
    if (unused > 0) {
        add_note(reply, "LoRA \"%.64s\": %u %s that no encoder uses, such as \"%.64s\"", name,
                 unused, unused == 1 ? "key" : "keys", lora_unused_key(lora, 0));
    }
    if (zeros > 0) add_note(reply, "LoRA \"%.64s\": alpha is 0 in %u modules", name, zeros);
}

void clip_fill_loras(const struct worker_job *job, luna_TextReply *reply)
{
    assert(!job->waits_for_stack);
    const luna_EncodeText *body = &job->body.encode_text;
    if (job->stack_count == 0) return;
    assert(job->stack_count == body->loras_count);
    reply->loras_merged = job->grant.merged;
    reply->loras_count = (pb_size_t)job->stack_count;
    for (uint32_t i = 0; i < job->stack_count; i++) {
        const luna_StackEntry *entry = &job->stack[i];
        const struct text_adapter *adapter = job->grant.adapters[i];
        luna_LoraUse *use = &reply->loras[i];
        text_set(use->reference, sizeof use->reference, body->loras[i].reference);
        if (entry->encoder_hash.size == 0) continue;  // disabled, or of strength 0
        struct hash hash;
        memcpy(hash.value, entry->encoder_hash.bytes, sizeof hash.value);
        hash_to_hex(&hash, use->encoder_hash);
        use->keys_other = entry->keys_other;
        if (adapter != NULL) use->keys_unused = lora_unused_count(text_adapter_lora(adapter));
        if (job->grant.places[i] != UINT32_MAX)
            use->modules = text_stack_modules(job->grant.stack, job->grant.places[i]);
        const char *name = use->reference[0] != '\0' ? use->reference : body->loras[i].tensor;
        add_notes(name, adapter, reply);
    }
}
