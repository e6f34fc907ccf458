/*
 * What the sources share: the kernel table that each instruction set fills, and the sizes of the
 * packed layout.
 */
#ifndef EDB_INTERNAL_H
#define EDB_INTERNAL_H

#include <string.h>

#include "pool.h"

/* Functions between the two are compiled for more than the baseline CPU. */
#define EDB_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define EDB_TARGET(features) \
    EDB_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define EDB_TARGET_END EDB_PRAGMA(clang attribute pop)
#else
#define EDB_TARGET(features)     \
    EDB_PRAGMA(GCC push_options) \
    EDB_PRAGMA(GCC target(features))
#define EDB_TARGET_END EDB_PRAGMA(GCC pop_options)
#endif

enum {
    EDB_LANES = 16,         /* width of the portable vector layer; fixes every order of summation */
    EDB_GROUP = 64,         /* columns that share a scale */
    EDB_TILE = 64,          /* rows of a tile */
    EDB_PAGE_TILES = EDB_PAGE / EDB_TILE,
    EDB_QUADS = 16,         /* four columns each: one look-up */
    EDB_BLOCK_BYTES = 1152, /* 64 x 64 weights of one pair: 1024 nibble pairs, c1[64], c2[64] */
    EDB_HALF_BYTES = 576,   /* of half a pair: 512 bytes of two quads each, c1[64] */
    EDB_CODES_BYTES = 4096, /* 64 x 64 int8 codes */
    EDB_PREPARED_BYTES = 512, /* one group of activations as a pair kernel wants it, at most */
    EDB_PREPARED_ROWS = 16,   /* that share a reading of a tile by look-up */
    EDB_BATCH = 128,          /* tokens of a matrix product at once; bounds its scratch */
    EDB_TOKEN_BLOCK = 64,     /* tokens that share one expansion of a block */
    EDB_FEW = 24,             /* tokens for which AVX-512 unpacks blocks in registers */
    EDB_CODE_ROWS = 64,       /* queries that go over a block of an int8 cache together */
    EDB_ATTEND_ROWS = 4,      /* query rows that share one pass over the keys */
    EDB_PLANES = 8,       /* bits of an activation: -128, 64, 32, ... 1 times plane 7, 6, ... 0 */
    EDB_PLANE_BYTES = 64, /* the planes of one group: byte 8*p + i has columns 8i..8i+7 */
    EDB_MAX_PAIRS = 8,
    EDB_MAX_PAIR_KERNELS = 4
};

/* Larger sizes are refused, which keeps every product of two sizes far inside 63 bits. */
#define EDB_MAX_DIM    ((int64_t)1 << 26)
#define EDB_MAX_TOKENS ((int64_t)1 << 24)
#define EDB_MAX_SYMBOLS ((int64_t)1 << 28) /* of a text */

/* What a pair kernel needs of one group of activations beside its prepared bytes. */
typedef struct {
    float sx;
    int32_t bias; /* look-up: tables hold subset sums minus their minimum; the sum of minima */
    uint32_t wide; /* prepare_rows: a bit for each quad whose sums pass 255 */
} edb_group_meta;

/*
 * acc[64] = the rows of one tile of a pair, or of half a pair, for one token, not yet times row_scale.
 * next: what will be read after this.
 */
typedef void edb_pair_tile(const uint8_t *blocks, int64_t groups, const uint8_t *prepared,
                           const edb_group_meta *meta, float *acc, const uint8_t *next);

/* The same for two tiles in turns, block by block: acc[2][64]. */
typedef void edb_pair_two_tiles(const uint8_t *const blocks[2], int64_t groups,
                                const uint8_t *prepared, const edb_group_meta *meta, float *acc,
                                const uint8_t *const next[2]);

/* Prepared activations of some rows, each with its groups one after the other. */
typedef struct {
    int64_t n; /* at most EDB_PREPARED_ROWS */
    const uint8_t *bytes[EDB_PREPARED_ROWS];
    const edb_group_meta *meta[EDB_PREPARED_ROWS];
} edb_prepared;

/* The same for several rows: acc[n][64]. */
typedef void edb_pair_rows(const uint8_t *blocks, int64_t groups, const edb_prepared *rows,
                           float *acc, const uint8_t *next);

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

    edb_pair_tile *tile, *half_tile;
    edb_pair_two_tiles *two_tiles, *two_half_tiles; /* NULL: one after the other */
    edb_pair_rows *tile_rows, *half_rows; /* of several tokens; NULL: each by itself */
    /* What these two want of a token, as many bytes; NULL: what `tile` wants. */
    void (*prepare_rows)(const int8_t *q, const float *sx, int64_t stride, int64_t groups,
                         uint8_t *prepared, edb_group_meta *meta);

    int64_t prepared_bytes; /* of one group, a multiple of 64, at most EDB_PREPARED_BYTES */

    /*
     * From this many tokens on, expanding every block once for all of them beats going token by
     * token; INT64_MAX where it never does. A matrix with half a pair has a number of its own, if that is
     * not 0: looking up halves costs half as much, multiplying them what pairs cost.
     */
    int64_t expand_from, expand_half_from;
} edb_pair_kernel;

/*
 * What a query has found in the keys so far: {largest score, sum of exp(score - largest)}, 14 unused
 * floats, then the weighted sum of values [head_dim], everything on the scale of `largest`.
 */
enum { EDB_FOUND_HEADER = 16 };

/* What will be read next, to fetch among other work: NULL, or so many bytes. */
typedef struct {
    const void *rows;
    int64_t bytes;
} edb_coming;

/* Keys and values. */
typedef struct {
    edb_coming k, v;
} edb_next_rows;

/* Up to EDB_ATTEND_ROWS queries that share a key/value head, against one block of its keys. */
typedef struct {
    int32_t rows;
    int32_t head_dim;
    int32_t cache_kind; /* of k and v */
    float scale, cap;
    const void *k, *v; /* [block, head_dim] */
    edb_coming next_k, next_v;
    const float *q[EDB_ATTEND_ROWS];
    int64_t keys[EDB_ATTEND_ROWS]; /* of the block that each query sees: ascending, at least 1 */
    float *found[EDB_ATTEND_ROWS]; /* written */
    int32_t leans;                 /* a score loses slope for each position that its key is away */
    float slope[EDB_ATTEND_ROWS];
    int64_t away[EDB_ATTEND_ROWS]; /* how far the query is behind the first key of the block */
} edb_attend;

/* How queries weigh a block of keys of an int8 cache (attention_int8.c). */
typedef struct {
    const float *scales;      /* of values, [groups][EDB_PAGE] */
    int64_t count, head_dim;  /* keys; what lies beyond may be anything */
    float scale, cap;         /* of the scores; cap 0: none */
    int32_t leans;
} edb_code_block;

/* A query that sees the keys begin..end-1 of a block, at least one. */
typedef struct {
    int64_t begin, end;
    float slope;
    int64_t away; /* as in edb_attend, of the block's first key */
    float *found; /* written */
} edb_code_row;

enum { EDB_SHARE_ROWS = 4 };

/* Where quantized weights of rows go: `stride` rows lie between two groups of 64 keys. */
typedef struct {
    int8_t *q;
    float *sx;
    int32_t *offsets; /* -128 * the sum of each group's q; NULL: not wanted */
    int64_t stride;
} edb_code_weights;

/* Whose codes: of an int8 cache's queries and weights it is known how large they are (quantize_bounded, find_bounds). */
typedef enum { EDB_ACTIVATIONS, EDB_QUERIES, EDB_WEIGHTS } edb_codes_of;

/* Quantized activations of n tokens, group-major; `stride` tokens lie between two groups. */
typedef struct {
    const int8_t *q;        /* [groups][stride][64] */
    const float *sx;        /* [groups][stride] */
    const int32_t *offsets; /* [groups][stride]; unset if the set has no `offsets`, but of queries */
    int64_t stride, n;
    edb_codes_of of;
} edb_tokens;

/* acc[n][64] = the tile's rows of a pair, or of half a pair, for n tokens, not yet times row_scale. */
typedef void edb_expanded_tile(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                               float *acc, const uint8_t *next);

/*
 * The kernels of one instruction set. All sets return the same bits. `stride` counts tokens between
 * two groups: quantized activations are group-major, q[groups][stride][64], sx[groups][stride].
 */
typedef struct {
    /*
     * x[cols] -> q, sx of one token, zero-padded to whole groups; also of x * scale * weight, of
     * activation(x) and of activation(gate) * up, with the bits of rmsnorm, activate and gate.
     */
    void (*quantize)(const float *x, int64_t cols, int8_t *q, float *sx, int64_t stride);
    void (*quantize_normed)(const float *x, const float *weight, float scale, int64_t cols,
                            int8_t *q, float *sx, int64_t stride);
    /* (x - mean) * scale * weight + shift, which may be NULL, with the bits of layernorm. */
    void (*quantize_centered)(const float *x, const float *weight, const float *shift, float mean,
                              float scale, int64_t cols, int8_t *q, float *sx, int64_t stride);
    void (*quantize_activated)(int32_t activation, const float *x, int64_t cols, int8_t *q,
                               float *sx, int64_t stride);
    void (*quantize_gated)(int32_t activation, const float *gate, const float *up, int64_t cols,
                           int8_t *q, float *sx, int64_t stride);
    /* A query of an int8 cache: with larger scales where its codes' sums want them, and offsets. */
    void (*quantize_query)(const float *x, int64_t cols, int8_t *q, float *sx, int32_t *offsets,
                           int64_t stride);

    /*
     * NULL, or what int8_tile and expand_tile want to know of a token's activations beside sx: of each
     * group -128 * their sum.
     */
    void (*offsets)(const int8_t *q, int64_t stride, int64_t groups, int32_t *offsets);

    /*
     * acc[n][64] = the tile's rows for n tokens, not yet times row_scale. NULL: expand_block turns
     * each block into its int8 levels c1*b1 + c2*b2 in the layout of EDB_INT8, and int8_tile
     * multiplies. Both are NULL where every pair kernel's expand_from is INT64_MAX.
     */
    edb_expanded_tile *expand_tile, *expand_half_tile;
    void (*expand_block)(const uint8_t *block, int8_t *codes);

    /* acc[n][64] += the tile's rows for n tokens; scales [groups][64]. */
    void (*int8_tile)(const int8_t *codes, const float *scales, int64_t groups,
                      const edb_tokens *tokens, float *acc, const int8_t *next);

    /* Rows row_begin..row_end of a dense matrix for n tokens: out[n][matrix->rows]. */
    void (*dense_rows)(const edb_matrix *matrix, int64_t row_begin, int64_t row_end, const float *x,
                       float *out, int64_t n, int32_t add);

    /* 1 / sqrt(mean(x^2) + eps): what rmsnorm scales x by. */
    float (*norm_scale)(const float *x, int64_t d, float eps);
    void (*rmsnorm)(const float *x, const float *weight, float *out, int64_t d, float eps);

    /* *mean of x, and 1 / sqrt(variance + eps). */
    float (*center_scale)(const float *x, int64_t d, float eps, float *mean);
    void (*layernorm)(const float *x, const float *weight, const float *shift, float *out,
                      int64_t d, float eps);

    /* activation: EDB_OP_SILU or another of edb_is_activation. out = activation(x), may be x. */
    void (*activate)(int32_t activation, const float *x, float *out, int64_t count);
    /* out = activation(gate) * up */
    void (*gate)(int32_t activation, const float *gate, const float *up, float *out, int64_t f);
    void (*clamped_gate)(const float *gate, const float *up, float alpha, float limit, float *out,
                         int64_t f);
    /* exp(x - the largest) over the sum of all those; out may be x. */
    void (*softmax_row)(const float *x, float *out, int64_t n);

    /* out = cap * tanh(x / cap), may be x. */
    void (*softcap)(const float *x, float cap, float *out, int64_t count);

    /* One head: y = rotated x, which may be y itself. */
    void (*rotate)(const float *x, const float *cos, const float *sin, float *y, int64_t head_dim);
    void (*to_f16)(const float *x, uint16_t *y, int64_t count);
    void (*from_f16)(const uint16_t *x, float *y, int64_t count);

    /*
     * The products of up to EDB_SHARE_ROWS rows with the keys, dots [n][64] of a tile and tiles
     * `stride` floats apart, to their shares of every value, p * scale, quantized, and to found's
     * largest score and total. weights: [groups][EDB_PAGE / 64] groups of
     * keys, row by row. next: fetched meanwhile.
     */
    void (*share)(const edb_code_block *block, const edb_code_row *rows, int n, const float *dots,
                  int64_t stride, edb_next_rows next, const edb_code_weights *weights);

    /* One block of keys, apart from all others. */
    void (*attend)(const edb_attend *job);
    /* a += b, where b comes from later keys. */
    void (*merge_found)(float *a, const float *b, int64_t head_dim);
    /* The attention's output: the weighted sum over the sum of weights. */
    void (*finish_found)(const float *found, float *out, int64_t head_dim);
    /* found += a key of this score whose value is 0. */
    void (*sink_found)(float *found, float score, int64_t head_dim);

    /* The ways to multiply pairs, the fastest measured first; NULL ends the list. */
    const edb_pair_kernel *pairs[EDB_MAX_PAIR_KERNELS + 1];
} edb_kernels;

/* CPU features; a row of the instruction-set table needs all of its bits. */
enum {
    EDB_CPU_BASELINE = 0,
    EDB_CPU_AVX2 = 1 << 0, /* AVX2, FMA and F16C, and the system saves the registers */
    /* AVX-512 as in Ice Lake and Zen 4: F, BW, DQ, VL, VBMI, VNNI, GFNI, BITALG, VPOPCNTDQ */
    EDB_CPU_AVX512 = 1 << 1,
    EDB_CPU_AVXVNNI = 1 << 2, /* vpdpbusd of 32 bytes without AVX-512 */
    EDB_CPU_DOTPROD = 1 << 16, /* sdot of Armv8.2; NEON itself belongs to every 64-bit Arm */
    EDB_CPU_I8MM = 1 << 17,    /* smmla of Armv8.6 */
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
extern const edb_kernels edb_kernels_avx2, edb_kernels_avxvnni;
extern const edb_kernels edb_kernels_avx512;
extern const edb_kernels edb_kernels_neon, edb_kernels_neon_dotprod, edb_kernels_neon_i8mm;

/* Kernels that live in a file of their own. */
void edb_offsets_avx512(const int8_t *q, int64_t stride, int64_t groups, int32_t *offsets);
edb_expanded_tile edb_expand_tile_avx512, edb_expand_half_tile_avx512;
edb_pair_rows edb_few_rows_avx2, edb_few_half_rows_avx2;
edb_expanded_tile edb_few_tile_avx512, edb_few_half_tile_avx512;
void edb_few_int8_tile_avx512(const int8_t *codes, const float *scales, int64_t groups,
                              const edb_tokens *tokens, float *acc, const int8_t *next);
void edb_int8_tile_avx512(const int8_t *codes, const float *scales, int64_t groups,
                          const edb_tokens *tokens, float *acc, const int8_t *next);
void edb_offsets_avxvnni(const int8_t *q, int64_t stride, int64_t groups, int32_t *offsets);
edb_expanded_tile edb_expand_tile_avxvnni, edb_expand_half_tile_avxvnni;
void edb_int8_tile_avx2(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next);
void edb_int8_tile_avxvnni(const int8_t *codes, const float *scales, int64_t groups,
                           const edb_tokens *tokens, float *acc, const int8_t *next);
edb_pair_rows edb_few_rows_neon;
void edb_expand_block_neon(const uint8_t *block, int8_t *codes);
void edb_int8_tile_neon(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next);
void edb_int8_tile_dotprod(const int8_t *codes, const float *scales, int64_t groups,
                           const edb_tokens *tokens, float *acc, const int8_t *next);
edb_expanded_tile edb_expand_tile_dotprod, edb_expand_half_tile_dotprod;
edb_expanded_tile edb_expand_tile_i8mm, edb_expand_half_tile_i8mm;
void edb_int8_tile_i8mm(const int8_t *codes, const float *scales, int64_t groups,
                        const edb_tokens *tokens, float *acc, const int8_t *next);

extern const edb_pair_kernel edb_popcount_scalar, edb_popcount4_scalar;
extern const edb_pair_kernel edb_popcount_avx2, edb_popcount4_avx2;
extern const edb_pair_kernel edb_popcount_avx512, edb_popcount4_avx512;
extern const edb_pair_kernel edb_lookup_avx2, edb_lookup_avxvnni, edb_lookup_avx512;
extern const edb_pair_kernel edb_lookup_neon, edb_lookup_neon_dotprod;
extern const edb_pair_kernel edb_popcount_neon, edb_popcount4_neon;

struct edb_context {
    const edb_isa *isa;
    const edb_pair_kernel *pairs;
    edb_pool *pool;
};

#define EDB_INLINE inline __attribute__((always_inline))

/* 1.5 * 2^23: x added to it, |x| < 2^22, rounds to an integer, half to even, in the sum's low bits. */
#define EDB_ROUND_MAGIC 12582912.0f

#define EDB_ONES_16  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
#define EDB_ONES_64  EDB_ONES_16, EDB_ONES_16, EDB_ONES_16, EDB_ONES_16

static inline int64_t edb_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* A position's keys or values of one head in an int8 cache: 64 codes and a float32 scale a group. */
static inline int64_t edb_int8_row_bytes(int64_t head_dim) {
    return (EDB_GROUP + 4) * edb_ceil_div(head_dim, EDB_GROUP);
}

static inline uint32_t edb_float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline int edb_aligned(const void *p, uintptr_t alignment) {
    return ((uintptr_t)p & (alignment - 1)) == 0;
}

static inline void *edb_align_up(void *p) { return (void *)(((uintptr_t)p + 63) & ~(uintptr_t)63); }

#include "fetch.h"

edb_status edb_check_matrix(const edb_matrix *matrix);

/* Whether an operation's code is that of a function of each element, which a gate may be. */
static inline int edb_is_activation(int32_t code) {
    return code == EDB_OP_SILU || code == EDB_OP_GELU_TANH || code == EDB_OP_GELU ||
           code == EDB_OP_RELU;
}

/* Rows of floats that lie `stride` apart, such as some columns of a wider array. */
typedef struct {
    float *x;
    int64_t stride;
} edb_rows;

#endif
