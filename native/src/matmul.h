/* Matrix products as stages of a job: matmul.c, and pairs.c for the tasks that read planes. */
#ifndef EDB_MATMUL_H
#define EDB_MATMUL_H

#include "internal.h"

/* Activations before a product. */
typedef struct {
    int32_t form;        /* EDB_INPUT_PLAIN ... */
    const float *x;      /* [n, cols]; EDB_INPUT_GATED: [n, 2 * cols] */
    const float *weight; /* [cols], of the norm */
    const float *shift;  /* the same, or NULL */
    float eps;
    int32_t activation; /* of the gate: EDB_OP_SILU ... */
} edb_input;

/*
 * Where the rows of an experts' product lie (experts.c): place p is token[p]'s, whose `slot[p]`-th
 * expert it is. Places are ordered by expert, then by token.
 */
typedef struct {
    const int32_t *token, *slot;
    edb_rows x, out;
    int64_t chosen;   /* experts of a token */
    int32_t own;      /* x holds columns for each slot, else one row for all */
    int32_t by_token; /* activations are prepared once a token, not once a place */
    int64_t part;     /* rows of W that lie side by side in out; those of the next slot follow */
} edb_places;

typedef struct {
    const edb_kernels *kernels;
    const edb_pair_kernel *pairs; /* NULL for other kinds */
    const edb_matrix *matrix;
    edb_input input;
    float *out;        /* [n, rows] */
    const float *bias; /* [rows], added to W x; NULL: none */
    const edb_places *places; /* NULL: x, out and rows of activations lie token by token */
    const void *next;         /* what is read after the last tile; NULL: what lies behind it */
    int64_t n, tiles, groups, token_blocks;
    int64_t stride; /* rows of activations: n, or of all experts' places */
    int64_t parts; /* runs of groups that are prepared apart, for each token */
    int64_t apart; /* tiles between the two of a task that reads two in turns; 0: it does not */
    int32_t add;
    int32_t one_by_one;   /* the pair kernel token by token, else expanded blocks */
    int32_t by_rows;      /* its tile_rows and half_rows, one by one */
    int8_t *q;            /* [groups, stride, 64] */
    float *sx;            /* [groups, stride] */
    int32_t *offsets;     /* [groups, stride], not one by one, if the set wants them */
    uint8_t *prepared;    /* [stride, pitch, prepared_bytes], only one by one */
    edb_group_meta *meta; /* [stride, pitch], only one by one */
    float *dense;         /* [stride, cols], what a dense matrix reads in place of q */
} edb_matmul_job;

/* Bytes of scratch for up to n tokens, at most EDB_BATCH at once, with any form of input. */
uint64_t edb_matmul_scratch(const edb_context *context, const edb_matrix *matrix, int64_t n);

/*
 * out [+]= W input + bias for n <= EDB_BATCH tokens: fills the job and up to two stages; returns how
 * many. A dense matrix takes a bias or adds to out, not both.
 */
int32_t edb_matmul_stages(const edb_context *context, const edb_matrix *matrix, edb_input input,
                          const float *bias, float *out, int32_t add, int64_t n, void *scratch,
                          edb_matmul_job *job, edb_stage *stages);

int edb_is_dense(const edb_matrix *matrix);

/*
 * What edb_matmul_stages is made of, for experts.c: a job without its pointers, scratch cut into its
 * arrays (bytes of it; NULL only counts), and the tasks: of each row's activations, as
 * (rows * parts), and of each tile of rows, `edb_matmul_tiles` of them.
 */
edb_matmul_job edb_matmul_describe(const edb_context *context, const edb_matrix *matrix,
                                   edb_input input, int64_t n);
uint64_t edb_matmul_lay_out(edb_matmul_job *job, char *scratch);
void edb_matmul_prepare(const edb_matmul_job *job, int64_t row, int64_t part);
/* The same job for `n` of its rows, from `first` on. */
void edb_matmul_narrow(edb_matmul_job *job, int64_t first, int64_t n);
int64_t edb_matmul_tiles(const edb_matmul_job *job);
void edb_matmul_tile(const edb_matmul_job *job, int64_t tile, int32_t worker);

/* ---- what tasks share ---- */

/* edb_write_rows, of a place (experts.c). */
void edb_write_place(const edb_matmul_job *job, int64_t place, int64_t row, int64_t rows,
                     const float *y);

/* out [+]= y + bias, every sum rounded; y, bias and out are those of row `row` on. */
static inline void edb_write_rows(const edb_matmul_job *job, int64_t t, int64_t row, int64_t rows,
                                  const float *y) {
    if (job->places != NULL) {
        edb_write_place(job, t, row, rows, y);
        return;
    }
    float *out = job->out + t * job->matrix->rows + row;
    if (job->bias == NULL) {
        for (int64_t r = 0; r < rows; r++) out[r] = job->add ? out[r] + y[r] : y[r];
    } else {
        const float *bias = job->bias + row;
        for (int64_t r = 0; r < rows; r++)
            out[r] = job->add ? out[r] + (y[r] + bias[r]) : y[r] + bias[r];
    }
}

/*
 * Groups from a row of prepared activations to the next, an odd number: rows of tables that lay a multiple
 * of 4 KiB apart would share a few sets of the caches, which do not hold sixteen of them.
 */
static inline int64_t edb_prepared_pitch(const edb_matmul_job *job) { return job->groups | 1; }

/* The row of prepared activations of token or place t. */
static inline int64_t edb_prepared_row(const edb_matmul_job *job, int64_t t) {
    return job->places != NULL && job->places->by_token ? job->places->token[t] : t;
}

/* Tokens from which on the blocks of a matrix are expanded. */
int64_t edb_expands_from(const edb_pair_kernel *pairs, const edb_matrix *matrix);

/* Up to EDB_TOKEN_BLOCK tokens from this one on. */
edb_tokens edb_tokens_from(const edb_matmul_job *job, int64_t token);

/* A task is a tile; or two; or a tile for one block of tokens, where neighbouring tasks share the tile. */
void edb_pairs_one_by_one(void *job, int64_t begin, int64_t end, int32_t worker);
void edb_pairs_two_tiles(void *job, int64_t begin, int64_t end, int32_t worker);
void edb_pairs_by_expansion(void *job, int64_t begin, int64_t end, int32_t worker);

#endif
