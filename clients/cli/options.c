// options.c - the command line of every client subcommand, checked against what that one takes.

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "clients/cli/cli.h"

// Which commands an option is for.
enum option_group {
    GROUP_ALL = 1,
    GROUP_IMAGE = 2,
    GROUP_TEXT = 4,
    GROUP_WORK = 8,
    GROUP_BENCH = 16,
    GROUP_LORAS = 32,
    GROUP_ENCODE_TEXT = 64,
};

enum option_id {
    OPTION_CONNECT = 256,
    OPTION_TIMEOUT,
    OPTION_JSON,
    OPTION_PROGRESS,
    OPTION_NO_PROGRESS,
    OPTION_SERVER_KEY,
    OPTION_KEY,
    OPTION_MODEL,
    OPTION_DTYPE,
    OPTION_PRIORITY,
    OPTION_TILING,
    OPTION_TILE,
    OPTION_OVERLAP,
    OPTION_PASSES,
    OPTION_NEGATIVE,
    OPTION_PROMPT_2,
    OPTION_CLIP_SKIP,
    OPTION_SIZE,
    OPTION_CROP,
    OPTION_TARGET,
    OPTION_LORA,
    OPTION_LORA_MULTIPLIER,
    OPTION_NAME,
    OPTION_CLIENTS,
    OPTION_MIX,
    OPTION_DURATION,
    OPTION_RATE,
    OPTION_TRACE,
};

static const struct option long_options[] = {
    {"connect", required_argument, NULL, OPTION_CONNECT},
    {"timeout", required_argument, NULL, OPTION_TIMEOUT},
    {"json", no_argument, NULL, OPTION_JSON},
    {"progress", no_argument, NULL, OPTION_PROGRESS},
    {"no-progress", no_argument, NULL, OPTION_NO_PROGRESS},
    {"server-key", required_argument, NULL, OPTION_SERVER_KEY},
    {"key", required_argument, NULL, OPTION_KEY},
    {"output", required_argument, NULL, 'o'},
    {"model", required_argument, NULL, OPTION_MODEL},
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"priority", required_argument, NULL, OPTION_PRIORITY},
    {"tiling", required_argument, NULL, OPTION_TILING},
    {"tile", required_argument, NULL, OPTION_TILE},
    {"overlap", required_argument, NULL, OPTION_OVERLAP},
    {"passes", required_argument, NULL, OPTION_PASSES},
    {"negative", required_argument, NULL, OPTION_NEGATIVE},
    {"prompt-2", required_argument, NULL, OPTION_PROMPT_2},
    {"clip-skip", required_argument, NULL, OPTION_CLIP_SKIP},
    {"size", required_argument, NULL, OPTION_SIZE},
    {"crop", required_argument, NULL, OPTION_CROP},
    {"target", required_argument, NULL, OPTION_TARGET},
    {"lora", required_argument, NULL, OPTION_LORA},
    {"lora-multiplier", required_argument, NULL, OPTION_LORA_MULTIPLIER},
    {"name", required_argument, NULL, OPTION_NAME},
    {"clients", required_argument, NULL, OPTION_CLIENTS},
    {"mix", required_argument, NULL, OPTION_MIX},
    {"duration", required_argument, NULL, OPTION_DURATION},
    {"rate", required_argument, NULL, OPTION_RATE},
    {"trace", required_argument, NULL, OPTION_TRACE},
    {NULL, 0, NULL, 0},
};

static unsigned groups_of_option(int id)
{
    switch (id) {
    case OPTION_CONNECT:
    case OPTION_TIMEOUT:
    case OPTION_JSON:
    case OPTION_PROGRESS:
    case OPTION_NO_PROGRESS:
    case OPTION_SERVER_KEY:
    case OPTION_KEY:
        return GROUP_ALL;
    case OPTION_TILING:
    case OPTION_TILE:
    case OPTION_OVERLAP:
    case OPTION_PASSES:
        return GROUP_IMAGE;
    case OPTION_NEGATIVE:
    case OPTION_PROMPT_2:
        return GROUP_TEXT;
    case OPTION_SIZE:
        return GROUP_ENCODE_TEXT | GROUP_BENCH;
    case OPTION_CLIP_SKIP:
    case OPTION_CROP:
    case OPTION_TARGET:
    case OPTION_LORA:
    case OPTION_LORA_MULTIPLIER:
        return GROUP_ENCODE_TEXT;
    case OPTION_NAME:
        return GROUP_LORAS;
    case OPTION_CLIENTS:
    case OPTION_MIX:
    case OPTION_DURATION:
    case OPTION_RATE:
    case OPTION_TRACE:
        return GROUP_BENCH;
    case 'o':
        return GROUP_WORK | GROUP_LORAS;
    default:
        return GROUP_WORK | GROUP_BENCH;
    }
}

static unsigned groups_of_command(const char *command)
{
    if (strcmp(command, "encode") == 0 || strcmp(command, "decode") == 0) {
        return GROUP_ALL | GROUP_WORK | GROUP_IMAGE;
    }
    if (strcmp(command, "text") == 0) {
        return GROUP_ALL | GROUP_WORK | GROUP_TEXT | GROUP_ENCODE_TEXT;
    }
    if (strcmp(command, "tokenize") == 0) return GROUP_ALL | GROUP_WORK | GROUP_TEXT;
    if (strcmp(command, "bench") == 0) return GROUP_ALL | GROUP_BENCH;
    if (strcmp(command, "loras") == 0) return GROUP_ALL | GROUP_LORAS;
    return GROUP_ALL;
}

enum cli_exit cli_usage(const struct cli_options *options, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "luna: %s: ", options->command);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "; see luna --help\n");
    va_end(arguments);
    return EXIT_USAGE;
}

// ---- values

static bool read_number(const char *text, double min, double max, double *out)
{
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(value >= min && value <= max)) return false;
    *out = value;
    return true;
}

static bool read_integer(const char *text, long min, long max, long *out)
{
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < min || value > max) return false;
    *out = value;
    return true;
}

// Two numbers of at most a million or so, "1024x768".
static bool read_pair(const char *text, char separator, uint32_t out[2])
{
    const unsigned long max = 1u << 20;
    char *end = NULL;
    if (text[0] < '0' || text[0] > '9') return false;  // strtoul takes signs and blanks
    unsigned long a = strtoul(text, &end, 10);
    if (*end != separator || end[1] < '0' || end[1] > '9') return false;
    unsigned long b = strtoul(end + 1, &end, 10);
    if (*end != '\0' || a > max || b > max) return false;
    out[0] = (uint32_t)a;
    out[1] = (uint32_t)b;
    return true;
}

static bool read_count(const char *text, uint32_t max, uint32_t *out)
{
    long value = 0;
    if (!read_integer(text, 0, (long)max, &value)) return false;
    *out = (uint32_t)value;
    return true;
}

static bool read_dtype(const char *text, enum dtype *out)
{
    enum dtype dtype = DTYPE_NONE;
    if (strcmp(text, "f32") == 0) dtype = DTYPE_F32;
    if (strcmp(text, "f16") == 0) dtype = DTYPE_F16;
    if (strcmp(text, "bf16") == 0) dtype = DTYPE_BF16;
    *out = dtype;
    return dtype != DTYPE_NONE;
}

static bool read_tiling(const char *text, luna_Tiling *out)
{
    if (strcmp(text, "auto") == 0)
        *out = luna_Tiling_TILING_AUTO;
    else if (strcmp(text, "never") == 0)
        *out = luna_Tiling_TILING_NEVER;
    else if (strcmp(text, "always") == 0)
        *out = luna_Tiling_TILING_ALWAYS;
    else
        return false;
    return true;
}

static bool read_timeout(const char *text, uint32_t *out)
{
    double seconds = 0;
    if (!read_number(text, 0.0, 86400.0, &seconds)) return false;
    *out = (uint32_t)ceil(seconds * 1000.0);
    return true;
}

static bool read_work_option(struct cli_options *out, int id, const char *text)
{
    long value = 0;
    switch (id) {
    case OPTION_DTYPE:
        return read_dtype(text, &out->dtype);
    case OPTION_TILING:
        return read_tiling(text, &out->tiling);
    case OPTION_TILE:
        out->has_tile = true;
        return read_count(text, 1u << 20, &out->tile);
    case OPTION_OVERLAP:
        out->has_overlap = true;
        return read_count(text, 1u << 20, &out->overlap);
    case OPTION_PASSES:
        return read_count(text, 3, &out->passes) && (out->passes == 1 || out->passes == 3);
    case OPTION_SIZE:
        out->has_size = true;
        return read_pair(text, 'x', out->size);
    case OPTION_CROP:
        out->has_crop = true;
        return read_pair(text, ',', out->crop);
    case OPTION_TARGET:
        out->has_target = true;
        return read_pair(text, 'x', out->target);
    case OPTION_LORA_MULTIPLIER:
        return read_number(text, -1e6, 1e6, &out->lora_multiplier);
    case OPTION_LORA:
        if (out->loras_count == CLI_LORAS_MAX) return false;
        out->loras[out->loras_count++] = text;
        return true;
    case OPTION_PRIORITY:
        if (!read_integer(text, -CODEC_PRIORITY_MAX, CODEC_PRIORITY_MAX, &value)) return false;
        out->priority = (int32_t)value;
        return true;
    case OPTION_CLIP_SKIP:
        if (!read_integer(text, -100, 100, &value)) return false;
        out->clip_skip = (int32_t)value;
        return true;
    default:
        return false;
    }
}

static bool read_option(struct cli_options *out, int id, const char *text)
{
    switch (id) {
    case OPTION_CONNECT:
        out->connect = text;
        return true;
    case OPTION_TIMEOUT:
        return read_timeout(text, &out->timeout_ms);
    case OPTION_JSON:
        out->json = true;
        return true;
    case OPTION_PROGRESS:
        out->progress = true;
        return true;
    case OPTION_NO_PROGRESS:
        out->progress = false;
        return true;
    case OPTION_SERVER_KEY:
        out->server_key = text;
        return true;
    case OPTION_KEY:
        out->key = text;
        return true;
    case 'o':
        out->output = text;
        return true;
    case OPTION_MODEL:
        out->model = text;
        return true;
    case OPTION_NEGATIVE:
        out->negative = text;
        return true;
    case OPTION_PROMPT_2:
        out->prompt_2 = text;
        return true;
    case OPTION_NAME:
        out->name = text;
        return true;
    case OPTION_MIX:
        out->mix = text;
        return true;
    case OPTION_TRACE:
        out->trace = text;
        return true;
    case OPTION_CLIENTS:
        return read_count(text, 256, &out->clients) && out->clients > 0;
    case OPTION_DURATION:
        return read_number(text, 0.1, 86400.0, &out->duration_s);
    case OPTION_RATE:
        return read_number(text, 0.0, 1e6, &out->rate);
    default:
        return read_work_option(out, id, text);
    }
}

static const char *option_name(int id)
{
    for (size_t i = 0; long_options[i].name != NULL; i++) {
        if (long_options[i].val == id) return long_options[i].name;
    }
    return "?";
}

bool cli_parse(struct cli_options *out, const char *command, int argc, char **argv)
{
    *out = (struct cli_options){
        .command = command,
        .timeout_ms = CODEC_TIMEOUT_MS_DEFAULT,
        .progress = isatty(STDERR_FILENO) == 1,
        .lora_multiplier = 1.0,
        .clients = 4,
        .duration_s = 10.0,
        .mix = "decode",
    };
    unsigned allowed = groups_of_command(command);
    opterr = 0;
    optind = 1;
    for (int id = 0; (id = getopt_long(argc, argv, ":o:", long_options, NULL)) != -1;) {
        if (id == ':') {
            cli_usage(out, "option %s needs a value", argv[optind - 1]);
            return false;
        }
        if (id == '?') {
            cli_usage(out, "no such option: %s", argv[optind - 1]);
            return false;
        }
        if ((groups_of_option(id) & allowed) == 0) {
            cli_usage(out, "option --%s is not for this command", option_name(id));
            return false;
        }
        if (!read_option(out, id, optarg)) {
            cli_usage(out, "option --%s: \"%s\" is no value for it", option_name(id), optarg);
            return false;
        }
    }
    out->words = argv + optind;
    out->words_count = argc - optind;
    return true;
}
