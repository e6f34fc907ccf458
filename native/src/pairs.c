/*
 * The tasks of a product with stacked pairs of planes. A matrix is a sum of terms, its pairs and, last,
 * half a pair if it has one: a tile goes through all of them before the next begins.
 */
#include <string.h>

#include "half.h"
#include "matmul.h"

static int64_t count_terms(const edb_matrix *matrix) {
    return matrix->pairs + (matrix->half != NULL);
}

static EDB_INLINE int is_half(const edb_matrix *matrix, int64_t term) {
    return term == matrix->pairs;
}

int64_t edb_expands_from(const edb_pair_kernel *pairs, const edb_matrix *matrix) {
    int own = matrix->half != NULL && pairs->expand_half_from != 0;
    return own ? pairs->expand_half_from : pairs->expand_from;
}

/* Bytes of one tile of a term; the next tile follows. */
static EDB_INLINE int64_t tile_bytes(const edb_matmul_job *job, int half) {
    return job->groups * (half ? EDB_HALF_BYTES : EDB_BLOCK_BYTES);
}

static EDB_INLINE const uint8_t *term_tile(const edb_matmul_job *job, int64_t term, int64_t tile) {
    const uint8_t *blocks = job->matrix->data, *halves = job->matrix->half;
    return is_half(job->matrix, term) ? halves + tile * tile_bytes(job, 1)
                                      : blocks + (term * job->tiles + tile) * tile_bytes(job, 0);
}

/*
 * What to fetch ahead, beyond the end of a tile. Near, what is read next: the first-level cache holds
 * nothing for longer. Far, each term is a stream of its own, whose next tile follows; only pairs whose
 * tiles are shorter than the distance fetch what is read next: two pairs of 576 columns decode 4%
 * faster so, of 1,024 columns slower, and with half a pair by a quarter.
 */
static EDB_INLINE const uint8_t *fetched(const edb_matmul_job *job, int64_t term, int64_t terms,
                                         int64_t tile) {
    if (job->next != NULL && tile + 1 == job->tiles && term + 1 == terms) return job->next;
    int apart = job->matrix->half != NULL || tile_bytes(job, 0) > EDB_PREFETCH_BYTES;
    if (edb_fetch_here != EDB_NEAR && apart) return term_tile(job, term, tile + 1);
    return term + 1 < terms ? term_tile(job, term + 1, tile) : term_tile(job, 0, tile + 1);
}

/* Row scales are wanted at a tile's end, where nothing is left to do until they come. */
static EDB_INLINE void fetch_row_scales(const float *scales) {
    for (int64_t line = 0; line < EDB_TILE; line += 16)
        __builtin_prefetch(edb_past(scales, 4 * line), 0, 3);
}

/* y = scale * acc for the first term, y + scale * acc with two roundings for the others. */
static void scale_rows(float *y, const float *scale, const float *acc, int64_t rows, int first) {
    for (int64_t r = 0; r < rows; r++) y[r] = first ? scale[r] * acc[r] : y[r] + scale[r] * acc[r];
}

/* acc[n][64] = one tile of a term for some rows. */
static void multiply_rows(const edb_matmul_job *job, const uint8_t *blocks, int half,
                          const edb_prepared *rows, float *acc, const uint8_t *next) {
    edb_pair_rows *together = half ? job->pairs->half_rows : job->pairs->tile_rows;
    if (job->by_rows && together != NULL) {
        together(blocks, job->groups, rows, acc, next);
        return;
    }
    edb_pair_tile *multiply = half ? job->pairs->half_tile : job->pairs->tile;
    for (int64_t t = 0; t < rows->n; t++)
        multiply(blocks, job->groups, rows->bytes[t], rows->meta[t], acc + EDB_TILE * t, next);
}

/* Up to EDB_PREPARED_ROWS tokens from this one on. */
static edb_prepared prepared_from(const edb_matmul_job *job, int64_t token) {
    edb_prepared rows = {.n = edb_min(EDB_PREPARED_ROWS, job->n - token)};
    for (int64_t t = 0; t < rows.n; t++) {
        int64_t at = edb_prepared_row(job, token + t) * edb_prepared_pitch(job);
        rows.bytes[t] = job->prepared + at * job->pairs->prepared_bytes;
        rows.meta[t] = job->meta + at;
    }
    return rows;
}

void edb_pairs_two_tiles(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    const edb_matrix *matrix = job->matrix;
    int64_t apart = job->apart, terms = count_terms(matrix);
    edb_prepared x = prepared_from(job, 0);
    float y[2 * EDB_TILE], acc[2 * EDB_TILE];
    for (int64_t tile = begin; tile < end; tile++) {
        if (tile + apart >= job->tiles) {
            edb_pairs_one_by_one(argument, tile, tile + 1, worker);
            continue;
        }
        int64_t row[2] = {tile * EDB_TILE, (tile + apart) * EDB_TILE};
        int64_t rows[2] = {EDB_TILE, edb_min(EDB_TILE, matrix->rows - row[1])};
        for (int64_t term = 0; term < terms; term++) {
            int half = is_half(matrix, term);
            edb_pair_two_tiles *multiply = half ? job->pairs->two_half_tiles : job->pairs->two_tiles;
            const float *scales = matrix->scales + term * matrix->rows;
            const uint8_t *blocks[2], *next[2];
            for (int i = 0; i < 2; i++) {
                fetch_row_scales(scales + row[i]);
                blocks[i] = term_tile(job, term, tile + i * apart);
                next[i] = fetched(job, term, terms, tile + i * apart);
            }
            multiply(blocks, job->groups, x.bytes[0], x.meta[0], acc, next);
            for (int i = 0; i < 2; i++)
                scale_rows(y + EDB_TILE * i, scales + row[i], acc + EDB_TILE * i, rows[i],
                           term == 0);
        }
        for (int i = 0; i < 2; i++) edb_write_rows(job, 0, row[i], rows[i], y + EDB_TILE * i);
    }
}

void edb_pairs_one_by_one(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    const edb_matrix *matrix = job->matrix;
    int64_t terms = count_terms(matrix);
    float y[EDB_PREPARED_ROWS * EDB_TILE], acc[EDB_PREPARED_ROWS * EDB_TILE];
    (void)worker;
    for (int64_t tile = begin; tile < end; tile++) {
        int64_t row = tile * EDB_TILE, rows = edb_min(EDB_TILE, matrix->rows - row);
        for (int64_t token = 0; token < job->n; token += EDB_PREPARED_ROWS) {
            edb_prepared x = prepared_from(job, token);
            for (int64_t term = 0; term < terms; term++) {
                const float *scales = matrix->scales + term * matrix->rows + row;
                fetch_row_scales(scales);
                multiply_rows(job, term_tile(job, term, tile), is_half(matrix, term), &x, acc,
                              fetched(job, term, terms, tile));
                for (int64_t t = 0; t < x.n; t++)
                    scale_rows(y + EDB_TILE * t, scales, acc + EDB_TILE * t, rows, term == 0);
            }
            for (int64_t t = 0; t < x.n; t++)
                edb_write_rows(job, token + t, row, rows, y + EDB_TILE * t);
        }
    }
}

/* expand_tile, or expand_half_tile, by expand_block and int8_tile. */
static void expand_blocks(const edb_kernels *kernels, const uint8_t *block, int half,
                          int64_t groups, edb_tokens tokens, float *acc) {
    static const float ones[EDB_TILE] = {EDB_ONES_64};
    _Alignas(64) int8_t codes[EDB_CODES_BYTES];
    _Alignas(64) uint8_t pair[EDB_BLOCK_BYTES];
    memset(pair + EDB_BLOCK_BYTES - EDB_TILE, 0, EDB_TILE);
    for (int64_t g = 0; g < groups; g++, block += half ? EDB_HALF_BYTES : EDB_BLOCK_BYTES) {
        if (half) edb_widen_half(block, pair);
        kernels->expand_block(half ? pair : block, codes);
        kernels->int8_tile(codes, ones, 1, &tokens, acc, codes);
        tokens.q += EDB_GROUP * tokens.stride;
        tokens.sx += tokens.stride;
    }
}

static void expand_term(const edb_matmul_job *job, int64_t term, int64_t tile,
                        const edb_tokens *tokens, float *acc) {
    const edb_kernels *kernels = job->kernels;
    const uint8_t *blocks = term_tile(job, term, tile);
    int half = is_half(job->matrix, term);
    const uint8_t *next = fetched(job, term, count_terms(job->matrix), tile);
    if (kernels->expand_tile == NULL) {
        memset(acc, 0, (size_t)tokens->n * EDB_TILE * sizeof *acc);
        expand_blocks(kernels, blocks, half, job->groups, *tokens, acc);
    } else {
        edb_expanded_tile *multiply = half ? kernels->expand_half_tile : kernels->expand_tile;
        multiply(blocks, job->groups, tokens, acc, next);
    }
}

void edb_pairs_by_expansion(void *argument, int64_t begin, int64_t end, int32_t worker) {
    const edb_matmul_job *job = argument;
    const edb_matrix *matrix = job->matrix;
    int64_t terms = count_terms(matrix);
    _Alignas(64) float acc[EDB_TOKEN_BLOCK * EDB_TILE], y[EDB_TOKEN_BLOCK * EDB_TILE];
    (void)worker;
    for (int64_t task = begin; task < end; task++) {
        int64_t tile = task / job->token_blocks, token = task % job->token_blocks * EDB_TOKEN_BLOCK;
        edb_tokens tokens = edb_tokens_from(job, token);
        int64_t n = tokens.n;
        int64_t row = tile * EDB_TILE, rows = edb_min(EDB_TILE, matrix->rows - row);
        for (int64_t term = 0; term < terms; term++) {
            const float *scales = matrix->scales + term * matrix->rows + row;
            expand_term(job, term, tile, &tokens, acc);
            for (int64_t t = 0; t < n; t++)
                scale_rows(y + t * EDB_TILE, scales, acc + t * EDB_TILE, rows, term == 0);
        }
        for (int64_t t = 0; t < n; t++) edb_write_rows(job, token + t, row, rows, y + t * EDB_TILE);
    }
}
