/* Everything of a layer that is no matrix product and no attention: one task is one token. */
#include "internal.h"

/* Fewer floats than this a call are done before a second thread has begun. */
enum { WORTH_SHARING = 16384 };

static void run_tokens(const edb_context *context, edb_task task, void *job, int64_t n,
                       int64_t floats_each) {
    edb_pool *pool = n * floats_each < WORTH_SHARING ? NULL : context->pool;
    edb_pool_run(pool, task, job, n, edb_chunk(pool, n));
}

static int is_size(int64_t size) { return size >= 1 && size <= EDB_MAX_DIM; }

static int is_count(int64_t n) { return n >= 1 && n <= EDB_MAX_TOKENS; }

/* ---- embedding ---- */

static void embed_pairs(const edb_matrix *matrix, int64_t row, float *out) {
    int64_t groups = edb_ceil_div(matrix->cols, EDB_GROUP);
    int64_t tiles = edb_ceil_div(matrix->rows, EDB_TILE);
    int64_t lane = row % EDB_TILE;
    for (int64_t pair = 0; pair < matrix->pairs; pair++) {
        float scale = matrix->scales[pair * matrix->rows + row];
        const uint8_t *blocks = matrix->data;
        blocks += (pair * tiles + row / EDB_TILE) * groups * EDB_BLOCK_BYTES;
        for (int64_t column = 0; column < matrix->cols; column++) {
            const uint8_t *block = blocks + column / EDB_GROUP * EDB_BLOCK_BYTES;
            int bits = block[column % EDB_GROUP / 4 * EDB_TILE + lane] >> (column % 4);
            int c1 = (int8_t)block[1024 + lane], c2 = (int8_t)block[1088 + lane];
            float value = scale * (float)((bits & 1) * c1 + (bits >> 4 & 1) * c2);
            out[column] = pair > 0 ? out[column] + value : value;
        }
    }
}

static void embed_int8(const edb_matrix *matrix, int64_t row, float *out) {
    int64_t groups = edb_ceil_div(matrix->cols, EDB_GROUP);
    int64_t tile = row / EDB_TILE, lane = row % EDB_TILE;
    const int8_t *codes = (const int8_t *)matrix->data + tile * groups * EDB_CODES_BYTES;
    const float *scales = matrix->scales + tile * groups * EDB_TILE + lane;
    for (int64_t column = 0; column < matrix->cols; column++) {
        int64_t group = column / EDB_GROUP, quad = column % EDB_GROUP / 4;
        int code = codes[group * EDB_CODES_BYTES + 4 * (quad * EDB_TILE + lane) + column % 4];
        out[column] = scales[group * EDB_TILE] * (float)code;
    }
}

typedef struct {
    const edb_kernels *kernels;
    const edb_matrix *matrix;
    const int32_t *ids;
    float *out;
} embed_job;

static void embed_tokens(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const embed_job *job = argument;
    const edb_matrix *matrix = job->matrix;
    int64_t cols = matrix->cols;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        int64_t row = job->ids[t];
        float *out = job->out + t * cols;
        switch (matrix->kind) {
        case EDB_PAIRS: embed_pairs(matrix, row, out); break;
        case EDB_INT8: embed_int8(matrix, row, out); break;
        case EDB_F16:
            job->kernels->from_f16((const uint16_t *)matrix->data + row * cols, out, cols);
            break;
        default:
            for (int64_t i = 0; i < cols; i++)
                out[i] = ((const float *)matrix->data)[row * cols + i];
            break;
        }
    }
}

edb_status edb_embed(const edb_context *context, const edb_matrix *matrix, const int32_t *ids,
                     float *out, int64_t n) {
    if (context == NULL || ids == NULL || out == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_matrix(matrix);
    if (status != EDB_OK) return status;
    if (!is_count(n)) return EDB_ERR_SHAPE;
    if (!edb_aligned(ids, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    for (int64_t t = 0; t < n; t++)
        if (ids[t] < 0 || ids[t] >= matrix->rows) return EDB_ERR_RANGE;
    embed_job job = {context->isa->kernels, matrix, ids, out};
    run_tokens(context, embed_tokens, &job, n, matrix->cols);
    return EDB_OK;
}

/* ---- normalization and gate ---- */

typedef struct {
    const edb_kernels *kernels;
    const float *x;
    const float *weight;
    float *out;
    int64_t size;
    float eps;
} row_job;

static void rmsnorm_tokens(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const row_job *job = argument;
    int64_t d = job->size;
    (void)worker;
    for (int64_t t = begin; t < end; t++)
        job->kernels->rmsnorm(job->x + t * d, job->weight, job->out + t * d, d, job->eps);
}

edb_status edb_rmsnorm(const edb_context *context, const float *x, const float *weight, float *out,
                       int64_t n, int64_t d, float eps) {
    if (context == NULL || x == NULL || weight == NULL || out == NULL) return EDB_ERR_NULL;
    if (!is_count(n) || !is_size(d)) return EDB_ERR_SHAPE;
    if (!edb_aligned(x, 4) || !edb_aligned(weight, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    row_job job = {context->isa->kernels, x, weight, out, d, eps};
    run_tokens(context, rmsnorm_tokens, &job, n, d);
    return EDB_OK;
}

static void swiglu_tokens(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const row_job *job = argument;
    int64_t f = job->size;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const float *gate = job->x + 2 * t * f;
        job->kernels->swiglu(gate, gate + f, job->out + t * f, f);
    }
}

edb_status edb_swiglu(const edb_context *context, const float *gate_up, float *out, int64_t n,
                      int64_t f) {
    if (context == NULL || gate_up == NULL || out == NULL) return EDB_ERR_NULL;
    if (!is_count(n) || !is_size(f)) return EDB_ERR_SHAPE;
    if (!edb_aligned(gate_up, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    row_job job = {.kernels = context->isa->kernels, .x = gate_up, .out = out, .size = f};
    run_tokens(context, swiglu_tokens, &job, n, 2 * f);
    return EDB_OK;
}
