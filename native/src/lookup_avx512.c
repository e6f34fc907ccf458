/*
 * The exact look-up for AVX-512 with VBMI and VNNI (Ice Lake, Zen 4 and later), on the layout of
 * edgedb.h; the tables and their bounds are those of lookup_avx2.c, for 64 rows at once.
 *
 *   8-bit sums:  low 8 * 31 = 248, so they are set aside after 8 of the 16 quads;
 *                high 16 * 15 = 240, good for the whole group
 *   16-bit sums: S = low + 32 * high + bias, |S| <= 64 * 127 = 8,128
 *   32-bit sums: c1*S1 + c2*S2 by vpmaddwd, |sum| <= 2 * 127 * 8,128 = 2,064,512, exact as float
 *
 * Four tables of 16 bytes fill a register. vpermb reads six bits of an index: the nibble and, above
 * it, which of the four; one vgf2p8affineqb makes that of a byte of weights. Broadcasting each table
 * with vbroadcasti32x4 instead takes the shuffles' ports on Zen 4, even from memory: 6.6 cycles for
 * 64 rows by four columns against 5.5.
 *
 *   instruction          Zen 4: latency, per cycle     Ice Lake: latency, ports
 *   vpermb z             4, 1                          3, p5
 *   vgf2p8affineqb z     3, 1                          3, p0
 *   vpaddb z             1, 2                          1, p05
 *   vpdpbusd z           4, 1                          5, p0
 *
 * Instructions a weight: 275 for a group of 64 by 64, 0.067. Half a pair: 150.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")

#include "finish_avx512.h"

/* 16 tables of low bits, then 16 of high bits. */
enum { HIGH_TABLES = 16 * EDB_QUADS, TABLE_BYTES = 2 * HIGH_TABLES };

enum { NEAR_BYTES = 8192 }; /* of weights fetched ahead: edb_fetch */

/* The table of a quad: its minimum of the subset sums is taken away, 0..508 is left. */
static EDB_INLINE __m512i subset_sums(const int8_t *q, int quad, __m512i subsets, __m512i sizes) {
    int32_t four;
    memcpy(&four, q + 4 * quad, sizeof four);
    __m512i minimum = _mm512_permutexvar_epi32(_mm512_set1_epi32(quad), sizes);
    return _mm512_dpbusd_epi32(minimum, subsets, _mm512_set1_epi32(four));
}

static void prepare(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *prepared, edb_group_meta *meta) {
    const __m512i ones = _mm512_set1_epi8(1), low_bits = _mm512_set1_epi16(31);
    /* Dword i: the bits of i as four bytes of 0 or 1. */
    const __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i spread = _mm512_mullo_epi32(index, _mm512_set1_epi32(0x00204081));
    const __m512i subsets = _mm512_and_si512(spread, ones);
    /* From four quads inside a 128-bit lane to four lanes inside a quad. */
    const __m512i by_quad = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t g = 0; g < groups; g++) {
        __m512i x = load512(q), zero = _mm512_setzero_si512();
        __m512i negative = _mm512_subs_epi8(zero, _mm512_min_epi8(x, zero)); /* 0..127 */
        __m512i sizes = _mm512_dpbusd_epi32(zero, negative, ones); /* by quad, minus its minimum */
        for (int quad = 0; quad < EDB_QUADS; quad += 4) {
            __m512i ab = _mm512_packus_epi32(subset_sums(q, quad, subsets, sizes),
                                             subset_sums(q, quad + 1, subsets, sizes));
            __m512i cd = _mm512_packus_epi32(subset_sums(q, quad + 2, subsets, sizes),
                                             subset_sums(q, quad + 3, subsets, sizes));
            __m512i low =
                _mm512_packus_epi16(_mm512_and_si512(ab, low_bits), _mm512_and_si512(cd, low_bits));
            __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(ab, 5), _mm512_srli_epi16(cd, 5));
            _mm512_storeu_si512(prepared + 16 * quad, _mm512_permutexvar_epi32(by_quad, low));
            _mm512_storeu_si512(prepared + HIGH_TABLES + 16 * quad,
                                _mm512_permutexvar_epi32(by_quad, high));
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = -_mm512_reduce_add_epi32(sizes)};
        q += EDB_GROUP * stride;
        sx += stride;
        prepared += TABLE_BYTES;
    }
}

/* 16-bit S of half of the rows, those whose bytes have been interleaved. */
static EDB_INLINE __m512i join(__m512i low_b_high, __m512i low_a, __m512i bias) {
    const __m512i one_and_32 = _mm512_set1_epi16(1 | 32 << 8);
    __m512i sum = _mm512_maddubs_epi16(low_b_high, one_and_32);
    return _mm512_add_epi16(_mm512_add_epi16(sum, low_a), bias);
}

/*
 * Four tables fill a register, so a quad's index is its nibble and, above, the quad modulo 4. One
 * affine map of the byte's bits gives that: it takes a nibble and adds a constant.
 */
#define LOW_NIBBLE  0x0102040800000000
#define HIGH_NIBBLE 0x1020408000000000

/* fetch: a constant where this is inlined. */
#define LOOK_UP(quad, a)                                                                \
    do {                                                                                \
        __m512i bits = load512(block + 64 * (quad));                                    \
        __m512i b1 = _mm512_gf2p8affine_epi64_epi8(bits, low_nibble, (quad) % 4 * 16);  \
        __m512i b2 = _mm512_gf2p8affine_epi64_epi8(bits, high_nibble, (quad) % 4 * 16); \
        low1##a = _mm512_add_epi8(low1##a, _mm512_permutexvar_epi8(b1, low));           \
        high1 = _mm512_add_epi8(high1, _mm512_permutexvar_epi8(b1, high));              \
        low2##a = _mm512_add_epi8(low2##a, _mm512_permutexvar_epi8(b2, low));           \
        high2 = _mm512_add_epi8(high2, _mm512_permutexvar_epi8(b2, high));              \
        edb_fetch_line(fetch, ahead + 64 * (quad));                                     \
        __asm__ volatile("" : "+v"(low1##a), "+v"(high1), "+v"(low2##a), "+v"(high2));  \
    } while (0)

#define LOOK_UP_4(quad, a)                                         \
    do {                                                           \
        __m512i low = load512(table + 16 * (quad));                \
        __m512i high = load512(table + HIGH_TABLES + 16 * (quad)); \
        LOOK_UP(quad, a);                                          \
        LOOK_UP(quad + 1, a);                                      \
        LOOK_UP(quad + 2, a);                                      \
        LOOK_UP(quad + 3, a);                                      \
    } while (0)

/* One block: sums + its rows by a group of one token. */
static EDB_INLINE row_sums add_block(edb_fetch fetch, row_sums sums, const uint8_t *block,
                                     const uint8_t *table, const edb_group_meta *meta,
                                     const char *ahead) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low_nibble = _mm512_set1_epi64(LOW_NIBBLE);
    const __m512i high_nibble = _mm512_set1_epi64(HIGH_NIBBLE);
    __m512i low1a = zero, low1b = zero, high1 = zero;
    __m512i low2a = zero, low2b = zero, high2 = zero;
    LOOK_UP_4(0, a);
    LOOK_UP_4(4, a);
    LOOK_UP_4(8, b);
    LOOK_UP_4(12, b);
    edb_fetch_line(fetch, ahead + 1024);
    edb_fetch_line(fetch, ahead + 1088);

    __m512i bias = _mm512_set1_epi16((int16_t)meta->bias);
    return finish64(
        sums, meta->sx, block + 1024,
        join(_mm512_unpacklo_epi8(low1b, high1), _mm512_unpacklo_epi8(low1a, zero), bias),
        join(_mm512_unpackhi_epi8(low1b, high1), _mm512_unpackhi_epi8(low1a, zero), bias),
        join(_mm512_unpacklo_epi8(low2b, high2), _mm512_unpacklo_epi8(low2a, zero), bias),
        join(_mm512_unpackhi_epi8(low2b, high2), _mm512_unpackhi_epi8(low2a, zero), bias));
}

static EDB_INLINE row_sums no_sums(void) {
    __m512 zero = _mm512_setzero_ps();
    return (row_sums){zero, zero, zero, zero};
}

static EDB_INLINE void multiply(edb_fetch fetch, const uint8_t *block, int64_t groups,
                                const uint8_t *table, const edb_group_meta *meta, float *out,
                                const uint8_t *next) {
    row_sums sums = no_sums();
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES, table += TABLE_BYTES) {
        const char *ahead = edb_fetch_block(fetch, NEAR_BYTES, block, groups - g, next,
                                            EDB_BLOCK_BYTES);
        sums = add_block(fetch, sums, block, table, meta + g, ahead);
    }
    store_rows(out, sums);
}

static void tile(const uint8_t *block, int64_t groups, const uint8_t *table,
                 const edb_group_meta *meta, float *out, const uint8_t *next) {
    EDB_FETCHING(multiply, block, groups, table, meta, out, next);
}

/* Two tiles in turns, so that two pages are under way: for EDB_LEAD. */
static void two_tiles(const uint8_t *const blocks[2], int64_t groups, const uint8_t *table,
                      const edb_group_meta *meta, float *out, const uint8_t *const next[2]) {
    const uint8_t *first = blocks[0], *second = blocks[1];
    row_sums sums = no_sums(), sums_too = no_sums();
    for (int64_t g = 0; g < groups; g++, table += TABLE_BYTES) {
        const char *ahead =
            edb_fetch_block(EDB_LEAD, 0, first, groups - g, next[0], EDB_BLOCK_BYTES);
        sums = add_block(EDB_LEAD, sums, first, table, meta + g, ahead);
        ahead = edb_fetch_block(EDB_LEAD, 0, second, groups - g, next[1], EDB_BLOCK_BYTES);
        sums_too = add_block(EDB_LEAD, sums_too, second, table, meta + g, ahead);
        first += EDB_BLOCK_BYTES;
        second += EDB_BLOCK_BYTES;
    }
    store_rows(out, sums);
    store_rows(out + EDB_TILE, sums_too);
}

/* Quads 2j and 2j + 1, whose tables are among the four of `low` and `high`. */
#define LOOK_UP_TWO(j, a)                                                                  \
    do {                                                                                   \
        __m512i bits = load512(half + 64 * (j));                                           \
        __m512i even = _mm512_gf2p8affine_epi64_epi8(bits, low_nibble, (j) % 2 * 32);      \
        __m512i odd = _mm512_gf2p8affine_epi64_epi8(bits, high_nibble, (j) % 2 * 32 + 16); \
        low##a = _mm512_add_epi8(low##a, _mm512_permutexvar_epi8(even, low));              \
        high_sum = _mm512_add_epi8(high_sum, _mm512_permutexvar_epi8(even, high));         \
        low##a = _mm512_add_epi8(low##a, _mm512_permutexvar_epi8(odd, low));               \
        high_sum = _mm512_add_epi8(high_sum, _mm512_permutexvar_epi8(odd, high));          \
        edb_fetch_line(fetch, ahead + 64 * (j));                                           \
        __asm__ volatile("" : "+v"(low##a), "+v"(high_sum));                               \
    } while (0)

#define LOOK_UP_HALF_4(quad, a)                                    \
    do {                                                           \
        __m512i low = load512(table + 16 * (quad));                \
        __m512i high = load512(table + HIGH_TABLES + 16 * (quad)); \
        LOOK_UP_TWO((quad) / 2, a);                                \
        LOOK_UP_TWO((quad) / 2 + 1, a);                            \
    } while (0)

static EDB_INLINE row_sums add_half(edb_fetch fetch, row_sums sums, const uint8_t *half,
                                    const uint8_t *table, const edb_group_meta *meta,
                                    const char *ahead) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i low_nibble = _mm512_set1_epi64(LOW_NIBBLE);
    const __m512i high_nibble = _mm512_set1_epi64(HIGH_NIBBLE);
    __m512i low_a = zero, low_b = zero, high_sum = zero;
    LOOK_UP_HALF_4(0, _a);
    LOOK_UP_HALF_4(4, _a);
    LOOK_UP_HALF_4(8, _b);
    LOOK_UP_HALF_4(12, _b);
    edb_fetch_line(fetch, ahead + 512);

    __m512i bias = _mm512_set1_epi16((int16_t)meta->bias);
    return finish_half64(
        sums, meta->sx, half + 512,
        join(_mm512_unpacklo_epi8(low_b, high_sum), _mm512_unpacklo_epi8(low_a, zero), bias),
        join(_mm512_unpackhi_epi8(low_b, high_sum), _mm512_unpackhi_epi8(low_a, zero), bias));
}

static EDB_INLINE void multiply_half(edb_fetch fetch, const uint8_t *half, int64_t groups,
                                     const uint8_t *table, const edb_group_meta *meta, float *out,
                                     const uint8_t *next) {
    row_sums sums = no_sums();
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES, table += TABLE_BYTES) {
        const char *ahead = edb_fetch_block(fetch, NEAR_BYTES, half, groups - g, next,
                                            EDB_HALF_BYTES);
        sums = add_half(fetch, sums, half, table, meta + g, ahead);
    }
    store_rows(out, sums);
}

static void half_tile(const uint8_t *half, int64_t groups, const uint8_t *table,
                      const edb_group_meta *meta, float *out, const uint8_t *next) {
    EDB_FETCHING(multiply_half, half, groups, table, meta, out, next);
}

static void two_half_tiles(const uint8_t *const halves[2], int64_t groups, const uint8_t *table,
                           const edb_group_meta *meta, float *out, const uint8_t *const next[2]) {
    const uint8_t *first = halves[0], *second = halves[1];
    row_sums sums = no_sums(), sums_too = no_sums();
    for (int64_t g = 0; g < groups; g++, table += TABLE_BYTES) {
        const char *ahead =
            edb_fetch_block(EDB_LEAD, 0, first, groups - g, next[0], EDB_HALF_BYTES);
        sums = add_half(EDB_LEAD, sums, first, table, meta + g, ahead);
        ahead = edb_fetch_block(EDB_LEAD, 0, second, groups - g, next[1], EDB_HALF_BYTES);
        sums_too = add_half(EDB_LEAD, sums_too, second, table, meta + g, ahead);
        first += EDB_HALF_BYTES;
        second += EDB_HALF_BYTES;
    }
    store_rows(out, sums);
    store_rows(out + EDB_TILE, sums_too);
}

const edb_pair_kernel edb_lookup_avx512 = {
    .name = "lookup",
    .prepare = prepare,
    .tile = tile,
    .half_tile = half_tile,
    .two_tiles = two_tiles,
    .two_half_tiles = two_half_tiles,
    .prepared_bytes = TABLE_BYTES,
    .expand_from = 2,
    .expand_half_from = 4,
};

EDB_TARGET_END

#else
typedef int edb_no_lookup_avx512_here; /* an empty file is no valid C */
#endif
