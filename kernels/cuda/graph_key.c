// graph_key.c - a program's operations, field by field. A weight is its serial, which no other one
// ever gets: where it lies, its type and its pitch follow from that, and what is read of a weight
// that has gone is never the same again.

#include "kernels/cuda/graph_key.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// A field that is added to one of these changes what is launched: it belongs into the key, too.
_Static_assert(sizeof(struct value) == 24, "put writes all of a value");
_Static_assert(sizeof(struct linear) == 128, "write_linear writes all of it");
_Static_assert(sizeof(struct low_rank) == 48, "write_path writes all of it");
_Static_assert(sizeof(struct attention) == 136, "write_attention writes all of it");
_Static_assert(sizeof(struct layer_norm) == 80, "write_layer_norm writes all of it");
_Static_assert(sizeof(struct embedding) == 112, "write_embedding writes all of it");
_Static_assert(sizeof(struct gather) == 88, "write_gather writes all of it");
_Static_assert(sizeof(struct store) == 56, "write_store writes all of it");

static void put(struct graph_key *self, uint64_t word)
{
    if (self->count == self->room) {
        uint32_t room = self->room == 0 ? 1024 : 2 * self->room;
        uint64_t *words = room > self->room ? realloc(self->words, room * sizeof *words) : NULL;
        if (words == NULL) {
            self->is_incomplete = true;
            return;
        }
        self->words = words;
        self->room = room;
    }
    self->words[self->count++] = word;
    self->hash = (self->hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    self->hash ^= self->hash >> 29;
}

static void put_two(struct graph_key *self, uint32_t high, uint32_t low)
{
    put(self, (uint64_t)high << 32 | low);
}

static void put_value(struct graph_key *self, const struct value *value)
{
    put_two(self, (uint32_t)value->place, value->slot);
    put(self, value->offset);
    put(self, value->bytes);
}

static void put_weight(struct graph_key *self, const struct weight *weight)
{
    put(self, weight == NULL ? 0 : weight->serial);
}

static uint32_t bits_of(float number)
{
    uint32_t bits = 0;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static void write_path(struct graph_key *self, const struct low_rank *path)
{
    put_two(self, path->row_begin, path->row_count);
    put_two(self, path->column_begin, path->column_count);
    put_two(self, path->rank, bits_of(path->scale));
    put_weight(self, path->down);
    put_weight(self, path->up);
}

static void write_linear(struct graph_key *self, const struct linear *op)
{
    put_value(self, &op->input);
    put_two(self, op->rows, op->c);
    put_value(self, &op->output);
    put_two(self, op->k, (uint32_t)op->activation);
    put_weight(self, op->weight);
    put_weight(self, op->bias);
    put_value(self, &op->residual);
    put(self, op->low_rank_count);
    for (uint32_t i = 0; i < op->low_rank_count; i++) write_path(self, &op->low_rank[i]);
}

static void write_attention(struct graph_key *self, const struct attention *op)
{
    put_value(self, &op->q);
    put_value(self, &op->k);
    put_value(self, &op->v);
    put_two(self, op->q_stride, op->k_stride);
    put_two(self, op->v_stride, op->causal);
    put_value(self, &op->output);
    put_two(self, op->batch, op->tokens);
    put_two(self, op->heads, op->head_width);
    put(self, bits_of(op->scale));
}

static void write_layer_norm(struct graph_key *self, const struct layer_norm *op)
{
    put_value(self, &op->input);
    put_value(self, &op->output);
    put_two(self, op->rows, op->width);
    put_weight(self, op->gamma);
    put_weight(self, op->beta);
    put(self, bits_of(op->epsilon));
}

static void write_embedding(struct graph_key *self, const struct embedding *op)
{
    put_value(self, &op->ids);
    put_value(self, &op->vectors);
    put_two(self, op->vectors_count, op->rows);
    put_weight(self, op->table);
    put_weight(self, op->positions);
    put_value(self, &op->output);
    put_two(self, op->tokens, op->width);
}

static void write_gather(struct graph_key *self, const struct gather *op)
{
    put_value(self, &op->input);
    put_value(self, &op->indices);
    put_value(self, &op->output);
    put_two(self, op->rows, op->count);
    put(self, op->width);
}

static void write_store(struct graph_key *self, const struct store *op)
{
    put_value(self, &op->input);
    put_value(self, &op->output);
    put(self, op->count);
}

static void write_operation(struct graph_key *self, const struct operation *op)
{
    put(self, (uint64_t)op->kind);
    put_value(self, &op->workspace);
    switch ((int)op->kind) {
    case OPERATION_LINEAR:
        write_linear(self, &op->linear);
        break;
    case OPERATION_ATTENTION:
        write_attention(self, &op->attention);
        break;
    case OPERATION_LAYER_NORM:
        write_layer_norm(self, &op->layer_norm);
        break;
    case OPERATION_EMBEDDING:
        write_embedding(self, &op->embedding);
        break;
    case OPERATION_GATHER:
        write_gather(self, &op->gather);
        break;
    case OPERATION_STORE:
        write_store(self, &op->store);
        break;
    case OPERATION_MARK:
        break;
    default:
        self->is_incomplete = true;
    }
}

bool graph_key_write(struct graph_key *self, const struct program *program)
{
    assert(self != NULL);
    assert(program->finished);
    self->count = 0;
    self->hash = 0;
    self->is_incomplete = false;
    for (uint32_t i = 0; i < program->slots_count; i++) put(self, program->slot_bytes[i]);
    for (uint32_t i = 0; i < program->operations_count && !self->is_incomplete; i++) {
        write_operation(self, &program->operations[i]);
    }
    return !self->is_incomplete;
}

bool graph_key_is(const struct graph_key *self, const struct graph_key *other)
{
    assert(self != NULL);
    assert(other != NULL);
    return self->hash == other->hash && self->count == other->count &&
           memcmp(self->words, other->words, self->count * sizeof *self->words) == 0;
}

void graph_key_clear(struct graph_key *self)
{
    assert(self != NULL);
    free(self->words);
    *self = (struct graph_key){.words = NULL};
}
