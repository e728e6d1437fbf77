// pickle_machine.h - the interpreter's state, shared by its opcodes and its calls.

#ifndef MODELS_FILES_PICKLE_MACHINE_H
#define MODELS_FILES_PICKLE_MACHINE_H

#include <stdbool.h>

#include "models/files/pickle.h"

// An honest checkpoint of 3,000 tensors needs some 60,000 values.
#define PICKLE_VALUES_MAX 1000000u
#define PICKLE_ITEMS_MAX 4000000u  // in all containers together
#define PICKLE_STACK_MAX 1000000u
#define PICKLE_MEMO_MAX 1000000u
#define PICKLE_MARKS_MAX 1000u
#define PICKLE_BLOCK_VALUES 1024u

struct pickle_block {
    struct pickle_block *next;                        // made before this one
    struct pickle_value values[PICKLE_BLOCK_VALUES];  // made together, freed together
};

struct pickle {
    const uint8_t *at;            // the next opcode
    uint64_t left;                // bytes from there
    struct pickle_block *blocks;  // all values
    uint32_t values;              // made so far
    uint32_t items;               // room in containers so far
    struct pickle_value **stack;  // the machine's stack
    uint32_t stack_count, stack_room;
    struct pickle_value **memo;  // by index; NULL: never put
    uint32_t memo_room;
    uint32_t memo_next;                // index of the next MEMOIZE
    uint32_t marks[PICKLE_MARKS_MAX];  // heights of the stack
    uint32_t marks_count;              // of marks
    struct pickle_value *root;         // after STOP
    enum status status;                // of the first failure; then nothing happens any more
    struct error *error;               // and its sentence
};

// Notes the first failure; returns NULL for the caller's convenience.
struct pickle_value *pickle_fail(struct pickle *self, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// A new value of a kind; NULL after a failure.
struct pickle_value *pickle_make(struct pickle *self, enum pickle_kind kind);

// Appends to a container; false after a failure.
bool pickle_append(struct pickle *self, struct pickle_value *container, struct pickle_value *item);

// The known name module.name as a value; a failure that says it when it is not allowed.
struct pickle_value *pickle_global(struct pickle *self, struct bytes module, struct bytes name);

// What callable(*arguments) leaves.
struct pickle_value *pickle_call(struct pickle *self, const struct pickle_value *callable,
                                 struct pickle_value *arguments);

// What the persistent id ("storage", type, key, device, elements) stands for.
struct pickle_value *pickle_persistent(struct pickle *self, const struct pickle_value *id);

#endif  // MODELS_FILES_PICKLE_MACHINE_H
