/*
 * Portable kernels: the fallback of every build, and the plainest statement of what the others do.
 *
 * lookup        tables: int16 [16 quads][16], the subset sums of four activations, |sum| <= 508;
 *               S1, S2 over a group: |sum| <= 64 * 127 = 8,128
 * all           c1*S1 + c2*S2 and the dot of 64 codes: |sum| <= 64 * 127 * 127 = 1,032,256, exact
 *               in int32 and, below 2^24, exact as float
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fma.h"
#include "internal.h"

typedef struct {
    float lane[EDB_LANES];
} v16;

#define EACH_LANE(expression)                                     \
    v16 y;                                                        \
    for (int l = 0; l < EDB_LANES; l++) y.lane[l] = (expression); \
    return y

static inline v16 v_set1(float a) { EACH_LANE(a); }
static inline v16 v_add(v16 a, v16 b) { EACH_LANE(a.lane[l] + b.lane[l]); }
static inline v16 v_sub(v16 a, v16 b) { EACH_LANE(a.lane[l] - b.lane[l]); }
static inline v16 v_mul(v16 a, v16 b) { EACH_LANE(a.lane[l] * b.lane[l]); }
static inline v16 v_div(v16 a, v16 b) { EACH_LANE(a.lane[l] / b.lane[l]); }
static inline v16 v_fma(v16 a, v16 b, v16 c) { EACH_LANE(edb_fma(a.lane[l], b.lane[l], c.lane[l])); }
static inline v16 v_min(v16 a, v16 b) { EACH_LANE(a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]); }
static inline v16 v_max(v16 a, v16 b) { EACH_LANE(a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l]); }
static inline v16 v_abs(v16 a) { EACH_LANE(fabsf(a.lane[l])); }

static inline v16 v_swap_pairs(v16 a) { EACH_LANE(a.lane[l ^ 1]); }

static inline v16 v_load(const float *p) {
    v16 a;
    memcpy(a.lane, p, sizeof a.lane);
    return a;
}

static inline void v_store(float *p, v16 a) { memcpy(p, a.lane, sizeof a.lane); }

static inline float bits_float(uint32_t bits) {
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}

static inline v16 v_scale2(v16 p, v16 t) {
    EACH_LANE(bits_float(edb_float_bits(p.lane[l]) + (edb_float_bits(t.lane[l]) << 23)));
}

static inline v16 v_most(v16 a, v16 b) {
    EACH_LANE(edb_float_bits(a.lane[l]) > edb_float_bits(b.lane[l]) ? a.lane[l] : b.lane[l]);
}

static inline v16 v_add_i32(v16 a, v16 b) {
    EACH_LANE(bits_float(edb_float_bits(a.lane[l]) + edb_float_bits(b.lane[l])));
}

static inline float v_sum(v16 a) {
    for (int half = EDB_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) a.lane[l] += a.lane[l + half];
    return a.lane[0];
}

static inline void v_sum4(v16 a, v16 b, v16 c, v16 d, float *out) {
    out[0] = v_sum(a);
    out[1] = v_sum(b);
    out[2] = v_sum(c);
    out[3] = v_sum(d);
}

static inline float v_max_lane(v16 a) {
    for (int l = 1; l < EDB_LANES; l++)
        if (a.lane[l] > a.lane[0]) a.lane[0] = a.lane[l];
    return a.lane[0];
}

static inline void v_max4(v16 a, v16 b, v16 c, v16 d, float *out) {
    out[0] = v_max_lane(a);
    out[1] = v_max_lane(b);
    out[2] = v_max_lane(c);
    out[3] = v_max_lane(d);
}

static inline void v_most4(v16 a, v16 b, v16 c, v16 d, float *out) {
    const v16 each[4] = {a, b, c, d};
    uint32_t most[4] = {0};
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < EDB_LANES; l++)
            if (edb_float_bits(each[i].lane[l]) > most[i]) most[i] = edb_float_bits(each[i].lane[l]);
    memcpy(out, most, sizeof most);
}

static inline void v_sum4_i32(v16 a, v16 b, v16 c, v16 d, uint32_t *out) {
    const v16 each[4] = {a, b, c, d};
    uint32_t sums[4] = {0};
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < EDB_LANES; l++) sums[i] += edb_float_bits(each[i].lane[l]);
    memcpy(out, sums, sizeof sums);
}

static inline void v_store_i8(int8_t *p, v16 a) {
    for (int l = 0; l < EDB_LANES; l++) {
        uint8_t low = (uint8_t)edb_float_bits(a.lane[l]);
        memcpy(p + l, &low, 1);
    }
}

/* Scaling by 2^112 moves a binary16's exponent, subnormals included, to where float32 has it. */
static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff) << 13;
    if (magnitude >= 0x7c00u << 13) {
        uint32_t quiet = magnitude > 0x7c00u << 13 ? 0x400000 : 0;
        return bits_float(sign | 0x7f800000 | quiet | (magnitude & 0x7fffff));
    }
    return bits_float(sign | edb_float_bits(bits_float(magnitude) * 0x1p112f));
}

static inline uint16_t float_to_half(float f) {
    uint32_t bits = edb_float_bits(f), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* 65,520 and above round to infinity */
    if (magnitude < 0x38800000) { /* subnormal: adding 0.5 leaves multiples of 2^-24, rounded */
        return sign | (uint16_t)(edb_float_bits(bits_float(magnitude) + 0.5f) - edb_float_bits(0.5f));
    }
    uint32_t odd = magnitude >> 13 & 1;
    return sign | (uint16_t)((magnitude - (112u << 23) + 0xfff + odd) >> 13);
}

static inline v16 v_load_f16(const uint16_t *p) { EACH_LANE(half_to_float(p[l])); }

static inline void v_store_f16(uint16_t *p, v16 a) {
    for (int l = 0; l < EDB_LANES; l++) p[l] = float_to_half(a.lane[l]);
}

enum { ATTEND_FLIGHT = 4 };
#include "ops_body.h"
#include "words_scalar.h"
#include "attention_body.h"

enum { SUMS_BYTES = EDB_QUADS * 16 * sizeof(int16_t) };

static void prepare_sums(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                         uint8_t *tables, edb_group_meta *meta) {
    for (int64_t g = 0; g < groups; g++) {
        int16_t sums[EDB_QUADS][16];
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            for (int subset = 0; subset < 16; subset++) {
                int sum = 0;
                for (int k = 0; k < 4; k++)
                    if (subset >> k & 1) sum += q[4 * quad + k];
                sums[quad][subset] = (int16_t)sum;
            }
        }
        memcpy(tables + g * SUMS_BYTES, sums, sizeof sums);
        meta[g] = (edb_group_meta){.sx = *sx, .bias = 0};
        q += EDB_GROUP * stride;
        sx += stride;
    }
}

static void lookup_tile(const uint8_t *block, int64_t groups, const uint8_t *tables,
                        const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES) {
        int16_t sums[EDB_QUADS][16];
        memcpy(sums, tables + g * SUMS_BYTES, sizeof sums);
        int32_t s1[EDB_TILE] = {0}, s2[EDB_TILE] = {0};
        for (int quad = 0; quad < EDB_QUADS; quad++) {
            for (int row = 0; row < EDB_TILE; row++) {
                uint8_t bits = block[EDB_TILE * quad + row];
                s1[row] += sums[quad][bits & 15];
                s2[row] += sums[quad][bits >> 4];
            }
        }
        const int8_t *c1 = (const int8_t *)block + 1024, *c2 = c1 + EDB_TILE;
        for (int row = 0; row < EDB_TILE; row++)
            acc[row] = edb_fma(meta[g].sx, (float)(c1[row] * s1[row] + c2[row] * s2[row]), acc[row]);
    }
}

static void lookup_half_tile(const uint8_t *half, int64_t groups, const uint8_t *tables,
                             const edb_group_meta *meta, float *acc, const uint8_t *next) {
    (void)next;
    memset(acc, 0, EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, half += EDB_HALF_BYTES) {
        int16_t sums[EDB_QUADS][16];
        memcpy(sums, tables + g * SUMS_BYTES, sizeof sums);
        int32_t s1[EDB_TILE] = {0};
        for (int quad = 0; quad < EDB_QUADS; quad += 2) {
            for (int row = 0; row < EDB_TILE; row++) {
                uint8_t bits = half[EDB_TILE * quad / 2 + row];
                s1[row] += sums[quad][bits & 15] + sums[quad + 1][bits >> 4];
            }
        }
        const int8_t *c1 = (const int8_t *)half + 512;
        for (int row = 0; row < EDB_TILE; row++)
            acc[row] = edb_fma(meta[g].sx, (float)(c1[row] * s1[row]), acc[row]);
    }
}

static void expand_block(const uint8_t *block, int8_t *codes) {
    const int8_t *c1 = (const int8_t *)block + 1024, *c2 = c1 + EDB_TILE;
    for (int quad = 0; quad < EDB_QUADS; quad++) {
        for (int row = 0; row < EDB_TILE; row++) {
            int bits = block[EDB_TILE * quad + row];
            for (int k = 0; k < 4; k++) {
                int level = (bits >> k & 1) * c1[row] + (bits >> (4 + k) & 1) * c2[row];
                *codes++ = (int8_t)level;
            }
        }
    }
}

static void int8_tile(const int8_t *codes, const float *scales, int64_t groups,
                      const edb_tokens *tokens, float *acc, const int8_t *next) {
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    int64_t stride = tokens->stride, n = tokens->n;
    (void)next;
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t t = 0; t < n; t++) {
            int32_t dots[EDB_TILE] = {0};
            for (int quad = 0; quad < EDB_QUADS; quad++) {
                const int8_t *w = codes + EDB_TILE * 4 * quad, *x = q + EDB_GROUP * t + 4 * quad;
                for (int row = 0; row < EDB_TILE; row++, w += 4)
                    dots[row] += w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
            }
            float *y = acc + EDB_TILE * t;
            for (int row = 0; row < EDB_TILE; row++)
                y[row] = edb_fma(sx[t] * scales[row], (float)dots[row], y[row]);
        }
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
        q += EDB_GROUP * stride;
        sx += stride;
    }
}

static const edb_pair_kernel lookup = {
    .name = "lookup",
    .prepare = prepare_sums,
    .tile = lookup_tile,
    .half_tile = lookup_half_tile,
    .prepared_bytes = SUMS_BYTES,
    .expand_from = 2,
};

const edb_kernels edb_kernels_scalar = {
    OPS_KERNELS,
    ATTENTION_KERNELS,
    .expand_block = expand_block,
    .int8_tile = int8_tile,
    .pairs = {&lookup, &edb_popcount_scalar, &edb_popcount4_scalar},
};
