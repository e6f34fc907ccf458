/*
 * y = W x for every kind of matrix: checks, scratch, and how the work is cut into tasks. The
 * numerics of a tile are the kernels'; what is left here and in pairs.c (the row scale, the
 * residual) is one multiplication and one addition a row, rounded separately.
 */
#include <string.h>

#include "matmul.h"

/* Quantizing fewer tokens alone is not worth waking the pool. */
enum { QUANTIZE_TOGETHER = 8 };

/* Groups of a single token that are worth a thread of their own. */
enum { GROUPS_APART = 4 };

/* Rows of a dense matrix in one task, and tokens that pass over them before the next rows. */
enum { DENSE_ROWS = 32, DENSE_TOKENS = 32 };

int edb_is_dense(const edb_matrix *matrix) {
    return matrix->kind == EDB_F32 || matrix->kind == EDB_F16;
}

edb_status edb_check_matrix(const edb_matrix *matrix) {
    if (matrix == NULL || matrix->data == NULL) return EDB_ERR_NULL;
    if (matrix->kind < EDB_PAIRS || matrix->kind > EDB_F16) return EDB_ERR_KIND;
    if (!edb_is_dense(matrix) && matrix->scales == NULL) return EDB_ERR_NULL;
    if (matrix->rows < 1 || matrix->rows > EDB_MAX_DIM) return EDB_ERR_SHAPE;
    if (matrix->cols < 1 || matrix->cols > EDB_MAX_DIM) return EDB_ERR_SHAPE;
    if (!edb_aligned(matrix->data, 64) || !edb_aligned(matrix->scales, 4)) return EDB_ERR_ALIGN;
    if (matrix->kind == EDB_PAIRS) {
        int32_t fewest = matrix->half == NULL ? 1 : 0;
        if (matrix->pairs < fewest || matrix->pairs > EDB_MAX_PAIRS) return EDB_ERR_SHAPE;
        if (!edb_aligned(matrix->half, 64)) return EDB_ERR_ALIGN;
    }
    return EDB_OK;
}

/* Whether a dense matrix reads x where it lies, rows apart by its columns. */
static int reads_in_place(const edb_matmul_job *job) {
    return job->input.form == EDB_INPUT_PLAIN && job->places == NULL;
}

/* Cuts scratch into the job's arrays, each on a 64-byte boundary; returns the bytes that takes. */
uint64_t edb_matmul_lay_out(edb_matmul_job *job, char *scratch) {
    uint64_t n = (uint64_t)job->stride, groups = (uint64_t)job->groups, at = 0;
    uint64_t pitch = (uint64_t)edb_prepared_pitch(job);
    int quantized = !edb_is_dense(job->matrix);
    uint64_t sizes[6] = {
        quantized ? n * groups * EDB_GROUP : 0,
        quantized ? n * groups * sizeof(float) : 0,
        job->one_by_one ? n * pitch * (uint64_t)job->pairs->prepared_bytes : 0,
        job->one_by_one ? n * pitch * sizeof(edb_group_meta) : 0,
        quantized || reads_in_place(job) ? 0 : n * groups * EDB_GROUP * sizeof(float),
        job->kernels->offsets != NULL && quantized && !job->one_by_one
            ? n * groups * sizeof(int32_t)
            : 0,
    };
    uint64_t offsets[6];
    for (int i = 0; i < 6; i++) {
        offsets[i] = at;
        at += (sizes[i] + 63) & ~(uint64_t)63;
    }
    if (scratch != NULL) {
        job->q = (int8_t *)scratch;
        job->sx = (float *)(void *)(scratch + offsets[1]);
        job->prepared = (uint8_t *)scratch + offsets[2];
        job->meta = (edb_group_meta *)(void *)(scratch + offsets[3]);
        job->dense = (float *)(void *)(scratch + offsets[4]);
        job->offsets = (int32_t *)(void *)(scratch + offsets[5]);
    }
    return at + 63; /* the caller's scratch need not be aligned */
}

/* Tokens that share a reading of a tile. */
static int64_t tokens_together(const edb_matrix *matrix) {
    return edb_is_dense(matrix) ? DENSE_TOKENS : EDB_TOKEN_BLOCK;
}

edb_matmul_job edb_matmul_describe(const edb_context *context, const edb_matrix *matrix,
                                   edb_input input, int64_t n) {
    const edb_pair_kernel *pairs = matrix->kind == EDB_PAIRS ? context->pairs : NULL;
    int64_t groups = edb_ceil_div(matrix->cols, EDB_GROUP);
    int64_t parts = edb_min(edb_pool_threads(context->pool), edb_ceil_div(groups, GROUPS_APART));
    int one_by_one = pairs != NULL && n < edb_expands_from(pairs, matrix);
    return (edb_matmul_job){
        .kernels = context->isa->kernels,
        .pairs = pairs,
        .matrix = matrix,
        .input = input,
        .n = n,
        .stride = n,
        .tiles = edb_ceil_div(matrix->rows, EDB_TILE),
        .groups = groups,
        .token_blocks = edb_ceil_div(n, tokens_together(matrix)),
        .parts = n > 1 || edb_is_dense(matrix) ? 1 : parts,
        .one_by_one = one_by_one,
        .by_rows = one_by_one && n > 1 && pairs->tile_rows != NULL,
    };
}

void edb_matmul_narrow(edb_matmul_job *job, int64_t first, int64_t n) {
    job->n = n;
    job->token_blocks = edb_ceil_div(n, tokens_together(job->matrix));
    if (edb_is_dense(job->matrix)) {
        job->dense += first * job->matrix->cols;
    } else if (job->one_by_one) {
        job->prepared += first * edb_prepared_pitch(job) * job->pairs->prepared_bytes;
        job->meta += first * edb_prepared_pitch(job);
    } else {
        job->q += first * EDB_GROUP;
        job->sx += first;
        if (job->kernels->offsets != NULL) job->offsets += first;
    }
}

/* A last batch that is shorter than EDB_BATCH may go one by one where the others expand. */
static uint64_t scratch_for(const edb_context *context, const edb_matrix *matrix, edb_input input,
                            int64_t n) {
    edb_matmul_job first = edb_matmul_describe(context, matrix, input, edb_min(n, EDB_BATCH));
    edb_matmul_job last = edb_matmul_describe(context, matrix, input, (n - 1) % EDB_BATCH + 1);
    uint64_t first_bytes = edb_matmul_lay_out(&first, NULL);
    uint64_t last_bytes = edb_matmul_lay_out(&last, NULL);
    return first_bytes > last_bytes ? first_bytes : last_bytes;
}

uint64_t edb_matmul_scratch(const edb_context *context, const edb_matrix *matrix, int64_t n) {
    return scratch_for(context, matrix, (edb_input){.form = EDB_INPUT_NORMED}, n);
}

static const edb_input plain = {.form = EDB_INPUT_PLAIN};

size_t edb_matmul_scratch_bytes(const edb_context *context, const edb_matrix *matrix, int64_t n) {
    if (context == NULL || edb_check_matrix(matrix) != EDB_OK) return 0;
    if (n < 1 || n > EDB_MAX_TOKENS) return 0;
    if (edb_is_dense(matrix)) return 1;
    uint64_t bytes = scratch_for(context, matrix, plain, n);
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

/* A row of activations as the caller has it; with a gate, `up` is as many columns behind it. */
static const float *input_row(const edb_matmul_job *job, int64_t t, int64_t *up) {
    const edb_places *places = job->places;
    int64_t cols = job->matrix->cols;
    if (places == NULL) {
        *up = cols;
        return job->input.x + t * (job->input.form == EDB_INPUT_GATED ? 2 * cols : cols);
    }
    *up = places->chosen * cols;
    if (places->by_token) return places->x.x + t * places->x.stride;
    return places->x.x + places->token[t] * places->x.stride +
           (places->own ? places->slot[t] * cols : 0);
}

/* Columns column..column+count-1 of row t, quantized. */
static void quantize_part(const edb_matmul_job *job, int64_t t, int64_t column, int64_t count,
                          int8_t *q, float *sx) {
    const edb_kernels *kernels = job->kernels;
    int64_t cols = job->matrix->cols, stride = job->stride, up;
    const edb_input *input = &job->input;
    const float *row = input_row(job, t, &up), *x = row + column, *shift;
    float scale, mean;
    switch (input->form) {
    case EDB_INPUT_PLAIN: kernels->quantize(x, count, q, sx, stride); break;
    case EDB_INPUT_NORMED:
        scale = kernels->norm_scale(row, cols, input->eps);
        kernels->quantize_normed(x, input->weight + column, scale, count, q, sx, stride);
        break;
    case EDB_INPUT_CENTERED:
        scale = kernels->center_scale(row, cols, input->eps, &mean);
        shift = input->shift == NULL ? NULL : input->shift + column;
        kernels->quantize_centered(x, input->weight + column, shift, mean, scale, count, q, sx,
                                   stride);
        break;
    case EDB_INPUT_ACTIVATED:
        kernels->quantize_activated(input->activation, x, count, q, sx, stride);
        break;
    case EDB_INPUT_GATED:
        kernels->quantize_gated(input->activation, x, x + up, count, q, sx, stride);
        break;
    }
}

static void prepare_quantized(const edb_matmul_job *job, int64_t t, int64_t part) {
    int64_t group = job->groups * part / job->parts;
    int64_t groups = job->groups * (part + 1) / job->parts - group;
    int64_t column = group * EDB_GROUP;
    int64_t count = edb_min(groups * EDB_GROUP, job->matrix->cols - column);
    int64_t stride = job->stride;
    int8_t *q = job->q + (group * stride + t) * EDB_GROUP;
    float *sx = job->sx + group * stride + t;
    quantize_part(job, t, column, count, q, sx);
    if (job->pairs != NULL && job->pairs->coarsen != NULL) job->pairs->coarsen(q, stride, groups);
    if (!job->one_by_one) {
        if (job->kernels->offsets != NULL)
            job->kernels->offsets(q, stride, groups, job->offsets + group * stride + t);
        return;
    }
    int64_t at = t * edb_prepared_pitch(job) + group;
    int rows = job->by_rows && job->pairs->prepare_rows != NULL;
    (rows ? job->pairs->prepare_rows : job->pairs->prepare)(
        q, sx, stride, groups, job->prepared + at * job->pairs->prepared_bytes, job->meta + at);
}

static void prepare_dense(const edb_matmul_job *job, int64_t t) {
    int64_t cols = job->matrix->cols, up;
    const edb_input *input = &job->input;
    const float *x = input_row(job, t, &up);
    float *dense = job->dense + t * cols;
    switch (input->form) {
    case EDB_INPUT_PLAIN: memcpy(dense, x, (size_t)cols * sizeof *dense); break;
    case EDB_INPUT_NORMED:
        job->kernels->rmsnorm(x, input->weight, dense, cols, input->eps);
        break;
    case EDB_INPUT_CENTERED:
        job->kernels->layernorm(x, input->weight, input->shift, dense, cols, input->eps);
        break;
    case EDB_INPUT_ACTIVATED: job->kernels->activate(input->activation, x, dense, cols); break;
    case EDB_INPUT_GATED: job->kernels->gate(input->activation, x, x + up, dense, cols); break;
    }
}

void edb_matmul_prepare(const edb_matmul_job *job, int64_t row, int64_t part) {
    if (edb_is_dense(job->matrix)) {
        prepare_dense(job, row);
    } else {
        prepare_quantized(job, row, part);
    }
}

/* A task is a run of groups of one token. */
static void prepare(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    (void)worker;
    for (int64_t task = begin; task < end; task++)
        edb_matmul_prepare(job, task / job->parts, task % job->parts);
}

edb_tokens edb_tokens_from(const edb_matmul_job *job, int64_t token) {
    edb_tokens tokens = {.q = job->q + token * EDB_GROUP,
                         .sx = job->sx + token,
                         .stride = job->stride,
                         .n = edb_min(EDB_TOKEN_BLOCK, job->n - token)};
    if (job->kernels->offsets != NULL) tokens.offsets = job->offsets + token;
    return tokens;
}

static void int8_tiles(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    const edb_matrix *matrix = job->matrix;
    _Alignas(64) float acc[EDB_TOKEN_BLOCK * EDB_TILE];
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t tile = task / job->token_blocks, token = task % job->token_blocks * EDB_TOKEN_BLOCK;
        edb_tokens tokens = edb_tokens_from(job, token);
        int64_t n = tokens.n;
        int64_t row = tile * EDB_TILE, rows = edb_min(EDB_TILE, matrix->rows - row);
        int64_t next = edb_min(task / job->token_blocks + 1, job->tiles - 1);
        const int8_t *codes = matrix->data;
        memset(acc, 0, (size_t)n * EDB_TILE * sizeof *acc);
        job->kernels->int8_tile(codes + tile * job->groups * EDB_CODES_BYTES,
                                matrix->scales + tile * job->groups * EDB_TILE, job->groups,
                                &tokens, acc, codes + next * job->groups * EDB_CODES_BYTES);
        for (int64_t t = 0; t < n; t++)
            edb_write_rows(job, token + t, row, rows, acc + t * EDB_TILE);
    }
}

/* Some rows for some tokens that lie together: to out, after the bias. */
static void dense_together(const edb_matmul_job *job, int64_t row, int64_t rows, int64_t token,
                           int64_t n) {
    const edb_matrix *matrix = job->matrix;
    const float *x = reads_in_place(job) ? job->input.x : job->dense;
    float *out = job->out + token * matrix->rows;
    for (int64_t t = 0; job->bias != NULL && t < n; t++) /* b + W x has the bits of W x + b */
        memcpy(out + t * matrix->rows + row, job->bias + row, (size_t)rows * sizeof *out);
    job->kernels->dense_rows(matrix, row, row + rows, x + token * matrix->cols, out, n,
                             job->add || job->bias != NULL);
}

/* The same for places, whose outputs lie apart. */
static void dense_apart(const edb_matmul_job *job, int64_t row, int64_t rows, int64_t token,
                        int64_t n) {
    float y[DENSE_TOKENS * DENSE_ROWS];
    edb_matrix some = *job->matrix;
    size_t element = some.kind == EDB_F16 ? 2 : 4;
    some.data = (const char *)some.data + (size_t)(row * some.cols) * element;
    some.rows = rows;
    job->kernels->dense_rows(&some, 0, rows, job->dense + token * some.cols, y, n, 0);
    for (int64_t t = 0; t < n; t++) edb_write_rows(job, token + t, row, rows, y + t * rows);
}

static void dense_tasks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t row = task / job->token_blocks * DENSE_ROWS;
        int64_t token = task % job->token_blocks * DENSE_TOKENS;
        int64_t rows = edb_min(DENSE_ROWS, job->matrix->rows - row);
        int64_t n = edb_min(DENSE_TOKENS, job->n - token);
        if (job->places == NULL) {
            dense_together(job, row, rows, token, n);
        } else {
            dense_apart(job, row, rows, token, n);
        }
    }
}

/* What a task is: a tile, or a tile for one block of tokens. */
static edb_task task_of(const edb_matmul_job *job) {
    if (edb_is_dense(job->matrix)) return dense_tasks;
    if (job->apart > 0) return edb_pairs_two_tiles;
    if (job->one_by_one) return edb_pairs_one_by_one;
    return job->matrix->kind == EDB_PAIRS ? edb_pairs_by_expansion : int8_tiles;
}

static int64_t tasks_of_tile(const edb_matmul_job *job) {
    return job->one_by_one ? 1 : job->token_blocks;
}

int64_t edb_matmul_tiles(const edb_matmul_job *job) {
    return edb_is_dense(job->matrix) ? edb_ceil_div(job->matrix->rows, DENSE_ROWS) : job->tiles;
}

void edb_matmul_tile(const edb_matmul_job *job, int64_t tile, int32_t worker) {
    int64_t each = tasks_of_tile(job);
    task_of(job)((void *)(uintptr_t)job, tile * each, (tile + 1) * each, worker); /* only read */
}

int32_t edb_matmul_stages(const edb_context *context, const edb_matrix *matrix, edb_input input,
                          const float *bias, float *out, int32_t add, int64_t n, void *scratch,
                          edb_matmul_job *job, edb_stage *stages) {
    *job = edb_matmul_describe(context, matrix, input, n);
    job->out = out;
    job->bias = bias;
    job->add = add;
    edb_matmul_lay_out(job, edb_align_up(scratch));
    int32_t count = 0;
    int64_t tasks = job->n * job->parts, chunk = edb_chunk(context->pool, tasks);
    if (!edb_is_dense(matrix) || !reads_in_place(job))
        stages[count++] = (edb_stage){prepare, job, tasks, chunk};
    int two = edb_fetch_here == EDB_LEAD && n == 1 && job->one_by_one &&
              job->pairs->two_tiles != NULL;
    if (two) job->apart = edb_ceil_div(job->tiles, 2);
    tasks = two ? job->apart : edb_matmul_tiles(job) * tasks_of_tile(job);
    stages[count++] = (edb_stage){task_of(job), job, tasks, 1};
    return count;
}

edb_status edb_matmul(const edb_context *context, const edb_matrix *matrix, const float *x,
                      float *out, int64_t n, int32_t add, void *scratch, size_t scratch_bytes) {
    if (context == NULL || x == NULL || out == NULL) return EDB_ERR_NULL;
    edb_status status = edb_check_matrix(matrix);
    if (status != EDB_OK) return status;
    if (n < 1 || n > EDB_MAX_TOKENS) return EDB_ERR_SHAPE;
    if (!edb_aligned(x, 4) || !edb_aligned(out, 4)) return EDB_ERR_ALIGN;

    if (!edb_is_dense(matrix)) {
        if (scratch == NULL) return EDB_ERR_NULL;
        if (scratch_for(context, matrix, plain, n) > scratch_bytes) return EDB_ERR_SCRATCH;
    }
    for (int64_t t = 0; t < n; t += EDB_BATCH) {
        edb_matmul_job job;
        edb_stage stages[2];
        edb_input input = {.form = EDB_INPUT_PLAIN, .x = x + t * matrix->cols};
        int32_t count =
            edb_matmul_stages(context, matrix, input, NULL, out + t * matrix->rows, add != 0,
                              edb_min(n - t, EDB_BATCH), scratch, &job, stages);
        edb_pool_run_stages(context->pool, stages, count);
    }
    return EDB_OK;
}

typedef struct {
    const edb_kernels *kernels;
    const float *x;
    int64_t cols, groups;
    int8_t *q;
    float *sx;
} quantize_job;

static void quantize_rows(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const quantize_job *job = argument;
    (void)worker;
    for (int64_t t = begin; t < end; t++) {
        job->kernels->quantize(job->x + t * job->cols, job->cols,
                               job->q + t * job->groups * EDB_GROUP, job->sx + t * job->groups, 1);
    }
}

edb_status edb_quantize(const edb_context *context, const float *x, int8_t *q, float *sx, int64_t n,
                        int64_t cols) {
    if (context == NULL || x == NULL || q == NULL || sx == NULL) return EDB_ERR_NULL;
    if (n < 1 || n > EDB_MAX_TOKENS || cols < 1 || cols > EDB_MAX_DIM) return EDB_ERR_SHAPE;
    if (!edb_aligned(x, 4) || !edb_aligned(sx, 4)) return EDB_ERR_ALIGN;
    quantize_job job = {context->isa->kernels, x, cols, edb_ceil_div(cols, EDB_GROUP), q, sx};
    edb_pool_run(context->pool, quantize_rows, &job, n,
                 edb_max(QUANTIZE_TOGETHER, edb_chunk(context->pool, n)));
    return EDB_OK;
}
