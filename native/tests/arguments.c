/*
 * Bad arguments: every function returns the status its header promises, and has written nothing.
 * Meant for a run under a sanitizer; it prints nothing.
 */
#include "testing.h"

enum { ROWS = 70, COLS = 100, FAR = 1 << 30 };

static edb_context *context;
static edb_matrix matrix;
static float *x, *out;
static uint8_t scratch[1 << 16];

static edb_status matmul_with(edb_matrix changed, const float *input, int64_t n, size_t bytes) {
    return edb_matmul(context, &changed, input, out, n, 0, scratch, bytes);
}

static void matrices(void) {
    size_t bytes = sizeof scratch;
    edb_matrix bad = matrix;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_OK);
    CHECK(matmul_with(bad, NULL, 1, bytes) == EDB_ERR_NULL);
    CHECK(matmul_with(bad, (const float *)(const void *)((char *)x + 1), 1, bytes) ==
          EDB_ERR_ALIGN);
    CHECK(matmul_with(bad, x, 0, bytes) == EDB_ERR_SHAPE);
    CHECK(matmul_with(bad, x, INT64_MIN, bytes) == EDB_ERR_SHAPE);
    CHECK(matmul_with(bad, x, INT64_MAX, bytes) == EDB_ERR_SHAPE);
    CHECK(matmul_with(bad, x, 1, 10) == EDB_ERR_SCRATCH);

    const int64_t sizes[] = {0, -1, INT64_MIN, INT64_MAX, (int64_t)1 << 40};
    for (int i = 0; i < 5; i++) {
        bad = matrix;
        bad.rows = sizes[i];
        CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_SHAPE);
        CHECK(edb_matmul_scratch_bytes(context, &bad, 1) == 0);
        bad = matrix;
        bad.cols = sizes[i];
        CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_SHAPE);
        bad = matrix;
        bad.pairs = (int32_t)sizes[i];
        CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_SHAPE);
    }
    bad = matrix;
    bad.kind = 9;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_KIND);
    bad = matrix;
    bad.data = (const char *)matrix.data + 32;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_ALIGN);
    bad = matrix;
    bad.data = NULL;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_NULL);
    bad = matrix;
    bad.scales = NULL;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_NULL);
}

static void tokens(void) {
    const int32_t ids[] = {-1, ROWS, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++)
        CHECK(edb_embed(context, &matrix, ids + i, out, 1) == EDB_ERR_RANGE);
    CHECK(edb_embed(context, &matrix, NULL, out, 1) == EDB_ERR_NULL);
    CHECK(edb_embed(context, &matrix, ids, out, -1) == EDB_ERR_SHAPE);
    CHECK(edb_rmsnorm(context, x, x, out, 1, 0, 1e-5f) == EDB_ERR_SHAPE);
    CHECK(edb_swiglu(context, x, NULL, 1, 8) == EDB_ERR_NULL);
    CHECK(edb_swiglu(NULL, x, out, 1, 8) == EDB_ERR_NULL);
}

static void attention(void) {
    const edb_attention_shape good = {4, 2, 8, EDB_F32, 16};
    edb_attention_shape bad;
    float qkv[64] = {0}, caches[2][2 * 16 * 8] = {{0}};
    float *k = caches[0], *v = caches[1];
#define ATTENTION(shape, n, pos) \
    edb_attention(context, shape, qkv, k, v, out, n, pos, scratch, sizeof scratch)
    CHECK(ATTENTION(&good, 1, 15) == EDB_OK);
    CHECK(ATTENTION(&good, 1, 16) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 1, -1) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 1, INT64_MAX) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 0, 0) == EDB_ERR_SHAPE);
    CHECK(ATTENTION(NULL, 1, 0) == EDB_ERR_NULL);
    CHECK(edb_rope(context, &good, qkv, x, x, k, v, 1, 16) == EDB_ERR_RANGE);
    CHECK(edb_rope(context, &good, qkv, x, x, k, NULL, 1, 0) == EDB_ERR_NULL);
    CHECK(edb_attention(context, &good, qkv, k, v, out, 1, 0, scratch, 8) == EDB_ERR_SCRATCH);
    const int32_t numbers[] = {0, -1, 3, FAR, INT32_MIN};
    for (int i = 0; i < 5; i++) {
        bad = good;
        bad.n_heads = numbers[i];
        CHECK(ATTENTION(&bad, 1, 0) == EDB_ERR_SHAPE);
        bad = good;
        bad.n_kv_heads = numbers[i];
        CHECK(ATTENTION(&bad, 1, 0) == EDB_ERR_SHAPE);
        bad = good;
        bad.head_dim = numbers[i];
        CHECK(ATTENTION(&bad, 1, 0) == EDB_ERR_SHAPE);
    }
    bad = good;
    bad.capacity = INT64_MAX;
    CHECK(ATTENTION(&bad, 1, 0) == EDB_ERR_SHAPE);
    bad = good;
    bad.cache_kind = EDB_PAIRS;
    CHECK(ATTENTION(&bad, 1, 0) == EDB_ERR_KIND);
}

static void layers(void) {
    const edb_attention_shape heads = {2, 1, 4, EDB_F32, 16};
    uint64_t seed = 2;
    edb_matrix qkv = random_matrix(&seed, EDB_PAIRS, 1, 16, 24);
    edb_matrix back = random_matrix(&seed, EDB_INT8, 0, 24, 8);
    edb_matrix gate_up = random_matrix(&seed, EDB_F32, 0, 16, 24);
    const edb_layer good = {x, &qkv, &back, x, &gate_up, &back, x, x, 1e-5f};
    const edb_layer_buffers memory = {out, out + 64, out + 128, out + 192};
    float k[64] = {0}, v[64] = {0};
    size_t bytes = edb_decoder_layer_scratch_bytes(context, &good, &heads, 1, 16);
    CHECK(bytes > 0 && bytes <= sizeof scratch);
#define LAYER(layer, buffers, n, pos, size) \
    edb_decoder_layer(context, layer, &heads, buffers, k, v, n, pos, scratch, size)
    CHECK(LAYER(&good, &memory, 1, 15, bytes) == EDB_OK);
    CHECK(LAYER(&good, &memory, 1, 15, bytes - 1) == EDB_ERR_SCRATCH);
    CHECK(LAYER(&good, &memory, 1, 16, bytes) == EDB_ERR_RANGE);
    CHECK(LAYER(&good, &memory, INT64_MAX, 0, bytes) == EDB_ERR_SHAPE);
    CHECK(LAYER(NULL, &memory, 1, 0, bytes) == EDB_ERR_NULL);
    CHECK(LAYER(&good, NULL, 1, 0, bytes) == EDB_ERR_NULL);
    edb_layer bad = good;
    bad.attn_out = &qkv;
    CHECK(LAYER(&bad, &memory, 1, 0, bytes) == EDB_ERR_SHAPE);
    CHECK(edb_decoder_layer_scratch_bytes(context, &bad, &heads, 1, 16) == 0);
    bad.attn_out = NULL;
    CHECK(LAYER(&bad, &memory, 1, 0, bytes) == EDB_ERR_NULL);
    bad = good;
    bad.sin = (const float *)(const void *)((const char *)x + 1);
    CHECK(LAYER(&bad, &memory, 1, 0, bytes) == EDB_ERR_ALIGN);
    edb_layer_buffers lost = memory;
    lost.gate_up = NULL;
    CHECK(LAYER(&good, &lost, 1, 0, bytes) == EDB_ERR_NULL);
    CHECK(edb_decoder_layer_scratch_bytes(context, &good, &heads, 1, 17) == 0);
    free_matrix(&qkv);
    free_matrix(&back);
    free_matrix(&gate_up);
}

static void creation(void) {
    edb_pool *pool;
    edb_context *other;
    CHECK(edb_pool_create(0, &pool) == EDB_ERR_SHAPE && pool == NULL);
    CHECK(edb_pool_create(257, &pool) == EDB_ERR_SHAPE && pool == NULL);
    CHECK(edb_pool_create(1, NULL) == EDB_ERR_NULL);
    CHECK(edb_context_create("z80", NULL, NULL, &other) == EDB_ERR_ISA && other == NULL);
    CHECK(edb_context_create(NULL, "abacus", NULL, &other) == EDB_ERR_KERNEL && other == NULL);
    CHECK(edb_context_create(NULL, NULL, NULL, NULL) == EDB_ERR_NULL);
    edb_pool_destroy(NULL);
    edb_context_destroy(NULL);
    CHECK(edb_pool_threads(NULL) == 1 && edb_context_isa(NULL) == NULL);
    CHECK(edb_isa_name(-1) == NULL && edb_isa_name(edb_isa_count()) == NULL);
    CHECK(edb_isa_supported(-1) == 0 && edb_kernel_name("scalar", -1) == NULL);
    for (edb_status status = -1; status < 20; status++) CHECK(edb_status_text(status) != NULL);
}

int main(void) {
    uint64_t seed = 1;
    context = new_context(NULL, NULL, NULL);
    matrix = random_matrix(&seed, EDB_PAIRS, 1, ROWS, COLS);
    x = random_floats(&seed, 256);
    out = random_floats(&seed, 256);
    matrices();
    tokens();
    attention();
    layers();
    creation();
    free(out);
    free(x);
    free_matrix(&matrix);
    edb_context_destroy(context);
    return 0;
}
