// image_file.h - PNG and JPEG files to pixels and back.

#ifndef MODELS_FILES_IMAGE_FILE_H
#define MODELS_FILES_IMAGE_FILE_H

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/error.h"

// The longest side that is read or written; JPEG's own limit is 65,500.
#define IMAGE_SIDE_MAX 65500u

struct image {
    uint32_t h, w;     // pixels
    uint32_t c;        // 3, or 4 with alpha (not premultiplied)
    enum dtype dtype;  // U8; F32 from 0 to 1 for a PNG of 16 bits
    uint64_t bytes;    // of pixels: h * w * c elements
    void *pixels;      // [h,w,c], owned
};

enum image_format { IMAGE_PNG, IMAGE_JPEG };

// Reads a picture, whatever its suffix says: PNG (gray, palette and transparency become RGB or
// RGBA; no gamma is applied) or JPEG (gray and YCbCr become RGB; CMYK is refused; orientation in
// EXIF is ignored). The header's size is compared with pixels_max before any pixel is allocated.
//
// Ownership: on success the caller ends *out with image_free.
// Errors:    INVALID_ARGUMENT says what is wrong with the picture, or its size and the limit;
//            NOT_FOUND; PERMISSION_DENIED; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status image_read(struct image *out, const char *path, uint64_t pixels_max,
                       struct error *error);

// The same for a file's bytes in memory.
// Thread:    any.
enum status image_read_bytes(struct image *out, struct bytes file, uint64_t pixels_max,
                             struct error *error);

// Frees the pixels. Allowed on an image of zeros and twice.
// Thread:    any.
void image_free(struct image *self);

// Encodes a picture of 8 bits with 3 or 4 channels. JPEG: quality 95, 4:4:4, alpha is dropped.
//
// Ownership: on success the caller frees out->data with free().
// Errors:    INVALID_ARGUMENT for sizes, channels or dtype out of range; RESOURCE_EXHAUSTED.
// Thread:    any.
enum status image_encode(struct bytes *out, const struct image *image, enum image_format format,
                         struct error *error);

// Encodes and writes to a descriptor.
// Errors:    those of image_encode; INTERNAL names what write(2) said.
// Thread:    any.
enum status image_write(int descriptor, const struct image *image, enum image_format format,
                        struct error *error);

#endif  // MODELS_FILES_IMAGE_FILE_H
