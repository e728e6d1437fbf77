// image_jpeg.c - JPEG through libjpeg-turbo.
//
// libjpeg reports errors by a callback that must not return. As in image_png.c, what must survive
// the longjmp lives in a struct of the caller of setjmp.

#include <assert.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#include "models/files/image_formats.h"

#define QUALITY 95
#define MEMORY_BYTES_MAX (1l << 30)  // of libjpeg itself; progressive files keep coefficients
#define SCANS_MAX 200                // of a progressive file: each is a pass over all coefficients

struct failure {
    struct jpeg_error_mgr manager;  // first: libjpeg hands it back
    jmp_buf jump;                   // where to go
    char message[JMSG_LENGTH_MAX];  // of the first error
};

static void leave(j_common_ptr jpeg)
{
    struct failure *failure = (struct failure *)(void *)jpeg->err;
    jpeg->err->format_message(jpeg, failure->message);
    longjmp(failure->jump, 1);
}

// Warnings (cut or damaged data) are errors: a picture with a gray half is no picture.
static void emit(j_common_ptr jpeg, int level)
{
    if (level < 0) leave(jpeg);
}

static struct jpeg_error_mgr *failure_begin(struct failure *self)
{
    jpeg_std_error(&self->manager);
    self->manager.error_exit = leave;
    self->manager.emit_message = emit;
    return &self->manager;
}

struct reading {
    struct jpeg_decompress_struct jpeg;  // libjpeg's reader
    struct jpeg_progress_mgr progress;   // counts scans
    struct failure failure;              // where its errors go
};

static void count_scans(j_common_ptr jpeg)
{
    struct reading *self = (struct reading *)(void *)jpeg;
    if (self->jpeg.input_scan_number <= SCANS_MAX) return;
    snprintf(self->failure.message, sizeof self->failure.message, "more than %d scans", SCANS_MAX);
    longjmp(self->failure.jump, 1);
}

// The part that libjpeg may leave by longjmp.
static enum status read_guarded(struct reading *self, struct image *out, struct bytes file,
                                uint64_t pixels_max, struct error *error)
{
    struct jpeg_decompress_struct *jpeg = &self->jpeg;
    if (setjmp(self->failure.jump) != 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "JPEG: %s", self->failure.message);
    }
    jpeg_create_decompress(jpeg);
    jpeg->mem->max_memory_to_use = MEMORY_BYTES_MAX;
    self->progress.progress_monitor = count_scans;
    jpeg->progress = &self->progress;
    jpeg_mem_src(jpeg, file.data, file.size);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->num_components != 1 && jpeg->num_components != 3) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "JPEG: %d colour components, supported "
                         "are 1 and 3",
                         jpeg->num_components);
    }
    struct image header = {
        .h = jpeg->image_height, .w = jpeg->image_width, .c = 3, .dtype = DTYPE_U8};
    enum status status = image_allocate(out, &header, pixels_max, error);
    if (status != STATUS_OK) return status;
    jpeg->out_color_space = JCS_RGB;
    jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = (uint8_t *)out->pixels + (uint64_t)jpeg->output_scanline * out->w * 3;
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_decompress(jpeg);
    return STATUS_OK;
}

enum status image_jpeg_read(struct image *out, struct bytes file, uint64_t pixels_max,
                            struct error *error)
{
    assert(out != NULL);
    struct reading *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a JPEG");
    self->jpeg.err = failure_begin(&self->failure);
    enum status status = read_guarded(self, out, file, pixels_max, error);
    jpeg_destroy_decompress(&self->jpeg);
    free(self);
    return status;
}

struct writing {
    struct jpeg_compress_struct jpeg;  // libjpeg's writer
    struct failure failure;            // where its errors go
    unsigned char *file;               // libjpeg's, by malloc
    unsigned long file_bytes;          // of file
};

static enum status write_guarded(struct writing *self, const struct image *image,
                                 struct error *error)
{
    struct jpeg_compress_struct *jpeg = &self->jpeg;
    if (setjmp(self->failure.jump) != 0) {
        return error_set(error, STATUS_INTERNAL, "JPEG: %s", self->failure.message);
    }
    jpeg_create_compress(jpeg);
    jpeg_mem_dest(jpeg, &self->file, &self->file_bytes);
    jpeg->image_width = image->w;
    jpeg->image_height = image->h;
    jpeg->input_components = (int)image->c;
    jpeg->in_color_space = image->c == 4 ? JCS_EXT_RGBX : JCS_RGB;
    jpeg_set_defaults(jpeg);
    jpeg_set_quality(jpeg, QUALITY, TRUE);
    jpeg->comp_info[0].h_samp_factor = 1;
    jpeg->comp_info[0].v_samp_factor = 1;
    jpeg_start_compress(jpeg, TRUE);
    while (jpeg->next_scanline < jpeg->image_height) {
        JSAMPROW row =
            (uint8_t *)image->pixels + (uint64_t)jpeg->next_scanline * image->w * image->c;
        jpeg_write_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_compress(jpeg);
    return STATUS_OK;
}

enum status image_jpeg_encode(struct bytes *out, const struct image *image, struct error *error)
{
    assert(out != NULL);
    struct writing *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a JPEG");
    self->jpeg.err = failure_begin(&self->failure);
    enum status status = write_guarded(self, image, error);
    jpeg_destroy_compress(&self->jpeg);
    if (status == STATUS_OK) {
        *out = (struct bytes){self->file, self->file_bytes};
    } else {
        free(self->file);
    }
    free(self);
    return status;
}
