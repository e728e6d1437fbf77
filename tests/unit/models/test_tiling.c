// Tests of models/vae/tiling.h: the tile plan is ComfyUI's.

#include "tests/test.h"

#include "models/vae/tiling.h"

static struct tiling lay_out(const struct tiling_options *options)
{
    struct tiling tiling = {0};
    struct error error = {0};
    enum status status = tiling_lay_out(&tiling, options, &error);
    if (status != STATUS_OK) fail_msg("%s", error.message);
    return tiling;
}

// Tiles of a square image in three passes.
static uint64_t tiles_of(uint32_t pixels, bool decode, uint32_t overlap)
{
    struct tiling tiling = lay_out(&(struct tiling_options){.decode = decode,
                                                            .factor = 8,
                                                            .h = pixels / 8,
                                                            .w = pixels / 8,
                                                            .tile = 512,
                                                            .overlap = overlap});
    return tiling.tiles;
}

static void tile_counts_are_those_of_comfyui(void **state)
{
    (void)state;
    static const struct {
        uint32_t pixels;
        uint64_t decode_node, decode_fallback, encode;  // 0: not in the specification
    } expected[] = {{512, 7, 7, 0},    {768, 12, 14, 12}, {832, 12, 16, 0},   {1024, 19, 23, 19},
                    {1216, 33, 45, 0}, {1280, 37, 45, 0}, {1536, 48, 60, 48}, {2048, 91, 115, 91}};
    for (uint32_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        uint32_t pixels = expected[i].pixels;
        assert_int_equal(tiles_of(pixels, true, 64), expected[i].decode_node);
        assert_int_equal(tiles_of(pixels, true, 128), expected[i].decode_fallback);
        if (expected[i].encode > 0) {
            assert_int_equal(tiles_of(pixels, false, 64), expected[i].encode);
        }
    }
}

static void the_last_tile_is_cut_off_and_not_moved(void **state)
{
    (void)state;
    struct tiling tiling = lay_out(&(struct tiling_options){
        .decode = true, .factor = 8, .h = 40, .w = 128, .tile = 512, .overlap = 64, .passes = 1});
    static const struct tiling_tile expected[3] = {{.x = 0, .w = 64, .h = 40, .feather = 8},
                                                   {.x = 56, .w = 64, .h = 40, .feather = 8},
                                                   {.x = 112, .w = 16, .h = 40, .feather = 8}};
    assert_int_equal(tiling.passes_count, 1);
    assert_int_equal(tiling.passes[0].rows, 1);
    assert_int_equal(tiling.passes[0].columns, 3);
    for (uint32_t i = 0; i < 3; i++) {
        struct tiling_tile tile = tiling_at(&tiling, 0, 0, i);
        assert_int_equal(tile.y, 0);
        assert_int_equal(tile.x, expected[i].x);
        assert_int_equal(tile.h, expected[i].h);
        assert_int_equal(tile.w, expected[i].w);
        assert_int_equal(tile.feather, expected[i].feather);
    }
}

static void assert_pass(const struct tiling *tiling, uint32_t pass, uint32_t tile_h,
                        uint32_t tile_w)
{
    assert_int_equal(tiling->passes[pass].tile_h, tile_h);
    assert_int_equal(tiling->passes[pass].tile_w, tile_w);
}

static void a_decode_goes_from_tall_over_wide_to_square_tiles(void **state)
{
    (void)state;
    struct tiling tiling =
        lay_out(&(struct tiling_options){.decode = true, .factor = 8, .h = 200, .w = 200});
    assert_int_equal(tiling.overlap, 0);
    assert_pass(&tiling, 0, 128, 32);
    assert_pass(&tiling, 1, 32, 128);
    assert_pass(&tiling, 2, 64, 64);
}

static void an_encode_goes_from_square_over_wide_to_tall_tiles(void **state)
{
    (void)state;
    struct tiling tiling = lay_out(
        &(struct tiling_options){.factor = 8, .h = 200, .w = 200, .overlap = TILING_OVERLAP_UNSET});
    assert_int_equal(tiling.overlap, 8);
    assert_pass(&tiling, 0, 64, 64);
    assert_pass(&tiling, 1, 32, 128);
    assert_pass(&tiling, 2, 128, 32);
}

static void a_pass_whose_tile_covers_the_image_is_one_call_without_a_mask(void **state)
{
    (void)state;
    struct tiling tiling = lay_out(&(struct tiling_options){
        .decode = true, .factor = 8, .h = 64, .w = 64, .tile = 512, .overlap = 64});
    assert_false(tiling.whole);
    assert_false(tiling.passes[0].direct);
    assert_false(tiling.passes[1].direct);
    assert_true(tiling.passes[2].direct);
    assert_int_equal(tiling_at(&tiling, 0, 0, 0).feather, 8);
    assert_int_equal(tiling_at(&tiling, 2, 0, 0).feather, 0);

    tiling = lay_out(&(struct tiling_options){
        .decode = true, .factor = 8, .h = 32, .w = 32, .tile = 512, .overlap = 64});
    assert_true(tiling.whole);
}

static void tiles_cover_every_latent_in_order(void **state)
{
    (void)state;
    for (uint32_t length = 1; length < 90; length++) {
        struct tiling tiling = lay_out(&(struct tiling_options){
            .factor = 4, .h = 7, .w = length, .tile = 64, .overlap = 20, .passes = 1});
        uint32_t covered = 0;
        for (uint32_t i = 0; i < tiling.passes[0].columns; i++) {
            struct tiling_tile tile = tiling_at(&tiling, 0, 0, i);
            assert_true(tile.x <= covered);
            assert_true(tile.x + tile.w > covered);
            assert_true(tile.x == 0 || tile.w > tiling.overlap);
            covered = tile.x + tile.w;
        }
        assert_int_equal(covered, length);
    }
}

static void a_wide_overlap_of_a_decode_becomes_a_quarter_of_the_tile(void **state)
{
    (void)state;
    struct tiling_options options = {
        .decode = true, .factor = 8, .h = 200, .w = 200, .tile = 512, .overlap = 136};
    assert_int_equal(lay_out(&options).overlap, 16);
    options.overlap = 128;
    assert_int_equal(lay_out(&options).overlap, 16);
    options.overlap = 120;
    assert_int_equal(lay_out(&options).overlap, 15);
    options.decode = false;
    options.overlap = 136;
    assert_int_equal(lay_out(&options).overlap, 17);
}

static void sizes_are_taken_down_to_whole_latents(void **state)
{
    (void)state;
    struct tiling tiling = lay_out(&(struct tiling_options){
        .factor = 8, .h = 200, .w = 200, .tile = 519, .overlap = 71, .passes = 1});
    assert_int_equal(tiling.tile, 64);
    assert_int_equal(tiling.overlap, 8);
}

static void an_overlap_that_is_not_said_fits_a_small_tile(void **state)
{
    (void)state;
    struct tiling_options options = {
        .factor = 8, .h = 200, .w = 200, .tile = 64, .overlap = TILING_OVERLAP_UNSET};
    assert_int_equal(lay_out(&options).overlap, 2);
    options.tile = 192;
    assert_int_equal(lay_out(&options).overlap, 8);
}

static void assert_refused(const struct tiling_options *options, const char *message)
{
    struct tiling tiling = {.tiles = 77};
    struct error error = {0};
    assert_int_equal(tiling_lay_out(&tiling, options, &error), STATUS_INVALID_ARGUMENT);
    assert_string_equal(error.message, message);
    assert_int_equal(tiling.tiles, 77);
}

static void sizes_that_cannot_be_are_refused_by_name(void **state)
{
    (void)state;
    struct tiling_options options = {.factor = 8, .h = 200, .w = 200, .tile = 64, .overlap = 64};
    assert_refused(&options, "overlap of 64 is not below the tile of 64");
    options.decode = true;
    assert_refused(&options, "overlap of 64 is not below the tile of 64");
    options = (struct tiling_options){.factor = 8, .h = 9, .w = 9, .tile = 128, .overlap = 64};
    assert_refused(&options, "overlap of 64 is not below 64, the side of the narrowest tile");
    options.passes = 1;
    assert_int_equal(lay_out(&options).overlap, 8);
    options.passes = 2;
    assert_refused(&options, "passes is 2, it may be 1 or 3");
    options = (struct tiling_options){.factor = 8, .h = 9, .w = 9, .tile = 15, .overlap = 0};
    assert_refused(&options, "tile of 15 pixels is below the smallest, 16");
}

static void the_largest_tile_and_image_do_not_overflow(void **state)
{
    (void)state;
    struct tiling tiling = lay_out(&(struct tiling_options){.decode = true,
                                                            .factor = 1,
                                                            .h = UINT32_MAX,
                                                            .w = UINT32_MAX,
                                                            .tile = UINT32_MAX,
                                                            .overlap = 5});
    assert_false(tiling.whole);
    assert_int_equal(tiling.passes[0].tile_h, UINT32_MAX);
    assert_true(tiling.passes[2].direct);
    struct tiling_tile last = tiling_at(&tiling, 0, 0, tiling.passes[0].columns - 1);
    assert_int_equal(last.x + last.w, UINT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tile_counts_are_those_of_comfyui),
        cmocka_unit_test(the_last_tile_is_cut_off_and_not_moved),
        cmocka_unit_test(a_decode_goes_from_tall_over_wide_to_square_tiles),
        cmocka_unit_test(an_encode_goes_from_square_over_wide_to_tall_tiles),
        cmocka_unit_test(a_pass_whose_tile_covers_the_image_is_one_call_without_a_mask),
        cmocka_unit_test(tiles_cover_every_latent_in_order),
        cmocka_unit_test(a_wide_overlap_of_a_decode_becomes_a_quarter_of_the_tile),
        cmocka_unit_test(sizes_are_taken_down_to_whole_latents),
        cmocka_unit_test(an_overlap_that_is_not_said_fits_a_small_tile),
        cmocka_unit_test(sizes_that_cannot_be_are_refused_by_name),
        cmocka_unit_test(the_largest_tile_and_image_do_not_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
