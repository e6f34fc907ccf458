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

/* More rows than this share a packed block at less cost than each few of them a block in place. */
enum { MOST_IN_PLACE = 12 };

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
    float *dots;           /* [TILES][n][64] */
    float *sums;           /* [n][64] */
    token_codes weights, queries; /* queries of all rows of a task */
} code_scratch;

static void *take(char **at, int64_t bytes) {
    char *begin = *at;
    *at = begin + ((bytes + 63) & ~(int64_t)63);
    return begin;
}

static token_codes take_tokens(char **at, int64_t n) {
    token_codes codes;
    codes.q = take(at, n * EDB_GROUP);
    codes.sx = take(at, n * (int64_t)sizeof *codes.sx);
    codes.offsets = take(at, n * (int64_t)sizeof *codes.offsets);
    return codes;
}

/* Cuts scratch, which may be a counter that starts at NULL. */
static code_scratch lay_out(char **at, int64_t head_dim, int64_t rows) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), floats = (int64_t)sizeof(float);
    code_scratch to;
    to.k = take(at, TILES * groups * EDB_CODES_BYTES);
    to.v = take(at, TILES * groups * EDB_CODES_BYTES);
    to.k_scales = take(at, groups * EDB_PAGE * floats);
    to.v_scales = take(at, groups * EDB_PAGE * floats);
    to.dots = take(at, EDB_CODE_ROWS * EDB_PAGE * floats);
    to.sums = take(at, EDB_CODE_ROWS * EDB_TILE * floats);
    to.weights = take_tokens(at, groups * TILES * EDB_CODE_ROWS);
    to.queries = take_tokens(at, groups * rows);
    return to;
}

int64_t edb_code_scratch(int64_t head_dim, int64_t rows) {
    char *at = NULL;
    lay_out(&at, head_dim, rows);
    return (int64_t)(uintptr_t)at;
}

/* n rows from `first` on, of `stride`. */
static edb_tokens tokens_of(token_codes x, int64_t first, int64_t n, int64_t stride) {
    return (edb_tokens){.q = x.q + EDB_GROUP * first,
                        .sx = x.sx + first,
                        .offsets = x.offsets + first,
                        .stride = stride,
                        .n = n};
}

static void multiply(const edb_kernels *kernels, const int8_t *codes, const float *scales,
                     int64_t groups, const edb_tokens *x, float *out) {
    memset(out, 0, (size_t)x->n * EDB_TILE * sizeof *out);
    kernels->int8_tile(codes, scales, groups, x, out, codes + groups * EDB_CODES_BYTES);
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

/* found of up to EDB_CODE_ROWS rows of a head, of whose keys and values both are packed, or neither. */
static void attend(const edb_kernels *kernels, const edb_code_block *block, int packed,
                   const edb_code_row *rows, const edb_tokens *queries, edb_next_rows next,
                   const code_scratch *at) {
    static const float ones[TILES * EDB_TILE] = EDB_ONES_256;
    int64_t head_dim = block->head_dim, groups = edb_ceil_div(head_dim, EDB_GROUP);
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE), n = queries->n;

    if (!packed) kernels->few_dots(block, queries, at->k_scales, next.k, at->dots);
    for (int64_t tile = 0; packed && tile < tiles; tile++) {
        edb_fetch_part(&next.k, tile, tiles);
        multiply(kernels, at->k + tile * groups * EDB_CODES_BYTES,
                 at->k_scales + tile * groups * EDB_TILE, groups, queries,
                 at->dots + tile * n * EDB_TILE);
    }
    for (int64_t r = 0; r < n; r += EDB_SHARE_ROWS) {
        edb_code_weights weights = {at->weights.q + EDB_GROUP * r, at->weights.sx + r,
                                    at->weights.offsets + r, n};
        if (packed) edb_fetch_part(&next.v, r, n);
        kernels->share(block, rows + r, (int)edb_min(EDB_SHARE_ROWS, n - r),
                       at->dots + EDB_TILE * r, n * EDB_TILE, at->v_scales, &weights);
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t columns = edb_min(EDB_GROUP, head_dim - EDB_GROUP * g);
        edb_tokens weights = tokens_of(at->weights, g * TILES * n, n, n);
        if (packed)
            multiply(kernels, at->v + g * TILES * EDB_CODES_BYTES, ones, tiles, &weights, at->sums);
        else
            kernels->few_sums(block, g, &weights, next.v, at->sums);
        for (int64_t r = 0; r < n; r++)
            memcpy(rows[r].found + EDB_FOUND_HEADER + EDB_GROUP * g, at->sums + EDB_TILE * r,
                   (size_t)columns * sizeof *at->sums);
    }
}

static float *query_of(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = edb_heads_per_kv(&job->shape), head = kv_head * heads + row % heads;
    return edb_head_of(job->q, row / heads, head, job->shape.head_dim);
}

void edb_quantize_queries(const edb_attention_job *job, int64_t kv_head, int64_t first,
                          int64_t last, char *scratch) {
    const edb_kernels *kernels = job->kernels;
    int64_t head_dim = job->shape.head_dim, groups = edb_ceil_div(head_dim, EDB_GROUP);
    token_codes to = lay_out(&scratch, head_dim, last - first).queries;
    for (int64_t row = first; row < last; row++, to.q += EDB_GROUP, to.sx++, to.offsets++) {
        kernels->quantize(query_of(job, kv_head, row), head_dim, to.q, to.sx, last - first);
        if (kernels->offsets != NULL) kernels->offsets(to.q, last - first, groups, to.offsets);
    }
}

void edb_attend_code_block(const edb_attention_job *job, int64_t kv_head, int64_t first,
                           int64_t last, int64_t block, int64_t count, edb_next_rows next,
                           float *found, char *scratch) {
    const edb_attention_shape *shape = &job->shape;
    const edb_kernels *kernels = job->kernels;
    int64_t heads = edb_heads_per_kv(shape), key = block * EDB_PAGE;
    edb_code_block keys = {.k = edb_cache_row(job, EDB_KEYS, kv_head, key),
                           .v = edb_cache_row(job, EDB_VALUES, kv_head, key),
                           .count = count,
                           .head_dim = shape->head_dim,
                           .scale = job->scale,
                           .cap = job->cap,
                           .leans = job->slopes != NULL};
    code_scratch at = lay_out(&scratch, shape->head_dim, last - first);
    int packed = kernels->few_dots == NULL || last - first > MOST_IN_PLACE;
    if (packed) {
        kernels->pack_keys(keys.k, count, shape->head_dim, at.k, at.k_scales);
        kernels->pack_values(keys.v, count, shape->head_dim, at.v, at.v_scales);
    } else {
        gather_scales(keys.k, count, shape->head_dim, at.k_scales);
        gather_scales(keys.v, count, shape->head_dim, at.v_scales);
    }
    for (int64_t row = first; row < last;) {
        edb_code_row rows[EDB_CODE_ROWS];
        int64_t n = 0;
        for (; n < EDB_CODE_ROWS && row < last; row++) {
            int64_t t = row / heads, head = kv_head * heads + row % heads;
            int64_t begin = edb_max(0, edb_first_key(job, t) - key);
            int64_t end = edb_min(job->pos + t + 1 - key, EDB_PAGE);
            /* A token that sees nothing of this block: before those that do, or behind them. */
            if (begin >= end && n > 0) break;
            if (begin >= end) continue;
            rows[n++] = (edb_code_row){.begin = begin,
                                       .end = end,
                                       .slope = keys.leans ? job->slopes[head] : 0.0f,
                                       .away = job->pos + t - key,
                                       .found = found + (row - first) * edb_found_size(shape)};
        }
        if (n == 0) return;
        edb_tokens queries = tokens_of(at.queries, row - n - first, n, last - first);
        attend(kernels, &keys, packed, rows, &queries, next, &at);
    }
}
