/*
 * The dual-binary product by counting bits, for AVX-512 with BITALG (Ice Lake, Zen 4 and later):
 * S = sum over planes p of weight_p * popcount(b & plane_p), on the bytes of the look-up.
 *
 * Two neighbouring quads of a row are, nibble by nibble, one byte of eight columns of each plane. So
 * a group is eight vectors of b1 and eight of b2 with a row in each byte, which stay in registers
 * while the planes of the activations pass; each plane's byte is there four times, because only
 * dwords broadcast from memory at no cost.
 *
 *   8-bit counts:   of a plane, at most 64; c_p + 2*c_(p+1) at most 192; c6 - 2*c7 in -128..64
 *   16-bit sums:    (c0 + 2 c1) + 4 (c2 + 2 c3) <= 960; 16 (c4 + 2 c5) + 64 (c6 - 2 c7 + 128) <=
 *                   15,360; S in -8,192..8,128
 *
 *   instruction   Zen 4: latency, per cycle     Ice Lake: latency, ports
 *   vpopcntb z    2, 1                          3, p5
 *   vpandd z      1, 2                          1, p05
 *   vpaddb z      1, 2                          1, p05
 *
 * Instructions a weight: 3 for 512 products, 384 for the 8 planes of a group of 64 by 64, 600 with
 * taking it apart and finishing it: 0.15, and 0.09 with four planes.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512vl,avx512bitalg")

#include "finish_avx512.h"

/* Byte i of plane p, four times, at 4 * (8 * p + i). */
enum { PREPARED_BYTES = 4 * EDB_PLANE_BYTES };

static void prepare(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *prepared, edb_group_meta *meta) {
    const __m256i four_times =
        _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, /* each 128-bit half has */
                         4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7); /* all eight bytes */
    for (int64_t g = 0; g < groups; g++) {
        __m512i x = load512(q);
        for (int p = 0; p < EDB_PLANES; p++) {
            uint64_t plane = _mm512_test_epi8_mask(x, _mm512_set1_epi8((char)(1 << p)));
            __m256i bytes = _mm256_set1_epi64x((long long)plane);
            _mm256_storeu_si256((__m256i *)(prepared + 32 * p),
                                _mm256_shuffle_epi8(bytes, four_times));
        }
        meta[g] = (edb_group_meta){.sx = *sx, .bias = 0};
        q += EDB_GROUP * stride;
        sx += stride;
        prepared += PREPARED_BYTES;
    }
}

typedef struct {
    __m512i b1, b2;
} both;

/* Columns 8*i .. 8*i + 7 of both planes of the weights, a row in each byte. */
static EDB_INLINE both columns(const uint8_t *block, int i, const char *ahead) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i even = load512(block + 128 * i), odd = load512(block + 128 * i + 64);
    _mm_prefetch(ahead + 128 * i, _MM_HINT_T1);
    _mm_prefetch(ahead + 128 * i + 64, _MM_HINT_T1);
    return (both){/* low ? even : odd */
                  _mm512_ternarylogic_epi64(low, even, _mm512_slli_epi16(odd, 4), 0xca),
                  _mm512_ternarylogic_epi64(low, _mm512_srli_epi16(even, 4), odd, 0xca)};
}

#define COUNT(i)                                                                              \
    do {                                                                                      \
        int32_t four;                                                                         \
        memcpy(&four, plane + 4 * (i), sizeof four);                                          \
        __m512i x = _mm512_set1_epi32(four);                                                  \
        n1 = _mm512_add_epi8(n1, _mm512_popcnt_epi8(_mm512_and_si512(w##i.b1, x)));           \
        n2 = _mm512_add_epi8(n2, _mm512_popcnt_epi8(_mm512_and_si512(w##i.b2, x)));           \
        __asm__("" : "+v"(n1), "+v"(n2)); /* or gcc 12 first counts everything, and spills */ \
    } while (0)

/* Counts of one plane of the activations in `count`. */
#define COUNT_PLANE(p, count)                       \
    do {                                            \
        const uint8_t *plane = prepared + 32 * (p); \
        __m512i n1 = zero, n2 = zero;               \
        COUNT(0);                                   \
        COUNT(1);                                   \
        COUNT(2);                                   \
        COUNT(3);                                   \
        COUNT(4);                                   \
        COUNT(5);                                   \
        COUNT(6);                                   \
        COUNT(7);                                   \
        count = (both){n1, n2};                     \
    } while (0)

static EDB_INLINE __m512i twice_and(__m512i high, __m512i low) {
    return _mm512_add_epi8(_mm512_add_epi8(high, high), low);
}

/* 16 * c45 + 64 * (c67 - 128) from interleaved bytes, where c67 comes with 128 added. */
static EDB_INLINE __m512i join_high(__m512i c45_c67) {
    const __m512i by_16_and_64 = _mm512_set1_epi16(16 | 64 << 8);
    return _mm512_sub_epi16(_mm512_maddubs_epi16(c45_c67, by_16_and_64), _mm512_set1_epi16(8192));
}

static EDB_INLINE __m512i join_low(__m512i c01_c23) {
    return _mm512_maddubs_epi16(c01_c23, _mm512_set1_epi16(1 | 4 << 8));
}

static EDB_INLINE void count_tile(const uint8_t *block, int64_t groups, const uint8_t *prepared,
                                  const edb_group_meta *meta, float *out, const uint8_t *next,
                                  int planes) {
    const __m512i zero = _mm512_setzero_si512(), offset = _mm512_set1_epi8(-128);
    row_sums sums = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES);
        both w0 = columns(block, 0, ahead), w1 = columns(block, 1, ahead);
        both w2 = columns(block, 2, ahead), w3 = columns(block, 3, ahead);
        both w4 = columns(block, 4, ahead), w5 = columns(block, 5, ahead);
        both w6 = columns(block, 6, ahead), w7 = columns(block, 7, ahead);
        _mm_prefetch(ahead + 1024, _MM_HINT_T1);
        _mm_prefetch(ahead + 1088, _MM_HINT_T1);

        both low, high, c45, c67;
        COUNT_PLANE(7, high);
        COUNT_PLANE(6, low);
        c67.b1 = _mm512_sub_epi8(low.b1, _mm512_add_epi8(high.b1, high.b1));
        c67.b2 = _mm512_sub_epi8(low.b2, _mm512_add_epi8(high.b2, high.b2));
        c67.b1 = _mm512_xor_si512(c67.b1, offset);
        c67.b2 = _mm512_xor_si512(c67.b2, offset);
        COUNT_PLANE(5, high);
        COUNT_PLANE(4, low);
        c45 = (both){twice_and(high.b1, low.b1), twice_and(high.b2, low.b2)};
        __m512i s1_low = join_high(_mm512_unpacklo_epi8(c45.b1, c67.b1));
        __m512i s1_high = join_high(_mm512_unpackhi_epi8(c45.b1, c67.b1));
        __m512i s2_low = join_high(_mm512_unpacklo_epi8(c45.b2, c67.b2));
        __m512i s2_high = join_high(_mm512_unpackhi_epi8(c45.b2, c67.b2));
        if (planes == 8) {
            both c01, c23;
            COUNT_PLANE(3, high);
            COUNT_PLANE(2, low);
            c23 = (both){twice_and(high.b1, low.b1), twice_and(high.b2, low.b2)};
            COUNT_PLANE(1, high);
            COUNT_PLANE(0, low);
            c01 = (both){twice_and(high.b1, low.b1), twice_and(high.b2, low.b2)};
            s1_low = _mm512_add_epi16(s1_low, join_low(_mm512_unpacklo_epi8(c01.b1, c23.b1)));
            s1_high = _mm512_add_epi16(s1_high, join_low(_mm512_unpackhi_epi8(c01.b1, c23.b1)));
            s2_low = _mm512_add_epi16(s2_low, join_low(_mm512_unpacklo_epi8(c01.b2, c23.b2)));
            s2_high = _mm512_add_epi16(s2_high, join_low(_mm512_unpackhi_epi8(c01.b2, c23.b2)));
        }
        sums = finish64(sums, meta[g].sx, block + 1024, s1_low, s1_high, s2_low, s2_high);
        block += EDB_BLOCK_BYTES;
        prepared += PREPARED_BYTES;
    }
    store_rows(out, sums);
}

/* The counts of one plane of the activations against the eight bytes of half a pair's rows. */
static EDB_INLINE __m512i count_rows(const __m512i *w, const uint8_t *plane) {
    __m512i n = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        int32_t four;
        memcpy(&four, plane + 4 * i, sizeof four);
        __m512i x = _mm512_set1_epi32(four);
        n = _mm512_add_epi8(n, _mm512_popcnt_epi8(_mm512_and_si512(w[i], x)));
        __asm__("" : "+v"(n));
    }
    return n;
}

/* A byte of a half has eight columns of a row already. */
static EDB_INLINE void count_half_tile(const uint8_t *half, int64_t groups, const uint8_t *prepared,
                                       const edb_group_meta *meta, float *out, const uint8_t *next,
                                       int planes) {
    const __m512i offset = _mm512_set1_epi8(-128);
    row_sums sums = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
    for (int64_t g = 0; g < groups; g++) {
        const char *ahead = edb_ahead(half, groups - g, next, EDB_HALF_BYTES);
        __m512i w[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            w[i] = load512(half + EDB_TILE * i);
            _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
        }
        _mm_prefetch(ahead + 512, _MM_HINT_T1);

        __m512i high = count_rows(w, prepared + 32 * 7), low = count_rows(w, prepared + 32 * 6);
        __m512i c67 = _mm512_xor_si512(_mm512_sub_epi8(low, _mm512_add_epi8(high, high)), offset);
        __m512i c45 = twice_and(count_rows(w, prepared + 32 * 5), count_rows(w, prepared + 32 * 4));
        __m512i s_low = join_high(_mm512_unpacklo_epi8(c45, c67));
        __m512i s_high = join_high(_mm512_unpackhi_epi8(c45, c67));
        if (planes == 8) {
            __m512i c23 = twice_and(count_rows(w, prepared + 32 * 3), count_rows(w, prepared + 64));
            __m512i c01 = twice_and(count_rows(w, prepared + 32), count_rows(w, prepared));
            s_low = _mm512_add_epi16(s_low, join_low(_mm512_unpacklo_epi8(c01, c23)));
            s_high = _mm512_add_epi16(s_high, join_low(_mm512_unpackhi_epi8(c01, c23)));
        }
        sums = finish_half64(sums, meta[g].sx, half + 512, s_low, s_high);
        half += EDB_HALF_BYTES;
        prepared += PREPARED_BYTES;
    }
    store_rows(out, sums);
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

const edb_pair_kernel edb_popcount_avx512 = {
    .name = "popcount",
    .prepare = prepare,
    .tile = tile8,
    .half_tile = half_tile8,
    .prepared_bytes = PREPARED_BYTES,
    .expand_from = 2,
};

const edb_pair_kernel edb_popcount4_avx512 = {
    .name = "popcount4",
    .coarsen = edb_coarsen_to_4_bits,
    .prepare = prepare,
    .tile = tile4,
    .half_tile = half_tile4,
    .prepared_bytes = PREPARED_BYTES,
    .expand_from = 5,
};

EDB_TARGET_END

#else
typedef int edb_no_popcount_avx512_here; /* an empty file is no valid C */
#endif
