/*
 * How loops over weights fetch ahead of themselves; part of internal.h. Processors differ in what is
 * fast: docs/kernels.md has the measurements.
 */
#ifndef EDB_FETCH_H
#define EDB_FETCH_H

enum {
    EDB_PREFETCH_BYTES = 12288,
    EDB_SCALES_AHEAD = 2048 /* bytes, of the scales of int8 codes: eight groups */
};

/*
 * Three ways for the product of a single token. Far: to the second-level cache, EDB_PREFETCH_BYTES ahead,
 * line by line among the arithmetic. Near: past that cache to the first level, a shorter way ahead,
 * the lines of a block at once. On Zen 4 near would cost half the speed, on Zen 5 far costs a third.
 *
 * Lead: Intel's cores have more lines under way from their second-level cache than an instruction can
 * ask for, but what asks there follows a stream to the end of its page of 4 KiB and no further. So two
 * tiles, half a matrix apart, are read in turns, and the first lines of a page are fetched a page ahead;
 * the others, far as above, EDB_LEAD_BYTES ahead, which makes up for what comes late.
 */
typedef enum { EDB_FAR, EDB_NEAR, EDB_LEAD } edb_fetch;

enum {
    EDB_SMALL_PAGE = 4096,
    EDB_LEAD_BYTES = 2304,
    EDB_LEAD_PAGE_BYTES = 4608, /* how far ahead a page's beginning is fetched */
    EDB_LEAD_LINES = 8          /* of a page's beginning */
};

edb_fetch edb_cpu_fetch(void);            /* what suits this CPU; it takes microseconds to find out */
extern _Atomic(edb_fetch) edb_fetch_here; /* the same, once there is a context */

/* A call of f with the way of fetching that suits this CPU as its first argument, a constant. */
#define EDB_FETCHING(f, ...)                                 \
    (edb_fetch_here == EDB_NEAR   ? f(EDB_NEAR, __VA_ARGS__) \
     : edb_fetch_here == EDB_LEAD ? f(EDB_LEAD, __VA_ARGS__) \
                                  : f(EDB_FAR, __VA_ARGS__))

/* An address to prefetch; it may lie past the end of an array, where no pointer may point. */
static inline const char *edb_past(const void *p, int64_t bytes) {
    return (const char *)((uintptr_t)p + (uintptr_t)bytes);
}

/*
 * A line to the second-level cache, in its place among other volatile instructions: gcc 12 would move those
 * of a whole block to its beginning, which takes 7% of the speed where we lead.
 */
static EDB_INLINE void edb_fetch_in_place(const char *line) {
#if defined(__x86_64__)
    __asm__ volatile("prefetcht1 %0" : : "m"(*line));
#else
    __builtin_prefetch(line, 0, 2);
#endif
}

/* Far or lead: a line that is fetched among the arithmetic. */
static EDB_INLINE void edb_fetch_line(edb_fetch fetch, const char *line) {
    if (fetch == EDB_LEAD) edb_fetch_in_place(line);
    if (fetch == EDB_FAR) __builtin_prefetch(line, 0, 2);
}

/* Lead: the first lines of a page, to the second-level cache. */
static EDB_INLINE void edb_fetch_page(const char *page) {
#pragma GCC unroll 8
    for (int64_t line = 0; line < EDB_LEAD_LINES; line++)
        __builtin_prefetch(edb_past(page, 64 * line), 0, 2);
}

/* Part `part` of `parts` of what will be read next, on its way from memory. */
static EDB_INLINE void edb_fetch_part(const edb_coming *coming, int64_t part, int64_t parts) {
    int64_t lines = edb_ceil_div(coming->bytes, 64);
    for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; i++)
        __builtin_prefetch(edb_past(coming->rows, 64 * i), 0, 3);
}

/* A line of a cache's codes, as suits this CPU: of them it is a little faster, of its floats it is not. */
static EDB_INLINE void edb_fetch_code_line(const char *line) {
    if (edb_fetch_here == EDB_FAR) {
        __builtin_prefetch(line, 0, 3);
    } else if (edb_fetch_here == EDB_NEAR) {
        __builtin_prefetch(line, 0, 0);
    } else {
        __builtin_prefetch(line, 0, 2);
        if ((uintptr_t)line % EDB_SMALL_PAGE < 64) edb_fetch_page(edb_past(line, EDB_SMALL_PAGE));
    }
}

/* The next lines of them, 64 bytes each, or all that are left; returns what is left then. */
static EDB_INLINE edb_coming edb_fetch_code_lines(edb_coming coming, int64_t lines) {
    for (int64_t i = 0; i < lines && coming.bytes > 0; i++) {
        edb_fetch_code_line(coming.rows);
        coming.rows = edb_past(coming.rows, 64);
        coming.bytes -= 64;
    }
    return coming;
}

/* Lines for each of so many steps. */
static inline int64_t edb_lines_each(edb_coming coming, int64_t steps) {
    return edb_ceil_div(edb_ceil_div(coming.bytes, 64), steps);
}

/* Lines `from` to `to` of `of` equal parts of what is coming. */
static inline edb_coming edb_part_of(edb_coming coming, int64_t from, int64_t to, int64_t of) {
    int64_t lines = edb_ceil_div(coming.bytes, 64), first = lines * from / of;
    return (edb_coming){edb_past(coming.rows, 64 * first), 64 * (lines * to / of - first)};
}

/* The address `ahead` blocks on, with `blocks_left` to read from `block` on and then `next`. */
static EDB_INLINE const char *edb_blocks_ahead(const void *block, int64_t blocks_left,
                                               const void *next, int64_t block_bytes,
                                               int64_t ahead) {
    int64_t beyond = ahead - blocks_left;
    return beyond < 0 ? edb_past(block, ahead * block_bytes) : edb_past(next, beyond * block_bytes);
}

/* Far: the address EDB_PREFETCH_BYTES on, in whole blocks. */
static EDB_INLINE const char *edb_far(const void *block, int64_t blocks_left, const void *next,
                                      int64_t block_bytes) {
    return edb_blocks_ahead(block, blocks_left, next, block_bytes,
                            EDB_PREFETCH_BYTES / block_bytes);
}

/* Lead: the address EDB_LEAD_BYTES on; the first lines of a page that begins further on are fetched here. */
static EDB_INLINE const char *edb_lead(const void *block, int64_t blocks_left, const void *next,
                                       int64_t block_bytes) {
    const char *on = edb_blocks_ahead(block, blocks_left, next, block_bytes,
                                      EDB_LEAD_PAGE_BYTES / block_bytes);
    int64_t into = (int64_t)((uintptr_t)on % EDB_SMALL_PAGE);
    if (into < block_bytes) edb_fetch_page(edb_past(on, -into)); /* it begins in the block before */
    return edb_blocks_ahead(block, blocks_left, next, block_bytes,
                            edb_max(1, EDB_LEAD_BYTES / block_bytes));
}

/* What to prefetch, line by line, while `block` is read by many tokens, or by popcount. */
static EDB_INLINE const char *edb_ahead(const void *block, int64_t blocks_left, const void *next,
                                        int64_t block_bytes) {
    return edb_fetch_here == EDB_LEAD ? edb_lead(block, blocks_left, next, block_bytes)
                                      : edb_far(block, blocks_left, next, block_bytes);
}

/* By a single token's look-up; near, all lines of the block near_bytes on are fetched here. */
static EDB_INLINE const char *edb_fetch_block(edb_fetch fetch, int64_t near_bytes,
                                              const void *block, int64_t blocks_left,
                                              const void *next, int64_t block_bytes) {
    if (fetch == EDB_FAR) return edb_far(block, blocks_left, next, block_bytes);
    if (fetch == EDB_LEAD) return edb_lead(block, blocks_left, next, block_bytes);
    const char *ahead =
        edb_blocks_ahead(block, blocks_left, next, block_bytes, near_bytes / block_bytes);
#pragma GCC unroll 18
    for (int64_t line = 0; line < block_bytes; line += 64)
        __builtin_prefetch(edb_past(ahead, line), 0, 0);
    return ahead;
}

/*
 * A prefetch for one quad of int8 codes by a single token: of their scales. So little is computed with
 * a code that the processor fetches codes by itself, and on Zen 4 faster than with a prefetch for each
 * line; but of every block it would come late to the scales.
 */
static EDB_INLINE void edb_fetch_scales(const float *scales, int quad) {
    if (quad % 4 == 0) __builtin_prefetch(edb_past(scales, EDB_SCALES_AHEAD + 16 * quad), 0, 2);
}

/* Near: of the next block of int8 codes the lines of one quad. */
static EDB_INLINE void edb_fetch_codes(const char *next_block, int quad) {
#pragma GCC unroll 4
    for (int line = 0; line < 4; line++)
        __builtin_prefetch(next_block + 256 * quad + 64 * line, 0, 0);
}

#endif
