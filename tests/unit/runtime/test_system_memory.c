// test_system_memory.c - what is left is the least of what the machine and every group above leave.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/system_memory.h"
#include "tests/test.h"

static const char meminfo[] = "MemTotal:       16000000 kB\n"
                              "MemFree:          100000 kB\n"
                              "MemAvailable:    8000000 kB\n"
                              "SwapTotal:             0 kB\n";

static void fields_are_found_at_the_start_of_a_line(void **state)
{
    (void)state;
    uint64_t value = 7;
    assert_true(system_memory_field(meminfo, "MemAvailable:", &value));
    assert_int_equal(value, 8000000ull * 1024);
    assert_true(system_memory_field("x 1\ninactive_file 42\n", "inactive_file ", &value));
    assert_int_equal(value, 42);
    value = 7;
    assert_false(system_memory_field(meminfo, "Available:", &value));
    assert_false(system_memory_field("MemTotal: lots kB\n", "MemTotal:", &value));
    assert_false(system_memory_field("MemTotal: 99999999999999999999 kB", "MemTotal:", &value));
    assert_false(system_memory_field("MemTotal: 18446744073709551615 kB", "MemTotal:", &value));
    assert_false(system_memory_field("", "MemTotal:", &value));
    assert_int_equal(value, 7);
}

static void groups_are_found_in_both_versions(void **state)
{
    (void)state;
    static const char both[] = "9:name=systemd:/\n5:cpu,memory:/a/b\n4:memoryx:/no\n0::/c:d\n";
    char path[64];
    assert_true(system_memory_group(both, false, path, sizeof path));
    assert_string_equal(path, "/a/b");
    assert_true(system_memory_group(both, true, path, sizeof path));
    assert_string_equal(path, "/c:d");
    assert_false(system_memory_group("4:cpu:/x\n", false, path, sizeof path));
    assert_false(system_memory_group("4:cpu:/x\n", true, path, sizeof path));
    assert_false(system_memory_group("nonsense", true, path, sizeof path));
    assert_false(system_memory_group("0::/too/long\n", true, path, 5));
}

// A folder that looks like a machine.
struct machine {
    char root[64];  // of it
};

static void put(const struct machine *self, const char *name, const char *text)
{
    char command[512];
    char path[256];
    snprintf(path, sizeof path, "%s/%s", self->root, name);
    snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s')\"", path);
    assert_int_equal(system(command), 0);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int make_machine(void **state)
{
    struct machine *self = calloc(1, sizeof *self);
    snprintf(self->root, sizeof self->root, "%s/luna-machine-XXXXXX", P_tmpdir);
    *state = self;
    if (mkdtemp(self->root) == NULL) return -1;
    put(self, "proc/meminfo", meminfo);
    return 0;
}

static int remove_machine(void **state)
{
    struct machine *self = *state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", self->root);
    int failed = system(command);
    free(self);
    return failed;
}

static void assert_memory(const struct machine *self, uint64_t total, uint64_t available)
{
    struct system_memory memory = {0};
    assert_int_equal(system_memory_read_below(self->root, &memory), STATUS_OK);
    assert_int_equal(memory.total_bytes, total);
    assert_int_equal(memory.available_bytes, available);
}

static const uint64_t total = 16000000ull * 1024;
static const uint64_t available = 8000000ull * 1024;

static void a_machine_without_groups_has_what_meminfo_says(void **state)
{
    assert_memory(*state, total, available);
    put(*state, "proc/self/cgroup", "0::/\n");
    assert_memory(*state, total, available);
}

static void the_smallest_limit_on_the_way_up_counts(void **state)
{
    const struct machine *self = *state;
    put(self, "proc/self/cgroup", "0::/a/b\n");
    put(self, "sys/fs/cgroup/a/b/memory.max", "max\n");
    put(self, "sys/fs/cgroup/a/b/memory.current", "5000\n");
    put(self, "sys/fs/cgroup/a/memory.max", "1000000\n");
    put(self, "sys/fs/cgroup/a/memory.current", "700000\n");
    assert_memory(self, 1000000, 300000);
    put(self, "sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 200000\n");
    assert_memory(self, 1000000, 500000);
    put(self, "sys/fs/cgroup/a/b/memory.max", "900000\n");
    assert_memory(self, 900000, 500000);
    put(self, "sys/fs/cgroup/a/memory.current", "2000000\n");
    assert_memory(self, 900000, 0);
}

static void a_container_sees_its_limit_at_the_root(void **state)
{
    const struct machine *self = *state;
    put(self, "proc/self/cgroup", "0::/not/visible/here\n");
    put(self, "sys/fs/cgroup/memory.max", "1000000\n");
    put(self, "sys/fs/cgroup/memory.current", "400000\n");
    assert_memory(self, 1000000, 600000);
}

static void version_one_counts_as_well(void **state)
{
    const struct machine *self = *state;
    put(self, "proc/self/cgroup", "4:memory:/x\n0::/\n");
    put(self, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000000\n");
    put(self, "sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1500000\n");
    put(self, "sys/fs/cgroup/memory/x/memory.stat", "total_inactive_file 500000\n");
    put(self, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put(self, "sys/fs/cgroup/memory/memory.usage_in_bytes", "1500000\n");
    assert_memory(self, 2000000, 1000000);
}

static void no_meminfo_is_an_error(void **state)
{
    const struct machine *self = *state;
    struct system_memory memory = {.total_bytes = 7};
    assert_int_equal(system_memory_read_below("/nonexistent", &memory), STATUS_INTERNAL);
    put(self, "proc/meminfo", "MemTotal: 5 kB\n");
    assert_int_equal(system_memory_read_below(self->root, &memory), STATUS_INTERNAL);
    assert_int_equal(memory.total_bytes, 7);
}

static void this_machine_and_process_have_plausible_sizes(void **state)
{
    (void)state;
    struct system_memory memory = {0};
    uint64_t rss_before = 0, pss_before = 0, rss = 0, pss = 0;
    assert_int_equal(system_memory_read(&memory), STATUS_OK);
    assert_true(memory.available_bytes <= memory.total_bytes);
    assert_true(memory.total_bytes > 64u << 20);
    assert_int_equal(system_memory_own(&rss_before, &pss_before), STATUS_OK);
    assert_true(pss_before <= rss_before);
    size_t size = 32u << 20;
    char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(pages, MAP_FAILED);
    memset(pages, 1, size);
    assert_int_equal(system_memory_own(&rss, &pss), STATUS_OK);
    assert_true(rss >= rss_before + size - (1u << 20));
    assert_true(pss >= pss_before + size - (1u << 20));
    munmap(pages, size);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_found_at_the_start_of_a_line),
        cmocka_unit_test(groups_are_found_in_both_versions),
        cmocka_unit_test_setup_teardown(a_machine_without_groups_has_what_meminfo_says,
                                        make_machine, remove_machine),
        cmocka_unit_test_setup_teardown(the_smallest_limit_on_the_way_up_counts, make_machine,
                                        remove_machine),
        cmocka_unit_test_setup_teardown(a_container_sees_its_limit_at_the_root, make_machine,
                                        remove_machine),
        cmocka_unit_test_setup_teardown(version_one_counts_as_well, make_machine, remove_machine),
        cmocka_unit_test_setup_teardown(no_meminfo_is_an_error, make_machine, remove_machine),
        cmocka_unit_test(this_machine_and_process_have_plausible_sizes),
    };
    return cmocka_run_group_tests_name("system_memory", tests, NULL, NULL);
}
