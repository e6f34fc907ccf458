/*
 * The exact look-up for AVX2 by several tokens. A block goes through all tokens before the next, which
 * comes from memory meanwhile, and its indices are unpacked once for all of them.
 *
 * A quad's subset sums, less their minimum, lie in 0..508. One table of 16 bytes holds them modulo 256,
 * and two sums of bytes give the sum of sixteen such bytes v, at most 4,080, exactly:
 *
 *   M = sum of v mod 256, by vpaddb
 *   A = mean of v, by a tree of vpavgb, each of which rounds up by a half or not:
 *       16 * A = sum + d, 0 <= d <= 4 * 16 / 2 = 32
 *   A - M / 16, rounded down, is 16 * (sum / 256) + (d + M mod 16) / 16, and that fraction is below 3:
 *       so sum / 256 = (A - M / 16) / 16, both rounded down
 *
 * Where a quad's subset sums pass 255 a second table says whether they do; sums of its bytes are added to
 * the 256s. Of activations spread like a Gaussian one quad of sixteen is so wide.
 *
 * Vector instructions of 64 rows, a group and a token: 188 to look up and add, 72 to finish, 8 a wide
 * quad, and 96 to unpack for all tokens; lookup_avx2.c takes 360 for one. The integers are the same.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,f16c")

#include "finish_avx2.h"

enum {
    SUM_TABLES = 16 * EDB_QUADS, /* bytes of tables modulo 256; as many of the second ones follow */
    TABLE_BYTES = 2 * SUM_TABLES,
    INDEX_BYTES = 64 * EDB_QUADS /* of 32 rows by two planes, or of 64 rows by one */
};

/* Two registers of bytes: 32 rows by two planes, or 64 rows by one. */
typedef struct {
    __m256i a, b;
} two;

static EDB_INLINE two add(two x, two y) {
    return (two){_mm256_add_epi8(x.a, y.a), _mm256_add_epi8(x.b, y.b)};
}

static EDB_INLINE two mean(two x, two y) {
    return (two){_mm256_avg_epu8(x.a, y.a), _mm256_avg_epu8(x.b, y.b)};
}

static EDB_INLINE __m256i low_nibbles(__m256i bytes) {
    return _mm256_and_si256(bytes, _mm256_set1_epi8(15));
}

static EDB_INLINE __m256i high_nibbles(__m256i bytes) {
    return low_nibbles(_mm256_srli_epi16(bytes, 4));
}

/* What the table of a quad holds for its indices. */
static EDB_INLINE two look_up(const uint8_t *tables, const uint8_t *indices, int quad) {
    const __m128i *table = (const __m128i *)(const void *)(tables + 16 * quad);
    __m256i entries = _mm256_broadcastsi128_si256(_mm_loadu_si128(table));
    return (two){_mm256_shuffle_epi8(entries, load256(indices + 64 * quad)),
                 _mm256_shuffle_epi8(entries, load256(indices + 64 * quad + 32))};
}

/* The mean of 2, 4, 8 and 16 quads from this one on; their sums are added. A line for four is fetched. */
static EDB_INLINE two mean2(const uint8_t *tables, const uint8_t *indices, int quad, two *sums) {
    two x = look_up(tables, indices, quad), y = look_up(tables, indices, quad + 1);
    *sums = add(add(*sums, x), y);
    x = mean(x, y);
    __asm__ volatile("" : "+x"(sums->a), "+x"(sums->b), "+x"(x.a), "+x"(x.b)); /* not later */
    return x;
}

static EDB_INLINE two mean4(const uint8_t *tables, const uint8_t *indices, int quad, two *sums,
                            const char *fetch) {
    two x = mean2(tables, indices, quad, sums);
    edb_fetch_in_place(fetch + 16 * quad);
    return mean(x, mean2(tables, indices, quad + 2, sums));
}

static EDB_INLINE two mean8(const uint8_t *tables, const uint8_t *indices, int quad, two *sums,
                            const char *fetch) {
    two x = mean4(tables, indices, quad, sums, fetch);
    return mean(x, mean4(tables, indices, quad + 4, sums, fetch));
}

static EDB_INLINE two mean16(const uint8_t *tables, const uint8_t *indices, two *sums,
                             const char *fetch) {
    two x = mean8(tables, indices, 0, sums, fetch);
    return mean(x, mean8(tables, indices, 8, sums, fetch));
}

/* S without its bias is low + 256 * high. */
typedef struct {
    two low, high;
} counts;

static EDB_INLINE __m256i times_256(__m256i sum, __m256i mean) {
    return high_nibbles(_mm256_sub_epi8(mean, high_nibbles(sum)));
}

/* A group of one token; four lines are fetched. */
static EDB_INLINE counts count(const uint8_t *tables, uint32_t wide, const uint8_t *indices,
                               const char *fetch) {
    const __m256i zero = _mm256_setzero_si256();
    counts found = {{zero, zero}, {zero, zero}};
    __asm__ volatile("" : : : "memory"); /* gcc 12 would read all indices before the loop, and spill */
    two means = mean16(tables, indices, &found.low, fetch);
    for (; wide != 0; wide &= wide - 1)
        found.high = add(found.high, look_up(tables + SUM_TABLES, indices, __builtin_ctz(wide)));
    found.high = add(found.high, (two){times_256(found.low.a, means.a),
                                       times_256(found.low.b, means.b)});
    return found;
}

/* Words of rows 0-7 16-23, and of 8-15 24-31. */
static EDB_INLINE two widen(__m256i low, __m256i high, __m256i bias) {
    return (two){_mm256_add_epi16(_mm256_unpacklo_epi8(low, high), bias),
                 _mm256_add_epi16(_mm256_unpackhi_epi8(low, high), bias)};
}

/* acc += sx * (c1*S1 + c2*S2) for eight rows, whose S1, S2 and c1, c2 are interleaved. */
static EDB_INLINE void add8(float *acc, __m256 sx, __m256i s, __m256i c) {
    __m256 sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(s, c));
    _mm256_store_ps(acc, _mm256_fmadd_ps(sx, sum, _mm256_load_ps(acc)));
}

/* 32 rows; c: their scales, as widen_scales has them. */
static EDB_INLINE void finish32(float *acc, const edb_group_meta *meta, const __m256i *c,
                                counts found) {
    __m256 sx = _mm256_set1_ps(meta->sx);
    __m256i bias = _mm256_set1_epi16((int16_t)meta->bias);
    two s1 = widen(found.low.a, found.high.a, bias), s2 = widen(found.low.b, found.high.b, bias);
    add8(acc, sx, _mm256_unpacklo_epi16(s1.a, s2.a), c[0]);
    add8(acc + 8, sx, _mm256_unpackhi_epi16(s1.a, s2.a), c[1]);
    add8(acc + 16, sx, _mm256_unpacklo_epi16(s1.b, s2.b), c[2]);
    add8(acc + 24, sx, _mm256_unpackhi_epi16(s1.b, s2.b), c[3]);
}

/* 32 rows of half a pair; c1_high: their c1 << 8 as words. */
static EDB_INLINE void finish_half32(float *acc, const edb_group_meta *meta, const __m256i *c1_high,
                                     __m256i low, __m256i high) {
    __m256 sx = _mm256_set1_ps(meta->sx);
    two s = widen(low, high, _mm256_set1_epi16((int16_t)meta->bias));
    finish_half16(acc, sx, s.a, c1_high[0]);
    finish_half16(acc + 16, sx, s.b, c1_high[1]);
}

/* c1, c2 of 64 rows as words, in the order of acc. */
static EDB_INLINE void widen_scales(const uint8_t *c1, __m256i *c) {
    const __m256i zero = _mm256_setzero_si256();
    for (int row = 0; row < EDB_TILE; row += 32, c += 4) {
        __m256i first = load256(c1 + row), second = load256(c1 + EDB_TILE + row);
        __m256i low = _mm256_unpacklo_epi8(first, second);
        __m256i high = _mm256_unpackhi_epi8(first, second);
        c[0] = _mm256_srai_epi16(_mm256_unpacklo_epi8(zero, low), 8);
        c[1] = _mm256_srai_epi16(_mm256_unpackhi_epi8(zero, low), 8);
        c[2] = _mm256_srai_epi16(_mm256_unpacklo_epi8(zero, high), 8);
        c[3] = _mm256_srai_epi16(_mm256_unpackhi_epi8(zero, high), 8);
    }
}

static EDB_INLINE void widen_half_scales(const uint8_t *c1, __m256i *c1_high) {
    const __m256i zero = _mm256_setzero_si256();
    for (int row = 0; row < EDB_TILE; row += 32, c1_high += 2) {
        c1_high[0] = _mm256_unpacklo_epi8(zero, load256(c1 + row));
        c1_high[1] = _mm256_unpackhi_epi8(zero, load256(c1 + row));
    }
}

static EDB_INLINE void store_indices(uint8_t *to, __m256i a, __m256i b) {
    _mm256_store_si256((__m256i *)(void *)to, a);
    _mm256_store_si256((__m256i *)(void *)(to + 32), b);
}

/* Of each quad rows 0-31, b1 then b2; then the same of rows 32-63. */
static EDB_INLINE void unpack(const uint8_t *block, uint8_t *indices) {
    for (int row = 0; row < EDB_TILE; row += 32) {
        for (int quad = 0; quad < EDB_QUADS; quad++, indices += 64) {
            __m256i bits = load256(block + 64 * quad + row);
            store_indices(indices, low_nibbles(bits), high_nibbles(bits));
        }
    }
}

/* Of each quad rows 0-31, then rows 32-63. */
static EDB_INLINE void unpack_half(const uint8_t *half, uint8_t *indices) {
    for (int j = 0; j < EDB_QUADS / 2; j++, half += 64, indices += 128) {
        __m256i a = load256(half), b = load256(half + 32);
        store_indices(indices, low_nibbles(a), low_nibbles(b));
        store_indices(indices + 64, high_nibbles(a), high_nibbles(b));
    }
}

/* Indices, and sums of tokens; 2 KiB apart, for a store holds up loads of the same place in a page. */
typedef struct {
    _Alignas(64) uint8_t indices[2 * INDEX_BYTES];
    _Alignas(64) float sums[EDB_PREPARED_ROWS][EDB_TILE];
} workspace;

/* To the first-level cache: a token's tables of the next group, but for the second ones. */
static EDB_INLINE void fetch_tables(const uint8_t *tables) {
    for (int i = 0; i < SUM_TABLES; i += 64)
        _mm_prefetch((const char *)tables + TABLE_BYTES + i, _MM_HINT_T0);
}

void edb_few_rows_avx2(const uint8_t *block, int64_t groups, const edb_prepared *rows, float *acc,
                       const uint8_t *next) {
    workspace w;
    memset(w.sums, 0, (size_t)rows->n * sizeof *w.sums);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES);
        __m256i c[8];
        unpack(block, w.indices);
        widen_scales(block + 1024, c);
        _mm_prefetch(ahead + 1024, _MM_HINT_T1);
        _mm_prefetch(ahead + 1088, _MM_HINT_T1);
        for (int64_t t = 0; t < rows->n; t++) {
            const uint8_t *tables = rows->bytes[t] + TABLE_BYTES * g;
            const edb_group_meta *meta = rows->meta[t] + g;
            const char *fetch = t < 2 ? ahead + 512 * t : (const char *)block; /* which is there */
            fetch_tables(tables);
            finish32(w.sums[t], meta, c, count(tables, meta->wide, w.indices, fetch));
            finish32(w.sums[t] + 32, meta, c + 4,
                     count(tables, meta->wide, w.indices + INDEX_BYTES, fetch + 256));
        }
    }
    for (int64_t t = 0; t < rows->n; t++) store_rows(acc + EDB_TILE * t, w.sums[t]);
}

void edb_few_half_rows_avx2(const uint8_t *half, int64_t groups, const edb_prepared *rows,
                            float *acc, const uint8_t *next) {
    workspace w;
    memset(w.sums, 0, (size_t)rows->n * sizeof *w.sums);
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES) {
        const char *ahead = edb_ahead(half, groups - g, next, EDB_HALF_BYTES);
        __m256i c1_high[4];
        unpack_half(half, w.indices);
        widen_half_scales(half + 512, c1_high);
        _mm_prefetch(ahead + 512, _MM_HINT_T1);
        for (int64_t t = 0; t < rows->n; t++) {
            const uint8_t *tables = rows->bytes[t] + TABLE_BYTES * g;
            const edb_group_meta *meta = rows->meta[t] + g;
            const char *fetch = t < 2 ? ahead + 256 * t : (const char *)half;
            fetch_tables(tables);
            counts found = count(tables, meta->wide, w.indices, fetch);
            finish_half32(w.sums[t], meta, c1_high, found.low.a, found.high.a);
            finish_half32(w.sums[t] + 32, meta, c1_high + 2, found.low.b, found.high.b);
        }
    }
    for (int64_t t = 0; t < rows->n; t++) store_rows(acc + EDB_TILE * t, w.sums[t]);
}

EDB_TARGET_END

#else
typedef int edb_no_few_avx2_here; /* an empty file is no valid C */
#endif
