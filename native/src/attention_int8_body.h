/*
 * An int8 cache over the vector layer of ops_body.h, as attention_int8.c wants it: products of a query
 * with its keys turned into quantized weights, most of it in numbers of 16 bits. For them a
 * kernels_*.c defines, besides that layer:
 *
 *   w32                       32 int16, in any order that w_round_of makes and w_store_i8 undoes
 *   w_set1 w_load w_store
 *   w_round_of(x, y)          the lanes of two v16 rounded, half to even, and saturated; -32768 or 0 of NaN
 *   w_add(x, y)               wraps
 *   w_double5(x)              x * 32, wraps
 *   w_high(x, y)              x * y >> 16, without signs
 *   w_mean(x, y)              (x + y + 1) >> 1, without signs
 *   w_multiply(x, y)          (x * y + 2^14) >> 15, as rounded products of fractions of 2^15
 *   w_power(u)                2^(15 + n), n = u >> 11 of -15 to -1; 0 of n = -16 and u = 0
 *   w_pairs(x)                sums of two neighbours, as a v16 of int32
 *   v_add_apart(x)            of such sums those 16 numbers apart, added up: some lanes twice
 *   w_store_i8(p, x, y)       the low bytes of 64 numbers, in order
 *   v_max4(a, b, c, d, out)   the largest lane of each, as v_sum4
 *   v_of_i32(x)               int32 lanes as floats
 */

typedef struct {
    _Alignas(64) int16_t of[EDB_PAGE];
} key_words;

typedef struct {
    _Alignas(64) float of[EDB_PAGE];
} key_floats;

/* A number for each tile and row. */
typedef union {
    _Alignas(64) float of[EDB_PAGE_TILES][EDB_SHARE_ROWS];
    uint32_t bits[EDB_PAGE_TILES][EDB_SHARE_ROWS];
} tile_numbers;

_Static_assert(sizeof(tile_numbers) == EDB_LANES * sizeof(float), "one vector");

static EDB_INLINE v16 of_tiles(const tile_numbers *numbers) { return v_load(numbers->of[0]); }

/* Scores of n rows, each times `scale`: keys of a tile side by side, tiles `stride` floats apart. */
typedef struct {
    const float *rows[EDB_SHARE_ROWS];
    int64_t stride;
    float scale;
} row_scores;

static EDB_INLINE const float *scores_at(const row_scores *scores, int row, int64_t tile) {
    return scores->rows[row] + tile * scores->stride;
}

/* Whether every row sees all keys, and scores are dots scaled alone. */
static EDB_INLINE int is_plain(const int n, const edb_code_block *block, const edb_code_row *rows,
                               int64_t keys) {
    int plain = block->cap <= 0.0f && !block->leans && block->scale > 0.0f;
    for (int r = 0; r < n; r++) plain &= rows[r].begin == 0 && rows[r].end == keys;
    return plain;
}

/* Scores, capped and leant; those of keys that a row does not see are minus infinity. */
static EDB_INLINE row_scores change_scores(const int n, const edb_code_block *block,
                                           const edb_code_row *rows, const row_scores *dots, int64_t tiles,
                                           key_floats *to) {
    row_scores changed = {.stride = EDB_TILE, .scale = 1.0f};
    int64_t keys = EDB_TILE * tiles;
    for (int r = 0; r < n; r++) {
        float *scores = to[r].of;
        for (int64_t j = 0; j < keys; j += EDB_LANES) {
            v16 dot = v_load(scores_at(dots, r, j / EDB_TILE) + j % EDB_TILE);
            v_store(scores + j, v_mul(dot, v_set1(dots->scale)));
        }
        if (block->cap > 0.0f) softcap(scores, block->cap, scores, keys);
        if (block->leans) lean(scores, keys, rows[r].slope, rows[r].away);
        for (int64_t j = 0; j < rows[r].begin; j++) scores[j] = -INFINITY;
        for (int64_t j = rows[r].end; j < keys; j++) scores[j] = -INFINITY;
        changed.rows[r] = scores;
    }
    return changed;
}

/* The largest score of each tile, not yet scaled, and sums of which one that has a NaN is NaN. */
static EDB_INLINE void find_largest(const int n, const row_scores *scores, int64_t tiles,
                                    tile_numbers *largest, float *sums) {
    const v16 zero = v_set1(0.0f);
    v16 sum[EDB_SHARE_ROWS] = {zero, zero, zero, zero};
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 most[EDB_SHARE_ROWS] = {zero, zero, zero, zero};
        for (int r = 0; r < n; r++) {
            const float *of_tile = scores_at(scores, r, tile);
            most[r] = v_load(of_tile);
            for (int i = 1; i < GROUP_VECTORS; i++) most[r] = v_max(most[r], v_load(of_tile + EDB_LANES * i));
            for (int i = 0; i < GROUP_VECTORS; i++) sum[r] = v_add(sum[r], v_load(of_tile + EDB_LANES * i));
        }
        v_max4(most[0], most[1], most[2], most[3], largest->of[tile]);
    }
    v_sum4(sum[0], sum[1], sum[2], sum[3], sums);
}

/*
 * 2^(u / 2048), u of -2^15 to -1, as fractions of 2^14. 2^f - 1 is a cubic in f, fitted to 2048 values:
 * within 1.1e-4.
 */
static EDB_INLINE w32 power_of(w32 u) {
    w32 f = w_double5(u); /* of 2^16 */
    w32 grown = w_add(w_high(f, w_set1(2515)), w_set1(7469));
    grown = w_high(f, w_add(w_high(f, grown), w_set1(22779))); /* of 2^15 */
    return w_multiply(w_mean(grown, w_set1(32767)), w_power(u));
}

/* p = 2^14 e^(score - the largest of its tile), and the sums of tiles. */
static EDB_INLINE void soften(const int n, const row_scores *scores, int64_t tiles, edb_next_rows next,
                              const tile_numbers *largest, key_words *p, tile_numbers *totals) {
    const v16 octaves = v_set1(scores->scale * -0x1.715476p11f); /* 2048 / ln 2 */
    const v16 minus_one = v_set1(-1.0f);
    int64_t k_lines = edb_lines_each(next.k, n * tiles), v_lines = edb_lines_each(next.v, n * tiles);
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 sums[EDB_SHARE_ROWS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        for (int r = 0; r < n; r++) {
            const float *of_tile = scores_at(scores, r, tile);
            int16_t *to = p[r].of + EDB_TILE * tile;
            v16 most = v_set1(largest->of[tile][r]), u[GROUP_VECTORS];
            next.k = edb_fetch_code_lines(next.k, k_lines);
            next.v = edb_fetch_code_lines(next.v, v_lines);
            for (int i = 0; i < GROUP_VECTORS; i++) {
                v16 below = v_sub(most, v_load(of_tile + EDB_LANES * i));
                u[i] = v_fma(below, octaves, minus_one);
            }
            w32 first = power_of(w_round_of(u[0], u[1])), last = power_of(w_round_of(u[2], u[3]));
            w_store(to, first);
            w_store(to + 2 * EDB_LANES, last);
            sums[r] = v_add_i32(w_pairs(first), w_pairs(last));
        }
        v_sum4_i32(sums[0], sums[1], sums[2], sums[3], totals->bits[tile]);
    }
}

/* found's largest score and total; factors: e^(the largest of a tile - that of the row) */
static EDB_INLINE void find_totals(const int n, const edb_code_row *rows, float scale, int64_t tiles,
                                   const tile_numbers *largest, const tile_numbers *totals,
                                   const float *sums, tile_numbers *factors) {
    tile_numbers of_rows = {0}, parts;
    v16 scaled = v_mul(of_tiles(largest), v_set1(scale));
    v_store(parts.of[0], scaled);
    for (int r = 0; r < n; r++) {
        float most = parts.of[0][r];
        for (int64_t tile = 1; tile < tiles; tile++)
            if (!(most > parts.of[tile][r])) most = parts.of[tile][r];
        for (int64_t tile = 0; tile < tiles; tile++) of_rows.of[tile][r] = most;
        rows[r].found[0] = most;
    }
    v16 factor = v_exp_to_88(v_sub(scaled, of_tiles(&of_rows)));
    v_store(factors->of[0], factor);
    v_store(parts.of[0], v_mul(v_mul(v_of_i32(of_tiles(totals)), v_set1(0x1p-14f)), factor));
    for (int r = 0; r < n; r++) {
        float total = parts.of[0][r];
        for (int64_t tile = 1; tile < tiles; tile++) total += parts.of[tile][r];
        rows[r].found[1] = sums[r] == sums[r] ? total : NAN;
    }
}

/* The scales of values as fractions of 2^15 - 1 of a tile's largest, `most`. */
typedef struct {
    key_words words;
    float most[EDB_PAGE_TILES];
} value_scales;

/*
 * Of the keys begin..end-1, 0 elsewhere. Where the largest is tiny all count as 0; where one has a sign
 * or is no number there is none.
 */
static EDB_INLINE void scale_values(const float *scales, int64_t begin, int64_t end, int64_t tiles,
                                    value_scales *to) {
    key_floats seen;
    v16 most[EDB_PAGE_TILES] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
    if (begin > 0 || end < EDB_TILE * tiles) { /* what is not seen may be anything */
        memset(seen.of, 0, (size_t)(EDB_TILE * tiles) * sizeof *seen.of);
        memcpy(seen.of + begin, scales + begin, (size_t)(end - begin) * sizeof *seen.of);
        scales = seen.of;
    }
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int i = 0; i < GROUP_VECTORS; i++)
            most[tile] = v_most(most[tile], v_load(scales + EDB_TILE * tile + EDB_LANES * i));
    v_most4(most[0], most[1], most[2], most[3], to->most);
    for (int64_t tile = 0; tile < tiles; tile++, scales += EDB_TILE) {
        float largest = to->most[tile], factor = 0.0f;
        if (edb_float_bits(largest) >= edb_float_bits(INFINITY)) {
            to->most[tile] = NAN;
        } else if (largest < 0x1p-100f) {
            to->most[tile] = 0.0f;
        } else {
            factor = 32767.0f / largest;
        }
        for (int i = 0; i < GROUP_VECTORS; i += 2) {
            v16 x = v_mul(v_load(scales + EDB_LANES * i), v_set1(factor));
            v16 y = v_mul(v_load(scales + EDB_LANES * (i + 1)), v_set1(factor));
            w_store(to->words.of + EDB_TILE * tile + EDB_LANES * i, w_round_of(x, y));
        }
    }
}

/* p times the scales of values, 32 of a tile. */
static EDB_INLINE w32 share_at(const key_words *p, const value_scales *scales, int64_t key) {
    return w_multiply(w_load(p->of + key), w_load(scales->words.of + key));
}

/*
 * What a tile's shares must not be above in sum: eight that products of bytes add up in 16 bits
 * (kernels_avx2_int8.c), two neighbours of each 16, and twice such two alone.
 */
static EDB_INLINE void find_bounds(const int n, const key_words *p, const value_scales *const *scales,
                                   int64_t tiles, tile_numbers *bounds) {
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 most[EDB_SHARE_ROWS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        for (int r = 0; r < n; r++) {
            v16 first = w_pairs(share_at(&p[r], scales[r], EDB_TILE * tile));
            v16 last = w_pairs(share_at(&p[r], scales[r], EDB_TILE * tile + 2 * EDB_LANES));
            v16 two = v_most(first, last), eight = v_add_apart(v_add_i32(first, last));
            most[r] = v_most(v_add_i32(two, two), eight);
        }
        v_most4(most[0], most[1], most[2], most[3], bounds->of[tile]);
    }
}

/*
 * Codes are shares times integers, steps, over 2^19: of eight whose sum is 248 at most rounding makes
 * 252, of two alone 125, and weights that are alike become whole codes. steps: added to
 * EDB_ROUND_MAGIC; scales: what a code is in 2^14ths of a share.
 */
static EDB_INLINE void find_steps(const tile_numbers *bounds, tile_numbers *steps, tile_numbers *scales) {
    const v16 magic = v_set1(EDB_ROUND_MAGIC);
    v16 step = v_div(v_set1(248.0f * 0x1p19f), v_of_i32(of_tiles(bounds)));
    step = v_add(v_sub(v_min(step, v_set1(32767.0f)), v_set1(0.5f)), magic);
    v_store(steps->of[0], step);
    v_store(scales->of[0], v_div(v_set1(32.0f), v_sub(step, magic)));
}

/* In two steps, for one alone would have to be a number of few bits. */
static EDB_INLINE w32 code_of(w32 share, w32 step) {
    return w_multiply(w_multiply(share, step), w_set1(1 << 11));
}

static EDB_INLINE void quantize_shares(const int n, const key_words *p, const value_scales *const *scales,
                                       int64_t tiles, const tile_numbers *steps,
                                       const edb_code_weights *to) {
    for (int64_t tile = 0; tile < tiles; tile++) {
        v16 sums[EDB_SHARE_ROWS] = {v_set1(0.0f), v_set1(0.0f), v_set1(0.0f), v_set1(0.0f)};
        uint32_t of_tile[EDB_SHARE_ROWS];
        int64_t at = to->stride * tile;
        for (int r = 0; r < n; r++) {
            w32 step = w_set1((int16_t)steps->bits[tile][r]);
            w32 first = code_of(share_at(&p[r], scales[r], EDB_TILE * tile), step);
            w32 last = code_of(share_at(&p[r], scales[r], EDB_TILE * tile + 2 * EDB_LANES), step);
            w_store_i8(to->q + EDB_GROUP * (at + r), first, last);
            if (to->offsets != NULL) sums[r] = v_add_i32(w_pairs(first), w_pairs(last));
        }
        if (to->offsets == NULL) continue;
        v_sum4_i32(sums[0], sums[1], sums[2], sums[3], of_tile);
        for (int r = 0; r < n; r++) to->offsets[at + r] = -128 * (int32_t)of_tile[r];
    }
}

static EDB_INLINE void share_rows(const int n, const edb_code_block *block, const edb_code_row *rows,
                                  const float *dots, int64_t stride, edb_next_rows next,
                                  edb_code_weights to) {
    int64_t tiles = edb_ceil_div(block->count, EDB_TILE), per_group = EDB_PAGE_TILES * to.stride;
    key_floats changed[EDB_SHARE_ROWS];
    key_words p[EDB_SHARE_ROWS];
    tile_numbers largest = {0}, totals = {0}, factors, bounds = {0}, steps, step_scales;
    float sums[EDB_SHARE_ROWS];
    row_scores scores = {.stride = stride, .scale = block->scale};
    for (int r = 0; r < n; r++) scores.rows[r] = dots + EDB_TILE * r;
    if (!is_plain(n, block, rows, EDB_TILE * tiles))
        scores = change_scores(n, block, rows, &scores, tiles, changed);
    find_largest(n, &scores, tiles, &largest, sums);
    soften(n, &scores, tiles, next, &largest, p, &totals);
    find_totals(n, rows, scores.scale, tiles, &largest, &totals, sums, &factors);
    const float *of_values = block->scales;
    for (int64_t column = 0; column < block->head_dim; column += EDB_GROUP, of_values += EDB_PAGE) {
        value_scales own[EDB_SHARE_ROWS];
        const value_scales *seen[EDB_SHARE_ROWS];
        for (int r = 0; r < n; r++) {
            int like_before = r > 0 && rows[r].begin == rows[r - 1].begin && rows[r].end == rows[r - 1].end;
            if (!like_before) scale_values(of_values, rows[r].begin, rows[r].end, tiles, &own[r]);
            seen[r] = like_before ? seen[r - 1] : &own[r];
        }
        find_bounds(n, p, seen, tiles, &bounds);
        find_steps(&bounds, &steps, &step_scales);
        quantize_shares(n, p, seen, tiles, &steps, &to);
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int r = 0; r < n; r++)
                to.sx[to.stride * tile + r] =
                    seen[r]->most[tile] * step_scales.of[tile][r] * factors.of[tile][r];
        to.q += EDB_GROUP * per_group;
        to.sx += per_group;
        if (to.offsets != NULL) to.offsets += per_group;
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
