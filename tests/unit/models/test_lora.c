// test_lora.c - which tensor of which encoder an adapter's keys mean, in every naming; and what is
// refused, with the key named.

#include "models/lora/lora.h"

#include <math.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/models/files.h"
#include "tests/unit/models/lora_kit.h"

#define LAYER_1 "text_model.encoder.layers.1."
#define STEM "lora_te_text_model_encoder_layers_1_self_attn_k_proj"
#define TARGET LAYER_1 "self_attn.k_proj.weight"

// Understands an adapter; closes it. *lora keeps what it needs only when keep is the adapter.
static enum status create(struct golden_weights *adapter, const char *parts, struct lora **lora,
                          struct error *error)
{
    struct model_description model = lora_model(parts);
    golden_finish(adapter);
    return lora_create(lora, adapter->table, &model, error);
}

static struct lora *create_good(struct golden_weights *adapter, const char *parts)
{
    struct error error = {0};
    struct lora *lora = NULL;
    expect_ok(create(adapter, parts, &lora, &error), &error);
    return lora;
}

// Expects that an adapter is refused for an SD1.5 model with both texts in the message; closes it.
static void expect_refused(struct golden_weights *adapter, const char *key, const char *value)
{
    struct error error = {0};
    struct lora *lora = NULL;
    assert_int_equal(create(adapter, "l", &lora, &error), STATUS_INVALID_ARGUMENT);
    assert_null(lora);
    if (strstr(error.message, key) == NULL || strstr(error.message, value) == NULL) {
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error.message, key, value);
    }
    golden_close(adapter);
}

static uint32_t count_modules(const struct lora *lora)
{
    uint32_t count = 0;
    (void)lora_modules(lora, &count);
    return count;
}

// ---------------------------------------------------------------------------------------------
// The golden adapters

static void check_modules(const char *name, const struct lora *lora, const json_t *expected)
{
    const json_t *modules = json_object_get(expected, "modules");
    if (count_modules(lora) != json_array_size(modules)) {
        fail_msg("%s: %u modules, not %zu", name, count_modules(lora), json_array_size(modules));
    }
    for (size_t i = 0; i < json_array_size(modules); i++) {
        const json_t *pair = json_array_get(modules, i);
        enum model_part part = lora_part(json_string_value(json_array_get(pair, 0)));
        const char *target = json_string_value(json_array_get(pair, 1));
        if (lora_find(lora, part, target) == NULL) fail_msg("%s: no %s", name, target);
    }
    const json_t *unused = json_object_get(expected, "unused");
    assert_int_equal(lora_unused_count(lora), json_array_size(unused));
    for (uint32_t i = 0; i < lora_unused_count(lora); i++) {
        assert_string_equal(lora_unused_key(lora, i), json_string_value(json_array_get(unused, i)));
    }
}

static void check_description(const char *name, const struct lora_description *description,
                              const json_t *expected)
{
    const char *family = json_string_value(json_object_get(expected, "family"));
    size_t modules = json_array_size(json_object_get(expected, "modules"));
    // Of what is unused, a pair for CLIP-L's projection is a module to who knows no model.
    bool more = json_array_size(json_object_get(expected, "unused")) > 1;
    assert_int_equal(description->modules, modules + (more ? 1 : 0));
    assert_int_equal(description->keys_other,
                     json_integer_value(json_object_get(expected, "other")));
    if (description->mixed != (strcmp(family, "mixed") == 0)) fail_msg("%s: mixed", name);
    if (!description->mixed) assert_string_equal(lora_family_name(description->family), family);
    assert_int_equal(description->low_rank, strcmp(family, "lora") == 0);
}

static void golden_adapters_are_understood_as_their_maker_meant_them(void **state)
{
    (void)state;
    json_t *adapters = lora_golden_json("adapters.json");
    const char *name = NULL;
    json_t *expected = NULL;
    assert_true(json_object_size(adapters) >= 20);
    json_object_foreach(adapters, name, expected)
    {
        struct error error = {0};
        struct lora_description description = {0};
        struct tensor_table *file = lora_golden_open(name);
        expect_ok(lora_describe(file, &description, &error), &error);
        check_description(name, &description, expected);
        assert_int_equal(description.keys_encoder + description.keys_other,
                         tensor_table_count(file));
        tensor_table_release(&file);

        struct model_description model = lora_golden_model(name);
        struct lora *lora = lora_golden_create(name, &model);
        check_modules(name, lora, expected);
        assert_int_equal(lora_is_low_rank(lora), description.low_rank);
        assert_true(lora_unchanged(lora));
        lora_destroy(&lora);
    }
    json_decref(adapters);
}

static void a_description_says_rank_encoders_and_bytes(void **state)
{
    (void)state;
    struct error error = {0};
    struct lora_description description = {0};
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    adapter_add_pair(&file, "lora_te2_text_model_encoder_layers_0_mlp_fc1", 512, 6, 128);
    adapter_add_pair(&file, "lora_unet_middle", 9, 32, 9);
    golden_finish(&file);
    expect_ok(lora_describe(file.table, &description, &error), &error);
    assert_int_equal(description.rank, 6);
    assert_int_equal(description.modules, 2);
    assert_true(description.encoders[MODEL_CLIP_L]);
    assert_true(description.encoders[MODEL_CLIP_G]);
    assert_false(description.encoders[MODEL_CLIP_H]);
    assert_false(description.encoders[MODEL_VAE]);
    assert_int_equal(description.keys_encoder, 4);
    assert_int_equal(description.keys_other, 2);
    assert_int_equal(description.bytes_encoder, 4 * (64 * 4 * 2 + 6 * (512 + 128)));
    golden_close(&file);
}

// ---------------------------------------------------------------------------------------------
// Namings

static void every_naming_finds_its_encoder_in_every_kind_of_model(void **state)
{
    (void)state;
    static const struct {
        const char *stem;
        const char *found[4];  // in "l", "h", "g" and "lg"; NULL: nowhere
    } cases[] = {
        {"lora_te_text_model_encoder_layers_1_mlp_fc1", {"l", "h", "g", "l"}},
        {"lora_te1_text_model_encoder_layers_1_mlp_fc1", {"l", "h", NULL, "l"}},
        {"lora_te2_text_model_encoder_layers_1_mlp_fc1", {NULL, NULL, NULL, "g"}},
        {"lora_te3_text_model_encoder_layers_1_mlp_fc1", {NULL, NULL, NULL, NULL}},
        {"lora_prior_te_text_model_encoder_layers_1_mlp_fc1", {NULL, NULL, "g", NULL}},
        {"text_encoder." LAYER_1 "mlp.fc1", {"l", "h", "g", "l"}},
        {"text_encoder_2." LAYER_1 "mlp.fc1", {NULL, NULL, NULL, "g"}},
        {"text_encoders.clip_l.transformer." LAYER_1 "mlp.fc1", {"l", NULL, NULL, "l"}},
        {"text_encoders.clip_h.transformer." LAYER_1 "mlp.fc1", {NULL, "h", NULL, NULL}},
        {"text_encoders.clip_g.transformer." LAYER_1 "mlp.fc1", {NULL, NULL, "g", "g"}},
        {"text_encoders.clip_l." LAYER_1 "mlp.fc1", {NULL, NULL, NULL, NULL}},
        {"text_encoders.t5xxl.transformer." LAYER_1 "mlp.fc1", {NULL, NULL, NULL, NULL}},
        {"lora_te_text_model_encoder_layers_01_mlp_fc1", {NULL, NULL, NULL, NULL}},
        {"lora_te_text_model_encoder_layers_3_mlp_fc1", {NULL, NULL, NULL, NULL}},
        {"lora_te_text_model_encoder_layers_4294967297_mlp_fc1", {NULL, NULL, NULL, NULL}},
        {"lora_te_text_model_encoder_layers_1_mlp_fc3", {NULL, NULL, NULL, NULL}},
        {"text_encoder.text_model_encoder_layers_1_mlp_fc1", {NULL, NULL, NULL, NULL}},
        {"lora_unet_text_model_encoder_layers_1_mlp_fc1", {NULL, NULL, NULL, NULL}},
    };
    static const char *const kinds[] = {"l", "h", "g", "lg"};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int kind = 0; kind < 4; kind++) {
            const char *found = cases[i].found[kind];
            bool narrow = found != NULL && *found == 'l';
            struct golden_weights file = {0};
            adapter_add_pair(&file, cases[i].stem, narrow ? 256 : 512, 2, narrow ? 64 : 128);
            struct lora *lora = create_good(&file, kinds[kind]);
            uint32_t count = 0;
            const struct lora_module *module = lora_modules(lora, &count);
            if (count != (found != NULL ? 1 : 0)) fail_msg("%s in %s", cases[i].stem, kinds[kind]);
            if (found != NULL) {
                enum model_part part = *found == 'l'   ? MODEL_CLIP_L
                                       : *found == 'h' ? MODEL_CLIP_H
                                                       : MODEL_CLIP_G;
                assert_int_equal(module->part, part);
                assert_string_equal(module->target, LAYER_1 "mlp.fc1.weight");
                assert_int_equal(module->linear, LORA_FC1);
                assert_int_equal(module->layer, 1);
                assert_int_equal(module->rank, 2);
            }
            bool ours = lora_key_is_encoder(cases[i].stem);
            assert_int_equal(lora_unused_count(lora), ours && found == NULL ? 2 : 0);
            lora_destroy(&lora);
            golden_close(&file);
        }
    }
}

static void the_projection_has_its_own_names(void **state)
{
    (void)state;
    static const struct {
        const char *stem;
        const char *parts;
        bool found;
    } cases[] = {
        {"lora_te2_text_projection", "lg", true},
        {"lora_te2_text_projection", "g", true},
        {"lora_prior_te_text_projection", "lg", true},
        {"lora_prior_te_text_projection", "g", true},
        {"lora_te1_text_projection", "g", false},
        {"lora_te1_text_projection", "lg", false},  // CLIP-L has none here
        {"lora_te_text_projection", "g", false},
        {"text_encoder_2.text_projection", "lg", false},
        {"text_encoders.clip_g.transformer.text_projection", "lg", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct golden_weights file = {0};
        adapter_add_pair(&file, cases[i].stem, 128, 2, 128);
        struct lora *lora = create_good(&file, cases[i].parts);
        const struct lora_module *module = lora_find(lora, MODEL_CLIP_G, "text_projection.weight");
        if ((module != NULL) != cases[i].found) fail_msg("%s", cases[i].stem);
        if (module != NULL) assert_int_equal(module->linear, LORA_PROJECTION);
        lora_destroy(&lora);
        golden_close(&file);
    }
}

static void every_spelling_of_a_pair_is_known(void **state)
{
    (void)state;
    static const char *const spellings[][2] = {
        {".lora_up.weight", ".lora_down.weight"},
        {"_lora.up.weight", "_lora.down.weight"},
        {".lora_B.weight", ".lora_A.weight"},
        {".lora.up.weight", ".lora.down.weight"},
        {".lora_B", ".lora_A"},
        {".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"},
        {".lora_B.default.weight", ".lora_A.default.weight"},
    };
    uint32_t count = sizeof spellings / sizeof spellings[0];
    for (uint32_t i = 0; i < count; i++) {
        // The spellings from the i-th on: the first of them counts.
        struct golden_weights file = {0};
        char name[128];
        for (uint32_t j = i; j < count; j++) {
            snprintf(name, sizeof name, STEM "%s", spellings[j][0]);
            adapter_add(&file, name, 64, j + 1);
            snprintf(name, sizeof name, STEM "%s", spellings[j][1]);
            adapter_add(&file, name, j + 1, 64);
        }
        struct lora *lora = create_good(&file, "l");
        const struct lora_module *module = lora_find(lora, MODEL_CLIP_L, TARGET);
        assert_non_null(module);
        assert_int_equal(module->rank, i + 1);
        assert_int_equal(lora_unused_count(lora), 2 * (count - i - 1));
        lora_destroy(&lora);
        golden_close(&file);
    }
}

static void of_two_namings_for_a_tensor_the_later_one_counts(void **state)
{
    (void)state;
    static const char *const stems[] = {
        "text_encoders.clip_l.transformer." LAYER_1 "self_attn.k_proj",
        STEM,
        "lora_te1_text_model_encoder_layers_1_self_attn_k_proj",
        "text_encoder." LAYER_1 "self_attn.k_proj",
    };
    for (uint32_t i = 0; i < 4; i++) {
        struct golden_weights file = {0};
        for (uint32_t j = 0; j <= i; j++) adapter_add_pair(&file, stems[j], 64, j + 1, 64);
        struct lora *lora = create_good(&file, "lg");
        const struct lora_module *module = lora_find(lora, MODEL_CLIP_L, TARGET);
        assert_int_equal(count_modules(lora), 1);
        assert_int_equal(module->rank, i + 1);
        assert_int_equal(lora_unused_count(lora), 2 * i);
        lora_destroy(&lora);
        golden_close(&file);
    }
}

static void of_two_formulas_for_a_tensor_the_stronger_one_counts(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    adapter_add(&file, STEM ".diff", 64, 64);
    adapter_add(&file, STEM ".diff_b", 64, 0);
    struct lora *lora = create_good(&file, "l");
    assert_int_equal(count_modules(lora), 2);
    assert_int_equal(lora_find(lora, MODEL_CLIP_L, TARGET)->family, LORA_DIFF);
    const struct lora_module *bias = lora_find(lora, MODEL_CLIP_L, LAYER_1 "self_attn.k_proj.bias");
    assert_non_null(bias);
    assert_int_equal(bias->linear, LORA_NO_LINEAR);
    assert_int_equal(lora_unused_count(lora), 2);
    assert_false(lora_is_low_rank(lora));
    lora_destroy(&lora);
    golden_close(&file);
}

static void a_bias_counts_only_where_there_is_one(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    adapter_add(&file,
                "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding."
                "diff_b",
                64, 0);
    adapter_add(&file, "text_encoders.clip_l.transformer.text_model.final_layer_norm.b_norm", 64,
                0);  // without w_norm
    adapter_add(&file, STEM ".alpha", 0, 0);
    adapter_add(&file, STEM ".unheard_of", 64, 64);
    struct lora *lora = create_good(&file, "l");
    assert_int_equal(count_modules(lora), 0);
    assert_int_equal(lora_unused_count(lora), 4);
    assert_true(lora_is_low_rank(lora));
    lora_destroy(&lora);
    golden_close(&file);
}

static void modules_are_sorted_by_part_and_target(void **state)
{
    (void)state;
    struct model_description model = lora_model("lg");
    struct lora *lora = lora_golden_create("generic.safetensors", &model);
    uint32_t count = 0;
    const struct lora_module *modules = lora_modules(lora, &count);
    for (uint32_t i = 1; i < count; i++) {
        assert_true(modules[i - 1].part <= modules[i].part);
        if (modules[i - 1].part == modules[i].part) {
            assert_true(strcmp(modules[i - 1].target, modules[i].target) < 0);
        }
    }
    lora_destroy(&lora);
}

// ---------------------------------------------------------------------------------------------
// Scalars

static void an_alpha_may_be_of_any_type(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    int64_t six = 6;
    adapter_add_pair(&file, STEM, 64, 4, 64);
    struct tensor *alpha = adapter_add(&file, STEM ".alpha", 1, 2);
    alpha->dtype = DTYPE_I64;
    alpha->dims[1] = 1;
    memcpy(golden_elements(alpha), &six, sizeof six);
    struct lora *lora = create_good(&file, "l");
    const struct lora_module *module = lora_find(lora, MODEL_CLIP_L, TARGET);
    assert_true(module->has_alpha);
    assert_true(module->alpha == 6.0f);
    assert_true(module->factor == 1.5f);
    lora_destroy(&lora);
    golden_close(&file);
}

static void an_alpha_that_is_no_finite_number_is_refused(void **state)
{
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        struct golden_weights file = {0};
        adapter_add_pair(&file, STEM, 64, 4, 64);
        adapter_add_scalar(&file, STEM ".alpha", values[i]);
        expect_refused(&file, STEM ".alpha", i == 0 ? "nan" : "inf");
    }
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    adapter_add(&file, STEM ".alpha", 3, 0);
    expect_refused(&file, STEM ".alpha", "[3]");
}

static void a_reshape_weight_must_be_the_shape_that_is_there(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct golden_weights file = {0};
        const int32_t dims[] = {64, i == 0 ? 64 : 65};
        adapter_add_pair(&file, STEM, 64, 4, 64);
        struct tensor *reshape = adapter_add(&file, STEM ".reshape_weight", 2, 0);
        reshape->dtype = DTYPE_I32;
        memcpy(golden_elements(reshape), dims, sizeof dims);
        if (i == 1) {
            expect_refused(&file, STEM ".reshape_weight", "[64, 64]");
            continue;
        }
        struct lora *lora = create_good(&file, "l");
        assert_int_equal(count_modules(lora), 1);
        assert_int_equal(lora_unused_count(lora), 0);
        lora_destroy(&lora);
        golden_close(&file);
    }
}

// ---------------------------------------------------------------------------------------------
// Bad input

static void half_a_formula_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *there, *missing;
    } cases[] = {
        {".lora_up.weight", ".lora_down.weight"},
        {".lora_down.weight", ".lora_up.weight"},
        {".lora_B.weight", ".lora_A.weight"},
        {".lora_A.default.weight", ".lora_B.default.weight"},
        {".hada_w1_a", ".hada_w1_b"},
        {".hada_w2_b", ".hada_w1_a"},
        {".lokr_w1", ".lokr_w2_a"},
        {".lokr_w2", ".lokr_w1_a"},
        {".lokr_w1_b", ".lokr_w1_a"},
        {".a1.weight", ".a2.weight"},
        {".b2.weight", ".a1.weight"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct golden_weights file = {0};
        char there[128];
        char missing[128];
        snprintf(there, sizeof there, STEM "%s", cases[i].there);
        snprintf(missing, sizeof missing, STEM "%s\" is missing", cases[i].missing);
        adapter_add(&file, there, 8, 8);
        expect_refused(&file, there, missing);
    }
}

static void ranks_of_0_and_above_the_layer_are_refused(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 64, 65, 64);
    expect_refused(&file, STEM ".lora_down.weight", "rank 65");
    struct tensor empty = {.rank = 2, .dims = {64, 0}};
    file = (struct golden_weights){.dtype = DTYPE_F32};
    golden_add(&file, STEM ".lora_up.weight", "x", &empty, (struct golden_rule){1, 0});
    empty = (struct tensor){.rank = 2, .dims = {0, 64}};
    golden_add(&file, STEM ".lora_down.weight", "x", &empty, (struct golden_rule){1, 0});
    expect_refused(&file, STEM ".lora_down.weight", "[0, 64]");
}

static void shapes_of_another_model_are_refused(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 128, 4, 128);
    expect_refused(&file, "[4, 128]", "[64, 64]");
    file = (struct golden_weights){0};
    adapter_add_pair(&file, STEM, 128, 4, 64);
    expect_refused(&file, "[128, 4]", "needed is [64, 4]");
    file = (struct golden_weights){0};
    adapter_add(&file, STEM ".diff", 64, 128);
    expect_refused(&file, STEM ".diff", "[64, 128]");
    file = (struct golden_weights){0};
    adapter_add(&file, STEM ".set_weight", 4096, 0);
    expect_refused(&file, STEM ".set_weight", "[4096]");
    file = (struct golden_weights){0};
    adapter_add(&file, STEM ".lokr_w1", 7, 8);
    adapter_add(&file, STEM ".lokr_w2", 8, 8);
    expect_refused(&file, STEM ".lokr_w1", "[7, 8]");
    file = (struct golden_weights){0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    adapter_add(&file, STEM ".dora_scale", 64, 0);
    expect_refused(&file, STEM ".dora_scale", "[64]");
    file = (struct golden_weights){0};
    adapter_add(&file, STEM ".oft_blocks", 64, 64);
    expect_refused(&file, STEM ".oft_blocks", "[n, b, b]");
    file = (struct golden_weights){0};
    adapter_add(&file, STEM ".hada_w1_a", 64, 4);
    adapter_add(&file, STEM ".hada_w1_b", 4, 64);
    adapter_add(&file, STEM ".hada_w2_a", 64, 4);
    adapter_add(&file, STEM ".hada_w2_b", 5, 64);
    expect_refused(&file, STEM ".hada_w2_a", "needed is [64, 5]");
    file = (struct golden_weights){0};
    for (int i = 0; i < 4; i++) {
        static const char *const names[] = {".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"};
        char name[128];
        snprintf(name, sizeof name, STEM "%s", names[i]);
        adapter_add(&file, name, 3 + (uint64_t)i, 64);
    }
    expect_refused(&file, STEM ".a1.weight", "shares its rank");
}

static void operands_that_are_no_numbers_and_convolutions_are_refused(void **state)
{
    (void)state;
    struct golden_weights file = {0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    file.tensors[0].dtype = DTYPE_I32;
    expect_refused(&file, STEM ".lora_up.weight", "I32");
    file = (struct golden_weights){0};
    adapter_add_pair(&file, STEM, 64, 4, 64);
    adapter_add(&file, STEM ".lora_mid.weight", 4, 4);
    expect_refused(&file, STEM ".lora_mid.weight", "convolutions");
    file = (struct golden_weights){0};
    const char *norm = "text_encoders.clip_l.transformer.text_model.final_layer_norm";
    char name[160];
    adapter_add_pair(&file, norm, 64, 1, 1);
    snprintf(name, sizeof name, "%s.dora_scale", norm);
    adapter_add(&file, name, 64, 1);
    expect_refused(&file, "final_layer_norm", "vector of 64");
}

static void files_for_other_networks_hold_nothing_for_us(void **state)
{
    (void)state;
    static const char *const stems[] = {"lora_unet_double_blocks_0_img_attn_proj",
                                        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
                                        "transformer.single_transformer_blocks.0.attn.to_q",
                                        "unet.down_blocks.0.attentions.0.proj",
                                        "diffusion_model.input_blocks.0.0",
                                        "lycoris_down_blocks_0",
                                        "base_model.model.layers.0"};
    struct error error = {0};
    struct golden_weights file = {0};
    struct lora_description description = {0};
    for (size_t i = 0; i < sizeof stems / sizeof stems[0]; i++) {
        adapter_add_pair(&file, stems[i], 8, 2, 8);
    }
    golden_finish(&file);
    expect_ok(lora_describe(file.table, &description, &error), &error);
    assert_int_equal(description.keys_other, 2 * sizeof stems / sizeof stems[0]);
    assert_int_equal(description.keys_encoder, 0);
    assert_int_equal(description.modules, 0);
    struct tensor_table *tensors = file.table;
    expect_ok(lora_encoder_tensors(&tensors, file.table, &error), &error);
    assert_null(tensors);
    struct model_description model = lora_model("lg");
    struct lora *lora = NULL;
    expect_ok(lora_create(&lora, NULL, &model, &error), &error);
    assert_int_equal(count_modules(lora), 0);
    assert_int_equal(lora_unused_count(lora), 0);
    assert_true(lora_is_low_rank(lora));
    assert_true(lora_unchanged(lora));
    lora_destroy(&lora);
    golden_close(&file);
}

static void a_file_that_is_no_adapter_is_refused(void **state)
{
    (void)state;
    struct error error = {0};
    struct golden_weights file = {0};
    struct lora_description description = {.rank = 77};
    golden_finish(&file);
    assert_int_equal(lora_describe(file.table, &description, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "no tensors"));
    golden_close(&file);
    adapter_add(&file, "model.first.weight", 4, 4);
    adapter_add(&file, "model.second.bias", 4, 0);
    golden_finish(&file);
    assert_int_equal(lora_describe(file.table, &description, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "model.first.weight"));
    assert_int_equal(description.rank, 77);
    golden_close(&file);
}

static void a_file_of_very_many_keys_takes_a_moment(void **state)
{
    (void)state;
    struct error error = {0};
    uint32_t count = 100000;
    struct tensor *tensors = calloc(count, sizeof *tensors);
    char(*names)[96] = calloc(count, sizeof *names);
    assert_non_null(tensors);
    assert_non_null(names);
    for (uint32_t i = 0; i < count; i++) {
        const char *end = i % 2 == 0 ? "lora_up.weight" : "nothing_known";
        snprintf(names[i], sizeof names[i], "lora_te_text_model_encoder_layers_%u_mlp_fc1.%s",
                 i / 2, end);
        tensors[i] = (struct tensor){.name = names[i], .dtype = DTYPE_F32, .rank = 1};
    }
    struct tensor_table *file = NULL;
    struct tensor_table *kept = NULL;
    struct lora *lora = NULL;
    struct lora_description description;
    struct model_description model = lora_model("lg");
    expect_ok(tensor_table_from_tensors(&file, tensors, count, NULL, 0, &error), &error);
    clock_t begun = clock();
    expect_ok(lora_describe(file, &description, &error), &error);
    expect_ok(lora_encoder_tensors(&kept, file, &error), &error);
    assert_int_equal(lora_create(&lora, kept, &model, &error), STATUS_INVALID_ARGUMENT);
    double took = (double)(clock() - begun) / CLOCKS_PER_SEC;
    print_message("%.0f ms for %u keys\n", took * 1e3, count);
    assert_true(took < 2);
    assert_int_equal(description.keys_encoder, count);
    tensor_table_release(&kept);
    tensor_table_release(&file);
    free(names);
    free(tensors);
}

static void an_adapter_keeps_its_file_and_notices_that_it_changed(void **state)
{
    (void)state;
    char path[64];
    char bytes[20000];
    struct error error = {0};
    int descriptor = make_file(path);
    FILE *golden = fopen(LORA_GOLDEN "adapters/peft.safetensors", "rb");
    assert_non_null(golden);
    size_t size = fread(bytes, 1, sizeof bytes, golden);
    fclose(golden);
    assert_true(size > 0 && size < sizeof bytes);
    assert_int_equal(write(descriptor, bytes, size), size);
    struct tensor_table *file = NULL;
    struct tensor_table *kept = NULL;
    struct lora *lora = NULL;
    struct model_description model = lora_model("lg");
    expect_ok(tensor_table_open(&file, path, NULL, &error), &error);
    expect_ok(lora_encoder_tensors(&kept, file, &error), &error);
    tensor_table_release(&file);
    expect_ok(lora_create(&lora, kept, &model, &error), &error);
    tensor_table_release(&kept);
    assert_true(lora_unchanged(lora));
    assert_int_equal(write(descriptor, bytes, 1), 1);
    assert_false(lora_unchanged(lora));
    lora_destroy(&lora);
    close(descriptor);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_adapters_are_understood_as_their_maker_meant_them),
        cmocka_unit_test(a_description_says_rank_encoders_and_bytes),
        cmocka_unit_test(every_naming_finds_its_encoder_in_every_kind_of_model),
        cmocka_unit_test(the_projection_has_its_own_names),
        cmocka_unit_test(every_spelling_of_a_pair_is_known),
        cmocka_unit_test(of_two_namings_for_a_tensor_the_later_one_counts),
        cmocka_unit_test(of_two_formulas_for_a_tensor_the_stronger_one_counts),
        cmocka_unit_test(a_bias_counts_only_where_there_is_one),
        cmocka_unit_test(modules_are_sorted_by_part_and_target),
        cmocka_unit_test(an_alpha_may_be_of_any_type),
        cmocka_unit_test(an_alpha_that_is_no_finite_number_is_refused),
        cmocka_unit_test(a_reshape_weight_must_be_the_shape_that_is_there),
        cmocka_unit_test(half_a_formula_is_refused),
        cmocka_unit_test(ranks_of_0_and_above_the_layer_are_refused),
        cmocka_unit_test(shapes_of_another_model_are_refused),
        cmocka_unit_test(operands_that_are_no_numbers_and_convolutions_are_refused),
        cmocka_unit_test(files_for_other_networks_hold_nothing_for_us),
        cmocka_unit_test(a_file_that_is_no_adapter_is_refused),
        cmocka_unit_test(a_file_of_very_many_keys_takes_a_moment),
        cmocka_unit_test(an_adapter_keeps_its_file_and_notices_that_it_changed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
