// Which devices get an executor: what is named, what was found, and what does not go together.

#include "actors/devices.h"

#include "tests/test.h"

struct choice {
    struct config config;      // with the defaults of a file that says nothing
    struct device_list named;  // by it
    struct device_list out;    // what is to run
    struct error error;        // why not
};

static enum status choose(struct choice *self, const luna_GpuNotice *found)
{
    if (self->config.service.precision == PRECISION_INHERIT) {
        self->config.service.precision = PRECISION_AUTO;
    }
    assert_int_equal(devices_named(&self->config, &self->named, &self->error), STATUS_OK);
    return devices_choose(&self->config, &self->named, found, &self->out, &self->error);
}

static void name(struct config_list *list, const char *device)
{
    list->items[list->count++] = device;
}

static const luna_GpuNotice nothing = {.message = "there is no NVIDIA driver"};
static const luna_GpuNotice two_of_three = {
    .count = 3, .usable = 5, .message = "cuda:1: Old Card has compute capability 6.1"};

static void a_machine_without_gpus_computes_on_its_processor(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    assert_int_equal(choose(&self, &nothing), STATUS_OK);
    assert_true(devices_need_probe(&self.named));
    assert_int_equal(self.out.count, 1);
    assert_string_equal(self.out.names[0], "cpu");
}

static void auto_takes_every_gpu_that_our_kernels_run_on_and_not_the_processor(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    assert_int_equal(choose(&self, &two_of_three), STATUS_OK);
    assert_int_equal(self.out.count, 2);
    assert_string_equal(self.out.names[0], "cuda:0");
    assert_string_equal(self.out.names[1], "cuda:2");
}

static void a_processor_that_is_named_asks_nobody_for_gpus(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    name(&self.config.service.devices, "cpu");
    assert_int_equal(choose(&self, &(luna_GpuNotice){.unasked = true}), STATUS_OK);
    assert_false(devices_need_probe(&self.named));
    assert_int_equal(self.out.count, 1);
}

static void devices_of_the_groups_are_run_once_each(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    name(&self.config.service.devices, "cuda:0");
    name(&self.config.service.vae_devices, "cuda:0");
    name(&self.config.service.vae_devices, "cuda:2");
    name(&self.config.service.clip_devices, "cpu");
    assert_int_equal(choose(&self, &two_of_three), STATUS_OK);
    assert_int_equal(self.out.count, 3);
    assert_string_equal(self.out.names[1], "cuda:2");
    assert_string_equal(self.out.names[2], "cpu");
}

static void a_named_gpu_that_cannot_be_used_is_refused_by_name(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    name(&self.config.service.devices, "cuda:1");
    assert_int_equal(choose(&self, &nothing), STATUS_UNAVAILABLE);
    assert_string_equal(self.error.message,
                        "device \"cuda:1\" cannot be used: there is no NVIDIA driver");
    assert_int_equal(choose(&self, &two_of_three), STATUS_UNAVAILABLE);
    assert_non_null(strstr(self.error.message, "compute capability 6.1"));
    self.config.service.devices.items[0] = "cuda:3";
    assert_int_equal(choose(&self, &two_of_three), STATUS_NOT_FOUND);
    assert_string_equal(self.error.message,
                        "there is no device \"cuda:3\": the last CUDA device is cuda:2");
}

static void a_processor_has_no_precision_but_its_own(void **state)
{
    (void)state;
    struct choice self = {.named = {.count = 0}};
    self.config.service.precision = PRECISION_BF16;
    assert_int_equal(choose(&self, &nothing), STATUS_FAILED_PRECONDITION);
    self.config.service.precision = PRECISION_F32;
    assert_int_equal(choose(&self, &nothing), STATUS_OK);
    // What the processor does not serve may be as it likes.
    self.config.service.vae_precision = PRECISION_F16;
    name(&self.config.service.vae_devices, "cuda:0");
    name(&self.config.service.clip_devices, "cpu");
    assert_int_equal(choose(&self, &two_of_three), STATUS_OK);
}

static void more_devices_than_a_daemon_may_have_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4",
                                        "cuda:5", "cuda:6", "cuda:7", "cuda:8"};
    struct choice self = {.named = {.count = 0}};
    for (size_t i = 0; i < 9; i++) name(&self.config.service.devices, names[i]);
    assert_int_equal(devices_named(&self.config, &self.named, &self.error),
                     STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(self.error.message, "cuda:8"));
    const luna_GpuNotice many = {.count = 64, .usable = UINT64_MAX};
    self.config.service.devices.count = 0;
    assert_int_equal(choose(&self, &many), STATUS_OK);
    assert_int_equal(self.out.count, DEVICE_TABLE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_without_gpus_computes_on_its_processor),
        cmocka_unit_test(auto_takes_every_gpu_that_our_kernels_run_on_and_not_the_processor),
        cmocka_unit_test(a_processor_that_is_named_asks_nobody_for_gpus),
        cmocka_unit_test(devices_of_the_groups_are_run_once_each),
        cmocka_unit_test(a_named_gpu_that_cannot_be_used_is_refused_by_name),
        cmocka_unit_test(a_processor_has_no_precision_but_its_own),
        cmocka_unit_test(more_devices_than_a_daemon_may_have_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
