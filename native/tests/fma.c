/*
 * edb_exact_fma against the processor's own instruction where it has one, and against the C
 * library's fmaf but on Windows, whose is not exact. It prints nothing.
 */
#include <math.h>

#include "../src/fma.h"
#include "testing.h"

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("fma"))) static float instruction(float a, float b, float c) {
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}
static int find_instruction(void) { return edb_isa_supported(1); } /* AVX2's row asks for it */
#else
static float instruction(float a, float b, float c) { return fmaf(a, b, c); }
static int find_instruction(void) { return 0; }
#endif

static int has_instruction;

static int same(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static void check(float a, float b, float c) {
    float ours = edb_exact_fma(a, b, c);
#if !defined(_WIN32)
    if (!same(ours, fmaf(a, b, c))) {
        fprintf(stderr, "fma(%a, %a, %a) = %a, not %a\n", a, b, c, fmaf(a, b, c), ours);
        exit(1);
    }
#endif
    if (has_instruction && !same(ours, instruction(a, b, c))) {
        fprintf(stderr, "fma(%a, %a, %a) = %a, not %a\n", a, b, c, instruction(a, b, c), ours);
        exit(1);
    }
}

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Any sign, `exponent` as it is stored, and a fraction of few bits as often as of many. */
static float random_at(uint64_t *state, int64_t exponent) {
    uint64_t bits = random_bits(state);
    uint32_t fraction = (uint32_t)bits & 0x7fffff & (~0u << (bits >> 40) % 24);
    if (bits >> 50 & 1) fraction ^= 0x7fffff; /* just below the next power of two */
    exponent = exponent < 0 ? 0 : exponent > 254 ? 254 : exponent;
    return of_bits((uint32_t)(bits >> 63 << 31) | (uint32_t)exponent << 23 | (fraction & 0x7fffff));
}

int main(int argc, char **argv) {
    int turns = argc > 1 ? atoi(argv[1]) : 2000000;
    uint64_t state = 7;
    has_instruction = find_instruction();
    const float special[] = {0.0f,      0x1p-149f, 0x1.fffffcp-127f, 0x1p-126f,      0x1.000002p-126f,
                             0x1p-75f,  0x1p-64f,  0x1.fffffep-1f,   1.0f,           0x1.000002p0f,
                             0x1p24f,   3.0f,      0x1p63f,          0x1.fffffep63f, 0x1.fffffep127f,
                             INFINITY,  NAN};
    enum { N = sizeof special / sizeof special[0] };
    for (int i = 0; i < 2 * N * 2 * N * 2 * N; i++) {
        int index[3] = {i % (2 * N), i / (2 * N) % (2 * N), i / (4 * N * N)};
        float x[3];
        for (int k = 0; k < 3; k++) x[k] = (index[k] & 1 ? -1.0f : 1.0f) * special[index[k] / 2];
        check(x[0], x[1], x[2]);
    }
    for (int turn = 0; turn < turns; turn++) {
        /* Anything at all, infinities and NaN too. */
        uint64_t bits = random_bits(&state);
        check(of_bits((uint32_t)bits), of_bits((uint32_t)(bits >> 32)),
              of_bits((uint32_t)random_bits(&state)));
        /* A product of every size, subnormal too, and a sum that overlaps it or just does not. */
        int64_t ea = random_range(&state, 0, 254), product = random_range(&state, -40, 254);
        float a = random_at(&state, ea), b = random_at(&state, product - ea + 127);
        check(a, b, random_at(&state, product + random_range(&state, -60, 60)));
        /* Next to what cancels it, and to a tie of its rounding. */
        float near = -(a * b);
        check(a, b, near);
        check(a, b, near + random_at(&state, random_range(&state, 0, 3)));
        check(a, b, near * (float)random_range(&state, -4, 4) * 0x1p24f);
        check(a, b, near * 0x1p-24f);
        check(a, b, near * 0x1p-25f);
    }
    return 0;
}
