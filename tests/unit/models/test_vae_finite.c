// test_vae_finite.c - a job tells of NaN and infinity that came in and that went out, in whichever
// of its images and tiles they are.

#include "tests/unit/models/vae_kit.h"

#include <math.h>

// Runs a request whose input has one element that is none, which is or is not read.
static void spoil(const struct bench *self, const struct vae_request *request, float *input,
                  uint64_t at, bool is_read)
{
    struct vae_plan plan;
    struct vae_found found;
    float before = input[at];
    input[at] = NAN;
    free(run_and_find(self, request, input, &plan, &found));
    input[at] = before;
    assert_int_equal(found.not_finite_input, is_read);
    assert_int_equal(found.not_finite_output, is_read);
}

static void what_is_not_finite_is_found_in_every_image_and_tile(void **state)
{
    const struct bench *self = *state;
    enum { COUNT = 2 * 4 * 20 * 26 };
    struct vae_request request = decode_request(2, 20, 26);
    float latent[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) latent[i] = sinf((float)i * 0.37f);
    request.output_dtype = DTYPE_U8;  // which cannot say it by itself
    for (int i = 0; i < 2; i++) {
        request.tiling = i == 0 ? VAE_TILING_NEVER : VAE_TILING_ALWAYS;
        request.tile = 24;
        request.overlap = 6;
        spoil(self, &request, latent, 0, true);
        spoil(self, &request, latent, COUNT / 2 + 10 * 26 + 13, true);
        spoil(self, &request, latent, COUNT - 1, true);
        struct vae_plan plan;
        free(run(self, &request, latent, &plan));
        assert_int_equal(plan.tiled, i == 1);
    }
}

static void what_is_cropped_and_alpha_are_not_looked_at(void **state)
{
    const struct bench *self = *state;
    struct vae_request request = encode_request(1, 27, 23);  // a latent is two pixels wide
    request.c = 4;
    float *image = calloc(27 * 23 * 4, sizeof *image);
    assert_non_null(image);
    struct vae_plan plan = plan_of(self, &request);
    assert_int_equal(plan.h, 26);
    assert_int_equal(plan.w, 22);
    for (int i = 0; i < 2; i++) {
        request.tiling = i == 0 ? VAE_TILING_NEVER : VAE_TILING_ALWAYS;
        request.tile = 16;
        request.overlap = 4;
        uint64_t row = 23 * 4;
        uint64_t first = plan.crop_y * row + plan.crop_x * 4;
        uint64_t last = first + 25 * row + 21 * 4;
        spoil(self, &request, image, first, true);
        spoil(self, &request, image, last + 2, true);
        spoil(self, &request, image, first + 3, false);
        spoil(self, &request, image, plan.crop_y == 0 ? 26 * row : 0, false);
        spoil(self, &request, image, plan.crop_x == 0 ? 22 * 4 : 0, false);
    }
    free(image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_finite_is_found_in_every_image_and_tile),
        cmocka_unit_test(what_is_cropped_and_alpha_are_not_looked_at),
    };
    return cmocka_run_group_tests_name("VAE, finite", tests, open_shared, close_shared);
}
