// luna.c - the command `luna`: one binary, the daemon and its client.

#include <signal.h>
#include <string.h>

#include "actors/serve.h"
#include "clients/cli/cli.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static const struct {
    const char *name;
    enum cli_exit (*run)(const struct cli_options *options);
    const char *words;  // behind the name, in the help
    const char *what;   // it does
} commands[] = {
    {"encode", command_encode, "IMAGE [-o FILE]", "a picture to a latent"},
    {"decode", command_decode, "LATENT [-o FILE]", "a latent to a picture"},
    {"text", command_text, "PROMPT [--negative TEXT] [-o FILE]", "a prompt to conditioning"},
    {"tokenize", command_tokenize, "PROMPT", "the chunks of every encoder"},
    {"models", command_models, "[list] | register NAME FILE… | load NAME | unload NAME", "models"},
    {"loras", command_loras, "[list] | scan | put | get | pin | unpin | evict | stats", "adapters"},
    {"status", command_status, "", "how the daemon stands"},
    {"top", command_top, "", "the same, live"},
    {"ping", command_ping, "", "whether it answers, and how fast"},
    {"drain", command_drain, "", "finish what runs, take nothing new"},
    {"shutdown", command_shutdown, "", "drain, then end"},
    {"bench", command_bench,
     "[--clients N] [--mix encode,decode,text] [--size WxH] [--duration S] [--rate R] "
     "[--trace FILE]",
     "load, and percentiles"},
};

static void print_help(void)
{
    printf("usage: luna COMMAND [OPTION]… [WORD]…\n\n");
    printf("  %-9s %s\n", "serve",
           "the daemon: [-c FILE] [--set section.key=value]… [--check-config] [--dump-config]");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        printf("  %-9s %s%s(%s)\n", commands[i].name, commands[i].words,
               commands[i].words[0] != '\0' ? " " : "", commands[i].what);
    }
    printf(
        "\nevery client command:\n"
        "  --connect ENDPOINT   tcp://… or ipc://… (else $LUNA_ENDPOINT, the local socket, "
        "tcp://127.0.0.1:19283)\n"
        "  --timeout SECONDS    the request's deadline (120)\n"
        "  --json               machine-readable answer on stdout\n"
        "  --progress, --no-progress\n"
        "  --server-key FILE, --key FILE   CURVE\n"
        "encode, decode, text:\n"
        "  --model NAME, --dtype f32|f16|bf16, --priority N, -o FILE\n"
        "encode, decode:\n"
        "  --tiling auto|never|always, --tile PX, --overlap PX, --passes 3|1\n"
        "text:\n"
        "  --negative TEXT, --prompt-2 TEXT, --clip-skip N, --size WxH, --crop X,Y, --target WxH,\n"
        "  --lora REF[:STRENGTH]… (a name, a hash, or a file), --lora-multiplier X\n"
        "loras:\n"
        "  put FILE [--name NAME], get NAME -o FILE, pin|unpin|evict NAME\n"
        "\nexit status: 0 done, 1 the daemon answered an error, 2 wrong usage, 3 nobody answers, 4 "
        "out of time\n");
}

int main(int argc, char **argv)
{
    int child = serve_child_main(argc, argv);
    if (child >= 0) return child;
    if (argc < 2) {
        fprintf(stderr, "luna: a command is missing; see luna --help\n");
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help();
        return EXIT_DONE;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("luna %s\n", LUNA_VERSION);
        return EXIT_DONE;
    }
    if (strcmp(name, "serve") == 0) return serve_main(argc - 2, argv + 2);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].name, name) != 0) continue;
        for (int word = 2; word < argc; word++) {
            if (strcmp(argv[word], "--") == 0) break;
            if (strcmp(argv[word], "--help") != 0) continue;
            printf("usage: luna %s %s\n%s; see luna --help for the options\n", name,
                   commands[i].words, commands[i].what);
            return EXIT_DONE;
        }
        struct cli_options options;
        if (!cli_parse(&options, name, argc - 1, argv + 1)) return EXIT_USAGE;
        options.stop = &interrupted;
        struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
        sigaction(SIGINT, &action, NULL);
        return (int)commands[i].run(&options);
    }
    fprintf(stderr, "luna: no such command: %s; see luna --help\n", name);
    return EXIT_USAGE;
}
