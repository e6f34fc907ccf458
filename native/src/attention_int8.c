/*
 * Attention over an int8 cache as products of integers: the queries of a head against a block of its
 * keys, of which every query is a token and every key a row of an int8 matrix; then, over the keys,
 * weights against values. Both are int8_tile's products, with the bits of every set.
 *
 *   scores[j] = sum over groups of (sq * sk[j]) * (q . k[j]), by fused multiply-adds in order
 *   p[j], m, t                                        as in attention_body.h
 *   w[j] = p[j] * sv[j]                               quantized by edb_quantize, 64 keys a group
 *   sum[d] = sum over groups of 64 keys of sw * (w . v[.][d]), likewise; for each 64 columns of a head
 *            its own w, as each has its own sv
 *
 * Where a query's window opens or ends, weights are 0, and groups stay where they are: so nothing
 * depends on which queries go together.
 */
#include <string.h>

#include "attention.h"

enum { TILES = EDB_PAGE / EDB_TILE };

/* Queries or weights as int8_tile takes them: q [groups][n][64] and so on. */
typedef struct {
    int8_t *q;
    float *sx;
    int32_t *offsets;
} token_codes;

typedef struct {
    int8_t *k, *v;         /* [TILES][groups][4096]; [groups][TILES][4096], columns as rows */
    float *k_scales;       /* [TILES][groups][64] */
    float *v_scales;       /* [groups][EDB_PAGE] */
    token_codes queries, weights;
    float *dots;           /* [TILES][n][64] */
    float *sums;           /* [n][64] */
} code_scratch;

static void *take(char **at, int64_t bytes) {
    char *begin = *at;
    *at = begin + ((bytes + 63) & ~(int64_t)63);
    return begin;
}

static token_codes take_tokens(char **at, int64_t groups) {
    int64_t n = groups * EDB_CODE_ROWS;
    token_codes codes;
    codes.q = take(at, n * EDB_GROUP);
    codes.sx = take(at, n * (int64_t)sizeof *codes.sx);
    codes.offsets = take(at, n * (int64_t)sizeof *codes.offsets);
    return codes;
}

/* Cuts scratch, which may be a counter that starts at NULL. */
static code_scratch lay_out(char **at, int64_t head_dim) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), floats = (int64_t)sizeof(float);
    code_scratch to;
    to.k = take(at, TILES * groups * EDB_CODES_BYTES);
    to.v = take(at, TILES * groups * EDB_CODES_BYTES);
    to.k_scales = take(at, groups * EDB_PAGE * floats);
    to.v_scales = take(at, groups * EDB_PAGE * floats);
    to.queries = take_tokens(at, groups);
    to.weights = take_tokens(at, groups * TILES);
    to.dots = take(at, EDB_CODE_ROWS * EDB_PAGE * floats);
    to.sums = take(at, EDB_CODE_ROWS * EDB_TILE * floats);
    return to;
}

int64_t edb_code_scratch(int64_t head_dim) {
    char *at = NULL;
    lay_out(&at, head_dim);
    return (int64_t)(uintptr_t)at;
}

/* Row r of n in groups of x. */
static void quantize_row(const edb_kernels *kernels, const float *x, int64_t columns, int64_t r,
                         int64_t n, token_codes to) {
    kernels->quantize(x, columns, to.q + EDB_GROUP * r, to.sx + r, n);
    if (kernels->offsets != NULL)
        kernels->offsets(to.q + EDB_GROUP * r, n, edb_ceil_div(columns, EDB_GROUP), to.offsets + r);
}

static edb_tokens tokens_of(token_codes x, int64_t n) {
    return (edb_tokens){.q = x.q, .sx = x.sx, .offsets = x.offsets, .stride = n, .n = n};
}

static void multiply(const edb_kernels *kernels, const int8_t *codes, const float *scales,
                     int64_t groups, token_codes x, int64_t n, float *out) {
    edb_tokens tokens = tokens_of(x, n);
    memset(out, 0, (size_t)n * EDB_TILE * sizeof *out);
    kernels->int8_tile(codes, scales, groups, &tokens, out, codes + groups * EDB_CODES_BYTES);
}

static edb_coming coming_rows(const void *rows, int64_t head_dim) {
    return (edb_coming){rows, rows == NULL ? 0 : EDB_PAGE * edb_int8_row_bytes(head_dim)};
}

/* The scales of rows as few_dots wants them. */
static void gather_scales(const void *rows, int64_t count, int64_t head_dim, float *scales) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), bytes = edb_int8_row_bytes(head_dim);
    for (int64_t g = 0; g < groups; g++, scales += EDB_PAGE) {
        const char *from = (const char *)rows + head_dim + 4 * g;
#pragma GCC unroll 8
        for (int64_t j = 0; j < count; j++) memcpy(scales + j, from + j * bytes, sizeof *scales);
        int64_t end = edb_ceil_div(count, EDB_TILE) * EDB_TILE;
        memset(scales + count, 0, (size_t)(end - count) * sizeof *scales);
    }
}

/* dots [tiles][n][64] of the queries with the keys, and the values' scales. */
static void score(const edb_kernels *kernels, const edb_code_block *block, int in_place,
                  edb_coming keys, const code_scratch *at, int64_t n) {
    int64_t head_dim = block->head_dim, groups = edb_ceil_div(head_dim, EDB_GROUP);
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE);
    edb_coming values = coming_rows(block->v, head_dim);
    if (in_place) {
        edb_tokens queries = tokens_of(at->queries, n);
        gather_scales(block->k, block->count, head_dim, at->k_scales);
        kernels->few_dots(block, &queries, at->k_scales, keys, at->dots);
        gather_scales(block->v, block->count, head_dim, at->v_scales);
        return;
    }
    kernels->pack_keys(block->k, block->count, head_dim, at->k, at->k_scales);
    for (int64_t tile = 0; tile < tiles; tile++) {
        edb_fetch_part(&values, tile, tiles);
        multiply(kernels, at->k + tile * groups * EDB_CODES_BYTES,
                 at->k_scales + tile * groups * EDB_TILE, groups, at->queries, n,
                 at->dots + tile * n * EDB_TILE);
    }
    kernels->pack_values(block->v, block->count, head_dim, at->v, at->v_scales);
}

/* found of up to EDB_CODE_ROWS queries of a head. */
static void attend(const edb_kernels *kernels, const edb_code_block *block,
                   const edb_code_row *rows, int64_t n, edb_coming_rows next, char *scratch) {
    static const float ones[TILES * EDB_TILE] = EDB_ONES_256;
    int64_t head_dim = block->head_dim, groups = edb_ceil_div(head_dim, EDB_GROUP);
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE);
    int in_place = kernels->few_dots != NULL && n <= EDB_FEW_QUERIES;
    edb_coming keys = coming_rows(next.k, head_dim), values = coming_rows(next.v, head_dim);
    code_scratch at = lay_out(&scratch, head_dim);

    for (int64_t r = 0; r < n; r++) quantize_row(kernels, rows[r].q, head_dim, r, n, at.queries);
    score(kernels, block, in_place, keys, &at, n);
    for (int64_t r = 0; r < n; r += EDB_SHARE_ROWS) {
        int64_t some = edb_min(EDB_SHARE_ROWS, n - r);
        edb_code_weights weights = {at.weights.q + EDB_GROUP * r, at.weights.sx + r,
                                    at.weights.offsets + r, n};
        if (!in_place) edb_fetch_part(&keys, r / EDB_SHARE_ROWS, edb_ceil_div(n, EDB_SHARE_ROWS));
        kernels->share(block, rows + r, (int)some, at.dots + EDB_TILE * r, n * EDB_TILE, at.v_scales,
                       &weights);
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t first = g * TILES * n, columns = edb_min(EDB_GROUP, head_dim - EDB_GROUP * g);
        token_codes weights = {at.weights.q + EDB_GROUP * first, at.weights.sx + first,
                               at.weights.offsets + first};
        if (in_place) {
            edb_tokens tokens = tokens_of(weights, n);
            kernels->few_sums(block, g, &tokens, values, at.sums);
        } else {
            multiply(kernels, at.v + g * TILES * EDB_CODES_BYTES, ones, tiles, weights, n, at.sums);
        }
        for (int64_t r = 0; r < n; r++)
            memcpy(rows[r].found + EDB_FOUND_HEADER + EDB_GROUP * g, at.sums + EDB_TILE * r,
                   (size_t)columns * sizeof *at.sums);
    }
}

void edb_attend_code_block(const edb_attention_job *job, int64_t kv_head, int64_t first,
                              int64_t last, int64_t block, int64_t count, edb_coming_rows next,
                              float *found, char *scratch) {
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), key = block * EDB_PAGE;
    edb_code_block keys = {.k = edb_cache_row(job, EDB_KEYS, kv_head, key),
                           .v = edb_cache_row(job, EDB_VALUES, kv_head, key),
                           .count = count,
                           .head_dim = shape->head_dim,
                           .scale = job->scale,
                           .cap = job->cap,
                           .leans = job->slopes != NULL};
    for (int64_t row = first; row < last;) {
        edb_code_row rows[EDB_CODE_ROWS];
        int64_t n = 0;
        for (; n < EDB_CODE_ROWS && row < last; row++) {
            int64_t t = row / heads, head = kv_head * heads + row % heads;
            int64_t begin = edb_max(0, edb_first_key(job, t) - key);
            int64_t end = edb_min(job->pos + t + 1 - key, EDB_PAGE);
            if (begin >= end) continue; /* the token sees nothing of this block */
            rows[n++] = (edb_code_row){.q = edb_head_of(job->q, t, head, shape->head_dim),
                                       .begin = begin,
                                       .end = end,
                                       .slope = keys.leans ? job->slopes[head] : 0.0f,
                                       .away = job->pos + t - key,
                                       .found = found + (row - first) * edb_found_size(shape)};
        }
        if (n > 0) attend(job->kernels, &keys, rows, n, next, scratch);
    }
}
