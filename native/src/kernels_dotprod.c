/*
 * Products by sdot (Armv8.2 with dot products: Cortex-A76, Neoverse N1, Apple M1) on the layout of
 * edgedb.h: of pairs, of half a pair, and of int8 codes.
 *
 * sdot adds four columns to four rows. Blocks are unpacked in registers, eight rows by four quads at a
 * time (unpack_neon.h), and multiplied there with up to eight tokens: sixteen sums, eight registers of
 * codes. For more tokens a block is expanded once, and its codes are read from the first-level cache.
 *
 *   instruction      Cortex-A76: latency, pipes   per 16 codes of a pair
 *   zip              2, V0 V1                     1/2
 *   ushr             2, V1                        3/4
 *   bsl              2, V0 V1                     1
 *   tbl, 2 registers 2, V0 V1                     1
 *   sdot             2, V0 V1                     1 a token
 *   fsub, fmla       2, 4, V0 V1                  1/16 each a token (scvtf: 4, V0, every second cycle)
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#if defined(__clang__)
EDB_TARGET("dotprod")
#else
EDB_TARGET("arch=armv8.2-a+dotprod")
#endif

#include "unpack_neon.h"

/* ---- activations ---- */

/* Groups' activations in the order in which columns of a block are unpacked. */
static EDB_INLINE void put_in_order(block_kind kind, const int8_t *q, int64_t n, int8_t *ordered) {
    uint8x16_t from = vld1q_u8(kind == HALF ? every_eighth : every_fourth);
    for (int64_t column = 0; column < EDB_GROUP * n; column += 32, q += 32, ordered += 32) {
        int8x16x2_t x = {{vld1q_s8(q), vld1q_s8(q + 16)}};
        if (kind == HALF) {
            vst1q_s8(ordered, vqtbl2q_s8(x, from));
            vst1q_s8(ordered + 16, vqtbl2q_s8(x, vaddq_u8(from, vdupq_n_u8(4))));
        } else {
            vst1q_s8(ordered, vqtbl1q_s8(x.val[0], from));
            vst1q_s8(ordered + 16, vqtbl1q_s8(x.val[1], from));
        }
    }
}

/* ---- products ---- */

/*
 * codes[2k], codes[2k + 1]: rows 0..3 and 4..7 of four columns; x[64]: their activations, k in lane k. The
 * empty assembly keeps tokens in order, for gcc 12 would hold activations of all and spill sums.
 */
static EDB_INLINE void add_dots(const int tokens, const int8x16_t *codes, const int8_t *x,
                                int32x4_t *sums) {
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
        int8x16_t q = vld1q_s8(x + EDB_GROUP * t);
        int32x4_t first = sums[2 * t], last = sums[2 * t + 1];
        first = vdotq_laneq_s32(first, codes[0], q, 0);
        last = vdotq_laneq_s32(last, codes[1], q, 0);
        first = vdotq_laneq_s32(first, codes[2], q, 1);
        last = vdotq_laneq_s32(last, codes[3], q, 1);
        first = vdotq_laneq_s32(first, codes[4], q, 2);
        last = vdotq_laneq_s32(last, codes[5], q, 2);
        first = vdotq_laneq_s32(first, codes[6], q, 3);
        last = vdotq_laneq_s32(last, codes[7], q, 3);
        __asm__ volatile("" : "+w"(first), "+w"(last));
        sums[2 * t] = first;
        sums[2 * t + 1] = last;
    }
}

/* What is the same for all columns of eight rows. */
typedef struct {
    level_table levels;
    uint8x16_t rows[2];
} row_constants;

static EDB_INLINE row_constants constants_of(block_kind kind, const uint8_t *block) {
    const uint32x4_t rows = {0x00000000, 0x02020202, 0x04040404, 0x06060606};
    row_constants all = {0};
    if (kind != PAIR) return all;
    all.levels = tabulate(block + 1024);
    all.rows[0] = vreinterpretq_u8_u32(rows);
    all.rows[1] = vaddq_u8(all.rows[0], vdupq_n_u8(8));
    return all;
}

/* Four columns of four quads (of a half's eight, every second): the `four`-th of four times. */
static EDB_INLINE void unpack(block_kind kind, const uint8_t *block, int four,
                              const row_constants *of, int8x16_t *codes) {
    if (kind == PAIR || kind == HALF) {
        uint8x16_t bits[2];
        interleave4(block + 4 * EDB_TILE * (kind == PAIR ? four : four / 2), bits);
        int8x16_t high = vdupq_n_s8((int8_t)(four % 2 * -4)); /* of a half: the high nibbles */
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            if (kind == HALF) {
                bits[i] = vshlq_u8(bits[i], high);
                codes[i] = column_of_half(bits[i], 0);
                codes[2 + i] = column_of_half(bits[i], 1);
                codes[4 + i] = column_of_half(bits[i], 2);
                codes[6 + i] = column_of_half(bits[i], 3);
            } else {
                codes[i] = level_of(of->levels, bits[i], of->rows[i]);
                codes[2 + i] = level_of(of->levels, vshrq_n_u8(bits[i], 1), of->rows[i]);
                codes[4 + i] = level_of(of->levels, vshrq_n_u8(bits[i], 2), of->rows[i]);
                codes[6 + i] = level_of(of->levels, vshrq_n_u8(bits[i], 3), of->rows[i]);
            }
        }
    } else {
        const int8_t *from = (const int8_t *)block + 16 * EDB_TILE * four;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            codes[i] = vld1q_s8(from + 4 * EDB_TILE * (i / 2) + 16 * (i % 2));
    }
}

/* The sums of eight rows of a group; x [tokens][64]. block: its first row there. */
static EDB_INLINE void sum_rows(block_kind kind, const int tokens, const uint8_t *block,
                                const row_constants *of, const int8_t *x, int32x4_t *sums) {
    int8x16_t codes[8];
#pragma GCC unroll 16
    for (int i = 0; i < 2 * tokens; i++) sums[i] = vdupq_n_s32(START_BITS);
#pragma GCC unroll 1
    for (int four = 0; four < EDB_QUADS / 4; four++, x += 16) {
        unpack(kind, block, four, of, codes);
        add_dots(tokens, codes, x, sums);
    }
}

/* From a row of a block to the next. */
static EDB_INLINE int row_bytes_of(block_kind kind) { return kind == PAIR || kind == HALF ? 1 : 4; }

/* Some tokens by a block; ahead: a block to fetch, or NULL. */
static EDB_INLINE void multiply(block_kind kind, const int tokens, const uint8_t *block,
                                const float *scales, const int8_t *x, const float *restrict sx,
                                float *restrict acc, const char *ahead) {
    int row_bytes = row_bytes_of(kind);
    for (int row = 0; row < EDB_TILE; row += ROWS) {
        int32x4_t sums[2 * MOST];
        float32x4_t factors[2];
        row_constants of = constants_of(kind, block + row);
        if (ahead != NULL) fetch_lines(ahead, bytes_of(kind), row);
        sum_rows(kind, tokens, block + row_bytes * row, &of, x, sums);
        load_factors(kind, block + 512 + row, scales + row, factors);
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) {
            float *to = acc + EDB_TILE * t + row;
            finish4(kind, to, sums[2 * t], sx[t], factors[0]);
            finish4(kind, to + 4, sums[2 * t + 1], sx[t], factors[1]);
        }
    }
}

static EDB_INLINE void multiply_run(block_kind kind, const uint8_t *block, const float *scales,
                                    const int8_t *x, const float *sx, int64_t n, float *acc,
                                    const char *ahead) {
#define RUN(tokens) \
    case tokens: multiply(kind, tokens, block, scales, x, sx, acc, ahead); break
    switch (n) {
        RUN(1);
        RUN(2);
        RUN(3);
        RUN(4);
        RUN(5);
        RUN(6);
        RUN(7);
        RUN(8);
    }
#undef RUN
}

/* A block as codes in the layout of EDB_INT8, their columns in the order of put_in_order. */
static EDB_INLINE void expand(block_kind kind, const uint8_t *block, int8_t *codes,
                              const char *ahead) {
    for (int row = 0; row < EDB_TILE; row += ROWS, block += ROWS, codes += 4 * ROWS) {
        row_constants of = constants_of(kind, block);
        fetch_lines(ahead, bytes_of(kind), row);
        uint8x16_t scales[2];
        if (kind == HALF) repeat_scales(block + 512, 4, scales);
#pragma GCC unroll 1
        for (int four = 0; four < EDB_QUADS / 4; four++) {
            int8x16_t some[8];
            unpack(kind, block, four, &of, some);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                if (kind == HALF) some[i] = vandq_s8(some[i], vreinterpretq_s8_u8(scales[i % 2]));
                vst1q_s8(codes + 4 * EDB_TILE * (4 * four + i / 2) + 16 * (i % 2), some[i]);
            }
        }
    }
}

#include "products_neon.h"

void edb_expand_tile_dotprod(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                             float *acc, const uint8_t *next) {
    multiply_tile(PAIR, blocks, groups, tokens, acc, next);
}

void edb_expand_half_tile_dotprod(const uint8_t *halves, int64_t groups, const edb_tokens *tokens,
                                  float *acc, const uint8_t *next) {
    multiply_tile(HALF, halves, groups, tokens, acc, next);
}

/* ---- int8 codes ---- */

/* 64 rows by one token: sixteen sums, for two would wait for their last additions. */
static EDB_INLINE void multiply_one(const int8_t *codes, const float *scales, const int8_t *x,
                                    float sx, float *acc, const char *ahead) {
    int32x4_t sums[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sums[i] = vdupq_n_s32(START_BITS);
#define QUAD(lane)                                                                       \
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++)                                \
        sums[i] = vdotq_laneq_s32(sums[i], vld1q_s8(codes + 256 * (lane) + 16 * i), q, lane)
#pragma GCC unroll 1
    for (int column = 0; column < EDB_GROUP; column += 16, codes += 16 * EDB_TILE) {
        int8x16_t q = vld1q_s8(x + column);
        fetch_lines(ahead, EDB_CODES_BYTES, column / 2);
        fetch_lines(ahead, EDB_CODES_BYTES, column / 2 + 32);
        QUAD(0);
        QUAD(1);
        QUAD(2);
        QUAD(3);
    }
#undef QUAD
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        finish4(SCALED, acc + 4 * i, sums[i], sx, vld1q_f32(scales + 4 * i));
}

void edb_int8_tile_dotprod(const int8_t *codes, const float *scales, int64_t groups,
                           const edb_tokens *tokens, float *acc, const int8_t *next) {
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(codes, groups - g, next, EDB_CODES_BYTES);
        if (tokens->n == 1) {
            multiply_one(codes, scales, q, *sx, acc, ahead);
        } else {
            multiply_all(SCALED, (const uint8_t *)codes, scales, q, sx, tokens->n, acc, ahead);
        }
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * tokens->stride;
        sx += tokens->stride;
    }
}

EDB_TARGET_END

#else
typedef int edb_no_dotprod_here; /* an empty file is no valid C */
#endif
