/* A pass as a list of operations: checked once, then run by program_run.c as often as wanted. */
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "experts.h"
#include "matmul.h"
#include "program.h"

enum { MAX_OPS = 1 << 20, MAX_SLOTS = 1 << 12, MAX_HEADS = 1024 };

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
    return !edb_is_turned(op) || counted ? EDB_OK : EDB_ERR_SHAPE;
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
    if (edb_is_positional(op)) p->is_positional = 1;
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
