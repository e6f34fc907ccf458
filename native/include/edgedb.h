/*
 * edgedb: the operations of a decoder-only language model at two bits a weight, on the CPU.
 *
 * The one public header. Everything is row-major and float32 unless it says otherwise; the caller
 * owns all memory. A call never prints, aborts or allocates, except edb_*_create, which allocate.
 * A function that can fail returns an edb_status and, on failure, has changed nothing.
 *
 * The result of every operation is defined to the last bit (docs/format.md has the numerics): the
 * instruction set, the number of threads and whether tokens are given together or one by one never
 * change it, and no kernel does but those called approximate. Only the payload of a NaN is
 * unspecified.
 *
 * Threads: a context and a pool may be used from several threads at once; scratch and outputs must
 * then differ. While a pool works for one caller, the work of another runs on that caller's thread.
 *
 * Apart from the preprocessor lines this file is plain declarations, and the cffi binding is
 * derived from it.
 */
#ifndef EDGEDB_H
#define EDGEDB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* CRC-32 of this file when the library was built, for who reads it at run time; 0: not told. */
uint32_t edb_header_crc(void);

/* ---- status ---- */

typedef int32_t edb_status;

enum {
    EDB_OK = 0,
    EDB_ERR_NULL = 1,    /* a required pointer is NULL */
    EDB_ERR_ALIGN = 2,   /* weights are not on a 64-byte boundary, or floats not on a 4-byte one */
    EDB_ERR_SHAPE = 3,   /* a size is zero, negative, implausibly large, or sizes disagree */
    EDB_ERR_KIND = 4,    /* unknown kind of matrix or type of cache */
    EDB_ERR_RANGE = 5,   /* a token id or a position is outside its matrix or cache */
    EDB_ERR_SCRATCH = 6, /* scratch is smaller than edb_*_scratch_bytes asks for */
    EDB_ERR_ISA = 7,     /* the instruction set is unknown, or this CPU does not have it */
    EDB_ERR_MEMORY = 8,  /* out of memory, in edb_*_create */
    EDB_ERR_THREAD = 9,  /* the operating system refused a thread, in edb_pool_create */
    EDB_ERR_KERNEL = 10  /* the instruction set has no kernel of this name */
};

/* One line for a status; never NULL, also for a number that is none. */
const char *edb_status_text(edb_status status);

/* ---- instruction sets: the list this library was built with, best first, "scalar" last ---- */

/* Number of rows in the list, at least 1. */
int32_t edb_isa_count(void);

/* Short name of row `index`, as EDGEDB_ISA takes it ("avx2"); NULL outside the list. */
const char *edb_isa_name(int32_t index);

/* What the row uses, for people; NULL outside the list. */
const char *edb_isa_description(int32_t index);

/* 1 if this CPU and its operating system can run row `index`, else 0. */
int32_t edb_isa_supported(int32_t index);

/*
 * Name of pair kernel `index` of instruction set `isa` (NULL: the best this CPU has), the fastest
 * measured there first; NULL outside the list, and for a set that cannot run here. A pair kernel is
 * a way to multiply the bit planes of EDB_PAIRS with one token:
 *
 *   "lookup"     table look-ups of the sums of four activations
 *   "popcount"   AND with the eight bit planes of the activations, and bit counts; same results
 *   "popcount4"  the same with four bit planes: activations are rounded to 4 bits, an approximation
 */
const char *edb_kernel_name(const char *isa, int32_t index);

/* ---- threads ---- */

/*
 * Cores of the fastest kind that this process may use, where macOS or Windows tells: a thread on a
 * slow core holds up those on fast ones. 0 where the system does not tell kinds apart, as Linux.
 */
int32_t edb_fast_cores(void);

typedef struct edb_pool edb_pool;

/*
 * Starts n_threads - 1 threads; the caller of an operation is the remaining one. They spin for some
 * 30 us after a piece of work and then sleep. After fork() the child's operations run on their
 * calling thread. EDB_ERR_SHAPE unless 1 <= n_threads <= 256.
 */
edb_status edb_pool_create(int32_t n_threads, edb_pool **pool);

/* Joins the threads. No operation may be running. NULL is allowed. */
void edb_pool_destroy(edb_pool *pool);

/* The n_threads it was created with; 1 for NULL. */
int32_t edb_pool_threads(const edb_pool *pool);

/* ---- context: an instruction set, a pair kernel and a pool ---- */

typedef struct edb_context edb_context;

/*
 * isa: a name from the list, or NULL for the best this CPU has. kernel: a name that
 * edb_kernel_name lists for this set, or NULL for its first. pool: may be shared by contexts, is
 * not owned, must outlive the context; NULL runs everything on the calling thread.
 * EDB_ERR_ISA if the name is unknown or the CPU lacks it, EDB_ERR_KERNEL if the set lacks the kernel.
 */
edb_status edb_context_create(const char *isa, const char *kernel, edb_pool *pool,
                              edb_context **context);

/* Frees the context, not its pool. NULL is allowed. */
void edb_context_destroy(edb_context *context);

/* Name of the instruction set whose kernels this context calls; NULL for NULL. */
const char *edb_context_isa(const edb_context *context);

/* Name of the pair kernel it calls; NULL for NULL. */
const char *edb_context_kernel(const edb_context *context);

/* ---- weight matrices ---- */

enum {
    EDB_PAIRS = 1, /* stacked pairs of bit planes, 2.25 bits a weight and pair; half a pair 1.125 */
    EDB_INT8 = 2,  /* int8 codes with one float32 scale for 64 columns of a row */
    EDB_F32 = 3,   /* plain float32 */
    EDB_F16 = 4    /* plain IEEE binary16 */
};

/*
 * A view of a weight matrix [rows, cols], tiles = ceil(rows / 64), groups = ceil(cols / 64):
 *
 *   EDB_PAIRS  data   uint8 [pairs, tiles, groups, 1152]: for quad 0..15, for lane 0..63 one byte,
 *                     low nibble b1, high nibble b2, bit k = column 64*group + 4*quad + k,
 *                     lane = row of the tile; then int8 c1[64], int8 c2[64]
 *              half   NULL, or a last pair of one plane, uint8 [tiles, groups, 576]: for i 0..7, for
 *                     lane 0..63 one byte, bit k = column 64*group + 8*i + k; then int8 c1[64]
 *              scales float [pairs, rows], a row more for the half; weight = sum over pairs of
 *                     scale * (c1*b1 + c2*b2), with |c1|, |c2|, |c1 + c2| <= 127, and scale * c1*b1
 *                     of the half
 *   EDB_INT8   data   int8 [tiles, groups, 4096]: for quad 0..15, for lane 0..63 four codes, of
 *                     columns 64*group + 4*quad + 0..3, each in [-127, 127]
 *              scales float [tiles, groups, 64]; weight = scale * code
 *   EDB_F32    data   float [rows, cols]; scales unused
 *   EDB_F16    data   uint16 bit patterns [rows, cols]; scales unused
 *
 * Padding rows and columns are zero. data lies on a 64-byte boundary and is never written.
 */
typedef struct {
    int32_t kind;  /* EDB_PAIRS ... */
    int32_t pairs; /* 1..8 for EDB_PAIRS, with a half also 0; ignored otherwise */
    int64_t rows;
    int64_t cols;
    const void *data;
    const float *scales;
    const void *half; /* on a 64-byte boundary, too; ignored for other kinds */
} edb_matrix;

/*
 * out[t] = row ids[t] of the matrix, as float32; EDB_ERR_RANGE if an id is no row.
 * ids [n], out [n, cols]. Pairs add in order: s0*w0, then + s1*w1, every step rounded.
 */
edb_status edb_embed(const edb_context *context, const edb_matrix *matrix, const int32_t *ids,
                     float *out, int64_t n);

/* Bytes of scratch that edb_matmul needs for n tokens; 0 if an argument is invalid. */
size_t edb_matmul_scratch_bytes(const edb_context *context, const edb_matrix *matrix, int64_t n);

/*
 * out[t] = W x[t], or out[t] + W x[t] if add is not 0. x [n, cols], out [n, rows], no overlap.
 *
 * EDB_PAIRS and EDB_INT8 quantize x to int8 as edb_quantize does, take exact integer sums over each
 * group of 64 columns, and join the groups in ascending order by one fused multiply-add each.
 * EDB_F32 and EDB_F16 sum columns l, l+16, l+32, ... in lane l of 16 by fused multiply-adds in
 * ascending order, then add the lanes in a tree: l += l+8, += l+4, += l+2, += l+1.
 *
 * A token whose x has a NaN or an infinity gives NaN outputs (EDB_PAIRS, EDB_INT8).
 */
edb_status edb_matmul(const edb_context *context, const edb_matrix *matrix, const float *x,
                      float *out, int64_t n, int32_t add, void *scratch, size_t scratch_bytes);

/*
 * Per token and group of 64 columns: sx = max|x| / 127, q = round-half-even(x / sx) in
 * [-127, 127]. A group with max|x|/127 below the smallest normal float has sx = 0, q = 0; one with
 * a NaN or an infinity has sx = NaN, q = 0. x [n, cols] is zero-padded to whole groups:
 * q int8 [n, groups * 64], sx [n, groups].
 */
edb_status edb_quantize(const edb_context *context, const float *x, int8_t *q, float *sx, int64_t n,
                        int64_t cols);

/* ---- the rest of a layer ---- */

/*
 * out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight. x, out [n, d] (may be the same), weight [d].
 * The squares are summed in 16 lanes and the tree of edb_matmul.
 */
edb_status edb_rmsnorm(const edb_context *context, const float *x, const float *weight, float *out,
                       int64_t n, int64_t d, float eps);

/*
 * out[t] = (x[t] - mean(x[t])) / sqrt(variance(x[t]) + eps) * weight + shift, the last two as one
 * fused multiply-add. x, out [n, d] (may be the same), weight [d], shift [d] or NULL, which is 0.
 * The sum, and then that of (x - mean)^2, run in 16 lanes and the tree of edb_matmul.
 */
edb_status edb_layernorm(const edb_context *context, const float *x, const float *weight,
                         const float *shift, float *out, int64_t n, int64_t d, float eps);

/*
 * out[t] = activation(gate) * up with gate_up[t] = (gate, up): gate_up [n, 2*f], out [n, f].
 * activation: EDB_OP_SILU or EDB_OP_GELU_TANH; EDB_ERR_KIND for another.
 */
edb_status edb_gate(const edb_context *context, int32_t activation, const float *gate_up,
                    float *out, int64_t n, int64_t f);

/* Positions of a page of a cache, and keys whose softmax is taken apart: part of the numerics. */
enum { EDB_PAGE = 256 };

/*
 * Heads of one layer. A sequence's cache is a table of pages on 4-byte boundaries, of EDB_PAGE
 * positions each: keys and then values, [2, n_kv_heads, EDB_PAGE] rows of head_dim float32 or binary16.
 * In int8 rows are what edb_quantize makes of them, and a head's keys in a page lie as an EDB_INT8
 * matrix does whose rows they are, its values as those do of which a key is a column:
 *
 *   keys    int8 [EDB_PAGE / 64, groups, 4096], then float32 scales [EDB_PAGE / 64, groups, 64]
 *   values  int8 [groups, EDB_PAGE / 64, 4096], then float32 scales [groups, EDB_PAGE]
 *
 * where groups = ceil(head_dim / 64), of columns, zeros behind head_dim. Sequences may share pages as
 * long as nobody writes into them. Pages below pos + n are there, later ones are not looked at.
 */
typedef struct {
    int32_t n_heads; /* a multiple of n_kv_heads */
    int32_t n_kv_heads;
    int32_t head_dim;   /* even */
    int32_t cache_kind; /* EDB_F32, EDB_F16 or EDB_INT8 */
    int64_t capacity;   /* positions that a cache may hold */
} edb_attention_shape;

/*
 * Rotates the queries in place, rotates the keys, and stores keys and values at positions
 * pos..pos+n-1 of the cache. qkv [n, (n_heads + 2*n_kv_heads) * head_dim]; cos, sin [capacity, head_dim/2].
 * Elements i and i + head_dim/2 of a head form a pair. EDB_ERR_RANGE unless pos + n <= capacity.
 */
edb_status edb_rope(const edb_context *context, const edb_attention_shape *shape, float *qkv,
                    const float *cos, const float *sin, void *const *pages, int64_t n, int64_t pos);

/*
 * Bytes of scratch that edb_attention needs for n tokens when pos + n is at most `positions`; 0 if
 * an argument is invalid.
 */
size_t edb_attention_scratch_bytes(const edb_context *context, const edb_attention_shape *shape,
                                   int64_t n, int64_t positions);

/*
 * Causal attention of the n rotated queries in qkv against cache rows 0..pos+t for query t, scores
 * scaled by 1/sqrt(head_dim). out [n, n_heads * head_dim].
 *
 * Keys are taken in blocks of EDB_PAGE, counted from position 0: m = the largest score of the block,
 * p = exp(score - m), t = sum p, o = sum p*v. Two blocks join, in ascending order, into
 * m = max(m1, m2), f1 = exp(m1 - m), f2 = exp(m2 - m), t = fma(t2, f2, t1*f1), o likewise;
 * the result is o / t. How sums run within a block: native/src/attention_body.h; over an int8 cache
 * they are sums of integers, of queries and weights quantized too: native/src/attention_int8.c.
 */
edb_status edb_attention(const edb_context *context, const edb_attention_shape *shape,
                         const float *qkv, void *const *pages, float *out, int64_t n, int64_t pos,
                         void *scratch, size_t scratch_bytes);

/* ---- choosing a token ---- */

/*
 * The k largest of n logits, largest first and of equal ones the lowest index first: ids [k],
 * values [k]. A NaN counts as larger than any number. EDB_ERR_SHAPE unless 1 <= k <= n.
 */
edb_status edb_select(const float *logits, int64_t n, int64_t k, int32_t *ids, float *values);

/* weights[i] = exp((logits[i] - top) / temperature) in float64, to the bits of exactmath.py. */
edb_status edb_softmax_weights(const float *logits, int64_t n, double top, double temperature,
                               double *weights);

/* ---- from text to tokens ---- */

/*
 * What neighbouring pieces of a vocabulary make together: pair i, of the piece whose run it is in and
 * of rights[i], makes results[i]. ends [n_pieces], ascending up to n_merges: run p is the pairs from
 * ends[p - 1] (0 for the first) to ends[p], whose rights [n_merges] ascend. ranks, results
 * [n_merges]: the lower rank is joined first.
 */
typedef struct {
    int64_t n_merges;
    int32_t n_pieces;
    const int32_t *ends;
    const int32_t *rights, *ranks, *results;
} edb_merges;

/* Bytes of scratch that edb_merge needs for words with these ends; 0 if an argument is invalid. */
size_t edb_merge_scratch_bytes(const int64_t *ends, int64_t n_words);

/*
 * Joins the pieces of each word in place, of all neighbours that make a piece always those of the
 * lowest rank, the leftmost first. ids [ends[n_words - 1]], ends [n_words] ascending, at most 2^28.
 * EDB_ERR_RANGE if an id is no piece, or the table is not as edb_merges says: then ids and ends hold
 * anything. Uses the calling thread only.
 */
edb_status edb_merge(const edb_merges *merges, int32_t *ids, int64_t *ends, int64_t n_words,
                     void *scratch, size_t scratch_bytes);

/* ---- a whole model ---- */

/*
 * A pass is a list of operations over slots: arrays [n, width] of floats, one row a token, that the
 * caller owns. A view is some columns of a slot.
 */
typedef struct {
    int32_t slot;
    int32_t column; /* the first */
} edb_view;

enum {
    EDB_OP_EMBED = 1,    /* out = row ids[t] of matrix */
    EDB_OP_LINEAR = 2,   /* out = W input + bias, or out + that with `add`; whole slots only */
    EDB_OP_RMS_NORM = 3, /* out = each of `heads` parts of x over its root mean square, * weight */
    EDB_OP_ADD = 4,      /* out = x + y */
    EDB_OP_MUL = 5,      /* out = x * y */
    EDB_OP_SILU = 6,     /* out = x / (1 + exp(-x)) */
    EDB_OP_COPY = 7,     /* out = x */
    EDB_OP_ROPE = 8,     /* out = each of `heads` heads of x turned by the token's position */
    EDB_OP_ATTENTION = 9, /* out = attention of queries x, keys y, values z; see edb_op */
    EDB_OP_GELU_TANH = 10, /* out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) */
    EDB_OP_LAYER_NORM = 11, /* out = each of `heads` parts of x as edb_layernorm makes it */
    EDB_OP_POSITION = 12,   /* out = row of matrix for the token's position */
    EDB_OP_RELU = 13,       /* out = x, or 0 where that is larger */
    EDB_OP_GELU = 14,       /* out = x/2 * (1 + erf(x / sqrt(2))) */
    EDB_OP_ROUTE = 15,      /* out = softmax of x, 0 but for the `chosen` largest; see edb_op */
    EDB_OP_EXPERTS = 16,    /* out = W input + bias of each expert that the route y is not 0 for */
    EDB_OP_MIX = 17,        /* out = sum of x's parts, one a chosen expert, times their shares in y */
    EDB_OP_CLAMPED_GATE = 18, /* out = (u + 1) * g / (1 + exp(-alpha g)), g = min(x, limit), u = y
                                within limit both ways */
    EDB_OP_SOFTCAP = 19 /* out = cap * tanh(x / cap) */
};

/*
 * What a LINEAR multiplies: x as it is, as RMS_NORM or LAYER_NORM make it, activation(x), or
 * activation(gate) * up with x = (gate, up).
 */
enum {
    EDB_INPUT_PLAIN = 0,
    EDB_INPUT_NORMED = 1,
    EDB_INPUT_GATED = 2,
    EDB_INPUT_CENTERED = 3,
    EDB_INPUT_ACTIVATED = 4
};

/*
 * One operation; what its code does not name is ignored. Row by row (all but EMBED, LINEAR,
 * ATTENTION, ROUTE, EXPERTS and MIX) `out` may be the very view of an argument; otherwise views that
 * are written overlap no other.
 *
 * ROUTE takes of equal logits the first, and a NaN for infinite. EXPERTS has `experts` matrices alike
 * and as many biases of their rows, one after the other. x is the input of every chosen expert, or,
 * with `own`, holds columns for each; gated input has all their gates and then all their ups. Rows of
 * a matrix are `parts` equal parts, and out has the first part of all chosen experts before the next.
 * MIX takes `add`, as LINEAR does. Experts are in ascending order everywhere.
 *
 * ATTENTION stores its keys and values in `cache` and lets a query see the keys up to its own, at
 * most `window` of them. With q_norm and k_norm every head of x and y is normalized first; with q_cos
 * and q_sin those of x are turned then, with cos and sin those of y. x is overwritten by that; y is
 * not.
 */
typedef struct {
    int32_t code;
    int32_t input;            /* LINEAR: EDB_INPUT_... */
    int32_t add;              /* LINEAR, MIX */
    int32_t heads;            /* RMS_NORM, LAYER_NORM, ROPE */
    int32_t activation;       /* EDB_INPUT_GATED, ..._ACTIVATED: EDB_OP_SILU or another */
    edb_view x, y, z, out;
    int64_t width;            /* columns of out; of one head times heads */
    const edb_matrix *matrix; /* EMBED, POSITION [., width]; LINEAR [width, columns of the input];
                                 EXPERTS */
    const float *bias;        /* LINEAR: [width] or NULL; EXPERTS */
    const float *weight;      /* of every norm: [width / heads]; of a LINEAR's: [columns of x] */
    const float *shift;       /* of a LAYER_NORM, likewise; or NULL */
    float eps;                /* of every norm */
    float scale;              /* ATTENTION: of the scores */
    float cap;                /* SOFTCAP; ATTENTION: of the scaled scores, 0 for none */
    int64_t positions;        /* rows of cos and sin */
    const float *cos, *sin;   /* ROPE, ATTENTION: [positions, head_dim / 2]; there NULL: no turn */
    const float *q_cos, *q_sin; /* ATTENTION: likewise, of the queries */
    const float *q_norm, *k_norm; /* ATTENTION: [head_dim] or NULL */
    const float *slopes; /* ATTENTION: [n_heads], what a score loses for each position; or NULL */
    int32_t n_heads, n_kv_heads, head_dim; /* ATTENTION */
    int32_t cache;                         /* ATTENTION: which of a span's */
    int64_t window;                        /* ATTENTION: 1 or more */
    int32_t experts, chosen; /* ROUTE, EXPERTS, MIX: 1 to 4096, and 1 to 128 of them a token */
    int32_t normalized;      /* ROUTE: the softmax is of the chosen alone */
    int32_t own, parts;      /* EXPERTS */
    const float *sinks;      /* ATTENTION: [n_heads], scores of keys whose values are 0; or NULL */
    float alpha, limit;      /* CLAMPED_GATE; limit above 0 */
} edb_op;

typedef struct edb_program edb_program;

/*
 * Checks and copies the operations; matrices, vectors and tables that they point to must outlive the
 * program. widths [n_slots]. On failure `*wrong` is the operation's index, or -1.
 */
edb_status edb_program_create(const edb_op *ops, int32_t n_ops, const int64_t *widths,
                              int32_t n_slots, edb_program **program, int32_t *wrong);

/* NULL is allowed. */
void edb_program_destroy(edb_program *program);

/*
 * Some rows of a pass: n tokens of one sequence, at positions pos..pos+n-1, and its cache. A page has
 * the part of each layer (see edb_attention_shape) at that layer's offset, a multiple of 4.
 */
typedef struct {
    int64_t n, pos;
    int64_t capacity; /* positions */
    int32_t cache_kind;
    void *const *pages;     /* [(pos + n) / EDB_PAGE, rounded up] */
    int64_t page_bytes;
    const int64_t *offsets; /* [caches of the program] */
} edb_span;

/* Bytes of scratch for a pass of n rows over these spans with full caches; 0 if invalid. */
size_t edb_program_scratch_bytes(const edb_context *context, const edb_program *program, int64_t n,
                                 const edb_span *spans, int32_t n_spans);

/*
 * Runs all operations for rows 0..n-1, n at most 128. Spans are consecutive rows and together all of
 * them; a program without POSITION, ROPE and ATTENTION takes none. ids [n] for EMBED. What a row becomes
 * depends on its own sequence alone.
 */
edb_status edb_program_run(const edb_context *context, const edb_program *program,
                           const int32_t *ids, float *const *slots, int64_t n,
                           const edb_span *spans, int32_t n_spans, void *scratch,
                           size_t scratch_bytes);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
