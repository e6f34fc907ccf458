/*
 * Products of a few queries with the keys of an int8 cache, and of their weights with its values, for
 * AVX-512 with VNNI, on rows as they lie in a page: attention_int8.c has the steps. Nothing is packed;
 * rows are put in order in registers, once for up to four queries.
 *
 * Codes are shifted by 128 as in kernels_avx512_int8.c, with the same bounds.
 *
 *   keys    four rows, transposed inside 128-bit lanes: register i has dword 4*lane + i of each, and a
 *           query's register i that dword of its own in every lane. vpdpbusd leaves four keys by four
 *           lanes; sixteen keys are four such, whose lanes are added in turn.
 *   values  four rows, interleaved inside lanes: register i has columns 16*lane + 4*i + 0..3 of all
 *           four, a dword a column, by four weights of a query.
 *
 * For three queries and a block of 256 keys by 64 columns 1,536 vpdpbusd, 1,100 shuffles, and 512 rows
 * that lie across lines: some 1,600 cycles of Zen 5, less than its memory takes for them.
 */
#include <string.h>

#include "attention.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")

enum { MOST = 4 }; /* rows at a time: sixteen sums */

static EDB_INLINE __m512i dot(__m512i sum, __m512i codes, __m512i activations) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(activations));
    return sum;
}

/* Rows of a block's keys or values: one group of columns, of as many rows as are there. */
typedef struct {
    const int8_t *first;
    int64_t bytes, last; /* of a row; the last row */
    __mmask64 columns;
    edb_coming coming;
} code_rows;

static EDB_INLINE __m512i load_row(const code_rows *rows, const int8_t *at) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(rows->columns, at), _mm512_set1_epi8(-128));
}

/* Four rows from `row` on, shifted by 128; in place of those that are not there, the last one. */
static EDB_INLINE void load_four(const code_rows *rows, int64_t row, __m512i *four) {
    const int8_t *at = rows->first + row * rows->bytes;
    if (row + 3 <= rows->last) {
        for (int i = 0; i < 4; i++) four[i] = load_row(rows, at + i * rows->bytes);
    } else {
        for (int i = 0; i < 4; i++)
            four[i] = load_row(rows, rows->first + edb_min(row + i, rows->last) * rows->bytes);
    }
}

static EDB_INLINE code_rows rows_of_group(const void *rows, const edb_code_block *block, int64_t g,
                                          edb_coming coming) {
    int64_t columns = edb_min(EDB_GROUP, block->head_dim - EDB_GROUP * g);
    return (code_rows){.first = (const int8_t *)rows + EDB_GROUP * g,
                       .bytes = edb_int8_row_bytes(block->head_dim),
                       .last = block->count - 1,
                       .columns = ~(__mmask64)0 >> (EDB_GROUP - columns),
                       .coming = coming};
}

/* The lanes of four registers, each added up: lane l of the result is that of register l. */
static EDB_INLINE __m512i add_lanes(const __m512i *x) {
    __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44),
                                  _mm512_shuffle_i32x4(x[0], x[1], 0xee));
    __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44),
                                  _mm512_shuffle_i32x4(x[2], x[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
}

/* dots[tile][n][64] += one group of `rows` queries, a constant, from the first of `queries` on. */
static EDB_INLINE void dots_of(const int rows, const code_rows *keys, const edb_tokens *queries,
                               const float *scales, int64_t n, float *dots) {
    __m512i q[MOST][4];
    for (int r = 0; r < rows; r++) {
        __m512i all = _mm512_loadu_si512(queries->q + EDB_GROUP * r);
        q[r][0] = _mm512_shuffle_epi32(all, 0x00);
        q[r][1] = _mm512_shuffle_epi32(all, 0x55);
        q[r][2] = _mm512_shuffle_epi32(all, 0xaa);
        q[r][3] = _mm512_shuffle_epi32(all, 0xff);
    }
    for (int64_t key = 0; key <= keys->last; key += 16) {
        __m512i sums[MOST][4];
        edb_fetch_part(&keys->coming, key / 16, EDB_PAGE / 16);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512i k[4];
            load_four(keys, key + 4 * i, k);
            __m512i ab = _mm512_unpacklo_epi32(k[0], k[1]), cd = _mm512_unpacklo_epi32(k[2], k[3]);
            __m512i w0 = _mm512_unpacklo_epi64(ab, cd), w1 = _mm512_unpackhi_epi64(ab, cd);
            ab = _mm512_unpackhi_epi32(k[0], k[1]);
            cd = _mm512_unpackhi_epi32(k[2], k[3]);
            __m512i w2 = _mm512_unpacklo_epi64(ab, cd), w3 = _mm512_unpackhi_epi64(ab, cd);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                __m512i sum = dot(_mm512_setzero_si512(), w0, q[r][0]);
                sums[r][i] = dot(dot(dot(sum, w1, q[r][1]), w2, q[r][2]), w3, q[r][3]);
            }
        }
        float *to = dots + key / EDB_TILE * n * EDB_TILE + key % EDB_TILE;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++, to += EDB_TILE) {
            __m512i sum = _mm512_add_epi32(add_lanes(sums[r]), _mm512_set1_epi32(queries->offsets[r]));
            __m512 scale = _mm512_mul_ps(_mm512_set1_ps(queries->sx[r]), _mm512_loadu_ps(scales + key));
            _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), _mm512_loadu_ps(to)));
        }
    }
}

static EDB_INLINE edb_tokens from_row(edb_tokens x, int64_t row) {
    x.q += EDB_GROUP * row;
    x.sx += row;
    x.offsets += row;
    return x;
}

void edb_few_dots_avx512(const edb_code_block *block, const edb_tokens *queries, const float *scales,
                         edb_coming coming, float *dots) {
    int64_t n = queries->n, tiles = edb_ceil_div(block->count, EDB_TILE);
    memset(dots, 0, (size_t)(tiles * n * EDB_TILE) * sizeof *dots);
    for (int64_t g = 0; g < edb_ceil_div(block->head_dim, EDB_GROUP); g++, scales += EDB_PAGE) {
        for (int64_t r = 0; r < n; r += MOST) {
            code_rows keys = rows_of_group(block->k, block, g, g + r == 0 ? coming : (edb_coming){0});
            edb_tokens some = from_row(*queries, g * queries->stride + r);
            float *to = dots + EDB_TILE * r;
            switch (edb_min(MOST, n - r)) {
            case 1: dots_of(1, &keys, &some, scales, n, to); break;
            case 2: dots_of(2, &keys, &some, scales, n, to); break;
            case 3: dots_of(3, &keys, &some, scales, n, to); break;
            default: dots_of(4, &keys, &some, scales, n, to); break;
            }
        }
    }
}

/* sums[rows][64] of one group of columns. */
static EDB_INLINE void sums_of(const int rows, const code_rows *values, const edb_tokens *weights,
                               float *sums) {
    edb_tokens x = *weights;
    __m512 found[MOST][4];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++) found[r][i] = _mm512_setzero_ps();
    for (int64_t key = 0; key <= values->last; x = from_row(x, x.stride)) {
        __m512i dots[MOST][4];
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++) dots[r][i] = _mm512_set1_epi32(x.offsets[r]);
        int64_t end = edb_min(key + EDB_GROUP, values->last + 1);
        const int8_t *q = x.q;
        for (; key < end; key += 4, q += 4) {
            if (key % 16 == 0) edb_fetch_part(&values->coming, key / 16, EDB_PAGE / 16);
            __m512i v[4], w[4];
            load_four(values, key, v);
            __m512i ab = _mm512_unpacklo_epi8(v[0], v[1]), cd = _mm512_unpacklo_epi8(v[2], v[3]);
            w[0] = _mm512_unpacklo_epi16(ab, cd);
            w[1] = _mm512_unpackhi_epi16(ab, cd);
            ab = _mm512_unpackhi_epi8(v[0], v[1]);
            cd = _mm512_unpackhi_epi8(v[2], v[3]);
            w[2] = _mm512_unpacklo_epi16(ab, cd);
            w[3] = _mm512_unpackhi_epi16(ab, cd);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, q + EDB_GROUP * r, sizeof four);
                __m512i weight = _mm512_set1_epi32(four);
                for (int i = 0; i < 4; i++) dots[r][i] = dot(dots[r][i], w[i], weight);
            }
        }
        key = edb_ceil_div(key, EDB_GROUP) * EDB_GROUP;
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 4; i++)
                found[r][i] = _mm512_fmadd_ps(_mm512_set1_ps(x.sx[r]), _mm512_cvtepi32_ps(dots[r][i]),
                                              found[r][i]);
    }
    for (int r = 0; r < rows; r++, sums += EDB_TILE) {
        const __m512 *x4 = found[r];
        __m512 ab = _mm512_shuffle_f32x4(x4[0], x4[1], 0x44), cd = _mm512_shuffle_f32x4(x4[2], x4[3], 0x44);
        _mm512_storeu_ps(sums, _mm512_shuffle_f32x4(ab, cd, 0x88));
        _mm512_storeu_ps(sums + 16, _mm512_shuffle_f32x4(ab, cd, 0xdd));
        ab = _mm512_shuffle_f32x4(x4[0], x4[1], 0xee);
        cd = _mm512_shuffle_f32x4(x4[2], x4[3], 0xee);
        _mm512_storeu_ps(sums + 32, _mm512_shuffle_f32x4(ab, cd, 0x88));
        _mm512_storeu_ps(sums + 48, _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
}

void edb_few_sums_avx512(const edb_code_block *block, int64_t g, const edb_tokens *weights,
                         edb_coming coming, float *sums) {
    for (int64_t r = 0; r < weights->n; r += MOST, sums += MOST * EDB_TILE) {
        code_rows values = rows_of_group(block->v, block, g, g + r == 0 ? coming : (edb_coming){0});
        edb_tokens some = from_row(*weights, r);
        switch (edb_min(MOST, weights->n - r)) {
        case 1: sums_of(1, &values, &some, sums); break;
        case 2: sums_of(2, &values, &some, sums); break;
        case 3: sums_of(3, &values, &some, sums); break;
        default: sums_of(4, &values, &some, sums); break;
        }
    }
}

EDB_TARGET_END

#else
typedef int edb_no_attention_avx512_here; /* an empty file is no valid C */
#endif
