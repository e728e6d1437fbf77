// Which networks files hold, under whichever names: the content hash of each network must be the
// one Python computed over the canonical names.

#include "tests/unit/models/files.h"

#include "models/files/torch_zip.h"
#include "models/model.h"

#define EDITS_MAX 4000

// An edited copy of a golden file: edit() changes a tensor or returns false to leave it out.
typedef bool edit_function(struct tensor_write *tensor, char name[256]);

static void edit_file(char path[64], const char *source, edit_function *edit,
                      const char *const *metadata)
{
    static struct tensor_write tensors[EDITS_MAX];
    static char names[EDITS_MAX][256];
    char source_path[512];
    uint32_t count = 0;
    struct error error = {0};
    struct tensor_table *table = NULL;
    snprintf(source_path, sizeof source_path, GOLDEN "%s", source);
    assert_int_equal(tensor_table_open(&table, source_path, NULL, &error), STATUS_OK);
    for (uint32_t i = 0; i < tensor_table_count(table); i++) {
        const struct tensor *tensor = tensor_table_at(table, i);
        snprintf(names[count], sizeof names[count], "%s", tensor->name);
        tensors[count] = (struct tensor_write){
            .dtype = tensor->dtype, .rank = tensor->rank, .data = tensor->data};
        memcpy(tensors[count].dims, tensor->dims, sizeof tensor->dims);
        if (edit != NULL && !edit(&tensors[count], names[count])) continue;
        tensors[count].name = names[count];
        count += 1;
    }
    int descriptor = make_file(path);
    assert_int_equal(safetensors_write(descriptor, tensors, count, metadata, &error), STATUS_OK);
    close(descriptor);
    tensor_table_release(&table);
}

static struct model *open_model(const char *const *paths, uint32_t count)
{
    struct error error = {0};
    struct model *model = NULL;
    struct torch_reader reader = torch_reader_in_process();
    if (model_open(&model, paths, count, &reader, &error) != STATUS_OK) {
        fail_msg("%s: %s", paths[0], error.message);
    }
    return model;
}

static void assert_part(const struct model *model, enum model_part part, const char *name)
{
    struct hash hash;
    char hex[HASH_HEX_BYTES];
    json_t *expected = load_expected();
    assert_true(model_describe(model)->has[part]);
    assert_int_equal(model_hash(model, part, NULL, NULL, &hash), STATUS_OK);
    hash_to_hex(&hash, hex);
    assert_string_equal(
        hex, json_string_value(json_object_get(json_object_get(expected, "parts"), name)));
    json_decref(expected);
}

static void assert_kind(const struct model *model, const char *kind, enum text_kind text)
{
    assert_string_equal(model_describe(model)->kind, kind);
    assert_int_equal(model_describe(model)->text, text);
}

static void assert_refused(const char *path, const char *reason)
{
    struct error error = {0};
    struct model *model = NULL;
    assert_int_equal(model_open(&model, &path, 1, NULL, &error), STATUS_INVALID_ARGUMENT);
    assert_null(model);
    if (strstr(error.message, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", error.message, reason);
    }
}

static void a_checkpoint_of_sdxl_has_its_three_networks(void **state)
{
    (void)state;
    const char *path = GOLDEN "sdxl.safetensors";
    struct model *model = open_model(&path, 1);
    assert_kind(model, "sdxl", TEXT_SDXL);
    assert_part(model, MODEL_VAE, "vae");
    assert_part(model, MODEL_CLIP_L, "clip_l");
    assert_part(model, MODEL_CLIP_G, "clip_g");
    assert_null(model_tensors(model, MODEL_CLIP_H));

    const struct vae_config *vae = &model_describe(model)->vae;
    assert_int_equal(vae->levels, 2);
    assert_int_equal(vae->block_channels[0], 4);
    assert_int_equal(vae->block_channels[1], 8);
    assert_int_equal(vae->blocks_per_level, 1);
    assert_int_equal(vae->latent_channels, 4);
    assert_int_equal(vae->image_channels, 3);
    assert_int_equal(vae->groups, 4);
    assert_true(vae->encoder && vae->decoder && vae->quant_conv && vae->post_quant_conv);
    assert_true(vae->mid_attention);
    const struct clip_config *l = &model_describe(model)->clip[MODEL_CLIP_L];
    assert_int_equal(l->layers, 2);
    assert_int_equal(l->width, 64);
    assert_int_equal(l->heads, 1);
    assert_int_equal(l->mlp_width, 32);
    assert_int_equal(l->vocabulary, 40);
    assert_int_equal(l->tokens, 8);
    assert_int_equal(l->projection, 0);
    assert_true(l->quick_gelu);
    const struct clip_config *g = &model_describe(model)->clip[MODEL_CLIP_G];
    assert_int_equal(g->layers, 1);
    assert_int_equal(g->projection, 32);
    assert_false(g->quick_gelu);
    model_close(&model);
}

static void fused_and_turned_tensors_become_views(void **state)
{
    (void)state;
    const char *path = GOLDEN "sdxl.safetensors";
    struct model *model = open_model(&path, 1);
    struct tensor_table *g = model_tensors(model, MODEL_CLIP_G);
    const struct tensor *projection = tensor_table_find(g, "text_projection.weight");
    assert_true(projection->transposed);
    assert_int_equal(projection->dims[0], 32);
    assert_int_equal(projection->dims[1], 64);
    const struct tensor *q =
        tensor_table_find(g, "text_model.encoder.layers.0.self_attn.q_proj.weight");
    const struct tensor *k =
        tensor_table_find(g, "text_model.encoder.layers.0.self_attn.k_proj.weight");
    assert_int_equal(q->bytes, 64 * 64 * 2);
    assert_ptr_equal((const uint8_t *)q->data + q->bytes, k->data);
    const struct tensor *to_q = tensor_table_find(model_tensors(model, MODEL_VAE),
                                                  "decoder.mid_block.attentions.0.to_q.weight");
    assert_int_equal(to_q->rank, 2);
    model_close(&model);
}

static void other_checkpoints_are_told_apart(void **state)
{
    (void)state;
    const char *sd15 = GOLDEN "sd15.ckpt";
    struct model *model = open_model(&sd15, 1);
    assert_kind(model, "sd1.5", TEXT_SD1);
    assert_part(model, MODEL_VAE, "vae");
    assert_part(model, MODEL_CLIP_L, "clip_l");
    model_close(&model);

    const char *sd2[] = {GOLDEN "sd2.safetensors", GOLDEN "vae.safetensors"};
    model = open_model(sd2, 2);
    assert_kind(model, "sd2", TEXT_SD2);
    assert_part(model, MODEL_CLIP_H, "clip_h");
    model_close(&model);

    const char *refiner[] = {GOLDEN "vae_old.safetensors", GOLDEN "refiner.safetensors"};
    model = open_model(refiner, 2);
    assert_kind(model, "refiner", TEXT_REFINER);
    assert_part(model, MODEL_VAE, "vae");
    assert_part(model, MODEL_CLIP_G, "clip_g");
    model_close(&model);
}

static void single_files_make_a_model_together(void **state)
{
    (void)state;
    const char *paths[] = {GOLDEN "clip_g.safetensors", GOLDEN "clip_l.safetensors",
                           GOLDEN "vae.safetensors"};
    struct model *model = open_model(paths, 3);
    assert_kind(model, "sdxl", TEXT_SDXL);
    assert_part(model, MODEL_VAE, "vae");
    assert_part(model, MODEL_CLIP_L, "clip_l");
    assert_part(model, MODEL_CLIP_G, "clip_g");
    model_close(&model);
    model = open_model(paths, 2);
    assert_kind(model, "clip-l + clip-g", TEXT_SDXL);
    model_close(&model);
    model = open_model(paths + 2, 1);
    assert_kind(model, "vae", TEXT_NONE);
    model_close(&model);
}

static void the_demo_model_loads(void **state)
{
    (void)state;
    const char *path = LUNA_SOURCE_DIR "/conf/demo/vae.safetensors";
    struct model *model = open_model(&path, 1);
    assert_kind(model, "flux-vae", TEXT_NONE);
    assert_int_equal(model_describe(model)->vae.latent_channels, 16);
    assert_int_equal(model_describe(model)->vae.levels, 4);
    assert_int_equal(model_describe(model)->vae.groups, 32);
    assert_int_equal(model_describe(model)->bytes[MODEL_VAE], 4133286);
    model_close(&model);
}

static void a_vae_after_a_checkpoint_replaces_the_checkpoints(void **state)
{
    (void)state;
    const char *paths[] = {GOLDEN "sdxl.safetensors", GOLDEN "vae.safetensors"};
    struct model *model = open_model(paths, 2);
    assert_kind(model, "sdxl", TEXT_SDXL);
    assert_part(model, MODEL_VAE, "vae");
    model_close(&model);

    const char *checkpoints[] = {GOLDEN "sdxl.safetensors", GOLDEN "sdxl.safetensors"};
    assert_int_equal(model_open(&model, checkpoints, 2, NULL, NULL), STATUS_INVALID_ARGUMENT);

    const char *twice[] = {GOLDEN "vae.safetensors", GOLDEN "vae_old.safetensors"};
    struct error error = {0};
    assert_int_equal(model_open(&model, twice, 2, NULL, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message,
                        "VAE is in \"vae.safetensors\" and in \"vae_old.safetensors\"");
}

static void check_edit(const char *source, edit_function *edit, enum model_part part,
                       const char *expected)
{
    char path[64];
    edit_file(path, source, edit, NULL);
    const char *paths[] = {path};
    struct model *model = open_model(paths, 1);
    assert_part(model, part, expected);
    model_close(&model);
    unlink(path);
}

static void put_prefix(char name[256], const char *prefix, const char *rest)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", rest);
    snprintf(name, 256, "%s%.200s", prefix, copy);
}

static bool as_first_stage(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "first_stage_model.", name);
    return true;
}

static bool as_vae(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "vae.", name);
    return true;
}

static bool as_very_old_sd15(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "cond_stage_model.transformer.", name + strlen("text_model."));
    return true;
}

static bool as_comfy_clip_l(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "clip_l.transformer.", name);
    return true;
}

static bool as_comfy_clip_g(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "clip_g.transformer.", name);
    return true;
}

static bool as_bare_open_clip(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    put_prefix(name, "", name + strlen("conditioner.embedders.0.model."));
    return true;
}

// Hugging Face's names with the projection as old ComfyUI saved it: turned, without ".weight".
static bool with_legacy_projection(struct tensor_write *tensor, char name[256])
{
    static uint16_t turned[64][32];
    if (strcmp(name, "text_projection.weight") != 0) return true;
    for (int i = 0; i < 32; i++) {
        for (int j = 0; j < 64; j++) {
            memcpy(&turned[j][i], (const uint8_t *)tensor->data + 2 * (i * 64 + j), 2);
        }
    }
    strcpy(name, "text_projection");
    tensor->dims[0] = 64;
    tensor->dims[1] = 32;
    tensor->data = turned;
    return true;
}

static void prefixes_and_dialects_do_not_change_the_hash(void **state)
{
    (void)state;
    check_edit("vae.safetensors", as_first_stage, MODEL_VAE, "vae");
    check_edit("vae_old.safetensors", as_vae, MODEL_VAE, "vae");
    check_edit("clip_l.safetensors", as_very_old_sd15, MODEL_CLIP_L, "clip_l");
    check_edit("clip_l.safetensors", as_comfy_clip_l, MODEL_CLIP_L, "clip_l");
    check_edit("clip_g.safetensors", as_comfy_clip_g, MODEL_CLIP_G, "clip_g");
    check_edit("clip_g.safetensors", with_legacy_projection, MODEL_CLIP_G, "clip_g");
    check_edit("refiner.safetensors", as_bare_open_clip, MODEL_CLIP_G, "clip_g");
}

static void metadata_says_which_encoder_a_bare_file_is(void **state)
{
    (void)state;
    const char *const as_h[] = {"luna.encoder", "h", NULL};
    const char *const as_x[] = {"luna.encoder", "x", NULL};
    char path[64];
    edit_file(path, "clip_g.safetensors", NULL, as_h);
    const char *paths[] = {path};
    struct model *model = open_model(paths, 1);
    assert_kind(model, "clip-h", TEXT_SD2);
    assert_part(model, MODEL_CLIP_H, "clip_g");
    model_close(&model);
    unlink(path);
    edit_file(path, "clip_g.safetensors", NULL, as_x);
    assert_refused(path, "luna.encoder is \"x\"");
    unlink(path);
}

static bool without_quant(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strstr(name, "quant_conv") == NULL;
}

static bool without_attention(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strstr(name, "attentions") == NULL;
}

static bool only_decoder(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strncmp(name, "decoder.", 8) == 0 || strncmp(name, "post_", 5) == 0;
}

static struct vae_config edited_config(edit_function *edit)
{
    char path[64];
    edit_file(path, "vae.safetensors", edit, NULL);
    const char *paths[] = {path};
    struct model *model = open_model(paths, 1);
    struct vae_config config = model_describe(model)->vae;
    model_close(&model);
    unlink(path);
    return config;
}

static void optional_parts_may_be_absent(void **state)
{
    (void)state;
    struct vae_config config = edited_config(without_quant);
    assert_false(config.quant_conv || config.post_quant_conv);
    config = edited_config(without_attention);
    assert_false(config.mid_attention);
    assert_true(config.encoder && config.decoder);
    config = edited_config(only_decoder);
    assert_false(config.encoder || config.quant_conv);
    assert_true(config.decoder && config.post_quant_conv);
    assert_int_equal(config.blocks_per_level, 1);
    assert_int_equal(config.latent_channels, 4);
    assert_int_equal(config.image_channels, 3);
}

static bool lacks_four(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strstr(name, "decoder.up_blocks.0.resnets.1.") == NULL || strstr(name, ".bias") == NULL;
}

static bool lacks_conv_in(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strcmp(name, "decoder.conv_in.weight") != 0;
}

static bool wrong_shape(struct tensor_write *tensor, char name[256])
{
    if (strcmp(name, "encoder.conv_out.bias") == 0) tensor->dims[0] = 7;
    return true;
}

static bool wrong_dtype(struct tensor_write *tensor, char name[256])
{
    if (strcmp(name, "encoder.conv_out.bias") == 0) tensor->dtype = DTYPE_I16;
    return true;
}

static bool lacks_layer_tensor(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strcmp(name, "text_model.encoder.layers.0.mlp.fc2.bias") != 0;
}

static bool only_unet(struct tensor_write *tensor, char name[256])
{
    (void)tensor;
    return strncmp(name, "model.diffusion", 15) == 0;
}

static void check_refused_edit(const char *source, edit_function *edit, const char *reason)
{
    char path[64];
    edit_file(path, source, edit, NULL);
    assert_refused(path, reason);
    unlink(path);
}

static void incomplete_networks_are_refused_by_name(void **state)
{
    (void)state;
    check_refused_edit("vae.safetensors", lacks_four,
                       "VAE is incomplete, it lacks 4 of its tensors: "
                       "decoder.up_blocks.0.resnets.1.norm1.bias, "
                       "decoder.up_blocks.0.resnets.1.conv1.bias, "
                       "decoder.up_blocks.0.resnets.1.norm2.bias, ...");
    check_refused_edit("vae.safetensors", lacks_conv_in, "decoder.conv_in.weight");
    check_refused_edit("vae.safetensors", wrong_shape,
                       "\"encoder.conv_out.bias\" has the shape [7], needed is [8]");
    check_refused_edit("vae.safetensors", wrong_dtype, "\"encoder.conv_out.bias\" is I16");
    check_refused_edit("clip_l.safetensors", lacks_layer_tensor,
                       "CLIP-L is incomplete, it lacks 1 of its tensors: "
                       "text_model.encoder.layers.0.mlp.fc2.bias");
    check_refused_edit("sdxl.safetensors", only_unet, "neither an AutoencoderKL nor a CLIP");
    assert_refused(GOLDEN "table.safetensors", "neither an AutoencoderKL nor a CLIP");
}

// Every tensor of a model, left out alone: either the model says what it lacks, or the tensor was
// optional and its absence is in the description.
static uint32_t left_out;

static bool leave_one_out(struct tensor_write *tensor, char name[256])
{
    static uint32_t seen;
    (void)tensor;
    (void)name;
    uint32_t index = seen++;
    if (name[0] == 'q' && strcmp(name, "quant_conv.weight") == 0) seen = 0;  // the last of all
    return index != left_out;
}

static void no_single_tensor_may_be_absent(void **state)
{
    (void)state;
    for (left_out = 0; left_out < 124; left_out++) {
        char path[64];
        struct error error = {0};
        struct model *model = NULL;
        edit_file(path, "vae.safetensors", leave_one_out, NULL);
        const char *paths[] = {path};
        enum status status = model_open(&model, paths, 1, NULL, &error);
        if (status == STATUS_OK) {
            const struct vae_config *vae = &model_describe(model)->vae;
            assert_false(vae->quant_conv && vae->post_quant_conv);
        } else {
            assert_int_equal(status, STATUS_INVALID_ARGUMENT);
        }
        model_close(&model);
        unlink(path);
    }
}

static void missing_files_and_too_many_are_refused(void **state)
{
    (void)state;
    struct model *model = NULL;
    const char *paths[17];
    for (int i = 0; i < 17; i++) paths[i] = GOLDEN "nothing.safetensors";
    assert_int_equal(model_open(&model, paths, 1, NULL, NULL), STATUS_NOT_FOUND);
    assert_int_equal(model_open(&model, paths, 0, NULL, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(model_open(&model, paths, 17, NULL, NULL), STATUS_INVALID_ARGUMENT);
    model_close(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_checkpoint_of_sdxl_has_its_three_networks),
        cmocka_unit_test(fused_and_turned_tensors_become_views),
        cmocka_unit_test(other_checkpoints_are_told_apart),
        cmocka_unit_test(single_files_make_a_model_together),
        cmocka_unit_test(the_demo_model_loads),
        cmocka_unit_test(a_vae_after_a_checkpoint_replaces_the_checkpoints),
        cmocka_unit_test(prefixes_and_dialects_do_not_change_the_hash),
        cmocka_unit_test(metadata_says_which_encoder_a_bare_file_is),
        cmocka_unit_test(optional_parts_may_be_absent),
        cmocka_unit_test(incomplete_networks_are_refused_by_name),
        cmocka_unit_test(no_single_tensor_may_be_absent),
        cmocka_unit_test(missing_files_and_too_many_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
