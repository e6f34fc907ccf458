/*
 * The operations that every instruction set compiles for itself, written once over a 16-lane
 * float32 vector. A kernels_*.c defines the layer and then includes this file:
 *
 *   v16                       sixteen floats
 *   v_set1 v_load v_store     memory has no particular alignment
 *   v_load_f16 v_store_f16    binary16; storing rounds to nearest even
 *   v_store_i8                the low bytes of what EDB_ROUND_MAGIC + integers within [-127, 127] are
 *   v_add v_sub v_mul v_div   each rounds
 *   v_fma(a, b, c)            a*b + c, rounds once
 *   v_min v_max(a, b)         a < b ? a : b and a > b ? a : b, so b where either is NaN
 *   v_abs v_scale2(p, t)      p * 2^n, n = the integer in the low bits of t (see v_exp)
 *   v_swap_pairs              lanes 2i and 2i+1 exchanged
 *   v_sum(a)                  lanes l += l+8, then += l+4, += l+2, += l+1
 *   v_sum4(a, b, c, d, out)   four such sums
 *   v_max_lane(a)             largest lane of a vector without NaN
 *   v_most(a, b)              the larger as numbers of 32 bits: what is NaN or has a sign is above all else
 *   v_most4(a, b, c, d, out)  the largest lane of each, likewise
 *   v_add_i32(a, b)           lanes added as int32
 *   v_sum4_i32(a, b, c, d, out)  lanes of each added up as int32
 *
 * Every order of operations here is fixed, so the bits do not depend on the set.
 */
#include <float.h>
#include <math.h>
#include <string.h>

static inline v16 v_load_part(const float *p, int64_t count) {
    if (count >= EDB_LANES) return v_load(p);
    float lanes[EDB_LANES] = {0};
    memcpy(lanes, p, (size_t)count * sizeof *lanes);
    return v_load(lanes);
}

static inline void v_store_part(float *p, v16 a, int64_t count) {
    if (count >= EDB_LANES) {
        v_store(p, a);
        return;
    }
    float lanes[EDB_LANES];
    v_store(lanes, a);
    memcpy(p, lanes, (size_t)count * sizeof *lanes);
}

static inline v16 v_load_f16_part(const uint16_t *p, int64_t count) {
    if (count >= EDB_LANES) return v_load_f16(p);
    uint16_t lanes[EDB_LANES] = {0};
    memcpy(lanes, p, (size_t)count * sizeof *lanes);
    return v_load_f16(lanes);
}

/* p = e^r - 1 with |r| <= ln(2)/2, 2^n * e^r = e^x, and n in the low bits of *t. */
static inline v16 exp_parts(v16 x, v16 *t) {
    *t = v_fma(x, v_set1(0x1.715476p0f), v_set1(EDB_ROUND_MAGIC)); /* n = round(x / ln 2) */
    v16 n = v_sub(*t, v_set1(EDB_ROUND_MAGIC));
    v16 r = v_fma(n, v_set1(-0x1.62e400p-1f), x); /* ln 2 in two parts: the product is exact */
    r = v_fma(n, v_set1(-0x1.7f7d1cp-20f), r);
    v16 p = v_set1(0x1.6a23d4p-10f);
    p = v_fma(p, r, v_set1(0x1.123a22p-7f));
    p = v_fma(p, r, v_set1(0x1.5558f2p-5f));
    p = v_fma(p, r, v_set1(0x1.555492p-3f));
    p = v_fma(p, r, v_set1(0x1.fffffcp-2f));
    p = v_fma(v_mul(r, r), p, r);
    return p;
}

/*
 * e^x within 1.01 ulp for -87 <= x <= 88; below, the value there. e^x = 2^n * e^r
 * with |r| <= ln(2)/2, and e^r is 1 + r + r^2 times a polynomial fitted to the relative error.
 */
static inline v16 v_exp_to_88(v16 x) {
    v16 t, p = exp_parts(v_max(v_set1(-87.0f), x), &t); /* in this order NaN stays NaN */
    return v_scale2(v_add(p, v_set1(1.0f)), t);
}

/* The same of any x; above 88, the value there. */
static inline v16 v_exp(v16 x) { return v_exp_to_88(v_min(v_set1(88.0f), x)); }

/*
 * With z = 2x and e^z - 1 = 2^n (e^r - 1) + (2^n - 1), which loses nothing near 0: tanh x is that
 * over itself and 2. From 20 on it is 1.
 */
static inline v16 v_tanh(v16 x) {
    x = v_min(v_set1(20.0f), v_max(v_set1(-20.0f), x));
    v16 t, p = exp_parts(v_add(x, x), &t);
    v16 power = v_scale2(v_set1(1.0f), t);
    v16 grown = v_fma(power, p, v_sub(power, v_set1(1.0f)));
    return v_div(grown, v_add(grown, v_set1(2.0f)));
}

#include "activation_body.h"

#include "quantize_body.h"

/* ---- dense weights ---- */

static EDB_INLINE v16 dense_load(const void *weight, int is_f16, int64_t at, int64_t count) {
    if (is_f16) return v_load_f16_part((const uint16_t *)weight + at, count);
    return v_load_part((const float *)weight + at, count);
}

/* `rows` x `tokens` dot products at once, at most four; both are constants after inlining. */
static EDB_INLINE void dense_dots(const void *weight, int is_f16, int64_t cols, int rows,
                                  const float *x, int tokens, float *out, int64_t out_stride,
                                  int32_t add) {
    v16 sum[4];
    for (int i = 0; i < 4; i++) sum[i] = v_set1(0.0f);
    int64_t column = 0;
    for (; column + EDB_LANES <= cols; column += EDB_LANES) {
        for (int r = 0; r < rows; r++) {
            v16 w = dense_load(weight, is_f16, r * cols + column, EDB_LANES);
            for (int t = 0; t < tokens; t++) {
                v16 xt = v_load(x + t * cols + column);
                sum[r * tokens + t] = v_fma(w, xt, sum[r * tokens + t]);
            }
        }
    }
    if (column < cols) {
        for (int r = 0; r < rows; r++) {
            v16 w = dense_load(weight, is_f16, r * cols + column, cols - column);
            for (int t = 0; t < tokens; t++) {
                v16 xt = v_load_part(x + t * cols + column, cols - column);
                sum[r * tokens + t] = v_fma(w, xt, sum[r * tokens + t]);
            }
        }
    }
    float dots[4];
    v_sum4(sum[0], sum[1], sum[2], sum[3], dots);
    for (int t = 0; t < tokens; t++) {
        for (int r = 0; r < rows; r++) {
            float *y = out + t * out_stride + r;
            *y = add ? *y + dots[r * tokens + t] : dots[r * tokens + t];
        }
    }
}

static EDB_INLINE void dense_block(const edb_matrix *matrix, int is_f16, int64_t row_begin,
                                   int64_t row_end, const float *x, float *out, int64_t n,
                                   int32_t add) {
    int64_t cols = matrix->cols, stride = matrix->rows;
    size_t element = is_f16 ? 2 : 4;
    int64_t row = row_begin;
    int64_t paired =
        n & ~(int64_t)1; /* tokens in twos, against two rows; the last one against four */
    for (; row + 4 <= row_end; row += 4) {
        const char *w = (const char *)matrix->data + (size_t)(row * cols) * element;
        const char *w2 = w + (size_t)(2 * cols) * element;
        int64_t t = 0;
        for (; t < paired; t += 2) {
            float *y = out + t * stride + row;
            dense_dots(w, is_f16, cols, 2, x + t * cols, 2, y, stride, add);
            dense_dots(w2, is_f16, cols, 2, x + t * cols, 2, y + 2, stride, add);
        }
        for (; t < n; t++)
            dense_dots(w, is_f16, cols, 4, x + t * cols, 1, out + t * stride + row, stride, add);
    }
    for (; row < row_end; row++) {
        const char *w = (const char *)matrix->data + (size_t)(row * cols) * element;
        for (int64_t t = 0; t < n; t++)
            dense_dots(w, is_f16, cols, 1, x + t * cols, 1, out + t * stride + row, stride, add);
    }
}

static void dense_rows(const edb_matrix *matrix, int64_t row_begin, int64_t row_end, const float *x,
                       float *out, int64_t n, int32_t add) {
    if (matrix->kind == EDB_F16) {
        dense_block(matrix, 1, row_begin, row_end, x, out, n, add);
    } else {
        dense_block(matrix, 0, row_begin, row_end, x, out, n, add);
    }
}

/* ---- element by element ---- */

static float norm_scale(const float *x, int64_t d, float eps) {
    v16 squares = v_set1(0.0f);
    for (int64_t i = 0; i < d; i += EDB_LANES) {
        v16 v = v_load_part(x + i, d - i);
        squares = v_fma(v, v, squares);
    }
    return 1.0f / sqrtf(v_sum(squares) / (float)d + eps);
}

static void rmsnorm(const float *x, const float *weight, float *out, int64_t d, float eps) {
    v16 scale = v_set1(norm_scale(x, d, eps));
    for (int64_t i = 0; i < d; i += EDB_LANES) {
        v16 y = normalize(v_load_part(x + i, d - i), scale, v_load_part(weight + i, d - i));
        v_store_part(out + i, y, d - i);
    }
}

/* x - mean of up to sixteen columns; behind their end zeros, which add nothing to a variance. */
static EDB_INLINE v16 centered_part(const float *x, float mean, int64_t count) {
    v16 centered = v_sub(v_load_part(x, count), v_set1(mean));
    if (count >= EDB_LANES) return centered;
    float lanes[EDB_LANES];
    v_store(lanes, centered);
    return v_load_part(lanes, count);
}

static float center_scale(const float *x, int64_t d, float eps, float *mean) {
    v16 sum = v_set1(0.0f), squares = v_set1(0.0f);
    for (int64_t i = 0; i < d; i += EDB_LANES) sum = v_add(sum, v_load_part(x + i, d - i));
    *mean = v_sum(sum) / (float)d;
    for (int64_t i = 0; i < d; i += EDB_LANES) {
        v16 v = centered_part(x + i, *mean, d - i);
        squares = v_fma(v, v, squares);
    }
    return 1.0f / sqrtf(v_sum(squares) / (float)d + eps);
}

static void layernorm(const float *x, const float *weight, const float *shift, float *out,
                      int64_t d, float eps) {
    float mean;
    v16 scale = v_set1(center_scale(x, d, eps, &mean));
    for (int64_t i = 0; i < d; i += EDB_LANES) {
        v16 y = normalize_centered(v_load_part(x + i, d - i), v_set1(mean), scale,
                                   v_load_part(weight + i, d - i), v_load_or_zero(shift, i, d - i));
        v_store_part(out + i, y, d - i);
    }
}

static EDB_INLINE void activate_by(int32_t activation, const float *x, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += EDB_LANES)
        v_store_part(out + i, activated(activation, v_load_part(x + i, count - i)), count - i);
}

static void activate(int32_t activation, const float *x, float *out, int64_t count) {
    FOR_ACTIVATION(activation, activate_by(constant, x, out, count))
}

static EDB_INLINE void gate_by(int32_t activation, const float *gate, const float *up, float *out,
                               int64_t f) {
    for (int64_t i = 0; i < f; i += EDB_LANES) {
        v16 open = activated(activation, v_load_part(gate + i, f - i));
        v_store_part(out + i, v_mul(open, v_load_part(up + i, f - i)), f - i);
    }
}

static void apply_gate(int32_t activation, const float *gate, const float *up, float *out,
                       int64_t f) {
    FOR_ACTIVATION(activation, gate_by(constant, gate, up, out, f))
}

static void clamped_gate(const float *gate, const float *up, float alpha, float limit, float *out,
                         int64_t f) {
    v16 most = v_set1(limit), least = v_set1(-limit), one = v_set1(1.0f), zero = v_set1(0.0f);
    for (int64_t i = 0; i < f; i += EDB_LANES) {
        v16 g = v_min(most, v_load_part(gate + i, f - i)); /* in this order NaN stays NaN */
        v16 u = v_min(most, v_max(least, v_load_part(up + i, f - i)));
        v16 e = v_exp(v_sub(zero, v_mul(v_set1(alpha), g)));
        v16 y = v_mul(v_div(g, v_add(one, e)), v_add(u, one));
        v_store_part(out + i, y, f - i);
    }
}

/* A NaN makes all of them NaN: as the first it is the largest, and else it is in the sum. */
static void softmax_row(const float *x, float *out, int64_t n) {
    float largest = x[0];
    for (int64_t i = 1; i < n; i++) largest = x[i] > largest ? x[i] : largest;
    v16 total = v_set1(0.0f);
    for (int64_t i = 0; i < n; i += EDB_LANES) {
        v_store_part(out + i, v_exp(v_sub(v_load_part(x + i, n - i), v_set1(largest))), n - i);
        total = v_add(total, v_load_part(out + i, n - i));
    }
    v16 sum = v_set1(v_sum(total));
    for (int64_t i = 0; i < n; i += EDB_LANES)
        v_store_part(out + i, v_div(v_load_part(out + i, n - i), sum), n - i);
}

static void softcap(const float *x, float cap, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += EDB_LANES) {
        v16 part = v_div(v_load_part(x + i, count - i), v_set1(cap));
        v_store_part(out + i, v_mul(v_set1(cap), v_tanh(part)), count - i);
    }
}

static void rotate(const float *x, const float *cos, const float *sin, float *y, int64_t head_dim) {
    int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += EDB_LANES) {
        v16 a = v_load_part(x + i, half - i), b = v_load_part(x + half + i, half - i);
        v16 c = v_load_part(cos + i, half - i), s = v_load_part(sin + i, half - i);
        v_store_part(y + i, v_sub(v_mul(a, c), v_mul(b, s)), half - i);
        v_store_part(y + half + i, v_add(v_mul(b, c), v_mul(a, s)), half - i);
    }
}

static void to_f16(const float *x, uint16_t *y, int64_t count) {
    for (int64_t i = 0; i < count; i += EDB_LANES) {
        uint16_t lanes[EDB_LANES];
        v_store_f16(lanes, v_load_part(x + i, count - i));
        memcpy(y + i, lanes, (size_t)edb_min(count - i, EDB_LANES) * sizeof *lanes);
    }
}

static void from_f16(const uint16_t *x, float *y, int64_t count) {
    for (int64_t i = 0; i < count; i += EDB_LANES)
        v_store_part(y + i, v_load_f16_part(x + i, count - i), count - i);
}

/* Everything above that belongs in an edb_kernels. */
#define OPS_KERNELS                                                                       \
    .quantize = quantize, .quantize_normed = quantize_normed,                             \
    .quantize_centered = quantize_centered, .quantize_query = quantize_query, .center_scale = center_scale,                 \
    .layernorm = layernorm, .quantize_activated = quantize_activated, .quantize_gated = quantize_gated, .dense_rows = dense_rows,   \
    .norm_scale = norm_scale, .rmsnorm = rmsnorm, .activate = activate,                   \
    .gate = apply_gate, .softcap = softcap, .softmax_row = softmax_row, .rotate = rotate,  \
    .to_f16 = to_f16, .clamped_gate = clamped_gate,                                       \
    .from_f16 = from_f16
