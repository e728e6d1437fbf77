// image_formats.h - one reader and one writer a format, for image_file.c only.

#ifndef MODELS_FILES_IMAGE_FORMATS_H
#define MODELS_FILES_IMAGE_FORMATS_H

#include "models/files/image_file.h"

// Compares the size that a header claims with the limits and allocates the pixels.
// Errors:    INVALID_ARGUMENT; RESOURCE_EXHAUSTED.
enum status image_allocate(struct image *out, const struct image *header, uint64_t pixels_max,
                           struct error *error);

// *out is freed by the caller whatever happens.
enum status image_png_read(struct image *out, struct bytes file, uint64_t pixels_max,
                           struct error *error);
enum status image_jpeg_read(struct image *out, struct bytes file, uint64_t pixels_max,
                            struct error *error);
enum status image_png_encode(struct bytes *out, const struct image *image, struct error *error);
enum status image_jpeg_encode(struct bytes *out, const struct image *image, struct error *error);

#endif  // MODELS_FILES_IMAGE_FORMATS_H
