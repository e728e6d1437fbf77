// model.c - opens files, finds networks in them, and says what they are together.

#include "models/model.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/files/file_map.h"
#include "models/names.h"

#define FILES_MAX 16u

struct model {
    struct model_description description;            // what people see
    struct tensor_table *tensors[MODEL_PART_COUNT];  // canonical; NULL: not there
    const char *origins[MODEL_PART_COUNT];           // while opening: the file of each part
    bool from_checkpoint[MODEL_PART_COUNT];          // that file holds several networks
};

// Networks of one file.
struct found {
    struct tensor_table *tensors[MODEL_PART_COUNT];  // canonical; NULL: not there
    struct clip_config clip[MODEL_PART_COUNT];       // of the encoders
    struct vae_config vae;                           // of the VAE
    uint32_t count;                                  // networks
};

static void found_end(struct found *self)
{
    for (int i = 0; i < MODEL_PART_COUNT; i++) tensor_table_release(&self->tensors[i]);
}

static enum status find_networks(struct found *out, struct tensor_table *file, struct error *error)
{
    struct clip_found clip = {.tensors = {NULL}};
    *out = (struct found){.count = 0};
    enum status status = names_vae_find(file, &out->tensors[MODEL_VAE], &out->vae, error);
    if (status == STATUS_OK) status = names_clip_find(file, &clip, error);
    for (int i = MODEL_CLIP_L; i < MODEL_PART_COUNT; i++) {
        out->tensors[i] = clip.tensors[i];
        out->clip[i] = clip.config[i];
    }
    for (int i = 0; i < MODEL_PART_COUNT; i++) out->count += out->tensors[i] != NULL;
    if (status == STATUS_OK && out->count == 0) {
        status = error_set(error, STATUS_INVALID_ARGUMENT,
                           "it holds neither an AutoencoderKL nor a CLIP text encoder");
    }
    if (status != STATUS_OK) found_end(out);
    return status;
}

// Takes one network over. A file of one network replaces the same one of a checkpoint before it.
static enum status take_part(struct model *self, struct found *found, enum model_part part,
                             const char *path, struct error *error)
{
    struct model_description *description = &self->description;
    if (self->tensors[part] != NULL && (!self->from_checkpoint[part] || found->count > 1)) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "%s is in \"%.80s\" and in \"%.80s\"",
                         names_part(part), file_name(self->origins[part]), file_name(path));
    }
    tensor_table_release(&self->tensors[part]);
    self->tensors[part] = found->tensors[part];
    found->tensors[part] = NULL;
    self->origins[part] = path;
    self->from_checkpoint[part] = found->count > 1;

    description->has[part] = true;
    description->bytes[part] = 0;
    for (uint32_t i = 0; i < tensor_table_count(self->tensors[part]); i++) {
        description->bytes[part] += tensor_table_at(self->tensors[part], i)->bytes;
    }
    if (part == MODEL_VAE) {
        description->vae = found->vae;
    } else {
        description->clip[part] = found->clip[part];
    }
    return STATUS_OK;
}

static enum status add_file(struct model *self, const char *path, const struct torch_reader *reader,
                            struct error *error)
{
    struct tensor_table *file = NULL;
    struct found found = {.count = 0};
    enum status status = tensor_table_open(&file, path, reader, error);
    if (status != STATUS_OK) return status;
    status = find_networks(&found, file, error);
    if (status != STATUS_OK) error_prefix(error, "file \"%.100s\"", file_name(path));
    for (int i = 0; i < MODEL_PART_COUNT && status == STATUS_OK; i++) {
        if (found.tensors[i] == NULL) continue;
        status = take_part(self, &found, (enum model_part)i, path, error);
    }
    found_end(&found);
    tensor_table_release(&file);
    return status;
}

// What the encoders are together, and what people call it with a VAE of 4 channels, with another
// VAE, and without one.
static const struct {
    bool l, h, g;
    enum text_kind text;
    const char *kind, *kind_other, *kind_alone;
} kinds[] = {
    {false, false, false, TEXT_NONE, "vae", "flux-vae", ""},
    {true, false, false, TEXT_SD1, "sd1.5", "flux-vae + clip-l", "clip-l"},
    {false, true, false, TEXT_SD2, "sd2", "flux-vae + clip-h", "clip-h"},
    {true, false, true, TEXT_SDXL, "sdxl", "flux-vae + clip-l + clip-g", "clip-l + clip-g"},
    {false, false, true, TEXT_REFINER, "refiner", "flux-vae + clip-g", "clip-g"},
};

static enum status name_kind(struct model_description *self, struct error *error)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (kinds[i].l != self->has[MODEL_CLIP_L] || kinds[i].h != self->has[MODEL_CLIP_H] ||
            kinds[i].g != self->has[MODEL_CLIP_G]) {
            continue;
        }
        self->text = kinds[i].text;
        self->kind = !self->has[MODEL_VAE]             ? kinds[i].kind_alone
                     : self->vae.latent_channels == 16 ? kinds[i].kind_other
                                                       : kinds[i].kind;
        if (self->has[MODEL_CLIP_G] && self->clip[MODEL_CLIP_G].projection == 0) {
            return error_set(error, STATUS_INVALID_ARGUMENT,
                             "CLIP-G is incomplete, it lacks 1 of its tensors: text_projection");
        }
        return STATUS_OK;
    }
    return error_set(
        error, STATUS_INVALID_ARGUMENT, "no known kind of model has these encoders together:%s%s%s",
        self->has[MODEL_CLIP_L] ? " CLIP-L" : "", self->has[MODEL_CLIP_H] ? " CLIP-H" : "",
        self->has[MODEL_CLIP_G] ? " CLIP-G" : "");
}

enum status model_open(struct model **out, const char *const *paths, uint32_t paths_count,
                       const struct torch_reader *reader, struct error *error)
{
    assert(out != NULL);
    assert(paths != NULL || paths_count == 0);
    if (paths_count == 0 || paths_count > FILES_MAX) {
        return error_set(error, STATUS_INVALID_ARGUMENT,
                         "a model of %u files, supported are 1 to %u", paths_count, FILES_MAX);
    }
    struct model *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a model");
    enum status status = STATUS_OK;
    for (uint32_t i = 0; i < paths_count && status == STATUS_OK; i++) {
        status = add_file(self, paths[i], reader, error);
    }
    if (status == STATUS_OK) status = name_kind(&self->description, error);
    if (status != STATUS_OK) goto done;
    memset(self->origins, 0, sizeof self->origins);  // the caller's strings may go
    *out = self;
    self = NULL;

done:
    model_close(&self);
    return status;
}

void model_close(struct model **self_p)
{
    assert(self_p != NULL);
    struct model *self = *self_p;
    *self_p = NULL;
    if (self == NULL) return;
    for (int i = 0; i < MODEL_PART_COUNT; i++) tensor_table_release(&self->tensors[i]);
    free(self);
}

const struct model_description *model_describe(const struct model *self)
{
    assert(self != NULL);
    return &self->description;
}

struct tensor_table *model_tensors(const struct model *self, enum model_part part)
{
    assert(self != NULL);
    assert(part < MODEL_PART_COUNT);
    return self->tensors[part];
}

enum status model_hash(const struct model *self, enum model_part part, bool (*should_stop)(void *),
                       void *context, struct hash *out)
{
    assert(self != NULL);
    assert(part < MODEL_PART_COUNT);
    if (self->tensors[part] == NULL) return STATUS_NOT_FOUND;
    return tensor_table_hash(self->tensors[part], should_stop, context, out);
}
