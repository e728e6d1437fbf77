// image_file.c - picks the format by content, and checks sizes before anything is allocated.

#include "models/files/image_file.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "models/files/file_map.h"
#include "models/files/image_formats.h"

#define FILE_BYTES_MAX (1u << 30)

enum status image_allocate(struct image *out, const struct image *header, uint64_t pixels_max,
                           struct error *error)
{
    assert(out != NULL);
    assert(header->c == 3 || header->c == 4);
    uint64_t pixels = (uint64_t)header->h * header->w;
    if (header->h == 0 || header->w == 0 || header->h > IMAGE_SIDE_MAX ||
        header->w > IMAGE_SIDE_MAX || pixels > pixels_max) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "the picture has %u x %u pixels, at most %llu are allowed", header->w,
                         header->h, (unsigned long long)pixels_max);
    }
    uint64_t bytes = pixels * header->c * dtype_bytes(header->dtype);
    void *memory = malloc(bytes);
    if (memory == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %u x %u pixels",
                         header->w, header->h);
    }
    *out = *header;
    out->bytes = bytes;
    out->pixels = memory;
    return STATUS_OK;
}

enum status image_read_bytes(struct image *out, struct bytes file, uint64_t pixels_max,
                             struct error *error)
{
    assert(out != NULL);
    assert(file.data != NULL || file.size == 0);
    struct image image = {.pixels = NULL};
    enum status status = STATUS_OK;
    if (file.size >= 8 && memcmp(file.data, "\x89PNG\r\n\x1a\n", 8) == 0) {
        status = image_png_read(&image, file, pixels_max, error);
    } else if (file.size >= 3 && memcmp(file.data, "\xff\xd8\xff", 3) == 0) {
        status = image_jpeg_read(&image, file, pixels_max, error);
    } else {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "it is neither a PNG nor a JPEG");
    }
    if (status == STATUS_OK) {
        *out = image;
        image.pixels = NULL;
    }
    image_free(&image);
    return status;
}

enum status image_read(struct image *out, const char *path, uint64_t pixels_max,
                       struct error *error)
{
    assert(out != NULL);
    assert(path != NULL);
    struct file_map map = FILE_MAP_NONE;
    uint8_t *copy = NULL;
    enum status status = file_map_open(&map, path, error);
    if (status != STATUS_OK) return status;
    if (map.bytes > FILE_BYTES_MAX) {
        status = error_set(error, STATUS_INVALID_ARGUMENT, "it has %llu bytes, at most %u",
                           (unsigned long long)map.bytes, FILE_BYTES_MAX);
    } else if ((copy = malloc(map.bytes)) == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for %llu bytes",
                           (unsigned long long)map.bytes);
    }
    if (status == STATUS_OK) status = file_map_read(&map, 0, copy, map.bytes, error);
    if (status == STATUS_OK) {
        status = image_read_bytes(out, (struct bytes){copy, map.bytes}, pixels_max, error);
    }
    if (status != STATUS_OK) error_prefix(error, "file \"%.100s\"", file_name(path));
    free(copy);
    file_map_close(&map);
    return status;
}

void image_free(struct image *self)
{
    assert(self != NULL);
    free(self->pixels);
    *self = (struct image){.pixels = NULL};
}

enum status image_encode(struct bytes *out, const struct image *image, enum image_format format,
                         struct error *error)
{
    assert(out != NULL);
    assert(image != NULL);
    if (image->dtype != DTYPE_U8 || (image->c != 3 && image->c != 4) || image->h == 0 ||
        image->w == 0 || image->h > IMAGE_SIDE_MAX || image->w > IMAGE_SIDE_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a picture of %u x %u x %u %s cannot be written", image->h, image->w,
                         image->c, dtype_name(image->dtype));
    }
    assert(image->bytes == (uint64_t)image->h * image->w * image->c);
    return format == IMAGE_PNG ? image_png_encode(out, image, error)
                               : image_jpeg_encode(out, image, error);
}

enum status image_write(int descriptor, const struct image *image, enum image_format format,
                        struct error *error)
{
    assert(descriptor >= 0);
    struct bytes file = {NULL, 0};
    enum status status = image_encode(&file, image, format, error);
    const uint8_t *at = file.data;
    for (uint64_t left = file.size; status == STATUS_OK && left > 0;) {
        ssize_t count = write(descriptor, at, left);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            status = error_set(error, STATUS_INTERNAL, "write: %s", strerror(errno));
            break;
        }
        at += count;
        left -= (uint64_t)count;
    }
    free((void *)(uintptr_t)file.data);
    return status;
}
