/* Everything of a pass that is no matrix product and no attention: one task is one token's row. */
#include <string.h>

#include "experts.h"
#include "rows.h"

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

static void embed_half(const edb_matrix *matrix, int64_t row, float *out) {
    int64_t groups = edb_ceil_div(matrix->cols, EDB_GROUP), lane = row % EDB_TILE;
    float scale = matrix->scales[matrix->pairs * matrix->rows + row];
    const uint8_t *halves = matrix->half;
    halves += row / EDB_TILE * groups * EDB_HALF_BYTES;
    for (int64_t column = 0; column < matrix->cols; column++) {
        const uint8_t *half = halves + column / EDB_GROUP * EDB_HALF_BYTES;
        int bits = half[column % EDB_GROUP / 8 * EDB_TILE + lane], c1 = (int8_t)half[512 + lane];
        float value = scale * (float)((bits >> (column % 8) & 1) * c1);
        out[column] = matrix->pairs > 0 ? out[column] + value : value;
    }
}

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
    if (matrix->half != NULL) embed_half(matrix, row, out);
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

static void embed_row(const edb_kernels *kernels, const edb_matrix *matrix, int64_t row,
                      float *out) {
    int64_t cols = matrix->cols;
    switch (matrix->kind) {
    case EDB_PAIRS: embed_pairs(matrix, row, out); break;
    case EDB_INT8: embed_int8(matrix, row, out); break;
    case EDB_F16:
        kernels->from_f16((const uint16_t *)matrix->data + row * cols, out, cols);
        break;
    default:
        memcpy(out, (const float *)matrix->data + row * cols, (size_t)cols * sizeof *out);
        break;
    }
}

/* ---- one row of an operation ---- */

static void rope_row(const edb_kernels *kernels, const edb_op *op, int64_t position, const float *x,
                     float *out) {
    int64_t head_dim = op->width / op->heads, half = head_dim / 2;
    for (int64_t i = 0; i < op->width; i += head_dim)
        kernels->rotate(x + i, op->cos + position * half, op->sin + position * half, out + i,
                        head_dim);
}

static void run_row(const edb_row_job *job, int64_t t) {
    const edb_kernels *kernels = job->kernels;
    const edb_op *op = job->op;
    const float *x = job->x.x + t * job->x.stride, *y = job->y.x + t * job->y.stride;
    float *out = job->out.x + t * job->out.stride;
    int64_t width = op->width, part;
    switch (op->code) {
    case EDB_OP_EMBED: embed_row(kernels, op->matrix, job->ids[t], out); break;
    case EDB_OP_POSITION: embed_row(kernels, op->matrix, job->pos + t, out); break;
    case EDB_OP_RMS_NORM:
        part = width / op->heads;
        for (int64_t i = 0; i < width; i += part)
            kernels->rmsnorm(x + i, op->weight, out + i, part, op->eps);
        break;
    case EDB_OP_LAYER_NORM:
        part = width / op->heads;
        for (int64_t i = 0; i < width; i += part)
            kernels->layernorm(x + i, op->weight, op->shift, out + i, part, op->eps);
        break;
    case EDB_OP_ADD:
        for (int64_t i = 0; i < width; i++) out[i] = x[i] + y[i];
        break;
    case EDB_OP_MUL:
        for (int64_t i = 0; i < width; i++) out[i] = x[i] * y[i];
        break;
    case EDB_OP_COPY: memmove(out, x, (size_t)width * sizeof *out); break;
    case EDB_OP_ROPE: rope_row(kernels, op, job->pos + t, x, out); break;
    case EDB_OP_CLAMPED_GATE:
        kernels->clamped_gate(x, y, op->alpha, op->limit, out, width);
        break;
    case EDB_OP_ROUTE: edb_route_row(kernels, op, x, out); break;
    case EDB_OP_MIX: edb_mix_row(op, x, y, out); break;
    case EDB_OP_SOFTCAP: kernels->softcap(x, op->cap, out, width); break;
    default: kernels->activate(op->code, x, out, width); break;
    }
}

static void run_rows(void *argument, int64_t begin, int64_t end, int32_t worker) {
    (void)worker;
    for (int64_t t = begin; t < end; t++) run_row(argument, t);
}

edb_stage edb_row_stage(const edb_context *context, edb_row_job *job, int64_t n) {
    return (edb_stage){run_rows, job, n, edb_chunk(context->pool, n)};
}

/* An operation by itself. */
static void run_alone(const edb_context *context, const edb_op *op, const float *x,
                      const int32_t *ids, float *out, int64_t n) {
    edb_rows in = {x == NULL ? out : (float *)(uintptr_t)x, op->width}; /* only read */
    edb_row_job job = {context->isa->kernels, op, in, in, {out, op->width}, ids, 0};
    run_tokens(context, run_rows, &job, n, op->width);
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
    edb_op op = {.code = EDB_OP_EMBED, .width = matrix->cols, .matrix = matrix};
    run_alone(context, &op, NULL, ids, out, n);
    return EDB_OK;
}

/* ---- normalization and gate ---- */

edb_status edb_rmsnorm(const edb_context *context, const float *x, const float *weight, float *out,
                       int64_t n, int64_t d, float eps) {
    if (context == NULL || x == NULL || weight == NULL || out == NULL) return EDB_ERR_NULL;
    if (!is_count(n) || !is_size(d)) return EDB_ERR_SHAPE;
    if (!edb_aligned(x, 4) || !edb_aligned(weight, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    edb_op op = {.code = EDB_OP_RMS_NORM, .width = d, .heads = 1, .weight = weight, .eps = eps};
    run_alone(context, &op, x, NULL, out, n);
    return EDB_OK;
}

edb_status edb_layernorm(const edb_context *context, const float *x, const float *weight,
                         const float *shift, float *out, int64_t n, int64_t d, float eps) {
    if (context == NULL || x == NULL || weight == NULL || out == NULL) return EDB_ERR_NULL;
    if (!is_count(n) || !is_size(d)) return EDB_ERR_SHAPE;
    if (!edb_aligned(x, 4) || !edb_aligned(weight, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    if (!edb_aligned(shift, 4)) return EDB_ERR_ALIGN;
    edb_op op = {.code = EDB_OP_LAYER_NORM, .width = d, .heads = 1, .weight = weight,
                 .shift = shift, .eps = eps};
    run_alone(context, &op, x, NULL, out, n);
    return EDB_OK;
}

typedef struct {
    const edb_kernels *kernels;
    int32_t activation;
    const float *gate_up;
    float *out;
    int64_t f;
} gate_job;

static void gate_tokens(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const gate_job *job = argument;
    int64_t f = job->f;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        const float *gate = job->gate_up + 2 * t * f;
        job->kernels->gate(job->activation, gate, gate + f, job->out + t * f, f);
    }
}

edb_status edb_gate(const edb_context *context, int32_t activation, const float *gate_up,
                    float *out, int64_t n, int64_t f) {
    if (context == NULL || gate_up == NULL || out == NULL) return EDB_ERR_NULL;
    if (!edb_is_activation(activation)) return EDB_ERR_KIND;
    if (!is_count(n) || !is_size(f)) return EDB_ERR_SHAPE;
    if (!edb_aligned(gate_up, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;
    gate_job job = {context->isa->kernels, activation, gate_up, out, f};
    run_tokens(context, gate_tokens, &job, n, 2 * f);
    return EDB_OK;
}
