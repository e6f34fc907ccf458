/*
 * AVX-512 kernels with VBMI and VNNI (Ice Lake, Zen 4 and later), on the layout of edgedb.h; pairs
 * are in lookup_avx512.c and popcount_avx512.c, int8 codes for many tokens in kernels_avx512_int8.c.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,fma,f16c")

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

static EDB_INLINE v16 v_swap_pairs(v16 x) { return _mm512_permute_ps(x, 0xb1); }

static EDB_INLINE v16 v_most(v16 x, v16 y) {
    return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(x), _mm512_castps_si512(y)));
}

static EDB_INLINE v16 v_add_i32(v16 x, v16 y) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_castps_si512(y)));
}

static EDB_INLINE v16 v_scale2(v16 p, v16 t) {
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

static EDB_INLINE v16 v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static EDB_INLINE void v_store_f16(uint16_t *p, v16 x) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static EDB_INLINE void v_store_i8(int8_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_castps_si512(x)));
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

/* To out what `operation` makes of all lanes of each: lanes l and l+8 first, then l+4, l+2 and l+1. */
#define FOLD4(operation, x, y, z, w, out)                                                         \
    do {                                                                                          \
        v16 xy = operation(_mm512_shuffle_f32x4(x, y, 0x44), /* lanes 0-7 of x | of y */          \
                           _mm512_shuffle_f32x4(x, y, 0xee));                                     \
        v16 zw = operation(_mm512_shuffle_f32x4(z, w, 0x44), _mm512_shuffle_f32x4(z, w, 0xee));   \
        v16 four = operation(_mm512_shuffle_f32x4(xy, zw, 0x88), /* 0-3 of x | y | z | w */       \
                             _mm512_shuffle_f32x4(xy, zw, 0xdd));                                 \
        v16 two = operation(four, _mm512_permute_ps(four, 0xee));                                 \
        v16 one = operation(two, _mm512_movehdup_ps(two));                                        \
        __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);       \
        _mm_storeu_ps((float *)(out), _mm512_castps512_ps128(_mm512_permutexvar_ps(first, one))); \
    } while (0)

static EDB_INLINE void v_sum4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(v_add, x, y, z, w, out);
}
static EDB_INLINE void v_most4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(v_most, x, y, z, w, out);
}
static EDB_INLINE void v_sum4_i32(v16 x, v16 y, v16 z, v16 w, uint32_t *out) {
    FOLD4(v_add_i32, x, y, z, w, out);
}

static EDB_INLINE void v_max4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(v_max, x, y, z, w, out);
}

static EDB_INLINE float v_max_lane(v16 x) { return _mm512_reduce_max_ps(x); }

enum { ATTEND_FLIGHT = 16 }; /* of 32 registers */
#include "ops_body.h"
#include "words_avx512.h"
#include "attention_body.h"

/*
 * 64 rows by one token and group, at the speed of memory: registers of 32 bytes, for with 64 Zen 4
 * reads a tenth slower. Codes are shifted by 128 as in kernels_avx512_int8.c.
 */
static EDB_INLINE void group_64x1(edb_fetch fetch, const int8_t *codes, const float *scales,
                                  const int8_t *q, float sx_of_token, int32_t offset, float *acc,
                                  const char *ahead) {
    const __m256i flip = _mm256_set1_epi8(-128);
    __m256 sx = _mm256_set1_ps(sx_of_token);
    __m256i dots[8];
    for (int i = 0; i < 8; i++) dots[i] = _mm256_set1_epi32(offset);
#pragma GCC unroll 1
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        int32_t four;
        memcpy(&four, q + 4 * quad, sizeof four);
        __m256i x = _mm256_set1_epi32(four);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            const void *w = codes + 256 * quad + 32 * i;
            __m256i shifted = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w), flip);
            dots[i] = _mm256_dpbusd_epi32(dots[i], shifted, x);
        }
        if (fetch == EDB_NEAR) {
            edb_fetch_codes(ahead, quad);
        } else {
            if (fetch == EDB_FAR)
                _mm_prefetch(ahead + 64 * quad, _MM_HINT_T1); /* a quarter of the block */
            edb_fetch_scales(scales, quad);
        }
    }
    for (int i = 0; i < 8; i++) {
        __m256 scale = _mm256_mul_ps(sx, _mm256_loadu_ps(scales + 8 * i));
        __m256 sum = _mm256_loadu_ps(acc + 8 * i);
        _mm256_storeu_ps(acc + 8 * i, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots[i]), sum));
    }
}

/* A tile by one token. */
static EDB_INLINE void tile_64x1(edb_fetch fetch, const int8_t *codes, const float *scales,
                                 int64_t groups, const edb_tokens *token, float *acc,
                                 const int8_t *next) {
    for (int64_t g = 0; g < groups; g++, codes += EDB_CODES_BYTES, scales += EDB_TILE) {
        int64_t at = g * token->stride;
        const char *ahead =
            fetch == EDB_NEAR ? edb_blocks_ahead(codes, groups - g, next, EDB_CODES_BYTES, 1)
                              : edb_fetch_block(fetch, 0, codes, groups - g, next, EDB_CODES_BYTES);
        group_64x1(fetch, codes, scales, token->q + EDB_GROUP * at, token->sx[at],
                   token->offsets[at], acc, ahead);
    }
}

static void int8_tile(const int8_t *codes, const float *scales, int64_t groups,
                      const edb_tokens *tokens, float *acc, const int8_t *next) {
    if (tokens->n > 1) {
        edb_int8_tile_avx512(codes, scales, groups, tokens, acc, next);
    } else {
        EDB_FETCHING(tile_64x1, codes, scales, groups, tokens, acc, next);
    }
}

const edb_kernels edb_kernels_avx512 = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .offsets = edb_offsets_avx512,
    .expand_tile = edb_expand_tile_avx512,
    .expand_half_tile = edb_expand_half_tile_avx512,
    .int8_tile = int8_tile,
    .pairs = {&edb_lookup_avx512, &edb_popcount_avx512, &edb_popcount4_avx512},
};

EDB_TARGET_END

#else
typedef int edb_no_avx512_here; /* an empty file is no valid C */
#endif
