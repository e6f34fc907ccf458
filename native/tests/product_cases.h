/* Cases of matrix products; part of same_bits.c. */
#ifndef EDB_PRODUCT_CASES_H
#define EDB_PRODUCT_CASES_H

#include <math.h>

#include "testing.h"

enum { MAX_WORDS = 1 << 20 };

/* Where a case writes its result: 32-bit words, every NaN as the same one. */
typedef struct {
    uint32_t *words;
    size_t count;
} result;

static void keep(result *to, const void *data, size_t count) {
    CHECK(to->count + count <= MAX_WORDS);
    memcpy(to->words + to->count, data, count * sizeof *to->words);
    to->count += count;
}

static void keep_floats(result *to, const float *x, int64_t count) {
    keep(to, x, (size_t)count);
    uint32_t *words = to->words + to->count - (size_t)count;
    for (int64_t i = 0; i < count; i++)
        if (x[i] != x[i]) words[i] = 0x7fc00000;
}

/* Tokens of different magnitude; one case in three holds a special value. */
static float *activations(uint64_t *seed, int64_t n, int64_t cols) {
    static const float special[] = {0.0f,   -0.0f,           NAN,      INFINITY,     -INFINITY,
                                    1e-40f, 127 * 0x1p-126f, 1.4e-36f, 3.4028235e38f};
    float *x = random_floats(seed, n * cols);
    for (int64_t t = 0; t < n; t++) {
        int64_t exponent = random_range(seed, -12, 12);
        float scale = exponent < 0 ? 1.0f / (float)(1 << -exponent) : (float)(1 << exponent);
        for (int64_t i = 0; i < cols; i++) x[t * cols + i] *= scale;
    }
    if (random_range(seed, 0, 2) == 0) {
        int64_t at = random_range(seed, 0, n * cols - 1);
        x[at] = special[random_range(seed, 0, 8)];
        for (int64_t i = at + 1; i < n * cols && i % 64 != 0; i++) x[i] *= 0.0f;
    }
    return x;
}

static int64_t random_tokens(uint64_t *seed) {
    static const int64_t tokens[] = {1, 1, 2, 3, 4, 5, 7, 17, 66, 131};
    return tokens[random_range(seed, 0, 9)];
}

/* out [+]= W x, together and token by token; frees x and the matrix. */
static void multiply_these(const edb_context *context, uint64_t *seed, edb_matrix *matrix, float *x,
                           int64_t n, int32_t add, result *to) {
    int64_t rows = matrix->rows, cols = matrix->cols;
    float *base = random_floats(seed, n * rows);
    float *out = allocate((size_t)(n * rows) * sizeof *out);

    memcpy(out, base, (size_t)(n * rows) * sizeof *out);
    multiply(context, matrix, x, out, n, add);
    keep_floats(to, out, n * rows);
    for (int64_t t = 0; t < n; t++) /* token by token gives the same */
        multiply(context, matrix, x + t * cols, base + t * rows, 1, add);
    result alone = {allocate(MAX_WORDS * sizeof(uint32_t)), 0};
    keep_floats(&alone, base, n * rows);
    CHECK(memcmp(alone.words, to->words + to->count - alone.count, alone.count * 4) == 0);

    release(alone.words);
    release(out);
    release(base);
    release(x);
    free_matrix(matrix);
}

static void multiply_both(const edb_context *context, uint64_t *seed, edb_matrix *matrix, int64_t n,
                          int32_t add, result *to) {
    float *x = activations(seed, n, matrix->cols);
    multiply_these(context, seed, matrix, x, n, add, to);
}

/* A random shape. */
static void multiply_case(const edb_context *context, uint64_t seed, int half, result *to) {
    int32_t kind = half ? EDB_PAIRS : (int32_t)random_range(&seed, EDB_PAIRS, EDB_F16);
    int32_t pairs = (int32_t)random_range(&seed, 1, 3);
    int64_t rows = random_range(&seed, 1, 150), cols = random_range(&seed, 1, 280);
    int64_t n = random_tokens(&seed);
    int32_t add = (int32_t)random_range(&seed, 0, 1);
    edb_matrix matrix = random_matrix(&seed, kind, pairs, rows, cols);
    if (half) add_half(&seed, &matrix, pairs == 3);
    multiply_both(context, &seed, &matrix, n, add, to);
}

/* Every number of tokens from 1 to 20, of a pair, of half a pair, of both, and of int8 codes. */
static void few_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = (int64_t)(seed % 20) + 1;
    for (int which = 0; which < 4; which++) {
        int64_t rows = random_range(&seed, 1, 150), cols = random_range(&seed, 1, 200);
        int32_t kind = which == 3 ? EDB_INT8 : EDB_PAIRS;
        edb_matrix matrix = random_matrix(&seed, kind, 1, rows, cols);
        if (which == 1 || which == 2) add_half(&seed, &matrix, which == 1);
        multiply_both(context, &seed, &matrix, n, 0, to);
    }
}

/* Activations that are all as large as they can be, of either sign or of one: so are their sums. */
static void loud_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = (int64_t)(seed % 20) + 1;
    for (int half = 0; half < 2; half++) {
        int64_t rows = random_range(&seed, 1, 150), cols = random_range(&seed, 1, 200);
        edb_matrix matrix = random_matrix(&seed, EDB_PAIRS, 1, rows, cols);
        if (half) add_half(&seed, &matrix, 0);
        float *x = random_floats(&seed, n * cols);
        int64_t sign = random_range(&seed, -1, 1);
        for (int64_t i = 0; i < n * cols; i++)
            x[i] = sign != 0 ? (float)sign : x[i] < 0 ? -1.0f : 1.0f;
        multiply_these(context, &seed, &matrix, x, n, 0, to);
    }
}

/*
 * Activations none of which is below 0, as the weights of a softmax are, against int8 codes: of any size,
 * few of them, or all alike, so large that sums of some quads just fit in 16 bits or do not.
 */
static void positive_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = (int64_t)(seed % 20) + 1, rows = random_range(&seed, 1, 150);
    int64_t cols = random_range(&seed, 1, 200), some = random_range(&seed, 1, 4);
    edb_matrix matrix = random_matrix(&seed, EDB_INT8, 1, rows, cols);
    float *x = random_floats(&seed, n * cols);
    for (int64_t i = 0; i < n * cols; i++)
        x[i] = random_range(&seed, 1, some) > 1 ? 0.0f : fabsf(x[i]);
    multiply_these(context, &seed, &matrix, x, n, 0, to);

    matrix = random_matrix(&seed, EDB_INT8, 1, rows, cols);
    size_t blocks = (size_t)((rows + 63) / 64 * ((cols + 63) / 64));
    memset((void *)(uintptr_t)matrix.data, some % 2 ? 127 : -127, blocks * 4096);
    x = allocate((size_t)(n * cols) * sizeof *x);
    for (int64_t t = 0; t < n; t++) {
        int64_t code = some < 3 ? random_range(&seed, 60, 70) : random_range(&seed, 28, 36);
        for (int64_t i = 0; i < cols; i++) /* the largest among zeros: no sum grows by it */
            x[t * cols + i] = i % 16 >= 2 ? (float)code / 127.0f : i % 64 == 0 ? 1.0f : 0.0f;
    }
    multiply_these(context, &seed, &matrix, x, n, 0, to);
}

static void matmul_case(const edb_context *context, uint64_t seed, result *to) {
    multiply_case(context, seed, 0, to);
}

static void halves_case(const edb_context *context, uint64_t seed, result *to) {
    multiply_case(context, seed, 1, to);
}

#endif
