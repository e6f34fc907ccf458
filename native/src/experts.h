/* Mixtures of experts as stages of a job and as rows: experts.c. */
#ifndef EDB_EXPERTS_H
#define EDB_EXPERTS_H

#include "matmul.h"

enum { EDB_MAX_EXPERTS = 4096, EDB_MAX_CHOSEN = 128 };

/* The products of the chosen experts' matrices with n rows. */
typedef struct {
    edb_matmul_job product; /* of all places; its matrix stands for the shape of all */
    edb_places places;
    const edb_op *op;
    edb_rows route;
    int64_t n;
    int32_t n_active; /* experts that some token goes to */
    int32_t *expert;  /* [n_active], ascending */
    int32_t *first;   /* [n_active + 1], the first place of each, and how many there are */
    int32_t *token, *slot; /* [places] */
} edb_experts_job;

/* ROUTE, EXPERTS or MIX: what does not depend on slots. */
edb_status edb_check_experts(const edb_op *op);

/* Columns of what EXPERTS reads. */
int64_t edb_experts_columns(const edb_op *op);

uint64_t edb_experts_scratch(const edb_context *context, const edb_op *op, int64_t n);

/* EXPERTS for n <= EDB_BATCH rows: fills the job and three stages; returns how many. */
int32_t edb_experts_stages(const edb_context *context, const edb_op *op, edb_rows x,
                           edb_rows route, edb_rows out, int64_t n, void *scratch,
                           edb_experts_job *job, edb_stage *stages);

/* ROUTE and MIX of one token; out of ROUTE is not x. */
void edb_route_row(const edb_kernels *kernels, const edb_op *op, const float *logits, float *out);
void edb_mix_row(const edb_op *op, const float *y, const float *route, float *out);

#endif
