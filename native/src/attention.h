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
    char *scratch;  /* see edb_attention_stages */
    int64_t first_block, blocks; /* of keys that some query sees */
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

/*
 * Queries are normed and turned, keys too, and keys and values stored; then attention. One stage, and
 * up to two; they return how many. The job is filled but for scratch and blocks.
 */
int32_t edb_store_stages(const edb_context *context, edb_attention_job *job, edb_stage *stages);
int32_t edb_attention_stages(edb_attention_job *job, void *scratch, edb_stage *stages);

/* ---- what the parts share ---- */

enum { EDB_MAX_HEAD_DIM = 1024 };

/* Up to this many queries of a key/value head at once, its keys are shared between threads. */
enum { EDB_FEW_QUERIES = 16 };

static inline int64_t edb_cache_row_bytes(int64_t head_dim, int32_t kind) {
    if (kind == EDB_INT8) return edb_int8_row_bytes(head_dim);
    return head_dim * (kind == EDB_F16 ? 2 : 4);
}

enum { EDB_KEYS = 0, EDB_VALUES = 1 };

/*
 * The only place that knows where a key or value lies: address of one head's row at one position. The
 * rows of a head follow each other up to the end of the page, which is the end of a block of keys.
 */
static inline char *edb_cache_row(const edb_attention_job *job, int kind, int64_t head, int64_t position) {
    const edb_attention_shape *shape = &job->shape;
    int64_t row = (kind * shape->n_kv_heads + head) * EDB_PAGE + position % EDB_PAGE;
    return (char *)job->pages[position / EDB_PAGE] + job->offset +
           row * edb_cache_row_bytes(shape->head_dim, shape->cache_kind);
}

/* The keys and values of one head from one position on, to the end of their page. */
typedef struct {
    edb_coming k, v;
} edb_next_rows;

static inline edb_next_rows edb_rows_from(const edb_attention_job *job, int64_t head, int64_t position) {
    int64_t bytes = edb_cache_row_bytes(job->shape.head_dim, job->shape.cache_kind);
    bytes *= EDB_PAGE - position % EDB_PAGE;
    return (edb_next_rows){{edb_cache_row(job, EDB_KEYS, head, position), bytes},
                           {edb_cache_row(job, EDB_VALUES, head, position), bytes}};
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
 * Rows first..last-1 of a head against one block of an int8 cache, of which `count` keys are there;
 * found [last - first, found size]. Their queries are in scratch, which has edb_code_scratch bytes for
 * so many rows, on a 64-byte boundary: edb_quantize_queries puts them there, once for all blocks. next:
 * the rows that will be read after these.
 */
void edb_quantize_queries(const edb_attention_job *job, int64_t kv_head, int64_t first,
                          int64_t last, char *scratch);
void edb_attend_code_block(const edb_attention_job *job, int64_t kv_head, int64_t first,
                           int64_t last, int64_t block, int64_t count, edb_next_rows next,
                           float *found, char *scratch);
int64_t edb_code_scratch(int64_t head_dim, int64_t rows);

#endif
