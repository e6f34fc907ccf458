/* Operations on one token's row as stages of a job: rows.c. */
#ifndef EDB_ROWS_H
#define EDB_ROWS_H

#include "internal.h"

typedef struct {
    const edb_kernels *kernels;
    const edb_op *op; /* any but LINEAR, EXPERTS and ATTENTION */
    edb_rows x, y, out;
    const int32_t *ids; /* EMBED */
    int64_t pos;        /* ROPE, POSITION: of the first row */
} edb_row_job;

/* Tasks are the n rows. */
edb_stage edb_row_stage(const edb_context *context, edb_row_job *job, int64_t n);

#endif
