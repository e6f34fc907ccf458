/*
 * The dual-binary product by counting for NEON: what popcount_scalar.c computes, 16 rows at a time.
 *
 * Two neighbouring quads of 16 rows become a byte of eight columns of each plane by one shift with
 * insertion; a group is eight such registers for b1 and eight for b2. Each is ANDed with the byte
 * of an activation plane, the same for all rows, and cnt counts. Counts of a plane are at most 64
 * and add up in 8 bits; S is between -8,192 and 8,128, in 16 bits.
 *
 * For 16 rows, a plane and 64 columns: and, cnt and add for each of 16 registers, and four
 * multiplications. So eight planes cost 0.69 instructions a weight, the look-up 0.22.
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "finish_neon.h"

enum { BYTES = EDB_GROUP / 8 }; /* of eight columns, in a group */

static EDB_INLINE uint8x16_t count(const uint8x16_t *bits, const uint8_t *plane) {
    uint8x16_t sum = vcntq_u8(vandq_u8(bits[0], vld1q_dup_u8(plane)));
    for (int i = 1; i < BYTES; i++)
        sum = vaddq_u8(sum, vcntq_u8(vandq_u8(bits[i], vld1q_dup_u8(plane + i))));
    return sum;
}

/* S of 16 rows: sum[0] of rows 0..7, sum[1] of rows 8..15. */
static EDB_INLINE void weigh_planes(const uint8x16_t *bits, const uint8_t *planes, int first_plane,
                                    int16x8_t *sum) {
    uint8x16_t signs = count(bits, planes + BYTES * 7); /* plane 7 counts -128 */
    uint16x8_t low = vshll_n_u8(vget_low_u8(signs), 7), high = vshll_high_n_u8(signs, 7);
    low = vreinterpretq_u16_s16(vnegq_s16(vreinterpretq_s16_u16(low)));
    high = vreinterpretq_u16_s16(vnegq_s16(vreinterpretq_s16_u16(high)));
    for (int p = first_plane; p < 7; p++) {
        uint8x16_t counts = count(bits, planes + BYTES * p), weight = vdupq_n_u8((uint8_t)(1 << p));
        low = vmlal_u8(low, vget_low_u8(counts), vget_low_u8(weight));
        high = vmlal_high_u8(high, counts, weight);
    }
    sum[0] = vreinterpretq_s16_u16(low);
    sum[1] = vreinterpretq_s16_u16(high);
}

static EDB_INLINE void count_planes(const uint8_t *block, int64_t groups, const uint8_t *planes,
                                    const edb_group_meta *meta, float *acc, int first_plane) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES, planes += EDB_PLANE_BYTES) {
        const int8_t *codes = (const int8_t *)block + 1024;
        for (int row = 0; row < EDB_TILE; row += 16) {
            uint8x16_t b1[BYTES], b2[BYTES];
            for (int i = 0; i < BYTES; i++) {
                uint8x16_t even = vld1q_u8(block + EDB_TILE * (2 * i) + row);
                uint8x16_t odd = vld1q_u8(block + EDB_TILE * (2 * i + 1) + row);
                b1[i] = vsliq_n_u8(even, odd, 4);
                b2[i] = vsriq_n_u8(odd, even, 4);
            }
            int16x8_t s1[2], s2[2];
            weigh_planes(b1, planes, first_plane, s1);
            weigh_planes(b2, planes, first_plane, s2);
            for (int half = 0; half < 2; half++) {
                const int8_t *c1 = codes + row + 8 * half;
                finish8(acc + row + 8 * half, meta[g].sx, s1[half], s2[half],
                        vmovl_s8(vld1_s8(c1)), vmovl_s8(vld1_s8(c1 + EDB_TILE)));
            }
        }
    }
}

/* acc += sx * c1*S1 for eight rows. */
static EDB_INLINE void finish_half8(float *acc, float sx, int16x8_t s1, int8x8_t c1_bytes) {
    int16x8_t c1 = vmovl_s8(c1_bytes);
    int32x4_t first = vmull_s16(vget_low_s16(c1), vget_low_s16(s1));
    int32x4_t last = vmull_high_s16(c1, s1);
    vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vcvtq_f32_s32(first), sx));
    vst1q_f32(acc + 4, vfmaq_n_f32(vld1q_f32(acc + 4), vcvtq_f32_s32(last), sx));
}

/* A byte of a half has eight columns of a row already. */
static EDB_INLINE void count_half(const uint8_t *half, int64_t groups, const uint8_t *planes,
                                  const edb_group_meta *meta, float *acc, int first_plane) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES, planes += EDB_PLANE_BYTES) {
        const int8_t *c1 = (const int8_t *)half + 512;
        for (int row = 0; row < EDB_TILE; row += 16) {
            uint8x16_t bits[BYTES];
            for (int i = 0; i < BYTES; i++) bits[i] = vld1q_u8(half + EDB_TILE * i + row);
            int16x8_t s1[2];
            weigh_planes(bits, planes, first_plane, s1);
            finish_half8(acc + row, meta[g].sx, s1[0], vld1_s8(c1 + row));
            finish_half8(acc + row + 8, meta[g].sx, s1[1], vld1_s8(c1 + row + 8));
        }
    }
}

static void tile8(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                  const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    count_planes(blocks, groups, prepared, meta, acc, 0);
}

static void tile4(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                  const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    count_planes(blocks, groups, prepared, meta, acc, 4);
}

static void half_tile8(const uint8_t *halves, int64_t groups, const uint8_t *prepared,
                       const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    count_half(halves, groups, prepared, meta, acc, 0);
}

static void half_tile4(const uint8_t *halves, int64_t groups, const uint8_t *prepared,
                       const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    count_half(halves, groups, prepared, meta, acc, 4);
}

const edb_pair_kernel edb_popcount_neon = {
    .name = "popcount",
    .prepare = edb_prepare_planes,
    .tile = tile8,
    .half_tile = half_tile8,
    .prepared_bytes = EDB_PLANE_BYTES,
    .expand_from = 4,
};

const edb_pair_kernel edb_popcount4_neon = {
    .name = "popcount4",
    .coarsen = edb_coarsen_to_4_bits,
    .prepare = edb_prepare_planes,
    .tile = tile4,
    .half_tile = half_tile4,
    .prepared_bytes = EDB_PLANE_BYTES,
    .expand_from = 4,
};

#else
typedef int edb_no_popcount_neon_here; /* an empty file is no valid C */
#endif
