/*
 * What the C tests share: reproducible random inputs, a digest, and matrices of every kind.
 *
 * Inputs come from integers and exact float operations only, never from libm, so that every
 * processor and C library makes the same ones.
 */
#ifndef EDB_TESTING_H
#define EDB_TESTING_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../include/edgedb.h"
#include "../src/internal.h"

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

/* SplitMix64. */
static inline uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* low..high, both included. */
static inline int64_t random_range(uint64_t *state, int64_t low, int64_t high) {
    return low + (int64_t)(random_bits(state) % (uint64_t)(high - low + 1));
}

/* A multiple of 2^-23 in [-1, 1). */
static inline float random_float(uint64_t *state) {
    return (float)random_range(state, -(1 << 23), (1 << 23) - 1) * 0x1p-23f;
}

/* binary16 in about [-2, 2), no NaN, no infinity. */
static inline uint16_t random_half(uint64_t *state) {
    uint64_t bits = random_bits(state);
    return (uint16_t)((bits & 0x83ff) | (bits >> 32) % 16 << 10);
}

/* Exactly this many bytes, so that a sanitizer sees the first one beyond. */
static inline void *allocate(size_t bytes) {
#if defined(_WIN32) /* which has to know such memory from any other when it is freed */
    void *p = _aligned_malloc(bytes, 64);
#else
    void *p = bytes % 64 == 0 ? aligned_alloc(64, bytes) : malloc(bytes);
#endif
    CHECK(p != NULL);
    return memset(p, 0, bytes);
}

static inline void release(void *p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    free(p);
#endif
}

static inline float *random_floats(uint64_t *state, int64_t count) {
    float *x = allocate((size_t)count * sizeof *x);
    for (int64_t i = 0; i < count; i++) x[i] = random_float(state);
    return x;
}

/* FNV-1a. */
static inline uint64_t digest(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}
#define DIGEST_START 0xcbf29ce484222325u

/* Random bytes, padding included: nothing beyond the matrix may reach a result. */
static inline edb_matrix random_matrix(uint64_t *state, int32_t kind, int32_t pairs, int64_t rows,
                                       int64_t cols) {
    int64_t blocks = (rows + 63) / 64 * ((cols + 63) / 64), n_scales = 0;
    uint8_t *data = NULL;
    if (kind == EDB_PAIRS) {
        data = allocate((size_t)(pairs * blocks * 1152));
        for (int64_t block = 0; block < pairs * blocks; block++) {
            uint8_t *p = data + block * 1152;
            for (int i = 0; i < 1024; i++) p[i] = (uint8_t)random_bits(state);
            for (int row = 0; row < 64; row++) {
                int64_t c1 = random_range(state, -127, 127);
                int64_t low = c1 < 0 ? -127 - c1 : -127, high = c1 > 0 ? 127 - c1 : 127;
                p[1024 + row] = (uint8_t)c1;
                p[1088 + row] = (uint8_t)random_range(state, low, high);
            }
        }
        n_scales = pairs * rows;
    } else if (kind == EDB_INT8) {
        data = allocate((size_t)(blocks * 4096));
        for (int64_t i = 0; i < blocks * 4096; i++)
            data[i] = (uint8_t)random_range(state, -127, 127);
        n_scales = blocks * 64;
    } else {
        int64_t bytes = rows * cols * (kind == EDB_F16 ? 2 : 4);
        data = allocate((size_t)((bytes + 63) & ~(int64_t)63));
        for (int64_t i = 0; i < rows * cols; i++) {
            float wide = random_float(state);
            uint16_t half = random_half(state);
            if (kind == EDB_F16) {
                memcpy(data + 2 * i, &half, sizeof half);
            } else {
                memcpy(data + 4 * i, &wide, sizeof wide);
            }
        }
    }
    float *scales = n_scales > 0 ? random_floats(state, n_scales) : NULL;
    return (edb_matrix){kind, pairs, rows, cols, data, scales, NULL};
}

/* Half a pair more for a matrix of pairs, after its last; with free_pairs it is all that is left. */
static inline void add_half(uint64_t *state, edb_matrix *matrix, int free_pairs) {
    int64_t blocks = (matrix->rows + 63) / 64 * ((matrix->cols + 63) / 64);
    uint8_t *half = allocate((size_t)(blocks * 576));
    for (int64_t block = 0; block < blocks; block++) {
        for (int i = 0; i < 512; i++) half[block * 576 + i] = (uint8_t)random_bits(state);
        for (int row = 0; row < 64; row++)
            half[block * 576 + 512 + row] = (uint8_t)random_range(state, -127, 127);
    }
    if (free_pairs) matrix->pairs = 0;
    release((void *)(uintptr_t)matrix->scales);
    matrix->scales = random_floats(state, (matrix->pairs + 1) * matrix->rows);
    matrix->half = half;
}

static inline void free_matrix(edb_matrix *matrix) {
    release((void *)(uintptr_t)matrix->half);
    release((void *)(uintptr_t)matrix->data);
    release((void *)(uintptr_t)matrix->scales);
}

/* A layer's cache: pages of exactly their size, as far as positions below the capacity need them. */
typedef struct {
    int32_t n_kv_heads;
    int64_t capacity, row_bytes, n_pages, page_bytes;
    void *pages[8];
} layer_cache;

static inline layer_cache new_cache(const edb_attention_shape *shape) {
    int64_t row = shape->head_dim * (shape->cache_kind == EDB_F16 ? 2 : 4);
    if (shape->cache_kind == EDB_INT8) row = 68 * ((shape->head_dim + 63) / 64); /* not a row there */
    layer_cache c = {.n_kv_heads = shape->n_kv_heads, .capacity = shape->capacity, .row_bytes = row};
    c.n_pages = (shape->capacity + EDB_PAGE - 1) / EDB_PAGE;
    c.page_bytes = 2 * shape->n_kv_heads * EDB_PAGE * row;
    CHECK(c.n_pages <= 8);
    for (int64_t i = 0; i < c.n_pages; i++) {
        c.pages[i] = allocate((size_t)c.page_bytes);
        memset(c.pages[i], 0, (size_t)c.page_bytes);
    }
    return c;
}

static inline layer_cache copy_cache(const layer_cache *cache) {
    layer_cache copy = *cache;
    for (int64_t i = 0; i < copy.n_pages; i++)
        copy.pages[i] =
            memcpy(allocate((size_t)copy.page_bytes), cache->pages[i], (size_t)copy.page_bytes);
    return copy;
}

static inline void free_cache(layer_cache *cache) {
    for (int64_t i = 0; i < cache->n_pages; i++) release(cache->pages[i]);
}

/* Row i of all keys and then all values, head by head and position by position. */
static inline uint8_t *cache_row(const layer_cache *cache, int64_t i) {
    int64_t head = i / cache->capacity, position = i % cache->capacity; /* values: more heads */
    return (uint8_t *)cache->pages[position / EDB_PAGE] +
           (head * EDB_PAGE + position % EDB_PAGE) * cache->row_bytes;
}

static inline int64_t cache_rows(const layer_cache *cache) {
    return 2 * cache->n_kv_heads * cache->capacity;
}

static inline edb_context *new_context(const char *isa, const char *kernel, edb_pool *pool) {
    edb_context *context;
    CHECK(edb_context_create(isa, kernel, pool, &context) == EDB_OK);
    return context;
}

/* The same, and the next way of fetching, whatever suits this CPU: all of them in turn. */
static inline edb_context *new_context_in_turn(const char *isa, const char *kernel,
                                               edb_pool *pool) {
    static int turn;
    edb_context *context = new_context(isa, kernel, pool);
    edb_fetch_here = (edb_fetch)(turn++ % (EDB_LEAD + 1));
    return context;
}

static inline void multiply(const edb_context *context, const edb_matrix *matrix, const float *x,
                            float *out, int64_t n, int32_t add) {
    size_t bytes = edb_matmul_scratch_bytes(context, matrix, n);
    CHECK(bytes > 0);
    void *scratch = allocate(bytes);
    CHECK(edb_matmul(context, matrix, x, out, n, add, scratch, bytes) == EDB_OK);
    release(scratch);
}

#endif
