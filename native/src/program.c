/*
 * A pass as a list of operations, cut into the stages of their own files and given to the pool
 * sixteen at a time. One operation runs after the other, so one scratch serves all.
 */
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "experts.h"

enum { MAX_OPS = 1 << 20, MAX_SLOTS = 1 << 12, MAX_HEADS = 1024 };

struct edb_program {
    int64_t *widths;
    int32_t n_slots, n_ops, n_caches;
    int32_t is_positional; /* has an operation that asks for spans */
    const edb_matrix *widest[EDB_F16 + 1]; /* of each kind, 0: with half a pair; they measure scratch */
    edb_op ops[];
};

/* ---- checks, once ---- */

static int is_turned(const edb_op *op) { return op->cos != NULL || op->q_cos != NULL; }

/* Whether a row's position counts, which its span says. */
static int is_positional(const edb_op *op) {
    return op->code == EDB_OP_ATTENTION || op->code == EDB_OP_ROPE || op->code == EDB_OP_POSITION;
}

/* How many positions there are at most. */
static int64_t positions_of(const edb_op *op) {
    if (op->code == EDB_OP_POSITION) return op->matrix->rows;
    return is_turned(op) ? op->positions : EDB_MAX_TOKENS;
}

static int has_view(const edb_program *p, edb_view view, int64_t width) {
    return view.slot >= 0 && view.slot < p->n_slots && view.column >= 0 && width >= 1 &&
           width <= p->widths[view.slot] - view.column;
}

static int has_slot(const edb_program *p, edb_view view, int64_t width) {
    return has_view(p, view, width) && view.column == 0 && p->widths[view.slot] == width;
}

static int overlap(edb_view a, int64_t a_width, edb_view b, int64_t b_width) {
    return a.slot == b.slot && a.column < b.column + b_width && b.column < a.column + a_width;
}

/* Of two views of one width: apart, or the same. */
static int is_apart_or_same(edb_view a, edb_view b, int64_t width) {
    return !overlap(a, width, b, width) || a.column == b.column;
}

/* A vector that an operation needs, or may do without. */
static edb_status check_floats(const float *floats, int needed) {
    if (floats == NULL) return needed ? EDB_ERR_NULL : EDB_OK;
    return edb_aligned(floats, 4) ? EDB_OK : EDB_ERR_ALIGN;
}

static int has_norm(const edb_op *op) {
    return op->input == EDB_INPUT_NORMED || op->input == EDB_INPUT_CENTERED;
}

static int has_activation(const edb_op *op) {
    return op->input == EDB_INPUT_GATED || op->input == EDB_INPUT_ACTIVATED;
}

static edb_status check_linear(const edb_program *p, const edb_op *op) {
    edb_status status = edb_check_matrix(op->matrix);
    if (status == EDB_OK) status = check_floats(op->bias, 0);
    if (status == EDB_OK) status = check_floats(op->weight, has_norm(op));
    if (status == EDB_OK) status = check_floats(op->shift, 0);
    if (status != EDB_OK) return status;
    if (op->input < EDB_INPUT_PLAIN || op->input > EDB_INPUT_ACTIVATED) return EDB_ERR_KIND;
    if (has_activation(op) && !edb_is_activation(op->activation)) return EDB_ERR_KIND;
    int64_t columns = op->matrix->cols * (op->input == EDB_INPUT_GATED ? 2 : 1);
    if (op->matrix->rows != op->width || op->x.slot == op->out.slot) return EDB_ERR_SHAPE;
    if (!has_slot(p, op->x, columns) || !has_slot(p, op->out, op->width)) return EDB_ERR_SHAPE;
    if (edb_is_dense(op->matrix) && op->bias != NULL && op->add) return EDB_ERR_KIND;
    return EDB_OK;
}

static edb_status check_tables(const edb_op *op, int needed) {
    edb_status status = check_floats(op->cos, needed);
    if (status == EDB_OK) status = check_floats(op->sin, needed || op->cos != NULL);
    if (status == EDB_OK) status = check_floats(op->q_cos, 0);
    if (status == EDB_OK) status = check_floats(op->q_sin, op->q_cos != NULL);
    if (status != EDB_OK) return status;
    int counted = op->positions >= 1 && op->positions <= EDB_MAX_TOKENS;
    return !is_turned(op) || counted ? EDB_OK : EDB_ERR_SHAPE;
}

static edb_status check_attention(const edb_program *p, const edb_op *op) {
    edb_attention_shape shape = {op->n_heads, op->n_kv_heads, op->head_dim, EDB_F32, 1};
    edb_status status = edb_check_shape(&shape);
    if (status == EDB_OK) status = check_tables(op, 0);
    if (status == EDB_OK) status = check_floats(op->sinks, 0);
    if (status == EDB_OK) status = check_floats(op->q_norm, op->k_norm != NULL);
    if (status == EDB_OK) status = check_floats(op->k_norm, op->q_norm != NULL);
    if (status == EDB_OK) status = check_floats(op->slopes, 0);
    if (status != EDB_OK) return status;
    int64_t q = (int64_t)op->n_heads * op->head_dim, kv = (int64_t)op->n_kv_heads * op->head_dim;
    if (!(op->cap >= 0.0f)) return EDB_ERR_RANGE;
    if (op->width != q || op->window < 1 || op->cache < 0 || op->cache >= MAX_OPS)
        return EDB_ERR_SHAPE;
    if (!has_view(p, op->x, q) || !has_view(p, op->y, kv) || !has_view(p, op->z, kv) ||
        !has_view(p, op->out, q))
        return EDB_ERR_SHAPE;
    if (overlap(op->x, q, op->y, kv) || overlap(op->x, q, op->z, kv) ||
        overlap(op->out, q, op->x, q) || overlap(op->out, q, op->y, kv) ||
        overlap(op->out, q, op->z, kv))
        return EDB_ERR_SHAPE;
    return EDB_OK;
}

static edb_status check_heads(const edb_op *op) {
    if (op->heads < 1 || op->heads > MAX_HEADS || op->width % op->heads != 0) return EDB_ERR_SHAPE;
    if (op->code == EDB_OP_RMS_NORM || op->code == EDB_OP_LAYER_NORM) {
        edb_status status = check_floats(op->weight, 1);
        return status == EDB_OK ? check_floats(op->shift, 0) : status;
    }
    return op->width / op->heads % 2 == 0 ? check_tables(op, 1) : EDB_ERR_SHAPE;
}

/* ROUTE, EXPERTS or MIX: out lies apart from what is read. */
static edb_status check_mixture(const edb_program *p, const edb_op *op) {
    edb_status status = edb_check_experts(op);
    if (status != EDB_OK) return status;
    int64_t x = op->experts, y = op->code == EDB_OP_ROUTE ? 0 : op->experts;
    if (op->code == EDB_OP_ROUTE && op->width != op->experts) return EDB_ERR_SHAPE;
    if (op->code == EDB_OP_EXPERTS) x = edb_experts_columns(op);
    if (op->code == EDB_OP_MIX) x = op->width * op->chosen;
    int fits = has_view(p, op->x, x) && has_view(p, op->out, op->width) &&
               (y == 0 || has_view(p, op->y, y));
    int apart = !overlap(op->out, op->width, op->x, x) && !overlap(op->out, op->width, op->y, y);
    return fits && apart ? EDB_OK : EDB_ERR_SHAPE;
}

static edb_status check_op(const edb_program *p, const edb_op *op) {
    switch (op->code) {
    case EDB_OP_EMBED:
    case EDB_OP_POSITION: {
        edb_status status = edb_check_matrix(op->matrix);
        if (status != EDB_OK) return status;
        int fits = op->matrix->cols == op->width && has_slot(p, op->out, op->width);
        return fits ? EDB_OK : EDB_ERR_SHAPE;
    }
    case EDB_OP_LINEAR: return check_linear(p, op);
    case EDB_OP_ATTENTION: return check_attention(p, op);
    case EDB_OP_ROUTE:
    case EDB_OP_EXPERTS:
    case EDB_OP_MIX: return check_mixture(p, op);
    case EDB_OP_RMS_NORM:
    case EDB_OP_LAYER_NORM:
    case EDB_OP_ROPE: {
        edb_status status = check_heads(op);
        if (status != EDB_OK) return status;
        break;
    }
    case EDB_OP_CLAMPED_GATE:
        if (!(op->limit > 0)) return EDB_ERR_RANGE;
        if (!has_view(p, op->y, op->width) || !is_apart_or_same(op->y, op->out, op->width))
            return EDB_ERR_SHAPE;
        break;
    case EDB_OP_ADD:
    case EDB_OP_MUL:
        if (!has_view(p, op->y, op->width) || !is_apart_or_same(op->y, op->out, op->width))
            return EDB_ERR_SHAPE;
        break;
    case EDB_OP_SOFTCAP:
        if (!(op->cap > 0.0f)) return EDB_ERR_RANGE;
        break;
    case EDB_OP_COPY: break;
    default:
        if (!edb_is_activation(op->code)) return EDB_ERR_KIND;
    }
    int fits = has_view(p, op->x, op->width) && has_view(p, op->out, op->width) &&
               is_apart_or_same(op->x, op->out, op->width);
    return fits ? EDB_OK : EDB_ERR_SHAPE;
}

/* What a run needs to know of all operations together. */
static void note(edb_program *p, const edb_op *op) {
    if (op->code == EDB_OP_ATTENTION && op->cache >= p->n_caches) p->n_caches = op->cache + 1;
    if (is_positional(op)) p->is_positional = 1;
    if (op->code == EDB_OP_LINEAR) {
        /* Pairs with a half are expanded from another number of tokens on, which changes scratch. */
        int has_half = op->matrix->kind == EDB_PAIRS && op->matrix->half != NULL;
        const edb_matrix **widest = &p->widest[has_half ? 0 : op->matrix->kind];
        if (*widest == NULL || op->matrix->cols > (*widest)->cols) *widest = op->matrix;
    }
}

edb_status edb_program_create(const edb_op *ops, int32_t n_ops, const int64_t *widths,
                              int32_t n_slots, edb_program **program, int32_t *wrong) {
    if (ops == NULL || widths == NULL || program == NULL || wrong == NULL) return EDB_ERR_NULL;
    *program = NULL;
    *wrong = -1;
    if (n_ops < 1 || n_ops > MAX_OPS || n_slots < 1 || n_slots > MAX_SLOTS) return EDB_ERR_SHAPE;
    for (int32_t i = 0; i < n_slots; i++)
        if (widths[i] < 1 || widths[i] > EDB_MAX_DIM) return EDB_ERR_SHAPE;
    edb_program *p = calloc(1, sizeof *p + (size_t)n_ops * sizeof *ops);
    int64_t *copy = malloc((size_t)n_slots * sizeof *widths);
    if (p == NULL || copy == NULL) {
        free(p);
        free(copy);
        return EDB_ERR_MEMORY;
    }
    memcpy(p->ops, ops, (size_t)n_ops * sizeof *ops);
    memcpy(copy, widths, (size_t)n_slots * sizeof *widths);
    p->widths = copy;
    p->n_slots = n_slots;
    p->n_ops = n_ops;
    for (int32_t i = 0; i < n_ops; i++) {
        edb_status status = check_op(p, &p->ops[i]);
        if (status != EDB_OK) {
            *wrong = i;
            edb_program_destroy(p);
            return status;
        }
        note(p, &p->ops[i]);
    }
    *program = p;
    return EDB_OK;
}

void edb_program_destroy(edb_program *program) {
    if (program == NULL) return;
    free(program->widths);
    free(program);
}

/* ---- checks of a run ---- */

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
        if (!is_positional(op)) continue;
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
    } else if (is_positional(op)) {
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
