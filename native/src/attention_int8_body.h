/*
 * An int8 cache over the vector layer of ops_body.h, as attention_int8.c wants it: products of a query
 * with its keys turned into quantized weights.
 */

/*
 * Within so much of half a unit a quotient may round to either side: the product with a rounded
 * reciprocal is off by 127 * 3 * 2^-24 at most, 2.3e-5, the quotient's own rounding included.
 */
#define SURE_OF_ROUNDING (0.5f - 5e-5f)

typedef float key_floats[EDB_PAGE];

/* What becomes of the rows of a block. Loops go over keys and then rows: each step of a row waits. */
typedef struct {
    _Alignas(64) key_floats p[EDB_SHARE_ROWS], shares[EDB_SHARE_ROWS];
    float most[EDB_PAGE / EDB_TILE][EDB_SHARE_ROWS]; /* the largest share of each tile */
} row_shares;

/* dots -> scores, capped and leant; found[0] = the largest of the keys that a row sees. */
static EDB_INLINE void scale_scores(const int n, const edb_code_block *block, const edb_code_row *rows,
                                    const float *dots, int64_t stride, int64_t tiles, row_shares *to) {
    v16 most[EDB_SHARE_ROWS], scale = v_set1(block->scale);
    int64_t keys = EDB_TILE * tiles;
    for (int r = 0; r < n; r++) most[r] = v_mul(v_load(dots + EDB_TILE * r), scale);
    for (int64_t j = 0; j < keys; j += EDB_LANES) {
        const float *from = dots + j / EDB_TILE * stride + j % EDB_TILE;
        for (int r = 0; r < n; r++) {
            v16 score = v_mul(v_load(from + EDB_TILE * r), scale);
            v_store(to->p[r] + j, score);
            most[r] = v_max(most[r], score);
        }
    }
    for (int r = 0; r < n; r++) {
        float *p = to->p[r];
        const edb_code_row *row = rows + r;
        if (block->cap > 0.0f) softcap(p, block->cap, p, keys);
        if (block->leans) lean(p, keys, row->slope, row->away);
        for (int64_t j = 0; j < row->begin; j++) p[j] = p[row->begin];
        for (int64_t j = row->end; j < keys; j++) p[j] = p[row->begin];
        if (block->cap > 0.0f || block->leans || row->begin > 0 || row->end < keys) {
            most[r] = v_load(p);
            for (int64_t j = EDB_LANES; j < keys; j += EDB_LANES) most[r] = v_max(most[r], v_load(p + j));
        }
    }
    for (int r = 0; r < n; r++) rows[r].found[0] = v_max_lane(most[r]);
}

/* Scores -> p of the keys that a row sees, 0 elsewhere; found[1] = their sum. */
static EDB_INLINE void soften(const int n, const edb_code_row *rows, int64_t tiles, edb_next_rows next,
                              row_shares *to) {
    v16 largest[EDB_SHARE_ROWS], totals[EDB_SHARE_ROWS];
    int64_t keys = EDB_TILE * tiles;
    for (int r = 0; r < n; r++) {
        largest[r] = v_set1(rows[r].found[0]);
        totals[r] = v_set1(0.0f);
    }
    for (int64_t j = 0; j < keys; j += EDB_LANES) {
        edb_fetch_codes_part(&next.k, j / EDB_LANES, EDB_PAGE / EDB_LANES);
        edb_fetch_codes_part(&next.v, j / EDB_LANES, EDB_PAGE / EDB_LANES);
        for (int r = 0; r < n; r++) {
            v16 power = v_exp_to_88(v_sub(v_load(to->p[r] + j), largest[r]));
            v_store(to->p[r] + j, power);
            totals[r] = v_add(totals[r], power);
        }
    }
    for (int r = 0; r < n; r++) {
        int64_t begin = rows[r].begin, end = rows[r].end;
        float *p = to->p[r];
        if (begin > 0 || end < keys) {
            memset(p, 0, (size_t)begin * sizeof *p);
            memset(p + end, 0, (size_t)(keys - end) * sizeof *p);
            totals[r] = v_set1(0.0f);
            for (int64_t j = 0; j < keys; j += EDB_LANES) totals[r] = v_add(totals[r], v_load(p + j));
        }
    }
    for (int r = 0; r < n; r++) rows[r].found[1] = v_sum(totals[r]);
}

/*
 * shares = p * scale of each key, and the most of a tile. finite: whether all of a row are; what is
 * largest is 0 where they are not.
 */
static EDB_INLINE void multiply_shares(const int n, const edb_code_row *rows, const float *scales,
                                       int64_t tiles, row_shares *to, int *finite) {
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
        v16 most[EDB_SHARE_ROWS];
        for (int r = 0; r < n; r++) most[r] = v_set1(0.0f);
        for (int64_t j = EDB_TILE * tile; j < EDB_TILE * (tile + 1); j += EDB_LANES) {
            for (int r = 0; r < n; r++) {
                v16 share = v_mul(v_load(to->p[r] + j), v_load(of_keys[r] + j));
                v_store(to->shares[r] + j, share);
                most[r] = v_larger(most[r], share);
            }
        }
        for (int r = 0; r < n; r++) to->most[tile][r] = v_largest(most[r]);
    }
    for (int r = 0; r < n; r++) {
        finite[r] = 1;
        for (int64_t tile = 0; tile < tiles; tile++) finite[r] &= to->most[tile][r] < INFINITY;
        for (int64_t tile = 0; !finite[r] && tile < tiles; tile++) to->most[tile][r] = 0.0f;
    }
}

/*
 * Shares of tiles of 64 keys as quantize_vectors rounds them, by products with the reciprocal of each
 * scale instead of divisions. sure: whether that is right.
 */
static EDB_INLINE void quantize_shares(const int n, int64_t tiles, const row_shares *from,
                                       const edb_code_weights *to, int *sure) {
    const v16 magic = v_set1(EDB_ROUND_MAGIC);
    v16 unsure[EDB_SHARE_ROWS];
    for (int r = 0; r < n; r++) unsure[r] = v_set1(0.0f);
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 sums[4] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)}; /* negative */
        float totals[4];
        int64_t at = to->stride * tile;
        for (int r = 0; r < n; r++) {
            const float *shares = from->shares[r] + EDB_TILE * tile;
            float scale = from->most[tile][r] / 127.0f;
            int tiny = scale < FLT_MIN;
            v16 reciprocal = v_set1(tiny ? 0.0f : 1.0f / scale);
            to->sx[at + r] = tiny ? 0.0f : scale;
            for (int i = 0; i < GROUP_VECTORS; i++) {
                v16 share = v_load(shares + EDB_LANES * i), sum = v_fma(share, reciprocal, magic);
                v16 negative = v_sub(magic, sum);
                unsure[r] = v_larger(unsure[r], v_fma(share, reciprocal, negative));
                sums[r] = v_add(sums[r], negative);
                v_store_i8(to->q + EDB_GROUP * (at + r) + EDB_LANES * i, sum);
            }
        }
        v_sum4(sums[0], sums[1], sums[2], sums[3], totals);
        for (int r = 0; r < n; r++) to->offsets[at + r] = 128 * (int32_t)totals[r];
    }
    for (int r = 0; r < n; r++) sure[r] = v_largest(unsure[r]) < SURE_OF_ROUNDING;
}

/* The same of one row, where a share is NaN or infinite, or a rounding is not sure. */
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
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE);
    int64_t per_group = EDB_PAGE / EDB_TILE * to.stride;
    const float *scales = block->scales;
    row_shares all;
    scale_scores(n, block, rows, dots, stride, tiles, &all);
    soften(n, rows, tiles, next, &all);
    for (int64_t column = 0; column < block->head_dim; column += EDB_GROUP, scales += EDB_PAGE) {
        int finite[EDB_SHARE_ROWS], sure[EDB_SHARE_ROWS];
        multiply_shares(n, rows, scales, tiles, &all, finite);
        quantize_shares(n, tiles, &all, &to, sure);
        for (int r = 0; r < n; r++)
            if (!finite[r] || !sure[r])
                divide_shares(all.shares[r], tiles, to.q + EDB_GROUP * r, to.sx + r, to.offsets + r,
                              to.stride);
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
