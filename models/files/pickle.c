// pickle.c - the machine: a stack, marks, a memo, and the opcodes of protocols 2 to 5 that data
// needs. INST, OBJ, NEWOBJ, EXT, sets, buffers and the text opcodes of protocol 0 are not among
// them.
//
// Values live in blocks until the end: sharing through the memo needs no counts. Every failure is
// noted once in the machine and makes the loop stop; the helpers return NULL or false meanwhile.

#include "models/files/pickle.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "models/files/pickle_machine.h"

struct pickle_value *pickle_fail(struct pickle *self, enum status status, const char *format, ...)
{
    if (self->status != STATUS_OK) return NULL;
    char text[ERROR_MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    self->status = error_set(self->error, status, "its pickle %s", text);
    return NULL;
}

static struct pickle_value *no_memory(struct pickle *self)
{
    return pickle_fail(self, STATUS_RESOURCE_EXHAUSTED, "does not fit into memory");
}

struct pickle_value *pickle_make(struct pickle *self, enum pickle_kind kind)
{
    if (self->status != STATUS_OK) return NULL;
    if (self->values == PICKLE_VALUES_MAX) {
        return pickle_fail(self, STATUS_INVALID_ARGUMENT, "has more than %u values",
                           PICKLE_VALUES_MAX);
    }
    uint32_t place = self->values % PICKLE_BLOCK_VALUES;
    if (place == 0) {
        struct pickle_block *block = calloc(1, sizeof *block);
        if (block == NULL) return no_memory(self);
        block->next = self->blocks;
        self->blocks = block;
    }
    self->values += 1;
    struct pickle_value *value = &self->blocks->values[place];
    value->kind = kind;
    return value;
}

bool pickle_append(struct pickle *self, struct pickle_value *container, struct pickle_value *item)
{
    if (self->status != STATUS_OK || item == NULL) return false;
    if (container->count == container->room) {
        uint32_t room = container->room > 0 ? container->room * 2 : 4;
        if (room - container->room > PICKLE_ITEMS_MAX - self->items) {
            pickle_fail(self, STATUS_INVALID_ARGUMENT, "has more than %u items", PICKLE_ITEMS_MAX);
            return false;
        }
        struct pickle_value **items = realloc(container->items, room * sizeof *items);
        if (items == NULL) {
            no_memory(self);
            return false;
        }
        self->items += room - container->room;
        container->items = items;
        container->room = room;
    }
    container->items[container->count++] = item;
    return true;
}

// ---------------------------------------------------------------------------------------------
// Stack and memo

static void push(struct pickle *self, struct pickle_value *value)
{
    if (self->status != STATUS_OK || value == NULL) return;
    if (self->stack_count == self->stack_room) {
        uint32_t room = self->stack_room > 0 ? self->stack_room * 2 : 256;
        if (room > 2 * PICKLE_STACK_MAX) {
            pickle_fail(self, STATUS_INVALID_ARGUMENT, "needs a stack above %u", PICKLE_STACK_MAX);
            return;
        }
        struct pickle_value **stack = realloc(self->stack, room * sizeof *stack);
        if (stack == NULL) {
            no_memory(self);
            return;
        }
        self->stack = stack;
        self->stack_room = room;
    }
    self->stack[self->stack_count++] = value;
}

// The height below which nothing may be popped: the last mark.
static uint32_t floor_of(const struct pickle *self)
{
    return self->marks_count > 0 ? self->marks[self->marks_count - 1] : 0;
}

static struct pickle_value *top(struct pickle *self)
{
    if (self->stack_count > floor_of(self)) return self->stack[self->stack_count - 1];
    return pickle_fail(self, STATUS_INVALID_ARGUMENT, "takes from an empty stack");
}

static struct pickle_value *pop(struct pickle *self)
{
    struct pickle_value *value = top(self);
    if (value != NULL) self->stack_count -= 1;
    return value;
}

static void push_mark(struct pickle *self)
{
    if (self->marks_count == PICKLE_MARKS_MAX) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "nests deeper than %u", PICKLE_MARKS_MAX);
        return;
    }
    self->marks[self->marks_count++] = self->stack_count;
}

// Takes the last mark away and returns the height it stood at; false when there is none.
static bool pop_mark(struct pickle *self, uint32_t *height)
{
    if (self->marks_count == 0) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "lacks a mark");
        return false;
    }
    *height = self->marks[--self->marks_count];
    return true;
}

static void memo_put(struct pickle *self, uint64_t index)
{
    struct pickle_value *value = top(self);
    if (value == NULL) return;
    if (index >= PICKLE_MEMO_MAX) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "remembers number %llu, at most %u",
                    (unsigned long long)index, PICKLE_MEMO_MAX);
        return;
    }
    if (index >= self->memo_room) {
        uint32_t room = (uint32_t)index * 2 + 256;
        struct pickle_value **memo = realloc(self->memo, room * sizeof *memo);
        if (memo == NULL) {
            no_memory(self);
            return;
        }
        memset(memo + self->memo_room, 0, (room - self->memo_room) * sizeof *memo);
        self->memo = memo;
        self->memo_room = room;
    }
    self->memo[index] = value;
}

static void memo_get(struct pickle *self, uint64_t index)
{
    if (index >= self->memo_room || self->memo[index] == NULL) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "recalls number %llu, which it never put",
                    (unsigned long long)index);
        return;
    }
    push(self, self->memo[index]);
}

// ---------------------------------------------------------------------------------------------
// Reading operands

static const uint8_t *take(struct pickle *self, uint64_t bytes)
{
    const uint8_t *at = self->at;
    if (self->status != STATUS_OK) return NULL;
    if (bytes > self->left) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "ends in the middle of an operand");
        return NULL;
    }
    self->at += bytes;
    self->left -= bytes;
    return at;
}

// A little-endian number of 1, 2, 4 or 8 bytes; 0 after a failure.
static uint64_t take_number(struct pickle *self, uint32_t bytes)
{
    const uint8_t *at = take(self, bytes);
    uint64_t value = 0;
    if (at == NULL) return 0;
    for (uint32_t i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static struct bytes take_line(struct pickle *self)
{
    const uint8_t *end = self->left > 0 ? memchr(self->at, '\n', self->left) : NULL;
    if (end == NULL) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "ends in the middle of a line");
        return (struct bytes){"", 0};
    }
    struct bytes line = {self->at, (uint64_t)(end - self->at)};
    take(self, line.size + 1);
    return line;
}

static void push_number(struct pickle *self, int64_t number)
{
    struct pickle_value *value = pickle_make(self, PICKLE_NUMBER);
    if (value == NULL) return;
    value->number = number;
    push(self, value);
}

static void push_text(struct pickle *self, uint64_t bytes, enum pickle_kind kind)
{
    const uint8_t *at = take(self, bytes);
    struct pickle_value *value = at != NULL ? pickle_make(self, kind) : NULL;
    if (value == NULL) return;
    value->text = (struct bytes){at, bytes};
    push(self, value);
}

// LONG1, LONG4: two's complement of any length; what does not fit 64 bits is of no interest here.
static void push_long(struct pickle *self, uint64_t bytes)
{
    const uint8_t *at = take(self, bytes);
    if (at == NULL) return;
    if (bytes > 8) {
        push(self, pickle_make(self, PICKLE_IGNORED));
        return;
    }
    uint64_t value = bytes > 0 && (at[bytes - 1] & 0x80) != 0 ? UINT64_MAX : 0;
    for (uint64_t i = bytes; i-- > 0;) value = value << 8 | at[i];
    push_number(self, (int64_t)value);
}

// ---------------------------------------------------------------------------------------------
// Containers

// Moves what lies above height into the container.
static void move_items(struct pickle *self, struct pickle_value *container, uint32_t height)
{
    for (uint32_t i = height; i < self->stack_count; i++) {
        if (!pickle_append(self, container, self->stack[i])) return;
    }
    self->stack_count = height;
}

static void push_from_mark(struct pickle *self, enum pickle_kind kind)
{
    uint32_t height = 0;
    if (!pop_mark(self, &height)) return;
    struct pickle_value *value = pickle_make(self, kind);
    if (value == NULL) return;
    if (kind == PICKLE_DICT && (self->stack_count - height) % 2 != 0) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "has a key without a value");
        return;
    }
    move_items(self, value, height);
    push(self, value);
}

static void push_tuple(struct pickle *self, uint32_t count)
{
    if (self->stack_count - floor_of(self) < count) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "takes from an empty stack");
        return;
    }
    struct pickle_value *value = pickle_make(self, PICKLE_TUPLE);
    if (value == NULL) return;
    move_items(self, value, self->stack_count - count);
    push(self, value);
}

// APPENDS and SETITEMS: moves what lies above the mark into the container below it.
static void extend(struct pickle *self, enum pickle_kind kind, bool single)
{
    uint32_t height = self->stack_count - (kind == PICKLE_DICT ? 2u : 1u);
    if (single) {
        uint32_t above = self->stack_count - floor_of(self);
        if (above < (kind == PICKLE_DICT ? 3u : 2u)) {
            pickle_fail(self, STATUS_INVALID_ARGUMENT, "takes from an empty stack");
            return;
        }
    } else if (!pop_mark(self, &height)) {
        return;
    }
    if (height <= floor_of(self)) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "adds items to nothing");
        return;
    }
    struct pickle_value *container = self->stack[height - 1];
    if (container->kind != kind) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "%s what is not a %s",
                    kind == PICKLE_DICT ? "sets an item of" : "appends to",
                    kind == PICKLE_DICT ? "dictionary" : "list");
        return;
    }
    if (kind == PICKLE_DICT && (self->stack_count - height) % 2 != 0) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "has a key without a value");
        return;
    }
    move_items(self, container, height);
}

// BUILD sets attributes. An OrderedDict's are its state_dict's _metadata, a numpy dtype's its byte
// order: nothing that matters here. Anything else has none.
static void build(struct pickle *self)
{
    const struct pickle_value *state = pop(self);
    const struct pickle_value *value = top(self);
    if (state == NULL || value == NULL) return;
    if (value->kind != PICKLE_DICT && value->kind != PICKLE_IGNORED) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "sets the state of what has none (BUILD)");
    }
}

static void push_stack_global(struct pickle *self)
{
    const struct pickle_value *name = pop(self);
    const struct pickle_value *module = pop(self);
    if (name == NULL || module == NULL) return;
    if (name->kind != PICKLE_STRING || module->kind != PICKLE_STRING) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "names a function by what is not text");
        return;
    }
    push(self, pickle_global(self, module->text, name->text));
}

static void reduce(struct pickle *self)
{
    struct pickle_value *arguments = pop(self);
    const struct pickle_value *callable = pop(self);
    if (arguments == NULL || callable == NULL) return;
    push(self, pickle_call(self, callable, arguments));
}

// ---------------------------------------------------------------------------------------------
// The loop

// Opcodes that push a constant, a number or text; false when it is none of them.
static bool step_data(struct pickle *self, uint8_t opcode)
{
    switch (opcode) {
    case 'N':
        push(self, pickle_make(self, PICKLE_IGNORED));
        return true;
    case 0x88:
        push_number(self, 1);
        return true;
    case 0x89:
        push_number(self, 0);
        return true;
    case 'J':
        push_number(self, (int32_t)take_number(self, 4));
        return true;
    case 'K':
        push_number(self, (int64_t)take_number(self, 1));
        return true;
    case 'M':
        push_number(self, (int64_t)take_number(self, 2));
        return true;
    case 0x8a:
        push_long(self, take_number(self, 1));
        return true;
    case 0x8b:
        push_long(self, take_number(self, 4));
        return true;
    case 'G':
        push_text(self, 8, PICKLE_IGNORED);
        return true;
    case 'U':
    case 0x8c:
        push_text(self, take_number(self, 1), PICKLE_STRING);
        return true;
    case 'T':
    case 'X':
        push_text(self, take_number(self, 4), PICKLE_STRING);
        return true;
    case 0x8d:
        push_text(self, take_number(self, 8), PICKLE_STRING);
        return true;
    case 'C':
        push_text(self, take_number(self, 1), PICKLE_IGNORED);
        return true;
    case 'B':
        push_text(self, take_number(self, 4), PICKLE_IGNORED);
        return true;
    case 0x8e:
        push_text(self, take_number(self, 8), PICKLE_IGNORED);
        return true;
    default:
        return false;
    }
}

static bool step_container(struct pickle *self, uint8_t opcode)
{
    switch (opcode) {
    case ']':
        push(self, pickle_make(self, PICKLE_LIST));
        return true;
    case '}':
        push(self, pickle_make(self, PICKLE_DICT));
        return true;
    case ')':
        push_tuple(self, 0);
        return true;
    case 0x85:
        push_tuple(self, 1);
        return true;
    case 0x86:
        push_tuple(self, 2);
        return true;
    case 0x87:
        push_tuple(self, 3);
        return true;
    case 't':
        push_from_mark(self, PICKLE_TUPLE);
        return true;
    case 'l':
        push_from_mark(self, PICKLE_LIST);
        return true;
    case 'd':
        push_from_mark(self, PICKLE_DICT);
        return true;
    case 'a':
        extend(self, PICKLE_LIST, true);
        return true;
    case 'e':
        extend(self, PICKLE_LIST, false);
        return true;
    case 's':
        extend(self, PICKLE_DICT, true);
        return true;
    case 'u':
        extend(self, PICKLE_DICT, false);
        return true;
    default:
        return false;
    }
}

static bool step_stack(struct pickle *self, uint8_t opcode)
{
    uint32_t height = 0;
    switch (opcode) {
    case '(':
        push_mark(self);
        return true;
    case '0':
        pop(self);
        return true;
    case '1':
        if (pop_mark(self, &height)) self->stack_count = height;
        return true;
    case '2':
        push(self, top(self));
        return true;
    case 'q':
        memo_put(self, take_number(self, 1));
        return true;
    case 'r':
        memo_put(self, take_number(self, 4));
        return true;
    case 0x94:
        memo_put(self, self->memo_next++);
        return true;
    case 'h':
        memo_get(self, take_number(self, 1));
        return true;
    case 'j':
        memo_get(self, take_number(self, 4));
        return true;
    default:
        return false;
    }
}

static bool step_meaning(struct pickle *self, uint8_t opcode)
{
    struct bytes module;
    switch (opcode) {
    case 0x80:
        take(self, 1);
        return true;  // PROTO: checked at the start
    case 0x95:
        take(self, 8);
        return true;  // FRAME: a hint for readers of streams
    case 'c':
        module = take_line(self);
        push(self, pickle_global(self, module, take_line(self)));
        return true;
    case 0x93:
        push_stack_global(self);
        return true;
    case 'R':
        reduce(self);
        return true;
    case 'b':
        build(self);
        return true;
    case 'Q':
        push(self, pickle_persistent(self, pop(self)));
        return true;
    case '.':
        self->root = pop(self);
        return true;
    default:
        return false;
    }
}

static enum status run(struct pickle *self)
{
    if (self->left < 2 || self->at[0] != 0x80 || self->at[1] < 2 || self->at[1] > 5) {
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "is not of protocol 2 to 5");
    }
    while (self->status == STATUS_OK && self->root == NULL) {
        const uint8_t *opcode = take(self, 1);
        if (opcode == NULL) break;
        if (step_data(self, *opcode) || step_container(self, *opcode) ||
            step_stack(self, *opcode) || step_meaning(self, *opcode)) {
            continue;
        }
        pickle_fail(self, STATUS_INVALID_ARGUMENT, "has the opcode 0x%02x, which is not allowed",
                    *opcode);
    }
    return self->status;
}

enum status pickle_read(struct pickle **out, struct bytes text, struct error *error)
{
    assert(out != NULL);
    assert(text.data != NULL);
    struct pickle *self = calloc(1, sizeof *self);
    if (self == NULL) return error_set(error, STATUS_RESOURCE_EXHAUSTED, "no memory for a pickle");
    self->at = text.data;
    self->left = text.size;
    self->error = error;
    enum status status = run(self);
    self->error = NULL;
    if (status == STATUS_OK) {
        *out = self;
        self = NULL;
    }
    pickle_destroy(&self);
    return status;
}

void pickle_destroy(struct pickle **self_p)
{
    assert(self_p != NULL);
    struct pickle *self = *self_p;
    *self_p = NULL;
    if (self == NULL) return;
    while (self->blocks != NULL) {
        struct pickle_block *block = self->blocks;
        self->blocks = block->next;
        for (uint32_t i = 0; i < PICKLE_BLOCK_VALUES; i++) {
            free(block->values[i].items);
            free(block->values[i].tensor);
        }
        free(block);
    }
    free(self->stack);
    free(self->memo);
    free(self);
}

const struct pickle_value *pickle_root(const struct pickle *self)
{
    assert(self != NULL);
    assert(self->root != NULL);
    return self->root;
}
