/*
 * Mixtures of experts: which experts a token goes to, the products of their matrices, and the sum of
 * what they give.
 *
 * A product has a place for each token and expert chosen. Places are ordered by expert and then by
 * token, so that a prompt reads and expands every block once for all tokens that want it, and one
 * token reads the matrices of its own experts and no other byte. A place's result depends on its row
 * alone, and experts are added in their own order: no bit depends on what else is in the batch.
 */
#include <math.h>
#include <string.h>

#include "experts.h"

edb_status edb_check_experts(const edb_op *op) {
    if (op->experts < 1 || op->experts > EDB_MAX_EXPERTS) return EDB_ERR_SHAPE;
    if (op->chosen < 1 || op->chosen > op->experts || op->chosen > EDB_MAX_CHOSEN)
        return EDB_ERR_SHAPE;
    if (op->code != EDB_OP_EXPERTS) return EDB_OK;
    if (op->matrix == NULL) return EDB_ERR_NULL;
    const edb_matrix *first = op->matrix;
    for (int32_t e = 0; e < op->experts; e++) {
        const edb_matrix *matrix = first + e;
        edb_status status = edb_check_matrix(matrix);
        if (status != EDB_OK) return status;
        if (matrix->kind != first->kind) return EDB_ERR_KIND;
        if (matrix->rows != first->rows || matrix->cols != first->cols) return EDB_ERR_SHAPE;
    }
    if (op->bias != NULL && !edb_aligned(op->bias, 4)) return EDB_ERR_ALIGN;
    if (op->input != EDB_INPUT_PLAIN && (op->input != EDB_INPUT_GATED || !op->own))
        return EDB_ERR_KIND;
    if (op->input == EDB_INPUT_GATED && !edb_is_activation(op->activation)) return EDB_ERR_KIND;
    if (op->parts < 1 || first->rows % op->parts != 0) return EDB_ERR_SHAPE;
    return op->width == first->rows * op->chosen ? EDB_OK : EDB_ERR_SHAPE;
}

int64_t edb_experts_columns(const edb_op *op) {
    int64_t each = op->own ? op->chosen : 1;
    return each * op->matrix->cols * (op->input == EDB_INPUT_GATED ? 2 : 1);
}

/* ---- route and mix: one token's row ---- */

/* The largest in ascending order of their index; of equal ones the first, and a NaN is infinite. */
static void choose(const float *logits, int64_t n, int32_t count, int32_t *chosen) {
    float values[EDB_MAX_CHOSEN];
    int32_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        float value = isnan(logits[i]) ? INFINITY : logits[i];
        if (found == count && !(value > values[count - 1])) continue;
        int32_t at = found < count ? found++ : count - 1;
        for (; at > 0 && value > values[at - 1]; at--) {
            values[at] = values[at - 1];
            chosen[at] = chosen[at - 1];
        }
        values[at] = value;
        chosen[at] = (int32_t)i;
    }
    for (int32_t i = 1; i < count; i++) {
        int32_t index = chosen[i], at = i;
        for (; at > 0 && chosen[at - 1] > index; at--) chosen[at] = chosen[at - 1];
        chosen[at] = index;
    }
}

void edb_route_row(const edb_kernels *kernels, const edb_op *op, const float *logits, float *out) {
    int32_t chosen[EDB_MAX_CHOSEN];
    float shares[EDB_MAX_CHOSEN];
    choose(logits, op->experts, op->chosen, chosen);
    if (op->normalized) {
        for (int32_t i = 0; i < op->chosen; i++) shares[i] = logits[chosen[i]];
        kernels->softmax_row(shares, shares, op->chosen);
    } else {
        kernels->softmax_row(logits, out, op->experts);
        for (int32_t i = 0; i < op->chosen; i++) shares[i] = out[chosen[i]];
    }
    memset(out, 0, (size_t)op->experts * sizeof *out);
    for (int32_t i = 0; i < op->chosen; i++) out[chosen[i]] = shares[i];
}

enum { MIXED = 256 }; /* columns that are summed at a time */

void edb_mix_row(const edb_op *op, const float *y, const float *route, float *out) {
    int64_t width = op->width;
    float shares[EDB_MAX_CHOSEN];
    int32_t count = 0;
    for (int32_t e = 0; e < op->experts && count < op->chosen; e++)
        if (route[e] != 0) shares[count++] = route[e];
    for (int64_t begin = 0; begin < width; begin += MIXED) {
        float sum[MIXED] = {0};
        int64_t n = edb_min(MIXED, width - begin);
        for (int32_t slot = 0; slot < count; slot++) {
            const float *x = y + slot * width + begin, share = shares[slot];
            for (int64_t i = 0; i < n; i++) sum[i] += share * x[i];
        }
        for (int64_t i = 0; i < n; i++) out[begin + i] = op->add ? out[begin + i] + sum[i] : sum[i];
    }
}

/* ---- products ---- */

static int64_t most_active(const edb_op *op, int64_t n) {
    return edb_min(op->experts, n * op->chosen);
}

static char *take(char **at, uint64_t bytes) {
    char *begin = *at;
    *at += (bytes + 63) & ~(uint64_t)63;
    return begin;
}

/* The job but for its pointers into scratch. */
static void describe(edb_experts_job *job, const edb_context *context, const edb_op *op,
                     int64_t n) {
    int64_t places = n * op->chosen, each = edb_ceil_div(places, most_active(op, n));
    edb_input input = {.form = op->input, .activation = op->activation};
    job->op = op;
    job->n = n;
    job->product = edb_matmul_describe(context, op->matrix, input, each);
    job->product.places = &job->places;
    job->places.chosen = op->chosen;
    job->places.own = op->own;
    job->places.by_token = job->product.one_by_one && !op->own;
    job->places.part = op->matrix->rows / op->parts;
    job->product.stride = job->places.by_token ? n : places;
}

/* Cuts scratch into the job's arrays, from a 64-byte boundary on; returns the bytes that takes. */
static uint64_t lay_out(edb_experts_job *job, char *scratch) {
    uint64_t places = (uint64_t)(job->n * job->op->chosen);
    uint64_t active = (uint64_t)most_active(job->op, job->n);
    char *at = scratch;
    job->token = (int32_t *)(void *)take(&at, places * sizeof(int32_t));
    job->slot = (int32_t *)(void *)take(&at, places * sizeof(int32_t));
    job->expert = (int32_t *)(void *)take(&at, active * sizeof(int32_t));
    job->first = (int32_t *)(void *)take(&at, (active + 1) * sizeof(int32_t));
    job->places.token = job->token;
    job->places.slot = job->slot;
    uint64_t lists = (uint64_t)((uintptr_t)at - (uintptr_t)scratch);
    return lists + edb_matmul_lay_out(&job->product, scratch == NULL ? NULL : at);
}

uint64_t edb_experts_scratch(const edb_context *context, const edb_op *op, int64_t n) {
    edb_experts_job job = {0};
    describe(&job, context, op, n);
    return lay_out(&job, NULL) + 63;
}

/* One task: lists the places. A token has no more of them than `chosen`, whatever its route says. */
static void list_places(void *argument, int64_t begin, int64_t end, int32_t worker) {
    edb_experts_job *job = argument;
    const edb_op *op = job->op;
    int32_t count = 0, active = 0;
    uint8_t taken[EDB_BATCH] = {0}; /* slots of each token so far */
    (void)begin;
    (void)end;
    (void)worker;
    for (int32_t e = 0; e < op->experts; e++) {
        int32_t before = count;
        for (int64_t t = 0; t < job->n; t++) {
            const float *route = job->route.x + t * job->route.stride;
            if (route[e] == 0 || taken[t] == op->chosen) continue;
            job->token[count] = (int32_t)t;
            job->slot[count++] = taken[t]++;
        }
        if (count == before) continue;
        job->expert[active] = e;
        job->first[active++] = before;
    }
    job->first[active] = count;
    job->n_active = active;
}

/* A task is a run of groups of one row. */
static void prepare(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_experts_job *job = argument;
    int64_t parts = job->product.parts;
    int64_t rows = job->places.by_token ? job->n : job->first[job->n_active];
    (void)worker;
    for (int64_t task = begin; task < end && task / parts < rows; task++)
        edb_matmul_prepare(&job->product, task / parts, task % parts);
}

/* The product of one expert's matrix with its places, which are consecutive. */
static void multiply(const edb_experts_job *job, int32_t active, int64_t tile, int32_t worker) {
    edb_matmul_job product = job->product;
    edb_places places = job->places;
    int32_t expert = job->expert[active], first = job->first[active];
    product.matrix = job->op->matrix + expert;
    if (job->op->bias != NULL) product.bias = job->op->bias + expert * product.matrix->rows;
    if (active + 1 < job->n_active)
        product.next = job->op->matrix[job->expert[active + 1]].data;
    product.places = &places;
    places.token += first;
    places.slot += first;
    edb_matmul_narrow(&product, places.by_token ? 0 : first, job->first[active + 1] - first);
    edb_matmul_tile(&product, tile, worker);
}

/* A task is a tile of one expert's matrix; neighbours lie side by side in the file. */
static void multiply_tiles(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_experts_job *job = argument;
    int64_t tiles = edb_matmul_tiles(&job->product);
    for (int64_t task = begin; task < end && task / tiles < job->n_active; task++)
        multiply(job, (int32_t)(task / tiles), task % tiles, worker);
}

void edb_write_place(const edb_matmul_job *job, int64_t place, int64_t row, int64_t rows,
                     const float *y) {
    const edb_places *places = job->places;
    int64_t part = places->part, each = part * places->chosen;
    float *out = places->out.x + places->token[place] * places->out.stride +
                 places->slot[place] * part;
    for (int64_t end = row + rows; row < end;) { /* a tile may hold rows of two parts */
        int64_t in_part = row % part, count = edb_min(end - row, part - in_part);
        float *to = out + row / part * each + in_part;
        if (job->bias == NULL) {
            memcpy(to, y, (size_t)count * sizeof *to);
        } else {
            for (int64_t r = 0; r < count; r++) to[r] = y[r] + job->bias[row + r];
        }
        row += count;
        y += count;
    }
}

int32_t edb_experts_stages(const edb_context *context, const edb_op *op, edb_rows x,
                           edb_rows route, edb_rows out, int64_t n, void *scratch,
                           edb_experts_job *job, edb_stage *stages) {
    describe(job, context, op, n);
    lay_out(job, edb_align_up(scratch));
    job->route = route;
    job->places.x = x;
    job->places.out = out;
    int64_t rows = job->product.stride * job->product.parts;
    stages[0] = (edb_stage){list_places, job, 1, 1};
    stages[1] = (edb_stage){prepare, job, rows, edb_chunk(context->pool, rows)};
    stages[2] = (edb_stage){multiply_tiles, job,
                            most_active(op, n) * edb_matmul_tiles(&job->product), 1};
    return 3;
}
