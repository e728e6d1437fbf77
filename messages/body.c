// body.c - the operations: their names, the types of their bodies, and what each takes.
//
// An operation's tensors are part of its arguments, so they are checked with its body. Whether the
// sizes fit the model is for the worker to say: it has the model.

#include "messages/codec.h"

#include <assert.h>
#include <inttypes.h>

#include "messages/inputs.h"
#include "messages/loras.h"

#define TILE_DEFAULT 512u    // pixels
#define OVERLAP_DEFAULT 64u  // pixels
#define PASSES_DEFAULT 3u    // as ComfyUI
#define TILE_STEP 8u         // pixels; tile and overlap are taken down to a multiple
#define TILE_MAX 65536u      // pixels
#define CLIP_SKIP_MAX 64     // no text encoder has more layers
#define WORKERS_MAX 256u
#define MARGIN_MB_MAX (1u << 24)

struct operation {
    luna_Operation number;
    const char *name;  // as in luna.proto
    const pb_msgdesc_t *request;
    const pb_msgdesc_t *reply;
};

static const struct operation operations[] = {
    {luna_Operation_ENCODE_IMAGE, "ENCODE_IMAGE", luna_EncodeImage_fields, luna_ImageReply_fields},
    {luna_Operation_DECODE_LATENT, "DECODE_LATENT", luna_DecodeLatent_fields,
     luna_ImageReply_fields},
    {luna_Operation_ENCODE_TEXT, "ENCODE_TEXT", luna_EncodeText_fields, luna_TextReply_fields},
    {luna_Operation_ENCODE_TOKENS, "ENCODE_TOKENS", luna_EncodeText_fields, luna_TextReply_fields},
    {luna_Operation_TOKENIZE, "TOKENIZE", luna_Tokenize_fields, luna_TextReply_fields},
    {luna_Operation_LORA_PUT, "LORA_PUT", luna_LoraPut_fields, luna_LoraReply_fields},
    {luna_Operation_LORA_HAS, "LORA_HAS", luna_LoraName_fields, luna_LoraReply_fields},
    {luna_Operation_LORA_GET, "LORA_GET", luna_LoraGet_fields, luna_LoraReply_fields},
    {luna_Operation_LORA_LIST, "LORA_LIST", luna_Page_fields, luna_LoraListReply_fields},
    {luna_Operation_LORA_SCAN, "LORA_SCAN", luna_Empty_fields, luna_LoraScanReply_fields},
    {luna_Operation_LORA_STATS, "LORA_STATS", luna_Empty_fields, luna_LoraStats_fields},
    {luna_Operation_LORA_PIN, "LORA_PIN", luna_LoraName_fields, luna_LoraReply_fields},
    {luna_Operation_LORA_UNPIN, "LORA_UNPIN", luna_LoraName_fields, luna_LoraReply_fields},
    {luna_Operation_LORA_EVICT, "LORA_EVICT", luna_LoraName_fields, luna_LoraReply_fields},
    {luna_Operation_MODEL_REGISTER, "MODEL_REGISTER", luna_ModelRegister_fields,
     luna_ModelReply_fields},
    {luna_Operation_MODEL_LOAD, "MODEL_LOAD", luna_ModelName_fields, luna_ModelReply_fields},
    {luna_Operation_MODEL_UNLOAD, "MODEL_UNLOAD", luna_ModelName_fields, luna_ModelReply_fields},
    {luna_Operation_MODEL_LIST, "MODEL_LIST", luna_Page_fields, luna_ModelListReply_fields},
    {luna_Operation_STATUS, "STATUS", luna_Empty_fields, luna_Status_fields},
    {luna_Operation_PING, "PING", luna_Empty_fields, luna_PingReply_fields},
    {luna_Operation_CANCEL, "CANCEL", luna_Cancel_fields, luna_Empty_fields},
    {luna_Operation_DRAIN, "DRAIN", luna_Empty_fields, luna_Empty_fields},
    {luna_Operation_SHUTDOWN, "SHUTDOWN", luna_Empty_fields, luna_Empty_fields},
    {luna_Operation_LIMITS, "LIMITS", luna_Limits_fields, luna_Limits_fields},
    {luna_Operation_ATTACH, "ATTACH", luna_Empty_fields, luna_AttachReply_fields},
};

static const struct operation *find_operation(luna_Operation number)
{
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        if (operations[i].number == number) return &operations[i];
    }
    return NULL;
}

const char *codec_operation_name(luna_Operation operation)
{
    const struct operation *found = find_operation(operation);
    return found != NULL ? found->name : NULL;
}

const pb_msgdesc_t *codec_request_type(luna_Operation operation)
{
    const struct operation *found = find_operation(operation);
    return found != NULL ? found->request : NULL;
}

const pb_msgdesc_t *codec_reply_type(luna_Operation operation)
{
    const struct operation *found = find_operation(operation);
    return found != NULL ? found->reply : NULL;
}

// The four settings that EncodeImage and DecodeLatent share.
struct tile_settings {
    luna_Tiling tiling;
    uint32_t tile;     // pixels
    uint32_t overlap;  // pixels
    uint32_t passes;
};

static enum status check_tiles(const struct tile_settings *settings, struct error *error)
{
    if (settings->tiling > _luna_Tiling_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "tiling %d is none of 0 to %d",
                         (int)settings->tiling, (int)_luna_Tiling_MAX);
    }
    if (settings->tile < TILE_STEP || settings->tile > TILE_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "tile of %" PRIu32 " pixels is not within %u to %u", settings->tile,
                         TILE_STEP, TILE_MAX);
    }
    if (settings->overlap / TILE_STEP >= settings->tile / TILE_STEP) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "overlap of %" PRIu32 " pixels is not below the tile of %" PRIu32,
                         settings->overlap, settings->tile);
    }
    if (settings->passes != 1 && settings->passes != 3) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "passes is %" PRIu32 ", not 1 or 3",
                         settings->passes);
    }
    return STATUS_OK;
}

// Fills in the default and refuses what an answer's tensor cannot be.
static enum status check_output(luna_Dtype *output, bool may_be_u8, struct error *error)
{
    if (*output == luna_Dtype_DTYPE_NONE) *output = luna_Dtype_F32;
    if (dtype_is_real((enum dtype) * output)) return STATUS_OK;
    if (may_be_u8 && *output == luna_Dtype_U8) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "output type %d (%s) is not one of F32, F16, BF16%s", (int)*output,
                     dtype_name((enum dtype) * output), may_be_u8 ? ", U8" : "");
}

static uint32_t or_default(bool *has, uint32_t value, uint32_t fallback)
{
    if (*has) return value;
    *has = true;
    return fallback;
}

// A tile that the default overlap would fill has a quarter of itself, as ComfyUI's decoder does.
static uint32_t overlap_default(uint32_t tile)
{
    return tile / TILE_STEP > OVERLAP_DEFAULT / TILE_STEP ? OVERLAP_DEFAULT : tile / 4;
}

static enum status check_encode_image(luna_EncodeImage *message, struct error *error)
{
    message->tile = or_default(&message->has_tile, message->tile, TILE_DEFAULT);
    message->overlap =
        or_default(&message->has_overlap, message->overlap, overlap_default(message->tile));
    message->passes = or_default(&message->has_passes, message->passes, PASSES_DEFAULT);
    const struct tile_settings settings = {message->tiling, message->tile, message->overlap,
                                           message->passes};
    enum status status = check_tiles(&settings, error);
    return status != STATUS_OK ? status : check_output(&message->output, false, error);
}

static enum status check_decode_latent(luna_DecodeLatent *message, struct error *error)
{
    message->tile = or_default(&message->has_tile, message->tile, TILE_DEFAULT);
    message->overlap =
        or_default(&message->has_overlap, message->overlap, overlap_default(message->tile));
    message->passes = or_default(&message->has_passes, message->passes, PASSES_DEFAULT);
    const struct tile_settings settings = {message->tiling, message->tile, message->overlap,
                                           message->passes};
    enum status status = check_tiles(&settings, error);
    return status != STATUS_OK ? status : check_output(&message->output, true, error);
}

static enum status check_encode_text(const luna_Header *header, luna_EncodeText *message,
                                     struct error *error)
{
    if (message->clip_skip < -CLIP_SKIP_MAX || message->clip_skip > CLIP_SKIP_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "clip skip %" PRIi32 " is not within -%d to %d", message->clip_skip,
                         CLIP_SKIP_MAX, CLIP_SKIP_MAX);
    }
    enum status status = check_output(&message->output, false, error);
    return status != STATUS_OK ? status : codec_check_stack(header, message, error);
}

static enum status check_model_name(const char *name, struct error *error)
{
    if (codec_name_valid(name)) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "model name \"%s\"; 1 to 63 letters, digits and . _ - inside", name);
}

static enum status check_model_register(const luna_ModelRegister *message, struct error *error)
{
    enum status status = check_model_name(message->name, error);
    if (status != STATUS_OK) return status;
    if (message->files_count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "model \"%s\" has no files",
                         message->name);
    }
    for (uint32_t i = 0; i < message->files_count; i++) {
        if (message->files[i][0] != '\0') continue;
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "file %" PRIu32 " of model \"%s\" is empty", i, message->name);
    }
    return STATUS_OK;
}

struct worker_range {
    const char *what;          // "vae"
    bool has_least, has_most;  // which were set
    uint32_t least, most;      // workers
};

static enum status check_workers(const struct worker_range *range, struct error *error)
{
    uint32_t least = range->has_least ? range->least : 0;
    uint32_t most = range->has_most ? range->most : WORKERS_MAX;
    if (most > WORKERS_MAX || least > WORKERS_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s workers %" PRIu32 " to %" PRIu32 ", at most %u", range->what, least,
                         most, WORKERS_MAX);
    }
    if (least > most) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "%s workers: at least %" PRIu32 " but at most %" PRIu32, range->what,
                         least, most);
    }
    return STATUS_OK;
}

static enum status check_worker_limits(const luna_Limits *message, struct error *error)
{
    const struct worker_range vae = {"vae", message->has_vae_workers_min,
                                     message->has_vae_workers_max, message->vae_workers_min,
                                     message->vae_workers_max};
    const struct worker_range clip = {"clip", message->has_clip_workers_min,
                                      message->has_clip_workers_max, message->clip_workers_min,
                                      message->clip_workers_max};
    enum status status = check_workers(&vae, error);
    if (status == STATUS_OK) status = check_workers(&clip, error);
    if (status != STATUS_OK) return status;
    if (message->has_memory_margin_mb && message->memory_margin_mb > MARGIN_MB_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "memory margin of %" PRIu32 " MB, at most %u", message->memory_margin_mb,
                         MARGIN_MB_MAX);
    }
    return STATUS_OK;
}

static enum status check_cancel(const luna_Cancel *message, struct error *error)
{
    if (message->id.size == CODEC_ID_BYTES) return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT, "the id to cancel has %u bytes, not %u",
                     (unsigned)message->id.size, CODEC_ID_BYTES);
}

static enum status check_body(const luna_Header *header, union codec_request *request,
                              struct error *error)
{
    switch (header->operation) {
    case luna_Operation_ENCODE_IMAGE:
        return check_encode_image(&request->encode_image, error);
    case luna_Operation_DECODE_LATENT:
        return check_decode_latent(&request->decode_latent, error);
    case luna_Operation_ENCODE_TEXT:
    case luna_Operation_ENCODE_TOKENS:
        return check_encode_text(header, &request->encode_text, error);
    case luna_Operation_LORA_PUT:
        return codec_check_lora_put(header, &request->lora_put, error);
    case luna_Operation_LORA_GET:
        return codec_check_lora_reference(request->lora_get.reference, error);
    case luna_Operation_LORA_HAS:
    case luna_Operation_LORA_PIN:
    case luna_Operation_LORA_UNPIN:
    case luna_Operation_LORA_EVICT:
        return codec_check_lora_reference(request->lora_name.reference, error);
    case luna_Operation_MODEL_REGISTER:
        return check_model_register(&request->model_register, error);
    case luna_Operation_MODEL_LOAD:
    case luna_Operation_MODEL_UNLOAD:
        return check_model_name(request->model_name.name, error);
    case luna_Operation_CANCEL:
        return check_cancel(&request->cancel, error);
    case luna_Operation_LIMITS:
        return check_worker_limits(&request->limits, error);
    default:
        return STATUS_OK;  // nothing in it, or nothing that could be wrong
    }
}

enum status codec_decode_request(const luna_Header *header, struct bytes frame,
                                 union codec_request *out, struct error *error)
{
    assert(header != NULL && header->kind == luna_Kind_REQUEST);
    assert(out != NULL);
    const struct operation *operation = find_operation(header->operation);
    if (operation == NULL) {
        return error_set(error, STATUS_UNIMPLEMENTED, "operation %d is not known here",
                         (int)header->operation);
    }
    enum status status = codec_decode(operation->request, frame, out, error);
    if (status == STATUS_OK) status = codec_check_inputs(header, error);
    if (status == STATUS_OK) status = check_body(header, out, error);
    return status;
}
