/*
 * a * b + c with one rounding, as the numerics want it. fmaf is that by its definition and in most C
 * libraries; that of mingw-w64 rounds twice.
 */
#ifndef EDB_FMA_H
#define EDB_FMA_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/*
 * In double precision the product is exact (48 bits of 53), its sum with c is not, but the error of
 * a sum is a double too (Knuth's two-sum). Rounded to odd, the sum keeps in its last bit whether
 * anything was lost, and with 53 bits, two more than 24 need, rounding it again is rounding once
 * (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using
 * rounding to odd", 2008). That holds for subnormal results, which have fewer bits, too.
 */
static inline float edb_exact_fma(float a, float b, float c) {
    double product = (double)a * (double)b, sum = product + (double)c;
    double added = sum - product;
    double lost = (product - (sum - added)) + ((double)c - added);
    if (lost > 0 || lost < 0) { /* not if it is NaN, beside an infinite sum */
        uint64_t bits;
        memcpy(&bits, &sum, sizeof bits);
        /* An even sum: the odd one beside it, on the side where the exact sum lies. */
        if ((bits & 1) == 0) bits += (lost > 0) == (sum > 0) ? 1 : (uint64_t)-1;
        memcpy(&sum, &bits, sizeof bits);
    }
    return (float)sum;
}

static inline float edb_fma(float a, float b, float c) {
#if defined(_WIN32) && !defined(__aarch64__) /* which has it as an instruction */
    return edb_exact_fma(a, b, c);
#else
    return fmaf(a, b, c);
#endif
}

#endif
