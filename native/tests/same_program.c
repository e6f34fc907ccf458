/*
 * A layer as a program against its operations one by one, over random shapes and kinds of matrices:
 * on every instruction set and kernel, with one to eight threads, a prompt at once and token by
 * token, all must give the bits of the scalar operations. Prints a digest of those.
 */
#include <math.h>

#include "testing.h"

enum { CASES = 16, MAX_TOKENS = 140, BEHIND = 1 << 16 };

typedef struct {
    edb_matrix qkv, out, gate_up, down;
    float *attn_norm, *mlp_norm, *cos, *sin;
    edb_op ops[5];
    int64_t widths[4];
    edb_attention_shape shape;
    int64_t hidden, f, q_size, qkv_size, n, pos;
    float *x;
    layer_cache cache;
} layer_case;

typedef struct {
    float *x;
    layer_cache cache;
} layer_result;

/* Of any kind; with halves, pairs of which some have half a pair. */
static edb_matrix any_matrix(uint64_t *seed, int halves, int64_t rows, int64_t cols) {
    int32_t last = halves ? EDB_PAIRS : EDB_F16 + 2; /* pairs most of all */
    int32_t kind = (int32_t)random_range(seed, EDB_PAIRS, last);
    if (kind > EDB_F16) kind = EDB_PAIRS;
    edb_matrix matrix = random_matrix(seed, kind, (int32_t)random_range(seed, 1, 3), rows, cols);
    if (halves && random_range(seed, 0, 1)) add_half(seed, &matrix, 0);
    int64_t blocks = (rows + 63) / 64 * ((cols + 63) / 64);
    int64_t terms = matrix.pairs + (matrix.half != NULL);
    int64_t scales = kind == EDB_PAIRS ? terms * rows : blocks * 64;
    for (int64_t i = 0; matrix.scales != NULL && i < scales; i++)
        ((float *)(uintptr_t)matrix.scales)[i] *= 0x1p-9f;
    return matrix;
}

static layer_case make_case(uint64_t seed, int halves) {
    static const int64_t tokens[] = {1, 1, 1, 2, 3, 5, 13, 20, MAX_TOKENS};
    layer_case c = {0};
    int32_t kv = (int32_t)random_range(&seed, 1, 3), group = (int32_t)random_range(&seed, 1, 5);
    int32_t head_dim = 2 * (int32_t)random_range(&seed, 1, 36);
    c.hidden = random_range(&seed, 1, 300);
    c.f = random_range(&seed, 1, 500);
    c.n = tokens[random_range(&seed, 0, 8)];
    c.pos =
        random_range(&seed, 0, 3) == 0 ? random_range(&seed, 200, 600) : random_range(&seed, 0, 40);
    c.shape = (edb_attention_shape){kv * group, kv, head_dim,
                                    random_range(&seed, 0, 1) ? EDB_F16 : EDB_F32,
                                    c.pos + c.n + random_range(&seed, 0, 3)};
    c.q_size = (int64_t)kv * group * head_dim;
    c.qkv_size = c.q_size + 2 * (int64_t)kv * head_dim;
    c.qkv = any_matrix(&seed, halves, c.qkv_size, c.hidden);
    c.out = any_matrix(&seed, halves, c.hidden, c.q_size);
    c.gate_up = any_matrix(&seed, halves, 2 * c.f, c.hidden);
    c.down = any_matrix(&seed, halves, c.hidden, c.f);
    c.attn_norm = random_floats(&seed, c.hidden);
    c.mlp_norm = random_floats(&seed, c.hidden);
    c.cos = random_floats(&seed, c.shape.capacity * (head_dim / 2));
    c.sin = random_floats(&seed, c.shape.capacity * (head_dim / 2));
    c.x = random_floats(&seed, c.n * c.hidden);
    if (seed % 5 == 0) c.x[0] = 3e38f; /* normalizes to zeros, and infinities on the way */
    c.cache = new_cache(&c.shape);
    for (int64_t i = 0; i < cache_rows(&c.cache); i++) {
        uint8_t *row = cache_row(&c.cache, i);
        for (int64_t j = 0; j < head_dim; j++) {
            uint16_t half = random_half(&seed);
            float wide = random_float(&seed);
            if (c.shape.cache_kind == EDB_F16) {
                memcpy(row + 2 * j, &half, sizeof half);
            } else {
                memcpy(row + 4 * j, &wide, sizeof wide);
            }
        }
    }
    return c;
}

enum { X, QKV, ATT, GATE_UP };

/* The five operations that Llama's layer fuses into. */
static void bind(layer_case *c, int32_t activation) {
    const int64_t widths[] = {c->hidden, c->qkv_size, c->q_size, 2 * c->f};
    memcpy(c->widths, widths, sizeof widths);
    int32_t q = (int32_t)c->q_size, kv = c->shape.n_kv_heads * c->shape.head_dim;
    const edb_op ops[] = {
        {.code = EDB_OP_LINEAR, .input = EDB_INPUT_NORMED, .x = {X, 0}, .out = {QKV, 0},
         .width = c->qkv_size, .matrix = &c->qkv, .weight = c->attn_norm, .eps = 1e-5f},
        {.code = EDB_OP_ATTENTION, .x = {QKV, 0}, .y = {QKV, q}, .z = {QKV, q + kv},
         .out = {ATT, 0}, .width = c->q_size, .scale = 1.0f / sqrtf((float)c->shape.head_dim),
         .positions = c->shape.capacity, .cos = c->cos, .sin = c->sin, .q_cos = c->cos,
         .q_sin = c->sin,
         .n_heads = c->shape.n_heads, .n_kv_heads = c->shape.n_kv_heads,
         .head_dim = c->shape.head_dim, .window = INT64_MAX / 2},
        {.code = EDB_OP_LINEAR, .add = 1, .x = {ATT, 0}, .out = {X, 0}, .width = c->hidden,
         .matrix = &c->out},
        {.code = EDB_OP_LINEAR, .input = EDB_INPUT_NORMED, .x = {X, 0}, .out = {GATE_UP, 0},
         .width = 2 * c->f, .matrix = &c->gate_up, .weight = c->mlp_norm, .eps = 1e-5f},
        {.code = EDB_OP_LINEAR, .input = EDB_INPUT_GATED, .add = 1, .x = {GATE_UP, 0},
         .out = {X, 0}, .width = c->hidden, .matrix = &c->down,
         .activation = activation},
    };
    memcpy(c->ops, ops, sizeof ops);
}

static void free_case(layer_case *c) {
    free_matrix(&c->qkv);
    free_matrix(&c->out);
    free_matrix(&c->gate_up);
    free_matrix(&c->down);
    float *floats[] = {c->attn_norm, c->mlp_norm, c->cos, c->sin, c->x};
    for (int i = 0; i < 5; i++) release(floats[i]);
    free_cache(&c->cache);
}

static layer_result start(const layer_case *c) {
    layer_result r = {allocate((size_t)(c->n * c->hidden) * sizeof(float)), copy_cache(&c->cache)};
    memcpy(r.x, c->x, (size_t)(c->n * c->hidden) * sizeof(float));
    return r;
}

static void free_result(layer_result *r) {
    release(r->x);
    free_cache(&r->cache);
}

/* A NaN is a NaN; then the bits count. */
static void unify_nans(layer_result *r, int64_t floats) {
    const uint32_t nan = 0x7fc00000;
    for (int64_t i = 0; i < floats; i++)
        if (r->x[i] != r->x[i]) memcpy(&r->x[i], &nan, sizeof nan);
}

static void one_by_one(const edb_context *context, const layer_case *c, layer_result *r) {
    int64_t n = c->n;
    float *normed = allocate((size_t)(n * c->hidden) * 4),
          *att = allocate((size_t)(n * c->q_size) * 4);
    float *qkv = allocate((size_t)(n * c->qkv_size) * 4);
    float *gate_up = allocate((size_t)(n * 2 * c->f) * 4), *h = allocate((size_t)(n * c->f) * 4);
    size_t bytes = edb_attention_scratch_bytes(context, &c->shape, n, c->pos + n);
    void *scratch = allocate(bytes), **pages = r->cache.pages;
    CHECK(scratch != NULL);
    CHECK(edb_rmsnorm(context, r->x, c->attn_norm, normed, n, c->hidden, 1e-5f) == EDB_OK);
    multiply(context, &c->qkv, normed, qkv, n, 0);
    CHECK(edb_rope(context, &c->shape, qkv, c->cos, c->sin, pages, n, c->pos) == EDB_OK);
    CHECK(edb_attention(context, &c->shape, qkv, pages, att, n, c->pos, scratch, bytes) == EDB_OK);
    multiply(context, &c->out, att, r->x, n, 1);
    CHECK(edb_rmsnorm(context, r->x, c->mlp_norm, normed, n, c->hidden, 1e-5f) == EDB_OK);
    multiply(context, &c->gate_up, normed, gate_up, n, 0);
    CHECK(edb_gate(context, c->ops[4].activation, gate_up, h, n, c->f) == EDB_OK);
    multiply(context, &c->down, h, r->x, n, 1);
    void *all[] = {normed, att, qkv, gate_up, h, scratch};
    for (int i = 0; i < 6; i++) release(all[i]);
}

/* `step` tokens a call, at most as many as go through a program at once. */
static void fused(const edb_context *context, const layer_case *c, int64_t step, layer_result *r) {
    step = step < 128 ? step : 128;
    edb_program *program;
    int32_t wrong;
    CHECK(edb_program_create(c->ops, 5, c->widths, 4, &program, &wrong) == EDB_OK && wrong == -1);
    float *slots[4] = {NULL};
    for (int i = QKV; i <= GATE_UP; i++) slots[i] = allocate((size_t)(step * c->widths[i]) * 4);
    const int64_t offset = 0;
    edb_span span = {.capacity = c->shape.capacity, .cache_kind = c->shape.cache_kind,
                     .pages = r->cache.pages, .page_bytes = r->cache.page_bytes,
                     .offsets = &offset};
    for (int64_t t = 0; t < c->n; t += step) {
        slots[X] = r->x + t * c->hidden;
        span.n = c->n - t < step ? c->n - t : step;
        span.pos = c->pos + t;
        size_t bytes = edb_program_scratch_bytes(context, program, span.n, &span, 1);
        CHECK(bytes > 0);
        uint8_t *scratch = allocate(bytes + BEHIND);
        memset(scratch + bytes, 0xa5, BEHIND); /* nothing may be written there */
        CHECK(edb_program_run(context, program, NULL, slots, span.n, &span, 1, scratch, bytes) ==
              EDB_OK);
        for (int i = 0; i < BEHIND; i++) CHECK(scratch[bytes + i] == 0xa5);
        release(scratch);
    }
    for (int i = QKV; i <= GATE_UP; i++) release(slots[i]);
    edb_program_destroy(program);
}

static void check_same(const layer_case *c, layer_result *r, const layer_result *expected) {
    unify_nans(r, c->n * c->hidden);
    CHECK(memcmp(r->x, expected->x, (size_t)(c->n * c->hidden) * sizeof(float)) == 0);
    for (int64_t i = 0; i < r->cache.n_pages; i++)
        CHECK(memcmp(r->cache.pages[i], expected->cache.pages[i], (size_t)r->cache.page_bytes) == 0);
}

static void check_everywhere(const layer_case *c, edb_pool **pools, const layer_result *expected,
                             int coarse) {
    for (int32_t isa = 0; isa < edb_isa_count(); isa++) {
        const char *kernel;
        for (int32_t k = 0; (kernel = edb_kernel_name(edb_isa_name(isa), k)) != NULL; k++) {
            if (coarse != (strcmp(kernel, "popcount4") == 0)) continue;
            for (int threads = 1; threads <= 8; threads += k == 0 ? 1 : 7) {
                edb_context *context = new_context_in_turn(edb_isa_name(isa), kernel, pools[threads - 1]);
                for (int way = 0; way < 2;
                     way++) { /* all tokens at once, and in threes or one by one */
                    if (way == 1 && threads % 3 != 1) continue;
                    layer_result r = start(c);
                    fused(context, c, way == 0 ? c->n : c->n > 3 ? 3 : 1, &r);
                    check_same(c, &r, expected);
                    free_result(&r);
                }
                edb_context_destroy(context);
            }
        }
    }
}

static void check_layers(const char *name, int32_t activation, int halves, uint64_t cases,
                         edb_pool **pools) {
    uint64_t hash = DIGEST_START;
    for (uint64_t seed = 1; seed <= cases; seed++) {
        int coarse = seed % 8 == 0;
        layer_case c = make_case(seed, halves);
        bind(&c, activation);
        edb_context *scalar = new_context("scalar", coarse ? "popcount4" : NULL, NULL);
        layer_result expected = start(&c);
        one_by_one(scalar, &c, &expected);
        edb_context_destroy(scalar);
        unify_nans(&expected, c.n * c.hidden);
        hash = digest(hash, expected.x, (size_t)(c.n * c.hidden) * sizeof(float));
        for (int64_t i = 0; i < cache_rows(&expected.cache); i++)
            hash = digest(hash, cache_row(&expected.cache, i), (size_t)expected.cache.row_bytes);
        check_everywhere(&c, pools, &expected, coarse);
        free_result(&expected);
        free_case(&c);
    }
    printf("%-12s %016llx\n", name, (unsigned long long)hash);
}

int main(void) {
    edb_pool *pools[8];
    for (int i = 0; i < 8; i++) CHECK(edb_pool_create(i + 1, &pools[i]) == EDB_OK);
    check_layers("layer", EDB_OP_SILU, 0, CASES, pools);
    check_layers("gelu layer", EDB_OP_GELU_TANH, 0, CASES / 4, pools);
    check_layers("half layer", EDB_OP_SILU, 1, CASES, pools);
    for (int i = 0; i < 8; i++) edb_pool_destroy(pools[i]);
    return 0;
}
