/* Rotary embedding and attention: checks and tasks; the store into the cache is attention_store.c. */
#include <math.h>
#include <string.h>

#include "attention.h"

enum { MAX_HEADS = 1024 };

/* Below this many multiply-adds a second thread does not pay. */
enum { WORTH_SHARING = 65536 };

/* Tokens that share one conversion of the keys and values from binary16 or int8. */
enum { TOKENS_TOGETHER = 16 };

edb_status edb_check_shape(const edb_attention_shape *shape) {
    if (shape == NULL) return EDB_ERR_NULL;
    if (shape->n_kv_heads < 1 || shape->n_heads < 1 || shape->n_heads > MAX_HEADS)
        return EDB_ERR_SHAPE;
    if (shape->n_heads % shape->n_kv_heads != 0) return EDB_ERR_SHAPE;
    if (shape->head_dim < 2 || shape->head_dim > EDB_MAX_HEAD_DIM || shape->head_dim % 2 != 0)
        return EDB_ERR_SHAPE;
    if (shape->capacity < 1 || shape->capacity > EDB_MAX_TOKENS) return EDB_ERR_SHAPE;
    if (shape->cache_kind != EDB_F32 && shape->cache_kind != EDB_F16 &&
        shape->cache_kind != EDB_INT8)
        return EDB_ERR_KIND;
    return EDB_OK;
}

static edb_status check_span(const edb_attention_shape *shape, int64_t n, int64_t pos) {
    if (n < 1 || n > EDB_MAX_TOKENS) return EDB_ERR_SHAPE;
    if (pos < 0 || pos > shape->capacity - n) return EDB_ERR_RANGE;
    return EDB_OK;
}

edb_status edb_check_pages(void *const *pages, int64_t positions) {
    if (pages == NULL) return EDB_ERR_NULL;
    for (int64_t i = 0; i * EDB_PAGE < positions; i++) {
        if (pages[i] == NULL) return EDB_ERR_NULL;
        if (!edb_aligned(pages[i], 4)) return EDB_ERR_ALIGN;
    }
    return EDB_OK;
}

edb_status edb_check_attention(const edb_attention_shape *shape, int64_t n, int64_t pos) {
    edb_status status = edb_check_shape(shape);
    return status != EDB_OK ? status : check_span(shape, n, pos);
}

static int64_t qkv_size(const edb_attention_shape *shape) {
    return ((int64_t)shape->n_heads + 2 * (int64_t)shape->n_kv_heads) * shape->head_dim;
}

int64_t edb_page_bytes(const edb_attention_shape *shape) {
    return 2 * shape->n_kv_heads * (int64_t)EDB_PAGE *
           edb_cache_row_bytes(shape->head_dim, shape->cache_kind);
}

/* The rows of qkv [n, (n_heads + 2*n_kv_heads) * head_dim], and what a call of its own says. */
static edb_attention_job job_of(const edb_context *context, const edb_attention_shape *shape,
                                float *qkv, void *const *pages, int64_t n, int64_t pos) {
    int64_t q_size = (int64_t)shape->n_heads * shape->head_dim, stride = qkv_size(shape);
    int64_t kv_size = (int64_t)shape->n_kv_heads * shape->head_dim;
    return (edb_attention_job){.kernels = context->isa->kernels,
                               .shape = *shape,
                               .q = {qkv, stride},
                               .k = {qkv + q_size, stride},
                               .v = {qkv + q_size + kv_size, stride},
                               .pages = pages,
                               .n = n,
                               .pos = pos,
                               .scale = 1.0f / sqrtf((float)shape->head_dim),
                               .window = EDB_MAX_TOKENS};
}

edb_status edb_rope(const edb_context *context, const edb_attention_shape *shape, float *qkv,
                    const float *cos, const float *sin, void *const *pages, int64_t n,
                    int64_t pos) {
    if (context == NULL || qkv == NULL || cos == NULL || sin == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_attention(shape, n, pos);
    if (status == EDB_OK) status = edb_check_pages(pages, pos + n);
    if (status != EDB_OK) return status;
    if (!edb_aligned(qkv, 4) || !edb_aligned(cos, 4) || !edb_aligned(sin, 4)) return EDB_ERR_ALIGN;
    edb_attention_job job = job_of(context, shape, qkv, pages, n, pos);
    job.cos = job.q_cos = cos;
    job.sin = job.q_sin = sin;
    edb_stage stage;
    edb_store_stages(context, &job, &stage);
    edb_pool *pool = n * qkv_size(shape) < WORTH_SHARING ? NULL : context->pool;
    edb_pool_run_stages(pool, &stage, 1);
    return EDB_OK;
}

/*
 * The queries of a key/value head are its rows, token by token and within a token head by head.
 * There are two ways to cut the work; both take the same blocks of keys in the same order.
 *
 *   few rows:  a task is one block of keys; what the rows found in it goes to scratch, and a second
 *              stage joins the blocks
 *   many rows: a task is all keys of TOKENS_TOGETHER tokens. The longest, of the last tokens, come
 *              first. Scratch of a thread: keys and values of a block as float32, what the rows
 *              found in all blocks before, and in this one
 */
static int has_few_rows(const edb_attention_shape *shape, int64_t n) {
    return n == 1 || n * edb_heads_per_kv(shape) <= EDB_FEW_QUERIES;
}

static int64_t block_floats(const edb_attention_shape *shape) {
    return (int64_t)EDB_PAGE * shape->head_dim;
}

/* What is found in every block, where rows are few. */
static int64_t found_floats(const edb_attention_shape *shape, int64_t n, int64_t blocks) {
    return has_few_rows(shape, n) ? blocks * n * shape->n_heads * edb_found_size(shape) : 0;
}

/* A block, as float32 or as edb_attend_codes wants it; then, where rows are many, what they found. */
static int64_t thread_floats(const edb_attention_shape *shape, int64_t n) {
    int64_t rows = (has_few_rows(shape, n) ? n : TOKENS_TOGETHER) * edb_heads_per_kv(shape);
    int64_t floats = 2 * block_floats(shape);
    if (shape->cache_kind == EDB_INT8)
        floats = edb_code_scratch(shape->head_dim, rows) / (int64_t)sizeof(float);
    return has_few_rows(shape, n) ? floats : floats + 2 * rows * edb_found_size(shape);
}

uint64_t edb_attention_scratch(const edb_context *context, const edb_attention_shape *shape,
                               int64_t n, int64_t positions) {
    int64_t blocks = edb_ceil_div(positions, EDB_PAGE);
    int64_t floats = found_floats(shape, n, blocks), threads = edb_pool_threads(context->pool);
    if (!has_few_rows(shape, n) || shape->cache_kind == EDB_INT8)
        floats += threads * thread_floats(shape, n);
    return (uint64_t)floats * sizeof(float) + 63;
}

/*
 * Rows first..last-1 of a head against the keys of one block; found [last - first, edb_found_size]. Rows
 * go together where they begin at the same key: all of them, but in the block where a window opens.
 */
static void attend_block(const edb_attention_job *job, int64_t kv_head, int64_t first, int64_t last,
                         int64_t block, edb_attend keys, float *found) {
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), key = block * EDB_PAGE;
    int64_t row_bytes = edb_cache_row_bytes(shape->head_dim, keys.cache_kind);
    const char *k = keys.k, *v = keys.v;
    keys.head_dim = shape->head_dim;
    keys.scale = job->scale;
    keys.leans = job->slopes != NULL;
    keys.cap = job->cap;
    for (int64_t row = first; row < last;) {
        int64_t begin = -1;
        for (keys.rows = 0; keys.rows < EDB_ATTEND_ROWS && row < last; row++) {
            int64_t t = row / heads, end = edb_min(job->pos + t + 1 - key, EDB_PAGE);
            int64_t from = edb_max(0, edb_first_key(job, t) - key);
            if (from >= end) continue; /* the token sees nothing of this block */
            if (keys.rows > 0 && from != begin) break;
            begin = from;
            int64_t head = kv_head * heads + row % heads;
            keys.q[keys.rows] = edb_head_of(job->q, t, head, shape->head_dim);
            keys.slope[keys.rows] = keys.leans ? job->slopes[head] : 0.0f;
            keys.away[keys.rows] = job->pos + t - key - from;
            keys.keys[keys.rows] = end - from;
            keys.found[keys.rows++] = found + (row - first) * edb_found_size(shape);
        }
        if (keys.rows == 0) return;
        keys.k = k + begin * row_bytes;
        keys.v = v + begin * row_bytes;
        job->kernels->attend(&keys);
        keys.next_k = keys.next_v = (edb_coming){0}; /* the first rows have fetched them */
    }
}

static float *out_row(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = edb_heads_per_kv(&job->shape);
    return edb_head_of(job->out, row / heads, kv_head * heads + row % heads, job->shape.head_dim);
}

/* The output of a row of a head, from what it found in all its keys. */
static void finish(const edb_attention_job *job, int64_t kv_head, int64_t row, float *found) {
    int64_t heads = edb_heads_per_kv(&job->shape), head_dim = job->shape.head_dim;
    if (job->sinks != NULL)
        job->kernels->sink_found(found, job->sinks[kv_head * heads + row % heads], head_dim);
    job->kernels->finish_found(found, out_row(job, kv_head, row), head_dim);
}

/* What row `row` of a head found in a block, where rows are few. */
static float *found_in_block(const edb_attention_job *job, int64_t kv_head, int64_t block,
                             int64_t row) {
    int64_t rows = job->n * edb_heads_per_kv(&job->shape), at = block - job->first_block;
    return (float *)(void *)job->scratch +
           ((kv_head * job->blocks + at) * rows + row) * edb_found_size(&job->shape);
}

/* A thread's scratch, behind what is found in every block where rows are few. */
static float *thread_scratch(const edb_attention_job *job, int32_t worker) {
    return (float *)(void *)job->scratch + found_floats(&job->shape, job->n, job->blocks) +
           worker * thread_floats(&job->shape, job->n);
}

/* float32 keys or values of a block, converted if need be. */
static const void *widened(const edb_attention_job *job, int kind, int64_t kv_head, int64_t key,
                           int64_t count, float *wide) {
    const void *rows = edb_cache_row(job, kind, kv_head, key);
    if (job->shape.cache_kind == EDB_F32) return rows;
    job->kernels->from_f16(rows, wide, count * job->shape.head_dim);
    return wide;
}

/* The keys and values of a task of attend_few, or none behind the last. */
static edb_next_rows few_rows(const edb_attention_job *job, int64_t task) {
    int64_t block = job->first_block + task / job->shape.n_kv_heads;
    if (task == job->blocks * job->shape.n_kv_heads) return (edb_next_rows){0};
    return edb_rows_from(job, task % job->shape.n_kv_heads, block * EDB_PAGE);
}

static void attend_few(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t rows = job->n * edb_heads_per_kv(shape);
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t block = job->first_block + task / shape->n_kv_heads;
        int64_t key = block * EDB_PAGE, count = edb_min(EDB_PAGE, job->pos + job->n - key);
        float *found = found_in_block(job, kv_head, block, 0);
        edb_next_rows next = few_rows(job, task + 1);
        if (shape->cache_kind == EDB_INT8) {
            edb_quantize_queries(job, kv_head, 0, rows, (char *)thread_scratch(job, worker));
            edb_attend_code_block(job, kv_head, 0, rows, block, count, next, found,
                              (char *)thread_scratch(job, worker));
            continue;
        }
        edb_attend keys = { /* binary16 widens as it is loaded */
            .cache_kind = shape->cache_kind,
            .k = edb_cache_row(job, EDB_KEYS, kv_head, key),
            .v = edb_cache_row(job, EDB_VALUES, kv_head, key),
            .next_k = next.k,
            .next_v = next.v,
        };
        attend_block(job, kv_head, 0, rows, block, keys, found);
    }
}

/* A task is one row of one head. */
static void join_blocks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t rows = job->n * edb_heads_per_kv(shape);
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task / rows, row = task % rows;
        int64_t t = row / edb_heads_per_kv(shape), keys = job->pos + t + 1;
        int64_t first = edb_first_key(job, t) / EDB_PAGE;
        float *found = found_in_block(job, kv_head, first, row);
        for (int64_t block = first + 1; block * EDB_PAGE < keys; block++)
            job->kernels->merge_found(found, found_in_block(job, kv_head, block, row),
                                      shape->head_dim);
        finish(job, kv_head, row, found);
    }
}

static void attend_many(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), size = edb_found_size(shape);
    float *k = thread_scratch(job, worker), *v = k + block_floats(shape);
    float *in_block = k + thread_floats(shape, job->n) - TOKENS_TOGETHER * heads * size;
    float *found = in_block - TOKENS_TOGETHER * heads * size;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t last = job->n - task / shape->n_kv_heads * TOKENS_TOGETHER;
        int64_t first = edb_max(0, last - TOKENS_TOGETHER), keys = job->pos + last;
        int64_t start = edb_first_key(job, first) / EDB_PAGE * EDB_PAGE;
        int start_together = edb_first_key(job, last - 1) < start + EDB_PAGE;
        if (shape->cache_kind == EDB_INT8)
            edb_quantize_queries(job, kv_head, first * heads, last * heads, (char *)k);
        for (int64_t key = start; key < keys; key += EDB_PAGE) {
            int64_t count = edb_min(EDB_PAGE, keys - key);
            int is_first = key == start && start_together; /* of every token */
            float *here = is_first ? found : in_block;
            if (shape->cache_kind == EDB_INT8) {
                int64_t after = key + EDB_PAGE;
                edb_next_rows next = {0};
                if (after < keys) next = edb_rows_from(job, kv_head, after);
                edb_attend_code_block(job, kv_head, first * heads, last * heads, key / EDB_PAGE, count,
                                  next, here, (char *)k);
            } else {
                edb_attend wide = {.cache_kind = EDB_F32,
                                   .k = widened(job, EDB_KEYS, kv_head, key, count, k),
                                   .v = widened(job, EDB_VALUES, kv_head, key, count, v)};
                attend_block(job, kv_head, first * heads, last * heads, key / EDB_PAGE, wide, here);
            }
            for (int64_t row = first * heads; !is_first && row < last * heads; row++) {
                int64_t at = (row - first * heads) * size, t = row / heads;
                if (job->pos + t + 1 <= key || edb_first_key(job, t) >= key + EDB_PAGE) continue;
                if (edb_first_key(job, t) >= key) {
                    memcpy(found + at, in_block + at, (size_t)size * sizeof *found);
                } else {
                    job->kernels->merge_found(found + at, in_block + at, shape->head_dim);
                }
            }
        }
        for (int64_t row = first * heads; row < last * heads; row++)
            finish(job, kv_head, row, found + (row - first * heads) * size);
    }
}

int32_t edb_attention_stages(edb_attention_job *job, void *scratch, edb_stage *stages) {
    const edb_attention_shape *shape = &job->shape;
    job->scratch = edb_align_up(scratch);
    job->first_block = edb_first_key(job, 0) / EDB_PAGE;
    job->blocks = edb_ceil_div(job->pos + job->n, EDB_PAGE) - job->first_block;
    if (!has_few_rows(shape, job->n)) {
        int64_t tasks = edb_ceil_div(job->n, TOKENS_TOGETHER) * shape->n_kv_heads;
        stages[0] = (edb_stage){attend_many, job, tasks, 1};
        return 1;
    }
    int64_t rows = job->n * shape->n_heads;
    stages[0] = (edb_stage){attend_few, job, job->blocks * shape->n_kv_heads, 1};
    stages[1] = (edb_stage){join_blocks, job, rows, rows};
    return 2;
}

size_t edb_attention_scratch_bytes(const edb_context *context, const edb_attention_shape *shape,
                                   int64_t n, int64_t positions) {
    if (context == NULL || edb_check_shape(shape) != EDB_OK) return 0;
    if (n < 1 || positions < n || positions > shape->capacity) return 0;
    uint64_t bytes = edb_attention_scratch(context, shape, n, positions);
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

edb_status edb_attention(const edb_context *context, const edb_attention_shape *shape,
                         const float *qkv, void *const *pages, float *out, int64_t n, int64_t pos,
                         void *scratch, size_t scratch_bytes) {
    if (context == NULL || qkv == NULL || out == NULL || scratch == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_attention(shape, n, pos);
    if (status == EDB_OK) status = edb_check_pages(pages, pos + n);
    if (status != EDB_OK) return status;
    if (!edb_aligned(qkv, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    if (edb_attention_scratch(context, shape, n, pos + n) > scratch_bytes) return EDB_ERR_SCRATCH;

    float *rows = (float *)(uintptr_t)qkv; /* queries are only read here */
    edb_attention_job job = job_of(context, shape, rows, pages, n, pos);
    job.out = (edb_rows){out, (int64_t)shape->n_heads * shape->head_dim};
    edb_stage stages[2];
    int32_t count = edb_attention_stages(&job, scratch, stages);
    int64_t work = n * (pos + n) * shape->n_heads * shape->head_dim;
    edb_pool_run_stages(work < WORTH_SHARING ? NULL : context->pool, stages, count);
    return EDB_OK;
}
