/*
 * Products of a few tokens, two to EDB_FEW, for AVX-512 with VBMI and VNNI, on the layout of
 * edgedb.h. A block is unpacked in registers, sixteen rows by four columns at a time, and multiplied
 * with all tokens there: nothing is stored, and the next blocks come from memory meanwhile.
 *
 * Codes are shifted by 128 as in kernels_avx512_int8.c, with the same bounds. vpdpbusd adds four
 * columns, of any quads: the bytes of four quads are interleaved, which is unpacking inside 128-bit
 * lanes, and bit k of all four is the same column of each. Activations are put into that order. Slice
 * k holds rows 16*lane + 4*k + 0..3, as row_sums of finish_avx512.h does.
 *
 *   instruction                    Zen 4: latency, per cycle, pipes   Ice Lake: latency, ports
 *   vpdpbusd z                     4, 1, FP0-1                        5, p0
 *   vpermb, vpunpck, vpsrlw z      4, 1, 1, FP1-2                     3, 1, 1, p5 (vpsrlw p0)
 *   vpternlogd z                   1, 2, FP0-3                        1, p05
 *
 * vpmultishiftqb, which would need no unpacking, takes vpdpbusd's pipes on Zen 4.
 */
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx512f,avx512bw,avx512vbmi,avx512vnni")

#include "finish_avx512.h"

enum { MOST = 8 }; /* tokens at a time: by two slices they are sixteen accumulators */

typedef enum { PAIR, HALF, CODES } block_kind;

/*
 * Bits 0 and 4 of an index, or 1 and 5, are b1 and b2; the rest is the row of a slice. So every second
 * column needs no shift.
 */
typedef struct {
    __m512i even[4], odd[4]; /* of each slice, the four levels of its rows plus 128 */
} level_table;

/* Index bits of a slice's rows: byte 4r + k has row r. */
static EDB_INLINE __m512i even_rows(void) {
    return _mm512_set_epi32(0x2e2e2e2e, 0x2c2c2c2c, 0x2a2a2a2a, 0x28282828, 0x26262626, 0x24242424,
                            0x22222222, 0x20202020, 0x0e0e0e0e, 0x0c0c0c0c, 0x0a0a0a0a, 0x08080808,
                            0x06060606, 0x04040404, 0x02020202, 0x00000000);
}
static EDB_INLINE __m512i odd_rows(void) {
    return _mm512_set_epi32(0x1d1d1d1d, 0x1c1c1c1c, 0x19191919, 0x18181818, 0x15151515, 0x14141414,
                            0x11111111, 0x10101010, 0x0d0d0d0d, 0x0c0c0c0c, 0x09090909, 0x08080808,
                            0x05050505, 0x04040404, 0x01010101, 0x00000000);
}

static EDB_INLINE level_table tabulate(block_kind kind, const uint8_t *block) {
    /* Index -> row of slice 0: 16 * (r / 4) + r % 4, where r lies in bits 5, 3, 2, 1. */
    const __m512i row = _mm512_set_epi32(
        0x33333232, 0x31313030, 0x23232222, 0x21212020, 0x33333232, 0x31313030, 0x23232222,
        0x21212020, 0x13131212, 0x11111010, 0x03030202, 0x01010000, 0x13131212, 0x11111010,
        0x03030202, 0x01010000);
    /* Index of an odd column -> of an even one: bits 5, 4, 3, 2, 1, 0 from 4, 1, 3, 2, 0, 5. */
    const __m512i even_of_odd = _mm512_set_epi32(
        0x3f3d3e3c, 0x3b393a38, 0x37353634, 0x33313230, 0x1f1d1e1c, 0x1b191a18, 0x17151614,
        0x13111210, 0x2f2d2e2c, 0x2b292a28, 0x27252624, 0x23212220, 0x0f0d0e0c, 0x0b090a08,
        0x07050604, 0x03010200);
    const __mmask64 has_c1 = 0xaaaaaaaaaaaaaaaa, has_c2 = 0xffff0000ffff0000;
    const __m512i c1 = load512(block + (kind == HALF ? 512 : 1024));
    const __m512i c2 = kind == HALF ? c1 : load512(block + 1088);
    level_table table;
#pragma GCC unroll 4
    for (int slice = 0; slice < 4; slice++) {
        __m512i from = _mm512_add_epi8(row, _mm512_set1_epi8((char)(4 * slice)));
        __m512i sum = _mm512_maskz_permutexvar_epi8(has_c1, from, c1);
        if (kind == PAIR)
            sum = _mm512_add_epi8(sum, _mm512_maskz_permutexvar_epi8(has_c2, from, c2));
        table.even[slice] = _mm512_xor_si512(sum, _mm512_set1_epi8(-128));
        table.odd[slice] = _mm512_permutexvar_epi8(even_of_odd, table.even[slice]);
    }
    return table;
}

/* Activations of a group in the order in which vpdpbusd takes them. */
static EDB_INLINE __m512i in_order(block_kind kind, __m512i q) {
    const __m512i pair = _mm512_set_epi8(
        63, 59, 55, 51, 62, 58, 54, 50, 61, 57, 53, 49, 60, 56, 52, 48, 47, 43, 39, 35, 46, 42, 38,
        34, 45, 41, 37, 33, 44, 40, 36, 32, 31, 27, 23, 19, 30, 26, 22, 18, 29, 25, 21, 17, 28, 24,
        20, 16, 15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i half = _mm512_set_epi8(
        63, 55, 47, 39, 62, 54, 46, 38, 61, 53, 45, 37, 60, 52, 44, 36, 59, 51, 43, 35, 58, 50, 42,
        34, 57, 49, 41, 33, 56, 48, 40, 32, 31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12,
        4, 27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
    return _mm512_permutexvar_epi8(kind == HALF ? half : pair, q);
}

/* Four columns of all slices, in w, by all tokens of a run. */
#define DOTS(at)                                                                             \
    _Pragma("GCC unroll 8") for (int t = 0; t < tokens; t++) {                               \
        int32_t four;                                                                        \
        memcpy(&four, q + EDB_GROUP * t + 4 * (at), sizeof four);                            \
        __m512i x = _mm512_set1_epi32(four);                                                 \
        _Pragma("GCC unroll 4") for (int i = 0; i < slices; i++)                             \
            __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(dots[slices * t + i]) : "v"(w[i]), "v"(x)); \
    }

/* In all of these tokens, slice and slices are constants where they are inlined. q: [tokens][64]. */
static EDB_INLINE void dot_codes(const int tokens, const int slices, const uint8_t *codes,
                                 const int8_t *q, __m512i *dots, const char *fetch) {
    const __m512i flip = _mm512_set1_epi8(-128);
    __m512i w[4];
#pragma GCC unroll 1
    for (int quad = 0; quad < EDB_QUADS; quad++, codes += 4 * EDB_TILE) {
#pragma GCC unroll 4
        for (int i = 0; i < slices; i++, fetch += EDB_TILE) {
            w[i] = _mm512_xor_si512(load512(codes + EDB_TILE * i), flip);
            _mm_prefetch(fetch, _MM_HINT_T1);
        }
        DOTS(quad)
    }
}

/* Four registers of the block -> the slices with a dword for each row, a byte of each register. */
static EDB_INLINE void interleave(const uint8_t *block, const int slice, const int slices,
                                  __m512i *bits) {
    __m512i a = load512(block), b = load512(block + 64);
    __m512i c = load512(block + 128), d = load512(block + 192);
#pragma GCC unroll 2
    for (int i = 0; i < slices; i += 2) {
        int first = slice + i == 0;
        __m512i ab = first ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
        __m512i cd = first ? _mm512_unpacklo_epi8(c, d) : _mm512_unpackhi_epi8(c, d);
        bits[i] = _mm512_unpacklo_epi16(ab, cd);
        bits[i + 1] = _mm512_unpackhi_epi16(ab, cd);
    }
}

static EDB_INLINE void dot_bits(block_kind kind, const int tokens, const int slice,
                                const int slices, const uint8_t *block, const level_table *levels,
                                const int8_t *q, __m512i *dots, const char *fetch) {
    const int columns = kind == HALF ? 8 : 4; /* of each of four interleaved registers */
    const __m512i rows[2] = {even_rows(), odd_rows()};
    const __m512i mask[2] = {_mm512_set1_epi8(kind == HALF ? 1 : 0x11),
                             _mm512_set1_epi8(kind == HALF ? 2 : 0x22)};
    __m512i table[2][4], bits[4], w[4];
#pragma GCC unroll 4
    for (int i = 0; i < slices; i++) {
        table[0][i] = levels->even[slice + i];
        table[1][i] = levels->odd[slice + i];
    }
    int64_t rounds = EDB_QUADS / columns;
    __asm__("" : "+r"(rounds)); /* gcc 12 would unroll two, fetch all activations early and spill */
    for (; rounds > 0; rounds--, block += 4 * EDB_TILE, q += 4 * columns) {
        interleave(block, slice, slices, bits);
#pragma GCC unroll 8
        for (int column = 0; column < columns; column++) {
            const int odd = column % 2;
#pragma GCC unroll 4
            for (int i = 0; i < slices; i++) { /* 0xea: and, or */
                w[i] = _mm512_ternarylogic_epi32(bits[i], mask[odd], rows[odd], 0xea);
                w[i] = _mm512_permutexvar_epi8(w[i], table[odd][i]);
                if (odd) bits[i] = _mm512_srli_epi16(bits[i], 2);
            }
            if (kind == PAIR || odd) {
                edb_fetch_in_place(fetch);
                fetch += EDB_TILE;
            }
            DOTS(column)
        }
    }
}

/* A run of tokens by some slices of one group: sums [tokens][64], slice by slice. */
static EDB_INLINE void multiply(block_kind kind, const int tokens, const int slice,
                                const int slices, const uint8_t *block, const level_table *levels,
                                const float *scales, const int8_t *q, const float *sx,
                                const int32_t *offsets, float *sums, const char *fetch) {
    __m512i dots[2 * MOST];
#pragma GCC unroll 16
    for (int i = 0; i < slices * tokens; i++) dots[i] = _mm512_set1_epi32(offsets[i / slices]);
    if (kind == CODES) {
        dot_codes(tokens, slices, block + EDB_TILE * slice, q, dots, fetch);
    } else {
        dot_bits(kind, tokens, slice, slices, block, levels, q, dots, fetch);
    }
#pragma GCC unroll 16
    for (int i = 0; i < slices * tokens; i++) {
        const int row = 16 * (slice + i % slices);
        float *sum = sums + EDB_TILE * (i / slices) + row;
        __m512 scale = _mm512_set1_ps(sx[i / slices]);
        if (kind == CODES) scale = _mm512_mul_ps(scale, _mm512_loadu_ps(scales + row));
        __m512 dot = _mm512_cvtepi32_ps(dots[i]);
        _mm512_storeu_ps(sum, _mm512_fmadd_ps(scale, dot, _mm512_loadu_ps(sum)));
    }
}

#define SLICES(tokens, first, count, fetched)                                              \
    multiply(kind, tokens, first, count, block, &levels, scales, q, sx, offsets, sums, fetched)

#define RUN(tokens)                       \
    case tokens:                          \
        SLICES(tokens, 0, 2, fetch);      \
        SLICES(tokens, 2, 2, fetch_too);  \
        break
#define SHORT_RUN(tokens)            \
    case tokens:                     \
        SLICES(tokens, 0, 4, fetch); \
        break

/* All tokens of one group, in runs of nearly the same length; ahead: a block. */
static EDB_INLINE void multiply_group(block_kind kind, const uint8_t *block, const float *scales,
                                      const edb_tokens *x, float *acc, const char *ahead) {
    level_table levels;
    if (kind != CODES) levels = tabulate(kind, block);
    int64_t runs = edb_ceil_div(x->n, MOST);
    const char *fetch = ahead;
    for (int64_t run = 0; run < runs; run++) {
        int64_t first = x->n * run / runs, count = x->n * (run + 1) / runs - first;
        const int8_t *q = x->q + EDB_GROUP * first;
        const float *sx = x->sx + first;
        const int32_t *offsets = x->offsets + first;
        float *sums = acc + EDB_TILE * first;
        const char *next_q = edb_past(q, EDB_GROUP * x->stride);
        const char *fetch_too = kind == CODES && run == 0 ? ahead + 2048 : next_q;
        _Alignas(64) int8_t ordered[EDB_GROUP * MOST];
        if (kind != CODES) {
            for (int64_t t = 0; t < count; t++)
                _mm512_store_si512(ordered + EDB_GROUP * t,
                                   in_order(kind, load512(q + EDB_GROUP * t)));
            q = ordered;
        }
        switch (count) {
            SHORT_RUN(1);
            SHORT_RUN(2);
            SHORT_RUN(3);
            RUN(4);
            RUN(5);
            RUN(6);
            RUN(7);
            RUN(8);
        }
        fetch = next_q;
    }
}

static EDB_INLINE edb_tokens next_group(edb_tokens x) {
    x.q += EDB_GROUP * x.stride;
    x.sx += x.stride;
    x.offsets += x.stride;
    return x;
}

static EDB_INLINE void tile(block_kind kind, const uint8_t *block, int64_t groups,
                            const edb_tokens *tokens, float *acc, const uint8_t *next) {
    const int64_t bytes = kind == HALF ? EDB_HALF_BYTES : EDB_BLOCK_BYTES;
    edb_tokens x = *tokens;
    memset(acc, 0, (size_t)x.n * EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, block += bytes, x = next_group(x)) {
        const char *ahead = edb_ahead(block, groups - g, next, bytes);
        _mm_prefetch(ahead + bytes - 64, _MM_HINT_T1);
        if (kind == PAIR) _mm_prefetch(ahead + bytes - 128, _MM_HINT_T1);
        multiply_group(kind, block, NULL, &x, acc, ahead);
    }
    for (int64_t t = 0; t < x.n; t++, acc += EDB_TILE) {
        row_sums sums = {_mm512_loadu_ps(acc), _mm512_loadu_ps(acc + 16), _mm512_loadu_ps(acc + 32),
                         _mm512_loadu_ps(acc + 48)};
        store_rows(acc, sums);
    }
}

void edb_few_tile_avx512(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                         float *acc, const uint8_t *next) {
    tile(PAIR, blocks, groups, tokens, acc, next);
}

void edb_few_half_tile_avx512(const uint8_t *halves, int64_t groups, const edb_tokens *tokens,
                              float *acc, const uint8_t *next) {
    tile(HALF, halves, groups, tokens, acc, next);
}

void edb_few_int8_tile_avx512(const int8_t *codes, const float *scales, int64_t groups,
                              const edb_tokens *tokens, float *acc, const int8_t *next) {
    edb_tokens x = *tokens;
    for (int64_t g = 0; g < groups; g++, x = next_group(x)) {
        const char *ahead = edb_ahead(codes, groups - g, next, EDB_CODES_BYTES);
        multiply_group(CODES, (const uint8_t *)codes, scales, &x, acc, ahead);
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
    }
}

EDB_TARGET_END

#else
typedef int edb_no_few_avx512_here; /* an empty file is no valid C */
#endif
