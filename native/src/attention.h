/* Attention as stages of a job: attention.c, attention_int8.c for int8 caches, attention_store.c. */
#ifndef EDB_ATTENTION_H
#define EDB_ATTENTION_H

#include "internal.h"

/* ---- rotary embedding and attention as stages of a job (attention.c) ---- */

/* n tokens of one sequence, positions pos..pos+n-1, against one layer's cache. */
typedef struct {
    const edb_kernels *kernels;
    edb_attention_shape shape;
    edb_rows q, k, v, out; /* [n, heads * head_dim]; q is turned in place, k on its way to the cache */
    const float *q_norm, *k_norm; /* [head_dim], of every head before it turns; NULL: none */
    float eps;
    const float *cos, *sin; /* [capacity, head_dim/2]; NULL: keys do not turn */
    const float *q_cos, *q_sin; /* likewise, of the queries */
    void *const *pages;
    int64_t offset; /* bytes, of this layer's keys and values in a page */
    int64_t n, pos;
    float scale;    /* of the scores */
    const float *slopes; /* [n_heads], what a score loses for each position; NULL: nothing */
    float cap;      /* of the scaled scores; 0: none */
    int64_t window; /* keys that a query sees, its own included */
    const float *sinks; /* [n_heads]; NULL: none */
    char *scratch;  /* see edb_lay_out_attention */
    int64_t first_block, blocks; /* of keys that some query sees */
    int few;     /* rows */
    char *codes; /* NULL, or where edb_store_stages puts quantized queries: see edb_few_queries */
} edb_attention_job;

edb_status edb_check_shape(const edb_attention_shape *shape);

/* Whether shape, n and pos make sense. */
edb_status edb_check_attention(const edb_attention_shape *shape, int64_t n, int64_t pos);

/* Whether there are aligned pages for so many positions. */
edb_status edb_check_pages(void *const *pages, int64_t positions);

/* What one layer takes of a page. */
int64_t edb_page_bytes(const edb_attention_shape *shape);

uint64_t edb_attention_scratch(const edb_context *context, const edb_attention_shape *shape,
                               int64_t n, int64_t positions);

/* The job, filled but for scratch, blocks and codes, finds its place in scratch for attention. */
void edb_lay_out_attention(edb_attention_job *job, void *scratch);

/*
 * Queries are normed, turned and quantized where there is a place for it, keys normed and turned, and
 * keys and values stored; then attention. One stage, and up to two; they return how many.
 */
void edb_begin_head(const edb_attention_job *job, int64_t kv_head); /* before it, where rows are few */
int32_t edb_store_stages(const edb_context *context, edb_attention_job *job, edb_stage *stages);
int32_t edb_attention_stages(edb_attention_job *job, edb_stage *stages);

/* ---- what the parts share ---- */

enum { EDB_MAX_HEAD_DIM = 1024 };

/* Up to this many queries of a key/value head at once, its keys are shared between threads. */
enum { EDB_FEW_QUERIES = 16 };

static inline int64_t edb_cache_row_bytes(int64_t head_dim, int32_t kind) {
    if (kind == EDB_INT8) return edb_int8_row_bytes(head_dim);
    return head_dim * (kind == EDB_F16 ? 2 : 4);
}

enum { EDB_KEYS = 0, EDB_VALUES = 1 };

/* The only places that know where a key or value lies: a head's in a page, which is a block of keys; */
static inline char *edb_cache_block(const edb_attention_job *job, int kind, int64_t head, int64_t block) {
    const edb_attention_shape *shape = &job->shape;
    int64_t row = (kind * shape->n_kv_heads + head) * EDB_PAGE;
    return (char *)job->pages[block] + job->offset +
           row * edb_cache_row_bytes(shape->head_dim, shape->cache_kind);
}

/* and its row of floats at one position (attention_int8.c: of codes). */
static inline char *edb_cache_row(const edb_attention_job *job, int kind, int64_t head, int64_t position) {
    return edb_cache_block(job, kind, head, position / EDB_PAGE) +
           position % EDB_PAGE * edb_cache_row_bytes(job->shape.head_dim, job->shape.cache_kind);
}

/* Keys and values of one head in a block. */
static inline edb_next_rows edb_rows_of(const edb_attention_job *job, int64_t head, int64_t block) {
    int64_t bytes = EDB_PAGE * edb_cache_row_bytes(job->shape.head_dim, job->shape.cache_kind);
    return (edb_next_rows){{edb_cache_block(job, EDB_KEYS, head, block), bytes},
                           {edb_cache_block(job, EDB_VALUES, head, block), bytes}};
}

static inline float *edb_head_of(edb_rows rows, int64_t t, int64_t head, int64_t head_dim) {
    return rows.x + t * rows.stride + head * head_dim;
}

/* Queries of a token that share a key/value head. */
static inline int64_t edb_heads_per_kv(const edb_attention_shape *shape) {
    return shape->n_heads / shape->n_kv_heads;
}

/* Floats of what one row found: whole cache lines. */
static inline int64_t edb_found_size(const edb_attention_shape *shape) {
    return EDB_FOUND_HEADER + edb_ceil_div(shape->head_dim, EDB_LANES) * EDB_LANES;
}

/* The first position whose key token t sees. */
static inline int64_t edb_first_key(const edb_attention_job *job, int64_t t) {
    return edb_max(0, job->pos + t + 1 - job->window);
}

/*
 * An int8 cache (attention_int8.c). The quantized queries of up to `count` rows of a head, from row
 * `first` on, lie at `at` on a 64-byte boundary, edb_query_bytes of them; edb_quantize_queries puts
 * rows begin..end-1 there, once for all blocks.
 */
typedef struct {
    char *at;
    int64_t first, count;
} edb_queries;

int64_t edb_query_bytes(int64_t head_dim, int64_t count);
void edb_quantize_queries(const edb_attention_job *job, int64_t kv_head, int64_t begin, int64_t end,
                          edb_queries to);

/* All queries of a head, where they are few and the cache int8. */
edb_queries edb_few_queries(const edb_attention_job *job, int64_t kv_head);

/* Quantized keys or values of a head at one position. */
void edb_store_codes(const edb_attention_job *job, const float *x, int kind, int64_t kv_head,
                     int64_t position);

/*
 * All rows of `queries` against one block, of which `count` keys are there; found [rows, found size].
 * scratch: edb_code_scratch bytes, on a 64-byte boundary. next: the rows that will be read after these.
 */
void edb_attend_code_block(const edb_attention_job *job, int64_t kv_head, edb_queries queries,
                           int64_t block, int64_t count, edb_next_rows next, float *found,
                           char *scratch);
int64_t edb_code_scratch(int64_t head_dim);

#endif
