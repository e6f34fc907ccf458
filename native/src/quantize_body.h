/* Activations to int8, over the vector layer of ops_body.h, and a query of an int8 cache. */

enum { GROUP_VECTORS = EDB_GROUP / EDB_LANES };

/* v: the group, zeros behind its end. largest: a lane of it becomes 127. */
static EDB_INLINE void quantize_to(v16 largest, const v16 *v, int8_t *q, float *sx) {
    v16 bad = v_set1(0.0f);
    for (int i = 0; i < GROUP_VECTORS; i++)
        bad = v_fma(v[i], v_set1(0.0f), bad); /* NaN if any element is NaN or infinite */
    float scale = v_max_lane(largest) / 127.0f;
    int finite = v_sum(bad) == 0.0f;
    if (!finite || scale < FLT_MIN) {
        *sx = finite ? 0.0f : NAN;
        memset(q, 0, EDB_GROUP);
        return;
    }
    *sx = scale;
    for (int i = 0; i < GROUP_VECTORS; i++) {
        v16 quotient = v_div(v[i], v_set1(scale));
        quotient = v_min(v_set1(127.0f), v_max(v_set1(-127.0f), quotient));
        v_store_i8(q + EDB_LANES * i, v_add(quotient, v_set1(EDB_ROUND_MAGIC)));
    }
}

static EDB_INLINE void quantize_vectors(const v16 *v, int8_t *q, float *sx) {
    v16 largest = v_set1(0.0f);
    for (int i = 0; i < GROUP_VECTORS; i++) largest = v_max(largest, v_abs(v[i]));
    quantize_to(largest, v, q, sx);
}

/*
 * With a scale so large that products with bytes add up in 16 bits (kernels_avx2_int8.c): of columns 2i,
 * 2i + 1, 2i + 32 and 2i + 33 the codes above 0 add up to at most 128, those below 0 to -128. In float32
 * 126 is asked for, to which rounding of four codes may add 2.
 */
static EDB_INLINE void quantize_bounded(const v16 *v, int8_t *q, float *sx) {
    const v16 zero = v_set1(0.0f);
    v16 largest = zero;
    for (int i = 0; i < GROUP_VECTORS / 2; i++) {
        v16 x = v[i], y = v[i + GROUP_VECTORS / 2];
        v16 above = v_add(v_max(x, zero), v_max(y, zero));
        v16 below = v_add(v_max(v_sub(zero, x), zero), v_max(v_sub(zero, y), zero));
        largest = v_max(largest, v_add(above, v_swap_pairs(above)));
        largest = v_max(largest, v_add(below, v_swap_pairs(below)));
    }
    quantize_to(v_mul(largest, v_set1(127.0f / 126.0f)), v, q, sx);
}

static EDB_INLINE v16 normalize(v16 x, v16 scale, v16 weight) {
    return v_mul(v_mul(x, scale), weight);
}

/* shift: its columns, or zeros */
static EDB_INLINE v16 normalize_centered(v16 x, v16 mean, v16 scale, v16 weight, v16 shift) {
    return v_fma(v_mul(v_sub(x, mean), scale), weight, shift);
}

static EDB_INLINE v16 v_load_or_zero(const float *p, int64_t at, int64_t count) {
    return p == NULL ? v_set1(0.0f) : v_load_part(p + at, count);
}

/* By quantize_group value(column, count), sixteen columns from `column` on of which `count` exist. */
#define QUANTIZE(quantize_group, value)                                                            \
    for (int64_t start = 0; start < cols; start += EDB_GROUP) {                                    \
        v16 v[GROUP_VECTORS];                                                                      \
        for (int i = 0; i < GROUP_VECTORS; i++) {                                                  \
            int64_t column = start + EDB_LANES * i, count = cols - column;                         \
            v[i] = count > 0 ? (value) : v_set1(0.0f);                                             \
        }                                                                                          \
        quantize_group(v, q, sx);                                                                  \
        q += EDB_GROUP * stride;                                                                   \
        sx += stride;                                                                              \
    }

static void quantize(const float *x, int64_t cols, int8_t *q, float *sx, int64_t stride) {
    QUANTIZE(quantize_vectors, v_load_part(x + column, count))
}

static void quantize_normed(const float *x, const float *weight, float scale, int64_t cols,
                            int8_t *q, float *sx, int64_t stride) {
    QUANTIZE(quantize_vectors, normalize(v_load_part(x + column, count), v_set1(scale),
                       v_load_part(weight + column, count)))
}

static void quantize_centered(const float *x, const float *weight, const float *shift, float mean,
                              float scale, int64_t cols, int8_t *q, float *sx, int64_t stride) {
    QUANTIZE(quantize_vectors, normalize_centered(v_load_part(x + column, count), v_set1(mean), v_set1(scale),
                                v_load_part(weight + column, count),
                                v_load_or_zero(shift, column, count)))
}

/* Behind the end x, gate and up are zeros, and so is what becomes of them. */
static EDB_INLINE void quantize_gated_by(int32_t activation, const float *gate, const float *up,
                                         int64_t cols, int8_t *q, float *sx, int64_t stride) {
    QUANTIZE(quantize_vectors, v_mul(activated(activation, v_load_part(gate + column, count)),
                   v_load_part(up + column, count)))
}

static EDB_INLINE void quantize_activated_by(int32_t activation, const float *x, int64_t cols,
                                             int8_t *q, float *sx, int64_t stride) {
    QUANTIZE(quantize_vectors, activated(activation, v_load_part(x + column, count)))
}

static void quantize_query(const float *x, int64_t cols, int8_t *q, float *sx, int32_t *offsets,
                           int64_t stride) {
    const int8_t *codes = q;
    QUANTIZE(quantize_bounded, v_load_part(x + column, count))
    for (int64_t start = 0; start < cols; start += EDB_GROUP) {
        int32_t sum = 0;
        for (int i = 0; i < EDB_GROUP; i++) sum += codes[i];
        *offsets = -128 * sum;
        codes += EDB_GROUP * stride;
        offsets += stride;
    }
}
#undef QUANTIZE

static void quantize_activated(int32_t activation, const float *x, int64_t cols, int8_t *q,
                               float *sx, int64_t stride) {
    FOR_ACTIVATION(activation, quantize_activated_by(constant, x, cols, q, sx, stride))
}

static void quantize_gated(int32_t activation, const float *gate, const float *up, int64_t cols,
                           int8_t *q, float *sx, int64_t stride) {
    FOR_ACTIVATION(activation, quantize_gated_by(constant, gate, up, cols, q, sx, stride))
}
