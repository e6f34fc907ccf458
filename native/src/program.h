/* What program.c makes and program_run.c runs. */
#ifndef EDB_PROGRAM_H
#define EDB_PROGRAM_H

#include "internal.h"

struct edb_program {
    int64_t *widths;
    int32_t n_slots, n_ops, n_caches;
    int32_t is_positional; /* has an operation that asks for spans */
    const edb_matrix *widest[EDB_F16 + 1]; /* of each kind, 0: with half a pair; they measure scratch */
    edb_op ops[];
};

static inline int edb_is_turned(const edb_op *op) { return op->cos != NULL || op->q_cos != NULL; }

/* Whether a row's position counts, which its span says. */
static inline int edb_is_positional(const edb_op *op) {
    return op->code == EDB_OP_ATTENTION || op->code == EDB_OP_ROPE || op->code == EDB_OP_POSITION;
}

#endif
