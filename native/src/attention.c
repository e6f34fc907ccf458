/* Rotary embedding with the store into the cache, and attention: checks and tasks. */
#include <math.h>
#include <string.h>

#include "internal.h"

enum { MAX_HEADS = 1024, MAX_HEAD_DIM = 1024 };

/* Below this many multiply-adds a second thread does not pay. */
enum { WORTH_SHARING = 65536 };

typedef struct {
    const edb_kernels *kernels;
    const edb_attention_shape *shape;
    float *qkv; /* edb_attention only reads it */
    const float *cos, *sin;
    void *k_cache, *v_cache;
    float *out;
    float *scores; /* [threads, EDB_ATTEND_ROWS, stride] */
    int64_t stride, n, pos;
} attention_job;

static edb_status check_shape(const edb_attention_shape *shape) {
    if (shape == NULL) return EDB_ERR_NULL;
    if (shape->n_kv_heads < 1 || shape->n_heads < 1 || shape->n_heads > MAX_HEADS)
        return EDB_ERR_SHAPE;
    if (shape->n_heads % shape->n_kv_heads != 0) return EDB_ERR_SHAPE;
    if (shape->head_dim < 2 || shape->head_dim > MAX_HEAD_DIM || shape->head_dim % 2 != 0)
        return EDB_ERR_SHAPE;
    if (shape->capacity < 1 || shape->capacity > EDB_MAX_TOKENS) return EDB_ERR_SHAPE;
    if (shape->cache_kind != EDB_F32 && shape->cache_kind != EDB_F16) return EDB_ERR_KIND;
    return EDB_OK;
}

static edb_status check_span(const edb_attention_shape *shape, int64_t n, int64_t pos) {
    if (n < 1 || n > EDB_MAX_TOKENS) return EDB_ERR_SHAPE;
    if (pos < 0 || pos > shape->capacity - n) return EDB_ERR_RANGE;
    return EDB_OK;
}

static int64_t qkv_size(const edb_attention_shape *shape) {
    return ((int64_t)shape->n_heads + 2 * (int64_t)shape->n_kv_heads) * shape->head_dim;
}

static uintptr_t cache_alignment(const edb_attention_shape *shape) {
    return shape->cache_kind == EDB_F16 ? 2 : 4;
}

/* Address of a cache row, that is of one head at one position. */
static char *cache_row(void *cache, const edb_attention_shape *shape, int64_t head,
                       int64_t position) {
    int64_t element = shape->cache_kind == EDB_F16 ? 2 : 4;
    return (char *)cache + (head * shape->capacity + position) * shape->head_dim * element;
}

static void store_head(const attention_job *job, const float *x, void *row) {
    int64_t head_dim = job->shape->head_dim;
    if (job->shape->cache_kind == EDB_F16) {
        job->kernels->to_f16(x, row, head_dim);
    } else {
        memcpy(row, x, (size_t)head_dim * sizeof *x);
    }
}

static void rope_tokens(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    int64_t head_dim = shape->head_dim;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        int64_t position = job->pos + t;
        const float *cos = job->cos + position * (head_dim / 2);
        const float *sin = job->sin + position * (head_dim / 2);
        float *x = job->qkv + t * qkv_size(shape);
        for (int32_t head = 0; head < shape->n_heads; head++, x += head_dim)
            job->kernels->rotate(x, cos, sin, x, head_dim);
        for (int32_t head = 0; head < shape->n_kv_heads; head++, x += head_dim) {
            float rotated[MAX_HEAD_DIM];
            job->kernels->rotate(x, cos, sin, rotated, head_dim);
            store_head(job, rotated, cache_row(job->k_cache, shape, head, position));
        }
        for (int32_t head = 0; head < shape->n_kv_heads; head++, x += head_dim)
            store_head(job, x, cache_row(job->v_cache, shape, head, position));
    }
}

edb_status edb_rope(const edb_context *context, const edb_attention_shape *shape, float *qkv,
                    const float *cos, const float *sin, void *k_cache, void *v_cache, int64_t n,
                    int64_t pos) {
    if (context == NULL || qkv == NULL || cos == NULL || sin == NULL) return EDB_ERR_NULL;
    if (k_cache == NULL || v_cache == NULL) return EDB_ERR_NULL;
    edb_status status = check_shape(shape);
    if (status != EDB_OK) return status;
    status = check_span(shape, n, pos);
    if (status != EDB_OK) return status;
    uintptr_t element = cache_alignment(shape);
    if (!edb_aligned(qkv, 4) || !edb_aligned(cos, 4) || !edb_aligned(sin, 4) ||
        !edb_aligned(k_cache, element) || !edb_aligned(v_cache, element))
        return EDB_ERR_ALIGN;
    attention_job job = {.kernels = context->isa->kernels,
                         .shape = shape,
                         .qkv = qkv,
                         .cos = cos,
                         .sin = sin,
                         .k_cache = k_cache,
                         .v_cache = v_cache,
                         .n = n,
                         .pos = pos};
    edb_pool *pool = n * qkv_size(shape) < WORTH_SHARING ? NULL : context->pool;
    edb_pool_run(pool, rope_tokens, &job, n, edb_chunk(pool, n));
    return EDB_OK;
}

/*
 * The queries of a key/value head, token by token and within a token head by head, are cut into
 * tasks of EDB_ATTEND_ROWS, so that rows of one task read almost the same keys. The longest tasks,
 * those of the last tokens, come first.
 */
static int64_t tasks_per_kv_head(const attention_job *job) {
    int64_t heads = job->shape->n_heads / job->shape->n_kv_heads;
    return edb_ceil_div(job->n * heads, EDB_ATTEND_ROWS);
}

static void attend_tasks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const attention_job *job = argument;
    const edb_attention_shape *shape = job->shape;
    int64_t head_dim = shape->head_dim, heads = shape->n_heads / shape->n_kv_heads;
    int64_t per_head = tasks_per_kv_head(job);
    float *scores = job->scores + worker * EDB_ATTEND_ROWS * job->stride;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t first = (per_head - 1 - task / shape->n_kv_heads) * EDB_ATTEND_ROWS;
        edb_attend rows = {.rows = (int32_t)edb_min(EDB_ATTEND_ROWS, job->n * heads - first),
                           .head_dim = shape->head_dim,
                           .cache_kind = shape->cache_kind,
                           .scale = 1.0f / sqrtf((float)head_dim),
                           .k = cache_row(job->k_cache, shape, kv_head, 0),
                           .v = cache_row(job->v_cache, shape, kv_head, 0),
                           .scores = scores,
                           .stride = job->stride};
        for (int32_t r = 0; r < rows.rows; r++) {
            int64_t t = (first + r) / heads, head = kv_head * heads + (first + r) % heads;
            rows.q[r] = job->qkv + t * qkv_size(shape) + head * head_dim;
            rows.out[r] = job->out + (t * shape->n_heads + head) * head_dim;
            rows.keys[r] = job->pos + t + 1;
        }
        job->kernels->attend(&rows);
    }
}

/* Floats between two rows of scores: whole cache lines, and not a multiple of 4 KiB apart. */
static int64_t score_stride(int64_t positions) {
    return edb_ceil_div(positions, EDB_LANES) * EDB_LANES + EDB_LANES;
}

static uint64_t scratch_bytes_for(const edb_context *context, int64_t positions) {
    uint64_t rows = (uint64_t)edb_pool_threads(context->pool) * EDB_ATTEND_ROWS;
    return rows * (uint64_t)score_stride(positions) * sizeof(float) + 63;
}

size_t edb_attention_scratch_bytes(const edb_context *context, const edb_attention_shape *shape,
                                   int64_t positions) {
    if (context == NULL || check_shape(shape) != EDB_OK) return 0;
    if (positions < 1 || positions > shape->capacity) return 0;
    uint64_t bytes = scratch_bytes_for(context, positions);
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

edb_status edb_attention(const edb_context *context, const edb_attention_shape *shape,
                         const float *qkv, const void *k_cache, const void *v_cache, float *out,
                         int64_t n, int64_t pos, void *scratch, size_t scratch_bytes) {
    if (context == NULL || qkv == NULL || k_cache == NULL || v_cache == NULL || out == NULL ||
        scratch == NULL)
        return EDB_ERR_NULL;
    edb_status status = check_shape(shape);
    if (status != EDB_OK) return status;
    status = check_span(shape, n, pos);
    if (status != EDB_OK) return status;
    uintptr_t element = cache_alignment(shape);
    if (!edb_aligned(qkv, 4) || !edb_aligned(out, 4) || !edb_aligned(k_cache, element) ||
        !edb_aligned(v_cache, element))
        return EDB_ERR_ALIGN;
    if (scratch_bytes_for(context, pos + n) > scratch_bytes) return EDB_ERR_SCRATCH;

    attention_job job = {.kernels = context->isa->kernels,
                         .shape = shape,
                         .qkv = (float *)(uintptr_t)qkv,
                         .k_cache = (void *)(uintptr_t)k_cache,
                         .v_cache = (void *)(uintptr_t)v_cache,
                         .out = out,
                         .scores = edb_align_up(scratch),
                         .stride = score_stride(pos + n),
                         .n = n,
                         .pos = pos};
    int64_t work = n * (pos + n) * shape->n_heads * shape->head_dim;
    edb_pool *pool = work < WORTH_SHARING ? NULL : context->pool;
    int64_t n_tasks = tasks_per_kv_head(&job) * shape->n_kv_heads;
    edb_pool_run(pool, attend_tasks, &job, n_tasks, 1);
    return EDB_OK;
}
