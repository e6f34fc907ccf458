/*
 * The dual-binary product by counting bits, for AVX2 (Haswell, Zen and later): S = sum over planes p
 * of weight_p * popcount(b & plane_p), on the bytes of the look-up.
 *
 * The processor counts no bits in vectors, so a shuffle looks up the count of a nibble: each quad's
 * nibbles of b1 and b2 as they lie in the block, ANDed with the four bits of a plane. Twice the count
 * is another table, so that two planes share one sum:
 *
 *   8-bit sums:   over 16 quads c_p + 2*c_(p+1) at most 192; c6 - 2*c7 in -128..64
 *   16-bit sums:  (c0 + 2 c1) + 4 (c2 + 2 c3) <= 960; 16 (c4 + 2 c5) + 64 (c6 - 2 c7 + 128) <=
 *                 15,360; S in -8,192..8,128
 *
 *   instruction   Zen 4: latency, per cycle     Skylake: latency, ports
 *   vpshufb y     2, 2                          1, p5
 *   vpand y       1, 4                          1, p015
 *   vpaddb y      1, 4                          1, p015
 *
 * Instructions a weight: 3 for 128 products and a load for two of them, 2,300 for a group of 64 by
 * 64, 0.56; with four planes 0.33. The look-up's table is this kernel's with the AND done
 * beforehand, for all planes at once.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma")

#include "finish_avx2.h"

/* The four bits of plane p and a quad as four equal bytes at 64 * p + 4 * quad. */
enum { PREPARED_BYTES = 64 * EDB_PLANES };

static void prepare(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *prepared, edb_group_meta *meta) {
    const __m128i four_times = _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m128i nibble = _mm_set1_epi8(15);
    for (int64_t g = 0; g < groups; g++) {
        __m256i low = load256(q), high = load256(q + 32);
        for (int p = EDB_PLANES - 1; p >= 0; p--) { /* the sign bit of each byte, then the next */
            uint32_t first = (uint32_t)_mm256_movemask_epi8(low);
            uint32_t second = (uint32_t)_mm256_movemask_epi8(high);
            low = _mm256_add_epi8(low, low);
            high = _mm256_add_epi8(high, high);
            __m128i bits = _mm_set1_epi64x((long long)(first | (uint64_t)second << 32));
            __m128i quads = _mm_unpacklo_epi8(_mm_and_si128(bits, nibble),
                                              _mm_and_si128(_mm_srli_epi16(bits, 4), nibble));
            for (int four = 0; four < 4; four++) {
                __m128i from = _mm_add_epi8(four_times, _mm_set1_epi8((char)(4 * four)));
                _mm_storeu_si128((__m128i *)(prepared + 64 * p + 16 * four),
                                 _mm_shuffle_epi8(quads, from));
            }
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = 0};
        q += EDB_GROUP * stride;
        sx += stride;
        prepared += PREPARED_BYTES;
    }
}

static EDB_INLINE __m256i plane_bits(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

/* sum1, sum2 += or -= the counts of one plane, by a table that may double them. */
#define COUNT(p, operation, table, sum1, sum2)                                                    \
    do {                                                                                          \
        __m256i x = plane_bits(prepared + 64 * (p) + 4 * quad);                                   \
        sum1 = operation(sum1, _mm256_shuffle_epi8(table, _mm256_and_si256(b1, x)));              \
        sum2 = operation(sum2, _mm256_shuffle_epi8(table, _mm256_and_si256(b2, x)));              \
        __asm__("" : "+x"(sum1), "+x"(sum2)); /* or gcc 12 counts first, adds last, and spills */ \
    } while (0)

/* (c0 + 2 c1) + 4 (c2 + 2 c3) from interleaved bytes. */
static EDB_INLINE __m256i join_low(__m256i c01_c23) {
    return _mm256_maddubs_epi16(c01_c23, _mm256_set1_epi16(1 | 4 << 8));
}

/* 16 * c45 + 64 * (c67 - 128) from interleaved bytes, where c67 comes with 128 added. */
static EDB_INLINE __m256i join_high(__m256i c45_c67) {
    const __m256i by_16_and_64 = _mm256_set1_epi16(16 | 64 << 8);
    return _mm256_sub_epi16(_mm256_maddubs_epi16(c45_c67, by_16_and_64), _mm256_set1_epi16(8192));
}

/* 32 rows of one group. */
static EDB_INLINE void count_slice(const uint8_t *block, const uint8_t *prepared,
                                   const uint8_t *codes, float sx_of_group, float *acc,
                                   int planes) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const __m256i once =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i twice = _mm256_add_epi8(once, once);
    __m256i m01 = zero, m23 = zero, m45 = zero, m67 = zero; /* planes of the activations, b1 */
    __m256i n01 = zero, n23 = zero, n45 = zero, n67 = zero; /* b2 */
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m256i bits = load256(block + EDB_TILE * quad);
        __m256i b1 = _mm256_and_si256(bits, nibble);
        __m256i b2 = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
        COUNT(7, _mm256_sub_epi8, twice, m67, n67);
        COUNT(6, _mm256_add_epi8, once, m67, n67);
        COUNT(5, _mm256_add_epi8, twice, m45, n45);
        COUNT(4, _mm256_add_epi8, once, m45, n45);
        if (planes < 8) continue;
        COUNT(3, _mm256_add_epi8, twice, m23, n23);
        COUNT(2, _mm256_add_epi8, once, m23, n23);
        COUNT(1, _mm256_add_epi8, twice, m01, n01);
        COUNT(0, _mm256_add_epi8, once, m01, n01);
    }
    const __m256i offset = _mm256_set1_epi8(-128);
    m67 = _mm256_xor_si256(m67, offset);
    n67 = _mm256_xor_si256(n67, offset);
    __m256 sx = _mm256_set1_ps(sx_of_group);
    __m256i c1 = load256(codes), c2 = load256(codes + EDB_TILE);
    __m256i s1 = _mm256_add_epi16(join_low(_mm256_unpacklo_epi8(m01, m23)),
                                  join_high(_mm256_unpacklo_epi8(m45, m67)));
    __m256i s2 = _mm256_add_epi16(join_low(_mm256_unpacklo_epi8(n01, n23)),
                                  join_high(_mm256_unpacklo_epi8(n45, n67)));
    finish16(acc, sx, s1, s2, _mm256_unpacklo_epi8(c1, c2));
    s1 = _mm256_add_epi16(join_low(_mm256_unpackhi_epi8(m01, m23)),
                          join_high(_mm256_unpackhi_epi8(m45, m67)));
    s2 = _mm256_add_epi16(join_low(_mm256_unpackhi_epi8(n01, n23)),
                          join_high(_mm256_unpackhi_epi8(n45, n67)));
    finish16(acc + 16, sx, s1, s2, _mm256_unpackhi_epi8(c1, c2));
}

static EDB_INLINE void count_tile(const uint8_t *block, int64_t groups, const uint8_t *prepared,
                                  const edb_group_meta *meta, float *out, const uint8_t *next,
                                  int planes) {
    _Alignas(32) float acc[EDB_TILE] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES);
        for (int line = 0; line < EDB_BLOCK_BYTES; line += 64)
            _mm_prefetch(ahead + line, _MM_HINT_T1);
        for (int row = 0; row < EDB_TILE; row += 32)
            count_slice(block + row, prepared, block + 1024 + row, meta[g].sx, acc + row, planes);
        block += EDB_BLOCK_BYTES;
        prepared += PREPARED_BYTES;
    }
    store_rows(out, acc);
}

/* 64 rows of one group of half a pair: as 32 of a pair, rows 32-63 in the place of b2. */
static EDB_INLINE void count_half_group(const uint8_t *half, const uint8_t *prepared,
                                        float sx_of_group, float *acc, int planes) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    const __m256i once =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i twice = _mm256_add_epi8(once, once);
    __m256i m01 = zero, m23 = zero, m45 = zero, m67 = zero; /* rows 0-31 */
    __m256i n01 = zero, n23 = zero, n45 = zero, n67 = zero; /* rows 32-63 */
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m256i b1 = load256(half + EDB_TILE * (quad / 2));
        __m256i b2 = load256(half + EDB_TILE * (quad / 2) + 32);
        if (quad % 2 != 0) {
            b1 = _mm256_srli_epi16(b1, 4);
            b2 = _mm256_srli_epi16(b2, 4);
        }
        b1 = _mm256_and_si256(b1, nibble);
        b2 = _mm256_and_si256(b2, nibble);
        COUNT(7, _mm256_sub_epi8, twice, m67, n67);
        COUNT(6, _mm256_add_epi8, once, m67, n67);
        COUNT(5, _mm256_add_epi8, twice, m45, n45);
        COUNT(4, _mm256_add_epi8, once, m45, n45);
        if (planes < 8) continue;
        COUNT(3, _mm256_add_epi8, twice, m23, n23);
        COUNT(2, _mm256_add_epi8, once, m23, n23);
        COUNT(1, _mm256_add_epi8, twice, m01, n01);
        COUNT(0, _mm256_add_epi8, once, m01, n01);
    }
    const __m256i offset = _mm256_set1_epi8(-128);
    m67 = _mm256_xor_si256(m67, offset);
    n67 = _mm256_xor_si256(n67, offset);
    __m256 sx = _mm256_set1_ps(sx_of_group);
    __m256i c1 = load256(half + 512), c1_last = load256(half + 544);
    __m256i s = _mm256_add_epi16(join_low(_mm256_unpacklo_epi8(m01, m23)),
                                 join_high(_mm256_unpacklo_epi8(m45, m67)));
    finish_half16(acc, sx, s, _mm256_unpacklo_epi8(zero, c1));
    s = _mm256_add_epi16(join_low(_mm256_unpackhi_epi8(m01, m23)),
                         join_high(_mm256_unpackhi_epi8(m45, m67)));
    finish_half16(acc + 16, sx, s, _mm256_unpackhi_epi8(zero, c1));
    s = _mm256_add_epi16(join_low(_mm256_unpacklo_epi8(n01, n23)),
                         join_high(_mm256_unpacklo_epi8(n45, n67)));
    finish_half16(acc + 32, sx, s, _mm256_unpacklo_epi8(zero, c1_last));
    s = _mm256_add_epi16(join_low(_mm256_unpackhi_epi8(n01, n23)),
                         join_high(_mm256_unpackhi_epi8(n45, n67)));
    finish_half16(acc + 48, sx, s, _mm256_unpackhi_epi8(zero, c1_last));
}

static EDB_INLINE void count_half_tile(const uint8_t *half, int64_t groups, const uint8_t *prepared,
                                       const edb_group_meta *meta, float *out, const uint8_t *next,
                                       int planes) {
    _Alignas(32) float acc[EDB_TILE] = {0};
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(half, groups - g, next, EDB_HALF_BYTES);
        for (int line = 0; line < EDB_HALF_BYTES; line += 64)
            _mm_prefetch(ahead + line, _MM_HINT_T1);
        count_half_group(half, prepared, meta[g].sx, acc, planes);
        half += EDB_HALF_BYTES;
        prepared += PREPARED_BYTES;
    }
    store_rows(out, acc);
}

static void tile8(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                  const edb_group_meta *meta, float *acc, const uint8_t *next) {
    count_tile(blocks, groups, prepared, meta, acc, next, 8);
}

static void tile4(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                  const edb_group_meta *meta, float *acc, const uint8_t *next) {
    count_tile(blocks, groups, prepared, meta, acc, next, 4);
}

static void half_tile8(const uint8_t *halves, int64_t groups, const uint8_t *prepared,
                       const edb_group_meta *meta, float *acc, const uint8_t *next) {
    count_half_tile(halves, groups, prepared, meta, acc, next, 8);
}

static void half_tile4(const uint8_t *halves, int64_t groups, const uint8_t *prepared,
                       const edb_group_meta *meta, float *acc, const uint8_t *next) {
    count_half_tile(halves, groups, prepared, meta, acc, next, 4);
}

const edb_pair_kernel edb_popcount_avx2 = {
    .name = "popcount",
    .prepare = prepare,
    .tile = tile8,
    .half_tile = half_tile8,
    .prepared_bytes = PREPARED_BYTES,
    .expand_from = 2,
};

const edb_pair_kernel edb_popcount4_avx2 = {
    .name = "popcount4",
    .coarsen = edb_coarsen_to_4_bits,
    .prepare = prepare,
    .tile = tile4,
    .half_tile = half_tile4,
    .prepared_bytes = PREPARED_BYTES,
    .expand_from = 8, /* 50 GMAC/s by counting, 57 expanded */
};

EDB_TARGET_END

#else
typedef int edb_no_popcount_avx2_here; /* an empty file is no valid C */
#endif
