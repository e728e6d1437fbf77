// text_batch.c - one program over the rows of many jobs, and what becomes of its results.
//
//     jobs -> chunks -> rows (batch_rows.h), one list an encoder
//          -> passes of rows that share an encoder's weights (batch_pass.h)
//          -> hidden states and pooled vectors in host memory
//          -> weights, chunks one after the other, encoders side by side -> the jobs' outputs
//
// All memory is there before the program runs, so that finishing cannot fail.

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/array.h"
#include "models/text/batch_pass.h"
#include "models/text/text_model.h"

#define ROW_NONE UINT32_MAX
#define ESTIMATE_SLACK_BYTES (1u << 16)  // alignment of the values in the arena
#define ATTENTION_BLOCK 128u             // tokens that a device packs together, at most
#define ROUNDED_TOKENS 64u               // tokens that it adds to a matrix, at most

// A text of a job, for one encoder.
struct batch_text {
    struct text_job *job;  // the caller's
    uint32_t which;        // prompt or negative
    enum model_part part;  // which encoder
    uint32_t rows_begin;   // of its chunks, in the batch's list of rows
    uint32_t row_empty;    // the empty chunk, or ROW_NONE when no weight needs it
};

// One encoder's share of the batch.
struct batch_part {
    struct batch_rows rows;  // different rows
    float *hidden;           // [rows, tokens, width]
    float *pooled;           // [pooled_count, pooled_width]
    int32_t *pooled_tokens;  // [pooled_count]: row of the pass * tokens + token
    uint32_t pooled_width;   // of one
};

struct text_batch {
    const struct text_model *model;             // the caller's
    struct batch_part parts[MODEL_PART_COUNT];  // empty where there is no encoder
    struct {
        struct batch_text *items;  // by job, text, encoder
        uint32_t count;            // texts in use
        uint32_t capacity;         // texts there is room for
    } texts;                       // of all jobs
    struct {
        uint32_t *items;                // numbers of rows, chunk by chunk
        uint32_t count;                 // numbers in use
        uint32_t capacity;              // numbers there is room for
    } row_list;                         // what the texts point into
    struct program *program;            // over all passes
    void *bindings[PROGRAM_SLOTS_MAX];  // its slots
    uint32_t bindings_count;            // slots in use
};

static enum status no_memory(struct error *error)
{
    return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a batch of texts");
}

// Adds the rows of one text for one encoder.
static enum status add_text(struct text_batch *self, struct text_job *job, uint32_t which,
                            enum model_part part)
{
    const struct chunks *text = &job->texts[part][which];
    assert(text->length > 0);
    uint32_t chunks = text->count / text->length;
    bool is_pooled_part = part == text_pooled_part(self->model->description.text);
    struct batch_rows *rows = &self->parts[part].rows;
    struct batch_text added = {.job = job,
                               .which = which,
                               .part = part,
                               .rows_begin = self->row_list.count,
                               .row_empty = ROW_NONE};
    if (!ARRAY_RESERVE(&self->row_list, (uint64_t)self->row_list.count + chunks) ||
        !ARRAY_RESERVE(&self->texts, (uint64_t)self->texts.count + 1)) {
        return STATUS_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < chunks; i++) {
        uint32_t row = 0;
        bool pooled = is_pooled_part && i == 0;
        enum status status =
            batch_rows_add(rows, job, part, text->items + (uint64_t)i * text->length, pooled, &row);
        if (status != STATUS_OK) return status;
        self->row_list.items[self->row_list.count++] = row;
    }
    if (text_job_is_weighted(job, part, which)) {
        enum status status = batch_rows_add(rows, job, part, NULL, false, &added.row_empty);
        if (status != STATUS_OK) return status;
    }
    self->texts.items[self->texts.count++] = added;
    return STATUS_OK;
}

// Makes room for a text's outputs. A job that was in a batch before gets new ones.
static enum status prepare_output(const struct text_batch *self, struct text_job *job,
                                  uint32_t which)
{
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(self->model->description.text, parts);
    struct text_output output = {.tokens = UINT32_MAX};
    for (uint32_t i = 0; i < parts_count; i++) {
        uint32_t tokens = job->texts[parts[i]][which].count;
        if (tokens < output.tokens) output.tokens = tokens;
        output.width += self->model->description.clip[parts[i]].width;
    }
    enum model_part pooled = text_pooled_part(self->model->description.text);
    output.pooled_width = self->parts[pooled].pooled_width;
    uint64_t cond = (uint64_t)output.tokens * output.width;
    free(job->output_values[which]);
    job->output_values[which] = calloc(cond + output.pooled_width, sizeof(float));
    job->outputs[which] = (struct text_output){0};
    if (job->output_values[which] == NULL) return STATUS_RESOURCE_EXHAUSTED;
    output.cond = job->output_values[which];
    output.pooled = job->output_values[which] + cond;
    job->outputs[which] = output;
    return STATUS_OK;
}

static enum status add_job(struct text_batch *self, struct text_job *job)
{
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(self->model->description.text, parts);
    for (uint32_t which = 0; which < JOB_TEXTS; which++) {
        if (!job->has_text[which]) continue;
        enum status status = prepare_output(self, job, which);
        for (uint32_t i = 0; status == STATUS_OK && i < parts_count; i++) {
            status = add_text(self, job, which, parts[i]);
        }
        if (status != STATUS_OK) return status;
    }
    return STATUS_OK;
}

static void prepare_part(struct text_batch *self, enum model_part part)
{
    const struct text_network *network = self->model->networks[part];
    const struct clip_config *config = &network->config;
    self->parts[part] = (struct batch_part){
        .rows = {.tokens = config->tokens, .width = config->width, .layers = config->layers},
        .pooled_width = network->projection != NULL ? config->projection : config->width,
    };
}

static bool make_room(struct batch_part *part)
{
    uint64_t rows = part->rows.rows.count;
    uint64_t pooled = part->rows.pooled_count;
    part->hidden = malloc(rows * part->rows.tokens * part->rows.width * sizeof(float));
    part->pooled = malloc((pooled * part->pooled_width + 1) * sizeof(float));
    part->pooled_tokens = malloc((pooled + 1) * sizeof(int32_t));
    return part->hidden != NULL && part->pooled != NULL && part->pooled_tokens != NULL;
}

// Binds host memory to the next slot.
static struct value bind_slot(struct text_batch *self, void *memory, uint64_t bytes)
{
    assert(self->bindings_count < PROGRAM_SLOTS_MAX);
    uint32_t slot = self->bindings_count++;
    self->bindings[slot] = memory;
    return program_slot(self->program, slot, bytes);
}

static struct value part_of(struct value value, uint64_t begin, uint64_t count, uint64_t bytes)
{
    value.offset += begin * bytes;
    value.bytes = count * bytes;
    return value;
}

// Where an encoder's rows and results lie in the program.
struct part_slots {
    struct value ids, vectors, hidden, pooled_tokens, pooled;
};

static struct part_slots bind_part(struct text_batch *self, struct batch_part *part)
{
    const struct batch_rows *rows = &part->rows;
    uint64_t count = (uint64_t)rows->rows.count * rows->tokens;
    struct part_slots slots = {.vectors = {.place = VALUE_NONE}};
    slots.ids = bind_slot(self, rows->sorted_ids, count * sizeof(int32_t));
    slots.hidden = bind_slot(self, part->hidden, count * rows->width * sizeof(float));
    if (rows->vectors.count > 0) {
        slots.vectors = bind_slot(self, rows->vectors.items, rows->vectors.count * sizeof(float));
    }
    if (rows->pooled_count > 0) {
        slots.pooled_tokens =
            bind_slot(self, part->pooled_tokens, rows->pooled_count * sizeof(int32_t));
        slots.pooled = bind_slot(self, part->pooled,
                                 (uint64_t)rows->pooled_count * part->pooled_width * sizeof(float));
    }
    return slots;
}

// Appends a pass to the program.
static enum status build_pass(struct text_batch *self, enum model_part index,
                              const struct part_slots *slots, const struct batch_pass *cut)
{
    struct batch_part *part = &self->parts[index];
    const struct batch_rows *rows = &part->rows;
    for (uint32_t i = cut->pooled_begin; i < cut->pooled_begin + cut->pooled_count; i++) {
        uint32_t position = rows->pooled_rows[i];
        uint32_t token = rows->rows.items[rows->order[position]].pooled_token;
        part->pooled_tokens[i] = (int32_t)((position - cut->begin) * rows->tokens + token);
    }
    struct low_rank *low_ranks = calloc(cut->low_ranks + 1ull, sizeof *low_ranks);
    if (low_ranks == NULL) return STATUS_RESOURCE_EXHAUSTED;

    uint64_t row_ids = rows->tokens * sizeof(int32_t);
    uint64_t row_hidden = (uint64_t)rows->tokens * rows->width * sizeof(float);
    uint64_t row_pooled = part->pooled_width * sizeof(float);
    struct text_pass pass = {
        .ids = part_of(slots->ids, cut->begin, cut->count, row_ids),
        .vectors = slots->vectors,
        .vectors_count = rows->vectors.count / rows->width,
        .rows = cut->count,
        .row_layers = rows->sorted_layers + cut->begin,
        .taps = cut->taps,
        .taps_count = cut->taps_count,
        .hidden = part_of(slots->hidden, cut->begin, cut->count, row_hidden),
        .pooled_count = cut->pooled_count,
        .pooled_tokens =
            part_of(slots->pooled_tokens, cut->pooled_begin, cut->pooled_count, sizeof(int32_t)),
        .pooled = part_of(slots->pooled, cut->pooled_begin, cut->pooled_count, row_pooled),
        .activation_bytes = device_info(self->model->device)->activation_bytes,
        .segments = cut->segments,
        .segments_count = cut->segments_count,
        .pooled_segments = cut->pooled_segments,
        .pooled_segments_count = cut->pooled_segments_count,
        .low_ranks = low_ranks,
    };
    const struct text_network *own = self->model->networks[index];
    text_network_build(cut->network != NULL ? cut->network : own, self->program, &pass);
    free(low_ranks);
    return STATUS_OK;
}

// Appends the passes over all rows of one encoder.
static enum status build_part(struct text_batch *self, enum model_part index)
{
    struct batch_part *part = &self->parts[index];
    const struct batch_rows *rows = &part->rows;
    if (batch_rows_sort(&part->rows) != STATUS_OK) return STATUS_RESOURCE_EXHAUSTED;
    if (!make_room(part)) return STATUS_RESOURCE_EXHAUSTED;
    struct part_slots slots = bind_part(self, part);
    struct batch_pass pass = {.count = 0};
    do {
        batch_pass_cut(rows, pass.begin + pass.count, pass.pooled_begin + pass.pooled_count, &pass);
        if (build_pass(self, index, &slots, &pass) != STATUS_OK) return STATUS_RESOURCE_EXHAUSTED;
    } while (pass.begin + pass.count < rows->rows.count);
    assert(pass.pooled_begin + pass.pooled_count == rows->pooled_count);
    return STATUS_OK;
}

static enum status build_program(struct text_batch *self, struct error *error)
{
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(self->model->description.text, parts);
    enum status status = program_create(&self->program, self->model->device, error);
    if (status != STATUS_OK) return status;
    for (uint32_t i = 0; i < parts_count; i++) {
        if (build_part(self, parts[i]) != STATUS_OK) return no_memory(error);
    }
    return program_finish(self->program, error);
}

enum status text_batch_create(struct text_batch **out, const struct text_model *model,
                              struct text_job *const *jobs, uint32_t jobs_count,
                              struct error *error)
{
    assert(out != NULL);
    assert(model != NULL);
    assert(jobs != NULL);
    if (jobs_count == 0) {
        return error_set(error, STATUS_INVALID_ARGUMENT, "a batch needs at least one job");
    }
    struct text_batch *self = calloc(1, sizeof *self);
    if (self == NULL) return no_memory(error);
    self->model = model;
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) {
        if (model->networks[i] != NULL) prepare_part(self, (enum model_part)i);
    }
    enum status status = STATUS_OK;
    for (uint32_t i = 0; status == STATUS_OK && i < jobs_count; i++) {
        status = add_job(self, jobs[i]);
        if (status != STATUS_OK) no_memory(error);
    }
    if (status == STATUS_OK) status = build_program(self, error);
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    text_batch_destroy(&self);
    return status;
}

void text_batch_destroy(struct text_batch **self_p)
{
    assert(self_p != NULL);
    struct text_batch *self = *self_p;
    if (self == NULL) return;
    program_destroy(&self->program);
    for (uint32_t i = 0; i < MODEL_PART_COUNT; i++) {
        batch_rows_clear(&self->parts[i].rows);
        free(self->parts[i].hidden);
        free(self->parts[i].pooled);
        free(self->parts[i].pooled_tokens);
    }
    free(self->texts.items);
    free(self->row_list.items);
    free(self);
    *self_p = NULL;
}

const struct program *text_batch_program(const struct text_batch *self)
{
    assert(self != NULL);
    return self->program;
}

void *const *text_batch_bindings(const struct text_batch *self, uint32_t *count)
{
    assert(self != NULL);
    assert(count != NULL);
    *count = self->bindings_count;
    return self->bindings;
}

// out = (row - empty) * weight + empty, rounded after each of the three operations.
static void interpolate(float *out, const float *row, const float *empty, double weight,
                        uint32_t width)
{
    float factor = (float)weight;
    for (uint32_t i = 0; i < width; i++) {
        float difference = row[i] - empty[i];
        float scaled = difference * factor;
        out[i] = scaled + empty[i];
    }
}

// Writes one encoder's columns of a text's output.
static void write_columns(const struct text_batch *self, const struct batch_text *text,
                          uint32_t column)
{
    const struct batch_part *part = &self->parts[text->part];
    const struct chunks *chunks = &text->job->texts[text->part][text->which];
    const struct text_output *output = &text->job->outputs[text->which];
    float *out = text->job->output_values[text->which] + column;
    uint32_t tokens = part->rows.tokens;
    uint32_t width = part->rows.width;
    const float *empty = NULL;
    if (text->row_empty != ROW_NONE) {
        uint64_t position = part->rows.rows.items[text->row_empty].position;
        empty = part->hidden + position * tokens * width;
    }
    for (uint32_t i = 0; i < output->tokens; i++, out += output->width) {
        uint32_t row = self->row_list.items[text->rows_begin + i / tokens];
        uint64_t position = part->rows.rows.items[row].position;
        const float *from = part->hidden + (position * tokens + i % tokens) * width;
        double weight = chunks->items[i].weight;
        if (weight != 1.0) {
            assert(empty != NULL);
            interpolate(out, from, empty + (uint64_t)(i % tokens) * width, weight, width);
        } else {
            memcpy(out, from, width * sizeof *out);
        }
    }
}

static void write_pooled(const struct text_batch *self, const struct batch_text *text)
{
    const struct batch_part *part = &self->parts[text->part];
    const struct text_output *output = &text->job->outputs[text->which];
    const struct batch_row *row = &part->rows.rows.items[self->row_list.items[text->rows_begin]];
    assert(row->pooled);
    assert(output->pooled_width == part->pooled_width);
    float *out = text->job->output_values[text->which] + (uint64_t)output->tokens * output->width;
    memcpy(out, part->pooled + (uint64_t)row->pooled_index * part->pooled_width,
           part->pooled_width * sizeof *out);
}

void text_batch_finish(struct text_batch *self)
{
    assert(self != NULL);
    const struct model_description *description = &self->model->description;
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(description->text, parts);
    enum model_part pooled = text_pooled_part(description->text);
    for (uint32_t i = 0; i < self->texts.count; i++) {
        const struct batch_text *text = &self->texts.items[i];
        uint32_t column = 0;
        for (uint32_t j = 0; j < parts_count && parts[j] != text->part; j++) {
            column += description->clip[parts[j]].width;
        }
        write_columns(self, text, column);
        if (text->part == pooled) write_pooled(self, text);
    }
}

uint64_t text_estimate_bytes(const struct model_description *description, uint32_t rows)
{
    assert(description != NULL);
    enum model_part parts[MODEL_PART_COUNT];
    uint32_t parts_count = text_parts(description->text, parts);
    uint64_t pass_rows = rows < ROWS_PER_PASS ? rows : ROWS_PER_PASS;
    uint64_t bytes_max = 0;
    for (uint32_t i = 0; i < parts_count; i++) {
        const struct clip_config *config = &description->clip[parts[i]];
        // x, its norm, q, k, v, and keys and values as the CPU packs them
        uint64_t width = config->width;
        uint64_t attention =
            width * (5 * (uint64_t)config->tokens + 2 * round_up(config->tokens, ATTENTION_BLOCK));
        // x, the gap of its norm, the inside of the MLP twice: as it is, and packed
        uint64_t mlp = (2 * width + 2 * (uint64_t)config->mlp_width) * config->tokens;
        uint64_t row = attention > mlp ? attention : mlp;
        uint64_t rounding = ROUNDED_TOKENS * (uint64_t)(config->mlp_width + config->projection);
        uint64_t bytes = (pass_rows * row + rounding) * sizeof(float);
        if (bytes > bytes_max) bytes_max = bytes;
    }
    return bytes_max + ESTIMATE_SLACK_BYTES;
}
