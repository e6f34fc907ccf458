/* Attention as stages of a job: how its work is cut into tasks. */
#include <stdatomic.h>
#include <string.h>

#include "attention.h"

/* Tokens that share one conversion of the keys and values from binary16. */
enum { TOKENS_TOGETHER = 16 };

/*
 * The queries of a key/value head are its rows, token by token and within a token head by head.
 * There are two ways to cut the work; both take the same blocks of keys in the same order.
 *
 *   few rows:  a task is one block of a head's keys. A thread that goes through blocks from the first on
 *              joins what the rows find as it goes; what is found beyond a block that is still missing
 *              waits in scratch for a second stage
 *   many rows: a task is all keys of TOKENS_TOGETHER tokens. The longest, of the last tokens, come
 *              first
 *
 * Scratch of a thread: keys and values of a block as float32, what the rows found in all blocks before,
 * and in this one.
 */
static int has_few_rows(const edb_attention_shape *shape, int64_t n) {
    return n == 1 || n * edb_heads_per_kv(shape) <= EDB_FEW_QUERIES;
}

static int64_t block_floats(const edb_attention_shape *shape) {
    return (int64_t)EDB_PAGE * shape->head_dim;
}

/* What few rows find in every block. */
static int64_t found_floats(const edb_attention_shape *shape, int64_t n, int64_t blocks) {
    return blocks * n * shape->n_heads * edb_found_size(shape);
}

/* Rows of a task. */
static int64_t task_rows(const edb_attention_shape *shape, int64_t n) {
    return (has_few_rows(shape, n) ? n : TOKENS_TOGETHER) * edb_heads_per_kv(shape);
}

/* Floats of quantized queries: where rows are few of every head, else of a task. */
static int64_t query_floats(const edb_attention_shape *shape, int64_t n) {
    if (shape->cache_kind != EDB_INT8) return 0;
    return edb_query_bytes(shape->head_dim, task_rows(shape, n)) / (int64_t)sizeof(float);
}

/* Of a key/value head, where rows are few: the block up to which what was found is joined. */
typedef struct {
    _Alignas(64) _Atomic int64_t joined;
} head_progress;

/* What threads share. */
static int64_t shared_floats(const edb_attention_shape *shape, int64_t n, int64_t blocks) {
    int64_t progress = sizeof(head_progress) / sizeof(float);
    if (!has_few_rows(shape, n)) return 0;
    return found_floats(shape, n, blocks) + shape->n_kv_heads * (progress + query_floats(shape, n));
}

/* A block, as float32 or as attention_int8.c wants it, and what rows found. */
static int64_t thread_floats(const edb_attention_shape *shape, int64_t n) {
    int64_t floats = task_rows(shape, n) * edb_found_size(shape);
    if (!has_few_rows(shape, n)) floats = 2 * floats + query_floats(shape, n);
    if (shape->cache_kind == EDB_INT8)
        return floats + edb_code_scratch(shape->head_dim) / (int64_t)sizeof(float);
    return has_few_rows(shape, n) ? floats : floats + 2 * block_floats(shape);
}

uint64_t edb_attention_scratch(const edb_context *context, const edb_attention_shape *shape,
                               int64_t n, int64_t positions) {
    int64_t blocks = edb_ceil_div(positions, EDB_PAGE);
    int64_t floats = shared_floats(shape, n, blocks);
    floats += edb_pool_threads(context->pool) * thread_floats(shape, n);
    return (uint64_t)floats * sizeof(float) + 63;
}

/*
 * Rows first..last-1 of a head against the keys of one block; found [last - first, edb_found_size]. Rows
 * go together where they begin at the same key: all of them, but in the block where a window opens.
 */
static void attend_block(const edb_attention_job *job, int64_t kv_head, int64_t first, int64_t last,
                         int64_t block, edb_attend keys, float *found) {
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), key = block * EDB_PAGE;
    int64_t row_bytes = edb_cache_row_bytes(shape->head_dim, keys.cache_kind);
    const char *k = keys.k, *v = keys.v;
    keys.head_dim = shape->head_dim;
    keys.scale = job->scale;
    keys.leans = job->slopes != NULL;
    keys.cap = job->cap;
    for (int64_t row = first; row < last;) {
        int64_t begin = -1;
        for (keys.rows = 0; keys.rows < EDB_ATTEND_ROWS && row < last; row++) {
            int64_t t = row / heads, end = edb_min(job->pos + t + 1 - key, EDB_PAGE);
            int64_t from = edb_max(0, edb_first_key(job, t) - key);
            if (from >= end) continue; /* the token sees nothing of this block */
            if (keys.rows > 0 && from != begin) break;
            begin = from;
            int64_t head = kv_head * heads + row % heads;
            keys.q[keys.rows] = edb_head_of(job->q, t, head, shape->head_dim);
            keys.slope[keys.rows] = keys.leans ? job->slopes[head] : 0.0f;
            keys.away[keys.rows] = job->pos + t - key - from;
            keys.keys[keys.rows] = end - from;
            keys.found[keys.rows++] = found + (row - first) * edb_found_size(shape);
        }
        if (keys.rows == 0) return;
        keys.k = k + begin * row_bytes;
        keys.v = v + begin * row_bytes;
        job->kernels->attend(&keys);
        keys.next_k = keys.next_v = (edb_coming){0}; /* the first rows have fetched them */
    }
}

static float *out_row(const edb_attention_job *job, int64_t kv_head, int64_t row) {
    int64_t heads = edb_heads_per_kv(&job->shape);
    return edb_head_of(job->out, row / heads, kv_head * heads + row % heads, job->shape.head_dim);
}

/* The output of a row of a head, from what it found in all its keys. */
static void finish(const edb_attention_job *job, int64_t kv_head, int64_t row, float *found) {
    int64_t heads = edb_heads_per_kv(&job->shape), head_dim = job->shape.head_dim;
    if (job->sinks != NULL)
        job->kernels->sink_found(found, job->sinks[kv_head * heads + row % heads], head_dim);
    job->kernels->finish_found(found, out_row(job, kv_head, row), head_dim);
}

/* What row `row` of a head found in a block, where rows are few. */
static float *found_in_block(const edb_attention_job *job, int64_t kv_head, int64_t block,
                             int64_t row) {
    int64_t rows = job->n * edb_heads_per_kv(&job->shape), at = block - job->first_block;
    return (float *)(void *)job->scratch +
           ((kv_head * job->blocks + at) * rows + row) * edb_found_size(&job->shape);
}

/* A thread's own scratch. */
static float *thread_scratch(const edb_attention_job *job, int32_t worker) {
    return (float *)(void *)job->scratch + shared_floats(&job->shape, job->n, job->blocks) +
           worker * thread_floats(&job->shape, job->n);
}

/* float32 keys or values of a block, converted if need be. */
static const void *widened(const edb_attention_job *job, int kind, int64_t kv_head, int64_t key,
                           int64_t count, float *wide) {
    const void *rows = edb_cache_row(job, kind, kv_head, key);
    if (job->shape.cache_kind == EDB_F32) return rows;
    job->kernels->from_f16(rows, wide, count * job->shape.head_dim);
    return wide;
}

static head_progress *progress_of(const edb_attention_job *job, int64_t kv_head) {
    float *behind = found_in_block(job, 0, job->first_block, 0) +
                    found_floats(&job->shape, job->n, job->blocks);
    return (head_progress *)(void *)behind + kv_head;
}

/* found += what rows first..last-1 of a head, of those that see it, found in a later block. */
static void join(const edb_attention_job *job, int64_t first, int64_t last, int64_t block, float *found,
                 const float *in_block) {
    int64_t heads = edb_heads_per_kv(&job->shape), size = edb_found_size(&job->shape);
    int64_t key = block * EDB_PAGE;
    for (int64_t row = first; row < last; row++, found += size, in_block += size) {
        int64_t t = row / heads, from = edb_first_key(job, t);
        if (job->pos + t + 1 <= key || from >= key + EDB_PAGE) continue;
        if (from >= key) {
            memcpy(found, in_block, (size_t)size * sizeof *found);
        } else {
            job->kernels->merge_found(found, in_block, job->shape.head_dim);
        }
    }
}

/* The keys and values of a task of attend_few, or none behind the last. */
static edb_next_rows rows_of_task(const edb_attention_job *job, int64_t task) {
    int64_t heads = job->shape.n_kv_heads;
    if (task == job->blocks * heads) return (edb_next_rows){0};
    return edb_rows_of(job, task % heads, job->first_block + task / heads);
}

/* All rows of a head, few, against one block. */
static void attend_few_rows(const edb_attention_job *job, int64_t kv_head, int64_t block,
                            edb_next_rows next, float *found, char *scratch) {
    const edb_attention_shape *shape = &job->shape;
    int64_t key = block * EDB_PAGE, count = edb_min(EDB_PAGE, job->pos + job->n - key);
    if (shape->cache_kind == EDB_INT8) {
        edb_attend_code_block(job, kv_head, edb_few_queries(job, kv_head), block, count, next, found,
                              scratch);
        return;
    }
    edb_attend keys = { /* binary16 widens as it is loaded */
        .cache_kind = shape->cache_kind,
        .k = edb_cache_block(job, EDB_KEYS, kv_head, block),
        .v = edb_cache_block(job, EDB_VALUES, kv_head, block),
        .next_k = next.k,
        .next_v = next.v,
    };
    attend_block(job, kv_head, 0, job->n * edb_heads_per_kv(shape), block, keys, found);
}

/*
 * Keys lie by blocks, and tasks go as they lie, which is the faster. A thread that begins at the first
 * block finds all before its own joined; only who has the block at which a head's progress stands moves
 * it on.
 */
static void attend_few(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    int64_t rows = job->n * edb_heads_per_kv(&job->shape);
    float *own = thread_scratch(job, worker);
    char *scratch = (char *)(own + rows * edb_found_size(&job->shape));
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % job->shape.n_kv_heads;
        int64_t block = job->first_block + task / job->shape.n_kv_heads;
        head_progress *progress = progress_of(job, kv_head);
        float *first = found_in_block(job, kv_head, job->first_block, 0);
        int joins = atomic_load_explicit(&progress->joined, memory_order_acquire) == block;
        float *found = joins && block > job->first_block ? own : found_in_block(job, kv_head, block, 0);
        attend_few_rows(job, kv_head, block, rows_of_task(job, task + 1), found, scratch);
        if (!joins) continue;
        if (found == own) join(job, 0, rows, block, first, found);
        atomic_store_explicit(&progress->joined, block + 1, memory_order_release);
    }
}

/* A task is one row of one head: what is not joined yet, and the output. */
static void join_blocks(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t rows = job->n * edb_heads_per_kv(shape);
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task / rows, row = task % rows;
        float *found = found_in_block(job, kv_head, job->first_block, row);
        int64_t block = atomic_load_explicit(&progress_of(job, kv_head)->joined, memory_order_acquire);
        for (; block < job->first_block + job->blocks; block++)
            join(job, row, row + 1, block, found, found_in_block(job, kv_head, block, row));
        finish(job, kv_head, row, found);
    }
}

static void attend_many(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_attention_job *job = argument;
    const edb_attention_shape *shape = &job->shape;
    int64_t heads = edb_heads_per_kv(shape), size = edb_found_size(shape);
    float *k = thread_scratch(job, worker), *v = k + block_floats(shape);
    float *in_block = k + thread_floats(shape, job->n) - TOKENS_TOGETHER * heads * size;
    float *found = in_block - TOKENS_TOGETHER * heads * size;
    float *queries = found - query_floats(shape, job->n);
    for (int64_t task = begin; task < end; task++) {
        int64_t kv_head = task % shape->n_kv_heads;
        int64_t last = job->n - task / shape->n_kv_heads * TOKENS_TOGETHER;
        int64_t first = edb_max(0, last - TOKENS_TOGETHER), keys = job->pos + last;
        int64_t start = edb_first_key(job, first) / EDB_PAGE * EDB_PAGE;
        int start_together = edb_first_key(job, last - 1) < start + EDB_PAGE;
        edb_queries codes = {(char *)queries, first * heads, (last - first) * heads};
        if (shape->cache_kind == EDB_INT8)
            edb_quantize_queries(job, kv_head, first * heads, last * heads, codes);
        for (int64_t key = start; key < keys; key += EDB_PAGE) {
            int64_t count = edb_min(EDB_PAGE, keys - key);
            int is_first = key == start && start_together; /* of every token */
            float *here = is_first ? found : in_block;
            if (shape->cache_kind == EDB_INT8) {
                edb_next_rows next = {0};
                if (key + EDB_PAGE < keys) next = edb_rows_of(job, kv_head, key / EDB_PAGE + 1);
                edb_attend_code_block(job, kv_head, codes, key / EDB_PAGE, count, next, here,
                                      (char *)k);
            } else {
                edb_attend wide = {.cache_kind = EDB_F32,
                                   .k = widened(job, EDB_KEYS, kv_head, key, count, k),
                                   .v = widened(job, EDB_VALUES, kv_head, key, count, v)};
                attend_block(job, kv_head, first * heads, last * heads, key / EDB_PAGE, wide, here);
            }
            if (!is_first)
                join(job, first * heads, last * heads, key / EDB_PAGE, found, in_block);
        }
        for (int64_t row = first * heads; row < last * heads; row++)
            finish(job, kv_head, row, found + (row - first * heads) * size);
    }
}

void edb_lay_out_attention(edb_attention_job *job, void *scratch) {
    job->scratch = edb_align_up(scratch);
    job->first_block = edb_first_key(job, 0) / EDB_PAGE;
    job->blocks = edb_ceil_div(job->pos + job->n, EDB_PAGE) - job->first_block;
    job->few = has_few_rows(&job->shape, job->n);
    job->codes = NULL;
    if (job->few && job->shape.cache_kind == EDB_INT8)
        job->codes = (char *)progress_of(job, job->shape.n_kv_heads);
}

void edb_begin_head(const edb_attention_job *job, int64_t kv_head) {
    atomic_store_explicit(&progress_of(job, kv_head)->joined, job->first_block, memory_order_relaxed);
}

int32_t edb_attention_stages(edb_attention_job *job, edb_stage *stages) {
    const edb_attention_shape *shape = &job->shape;
    if (!job->few) {
        int64_t tasks = edb_ceil_div(job->n, TOKENS_TOGETHER) * shape->n_kv_heads;
        stages[0] = (edb_stage){attend_many, job, tasks, 1};
        return 1;
    }
    int64_t rows = job->n * shape->n_heads;
    stages[0] = (edb_stage){attend_few, job, job->blocks * shape->n_kv_heads, 1};
    stages[1] = (edb_stage){join_blocks, job, rows, rows};
    return 2;
}
