/*
 * The exact look-up for AVX2 by several tokens, with the tables of lookup_avx2.c. A block goes through all
 * tokens before the next, which comes from memory meanwhile. Tables differ, indices do not: 32 rows by
 * four columns are unpacked once for two tokens, whose eight sums, two indices and three other values
 * are as many as registers hold.
 *
 * On Zen 4 shuffles and unpacking have pipes 1 and 2 to themselves; so the end of a group widens bytes
 * by vpmaddubsw (0 and 3), those of even rows apart from those of odd ones, and widens scales once for
 * all tokens. Bounds are those of lookup_avx2.c.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,f16c")

#include "finish_avx2.h"

enum { TABLE_BYTES = 32 * EDB_QUADS };

/* Sums of 32 rows: low and high bits for either plane, and low bits that were set aside. */
typedef struct {
    __m256i low1, low1a, high1, low2, low2a, high2;
} row_counts;

/* Instructions of their own: gcc 12 moves the sums about and spills. */
#define UNPACK(quad, hint)                                                      \
    "vmovdqu 64*" #quad "(%[block]), %[b1]\n\tvpsrlw $4, %[b1], %[b2]\n\t"      \
    "vpand %[nibble], %[b1], %[b1]\n\tvpand %[nibble], %[b2], %[b2]\n\t" hint   \
    " 64*" #quad "(%[fetch])\n\t"
#define COUNT(quad, table, low1, low2, high1, high2)                            \
    "vbroadcasti128 32*" #quad "(%[" table "]), %[low]\n\t"                     \
    "vbroadcasti128 32*" #quad "+16(%[" table "]), %[high]\n\t"                 \
    "vpshufb %[b1], %[low], %[sum]\n\tvpshufb %[b2], %[low], %[low]\n\t"        \
    "vpaddb %[sum], %[" low1 "], %[" low1 "]\n\t"                               \
    "vpaddb %[low], %[" low2 "], %[" low2 "]\n\t"                               \
    "vpshufb %[b1], %[high], %[sum]\n\tvpshufb %[b2], %[high], %[high]\n\t"     \
    "vpaddb %[sum], %[" high1 "], %[" high1 "]\n\t"                             \
    "vpaddb %[high], %[" high2 "], %[" high2 "]\n\t"
#define ONE(quad, hint) UNPACK(quad, hint) COUNT(quad, "x", "s1", "s2", "t1", "t2")
#define TWO(quad, hint) ONE(quad, hint) COUNT(quad, "y", "u1", "u2", "v1", "v2")
#define EIGHT(quads, hint) \
    quads(0, hint) quads(1, hint) quads(2, hint) quads(3, hint) \
    quads(4, hint) quads(5, hint) quads(6, hint) quads(7, hint)

#define SUMS_OF_ONE \
    [s1] "+x"(s->low1), [s2] "+x"(s->low2), [t1] "+x"(s->high1), [t2] "+x"(s->high2)
#define SUMS_OF_TWO                                                       \
    SUMS_OF_ONE, [u1] "+x"(r->low1), [u2] "+x"(r->low2), [v1] "+x"(r->high1), \
        [v2] "+x"(r->high2)
#define RUN_EIGHT(quads, hint, sums)                                                        \
    __asm__ volatile(EIGHT(quads, hint)                                                         \
                     : sums, [b1] "=&x"(b1), [b2] "=&x"(b2), [low] "=&x"(low),              \
                       [high] "=&x"(high), [sum] "=&x"(sum)                                     \
                     : [nibble] "x"(nibble), [block] "r"(block), [x] "r"(x), [y] "r"(y),        \
                       [fetch] "r"(fetch)                                                       \
                     : "memory")

/* Eight quads of 32 rows by one or two tokens; eight lines to fetch, near: to the first-level cache. */
static EDB_INLINE void count_quads(const uint8_t *block, int tokens, const uint8_t *x,
                                   const uint8_t *y, row_counts *s, row_counts *r,
                                   const char *fetch, int near) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i b1, b2, low, high, sum;
    if (tokens == 2 && near) {
        RUN_EIGHT(TWO, "prefetcht0", SUMS_OF_TWO);
    } else if (tokens == 2) {
        RUN_EIGHT(TWO, "prefetcht1", SUMS_OF_TWO);
    } else if (near) {
        RUN_EIGHT(ONE, "prefetcht0", SUMS_OF_ONE);
    } else {
        RUN_EIGHT(ONE, "prefetcht1", SUMS_OF_ONE);
    }
}

static EDB_INLINE void set_aside(row_counts *s) {
    s->low1a = s->low1;
    s->low2a = s->low2;
    s->low1 = s->low2 = _mm256_setzero_si256();
}

/* S of even rows, and of odd ones. */
static EDB_INLINE __m256i even_words(__m256i low_a, __m256i low_b, __m256i high, __m256i bias) {
    const __m256i byte = _mm256_set1_epi16(255);
    __m256i low = _mm256_add_epi16(_mm256_and_si256(low_a, byte), _mm256_and_si256(low_b, byte));
    __m256i rest = _mm256_maddubs_epi16(high, _mm256_set1_epi16(32));
    return _mm256_add_epi16(_mm256_add_epi16(low, bias), rest);
}

static EDB_INLINE __m256i odd_words(__m256i low_a, __m256i low_b, __m256i high, __m256i bias) {
    const __m256i once = _mm256_set1_epi16(1 << 8);
    __m256i low =
        _mm256_add_epi16(_mm256_maddubs_epi16(low_a, once), _mm256_maddubs_epi16(low_b, once));
    __m256i rest = _mm256_maddubs_epi16(high, _mm256_set1_epi16(32 << 8));
    return _mm256_add_epi16(_mm256_add_epi16(low, bias), rest);
}

/* acc += sx * (c1*S1 + c2*S2) for sixteen rows; c: their words, interleaved. */
static EDB_INLINE void add16(float *acc, __m256 sx, __m256i s1, __m256i s2, const __m256i *c) {
    __m256 first = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_unpacklo_epi16(s1, s2), c[0]));
    __m256 last = _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_unpackhi_epi16(s1, s2), c[1]));
    _mm256_store_ps(acc, _mm256_fmadd_ps(sx, first, _mm256_load_ps(acc)));
    _mm256_store_ps(acc + 8, _mm256_fmadd_ps(sx, last, _mm256_load_ps(acc + 8)));
}

/* acc: even rows 0..6 16..22 | 8..14 24..30, then odd ones, of 32. */
static EDB_INLINE void finish_counts(float *acc, const edb_group_meta *meta, const __m256i *c,
                                     row_counts s) {
    __m256 sx = _mm256_set1_ps(meta->sx);
    __m256i bias = _mm256_set1_epi16((int16_t)meta->bias);
    add16(acc, sx, even_words(s.low1a, s.low1, s.high1, bias),
          even_words(s.low2a, s.low2, s.high2, bias), c);
    add16(acc + 16, sx, odd_words(s.low1a, s.low1, s.high1, bias),
          odd_words(s.low2a, s.low2, s.high2, bias), c + 2);
}

/* (c1, c2) as words in the order of acc, of 64 rows. */
static EDB_INLINE void widen_scales(const uint8_t *c1_bytes, __m256i *c) {
    for (int row = 0; row < EDB_TILE; row += 32, c += 4) {
        __m256i c1 = load256(c1_bytes + row), c2 = load256(c1_bytes + EDB_TILE + row);
        __m256i even1 = _mm256_srai_epi16(_mm256_slli_epi16(c1, 8), 8);
        __m256i even2 = _mm256_srai_epi16(_mm256_slli_epi16(c2, 8), 8);
        __m256i odd1 = _mm256_srai_epi16(c1, 8), odd2 = _mm256_srai_epi16(c2, 8);
        c[0] = _mm256_unpacklo_epi16(even1, even2);
        c[1] = _mm256_unpackhi_epi16(even1, even2);
        c[2] = _mm256_unpacklo_epi16(odd1, odd2);
        c[3] = _mm256_unpackhi_epi16(odd1, odd2);
    }
}

static EDB_INLINE void store_even_and_odd(float *out, const float *acc) {
    for (int row = 0; row < EDB_TILE; row += 32) {
        for (int i = 0; i < 16; i += 8) {
            __m256 even = _mm256_load_ps(acc + row + i), odd = _mm256_load_ps(acc + row + 16 + i);
            __m256 first = _mm256_unpacklo_ps(even, odd), last = _mm256_unpackhi_ps(even, odd);
            _mm_storeu_ps(out + row + i, _mm256_castps256_ps128(first));
            _mm_storeu_ps(out + row + i + 4, _mm256_castps256_ps128(last));
            _mm_storeu_ps(out + row + i + 16, _mm256_extractf128_ps(first, 1));
            _mm_storeu_ps(out + row + i + 20, _mm256_extractf128_ps(last, 1));
        }
    }
}

/* One group, one or two tokens; ahead: sixteen lines to fetch. */
static EDB_INLINE void multiply_two(const uint8_t *block, const __m256i *c, int tokens,
                                    const uint8_t *x, const uint8_t *y, const edb_group_meta *of_x,
                                    const edb_group_meta *of_y, float *acc, const char *ahead) {
    const __m256i zero = _mm256_setzero_si256();
    const row_counts none = {zero, zero, zero, zero, zero, zero};
    const int half = TABLE_BYTES / 2; /* tables of eight quads */
#pragma GCC unroll 2
    for (int last = 0; last < 2; last++, c += 4, acc += 32, block += 32) {
        row_counts s = none, r = none;
        const char *fetch = last ? (const char *)x + TABLE_BYTES : ahead;
        const char *fetch_too = last ? (const char *)y + TABLE_BYTES : ahead + 512;
        count_quads(block, tokens, x, y, &s, &r, fetch, last);
        set_aside(&s);
        set_aside(&r);
        count_quads(block + 512, tokens, x + half, y + half, &s, &r, fetch_too, last);
        finish_counts(acc, of_x, c, s);
        if (tokens == 2) finish_counts(acc + EDB_TILE, of_y, c, r);
    }
}

void edb_few_rows_avx2(const uint8_t *block, int64_t groups, const edb_prepared *rows, float *acc,
                      const uint8_t *next) {
    _Alignas(32) float sums[EDB_PREPARED_ROWS * EDB_TILE];
    int64_t n = rows->n;
    memset(sums, 0, (size_t)n * EDB_TILE * sizeof *sums);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES), *fetch = ahead;
        __m256i c[8];
        _mm_prefetch(ahead + 1024, _MM_HINT_T1);
        _mm_prefetch(ahead + 1088, _MM_HINT_T1);
        widen_scales(block + 1024, c);
        for (int64_t t = 0; t < n; t += 2) {
            const uint8_t *x = rows->bytes[t] + TABLE_BYTES * g;
            const edb_group_meta *of_x = rows->meta[t] + g;
            float *to = sums + EDB_TILE * t;
            if (t + 1 < n) {
                multiply_two(block, c, 2, x, rows->bytes[t + 1] + TABLE_BYTES * g, of_x,
                             rows->meta[t + 1] + g, to, fetch);
            } else {
                multiply_two(block, c, 1, x, x, of_x, of_x, to, fetch);
            }
            fetch = (const char *)block; /* which is there */
        }
    }
    for (int64_t t = 0; t < n; t++) store_even_and_odd(acc + EDB_TILE * t, sums + EDB_TILE * t);
}

EDB_TARGET_END

#else
typedef int edb_no_few_avx2_here; /* an empty file is no valid C */
#endif
