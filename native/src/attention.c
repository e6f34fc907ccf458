/* Rotary embedding and attention, a call each: attention_store.c and attention_stages.c do the work. */
#include <math.h>

#include "attention.h"

enum { MAX_HEADS = 1024 };

/* Below this many multiply-adds a second thread does not pay. */
enum { WORTH_SHARING = 65536 };

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
    edb_lay_out_attention(&job, scratch);
    for (int64_t head = 0; job.few && head < shape->n_kv_heads; head++) {
        edb_begin_head(&job, head);
        if (job.codes != NULL)
            edb_quantize_queries(&job, head, 0, n * edb_heads_per_kv(shape),
                                 edb_few_queries(&job, head));
    }
    edb_stage stages[2];
    int32_t count = edb_attention_stages(&job, stages);
    int64_t work = n * (pos + n) * shape->n_heads * shape->head_dim;
    edb_pool_run_stages(work < WORTH_SHARING ? NULL : context->pool, stages, count);
    return EDB_OK;
}
