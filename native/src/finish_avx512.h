/*
 * The end of a group for 64 rows, shared by the pair kernels for AVX-512; included once the target
 * is set. Bytes of rows are widened by unpacking, which works inside 128-bit lanes: so sums.k holds
 * rows 16*lane + 4*k + 0..3, and S1, S2 come as words of rows 16*lane + 0..7 (low), 8..15 (high).
 */
typedef struct {
    __m512 k0, k1, k2, k3;
} row_sums;

static EDB_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }

/* acc + sx * (c1*S1 + c2*S2) for the sixteen rows whose S1, S2 and (c1, c2) << 8 are interleaved. */
static EDB_INLINE __m512 finish16(__m512 acc, __m512 sx, __m512i s, __m512i c_high) {
    __m512i sum = _mm512_madd_epi16(s, _mm512_srai_epi16(c_high, 8));
    return _mm512_fmadd_ps(sx, _mm512_cvtepi32_ps(sum), acc);
}

/* codes: c1[64], c2[64] of the block. */
static EDB_INLINE row_sums finish64(row_sums sums, float sx_of_group, const uint8_t *codes,
                                    __m512i s1_low, __m512i s1_high, __m512i s2_low,
                                    __m512i s2_high) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 sx = _mm512_set1_ps(sx_of_group);
    __m512i c1 = load512(codes), c2 = load512(codes + EDB_TILE);
    __m512i c = _mm512_unpacklo_epi8(c1, c2);
    sums.k0 =
        finish16(sums.k0, sx, _mm512_unpacklo_epi16(s1_low, s2_low), _mm512_unpacklo_epi8(zero, c));
    sums.k1 =
        finish16(sums.k1, sx, _mm512_unpackhi_epi16(s1_low, s2_low), _mm512_unpackhi_epi8(zero, c));
    c = _mm512_unpackhi_epi8(c1, c2);
    sums.k2 = finish16(sums.k2, sx, _mm512_unpacklo_epi16(s1_high, s2_high),
                       _mm512_unpacklo_epi8(zero, c));
    sums.k3 = finish16(sums.k3, sx, _mm512_unpackhi_epi16(s1_high, s2_high),
                       _mm512_unpackhi_epi8(zero, c));
    return sums;
}

/* sums + sx * c1*S1 for 32 rows of half a pair; c_high: their c1 << 8. */
#define FINISH_HALF(s1, c_high, first, last)                                                      \
    do {                                                                                          \
        __m512i c1 = _mm512_srai_epi16(c_high, 8);                                                \
        __m512i low = _mm512_mullo_epi16(s1, c1), high = _mm512_mulhi_epi16(s1, c1);              \
        first = _mm512_fmadd_ps(sx, _mm512_cvtepi32_ps(_mm512_unpacklo_epi16(low, high)), first); \
        last = _mm512_fmadd_ps(sx, _mm512_cvtepi32_ps(_mm512_unpackhi_epi16(low, high)), last);   \
    } while (0)

/* codes: c1[64] of the block of half a pair. */
static EDB_INLINE row_sums finish_half64(row_sums sums, float sx_of_group, const uint8_t *codes,
                                         __m512i s1_low, __m512i s1_high) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 sx = _mm512_set1_ps(sx_of_group);
    __m512i c = load512(codes);
    FINISH_HALF(s1_low, _mm512_unpacklo_epi8(zero, c), sums.k0, sums.k1);
    FINISH_HALF(s1_high, _mm512_unpackhi_epi8(zero, c), sums.k2, sums.k3);
    return sums;
}
#undef FINISH_HALF

#define STORE_LANE(lane)                                                              \
    do {                                                                              \
        _mm_storeu_ps(out + 16 * (lane), _mm512_extractf32x4_ps(sums.k0, lane));      \
        _mm_storeu_ps(out + 16 * (lane) + 4, _mm512_extractf32x4_ps(sums.k1, lane));  \
        _mm_storeu_ps(out + 16 * (lane) + 8, _mm512_extractf32x4_ps(sums.k2, lane));  \
        _mm_storeu_ps(out + 16 * (lane) + 12, _mm512_extractf32x4_ps(sums.k3, lane)); \
    } while (0)

static EDB_INLINE void store_rows(float *out, row_sums sums) {
    STORE_LANE(0);
    STORE_LANE(1);
    STORE_LANE(2);
    STORE_LANE(3);
}
#undef STORE_LANE
