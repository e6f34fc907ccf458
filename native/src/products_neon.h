/*
 * How the products by sdot and smmla go over a tile; included once by each, with put_in_order,
 * multiply_run and expand defined. A block goes through all tokens before the next.
 */

/* All tokens by a block, in runs of nearly the same length, the first of each of an even number. */
static EDB_INLINE void multiply_all(block_kind kind, const uint8_t *block, const float *scales,
                                    const int8_t *x, const float *sx, int64_t n, float *acc,
                                    const char *ahead) {
    int64_t pairs = edb_ceil_div(n, 2), runs = edb_ceil_div(n, MOST);
    for (int64_t run = 0; run < runs; run++) {
        int64_t first = 2 * (pairs * run / runs);
        int64_t end = edb_min(2 * (pairs * (run + 1) / runs), n);
        multiply_run(kind, block, scales, x + EDB_GROUP * first, sx + first, end - first,
                     acc + EDB_TILE * first, run == 0 ? ahead : NULL);
    }
}

/* acc[n][64] += the tile's rows. scales: of int8 codes. */
static EDB_INLINE void add_tile(block_kind kind, const uint8_t *block, const float *scales,
                                int64_t groups, const edb_tokens *tokens, float *acc,
                                const uint8_t *next) {
    _Alignas(64) int8_t codes[EDB_CODES_BYTES], x[EDB_TOKEN_BLOCK * EDB_GROUP];
    const block_kind expanded = kind == SCALED ? SCALED_CODES : CODES;
    const int8_t *q = tokens->q;
    const float *sx = tokens->sx;
    int64_t n = tokens->n, bytes = bytes_of(kind);
    for (int64_t g = 0; g < groups; g++, block += bytes) {
        const char *ahead = edb_ahead(block, groups - g, next, bytes);
        put_in_order(kind, q, n, x);
        if (n <= MOST) {
            multiply_all(kind, block, scales, x, sx, n, acc, ahead);
        } else {
            expand(kind, block, codes, ahead);
            multiply_all(expanded, (const uint8_t *)codes, scales, x, sx, n, acc, NULL);
        }
        q += EDB_GROUP * tokens->stride;
        sx += tokens->stride;
        if (kind == SCALED) scales += EDB_TILE;
    }
}

static EDB_INLINE void multiply_tile(block_kind kind, const uint8_t *blocks, int64_t groups,
                                     const edb_tokens *tokens, float *acc, const uint8_t *next) {
    memset(acc, 0, (size_t)tokens->n * EDB_TILE * sizeof *acc);
    add_tile(kind, blocks, NULL, groups, tokens, acc, next);
}
