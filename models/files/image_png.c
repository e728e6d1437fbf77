// image_png.c - PNG through libpng.
//
// libpng reports errors by longjmp. Everything that must survive one lives in a struct that the
// caller of setjmp owns and frees afterwards: no local variable changes between the two.

#include <assert.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <png.h>

#include "models/files/image_formats.h"

struct reading {
    png_structp png;      // libpng's reader
    png_infop info;       // and its facts
    struct bytes left;    // of the file
    struct image *image;  // what is read
    png_bytepp rows;      // where each row goes
    char message[160];    // of the first error
};

static void note_error(png_structp png, png_const_charp text)
{
    char *message = png_get_error_ptr(png);
    strncpy(message, text, 159);
    message[159] = '\0';
    longjmp(png_jmpbuf(png), 1);
}

static void ignore_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static void read_bytes(png_structp png, png_bytep out, size_t count)
{
    struct bytes *left = png_get_io_ptr(png);
    if (count > left->size) png_error(png, "the file ends too early");
    memcpy(out, left->data, count);
    left->data = (const uint8_t *)left->data + count;
    left->size -= count;
}

// Asks libpng for 8 or 16 bits of RGB or RGBA, whatever the file has.
static struct image ask_for_rgb(struct reading *self)
{
    int type = png_get_color_type(self->png, self->info);
    bool transparent = png_get_valid(self->png, self->info, PNG_INFO_tRNS) != 0;
    int depth = png_get_bit_depth(self->png, self->info);
    png_set_expand(self->png);  // palette, 1 to 4 bits, and transparent colours
    png_set_gray_to_rgb(self->png);
    if (depth == 16) png_set_swap(self->png);
    png_set_interlace_handling(self->png);
    return (struct image){
        .h = png_get_image_height(self->png, self->info),
        .w = png_get_image_width(self->png, self->info),
        .c = (type & PNG_COLOR_MASK_ALPHA) != 0 || transparent ? 4 : 3,
        .dtype = depth == 16 ? DTYPE_F32 : DTYPE_U8,
    };
}

// 16 bits: rows come as they are and become floats from the last element to the first, in place.
static void widen_row(float *row, uint64_t count)
{
    for (uint64_t i = count; i-- > 0;) {
        uint16_t value = 0;
        memcpy(&value, (const uint8_t *)row + 2 * i, sizeof value);
        row[i] = (float)value / 65535.0f;
    }
}

static enum status read_rows(struct reading *self, struct error *error)
{
    const struct image *image = self->image;
    uint64_t row_bytes = image->bytes / image->h;
    uint64_t file_row_bytes = png_get_rowbytes(self->png, self->info);
    uint64_t elements = (uint64_t)image->w * image->c;
    if (file_row_bytes != elements * (image->dtype == DTYPE_U8 ? 1 : 2)) {
        return error_set(error, STATUS_INTERNAL, "the PNG's rows have %llu bytes",
                         (unsigned long long)file_row_bytes);
    }
    self->rows = malloc(image->h * sizeof *self->rows);
    if (self->rows == NULL) {
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for rows");
    }
    for (uint64_t y = 0; y < image->h; y++) {
        self->rows[y] = (png_bytep)image->pixels + y * row_bytes;
    }
    png_read_image(self->png, self->rows);
    png_read_end(self->png, NULL);
    if (image->dtype == DTYPE_U8) return STATUS_OK;
    for (uint64_t y = 0; y < image->h; y++) widen_row((float *)(void *)self->rows[y], elements);
    return STATUS_OK;
}

// The part that libpng may leave by longjmp.
static enum status read_guarded(struct reading *self, uint64_t pixels_max, struct error *error)
{
    if (setjmp(png_jmpbuf(self->png)) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "PNG: %s", self->message);
    }
    png_set_read_fn(self->png, &self->left, read_bytes);
    png_set_user_limits(self->png, IMAGE_SIDE_MAX, IMAGE_SIDE_MAX);
    png_set_chunk_malloc_max(self->png, 8u << 20);
    png_read_info(self->png, self->info);
    struct image header = ask_for_rgb(self);
    enum status status = image_allocate(self->image, &header, pixels_max, error);
    if (status != STATUS_OK) return status;
    png_read_update_info(self->png, self->info);
    return read_rows(self, error);
}

enum status image_png_read(struct image *out, struct bytes file, uint64_t pixels_max,
                           struct error *error)
{
    assert(out != NULL);
    struct reading self = {.left = file, .image = out};
    enum status status = STATUS_RESOURCE_EXHAUSTED;
    self.png =
        png_create_read_struct(PNG_LIBPNG_VER_STRING, self.message, note_error, ignore_warning);
    if (self.png != NULL) self.info = png_create_info_struct(self.png);
    if (self.info != NULL) {
        status = read_guarded(&self, pixels_max, error);
    } else {
        error_set(error, status, "no memory for a PNG");
    }
    png_destroy_read_struct(&self.png, &self.info, NULL);
    free(self.rows);
    return status;
}

enum status image_png_encode(struct bytes *out, const struct image *image, struct error *error)
{
    assert(out != NULL);
    png_image png = {.version = PNG_IMAGE_VERSION,
                     .width = image->w,
                     .height = image->h,
                     .format = image->c == 4 ? PNG_FORMAT_RGBA : PNG_FORMAT_RGB};
    png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(png);
    void *memory = malloc(bytes);
    if (memory == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a PNG");
    if (png_image_write_to_memory(&png, memory, &bytes, 0, image->pixels, 0, NULL) == 0) {
        free(memory);
        return error_set(error, STATUS_INTERNAL, "PNG: %s", png.message);
    }
    *out = (struct bytes){memory, bytes};
    return STATUS_OK;
}
