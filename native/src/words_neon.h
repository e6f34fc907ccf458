/* 32 numbers of 16 bits for NEON, as attention_int8_body.h lists them, in order. */
typedef struct {
    int16x8_t a, b, c, d;
} w32;

#define EACH_WORDS(operation, x, y) EACH_OF(w32, operation, x, y)

static EDB_INLINE w32 w_set1(int16_t x) {
    int16x8_t all = vdupq_n_s16(x);
    return (w32){all, all, all, all};
}
static EDB_INLINE w32 w_load(const int16_t *p) {
    return (w32){vld1q_s16(p), vld1q_s16(p + 8), vld1q_s16(p + 16), vld1q_s16(p + 24)};
}
static EDB_INLINE void w_store(int16_t *p, w32 x) {
    vst1q_s16(p, x.a);
    vst1q_s16(p + 8, x.b);
    vst1q_s16(p + 16, x.c);
    vst1q_s16(p + 24, x.d);
}

static EDB_INLINE int16x8_t round_8(float32x4_t x, float32x4_t y) {
    return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(x)), vcvtnq_s32_f32(y));
}
static EDB_INLINE w32 w_round_of(v16 x, v16 y) {
    return (w32){round_8(x.a, x.b), round_8(x.c, x.d), round_8(y.a, y.b), round_8(y.c, y.d)};
}

static EDB_INLINE int16x8_t high_8(int16x8_t x, int16x8_t y) {
    uint16x8_t a = vreinterpretq_u16_s16(x), b = vreinterpretq_u16_s16(y);
    uint32x4_t low = vmull_u16(vget_low_u16(a), vget_low_u16(b)), high = vmull_high_u16(a, b);
    return vreinterpretq_s16_u16(vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high)));
}
static EDB_INLINE int16x8_t mean_8(int16x8_t x, int16x8_t y) {
    return vreinterpretq_s16_u16(vrhaddq_u16(vreinterpretq_u16_s16(x), vreinterpretq_u16_s16(y)));
}
static EDB_INLINE w32 w_add(w32 x, w32 y) { return EACH_WORDS(vaddq_s16, x, y); }
static EDB_INLINE w32 w_high(w32 x, w32 y) { return EACH_WORDS(high_8, x, y); }
static EDB_INLINE w32 w_mean(w32 x, w32 y) { return EACH_WORDS(mean_8, x, y); }
static EDB_INLINE w32 w_multiply(w32 x, w32 y) { return EACH_WORDS(vqrdmulhq_s16, x, y); }
static EDB_INLINE w32 w_double5(w32 x) {
    return (w32){vshlq_n_s16(x.a, 5), vshlq_n_s16(x.b, 5), vshlq_n_s16(x.c, 5), vshlq_n_s16(x.d, 5)};
}

/* Shifts by what is below 0 go to the right and give 0. */
static EDB_INLINE int16x8_t power_8(int16x8_t u) {
    uint16x8_t by = vsubq_u16(vshrq_n_u16(vreinterpretq_u16_s16(u), 11), vdupq_n_u16(17));
    return vreinterpretq_s16_u16(vshlq_u16(vdupq_n_u16(1), vreinterpretq_s16_u16(by)));
}
static EDB_INLINE w32 w_power(w32 u) {
    return (w32){power_8(u.a), power_8(u.b), power_8(u.c), power_8(u.d)};
}

static EDB_INLINE float32x4_t pairs_8(int16x8_t x) { return vreinterpretq_f32_s32(vpaddlq_s16(x)); }
static EDB_INLINE v16 w_pairs(w32 x) {
    return (v16){pairs_8(x.a), pairs_8(x.b), pairs_8(x.c), pairs_8(x.d)};
}

static EDB_INLINE v16 v_add_apart(v16 x) {
    float32x4_t first = add_i32(x.a, x.c), last = add_i32(x.b, x.d);
    return (v16){first, last, first, last};
}

static EDB_INLINE void w_store_i8(int8_t *p, w32 x, w32 y) {
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(x.a), x.b));
    vst1q_s8(p + 16, vmovn_high_s16(vmovn_s16(x.c), x.d));
    vst1q_s8(p + 32, vmovn_high_s16(vmovn_s16(y.a), y.b));
    vst1q_s8(p + 48, vmovn_high_s16(vmovn_s16(y.c), y.d));
}

static EDB_INLINE float32x4_t of_i32(float32x4_t x) { return vcvtq_f32_s32(vreinterpretq_s32_f32(x)); }
static EDB_INLINE v16 v_of_i32(v16 x) {
    return (v16){of_i32(x.a), of_i32(x.b), of_i32(x.c), of_i32(x.d)};
}
