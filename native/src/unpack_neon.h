/*
 * Eight rows of a block as registers of codes, for the products by sdot and smmla; included once their
 * target is set.
 *
 * Registers of eight rows are interleaved, which is zip, until the bytes of a row from four or eight
 * of them lie side by side: bit k of all these bytes is one column of each, and activations are put
 * into that order. b1 and b2 of a column are four bits apart; the row goes between them (bsl), and that
 * is the index of a level: four levels of eight rows are the 32 bytes that tbl reaches.
 *
 * Half a pair has one plane: cmtst makes 0 and -1 of a column, and c1 comes in at the end of the group.
 *
 * Sums start at a number whose bits are the float 1.5 * 2^23. As floats they are that much too large,
 * exactly, for |sum| <= 64 * 128 * 128 < 2^22; a subtraction is cheaper than a conversion.
 */
typedef enum {
    PAIR,
    HALF,
    SCALED,      /* EDB_INT8: codes with scales */
    CODES,       /* what a pair or half a pair was expanded to */
    SCALED_CODES /* EDB_INT8, put into the same order */
} block_kind;

enum {
    ROWS = 8, /* at a time */
    MOST = 8, /* tokens at a time */
    START_BITS = 0x4b400000
};
#define START_FLOAT 12582912.0f

static EDB_INLINE int64_t bytes_of(block_kind kind) {
    return kind == PAIR ? EDB_BLOCK_BYTES : kind == HALF ? EDB_HALF_BYTES : EDB_CODES_BYTES;
}

/* Where activations are taken from: column 0 of four quads, then column 1; of eight columns likewise. */
static const uint8_t every_fourth[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
static const uint8_t every_eighth[16] = {0, 8,  16, 24, 1, 9,  17, 25,
                                             2, 10, 18, 26, 3, 11, 19, 27};

/* Eight bytes, and zeros. */
static EDB_INLINE uint8x16_t load8(const uint8_t *p) {
    return vcombine_u8(vld1_u8(p), vcreate_u8(0));
}

/* The levels of eight rows: 16 * b2 + 2 * row + b1 is the index. */
typedef struct {
    int8x16_t without_b2, with_b2;
} level_table;

static EDB_INLINE level_table tabulate(const uint8_t *c1_bytes) {
    int8x16_t c1 = vreinterpretq_s8_u8(load8(c1_bytes));
    int8x16_t c2 = vreinterpretq_s8_u8(load8(c1_bytes + EDB_TILE));
    return (level_table){vzip1q_s8(vdupq_n_s8(0), c1), vzip1q_s8(c2, vaddq_s8(c1, c2))};
}

/* Registers by name: gcc 12 copies the two of vqtbl2q before every use. rows: 2 * row in each byte. */
static EDB_INLINE int8x16_t level_of(level_table levels, uint8x16_t bits, uint8x16_t rows) {
    register int8x16_t without_b2 __asm__("v30") = levels.without_b2;
    register int8x16_t with_b2 __asm__("v31") = levels.with_b2;
    int8x16_t level;
    __asm__("tbl %0.16b, {v30.16b, v31.16b}, %1.16b"
            : "=w"(level)
            : "w"(vbslq_u8(vdupq_n_u8(0x11), bits, rows)), "w"(without_b2), "w"(with_b2));
    return level;
}

/* Whether each byte has bit k: -1 or 0. */
static EDB_INLINE int8x16_t column_of_half(uint8x16_t bits, int k) {
    return vreinterpretq_s8_u8(vtstq_u8(bits, vdupq_n_u8((uint8_t)(1 << k))));
}

static EDB_INLINE uint8x16_t zip_first2(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}
static EDB_INLINE uint8x16_t zip_last2(uint8x16_t a, uint8x16_t b) {
    return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
}

/* Four registers, 64 bytes apart -> rows 0..3 and 4..7, four bytes each. */
static EDB_INLINE void interleave4(const uint8_t *block, uint8x16_t *bits) {
    uint8x16_t ab = vzip1q_u8(load8(block), load8(block + EDB_TILE));
    uint8x16_t cd = vzip1q_u8(load8(block + 2 * EDB_TILE), load8(block + 3 * EDB_TILE));
    bits[0] = zip_first2(ab, cd);
    bits[1] = zip_last2(ab, cd);
}

/* c1 of eight rows, each four or eight times. */
static EDB_INLINE void repeat_scales(const uint8_t *c1_bytes, const int times, uint8x16_t *c1) {
    uint8x16_t two = vzip1q_u8(load8(c1_bytes), load8(c1_bytes));
    uint8x16_t four[2] = {zip_first2(two, two), zip_last2(two, two)};
    for (int i = 0; i < 2; i++) {
        uint32x4_t rows = vreinterpretq_u32_u8(four[i]);
        if (times == 4) {
            c1[i] = four[i];
        } else {
            c1[2 * i] = vreinterpretq_u8_u32(vzip1q_u32(rows, rows));
            c1[2 * i + 1] = vreinterpretq_u8_u32(vzip2q_u32(rows, rows));
        }
    }
}

/* What eight rows' dots are multiplied with: c1 of half a pair, scales of int8 codes. */
static EDB_INLINE void load_factors(block_kind kind, const uint8_t *c1, const float *scales,
                                    float32x4_t *factors) {
    if (kind == HALF) {
        int16x8_t words = vmovl_s8(vreinterpret_s8_u8(vld1_u8(c1)));
        factors[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
        factors[1] = vcvtq_f32_s32(vmovl_high_s16(words));
    } else if (kind == SCALED || kind == SCALED_CODES) {
        factors[0] = vld1q_f32(scales);
        factors[1] = vld1q_f32(scales + 4);
    }
}

/* acc += sx * factor * dot for four rows. */
static EDB_INLINE void finish4(block_kind kind, float *acc, int32x4_t sums, float sx,
                               float32x4_t factor) {
    float32x4_t start = vdupq_n_f32(START_FLOAT), sum = vreinterpretq_f32_s32(sums);
    float32x4_t before = vld1q_f32(acc);
    if (kind == HALF) { /* sums of -1; the product is an integer below 2^24, exact */
        float32x4_t dot = vmulq_f32(vsubq_f32(start, sum), factor);
        vst1q_f32(acc, vfmaq_n_f32(before, dot, sx));
    } else if (kind == SCALED || kind == SCALED_CODES) {
        vst1q_f32(acc, vfmaq_f32(before, vmulq_n_f32(factor, sx), vsubq_f32(sum, start)));
    } else {
        vst1q_f32(acc, vfmaq_n_f32(before, vsubq_f32(sum, start), sx));
    }
}

/* Of a block's lines every eighth, in each slice of eight rows others. */
static EDB_INLINE void fetch_lines(const char *ahead, int64_t block_bytes, int row) {
    for (int64_t line = 8 * row; line < block_bytes; line += 512)
        __builtin_prefetch(edb_past(ahead, line), 0, 2);
}
