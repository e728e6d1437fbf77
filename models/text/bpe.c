// bpe.c - merges by rank with a heap over a linked list of symbols.
//
// The textbook algorithm takes the pair of lowest rank, merges its occurrences from left to right
// and starts again, which is quadratic in the word. A merge only makes pairs of higher rank (a
// symbol must be learnt before it is used), so a heap ordered by (rank, position) pops the same
// merges in the same order. An entry is stale when the pair at its position makes something else
// now.

#include "models/text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "models/text/array.h"
#include "models/text/vocabulary.h"

#define SYMBOL_NONE UINT32_MAX

void bpe_clear(struct bpe *self)
{
    assert(self != NULL);
    free(self->symbols.items);
    free(self->heap.items);
    *self = (struct bpe){0};
}

// The symbol that two make, or 0 (which no merge makes).
static uint32_t merge_find(int32_t left, int32_t right)
{
    assert(left >= 0 && left < (int32_t)VOCABULARY_SYMBOLS);
    uint32_t begin = vocabulary_merge_begins[left];
    uint32_t end = vocabulary_merge_begins[left + 1];
    while (begin < end) {
        uint32_t middle = begin + (end - begin) / 2;
        if (vocabulary_merge_rights[middle] == right) return vocabulary_merge_ids[middle];
        if (vocabulary_merge_rights[middle] < right) {
            begin = middle + 1;
        } else {
            end = middle;
        }
    }
    return 0;
}

static void heap_push(struct bpe *self, uint64_t entry)
{
    assert(self->heap.count < self->heap.capacity);
    uint64_t *heap = self->heap.items;
    uint32_t at = self->heap.count++;
    while (at > 0 && heap[(at - 1) / 2] > entry) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = entry;
}

static uint64_t heap_pop(struct bpe *self)
{
    assert(self->heap.count > 0);
    uint64_t *heap = self->heap.items;
    uint64_t top = heap[0];
    uint32_t count = self->heap.count -= 1;
    uint64_t last = heap[count];
    uint32_t at = 0;
    for (uint32_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child += 1;
        if (heap[child] >= last) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

// Looks up the pair that begins at a symbol, and queues it if there is a merge for it.
static void queue_pair(struct bpe *self, uint32_t left)
{
    if (left == SYMBOL_NONE) return;
    struct bpe_symbol *symbol = &self->symbols.items[left];
    symbol->merged = 0;
    if (symbol->next == SYMBOL_NONE) return;
    symbol->merged = merge_find(symbol->id, self->symbols.items[symbol->next].id);
    if (symbol->merged != 0) heap_push(self, (uint64_t)symbol->merged << 32 | left);
}

static void split_bytes(struct bpe *self, const uint8_t *bytes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        self->symbols.items[i] = (struct bpe_symbol){
            .id = vocabulary_byte_ids[bytes[i]],
            .previous = i == 0 ? SYMBOL_NONE : i - 1,
            .next = i + 1 == count ? SYMBOL_NONE : i + 1,
        };
    }
    self->symbols.items[count - 1].id += (int32_t)VOCABULARY_BYTES;
}

static void merge_all(struct bpe *self)
{
    struct bpe_symbol *symbols = self->symbols.items;
    while (self->heap.count > 0) {
        uint64_t entry = heap_pop(self);
        uint32_t left = (uint32_t)entry;
        if (symbols[left].merged != (uint32_t)(entry >> 32)) continue;
        uint32_t right = symbols[left].next;

        symbols[left].id = (int32_t)symbols[left].merged;
        symbols[left].next = symbols[right].next;
        symbols[right].merged = 0;
        if (symbols[left].next != SYMBOL_NONE) symbols[symbols[left].next].previous = left;
        queue_pair(self, symbols[left].previous);
        queue_pair(self, left);
    }
}

enum status bpe_encode(struct bpe *self, struct bytes word, struct token_ids *out)
{
    assert(self != NULL);
    assert(out != NULL);
    if (word.size == 0) return STATUS_OK;

    // A word starts with size - 1 pairs, and each of at most size - 1 merges adds two.
    if (word.size >= UINT32_MAX / 3) return STATUS_RESOURCE_EXHAUSTED;
    uint64_t pairs_max = 3 * word.size;
    if (!ARRAY_RESERVE(&self->symbols, word.size)) return STATUS_RESOURCE_EXHAUSTED;
    if (!ARRAY_RESERVE(&self->heap, pairs_max)) return STATUS_RESOURCE_EXHAUSTED;
    if (!ARRAY_RESERVE(out, out->count + word.size)) return STATUS_RESOURCE_EXHAUSTED;

    uint32_t count = (uint32_t)word.size;
    split_bytes(self, word.data, count);
    self->heap.count = 0;
    for (uint32_t i = 0; i < count; i++) queue_pair(self, i);
    merge_all(self);
    for (uint32_t i = 0; i != SYMBOL_NONE; i = self->symbols.items[i].next) {
        out->items[out->count++] = self->symbols.items[i].id;
    }
    return STATUS_OK;
}
