// model_store.c - one record a model: its bytes as u32, then a letter with a ModelDefinition.

#include "actors/model_store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "actors/event.h"
#include "messages/letter.h"

#define PATH_BYTES 512u

static luna_Letter letter_of(const struct model_store_entry *entry)
{
    luna_Letter letter = {.which_letter = luna_Letter_model_definition_tag};
    luna_ModelDefinition *definition = &letter.letter.model_definition;
    text_set(definition->name, sizeof definition->name, entry->name);
    text_set(definition->embeddings, sizeof definition->embeddings, entry->order.embeddings);
    for (uint32_t i = 0; i < entry->order.files_count; i++) {
        text_set(definition->files[i], sizeof definition->files[i], entry->order.files[i]);
    }
    definition->files_count = (pb_size_t)entry->order.files_count;
    return letter;
}

static bool write_entry(FILE *file, const struct model_store_entry *entry)
{
    uint8_t buffer[LETTER_BYTES_MAX];
    uint8_t size[4];
    struct codec_buffer encoded = {.data = buffer, .capacity = sizeof buffer};
    const luna_Letter letter = letter_of(entry);
    if (letter_encode(&letter, &encoded, NULL) != STATUS_OK) return false;
    store_u32(size, (uint32_t)encoded.size);
    return fwrite(size, sizeof size, 1, file) == 1 &&
           fwrite(buffer, (size_t)encoded.size, 1, file) == 1;
}

enum status model_store_write(const char *path, const struct model_store_entry *entries,
                              uint32_t count, struct error *error)
{
    assert(path != NULL);
    assert(entries != NULL || count == 0);
    char beside[PATH_BYTES];
    int length = snprintf(beside, sizeof beside, "%s.new", path);
    assert(length > 0 && (size_t)length < sizeof beside);
    unlink(beside);  // of a core that died while it wrote
    int descriptor = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    bool good = file != NULL;
    for (uint32_t i = 0; good && i < count; i++) good = write_entry(file, &entries[i]);
    if (file != NULL) good = fclose(file) == 0 && good;
    if (file == NULL && descriptor >= 0) close(descriptor);
    if (good && rename(beside, path) == 0) return STATUS_OK;
    enum status status = error_set(error, STATUS_INTERNAL, "the list of models was not written: %s",
                                   strerror(errno));
    unlink(beside);
    return status;
}

// False for what is no entry; its files and names are checked again by whoever opens them.
static bool read_entry(FILE *file, uint32_t size, struct model_store_entry *out)
{
    uint8_t buffer[LETTER_BYTES_MAX];
    luna_Letter letter;
    if (size > sizeof buffer || fread(buffer, size, 1, file) != 1) return false;
    if (letter_decode((struct bytes){.data = buffer, .size = size}, &letter, NULL) != STATUS_OK ||
        letter.which_letter != luna_Letter_model_definition_tag) {
        return false;
    }
    const luna_ModelDefinition *definition = &letter.letter.model_definition;
    if (definition->files_count == 0 || definition->files_count > REGISTRY_FILES_MAX) return false;
    if (!codec_name_valid(definition->name)) return false;
    *out = (struct model_store_entry){.order.files_count = definition->files_count};
    text_set(out->name, sizeof out->name, definition->name);
    text_set(out->order.embeddings, sizeof out->order.embeddings, definition->embeddings);
    for (uint32_t i = 0; i < definition->files_count; i++) {
        text_set(out->order.files[i], sizeof out->order.files[i], definition->files[i]);
    }
    return true;
}

enum status model_store_read(const char *path, struct model_store_entry *entries,
                             uint32_t entries_max, uint32_t *count, struct error *error)
{
    assert(path != NULL);
    assert(entries != NULL);
    assert(count != NULL);
    *count = 0;
    int descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0 && errno == ENOENT) return STATUS_OK;
    FILE *file = descriptor >= 0 ? fdopen(descriptor, "rb") : NULL;
    if (file == NULL) {
        enum status status = error_set(error, STATUS_INTERNAL,
                                       "the list of models cannot be read: %s", strerror(errno));
        if (descriptor >= 0) close(descriptor);
        return status;
    }
    enum status status = STATUS_OK;
    uint8_t size[4];
    size_t got = 0;
    while (status == STATUS_OK && *count < entries_max &&
           (got = fread(size, 1, sizeof size, file)) > 0) {
        if (got == sizeof size && read_entry(file, load_u32(size), &entries[*count])) {
            *count += 1;
        } else {
            status = error_set(error, STATUS_INVALID_ARGUMENT,
                               "the list of models is damaged behind its first %u", *count);
        }
    }
    fclose(file);
    return status;
}
