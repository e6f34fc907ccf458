/*
 * The operations of a pass, cut into the stages of their own files and given to the pool sixteen at a
 * time. One operation runs after the other, so one scratch serves all.
 */
#include "attention.h"
#include "experts.h"
#include "matmul.h"
#include "program.h"
#include "rows.h"

/* ---- checks ---- */

/* How many positions there are at most. */
static int64_t positions_of(const edb_op *op) {
    if (op->code == EDB_OP_POSITION) return op->matrix->rows;
    return edb_is_turned(op) ? op->positions : EDB_MAX_TOKENS;
}

static edb_attention_shape shape_of(const edb_op *op, const edb_span *span) {
    return (edb_attention_shape){op->n_heads, op->n_kv_heads, op->head_dim, span->cache_kind,
                                 span->capacity};
}

static edb_status check_spans(const edb_program *p, int64_t n, const edb_span *spans,
                              int32_t n_spans) {
    if (!p->is_positional) return EDB_OK;
    if (spans == NULL) return EDB_ERR_NULL;
    if (n_spans < 1 || n_spans > n) return EDB_ERR_SHAPE;
    for (int32_t s = 0; s < n_spans; s++) {
        if (spans[s].n < 1 || spans[s].n > n) return EDB_ERR_SHAPE;
        n -= spans[s].n;
        if (p->n_caches > 0 && spans[s].offsets == NULL) return EDB_ERR_NULL;
    }
    if (n != 0) return EDB_ERR_SHAPE;
    for (int32_t i = 0; i < p->n_ops; i++) {
        const edb_op *op = &p->ops[i];
        if (!edb_is_positional(op)) continue;
        for (int32_t s = 0; s < n_spans; s++) {
            const edb_span *span = &spans[s];
            if (span->pos < 0 || span->pos > positions_of(op) - span->n) return EDB_ERR_RANGE;
            if (op->code != EDB_OP_ATTENTION) continue;
            edb_attention_shape shape = shape_of(op, span);
            edb_status status = edb_check_attention(&shape, span->n, span->pos);
            if (status != EDB_OK) return status;
            int64_t offset = span->offsets[op->cache], bytes = edb_page_bytes(&shape);
            if (offset < 0 || offset % 4 != 0 || bytes > span->page_bytes ||
                offset > span->page_bytes - bytes)
                return EDB_ERR_RANGE;
        }
    }
    for (int32_t s = 0; p->n_caches > 0 && s < n_spans; s++) {
        edb_status status = edb_check_pages(spans[s].pages, spans[s].pos + spans[s].n);
        if (status != EDB_OK) return status;
    }
    return EDB_OK;
}

static edb_status check_rows(const edb_program *p, const int32_t *ids, float *const *slots,
                             int64_t n) {
    for (int32_t i = 0; i < p->n_slots; i++) {
        if (slots[i] == NULL) return EDB_ERR_NULL;
        if (!edb_aligned(slots[i], 4)) return EDB_ERR_ALIGN;
    }
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (p->ops[i].code != EDB_OP_EMBED) continue;
        if (ids == NULL) return EDB_ERR_NULL;
        if (!edb_aligned(ids, 4)) return EDB_ERR_ALIGN;
        for (int64_t t = 0; t < n; t++)
            if (ids[t] < 0 || ids[t] >= p->ops[i].matrix->rows) return EDB_ERR_RANGE;
    }
    return EDB_OK;
}

/* With caches filled up to `full` ? their capacity : this pass. */
static uint64_t scratch_for(const edb_context *context, const edb_program *p, int64_t n,
                            const edb_span *spans, int32_t n_spans, int full) {
    uint64_t largest = 1;
    for (int32_t kind = 0; kind <= EDB_F16; kind++) {
        if (p->widest[kind] == NULL) continue;
        uint64_t size = edb_matmul_scratch(context, p->widest[kind], n);
        largest = size > largest ? size : largest;
    }
    for (int32_t i = 0; i < p->n_ops; i++) {
        if (p->ops[i].code == EDB_OP_EXPERTS) {
            uint64_t size = edb_experts_scratch(context, &p->ops[i], n);
            largest = size > largest ? size : largest;
        }
        if (p->ops[i].code != EDB_OP_ATTENTION) continue;
        for (int32_t s = 0; s < n_spans; s++) {
            edb_attention_shape shape = shape_of(&p->ops[i], &spans[s]);
            int64_t positions = full ? spans[s].capacity : spans[s].pos + spans[s].n;
            uint64_t size = edb_attention_scratch(context, &shape, spans[s].n, positions);
            largest = size > largest ? size : largest;
        }
    }
    return largest;
}

size_t edb_program_scratch_bytes(const edb_context *context, const edb_program *program, int64_t n,
                                 const edb_span *spans, int32_t n_spans) {
    if (context == NULL || program == NULL || n < 1 || n > EDB_BATCH) return 0;
    if (check_spans(program, n, spans, n_spans) != EDB_OK) return 0;
    uint64_t bytes =
        scratch_for(context, program, n, spans, program->is_positional ? n_spans : 0, 1);
    return bytes <= SIZE_MAX ? (size_t)bytes : 0;
}

/* ---- the run ---- */

typedef union {
    edb_matmul_job product;
    edb_attention_job attention;
    edb_row_job rows;
    edb_experts_job experts;
} any_job;

typedef struct {
    const edb_context *context;
    const edb_program *program;
    float *const *slots;
    const int32_t *ids;
    void *scratch;
    int64_t n;
    edb_stage stages[EDB_MAX_STAGES];
    any_job jobs[EDB_MAX_STAGES];
    int32_t n_stages, n_jobs;
} run_state;

static void flush(run_state *run) {
    if (run->n_stages > 0) edb_pool_run_stages(run->context->pool, run->stages, run->n_stages);
    run->n_stages = run->n_jobs = 0;
}

enum { STAGES_OF_ONE = 3 }; /* of any operation and span */

static any_job *next_job(run_state *run) {
    if (run->n_stages + STAGES_OF_ONE > EDB_MAX_STAGES) flush(run);
    return &run->jobs[run->n_jobs++];
}

static edb_rows rows_of(const run_state *run, edb_view view, int64_t row) {
    int64_t stride = run->program->widths[view.slot];
    return (edb_rows){run->slots[view.slot] + row * stride + view.column, stride};
}

static void add_linear(run_state *run, const edb_op *op) {
    edb_matmul_job *job = &next_job(run)->product;
    edb_input input = {.form = op->input,
                       .x = run->slots[op->x.slot],
                       .weight = op->weight,
                       .shift = op->shift,
                       .eps = op->eps,
                       .activation = op->activation};
    run->n_stages += edb_matmul_stages(run->context, op->matrix, input, op->bias,
                                       run->slots[op->out.slot], op->add, run->n, run->scratch,
                                       job, run->stages + run->n_stages);
}

static void add_attention(run_state *run, const edb_op *op, const edb_span *span, int64_t row) {
    edb_attention_job *job = &next_job(run)->attention;
    *job = (edb_attention_job){.kernels = run->context->isa->kernels,
                               .shape = shape_of(op, span),
                               .q = rows_of(run, op->x, row),
                               .k = rows_of(run, op->y, row),
                               .v = rows_of(run, op->z, row),
                               .out = rows_of(run, op->out, row),
                               .q_norm = op->q_norm,
                               .k_norm = op->k_norm,
                               .eps = op->eps,
                               .cos = op->cos,
                               .sin = op->sin,
                               .q_cos = op->q_cos,
                               .q_sin = op->q_sin,
                               .pages = span->pages,
                               .offset = span->offsets[op->cache],
                               .n = span->n,
                               .pos = span->pos,
                               .scale = op->scale,
                               .slopes = op->slopes,
                               .cap = op->cap,
                               .window = op->window,
                               .sinks = op->sinks};
    edb_lay_out_attention(job, run->scratch);
    run->n_stages += edb_store_stages(run->context, job, run->stages + run->n_stages);
    run->n_stages += edb_attention_stages(job, run->stages + run->n_stages);
}

/* Rows row..row+n-1, which are positions pos..pos+n-1. */
static void add_rows(run_state *run, const edb_op *op, int64_t row, int64_t n, int64_t pos) {
    edb_row_job *job = &next_job(run)->rows;
    *job = (edb_row_job){.kernels = run->context->isa->kernels,
                         .op = op,
                         .x = rows_of(run, op->x, row),
                         .y = rows_of(run, op->y, row),
                         .out = rows_of(run, op->out, row),
                         .ids = run->ids,
                         .pos = pos};
    run->stages[run->n_stages++] = edb_row_stage(run->context, job, n);
}

static void add_experts(run_state *run, const edb_op *op) {
    edb_experts_job *job = &next_job(run)->experts;
    run->n_stages += edb_experts_stages(run->context, op, rows_of(run, op->x, 0),
                                        rows_of(run, op->y, 0), rows_of(run, op->out, 0), run->n,
                                        run->scratch, job, run->stages + run->n_stages);
}

static void add_op(run_state *run, const edb_op *op, const edb_span *spans, int32_t n_spans) {
    if (op->code == EDB_OP_LINEAR) {
        add_linear(run, op);
    } else if (op->code == EDB_OP_EXPERTS) {
        add_experts(run, op);
    } else if (edb_is_positional(op)) {
        int64_t row = 0;
        for (int32_t s = 0; s < n_spans; row += spans[s++].n) {
            if (op->code == EDB_OP_ATTENTION) {
                add_attention(run, op, &spans[s], row);
            } else {
                add_rows(run, op, row, spans[s].n, spans[s].pos);
            }
        }
    } else {
        add_rows(run, op, 0, run->n, 0);
    }
}

edb_status edb_program_run(const edb_context *context, const edb_program *program,
                           const int32_t *ids, float *const *slots, int64_t n,
                           const edb_span *spans, int32_t n_spans, void *scratch,
                           size_t scratch_bytes) {
    if (context == NULL || program == NULL || slots == NULL || scratch == NULL) return EDB_ERR_NULL;
    if (n < 1 || n > EDB_BATCH) return EDB_ERR_SHAPE;
    edb_status status = check_spans(program, n, spans, n_spans);
    if (status == EDB_OK) status = check_rows(program, ids, slots, n);
    if (status != EDB_OK) return status;
    if (!program->is_positional) n_spans = 0;
    if (scratch_for(context, program, n, spans, n_spans, 0) > scratch_bytes) return EDB_ERR_SCRATCH;

    run_state run = {.context = context, .program = program, .slots = slots, .ids = ids,
                     .scratch = scratch, .n = n};
    for (int32_t i = 0; i < program->n_ops; i++) add_op(&run, &program->ops[i], spans, n_spans);
    flush(&run);
    return EDB_OK;
}
