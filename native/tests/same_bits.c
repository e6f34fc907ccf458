/*
 * Every operation over random shapes: all instruction sets of this CPU, one and three threads, must
 * give the bits of the scalar kernels. Standard output is one digest an operation, the same on every
 * processor, so that two builds can be compared; what ran goes to standard error.
 */
#include "product_cases.h"

enum { CASES = 40 };

/* The rows of all keys, then those of all values, end to end. */
static void keep_cache(result *to, const layer_cache *cache) {
    int64_t rows = cache_rows(cache) / 2, row_bytes = cache->row_bytes;
    uint8_t *all = allocate((size_t)(rows * row_bytes));
    for (int64_t first = 0; first < 2 * rows; first += rows) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(all + i * row_bytes, cache_row(cache, first + i), (size_t)row_bytes);
        keep(to, all, (size_t)(rows * row_bytes) / 4);
    }
    release(all);
}

static void quantize_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 20), cols = random_range(&seed, 1, 280);
    int64_t groups = (cols + 63) / 64;
    float *x = activations(&seed, n, cols), *sx = random_floats(&seed, n * groups);
    int8_t *q = allocate((size_t)(n * groups * 64));
    CHECK(edb_quantize(context, x, q, sx, n, cols) == EDB_OK);
    keep_floats(to, sx, n * groups);
    keep(to, q, (size_t)(n * groups * 16));
    release(q);
    release(sx);
    release(x);
}

static void embed_rows(const edb_context *context, uint64_t seed, int half, result *to) {
    int32_t kind = half ? EDB_PAIRS : (int32_t)random_range(&seed, EDB_PAIRS, EDB_F16);
    int64_t rows = random_range(&seed, 1, 150), cols = random_range(&seed, 1, 280);
    edb_matrix matrix = random_matrix(&seed, kind, 2, rows, cols);
    if (half) add_half(&seed, &matrix, rows % 2 == 0);
    int32_t ids[5];
    for (int i = 0; i < 5; i++) ids[i] = (int32_t)random_range(&seed, 0, rows - 1);
    float *out = allocate((size_t)(5 * cols) * sizeof *out);
    CHECK(edb_embed(context, &matrix, ids, out, 5) == EDB_OK);
    keep_floats(to, out, 5 * cols);
    release(out);
    free_matrix(&matrix);
}

static void embed_case(const edb_context *context, uint64_t seed, result *to) {
    embed_rows(context, seed, 0, to);
}

static void embed_half_case(const edb_context *context, uint64_t seed, result *to) {
    embed_rows(context, seed, 1, to);
}

static void elementwise_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 40), d = random_range(&seed, 1, 280);
    float *x = activations(&seed, n, 2 * d), *weight = random_floats(&seed, d);
    float *out = allocate((size_t)(n * d) * sizeof *out);
    CHECK(edb_gate(context, EDB_OP_SILU, x, out, n, d) == EDB_OK);
    keep_floats(to, out, n * d);
    CHECK(edb_rmsnorm(context, x, weight, out, n, d, 1e-5f) == EDB_OK);
    keep_floats(to, out, n * d);
    release(out);
    release(weight);
    release(x);
}

static void layernorm_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 40), d = random_range(&seed, 1, 280);
    float *x = activations(&seed, n, d), *weight = random_floats(&seed, d);
    float *out = allocate((size_t)(n * d) * sizeof *out);
    CHECK(edb_layernorm(context, x, weight, n % 2 ? weight : NULL, out, n, d, 1e-5f) == EDB_OK);
    keep_floats(to, out, n * d);
    release(out);
    release(weight);
    release(x);
}

static void gates_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 40), d = random_range(&seed, 1, 280);
    float *x = activations(&seed, n, 2 * d), *out = allocate((size_t)(n * d) * sizeof *out);
    CHECK(edb_gate(context, EDB_OP_GELU_TANH, x, out, n, d) == EDB_OK);
    keep_floats(to, out, n * d);
    release(out);
    release(x);
}

static void functions_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 40), d = random_range(&seed, 1, 280);
    float *x = activations(&seed, n, 2 * d), *out = allocate((size_t)(n * d) * sizeof *out);
    const int32_t codes[] = {EDB_OP_GELU, EDB_OP_RELU};
    for (int i = 0; i < 2; i++) {
        CHECK(edb_gate(context, codes[i], x, out, n, d) == EDB_OK);
        keep_floats(to, out, n * d);
    }
    release(out);
    release(x);
}

/* No operation of its own: a program of one. */
static void softcap_case(const edb_context *context, uint64_t seed, result *to) {
    int64_t n = random_range(&seed, 1, 40), width = random_range(&seed, 1, 280);
    float *x = activations(&seed, n, width), cap = (float)random_range(&seed, 1, 60);
    float *slots[] = {x};
    const edb_op op = {.code = EDB_OP_SOFTCAP, .width = width, .cap = cap};
    edb_program *program;
    int32_t wrong;
    char scratch[64];
    CHECK(edb_program_create(&op, 1, &width, 1, &program, &wrong) == EDB_OK);
    CHECK(edb_program_run(context, program, NULL, slots, n, NULL, 0, scratch, sizeof scratch) ==
          EDB_OK);
    keep_floats(to, x, n * width);
    edb_program_destroy(program);
    release(x);
}

static void attention_case(const edb_context *context, uint64_t seed, result *to) {
    edb_attention_shape shape = {0};
    shape.n_kv_heads = (int32_t)random_range(&seed, 1, 3);
    shape.n_heads = shape.n_kv_heads * (int32_t)random_range(&seed, 1, 5);
    shape.head_dim = 2 * (int32_t)random_range(&seed, 1, 50);
    shape.cache_kind = random_range(&seed, 0, 1) ? EDB_F16 : EDB_F32;
    int64_t n = random_range(&seed, 1, 40), pos = random_range(&seed, 0, 70);
    if (random_range(&seed, 0, 2) == 0) pos = random_range(&seed, 230, 600); /* blocks of 256 */
    shape.capacity = pos + n + random_range(&seed, 0, 3);

    int64_t width = (int64_t)(shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    int64_t angles = shape.capacity * (shape.head_dim / 2);
    float *qkv = random_floats(&seed, n * width);
    float *cos = random_floats(&seed, angles), *sin = random_floats(&seed, angles);
    layer_cache cache = new_cache(&shape);
    for (int64_t i = 0; i < cache_rows(&cache); i++) {
        void *row = cache_row(&cache, i);
        for (int64_t j = 0; j < shape.head_dim; j++) {
            if (shape.cache_kind == EDB_F16) {
                ((uint16_t *)row)[j] = random_half(&seed);
            } else {
                ((float *)row)[j] = random_float(&seed);
            }
        }
    }
    int64_t out_width = (int64_t)shape.n_heads * shape.head_dim;
    float *out = allocate((size_t)(n * out_width) * sizeof *out);
    size_t scratch_bytes = edb_attention_scratch_bytes(context, &shape, n, pos + n);
    size_t one_token = edb_attention_scratch_bytes(context, &shape, 1, pos + n);
    if (scratch_bytes < one_token) scratch_bytes = one_token;
    void *scratch = allocate(scratch_bytes);
    CHECK(scratch != NULL);

    CHECK(edb_rope(context, &shape, qkv, cos, sin, cache.pages, n, pos) == EDB_OK);
    CHECK(edb_attention(context, &shape, qkv, cache.pages, out, n, pos, scratch, scratch_bytes) == EDB_OK);
    float *alone = allocate((size_t)out_width * sizeof *alone);
    for (int64_t t = 0; t < n; t += 7) { /* token by token gives the same */
        CHECK(edb_attention(context, &shape, qkv + t * width, cache.pages, alone, 1, pos + t,
                            scratch, scratch_bytes) == EDB_OK);
        CHECK(memcmp(alone, out + t * out_width, (size_t)out_width * sizeof *alone) == 0);
    }
    release(alone);
    keep_floats(to, qkv, n * width);
    keep_cache(to, &cache);
    keep_floats(to, out, n * out_width);
    release(scratch);
    release(out);
    free_cache(&cache);
    release(sin);
    release(cos);
    release(qkv);
}

/* An int8 cache, filled by edb_rope; and what edb_select and edb_softmax_weights say of the sums. */
static void narrow_case(const edb_context *context, uint64_t seed, result *to) {
    edb_attention_shape shape = {.cache_kind = EDB_INT8};
    shape.n_kv_heads = (int32_t)random_range(&seed, 1, 3);
    shape.n_heads = shape.n_kv_heads * (int32_t)random_range(&seed, 1, 5);
    shape.head_dim = 2 * (int32_t)random_range(&seed, 1, 70);
    int64_t n = random_range(&seed, 2, 300), new = random_range(&seed, 1, n < 40 ? n : 40);
    shape.capacity = n + random_range(&seed, 0, 3);

    int64_t width = (int64_t)(shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim;
    int64_t angles = shape.capacity * (shape.head_dim / 2);
    float *qkv = random_floats(&seed, n * width);
    float *cos = random_floats(&seed, angles), *sin = random_floats(&seed, angles);
    layer_cache cache = new_cache(&shape);
    int64_t size = new * shape.n_heads * shape.head_dim;
    float *out = allocate((size_t)size * sizeof *out), *best = allocate((size_t)size * sizeof *best);
    int32_t *ids = allocate((size_t)size * sizeof *ids);
    double *weights = allocate((size_t)size * sizeof *weights);
    size_t scratch_bytes = edb_attention_scratch_bytes(context, &shape, new, n);
    void *scratch = allocate(scratch_bytes);
    CHECK(scratch != NULL);

    CHECK(edb_rope(context, &shape, qkv, cos, sin, cache.pages, n, 0) == EDB_OK);
    CHECK(edb_attention(context, &shape, qkv + (n - new) * width, cache.pages, out, new, n - new,
                        scratch, scratch_bytes) == EDB_OK);
    int64_t count = (size + 2) / 3;
    CHECK(edb_select(out, size, count, ids, best) == EDB_OK);
    CHECK(edb_softmax_weights(out, size, best[0], 0.7, weights) == EDB_OK);
    for (int64_t i = 0; i < cache.n_pages; i++)
        keep(to, cache.pages[i], (size_t)cache.page_bytes / 4);
    keep_floats(to, out, size);
    keep(to, ids, (size_t)count);
    keep(to, weights, (size_t)size * 2);
    release(scratch);
    release(weights);
    release(ids);
    release(best);
    release(out);
    free_cache(&cache);
    release(sin);
    release(cos);
    release(qkv);
}

typedef struct {
    const char *name;
    void (*run)(const edb_context *context, uint64_t seed, result *to);
    int coarse; /* with the 4-bit kernel, whose bits are its own */
} operation;

static const operation operations[] = {
    {"matmul", matmul_case, 0},           {"matmul4", matmul_case, 1},
    {"quantize", quantize_case, 0},       {"embed", embed_case, 0},
    {"elementwise", elementwise_case, 0}, {"attention", attention_case, 0},
    {"narrow", narrow_case, 0},           {"halves", halves_case, 0},
    {"halves4", halves_case, 1},          {"embed_half", embed_half_case, 0},
    {"gates", gates_case, 0},             {"layernorm", layernorm_case, 0},
    {"functions", functions_case, 0},
    {"softcap", softcap_case, 0},         {"few", few_case, 0},
    {"loud", loud_case, 0},               {"positive", positive_case, 0},
};

/* Runs the case on one instruction set and kernel, alone and in a pool. */
static int agrees(const operation *op, uint64_t seed, int32_t isa, const char *kernel,
                  edb_pool *pool, const result *expected, result *actual) {
    for (int threads = 1; threads <= 3; threads += 2) {
        edb_context *context = new_context_in_turn(edb_isa_name(isa), kernel, threads > 1 ? pool : NULL);
        actual->count = 0;
        op->run(context, seed, actual);
        edb_context_destroy(context);
        if (actual->count == expected->count &&
            memcmp(actual->words, expected->words, actual->count * sizeof *actual->words) == 0)
            continue;
        fprintf(stderr, "%s, seed %d: %s, %s, %d threads: differs from scalar\n", op->name,
                (int)seed, edb_isa_name(isa), kernel, threads);
        return 0;
    }
    return 1;
}

int main(void) {
    edb_pool *pool;
    CHECK(edb_pool_create(3, &pool) == EDB_OK);
    result expected = {allocate(MAX_WORDS * sizeof(uint32_t)), 0};
    result actual = {allocate(MAX_WORDS * sizeof(uint32_t)), 0};

    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        const operation *op = &operations[i];
        edb_context *scalar = new_context("scalar", op->coarse ? "popcount4" : NULL, NULL);
        uint64_t hash = DIGEST_START;
        for (uint64_t seed = 1; seed <= CASES; seed++) {
            expected.count = 0;
            op->run(scalar, seed, &expected);
            hash = digest(hash, expected.words, expected.count * sizeof *expected.words);
            for (int32_t isa = 0; isa < edb_isa_count(); isa++) {
                const char *kernel;
                for (int32_t k = 0; (kernel = edb_kernel_name(edb_isa_name(isa), k)) != NULL; k++) {
                    if (!edb_isa_supported(isa)) continue;
                    if (op->coarse != (strcmp(kernel, "popcount4") == 0)) continue;
                    if (k > 0 && op->run != matmul_case && op->run != halves_case &&
                        op->run != few_case && op->run != loud_case)
                        continue;
                    if (!agrees(op, seed, isa, kernel, pool, &expected, &actual)) return 1;
                }
            }
        }
        edb_context_destroy(scalar);
        printf("%-12s %016llx\n", op->name, (unsigned long long)hash);
    }
    for (int32_t isa = 0; isa < edb_isa_count(); isa++) {
        if (!edb_isa_supported(isa)) continue;
        fprintf(stderr, "same bits: %s:", edb_isa_name(isa));
        for (int32_t k = 0; edb_kernel_name(edb_isa_name(isa), k) != NULL; k++)
            fprintf(stderr, " %s", edb_kernel_name(edb_isa_name(isa), k));
        fprintf(stderr, "\n");
    }
    release(actual.words);
    release(expected.words);
    edb_pool_destroy(pool);
    return 0;
}
