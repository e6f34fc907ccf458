/*
 * The exact look-up for AVX2 (Haswell, Zen and later), on the layout of edgedb.h.
 *
 * The 16 subset sums of four int8 activations, minus their minimum, lie in 0..508: the low 5 bits in
 * one table of 16 bytes, the high bits (at most 15) in another. Rows are in the lanes, so a byte
 * shuffle looks up 32 rows and nothing is summed across lanes.
 *
 *   8-bit sums:  low 8 * 31 = 248, so they are set aside after 8 of the 16 quads;
 *                high 16 * 15 = 240, good for the whole group
 *   16-bit sums: S = low + 32 * high + bias, |S| <= 64 * 127 = 8,128; vpmaddubsw joins low, high,
 *                at most 248 + 32 * 240 = 7,928, far from its saturation
 *   32-bit sums: c1*S1 + c2*S2 by vpmaddwd, |sum| <= 2 * 127 * 8,128 = 2,064,512, exact as float
 *
 *   instruction     Zen 4: latency, per cycle     Skylake: latency, ports
 *   vpshufb y       2, 2                          1, p5
 *   vpaddb/w/d y    1, 4                          1, p015
 *   vpand y         1, 4                          1, p015
 *   vpmaddubsw y    3, 2                          5, p01
 *   vpmaddwd y      3, 2                          5, p01
 *
 * Instructions a weight: 26 for 64 rows by four columns and about 100 to finish a group of 64 by 64,
 * 0.13. Half a pair: 28 for 64 rows by eight columns and about 80.
 *
 * Prefetches go to the second-level cache. On Zen 4 that doubles the speed from memory (28 GB/s of
 * the 32 that a plain read reaches); to the first level, whose misses in flight are fewer, they are
 * slower than none (13 against 18).
 */
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,f16c")

#include "finish_avx2.h"

enum { TABLE_BYTES = 32 * EDB_QUADS };

enum { NEAR_BYTES = 12288 }; /* of weights fetched ahead: edb_fetch */

/* Subset sums of two and of the other two activations of a quad: up to 254 each. */
typedef struct {
    __m256i a, b;
} two_sums;

static EDB_INLINE two_sums sums_of_two(__m256i sizes, const __m256i *pick) {
    return (two_sums){_mm256_add_epi8(_mm256_shuffle_epi8(sizes, pick[0]),
                                      _mm256_shuffle_epi8(sizes, pick[1])),
                      _mm256_add_epi8(_mm256_shuffle_epi8(sizes, pick[2]),
                                      _mm256_shuffle_epi8(sizes, pick[3]))};
}

/* (a + b) / 2, rounded down. */
static EDB_INLINE __m256i half_sum(two_sums sums) {
    __m256i odd = _mm256_and_si256(_mm256_xor_si256(sums.a, sums.b), _mm256_set1_epi8(1));
    return _mm256_sub_epi8(_mm256_avg_epu8(sums.a, sums.b), odd);
}

/*
 * The tables of one quad of either 128-bit lane, 16 bytes of low 5 bits and 16 bytes of high bits; to,
 * to_other: where that of the upper lane goes. An activation adds max(q, 0) to the subsets that hold it and
 * max(-q, 0) to the others. Sums of two fit 8 bits; the ninth bit of the sum of four is kept by halving it.
 */
static EDB_INLINE void store_tables(__m256i sizes, const __m256i *pick, uint8_t *to,
                                    uint8_t *to_other) {
    two_sums sums = sums_of_two(sizes, pick);
    __m256i low = _mm256_and_si256(_mm256_add_epi8(sums.a, sums.b), _mm256_set1_epi8(31));
    __m256i high =
        _mm256_and_si256(_mm256_srli_epi16(half_sum(sums), 4), _mm256_set1_epi8(15));
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)to_other, _mm256_permute2x128_si256(low, high, 0x31));
}

/*
 * The same as few_avx2.c wants them: sums modulo 256, and whether they pass 255, four quads apart for
 * either lane. Returns a bit for each that does, the upper lane's in the high half.
 */
static EDB_INLINE uint32_t store_sums(__m256i sizes, const __m256i *pick, uint8_t *to) {
    uint8_t *second = to + TABLE_BYTES / 2;
    const __m256i one = _mm256_set1_epi8(1);
    two_sums sums = sums_of_two(sizes, pick);
    __m256i sum = _mm256_add_epi8(sums.a, sums.b), half = half_sum(sums);
    __m256i passed = _mm256_and_si256(_mm256_srli_epi16(half, 7), one);
    _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(sum));
    _mm_storeu_si128((__m128i *)(void *)(to + 16 * 4), _mm256_extracti128_si256(sum, 1));
    _mm_storeu_si128((__m128i *)(void *)second, _mm256_castsi256_si128(passed));
    _mm_storeu_si128((__m128i *)(void *)(second + 16 * 4), _mm256_extracti128_si256(passed, 1));
    return (uint32_t)_mm256_movemask_epi8(half);
}

/* Activations of eight quads as store_tables takes them, and the sum of their minima as eight parts. */
typedef struct {
    __m256i first, last, minima;
} quad_sizes;

static EDB_INLINE quad_sizes sizes_of(const int8_t *q) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i codes = load256(q);
    __m256i above = _mm256_max_epi8(codes, zero);
    __m256i below = _mm256_max_epi8(_mm256_sub_epi8(zero, codes), zero);
    __m256i twos = _mm256_maddubs_epi16(below, _mm256_set1_epi8(-1));
    /* In a lane, the four positive and four negative parts of one quad, then of the next. */
    return (quad_sizes){_mm256_unpacklo_epi32(above, below), _mm256_unpackhi_epi32(above, below),
                        _mm256_madd_epi16(twos, _mm256_set1_epi16(1))};
}

static EDB_INLINE int32_t add_up(__m256i eight) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

/* Which activations a subset takes of a quad's four positive, and of four negative, parts. */
typedef struct {
    __m256i first[4], second[4]; /* of the first quad in a lane: k where it is in the subset, else 4 + k */
} subsets;

static EDB_INLINE subsets all_subsets(void) {
    const __m256i subset = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    subsets pick;
    for (int k = 0; k < 4; k++) {
        __m256i bit = _mm256_set1_epi8((char)(1 << k));
        __m256i has = _mm256_cmpeq_epi8(_mm256_and_si256(subset, bit), bit);
        pick.first[k] = _mm256_add_epi8(_mm256_set1_epi8((char)k),
                                        _mm256_andnot_si256(has, _mm256_set1_epi8(4)));
        pick.second[k] = _mm256_add_epi8(pick.first[k], _mm256_set1_epi8(8));
    }
    return pick;
}

static void prepare(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *tables, edb_group_meta *meta) {
    const subsets pick = all_subsets();
    for (int64_t g = 0; g < groups; g++, q += EDB_GROUP * stride, sx += stride) {
        __m256i minima = _mm256_setzero_si256();
        for (int quad = 0; quad < EDB_QUADS; quad += 8) {
            quad_sizes sizes = sizes_of(q + 4 * quad);
            uint8_t *to = tables + 32 * quad;
            store_tables(sizes.first, pick.first, to, to + 32 * 4);
            store_tables(sizes.first, pick.second, to + 32, to + 32 * 5);
            store_tables(sizes.last, pick.first, to + 32 * 2, to + 32 * 6);
            store_tables(sizes.last, pick.second, to + 32 * 3, to + 32 * 7);
            minima = _mm256_add_epi32(minima, sizes.minima);
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = add_up(minima)};
        tables += TABLE_BYTES;
    }
}

static void prepare_rows(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                         uint8_t *tables, edb_group_meta *meta) {
    const subsets pick = all_subsets();
    for (int64_t g = 0; g < groups; g++, q += EDB_GROUP * stride, sx += stride) {
        __m256i minima = _mm256_setzero_si256();
        uint32_t wide = 0;
        for (int quad = 0; quad < EDB_QUADS; quad += 8) {
            quad_sizes sizes = sizes_of(q + 4 * quad);
            uint8_t *to = tables + 16 * quad;
            uint32_t passed[4] = {store_sums(sizes.first, pick.first, to),
                                  store_sums(sizes.first, pick.second, to + 16),
                                  store_sums(sizes.last, pick.first, to + 32),
                                  store_sums(sizes.last, pick.second, to + 48)};
            for (int i = 0; i < 4; i++) {
                wide |= (uint32_t)((passed[i] & 0xffff) != 0) << (quad + i);
                wide |= (uint32_t)(passed[i] > 0xffff) << (quad + i + 4);
            }
            minima = _mm256_add_epi32(minima, sizes.minima);
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = add_up(minima), .wide = wide};
        tables += TABLE_BYTES;
    }
}

/* 16 bytes of low sums (two parts) and high sums of one half -> 16-bit S without its bias. */
static EDB_INLINE __m256i join(__m256i low_b_high, __m256i low_a) {
    const __m256i one_and_32 = _mm256_set1_epi16(1 | 32 << 8);
    return _mm256_add_epi16(_mm256_maddubs_epi16(low_b_high, one_and_32), low_a);
}

/* Of half a pair, which has no S2 and no c2. */
static EDB_INLINE void finish_half32(float *acc, __m256 sx, __m256i bias, const uint8_t *c1,
                                     __m256i low_a, __m256i low_b, __m256i high) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i codes = load256(c1);
    __m256i s = join(_mm256_unpacklo_epi8(low_b, high), _mm256_unpacklo_epi8(low_a, zero));
    finish_half16(acc, sx, _mm256_add_epi16(s, bias), _mm256_unpacklo_epi8(zero, codes));
    s = join(_mm256_unpackhi_epi8(low_b, high), _mm256_unpackhi_epi8(low_a, zero));
    finish_half16(acc + 16, sx, _mm256_add_epi16(s, bias), _mm256_unpackhi_epi8(zero, codes));
}

static EDB_INLINE void finish32(float *acc, __m256 sx, __m256i bias, const uint8_t *c1,
                                __m256i low1a, __m256i low1b, __m256i high1, __m256i low2a,
                                __m256i low2b, __m256i high2) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i c1_bytes = load256(c1), c2_bytes = load256(c1 + EDB_TILE);
    __m256i s1 = join(_mm256_unpacklo_epi8(low1b, high1), _mm256_unpacklo_epi8(low1a, zero));
    __m256i s2 = join(_mm256_unpacklo_epi8(low2b, high2), _mm256_unpacklo_epi8(low2a, zero));
    finish16(acc, sx, _mm256_add_epi16(s1, bias), _mm256_add_epi16(s2, bias),
             _mm256_unpacklo_epi8(c1_bytes, c2_bytes));

    s1 = join(_mm256_unpackhi_epi8(low1b, high1), _mm256_unpackhi_epi8(low1a, zero));
    s2 = join(_mm256_unpackhi_epi8(low2b, high2), _mm256_unpackhi_epi8(low2a, zero));
    finish16(acc + 16, sx, _mm256_add_epi16(s1, bias), _mm256_add_epi16(s2, bias),
             _mm256_unpackhi_epi8(c1_bytes, c2_bytes));
}

/* One quad: rows 0-31 add to p, rows 32-63 to r. fetch: a constant where this is inlined. */
#define LOOK_UP(quad)                                                                             \
    do {                                                                                          \
        __m256i low = _mm256_broadcastsi128_si256(*(const __m128i *)(table + 32 * (quad)));       \
        __m256i high = _mm256_broadcastsi128_si256(*(const __m128i *)(table + 32 * (quad) + 16)); \
        __m256i bits = load256(block + 64 * (quad));                                              \
        __m256i b1 = _mm256_and_si256(bits, nibble);                                              \
        __m256i b2 = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);                        \
        p_low1 = _mm256_add_epi8(p_low1, _mm256_shuffle_epi8(low, b1));                           \
        p_high1 = _mm256_add_epi8(p_high1, _mm256_shuffle_epi8(high, b1));                        \
        p_low2 = _mm256_add_epi8(p_low2, _mm256_shuffle_epi8(low, b2));                           \
        p_high2 = _mm256_add_epi8(p_high2, _mm256_shuffle_epi8(high, b2));                        \
        bits = load256(block + 64 * (quad) + 32);                                                 \
        b1 = _mm256_and_si256(bits, nibble);                                                      \
        b2 = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);                                \
        r_low1 = _mm256_add_epi8(r_low1, _mm256_shuffle_epi8(low, b1));                           \
        r_high1 = _mm256_add_epi8(r_high1, _mm256_shuffle_epi8(high, b1));                        \
        r_low2 = _mm256_add_epi8(r_low2, _mm256_shuffle_epi8(low, b2));                           \
        r_high2 = _mm256_add_epi8(r_high2, _mm256_shuffle_epi8(high, b2));                        \
        edb_fetch_line(fetch, ahead + 64 * (quad));                                               \
        __asm__ volatile(""                                                                       \
                : "+x"(p_low1), "+x"(p_high1), "+x"(p_low2), "+x"(p_high2), "+x"(r_low1),         \
                  "+x"(r_high1), "+x"(r_low2), "+x"(r_high2));                                    \
    } while (0)

/* One block: acc + its rows by a group of one token. */
static EDB_INLINE void add_block(edb_fetch fetch, float *acc, const uint8_t *block,
                                 const uint8_t *table, const edb_group_meta *meta,
                                 const char *ahead) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i p_low1 = zero, p_high1 = zero, p_low2 = zero, p_high2 = zero;
    __m256i r_low1 = zero, r_high1 = zero, r_low2 = zero, r_high2 = zero;
    for (int quad = 0; quad < EDB_QUADS / 2; quad++) LOOK_UP(quad);
    __m256i p_low1a = p_low1, p_low2a = p_low2, r_low1a = r_low1, r_low2a = r_low2;
    p_low1 = p_low2 = r_low1 = r_low2 = zero;
    for (int quad = EDB_QUADS / 2; quad < EDB_QUADS; quad++) LOOK_UP(quad);
    edb_fetch_line(fetch, ahead + 1024);
    edb_fetch_line(fetch, ahead + 1088);

    __m256 sx = _mm256_set1_ps(meta->sx);
    __m256i bias = _mm256_set1_epi16((int16_t)meta->bias);
    const uint8_t *c1 = block + 1024;
    finish32(acc, sx, bias, c1, p_low1a, p_low1, p_high1, p_low2a, p_low2, p_high2);
    finish32(acc + 32, sx, bias, c1 + 32, r_low1a, r_low1, r_high1, r_low2a, r_low2, r_high2);
}

static EDB_INLINE void multiply(edb_fetch fetch, const uint8_t *block, int64_t groups,
                                const uint8_t *table, const edb_group_meta *meta, float *out,
                                const uint8_t *next) {
    _Alignas(32) float acc[EDB_TILE] = {0};
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES, table += TABLE_BYTES) {
        const char *ahead = edb_fetch_block(fetch, NEAR_BYTES, block, groups - g, next,
                                            EDB_BLOCK_BYTES);
        add_block(fetch, acc, block, table, meta + g, ahead);
    }
    store_rows(out, acc);
}

static void tile(const uint8_t *block, int64_t groups, const uint8_t *table,
                 const edb_group_meta *meta, float *out, const uint8_t *next) {
    EDB_FETCHING(multiply, block, groups, table, meta, out, next);
}

/* Two tiles in turns, so that two pages are under way: for EDB_LEAD. */
static void two_tiles(const uint8_t *const blocks[2], int64_t groups, const uint8_t *table,
                      const edb_group_meta *meta, float *out, const uint8_t *const next[2]) {
    _Alignas(32) float acc[EDB_TILE] = {0}, acc_too[EDB_TILE] = {0};
    const uint8_t *first = blocks[0], *second = blocks[1];
    for (int64_t g = 0; g < groups; g++, table += TABLE_BYTES) {
        const char *ahead =
            edb_fetch_block(EDB_LEAD, 0, first, groups - g, next[0], EDB_BLOCK_BYTES);
        add_block(EDB_LEAD, acc, first, table, meta + g, ahead);
        ahead = edb_fetch_block(EDB_LEAD, 0, second, groups - g, next[1], EDB_BLOCK_BYTES);
        add_block(EDB_LEAD, acc_too, second, table, meta + g, ahead);
        first += EDB_BLOCK_BYTES;
        second += EDB_BLOCK_BYTES;
    }
    store_rows(out, acc);
    store_rows(out + EDB_TILE, acc_too);
}

/* 32 rows by eight columns, quads 2j and 2j + 1 with their tables. */
#define LOOK_UP_TWO(rows, low, high)                                        \
    do {                                                                    \
        __m256i bits = load256(rows);                                       \
        __m256i even = _mm256_and_si256(bits, nibble);                      \
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble); \
        low = _mm256_add_epi8(low, _mm256_shuffle_epi8(even_low, even));    \
        high = _mm256_add_epi8(high, _mm256_shuffle_epi8(even_high, even)); \
        low = _mm256_add_epi8(low, _mm256_shuffle_epi8(odd_low, odd));      \
        high = _mm256_add_epi8(high, _mm256_shuffle_epi8(odd_high, odd));   \
        __asm__ volatile("" : "+x"(low), "+x"(high));                       \
    } while (0)

#define LOOK_UP_HALF(j, p_low, r_low)                                      \
    do {                                                                   \
        const __m128i *tables = (const __m128i *)(table + 64 * (j));       \
        __m256i even_low = _mm256_broadcastsi128_si256(tables[0]);         \
        __m256i even_high = _mm256_broadcastsi128_si256(tables[1]);        \
        __m256i odd_low = _mm256_broadcastsi128_si256(tables[2]);          \
        __m256i odd_high = _mm256_broadcastsi128_si256(tables[3]);         \
        LOOK_UP_TWO(half + 64 * (j), p_low, p_high);                       \
        LOOK_UP_TWO(half + 64 * (j) + 32, r_low, r_high);                  \
        edb_fetch_line(fetch, ahead + 64 * (j));                           \
    } while (0)

static EDB_INLINE void add_half(edb_fetch fetch, float *acc, const uint8_t *half,
                                const uint8_t *table, const edb_group_meta *meta,
                                const char *ahead) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    __m256i p_low_a = zero, p_low_b = zero, p_high = zero;
    __m256i r_low_a = zero, r_low_b = zero, r_high = zero;
    for (int j = 0; j < EDB_QUADS / 4; j++) LOOK_UP_HALF(j, p_low_a, r_low_a);
    for (int j = EDB_QUADS / 4; j < EDB_QUADS / 2; j++) LOOK_UP_HALF(j, p_low_b, r_low_b);
    edb_fetch_line(fetch, ahead + 512);

    __m256 sx = _mm256_set1_ps(meta->sx);
    __m256i bias = _mm256_set1_epi16((int16_t)meta->bias);
    finish_half32(acc, sx, bias, half + 512, p_low_a, p_low_b, p_high);
    finish_half32(acc + 32, sx, bias, half + 544, r_low_a, r_low_b, r_high);
}

static EDB_INLINE void multiply_half(edb_fetch fetch, const uint8_t *half, int64_t groups,
                                     const uint8_t *table, const edb_group_meta *meta, float *out,
                                     const uint8_t *next) {
    _Alignas(32) float acc[EDB_TILE] = {0};
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES, table += TABLE_BYTES) {
        const char *ahead = edb_fetch_block(fetch, NEAR_BYTES, half, groups - g, next,
                                            EDB_HALF_BYTES);
        add_half(fetch, acc, half, table, meta + g, ahead);
    }
    store_rows(out, acc);
}

static void half_tile(const uint8_t *half, int64_t groups, const uint8_t *table,
                      const edb_group_meta *meta, float *out, const uint8_t *next) {
    EDB_FETCHING(multiply_half, half, groups, table, meta, out, next);
}

static void two_half_tiles(const uint8_t *const halves[2], int64_t groups, const uint8_t *table,
                           const edb_group_meta *meta, float *out, const uint8_t *const next[2]) {
    _Alignas(32) float acc[EDB_TILE] = {0}, acc_too[EDB_TILE] = {0};
    const uint8_t *first = halves[0], *second = halves[1];
    for (int64_t g = 0; g < groups; g++, table += TABLE_BYTES) {
        const char *ahead =
            edb_fetch_block(EDB_LEAD, 0, first, groups - g, next[0], EDB_HALF_BYTES);
        add_half(EDB_LEAD, acc, first, table, meta + g, ahead);
        ahead = edb_fetch_block(EDB_LEAD, 0, second, groups - g, next[1], EDB_HALF_BYTES);
        add_half(EDB_LEAD, acc_too, second, table, meta + g, ahead);
        first += EDB_HALF_BYTES;
        second += EDB_HALF_BYTES;
    }
    store_rows(out, acc);
    store_rows(out + EDB_TILE, acc_too);
}

const edb_pair_kernel edb_lookup_avx2 = {
    .name = "lookup",
    .prepare = prepare,
    .tile = tile,
    .half_tile = half_tile,
    .two_tiles = two_tiles,
    .two_half_tiles = two_half_tiles,
    .tile_rows = edb_few_rows_avx2,
    .half_rows = edb_few_half_rows_avx2,
    .prepare_rows = prepare_rows,
    .prepared_bytes = TABLE_BYTES,
    .expand_from = INT64_MAX, /* expanded, three quarters of the speed at 128 tokens */
};

const edb_pair_kernel edb_lookup_avxvnni = {
    .name = "lookup",
    .prepare = prepare,
    .tile = tile,
    .half_tile = half_tile,
    .two_tiles = two_tiles,
    .two_half_tiles = two_half_tiles,
    .tile_rows = edb_few_rows_avx2,
    .half_rows = edb_few_half_rows_avx2,
    .prepare_rows = prepare_rows,
    .prepared_bytes = TABLE_BYTES,
    .expand_from = 7,
    .expand_half_from = 32,
};

EDB_TARGET_END

#else
typedef int edb_no_lookup_avx2_here; /* an empty file is no valid C */
#endif
