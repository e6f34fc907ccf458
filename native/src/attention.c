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

static uintptr_t cache_alignment(const edb_attention_shape *shape) {
    return shape->cache_kind == EDB_INT8 ? 1 : shape->cache_kind == EDB_F16 ? 2 : 4;
}

edb_status edb_check_attention(const edb_attention_shape *shape, const void *k_cache,
                               const void *v_cache, int64_t n, int64_t pos) {
    edb_status status = edb_check_shape(shape);
    if (status != EDB_OK) return status;
    status = check_span(shape, n, pos);
    if (status != EDB_OK) return status;
    if (k_cache == NULL || v_cache == NULL) return EDB_ERR_NULL;
    uintptr_t element = cache_alignment(shape);
    if (!edb_aligned(k_cache, element) || !edb_aligned(v_cache, element)) return EDB_ERR_ALIGN;
    return EDB_OK;
}

static int64_t qkv_size(const edb_attention_shape *shape) {
    return ((int64_t)shape->n_heads + 2 * (int64_t)shape->n_kv_heads) * shape->head_dim;
}

/* Address of a cache row, that is of one head at one position. */
static char *cache_row(void *cache, const edb_attention_shape *shape, int64_t head,
                       int64_t position) {
    int64_t bytes = shape->head_dim * (shape->cache_kind == EDB_F16 ? 2 : 4);
    if (shape->cache_kind == EDB_INT8) bytes = edb_int8_row_bytes(shape->head_dim);
    return (char *)cache + (head * shape->capacity + position) * bytes;
}

static void store_head(const edb_attention_job *job, const float *x, void *row) {
    int64_t head_dim = job->shape->head_dim;
    if (job->shape->cache_kind == EDB_F16) {
        job->kernels->to_f16(x, row, head_dim);
    } else if (job->shape->cache_kind == EDB_INT8) {
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

/* Head `head` of token t; keys follow the queries, values the keys. */
static float *head_of(const edb_attention_job *job, int64_t t, int64_t head) {
    return job->qkv + t * qkv_size(job->shape) + head * job->shape->head_dim;
}

/* A task is a key/value head of one token, with the queries that read it. */
static void rope_heads(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    int64_t head_dim = shape->head_dim, heads = shape->n_heads / shape->n_kv_heads;
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t t = task / shape->n_kv_heads, kv_head = task % shape->n_kv_heads;
        int64_t position = job->pos + t;
        const float *cos = job->cos + position * (head_dim / 2);
        const float *sin = job->sin + position * (head_dim / 2);
        for (int64_t head = kv_head * heads; head < (kv_head + 1) * heads; head++) {
            float *x = head_of(job, t, head);
            job->kernels->rotate(x, cos, sin, x, head_dim);
        }
        float rotated[MAX_HEAD_DIM];
        job->kernels->rotate(head_of(job, t, shape->n_heads + kv_head), cos, sin, rotated,
                             head_dim);
        store_head(job, rotated, cache_row(job->k_cache, shape, kv_head, position));
        store_head(job, head_of(job, t, shape->n_heads + shape->n_kv_heads + kv_head),
                   cache_row(job->v_cache, shape, kv_head, position));
    }
}

int32_t edb_rope_stages(const edb_context *context, edb_attention_job *job, edb_stage *stages) {
    int64_t tasks = job->n * job->shape->n_kv_heads;
    int64_t chunk = job->n > 1 ? edb_chunk(context->pool, tasks) : tasks;
    stages[0] = (edb_stage){rope_heads, job, tasks, chunk};
    return 1;
}

edb_status edb_rope(const edb_context *context, const edb_attention_shape *shape, float *qkv,
                    const float *cos, const float *sin, void *k_cache, void *v_cache, int64_t n,
                    int64_t pos) {
    if (context == NULL || qkv == NULL || cos == NULL || sin == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_attention(shape, k_cache, v_cache, n, pos);
    if (status != EDB_OK) return status;
    if (!edb_aligned(qkv, 4) || !edb_aligned(cos, 4) || !edb_aligned(sin, 4)) return EDB_ERR_ALIGN;
    edb_attention_job job = {.kernels = context->isa->kernels,
                             .shape = shape,
                             .qkv = qkv,
                             .cos = cos,
                             .sin = sin,
                             .k_cache = k_cache,
                             .v_cache = v_cache,
                             .n = n,
                             .pos = pos};
    edb_stage stage;
    edb_rope_stages(context, &job, &stage);
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
    return (int64_t)EDB_KEY_BLOCK * shape->head_dim;
}

static int64_t thread_floats(const edb_attention_shape *shape) {
    return 2 * TOKENS_TOGETHER * heads_per_kv(shape) * found_size(shape) + 2 * block_floats(shape);
}

uint64_t edb_attention_scratch(const edb_context *context, const edb_attention_shape *shape,
                               int64_t n, int64_t positions) {
    int64_t blocks = edb_ceil_div(positions, EDB_KEY_BLOCK);
    int64_t floats = edb_pool_threads(context->pool) * thread_floats(shape);
    if (has_few_rows(shape, n)) {
        floats = blocks * n * shape->n_heads * found_size(shape);
        if (shape->cache_kind == EDB_INT8)
            floats += edb_pool_threads(context->pool) * 2 * block_floats(shape);
    }
    return (uint64_t)floats * sizeof(float) + 63;
}

/* Rows first..last-1 of a head against the keys of one block; found [last - first, found_size]. */
static void attend_block(const edb_attention_job *job, int64_t kv_head, int64_t first, int64_t last,
                         int64_t block, edb_attend keys, float *found) {
    const edb_attention_shape *shape = job->shape;
    int64_t heads = heads_per_kv(shape), key = block * EDB_KEY_BLOCK;
    keys.head_dim = shape->head_dim;
    keys.scale = 1.0f / sqrtf((float)shape->head_dim);
    for (int64_t row = first; row < last;) {
        for (keys.rows = 0; keys.rows < EDB_ATTEND_ROWS && row < last; row++) {
            int64_t t = row / heads, seen = job->pos + t + 1 - key;
            if (seen <= 0) continue; /* only later tokens see this block */
            keys.q[keys.rows] = head_of(job, t, kv_head * heads + row % heads);
            keys.keys[keys.rows] = edb_min(seen, EDB_KEY_BLOCK);
            keys.found[keys.rows++] = found + (row - first) * found_size(shape);
        }
        if (keys.rows > 0) job->kernels->attend(&keys);
    }
}

static float *out_row(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = heads_per_kv(job->shape);
    int64_t head = row / heads * job->shape->n_heads + kv_head * heads + row % heads;
    return job->out + head * job->shape->head_dim;
}

/* What row `row` of a head found in a block, where rows are few. */
static float *found_in_block(const edb_attention_job *job, int64_t kv_head, int64_t block,
                             int64_t row) {
    int64_t rows = job->n * heads_per_kv(job->shape);
    return (float *)(void *)job->scratch +
           ((kv_head * job->blocks + block) * rows + row) * found_size(job->shape);
}

/* float32 keys or values of a block, converted if need be. */
static const void *widened(const edb_attention_job *job, void *cache, int64_t kv_head, int64_t key,
                           int64_t count, float *wide) {
    const void *rows = cache_row(cache, job->shape, kv_head, key);
    if (job->shape->cache_kind == EDB_F32) return rows;
    int64_t head_dim = job->shape->head_dim;
    if (job->shape->cache_kind == EDB_INT8) {
        job->kernels->widen_int8(rows, wide, count, head_dim);
    } else {
        job->kernels->from_f16(rows, wide, count * head_dim);
    }
    return wide;
}

static void attend_few(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads, block = task / shape->n_kv_heads;
        int64_t key = block * EDB_KEY_BLOCK;
        edb_attend keys = {
            .cache_kind = shape->cache_kind,
            .k = cache_row(job->k_cache, shape, kv_head, key),
            .v = cache_row(job->v_cache, shape, kv_head, key),
        };
        if (shape->cache_kind == EDB_INT8) { /* binary16 widens as it is loaded */
            int64_t count = edb_min(EDB_KEY_BLOCK, job->pos + job->n - key);
            int64_t found = job->blocks * job->n * shape->n_heads * found_size(shape);
            float *k = (float *)(void *)job->scratch + found + worker * 2 * block_floats(shape);
            keys.cache_kind = EDB_F32;
            keys.k = widened(job, job->k_cache, kv_head, key, count, k);
            keys.v = widened(job, job->v_cache, kv_head, key, count, k + block_floats(shape));
        }
        attend_block(job, kv_head, 0, job->n * heads_per_kv(shape), block, keys,
                     found_in_block(job, kv_head, block, 0));
    }
}

/* A task is one row of one head. */
static void join_blocks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    int64_t rows = job->n * heads_per_kv(shape);
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task / rows, row = task % rows;
        int64_t keys = job->pos + row / heads_per_kv(shape) + 1;
        float *found = found_in_block(job, kv_head, 0, row);
        for (int64_t block = 1; block * EDB_KEY_BLOCK < keys; block++)
            job->kernels->merge_found(found, found_in_block(job, kv_head, block, row),
                                      shape->head_dim);
        job->kernels->finish_found(found, out_row(job, kv_head, row), shape->head_dim);
    }
}

static void attend_many(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    int64_t heads = heads_per_kv(shape), size = found_size(shape);
    float *k = (float *)(void *)job->scratch + worker * thread_floats(shape);
    float *v = k + block_floats(shape), *found = v + block_floats(shape);
    float *in_block = found + TOKENS_TOGETHER * heads * size;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t last = job->n - task / shape->n_kv_heads * TOKENS_TOGETHER;
        int64_t first = edb_max(0, last - TOKENS_TOGETHER), keys = job->pos + last;
        for (int64_t key = 0; key < keys; key += EDB_KEY_BLOCK) {
            int64_t count = edb_min(EDB_KEY_BLOCK, keys - key);
            edb_attend wide = {.cache_kind = EDB_F32,
                               .k = widened(job, job->k_cache, kv_head, key, count, k),
                               .v = widened(job, job->v_cache, kv_head, key, count, v)};
            attend_block(job, kv_head, first * heads, last * heads, key / EDB_KEY_BLOCK, wide,
                         key == 0 ? found : in_block);
            for (int64_t row = first * heads; key > 0 && row < last * heads; row++) {
                int64_t at = (row - first * heads) * size;
                if (job->pos + row / heads + 1 > key)
                    job->kernels->merge_found(found + at, in_block + at, shape->head_dim);
            }
        }
        for (int64_t row = first * heads; row < last * heads; row++)
            job->kernels->finish_found(found + (row - first * heads) * size,
                                       out_row(job, kv_head, row), shape->head_dim);
    }
}

int32_t edb_attention_stages(const edb_context *context, edb_attention_job *job, void *scratch,
                             edb_stage *stages) {
    const edb_attention_shape *shape = job->shape;
    (void)context;
    job->scratch = edb_align_up(scratch);
    job->blocks = edb_ceil_div(job->pos + job->n, EDB_KEY_BLOCK);
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
                         const float *qkv, const void *k_cache, const void *v_cache, float *out,
                         int64_t n, int64_t pos, void *scratch, size_t scratch_bytes) {
    if (context == NULL || qkv == NULL || out == NULL || scratch == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_attention(shape, k_cache, v_cache, n, pos);
    if (status != EDB_OK) return status;
    if (!edb_aligned(qkv, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    if (edb_attention_scratch(context, shape, n, pos + n) > scratch_bytes) return EDB_ERR_SCRATCH;

    edb_attention_job job = {.kernels = context->isa->kernels,
                             .shape = shape,
                             .qkv = (float *)(uintptr_t)qkv,
                             .k_cache = (void *)(uintptr_t)k_cache,
                             .v_cache = (void *)(uintptr_t)v_cache,
                             .out = out,
                             .n = n,
                             .pos = pos};
    edb_stage stages[2];
    int32_t count = edb_attention_stages(context, &job, scratch, stages);
    int64_t work = n * (pos + n) * shape->n_heads * shape->head_dim;
    edb_pool_run_stages(work < WORTH_SHARING ? NULL : context->pool, stages, count);
    return EDB_OK;
}
