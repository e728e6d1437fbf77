// network.c - the layers of a CLIP text encoder as operations of a program; network.h has the
// picture.
//
// x stays where it is from the first layer to the last: both residual sums are written over it.
// Rows are sorted by the layers that they need, so that a layer works on the first rows only and
// what the others hold no longer matters. Rows never see each other, which is why leaving some out
// changes nothing for the rest, and why rows with different adapters share an operation: each
// adapter stands beside it with the rows and columns that it changes.

#include "models/text/network.h"

#include <assert.h>

#define NORM_EPSILON 1e-5f
#define ATTENTION_SCALE 0.125f  // 1 / sqrt(64), the width of a head

struct builder {
    const struct text_network *network;
    struct program *program;
    const struct text_pass *pass;
    struct value x;   // [R, T, W]
    uint32_t tokens;  // T
    uint32_t width;   // W
};

// The part of x that holds some rows.
static struct value rows_of(const struct builder *self, uint32_t begin, uint32_t count)
{
    uint64_t row_bytes = (uint64_t)self->tokens * self->width * self->pass->activation_bytes;
    struct value rows = self->x;
    rows.offset += begin * row_bytes;
    rows.bytes = count * row_bytes;
    return rows;
}

// What lies beside an operation.
struct beside {
    const struct text_segment *segments;  // who has paths
    uint32_t segments_count;              // of those
    uint32_t row_rows;                    // of the operation, for one row of a segment
    uint32_t first;                       // linear, as text_paths counts them
    uint32_t linears;                     // 3 for query, key and value, which lie side by side
};

// Writes the paths of one segment beside `op`; returns how many.
static uint32_t list_paths(const struct beside *beside, const struct text_segment *segment,
                           const struct linear *op, struct low_rank *out)
{
    uint32_t begin = segment->begin * beside->row_rows;
    uint32_t end = begin + segment->count * beside->row_rows;
    if (end > op->rows) end = op->rows;
    if (begin >= end) return 0;
    const struct text_paths *paths = segment->paths;
    uint32_t columns = op->k / beside->linears;
    uint32_t count = 0;
    for (uint32_t i = 0; i < beside->linears; i++) {
        uint32_t linear = beside->first + i;
        for (uint32_t j = paths->begins[linear]; j < paths->begins[linear + 1]; j++) {
            out[count++] = (struct low_rank){.row_begin = begin,
                                             .row_count = end - begin,
                                             .column_begin = i * columns,
                                             .column_count = columns,
                                             .rank = paths->items[j].rank,
                                             .down = paths->items[j].down,
                                             .up = paths->items[j].up,
                                             .scale = paths->items[j].scale};
        }
    }
    assert(count <= paths->most);
    return count;
}

static void add_linear(const struct builder *self, const struct beside *beside, struct linear op)
{
    struct low_rank *list = self->pass->low_ranks;
    for (uint32_t i = 0; i < beside->segments_count; i++) {
        op.low_rank_count +=
            list_paths(beside, &beside->segments[i], &op, list + op.low_rank_count);
    }
    op.low_rank = op.low_rank_count > 0 ? list : NULL;
    program_linear(self->program, &op);
}

// What lies beside linear `first` of a layer, for whole rows.
static struct beside beside_rows(const struct builder *self, uint32_t layer, enum lora_linear first)
{
    return (struct beside){.segments = self->pass->segments,
                           .segments_count = self->pass->segments_count,
                           .row_rows = self->tokens,
                           .first = layer * TEXT_LAYER_LINEARS + (uint32_t)first,
                           .linears = 1};
}

// The same for the pooled tokens alone.
static struct beside beside_pooled(const struct builder *self, uint32_t layer,
                                   enum lora_linear first)
{
    return (struct beside){.segments = self->pass->pooled_segments,
                           .segments_count = self->pass->pooled_segments_count,
                           .row_rows = 1,
                           .first = layer * TEXT_LAYER_LINEARS + (uint32_t)first,
                           .linears = 1};
}

static void add_norm(const struct builder *self, struct layer_norm norm)
{
    norm.width = self->width;
    norm.epsilon = NORM_EPSILON;
    program_layer_norm(self->program, &norm);
}

// attention(q, k, v of norm1(x)) of the first rows, [rows, T, W].
static struct value add_attention(const struct builder *self, uint32_t index, uint32_t rows)
{
    struct program *program = self->program;
    const struct text_layer *layer = &self->network->layers[index];
    uint32_t count = rows * self->tokens;
    uint32_t width = self->width;
    uint64_t column_bytes = width * self->pass->activation_bytes;

    struct value normed = program_tensor(program, 1, 1, count, width);
    add_norm(self, (struct layer_norm){.input = rows_of(self, 0, rows),
                                       .output = normed,
                                       .rows = count,
                                       .gamma = layer->norm1_gamma,
                                       .beta = layer->norm1_beta});
    struct value qkv = program_tensor(program, 1, 1, count, 3 * width);
    struct beside beside = beside_rows(self, index, LORA_Q);
    beside.linears = 3;
    add_linear(self, &beside,
               (struct linear){.input = normed,
                               .rows = count,
                               .c = width,
                               .output = qkv,
                               .k = 3 * width,
                               .weight = layer->qkv,
                               .bias = layer->qkv_bias});
    struct attention attention = {
        .q = qkv,
        .k = qkv,
        .v = qkv,
        .q_stride = 3 * width,
        .k_stride = 3 * width,
        .v_stride = 3 * width,
        .output = normed,
        .batch = rows,
        .tokens = self->tokens,
        .heads = self->network->config.heads,
        .head_width = width / self->network->config.heads,
        .scale = ATTENTION_SCALE,
        .causal = true,
    };
    attention.k.offset += column_bytes;
    attention.k.bytes -= column_bytes;
    attention.v.offset += 2 * column_bytes;
    attention.v.bytes -= 2 * column_bytes;
    program_attention(program, &attention);
    program_release(program, qkv);
    return normed;
}

// Tokens that go on after the attention.
struct tokens {
    struct value x;        // [count, W]
    uint32_t count;        // of tokens
    struct beside beside;  // LORA_OUT
};

// x += out(attended); x += fc2(gelu(fc1(norm2(x)))). Releases attended.
static void add_rest(const struct builder *self, const struct text_layer *layer,
                     struct value attended, const struct tokens *tokens)
{
    struct program *program = self->program;
    const struct clip_config *config = &self->network->config;
    struct beside beside = tokens->beside;
    add_linear(self, &beside,
               (struct linear){.input = attended,
                               .rows = tokens->count,
                               .c = self->width,
                               .output = tokens->x,
                               .k = self->width,
                               .weight = layer->out,
                               .bias = layer->out_bias,
                               .residual = tokens->x});
    program_release(program, attended);

    struct value normed = program_tensor(program, 1, 1, tokens->count, self->width);
    add_norm(self, (struct layer_norm){.input = tokens->x,
                                       .output = normed,
                                       .rows = tokens->count,
                                       .gamma = layer->norm2_gamma,
                                       .beta = layer->norm2_beta});
    struct value inner = program_tensor(program, 1, 1, tokens->count, config->mlp_width);
    beside.first += LORA_FC1 - LORA_OUT;
    add_linear(self, &beside,
               (struct linear){.input = normed,
                               .rows = tokens->count,
                               .c = self->width,
                               .output = inner,
                               .k = config->mlp_width,
                               .weight = layer->fc1,
                               .bias = layer->fc1_bias,
                               .activation =
                                   config->quick_gelu ? ACTIVATION_QUICK_GELU : ACTIVATION_GELU});
    program_release(program, normed);
    beside.first += LORA_FC2 - LORA_FC1;
    add_linear(self, &beside,
               (struct linear){.input = inner,
                               .rows = tokens->count,
                               .c = config->mlp_width,
                               .output = tokens->x,
                               .k = self->width,
                               .weight = layer->fc2,
                               .bias = layer->fc2_bias,
                               .residual = tokens->x});
    program_release(program, inner);
}

// Stores the hidden states of one tap.
static void add_tap(const struct builder *self, const struct text_tap *tap)
{
    struct program *program = self->program;
    uint64_t count = (uint64_t)tap->count * self->tokens * self->width;
    uint64_t row_bytes = (uint64_t)self->tokens * self->width * sizeof(float);
    struct value rows = rows_of(self, tap->begin, tap->count);
    struct value normed = {.place = VALUE_NONE};
    struct value output = self->pass->hidden;
    output.offset += tap->begin * row_bytes;
    output.bytes = tap->count * row_bytes;
    if (tap->norm) {
        normed = program_tensor(program, 1, 1, tap->count * self->tokens, self->width);
        add_norm(self, (struct layer_norm){.input = rows,
                                           .output = normed,
                                           .rows = tap->count * self->tokens,
                                           .gamma = self->network->final_gamma,
                                           .beta = self->network->final_beta});
    }
    program_store(
        program,
        &(struct store){.input = tap->norm ? normed : rows, .output = output, .count = count});
    program_release(program, normed);
}

// The pooled tokens of some vectors of rows, [pooled_count, W].
static struct value gather_pooled(const struct builder *self, struct value vectors, uint32_t rows)
{
    const struct text_pass *pass = self->pass;
    struct value tokens = program_tensor(self->program, 1, 1, pass->pooled_count, self->width);
    program_gather(self->program, &(struct gather){.input = vectors,
                                                   .indices = pass->pooled_tokens,
                                                   .output = tokens,
                                                   .rows = rows * self->tokens,
                                                   .count = pass->pooled_count,
                                                   .width = self->width});
    return tokens;
}

// The last layer when only pooled tokens are wanted of it: the others are left after they have
// been looked at, which spares three quarters of the layer. Returns x of the pooled tokens.
static struct value add_pooled_layer(const struct builder *self, uint32_t index, uint32_t rows)
{
    struct value attended = add_attention(self, index, rows);
    struct value kept = gather_pooled(self, attended, rows);
    program_release(self->program, attended);
    struct tokens tokens = {.x = gather_pooled(self, rows_of(self, 0, rows), rows),
                            .count = self->pass->pooled_count,
                            .beside = beside_pooled(self, index, LORA_OUT)};
    add_rest(self, &self->network->layers[index], kept, &tokens);
    return tokens.x;
}

static void add_layer(const struct builder *self, uint32_t index, uint32_t rows)
{
    struct value attended = add_attention(self, index, rows);
    struct tokens tokens = {.x = rows_of(self, 0, rows),
                            .count = rows * self->tokens,
                            .beside = beside_rows(self, index, LORA_OUT)};
    add_rest(self, &self->network->layers[index], attended, &tokens);
}

// Stores final norm and projection of the pooled tokens, which it releases.
static void add_pooled(const struct builder *self, struct value token)
{
    struct program *program = self->program;
    const struct text_pass *pass = self->pass;
    const struct weight *projection = self->network->projection;
    uint32_t out_width = projection != NULL ? self->network->config.projection : self->width;

    add_norm(self, (struct layer_norm){.input = token,
                                       .output = token,
                                       .rows = pass->pooled_count,
                                       .gamma = self->network->final_gamma,
                                       .beta = self->network->final_beta});
    struct value result = token;
    if (projection != NULL) {
        result = program_tensor(program, 1, 1, pass->pooled_count, out_width);
        // Behind the linears of the last layer.
        struct beside beside = beside_pooled(self, self->network->config.layers, LORA_Q);
        add_linear(self, &beside,
                   (struct linear){.input = token,
                                   .rows = pass->pooled_count,
                                   .c = self->width,
                                   .output = result,
                                   .k = out_width,
                                   .weight = projection});
        program_release(program, token);
    }
    program_store(program, &(struct store){.input = result,
                                           .output = pass->pooled,
                                           .count = (uint64_t)pass->pooled_count * out_width});
    program_release(program, result);
}

// How many of the first rows still need the layer after `done` layers.
static uint32_t rows_left(const struct text_pass *pass, uint32_t done)
{
    uint32_t rows = 0;
    while (rows < pass->rows && pass->row_layers[rows] > done) rows += 1;
    return rows;
}

// Whether hidden states are stored after so many layers.
static bool is_tapped(const struct text_pass *pass, uint32_t layers)
{
    for (uint32_t i = 0; i < pass->taps_count; i++) {
        if (pass->taps[i].layers == layers) return true;
    }
    return false;
}

void text_network_build(const struct text_network *self, struct program *program,
                        const struct text_pass *pass)
{
    assert(self != NULL);
    assert(pass->rows > 0);
    struct builder builder = {.network = self,
                              .program = program,
                              .pass = pass,
                              .tokens = self->config.tokens,
                              .width = self->config.width};
    uint32_t count = pass->rows * builder.tokens;
    builder.x = program_tensor(program, 1, 1, count, builder.width);
    program_embedding(program, &(struct embedding){.ids = pass->ids,
                                                   .vectors = pass->vectors,
                                                   .vectors_count = pass->vectors_count,
                                                   .table = self->tokens,
                                                   .positions = self->positions,
                                                   .output = builder.x,
                                                   .rows = count,
                                                   .tokens = builder.tokens,
                                                   .width = builder.width});
    struct value pooled = {.place = VALUE_NONE};
    for (uint32_t i = 0; i < self->config.layers; i++) {
        uint32_t rows = rows_left(pass, i);
        if (rows == 0) break;
        if (i + 1 == self->config.layers && !is_tapped(pass, i + 1)) {
            pooled = add_pooled_layer(&builder, i, rows);
        } else {
            add_layer(&builder, i, rows);
        }
        for (uint32_t j = 0; j < pass->taps_count; j++) {
            if (pass->taps[j].layers == i + 1) add_tap(&builder, &pass->taps[j]);
        }
        program_mark(program);
    }
    if (pass->pooled_count > 0) {
        if (pooled.place == VALUE_NONE) {
            pooled = gather_pooled(&builder, builder.x, pass->rows);
        }
        add_pooled(&builder, pooled);
    }
    program_release(program, builder.x);
}
