/* Queries, normed and turned; keys and values on their way into the cache. */
#include <string.h>

#include "attention.h"

static void store_head(const edb_attention_job *job, const float *x, int kind, int64_t kv_head,
                       int64_t position) {
    int64_t head_dim = job->shape.head_dim;
    if (job->shape.cache_kind == EDB_INT8) {
        edb_store_codes(job, x, kind, kv_head, position);
        return;
    }
    void *row = edb_cache_row(job, kind, kv_head, position);
    if (job->shape.cache_kind == EDB_F16) {
        job->kernels->to_f16(x, row, head_dim);
    } else {
        memcpy(row, x, (size_t)head_dim * sizeof *x);
    }
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
            float *q = edb_head_of(job->q, t, head, head_dim);
            turn(job, q, job->q_norm, job->q_cos, job->q_sin, position, q);
        }
        if (job->few && t == 0) edb_begin_head(job, kv_head);
        if (job->codes != NULL)
            edb_quantize_queries(job, kv_head, t * heads, (t + 1) * heads,
                                 edb_few_queries(job, kv_head));
        const float *k = edb_head_of(job->k, t, kv_head, head_dim);
        float turned[EDB_MAX_HEAD_DIM];
        if (job->k_norm != NULL || job->cos != NULL) {
            turn(job, k, job->k_norm, job->cos, job->sin, position, turned);
            k = turned;
        }
        store_head(job, k, EDB_KEYS, kv_head, position);
        store_head(job, edb_head_of(job->v, t, kv_head, head_dim), EDB_VALUES, kv_head, position);
    }
}

int32_t edb_store_stages(const edb_context *context, edb_attention_job *job, edb_stage *stages) {
    int64_t tasks = job->n * job->shape.n_kv_heads;
    int64_t chunk = job->n > 1 ? edb_chunk(context->pool, tasks) : tasks;
    stages[0] = (edb_stage){store_heads, job, tasks, chunk};
    return 1;
}
