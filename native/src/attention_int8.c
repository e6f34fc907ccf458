/*
 * Attention over an int8 cache as products of integers: the queries of a head against a block of its
 * keys, of which every query is a token and every key a row of an int8 matrix; then, over the keys,
 * weights against values. Both are int8_tile's products, with the bits of every set.
 *
 *   scores[j] = sum over groups of (sq * sk[j]) * (q . k[j]), by fused multiply-adds in order
 *   p[j] = e^(scores[j] - m), sum p                   of a tile of 64 keys and its largest score m, in
 *                                                     integers from the powers of two on
 *   w[j] = p[j] * sv[j]                               in integers, to codes of 7 bits and a scale
 *   sum[d] = sum over tiles of sw * e^(m - that of the block) * (w . v[.][d]), likewise; for each 64
 *            columns of a head its own w, as each has its own sv
 *
 * Where a query's window opens or ends, weights are 0, and groups stay where they are: so nothing
 * depends on which queries go together.
 */
#include <string.h>

#include "attention.h"

/* Queries or weights as int8_tile takes them: q [groups][n][64] and so on. */
typedef struct {
    int8_t *q;
    float *sx;
    int32_t *offsets;
} token_codes;

/* A block of keys and values of a head, as edgedb.h lays them out. */
typedef struct {
    const int8_t *k, *v;             /* [EDB_PAGE_TILES][groups][4096]; [groups][EDB_PAGE_TILES][4096] */
    const float *k_scales, *v_scales; /* [EDB_PAGE_TILES][groups][64]; [groups][EDB_PAGE] */
} code_block;

typedef struct {
    float *dots; /* [EDB_PAGE_TILES][n][64] */
    float *sums; /* [n][64] */
    token_codes weights;
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
static code_scratch lay_out(char **at, int64_t head_dim) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), floats = (int64_t)sizeof(float);
    code_scratch to;
    to.dots = take(at, EDB_CODE_ROWS * EDB_PAGE * floats);
    to.sums = take(at, EDB_CODE_ROWS * EDB_TILE * floats);
    to.weights = take_tokens(at, groups * EDB_PAGE_TILES * EDB_CODE_ROWS);
    return to;
}

int64_t edb_code_scratch(int64_t head_dim) {
    char *at = NULL;
    lay_out(&at, head_dim);
    return (int64_t)(uintptr_t)at;
}

static token_codes query_codes(edb_queries queries, int64_t head_dim) {
    return take_tokens(&queries.at, edb_ceil_div(head_dim, EDB_GROUP) * queries.count);
}

int64_t edb_query_bytes(int64_t head_dim, int64_t count) {
    char *at = NULL;
    take_tokens(&at, edb_ceil_div(head_dim, EDB_GROUP) * count);
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

/* out += one group, or as many, of a tile's rows for the tokens x. */
static void multiply(const edb_kernels *kernels, const int8_t *codes, const float *scales,
                     int64_t groups, const edb_tokens *x, float *out) {
    kernels->int8_tile(codes, scales, groups, x, out, codes + groups * EDB_CODES_BYTES);
}

/*
 * Of what is coming, in the middle of the work between keys and values that is done without reading:
 * so much of 8 parts of the keys before, and of the values behind it.
 */
enum { KEYS_BEFORE = 3, VALUES_BEFORE = 5, OF_COMING = 8 };

/* found of up to EDB_CODE_ROWS rows of a head. */
static void attend(const edb_kernels *kernels, const code_block *codes, const edb_code_block *block,
                   const edb_code_row *rows, const edb_tokens *queries, edb_next_rows next,
                   const code_scratch *at) {
    static const float ones[EDB_TILE] = {EDB_ONES_64};
    int64_t head_dim = block->head_dim, groups = edb_ceil_div(head_dim, EDB_GROUP);
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE), n = queries->n;
    edb_coming first = edb_part_of(next.k, 0, KEYS_BEFORE, OF_COMING);
    edb_coming last = edb_part_of(next.v, VALUES_BEFORE, OF_COMING, OF_COMING);
    edb_next_rows between = {edb_part_of(next.k, KEYS_BEFORE, OF_COMING, OF_COMING),
                             edb_part_of(next.v, 0, VALUES_BEFORE, OF_COMING)};
    int64_t first_lines = edb_lines_each(first, tiles), last_lines = edb_lines_each(last, groups * tiles);

    memset(at->dots, 0, (size_t)(tiles * n * EDB_TILE) * sizeof *at->dots);
    for (int64_t tile = 0; tile < tiles; tile++) {
        first = edb_fetch_code_lines(first, first_lines);
        multiply(kernels, codes->k + tile * groups * EDB_CODES_BYTES,
                 codes->k_scales + tile * groups * EDB_TILE, groups, queries,
                 at->dots + tile * n * EDB_TILE);
    }
    for (int64_t r = 0; r < n; r += EDB_SHARE_ROWS) {
        int64_t some = edb_min(EDB_SHARE_ROWS, n - r);
        edb_code_weights weights = {at->weights.q + EDB_GROUP * r, at->weights.sx + r,
                                    kernels->offsets == NULL ? NULL : at->weights.offsets + r, n};
        edb_next_rows part = {edb_part_of(between.k, r, r + some, n),
                              edb_part_of(between.v, r, r + some, n)};
        kernels->share(block, rows + r, (int)some, at->dots + EDB_TILE * r, n * EDB_TILE, part,
                       &weights);
    }
    for (int64_t g = 0; g < groups; g++) {
        int64_t columns = edb_min(EDB_GROUP, head_dim - EDB_GROUP * g);
        memset(at->sums, 0, (size_t)n * EDB_TILE * sizeof *at->sums);
        for (int64_t tile = 0; tile < tiles; tile++) {
            edb_tokens of_tile = tokens_of(at->weights, (g * EDB_PAGE_TILES + tile) * n, n, n);
            of_tile.of = EDB_WEIGHTS;
            last = edb_fetch_code_lines(last, last_lines);
            const int8_t *v = codes->v + (g * EDB_PAGE_TILES + tile) * EDB_CODES_BYTES;
            multiply(kernels, v, ones, 1, &of_tile, at->sums);
        }
        for (int64_t r = 0; r < n; r++)
            memcpy(rows[r].found + EDB_FOUND_HEADER + EDB_GROUP * g, at->sums + EDB_TILE * r,
                   (size_t)columns * sizeof *at->sums);
    }
}

static float *query_of(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = edb_heads_per_kv(&job->shape), head = kv_head * heads + row % heads;
    return edb_head_of(job->q, row / heads, head, job->shape.head_dim);
}

void edb_quantize_queries(const edb_attention_job *job, int64_t kv_head, int64_t begin, int64_t end,
                          edb_queries queries) {
    const edb_kernels *kernels = job->kernels;
    int64_t head_dim = job->shape.head_dim;
    token_codes to = query_codes(queries, head_dim);
    for (int64_t row = begin; row < end; row++) {
        int64_t at = row - queries.first;
        kernels->quantize_query(query_of(job, kv_head, row), head_dim, to.q + EDB_GROUP * at, to.sx + at,
                                to.offsets + at, queries.count);
    }
}

/* The scales of a head's keys or values in a page, behind their codes. */
static float *scales_of(const edb_attention_job *job, char *codes) {
    int64_t groups = edb_ceil_div(job->shape.head_dim, EDB_GROUP);
    return (float *)(void *)(codes + groups * EDB_PAGE * EDB_GROUP);
}

static code_block block_at(const edb_attention_job *job, int64_t kv_head, int64_t block) {
    char *k = edb_cache_block(job, EDB_KEYS, kv_head, block);
    char *v = edb_cache_block(job, EDB_VALUES, kv_head, block);
    return (code_block){(int8_t *)k, (int8_t *)v, scales_of(job, k), scales_of(job, v)};
}

void edb_store_codes(const edb_attention_job *job, const float *x, int kind, int64_t kv_head,
                     int64_t position) {
    int8_t q[EDB_MAX_HEAD_DIM];
    float sx[EDB_MAX_HEAD_DIM / EDB_GROUP];
    int64_t groups = edb_ceil_div(job->shape.head_dim, EDB_GROUP), at = position % EDB_PAGE;
    int64_t tile = at / EDB_TILE, lane = at % EDB_TILE;
    job->kernels->quantize(x, job->shape.head_dim, q, sx, 1);
    char *block = edb_cache_block(job, kind, kv_head, position / EDB_PAGE);
    float *scales = scales_of(job, block);
    for (int64_t g = 0; g < groups; g++) {
        const int8_t *from = q + EDB_GROUP * g;
        if (kind == EDB_KEYS) { /* a row: four columns next to those of the other keys */
            char *to = block + (tile * groups + g) * EDB_CODES_BYTES + 4 * lane;
            for (int quad = 0; quad < EDB_QUADS; quad++)
                memcpy(to + 4 * EDB_TILE * quad, from + 4 * quad, 4);
            scales[(tile * groups + g) * EDB_TILE + lane] = sx[g];
        } else { /* a column: next to three other values' */
            char *to = block + (g * EDB_PAGE_TILES + tile) * EDB_CODES_BYTES;
            to += 4 * EDB_TILE * (lane / 4) + lane % 4;
            for (int c = 0; c < EDB_GROUP; c++) to[4 * c] = (char)from[c];
            scales[g * EDB_PAGE + at] = sx[g];
        }
    }
}

edb_queries edb_few_queries(const edb_attention_job *job, int64_t kv_head) {
    int64_t rows = job->n * edb_heads_per_kv(&job->shape);
    int64_t bytes = edb_query_bytes(job->shape.head_dim, rows);
    return (edb_queries){job->codes + kv_head * bytes, 0, rows};
}

void edb_attend_code_block(const edb_attention_job *job, int64_t kv_head, edb_queries queries,
                           int64_t block, int64_t count, edb_next_rows next, float *found,
                           char *scratch) {
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), key = block * EDB_PAGE;
    code_block codes = block_at(job, kv_head, block);
    edb_code_block keys = {.scales = codes.v_scales,
                           .count = count,
                           .head_dim = shape->head_dim,
                           .scale = job->scale,
                           .cap = job->cap,
                           .leans = job->slopes != NULL};
    code_scratch at = lay_out(&scratch, shape->head_dim);
    token_codes all = query_codes(queries, shape->head_dim);
    int64_t first = queries.first, last = first + queries.count;
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
        edb_tokens some = tokens_of(all, row - n - first, n, queries.count);
        some.of = EDB_QUERIES;
        attend(job->kernels, &codes, &keys, rows, &some, next, &at);
        next = (edb_next_rows){0}; /* the first rows have fetched them */
    }
}
