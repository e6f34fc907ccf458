/* Rotary embedding with the store into the cache, and attention: checks and tasks. */
#include <math.h>
#include <string.h>

#include "internal.h"

enum { MAX_HEADS = 1024, MAX_HEAD_DIM = 1024 };

/* Below this many multiply-adds a second thread does not pay. */
enum { WORTH_SHARING = 65536 };

/* Up to this many queries of a key/value head at once, its keys are shared between threads. */
enum { FEW_QUERIES = 16 };

/* Tokens that share one conversion of the keys and values from binary16 or int8. */
enum { TOKENS_TOGETHER = 16 };

edb_status edb_check_shape(const edb_attention_shape *shape) {
    if (shape == NULL) return EDB_ERR_NULL;
    if (shape->n_kv_heads < 1 || shape->n_heads < 1 || shape->n_heads > MAX_HEADS)
        return EDB_ERR_SHAPE;
    if (shape->n_heads % shape->n_kv_heads != 0) return EDB_ERR_SHAPE;
    if (shape->head_dim < 2 || shape->head_dim > MAX_HEAD_DIM || shape->head_dim % 2 != 0)
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

static int64_t cache_row_bytes(int64_t head_dim, int32_t kind) {
    if (kind == EDB_INT8) return edb_int8_row_bytes(head_dim);
    return head_dim * (kind == EDB_F16 ? 2 : 4);
}

int64_t edb_page_bytes(const edb_attention_shape *shape) {
    return 2 * shape->n_kv_heads * (int64_t)EDB_PAGE *
           cache_row_bytes(shape->head_dim, shape->cache_kind);
}

enum { KEYS = 0, VALUES = 1 };

/*
 * The only place that knows where a key or value lies: address of one head's row at one position. The
 * rows of a head follow each other up to the end of the page, which is the end of a block of keys.
 */
static char *cache_row(const edb_attention_job *job, int kind, int64_t head, int64_t position) {
    const edb_attention_shape *shape = &job->shape;
    int64_t row = (kind * shape->n_kv_heads + head) * EDB_PAGE + position % EDB_PAGE;
    return (char *)job->pages[position / EDB_PAGE] + job->offset +
           row * cache_row_bytes(shape->head_dim, shape->cache_kind);
}

static void store_head(const edb_attention_job *job, const float *x, void *row) {
    int64_t head_dim = job->shape.head_dim;
    if (job->shape.cache_kind == EDB_F16) {
        job->kernels->to_f16(x, row, head_dim);
    } else if (job->shape.cache_kind == EDB_INT8) {
        int8_t q[MAX_HEAD_DIM];
        float sx[MAX_HEAD_DIM / EDB_GROUP];
        job->kernels->quantize(x, head_dim, q, sx, 1);
        memcpy(row, q, (size_t)head_dim);
        memcpy((char *)row + head_dim, sx,
               (size_t)(edb_int8_row_bytes(head_dim) - head_dim));
    } else {
        memcpy(row, x, (size_t)head_dim * sizeof *x);
    }
}

static float *head_of(edb_rows rows, int64_t t, int64_t head, int64_t head_dim) {
    return rows.x + t * rows.stride + head * head_dim;
}

/* y = a head as attention wants it, for a token at `position`: normed, turned; y may be x. */
static void turn(const edb_attention_job *job, const float *x, const float *norm, const float *cos,
                 const float *sin, int64_t position, float *y) {
    int64_t head_dim = job->shape.head_dim, half = head_dim / 2;
    if (norm != NULL) {
        job->kernels->rmsnorm(x, norm, y, head_dim, job->eps);
        x = y;
    }
    if (cos != NULL)
        job->kernels->rotate(x, cos + position * half, sin + position * half, y, head_dim);
}

/* A task is a key/value head of one token, with the queries that read it. */
static void store_heads(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t head_dim = shape->head_dim, heads = shape->n_heads / shape->n_kv_heads;
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t t = task / shape->n_kv_heads, kv_head = task % shape->n_kv_heads;
        int64_t position = job->pos + t;
        for (int64_t head = kv_head * heads; head < (kv_head + 1) * heads; head++) {
            float *q = head_of(job->q, t, head, head_dim);
            turn(job, q, job->q_norm, job->q_cos, job->q_sin, position, q);
        }
        const float *k = head_of(job->k, t, kv_head, head_dim);
        float turned[MAX_HEAD_DIM];
        if (job->k_norm != NULL || job->cos != NULL) {
            turn(job, k, job->k_norm, job->cos, job->sin, position, turned);
            k = turned;
        }
        store_head(job, k, cache_row(job, KEYS, kv_head, position));
        store_head(job, head_of(job->v, t, kv_head, head_dim),
                   cache_row(job, VALUES, kv_head, position));
    }
}

int32_t edb_store_stages(const edb_context *context, edb_attention_job *job, edb_stage *stages) {
    int64_t tasks = job->n * job->shape.n_kv_heads;
    int64_t chunk = job->n > 1 ? edb_chunk(context->pool, tasks) : tasks;
    stages[0] = (edb_stage){store_heads, job, tasks, chunk};
    return 1;
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
static int64_t heads_per_kv(const edb_attention_shape *shape) {
    return shape->n_heads / shape->n_kv_heads;
}

static int has_few_rows(const edb_attention_shape *shape, int64_t n) {
    return n == 1 || n * heads_per_kv(shape) <= FEW_QUERIES;
}

/* Floats of what one row found: whole cache lines. */
static int64_t found_size(const edb_attention_shape *shape) {
    return EDB_FOUND_HEADER + edb_ceil_div(shape->head_dim, EDB_LANES) * EDB_LANES;
}

static int64_t block_floats(const edb_attention_shape *shape) {
    return (int64_t)EDB_PAGE * shape->head_dim;
}

static int64_t thread_floats(const edb_attention_shape *shape) {
    return 2 * TOKENS_TOGETHER * heads_per_kv(shape) * found_size(shape) + 2 * block_floats(shape);
}

uint64_t edb_attention_scratch(const edb_context *context, const edb_attention_shape *shape,
                               int64_t n, int64_t positions) {
    int64_t blocks = edb_ceil_div(positions, EDB_PAGE);
    int64_t floats = edb_pool_threads(context->pool) * thread_floats(shape);
    if (has_few_rows(shape, n)) {
        floats = blocks * n * shape->n_heads * found_size(shape);
        if (shape->cache_kind == EDB_INT8)
            floats += edb_pool_threads(context->pool) * 2 * block_floats(shape);
    }
    return (uint64_t)floats * sizeof(float) + 63;
}

/* The first position whose key token t sees. */
static int64_t first_key(const edb_attention_job *job, int64_t t) {
    return edb_max(0, job->pos + t + 1 - job->window);
}

/*
 * Rows first..last-1 of a head against the keys of one block; found [last - first, found_size]. Rows
 * go together where they begin at the same key: all of them, but in the block where a window opens.
 */
static void attend_block(const edb_attention_job *job, int64_t kv_head, int64_t first, int64_t last,
                         int64_t block, edb_attend keys, float *found) {
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = heads_per_kv(shape), key = block * EDB_PAGE;
    int64_t row_bytes = cache_row_bytes(shape->head_dim, keys.cache_kind);
    const char *k = keys.k, *v = keys.v;
    keys.head_dim = shape->head_dim;
    keys.scale = job->scale;
    keys.leans = job->slopes != NULL;
    keys.cap = job->cap;
    for (int64_t row = first; row < last;) {
        int64_t begin = -1;
        for (keys.rows = 0; keys.rows < EDB_ATTEND_ROWS && row < last; row++) {
            int64_t t = row / heads, end = edb_min(job->pos + t + 1 - key, EDB_PAGE);
            int64_t from = edb_max(0, first_key(job, t) - key);
            if (from >= end) continue; /* the token sees nothing of this block */
            if (keys.rows > 0 && from != begin) break;
            begin = from;
            int64_t head = kv_head * heads + row % heads;
            keys.q[keys.rows] = head_of(job->q, t, head, shape->head_dim);
            keys.slope[keys.rows] = keys.leans ? job->slopes[head] : 0.0f;
            keys.away[keys.rows] = job->pos + t - key - from;
            keys.keys[keys.rows] = end - from;
            keys.found[keys.rows++] = found + (row - first) * found_size(shape);
        }
        if (keys.rows == 0) return;
        keys.k = k + begin * row_bytes;
        keys.v = v + begin * row_bytes;
        job->kernels->attend(&keys);
    }
}

static float *out_row(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = heads_per_kv(&job->shape);
    return head_of(job->out, row / heads, kv_head * heads + row % heads, job->shape.head_dim);
}

/* The output of a row of a head, from what it found in all its keys. */
static void finish(const edb_attention_job *job, int64_t kv_head, int64_t row, float *found) {
    int64_t heads = heads_per_kv(&job->shape), head_dim = job->shape.head_dim;
    if (job->sinks != NULL)
        job->kernels->sink_found(found, job->sinks[kv_head * heads + row % heads], head_dim);
    job->kernels->finish_found(found, out_row(job, kv_head, row), head_dim);
}

/* What row `row` of a head found in a block, where rows are few. */
static float *found_in_block(const edb_attention_job *job, int64_t kv_head, int64_t block,
                             int64_t row) {
    int64_t rows = job->n * heads_per_kv(&job->shape), at = block - job->first_block;
    return (float *)(void *)job->scratch +
           ((kv_head * job->blocks + at) * rows + row) * found_size(&job->shape);
}

/* float32 keys or values of a block, converted if need be. */
static const void *widened(const edb_attention_job *job, int kind, int64_t kv_head, int64_t key,
                           int64_t count, float *wide) {
    const void *rows = cache_row(job, kind, kv_head, key);
    if (job->shape.cache_kind == EDB_F32) return rows;
    int64_t head_dim = job->shape.head_dim;
    if (job->shape.cache_kind == EDB_INT8) {
        job->kernels->widen_int8(rows, wide, count, head_dim);
    } else {
        job->kernels->from_f16(rows, wide, count * head_dim);
    }
    return wide;
}

static void attend_few(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t block = job->first_block + task / shape->n_kv_heads;
        int64_t key = block * EDB_PAGE;
        edb_attend keys = {
            .cache_kind = shape->cache_kind,
            .k = cache_row(job, KEYS, kv_head, key),
            .v = cache_row(job, VALUES, kv_head, key),
        };
        if (shape->cache_kind == EDB_INT8) { /* binary16 widens as it is loaded */
            int64_t count = edb_min(EDB_PAGE, job->pos + job->n - key);
            int64_t found = job->blocks * job->n * shape->n_heads * found_size(shape);
            float *k = (float *)(void *)job->scratch + found + worker * 2 * block_floats(shape);
            keys.cache_kind = EDB_F32;
            keys.k = widened(job, KEYS, kv_head, key, count, k);
            keys.v = widened(job, VALUES, kv_head, key, count, k + block_floats(shape));
        }
        attend_block(job, kv_head, 0, job->n * heads_per_kv(shape), block, keys,
                     found_in_block(job, kv_head, block, 0));
    }
}

/* A task is one row of one head. */
static void join_blocks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t rows = job->n * heads_per_kv(shape);
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task / rows, row = task % rows;
        int64_t t = row / heads_per_kv(shape), keys = job->pos + t + 1;
        int64_t first = first_key(job, t) / EDB_PAGE;
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
    int64_t heads = heads_per_kv(shape), size = found_size(shape);
    float *k = (float *)(void *)job->scratch + worker * thread_floats(shape);
    float *v = k + block_floats(shape), *found = v + block_floats(shape);
    float *in_block = found + TOKENS_TOGETHER * heads * size;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t last = job->n - task / shape->n_kv_heads * TOKENS_TOGETHER;
        int64_t first = edb_max(0, last - TOKENS_TOGETHER), keys = job->pos + last;
        int64_t start = first_key(job, first) / EDB_PAGE * EDB_PAGE;
        int start_together = first_key(job, last - 1) < start + EDB_PAGE;
        for (int64_t key = start; key < keys; key += EDB_PAGE) {
            int64_t count = edb_min(EDB_PAGE, keys - key);
            int is_first = key == start && start_together; /* of every token */
            edb_attend wide = {.cache_kind = EDB_F32,
                               .k = widened(job, KEYS, kv_head, key, count, k),
                               .v = widened(job, VALUES, kv_head, key, count, v)};
            attend_block(job, kv_head, first * heads, last * heads, key / EDB_PAGE, wide,
                         is_first ? found : in_block);
            for (int64_t row = first * heads; !is_first && row < last * heads; row++) {
                int64_t at = (row - first * heads) * size, t = row / heads;
                if (job->pos + t + 1 <= key || first_key(job, t) >= key + EDB_PAGE) continue;
                if (first_key(job, t) >= key) {
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
    job->first_block = first_key(job, 0) / EDB_PAGE;
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
