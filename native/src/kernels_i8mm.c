/*
 * Products by smmla (i8mm of Armv8.6: Neoverse V1 and N2, Apple M2, Oryon) on the layout of edgedb.h: of
 * pairs, of half a pair, and of int8 codes from four tokens on; fewer go by sdot (kernels_dotprod.c).
 *
 * smmla takes two rows of eight bytes twice and adds all four products of a row by a row: two tokens
 * by two rows of the tile, 32 products. Blocks are unpacked in registers, eight rows by eight quads at
 * a time (unpack_neon.h), and multiplied there with up to eight tokens: sixteen sums, four registers of
 * codes. For more tokens a block is expanded once, and its codes are read from the first-level cache.
 *
 * A unit is eight columns: of a pair, one column of eight quads; of half a pair, one bit of its eight
 * bytes; of int8 codes, two quads, whose registers are zipped.
 *
 *   instruction    Neoverse V1: latency, pipes   per two rows by eight columns
 *   zip, bsl       2, V0-3                       3/4 and 1
 *   ushr           2, V13                        3/4
 *   tbl            2, V01                        1
 *   smmla          3, V0-3                       1 for two tokens
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#if defined(__clang__)
EDB_TARGET("dotprod,i8mm")
#else
EDB_TARGET("arch=armv8.2-a+dotprod+i8mm")
#endif

#include "unpack_neon.h"

enum { FEWEST = 4, UNITS = EDB_GROUP / 8, ROW_PAIRS = ROWS / 2 };

/* ---- activations ---- */

static EDB_INLINE int8x16_t zip_first4(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
static EDB_INLINE int8x16_t zip_last4(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

/* The eight units of a token's group, two a register. */
static EDB_INLINE void units_of(block_kind kind, const int8_t *q, int8x16_t *units) {
    int8x16_t x[4] = {vld1q_s8(q), vld1q_s8(q + 16), vld1q_s8(q + 32), vld1q_s8(q + 48)};
    for (int i = 0; i < 4; i += 2) {
        if (kind == SCALED) {
            units[i] = x[i];
            units[i + 1] = x[i + 1];
            continue;
        }
        int8x16_t first, last;
        if (kind == HALF) {
            uint8x16_t from = vaddq_u8(vld1q_u8(every_eighth), vdupq_n_u8((uint8_t)(2 * i)));
            first = vqtbl2q_s8((int8x16x2_t){{x[0], x[1]}}, from);
            last = vqtbl2q_s8((int8x16x2_t){{x[2], x[3]}}, from);
        } else {
            first = vqtbl1q_s8(x[i], vld1q_u8(every_fourth));
            last = vqtbl1q_s8(x[i + 1], vld1q_u8(every_fourth));
        }
        units[i] = zip_first4(first, last);
        units[i + 1] = zip_last4(first, last);
    }
}

/* [pair of tokens][unit][16]; the last of an odd number is there twice. */
static EDB_INLINE void put_in_order(block_kind kind, const int8_t *q, int64_t n, int8_t *ordered) {
    for (int64_t t = 0; t < n; t += 2, q += 2 * EDB_GROUP) {
        int8x16_t x[4], y[4];
        units_of(kind, q, x);
        units_of(kind, t + 1 < n ? q + EDB_GROUP : q, y);
        for (int i = 0; i < 4; i++, ordered += 32) {
            int64x2_t first = vreinterpretq_s64_s8(x[i]), last = vreinterpretq_s64_s8(y[i]);
            vst1q_s8(ordered, vreinterpretq_s8_s64(vzip1q_s64(first, last)));
            vst1q_s8(ordered + 16, vreinterpretq_s8_s64(vzip2q_s64(first, last)));
        }
    }
}

/* ---- codes ---- */

/* What is the same for all columns of eight rows. */
typedef struct {
    level_table levels;
    uint8x16_t rows[ROW_PAIRS];
} row_constants;

static EDB_INLINE row_constants constants_of(block_kind kind, const uint8_t *block) {
    row_constants all = {0};
    if (kind != PAIR) return all;
    all.levels = tabulate(block + 1024);
    all.rows[0] = vcombine_u8(vdup_n_u8(0), vdup_n_u8(2));
    for (int i = 1; i < ROW_PAIRS; i++) all.rows[i] = vaddq_u8(all.rows[i - 1], vdupq_n_u8(4));
    return all;
}

/* Eight registers of eight rows, 64 bytes apart -> pairs of rows, eight bytes each. */
static EDB_INLINE void interleave8(const uint8_t *block, uint8x16_t *bits) {
    uint8x16_t first[2], last[2];
    interleave4(block, first);
    interleave4(block + 4 * EDB_TILE, last);
    for (int i = 0; i < 2; i++) {
        int8x16_t a = vreinterpretq_s8_u8(first[i]), b = vreinterpretq_s8_u8(last[i]);
        bits[2 * i] = vreinterpretq_u8_s8(zip_first4(a, b));
        bits[2 * i + 1] = vreinterpretq_u8_s8(zip_last4(a, b));
    }
}

/* Bits of four units. */
static EDB_INLINE void load_bits(block_kind kind, const uint8_t *block, int first_unit,
                                 uint8x16_t *bits) {
    if (kind == PAIR) {
        interleave8(block + 2 * EDB_TILE * first_unit, bits);
    } else if (kind == HALF) {
        interleave8(block, bits);
        int8x16_t low = vdupq_n_s8((int8_t)-first_unit);
        for (int i = 0; i < ROW_PAIRS; i++) bits[i] = vshlq_u8(bits[i], low);
    }
}

/* Codes of unit first_unit + k for eight rows, two a register. */
static EDB_INLINE void unpack(block_kind kind, const uint8_t *block, const uint8x16_t *bits,
                              const row_constants *of, int first_unit, int k, int8x16_t *codes) {
    int unit = first_unit + k;
    if (kind == PAIR) {
        for (int i = 0; i < ROW_PAIRS; i++) {
            uint8x16_t column = k == 0   ? bits[i]
                                : k == 1 ? vshrq_n_u8(bits[i], 1)
                                : k == 2 ? vshrq_n_u8(bits[i], 2)
                                         : vshrq_n_u8(bits[i], 3);
            codes[i] = level_of(of->levels, column, of->rows[i]);
        }
    } else if (kind == HALF) {
        for (int i = 0; i < ROW_PAIRS; i++) codes[i] = column_of_half(bits[i], k);
    } else if (kind == SCALED) {
        const int8_t *quad = (const int8_t *)block + 8 * EDB_TILE * unit;
        for (int i = 0; i < 2; i++, quad += 16) {
            int8x16_t first = vld1q_s8(quad), last = vld1q_s8(quad + 4 * EDB_TILE);
            codes[2 * i] = zip_first4(first, last);
            codes[2 * i + 1] = zip_last4(first, last);
        }
    } else {
        const int8_t *from = (const int8_t *)block + 8 * EDB_TILE * unit;
        for (int i = 0; i < ROW_PAIRS; i++) codes[i] = vld1q_s8(from + 16 * i);
    }
}

/* From a row of a block to the next. */
static EDB_INLINE int row_bytes_of(block_kind kind) {
    return kind == PAIR || kind == HALF ? 1 : kind == SCALED ? 4 : 8;
}

/* ---- products ---- */

/* The sums of eight rows of a group by pairs of tokens: {token, row}, {token, row + 1}, ... */
static EDB_INLINE void sum_rows(block_kind kind, const int pairs, const uint8_t *block,
                                const row_constants *of, const int8_t *x, int32x4_t *sums) {
    uint8x16_t bits[ROW_PAIRS];
    int8x16_t codes[ROW_PAIRS];
    int end = UNITS;
    __asm__("" : "+r"(end)); /* or gcc 12 unrolls it, holds codes of eight units and spills */
#pragma GCC unroll 16
    for (int i = 0; i < ROW_PAIRS * pairs; i++) sums[i] = vdupq_n_s32(START_BITS);
#pragma GCC unroll 1
    for (int unit = 0; unit < end; unit += 4) {
        load_bits(kind, block, unit, bits);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++, x += 16) {
            unpack(kind, block, bits, of, unit, k, codes);
#pragma GCC unroll 4
            for (int p = 0; p < pairs; p++) {
                int8x16_t two = vld1q_s8(x + 2 * EDB_GROUP * p);
                int32x4_t a = vmmlaq_s32(sums[4 * p], two, codes[0]);
                int32x4_t b = vmmlaq_s32(sums[4 * p + 1], two, codes[1]);
                int32x4_t c = vmmlaq_s32(sums[4 * p + 2], two, codes[2]);
                int32x4_t d = vmmlaq_s32(sums[4 * p + 3], two, codes[3]);
                __asm__ volatile("" : "+w"(a), "+w"(b), "+w"(c), "+w"(d)); /* in this order */
                sums[4 * p] = a;
                sums[4 * p + 1] = b;
                sums[4 * p + 2] = c;
                sums[4 * p + 3] = d;
            }
        }
    }
}

static EDB_INLINE int32x4_t first_of(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}
static EDB_INLINE int32x4_t last_of(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

/* n tokens, which are `pairs` pairs, by a block; ahead: a block to fetch, or NULL. */
static EDB_INLINE void multiply(block_kind kind, const int pairs, const uint8_t *block,
                                const float *scales, const int8_t *x, const float *restrict sx,
                                int64_t n, float *restrict acc, const char *ahead) {
    int row_bytes = row_bytes_of(kind);
    for (int row = 0; row < EDB_TILE; row += ROWS) {
        int32x4_t sums[4 * MOST / 2];
        float32x4_t factors[2];
        row_constants of = constants_of(kind, block + row);
        if (ahead != NULL) fetch_lines(ahead, bytes_of(kind), row);
        sum_rows(kind, pairs, block + row_bytes * row, &of, x, sums);
        load_factors(kind, block + 512 + row, scales + row, factors);
#pragma GCC unroll 4
        for (int p = 0; p < pairs; p++) {
            const int32x4_t *sum = sums + 4 * p;
            float *to = acc + 2 * EDB_TILE * p + row;
            finish4(kind, to, first_of(sum[0], sum[1]), sx[2 * p], factors[0]);
            finish4(kind, to + 4, first_of(sum[2], sum[3]), sx[2 * p], factors[1]);
            if (2 * p + 1 == n) break;
            to += EDB_TILE;
            finish4(kind, to, last_of(sum[0], sum[1]), sx[2 * p + 1], factors[0]);
            finish4(kind, to + 4, last_of(sum[2], sum[3]), sx[2 * p + 1], factors[1]);
        }
    }
}

/* n tokens, at most MOST, the first of an even number. */
static EDB_INLINE void multiply_run(block_kind kind, const uint8_t *block, const float *scales,
                                    const int8_t *x, const float *sx, int64_t n, float *acc,
                                    const char *ahead) {
    switch (edb_ceil_div(n, 2)) {
    case 1: multiply(kind, 1, block, scales, x, sx, n, acc, ahead); break;
    case 2: multiply(kind, 2, block, scales, x, sx, n, acc, ahead); break;
    case 3: multiply(kind, 3, block, scales, x, sx, n, acc, ahead); break;
    case 4: multiply(kind, 4, block, scales, x, sx, n, acc, ahead); break;
    }
}

/* A block's codes as multiply reads them: [unit][pair of rows][16]. */
static EDB_INLINE void expand(block_kind kind, const uint8_t *block, int8_t *codes,
                              const char *ahead) {
    int row_bytes = row_bytes_of(kind);
    for (int row = 0; row < EDB_TILE; row += ROWS, codes += 8 * ROWS) {
        const uint8_t *from = block + row_bytes * row;
        row_constants of = constants_of(kind, block + row);
        uint8x16_t bits[ROW_PAIRS], scales[ROW_PAIRS];
        fetch_lines(ahead, bytes_of(kind), row);
        if (kind == HALF) repeat_scales(block + 512 + row, 8, scales);
        int end = UNITS;
        __asm__("" : "+r"(end));
#pragma GCC unroll 1
        for (int unit = 0; unit < end; unit += 4) {
            load_bits(kind, from, unit, bits);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                int8x16_t some[ROW_PAIRS];
                unpack(kind, from, bits, &of, unit, k, some);
                for (int i = 0; i < ROW_PAIRS; i++) {
                    if (kind == HALF) some[i] = vandq_s8(some[i], vreinterpretq_s8_u8(scales[i]));
                    vst1q_s8(codes + 8 * EDB_TILE * (unit + k) + 16 * i, some[i]);
                }
            }
        }
    }
}

#include "products_neon.h"

void edb_expand_tile_i8mm(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                          float *acc, const uint8_t *next) {
    multiply_tile(PAIR, blocks, groups, tokens, acc, next);
}

void edb_expand_half_tile_i8mm(const uint8_t *halves, int64_t groups, const edb_tokens *tokens,
                               float *acc, const uint8_t *next) {
    multiply_tile(HALF, halves, groups, tokens, acc, next);
}

void edb_int8_tile_i8mm(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next) {
    if (tokens->n < FEWEST) {
        edb_int8_tile_dotprod(codes, scales, groups, tokens, acc, next);
        return;
    }
    add_tile(SCALED, (const uint8_t *)codes, scales, groups, tokens, acc, (const uint8_t *)next);
}

EDB_TARGET_END

#else
typedef int edb_no_i8mm_here; /* an empty file is no valid C */
#endif
