/*
 * Attention of up to four queries that share a key/value head, over the vector layer of ops_body.h.
 *
 *   scores[j] = (q . k[j]) / sqrt(head_dim)       16 lanes over the head, tree of v_sum
 *   p[j] = exp(scores[j] - max), total = sum p    lane j mod 16, tree of v_sum
 *   out[d] = (sum_j p[j] * v[j][d]) / total       one fused multiply-add a key, j ascending
 *
 * Nothing depends on which queries go together, so a prompt gives the bits of token by token.
 * Every element of the head is a chain of dependent fused multiply-adds, four cycles each. So a
 * pass keeps rows * keys, then rows * vectors, of four to six sums of 16 lanes going.
 */
enum { IN_FLIGHT = 6, KEYS_AHEAD = 32 };

static EDB_INLINE v16 cache_load(const void *cache, int is_f16, int64_t at, int64_t count) {
    return dense_load(cache, is_f16, at, count);
}

/* Scores of keys key..key+keys-1 for every row; rows * keys <= IN_FLIGHT. */
static EDB_INLINE void score_keys(const edb_attend *job, int is_f16, int rows, int keys,
                                  int64_t key) {
    int64_t head_dim = job->head_dim;
    v16 sum[IN_FLIGHT];
    for (int i = 0; i < IN_FLIGHT; i++) sum[i] = v_set1(0.0f);
    int64_t d = 0;
    for (; d + EDB_LANES <= head_dim; d += EDB_LANES) {
        for (int j = 0; j < keys; j++) {
            v16 k = cache_load(job->k, is_f16, (key + j) * head_dim + d, EDB_LANES);
            for (int r = 0; r < rows; r++)
                sum[j * rows + r] = v_fma(v_load(job->q[r] + d), k, sum[j * rows + r]);
        }
    }
    if (d < head_dim) {
        for (int j = 0; j < keys; j++) {
            v16 k = cache_load(job->k, is_f16, (key + j) * head_dim + d, head_dim - d);
            for (int r = 0; r < rows; r++) {
                v16 q = v_load_part(job->q[r] + d, head_dim - d);
                sum[j * rows + r] = v_fma(q, k, sum[j * rows + r]);
            }
        }
    }
    float dots[8];
    v_sum4(sum[0], sum[1], sum[2], sum[3], dots);
    if (rows * keys > 4) v_sum4(sum[4], sum[5], sum[5], sum[5], dots + 4);
    for (int j = 0; j < keys; j++)
        for (int r = 0; r < rows; r++)
            job->scores[r * job->stride + key + j] = dots[j * rows + r] * job->scale;
}

/* scores -> p in place, zeros up to a whole vector; returns the total. */
static float softmax(float *scores, int64_t keys) {
    v16 largest = v_set1(scores[0]);
    int64_t j = 0;
    for (; j + EDB_LANES <= keys; j += EDB_LANES) largest = v_max(largest, v_load(scores + j));
    float max = v_max_lane(largest);
    for (; j < keys; j++) max = max > scores[j] ? max : scores[j];
    for (j = keys; j % EDB_LANES != 0; j++) scores[j] = max;

    v16 total = v_set1(0.0f);
    int64_t whole = keys & ~(int64_t)(EDB_LANES - 1);
    for (j = 0; j < keys; j += EDB_LANES) {
        v_store(scores + j, v_exp(v_sub(v_load(scores + j), v_set1(max))));
        if (j == whole)
            memset(scores + keys, 0, (size_t)(EDB_LANES - keys % EDB_LANES) * sizeof *scores);
        total = v_add(total, v_load(scores + j));
    }
    return v_sum(total);
}

/* A value row's columns are visited in strides of a whole row, which hardware follows badly. */
static EDB_INLINE void prefetch_row(const void *cache, int is_f16, int64_t at) {
    const int64_t element = is_f16 ? 2 : 4;
    __builtin_prefetch((const void *)((uintptr_t)cache + (uintptr_t)(at * element)), 0, 2);
}

/* out[d .. d + 16*vectors) of every row; rows * vectors <= IN_FLIGHT, `count` columns are real. */
static EDB_INLINE void weigh_values(const edb_attend *job, int is_f16, int rows, int vectors,
                                    int64_t d, int64_t count, const float *total) {
    int64_t head_dim = job->head_dim, common = job->keys[0];
    v16 sum[IN_FLIGHT];
    for (int i = 0; i < IN_FLIGHT; i++) sum[i] = v_set1(0.0f);
    for (int64_t j = 0; j < common; j++) {
        prefetch_row(job->v, is_f16, (j + KEYS_AHEAD) * head_dim + d);
        for (int c = 0; c < vectors; c++) {
            v16 v = cache_load(job->v, is_f16, j * head_dim + d + EDB_LANES * c, count);
            for (int r = 0; r < rows; r++) {
                v16 p = v_set1(job->scores[r * job->stride + j]);
                sum[c * rows + r] = v_fma(p, v, sum[c * rows + r]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < vectors; c++) {
            v16 mine = sum[c * rows + r];
            for (int64_t j = common; j < job->keys[r]; j++) {
                v16 v = cache_load(job->v, is_f16, j * head_dim + d + EDB_LANES * c, count);
                mine = v_fma(v_set1(job->scores[r * job->stride + j]), v, mine);
            }
            v_store_part(job->out[r] + d + EDB_LANES * c, v_div(mine, v_set1(total[r])), count);
        }
    }
}

static EDB_INLINE void attend_rows(const edb_attend *job, int is_f16, int rows) {
    int64_t most = job->keys[rows - 1], key = 0, d = 0;
    const int keys = rows == 1 ? 4 : rows == 4 ? 1 : 2, vectors = keys;
    for (; key + keys <= most; key += keys) score_keys(job, is_f16, rows, keys, key);
    for (; key < most; key++) score_keys(job, is_f16, rows, 1, key);

    float total[EDB_ATTEND_ROWS];
    for (int r = 0; r < rows; r++) total[r] = softmax(job->scores + r * job->stride, job->keys[r]);

    for (; d + vectors * EDB_LANES <= job->head_dim; d += vectors * EDB_LANES)
        weigh_values(job, is_f16, rows, vectors, d, EDB_LANES, total);
    for (; d < job->head_dim; d += EDB_LANES)
        weigh_values(job, is_f16, rows, 1, d, job->head_dim - d, total);
}

static void attend(const edb_attend *job) {
    if (job->cache_kind == EDB_F16) {
        switch (job->rows) {
        case 1: attend_rows(job, 1, 1); break;
        case 2: attend_rows(job, 1, 2); break;
        case 3: attend_rows(job, 1, 3); break;
        default: attend_rows(job, 1, 4); break;
        }
    } else {
        switch (job->rows) {
        case 1: attend_rows(job, 0, 1); break;
        case 2: attend_rows(job, 0, 2); break;
        case 3: attend_rows(job, 0, 3); break;
        default: attend_rows(job, 0, 4); break;
        }
    }
}
