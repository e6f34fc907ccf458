/*
 * Products of int8 codes and activations for AVX-512 with VNNI, and of blocks of pairs expanded to
 * such codes, for many tokens at once; the layout is that of edgedb.h.
 *
 * vpdpbusd wants one unsigned side: codes are shifted by 128, and every sum starts at -128 * the sum
 * of the token's activations (edb_offsets_avx512). A product is at most 255 * 127, a sum of 64 at
 * most 2,072,640 either way: exact in 32 bits, and less 128 times the activations, as float32.
 *
 *   instruction          Zen 4: latency, per cycle     Ice Lake: latency, ports
 *   vpdpbusd z           4, 1                          5, p0
 *   vfmadd z             4, 1                          4, p0
 *   vpermb z             4, 1                          3, p5
 *
 * Four tokens by 64 rows of a group: 256 vpdpbusd and 16 vfmadd on the same ports, 272 cycles.
 */
#include <string.h>

#include "half.h"
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512vbmi,avx512vnni")

/* Among the products of four tokens four columns of the next block are expanded. */
_Static_assert(EDB_TOKEN_BLOCK <= 4 * EDB_QUADS, "a block has no more columns to expand");

static EDB_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }

/*
 * Sixteen rows by four columns fill a register with levels, and the four levels of sixteen rows
 * fill another: vpermb looks up by row and bits. Index bits 0 and 4 are b1 and b2, the rest the row.
 */
typedef struct {
    const uint8_t *block;
    __m512i levels[4]; /* of sixteen rows each, plus 128 */
    uint8_t *codes;    /* written */
} expansion;

static EDB_INLINE expansion start_expansion(const uint8_t *block, uint8_t *codes) {
    /* Index -> row and which of 0, c1, c2, c1 + c2. */
    const __m512i index = _mm512_set_epi8(
        63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41,
        40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18,
        17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i row_of_index =
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(index, 1), _mm512_set1_epi8(7)),
                        _mm512_and_si512(_mm512_srli_epi16(index, 2), _mm512_set1_epi8(8)));
    const __mmask64 has_c1 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(1));
    const __mmask64 has_c2 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(16));
    const __m512i c1 = load512(block + 1024), c2 = load512(block + 1088);
    expansion to = {.block = block, .codes = codes};
    for (int slice = 0; slice < 4; slice++) {
        __m512i from = _mm512_add_epi8(row_of_index, _mm512_set1_epi8((char)(16 * slice)));
        __m512i sum = _mm512_add_epi8(_mm512_maskz_permutexvar_epi8(has_c1, from, c1),
                                      _mm512_maskz_permutexvar_epi8(has_c2, from, c2));
        to.levels[slice] = _mm512_xor_si512(sum, _mm512_set1_epi8(-128));
    }
    return to;
}

/* The codes of rows 16*slice..16*slice+15, columns of one quad. */
static EDB_INLINE void expand_16x4(const expansion *to, int64_t quad, int slice) {
    const __m512i bits_only = _mm512_set1_epi8(0x11);
    const __m512i byte =
        _mm512_set_epi8(15, 15, 15, 15, 14, 14, 14, 14, 13, 13, 13, 13, 12, 12, 12, 12, 11, 11, 11,
                        11, 10, 10, 10, 10, 9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 5,
                        5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    /* Row r of sixteen -> index bits 1, 2, 3 and 5. */
    const __m512i low_row = _mm512_and_si512(byte, _mm512_set1_epi8(7));
    const __m512i row =
        _mm512_or_si512(_mm512_slli_epi16(low_row, 1),
                        _mm512_slli_epi16(_mm512_and_si512(byte, _mm512_set1_epi8(8)), 2));
    /* Byte k of a dword, and the row within a qword: where its two bits come down from. */
    const __m512i shifts = _mm512_set1_epi64(0x2322212003020100);
    int64_t at = EDB_TILE * quad + 16 * slice;
    __m512i bits = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(to->block + at)));
    bits = _mm512_multishift_epi64_epi8(shifts, bits);
    bits = _mm512_ternarylogic_epi32(bits, bits_only, row, 0xea); /* bits & 0x11 | row */
    _mm512_storeu_si512(to->codes + 4 * at, _mm512_permutexvar_epi8(bits, to->levels[slice]));
}

static EDB_INLINE void expand_from_quad(const expansion *to, int64_t quad) {
    for (; quad < EDB_QUADS; quad++) {
        expand_16x4(to, quad, 0);
        expand_16x4(to, quad, 1);
        expand_16x4(to, quad, 2);
        expand_16x4(to, quad, 3);
    }
}

static EDB_INLINE __m512i four_activations(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

/* acc += sx * scales * dots for sixteen rows; scales: NULL, or of these rows. */
static EDB_INLINE void finish16(float *acc, __m512i dots, float sx, const float *scales) {
    __m512 scale = _mm512_set1_ps(sx);
    if (scales != NULL) scale = _mm512_mul_ps(scale, _mm512_loadu_ps(scales));
    __m512 sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots), _mm512_loadu_ps(acc));
    _mm512_storeu_ps(acc, sum);
}

static EDB_INLINE void finish64(float *acc, __m512i s0, __m512i s1, __m512i s2, __m512i s3,
                                float sx, const float *scales) {
    finish16(acc, s0, sx, scales);
    finish16(acc + 16, s1, sx, scales == NULL ? NULL : scales + 16);
    finish16(acc + 32, s2, sx, scales == NULL ? NULL : scales + 32);
    finish16(acc + 48, s3, sx, scales == NULL ? NULL : scales + 48);
}

/* A token's sums in sum0..sum3; its activations of the next group are fetched. */
#define START(sum, token)                                                                   \
    do {                                                                                    \
        sum##0 = sum##1 = sum##2 = sum##3 = _mm512_set1_epi32(offsets[token]);              \
        q_##sum = q + EDB_GROUP * (token);                                                  \
        _mm_prefetch(edb_past(q_##sum, to_next_group), _MM_HINT_T0);                        \
        if (next != NULL) expand_16x4(next, ((token) & ~(int64_t)3) / 4, (int)(token) % 4); \
    } while (0)

#define FINISH(sum, token) \
    finish64(acc + EDB_TILE * (token), sum##0, sum##1, sum##2, sum##3, sx[token], scales)

/* Instructions of their own: gcc 12 copies accumulators of the intrinsic, a quarter of the speed. */
#define DOTS(sum)                                                \
    __asm__(                                                     \
        "vpdpbusd %8, %4, %0\n\tvpdpbusd %8, %5, %1\n\t"         \
        "vpdpbusd %8, %6, %2\n\tvpdpbusd %8, %7, %3"             \
        : "+v"(sum##0), "+v"(sum##1), "+v"(sum##2), "+v"(sum##3) \
        : "v"(w0), "v"(w1), "v"(w2), "v"(w3), "v"(four_activations(q_##sum + 4 * quad)))

#define FOUR_QUADS(first, dots)                                                  \
    _Pragma("GCC unroll 4") for (int quad = first; quad < (first) + 4; quad++) { \
        const uint8_t *w = codes + 256 * quad;                                   \
        __m512i w0 = load512(w), w1 = load512(w + 64);                           \
        __m512i w2 = load512(w + 128), w3 = load512(w + 192);                    \
        dots;                                                                    \
    }

/*
 * 64 rows of one group by n tokens, a multiple of four. Four are under way, each four quads behind
 * the one before: finishing all at once takes a tenth of the time, finishing each among the products
 * of the others is free. Among them the next block is expanded too, four columns per four tokens.
 */
static EDB_INLINE void multiply(const uint8_t *codes, const float *scales, const int8_t *q,
                                const float *sx, const int32_t *offsets, int64_t n, float *acc,
                                int64_t to_next_group, const expansion *next) {
    __m512i a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3;
    const int8_t *q_a, *q_b, *q_c, *q_d;
    START(a, 0);
    FOUR_QUADS(0, DOTS(a))
    START(b, 1);
    FOUR_QUADS(4, DOTS(a); DOTS(b))
    START(c, 2);
    FOUR_QUADS(8, DOTS(a); DOTS(b); DOTS(c))
    START(d, 3);
    FOUR_QUADS(12, DOTS(a); DOTS(b); DOTS(c); DOTS(d))
    FINISH(a, 0);
    int64_t t = 4;
    for (; t < n; t += 4) {
        START(a, t);
        FOUR_QUADS(0, DOTS(a); DOTS(b); DOTS(c); DOTS(d))
        FINISH(b, t - 3);
        START(b, t + 1);
        FOUR_QUADS(4, DOTS(a); DOTS(b); DOTS(c); DOTS(d))
        FINISH(c, t - 2);
        START(c, t + 2);
        FOUR_QUADS(8, DOTS(a); DOTS(b); DOTS(c); DOTS(d))
        FINISH(d, t - 1);
        START(d, t + 3);
        FOUR_QUADS(12, DOTS(a); DOTS(b); DOTS(c); DOTS(d))
        FINISH(a, t);
    }
    FOUR_QUADS(0, DOTS(b); DOTS(c); DOTS(d))
    FINISH(b, t - 3);
    FOUR_QUADS(4, DOTS(c); DOTS(d))
    FINISH(c, t - 2);
    FOUR_QUADS(8, DOTS(d))
    FINISH(d, t - 1);
}

/* Functions of their own, for gcc 12 would load codes that it sees written before the loop, and spill. */
static __attribute__((noinline)) void multiply_levels(const uint8_t *codes, const edb_tokens *x,
                                                      int64_t n, float *acc,
                                                      const expansion *next) {
    multiply(codes, NULL, x->q, x->sx, x->offsets, n, acc, EDB_GROUP * x->stride, next);
}

static __attribute__((noinline)) void multiply_codes(const uint8_t *codes, const float *scales,
                                                     const edb_tokens *x, int64_t n, float *acc) {
    multiply(codes, scales, x->q, x->sx, x->offsets, n, acc, EDB_GROUP * x->stride, NULL);
}

static EDB_INLINE __m512i dot(__m512i sum, __m512i codes, __m512i activations) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activations));
    return sum;
}

/* 64 rows of one token and group, codes that are shifted. */
static EDB_INLINE void multiply_one(const uint8_t *codes, const float *scales,
                                    const edb_tokens *tokens, int64_t t, float *acc) {
    __m512i s0, s1, s2, s3;
    s0 = s1 = s2 = s3 = _mm512_set1_epi32(tokens->offsets[t]);
    const int8_t *q = tokens->q + EDB_GROUP * t;
#pragma GCC unroll 4
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        const uint8_t *w = codes + 256 * quad;
        __m512i x = four_activations(q + 4 * quad);
        s0 = dot(s0, load512(w), x);
        s1 = dot(s1, load512(w + 64), x);
        s2 = dot(s2, load512(w + 128), x);
        s3 = dot(s3, load512(w + 192), x);
    }
    finish64(acc + EDB_TILE * t, s0, s1, s2, s3, tokens->sx[t], scales);
}

static EDB_INLINE edb_tokens next_group(edb_tokens x) {
    x.q += EDB_GROUP * x.stride;
    x.sx += x.stride;
    x.offsets += x.stride;
    return x;
}

void edb_offsets_avx512(const int8_t *q, int64_t stride, int64_t groups, int32_t *offsets) {
    const __m512i by_128 = _mm512_set1_epi8(-128), zero = _mm512_setzero_si512();
    for (int64_t g = 0; g < groups; g++) {
        __m512i sums = _mm512_dpbusd_epi32(zero, by_128, load512(q + EDB_GROUP * stride * g));
        offsets[stride * g] = -_mm512_reduce_add_epi32(sums);
    }
}

/* half: the blocks are those of half a pair, and `pair` has room for one as a pair. */
static EDB_INLINE void expand_tile(const uint8_t *block, int64_t groups, const edb_tokens *tokens,
                                   float *acc, int half, uint8_t *pair) {
    _Alignas(64) uint8_t codes[2][EDB_CODES_BYTES];
    const int64_t bytes = half ? EDB_HALF_BYTES : EDB_BLOCK_BYTES;
    int64_t fours = tokens->n & ~(int64_t)3;
    edb_tokens x = *tokens;
    memset(acc, 0, (size_t)x.n * EDB_TILE * sizeof *acc);
    if (half) edb_widen_half(block, pair);
    expansion next = start_expansion(half ? pair : block, codes[0]);
    expand_from_quad(&next, 0);
    for (int64_t g = 0; g < groups; g++, x = next_group(x)) {
        const uint8_t *levels = next.codes;
        if (g + 1 < groups) block += bytes; /* behind the last one: expand it again */
        if (half) edb_widen_half(block, pair);
        next = start_expansion(half ? pair : block, codes[(g + 1) % 2]);
        for (int64_t line = 0; line < bytes; line += 64)
            _mm_prefetch(edb_past(block, bytes + line), _MM_HINT_T1);
        if (fours > 0) multiply_levels(levels, &x, fours, acc, &next);
        expand_from_quad(&next, fours / 4);
        for (int64_t t = fours; t < x.n; t++) multiply_one(levels, NULL, &x, t, acc);
    }
}

void edb_expand_tile_avx512(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                            float *acc, const uint8_t *next) {
    if (tokens->n <= EDB_FEW) {
        edb_few_tile_avx512(blocks, groups, tokens, acc, next);
        return;
    }
    expand_tile(blocks, groups, tokens, acc, 0, NULL);
}

void edb_expand_half_tile_avx512(const uint8_t *halves, int64_t groups, const edb_tokens *tokens,
                                 float *acc, const uint8_t *next) {
    if (tokens->n <= EDB_FEW) {
        edb_few_half_tile_avx512(halves, groups, tokens, acc, next);
        return;
    }
    _Alignas(64) uint8_t pair[EDB_BLOCK_BYTES];
    memset(pair + EDB_BLOCK_BYTES - EDB_TILE, 0, EDB_TILE); /* c2 */
    expand_tile(halves, groups, tokens, acc, 1, pair);
}

void edb_int8_tile_avx512(const int8_t *codes, const float *scales, int64_t groups,
                          const edb_tokens *tokens, float *acc, const int8_t *next) {
    if (tokens->n <= EDB_FEW) {
        edb_few_int8_tile_avx512(codes, scales, groups, tokens, acc, next);
        return;
    }
    const __m512i flip = _mm512_set1_epi8(-128);
    int64_t fours = tokens->n & ~(int64_t)3;
    edb_tokens x = *tokens;
    for (int64_t g = 0; g < groups; g++, x = next_group(x)) {
        const char *ahead = edb_ahead(codes, groups - g, next, EDB_CODES_BYTES);
        _Alignas(64) uint8_t shifted[EDB_CODES_BYTES];
        for (int i = 0; i < EDB_CODES_BYTES; i += 64) {
            _mm512_store_si512(shifted + i, _mm512_xor_si512(load512(codes + i), flip));
            _mm_prefetch(ahead + i, _MM_HINT_T1);
        }
        multiply_codes(shifted, scales, &x, fours, acc);
        for (int64_t t = fours; t < x.n; t++) multiply_one(shifted, scales, &x, t, acc);
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
    }
}

EDB_TARGET_END

#else
typedef int edb_no_avx512_int8_here; /* an empty file is no valid C */
#endif
