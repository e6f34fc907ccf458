/*
 * An int8 cache over the vector layer of ops_body.h, as attention_int8.c wants it: products of a query
 * with its keys turned into quantized weights.
 */

/*
 * A rounded reciprocal is off by 2^-24 and so is a quotient: products with a reciprocal that is changed by
 * so much more lie below or above the quotient. Where both round to one code, that is the quotient's.
 */
#define TO_EITHER_SIDE 0x1p-22f

typedef float key_floats[EDB_PAGE];

/* A float for each tile and row. */
typedef float tile_floats[EDB_PAGE / EDB_TILE][EDB_SHARE_ROWS];

/*
 * What becomes of the rows of a block. Loops go over keys and then rows, for each step of a row waits for
 * the one before; but those of exponentials, which are long, want the registers for one row.
 */
typedef struct {
    _Alignas(64) key_floats p[EDB_SHARE_ROWS], shares[EDB_SHARE_ROWS];
    _Alignas(64) tile_floats most, scales, below, above; /* largest shares, their scales, reciprocals */
} row_shares;

_Static_assert(sizeof(tile_floats) == EDB_LANES * sizeof(float), "one vector");

/* Scores of n rows, each times `scale`: keys of a tile side by side, tiles `stride` floats apart. */
typedef struct {
    const float *rows[EDB_SHARE_ROWS];
    int64_t stride;
    float scale;
} row_scores;

static EDB_INLINE v16 unscaled_at(const row_scores *scores, int row, int64_t key) {
    return v_load(scores->rows[row] + key / EDB_TILE * scores->stride + key % EDB_TILE);
}

static EDB_INLINE v16 scores_at(const row_scores *scores, int row, int64_t key) {
    return v_mul(unscaled_at(scores, row, key), v_set1(scores->scale));
}

/* Whether every row sees all keys, and scores are dots scaled alone. */
static EDB_INLINE int is_plain(const int n, const edb_code_block *block, const edb_code_row *rows,
                               int64_t keys) {
    int plain = block->cap <= 0.0f && !block->leans && block->scale > 0.0f;
    for (int r = 0; r < n; r++) plain &= rows[r].begin == 0 && rows[r].end == keys;
    return plain;
}

/* Scores, capped and leant, to p; a key that a row does not see gets that of one which it does. */
static EDB_INLINE row_scores change_scores(const int n, const edb_code_block *block,
                                           const edb_code_row *rows, const row_scores *dots, int64_t keys,
                                           row_shares *to) {
    row_scores changed = {.stride = EDB_TILE, .scale = 1.0f};
    for (int r = 0; r < n; r++) {
        float *p = to->p[r];
        int64_t begin = rows[r].begin, end = rows[r].end;
        for (int64_t j = 0; j < keys; j += EDB_LANES) v_store(p + j, scores_at(dots, r, j));
        if (block->cap > 0.0f) softcap(p, block->cap, p, keys);
        if (block->leans) lean(p, keys, rows[r].slope, rows[r].away);
        for (int64_t j = 0; j < begin; j++) p[j] = p[begin];
        for (int64_t j = end; j < keys; j++) p[j] = p[begin];
        changed.rows[r] = p;
    }
    return changed;
}

/* found[0] = the largest score of a row: that of its largest dot, for no scale is below 0 here. */
static EDB_INLINE void find_largest(const int n, const edb_code_row *rows, const row_scores *scores,
                                    int64_t keys) {
    v16 most[EDB_SHARE_ROWS];
    for (int r = 0; r < n; r++) most[r] = unscaled_at(scores, r, 0);
    for (int64_t j = 0; j < keys; j += EDB_LANES)
        for (int r = 0; r < n; r++) most[r] = v_max(most[r], unscaled_at(scores, r, j));
    for (int r = 0; r < n; r++) rows[r].found[0] = v_max_lane(most[r]) * scores->scale;
}

/* Scores -> p of the keys that a row sees, 0 elsewhere; found[1] = their sum. */
static EDB_INLINE void soften(const int n, const edb_code_row *rows, const row_scores *scores, int64_t keys,
                              edb_next_rows next, row_shares *to) {
    int64_t k_lines = edb_lines_each(next.k, n * (keys / EDB_TILE));
    int64_t v_lines = edb_lines_each(next.v, n * (keys / EDB_TILE));
    for (int r = 0; r < n; r++) {
        float *p = to->p[r];
        int64_t begin = rows[r].begin, end = rows[r].end;
        v16 largest = v_set1(rows[r].found[0]), total = v_set1(0.0f);
        for (int64_t tile = 0; tile < keys; tile += EDB_TILE) {
            next.k = edb_fetch_code_lines(next.k, k_lines);
            next.v = edb_fetch_code_lines(next.v, v_lines);
            for (int64_t j = tile; j < tile + EDB_TILE; j += EDB_LANES) {
                v16 power = v_exp_to_88(v_sub(scores_at(scores, r, j), largest));
                v_store(p + j, power);
                total = v_add(total, power);
            }
        }
        if (begin > 0 || end < keys) {
            memset(p, 0, (size_t)begin * sizeof *p);
            memset(p + end, 0, (size_t)(keys - end) * sizeof *p);
            total = v_set1(0.0f);
            for (int64_t j = 0; j < keys; j += EDB_LANES) total = v_add(total, v_load(p + j));
        }
        rows[r].found[1] = v_sum(total);
    }
}

/* shares = p * scale of each key, and the most of a tile. */
static EDB_INLINE void multiply_shares(const int n, const edb_code_row *rows, const float *scales,
                                       int64_t tiles, row_shares *to) {
    const float *of_keys[EDB_SHARE_ROWS];
    int64_t keys = EDB_TILE * tiles;
    for (int r = 0; r < n; r++) {
        int64_t begin = rows[r].begin, end = rows[r].end;
        of_keys[r] = scales;
        if (begin > 0 || end < keys) { /* a scale that is not seen may be anything */
            memset(to->shares[r], 0, (size_t)keys * sizeof **to->shares);
            memcpy(to->shares[r] + begin, scales + begin, (size_t)(end - begin) * sizeof *scales);
            of_keys[r] = to->shares[r];
        }
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 most[EDB_SHARE_ROWS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        for (int64_t j = EDB_TILE * tile; j < EDB_TILE * (tile + 1); j += EDB_LANES) {
            for (int r = 0; r < n; r++) {
                v16 share = v_mul(v_load(to->p[r] + j), v_load(of_keys[r] + j));
                v_store(to->shares[r] + j, share);
                most[r] = v_most(most[r], share);
            }
        }
        v_most4(most[0], most[1], most[2], most[3], to->most[tile]);
    }
}

/* Of all tiles and rows: scales as `quantize` has them, 0 for tiny ones, and reciprocals. */
static EDB_INLINE void find_scales(row_shares *to) {
    float *scales = to->scales[0], *below = to->below[0], *above = to->above[0];
    v16 scale = v_div(v_load(to->most[0]), v_set1(127.0f)), reciprocal = v_div(v_set1(1.0f), scale);
    v_store(scales, scale);
    v_store(below, v_mul(reciprocal, v_set1(1.0f - TO_EITHER_SIDE)));
    v_store(above, v_mul(reciprocal, v_set1(1.0f + TO_EITHER_SIDE)));
    for (int i = 0; i < EDB_LANES; i++)
        if (scales[i] < FLT_MIN) scales[i] = below[i] = above[i] = 0.0f;
}

/*
 * Shares of tiles of 64 keys as quantize_vectors rounds them, by products instead of divisions. sure:
 * whether that is right: what is rounded from below and from above, and never less, has the same sums.
 */
static EDB_INLINE void quantize_shares(const int n, int64_t tiles, const row_shares *from,
                                       const edb_code_weights *to, int *sure) {
    const v16 magic = v_set1(EDB_ROUND_MAGIC), zero = v_set1(0.0f);
    const uint32_t of_magic = EDB_GROUP * edb_float_bits(EDB_ROUND_MAGIC); /* in a tile's sum of bits */
    v16 sums_above[EDB_SHARE_ROWS] = {zero, zero, zero, zero};
    uint32_t total[EDB_SHARE_ROWS] = {0}, total_above[EDB_SHARE_ROWS];
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 sums[EDB_SHARE_ROWS] = {zero, zero, zero, zero};
        uint32_t of_tile[EDB_SHARE_ROWS];
        int64_t at = to->stride * tile;
        for (int r = 0; r < n; r++) {
            const float *shares = from->shares[r] + EDB_TILE * tile;
            v16 below = v_set1(from->below[tile][r]), above = v_set1(from->above[tile][r]);
            to->sx[at + r] = from->scales[tile][r];
            for (int i = 0; i < GROUP_VECTORS; i++) {
                v16 share = v_load(shares + EDB_LANES * i), codes = v_fma(share, below, magic);
                sums[r] = v_add_i32(sums[r], codes);
                sums_above[r] = v_add_i32(sums_above[r], v_fma(share, above, magic));
                v_store_i8(to->q + EDB_GROUP * (at + r) + EDB_LANES * i, codes);
            }
        }
        v_sum4_i32(sums[0], sums[1], sums[2], sums[3], of_tile);
        for (int r = 0; r < n; r++) {
            total[r] += of_tile[r];
            to->offsets[at + r] = -128 * (int32_t)(of_tile[r] - of_magic);
        }
    }
    v_sum4_i32(sums_above[0], sums_above[1], sums_above[2], sums_above[3], total_above);
    for (int r = 0; r < n; r++) sure[r] = total[r] == total_above[r];
}

/* The same of one row, where a share is below 0, NaN or infinite, or a rounding is not sure. */
static void divide_shares(const float *shares, int64_t tiles, int8_t *q, float *sx, int32_t *offsets,
                          int64_t stride) {
    quantize(shares, EDB_TILE * tiles, q, sx, stride);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int32_t sum = 0;
        for (int i = 0; i < EDB_GROUP; i++) sum += q[EDB_GROUP * stride * tile + i];
        offsets[stride * tile] = -128 * sum;
    }
}

static EDB_INLINE void share_rows(const int n, const edb_code_block *block, const edb_code_row *rows,
                                  const float *dots, int64_t stride, edb_next_rows next,
                                  edb_code_weights to) {
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE), keys = EDB_TILE * tiles;
    int64_t per_group = EDB_PAGE / EDB_TILE * to.stride;
    const float *scales = block->scales;
    row_shares all;
    row_scores scores = {.stride = stride, .scale = block->scale};
    for (int r = 0; r < n; r++) scores.rows[r] = dots + EDB_TILE * r;
    if (!is_plain(n, block, rows, keys)) scores = change_scores(n, block, rows, &scores, keys, &all);
    find_largest(n, rows, &scores, keys);
    soften(n, rows, &scores, keys, next, &all);
    memset(all.most, 0, sizeof all.most);
    for (int64_t column = 0; column < block->head_dim; column += EDB_GROUP, scales += EDB_PAGE) {
        int sure[EDB_SHARE_ROWS];
        multiply_shares(n, rows, scales, tiles, &all);
        find_scales(&all);
        quantize_shares(n, tiles, &all, &to, sure);
        for (int r = 0; r < n; r++) {
            for (int64_t tile = 0; tile < tiles; tile++)
                sure[r] &= edb_float_bits(all.most[tile][r]) < edb_float_bits(INFINITY);
            if (!sure[r])
                divide_shares(all.shares[r], tiles, to.q + EDB_GROUP * r, to.sx + r, to.offsets + r,
                              to.stride);
        }
        to.q += EDB_GROUP * per_group;
        to.sx += per_group;
        to.offsets += per_group;
    }
}

static void share(const edb_code_block *block, const edb_code_row *rows, int n, const float *dots,
                  int64_t stride, edb_next_rows next, const edb_code_weights *weights) {
    switch (n) {
    case 1: share_rows(1, block, rows, dots, stride, next, *weights); break;
    case 2: share_rows(2, block, rows, dots, stride, next, *weights); break;
    case 3: share_rows(3, block, rows, dots, stride, next, *weights); break;
    default: share_rows(4, block, rows, dots, stride, next, *weights); break;
    }
}
