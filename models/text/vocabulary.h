// vocabulary.h - CLIP's vocabulary as constant tables, made at build time by make_vocabulary.py.
//
// The tables are read-only data of the program: they cost nothing at start-up, and all processes
// share their pages.

#ifndef MODELS_TEXT_VOCABULARY_H
#define MODELS_TEXT_VOCABULARY_H

#include <stdint.h>

#define VOCABULARY_BYTES 256u      // ids 0..255: one byte; 256..511: one byte that ends a word
#define VOCABULARY_MERGES 48894u   // ids 512..49405, in order of rank
#define VOCABULARY_SYMBOLS 49406u  // all of the above
#define VOCABULARY_START 49406     // <|startoftext|>
#define VOCABULARY_END 49407       // <|endoftext|>
#define VOCABULARY_COUNT 49408u    // ids below this

_Static_assert(2 * VOCABULARY_BYTES + VOCABULARY_MERGES == VOCABULARY_SYMBOLS, "ids are dense");
_Static_assert(VOCABULARY_SYMBOLS + 2 == VOCABULARY_COUNT, "two special tokens end the ids");

// The id of each byte inside a word.
extern const uint8_t vocabulary_byte_ids[VOCABULARY_BYTES];

// The merges whose left symbol is s are [begins[s], begins[s + 1]) of the two tables below, sorted
// by their right symbols.
extern const uint16_t vocabulary_merge_begins[VOCABULARY_SYMBOLS + 1];
extern const uint16_t vocabulary_merge_rights[VOCABULARY_MERGES];

// The symbol that a merge makes; a smaller one was learnt earlier and comes first.
extern const uint16_t vocabulary_merge_ids[VOCABULARY_MERGES];

#endif  // MODELS_TEXT_VOCABULARY_H
