/*
 * A decoder layer as one job: the operations that edgedb/llama.py lists, cut into the stages of
 * their own files. What only feeds the next product is never written: the norms and SwiGLU are
 * quantized as they are computed.
 */
#include "internal.h"

typedef struct {
    const edb_context *context;
    void *scratch; /* of one operation at a time */
    int64_t n;
    edb_stage stages[EDB_MAX_STAGES];
    int32_t n_stages;
    edb_matmul_job products[4];
    int32_t n_products;
    edb_attention_job attention;
} layer_job;

static edb_input normed(const float *x, const float *weight, float eps) {
    return (edb_input){EDB_NORMED, x, weight, eps};
}
static edb_input plain(const float *x) { return (edb_input){.form = EDB_PLAIN, .x = x}; }
static edb_input gated(const float *gate_up) {
    return (edb_input){.form = EDB_GATED, .x = gate_up};
}

enum { SET = 0, ADD = 1 };

static void add_product(layer_job *job, const edb_matrix *matrix, edb_input input, float *out,
                        int32_t add) {
    job->n_stages +=
        edb_matmul_stages(job->context, matrix, input, out, add, job->n, job->scratch,
                          &job->products[job->n_products++], job->stages + job->n_stages);
}

static void add_rope(layer_job *job) {
    job->n_stages += edb_rope_stages(job->context, &job->attention, job->stages + job->n_stages);
}

static void add_attention(layer_job *job) {
    job->n_stages += edb_attention_stages(job->context, &job->attention, job->scratch,
                                          job->stages + job->n_stages);
}

/* At most EDB_BATCH tokens. */
static void run_layer(const edb_context *context, const edb_layer *layer,
                      const edb_layer_buffers *b, edb_attention_job attention, void *scratch) {
    layer_job job = {
        .context = context, .scratch = scratch, .n = attention.n, .attention = attention};
    add_product(&job, layer->attn_qkv, normed(b->x, layer->attn_norm, layer->eps), b->qkv, SET);
    add_rope(&job);
    add_attention(&job);
    add_product(&job, layer->attn_out, plain(b->att), b->x, ADD);

    add_product(&job, layer->mlp_gate_up, normed(b->x, layer->mlp_norm, layer->eps), b->gate_up,
                SET);
    add_product(&job, layer->mlp_down, gated(b->gate_up), b->x, ADD);
    edb_pool_run_stages(context->pool, job.stages, job.n_stages);
}

static int has_size(const edb_matrix *matrix, int64_t rows, int64_t cols) {
    return matrix->rows == rows && matrix->cols == cols;
}

static edb_status check_layer(const edb_layer *layer, const edb_attention_shape *shape) {
    const edb_matrix *matrices[4] = {layer->attn_qkv, layer->attn_out, layer->mlp_gate_up,
                                     layer->mlp_down};
    for (int i = 0; i < 4; i++) {
        edb_status status = edb_check_matrix(matrices[i]);
        if (status != EDB_OK) return status;
    }
    const float *floats[4] = {layer->attn_norm, layer->mlp_norm, layer->cos, layer->sin};
    for (int i = 0; i < 4; i++) {
        if (floats[i] == NULL) return EDB_ERR_NULL;
        if (!edb_aligned(floats[i], 4)) return EDB_ERR_ALIGN;
    }
    int64_t q = (int64_t)shape->n_heads * shape->head_dim;
    int64_t kv = (int64_t)shape->n_kv_heads * shape->head_dim;
    int64_t hidden = layer->attn_qkv->cols, f = layer->mlp_down->cols;
    int agree = has_size(layer->attn_qkv, q + 2 * kv, hidden) &&
                has_size(layer->attn_out, hidden, q) &&
                has_size(layer->mlp_gate_up, 2 * f, hidden) && has_size(layer->mlp_down, hidden, f);
    return agree ? EDB_OK : EDB_ERR_SHAPE;
}

static edb_status check_buffers(const edb_layer_buffers *b) {
    const float *floats[4] = {b->x, b->qkv, b->att, b->gate_up};
    for (int i = 0; i < 4; i++) {
        if (floats[i] == NULL) return EDB_ERR_NULL;
        if (!edb_aligned(floats[i], 4)) return EDB_ERR_ALIGN;
    }
    return EDB_OK;
}

/* One operation runs at a time, so the largest scratch serves all. */
static uint64_t scratch_for(const edb_context *context, const edb_layer *layer,
                            const edb_attention_shape *shape, int64_t n, int64_t positions) {
    uint64_t sizes[6] = {
        edb_matmul_scratch(context, layer->attn_qkv, n),
        edb_matmul_scratch(context, layer->attn_out, n),
        edb_matmul_scratch(context, layer->mlp_gate_up, n),
        edb_matmul_scratch(context, layer->mlp_down, n),
        edb_attention_scratch(context, shape, edb_min(n, EDB_BATCH), positions),
        edb_attention_scratch(context, shape, (n - 1) % EDB_BATCH + 1, positions),
    };
    uint64_t largest = 0;
    for (int i = 0; i < 6; i++) largest = sizes[i] > largest ? sizes[i] : largest;
    return largest;
}

size_t edb_decoder_layer_scratch_bytes(const edb_context *context, const edb_layer *layer,
                                       const edb_attention_shape *shape, int64_t n,
                                       int64_t positions) {
    if (context == NULL || layer == NULL || edb_check_shape(shape) != EDB_OK) return 0;
    if (check_layer(layer, shape) != EDB_OK) return 0;
    if (n < 1 || positions < n || positions > shape->capacity) return 0;
    uint64_t bytes = scratch_for(context, layer, shape, n, positions);
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

edb_status edb_decoder_layer(const edb_context *context, const edb_layer *layer,
                             const edb_attention_shape *shape, const edb_layer_buffers *buffers,
                             void *k_cache, void *v_cache, int64_t n, int64_t pos, void *scratch,
                             size_t scratch_bytes) {
    if (context == NULL || layer == NULL || buffers == NULL || scratch == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_attention(shape, k_cache, v_cache, n, pos);
    if (status == EDB_OK) status = check_layer(layer, shape);
    if (status == EDB_OK) status = check_buffers(buffers);
    if (status != EDB_OK) return status;
    if (scratch_for(context, layer, shape, n, pos + n) > scratch_bytes) return EDB_ERR_SCRATCH;

    for (int64_t t = 0; t < n; t += EDB_BATCH) {
        edb_layer_buffers batch = {
            buffers->x + t * layer->attn_qkv->cols,
            buffers->qkv + t * layer->attn_qkv->rows,
            buffers->att + t * layer->attn_out->cols,
            buffers->gate_up + t * layer->mlp_gate_up->rows,
        };
        edb_attention_job attention = {.kernels = context->isa->kernels,
                                       .shape = shape,
                                       .qkv = batch.qkv,
                                       .cos = layer->cos,
                                       .sin = layer->sin,
                                       .k_cache = k_cache,
                                       .v_cache = v_cache,
                                       .out = batch.att,
                                       .n = edb_min(n - t, EDB_BATCH),
                                       .pos = pos + t};
        run_layer(context, layer, &batch, attention, scratch);
    }
    return EDB_OK;
}
