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
    bad.half = (const char *)matrix.data + 32;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_ALIGN);
    bad.half = matrix.data;
    bad.pairs = -1;
    CHECK(matmul_with(bad, x, 1, bytes) == EDB_ERR_SHAPE);
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
    CHECK(edb_gate(context, EDB_OP_SILU, x, NULL, 1, 8) == EDB_ERR_NULL);
    CHECK(edb_gate(NULL, EDB_OP_SILU, x, out, 1, 8) == EDB_ERR_NULL);
    CHECK(edb_gate(context, EDB_OP_MUL, x, out, 1, 8) == EDB_ERR_KIND);
}

static void attention(void) {
    const edb_attention_shape good = {4, 2, 8, EDB_F32, 16};
    edb_attention_shape bad;
    static float page[2 * 2 * EDB_PAGE * 8];
    float qkv[64] = {0};
    void *pages[] = {page}, *odd[] = {(char *)page + 2}, *none[] = {NULL};
#define ATTENTION(shape, n, pos) \
    edb_attention(context, shape, qkv, pages, out, n, pos, scratch, sizeof scratch)
    CHECK(ATTENTION(&good, 1, 15) == EDB_OK);
    CHECK(ATTENTION(&good, 1, 16) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 1, -1) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 1, INT64_MAX) == EDB_ERR_RANGE);
    CHECK(ATTENTION(&good, 0, 0) == EDB_ERR_SHAPE);
    CHECK(ATTENTION(NULL, 1, 0) == EDB_ERR_NULL);
    CHECK(edb_rope(context, &good, qkv, x, x, pages, 1, 16) == EDB_ERR_RANGE);
    CHECK(edb_rope(context, &good, qkv, x, x, NULL, 1, 0) == EDB_ERR_NULL);
    CHECK(edb_rope(context, &good, qkv, x, x, none, 1, 0) == EDB_ERR_NULL);
    CHECK(edb_rope(context, &good, qkv, x, x, odd, 1, 0) == EDB_ERR_ALIGN);
    CHECK(edb_attention(context, &good, qkv, pages, out, 1, 0, scratch, 8) == EDB_ERR_SCRATCH);
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

static edb_status create(const edb_op *ops, int32_t n_ops, int32_t expected_wrong) {
    const int64_t widths[] = {24, 16, 8};
    edb_program *program;
    int32_t wrong;
    edb_status status = edb_program_create(ops, n_ops, widths, 3, &program, &wrong);
    CHECK((status == EDB_OK) == (program != NULL));
    CHECK(wrong == expected_wrong);
    edb_program_destroy(program);
    return status;
}

/* Every way in which one operation can be wrong, with a right one before it. */
static void programs(void) {
    uint64_t seed = 2;
    edb_matrix qkv = random_matrix(&seed, EDB_PAIRS, 1, 16, 24);
    edb_matrix back = random_matrix(&seed, EDB_F32, 0, 24, 8);
    const float *odd = (const float *)(const void *)((const char *)x + 1);
    const edb_op linear = {.code = EDB_OP_LINEAR, .input = EDB_INPUT_NORMED, .out = {1, 0},
                           .width = 16, .matrix = &qkv, .weight = x, .eps = 1e-5f};
    const edb_op gated = {.code = EDB_OP_LINEAR, .input = EDB_INPUT_GATED, .out = {1, 0},
                          .width = 16, .matrix = &qkv};
    const edb_op attention = {.code = EDB_OP_ATTENTION, .x = {1, 0}, .y = {1, 8}, .z = {1, 12},
                              .out = {2, 0}, .width = 8, .scale = 0.5f, .positions = 16,
                              .cos = x, .sin = x, .q_cos = x, .q_sin = x, .n_heads = 2,
                              .n_kv_heads = 1, .head_dim = 4, .window = 9};
    const edb_op rope = {.code = EDB_OP_ROPE, .heads = 2, .x = {1, 0}, .out = {1, 0}, .width = 8,
                         .positions = 16, .cos = x, .sin = x};
    const edb_op add = {.code = EDB_OP_ADD, .x = {1, 0}, .y = {2, 0}, .out = {1, 0}, .width = 8};
    edb_op ops[2] = {linear, linear};
    CHECK(create(ops, 2, -1) == EDB_OK);
    ops[1] = attention;
    CHECK(create(ops, 2, -1) == EDB_OK);
    ops[1] = rope;
    CHECK(create(ops, 2, -1) == EDB_OK);
    ops[1] = add;
    CHECK(create(ops, 2, -1) == EDB_OK);
    CHECK(create(ops, 0, -1) == EDB_ERR_SHAPE);

#define WRONG(good, field, value, status) \
    ops[1] = good;                        \
    ops[1].field = value;                 \
    CHECK(create(ops, 2, 1) == (status))
    WRONG(linear, code, 99, EDB_ERR_KIND);
    WRONG(linear, input, 99, EDB_ERR_KIND);
    WRONG(linear, matrix, NULL, EDB_ERR_NULL);
    WRONG(linear, matrix, &back, EDB_ERR_SHAPE);
    WRONG(linear, weight, NULL, EDB_ERR_NULL);
    WRONG(linear, weight, odd, EDB_ERR_ALIGN);
    WRONG(linear, bias, odd, EDB_ERR_ALIGN);
    WRONG(linear, width, 15, EDB_ERR_SHAPE);
    WRONG(linear, out.slot, 0, EDB_ERR_SHAPE); /* where x lies */
    WRONG(linear, out.slot, 3, EDB_ERR_SHAPE);
    WRONG(linear, out.slot, -1, EDB_ERR_SHAPE);
    WRONG(linear, x.column, 1, EDB_ERR_SHAPE);
    WRONG(linear, input, EDB_INPUT_GATED, EDB_ERR_KIND); /* no activation */
    WRONG(gated, activation, EDB_OP_SILU, EDB_ERR_SHAPE); /* of half as many columns */
    WRONG(gated, activation, EDB_OP_MUL, EDB_ERR_KIND);
    WRONG(attention, width, 4, EDB_ERR_SHAPE);
    WRONG(attention, cap, -1.0f, EDB_ERR_RANGE);
    WRONG(attention, n_heads, 0, EDB_ERR_SHAPE);
    WRONG(attention, n_kv_heads, 3, EDB_ERR_SHAPE);
    WRONG(attention, head_dim, 3, EDB_ERR_SHAPE);
    WRONG(attention, window, 0, EDB_ERR_SHAPE);
    WRONG(attention, cache, -1, EDB_ERR_SHAPE);
    WRONG(attention, y.column, 7, EDB_ERR_SHAPE); /* x is overwritten */
    WRONG(attention, z.column, 13, EDB_ERR_SHAPE);
    WRONG(attention, out.slot, 1, EDB_ERR_SHAPE);
    WRONG(attention, sin, NULL, EDB_ERR_NULL);
    WRONG(attention, q_sin, NULL, EDB_ERR_NULL);
    WRONG(attention, q_cos, odd, EDB_ERR_ALIGN);
    WRONG(attention, positions, 0, EDB_ERR_SHAPE);
    WRONG(attention, k_norm, x, EDB_ERR_NULL); /* without q_norm */
    WRONG(attention, q_norm, x, EDB_ERR_NULL);
    WRONG(rope, heads, 0, EDB_ERR_SHAPE);
    WRONG(rope, heads, 3, EDB_ERR_SHAPE);
    WRONG(rope, heads, 8, EDB_ERR_SHAPE); /* heads of one channel have no pairs */
    WRONG(rope, cos, NULL, EDB_ERR_NULL);
    WRONG(rope, out.column, 1, EDB_ERR_SHAPE); /* overlaps x */
    WRONG(add, code, EDB_OP_SOFTCAP, EDB_ERR_RANGE); /* no cap */
    WRONG(add, y.slot, 5, EDB_ERR_SHAPE);
    WRONG(add, width, 9, EDB_ERR_SHAPE);
    WRONG(add, x.column, 12, EDB_ERR_SHAPE);
    WRONG(add, x.column, -1, EDB_ERR_SHAPE);
    ops[0] = (edb_op){.code = EDB_OP_LINEAR, .x = {2, 0}, .out = {0, 0}, .width = 24,
                      .matrix = &back, .bias = x, .add = 1};
    CHECK(create(ops, 1, 0) == EDB_ERR_KIND); /* dense: a bias, or added */

    ops[0] = linear;
    ops[1] = attention;
    const int64_t widths[] = {24, 16, 8};
    edb_program *program;
    int32_t wrong;
    CHECK(edb_program_create(ops, 2, widths, 3, &program, &wrong) == EDB_OK);
    float memory[48] = {0}, *slots[] = {memory, memory + 24, memory + 40};
    static float page[2 * EDB_PAGE * 4 + 1];
    void *pages[] = {page};
    int64_t offset = 4;
    const edb_span good = {.n = 1, .pos = 15, .capacity = 16, .cache_kind = EDB_F32, .pages = pages,
                           .page_bytes = sizeof page, .offsets = &offset};
    edb_span spans[2] = {good, good};
    size_t bytes = edb_program_scratch_bytes(context, program, 1, spans, 1);
    CHECK(bytes > 0 && bytes <= sizeof scratch);
#define RUN(n, n_spans, size) \
    edb_program_run(context, program, NULL, slots, n, spans, n_spans, scratch, size)
    CHECK(RUN(1, 1, bytes) == EDB_OK);
    CHECK(RUN(1, 1, 0) == EDB_ERR_SCRATCH);
    CHECK(RUN(0, 1, bytes) == EDB_ERR_SHAPE);
    CHECK(RUN(129, 1, bytes) == EDB_ERR_SHAPE);
    CHECK(RUN(2, 1, bytes) == EDB_ERR_SHAPE); /* a row that is nobody's */
    CHECK(RUN(1, 2, bytes) == EDB_ERR_SHAPE);
    CHECK(RUN(1, 0, bytes) == EDB_ERR_SHAPE);
    CHECK(edb_program_scratch_bytes(context, program, 2, spans, 1) == 0);
    CHECK(edb_program_run(context, program, NULL, slots, 1, NULL, 1, scratch, bytes) ==
          EDB_ERR_NULL);
    CHECK(edb_program_run(context, NULL, NULL, slots, 1, spans, 1, scratch, bytes) ==
          EDB_ERR_NULL);
#define BAD_SPAN(field, value, status) \
    spans[0] = good;                   \
    spans[0].field = value;            \
    CHECK(RUN(1, 1, bytes) == (status))
    BAD_SPAN(pos, 16, EDB_ERR_RANGE);
    BAD_SPAN(pos, -1, EDB_ERR_RANGE);
    BAD_SPAN(pos, INT64_MAX, EDB_ERR_RANGE);
    BAD_SPAN(n, INT64_MAX, EDB_ERR_SHAPE);
    BAD_SPAN(capacity, 0, EDB_ERR_SHAPE);
    BAD_SPAN(cache_kind, EDB_PAIRS, EDB_ERR_KIND);
    BAD_SPAN(pages, NULL, EDB_ERR_NULL);
    BAD_SPAN(offsets, NULL, EDB_ERR_NULL);
    BAD_SPAN(page_bytes, (int64_t)sizeof page - 1, EDB_ERR_RANGE);
    BAD_SPAN(page_bytes, INT64_MIN, EDB_ERR_RANGE);
    spans[0] = good;
    const int64_t far[] = {-4, 5, 8, INT64_MAX - 3, INT64_MIN};
    for (int i = 0; i < 5; i++) {
        offset = far[i];
        CHECK(RUN(1, 1, bytes) == EDB_ERR_RANGE);
    }
    offset = 4;
    pages[0] = NULL;
    CHECK(RUN(1, 1, bytes) == EDB_ERR_NULL);
    pages[0] = page;
    slots[2] = NULL;
    CHECK(RUN(1, 1, bytes) == EDB_ERR_NULL);
    edb_program_destroy(program);
    edb_program_destroy(NULL);
    free_matrix(&qkv);
    free_matrix(&back);
}

/* Piece 0 and itself make piece 1, unless the table says nonsense. */
static void merges(void) {
    int32_t ends[] = {1, 1}, rights[] = {0}, ranks[] = {0}, results[] = {1};
    const edb_merges good = {1, 2, ends, rights, ranks, results};
    edb_merges bad = good;
    int32_t ids[] = {0, 0, 0, 0};
    int64_t words[] = {1, 4};
    size_t bytes = edb_merge_scratch_bytes(words, 2);
    CHECK(bytes > 0 && bytes <= sizeof scratch);
    CHECK(edb_merge_scratch_bytes(NULL, 2) == 0 && edb_merge_scratch_bytes(words, 0) == 0);
#define MERGE(size) edb_merge(&bad, ids, words, 2, scratch, size)
    CHECK(MERGE(bytes - 1) == EDB_ERR_SCRATCH);
    CHECK(edb_merge(NULL, ids, words, 2, scratch, bytes) == EDB_ERR_NULL);
    CHECK(edb_merge(&bad, NULL, words, 2, scratch, bytes) == EDB_ERR_NULL);
    CHECK(edb_merge(&bad, ids, words, 0, scratch, bytes) == EDB_ERR_SHAPE);
    bad.rights = NULL;
    CHECK(MERGE(bytes) == EDB_ERR_NULL);
    bad = good;
    bad.n_pieces = 0;
    CHECK(MERGE(bytes) == EDB_ERR_SHAPE);
    bad = good;
    words[0] = 5; /* the second word ends before the first */
    CHECK(edb_merge_scratch_bytes(words, 2) == 0 && MERGE(bytes) == EDB_ERR_SHAPE);
    words[0] = 1;
    words[1] = INT64_MAX;
    CHECK(edb_merge_scratch_bytes(words, 2) == 0 && MERGE(bytes) == EDB_ERR_SHAPE);
    words[1] = 4;
    ids[3] = 2;
    CHECK(MERGE(bytes) == EDB_ERR_RANGE);
    ids[3] = -1;
    CHECK(MERGE(bytes) == EDB_ERR_RANGE);
    ids[3] = 0;
    CHECK(ids[0] == 0 && words[0] == 1 && words[1] == 4);
    CHECK(MERGE(bytes) == EDB_OK);
    CHECK(words[0] == 1 && words[1] == 3 && ids[0] == 0 && ids[1] == 1 && ids[2] == 0);
    int32_t *const fields[] = {ends, ends, ranks, results, results};
    const int32_t values[] = {-1, 9, -1, 2, -1};
    for (int i = 0; i < 5; i++) {
        int32_t was = *fields[i];
        words[1] = 3;
        ids[1] = ids[2] = 0;
        *fields[i] = values[i];
        CHECK(MERGE(bytes) == EDB_ERR_RANGE);
        *fields[i] = was;
    }
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
    programs();
    merges();
    creation();
    release(out);
    release(x);
    free_matrix(&matrix);
    edb_context_destroy(context);
    return 0;
}
