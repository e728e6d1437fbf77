// test_text.c - prompts to conditioning: the same numbers as the reference on every device,
// whatever else is in the batch.

#include "models/text/text.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/models/text_bench.h"

// Runs jobs without adapters, whose arena the estimate must cover.
static void run_plain(const struct bench *self, struct text_job **jobs, uint32_t count)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) rows += text_job_rows(jobs[i]);
    struct text_batch *batch = make_batch(self, jobs, count);
    uint64_t peak = program_peak_bytes(text_batch_program(batch));
    assert_true(peak <= text_estimate_bytes(&self->description, rows));
    start_batch(batch, self->lane);
    end_batch(&batch, self->lane);
}

static int open_encoders(void **state)
{
    *state = encoders_open(DTYPE_F32);
    return 0;
}

static int close_encoders(void **state)
{
    encoders_close(*state);
    return 0;
}

// --- The reference

static const struct tensor *find_tensor(const struct tensor_table *cases, const json_t *entry,
                                        const char *which, const char *what)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s.%s", json_string_value(json_object_get(entry, "name")),
             which, what);
    const struct tensor *tensor = tensor_table_find(cases, name);
    if (tensor == NULL) fail_msg("no tensor %s", name);
    assert_int_equal(tensor->dtype, DTYPE_F32);
    return tensor;
}

static void check_tokens(const struct text_job *job, const json_t *tokens, uint32_t which)
{
    static const struct {
        const char *key;
        enum model_part part;
    } parts[] = {{"clip_l", MODEL_CLIP_L}, {"clip_g", MODEL_CLIP_G}, {"clip_h", MODEL_CLIP_H}};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        uint32_t chunks = 0, length = 0;
        const json_t *rows = json_object_get(tokens, parts[i].key);
        const struct text_token *found =
            text_job_tokens(job, parts[i].part, which, &chunks, &length);
        assert_int_equal(chunks, json_array_size(rows));
        assert_true((found != NULL) == (rows != NULL));
        for (uint32_t j = 0; j < chunks * length; j++) {
            const json_t *row = json_array_get(rows, j / length);
            int32_t id = found[j].id < 0 ? -1 : found[j].id;
            assert_int_equal(id, json_integer_value(json_array_get(row, j % length)));
        }
    }
}

static void check_output(const struct text_job *job, const struct tensor_table *cases,
                         const json_t *entry, uint32_t which)
{
    const char *key = which == 0 ? "prompt" : "negative";
    const struct tensor *cond = find_tensor(cases, entry, key, "cond");
    const struct tensor *pooled = find_tensor(cases, entry, key, "pooled");
    struct text_output output = text_job_output(job, which);
    uint32_t stride = (uint32_t)atoi(tensor_table_metadata(cases, "stride"));
    assert_int_equal(cond->dims[1], (output.tokens + stride - 1) / stride);
    assert_int_equal(cond->dims[2], output.width);
    assert_int_equal(pooled->dims[1], output.pooled_width);
    float *picked = malloc(cond->bytes);
    assert_non_null(picked);
    for (uint64_t i = 0; i < cond->dims[1]; i++) {
        memcpy(picked + i * output.width, output.cond + i * stride * output.width,
               output.width * sizeof *picked);
    }
    expect_close(cond->name, picked, cond);
    expect_close(pooled->name, output.pooled, pooled);
    free(picked);
}

static struct text_request read_request(const json_t *entry)
{
    struct text_request request = {.prompt = json_bytes(json_object_get(entry, "prompt"))};
    const json_t *second = json_object_get(entry, "prompt_2");
    const json_t *negative = json_object_get(entry, "negative");
    request.has_prompt_2 = second != NULL;
    request.has_negative = negative != NULL;
    if (second != NULL) request.prompt_2 = json_bytes(second);
    if (negative != NULL) request.negative = json_bytes(negative);
    request.clip_skip = (int32_t)json_integer_value(json_object_get(entry, "clip_skip"));
    return request;
}

static void check_cases(struct encoders *encoders, const char *device)
{
    struct error error;
    struct tensor_table *cases = NULL;
    expect_ok(tensor_table_open(&cases, TEXT_GOLDEN "cases.safetensors", NULL, &error), &error);
    json_t *list = golden_list("cases.json");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *tokens = json_object_get(entry, "tokens");
        const char *kind = json_string_value(json_object_get(entry, "kind"));
        struct bench bench = open_bench(encoders, device, kind);
        struct text_request request = read_request(entry);
        struct text_job *job = make_job(&bench, &request);
        check_tokens(job, json_object_get(tokens, "prompt"), 0);
        if (request.has_negative) check_tokens(job, json_object_get(tokens, "negative"), 1);
        run_plain(&bench, &job, 1);
        check_output(job, cases, entry, 0);
        if (request.has_negative) check_output(job, cases, entry, 1);
        assert_true((text_job_output(job, 1).cond != NULL) == request.has_negative);
        text_job_destroy(&job);
        close_bench(&bench);
    }
    json_decref(list);
    tensor_table_release(&cases);
}

static void outputs_are_those_of_the_reference_on_the_reference_device(void **state)
{
    check_cases(*state, "reference");
}

static void outputs_are_those_of_the_reference_on_the_cpu(void **state)
{
    check_cases(*state, "cpu");
}

// --- What a batch must not change

static void batch_mates_change_no_byte(void **state)
{
    static const char *const prompts[] = {"a (red:1.3) fox",
                                          "",
                                          "a photo of a cat, masterpiece, best quality",
                                          "a (dog)",
                                          "a embedding:both fox",
                                          "(snow:0.2) and a embedding:narrow",
                                          "a fox"};
    enum { COUNT = sizeof prompts / sizeof prompts[0] };
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct text_job *alone[COUNT], *together[COUNT];
    for (int i = 0; i < COUNT; i++) {
        struct text_request request = prompt_request(prompts[i]);
        request.has_negative = i % 2 == 0;
        request.negative = text_of("blurry");
        request.clip_skip = i % 4;
        alone[i] = make_job(&bench, &request);
        together[i] = make_job(&bench, &request);
        run_plain(&bench, &alone[i], 1);
    }
    run_plain(&bench, together, COUNT);
    for (int i = 0; i < COUNT; i++) {
        expect_same_output(text_job_output(alone[i], 0), text_job_output(together[i], 0));
        if (i % 2 == 0) {
            expect_same_output(text_job_output(alone[i], 1), text_job_output(together[i], 1));
        }
        text_job_destroy(&alone[i]);
        text_job_destroy(&together[i]);
    }
    close_bench(&bench);
}

// With clip skip 1 all of the last layer is wanted, with 2 the pooled tokens of it alone.
static void a_pooled_output_is_the_same_by_a_whole_last_layer_and_by_its_token(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct text_output outputs[2];
    struct text_job *jobs[2];
    for (int i = 0; i < 2; i++) {
        struct text_request request = prompt_request("a (red:1.3) fox");
        request.clip_skip = i + 1;
        jobs[i] = make_job(&bench, &request);
        run_plain(&bench, &jobs[i], 1);
        outputs[i] = text_job_output(jobs[i], 0);
    }
    assert_memory_equal(outputs[0].pooled, outputs[1].pooled,
                        outputs[0].pooled_width * sizeof(float));
    assert_memory_not_equal(outputs[0].cond, outputs[1].cond, outputs[0].width * sizeof(float));
    for (int i = 0; i < 2; i++) text_job_destroy(&jobs[i]);
    close_bench(&bench);
}

static void a_text_of_many_passes_equals_its_rows_alone(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sd1");
    struct bytes prompt = repeated("cat dog fox owl ", 1500);  // 80 rows
    struct text_request request = {.prompt = prompt};
    struct text_job *job = make_job(&bench, &request);
    assert_int_equal(text_job_rows(job), 80);
    run_plain(&bench, &job, 1);
    struct text_output output = text_job_output(job, 0);
    assert_int_equal(output.tokens, 80 * 77);
    // 75 words a row and four words that repeat: row 76 holds what row 0 holds.
    size_t row = 77 * (size_t)output.width;
    assert_memory_equal(output.cond, output.cond + 76 * row, row * sizeof(float));
    assert_memory_not_equal(output.cond, output.cond + row, row * sizeof(float));
    text_job_destroy(&job);
    bytes_free(prompt);
    close_bench(&bench);
}

static void tokens_sent_back_give_the_same_bytes(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct text_request request = prompt_request("a (red:1.3) fox");
    struct text_job *texts = make_job(&bench, &request);
    struct text_tokens_request tokens = {0};
    int32_t ids[2][77];
    double weights[2][77];
    static const enum model_part parts[] = {MODEL_CLIP_L, MODEL_CLIP_G};
    for (int i = 0; i < 2; i++) {
        uint32_t chunks = 0, length = 0;
        const struct text_token *row = text_job_tokens(texts, parts[i], 0, &chunks, &length);
        assert_int_equal(chunks * length, 77);
        for (int j = 0; j < 77; j++) ids[i][j] = row[j].id;
        for (int j = 0; j < 77; j++) weights[i][j] = row[j].weight;
        tokens.tokens[parts[i]][0] = (struct text_tokens){ids[i], weights[i], 1, 77};
    }
    struct error error;
    struct text_job *again = NULL;
    expect_ok(text_job_create_from_tokens(&again, bench.model, &tokens, &error), &error);
    run_plain(&bench, &texts, 1);
    run_plain(&bench, &again, 1);
    expect_same_output(text_job_output(texts, 0), text_job_output(again, 0));
    text_job_destroy(&texts);
    text_job_destroy(&again);
    close_bench(&bench);
}

// --- What is refused, and what is noted

static void refuse_tokens(const struct bench *bench, struct text_tokens tokens, const char *what)
{
    struct error error;
    struct text_job *job = NULL;
    struct text_tokens_request request = {0};
    request.tokens[MODEL_CLIP_L][0] = tokens;
    assert_int_equal(text_job_create_from_tokens(&job, bench->model, &request, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_null(job);
    if (strstr(error.message, what) == NULL) fail_msg("\"%s\" lacks \"%s\"", error.message, what);
}

static void tokens_that_cannot_be_are_refused(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sd1");
    int32_t ids[77] = {0};
    refuse_tokens(&bench, (struct text_tokens){NULL, NULL, 1, 77}, "no tokens of clip_l");
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 0, 77}, "0 chunks");
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 1000000, 77}, "1000000 chunks");
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 1, 76}, "of 76 tokens");
    ids[5] = 49408;
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 1, 77}, "token 49408 at 5");
    ids[5] = -1;
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 1, 77}, "token -1 at 5");
    ids[5] = INT32_MIN;
    refuse_tokens(&bench, (struct text_tokens){ids, NULL, 1, 77}, "token -2147483648");
    close_bench(&bench);
}

static void refuse_text(const struct bench *bench, const struct text_request *request,
                        const char *what)
{
    struct error error;
    struct text_job *job = NULL;
    assert_int_equal(text_job_create(&job, bench->model, request, &error), STATUS_INVALID_ARGUMENT);
    assert_null(job);
    if (strstr(error.message, what) == NULL) fail_msg("\"%s\" lacks \"%s\"", error.message, what);
}

static void texts_that_cannot_be_are_refused(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct text_request request = prompt_request("a\xff");
    refuse_text(&bench, &request, "UTF-8");
    request = prompt_request("a");
    request.clip_skip = 25;
    refuse_text(&bench, &request, "clip skip is 25");
    request.clip_skip = INT32_MIN;
    refuse_text(&bench, &request, "clip skip is -2147483648");
    struct bytes words = repeated("a ", 75 * 1025);
    request = (struct text_request){.prompt = words};
    refuse_text(&bench, &request, "more than 1024 rows");
    bytes_free(words);
    close_bench(&bench);
}

static void notes_tell_what_was_left_out(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sdxl");
    struct text_request request =
        prompt_request("embedding:gone, embedding:gone, embedding:../both embedding:narrow");
    struct text_job *job = make_job(&bench, &request);
    assert_string_equal(
        text_job_notes(job),
        "embedding \"gone\" was not found\n"
        "embedding \"../both\" was not found\n"
        "embedding \"narrow.safetensors\" has width 64, clip_g takes 128: left out");
    text_job_destroy(&job);

    request = prompt_request("a fox");
    job = make_job(&bench, &request);
    assert_string_equal(text_job_notes(job), "");
    text_job_destroy(&job);
    close_bench(&bench);

    bench = open_bench(*state, "cpu", "sd1");
    request.has_prompt_2 = true;
    request.prompt_2 = text_of("a cat");
    job = make_job(&bench, &request);
    assert_string_equal(text_job_notes(job),
                        "the second text was ignored: this model has no clip_g");
    text_job_destroy(&job);
    close_bench(&bench);
}

static void hostile_names_leave_at_most_16_short_notes(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sd1");
    char prompt[4096];
    size_t used = 0;
    for (int i = 0; i < 40; i++) {
        used += (size_t)snprintf(prompt + used, sizeof prompt - used, "embedding:%c\x1b[%d%s ", 'a',
                                 i, "日本語日本語日本語日本語");
    }
    struct text_request request = prompt_request(prompt);
    struct text_job *job = make_job(&bench, &request);
    const char *notes = text_job_notes(job);
    assert_true(utf8_valid(text_of(notes)));
    assert_null(strchr(notes, '\x1b'));
    size_t lines = 1;
    size_t length_max = 0;
    for (const char *at = notes; *at != '\0';) {
        size_t length = strcspn(at, "\n");
        if (length > length_max) length_max = length;
        at += length;
        if (*at == '\n') {
            lines += 1;
            at += 1;
        }
    }
    assert_int_equal(lines, 16);
    assert_true(length_max <= 190);
    text_job_destroy(&job);
    close_bench(&bench);
}

static void a_weight_that_is_not_a_number_makes_its_tokens_so_and_no_others(void **state)
{
    struct bench bench = open_bench(*state, "cpu", "sd1");
    struct text_request request = prompt_request("a (cat:nan)");
    struct text_job *job = make_job(&bench, &request);
    run_plain(&bench, &job, 1);
    struct text_output output = text_job_output(job, 0);
    assert_true(isnan(output.cond[1 * output.width]) == 0);
    assert_true(isnan(output.cond[2 * output.width]) != 0);
    assert_true(isnan(output.cond[3 * output.width]) == 0);
    text_job_destroy(&job);
    close_bench(&bench);
}

// --- Embeddings in a folder

static void write_embedding(const char *folder, const char *name, float first)
{
    char path[512];
    struct error error;
    float values[64] = {first};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    struct tensor_write tensor = {
        .name = "emb_params", .dtype = DTYPE_F32, .rank = 1, .dims = {64}, .data = values};
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(descriptor >= 0);
    expect_ok(safetensors_write(descriptor, &tensor, 1, NULL, &error), &error);
    close(descriptor);
}

// True when the prompt's first token is an embedding.
static bool is_found(const struct bench *bench, const char *prompt)
{
    uint32_t chunks = 0, length = 0;
    struct text_request request = prompt_request(prompt);
    struct text_job *job = make_job(bench, &request);
    bool found = text_job_tokens(job, MODEL_CLIP_L, 0, &chunks, &length)[1].id < 0;
    text_job_destroy(&job);
    return found;
}

static void embeddings_are_found_in_subfolders_and_nowhere_else(void **state)
{
    const struct encoders *encoders = *state;
    struct encoders here = *encoders;
    struct error error;
    char root[] = P_tmpdir "/luna_test_text_XXXXXX";
    char path[512];
    assert_non_null(mkdtemp(root));
    const char *const folders[] = {"in", "in/sub", "out"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    write_embedding(root, "in/plain.safetensors", 1);
    write_embedding(root, "in/sub/deep.bin", 2);
    write_embedding(root, "out/secret.safetensors", 3);
    snprintf(path, sizeof path, "%s/in/link.safetensors", root);
    assert_int_equal(symlink("../out/secret.safetensors", path), 0);
    snprintf(path, sizeof path, "%s/in/inner.pt", root);
    assert_int_equal(symlink("sub/deep.bin", path), 0);
    snprintf(path, sizeof path, "%s/in", root);
    here.embeddings = NULL;
    expect_ok(text_embeddings_open(&here.embeddings, path, NULL, &error), &error);

    struct bench bench = open_bench(&here, "cpu", "sd1");
    assert_true(is_found(&bench, "embedding:plain"));
    assert_true(is_found(&bench, "embedding:plain.safetensors"));
    assert_true(is_found(&bench, "(embedding:plain:1.2)"));
    assert_true(is_found(&bench, "embedding:,plain,"));
    assert_true(is_found(&bench, "embedding:deep"));
    assert_true(is_found(&bench, "embedding:sub/deep"));
    assert_true(is_found(&bench, "embedding:inner"));
    assert_false(is_found(&bench, "embedding:link"));
    assert_false(is_found(&bench, "embedding:../out/secret"));
    assert_false(is_found(&bench, "embedding:/etc/hostname"));
    assert_false(is_found(&bench, "embedding:"));
    assert_false(is_found(&bench, "xembedding:plain"));
    close_bench(&bench);
    text_embeddings_close(&here.embeddings);
    assert_int_equal(text_embeddings_open(&here.embeddings, "/nowhere/at/all", NULL, &error),
                     STATUS_NOT_FOUND);

    static const char *const files[] = {"in/plain.safetensors", "in/sub/deep.bin",
                                        "out/secret.safetensors", "in/link.safetensors",
                                        "in/inner.pt"};
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/%s", root, files[i]);
        assert_int_equal(unlink(path), 0);
    }
    for (int i = 2; i >= 0; i--) {
        static const char *const order[] = {"in", "in/sub", "out"};
        snprintf(path, sizeof path, "%s/%s", root, order[i]);
        assert_int_equal(rmdir(path), 0);
    }
    assert_int_equal(rmdir(root), 0);
}

static void a_model_that_lacks_a_tensor_is_refused_by_name(void **state)
{
    struct encoders *encoders = *state;
    struct golden_encoder *narrow = encoders->parts[MODEL_CLIP_L];
    struct model_description description = {.kind = "sd1", .text = TEXT_SD1};
    struct tensor_table *tables[MODEL_PART_COUNT] = {NULL};
    struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct text_model *model = NULL;
    struct error error;
    expect_ok(device_open(&device, &options, &error), &error);
    description.has[MODEL_CLIP_L] = true;
    description.clip[MODEL_CLIP_L] = narrow->config;
    expect_ok(tensor_table_from_tensors(&tables[MODEL_CLIP_L], narrow->weights.tensors,
                                        narrow->weights.count - 1, NULL, 0, &error),
              &error);
    assert_int_equal(text_model_create(&model, device, tables, &description, NULL, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_null(model);
    assert_string_equal(error.message,
                        "clip_l: tensor \"text_model.final_layer_norm.bias\" is missing");
    tensor_table_release(&tables[MODEL_CLIP_L]);
    device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_are_those_of_the_reference_on_the_reference_device),
        cmocka_unit_test(outputs_are_those_of_the_reference_on_the_cpu),
        cmocka_unit_test(batch_mates_change_no_byte),
        cmocka_unit_test(a_pooled_output_is_the_same_by_a_whole_last_layer_and_by_its_token),
        cmocka_unit_test(a_text_of_many_passes_equals_its_rows_alone),
        cmocka_unit_test(tokens_sent_back_give_the_same_bytes),
        cmocka_unit_test(tokens_that_cannot_be_are_refused),
        cmocka_unit_test(texts_that_cannot_be_are_refused),
        cmocka_unit_test(notes_tell_what_was_left_out),
        cmocka_unit_test(hostile_names_leave_at_most_16_short_notes),
        cmocka_unit_test(a_weight_that_is_not_a_number_makes_its_tokens_so_and_no_others),
        cmocka_unit_test(embeddings_are_found_in_subfolders_and_nowhere_else),
        cmocka_unit_test(a_model_that_lacks_a_tensor_is_refused_by_name),
    };
    return cmocka_run_group_tests_name("text", tests, open_encoders, close_encoders);
}
