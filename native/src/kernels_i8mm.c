/*
 * Products of int8 codes and activations by smmla (i8mm of Armv8.6: Neoverse V1 and N2, Apple M2,
 * Oryon), four tokens and more; fewer go by sdot (kernels_neon_int8.c). On the layout of edgedb.h.
 *
 * smmla takes two rows of eight bytes twice and adds all four products of a row by a row: two tokens
 * by two rows of the tile, 32 products. So two quads of codes are zipped, once for all tokens, and
 * activations of two tokens; eight tokens by eight rows are sixteen sums. 64 products stay below
 * 2^21, exact as float.
 *
 *   instruction    Neoverse V1: latency, pipes
 *   smmla          3, V0-3
 *   sdot           3, V0-3
 *
 * Instructions a weight and token: 1,024 smmla for eight tokens and a block, 0.031; with sdot 0.0625.
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#if defined(__clang__)
EDB_TARGET("dotprod,i8mm")
#else
EDB_TARGET("arch=armv8.2-a+dotprod+i8mm")
#endif

enum { FEWEST = 4, TOGETHER = 8, ROWS = 8, EIGHTS = EDB_GROUP / 8 };

/* A block: codes of two rows by eight columns side by side; [eight columns][row pair][16]. */
static EDB_INLINE void zip_codes(const int8_t *codes, int8_t *zipped, const char *ahead) {
    for (int quad = 0; quad < EDB_QUADS; quad += 2, codes += 8 * EDB_TILE) {
        for (int row = 0; row < EDB_TILE; row += 4, zipped += 32) {
            int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(codes + 4 * row));
            int32x4_t last = vreinterpretq_s32_s8(vld1q_s8(codes + 4 * (EDB_TILE + row)));
            vst1q_s8(zipped, vreinterpretq_s8_s32(vzip1q_s32(first, last)));
            vst1q_s8(zipped + 16, vreinterpretq_s8_s32(vzip2q_s32(first, last)));
        }
        for (int line = 0; line < 512; line += 64)
            __builtin_prefetch(ahead + 4 * EDB_TILE * quad + line, 0, 2);
    }
}

/* Activations: [pair of tokens][eight columns][16]; the last of an odd number is there twice. */
static EDB_INLINE void zip_tokens(const int8_t *q, int64_t n, int8_t *zipped) {
    for (int64_t t = 0; t < n; t += 2) {
        const int8_t *x = q + EDB_GROUP * t, *y = t + 1 < n ? x + EDB_GROUP : x;
        for (int column = 0; column < EDB_GROUP; column += 16, zipped += 32) {
            int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(x + column));
            int64x2_t last = vreinterpretq_s64_s8(vld1q_s8(y + column));
            vst1q_s8(zipped, vreinterpretq_s8_s64(vzip1q_s64(first, last)));
            vst1q_s8(zipped + 16, vreinterpretq_s8_s64(vzip2q_s64(first, last)));
        }
    }
}

/* acc += sx * scales * dots for four rows. */
static EDB_INLINE void finish4(float *acc, int64x2_t dots, float sx, float32x4_t scales) {
    float32x4_t dot = vcvtq_f32_s32(vreinterpretq_s32_s64(dots));
    vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), vmulq_n_f32(scales, sx), dot));
}

/* Eight rows of one group by n tokens, which are `pairs` pairs. codes: of their four pairs of rows. */
static EDB_INLINE void group_8_rows(const int pairs, const int8_t *codes, const float *scales,
                                    const int8_t *q, const float *sx, int64_t n, float *acc) {
    int32x4_t sums[4 * (TOGETHER / 2)]; /* {token, row}, {token, row + 1}, {token + 1, row}, ... */
#pragma GCC unroll 16
    for (int i = 0; i < 4 * pairs; i++) sums[i] = vdupq_n_s32(0);
#pragma GCC unroll 1
    for (int eight = 0; eight < EIGHTS; eight++, codes += 8 * EDB_TILE, q += 16) {
        int8x16_t w0 = vld1q_s8(codes), w1 = vld1q_s8(codes + 16);
        int8x16_t w2 = vld1q_s8(codes + 32), w3 = vld1q_s8(codes + 48);
#pragma GCC unroll 4
        for (int p = 0; p < pairs; p++) {
            int8x16_t x = vld1q_s8(q + 2 * EDB_GROUP * p);
            int32x4_t *sum = sums + 4 * p;
            sum[0] = vmmlaq_s32(sum[0], x, w0);
            sum[1] = vmmlaq_s32(sum[1], x, w1);
            sum[2] = vmmlaq_s32(sum[2], x, w2);
            sum[3] = vmmlaq_s32(sum[3], x, w3);
        }
    }
    float32x4_t first = vld1q_f32(scales), last = vld1q_f32(scales + 4);
#pragma GCC unroll 4
    for (int p = 0; p < pairs; p++, acc += 2 * EDB_TILE, sx += 2, n -= 2) {
        int64x2_t s0 = vreinterpretq_s64_s32(sums[4 * p]);
        int64x2_t s1 = vreinterpretq_s64_s32(sums[4 * p + 1]);
        int64x2_t s2 = vreinterpretq_s64_s32(sums[4 * p + 2]);
        int64x2_t s3 = vreinterpretq_s64_s32(sums[4 * p + 3]);
        finish4(acc, vzip1q_s64(s0, s1), sx[0], first);
        finish4(acc + 4, vzip1q_s64(s2, s3), sx[0], last);
        if (n < 2) return;
        finish4(acc + EDB_TILE, vzip2q_s64(s0, s1), sx[1], first);
        finish4(acc + EDB_TILE + 4, vzip2q_s64(s2, s3), sx[1], last);
    }
}

/* Up to eight tokens by a block. */
static EDB_INLINE void multiply(const int pairs, const int8_t *codes, const float *scales,
                                const int8_t *q, const float *sx, int64_t n, float *acc) {
    for (int row = 0; row < EDB_TILE; row += ROWS)
        group_8_rows(pairs, codes + 8 * row, scales + row, q, sx, n, acc + row);
}

void edb_int8_tile_i8mm(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next) {
    if (tokens->n < FEWEST) {
        edb_int8_tile_dotprod(codes, scales, groups, tokens, acc, next);
        return;
    }
    int8_t zipped[EDB_CODES_BYTES], x[TOGETHER * EDB_GROUP];
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    for (int64_t g = 0; g < groups; g++) {
        zip_codes(codes, zipped, edb_ahead(codes, groups - g, next, EDB_CODES_BYTES));
        for (int64_t t = 0; t < tokens->n; t += TOGETHER) {
            int64_t n = edb_min(TOGETHER, tokens->n - t);
            zip_tokens(q + EDB_GROUP * t, n, x);
            float *to = acc + EDB_TILE * t;
            switch (edb_ceil_div(n, 2)) {
            case 1: multiply(1, zipped, scales, x, sx + t, n, to); break;
            case 2: multiply(2, zipped, scales, x, sx + t, n, to); break;
            case 3: multiply(3, zipped, scales, x, sx + t, n, to); break;
            case 4: multiply(4, zipped, scales, x, sx + t, n, to); break;
            }
        }
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * tokens->stride;
        sx += tokens->stride;
    }
}

EDB_TARGET_END

#else
typedef int edb_no_i8mm_here; /* an empty file is no valid C */
#endif
