/*
 * What the sources share: the kernel table that each instruction set fills, the pool's inside, and
 * the sizes of the packed layout.
 */
#ifndef EDB_INTERNAL_H
#define EDB_INTERNAL_H

#include "../include/edgedb.h"

enum {
    EDB_LANES = 16,         /* width of the portable vector layer; fixes every order of summation */
    EDB_GROUP = 64,         /* columns that share a scale */
    EDB_TILE = 64,          /* rows of a tile */
    EDB_QUADS = 16,         /* four columns each: one look-up */
    EDB_BLOCK_BYTES = 1152, /* 64 x 64 weights of one pair: 1024 nibble pairs, c1[64], c2[64] */
    EDB_CODES_BYTES = 4096, /* 64 x 64 int8 codes */
    EDB_PREPARED_BYTES = 512, /* one group of activations as a pair kernel wants it, at most */
    EDB_BATCH = 128,          /* tokens of a matrix product at once; bounds its scratch */
    EDB_TOKEN_BLOCK = 64,     /* tokens that share one expansion of a block */
    EDB_ATTEND_ROWS = 4,      /* query rows that share one pass over the keys */
    EDB_PLANES = 8,       /* bits of an activation: -128, 64, 32, ... 1 times plane 7, 6, ... 0 */
    EDB_PLANE_BYTES = 64, /* the planes of one group: byte 8*p + i has columns 8i..8i+7 */
    EDB_MAX_PAIRS = 8,
    EDB_MAX_PAIR_KERNELS = 4,
    EDB_PREFETCH_BYTES = 8192
};

/* Larger sizes are refused, which keeps every product of two sizes far inside 63 bits. */
#define EDB_MAX_DIM    ((int64_t)1 << 26)
#define EDB_MAX_TOKENS ((int64_t)1 << 24)

/* What a pair kernel needs of one group of activations beside its prepared bytes. */
typedef struct {
    float sx;
    int32_t bias; /* look-up: tables hold subset sums minus their minimum; the sum of minima */
} edb_group_meta;

/*
 * One way to multiply the planes of a pair with one token, on the bytes of EDB_PAIRS. All that do
 * not coarsen return the same bits.
 */
typedef struct {
    const char *name;

    /* NULL, or rounds q further before anything reads it: then also prompts are approximate. */
    void (*coarsen)(int8_t *q, int64_t stride, int64_t groups);

    /* One token's q -> `prepared_bytes` and a meta per group; the bytes are private to the kernel. */
    void (*prepare)(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                    uint8_t *prepared, edb_group_meta *meta);

    /* acc[64] = the tile's rows, not yet times row_scale. next: what will be read after this. */
    void (*tile)(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                 const edb_group_meta *meta, float *acc, const uint8_t *next);

    int64_t prepared_bytes; /* of one group, a multiple of 64, at most EDB_PREPARED_BYTES */

    /*
     * From this many tokens on, expand_block and int8_tile beat going token by token; INT64_MAX
     * where they never do.
     */
    int64_t expand_from;
} edb_pair_kernel;

/* Up to EDB_ATTEND_ROWS queries that share one key/value head. */
typedef struct {
    int32_t rows;
    int32_t head_dim;
    int32_t cache_kind;
    float scale;
    const float *q[EDB_ATTEND_ROWS];
    float *out[EDB_ATTEND_ROWS];
    int64_t keys[EDB_ATTEND_ROWS]; /* cache rows that each query sees, ascending */
    const void *k, *v;             /* this head's [capacity, head_dim] */
    float *scores;                 /* [rows, stride], 64-byte aligned rows */
    int64_t stride;
} edb_attend;

/*
 * The kernels of one instruction set. All sets return the same bits. `stride` counts tokens between
 * two groups: quantized activations are group-major, q[groups][stride][64], sx[groups][stride].
 */
typedef struct {
    /* x[cols] -> q, sx of one token, zero-padded to whole groups. */
    void (*quantize)(const float *x, int64_t cols, int8_t *q, float *sx, int64_t stride);

    /* One block of a pair -> its int8 levels c1*b1 + c2*b2 in the layout of EDB_INT8; may be NULL
     * where every pair kernel's expand_from is INT64_MAX. */
    void (*expand_block)(const uint8_t *block, int8_t *codes);

    /* acc[n][64] += the tile's rows for n tokens; scales [groups][64]. */
    void (*int8_tile)(const int8_t *codes, const float *scales, int64_t groups, const int8_t *q,
                      const float *sx, int64_t stride, int64_t n, float *acc, const int8_t *next);

    /* Rows row_begin..row_end of a dense matrix for n tokens: out[n][matrix->rows]. */
    void (*dense_rows)(const edb_matrix *matrix, int64_t row_begin, int64_t row_end, const float *x,
                       float *out, int64_t n, int32_t add);

    void (*rmsnorm)(const float *x, const float *weight, float *out, int64_t d, float eps);
    void (*swiglu)(const float *gate, const float *up, float *out, int64_t f);

    /* One head: y = rotated x, which may be y itself. */
    void (*rotate)(const float *x, const float *cos, const float *sin, float *y, int64_t head_dim);
    void (*to_f16)(const float *x, uint16_t *y, int64_t count);
    void (*from_f16)(const uint16_t *x, float *y, int64_t count);
    void (*attend)(const edb_attend *job);

    /* The ways to multiply pairs, the fastest measured first; NULL ends the list. */
    const edb_pair_kernel *pairs[EDB_MAX_PAIR_KERNELS + 1];
} edb_kernels;

/* CPU features; a row of the instruction-set table needs all of its bits. */
enum {
    EDB_CPU_BASELINE = 0,
    EDB_CPU_AVX2 = 1 << 0, /* AVX2, FMA and F16C, and the system saves the registers */
    /* AVX-512 as in Ice Lake and Zen 4: F, BW, DQ, VL, VBMI, VNNI, GFNI, BITALG, VPOPCNTDQ */
    EDB_CPU_AVX512 = 1 << 1,
    EDB_CPU_DOTPROD = 1 << 16, /* sdot of Armv8.2; NEON itself belongs to every 64-bit Arm */
};

uint32_t edb_cpu_features(void);

typedef struct {
    const char *name;
    const char *description;
    uint32_t features;
    const edb_kernels *kernels;
} edb_isa;

const edb_isa *edb_isa_find(const char *name); /* NULL: best; returns NULL if it cannot run */

/* The set's pair kernel of this name; NULL: its first. Returns NULL if it has none such. */
const edb_pair_kernel *edb_pair_kernel_find(const edb_kernels *kernels, const char *name);

/* |q| to the nearest multiple of 16, half away from zero, at most 112: the low planes are empty. */
void edb_coarsen_to_4_bits(int8_t *q, int64_t stride, int64_t groups);

/* The bit planes of the activations, EDB_PLANE_BYTES a group: a `prepare` of edb_pair_kernel. */
void edb_prepare_planes(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                        uint8_t *prepared, edb_group_meta *meta);

extern const edb_kernels edb_kernels_scalar;
extern const edb_kernels edb_kernels_avx2;
extern const edb_kernels edb_kernels_avx512;
extern const edb_kernels edb_kernels_neon, edb_kernels_neon_dotprod;

/* Kernels of the two NEON sets that live in a file of their own. */
void edb_expand_block_neon(const uint8_t *block, int8_t *codes);
void edb_int8_tile_neon(const int8_t *codes, const float *scales, int64_t groups, const int8_t *q,
                        const float *sx, int64_t stride, int64_t n, float *acc, const int8_t *next);
void edb_int8_tile_dotprod(const int8_t *codes, const float *scales, int64_t groups,
                           const int8_t *q, const float *sx, int64_t stride, int64_t n, float *acc,
                           const int8_t *next);

extern const edb_pair_kernel edb_popcount_scalar, edb_popcount4_scalar;
extern const edb_pair_kernel edb_popcount_avx2, edb_popcount4_avx2;
extern const edb_pair_kernel edb_popcount_avx512, edb_popcount4_avx512;
extern const edb_pair_kernel edb_lookup_avx2, edb_lookup_avx512;
extern const edb_pair_kernel edb_lookup_neon, edb_lookup_neon_dotprod;
extern const edb_pair_kernel edb_popcount_neon, edb_popcount4_neon;

struct edb_context {
    const edb_isa *isa;
    const edb_pair_kernel *pairs;
    edb_pool *pool;
};

/* A piece of work: tasks begin..end-1; worker is the same number for one thread during a run. */
typedef void (*edb_task)(void *job, int64_t begin, int64_t end, int32_t worker);

/*
 * Runs tasks 0..n_tasks-1, `chunk` at a time, and returns when all are done. A thread takes
 * neighbouring tasks in ascending order as long as it can. pool may be NULL.
 */
void edb_pool_run(edb_pool *pool, edb_task task, void *job, int64_t n_tasks, int64_t chunk);

#define EDB_INLINE inline __attribute__((always_inline))

static inline int64_t edb_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t edb_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t edb_max(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int edb_aligned(const void *p, uintptr_t alignment) {
    return ((uintptr_t)p & (alignment - 1)) == 0;
}

static inline void *edb_align_up(void *p) { return (void *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

/* An address to prefetch; it may lie past the end of the weights, where no pointer may point. */
static inline const char *edb_past(const void *p, int64_t bytes) {
    return (const char *)((uintptr_t)p + (uintptr_t)bytes);
}

/* Small tasks that a thread takes at once, few enough that a slow core holds nobody up. */
static inline int64_t edb_chunk(const edb_pool *pool, int64_t n_tasks) {
    return edb_max(1, n_tasks / (8 * (int64_t)edb_pool_threads(pool)));
}

edb_status edb_check_matrix(const edb_matrix *matrix);

#endif
