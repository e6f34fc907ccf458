/*
 * Products of int8 codes and activations, and of blocks of pairs expanded to such codes, for
 * AVX-VNNI: vpdpbusd of 32 bytes without AVX-512 (Intel since Alder Lake, AMD since Zen 5), on the
 * layout of edgedb.h. One token by pairs looks up as with AVX2 (lookup_avx2.c); the table of the
 * set is in kernels_avx2.c.
 *
 * vpdpbusd wants one unsigned side: codes are shifted by 128 and sums start at -128 * the sum of
 * the token's activations, with the bounds of kernels_avx512_int8.c: a sum of 64 products is at
 * most 2,072,640 either way.
 *
 *   instruction           Alder Lake P: latency, ports
 *   vpdpbusd y            5, p01
 *   vpshufb, vpunpck y    1, p15
 *   vpand, vpor y         1, p015
 *
 * Instructions a weight: 128 vpdpbusd for 64 by 64 and a token, 0.031, and some 145 beside them
 * where three go together; expanding a block takes some 900, once for all tokens.
 */
#include <string.h>

#include "half.h"
#include "internal.h"

#if defined(__x86_64__)

#include <immintrin.h>

EDB_TARGET("avx2,fma,avxvnni")

#include "finish_avx2.h"

enum {
    MOST = 3,  /* tokens at a time: twelve sums, their activations and codes fill the registers */
    SLICE = 32 /* rows of two or three tokens */
};

static EDB_INLINE __m256i bytes16(uint64_t low, uint64_t high) {
    return _mm256_broadcastsi128_si256(_mm_set_epi64x((int64_t)high, (int64_t)low));
}

/*
 * Four rows in either 128-bit lane, and for each the four levels 0, c1, c2, c1 + c2, plus 128, by
 * an index of four bits: the level below, or above, the row.
 */
typedef struct {
    __m256i below, above;
} level_table;

/* rows: index -> row; has1, has2: where it says c1, c2. */
static EDB_INLINE __m256i look_up_levels(__m256i c1, __m256i c2, __m256i rows, __m256i has1,
                                         __m256i has2) {
    __m256i sum = _mm256_add_epi8(_mm256_and_si256(_mm256_shuffle_epi8(c1, rows), has1),
                                  _mm256_and_si256(_mm256_shuffle_epi8(c2, rows), has2));
    return _mm256_xor_si256(sum, _mm256_set1_epi8(-128));
}

/* Table i of 32 rows: 4i..4i+3 in the lower lane, 16 + 4i.. in the upper one. c2: 64 behind c1. */
static EDB_INLINE void tabulate(const uint8_t *c1, level_table *tables) {
    const __m256i row_above = bytes16(0x0101010100000000, 0x0303030302020202);
    const __m256i row_below = bytes16(0x0302010003020100, 0x0302010003020100);
    const __m256i odd = bytes16(0xff00ff00ff00ff00, 0xff00ff00ff00ff00);
    const __m256i odd_twos = bytes16(0xffff0000ffff0000, 0xffff0000ffff0000);
    const __m256i odd_fours = bytes16(0xffffffff00000000, 0xffffffff00000000);
    const __m256i odd_eights = bytes16(0, 0xffffffffffffffff);
    const __m256i first = load256(c1), second = load256(c1 + EDB_TILE);
    for (int i = 0; i < 4; i++) {
        __m256i from = _mm256_set1_epi8((char)(4 * i));
        tables[i].below =
            look_up_levels(first, second, _mm256_add_epi8(row_above, from), odd, odd_twos);
        tables[i].above =
            look_up_levels(first, second, _mm256_add_epi8(row_below, from), odd_fours, odd_eights);
    }
}

/* The bits of b1 and b2 of a byte in turns: column k in bits 2k and 2k + 1. */
static EDB_INLINE __m256i in_turns(__m256i bits) {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i even = bytes16(0x1514111005040100, 0x5554515045444140);
    const __m256i odd = _mm256_add_epi8(even, even);
    __m256i b1 = _mm256_and_si256(bits, nibble);
    __m256i b2 = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
    return _mm256_or_si256(_mm256_shuffle_epi8(even, b1), _mm256_shuffle_epi8(odd, b2));
}

static EDB_INLINE void store_levels(uint8_t *codes, __m256i table, __m256i bits, __m256i mask,
                                    __m256i rows) {
    __m256i index = _mm256_or_si256(_mm256_and_si256(bits, mask), rows);
    _mm256_store_si256((__m256i *)(void *)codes, _mm256_shuffle_epi8(table, index));
}

/*
 * A block -> its levels plus 128, as EDB_INT8 has them, but for the order: the bytes of four quads
 * are interleaved inside 128-bit lanes, as in few_avx512.c, so that a dword has the same column of
 * each, and rows are those of finish_avx2.h. ahead: what to fetch meanwhile.
 */
static EDB_INLINE void expand(const uint8_t *block, uint8_t *codes, const char *ahead,
                              int64_t ahead_bytes) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const __m256i row_below = bytes16(0x0101010100000000, 0x0303030302020202);
    const __m256i row_above = _mm256_slli_epi16(row_below, 2);
    for (int64_t line = 1024; line < ahead_bytes; line += 64)
        _mm_prefetch(ahead + line, _MM_HINT_T1);
    for (int slice = 0; slice < EDB_TILE; slice += SLICE) {
        level_table tables[4];
        tabulate(block + 1024 + slice, tables);
        for (int quad = 0; quad < EDB_QUADS; quad += 4) {
            const uint8_t *from = block + EDB_TILE * quad + slice;
            __m256i a = in_turns(load256(from)), b = in_turns(load256(from + 64));
            __m256i c = in_turns(load256(from + 128)), d = in_turns(load256(from + 192));
            __m256i ab = _mm256_unpacklo_epi8(a, b), cd = _mm256_unpacklo_epi8(c, d);
            __m256i bits[4] = {_mm256_unpacklo_epi16(ab, cd), _mm256_unpackhi_epi16(ab, cd)};
            ab = _mm256_unpackhi_epi8(a, b);
            cd = _mm256_unpackhi_epi8(c, d);
            bits[2] = _mm256_unpacklo_epi16(ab, cd);
            bits[3] = _mm256_unpackhi_epi16(ab, cd);
            uint8_t *to = codes + 4 * (EDB_TILE * quad + slice);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++, to += 32) {
                __m256i last = _mm256_srli_epi16(bits[i], 4);
                store_levels(to, tables[i].below, bits[i], low, row_above);
                store_levels(to + 256, tables[i].above, bits[i], high, row_below);
                store_levels(to + 512, tables[i].below, last, low, row_above);
                store_levels(to + 768, tables[i].above, last, high, row_below);
            }
            int64_t line = 32 * quad + 16 * slice; /* 0, 128, 256, 384, 512, ... */
            if (line < ahead_bytes) _mm_prefetch(ahead + line, _MM_HINT_T1);
            if (line + 64 < ahead_bytes) _mm_prefetch(ahead + line + 64, _MM_HINT_T1);
        }
    }
}

/* Activations of a group in the order of those levels. */
static EDB_INLINE void order(const int8_t *q, int8_t *ordered) {
    const __m256i by_column = bytes16(0x0d0905010c080400, 0x0f0b07030e0a0602);
    for (int i = 0; i < EDB_GROUP; i += 32)
        _mm256_store_si256((__m256i *)(void *)(ordered + i),
                           _mm256_shuffle_epi8(load256(q + i), by_column));
}

/* One to three tokens of a group: q [tokens][64], and what their sums start at. */
typedef struct {
    const int8_t *q;
    const float *sx;
    const int32_t *offsets;
} run;

/*
 * Loops over the quads of a group, with ymm12 to ymm14 for a quad of three tokens' activations and ymm15 for
 * codes: gcc 12 copies sums of the intrinsic each time round a loop of C, and spills some, for twelve leave
 * no more than those four registers. Three tokens take 29 operands, of which gcc allows 30.
 */
#define DOT(x, sum) "%{vex%} vpdpbusd %%ymm" #x ", %%ymm15, %[" sum "]\n\t"
#define DOT_1(i, sum) "vmovdqa 32*" #i "(%[codes]), %%ymm15\n\t" DOT(12, sum)
#define DOTS_2(i) DOT_1(i, "a" #i) DOT(13, "b" #i)
#define DOTS_3(i) DOTS_2(i) DOT(14, "c" #i)
#define FOUR(token, to) "vpbroadcastd 64*" #token "(%[q]), %%ymm" #to "\n\t"
#define EACH_QUAD(dots) \
    "1:\n\t" dots "add $256, %[codes]\n\tadd $4, %[q]\n\tcmp %[end], %[q]\n\tjne 1b"
#define SUMS(a, i)                                                            \
    [a##0] "+x"(dots[i]), [a##1] "+x"(dots[i + 1]), [a##2] "+x"(dots[i + 2]), \
        [a##3] "+x"(dots[i + 3])

/* acc[tokens][64] += 32 rows of one group by two or three tokens. codes: plus 128. */
static EDB_INLINE void multiply_32(const int tokens, const uint8_t *codes, const float *scales,
                                   run x, float *acc) {
    __m256i dots[4 * MOST];
#pragma GCC unroll 12
    for (int i = 0; i < 4 * tokens; i++) dots[i] = _mm256_set1_epi32(x.offsets[i / 4]);
    const int8_t *q = x.q, *end = q + EDB_GROUP;
    if (tokens == 3) {
        __asm__ volatile(EACH_QUAD(FOUR(0, 12) FOUR(1, 13) FOUR(2, 14)
                                       DOTS_3(0) DOTS_3(1) DOTS_3(2) DOTS_3(3))
                         : SUMS(a, 0), SUMS(b, 4), SUMS(c, 8), [codes] "+&r"(codes), [q] "+&r"(q)
                         : [end] "r"(end)
                         : "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
    } else {
        __asm__ volatile(EACH_QUAD(FOUR(0, 12) FOUR(1, 13) DOTS_2(0) DOTS_2(1) DOTS_2(2) DOTS_2(3))
                         : SUMS(a, 0), SUMS(b, 4), [codes] "+&r"(codes), [q] "+&r"(q)
                         : [end] "r"(end)
                         : "xmm12", "xmm13", "xmm15", "cc", "memory");
    }
#pragma GCC unroll 12
    for (int i = 0; i < 4 * tokens; i++)
        finish_dots(acc + EDB_TILE * (i / 4) + 8 * (i % 4), dots[i], x.sx[i / 4],
                    scales == NULL ? NULL : scales + 8 * (i % 4));
}

/* The same for 64 rows and one token. */
static EDB_INLINE void multiply_64(const uint8_t *codes, const float *scales, run x, float *acc) {
    __m256i dots[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) dots[i] = _mm256_set1_epi32(x.offsets[0]);
    const int8_t *q = x.q, *end = q + EDB_GROUP;
    __asm__ volatile(EACH_QUAD(FOUR(0, 12) DOT_1(0, "a0") DOT_1(1, "a1") DOT_1(2, "a2") DOT_1(3, "a3")
                                   DOT_1(4, "b0") DOT_1(5, "b1") DOT_1(6, "b2") DOT_1(7, "b3"))
                     : SUMS(a, 0), SUMS(b, 4), [codes] "+&r"(codes), [q] "+&r"(q)
                     : [end] "r"(end)
                     : "xmm12", "xmm15", "cc", "memory");
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        finish_dots(acc + 8 * i, dots[i], x.sx[0], scales == NULL ? NULL : scales + 8 * i);
}

/* All tokens of one group, in runs. codes: plus 128; without scales, in the order of `expand`. */
static EDB_INLINE void multiply_group(const uint8_t *codes, const float *scales,
                                      const edb_tokens *x, float *acc) {
    for (int64_t t = 0; t < x->n;) {
        int64_t left = x->n - t, count = left == 4 ? 2 : edb_min(left, MOST);
        run some = {x->q + EDB_GROUP * t, x->sx + t, x->offsets + t};
        _Alignas(32) int8_t ordered[MOST * EDB_GROUP];
        if (scales == NULL) {
            for (int64_t i = 0; i < count; i++)
                order(some.q + EDB_GROUP * i, ordered + EDB_GROUP * i);
            some.q = ordered;
        }
        for (int row = 0; row < EDB_TILE && count > 1; row += SLICE) {
            const float *of_rows = scales == NULL ? NULL : scales + row;
            if (count == 2) multiply_32(2, codes + 4 * row, of_rows, some, acc + row);
            if (count == 3) multiply_32(3, codes + 4 * row, of_rows, some, acc + row);
        }
        if (count == 1) multiply_64(codes, scales, some, acc);
        t += count;
        acc += EDB_TILE * count;
    }
}

static EDB_INLINE edb_tokens next_group(edb_tokens x) {
    x.q += EDB_GROUP * x.stride;
    x.sx += x.stride;
    x.offsets += x.stride;
    return x;
}

/* half: the blocks are those of half a pair, and `pair` has room for one as a pair. */
static EDB_INLINE void expand_tile(const uint8_t *block, int64_t groups, const edb_tokens *tokens,
                                   float *acc, const uint8_t *next, int half, uint8_t *pair) {
    _Alignas(64) uint8_t codes[EDB_CODES_BYTES];
    _Alignas(32) float sums[EDB_TOKEN_BLOCK * EDB_TILE];
    const int64_t bytes = half ? EDB_HALF_BYTES : EDB_BLOCK_BYTES;
    edb_tokens x = *tokens;
    memset(sums, 0, (size_t)x.n * EDB_TILE * sizeof *sums);
    for (int64_t g = 0; g < groups; g++, block += bytes, x = next_group(x)) {
        if (half) edb_widen_half(block, pair);
        expand(half ? pair : block, codes, edb_ahead(block, groups - g, next, bytes), bytes);
        multiply_group(codes, NULL, &x, sums);
    }
    for (int64_t t = 0; t < x.n; t++) store_rows(acc + EDB_TILE * t, sums + EDB_TILE * t);
}

void edb_expand_tile_avxvnni(const uint8_t *blocks, int64_t groups, const edb_tokens *tokens,
                             float *acc, const uint8_t *next) {
    expand_tile(blocks, groups, tokens, acc, next, 0, NULL);
}

void edb_expand_half_tile_avxvnni(const uint8_t *halves, int64_t groups, const edb_tokens *tokens,
                                  float *acc, const uint8_t *next) {
    _Alignas(64) uint8_t pair[EDB_BLOCK_BYTES];
    memset(pair + EDB_BLOCK_BYTES - EDB_TILE, 0, EDB_TILE); /* c2 */
    expand_tile(halves, groups, tokens, acc, next, 1, pair);
}

/* Codes of a block plus 128, and the lines of one further on fetched. */
static EDB_INLINE void shift_codes(const int8_t *codes, uint8_t *shifted, const char *ahead) {
    const __m256i flip = _mm256_set1_epi8(-128);
    for (int i = 0; i < EDB_CODES_BYTES; i += 64) {
        __m256i *to = (__m256i *)(void *)(shifted + i);
        _mm256_store_si256(to, _mm256_xor_si256(load256(codes + i), flip));
        _mm256_store_si256(to + 1, _mm256_xor_si256(load256(codes + i + 32), flip));
        _mm_prefetch(ahead + i, _MM_HINT_T1);
    }
}

void edb_int8_tile_avxvnni(const int8_t *codes, const float *scales, int64_t groups,
                           const edb_tokens *tokens, float *acc, const int8_t *next) {
    _Alignas(64) uint8_t shifted[EDB_CODES_BYTES];
    edb_tokens x = *tokens;
    for (int64_t g = 0; g < groups; g++, x = next_group(x)) {
        shift_codes(codes, shifted, edb_ahead(codes, groups - g, next, EDB_CODES_BYTES));
        multiply_group(shifted, scales, &x, acc);
        codes += EDB_CODES_BYTES;
        scales += EDB_TILE;
    }
}

void edb_offsets_avxvnni(const int8_t *q, int64_t stride, int64_t groups, int32_t *offsets) {
    const __m256i by_128 = _mm256_set1_epi8(-128);
    for (int64_t g = 0; g < groups; g++, q += EDB_GROUP * stride) {
        __m256i eight = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), by_128, load256(q));
        eight = _mm256_dpbusd_avx_epi32(eight, by_128, load256(q + 32));
        __m128i four =
            _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        offsets[stride * g] = -_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
    }
}

EDB_TARGET_END

#else
typedef int edb_no_avxvnni_here; /* an empty file is no valid C */
#endif
