/*
 * Byte-pair merges: the symbols of a word are joined two by two, of all neighbours that make a piece
 * always those of the lowest rank, the leftmost first, until none make one.
 *
 * The symbols of a word are a list through its array. A heap holds every pair that was seen to make a
 * piece. One whose symbols have changed since is found out when it comes up: they make another piece
 * then, for a symbol only grows. A word of n symbols costs O(n log n) and, as a join takes one pair
 * and brings two, at most 2n places in the heap.
 */
#include "internal.h"

/* A pair that makes `result`. Ordered by rank, then by the place of its left symbol. */
typedef struct {
    uint64_t order; /* rank << 32 | place */
    int32_t result;
} candidate;

typedef struct {
    int32_t before, next; /* places in the word; -1 at its ends */
} links;

typedef struct {
    const edb_merges *table;
    int32_t *ids;  /* of the word's symbols; -1 where one was joined to the left */
    links *around; /* [n] */
    candidate *heap;
    int32_t waiting; /* in the heap */
} word;

/* The pair's place in the table; -1 if it makes nothing, -2 if the table is no table. */
static int64_t find(const edb_merges *table, int32_t left, int32_t right) {
    int64_t low = left > 0 ? table->ends[left - 1] : 0, end = table->ends[left], high = end;
    if (low < 0 || low > high || high > table->n_merges) return -2;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (table->rights[middle] < right)
            low = middle + 1;
        else
            high = middle;
    }
    return low < end && table->rights[low] == right ? low : -1;
}

static void push(word *w, candidate entry) {
    int32_t at = w->waiting++;
    while (at > 0) {
        int32_t parent = (at - 1) / 2;
        if (w->heap[parent].order <= entry.order) break;
        w->heap[at] = w->heap[parent];
        at = parent;
    }
    w->heap[at] = entry;
}

static candidate pop(word *w) {
    candidate first = w->heap[0], last = w->heap[--w->waiting];
    int32_t at = 0;
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= w->waiting) break;
        if (child + 1 < w->waiting && w->heap[child + 1].order < w->heap[child].order) child++;
        if (w->heap[child].order >= last.order) break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    w->heap[at] = last;
    return first;
}

/* Remembers the pair at `place`, if it makes a piece. */
static edb_status offer(word *w, int32_t place) {
    const edb_merges *table = w->table;
    int64_t found = find(table, w->ids[place], w->ids[w->around[place].next]);
    if (found < 0) return found == -1 ? EDB_OK : EDB_ERR_RANGE;
    int32_t rank = table->ranks[found], result = table->results[found];
    if (rank < 0 || result < 0 || result >= table->n_pieces) return EDB_ERR_RANGE;
    push(w, (candidate){(uint64_t)rank << 32 | (uint32_t)place, result});
    return EDB_OK;
}

static edb_status join_all(word *w, int32_t n) {
    edb_status status = EDB_OK;
    w->waiting = 0;
    for (int32_t i = 0; i < n; i++) w->around[i] = (links){i - 1, i + 1 < n ? i + 1 : -1};
    for (int32_t i = 0; i + 1 < n && status == EDB_OK; i++) status = offer(w, i);
    while (w->waiting > 0 && status == EDB_OK) {
        candidate best = pop(w);
        int32_t place = (int32_t)(best.order & INT32_MAX);
        if (w->ids[place] < 0 || w->around[place].next < 0) continue;
        int32_t gone = w->around[place].next, next = w->around[gone].next;
        int64_t found = find(w->table, w->ids[place], w->ids[gone]);
        if (found < 0 || w->table->results[found] != best.result) continue;
        w->ids[place] = best.result;
        w->ids[gone] = -1;
        w->around[place].next = next;
        if (next >= 0) {
            w->around[next].before = place;
            status = offer(w, place);
        }
        if (w->around[place].before >= 0 && status == EDB_OK)
            status = offer(w, w->around[place].before);
    }
    return status;
}

static int64_t longest_of(const int64_t *ends, int64_t n_words) {
    int64_t longest = 0, begin = 0;
    for (int64_t i = 0; i < n_words; i++) {
        if (ends[i] < begin || ends[i] > EDB_MAX_SYMBOLS) return -1;
        if (ends[i] - begin > longest) longest = ends[i] - begin;
        begin = ends[i];
    }
    return longest;
}

size_t edb_merge_scratch_bytes(const int64_t *ends, int64_t n_words) {
    if (ends == NULL || n_words < 1) return 0;
    int64_t longest = longest_of(ends, n_words);
    return longest < 0 ? 0 : (size_t)(longest + 1) * (2 * sizeof(candidate) + sizeof(links));
}

edb_status edb_merge(const edb_merges *merges, int32_t *ids, int64_t *ends, int64_t n_words,
                     void *scratch, size_t scratch_bytes) {
    if (merges == NULL || ids == NULL || ends == NULL || scratch == NULL) return EDB_ERR_NULL;
    if (merges->ends == NULL || merges->rights == NULL || merges->ranks == NULL ||
        merges->results == NULL)
        return EDB_ERR_NULL;
    if (!edb_aligned(ids, 4) || !edb_aligned(ends, 8) || !edb_aligned(scratch, 8))
        return EDB_ERR_ALIGN;
    if (n_words < 1 || merges->n_pieces < 1 || merges->n_merges < 0) return EDB_ERR_SHAPE;
    int64_t longest = longest_of(ends, n_words);
    if (longest < 0) return EDB_ERR_SHAPE;
    for (int64_t i = 0; i < ends[n_words - 1]; i++)
        if (ids[i] < 0 || ids[i] >= merges->n_pieces) return EDB_ERR_RANGE;
    if (scratch_bytes < edb_merge_scratch_bytes(ends, n_words)) return EDB_ERR_SCRATCH;

    word w = {.table = merges, .heap = scratch};
    w.around = (links *)(w.heap + 2 * (longest + 1));
    int64_t kept = 0, begin = 0;
    for (int64_t i = 0; i < n_words; i++) {
        int64_t end = ends[i];
        w.ids = ids + begin;
        edb_status status = join_all(&w, (int32_t)(end - begin));
        if (status != EDB_OK) return status;
        for (; begin < end; begin++)
            if (ids[begin] >= 0) ids[kept++] = ids[begin];
        ends[i] = kept;
    }
    return EDB_OK;
}
