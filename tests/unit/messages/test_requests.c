// test_requests.c - the body of every operation with its defaults and its tensors, and letters.

#include "messages/codec.h"

#include <math.h>
#include <stdlib.h>

#include "messages/letter.h"
#include "tests/test.h"
#include "tests/unit/messages/requests.h"

// What a test sends and what it gets.
struct bodies {
    union codec_request in;
    union codec_request out;
};

// Sends in behind header and reads it into io->out.
static enum status pass(struct bodies *io, const luna_Header *header, struct error *error)
{
    uint8_t buffer[CODEC_BODY_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    const pb_msgdesc_t *type = codec_request_type(header->operation);
    assert_non_null(type);
    assert_int_equal(codec_encode(type, &io->in, &encoded, error), STATUS_OK);
    return codec_decode_request(header, bytes_of(buffer, encoded.size), &io->out, error);
}

static void assert_refused(struct bodies *io, const luna_Header *header, const char *words)
{
    struct error error = {0};
    assert_int_equal(pass(io, header, &error), STATUS_INVALID_ARGUMENT);
    if (strstr(error.message, words) == NULL) fail_msg("\"%s\" lacks \"%s\"", error.message, words);
}

static void assert_accepted(struct bodies *io, const luna_Header *header)
{
    struct error error = {0};
    if (pass(io, header, &error) != STATUS_OK) fail_msg("refused: %s", error.message);
}

static int prepare(void **state)
{
    struct bodies *io = calloc(1, sizeof *io);
    assert_non_null(io);
    memset(&io->out, 0xa5, sizeof io->out);
    *state = io;
    return 0;
}

static int end(void **state)
{
    free(*state);
    return 0;
}

static luna_Header image_request(void)
{
    luna_Header header = request_of(luna_Operation_ENCODE_IMAGE);
    add_tensor(&header, "image", luna_Dtype_U8, (uint64_t[]){1, 16, 8, 3});
    return header;
}

static luna_Header text_request(void)
{
    luna_Header header = request_of(luna_Operation_ENCODE_TEXT);
    add_tensor(&header, "prompt", luna_Dtype_U8, (uint64_t[]){5, 0, 0, 0});
    return header;
}

static void an_empty_image_body_means_the_defaults(void **state)
{
    struct bodies *io = *state;
    luna_Header header = image_request();
    assert_accepted(io, &header);
    assert_int_equal(io->out.encode_image.tiling, luna_Tiling_TILING_AUTO);
    assert_int_equal(io->out.encode_image.tile, 512);
    assert_int_equal(io->out.encode_image.overlap, 64);
    assert_int_equal(io->out.encode_image.passes, 3);
    assert_int_equal(io->out.encode_image.output, luna_Dtype_F32);
    header = latent_request();
    assert_accepted(io, &header);
    assert_int_equal(io->out.decode_latent.tile, 512);
    assert_int_equal(io->out.decode_latent.overlap, 64);
    assert_int_equal(io->out.decode_latent.passes, 3);
    assert_int_equal(io->out.decode_latent.output, luna_Dtype_F32);
}

static void a_small_tile_has_a_smaller_default_overlap(void **state)
{
    struct bodies *io = *state;
    luna_Header header = latent_request();
    io->in.decode_latent.has_tile = true;
    io->in.decode_latent.tile = 64;
    assert_accepted(io, &header);
    assert_int_equal(io->out.decode_latent.overlap, 16);
    io->in.decode_latent.tile = 72;
    assert_accepted(io, &header);
    assert_int_equal(io->out.decode_latent.overlap, 64);
}

static void tile_overlap_passes_tiling_and_output_have_ranges(void **state)
{
    struct bodies *io = *state;
    luna_Header header = latent_request();
    luna_DecodeLatent *body = &io->in.decode_latent;
    *body = (luna_DecodeLatent){.has_tile = true, .tile = 7};
    assert_refused(io, &header, "tile of 7 pixels");
    body->tile = 65537;
    assert_refused(io, &header, "tile of 65537 pixels");
    *body = (luna_DecodeLatent){.has_tile = true, .tile = 128, .has_overlap = true, .overlap = 128};
    assert_refused(io, &header, "overlap of 128 pixels is not below the tile of 128");
    body->tile = 135;  // taken down to 128
    assert_refused(io, &header, "not below");
    body->overlap = 127;
    assert_accepted(io, &header);
    body->overlap = 0;
    assert_accepted(io, &header);
    *body = (luna_DecodeLatent){.has_passes = true, .passes = 2};
    assert_refused(io, &header, "passes is 2");
    body->passes = 0;
    assert_refused(io, &header, "passes is 0");
    body->passes = 1;
    assert_accepted(io, &header);
    *body = (luna_DecodeLatent){.tiling = (luna_Tiling)3};
    assert_refused(io, &header, "tiling 3");
    *body = (luna_DecodeLatent){.output = luna_Dtype_I32};
    assert_refused(io, &header, "output type 5 (I32)");
    body->output = luna_Dtype_U8;
    assert_accepted(io, &header);

    header = image_request();
    io->in.encode_image = (luna_EncodeImage){.output = luna_Dtype_U8};
    assert_refused(io, &header, "output type 4 (U8) is not one of F32, F16, BF16");
    io->in.encode_image = (luna_EncodeImage){.output = luna_Dtype_BF16, .has_passes = true};
    assert_refused(io, &header, "passes is 0");
}

static void an_image_is_nhwc_of_three_or_four_channels(void **state)
{
    struct bodies *io = *state;
    luna_Header header = image_request();
    header.tensors[0].dims[3] = 4;
    assert_accepted(io, &header);
    header.tensors[0].dims[3] = 2;
    assert_refused(io, &header, "[N,H,W,C]");
    header = image_request();
    header.tensors[0].dtype = luna_Dtype_F64;
    assert_refused(io, &header, "F64 of rank 4");
    header = image_request();
    header.tensors[0].dims_count = 3;
    assert_refused(io, &header, "U8 of rank 3");
    header.tensors_count = 0;
    assert_refused(io, &header, "ENCODE_IMAGE needs a tensor \"image\"");
    header = image_request();
    strcpy(header.tensors[0].name, "latent");
    assert_refused(io, &header, "ENCODE_IMAGE takes no tensor \"latent\"");
}

static void a_latent_has_three_or_four_dimensions_of_a_real_type(void **state)
{
    struct bodies *io = *state;
    luna_Header header = latent_request();
    header.tensors[0].dims_count = 3;
    assert_accepted(io, &header);
    header.tensors[0].dims_count = 2;
    assert_refused(io, &header, "[N,C,h,w]");
    header = latent_request();
    header.tensors[0].dtype = luna_Dtype_U8;
    assert_refused(io, &header, "U8 of rank 4");
    header = latent_request();
    header.tensors[0].room = true;  // room is no input
    assert_refused(io, &header, "needs a tensor \"latent\"");
}

static void texts_are_bytes_and_need_a_prompt(void **state)
{
    struct bodies *io = *state;
    const uint64_t five[4] = {5};
    luna_Header header = text_request();
    add_tensor(&header, "prompt_2", luna_Dtype_U8, five);
    assert_accepted(io, &header);
    add_tensor(&header, "negative_2", luna_Dtype_U8, five);
    assert_refused(io, &header, "needs a tensor \"negative\"");
    add_tensor(&header, "negative", luna_Dtype_U8, five);
    assert_accepted(io, &header);
    header.operation = luna_Operation_TOKENIZE;
    assert_refused(io, &header, "TOKENIZE takes no tensor \"negative_2\"");
    header = text_request();
    header.tensors[0].dtype = luna_Dtype_I32;
    assert_refused(io, &header, "UTF-8 in U8 of rank 1");
    strcpy(header.tensors[0].name, "negative");
    header.tensors[0].dtype = luna_Dtype_U8;
    assert_refused(io, &header, "needs a tensor \"prompt\"");
}

static void tokens_come_with_weights_of_the_same_shape(void **state)
{
    struct bodies *io = *state;
    luna_Header header = request_of(luna_Operation_ENCODE_TOKENS);
    assert_refused(io, &header, "needs a tensor \"l.ids\"");
    add_tensor(&header, "g.ids", luna_Dtype_I32, (uint64_t[]){2, 77, 0, 0});
    assert_refused(io, &header, "needs a tensor \"g.weights\"");
    add_tensor(&header, "g.weights", luna_Dtype_F64, (uint64_t[]){2, 77, 0, 0});
    assert_accepted(io, &header);
    header.tensors[1].dims[0] = 1;
    assert_refused(io, &header, "different shapes");
    header.tensors[1].dims[0] = 2;
    header.tensors[1].dtype = luna_Dtype_F32;
    assert_refused(io, &header, "F64 for weights");
    header.tensors[1].dtype = luna_Dtype_F64;
    add_tensor(&header, "negative.g.ids", luna_Dtype_I32, (uint64_t[]){1, 77, 0, 0});
    assert_refused(io, &header, "needs a tensor \"negative.g.weights\"");
    add_tensor(&header, "negative.g.weights", luna_Dtype_F64, (uint64_t[]){1, 77, 0, 0});
    assert_accepted(io, &header);
    add_tensor(&header, "x.ids", luna_Dtype_I32, (uint64_t[]){1, 77, 0, 0});
    assert_refused(io, &header, "takes no tensor \"x.ids\"");
    header = request_of(luna_Operation_ENCODE_TOKENS);
    add_tensor(&header, "negative.l.ids", luna_Dtype_I32, (uint64_t[]){1, 77, 0, 0});
    add_tensor(&header, "negative.l.weights", luna_Dtype_F64, (uint64_t[]){1, 77, 0, 0});
    assert_refused(io, &header, "needs a tensor \"l.ids\"");
}

static void a_lora_has_a_name_and_finite_strengths_with_defaults(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    luna_EncodeText *body = &io->in.encode_text;
    body->loras_count = 2;
    strcpy(body->loras[0].reference, "style");
    body->loras[0].strength = 0.8f;
    strcpy(body->loras[1].reference, "detail");
    body->loras[1].strength = -1.0f;
    body->loras[1].has_strength_g = true;
    body->loras[1].strength_g = 0.25f;
    assert_accepted(io, &header);
    assert_true(io->out.encode_text.loras[0].strength_l == 0.8f);
    assert_true(io->out.encode_text.loras[0].strength_g == 0.8f);
    assert_true(io->out.encode_text.loras[0].scaling == 1.0f);
    assert_true(io->out.encode_text.loras[1].strength_l == -1.0f);
    assert_true(io->out.encode_text.loras[1].strength_g == 0.25f);
    assert_true(io->out.encode_text.lora_multiplier == 1.0f);
    assert_true(io->out.encode_text.lora_scaling == 1.0f);
    assert_int_equal(io->out.encode_text.output, luna_Dtype_F32);

    body->loras[1].strength_g = NAN;
    assert_refused(io, &header, "a strength of LoRA detail is nan");
    body->loras[1].strength_g = 2e6f;
    assert_refused(io, &header, "2e+06");
    body->loras[1].strength_g = 1.0f;
    body->loras[1].reference[0] = '\0';
    assert_refused(io, &header, "LoRA 1 has no name");
    body->loras_count = 0;
    body->has_lora_multiplier = true;
    body->lora_multiplier = INFINITY;
    assert_refused(io, &header, "the LoRA multiplier is inf");
    body->lora_multiplier = 0.0f;
    assert_accepted(io, &header);
    assert_true(io->out.encode_text.lora_multiplier == 0.0f);
    body->clip_skip = 65;
    assert_refused(io, &header, "clip skip 65");
    body->clip_skip = INT32_MIN;
    assert_refused(io, &header, "clip skip -2147483648");
    body->clip_skip = -2;
    assert_accepted(io, &header);
}

static void a_model_has_a_name_and_files(void **state)
{
    struct bodies *io = *state;
    luna_Header header = request_of(luna_Operation_MODEL_REGISTER);
    luna_ModelRegister *body = &io->in.model_register;
    strcpy(body->name, "sdxl");
    assert_refused(io, &header, "model \"sdxl\" has no files");
    body->files_count = 1;
    assert_refused(io, &header, "file 0 of model \"sdxl\" is empty");
    strcpy(body->files[0], "vae.safetensors");
    assert_accepted(io, &header);
    strcpy(body->name, "a/b");
    assert_refused(io, &header, "model name \"a/b\"");
    memset(&io->in, 0, sizeof io->in);
    header.operation = luna_Operation_MODEL_LOAD;
    assert_refused(io, &header, "model name \"\"");
    header.operation = luna_Operation_MODEL_UNLOAD;
    assert_refused(io, &header, "model name \"\"");
    strcpy(io->in.model_name.name, "sdxl");
    assert_accepted(io, &header);
    add_tensor(&header, "x", luna_Dtype_U8, (uint64_t[]){1, 0, 0, 0});
    assert_refused(io, &header, "MODEL_UNLOAD takes no tensor \"x\"");
}

static void cancel_and_limits_are_checked(void **state)
{
    struct bodies *io = *state;
    luna_Header header = request_of(luna_Operation_CANCEL);
    io->in.cancel.id.size = 15;
    assert_refused(io, &header, "the id to cancel has 15 bytes");
    io->in.cancel.id.size = 16;
    assert_accepted(io, &header);

    header = request_of(luna_Operation_LIMITS);
    memset(&io->in, 0, sizeof io->in);
    assert_accepted(io, &header);
    luna_Limits *body = &io->in.limits;
    body->has_vae_workers_min = body->has_vae_workers_max = true;
    body->vae_workers_min = 3;
    body->vae_workers_max = 2;
    assert_refused(io, &header, "vae workers: at least 3 but at most 2");
    body->vae_workers_max = 257;
    assert_refused(io, &header, "at most 256");
    body->vae_workers_max = 3;
    assert_accepted(io, &header);
    body->has_clip_workers_min = true;
    body->clip_workers_min = 1000;
    assert_refused(io, &header, "clip workers 1000");
    body->clip_workers_min = 1;
    body->has_memory_margin_mb = true;
    body->memory_margin_mb = UINT32_MAX;
    assert_refused(io, &header, "memory margin");
}

static void a_stack_of_a_thousand_is_refused_with_both_numbers(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    uint8_t frame[5000];
    for (uint32_t i = 0; i < 1000; i++) memcpy(frame + 5 * i, "\x22\x03\x0a\x01x", 5);
    struct error error = {0};
    assert_int_equal(codec_decode_request(&header, bytes_of(frame, sizeof frame), &io->out, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message,
                        "malformed message: field 4 comes 1000 times, at most 64 are read");
}

static void a_text_that_is_too_long_is_refused_with_both_numbers(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    uint8_t frame[6 + 298] = {0x22, 0xad, 0x02, 0x0a, 0xaa, 0x02};  // loras {reference: 298 bytes}
    memset(frame + 6, 'x', sizeof frame - 6);
    struct error error = {0};
    assert_int_equal(codec_decode_request(&header, bytes_of(frame, sizeof frame), &io->out, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message,
                        "malformed message: field 1 is a text of 298 bytes, at most 255 are read");
}

static void a_loras_name_has_no_controls_and_leads_nowhere(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    luna_EncodeText *body = &io->in.encode_text;
    body->loras_count = 1;
    strcpy(body->loras[0].reference, "a\nb");
    assert_refused(io, &header, "LoRA \"a\\x0ab\" has control characters");
    strcpy(body->loras[0].reference, "a\xc2\x85");
    assert_refused(io, &header, "control characters");
    const char *const up[] = {"..", "../x", "a/../x", "a/..", "..\\x"};
    for (size_t i = 0; i < sizeof up / sizeof up[0]; i++) {
        strcpy(body->loras[0].reference, up[i]);
        assert_refused(io, &header, "has a step \"..\"");
    }
    const char *const fine[] = {"a..b", "folder/x.safetensors", "\xc3\xa4 x", "...", "..a"};
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        strcpy(body->loras[0].reference, fine[i]);
        assert_accepted(io, &header);
    }

    header = request_of(luna_Operation_LORA_HAS);
    memset(&io->in, 0, sizeof io->in);
    assert_refused(io, &header, "the request names no LoRA");
    strcpy(io->in.lora_name.reference, "\x7f");
    assert_refused(io, &header, "control characters");
    strcpy(io->in.lora_name.reference, "style");
    assert_accepted(io, &header);
    add_tensor(&header, "file", luna_Dtype_U8, (uint64_t[]){5, 0, 0, 0});
    assert_refused(io, &header, "LORA_HAS takes no tensor \"file\"");
}

static void a_one_shot_belongs_to_exactly_one_entry(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    luna_EncodeText *body = &io->in.encode_text;
    add_tensor(&header, "lora.0", luna_Dtype_U8, (uint64_t[]){5, 0, 0, 0});
    assert_refused(io, &header, "tensor \"lora.0\" is the file of 0 LoRAs, not of one");
    body->loras_count = 1;
    strcpy(body->loras[0].tensor, "lora.0");
    assert_accepted(io, &header);
    header.operation = luna_Operation_TOKENIZE;
    memset(&io->in, 0, sizeof io->in);
    assert_refused(io, &header, "TOKENIZE takes no tensor \"lora.0\"");
    header.operation = luna_Operation_ENCODE_TEXT;
    body->loras_count = 2;
    strcpy(body->loras[0].tensor, "lora.0");
    strcpy(body->loras[1].tensor, "lora.0");
    assert_refused(io, &header, "is the file of 2 LoRAs");
    strcpy(body->loras[1].tensor, "lora.1");
    assert_refused(io, &header, "comes in tensor \"lora.1\", which is not there");
    strcpy(body->loras[1].tensor, "prompt");
    assert_refused(io, &header, "has to begin with lora.");
    body->loras_count = 1;
    header.tensors[1].dtype = luna_Dtype_F32;
    header.tensors[1].bytes *= 4;
    assert_refused(io, &header, "a file's bytes in U8 of rank 1");
    header.tensors[1] = (luna_Tensor){.dtype = luna_Dtype_U8, .dims_count = 1, .name = "lora.0"};
    assert_refused(io, &header, "tensor \"lora.0\" is an empty file");
    // The limit of texts is not that of adapters.
    header.tensors[1].bytes = header.tensors[1].dims[0] = 1000;
    const struct codec_limits limits = {.text_bytes_max = 5, .image_pixels_max = 1};
    struct error error = {0};
    assert_int_equal(codec_check_limits(&header, &limits, &error), STATUS_OK);
}

static void each_step_of_an_upload_has_what_it_needs(void **state)
{
    struct bodies *io = *state;
    luna_LoraPut *body = &io->in.lora_put;
    const char *hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ABCDEF";
    luna_Header bare = request_of(luna_Operation_LORA_PUT);
    luna_Header header = bare;
    add_tensor(&header, "file", luna_Dtype_U8, (uint64_t[]){5, 0, 0, 0});

    assert_refused(io, &bare, "needs a tensor \"file\"");
    assert_accepted(io, &header);
    strcpy(body->name, "style\n");
    assert_refused(io, &header, "control characters");
    strcpy(body->name, hash);
    assert_refused(io, &header, "that is what a hash looks like");
    strcpy(body->name, "style");
    strcpy(body->hash, "0123");
    assert_refused(io, &header, "hash \"0123\" is not 64 hexadecimal digits");
    strcpy(body->hash, hash);
    assert_accepted(io, &header);

    body->step = luna_LoraPutStep_PUT_BEGIN;
    assert_refused(io, &header, "takes no tensor \"file\"");
    assert_refused(io, &bare, "an upload of 0 bytes");
    body->bytes = 1;
    assert_accepted(io, &bare);
    body->hash[0] = '\0';
    assert_refused(io, &bare, "an upload begins with its hash");

    body->step = luna_LoraPutStep_PUT_CHUNK;
    assert_refused(io, &header, "the step names no upload");
    body->upload = 7;
    assert_accepted(io, &header);
    body->offset = UINT64_MAX;
    assert_refused(io, &header, "a chunk of 5 bytes cannot start at 18446744073709551615");
    body->step = luna_LoraPutStep_PUT_COMMIT;
    assert_accepted(io, &bare);
    body->step = luna_LoraPutStep_PUT_ABORT;
    assert_accepted(io, &bare);
    body->step = (luna_LoraPutStep)9;
    assert_refused(io, &header, "step 9 is none of 0 to 4");
}

static void every_operation_has_a_name_and_no_other_number_has(void **state)
{
    (void)state;
    uint32_t named = 0;
    for (int i = 0; i < 1000; i++) named += codec_operation_name((luna_Operation)i) != NULL;
    assert_int_equal(named, 25);
    assert_string_equal(codec_operation_name(luna_Operation_ATTACH), "ATTACH");
    assert_ptr_equal(codec_reply_type(luna_Operation_TOKENIZE), luna_TextReply_fields);
    assert_null(codec_reply_type((luna_Operation)999));
}

static void texts_and_images_have_configured_limits(void **state)
{
    (void)state;
    const struct codec_limits limits = {.text_bytes_max = 5, .image_pixels_max = 128};
    luna_Header header = text_request();
    struct error error = {0};
    assert_int_equal(codec_check_limits(&header, &limits, &error), STATUS_OK);
    header.tensors[0].bytes = header.tensors[0].dims[0] = 6;
    assert_int_equal(codec_check_limits(&header, &limits, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "text \"prompt\" has 6 bytes, at most 5 are taken");
    header = image_request();
    assert_int_equal(codec_check_limits(&header, &limits, &error), STATUS_OK);
    header.tensors[0].dims[0] = 2;
    assert_int_equal(codec_check_limits(&header, &limits, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "image has 256 pixels, at most 128 are taken");
}

static void a_body_cut_anywhere_reads_no_byte_behind_it(void **state)
{
    struct bodies *io = *state;
    luna_Header header = text_request();
    io->in.encode_text.loras_count = 2;
    strcpy(io->in.encode_text.loras[0].reference, "style");
    strcpy(io->in.encode_text.loras[1].reference, "detail");
    io->in.encode_text.has_lora_multiplier = true;
    io->in.encode_text.lora_multiplier = 0.5f;
    uint8_t buffer[256];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    assert_int_equal(codec_encode(luna_EncodeText_fields, &io->in, &encoded, NULL), STATUS_OK);
    uint32_t accepted = 0;
    for (uint64_t size = 0; size <= encoded.size; size++) {
        uint8_t *cut = malloc(size + (size == 0));
        assert_non_null(cut);
        memcpy(cut, buffer, size);
        accepted += codec_decode_request(&header, bytes_of(cut, size), &io->out, NULL) == STATUS_OK;
        free(cut);
    }
    assert_int_equal(accepted, 4);  // after none, one, two LoRAs, and the multiplier
}

static void a_string_that_is_not_utf8_is_not_sent(void **state)
{
    struct bodies *io = *state;
    strcpy(io->in.model_name.name, "\xff");
    uint8_t buffer[luna_ModelName_size];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    struct error error = {0};
    assert_int_equal(codec_encode(luna_ModelName_fields, &io->in, &encoded, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(encoded.size, 0);
}

static void a_letter_comes_back_as_it_was_sent(void **state)
{
    (void)state;
    luna_Letter letter = luna_Letter_init_zero;
    letter.which_letter = luna_Letter_worker_down_tag;
    luna_WorkerDown *down = &letter.letter.worker_down;
    down->worker = UINT64_MAX;
    down->has_service = true;
    down->service.group = luna_Group_TEXT;
    strcpy(down->service.model, "sdxl");
    strcpy(down->reason, "killed by signal 9");

    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    luna_Letter back;
    assert_int_equal(letter_encode(&letter, &encoded, NULL), STATUS_OK);
    assert_int_equal(letter_decode(bytes_of(buffer, encoded.size), &back, NULL), STATUS_OK);
    assert_int_equal(back.which_letter, luna_Letter_worker_down_tag);
    assert_true(back.letter.worker_down.worker == UINT64_MAX);
    assert_string_equal(back.letter.worker_down.service.model, "sdxl");
    assert_string_equal(back.letter.worker_down.reason, "killed by signal 9");
}

static void a_letter_without_content_still_has_its_kind(void **state)
{
    (void)state;
    luna_Letter letter = luna_Letter_init_zero;
    letter.which_letter = luna_Letter_stop_all_tag;
    uint8_t buffer[LETTER_BYTES_MAX];
    struct codec_buffer encoded = {buffer, sizeof buffer, 0};
    luna_Letter back;
    assert_int_equal(letter_encode(&letter, &encoded, NULL), STATUS_OK);
    assert_true(encoded.size > 0);
    assert_int_equal(letter_decode(bytes_of(buffer, encoded.size), &back, NULL), STATUS_OK);
    assert_int_equal(back.which_letter, luna_Letter_stop_all_tag);
}

static void a_letter_of_no_known_kind_is_refused(void **state)
{
    (void)state;
    luna_Letter back;
    const uint8_t unknown[] = {0xfa, 0x3f, 0x00};
    assert_int_equal(letter_decode(bytes_of(unknown, sizeof unknown), &back, NULL),
                     STATUS_INVALID_ARGUMENT);
    assert_int_equal(letter_decode(bytes_of(NULL, 0), &back, NULL), STATUS_INVALID_ARGUMENT);
}

static void of_two_letters_in_one_the_last_counts_and_nothing_of_the_first_stays(void **state)
{
    (void)state;
    // job {job: 7, attempt: 2}, then worker_up {worker: 1}.
    const uint8_t both[] = {0x22, 4, 0x08, 7, 0x10, 2, 0x72, 2, 0x08, 1};
    luna_Letter back;
    memset(&back, 0xa5, sizeof back);
    assert_int_equal(letter_decode(bytes_of(both, sizeof both), &back, NULL), STATUS_OK);
    assert_int_equal(back.which_letter, luna_Letter_worker_up_tag);
    assert_int_equal(back.letter.worker_up.worker, 1);
    assert_false(back.letter.worker_up.has_service);
    assert_string_equal(back.letter.worker_up.device, "");
}

static void a_bad_string_inside_a_letter_is_found(void **state)
{
    (void)state;
    const uint8_t load[] = {0x8a, 0x01, 0x03, 0x0a, 0x01, 0xff};  // load_model {name: "\xff"}
    luna_Letter back;
    assert_int_equal(letter_decode(bytes_of(load, sizeof load), &back, NULL),
                     STATUS_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_empty_image_body_means_the_defaults, prepare, end),
        cmocka_unit_test_setup_teardown(a_small_tile_has_a_smaller_default_overlap, prepare, end),
        cmocka_unit_test_setup_teardown(tile_overlap_passes_tiling_and_output_have_ranges, prepare,
                                        end),
        cmocka_unit_test_setup_teardown(an_image_is_nhwc_of_three_or_four_channels, prepare, end),
        cmocka_unit_test_setup_teardown(a_latent_has_three_or_four_dimensions_of_a_real_type,
                                        prepare, end),
        cmocka_unit_test_setup_teardown(texts_are_bytes_and_need_a_prompt, prepare, end),
        cmocka_unit_test_setup_teardown(tokens_come_with_weights_of_the_same_shape, prepare, end),
        cmocka_unit_test_setup_teardown(a_lora_has_a_name_and_finite_strengths_with_defaults,
                                        prepare, end),
        cmocka_unit_test_setup_teardown(a_model_has_a_name_and_files, prepare, end),
        cmocka_unit_test_setup_teardown(cancel_and_limits_are_checked, prepare, end),
        cmocka_unit_test_setup_teardown(a_stack_of_a_thousand_is_refused_with_both_numbers, prepare,
                                        end),
        cmocka_unit_test_setup_teardown(a_text_that_is_too_long_is_refused_with_both_numbers,
                                        prepare, end),
        cmocka_unit_test_setup_teardown(a_loras_name_has_no_controls_and_leads_nowhere, prepare,
                                        end),
        cmocka_unit_test_setup_teardown(a_one_shot_belongs_to_exactly_one_entry, prepare, end),
        cmocka_unit_test_setup_teardown(each_step_of_an_upload_has_what_it_needs, prepare, end),
        cmocka_unit_test_setup_teardown(every_operation_has_a_name_and_no_other_number_has, prepare,
                                        end),
        cmocka_unit_test_setup_teardown(texts_and_images_have_configured_limits, prepare, end),
        cmocka_unit_test_setup_teardown(a_body_cut_anywhere_reads_no_byte_behind_it, prepare, end),
        cmocka_unit_test_setup_teardown(a_string_that_is_not_utf8_is_not_sent, prepare, end),
        cmocka_unit_test_setup_teardown(a_letter_comes_back_as_it_was_sent, prepare, end),
        cmocka_unit_test_setup_teardown(a_letter_without_content_still_has_its_kind, prepare, end),
        cmocka_unit_test_setup_teardown(a_letter_of_no_known_kind_is_refused, prepare, end),
        cmocka_unit_test_setup_teardown(
            of_two_letters_in_one_the_last_counts_and_nothing_of_the_first_stays, prepare, end),
        cmocka_unit_test_setup_teardown(a_bad_string_inside_a_letter_is_found, prepare, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
