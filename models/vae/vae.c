// vae.c - the life of a VAE, and its programs.

#include "models/vae/vae.h"

#include <assert.h>
#include <stdlib.h>

#include "models/vae/job.h"

enum status vae_create(struct vae **out, struct device *device, struct tensor_table *tensors,
                       const struct vae_config *config, struct error *error)
{
    assert(out != NULL);
    assert(config != NULL);
    enum status status = STATUS_OK;
    struct vae *self = calloc(1, sizeof *self);
    if (self == NULL) {
        status = error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a VAE");
        goto done;
    }
    status = network_load(&self->network, device, tensors, config, error);
    if (status != STATUS_OK) goto done;
    *out = self;
    self = NULL;

done:
    vae_destroy(&self);
    return status;
}

enum status vae_weights_plan(uint64_t *out, struct device *device, struct tensor_table *tensors,
                             const struct vae_config *config, struct error *error)
{
    assert(device != NULL);
    assert(tensors != NULL);
    assert(config != NULL);
    return network_plan(out, device, tensors, config, error);
}

void vae_destroy(struct vae **self_p)
{
    assert(self_p != NULL);
    struct vae *self = *self_p;
    if (self == NULL) return;
    network_clear(&self->network);
    free(self);
    *self_p = NULL;
}

uint64_t vae_bytes(const struct vae *self)
{
    assert(self != NULL);
    return self->network.bytes;
}

enum status vae_program(const struct vae *self, const struct vae_plan *plan, struct program **out,
                        struct error *error)
{
    assert(self != NULL);
    assert(plan->request.n >= 1);
    struct job job = {.network = &self->network, .plan = plan};
    struct tiling tiling;
    if (plan->tiled) {
        enum status status = vae_lay_out(self, plan, &tiling, error);
        if (status != STATUS_OK) return status;
        job.tiling = &tiling;
    }
    struct program *program = NULL;
    enum status status = job_build(&program, &job, error);
    if (status != STATUS_OK) return status;
    assert(program_peak_bytes(program) == plan->peak_bytes);
    *out = program;
    return STATUS_OK;
}
