/*
 * The dual-binary product by counting, in portable C: S = sum over planes p of the activations of
 * weight_p * popcount(b & plane_p), where an int8 is -128*plane_7 + 64*plane_6 + ... + plane_0.
 *
 * Two neighbouring quads of a lane are a byte of eight columns of each plane, so a lane's group is
 * one 64-bit word of b1 and one of b2. Counts are at most 64, S between -8,192 and 8,128.
 *
 * With four planes the activations have been rounded to multiples of 16 first (edb_coarsen_to_4_bits),
 * so planes 0..3 are empty and the same sum needs half the counts.
 */
#include <string.h>

#include "fma.h"
#include "internal.h"

void edb_coarsen_to_4_bits(int8_t *q, int64_t stride, int64_t groups) {
    for (int64_t g = 0; g < groups; g++, q += EDB_GROUP * stride) {
        for (int i = 0; i < EDB_GROUP; i++) {
            int size = ((q[i] < 0 ? -q[i] : q[i]) + 8) & ~15;
            size = size > 112 ? 112 : size;
            q[i] = (int8_t)(q[i] < 0 ? -size : size);
        }
    }
}

/* Byte i of x is row i of an 8 by 8 matrix of bits; swaps bit (i, j) with bit (j, i). */
static uint64_t transpose8(uint64_t x) {
    uint64_t swap = (x ^ (x >> 7)) & 0x00aa00aa00aa00aa;
    x ^= swap ^ (swap << 7);
    swap = (x ^ (x >> 14)) & 0x0000cccc0000cccc;
    x ^= swap ^ (swap << 14);
    swap = (x ^ (x >> 28)) & 0x00000000f0f0f0f0;
    return x ^ swap ^ (swap << 28);
}

void edb_prepare_planes(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                        uint8_t *prepared, edb_group_meta *meta) {
    for (int64_t g = 0; g < groups; g++) {
        for (int byte = 0; byte < EDB_PLANES; byte++) {
            uint64_t columns = 0;
            for (int i = 0; i < 8; i++) columns |= (uint64_t)(uint8_t)q[8 * byte + i] << (8 * i);
            columns = transpose8(columns);
            for (int p = 0; p < EDB_PLANES; p++)
                prepared[8 * p + byte] = (uint8_t)(columns >> (8 * p));
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = 0};
        q += EDB_GROUP * stride;
        sx += stride;
        prepared += EDB_PLANE_BYTES;
    }
}

/* Eight bytes as a number, first byte lowest: bit c is column c. */
static uint64_t columns_of(const uint8_t *bytes) {
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) word |= (uint64_t)bytes[i] << (8 * i);
    return word;
}

/* sums[64] += of one plane of the weights, a word of columns for each row. */
static EDB_INLINE void weigh(const uint64_t *bits, const uint8_t *prepared, int first_plane,
                             int32_t *sums) {
    for (int p = first_plane; p < EDB_PLANES; p++) {
        uint64_t plane = columns_of(prepared + 8 * p);
        int32_t weight = p == 7 ? -128 : 1 << p;
        for (int row = 0; row < EDB_TILE; row++)
            sums[row] += weight * __builtin_popcountll(bits[row] & plane);
    }
}

static EDB_INLINE void count_planes(const uint8_t *block, int64_t groups, const uint8_t *prepared,
                                    const edb_group_meta *meta, float *acc, int first_plane) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES, prepared += EDB_PLANE_BYTES) {
        uint64_t b1[EDB_TILE] = {0}, b2[EDB_TILE] = {0};
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            for (int row = 0; row < EDB_TILE; row++) {
                uint64_t bits = block[EDB_TILE * quad + row];
                b1[row] |= (bits & 15) << (4 * quad);
                b2[row] |= (bits >> 4) << (4 * quad);
            }
        }
        int32_t s1[EDB_TILE] = {0}, s2[EDB_TILE] = {0};
        weigh(b1, prepared, first_plane, s1);
        weigh(b2, prepared, first_plane, s2);
        const int8_t *c1 = (const int8_t *)block + 1024, *c2 = c1 + EDB_TILE;
        for (int row = 0; row < EDB_TILE; row++)
            acc[row] = edb_fma(meta[g].sx, (float)(c1[row] * s1[row] + c2[row] * s2[row]), acc[row]);
    }
}

/* A byte of a half has eight columns of a row already. */
static EDB_INLINE void count_half(const uint8_t *half, int64_t groups, const uint8_t *prepared,
                                  const edb_group_meta *meta, float *acc, int first_plane) {
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES, prepared += EDB_PLANE_BYTES) {
        uint64_t bits[EDB_TILE] = {0};
        for (int i = 0; i < 8; i++)
            for (int row = 0; row < EDB_TILE; row++)
                bits[row] |= (uint64_t)half[EDB_TILE * i + row] << (8 * i);
        int32_t s1[EDB_TILE] = {0};
        weigh(bits, prepared, first_plane, s1);
        const int8_t *c1 = (const int8_t *)half + 512;
        for (int row = 0; row < EDB_TILE; row++)
            acc[row] = edb_fma(meta[g].sx, (float)(c1[row] * s1[row]), acc[row]);
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

const edb_pair_kernel edb_popcount_scalar = {
    .name = "popcount",
    .prepare = edb_prepare_planes,
    .tile = tile8,
    .half_tile = half_tile8,
    .prepared_bytes = EDB_PLANE_BYTES,
    .expand_from = 2,
};

const edb_pair_kernel edb_popcount4_scalar = {
    .name = "popcount4",
    .coarsen = edb_coarsen_to_4_bits,
    .prepare = edb_prepare_planes,
    .tile = tile4,
    .half_tile = half_tile4,
    .prepared_bytes = EDB_PLANE_BYTES,
    .expand_from = 2,
};
