/*
 * An int8 cache over the vector layer of ops_body.h, as attention_int8.c wants it: rows put into the
 * layout of EDB_INT8, and products of a query with its keys turned into quantized weights.
 */

/*
 * Of an int8 cache, for whole groups: the dwords of sixteen rows, [16][16] transposed, 256 bytes apart;
 * and bytes of four rows in turn. A set may bring its own.
 */
#ifndef OWN_PACKING
static inline void transpose_16_keys(const int8_t *rows, int64_t stride, int8_t *codes) {
    for (int key = 0; key < 16; key++, rows += stride, codes += 4)
        for (int quad = 0; quad < EDB_QUADS; quad++)
            memcpy(codes + 4 * EDB_TILE * quad, rows + 4 * quad, 4);
}

static inline void interleave_4_values(const int8_t *rows, int64_t stride, int8_t *codes) {
    const int8_t *a = rows, *b = a + stride, *c = b + stride, *d = c + stride;
    for (int i = 0; i < EDB_GROUP; i++) {
        codes[4 * i] = a[i];
        codes[4 * i + 1] = b[i];
        codes[4 * i + 2] = c[i];
        codes[4 * i + 3] = d[i];
    }
}
#endif

static void pack_scales(const int8_t *rows, int64_t count, int64_t head_dim, int64_t group,
                        float *scales) {
    int64_t bytes = edb_int8_row_bytes(head_dim);
    rows += head_dim + 4 * group;
    for (int64_t j = 0; j < count; j++) memcpy(scales + j, rows + j * bytes, sizeof *scales);
    if (count < EDB_TILE) memset(scales + count, 0, (size_t)(EDB_TILE - count) * sizeof *scales);
}

/* `columns` of n rows -> whole groups with zeros behind them, n [64]. */
static void widen_rows(const int8_t *rows, int64_t stride, int64_t columns, int n, int8_t *whole) {
    memset(whole, 0, (size_t)n * EDB_GROUP);
    for (int i = 0; i < n; i++)
        memcpy(whole + EDB_GROUP * i, rows + i * stride, (size_t)columns);
}

static void pack_keys(const void *rows, int64_t count, int64_t head_dim, int8_t *codes,
                      float *scales) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), bytes = edb_int8_row_bytes(head_dim);
    const int8_t *tile = rows;
    for (; count > 0; count -= EDB_TILE, tile += EDB_TILE * bytes) {
        int64_t keys = edb_min(count, EDB_TILE);
        for (int64_t g = 0; g < groups; g++, codes += EDB_CODES_BYTES, scales += EDB_TILE) {
            int64_t columns = edb_min(EDB_GROUP, head_dim - EDB_GROUP * g), key = 0;
            const int8_t *from = tile + EDB_GROUP * g;
            pack_scales(tile, keys, head_dim, g, scales);
            if (keys < EDB_TILE) memset(codes, 0, EDB_CODES_BYTES);
            for (; key + 16 <= keys; key += 16) {
                int8_t whole[16 * EDB_GROUP];
                if (columns < EDB_GROUP) {
                    widen_rows(from + key * bytes, bytes, columns, 16, whole);
                    transpose_16_keys(whole, EDB_GROUP, codes + 4 * key);
                } else {
                    transpose_16_keys(from + key * bytes, bytes, codes + 4 * key);
                }
            }
            for (; key < keys; key++)
                for (int64_t c = 0; c < columns; c++)
                    codes[4 * (EDB_TILE * (c / 4) + key) + c % 4] = from[key * bytes + c];
        }
    }
}

static void pack_values(const void *rows, int64_t count, int64_t head_dim, int8_t *codes,
                        float *scales) {
    int64_t groups = edb_ceil_div(head_dim, EDB_GROUP), bytes = edb_int8_row_bytes(head_dim);
    for (int64_t g = 0; g < groups; g++, codes += EDB_PAGE / EDB_TILE * EDB_CODES_BYTES) {
        int64_t columns = edb_min(EDB_GROUP, head_dim - EDB_GROUP * g), key = 0;
        const int8_t *from = (const int8_t *)rows + EDB_GROUP * g;
        for (int64_t j = 0; j < count; j += EDB_TILE)
            pack_scales((const int8_t *)rows + j * bytes, edb_min(EDB_TILE, count - j), head_dim, g,
                        scales + EDB_PAGE * g + j);
        if (count % EDB_TILE != 0)
            memset(codes, 0, (size_t)edb_ceil_div(count, EDB_TILE) * EDB_CODES_BYTES);
        for (; key + 4 <= count; key += 4) {
            int8_t whole[4 * EDB_GROUP];
            if (columns < EDB_GROUP) {
                widen_rows(from + key * bytes, bytes, columns, 4, whole);
                interleave_4_values(whole, EDB_GROUP, codes + EDB_GROUP * key);
            } else {
                interleave_4_values(from + key * bytes, bytes, codes + EDB_GROUP * key);
            }
        }
        for (; key < count; key++)
            for (int64_t c = 0; c < columns; c++)
                codes[4 * (EDB_GROUP * (key / 4) + c) + key % 4] = from[key * bytes + c];
    }
}

/*
 * Within so much of half a unit a quotient may round to either side: the product with a rounded
 * reciprocal is off by 127 * 3 * 2^-24 at most, 2.3e-5, the quotient's own rounding included.
 */
#define SURE_OF_ROUNDING (0.5f - 5e-5f)

typedef float key_floats[EDB_PAGE];

/*
 * Shares of `tiles` times 64 keys, all finite, as quantize_vectors rounds them, by products with the
 * reciprocal of each scale instead of divisions. most: the largest share of each tile. Returns whether
 * every rounding is sure.
 */
static EDB_INLINE int quantize_shares(const float *shares, const float *most, int64_t tiles,
                                      const edb_code_weights *to) {
    v16 sums[EDB_PAGE / EDB_TILE], unsure = v_set1(0.0f);
    for (int tile = 0; tile < EDB_PAGE / EDB_TILE; tile++) sums[tile] = v_set1(0.0f);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int8_t *q = to->q + EDB_GROUP * to->stride * tile;
        float scale = most[tile] / 127.0f;
        int tiny = scale < FLT_MIN;
        to->sx[to->stride * tile] = tiny ? 0.0f : scale;
        if (tiny) {
            memset(q, 0, EDB_GROUP);
            continue;
        }
        v16 reciprocal = v_set1(1.0f / scale);
        for (int i = 0; i < GROUP_VECTORS; i++) {
            v16 quotient = v_mul(v_load(shares + EDB_TILE * tile + EDB_LANES * i), reciprocal);
            v16 rounded = v_round(quotient);
            unsure = v_max(unsure, v_abs(v_sub(quotient, rounded)));
            sums[tile] = v_add(sums[tile], rounded);
            v_store_i8(q + EDB_LANES * i, rounded);
        }
    }
    float totals[4];
    v_sum4(sums[0], sums[1], sums[2], sums[3], totals);
    for (int64_t tile = 0; tile < tiles; tile++)
        to->offsets[to->stride * tile] = -128 * (int32_t)totals[tile];
    return v_max_lane(unsure) < SURE_OF_ROUNDING;
}

/* The same where a share is NaN or infinite, or a rounding is not sure. */
static void divide_shares(const float *shares, int64_t tiles, const edb_code_weights *to) {
    quantize(shares, EDB_TILE * tiles, to->q, to->sx, to->stride);
    for (int64_t tile = 0; tile < tiles; tile++) {
        int32_t sum = 0;
        for (int i = 0; i < EDB_GROUP; i++) sum += to->q[EDB_GROUP * to->stride * tile + i];
        to->offsets[to->stride * tile] = -128 * sum;
    }
}

/* shares = p * scale of each key; most: the largest of each tile. Returns whether all are finite. */
static EDB_INLINE int multiply_shares(const float *p, const float *scales, int64_t tiles,
                                      float *shares, float *most) {
    v16 bad = v_set1(0.0f); /* NaN if any share is NaN or infinite */
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 largest = v_set1(0.0f);
        for (int64_t j = EDB_TILE * tile; j < EDB_TILE * (tile + 1); j += EDB_LANES) {
            v16 share = v_mul(v_load(p + j), v_load(scales + j));
            v_store(shares + j, share);
            largest = v_max(largest, v_abs(share));
            bad = v_fma(share, v_set1(0.0f), bad);
        }
        most[tile] = v_max_lane(largest);
    }
    return v_sum(bad) == 0.0f;
}

/* Scores of a row, scaled, capped and leant; found[0] = the largest of the keys that it sees. */
static EDB_INLINE void scale_scores(const edb_code_block *block, const edb_code_row *row,
                                    const float *dots, int64_t stride, int64_t keys, float *p) {
    v16 most = v_set1(0.0f);
    for (int64_t j = 0; j < keys; j += EDB_LANES) {
        v16 score = v_mul(v_load(dots + j / EDB_TILE * stride + j % EDB_TILE), v_set1(block->scale));
        v_store(p + j, score);
        most = j == 0 ? score : v_max(most, score);
    }
    if (block->cap > 0.0f) softcap(p, block->cap, p, keys);
    if (block->leans) lean(p, keys, row->slope, row->away);
    int seen = row->begin == 0 && row->end == keys;
    for (int64_t j = 0; j < row->begin; j++) p[j] = p[row->begin];
    for (int64_t j = row->end; j < keys; j++) p[j] = p[row->begin];
    if (block->cap > 0.0f || block->leans || !seen) {
        most = v_load(p);
        for (int64_t j = EDB_LANES; j < keys; j += EDB_LANES) most = v_max(most, v_load(p + j));
    }
    row->found[0] = v_max_lane(most);
}

/* Scores -> p of the keys that a row sees, 0 elsewhere; found[1] = their sum. */
static EDB_INLINE void soften(const edb_code_row *row, int64_t keys, float *p) {
    v16 largest = v_set1(row->found[0]), total = v_set1(0.0f);
    for (int64_t j = 0; j < keys; j += EDB_LANES) {
        v16 power = v_exp(v_sub(v_load(p + j), largest));
        v_store(p + j, power);
        total = v_add(total, power);
    }
    if (row->begin > 0 || row->end < keys) {
        memset(p, 0, (size_t)row->begin * sizeof *p);
        memset(p + row->end, 0, (size_t)(keys - row->end) * sizeof *p);
        total = v_set1(0.0f);
        for (int64_t j = 0; j < keys; j += EDB_LANES) total = v_add(total, v_load(p + j));
    }
    row->found[1] = v_sum(total);
}

/* One step for all rows, then the next: each waits long for the largest and the sums of a row. */
static void share(const edb_code_block *block, const edb_code_row *rows, int n, const float *dots,
                  int64_t stride, const float *scales, const edb_code_weights *weights) {
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE), keys = EDB_TILE * tiles;
    _Alignas(64) key_floats p[EDB_SHARE_ROWS], shares[EDB_SHARE_ROWS];
    float most[EDB_SHARE_ROWS][EDB_PAGE / EDB_TILE];
    int sure[EDB_SHARE_ROWS];
    for (int r = 0; r < n; r++)
        scale_scores(block, rows + r, dots + EDB_TILE * r, stride, keys, p[r]);
    for (int r = 0; r < n; r++) soften(rows + r, keys, p[r]);

    edb_code_weights to = *weights;
    int64_t per_group = EDB_PAGE / EDB_TILE * to.stride;
    for (int64_t column = 0; column < block->head_dim; column += EDB_GROUP, scales += EDB_PAGE) {
        for (int r = 0; r < n; r++) {
            int64_t begin = rows[r].begin, end = rows[r].end;
            const float *of_keys = scales;
            if (begin > 0 || end < keys) { /* a scale may be anything that the query does not see */
                memset(shares[r], 0, (size_t)keys * sizeof **shares);
                memcpy(shares[r] + begin, scales + begin, (size_t)(end - begin) * sizeof **shares);
                of_keys = shares[r];
            }
            sure[r] = multiply_shares(p[r], of_keys, tiles, shares[r], most[r]);
        }
        for (int r = 0; r < n; r++) {
            edb_code_weights of_row = {to.q + EDB_GROUP * r, to.sx + r, to.offsets + r, to.stride};
            if (!sure[r] || !quantize_shares(shares[r], most[r], tiles, &of_row))
                divide_shares(shares[r], tiles, &of_row);
        }
        to.q += EDB_GROUP * per_group;
        to.sx += per_group;
        to.offsets += per_group;
    }
}
