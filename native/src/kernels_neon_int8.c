/*
 * Products of int8 codes and activations for NEON without dot products, and the expansion of a block of
 * pairs to such codes. Sets that have sdot or smmla have both in files of their own.
 *
 * Sixteen bytes of codes are four rows by four columns, and the four activations are repeated.
 *
 *   edb_int8_tile_neon     smull, smlal: two products of at most 127 * 127 in 16 bits, 32,258;
 *                          sadalp adds neighbours into 32 bits. 6 instructions for 32 products
 *   edb_expand_block_neon  6 instructions for 16 codes
 *
 * 64 products stay below 2^21, exact as float.
 *
 *   instruction    Cortex-A72: latency, pipes
 *   smull, smlal   4, F0
 *   sadalp         4, F1
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

/* Four rows by eight columns: codes of two quads, 256 bytes apart, and their activations. */
static EDB_INLINE void dot8(int32x4_t *first, int32x4_t *last, const int8_t *codes, int8x16_t x0,
                            int8x16_t x1) {
    int8x16_t w0 = vld1q_s8(codes), w1 = vld1q_s8(codes + 4 * EDB_TILE);
    int16x8_t rows01 = vmull_s8(vget_low_s8(w0), vget_low_s8(x0));
    int16x8_t rows23 = vmull_high_s8(w0, x0);
    rows01 = vmlal_s8(rows01, vget_low_s8(w1), vget_low_s8(x1));
    rows23 = vmlal_high_s8(rows23, w1, x1);
    *first = vpadalq_s16(*first, rows01);
    *last = vpadalq_s16(*last, rows23);
    __asm__("" : "+w"(*first), "+w"(*last)); /* or gcc 12 puts additions off, and spills */
}

static EDB_INLINE int8x16_t repeat4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* acc += sx * scale * dot for four rows. */
static EDB_INLINE void finish4(float *acc, int32x4_t dots, float sx, const float *scales) {
    float32x4_t scale = vmulq_n_f32(vld1q_f32(scales), sx);
    vst1q_f32(acc, vfmaq_f32(vld1q_f32(acc), scale, vcvtq_f32_s32(dots)));
}

static EDB_INLINE void group_32x1(const int8_t *codes, const float *scales, const int8_t *q,
                                  float sx, float *acc) {
    int32x4_t a0, a1, b0, b1, c0, c1, d0, d1, e0, e1, f0, f1, g0, g1, h0, h1;
    a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = vdupq_n_s32(0);
    e0 = e1 = f0 = f1 = g0 = g1 = h0 = h1 = vdupq_n_s32(0);
    for (int quad = 0; quad < EDB_QUADS; quad += 2, codes += 8 * EDB_TILE) {
        int8x16_t x0 = repeat4(q + 4 * quad), x1 = repeat4(q + 4 * quad + 4);
        dot8(&a0, &a1, codes, x0, x1);
        dot8(&b0, &b1, codes + 16, x0, x1);
        dot8(&c0, &c1, codes + 32, x0, x1);
        dot8(&d0, &d1, codes + 48, x0, x1);
        dot8(&e0, &e1, codes + 64, x0, x1);
        dot8(&f0, &f1, codes + 80, x0, x1);
        dot8(&g0, &g1, codes + 96, x0, x1);
        dot8(&h0, &h1, codes + 112, x0, x1);
    }
    finish4(acc, vpaddq_s32(a0, a1), sx, scales);
    finish4(acc + 4, vpaddq_s32(b0, b1), sx, scales + 4);
    finish4(acc + 8, vpaddq_s32(c0, c1), sx, scales + 8);
    finish4(acc + 12, vpaddq_s32(d0, d1), sx, scales + 12);
    finish4(acc + 16, vpaddq_s32(e0, e1), sx, scales + 16);
    finish4(acc + 20, vpaddq_s32(f0, f1), sx, scales + 20);
    finish4(acc + 24, vpaddq_s32(g0, g1), sx, scales + 24);
    finish4(acc + 28, vpaddq_s32(h0, h1), sx, scales + 28);
}

static EDB_INLINE void prefetch_codes(const int8_t *codes, int64_t blocks_left,
                                      const int8_t *next) {
    const char *ahead = edb_ahead(codes, blocks_left, next, EDB_CODES_BYTES);
    for (int line = 0; line < EDB_CODES_BYTES; line += 64) __builtin_prefetch(ahead + line, 0, 2);
}

void edb_int8_tile_neon(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next) {
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    int64_t stride = tokens->stride, n = tokens->n;
    for (int64_t g = 0; g < groups; g++) {
        prefetch_codes(codes, groups - g, next);
        for (int64_t t = 0; t < n; t++) {
            const int8_t *x = q + EDB_GROUP * t;
            float *y = acc + EDB_TILE * t;
            group_32x1(codes, scales, x, sx[t], y);
            group_32x1(codes + 128, scales + 32, x, sx[t], y + 32);
        }
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * stride;
        sx += stride;
    }
}

/* 16 rows at a time: every byte of bits is repeated for its four columns, whose codes are c1 where
 * the low nibble has the column's bit, plus c2 where the high nibble has it. */
void edb_expand_block_neon(const uint8_t *block, int8_t *codes) {
    const uint8x16_t low = vreinterpretq_u8_u32(vdupq_n_u32(0x08040201));
    const uint8x16_t high = vreinterpretq_u8_u32(vdupq_n_u32(0x80402010));
    static const uint8_t rows[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    uint8x16_t repeat[4];
    for (int i = 0; i < 4; i++) repeat[i] = vaddq_u8(vld1q_u8(rows), vdupq_n_u8((uint8_t)(4 * i)));

    for (int row = 0; row < EDB_TILE; row += 16) {
        uint8x16_t c1 = vld1q_u8(block + 1024 + row), c2 = vld1q_u8(block + 1088 + row);
        uint8x16_t c1_of[4], c2_of[4];
        for (int i = 0; i < 4; i++) {
            c1_of[i] = vqtbl1q_u8(c1, repeat[i]);
            c2_of[i] = vqtbl1q_u8(c2, repeat[i]);
        }
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            uint8x16_t bits = vld1q_u8(block + EDB_TILE * quad + row);
            int8_t *to = codes + 4 * (EDB_TILE * quad + row);
            for (int i = 0; i < 4; i++) {
                uint8x16_t mine = vqtbl1q_u8(bits, repeat[i]);
                uint8x16_t sum = vaddq_u8(vandq_u8(vtstq_u8(mine, low), c1_of[i]),
                                          vandq_u8(vtstq_u8(mine, high), c2_of[i]));
                vst1q_s8(to + 16 * i, vreinterpretq_s8_u8(sum));
            }
        }
    }
}

#else
typedef int edb_no_neon_int8_here; /* an empty file is no valid C */
#endif
