/*
 * AVX2 kernels (Haswell, Zen and later), on the layout of edgedb.h; pairs are in lookup_avx2.c,
 * products of codes in kernels_avx2_int8.c.
 * Two rows of the list share this file: "avxvnni" differs in its products of codes and in what it
 * expands (kernels_avxvnni.c).
 */
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,f16c")

typedef struct {
    __m256 a, b; /* lanes 0..7 and 8..15 */
} v16;

#define BOTH_OF(type, operation, x, y) ((type){operation((x).a, (y).a), operation((x).b, (y).b)})
#define BOTH(operation, x, y) BOTH_OF(v16, operation, x, y)

static EDB_INLINE v16 v_set1(float x) { return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static EDB_INLINE v16 v_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static EDB_INLINE void v_store(float *p, v16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static EDB_INLINE v16 v_add(v16 x, v16 y) { return BOTH(_mm256_add_ps, x, y); }
static EDB_INLINE v16 v_sub(v16 x, v16 y) { return BOTH(_mm256_sub_ps, x, y); }
static EDB_INLINE v16 v_mul(v16 x, v16 y) { return BOTH(_mm256_mul_ps, x, y); }
static EDB_INLINE v16 v_div(v16 x, v16 y) { return BOTH(_mm256_div_ps, x, y); }
static EDB_INLINE v16 v_min(v16 x, v16 y) { return BOTH(_mm256_min_ps, x, y); }
static EDB_INLINE v16 v_max(v16 x, v16 y) { return BOTH(_mm256_max_ps, x, y); }
static EDB_INLINE v16 v_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static EDB_INLINE v16 v_abs(v16 x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

static EDB_INLINE v16 v_swap_pairs(v16 x) {
    return (v16){_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}

static EDB_INLINE __m256 most(__m256 x, __m256 y) {
    return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
}
static EDB_INLINE v16 v_most(v16 x, v16 y) { return BOTH(most, x, y); }

static EDB_INLINE __m256 add_i32(__m256 x, __m256 y) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_castps_si256(y)));
}
static EDB_INLINE v16 v_add_i32(v16 x, v16 y) { return BOTH(add_i32, x, y); }

static EDB_INLINE __m256 scale2(__m256 p, __m256 t) {
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
static EDB_INLINE v16 v_scale2(v16 p, v16 t) { return BOTH(scale2, p, t); }

static EDB_INLINE v16 v_load_f16(const uint16_t *p) {
    __m256i h = _mm256_loadu_si256((const __m256i *)p);
    return (v16){_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
                 _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
static EDB_INLINE void v_store_f16(uint16_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}


static EDB_INLINE void v_store_i8(int8_t *p, v16 x) {
    const __m256i magic = _mm256_castps_si256(_mm256_set1_ps(EDB_ROUND_MAGIC));
    __m256i words = _mm256_packs_epi32(_mm256_sub_epi32(_mm256_castps_si256(x.a), magic),
                                       _mm256_sub_epi32(_mm256_castps_si256(x.b), magic));
    __m256i bytes = _mm256_packs_epi16(words, words); /* 0-3, 8-11, -, - | 4-7, 12-15, -, - */
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(bytes));
}

static EDB_INLINE float v_sum(v16 x) {
    __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* To out what `operation` makes of all lanes of each: lanes l and l+8 first, then l+4, l+2 and l+1. */
#define FOLD4(operation, x, y, z, w, out)                                                        \
    do {                                                                                         \
        __m256 x8 = operation(x.a, x.b), y8 = operation(y.a, y.b);                               \
        __m256 z8 = operation(z.a, z.b), w8 = operation(w.a, w.b);                               \
        __m256 xy = operation(_mm256_permute2f128_ps(x8, y8, 0x20), /* four lanes of x | of y */ \
                              _mm256_permute2f128_ps(x8, y8, 0x31));                             \
        __m256 zw = operation(_mm256_permute2f128_ps(z8, w8, 0x20),                              \
                              _mm256_permute2f128_ps(z8, w8, 0x31));                             \
        __m256 two = operation(_mm256_shuffle_ps(xy, zw, 0x44), /* x x z z | y y w w */          \
                               _mm256_shuffle_ps(xy, zw, 0xee));                                 \
        __m256 one = operation(two, _mm256_movehdup_ps(two)); /* x - z - | y - w - */            \
        __m128 xz = _mm256_castps256_ps128(one), yw = _mm256_extractf128_ps(one, 1);             \
        xz = _mm_shuffle_ps(xz, yw, 0x88); /* x z y w */                                         \
        _mm_storeu_ps((float *)(out), _mm_shuffle_ps(xz, xz, 0xd8));                             \
    } while (0)

static EDB_INLINE void v_sum4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(_mm256_add_ps, x, y, z, w, out);
}
static EDB_INLINE void v_most4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(most, x, y, z, w, out);
}
static EDB_INLINE void v_sum4_i32(v16 x, v16 y, v16 z, v16 w, uint32_t *out) {
    FOLD4(add_i32, x, y, z, w, out);
}

static EDB_INLINE void v_max4(v16 x, v16 y, v16 z, v16 w, float *out) {
    FOLD4(_mm256_max_ps, x, y, z, w, out);
}

static EDB_INLINE float v_max_lane(v16 x) {
    __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

enum { ATTEND_FLIGHT = 6 }; /* of 16 registers, two a vector */
#include "ops_body.h"
#include "words_avx2.h"
#include "attention_body.h"
#include "finish_avx2.h"

/* Byte r of eight -> bytes 4r..4r+3 of 32. half: which eight of the sixteen that x holds twice. */
static EDB_INLINE __m256i four_times(__m256i x, int half) {
    const __m256i first = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4,
                                           5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    return _mm256_shuffle_epi8(x, _mm256_add_epi8(first, _mm256_set1_epi8((char)(8 * half))));
}

static EDB_INLINE __m256i twice16(const void *p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

/* Eight rows by four columns: a code where the bit is set, added over both planes. */
static EDB_INLINE __m256i levels_8x4(__m256i bits, __m256i c1, __m256i c2) {
    const __m256i bit1 = _mm256_set1_epi32(0x08040201), bit2 = _mm256_slli_epi32(bit1, 4);
    __m256i has1 = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit1), bit1);
    __m256i has2 = _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit2), bit2);
    return _mm256_add_epi8(_mm256_and_si256(has1, c1), _mm256_and_si256(has2, c2));
}

static void expand_block(const uint8_t *block, int8_t *codes) {
    for (int row = 0; row < EDB_TILE; row += 16) {
        __m256i c1 = twice16(block + 1024 + row), c2 = twice16(block + 1088 + row);
        __m256i c1a = four_times(c1, 0), c1b = four_times(c1, 1);
        __m256i c2a = four_times(c2, 0), c2b = four_times(c2, 1);
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            __m256i bits = twice16(block + EDB_TILE * quad + row);
            int8_t *out = codes + 4 * (EDB_TILE * quad + row);
            _mm256_storeu_si256((__m256i *)out, levels_8x4(four_times(bits, 0), c1a, c2a));
            _mm256_storeu_si256((__m256i *)(out + 32), levels_8x4(four_times(bits, 1), c1b, c2b));
        }
    }
}

const edb_kernels edb_kernels_avx2 = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_block = expand_block,
    .int8_tile = edb_int8_tile_avx2,
    .pairs = {&edb_lookup_avx2, &edb_popcount_avx2, &edb_popcount4_avx2},
};

const edb_kernels edb_kernels_avxvnni = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .offsets = edb_offsets_avxvnni,
    .expand_tile = edb_expand_tile_avxvnni,
    .expand_half_tile = edb_expand_half_tile_avxvnni,
    .int8_tile = edb_int8_tile_avxvnni,
    .pairs = {&edb_lookup_avxvnni, &edb_popcount_avx2, &edb_popcount4_avx2},
};

EDB_TARGET_END

#else
typedef int edb_no_avx2_here; /* an empty file is no valid C */
#endif
