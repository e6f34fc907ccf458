/*
 * Products of int8 codes and activations for AVX2, on the layout of edgedb.h. vpmaddubsw multiplies
 * bytes, but one side without a sign and with sums of two in 16 bits; which way is the cheapest
 * depends on the activations:
 *
 *   none below 0 (weights of a softmax):  vpmaddubsw, a pair <= 2 * 127 * 128 = 32,512. Where their sums
 *                            allow, two or four quads are added in 16 bits before vpmaddwd widens them
 *   up to three tokens:      |w| * sign(x, w), likewise
 *   from four tokens on:     vpsignb would be the limit, for it shares two ports with the
 *                            multiplications. So codes and activations are widened to 16 bits, columns
 *                            0 and 2 of a quad apart from 1 and 3, and vpmaddwd alone multiplies
 *
 *   instruction     Zen 3, Zen 4: latency, per cycle     Skylake: latency, ports
 *   vpaddd y        1, 4                                 1, p015
 *   vpmaddubsw y    3, 2                                 5, p01
 *   vpmaddwd y      3, 2                                 5, p01
 *   vpsignb y       1, 2                                 1, p01
 *
 * Vector instructions for 32 products: 4; from four tokens on 4 and a share of widening; of weights 3,
 * 2.5 or 2.25. 64 products stay below 2^21: sums are exact.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,f16c")

#include "finish_avx2.h"

enum {
    SLICE_ROWS = 8, /* of one register, four columns each */
    SLICE_BYTES = 4 * SLICE_ROWS,
    SLICES = EDB_TILE / SLICE_ROWS,
    QUAD_BYTES = 4 * EDB_TILE,
    TOGETHER = 4 /* tokens that are worth widening codes */
};

/*
 * Without this gcc 12 first makes all the addends of an unrolled loop and then adds them up, which
 * spills every one: the value is now complete at this point of the program.
 */
#define IN_REGISTER(x) __asm__("" : "+x"(x))

static EDB_INLINE __m256i four_codes(const int8_t *p) {
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static EDB_INLINE __m256i add_pairs(__m256i sum, __m256i pairs) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    IN_REGISTER(sum);
    return sum;
}

/* ---- one token ---- */

/* A token's activations of a group, and what comes after its codes. */
typedef struct {
    const int8_t *q;
    float sx;
    const char *ahead; /* NULL: it is fetched elsewhere */
} one_token;

static EDB_INLINE void fetch_ahead(edb_fetch fetch, const one_token *x, const float *scales, int quad) {
    if (x->ahead == NULL) return;
    if (fetch == EDB_NEAR) {
        edb_fetch_codes(x->ahead, quad);
    } else {
        edb_fetch_scales(scales, quad);
    }
}

/* Sums of 64 rows. */
static EDB_INLINE void finish_64(float *acc, const __m256i *dots, float sx, const float *scales) {
#pragma GCC unroll 8
    for (int i = 0; i < SLICES; i++)
        finish_dots(acc + SLICE_ROWS * i, dots[i], sx, scales + SLICE_ROWS * i);
}

/* 64 rows of one token and group, straight from memory. */
static EDB_INLINE void multiply_signed(edb_fetch fetch, const int8_t *codes, const float *scales,
                                       const one_token *token, float *acc) {
    __m256i dots[SLICES] = {0};
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m256i x = four_codes(token->q + 4 * quad);
#pragma GCC unroll 8
        for (int i = 0; i < SLICES; i++) {
            __m256i w = load256(codes + QUAD_BYTES * quad + SLICE_BYTES * i);
            __m256i size = _mm256_abs_epi8(w);
            dots[i] = add_pairs(dots[i], _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w)));
        }
        fetch_ahead(fetch, token, scales, quad);
    }
    finish_64(acc, dots, token->sx, scales);
}

/* The same of activations of which none is below 0; `together` quads, 1, 2 or 4, fit in 16 bits. */
static EDB_INLINE void multiply_unsigned(const int together, edb_fetch fetch, const int8_t *codes,
                                         const float *scales, const one_token *token, float *acc) {
    __m256i dots[SLICES] = {0};
    const int apart = EDB_QUADS / together;
    for (int quad = 0; quad < apart; quad++) {
        __m256i x[4];
#pragma GCC unroll 4
        for (int j = 0; j < together; j++) x[j] = four_codes(token->q + 4 * (quad + apart * j));
#pragma GCC unroll 8
        for (int i = 0; i < SLICES; i++) {
            const int8_t *w = codes + QUAD_BYTES * quad + SLICE_BYTES * i;
            __m256i pairs = _mm256_maddubs_epi16(x[0], load256(w));
#pragma GCC unroll 3
            for (int j = 1; j < together; j++)
                pairs = _mm256_add_epi16(pairs,
                                         _mm256_maddubs_epi16(x[j], load256(w + QUAD_BYTES * apart * j)));
            dots[i] = add_pairs(dots[i], pairs);
        }
        for (int j = 0; j < together; j++) fetch_ahead(fetch, token, scales, quad + apart * j);
    }
    finish_64(acc, dots, token->sx, scales);
}

/*
 * How many quads of a group go together: quad i with those 8, or 4, 8 and 12 on. Each of the two pairs of
 * columns of a quad has its own 16 bits, for which the activations of a sum may be 255 together.
 */
static EDB_INLINE int quads_together(const int8_t *q) {
    const __m256i one = _mm256_set1_epi8(1), most = _mm256_set1_epi16(255);
    __m256i two = _mm256_add_epi16(_mm256_maddubs_epi16(load256(q), one),
                                   _mm256_maddubs_epi16(load256(q + 32), one));
    __m256i four = _mm256_add_epi16(two, _mm256_permute4x64_epi64(two, 0x4e));
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi16(two, most)) != 0) return 1;
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(four, most)) != 0 ? 2 : 4;
}

/* ---- tokens that share widened codes ---- */

/* Columns 0 and 2 of each quad, and 1 and 3. */
typedef struct {
    _Alignas(32) int16_t even[EDB_CODES_BYTES / 2], odd[EDB_CODES_BYTES / 2];
} wide_codes;

typedef struct {
    _Alignas(32) int16_t even[TOGETHER][EDB_GROUP / 2], odd[TOGETHER][EDB_GROUP / 2];
} wide_tokens;

static EDB_INLINE void widen(const int8_t *bytes, int64_t count, int16_t *even, int16_t *odd) {
    for (int64_t i = 0; i < count; i += 32) {
        __m256i x = load256(bytes + i);
        _mm256_store_si256((__m256i *)(even + i / 2),
                           _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
        _mm256_store_si256((__m256i *)(odd + i / 2), _mm256_srai_epi16(x, 8));
    }
}

static EDB_INLINE __m256i dot2(__m256i sum, __m256i w, const int16_t *x) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, _mm256_set1_epi32(two)));
    IN_REGISTER(sum);
    return sum;
}

/* Two slices of rows, from `row` on, by four tokens of one group. */
static EDB_INLINE void multiply_wide(const wide_codes *codes, int row, const float *scales,
                                     const wide_tokens *x, const float *sx, float *acc) {
    __m256i a[TOGETHER], b[TOGETHER];
#pragma GCC unroll 4
    for (int t = 0; t < TOGETHER; t++) a[t] = b[t] = _mm256_setzero_si256();
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        int at = 2 * (EDB_TILE * quad + row);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const int16_t *w = (half ? codes->odd : codes->even) + at;
            __m256i wa = load256(w), wb = load256(w + 2 * SLICE_ROWS);
#pragma GCC unroll 4
            for (int t = 0; t < TOGETHER; t++) {
                const int16_t *two = (half ? x->odd[t] : x->even[t]) + 2 * quad;
                a[t] = dot2(a[t], wa, two);
                b[t] = dot2(b[t], wb, two);
            }
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < TOGETHER; t++, acc += EDB_TILE) {
        finish_dots(acc + row, a[t], sx[t], scales + row);
        finish_dots(acc + row + SLICE_ROWS, b[t], sx[t], scales + row + SLICE_ROWS);
    }
}

/* 64 rows of n tokens, a multiple of four. */
static EDB_INLINE void multiply_together(const int8_t *codes, const float *scales, const int8_t *q,
                                         const float *sx, int64_t n, float *acc) {
    wide_codes wide;
    widen(codes, EDB_CODES_BYTES, wide.even, wide.odd);
    for (int64_t t = 0; t < n; t += TOGETHER) {
        wide_tokens x;
        for (int i = 0; i < TOGETHER; i++)
            widen(q + EDB_GROUP * (t + i), EDB_GROUP, x.even[i], x.odd[i]);
        for (int row = 0; row < EDB_TILE; row += 2 * SLICE_ROWS)
            multiply_wide(&wide, row, scales, &x, sx + t, acc + EDB_TILE * t);
    }
}

/* ---- a tile ---- */

static EDB_INLINE int is_signed(const int8_t *q, int64_t n) {
    __m256i any = _mm256_setzero_si256();
    for (int64_t i = 0; i < EDB_GROUP * n; i += 32) any = _mm256_or_si256(any, load256(q + i));
    return _mm256_movemask_epi8(any) != 0;
}

static EDB_INLINE void multiply_group(edb_fetch fetch, const int8_t *codes, const float *scales,
                                      const int8_t *q, const float *sx, int64_t n, float *acc,
                                      const char *ahead) {
    int has_signs = is_signed(q, n);
    int64_t together = has_signs ? n - n % TOGETHER : 0;
    if (together > 0) multiply_together(codes, scales, q, sx, together, acc);
    for (int64_t t = together; t < n; t++) {
        one_token token = {q + EDB_GROUP * t, sx[t], t == 0 ? ahead : NULL};
        float *to = acc + EDB_TILE * t;
        switch (has_signs ? 0 : quads_together(token.q)) {
        case 0: multiply_signed(fetch, codes, scales, &token, to); break;
        case 1: multiply_unsigned(1, fetch, codes, scales, &token, to); break;
        case 2: multiply_unsigned(2, fetch, codes, scales, &token, to); break;
        default: multiply_unsigned(4, fetch, codes, scales, &token, to); break;
        }
    }
}

void edb_int8_tile_avx2(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next) {
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    edb_fetch fetch = edb_fetch_here;
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = fetch == EDB_LEAD
                                ? edb_lead(codes, groups - g, next, EDB_CODES_BYTES)
                                : edb_blocks_ahead(codes, groups - g, next, EDB_CODES_BYTES, 1);
        multiply_group(fetch, codes, scales, q, sx, tokens->n, acc, ahead);
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * tokens->stride;
        sx += tokens->stride;
    }
}

EDB_TARGET_END

#else
typedef int edb_no_avx2_int8_here; /* an empty file is no valid C */
#endif
