// Feeds every file of the folders and files on its command line to a fuzz target: the way to run a
// corpus without libFuzzer, under any sanitizer. Ends with 1 when there was nothing to feed.

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define FILE_BYTES_MAX (64u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Feeds one file. Returns how many files that was.
static unsigned feed_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    struct stat facts;
    if (file == NULL) return 0;
    unsigned fed = 0;
    uint8_t *data = NULL;
    if (fstat(fileno(file), &facts) == 0 && S_ISREG(facts.st_mode) &&
        facts.st_size <= (off_t)FILE_BYTES_MAX) {
        size_t size = (size_t)facts.st_size;
        data = malloc(size > 0 ? size : 1);  // exact, so that a sanitizer sees what reads on
        if (data != NULL && fread(data, 1, size, file) == size) {
            LLVMFuzzerTestOneInput(data, size);
            fed = 1;
        }
    }
    free(data);
    fclose(file);
    return fed;
}

static unsigned feed(const char *path)
{
    DIR *folder = opendir(path);
    if (folder == NULL) return feed_file(path);
    unsigned fed = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        char name[4096];
        int length = snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (entry->d_name[0] != '.' && length > 0 && (size_t)length < sizeof name) {
            fed += feed_file(name);
        }
    }
    closedir(folder);
    return fed;
}

int main(int argc, char **argv)
{
    unsigned fed = 0;
    for (int i = 1; i < argc; i++) fed += feed(argv[i]);
    printf("%u inputs\n", fed);
    return fed > 0 ? 0 : 1;
}
