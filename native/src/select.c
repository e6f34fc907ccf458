/*
 * What sampling needs of a vocabulary's logits: the k largest, and e to their powers.
 *
 * One code for all instruction sets: selection only compares, and every step of edb_exp is one
 * rounded operation of IEEE 754, so nothing here can differ between processors.
 */
#if defined(__GNUC__) && !defined(__clang__)
/* Otherwise comparisons, which may trap, keep the loop of edb_softmax_weights from vectors. */
#pragma GCC optimize("no-trapping-math")
#endif
#include <math.h>
#include <string.h>

#include "internal.h"

/* Logits that are compared with the bound together. */
enum { BLOCK = 64 };

/* Whether a is to come after b: smaller, or equal with a higher id. NaN is the largest of all. */
static int is_after(float a, int32_t id_a, float b, int32_t id_b) {
    int a_is_nan = a != a, b_is_nan = b != b;
    if (a_is_nan != b_is_nan) return b_is_nan;
    if (!a_is_nan && a != b) return a < b;
    return id_a > id_b;
}

/* A heap whose root, the entry that comes last, is replaced by a better one. */
static void sift_down(float *values, int32_t *ids, int64_t size, int64_t at) {
    float value = values[at];
    int32_t id = ids[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= size) break;
        if (child + 1 < size &&
            is_after(values[child + 1], ids[child + 1], values[child], ids[child]))
            child++;
        if (!is_after(values[child], ids[child], value, id)) break;
        values[at] = values[child];
        ids[at] = ids[child];
        at = child;
    }
    values[at] = value;
    ids[at] = id;
}

/* Whether any of BLOCK logits is above the bound, or NaN; a few vector instructions. */
static int any_above(const float *x, float bound) {
    int above = 0;
    for (int i = 0; i < BLOCK; i++) above |= !(x[i] <= bound);
    return above;
}

static void offer(float *values, int32_t *ids, int64_t k, float value, int32_t id) {
    if (!is_after(values[0], ids[0], value, id)) return;
    values[0] = value;
    ids[0] = id;
    sift_down(values, ids, k, 0);
}

edb_status edb_select(const float *logits, int64_t n, int64_t k, int32_t *ids, float *values) {
    if (logits == NULL || ids == NULL || values == NULL) return EDB_ERR_NULL;
    if (n < 1 || n > EDB_MAX_DIM || k < 1 || k > n) return EDB_ERR_SHAPE;
    if (!edb_aligned(logits, 4) || !edb_aligned(ids, 4) || !edb_aligned(values, 4))
        return EDB_ERR_ALIGN;
    for (int64_t i = 0; i < k; i++) {
        values[i] = logits[i];
        ids[i] = (int32_t)i;
    }
    for (int64_t i = k / 2 - 1; i >= 0; i--) sift_down(values, ids, k, i);
    int64_t i = k;
    for (; i + BLOCK <= n; i += BLOCK) {
        if (!any_above(logits + i, values[0])) continue;
        for (int64_t j = i; j < i + BLOCK; j++) offer(values, ids, k, logits[j], (int32_t)j);
    }
    for (; i < n; i++) offer(values, ids, k, logits[i], (int32_t)i);
    for (int64_t size = k - 1; size > 0; size--) { /* the last one leaves the heap to its end */
        float value = values[size];
        int32_t id = ids[size];
        values[size] = values[0];
        ids[size] = ids[0];
        values[0] = value;
        ids[0] = id;
        sift_down(values, ids, size, 0);
    }
    return EDB_OK;
}

/* 1.5 * 2^52: adding it rounds to an integer, half to even, and leaves that in the low bits. */
static const double ROUND = 0x1.8p+52;

static inline int64_t bits_of(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* 2^k for an integer -1022 <= k <= 1023. */
static inline double power_of_two(double k) {
    int64_t bits = (int64_t)((uint64_t)(bits_of(k + ROUND) - bits_of(ROUND) + 1023) << 52);
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* exp of edgedb/ops/exactmath.py, step by step; the constants and their sources are there. */
static inline double exact_exp(double x) {
    static const double taylor[] = {
        0x1.0000000000000p-1,  0x1.5555555555555p-3,  0x1.5555555555555p-5,  0x1.1111111111111p-7,
        0x1.6c16c16c16c17p-10, 0x1.a01a01a01a01ap-13, 0x1.a01a01a01a01ap-16, 0x1.71de3a556c734p-19,
        0x1.27e4fb7789f5cp-22, 0x1.ae64567f544e4p-26, 0x1.1eed8eff8d898p-29, 0x1.6124613a86d09p-33,
        0x1.93974a8c07c9dp-37};
    enum { TERMS = sizeof taylor / sizeof taylor[0] };
    double bounded = x > -750.0 ? x : -750.0;
    bounded = bounded < 710.0 ? bounded : 710.0;
    double k = (bounded * 0x1.71547652b82fep+0 + ROUND) - ROUND;
    double r = (bounded - k * 0x1.62e42fee00000p-1) - k * 0x1.a39ef35793c76p-33;
    double sum = taylor[TERMS - 1];
    for (int i = TERMS - 2; i >= 0; i--) sum = sum * r + taylor[i];
    double mantissa = 1.0 + (r + r * r * sum);
    double half = (k * 0.5 - 0.25 + ROUND) - ROUND; /* the integer below or at k / 2 */
    double y = mantissa * power_of_two(half) * power_of_two(k - half);
    y = x > 709.79 ? (double)INFINITY : y;
    return x != x ? x : y;
}

edb_status edb_softmax_weights(const float *logits, int64_t n, double top, double temperature,
                               double *weights) {
    if (logits == NULL || weights == NULL) return EDB_ERR_NULL;
    if (n < 1 || n > EDB_MAX_DIM) return EDB_ERR_SHAPE;
    if (!edb_aligned(logits, 4) || !edb_aligned(weights, 8)) return EDB_ERR_ALIGN;
    for (int64_t i = 0; i < n; i++) weights[i] = exact_exp(((double)logits[i] - top) / temperature);
    return EDB_OK;
}
