/*
 * NEON kernels for any 64-bit Arm core, on the layout of edgedb.h. Three rows of the list share this
 * file: "neon" (Armv8.0, Raspberry Pi 3 and 4), "neon-dotprod" (Raspberry Pi 5 and most cores since
 * 2018) and "neon-i8mm" (Apple M2, Graviton 3), which differ in their products only
 * (kernels_neon_int8.c, kernels_dotprod.c, kernels_i8mm.c). Look-ups are in lookup_neon.c, few_neon.c.
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>

typedef struct {
    float32x4_t a, b, c, d; /* lanes 0..3, 4..7, 8..11, 12..15 */
} v16;

#define EACH_OF(type, operation, x, y)                                                 \
    ((type){operation((x).a, (y).a), operation((x).b, (y).b), operation((x).c, (y).c), \
            operation((x).d, (y).d)})
#define EACH(operation, x, y) EACH_OF(v16, operation, x, y)

static EDB_INLINE v16 v_set1(float x) {
    float32x4_t four = vdupq_n_f32(x);
    return (v16){four, four, four, four};
}
static EDB_INLINE v16 v_load(const float *p) {
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
static EDB_INLINE void v_store(float *p, v16 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
static EDB_INLINE v16 v_add(v16 x, v16 y) { return EACH(vaddq_f32, x, y); }
static EDB_INLINE v16 v_sub(v16 x, v16 y) { return EACH(vsubq_f32, x, y); }
static EDB_INLINE v16 v_mul(v16 x, v16 y) { return EACH(vmulq_f32, x, y); }
static EDB_INLINE v16 v_div(v16 x, v16 y) { return EACH(vdivq_f32, x, y); }
static EDB_INLINE v16 v_fma(v16 x, v16 y, v16 z) {
    return (v16){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
                 vfmaq_f32(z.d, x.d, y.d)};
}
static EDB_INLINE v16 v_abs(v16 x) {
    return (v16){vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)};
}

static EDB_INLINE v16 v_swap_pairs(v16 x) {
    return (v16){vrev64q_f32(x.a), vrev64q_f32(x.b), vrev64q_f32(x.c), vrev64q_f32(x.d)};
}

/* fmin and fmax return NaN, and +0 above -0, whichever operand it is; these choose as x86 does. */
static EDB_INLINE float32x4_t min4(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcltq_f32(x, y), x, y);
}
static EDB_INLINE float32x4_t max4(float32x4_t x, float32x4_t y) {
    return vbslq_f32(vcgtq_f32(x, y), x, y);
}
static EDB_INLINE v16 v_min(v16 x, v16 y) { return EACH(min4, x, y); }
static EDB_INLINE v16 v_max(v16 x, v16 y) { return EACH(max4, x, y); }

static EDB_INLINE float32x4_t most(float32x4_t x, float32x4_t y) {
    return vreinterpretq_f32_u32(vmaxq_u32(vreinterpretq_u32_f32(x), vreinterpretq_u32_f32(y)));
}
static EDB_INLINE v16 v_most(v16 x, v16 y) { return EACH(most, x, y); }

static EDB_INLINE float32x4_t add_i32(float32x4_t x, float32x4_t y) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vreinterpretq_s32_f32(y)));
}
static EDB_INLINE v16 v_add_i32(v16 x, v16 y) { return EACH(add_i32, x, y); }

static EDB_INLINE float32x4_t scale2(float32x4_t p, float32x4_t t) {
    int32x4_t exponent = vshlq_n_s32(vreinterpretq_s32_f32(t), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}
static EDB_INLINE v16 v_scale2(v16 p, v16 t) { return EACH(scale2, p, t); }

static EDB_INLINE v16 v_load_f16(const uint16_t *p) {
    float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(p));
    float16x8_t y = vreinterpretq_f16_u16(vld1q_u16(p + 8));
    return (v16){vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)),
                 vcvt_high_f32_f16(y)};
}
static EDB_INLINE void v_store_f16(uint16_t *p, v16 x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
    vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}

static EDB_INLINE int16x8_t to_i16(float32x4_t x, float32x4_t y) {
    return vmovn_high_s32(vmovn_s32(vreinterpretq_s32_f32(x)), vreinterpretq_s32_f32(y));
}
static EDB_INLINE void v_store_i8(int8_t *p, v16 x) {
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(to_i16(x.a, x.b)), to_i16(x.c, x.d)));
}

static EDB_INLINE float32x4_t sum_to_4(v16 x) {
    return vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
}
static EDB_INLINE float v_sum(v16 x) {
    float32x4_t four = sum_to_4(x);
    return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}

/* Lanes 0 and 1 += 2 and 3, for two vectors at once. */
static EDB_INLINE float32x4_t sum_to_2(v16 x, v16 y) {
    float64x2_t x4 = vreinterpretq_f64_f32(sum_to_4(x)), y4 = vreinterpretq_f64_f32(sum_to_4(y));
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x4, y4)),
                     vreinterpretq_f32_f64(vzip2q_f64(x4, y4)));
}
static EDB_INLINE void v_sum4(v16 x, v16 y, v16 z, v16 w, float *out) {
    vst1q_f32(out, vpaddq_f32(sum_to_2(x, y), sum_to_2(z, w)));
}

static EDB_INLINE float32x4_t max_of_4(v16 x) { return max4(max4(x.a, x.b), max4(x.c, x.d)); }
static EDB_INLINE float v_max_lane(v16 x) { return vmaxvq_f32(max_of_4(x)); }

static EDB_INLINE void v_max4(v16 x, v16 y, v16 z, v16 w, float *out) {
    float32x4_t xy = vpmaxq_f32(max_of_4(x), max_of_4(y)), zw = vpmaxq_f32(max_of_4(z), max_of_4(w));
    vst1q_f32(out, vpmaxq_f32(xy, zw));
}

static EDB_INLINE uint32x4_t most_of_4(v16 x) {
    return vreinterpretq_u32_f32(most(most(x.a, x.b), most(x.c, x.d)));
}
static EDB_INLINE void v_most4(v16 x, v16 y, v16 z, v16 w, float *out) {
    uint32x4_t xy = vpmaxq_u32(most_of_4(x), most_of_4(y)), zw = vpmaxq_u32(most_of_4(z), most_of_4(w));
    vst1q_f32(out, vreinterpretq_f32_u32(vpmaxq_u32(xy, zw)));
}

static EDB_INLINE int32x4_t sum_of_4(v16 x) {
    return vreinterpretq_s32_f32(add_i32(add_i32(x.a, x.b), add_i32(x.c, x.d)));
}
static EDB_INLINE void v_sum4_i32(v16 x, v16 y, v16 z, v16 w, uint32_t *out) {
    int32x4_t xy = vpaddq_s32(sum_of_4(x), sum_of_4(y)), zw = vpaddq_s32(sum_of_4(z), sum_of_4(w));
    vst1q_u32(out, vreinterpretq_u32_s32(vpaddq_s32(xy, zw)));
}

enum { ATTEND_FLIGHT = 6 }; /* of 32 registers, four a vector */
#include "ops_body.h"
#include "words_neon.h"
#include "attention_body.h"

const edb_kernels edb_kernels_neon = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_block = edb_expand_block_neon,
    .int8_tile = edb_int8_tile_neon,
    .pairs = {&edb_lookup_neon, &edb_popcount_neon, &edb_popcount4_neon},
};

const edb_kernels edb_kernels_neon_dotprod = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_tile = edb_expand_tile_dotprod,
    .expand_half_tile = edb_expand_half_tile_dotprod,
    .int8_tile = edb_int8_tile_dotprod,
    .pairs = {&edb_lookup_neon_dotprod, &edb_popcount_neon, &edb_popcount4_neon},
};

const edb_kernels edb_kernels_neon_i8mm = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_tile = edb_expand_tile_i8mm,
    .expand_half_tile = edb_expand_half_tile_i8mm,
    .int8_tile = edb_int8_tile_i8mm,
    .pairs = {&edb_lookup_neon_dotprod, &edb_popcount_neon, &edb_popcount4_neon},
};

#else
typedef int edb_no_neon_here; /* an empty file is no valid C */
#endif
