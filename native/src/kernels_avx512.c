/*
 * AVX-512 kernels with VBMI and VNNI (Ice Lake, Zen 4 and later), on the layout of edgedb.h; pairs
 * are in lookup_avx512.c and popcount_avx512.c.
 *
 * int8_tile: vpdpbusd multiplies unsigned by signed bytes, so one side is shifted by 128 (its sign
 * bit flipped) and the sum of the other, times 128, taken away again, in exact integers:
 *
 *   sum w*x = sum w*(x + 128) - 128 * sum w     from four tokens on: once per row for all tokens
 *           = sum (w + 128)*x - 128 * sum x     fewer: once per token for all rows
 *
 *   32-bit sums: 64 * 255 * 127 = 2,072,640 shifted, 64 * 127 * 127 = 1,032,256 in the end
 *
 *   instruction   Zen 4: latency, per cycle     Ice Lake: latency, ports
 *   vpdpbusd z    4, 1                          5, p0 (p05 on servers)
 *   vpxord z      1, 2                          1, p05
 *   vpermb z      4, 1                          3, p5
 *
 * Instructions a weight and token of a prompt: 24 for 64 rows by four columns by four tokens and
 * about 90 to finish them, 0.029.
 */
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,fma,f16c")
#endif

typedef __m512 v16;

static EDB_INLINE v16 v_set1(float x) { return _mm512_set1_ps(x); }
static EDB_INLINE v16 v_load(const float *p) { return _mm512_loadu_ps(p); }
static EDB_INLINE void v_store(float *p, v16 x) { _mm512_storeu_ps(p, x); }
static EDB_INLINE v16 v_add(v16 x, v16 y) { return _mm512_add_ps(x, y); }
static EDB_INLINE v16 v_sub(v16 x, v16 y) { return _mm512_sub_ps(x, y); }
static EDB_INLINE v16 v_mul(v16 x, v16 y) { return _mm512_mul_ps(x, y); }
static EDB_INLINE v16 v_div(v16 x, v16 y) { return _mm512_div_ps(x, y); }
static EDB_INLINE v16 v_min(v16 x, v16 y) { return _mm512_min_ps(x, y); }
static EDB_INLINE v16 v_max(v16 x, v16 y) { return _mm512_max_ps(x, y); }
static EDB_INLINE v16 v_fma(v16 x, v16 y, v16 z) { return _mm512_fmadd_ps(x, y, z); }
static EDB_INLINE v16 v_abs(v16 x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }

static EDB_INLINE v16 v_scale2(v16 p, v16 t) {
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

static EDB_INLINE v16 v_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static EDB_INLINE v16 v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static EDB_INLINE void v_store_f16(uint16_t *p, v16 x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static EDB_INLINE void v_store_i8(int8_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
}

static EDB_INLINE __m256 add_halves(v16 x) {
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

static EDB_INLINE float v_sum(v16 x) {
    __m256 eight = add_halves(x);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static EDB_INLINE void v_sum4(v16 x, v16 y, v16 z, v16 w, float *out) {
    __m512 xy = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), /* lanes 0-7 of x | of y */
                              _mm512_shuffle_f32x4(x, y, 0xee));
    __m512 zw = _mm512_add_ps(_mm512_shuffle_f32x4(z, w, 0x44), _mm512_shuffle_f32x4(z, w, 0xee));
    __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(xy, zw, 0x88), /* 0-3 of x | y | z | w */
                                _mm512_shuffle_f32x4(xy, zw, 0xdd));
    __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0xee));
    __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one)));
}

static EDB_INLINE float v_max_lane(v16 x) { return _mm512_reduce_max_ps(x); }

enum { ATTEND_FLIGHT = 16 }; /* of 32 registers */
#include "ops_body.h"
#include "attention_body.h"

static EDB_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }

/*
 * Sixteen rows by four columns fill a register with levels, and the four levels of sixteen rows
 * fill another: vpermb looks up by row and bits. Index bits 0 and 4 are b1 and b2, the rest the row.
 */
static void expand_block(const uint8_t *block, int8_t *codes) {
    const __m512i bits_only = _mm512_set1_epi8(0x11);
    const __m512i byte =
        _mm512_set_epi8(15, 15, 15, 15, 14, 14, 14, 14, 13, 13, 13, 13, 12, 12, 12, 12, 11, 11, 11,
                        11, 10, 10, 10, 10, 9, 9, 9, 9, 8, 8, 8, 8, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 5,
                        5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    /* Row r of sixteen -> index bits 1, 2, 3 and 5. */
    const __m512i low_row = _mm512_and_si512(byte, _mm512_set1_epi8(7));
    const __m512i row =
        _mm512_or_si512(_mm512_slli_epi16(low_row, 1),
                        _mm512_slli_epi16(_mm512_and_si512(byte, _mm512_set1_epi8(8)), 2));
    /* Byte k of a dword, and the row within a qword: where its two bits come down from. */
    const __m512i shifts = _mm512_set1_epi64(0x2322212003020100);
    /* Index -> row and which of 0, c1, c2, c1 + c2. */
    const __m512i index = _mm512_set_epi8(
        63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41,
        40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18,
        17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i row_of_index =
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(index, 1), _mm512_set1_epi8(7)),
                        _mm512_and_si512(_mm512_srli_epi16(index, 2), _mm512_set1_epi8(8)));
    const __mmask64 has_c1 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(1));
    const __mmask64 has_c2 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(16));
    const __m512i c1 = load512(block + 1024), c2 = load512(block + 1088);
    for (int slice = 0; slice < EDB_TILE; slice += 16) {
        __m512i from = _mm512_add_epi8(row_of_index, _mm512_set1_epi8((char)slice));
        __m512i levels = _mm512_add_epi8(_mm512_maskz_permutexvar_epi8(has_c1, from, c1),
                                         _mm512_maskz_permutexvar_epi8(has_c2, from, c2));
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            __m128i sixteen = _mm_loadu_si128((const __m128i *)(block + EDB_TILE * quad + slice));
            __m512i bits = _mm512_cvtepu8_epi32(sixteen);
            bits = _mm512_multishift_epi64_epi8(shifts, bits);
            bits = _mm512_ternarylogic_epi32(bits, bits_only, row, 0xea); /* bits & 0x11 | row */
            _mm512_storeu_si512(codes + 4 * (EDB_TILE * quad + slice),
                                _mm512_permutexvar_epi8(bits, levels));
        }
    }
}

/*
 * sum + unsigned * signed, four bytes a lane. As an instruction of its own: gcc 12 copies every
 * accumulator of the intrinsic to another register and back, a quarter of a prompt's speed.
 */
static EDB_INLINE __m512i dot4(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
    return sum;
}

static EDB_INLINE __m512i four_codes(const void *p) {
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm512_set1_epi32(codes);
}

static EDB_INLINE void finish_dots(float *acc, __m512i dots, float sx, const float *scales) {
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(sx), _mm512_loadu_ps(scales));
    __m512 sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots), _mm512_loadu_ps(acc));
    _mm512_storeu_ps(acc, sum);
}

/* -128 * the sum of each row's codes. */
static EDB_INLINE void row_offsets(const int8_t *codes, __m512i *offsets) {
    const __m512i by_128 = _mm512_set1_epi8(-128), zero = _mm512_setzero_si512();
    __m512i s0 = zero, s1 = zero, s2 = zero, s3 = zero;
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        s0 = dot4(s0, by_128, load512(codes + 256 * quad));
        s1 = dot4(s1, by_128, load512(codes + 256 * quad + 64));
        s2 = dot4(s2, by_128, load512(codes + 256 * quad + 128));
        s3 = dot4(s3, by_128, load512(codes + 256 * quad + 192));
    }
    offsets[0] = _mm512_sub_epi32(zero, s0);
    offsets[1] = _mm512_sub_epi32(zero, s1);
    offsets[2] = _mm512_sub_epi32(zero, s2);
    offsets[3] = _mm512_sub_epi32(zero, s3);
}

/* 64 rows by four tokens of one group: sixteen accumulators. x: q + 128 of the tokens. */
static EDB_INLINE void group_64x4(const int8_t *codes, const __m512i *offsets, const float *scales,
                                  const uint8_t *x, const float *sx, float *acc) {
    __m512i a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3;
    a0 = b0 = c0 = d0 = offsets[0];
    a1 = b1 = c1 = d1 = offsets[1];
    a2 = b2 = c2 = d2 = offsets[2];
    a3 = b3 = c3 = d3 = offsets[3];
#pragma GCC unroll 2
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m512i w0 = load512(codes + 256 * quad), w1 = load512(codes + 256 * quad + 64);
        __m512i w2 = load512(codes + 256 * quad + 128), w3 = load512(codes + 256 * quad + 192);
#define DOTS(sum0, sum1, sum2, sum3, token)                            \
    do {                                                               \
        __m512i four = four_codes(x + EDB_GROUP * (token) + 4 * quad); \
        sum0 = dot4(sum0, four, w0);                                   \
        sum1 = dot4(sum1, four, w1);                                   \
        sum2 = dot4(sum2, four, w2);                                   \
        sum3 = dot4(sum3, four, w3);                                   \
    } while (0)
        DOTS(a0, a1, a2, a3, 0);
        DOTS(b0, b1, b2, b3, 1);
        DOTS(c0, c1, c2, c3, 2);
        DOTS(d0, d1, d2, d3, 3);
#undef DOTS
    }
#define FINISH(sum0, sum1, sum2, sum3, token)                                     \
    do {                                                                          \
        finish_dots(acc + EDB_TILE * (token), sum0, sx[token], scales);           \
        finish_dots(acc + EDB_TILE * (token) + 16, sum1, sx[token], scales + 16); \
        finish_dots(acc + EDB_TILE * (token) + 32, sum2, sx[token], scales + 32); \
        finish_dots(acc + EDB_TILE * (token) + 48, sum3, sx[token], scales + 48); \
    } while (0)
    FINISH(a0, a1, a2, a3, 0);
    FINISH(b0, b1, b2, b3, 1);
    FINISH(c0, c1, c2, c3, 2);
    FINISH(d0, d1, d2, d3, 3);
#undef FINISH
}

/* 64 rows of one token and group, straight from memory. */
static EDB_INLINE void group_64x1(const int8_t *codes, const float *scales, const int8_t *q,
                                  float sx, float *acc, const char *ahead) {
    const __m512i sign = _mm512_set1_epi8(-128);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), sign, load512(q));
    __m512i s0, s1, s2, s3;
    s0 = s1 = s2 = s3 = _mm512_set1_epi32(-_mm512_reduce_add_epi32(sums));
#define DOT(sum, slice) \
    sum = dot4(sum, _mm512_xor_si512(load512(codes + 256 * quad + 64 * (slice)), sign), x)
#pragma GCC unroll 4
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        __m512i x = four_codes(q + 4 * quad);
        DOT(s0, 0);
        DOT(s1, 1);
        DOT(s2, 2);
        DOT(s3, 3);
        for (int line = 0; line < 4; line++)
            _mm_prefetch(ahead + 256 * quad + 64 * line, _MM_HINT_T1);
    }
#undef DOT
    finish_dots(acc, s0, sx, scales);
    finish_dots(acc + 16, s1, sx, scales + 16);
    finish_dots(acc + 32, s2, sx, scales + 32);
    finish_dots(acc + 48, s3, sx, scales + 48);
}

/* Tokens in fours against one group: its codes stay in the first-level cache. */
static EDB_INLINE void tokens_in_fours(const int8_t *codes, const float *scales, const int8_t *q,
                                       const float *sx, int64_t n, float *acc) {
    const __m512i sign = _mm512_set1_epi8(-128);
    __m512i offsets[4];
    row_offsets(codes, offsets);
    for (int64_t t = 0; t + 4 <= n; t += 4) {
        _Alignas(64) uint8_t x[4 * EDB_GROUP];
        for (int i = 0; i < 4; i++)
            _mm512_store_si512(x + EDB_GROUP * i,
                               _mm512_xor_si512(load512(q + EDB_GROUP * (t + i)), sign));
        group_64x4(codes, offsets, scales, x, sx + t, acc + EDB_TILE * t);
    }
}

static void int8_tile(const int8_t *codes, const float *scales, int64_t groups, const int8_t *q,
                      const float *sx, int64_t stride, int64_t n, float *acc, const int8_t *next) {
    int64_t rest = n & ~(int64_t)3;
    for (int64_t g = 0; g < groups; g++) {
        if (n >= 4) tokens_in_fours(codes, scales, q, sx, n, acc);
        const char *ahead = edb_ahead(codes, groups - g, next, EDB_CODES_BYTES);
        for (int64_t t = rest; t < n; t++)
            group_64x1(codes, scales, q + EDB_GROUP * t, sx[t], acc + EDB_TILE * t, ahead);
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * stride;
        sx += stride;
    }
}

const edb_kernels edb_kernels_avx512 = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_block = expand_block,
    .int8_tile = int8_tile,
    .pairs = {&edb_lookup_avx512, &edb_popcount_avx512, &edb_popcount4_avx512},
};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int edb_no_avx512_here; /* an empty file is no valid C */
#endif
