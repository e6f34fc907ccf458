/*
 * Products of int8 codes and activations for AVX2, on the layout of edgedb.h. vpmaddubsw multiplies
 * bytes, but one side without a sign and with sums of two in 16 bits; which way is the cheapest
 * depends on what the codes are multiplied with:
 *
 *   weights of a softmax:    none is below 0 and eight are 255 at most: so four quads are added in 16
 *                            bits, <= 255 * 128 = 32,640, before vpmaddwd widens them
 *   queries:                 of four codes those above 0 are 128 at most, as those below: so two quads of
 *                            keys + 128 are added in 16 bits, within +-255 * 128
 *   up to three activations: |w| * sign(x, w), a pair <= 2 * 127 * 128
 *   from four on:            vpsignb would be the limit, for it shares two ports with the
 *                            multiplications. So sixteen rows are widened in registers to 16 bits, columns
 *                            0 and 2 of a quad apart from 1 and 3, for vpmaddwd by four tokens
 *
 *   instruction     Zen 3, Zen 4: latency, per cycle     Skylake: latency, ports
 *   vpaddd y        1, 4                                 1, p015
 *   vpmaddubsw y    3, 2                                 5, p01
 *   vpmaddwd y      3, 2                                 5, p01
 *   vpsignb y       1, 2                                 1, p01
 *
 * Vector instructions for 32 products: 5; from four tokens on 4.75; of weights 2.25, of four queries 3.4.
 * 64 products stay below 2^21: sums are exact.
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

/* Of __m256i gcc 12 copies a sum to another register each time round a loop, or to memory. */
typedef int16_t words __attribute__((vector_size(32)));
typedef int32_t sums __attribute__((vector_size(32)));

static EDB_INLINE __m256i four_codes(const int8_t *p) {
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm256_set1_epi32(codes);
}

/* Products of bytes, of two columns each; sums of such pairs. */
static EDB_INLINE words multiply_bytes(__m256i sizes, __m256i codes) {
    return (words)_mm256_maddubs_epi16(sizes, codes);
}

static EDB_INLINE sums widened(words pairs) {
    return (sums)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
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
static EDB_INLINE void finish_64(float *acc, const sums *dots, float sx, const float *scales) {
#pragma GCC unroll 8
    for (int i = 0; i < SLICES; i++)
        finish_dots(acc + SLICE_ROWS * i, (__m256i)dots[i], sx, scales + SLICE_ROWS * i);
}

/* 64 rows of one token and group, straight from memory. */
static EDB_INLINE void multiply_signed(edb_fetch fetch, const int8_t *codes, const float *scales,
                                       const one_token *token, float *acc) {
    sums dots[SLICES] = {0};
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m256i x = four_codes(token->q + 4 * quad);
#pragma GCC unroll 8
        for (int i = 0; i < SLICES; i++) {
            __m256i w = load256(codes + QUAD_BYTES * quad + SLICE_BYTES * i);
            __m256i size = _mm256_abs_epi8(w);
            dots[i] += widened(multiply_bytes(size, _mm256_sign_epi8(x, w)));
        }
        fetch_ahead(fetch, token, scales, quad);
    }
    finish_64(acc, dots, token->sx, scales);
}

/* The same of weights, none below 0, of which four quads fit in 16 bits: see find_bounds. */
static EDB_INLINE void multiply_weights(edb_fetch fetch, const int8_t *codes, const float *scales,
                                        const one_token *token, float *acc) {
    sums dots[SLICES] = {0};
    for (int quad = 0; quad < EDB_QUADS / 4; quad++) {
        const int8_t *w = codes + QUAD_BYTES * quad;
        __m256i x[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) x[j] = four_codes(token->q + 4 * (quad + 4 * j));
#pragma GCC unroll 8
        for (int i = 0; i < SLICES; i++, w += SLICE_BYTES) {
            words pairs = multiply_bytes(x[0], load256(w));
#pragma GCC unroll 3
            for (int j = 1; j < 4; j++) pairs += multiply_bytes(x[j], load256(w + 4 * QUAD_BYTES * j));
            dots[i] += widened(pairs);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) fetch_ahead(fetch, token, scales, quad + 4 * j);
    }
    finish_64(acc, dots, token->sx, scales);
}

/* ---- four tokens ---- */

/* Columns 0 and 2 of each quad as words; and 1 and 3. */
static EDB_INLINE __m256i even(__m256i bytes) {
    return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
}

static EDB_INLINE __m256i odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

typedef struct {
    _Alignas(32) int32_t even[TOGETHER][EDB_QUADS], odd[TOGETHER][EDB_QUADS];
} wide_tokens;

static EDB_INLINE void widen(const int8_t *q, wide_tokens *x) {
    for (int t = 0; t < TOGETHER; t++, q += EDB_GROUP) {
        for (int i = 0; i < 2; i++) {
            __m256i bytes = load256(q + 32 * i);
            _mm256_store_si256((__m256i *)(void *)(x->even[t] + 8 * i), even(bytes));
            _mm256_store_si256((__m256i *)(void *)(x->odd[t] + 8 * i), odd(bytes));
        }
    }
}

static EDB_INLINE sums dot(__m256i w_even, __m256i w_odd, __m256i x_even, __m256i x_odd) {
    return (sums)_mm256_madd_epi16(w_even, x_even) + (sums)_mm256_madd_epi16(w_odd, x_odd);
}

/* Two slices of rows, from `row` on, by four tokens of one group. */
static EDB_INLINE void multiply_wide(const int8_t *codes, int row, const float *scales,
                                     const wide_tokens *x, const float *sx, float *acc) {
    sums a[TOGETHER] = {0}, b[TOGETHER] = {0};
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m256i wa = load256(codes + QUAD_BYTES * quad + 4 * row);
        __m256i wb = load256(codes + QUAD_BYTES * quad + 4 * row + SLICE_BYTES);
        __m256i wa_even = even(wa), wa_odd = odd(wa), wb_even = even(wb), wb_odd = odd(wb);
#pragma GCC unroll 4
        for (int t = 0; t < TOGETHER; t++) {
            __m256i x_even = _mm256_set1_epi32(x->even[t][quad]);
            __m256i x_odd = _mm256_set1_epi32(x->odd[t][quad]);
            a[t] += dot(wa_even, wa_odd, x_even, x_odd);
            b[t] += dot(wb_even, wb_odd, x_even, x_odd);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < TOGETHER; t++, acc += EDB_TILE) {
        finish_dots(acc + row, (__m256i)a[t], sx[t], scales + row);
        finish_dots(acc + row + SLICE_ROWS, (__m256i)b[t], sx[t], scales + row + SLICE_ROWS);
    }
}

/* 64 rows of n tokens, a multiple of four. */
static EDB_INLINE void multiply_together(const int8_t *codes, const float *scales, const int8_t *q,
                                         const float *sx, int64_t n, float *acc, const char *ahead) {
    for (int64_t t = 0; t < n; t += TOGETHER, acc += EDB_TILE * TOGETHER) {
        wide_tokens x;
        widen(q + EDB_GROUP * t, &x);
        for (int row = 0; row < EDB_TILE; row += 2 * SLICE_ROWS) {
            for (int quad = row / 4; t == 0 && quad < row / 4 + 4; quad++) edb_fetch_codes(ahead, quad);
            multiply_wide(codes, row, scales, &x, sx + t, acc);
        }
    }
}

/* ---- queries ---- */

/* Products of two quads of codes shifted by 128, which is put right later: see quantize_bounded. */
static EDB_INLINE sums shifted_dot(__m256i first, __m256i second, __m256i x_first, __m256i x_second) {
    return widened(multiply_bytes(first, x_first) + multiply_bytes(second, x_second));
}

/* 64 rows of up to four queries of one group. */
static EDB_INLINE void multiply_queries(const int n, const int8_t *codes, const float *scales,
                                        const int8_t *q, const float *sx, const int32_t *offsets,
                                        float *acc, const char *ahead) {
    const __m256i flip = _mm256_set1_epi8(-128);
    for (int row = 0; row < EDB_TILE; row += 2 * SLICE_ROWS) {
        sums a[TOGETHER], b[TOGETHER];
        for (int t = 0; t < n; t++) a[t] = b[t] = (sums)_mm256_set1_epi32(offsets[t]);
        for (int quad = row / 4; ahead != NULL && quad < row / 4 + 4; quad++) edb_fetch_codes(ahead, quad);
        for (int quad = 0; quad < EDB_QUADS / 2; quad++) {
            const int8_t *first = codes + QUAD_BYTES * quad + 4 * row, *second = first + 8 * QUAD_BYTES;
            __m256i a_first = _mm256_xor_si256(load256(first), flip);
            __m256i a_second = _mm256_xor_si256(load256(second), flip);
            __m256i b_first = _mm256_xor_si256(load256(first + SLICE_BYTES), flip);
            __m256i b_second = _mm256_xor_si256(load256(second + SLICE_BYTES), flip);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                const int8_t *x = q + EDB_GROUP * t + 4 * quad;
                __m256i x_first = four_codes(x), x_second = four_codes(x + 32);
                a[t] += shifted_dot(a_first, a_second, x_first, x_second);
                b[t] += shifted_dot(b_first, b_second, x_first, x_second);
            }
        }
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) {
            float *to = acc + EDB_TILE * t + row;
            finish_dots(to, (__m256i)a[t], sx[t], scales + row);
            finish_dots(to + SLICE_ROWS, (__m256i)b[t], sx[t], scales + row + SLICE_ROWS);
        }
    }
}

static EDB_INLINE void multiply_all_queries(const int8_t *codes, const float *scales, const int8_t *q,
                                            const float *sx, const int32_t *offsets, int64_t n,
                                            float *acc, const char *ahead) {
    for (; n >= TOGETHER; n -= TOGETHER) {
        multiply_queries(TOGETHER, codes, scales, q, sx, offsets, acc, ahead);
        q += EDB_GROUP * TOGETHER;
        sx += TOGETHER;
        offsets += TOGETHER;
        acc += EDB_TILE * TOGETHER;
        ahead = NULL;
    }
    switch (n) {
    case 1: multiply_queries(1, codes, scales, q, sx, offsets, acc, ahead); break;
    case 2: multiply_queries(2, codes, scales, q, sx, offsets, acc, ahead); break;
    case 3: multiply_queries(3, codes, scales, q, sx, offsets, acc, ahead); break;
    default: break;
    }
}

/* ---- a tile ---- */

static EDB_INLINE void multiply_all_weights(edb_fetch fetch, const int8_t *codes, const float *scales,
                                            const int8_t *q, const float *sx, int64_t n, float *acc,
                                            const char *ahead) {
    for (int64_t t = 0; t < n; t++) {
        one_token token = {q + EDB_GROUP * t, sx[t], t == 0 ? ahead : NULL};
        multiply_weights(fetch, codes, scales, &token, acc + EDB_TILE * t);
    }
}

static EDB_INLINE void multiply_activations(edb_fetch fetch, const int8_t *codes, const float *scales,
                                            const int8_t *q, const float *sx, int64_t n, float *acc,
                                            const char *ahead) {
    int64_t together = n - n % TOGETHER;
    if (together > 0) multiply_together(codes, scales, q, sx, together, acc, ahead);
    for (int64_t t = together; t < n; t++) {
        one_token token = {q + EDB_GROUP * t, sx[t], t == 0 ? ahead : NULL};
        multiply_signed(fetch, codes, scales, &token, acc + EDB_TILE * t);
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
        int64_t n = tokens->n;
        switch (tokens->of) {
        case EDB_QUERIES:
            multiply_all_queries(codes, scales, q, sx, tokens->offsets + tokens->stride * g, n, acc, ahead);
            break;
        case EDB_WEIGHTS: multiply_all_weights(fetch, codes, scales, q, sx, n, acc, ahead); break;
        default: multiply_activations(fetch, codes, scales, q, sx, n, acc, ahead); break;
        }
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
