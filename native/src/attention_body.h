/*
 * Attention of up to four queries that share a key/value head, over the vector layer of ops_body.h.
 * Keys are taken in blocks of EDB_PAGE, each apart:
 *
 *   scores[j] = (q . k[j]) * scale                16 lanes over the head, tree of v_sum; capped if
 *                                                 the job has a cap
 *   scores[j] += slope * (position of key j - that of q)   where heads have slopes, fused
 *   p[j] = exp(scores[j] - max), total = sum p    lane j mod 16, tree of v_sum
 *   sum[d] = sum_j p[j] * v[j][d]                 one fused multiply-add a key, j ascending
 *
 * and joined in ascending order, by merge_found. Nothing depends on which queries or blocks go
 * together, so a prompt gives the bits of token by token at any number of threads.
 * Every element of the head is a chain of dependent fused multiply-adds, four cycles each. So a
 * pass keeps rows * keys, then rows * vectors sums of 16 lanes going: ATTEND_FLIGHT, which the
 * including file sets to what its registers hold.
 */
enum { SCORE_STRIDE = EDB_PAGE + EDB_LANES };

typedef float score_rows[EDB_ATTEND_ROWS][SCORE_STRIDE];

static EDB_INLINE v16 cache_load(const void *cache, int is_f16, int64_t at, int64_t count) {
    return dense_load(cache, is_f16, at, count);
}

/* Scores of keys key..key+keys-1 for every row; rows * keys is 4, or at most ATTEND_FLIGHT. */
static EDB_INLINE void score_keys(const edb_attend *job, int is_f16, int rows, int keys,
                                  int64_t key, score_rows scores) {
    int64_t head_dim = job->head_dim;
    v16 sum[ATTEND_FLIGHT];
    for (int i = 0; i < ATTEND_FLIGHT; i++) sum[i] = v_set1(0.0f);
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
    float dots[(ATTEND_FLIGHT + 3) / 4 * 4];
    for (int i = 0; i < rows * keys; i += 4) {
        const int last = ATTEND_FLIGHT - 1;
        v_sum4(sum[i], sum[i + 1 < last ? i + 1 : last], sum[i + 2 < last ? i + 2 : last],
               sum[i + 3 < last ? i + 3 : last], dots + i);
    }
    for (int j = 0; j < keys; j++)
        for (int r = 0; r < rows; r++) scores[r][key + j] = dots[j * rows + r] * job->scale;
}

/* Each score less slope for each position that its key, the first of them `away`, lies behind. */
static void lean(float *scores, int64_t keys, float slope, int64_t away) {
    static const float lanes[EDB_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int64_t j = 0; j < keys; j += EDB_LANES) {
        v16 behind = v_add(v_load(lanes), v_set1((float)(j - away))); /* exact, at most 0 */
        v16 score = v_load_part(scores + j, keys - j);
        v_store_part(scores + j, v_fma(v_set1(slope), behind, score), keys - j);
    }
}

/* scores -> p in place, zeros up to a whole vector; found: its largest and its total. */
static void softmax(float *scores, int64_t keys, float *found) {
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
    found[0] = max;
    found[1] = v_sum(total);
}

/* Columns d .. d + 16*vectors of every row; rows * vectors <= ATTEND_FLIGHT, `count` are real. */
static EDB_INLINE void weigh_values(const edb_attend *job, int is_f16, int rows, int vectors,
                                    int64_t d, int64_t count, score_rows p) {
    int64_t head_dim = job->head_dim, common = job->keys[0];
    v16 sum[ATTEND_FLIGHT];
    for (int i = 0; i < ATTEND_FLIGHT; i++) sum[i] = v_set1(0.0f);
    for (int64_t j = 0; j < common; j++) {
        if (d == 0) edb_fetch_part(&job->next_v, j, EDB_PAGE);
        for (int c = 0; c < vectors; c++) {
            v16 v = cache_load(job->v, is_f16, j * head_dim + d + EDB_LANES * c, count);
            for (int r = 0; r < rows; r++)
                sum[c * rows + r] = v_fma(v_set1(p[r][j]), v, sum[c * rows + r]);
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < vectors; c++) {
            v16 mine = sum[c * rows + r];
            for (int64_t j = common; j < job->keys[r]; j++) {
                v16 v = cache_load(job->v, is_f16, j * head_dim + d + EDB_LANES * c, count);
                mine = v_fma(v_set1(p[r][j]), v, mine);
            }
            v_store_part(job->found[r] + EDB_FOUND_HEADER + d + EDB_LANES * c, mine, count);
        }
    }
}

static EDB_INLINE void attend_rows(const edb_attend *job, int is_f16, int rows) {
    const int many = rows == 1 ? 4 : ATTEND_FLIGHT / rows < 4 ? ATTEND_FLIGHT / rows : 4;
    _Alignas(64) score_rows scores;
    int64_t most = job->keys[rows - 1], key = 0, d = 0;
    for (; key + many <= most; key += many) {
        edb_fetch_part(&job->next_k, key / many, EDB_PAGE / many);
        score_keys(job, is_f16, rows, many, key, scores);
    }
    for (; key < most; key++) score_keys(job, is_f16, rows, 1, key, scores);

    for (int r = 0; job->cap > 0.0f && r < rows; r++)
        softcap(scores[r], job->cap, scores[r], job->keys[r]);
    for (int r = 0; job->leans && r < rows; r++)
        lean(scores[r], job->keys[r], job->slope[r], job->away[r]);
    for (int r = 0; r < rows; r++) softmax(scores[r], job->keys[r], job->found[r]);

    for (; d + many * EDB_LANES <= job->head_dim; d += many * EDB_LANES)
        weigh_values(job, is_f16, rows, many, d, EDB_LANES, scores);
    for (; d < job->head_dim; d += EDB_LANES)
        weigh_values(job, is_f16, rows, 1, d, job->head_dim - d, scores);
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

/* found[0] are the largest scores, and NaN never wins: then the totals are NaN already. */
static void merge_found(float *a, const float *b, int64_t head_dim) {
    float largest = a[0] > b[0] ? a[0] : b[0];
    v16 of_a = v_exp(v_sub(v_set1(a[0]), v_set1(largest)));
    v16 of_b = v_exp(v_sub(v_set1(b[0]), v_set1(largest)));
    float total[EDB_LANES];
    v_store(total, v_fma(v_set1(b[1]), of_b, v_mul(v_set1(a[1]), of_a)));
    a[0] = largest;
    a[1] = total[0];
    a += EDB_FOUND_HEADER;
    b += EDB_FOUND_HEADER;
    for (int64_t d = 0; d < head_dim; d += EDB_LANES) {
        v16 sum = v_mul(v_load_part(a + d, head_dim - d), of_a);
        sum = v_fma(v_load_part(b + d, head_dim - d), of_b, sum);
        v_store_part(a + d, sum, head_dim - d);
    }
}

static void sink_found(float *found, float score, int64_t head_dim) {
    float largest = found[0] > score ? found[0] : score;
    v16 of_found = v_exp(v_sub(v_set1(found[0]), v_set1(largest)));
    v16 of_sink = v_exp(v_sub(v_set1(score), v_set1(largest)));
    float total[EDB_LANES];
    v_store(total, v_fma(v_set1(found[1]), of_found, of_sink));
    found[0] = largest;
    found[1] = total[0];
    found += EDB_FOUND_HEADER;
    for (int64_t d = 0; d < head_dim; d += EDB_LANES)
        v_store_part(found + d, v_mul(v_load_part(found + d, head_dim - d), of_found),
                     head_dim - d);
}

static void finish_found(const float *found, float *out, int64_t head_dim) {
    v16 total = v_set1(found[1]);
    for (int64_t d = 0; d < head_dim; d += EDB_LANES) {
        v16 sum = v_load_part(found + EDB_FOUND_HEADER + d, head_dim - d);
        v_store_part(out + d, v_div(sum, total), head_dim - d);
    }
}

#include "attention_int8_body.h"

/* Everything above that belongs in an edb_kernels. */
#define ATTENTION_KERNELS                                                   \
    .attend = attend, .merge_found = merge_found, .sink_found = sink_found, \
    .finish_found = finish_found, .share = share
