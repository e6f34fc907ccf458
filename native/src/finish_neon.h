/* The end of a group, shared by lookup_neon.c, few_neon.c and, of what it needs, popcount_neon.c. */

/* 8-bit sums of 16 rows: the low ones of both halves of the group, and the high ones. */
typedef struct {
    uint8x16_t low_a, low_b, high;
} sums16;

/* S of rows 0..7 and 8..15. */
static EDB_INLINE int16x8_t join_first(sums16 s, uint16x8_t bias) {
    uint16x8_t low = vaddw_u8(vaddw_u8(bias, vget_low_u8(s.low_a)), vget_low_u8(s.low_b));
    return vreinterpretq_s16_u16(vmlal_u8(low, vget_low_u8(s.high), vdup_n_u8(32)));
}
static EDB_INLINE int16x8_t join_last(sums16 s, uint16x8_t bias) {
    uint16x8_t low = vaddw_high_u8(vaddw_high_u8(bias, s.low_a), s.low_b);
    return vreinterpretq_s16_u16(vmlal_high_u8(low, s.high, vdupq_n_u8(32)));
}

/* acc += sx * (c1*S1 + c2*S2) for eight rows. */
static EDB_INLINE void finish8(float *acc, float sx, int16x8_t s1, int16x8_t s2, int16x8_t c1,
                               int16x8_t c2) {
    int32x4_t first = vmull_s16(vget_low_s16(c1), vget_low_s16(s1));
    int32x4_t last = vmull_high_s16(c1, s1);
    first = vmlal_s16(first, vget_low_s16(c2), vget_low_s16(s2));
    last = vmlal_high_s16(last, c2, s2);
    vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vcvtq_f32_s32(first), sx));
    vst1q_f32(acc + 4, vfmaq_n_f32(vld1q_f32(acc + 4), vcvtq_f32_s32(last), sx));
}

/* c1 and c2 of 16 rows: of rows 0..7, and 8..15. */
typedef struct {
    int16x8_t c1_first, c1_last, c2_first, c2_last;
} scales16;

static EDB_INLINE scales16 widen_scales(const int8_t *codes) {
    int8x16_t c1 = vld1q_s8(codes), c2 = vld1q_s8(codes + EDB_TILE);
    return (scales16){vmovl_s8(vget_low_s8(c1)), vmovl_high_s8(c1), vmovl_s8(vget_low_s8(c2)),
                      vmovl_high_s8(c2)};
}

static EDB_INLINE void finish16(float *acc, const edb_group_meta *meta, scales16 c, sums16 s1,
                                sums16 s2) {
    uint16x8_t bias = vdupq_n_u16((uint16_t)meta->bias);
    finish8(acc, meta->sx, join_first(s1, bias), join_first(s2, bias), c.c1_first, c.c2_first);
    finish8(acc + 8, meta->sx, join_last(s1, bias), join_last(s2, bias), c.c1_last, c.c2_last);
}
