/*
 * The exact look-up for NEON, on the layout of edgedb.h: that of lookup_avx2.c in slices of 32 rows,
 * two registers.
 *
 * The 16 subset sums of four int8 activations, minus their minimum, lie in 0..508: the low 5 bits in
 * one table of 16 bytes, the high bits (at most 15) in another, each looked up for 16 rows by tbl.
 *
 *   8-bit sums:  low 8 * 31 = 248, so they are set aside after 8 of the 16 quads;
 *                high 16 * 15 = 240, good for the whole group
 *   16-bit sums: S = low + 32 * high + bias, |S| <= 64 * 127 = 8,128, modulo 2^16 on the way
 *   32-bit sums: c1*S1 + c2*S2, |sum| <= 2 * 127 * 8,128 = 2,064,512, exact as float
 *
 *   instruction      Cortex-A76: latency, pipes   Cortex-A72: latency, pipes
 *   tbl, 1 register  2, V0 V1                     3, F0 F1
 *   add, and         2, V0 V1                     3, F0 F1
 *   ushr             2, V1                        3, F1
 *   smull, smlal     4, V0                        4, F0
 *   fmla             4, V0 V1                     7, F0 F1
 *
 * A quad takes 10 of these for 16 rows and four columns; finishing a group takes 32 for 16 rows.
 * The two pipes are always busy: cycles a weight are in docs/kernels-arm.md.
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "finish_neon.h"

enum { TABLE_BYTES = 32 * EDB_QUADS };

/*
 * A quad's table: 16 bytes of low 5 bits, then 16 bytes of high bits. An activation adds
 * max(q, 0) to the subsets that hold it and max(-q, 0) to the others. Sums of two fit 8 bits; the
 * ninth bit of the sum of four is avoided by halving it.
 */
static EDB_INLINE uint8_t *store_table(uint8_t *table, uint8x16_t sizes, const uint8x16_t *pick) {
    uint8x16_t a = vaddq_u8(vqtbl1q_u8(sizes, pick[0]), vqtbl1q_u8(sizes, pick[1]));
    uint8x16_t b = vaddq_u8(vqtbl1q_u8(sizes, pick[2]), vqtbl1q_u8(sizes, pick[3]));
    uint8x16_t half = vhaddq_u8(a, b);
    uint8x16_t low = vsliq_n_u8(veorq_u8(a, b), half, 1); /* bit 0 of a ^ b is that of a + b */
    vst1q_u8(table, vandq_u8(low, vdupq_n_u8(31)));
    vst1q_u8(table + 16, vshrq_n_u8(half, 4));
    return table + 32;
}

static void prepare(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *tables, edb_group_meta *meta) {
    /* sizes of two quads: bytes 0..3 positive parts, 4..7 negative parts, 8..15 the second quad */
    uint8x16_t first[4], second[4];
    for (int k = 0; k < 4; k++) {
        uint8_t pick[16];
        for (int subset = 0; subset < 16; subset++)
            pick[subset] = (uint8_t)(subset >> k & 1 ? k : 4 + k);
        first[k] = vld1q_u8(pick);
        second[k] = vaddq_u8(first[k], vdupq_n_u8(8));
    }
    for (int64_t g = 0; g < groups; g++, q += EDB_GROUP * stride, sx += stride) {
        int32_t bias = 0;
        for (int column = 0; column < EDB_GROUP; column += 16) {
            int8x16_t x = vld1q_s8(q + column), zero = vdupq_n_s8(0);
            uint8x16_t negative = vreinterpretq_u8_s8(vmaxq_s8(vnegq_s8(x), zero));
            uint32x4_t plus = vreinterpretq_u32_s8(vmaxq_s8(x, zero));
            uint32x4_t minus = vreinterpretq_u32_u8(negative);
            uint8x16_t quads01 = vreinterpretq_u8_u32(vzip1q_u32(plus, minus));
            uint8x16_t quads23 = vreinterpretq_u8_u32(vzip2q_u32(plus, minus));
            bias -= vaddlvq_u8(negative);
            tables = store_table(tables, quads01, first);
            tables = store_table(tables, quads01, second);
            tables = store_table(tables, quads23, first);
            tables = store_table(tables, quads23, second);
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = bias};
    }
}

/* One quad of 32 rows: rows 0-15 add to p, rows 16-31 to r. */
#define LOOK_UP(quad)                                                                     \
    do {                                                                                  \
        uint8x16_t low = vld1q_u8(table + 32 * (quad));                                   \
        uint8x16_t high = vld1q_u8(table + 32 * (quad) + 16);                             \
        uint8x16_t p = vld1q_u8(block + 64 * (quad));                                     \
        uint8x16_t r = vld1q_u8(block + 64 * (quad) + 16);                                \
        uint8x16_t p1 = vandq_u8(p, nibble), p2 = vshrq_n_u8(p, 4);                       \
        uint8x16_t r1 = vandq_u8(r, nibble), r2 = vshrq_n_u8(r, 4);                       \
        p_low1 = vaddq_u8(p_low1, vqtbl1q_u8(low, p1));                                   \
        p_high1 = vaddq_u8(p_high1, vqtbl1q_u8(high, p1));                                \
        p_low2 = vaddq_u8(p_low2, vqtbl1q_u8(low, p2));                                   \
        p_high2 = vaddq_u8(p_high2, vqtbl1q_u8(high, p2));                                \
        r_low1 = vaddq_u8(r_low1, vqtbl1q_u8(low, r1));                                   \
        r_high1 = vaddq_u8(r_high1, vqtbl1q_u8(high, r1));                                \
        r_low2 = vaddq_u8(r_low2, vqtbl1q_u8(low, r2));                                   \
        r_high2 = vaddq_u8(r_high2, vqtbl1q_u8(high, r2));                                \
        __asm__(""                                                                        \
                : "+w"(p_low1), "+w"(p_high1), "+w"(p_low2), "+w"(p_high2), "+w"(r_low1), \
                  "+w"(r_high1), "+w"(r_low2), "+w"(r_high2));                            \
        if ((quad) % 2 == 0) __builtin_prefetch(ahead + 32 * (quad), 0, 2);               \
    } while (0)

/* 32 of a block's rows; nine cache lines from `ahead` on are fetched. */
static EDB_INLINE void group_32(const uint8_t *block, const uint8_t *table,
                                const edb_group_meta *meta, const int8_t *codes, float *acc,
                                const char *ahead) {
    const uint8x16_t nibble = vdupq_n_u8(15), zero = vdupq_n_u8(0);
    uint8x16_t p_low1 = zero, p_high1 = zero, p_low2 = zero, p_high2 = zero;
    uint8x16_t r_low1 = zero, r_high1 = zero, r_low2 = zero, r_high2 = zero;
    for (int quad = 0; quad < EDB_QUADS / 2; quad++) LOOK_UP(quad);
    uint8x16_t p_low1a = p_low1, p_low2a = p_low2, r_low1a = r_low1, r_low2a = r_low2;
    p_low1 = p_low2 = r_low1 = r_low2 = zero;
    for (int quad = EDB_QUADS / 2; quad < EDB_QUADS; quad++) LOOK_UP(quad);
    __builtin_prefetch(ahead + 512, 0, 2);
    finish16(acc, meta, widen_scales(codes), (sums16){p_low1a, p_low1, p_high1},
             (sums16){p_low2a, p_low2, p_high2});
    finish16(acc + 16, meta, widen_scales(codes + 16), (sums16){r_low1a, r_low1, r_high1},
             (sums16){r_low2a, r_low2, r_high2});
}

/* acc += sx * c1*S1 for eight rows. */
static EDB_INLINE void finish_half8(float *acc, float sx, int16x8_t s1, int16x8_t c1) {
    int32x4_t first = vmull_s16(vget_low_s16(c1), vget_low_s16(s1));
    int32x4_t last = vmull_high_s16(c1, s1);
    vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vcvtq_f32_s32(first), sx));
    vst1q_f32(acc + 4, vfmaq_n_f32(vld1q_f32(acc + 4), vcvtq_f32_s32(last), sx));
}

static EDB_INLINE void finish_half16(float *acc, const edb_group_meta *meta, const int8_t *codes,
                                     sums16 s1) {
    uint16x8_t bias = vdupq_n_u16((uint16_t)meta->bias);
    int8x16_t c1 = vld1q_s8(codes);
    finish_half8(acc, meta->sx, join_first(s1, bias), vmovl_s8(vget_low_s8(c1)));
    finish_half8(acc + 8, meta->sx, join_last(s1, bias), vmovl_high_s8(c1));
}

/* Sixteen rows by eight columns: quad 2j in the low nibbles, quad 2j + 1 in the high ones. */
#define LOOK_UP_TWO(j, row, low_sum, high_sum)                               \
    do {                                                                     \
        uint8x16_t bits = vld1q_u8(half + 64 * (j) + (row));                 \
        uint8x16_t even = vandq_u8(bits, nibble), odd = vshrq_n_u8(bits, 4); \
        low_sum = vaddq_u8(low_sum, vqtbl1q_u8(even_low, even));             \
        high_sum = vaddq_u8(high_sum, vqtbl1q_u8(even_high, even));          \
        low_sum = vaddq_u8(low_sum, vqtbl1q_u8(odd_low, odd));               \
        high_sum = vaddq_u8(high_sum, vqtbl1q_u8(odd_high, odd));            \
        __asm__("" : "+w"(low_sum), "+w"(high_sum));                         \
    } while (0)

/* 32 rows of half a pair. */
#define LOOK_UP_HALF(j, p, r)                                                         \
    do {                                                                              \
        const uint8_t *tables = table + 64 * (j);                                     \
        uint8x16_t even_low = vld1q_u8(tables), even_high = vld1q_u8(tables + 16);    \
        uint8x16_t odd_low = vld1q_u8(tables + 32), odd_high = vld1q_u8(tables + 48); \
        LOOK_UP_TWO(j, 0, p, p_high);                                                 \
        LOOK_UP_TWO(j, 16, r, r_high);                                                \
    } while (0)

static EDB_INLINE void half_group_32(const uint8_t *half, const uint8_t *table,
                                     const edb_group_meta *meta, const int8_t *codes, float *acc) {
    const uint8x16_t nibble = vdupq_n_u8(15), zero = vdupq_n_u8(0);
    uint8x16_t p_a = zero, p_b = zero, p_high = zero, r_a = zero, r_b = zero, r_high = zero;
    for (int j = 0; j < EDB_QUADS / 4; j++) LOOK_UP_HALF(j, p_a, r_a);
    for (int j = EDB_QUADS / 4; j < EDB_QUADS / 2; j++) LOOK_UP_HALF(j, p_b, r_b);
    finish_half16(acc, meta, codes, (sums16){p_a, p_b, p_high});
    finish_half16(acc + 16, meta, codes + 16, (sums16){r_a, r_b, r_high});
}

static void half_tile(const uint8_t *half, int64_t groups, const uint8_t *table,
                      const edb_group_meta *meta, float *acc, const uint8_t *next) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(half, groups - g, next, EDB_HALF_BYTES);
        const int8_t *codes = (const int8_t *)half + 512;
        for (int line = 0; line < EDB_HALF_BYTES; line += 64)
            __builtin_prefetch(ahead + line, 0, 2);
        half_group_32(half, table, meta + g, codes, acc);
        half_group_32(half + 32, table, meta + g, codes + 32, acc + 32);
        half += EDB_HALF_BYTES;
        table += TABLE_BYTES;
    }
}

static void tile(const uint8_t *block, int64_t groups, const uint8_t *table,
                 const edb_group_meta *meta, float *acc, const uint8_t *next) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES);
        const int8_t *codes = (const int8_t *)block + 1024;
        group_32(block, table, meta + g, codes, acc, ahead);
        group_32(block + 32, table, meta + g, codes + 32, acc + 32, ahead + EDB_BLOCK_BYTES / 2);
        block += EDB_BLOCK_BYTES;
        table += TABLE_BYTES;
    }
}

const edb_pair_kernel edb_lookup_neon = {
    .name = "lookup",
    .prepare = prepare,
    .tile = tile,
    .half_tile = half_tile,
    .tile_rows = edb_few_rows_neon,
    .prepared_bytes = TABLE_BYTES,
    .expand_from = INT64_MAX, /* without sdot, products cost as much as look-ups */
};

const edb_pair_kernel edb_lookup_neon_dotprod = {
    .name = "lookup",
    .prepare = prepare,
    .tile = tile,
    .half_tile = half_tile,
    .tile_rows = edb_few_rows_neon,
    .prepared_bytes = TABLE_BYTES,
    .expand_from = 2,
    .expand_half_from = 3,
};

#else
typedef int edb_no_neon_here; /* an empty file is no valid C */
#endif
