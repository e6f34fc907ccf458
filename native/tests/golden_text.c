/*
 * A whole language model with seeded random weights writes 200 tokens, greedily, on every
 * instruction set and exact kernel, its prompt read at once with three threads and token by token
 * with one. Standard output is the tokens and a digest of all logits: the same on every processor.
 */
#include "testing.h"

enum {
    VOCAB = 640,
    LAYERS = 2,
    HEADS = 6,
    KV_HEADS = 2,
    HEAD_DIM = 20,
    DIM = HEADS * HEAD_DIM,
    QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM,
    FFN = 200,
    PROMPT = 37,
    TOKENS = 200,
    NO_REPEAT = 64, /* tokens within which none comes twice: random weights soon repeat one */
    CAPACITY = PROMPT + TOKENS,
};

typedef struct {
    edb_matrix qkv, out, gate_up, down;
    float *attn_norm, *mlp_norm;
} layer_weights;

typedef struct {
    edb_matrix embedding, head;
    layer_weights layers[LAYERS];
    float *final_norm;
    float *cos, *sin; /* (position, HEAD_DIM / 2) */
} model_weights;

typedef struct {
    float x[PROMPT * DIM], normed[PROMPT * DIM], attended[PROMPT * DIM];
    float qkv[PROMPT * QKV], gate_up[PROMPT * 2 * FFN], hidden[PROMPT * FFN];
    uint16_t pages[LAYERS][2 * KV_HEADS * EDB_PAGE * HEAD_DIM]; /* one page a layer */
    float logits[VOCAB];
} run_state;

/* Makes a product of this matrix about as large as its input. */
static void scale_down(edb_matrix *matrix) {
    float *scales = (float *)(uintptr_t)matrix->scales;
    if (scales == NULL) return;
    int64_t tiles = (matrix->rows + 63) / 64, groups = (matrix->cols + 63) / 64;
    int64_t count = matrix->kind == EDB_PAIRS ? matrix->pairs * matrix->rows : tiles * groups * 64;
    for (int64_t i = 0; i < count; i++) scales[i] *= 0x1p-9f;
}

static edb_matrix weights(uint64_t *seed, int32_t kind, int32_t pairs, int64_t rows, int64_t cols) {
    edb_matrix matrix = random_matrix(seed, kind, pairs, rows, cols);
    scale_down(&matrix);
    return matrix;
}

static float *norm_weights(uint64_t *seed) {
    float *weight = random_floats(seed, DIM);
    for (int i = 0; i < DIM; i++) weight[i] = 1.0f + 0.25f * weight[i];
    return weight;
}

/* Angles whose sine and cosine are rational in t = 1 / (2 + i), turned on by complex products. */
static void fill_rope(model_weights *model) {
    model->cos = allocate(CAPACITY * (HEAD_DIM / 2) * sizeof(float));
    model->sin = allocate(CAPACITY * (HEAD_DIM / 2) * sizeof(float));
    for (int i = 0; i < HEAD_DIM / 2; i++) {
        double t = 1.0 / (2 + i), c = (1 - t * t) / (1 + t * t), s = 2 * t / (1 + t * t);
        double re = 1, im = 0;
        for (int pos = 0; pos < CAPACITY; pos++) {
            model->cos[pos * (HEAD_DIM / 2) + i] = (float)re;
            model->sin[pos * (HEAD_DIM / 2) + i] = (float)im;
            double next = re * c - im * s;
            im = re * s + im * c;
            re = next;
        }
    }
}

static model_weights make_model(uint64_t seed) {
    model_weights model;
    model.embedding = random_matrix(&seed, EDB_F16, 0, VOCAB, DIM);
    for (int i = 0; i < LAYERS; i++) {
        layer_weights *layer = &model.layers[i];
        layer->qkv = weights(&seed, EDB_PAIRS, 1, QKV, DIM);
        layer->out = weights(&seed, EDB_PAIRS, 2, DIM, DIM);
        layer->gate_up = weights(&seed, EDB_PAIRS, 1, 2 * FFN, DIM);
        layer->down = weights(&seed, i == 1 ? EDB_INT8 : EDB_PAIRS, 3, DIM, FFN);
        layer->attn_norm = norm_weights(&seed);
        layer->mlp_norm = norm_weights(&seed);
    }
    model.head = weights(&seed, EDB_INT8, 0, VOCAB, DIM);
    model.final_norm = norm_weights(&seed);
    fill_rope(&model);
    return model;
}

static void free_model(model_weights *model) {
    free_matrix(&model->embedding);
    for (int i = 0; i < LAYERS; i++) {
        layer_weights *layer = &model->layers[i];
        free_matrix(&layer->qkv);
        free_matrix(&layer->out);
        free_matrix(&layer->gate_up);
        free_matrix(&layer->down);
        release(layer->attn_norm);
        release(layer->mlp_norm);
    }
    free_matrix(&model->head);
    release(model->final_norm);
    release(model->cos);
    release(model->sin);
}

static const edb_attention_shape shape = {HEADS, KV_HEADS, HEAD_DIM, EDB_F16, CAPACITY};

static void attend(const edb_context *context, run_state *s, int i, int64_t n, int64_t pos) {
    size_t bytes = edb_attention_scratch_bytes(context, &shape, n, pos + n);
    void *scratch = allocate(bytes);
    CHECK(scratch != NULL);
    void *page = s->pages[i];
    CHECK(edb_attention(context, &shape, s->qkv, &page, s->attended, n, pos, scratch, bytes) ==
          EDB_OK);
    release(scratch);
}

/* Leaves the logits of the last of the n tokens in s->logits. */
static void forward(const edb_context *context, const model_weights *model, run_state *s,
                    const int32_t *ids, int64_t n, int64_t pos) {
    CHECK(edb_embed(context, &model->embedding, ids, s->x, n) == EDB_OK);
    for (int i = 0; i < LAYERS; i++) {
        const layer_weights *layer = &model->layers[i];
        CHECK(edb_rmsnorm(context, s->x, layer->attn_norm, s->normed, n, DIM, 1e-5f) == EDB_OK);
        multiply(context, &layer->qkv, s->normed, s->qkv, n, 0);
        void *page = s->pages[i];
        CHECK(edb_rope(context, &shape, s->qkv, model->cos, model->sin, &page, n, pos) == EDB_OK);
        attend(context, s, i, n, pos);
        multiply(context, &layer->out, s->attended, s->x, n, 1);
        CHECK(edb_rmsnorm(context, s->x, layer->mlp_norm, s->normed, n, DIM, 1e-5f) == EDB_OK);
        multiply(context, &layer->gate_up, s->normed, s->gate_up, n, 0);
        CHECK(edb_gate(context, EDB_OP_SILU, s->gate_up, s->hidden, n, FFN) == EDB_OK);
        multiply(context, &layer->down, s->hidden, s->x, n, 1);
    }
    const float *last = s->x + (n - 1) * DIM;
    CHECK(edb_rmsnorm(context, last, model->final_norm, s->normed, 1, DIM, 1e-5f) == EDB_OK);
    multiply(context, &model->head, s->normed, s->logits, 1, 0);
}

/* The token of the largest logit that is not among the last NO_REPEAT. */
static int32_t choose(const float *logits, const int32_t *ids, int count) {
    int recent[VOCAB] = {0};
    for (int t = count > NO_REPEAT ? count - NO_REPEAT : 0; t < count; t++) recent[ids[t]] = 1;
    int32_t best = -1;
    for (int32_t i = 0; i < VOCAB; i++)
        if (!recent[i] && (best < 0 || logits[i] > logits[best])) best = i;
    return best;
}

/* Writes TOKENS ids; returns a digest of the logits behind them. */
static uint64_t generate(const edb_context *context, const model_weights *model, int together,
                         int32_t *ids) {
    run_state *s = allocate(sizeof *s);
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++) prompt[i] = i * i * 7 % VOCAB;
    if (together) {
        forward(context, model, s, prompt, PROMPT, 0);
    } else {
        for (int i = 0; i < PROMPT; i++) forward(context, model, s, prompt + i, 1, i);
    }
    uint64_t hash = DIGEST_START;
    for (int t = 0; t < TOKENS; t++) {
        for (int i = 0; i < VOCAB; i++) CHECK(s->logits[i] - s->logits[i] == 0); /* finite */
        hash = digest(hash, s->logits, sizeof s->logits);
        ids[t] = choose(s->logits, ids, t);
        if (t + 1 < TOKENS) forward(context, model, s, ids + t, 1, PROMPT + t);
    }
    release(s);
    return hash;
}

int main(void) {
    model_weights model = make_model(20240217);
    edb_pool *pool;
    CHECK(edb_pool_create(3, &pool) == EDB_OK);
    int32_t expected[TOKENS], ids[TOKENS];
    edb_context *scalar = new_context("scalar", NULL, NULL);
    uint64_t hash = generate(scalar, &model, 1, expected);
    edb_context_destroy(scalar);

    for (int32_t isa = 0; isa < edb_isa_count(); isa++) {
        const char *kernel;
        if (!edb_isa_supported(isa)) continue;
        for (int32_t k = 0; (kernel = edb_kernel_name(edb_isa_name(isa), k)) != NULL; k++) {
            if (strcmp(kernel, "popcount4") == 0) continue;
            if (k > 0 && strcmp(edb_isa_name(isa), "scalar") == 0) continue; /* slow */
            for (int together = 0; together < 2; together++) {
                edb_context *context =
                    new_context(edb_isa_name(isa), kernel, together ? pool : NULL);
                CHECK(generate(context, &model, together, ids) == hash);
                CHECK(memcmp(ids, expected, sizeof ids) == 0);
                edb_context_destroy(context);
            }
        }
    }
    for (int t = 0; t < TOKENS; t++) printf("%d%c", (int)expected[t], t % 20 == 19 ? '\n' : ' ');
    printf("%-12s %016llx\n", "logits", (unsigned long long)hash);
    edb_pool_destroy(pool);
    free_model(&model);
    return 0;
}
