// device_module.c - devices that live in libraries of their own: opened when they are asked for,
// and never closed again, because a library's threads and tables may outlive the device.

#include <assert.h>
#include <dlfcn.h>
#include <string.h>

#include "kernels/cuda/module.h"

// The library's own words, or what to say when it is simply not there.
static enum status fail_to_load(const char *library, struct error *error)
{
    const char *why = dlerror();
    return error_set(error, STATUS_UNAVAILABLE, "%s is needed: %s", library,
                     why == NULL ? "it cannot be loaded" : why);
}

static enum status load(const struct gpu_module **out, const char *library, struct error *error)
{
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) return fail_to_load(library, error);
    const struct gpu_module *(*find)(void) = NULL;
    void *symbol = dlsym(handle, GPU_MODULE_SYMBOL);
    if (symbol == NULL) return fail_to_load(library, error);
    memcpy(&find, &symbol, sizeof find);  // what POSIX promises of dlsym, C does not spell
    const struct gpu_module *module = find();
    if (strcmp(module->version, LUNA_VERSION) != 0 ||
        module->operation_bytes != sizeof(struct operation) ||
        module->device_bytes != sizeof(struct device_class)) {
        return error_set(error, STATUS_UNAVAILABLE, "%s is of version %s, this is %s", library,
                         module->version, LUNA_VERSION);
    }
    *out = module;
    return STATUS_OK;
}

enum status module_device_open(struct device **out, const char *library,
                               const struct device_options *options, struct error *error)
{
    assert(out != NULL);
    assert(library != NULL);
    const struct gpu_module *module = NULL;
    enum status status = load(&module, library, error);
    if (status != STATUS_OK) {
        error_prefix(error, "device \"%s\"", options->name);
        return status;
    }
    assert(module != NULL);
    return module->open(out, options, error);
}

enum status module_probe(struct device_probe *out, const char *library, struct error *error)
{
    assert(out != NULL);
    assert(library != NULL);
    const struct gpu_module *module = NULL;
    enum status status = load(&module, library, error);
    if (status != STATUS_OK) return status;
    assert(module != NULL);
    return module->probe(out, error);
}
