// gpu_oom_test.c - gpu_oom.so in front of a driver of no card: what the CUDA runtime would get from
// it. Preload gpu_oom.so; the argument is fake_driver.so.

#include "tests/test.h"

#include <dlfcn.h>
#include <string.h>

struct names {
    int (*get)(const char *name, void **out, int version, uint64_t flags, int *status);
    int (*allocate)(uint64_t *out, size_t bytes);
    int (*release)(uint64_t memory);
    int (*allocate_host)(void **out, size_t bytes, unsigned flags);
    int (*release_host)(void *memory);
    uint64_t (*arm)(uint64_t fail_at);
    uint64_t (*calls)(uint64_t ignored);
    uint64_t (*held)(uint64_t ignored);
    uint64_t (*fake_allocations)(void);
};

static void find(void *out, void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) fail_msg("no %s", name);
    memcpy(out, &symbol, sizeof symbol);
}

// As the runtime asks: one function by name, the others by that.
static struct names ask(const char *fake_path, const char *first, int version)
{
    struct names found;
    int status = 0;
    void *library = dlopen(fake_path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fail_msg("%s", dlerror());
    find(&found.get, library, first);
    find(&found.fake_allocations, library, "fake_allocations");
    find(&found.arm, RTLD_DEFAULT, "gpu_oom_arm");
    find(&found.calls, RTLD_DEFAULT, "gpu_oom_calls");
    find(&found.held, RTLD_DEFAULT, "gpu_oom_held");
    void *again = NULL;
    assert_int_equal(found.get("cuGetProcAddress", &again, version, 0, &status), 0);
    memcpy(&found.get, &again, sizeof again);
    void *symbols[4] = {NULL};
    static const char *const names[4] = {"cuMemAlloc", "cuMemFree", "cuMemHostAlloc",
                                         "cuMemFreeHost"};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(found.get(names[i], &symbols[i], 3020, 0, &status), 0);
    }
    memcpy(&found.allocate, &symbols[0], sizeof symbols[0]);
    memcpy(&found.release, &symbols[1], sizeof symbols[1]);
    memcpy(&found.allocate_host, &symbols[2], sizeof symbols[2]);
    memcpy(&found.release_host, &symbols[3], sizeof symbols[3]);
    return found;
}

static void the_nth_allocation_fails_and_the_driver_does_not_hear_of_it(void **state)
{
    struct names names = ask(*state, "cuGetProcAddress_v2", 12000);
    uint64_t memory = 0;
    void *host = NULL;
    names.arm(3);
    uint64_t before = names.fake_allocations();
    assert_int_equal(names.allocate(&memory, 5), 0);
    assert_int_equal(memory, 6);
    assert_int_equal(names.allocate_host(&host, 5, 0), 0);
    assert_int_equal(names.allocate(&memory, 7), 2);
    assert_int_equal(memory, 6);
    assert_int_equal(names.allocate(&memory, 8), 0);
    assert_int_equal(names.calls(0), 4);
    assert_int_equal(names.fake_allocations(), before + 3);
    assert_int_equal(names.held(0), 3);
    assert_int_equal(names.release(memory), 0);
    assert_int_equal(names.release(13), 1);
    assert_int_equal(names.release_host(host), 0);
    assert_int_equal(names.release(6), 0);
    assert_int_equal(names.held(0), 0);
}

static void what_takes_no_memory_is_the_drivers_own(void **state)
{
    struct names names = ask(*state, "cuGetProcAddress_v2", 12000);
    int (*init)(unsigned flags) = NULL;
    void *symbol = NULL;
    int status = 0;
    assert_int_equal(names.get("cuInit", &symbol, 2000, 0, &status), 0);
    memcpy(&init, &symbol, sizeof symbol);
    assert_int_equal(init(5), 82);
    assert_int_equal(names.get("cuNothing", &symbol, 2000, 0, &status), 500);
}

static void the_variant_of_a_stream_per_thread_is_left_alone(void **state)
{
    struct names names = ask(*state, "cuGetProcAddress_v2", 12000);
    int (*plain)(uint64_t * out, size_t bytes, void *stream) = NULL;
    int (*per_thread)(uint64_t * out, size_t bytes, void *stream) = NULL;
    void *symbol = NULL;
    uint64_t memory = 0;
    int status = 0;
    assert_int_equal(names.get("cuMemAllocAsync", &symbol, 11020, 0, &status), 0);
    memcpy(&plain, &symbol, sizeof symbol);
    assert_int_equal(names.get("cuMemAllocAsync", &symbol, 11020, 2, &status), 0);
    memcpy(&per_thread, &symbol, sizeof symbol);
    names.arm(1);
    assert_int_equal(per_thread(&memory, 5, NULL), 0);
    assert_int_equal(memory, 7);
    assert_int_equal(plain(&memory, 5, NULL), 2);
    assert_int_equal(plain(&memory, 5, NULL), 0);
    assert_int_equal(memory, 6);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(the_nth_allocation_fails_and_the_driver_does_not_hear_of_it,
                                  argv[1]),
        cmocka_unit_test_prestate(the_variant_of_a_stream_per_thread_is_left_alone, argv[1]),
        cmocka_unit_test_prestate(what_takes_no_memory_is_the_drivers_own, argv[1]),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
