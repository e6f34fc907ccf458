/*
 * What attention_avx512.c does, in registers of 32 bytes: for AVX2 and, where a product of four bytes
 * is one instruction, for AVX-VNNI. A group of columns is two halves of 32.
 *
 *   AVX-VNNI  codes are shifted by 128, and sums start at the queries' offsets
 *   AVX2      |code| * sign(query, code) by vpmaddubsw, a pair <= 2 * 128 * 127 = 32,512, then
 *             vpmaddwd with ones; 64 products stay below 2^21
 *
 * For three queries and a block of 256 keys by 64 columns 3,072 products, each one instruction or
 * four, and 2,200 shuffles.
 */
#include <string.h>

#include "attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma")

enum { HALF = EDB_GROUP / 2, MOST = 4, MOST_OF_VALUES = 3 }; /* rows at a time */

static EDB_INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* sum += codes * activations, four bytes a lane; codes are shifted if vnni, a constant, is set. */
static EDB_INLINE __m256i dot(const int vnni, __m256i sum, __m256i codes, __m256i activations) {
    if (vnni) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(activations));
        return sum;
    }
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes),
                                         _mm256_sign_epi8(activations, codes));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Rows of a block's keys or values: half a group of columns, of as many rows as are there. */
typedef struct {
    const int8_t *first, *end; /* end: of the memory that may be read */
    int64_t bytes, last, columns; /* of a row; the last row; columns that are there, at most 32 */
    edb_coming coming;
} code_rows;

static EDB_INLINE code_rows rows_of_half(const void *rows, const edb_code_block *block, int64_t g,
                                         int half, edb_coming coming) {
    int64_t bytes = edb_int8_row_bytes(block->head_dim), column = EDB_GROUP * g + HALF * half;
    int64_t columns = edb_max(0, edb_min(HALF, block->head_dim - column));
    return (code_rows){.first = (const int8_t *)rows + (columns > 0 ? column : 0),
                       .end = (const int8_t *)rows + EDB_PAGE * bytes,
                       .bytes = bytes,
                       .last = block->count - 1,
                       .columns = columns,
                       .coming = coming};
}

/*
 * Four rows from `row` on; in place of those that are not there, the last one. What lies behind their
 * columns does not matter: queries have zeros there, and sums of such values nobody takes.
 */
static EDB_INLINE void load_four(const int vnni, const code_rows *rows, int64_t row, __m256i *four) {
    const int8_t *at = rows->first + row * rows->bytes;
    if (row + 3 <= rows->last && rows->end - at >= 3 * rows->bytes + HALF) {
        for (int i = 0; i < 4; i++) four[i] = load256(at + i * rows->bytes);
    } else {
        for (int i = 0; i < 4; i++) {
            int8_t part[HALF] = {0};
            memcpy(part, rows->first + edb_min(row + i, rows->last) * rows->bytes,
                   (size_t)rows->columns);
            four[i] = load256(part);
        }
    }
    for (int i = 0; vnni && i < 4; i++) four[i] = _mm256_xor_si256(four[i], _mm256_set1_epi8(-128));
}

/* Of four rows the dwords: register i has dword 4*lane + i of each. */
static EDB_INLINE void transpose(const __m256i *four, __m256i *w) {
    __m256i ab = _mm256_unpacklo_epi32(four[0], four[1]), cd = _mm256_unpacklo_epi32(four[2], four[3]);
    w[0] = _mm256_unpacklo_epi64(ab, cd);
    w[1] = _mm256_unpackhi_epi64(ab, cd);
    ab = _mm256_unpackhi_epi32(four[0], four[1]);
    cd = _mm256_unpackhi_epi32(four[2], four[3]);
    w[2] = _mm256_unpacklo_epi64(ab, cd);
    w[3] = _mm256_unpackhi_epi64(ab, cd);
}

/* Of four rows the bytes: register i has columns 16*lane + 4*i + 0..3, a dword each. */
static EDB_INLINE void interleave(const __m256i *four, __m256i *w) {
    __m256i ab = _mm256_unpacklo_epi8(four[0], four[1]), cd = _mm256_unpacklo_epi8(four[2], four[3]);
    w[0] = _mm256_unpacklo_epi16(ab, cd);
    w[1] = _mm256_unpackhi_epi16(ab, cd);
    ab = _mm256_unpackhi_epi8(four[0], four[1]);
    cd = _mm256_unpackhi_epi8(four[2], four[3]);
    w[2] = _mm256_unpacklo_epi16(ab, cd);
    w[3] = _mm256_unpackhi_epi16(ab, cd);
}

/* Of one group: the queries as their dot products want them, [rows][half][4]. */
typedef __m256i turned_queries[MOST][2][4];

static EDB_INLINE void turn_queries(const int rows, const edb_tokens *queries, turned_queries q) {
    for (int r = 0; r < rows; r++) {
        for (int half = 0; half < 2; half++) {
            __m256i all = load256(queries->q + EDB_GROUP * r + HALF * half);
            q[r][half][0] = _mm256_shuffle_epi32(all, 0x00);
            q[r][half][1] = _mm256_shuffle_epi32(all, 0x55);
            q[r][half][2] = _mm256_shuffle_epi32(all, 0xaa);
            q[r][half][3] = _mm256_shuffle_epi32(all, 0xff);
        }
    }
}

/* dots[tile][n][64] += one group of `rows` queries, a constant, from the first of `queries` on. */
static EDB_INLINE void dots_of(const int vnni, const int rows, const code_rows *halves,
                               const edb_tokens *queries, const float *scales, int64_t n,
                               float *dots) {
    turned_queries q;
    turn_queries(rows, queries, q);
    for (int64_t key = 0; key <= halves->last; key += 8) {
        __m256i sums[MOST][2], four[4], w[4];
        edb_fetch_part(&halves->coming, key / 8, EDB_PAGE / 8);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            for (int r = 0; r < rows; r++) sums[r][i] = _mm256_setzero_si256();
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                load_four(vnni, halves + half, key + 4 * i, four);
                transpose(four, w);
#pragma GCC unroll 4
                for (int d = 0; d < 4; d++)
                    for (int r = 0; r < rows; r++)
                        sums[r][i] = dot(vnni, sums[r][i], w[d], q[r][half][d]);
            }
        }
        float *to = dots + key / EDB_TILE * n * EDB_TILE + key % EDB_TILE;
        for (int r = 0; r < rows; r++, to += EDB_TILE) {
            __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(sums[r][0], sums[r][1], 0x20),
                                           _mm256_permute2x128_si256(sums[r][0], sums[r][1], 0x31));
            if (vnni) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(queries->offsets[r]));
            __m256 scale = _mm256_mul_ps(_mm256_set1_ps(queries->sx[r]), _mm256_loadu_ps(scales + key));
            _mm256_storeu_ps(to, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum), _mm256_loadu_ps(to)));
        }
    }
}

static EDB_INLINE edb_tokens from_row(edb_tokens x, int64_t row) {
    x.q += EDB_GROUP * row;
    x.sx += row;
    x.offsets += row;
    return x;
}

static EDB_INLINE void few_dots(const int vnni, const edb_code_block *block, const edb_tokens *queries,
                                const float *scales, edb_coming coming, float *dots) {
    int64_t n = queries->n, tiles = edb_ceil_div(block->count, EDB_TILE);
    memset(dots, 0, (size_t)(tiles * n * EDB_TILE) * sizeof *dots);
    for (int64_t g = 0; g < edb_ceil_div(block->head_dim, EDB_GROUP); g++, scales += EDB_PAGE) {
        for (int64_t r = 0; r < n; r += MOST) {
            code_rows halves[2] = {
                rows_of_half(block->k, block, g, 0, g + r == 0 ? coming : (edb_coming){0}),
                rows_of_half(block->k, block, g, 1, (edb_coming){0})};
            edb_tokens some = from_row(*queries, g * queries->stride + r);
            float *to = dots + EDB_TILE * r;
            switch (edb_min(MOST, n - r)) {
            case 1: dots_of(vnni, 1, halves, &some, scales, n, to); break;
            case 2: dots_of(vnni, 2, halves, &some, scales, n, to); break;
            case 3: dots_of(vnni, 3, halves, &some, scales, n, to); break;
            default: dots_of(vnni, 4, halves, &some, scales, n, to); break;
            }
        }
    }
}

/* sums[rows][64], 32 of each, of half a group of columns. */
static EDB_INLINE void sums_of(const int vnni, const int rows, const code_rows *values,
                               const edb_tokens *weights, float *sums) {
    edb_tokens x = *weights;
    __m256 found[MOST_OF_VALUES][4];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) found[r][i] = _mm256_setzero_ps();
    for (int64_t key = 0; key <= values->last; x = from_row(x, x.stride)) {
        __m256i dots[MOST_OF_VALUES][4], four[4], w[4];
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++) dots[r][i] = _mm256_set1_epi32(vnni ? x.offsets[r] : 0);
        int64_t end = edb_min(key + EDB_GROUP, values->last + 1);
        const int8_t *q = x.q;
        for (; key < end; key += 4, q += 4) {
            edb_fetch_part(&values->coming, key / 4, EDB_PAGE / 4);
            load_four(vnni, values, key, four);
            interleave(four, w);
            for (int r = 0; r < rows; r++) {
                int32_t weight;
                memcpy(&weight, q + EDB_GROUP * r, sizeof weight);
                __m256i all = _mm256_set1_epi32(weight);
                for (int i = 0; i < 4; i++) dots[r][i] = dot(vnni, dots[r][i], w[i], all);
            }
        }
        key = edb_ceil_div(key, EDB_GROUP) * EDB_GROUP;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                found[r][i] = _mm256_fmadd_ps(_mm256_set1_ps(x.sx[r]), _mm256_cvtepi32_ps(dots[r][i]),
                                              found[r][i]);
    }
    for (int r = 0; r < rows; r++, sums += EDB_TILE) {
        const __m256 *x4 = found[r];
        _mm256_storeu_ps(sums, _mm256_permute2f128_ps(x4[0], x4[1], 0x20));
        _mm256_storeu_ps(sums + 8, _mm256_permute2f128_ps(x4[2], x4[3], 0x20));
        _mm256_storeu_ps(sums + 16, _mm256_permute2f128_ps(x4[0], x4[1], 0x31));
        _mm256_storeu_ps(sums + 24, _mm256_permute2f128_ps(x4[2], x4[3], 0x31));
    }
}

static EDB_INLINE void few_sums(const int vnni, const edb_code_block *block, int64_t g,
                                const edb_tokens *weights, edb_coming coming, float *sums) {
    for (int64_t r = 0; r < weights->n; r += MOST_OF_VALUES, sums += MOST_OF_VALUES * EDB_TILE) {
        edb_tokens some = from_row(*weights, r);
        for (int half = 0; half < 2; half++) {
            edb_coming now = g + r + half == 0 ? coming : (edb_coming){0};
            code_rows values = rows_of_half(block->v, block, g, half, now);
            float *to = sums + HALF * half;
            switch (edb_min(MOST_OF_VALUES, weights->n - r)) {
            case 1: sums_of(vnni, 1, &values, &some, to); break;
            case 2: sums_of(vnni, 2, &values, &some, to); break;
            default: sums_of(vnni, 3, &values, &some, to); break;
            }
        }
    }
}

void edb_few_dots_avx2(const edb_code_block *block, const edb_tokens *queries, const float *scales,
                       edb_coming coming, float *dots) {
    few_dots(0, block, queries, scales, coming, dots);
}
void edb_few_dots_avxvnni(const edb_code_block *block, const edb_tokens *queries,
                          const float *scales, edb_coming coming, float *dots) {
    few_dots(1, block, queries, scales, coming, dots);
}
void edb_few_sums_avx2(const edb_code_block *block, int64_t g, const edb_tokens *weights,
                       edb_coming coming, float *sums) {
    few_sums(0, block, g, weights, coming, sums);
}
void edb_few_sums_avxvnni(const edb_code_block *block, int64_t g, const edb_tokens *weights,
                          edb_coming coming, float *sums) {
    few_sums(1, block, g, weights, coming, sums);
}

EDB_TARGET_END

#else
typedef int edb_no_attention_avx2_here; /* an empty file is no valid C */
#endif
