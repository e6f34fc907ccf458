/*
 * The exact look-up for NEON by several tokens, with the tables and the bounds of lookup_neon.c. A block goes
 * through all tokens before the next, which comes from memory meanwhile. Tables differ, indices do not:
 * 16 rows by four columns are cut in nibbles once for up to four tokens, whose sixteen sums and eight
 * that were set aside, with two indices, two tables and what is looked up, are nearly all registers.
 */
#include "internal.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#include "finish_neon.h"

enum { TABLE_BYTES = 32 * EDB_QUADS, MOST = 4 };

/* 8-bit sums of 16 rows for a token: low and high bits for either plane. */
typedef struct {
    uint8x16_t low1, high1, low2, high2;
} row_counts;

/* Eight quads of 16 rows by some tokens. */
static EDB_INLINE void count_quads(const int tokens, const uint8_t *block,
                                   const uint8_t *const *tables, int first, row_counts *sums) {
#pragma GCC unroll 8
    for (int quad = first; quad < first + EDB_QUADS / 2; quad++) {
        uint8x16_t bits = vld1q_u8(block + EDB_TILE * quad);
        uint8x16_t b1 = vandq_u8(bits, vdupq_n_u8(15)), b2 = vshrq_n_u8(bits, 4);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            uint8x16_t low = vld1q_u8(tables[t] + 32 * quad);
            uint8x16_t high = vld1q_u8(tables[t] + 32 * quad + 16);
            row_counts s = sums[t];
            s.low1 = vaddq_u8(s.low1, vqtbl1q_u8(low, b1));
            s.high1 = vaddq_u8(s.high1, vqtbl1q_u8(high, b1));
            s.low2 = vaddq_u8(s.low2, vqtbl1q_u8(low, b2));
            s.high2 = vaddq_u8(s.high2, vqtbl1q_u8(high, b2));
            /* in this order, or gcc 12 puts additions off and spills */
            __asm__ volatile("" : "+w"(s.low1), "+w"(s.high1), "+w"(s.low2), "+w"(s.high2));
            sums[t] = s;
        }
    }
}

/* One group by some tokens; ahead: a block to fetch, or NULL. */
static EDB_INLINE void multiply(const int tokens, const uint8_t *block,
                                const uint8_t *const *tables, const edb_group_meta *const *meta,
                                float *acc, const char *ahead) {
    const int8_t *codes = (const int8_t *)block + 1024;
    const uint8x16_t zero = vdupq_n_u8(0);
    for (int row = 0; row < EDB_TILE; row += 16) {
        row_counts sums[MOST];
        uint8x16_t low1[MOST], low2[MOST]; /* set aside */
        for (int line = 4 * row; ahead != NULL && line < EDB_BLOCK_BYTES; line += 256)
            __builtin_prefetch(edb_past(ahead, line), 0, 2);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) sums[t] = (row_counts){zero, zero, zero, zero};
        count_quads(tokens, block + row, tables, 0, sums);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) {
            low1[t] = sums[t].low1;
            low2[t] = sums[t].low2;
            sums[t].low1 = sums[t].low2 = zero;
        }
        count_quads(tokens, block + row, tables, EDB_QUADS / 2, sums);
        scales16 c = widen_scales(codes + row);
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++)
            finish16(acc + EDB_TILE * t + row, meta[t], c,
                     (sums16){low1[t], sums[t].low1, sums[t].high1},
                     (sums16){low2[t], sums[t].low2, sums[t].high2});
    }
}

void edb_few_rows_neon(const uint8_t *block, int64_t groups, const edb_prepared *rows, float *acc,
                       const uint8_t *next) {
    int64_t runs = edb_ceil_div(rows->n, MOST);
    memset(acc, 0, (size_t)rows->n * EDB_TILE * sizeof *acc);
    for (int64_t g = 0; g < groups; g++, block += EDB_BLOCK_BYTES) {
        const char *ahead = edb_ahead(block, groups - g, next, EDB_BLOCK_BYTES);
        for (int64_t run = 0; run < runs; run++) {
            int64_t first = rows->n * run / runs, count = rows->n * (run + 1) / runs - first;
            const uint8_t *tables[MOST];
            const edb_group_meta *meta[MOST];
            float *to = acc + EDB_TILE * first;
            for (int64_t t = 0; t < count; t++) {
                tables[t] = rows->bytes[first + t] + TABLE_BYTES * g;
                meta[t] = rows->meta[first + t] + g;
            }
            switch (count) {
            case 1: multiply(1, block, tables, meta, to, ahead); break;
            case 2: multiply(2, block, tables, meta, to, ahead); break;
            case 3: multiply(3, block, tables, meta, to, ahead); break;
            case 4: multiply(4, block, tables, meta, to, ahead); break;
            }
            ahead = NULL;
        }
    }
}

#else
typedef int edb_no_few_neon_here; /* an empty file is no valid C */
#endif
