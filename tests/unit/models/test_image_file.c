// Pictures: what is written reads back, every kind of PNG becomes RGB or RGBA, and damaged or huge
// files are refused before their pixels are allocated.

#include "tests/unit/models/files.h"

#include <png.h>

#include "models/files/image_file.h"

#define PIXELS_MAX (1u << 24)

static struct image make_gradient(uint32_t h, uint32_t w, uint32_t c)
{
    struct image image = {.h = h, .w = w, .c = c, .dtype = DTYPE_U8};
    image.bytes = (uint64_t)h * w * c;
    uint8_t *pixels = malloc(image.bytes);
    assert_non_null(pixels);
    for (uint32_t i = 0; i < h * w; i++) {
        for (uint32_t j = 0; j < c; j++) {
            pixels[i * c + j] = (uint8_t)((i % w) * 2 + (i / w) * 3 * (j + 1));
        }
    }
    image.pixels = pixels;
    return image;
}

static void png_is_exact(void **state)
{
    (void)state;
    for (uint32_t c = 3; c <= 4; c++) {
        struct image image = make_gradient(17, 31, c);
        struct image back = {.pixels = NULL};
        struct bytes file = {NULL, 0};
        assert_int_equal(image_encode(&file, &image, IMAGE_PNG, NULL), STATUS_OK);
        assert_int_equal(image_read_bytes(&back, file, 17 * 31, NULL), STATUS_OK);
        assert_int_equal(back.h, 17);
        assert_int_equal(back.w, 31);
        assert_int_equal(back.c, c);
        assert_int_equal(back.dtype, DTYPE_U8);
        assert_int_equal(back.bytes, image.bytes);
        assert_memory_equal(back.pixels, image.pixels, image.bytes);
        free((void *)(uintptr_t)file.data);
        image_free(&image);
        image_free(&back);
    }
}

static void jpeg_is_close(void **state)
{
    (void)state;
    struct image image = make_gradient(24, 40, 3);
    struct image back = {.pixels = NULL};
    char path[64];
    int descriptor = make_file(path);
    assert_int_equal(image_write(descriptor, &image, IMAGE_JPEG, NULL), STATUS_OK);
    close(descriptor);
    assert_int_equal(image_read(&back, path, PIXELS_MAX, NULL), STATUS_OK);
    unlink(path);
    assert_int_equal(back.c, 3);
    assert_int_equal(back.bytes, image.bytes);
    for (uint64_t i = 0; i < image.bytes; i++) {
        int difference = ((uint8_t *)image.pixels)[i] - ((uint8_t *)back.pixels)[i];
        assert_true(abs(difference) <= 12);
    }
    image_free(&image);
    image_free(&back);
}

static void alpha_is_dropped_by_jpeg(void **state)
{
    (void)state;
    struct image image = make_gradient(8, 8, 4);
    struct image back = {.pixels = NULL};
    struct bytes file = {NULL, 0};
    assert_int_equal(image_encode(&file, &image, IMAGE_JPEG, NULL), STATUS_OK);
    assert_int_equal(image_read_bytes(&back, file, PIXELS_MAX, NULL), STATUS_OK);
    assert_int_equal(back.c, 3);
    free((void *)(uintptr_t)file.data);
    image_free(&image);
    image_free(&back);
}

// A PNG of one row in any of the format's kinds.
static struct bytes encode_row(int type, int depth, const uint8_t *row, uint32_t w,
                               bool transparent)
{
    char *data = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&data, &size);
    assert_non_null(file);
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    png_init_io(png, file);
    png_set_IHDR(png, info, w, 1, depth, type, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    const png_color palette[] = {{10, 20, 30}, {40, 50, 60}, {70, 80, 90}, {1, 2, 3}};
    png_byte alpha[] = {255, 7};
    if (type == PNG_COLOR_TYPE_PALETTE) png_set_PLTE(png, info, palette, 4);
    if (transparent) png_set_tRNS(png, info, alpha, 2, NULL);
    png_write_info(png, info);
    png_write_row(png, row);
    png_write_end(png, info);
    png_destroy_write_struct(&png, &info);
    fclose(file);
    return (struct bytes){data, size};
}

static struct image read_row(int type, int depth, const uint8_t *row, uint32_t w, bool transparent)
{
    struct image image = {.pixels = NULL};
    struct error error = {0};
    struct bytes file = encode_row(type, depth, row, w, transparent);
    if (image_read_bytes(&image, file, PIXELS_MAX, &error) != STATUS_OK)
        fail_msg("%s", error.message);
    free((void *)(uintptr_t)file.data);
    return image;
}

static void gray_palette_and_alpha_become_rgb_or_rgba(void **state)
{
    (void)state;
    const uint8_t gray[] = {0, 128, 255};
    struct image image = read_row(PNG_COLOR_TYPE_GRAY, 8, gray, 3, false);
    const uint8_t gray_wanted[] = {0, 0, 0, 128, 128, 128, 255, 255, 255};
    assert_int_equal(image.c, 3);
    assert_memory_equal(image.pixels, gray_wanted, sizeof gray_wanted);
    image_free(&image);

    const uint8_t bits[] = {0xa0};
    image = read_row(PNG_COLOR_TYPE_GRAY, 1, bits, 3, false);
    const uint8_t bits_wanted[] = {255, 255, 255, 0, 0, 0, 255, 255, 255};
    assert_memory_equal(image.pixels, bits_wanted, sizeof bits_wanted);
    image_free(&image);

    const uint8_t gray_alpha[] = {9, 100};
    image = read_row(PNG_COLOR_TYPE_GRAY_ALPHA, 8, gray_alpha, 1, false);
    const uint8_t gray_alpha_wanted[] = {9, 9, 9, 100};
    assert_int_equal(image.c, 4);
    assert_memory_equal(image.pixels, gray_alpha_wanted, sizeof gray_alpha_wanted);
    image_free(&image);

    const uint8_t indices[] = {0x1b};  // 0 1 2 3, two bits each
    image = read_row(PNG_COLOR_TYPE_PALETTE, 2, indices, 4, false);
    const uint8_t palette_wanted[] = {10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3};
    assert_memory_equal(image.pixels, palette_wanted, sizeof palette_wanted);
    image_free(&image);

    image = read_row(PNG_COLOR_TYPE_PALETTE, 2, indices, 4, true);
    const uint8_t clear_wanted[] = {10, 20, 30, 255, 40, 50, 60, 7, 70, 80, 90, 255, 1, 2, 3, 255};
    assert_int_equal(image.c, 4);
    assert_memory_equal(image.pixels, clear_wanted, sizeof clear_wanted);
    image_free(&image);
}

static void sixteen_bits_become_floats(void **state)
{
    (void)state;
    const uint8_t row[] = {0xff, 0xff, 0x80, 0x00, 0x00, 0x01, 0x12, 0x34, 0, 0, 0xff, 0xfe};
    struct image image = read_row(PNG_COLOR_TYPE_RGB, 16, row, 2, false);
    const float *pixels = image.pixels;
    const int wanted[] = {65535, 32768, 1, 0x1234, 0, 65534};
    assert_int_equal(image.dtype, DTYPE_F32);
    assert_int_equal(image.c, 3);
    for (int i = 0; i < 6; i++) assert_true(pixels[i] == (float)wanted[i] / 65535.0f);
    image_free(&image);
}

static void a_picture_above_the_limit_is_refused_by_its_header(void **state)
{
    (void)state;
    struct image image = make_gradient(10, 10, 3);
    for (int format = IMAGE_PNG; format <= IMAGE_JPEG; format++) {
        struct image back = {.pixels = NULL};
        struct bytes file = {NULL, 0};
        struct error error = {0};
        assert_int_equal(image_encode(&file, &image, (enum image_format)format, NULL), STATUS_OK);
        assert_int_equal(image_read_bytes(&back, file, 99, &error), STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(error.message, "10 x 10 pixels, at most 99"));
        assert_null(back.pixels);
        free((void *)(uintptr_t)file.data);
    }
    image_free(&image);
}

static void a_picture_cut_anywhere_is_refused(void **state)
{
    (void)state;
    struct image image = make_gradient(16, 16, 3);
    for (int format = IMAGE_PNG; format <= IMAGE_JPEG; format++) {
        struct bytes file = {NULL, 0};
        assert_int_equal(image_encode(&file, &image, (enum image_format)format, NULL), STATUS_OK);
        for (uint64_t cut = 0; cut < file.size; cut++) {
            struct image back = {.pixels = NULL};
            uint8_t *copy = malloc(cut + 1);  // exact, so that a sanitizer sees what reads on
            memcpy(copy, file.data, cut);
            enum status status =
                image_read_bytes(&back, (struct bytes){copy, cut}, PIXELS_MAX, NULL);
            if (status == STATUS_OK) fail_msg("format %d cut at %d", format, (int)cut);
            assert_int_equal(status, STATUS_INVALID_ARGUMENT);
            free(copy);
        }
        free((void *)(uintptr_t)file.data);
    }
    image_free(&image);
}

static void what_is_no_picture_is_refused(void **state)
{
    (void)state;
    struct error error = {0};
    struct image back = {.pixels = NULL};
    assert_int_equal(image_read(&back, GOLDEN "good.pt", PIXELS_MAX, &error),
                     STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, "file \"good.pt\": it is neither a PNG nor a JPEG");
    assert_int_equal(image_read(&back, GOLDEN "nothing.png", PIXELS_MAX, &error), STATUS_NOT_FOUND);
}

static void what_cannot_be_written_is_refused(void **state)
{
    (void)state;
    struct bytes file = {NULL, 0};
    const struct image floats = {.h = 1, .w = 1, .c = 3, .dtype = DTYPE_F32};
    const struct image gray = {.h = 1, .w = 1, .c = 1, .dtype = DTYPE_U8};
    const struct image none = {.h = 0, .w = 1, .c = 3, .dtype = DTYPE_U8};
    assert_int_equal(image_encode(&file, &floats, IMAGE_PNG, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(image_encode(&file, &gray, IMAGE_PNG, NULL), STATUS_INVALID_ARGUMENT);
    assert_int_equal(image_encode(&file, &none, IMAGE_JPEG, NULL), STATUS_INVALID_ARGUMENT);
}

static void the_demo_picture_reads(void **state)
{
    (void)state;
    struct image image = {.pixels = NULL};
    assert_int_equal(image_read(&image, LUNA_SOURCE_DIR "/conf/demo/picture.png", PIXELS_MAX, NULL),
                     STATUS_OK);
    assert_int_equal(image.w, 384);
    assert_int_equal(image.h, 256);
    assert_int_equal(image.c, 3);
    image_free(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(png_is_exact),
        cmocka_unit_test(jpeg_is_close),
        cmocka_unit_test(alpha_is_dropped_by_jpeg),
        cmocka_unit_test(gray_palette_and_alpha_become_rgb_or_rgba),
        cmocka_unit_test(sixteen_bits_become_floats),
        cmocka_unit_test(a_picture_above_the_limit_is_refused_by_its_header),
        cmocka_unit_test(a_picture_cut_anywhere_is_refused),
        cmocka_unit_test(what_is_no_picture_is_refused),
        cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(the_demo_picture_reads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
