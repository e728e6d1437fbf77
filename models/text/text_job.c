// text_job.c - a request becomes chunks of tokens for every encoder; no encoder runs here.
//
// A text is read once; what differs between encoders is the padding, the length of a chunk, and how
// many vectors an embedding has for each of them.

#include "models/text/text_job.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/array.h"
#include "models/text/pieces.h"
#include "models/text/text_model.h"
#include "models/text/vocabulary.h"

#define CLIP_SKIP_MAX 24u    // what ComfyUI's node offers, whatever the encoder has
#define EMBEDDINGS_MAX 256u  // different ones in a job

// A list of tokens that grows.
struct token_list {
    struct text_token *items;  // owned; free() it
    uint32_t count;            // tokens in use
    uint32_t capacity;         // tokens there is room for
};

struct job_maker {
    struct text_job *job;            // what is made
    const struct text_model *model;  // for whom
    struct token_list group;         // scratch
    struct error *error;             // where to tell the first failure
};

static int32_t pad_token(enum model_part part)
{
    return part == MODEL_CLIP_L ? VOCABULARY_END : 0;
}

static enum status no_memory(const struct job_maker *self)
{
    return error_set(self->error, STATUS_RESOURCE_EXHAUSTED, "no memory for a text's tokens");
}

static enum status chunks_failed(const struct job_maker *self, enum status status)
{
    if (status != STATUS_INVALID_ARGUMENT) return no_memory(self);
    return error_set(self->error, status, "a text needs more than %u rows", CHUNKS_MAX);
}

// Where an encoder's hidden states come from.
static struct hidden_choice choose_hidden(enum text_kind kind, const struct clip_config *config,
                                          uint32_t skip)
{
    bool norm = kind == TEXT_SD1 || kind == TEXT_SD2;
    if (skip == 0) skip = kind == TEXT_SD1 ? 1 : 2;
    if (skip > config->layers) return (struct hidden_choice){config->layers, true};
    return (struct hidden_choice){config->layers - skip + 1, norm};
}

static enum status choose_layers(const struct job_maker *self, int32_t clip_skip)
{
    enum model_part parts[MODEL_PART_COUNT];
    const struct model_description *description = &self->model->description;
    uint32_t count = text_parts(description->text, parts);
    uint32_t skip = clip_skip < 0 ? 0u - (uint32_t)clip_skip : (uint32_t)clip_skip;
    uint32_t skip_max = CLIP_SKIP_MAX;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t layers = description->clip[parts[i]].layers;
        if (layers > skip_max) skip_max = layers;
    }
    if (skip > skip_max) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT, "clip skip is %d, at most %u works",
                         clip_skip, skip_max);
    }
    for (uint32_t i = 0; i < count; i++) {
        self->job->hidden[parts[i]] =
            choose_hidden(description->text, &description->clip[parts[i]], skip);
    }
    return STATUS_OK;
}

// Reads an embedding for an encoder. One that cannot be read is told in the notes and has no
// vectors; only a lack of memory is an error.
static enum status read_embedding(struct job_maker *self, uint32_t file, enum model_part part,
                                  struct job_embedding *out)
{
    struct text_job *job = self->job;
    struct error error;
    struct embedding_vectors vectors = {0};
    struct text_embeddings *embeddings = self->model->embeddings;
    uint32_t width = self->model->description.clip[part].width;
    const char *path = text_embeddings_path(embeddings, file);
    *out = (struct job_embedding){.file = file, .part = part, .first = job->vectors.count};

    enum status status =
        text_embeddings_read(embeddings, file, text_part_key(part), width, &vectors, &error);
    if (status == STATUS_RESOURCE_EXHAUSTED) return no_memory(self);
    if (status != STATUS_OK) {
        notes_add(&job->notes, "embedding \"%.60s\": %s", path, error.message);
        return STATUS_OK;
    }
    if (vectors.width != width) {
        notes_add(&job->notes, "embedding \"%.80s\" has width %u, %s takes %u: left out", path,
                  vectors.width, text_part_key(part), width);
    }
    out->values = vectors.values;
    out->count = vectors.count;
    if (!ARRAY_RESERVE(&job->vectors, (uint64_t)job->vectors.count + vectors.count)) {
        free(vectors.values);
        return no_memory(self);
    }
    for (uint32_t i = 0; i < vectors.count; i++) {
        job->vectors.items[job->vectors.count++] = (struct job_vector){
            .values = vectors.values + (uint64_t)i * vectors.width, .width = vectors.width};
    }
    return STATUS_OK;
}

// The embedding of a file for an encoder, read when it is first met.
static enum status find_embedding(struct job_maker *self, uint32_t file, enum model_part part,
                                  const struct job_embedding **out)
{
    struct text_job *job = self->job;
    for (uint32_t i = 0; i < job->embeddings.count; i++) {
        const struct job_embedding *known = &job->embeddings.items[i];
        if (known->file != file || known->part != part) continue;
        *out = known;
        return STATUS_OK;
    }
    if (job->embeddings.count == EMBEDDINGS_MAX * MODEL_PART_COUNT) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "a request names more than %u embeddings", EMBEDDINGS_MAX);
    }
    if (!ARRAY_RESERVE(&job->embeddings, (uint64_t)job->embeddings.count + 1)) {
        return no_memory(self);
    }
    struct job_embedding *added = &job->embeddings.items[job->embeddings.count];
    enum status status = read_embedding(self, file, part, added);
    if (status != STATUS_OK) return status;
    job->embeddings.count += 1;
    *out = added;
    return STATUS_OK;
}

// Writes the tokens of one piece to the scratch list.
static enum status make_group(struct job_maker *self, const struct pieces *pieces,
                              const struct piece *piece, enum model_part part)
{
    uint32_t count = piece->count;
    const struct job_embedding *embedding = NULL;
    if (piece->is_embedding) {
        enum status status = find_embedding(self, piece->begin, part, &embedding);
        if (status != STATUS_OK) return status;
        count = embedding->count;
    }
    if (!ARRAY_RESERVE(&self->group, count)) return no_memory(self);
    for (uint32_t i = 0; i < count; i++) {
        int32_t id = embedding != NULL ? -1 - (int32_t)(embedding->first + i)
                                       : pieces->ids.items[piece->begin + i];
        self->group.items[i] = (struct text_token){.id = id, .weight = piece->weight};
    }
    self->group.count = count;
    return STATUS_OK;
}

static enum status make_chunks(struct job_maker *self, const struct pieces *pieces,
                               enum model_part part, struct chunks *out)
{
    enum status status =
        chunks_begin(out, self->model->description.clip[part].tokens, pad_token(part));
    if (status != STATUS_OK) return chunks_failed(self, status);
    for (uint32_t i = 0; i < pieces->count; i++) {
        status = make_group(self, pieces, &pieces->items[i], part);
        if (status != STATUS_OK) return status;
        status = chunks_add(out, self->group.items, self->group.count);
        if (status != STATUS_OK) return chunks_failed(self, status);
    }
    status = chunks_end(out);
    return status == STATUS_OK ? STATUS_OK : chunks_failed(self, status);
}

// Adds empty chunks until all encoders have as many.
static enum status level_chunks(struct job_maker *self, uint32_t which)
{
    uint32_t count_max = 0;
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        const struct chunks *text = &self->job->texts[part][which];
        if (text->count == 0) continue;
        uint32_t count = text->count / text->length;
        if (count > count_max) count_max = count;
    }
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        struct chunks *text = &self->job->texts[part][which];
        while (text->count > 0 && text->count / text->length < count_max) {
            enum status status = chunks_add_empty(text);
            if (status != STATUS_OK) return chunks_failed(self, status);
        }
    }
    return STATUS_OK;
}

// Makes the chunks of the prompt or of the negative. second, if any, feeds bigG.
static enum status make_text(struct job_maker *self, uint32_t which, bool disable_weights,
                             struct bytes first, const struct bytes *second)
{
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(self->model->description.text, parts);
    struct pieces pieces[2] = {{0}, {0}};
    const struct text_embeddings *embeddings = self->model->embeddings;
    struct notes *notes = &self->job->notes;
    enum status status =
        pieces_read(&pieces[0], first, disable_weights, embeddings, notes, self->error);
    if (status == STATUS_OK && second != NULL) {
        status = pieces_read(&pieces[1], *second, disable_weights, embeddings, notes, self->error);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < parts_count; i++) {
        bool is_second = second != NULL && parts[i] == MODEL_CLIP_G;
        status = make_chunks(self, &pieces[is_second ? 1 : 0], parts[i],
                             &self->job->texts[parts[i]][which]);
    }
    if (status == STATUS_OK && second != NULL) status = level_chunks(self, which);
    pieces_clear(&pieces[0]);
    pieces_clear(&pieces[1]);
    self->job->has_text[which] = true;
    return status;
}

// The second text, where there is an encoder for it.
static const struct bytes *second_text(struct job_maker *self, bool has, const struct bytes *text)
{
    if (!has) return NULL;
    if (self->model->networks[MODEL_CLIP_G] != NULL) return text;
    notes_add(&self->job->notes, "the second text was ignored: this model has no clip_g");
    return NULL;
}

static enum status make_texts(struct job_maker *self, const struct text_request *request)
{
    bool disable_weights = request->disable_weights;
    const struct bytes *second = second_text(self, request->has_prompt_2, &request->prompt_2);
    enum status status = make_text(self, 0, disable_weights, request->prompt, second);
    if (status != STATUS_OK) {
        error_prefix(self->error, "prompt");
        return status;
    }
    if (!request->has_negative) return STATUS_OK;
    second = second_text(self, request->has_negative_2, &request->negative_2);
    status = make_text(self, 1, disable_weights, request->negative, second);
    if (status != STATUS_OK) error_prefix(self->error, "negative");
    return status;
}

enum status text_job_create(struct text_job **out, const struct text_model *model,
                            const struct text_request *request, struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    assert(request != NULL);
    struct text_job *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a job");
    struct job_maker maker = {.job = self, .model = model, .error = error};
    enum status status = choose_layers(&maker, request->clip_skip);
    if (status == STATUS_OK) status = make_texts(&maker, request);
    free(maker.group.items);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_job_destroy(&self);
    return status;
}

// Checks the tokens of one text for one encoder, and copies them.
static enum status copy_tokens(struct job_maker *self, enum model_part part,
                               const struct text_tokens *tokens, struct chunks *out)
{
    const struct clip_config *config = &self->model->description.clip[part];
    const char *key = text_part_key(part);
    if (tokens->length != config->tokens || tokens->chunks == 0 || tokens->chunks > CHUNKS_MAX) {
        return error_set(self->error, STATUS_INVALID_ARGUMENT,
                         "%s has %u chunks of %u tokens, expected 1 to %u of %u", key,
                         tokens->chunks, tokens->length, CHUNKS_MAX, config->tokens);
    }
    uint32_t count = tokens->chunks * tokens->length;
    if (!ARRAY_RESERVE(out, count)) return no_memory(self);
    for (uint32_t i = 0; i < count; i++) {
        int32_t id = tokens->ids[i];
        if (id < 0 || (uint32_t)id >= config->vocabulary) {
            return error_set(self->error, STATUS_INVALID_ARGUMENT,
                             "%s has token %d at %u, the vocabulary has %u", key, id, i,
                             config->vocabulary);
        }
        double weight = tokens->weights != NULL ? tokens->weights[i] : 1.0;
        out->items[i] = (struct text_token){.id = id, .weight = weight};
    }
    out->count = count;
    out->length = tokens->length;
    out->pad = pad_token(part);
    return STATUS_OK;
}

static enum status copy_texts(struct job_maker *self, const struct text_tokens_request *request)
{
    enum text_kind kind = self->model->description.text;
    bool has_negative = request->tokens[text_pooled_part(kind)][1].ids != NULL;
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        bool has_part = self->model->networks[part] != NULL;
        for (uint32_t which = 0; which < JOB_TEXTS; which++) {
            const struct text_tokens *tokens = &request->tokens[part][which];
            bool wanted = has_part && (which == 0 || has_negative);
            if (wanted != (tokens->ids != NULL)) {
                return error_set(self->error, STATUS_INVALID_ARGUMENT,
                                 "%s tokens of %s, which the model %s", wanted ? "no" : "there are",
                                 text_part_key((enum model_part)part),
                                 wanted ? "needs" : "does not take here");
            }
            if (!wanted) continue;
            enum status status =
                copy_tokens(self, (enum model_part)part, tokens, &self->job->texts[part][which]);
            if (status != STATUS_OK) return status;
            self->job->has_text[which] = true;
        }
    }
    return STATUS_OK;
}

enum status text_job_create_from_tokens(struct text_job **out, const struct text_model *model,
                                        const struct text_tokens_request *request,
                                        struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    assert(request != NULL);
    struct text_job *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a job");
    struct job_maker maker = {.job = self, .model = model, .error = error};
    enum status status = choose_layers(&maker, request->clip_skip);
    if (status == STATUS_OK) status = copy_texts(&maker, request);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_job_destroy(&self);
    return status;
}

void text_job_destroy(struct text_job **self_p)
{
    assert(self_p != NULL);
    struct text_job *self = *self_p;
    if (self == NULL) return;
    for (uint32_t which = 0; which < JOB_TEXTS; which++) {
        for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
            free(self->texts[part][which].items);
        }
        free(self->output_values[which]);
    }
    for (uint32_t i = 0; i < self->embeddings.count; i++) free(self->embeddings.items[i].values);
    free(self->embeddings.items);
    free(self->vectors.items);
    free(self);
    *self_p = NULL;
}

bool text_job_is_weighted(const struct text_job *self, enum model_part part, uint32_t which)
{
    assert(self != NULL);
    assert(which < JOB_TEXTS);
    const struct chunks *text = &self->texts[part][which];
    for (uint32_t i = 0; i < text->count; i++) {
        if (text->items[i].weight != 1.0) return true;
    }
    return false;
}

uint32_t text_job_rows(const struct text_job *self)
{
    assert(self != NULL);
    uint32_t rows = 0;
    for (uint32_t part = 0; part < MODEL_PART_COUNT; part++) {
        for (uint32_t which = 0; which < JOB_TEXTS; which++) {
            const struct chunks *text = &self->texts[part][which];
            if (text->count == 0) continue;
            rows += text->count / text->length;
            if (text_job_is_weighted(self, (enum model_part)part, which)) rows += 1;
        }
    }
    return rows;
}

const char *text_job_notes(const struct text_job *self)
{
    assert(self != NULL);
    return self->notes.text;
}

const struct text_token *text_job_tokens(const struct text_job *self, enum model_part part,
                                         uint32_t which, uint32_t *chunks, uint32_t *tokens)
{
    assert(self != NULL);
    assert((unsigned)part < MODEL_PART_COUNT);
    assert(which < JOB_TEXTS);
    const struct chunks *text = &self->texts[part][which];
    *chunks = text->count > 0 ? text->count / text->length : 0;
    *tokens = text->length;
    return text->count > 0 ? text->items : NULL;
}

struct text_output text_job_output(const struct text_job *self, uint32_t which)
{
    assert(self != NULL);
    assert(which < JOB_TEXTS);
    return self->outputs[which];
}
