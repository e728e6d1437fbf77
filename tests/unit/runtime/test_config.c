// test_config.c - what people may write, who wins, and what they are told when they err.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/config.h"
#include "tests/test.h"

// A folder with files, gone after the test.
struct folder {
    char path[64];  // of the folder
};

static char *const no_environment[] = {NULL};

static void path_of(const struct folder *self, const char *name, char out[256])
{
    snprintf(out, 256, "%s/%s", self->path, name);
}

static void write_file(const struct folder *self, const char *name, const char *text, size_t size)
{
    char path[256];
    path_of(self, name, path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    fclose(file);
}

static int make_folder(void **state)
{
    struct folder *self = calloc(1, sizeof *self);
    snprintf(self->path, sizeof self->path, "%s/luna-config-XXXXXX", P_tmpdir);
    *state = self;
    return mkdtemp(self->path) != NULL ? 0 : -1;
}

static int remove_folder(void **state)
{
    struct folder *self = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", self->path);
    int failed = system(command);
    free(self);
    return failed;
}

// Loads a text as luna.conf.
static enum status load_bytes(const struct folder *folder, const char *text, size_t size,
                              struct config **out, struct error *error)
{
    char path[256];
    write_file(folder, "luna.conf", text, size);
    path_of(folder, "luna.conf", path);
    struct config_sources sources = {.file = path, .environment = no_environment};
    return config_load(out, &sources, error);
}

static enum status load_text(const struct folder *folder, const char *text, struct config **out,
                             struct error *error)
{
    return load_bytes(folder, text, strlen(text), out, error);
}

// Loads a text that must be wrong: the message is FOLDER/luna.conf:EXPECTED.
static void assert_refused(const struct folder *folder, const char *text, const char *expected)
{
    struct config *config = NULL;
    struct error error = {0};
    char whole[512];
    snprintf(whole, sizeof whole, "%s/luna.conf:%s", folder->path, expected);
    assert_int_equal(load_text(folder, text, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_null(config);
    assert_string_equal(error.message, whole);
    assert_int_equal(error.status, STATUS_INVALID_ARGUMENT);
}

static void every_value_has_a_default(void **state)
{
    struct config *config = NULL;
    assert_int_equal(load_text(*state, "", &config, NULL), STATUS_OK);
    assert_int_equal(config->service.type, SERVICE_FULL);
    assert_true(config->service.threads == CONFIG_AUTO);
    assert_int_equal(config->service.devices.count, 0);
    assert_int_equal(config->service.precision, PRECISION_AUTO);
    assert_int_equal(config_vae_precision(config), PRECISION_AUTO);
    assert_int_equal(config->service.log_levels.level, LOG_INFO);
    assert_int_equal(config->listen.requests.count, 2);
    assert_string_equal(config->listen.requests.items[0], "tcp://127.0.0.1:19283");
    assert_string_equal(config->listen.page, "127.0.0.1:19284");
    assert_string_equal(config->listen.events, "tcp://127.0.0.1:19285");
    assert_string_equal(config->models.directories.items[0], "./models");
    assert_int_equal(config->model_count, 0);
    assert_int_equal(config->lora.memory_limit_mb, 4096);
    assert_true(config->lora.cleanup_threshold == 0.8);
    assert_int_equal(config->lora.entries_max, 100);
    assert_int_equal(config->lora.time_to_live_s, 0);
    assert_int_equal(config->lora.stack_max, 8);
    assert_false(config->lora.merged);
    assert_int_equal(config->lora.merged_limit_mb, 1536);
    assert_int_equal(config->scaling.vae_workers.min, 0);
    assert_int_equal(config->scaling.vae_workers.max, 2);
    assert_int_equal(config->scaling.queue_threshold, 2);
    assert_int_equal(config->scaling.scale_up_delay_ms, 1000);
    assert_int_equal(config->scaling.idle_timeout_s, 30);
    assert_true(config->scaling.memory_margin_mb == CONFIG_AUTO);
    assert_int_equal(config->cache_conditioning_mb, 256);
    assert_int_equal(config->limits.queue_requests_max, 256);
    assert_true(config->limits.queue_bytes_max == 2147483648u);
    assert_int_equal(config->limits.message_bytes_max, 1073741824);
    assert_int_equal(config->limits.image_pixels_max, 67108864);
    assert_int_equal(config->limits.text_bytes_max, 65536);
    assert_int_equal(config->limits.restarts_max, 5);
    assert_int_equal(config->limits.restarts_period_s, 60);
    assert_false(config->security.curve);
    assert_false(config->security.loopback_admin);
    assert_int_equal(config->cluster.peers.count, 0);
    assert_int_equal(config_check(config, NULL), STATUS_OK);
    config_destroy(&config);
    assert_null(config);
    config_destroy(&config);
}

static const char whole_file[] = "\xef\xbb\xbf# A comment.\r\n"
                                 "[service]\r\n"
                                 "type = clip                 ; full | vae | clip\r\n"
                                 "  threads=7\r\n"
                                 "devices = cuda:0 ,cpu;\n"
                                 "; another\n"
                                 "[service]\n";

static void comments_blanks_marks_and_both_line_ends_are_accepted(void **state)
{
    struct config *config = NULL;
    struct error error = {0};
    // "cpu;" is a value: a comment needs a blank in front of its semicolon.
    assert_int_equal(load_text(*state, whole_file, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, ":5: [service] devices: \"cpu;\" is not auto, cpu or"));
    char text[sizeof whole_file];
    memcpy(text, whole_file, sizeof text);
    *strstr(text, "cpu;") = ' ';
    memcpy(strstr(text, " pu;"), "cpu ", 4);
    assert_int_equal(load_text(*state, text, &config, &error), STATUS_OK);
    assert_int_equal(config->service.type, SERVICE_CLIP);
    assert_int_equal(config->service.threads, 7);
    assert_int_equal(config->service.devices.count, 2);
    assert_string_equal(config->service.devices.items[0], "cuda:0");
    assert_string_equal(config->service.devices.items[1], "cpu");
    config_destroy(&config);
}

static void models_have_sections_of_their_own(void **state)
{
    struct config *config = NULL;
    struct error error = {0};
    assert_int_equal(
        load_text(*state,
                  "[model sdxl]\nfiles = a.safetensors, b b.safetensors ; or one\n"
                  "embeddings = ./embeddings\n"
                  "[model a name with blanks that is longer than forty-nine bytes]\nfiles = x\n",
                  &config, &error),
        STATUS_OK);
    assert_int_equal(config->model_count, 2);
    assert_string_equal(config->model[0].name, "sdxl");
    assert_int_equal(config->model[0].files.count, 2);
    assert_string_equal(config->model[0].files.items[1], "b b.safetensors");
    assert_string_equal(config->model[0].embeddings, "./embeddings");
    assert_string_equal(config->model[1].name,
                        "a name with blanks that is longer than forty-nine bytes");
    assert_string_equal(config->model[1].embeddings, "");
    assert_int_equal(config_check(config, NULL), STATUS_OK);
    config_destroy(&config);

    assert_int_equal(load_text(*state, "[model empty]\nembeddings = x\n", &config, &error),
                     STATUS_OK);
    assert_int_equal(config_check(config, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "[model empty] has no files");
    config_destroy(&config);
}

static void every_mistake_names_its_line(void **state)
{
    const struct folder *folder = *state;
    const struct {
        const char *text;
        const char *message;
    } mistakes[] = {
        {"[service]\nthreads = 1\n[lara]\n", "3: unknown section [lara]"},
        {"\n[service]\nthreds = 1\n", "3: unknown key \"threds\" in [service]"},
        {"threads = 1\n", "1: key \"threads\" stands before the first section"},
        {"[service]\nthreads\n", "2: neither [section] nor key = value"},
        {"[service\nthreads = 1\n", "1: neither [section] nor key = value"},
        {"[lora] entries_max = 3\n", "1: there is something behind the section's ]"},
        {"[service]\nthreads = 1\n\nthreads = 2\n", "4: [service] threads is there twice"},
        {"[service]\ntype = fool\n", "2: [service] type: \"fool\" is not one of full|vae|clip"},
        {"[service]\nthreads = 0\n",
         "2: [service] threads: \"0\" is not auto or a whole number from 1 to 1024"},
        {"[service]\nthreads = -1\n",
         "2: [service] threads: \"-1\" is not auto or a whole number from 1 to 1024"},
        {"[service]\nthreads =\n",
         "2: [service] threads: \"\" is not auto or a whole number from 1 to 1024"},
        {"[lora]\nentries_max = auto\n",
         "2: [lora] entries_max: \"auto\" is not a whole number from 1 to 100000"},
        {"[lora]\nentries_max = 0x10\n",
         "2: [lora] entries_max: \"0x10\" is not a whole number from 1 to 100000"},
        {"[limits]\nqueue_bytes_max = 18446744073709551616\n",
         "2: [limits] queue_bytes_max: \"18446744073709551616\" is not a whole number from 1 to "
         "9223372036854775807"},
        {"[lora]\ncleanup_threshold = 1.1\n",
         "2: [lora] cleanup_threshold: \"1.1\" is not a number above 0 and at most 1"},
        {"[lora]\ncleanup_threshold = 0.8.1\n",
         "2: [lora] cleanup_threshold: \"0.8.1\" is not a number above 0 and at most 1"},
        {"[lora]\ncleanup_threshold = 0.0\n",
         "2: [lora] cleanup_threshold: \"0.0\" is not a number above 0 and at most 1"},
        {"[lora]\nexecution = fast\n",
         "2: [lora] execution: \"fast\" is not one of functional|merged"},
        {"[scaling]\nvae_workers = 3-2\n",
         "2: [scaling] vae_workers: \"3-2\" is not a range like 0-2 that ends between 1 and 16"},
        {"[scaling]\nvae_workers = 0-17\n",
         "2: [scaling] vae_workers: \"0-17\" is not a range like 0-2 that ends between 1 and 16"},
        {"[scaling]\nvae_workers = 0-\n",
         "2: [scaling] vae_workers: \"0-\" is not a range like 0-2 that ends between 1 and 16"},
        {"[service]\ndevices = cpu, cpu\n", "2: [service] devices: names \"cpu\" twice"},
        {"[service]\ndevices = cuda:64\n",
         "2: [service] devices: \"cuda:64\" is not auto, cpu or cuda:N"},
        {"[models]\ndirectories = a,,b\n", "2: [models] directories: has an empty item"},
        {"[listen]\nrequests = udp://127.0.0.1:1\n",
         "2: [listen] requests: \"udp://127.0.0.1:1\" is not an address like "
         "tcp://127.0.0.1:19283 or ipc:///run/luna.sock (at most 107 bytes of path)"},
        {"[listen]\nevents = tcp://127.0.0.1:65536\n",
         "2: [listen] events: \"tcp://127.0.0.1:65536\" is not an address like "
         "tcp://127.0.0.1:19285"},
        {"[listen]\npage = 127.0.0.1\n",
         "2: [listen] page: \"127.0.0.1\" is not an address like 127.0.0.1:19284"},
        {"[model ]\n", "1: unknown section [model]"},
        {"[model x]\nfile = y\n",
         "2: [model x] file: unknown key, a model has files and embeddings"},
        {"[service]\nlog_level = loud\n",
         "2: [service] log_level: \"loud\" is not one of error, warning, info, debug"},
        {"[service]\nlog_level_Router = info\n",
         "2: [service] log_level_Router: \"Router\" is not an actor's name"},
        {"[models]\ndefault_vae = \xff\n", "2: [models] default_vae: is not UTF-8"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        assert_refused(folder, mistakes[i].text, mistakes[i].message);
    }
}

static void the_first_of_two_mistakes_is_told(void **state)
{
    assert_refused(*state, "[service]\nx = 1\nnonsense\n", "2: unknown key \"x\" in [service]");
    assert_refused(*state, "[service]\nnonsense\nx = 1\n", "2: neither [section] nor key = value");
}

static void lines_and_files_have_bounds(void **state)
{
    const struct folder *folder = *state;
    struct config *config = NULL;
    struct error error = {0};
    size_t size = 40000;
    char *text = malloc(size);
    memset(text, 'x', size);
    memcpy(text, "[models]\ndefault_vae = ", 22);
    assert_int_equal(load_bytes(folder, text, 22 + 1024, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, ":2: [models] default_vae: has 1024 bytes, at most"));
    assert_int_equal(load_bytes(folder, text, 22 + 1023, &config, &error), STATUS_OK);
    assert_int_equal(strlen(config->models.default_vae), 1023);
    config_destroy(&config);
    assert_int_equal(load_bytes(folder, text, size, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "luna.conf:2: the line is too long"));
    free(text);

    assert_int_equal(load_bytes(folder, "[service]\nthreads = 1\0 0\n", 25, &config, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "luna.conf:2: the line has a zero byte"));
}

static enum status load_path(const char *path, struct config **out, struct error *error)
{
    struct config_sources sources = {.file = path, .environment = no_environment};
    return config_load(out, &sources, error);
}

static void what_is_no_configuration_file_is_refused_unread(void **state)
{
    const struct folder *folder = *state;
    struct config *config = NULL;
    struct error error = {0};
    char path[256];
    write_file(folder, "huge.conf", "", 0);
    path_of(folder, "huge.conf", path);
    assert_int_equal(truncate(path, 1000000000), 0);
    assert_int_equal(load_path(path, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "has 1000000000 bytes, a configuration has at most"));

    path_of(folder, "pipe.conf", path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(load_path(path, &config, &error), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(error.message, "is no regular file"));
    assert_int_equal(load_path(folder->path, &config, &error), STATUS_INVALID_ARGUMENT);

    path_of(folder, "absent.conf", path);
    assert_int_equal(load_path(path, &config, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.message, "absent.conf"));
    assert_null(config);
}

static void later_sources_win(void **state)
{
    const struct folder *folder = *state;
    struct config *config = NULL;
    struct error error = {0};
    char etc[256], drop_in[256], home[256], variable[300], command[600];
    path_of(folder, "etc", etc);
    path_of(folder, "etc/conf.d", drop_in);
    path_of(folder, "home", home);
    snprintf(command, sizeof command, "mkdir -p '%s' '%s/luna'", drop_in, home);
    assert_int_equal(system(command), 0);
    snprintf(variable, sizeof variable, "XDG_CONFIG_HOME=%s", home);
    char environment_key[] = "LUNA_LORA_ENTRIES_MAX=5";
    char unrelated[] = "LUNA_SERVICE_PORT=tcp://10.0.0.1:1";
    char *const environment[] = {variable, environment_key, unrelated, NULL};
    const char *const sets[] = {"lora.entries_max=6", "model x.y.files=z"};
    struct config_sources sources = {.etc = etc, .environment = environment};

    // Each step adds a source; its key is in all earlier ones too.
    const char *keys = "[lora]\nentries_max = 1\nstack_max = 1\n[scaling]\nqueue_threshold = 1\n";
    write_file(folder, "etc/luna.conf", keys, strlen(keys));
    keys = "[lora]\nentries_max = 3\nstack_max = 3\n";
    write_file(folder, "etc/conf.d/20.conf", keys, strlen(keys));
    keys = "[lora]\nentries_max = 2\nstack_max = 2\n[scaling]\nidle_timeout_s = 2\n";
    write_file(folder, "etc/conf.d/10.conf", keys, strlen(keys));
    write_file(folder, "etc/conf.d/30.conf.bak", "garbage", 7);
    assert_int_equal(config_load(&config, &sources, &error), STATUS_OK);
    assert_int_equal(config->lora.stack_max, 3);
    assert_int_equal(config->scaling.queue_threshold, 1);
    assert_int_equal(config->scaling.idle_timeout_s, 2);
    assert_int_equal(config->lora.entries_max, 5);
    config_destroy(&config);

    keys = "[lora]\nentries_max = 4\nstack_max = 4\n";
    write_file(folder, "home/luna/luna.conf", keys, strlen(keys));
    sources.sets = sets;
    sources.set_count = 2;
    assert_int_equal(config_load(&config, &sources, &error), STATUS_OK);
    assert_int_equal(config->lora.stack_max, 4);
    assert_int_equal(config->lora.entries_max, 6);
    assert_int_equal(config->model_count, 1);
    assert_string_equal(config->model[0].name, "x.y");
    assert_string_equal(config->model[0].files.items[0], "z");
    config_destroy(&config);

    char path[256];
    write_file(folder, "own.conf", "", 0);
    path_of(folder, "own.conf", path);
    sources.file = path;  // instead of all the others
    assert_int_equal(config_load(&config, &sources, &error), STATUS_OK);
    assert_int_equal(config->lora.stack_max, 8);
    config_destroy(&config);
}

static void variables_and_options_are_named_when_they_are_wrong(void **state)
{
    (void)state;
    struct config *config = NULL;
    struct error error = {0};
    char wrong[] = "LUNA_LORA_ENTRIES_MAX=many";
    char empty[] = "LUNA_LISTEN_PAGE=";
    char *const bad[] = {wrong, NULL};
    char *const good[] = {empty, NULL};
    struct config_sources sources = {.etc = "/nonexistent", .environment = bad};
    assert_int_equal(config_load(&config, &sources, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "LUNA_LORA_ENTRIES_MAX: [lora] entries_max: \"many\" is "
                                       "not a whole number from 1 to 100000");
    sources.environment = good;
    assert_int_equal(config_load(&config, &sources, &error), STATUS_OK);
    assert_string_equal(config->listen.page, "");  // off
    config_destroy(&config);

    const char *const wrongs[] = {"lora.entries_max", "entries_max=3", ".x=3", "lora.=3", "=", ""};
    sources.set_count = 1;
    for (size_t i = 0; i < sizeof wrongs / sizeof wrongs[0]; i++) {
        sources.sets = &wrongs[i];
        assert_int_equal(config_load(&config, &sources, &error), STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, "is not section.key=value"));
    }
    const char *const unknown = "lara.x=1";
    sources.sets = &unknown;
    assert_int_equal(config_load(&config, &sources, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "--set: unknown section [lara]");
    const char *const comment = "models.directories=a ;b";
    sources.sets = &comment;
    assert_int_equal(config_load(&config, &sources, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "--set: [models] directories: has a ';' that starts a "
                                       "comment in a file");
    const char *const line = "models.default_vae=a\nb";
    sources.sets = &line;
    assert_int_equal(config_load(&config, &sources, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "--set: [models] default_vae: has a control character");
}

static void a_dump_reads_back_to_the_same_values(void **state)
{
    struct config *first = NULL;
    struct config *second = NULL;
    struct error error = {0};
    assert_int_equal(
        load_text(*state,
                  "[service]\ntype = vae\nthreads = 3\ndevices = cuda:0, cpu\nvae_device = cpu\n"
                  "precision = f32\nclip_precision = bf16\nmemory_limit_mb = 1000\n"
                  "log_level = debug\nlog_level_router = error\nlog_level_lora_store = warning\n"
                  "[listen]\nrequests = ipc://@runtime@/x.sock, tcp://[::1]:1\npage =\nevents =\n"
                  "[models]\ndirectories = a b, c\ndefault_vae = sdxl\n"
                  "[lora]\ndirectories =\ncleanup_threshold = 0.123456789\nexecution = merged\n"
                  "[scaling]\nvae_workers = 1-3\nclip_workers = 2\nmemory_margin_mb = 0\n"
                  "[security]\nloopback_role = admin\n"
                  "[model sdxl]\nfiles = x, y\n[model z]\nfiles = f\nembeddings = e\n",
                  &first, &error),
        STATUS_OK);
    char *text = NULL;
    char *again = NULL;
    struct config_change changes[CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX];
    assert_int_equal(config_dump(first, &text, NULL), STATUS_OK);
    assert_int_equal(load_text(*state, text, &second, &error), STATUS_OK);
    assert_int_equal(config_compare(first, second, changes), 0);
    assert_int_equal(config_dump(second, &again, NULL), STATUS_OK);
    assert_string_equal(text, again);
    assert_null(strstr(text, "@runtime@"));
    assert_int_equal(second->scaling.clip_workers.min, 2);
    assert_int_equal(second->lora.directories.count, 0);
    assert_int_equal(config_vae_precision(second), PRECISION_F32);
    assert_int_equal(config_clip_precision(second), PRECISION_BF16);
    assert_int_equal(log_level_of(&second->service.log_levels, "router"), LOG_ERROR);
    assert_int_equal(log_level_of(&second->service.log_levels, "lora_store"), LOG_WARNING);
    assert_int_equal(log_level_of(&second->service.log_levels, "monitor"), LOG_DEBUG);
    assert_true(second->lora.cleanup_threshold == 0.123456789);
    free(text);
    free(again);
    config_destroy(&first);
    config_destroy(&second);
}

static void a_full_list_survives_the_dump(void **state)
{
    struct config *first = NULL;
    struct config *second = NULL;
    struct error error = {0};
    size_t size = 0;
    char *text = malloc(20000);
    size += (size_t)sprintf(text, "[lora]\ndirectories = ");
    for (unsigned i = 0; i < CONFIG_LIST_MAX; i++) {
        if (i > 0) text[size++] = ',';
        memset(text + size, 'a' + (int)i, CONFIG_TEXT_BYTES - 1);
        size += CONFIG_TEXT_BYTES - 1;
    }
    assert_int_equal(load_bytes(*state, text, size, &first, &error), STATUS_OK);
    free(text);
    assert_int_equal(config_dump(first, &text, NULL), STATUS_OK);
    assert_int_equal(load_text(*state, text, &second, &error), STATUS_OK);
    assert_int_equal(second->lora.directories.count, CONFIG_LIST_MAX);
    assert_string_equal(second->lora.directories.items[15], first->lora.directories.items[15]);
    free(text);
    config_destroy(&first);
    config_destroy(&second);
}

static void a_comparison_tells_what_needs_a_restart(void **state)
{
    struct config *before = NULL;
    struct config *after = NULL;
    struct config_change changes[CONFIG_CHANGES_MAX + 2 * CONFIG_MODELS_MAX];
    assert_int_equal(
        load_text(*state, "[model a]\nfiles = x\n[model b]\nfiles = x\n", &before, NULL),
        STATUS_OK);
    assert_int_equal(load_text(*state,
                               "[service]\nthreads = 2\n[lora]\nentries_max = 3\n"
                               "[model b]\nfiles = y\n[model c]\nfiles = x\n",
                               &after, NULL),
                     STATUS_OK);
    assert_int_equal(config_compare(before, before, changes), 0);
    assert_int_equal(config_compare(before, after, changes), 5);
    assert_string_equal(changes[0].key, "service.threads");
    assert_false(changes[0].is_live);
    assert_string_equal(changes[1].key, "lora.entries_max");
    assert_true(changes[1].is_live);
    assert_string_equal(changes[2].key, "model a");
    assert_string_equal(changes[3].key, "model b");
    assert_string_equal(changes[4].key, "model c");
    config_destroy(&before);
    config_destroy(&after);
}

static void assert_check(const struct folder *folder, const char *text, enum status status,
                         const char *message)
{
    struct config *config = NULL;
    struct error error = {0};
    assert_int_equal(load_text(folder, text, &config, &error), STATUS_OK);
    assert_int_equal(config_check(config, &error), status);
    if (message != NULL) assert_string_equal(error.message, message);
    config_destroy(&config);
}

static void the_check_refuses_what_does_not_exist_and_what_is_not_safe(void **state)
{
    const struct folder *folder = *state;
    assert_check(folder, "[security]\ncurve = on\n", STATUS_UNIMPLEMENTED,
                 "[security] curve = on does not exist yet");
    assert_check(folder, "[cluster]\npeers = tcp://a:1\n", STATUS_UNIMPLEMENTED,
                 "[cluster] peers do not exist yet");
    assert_check(folder, "[cluster]\netcd = http://127.0.0.1:2379\n", STATUS_UNIMPLEMENTED,
                 "[cluster] etcd does not exist yet");
    assert_check(folder, "[listen]\nrequests = tcp://0.0.0.0:19283\n", STATUS_FAILED_PRECONDITION,
                 "[listen] requests: 0.0.0.0:19283 is not loopback, which needs [security] curve "
                 "= on");
    assert_check(folder, "[listen]\nrequests = tcp://*:19283\n", STATUS_FAILED_PRECONDITION, NULL);
    assert_check(folder, "[listen]\nevents = tcp://10.1.2.3:1\n", STATUS_FAILED_PRECONDITION, NULL);
    assert_check(folder, "[listen]\npage = 127.evil.example:1\n", STATUS_FAILED_PRECONDITION, NULL);
    assert_check(folder, "[listen]\nrequests =\n", STATUS_INVALID_ARGUMENT,
                 "[listen] requests names no address");
    assert_check(folder, "[listen]\nrequests = tcp://[::1]:1\npage = localhost:1\n", STATUS_OK,
                 NULL);
}

static void the_runtime_directory_is_expanded(void **state)
{
    (void)state;
    struct config *config = NULL;
    char directory[] = "XDG_RUNTIME_DIR=/somewhere";
    char *const environment[] = {directory, NULL};
    const char *const set = "listen.requests=ipc://@runtime@/@runtime@/a.sock";
    struct config_sources sources = {
        .etc = "/nonexistent", .environment = environment, .sets = &set, .set_count = 1};
    assert_int_equal(config_load(&config, &sources, NULL), STATUS_OK);
    char expected[256];
    const char *runtime = config->runtime_directory;
    assert_string_equal(runtime, geteuid() == 0 ? "/run/luna" : "/somewhere/luna");
    snprintf(expected, sizeof expected, "ipc://%s/%s/a.sock", runtime, runtime);
    assert_string_equal(config->listen.requests.items[0], expected);
    config_destroy(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_value_has_a_default, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(comments_blanks_marks_and_both_line_ends_are_accepted,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(models_have_sections_of_their_own, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(every_mistake_names_its_line, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(the_first_of_two_mistakes_is_told, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(lines_and_files_have_bounds, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(what_is_no_configuration_file_is_refused_unread,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(later_sources_win, make_folder, remove_folder),
        cmocka_unit_test(variables_and_options_are_named_when_they_are_wrong),
        cmocka_unit_test_setup_teardown(a_dump_reads_back_to_the_same_values, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_full_list_survives_the_dump, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_comparison_tells_what_needs_a_restart, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(the_check_refuses_what_does_not_exist_and_what_is_not_safe,
                                        make_folder, remove_folder),
        cmocka_unit_test(the_runtime_directory_is_expanded),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
