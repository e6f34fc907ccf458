/*
 * The end of a group, shared by the kernels for AVX2; included once the target is set. Of pairs 32 rows
 * go together: unpacking works inside 128-bit halves: S1, S2 come as words of rows 0-7, 16-23 (low) and
 * 8-15, 24-31 (high), and acc holds rows 0-3 16-19 | 4-7 20-23 | 8-11 24-27 | 12-15 28-31.
 */
static EDB_INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* acc += sx * (c1*S1 + c2*S2) for the eight rows whose S1, S2 and (c1, c2) << 8 are interleaved. */
static EDB_INLINE void finish8(float *acc, __m256 sx, __m256i s, __m256i c_high) {
    __m256i sum = _mm256_madd_epi16(s, _mm256_srai_epi16(c_high, 8));
    _mm256_store_ps(acc, _mm256_fmadd_ps(sx, _mm256_cvtepi32_ps(sum), _mm256_load_ps(acc)));
}

/* One half of finish32: s1, s2 of its sixteen rows, c their interleaved bytes of c1 and c2. */
static EDB_INLINE void finish16(float *acc, __m256 sx, __m256i s1, __m256i s2, __m256i c) {
    const __m256i zero = _mm256_setzero_si256();
    finish8(acc, sx, _mm256_unpacklo_epi16(s1, s2), _mm256_unpacklo_epi8(zero, c));
    finish8(acc + 8, sx, _mm256_unpackhi_epi16(s1, s2), _mm256_unpackhi_epi8(zero, c));
}

/* Of half a pair, acc += sx * c1*S1 for sixteen rows: s1, and c_high their c1 << 8. */
static EDB_INLINE void finish_half16(float *acc, __m256 sx, __m256i s1, __m256i c_high) {
    __m256i c1 = _mm256_srai_epi16(c_high, 8);
    __m256i low = _mm256_mullo_epi16(s1, c1), high = _mm256_mulhi_epi16(s1, c1);
    __m256 first = _mm256_cvtepi32_ps(_mm256_unpacklo_epi16(low, high));
    __m256 last = _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(low, high));
    _mm256_store_ps(acc, _mm256_fmadd_ps(sx, first, _mm256_load_ps(acc)));
    _mm256_store_ps(acc + 8, _mm256_fmadd_ps(sx, last, _mm256_load_ps(acc + 8)));
}

/* acc of 64 rows, aligned to 32 bytes, back to consecutive rows. */
static EDB_INLINE void store_rows(float *out, const float *acc) {
    for (int slice = 0; slice < EDB_TILE; slice += 32) {
        for (int i = 0; i < 16; i += 8) {
            const float *from = acc + slice + 2 * i;
            for (int half = 0; half < 2; half++) {
                _mm_storeu_ps(out + slice + i + 16 * half, _mm_load_ps(from + 4 * half));
                _mm_storeu_ps(out + slice + i + 4 + 16 * half, _mm_load_ps(from + 8 + 4 * half));
            }
        }
    }
}

/* acc += sx * scales * dots for eight rows; scales: NULL, or of these rows. */
static EDB_INLINE void finish_dots(float *acc, __m256i dots, float sx, const float *scales) {
    __m256 scale = _mm256_set1_ps(sx);
    if (scales != NULL) scale = _mm256_mul_ps(scale, _mm256_loadu_ps(scales));
    __m256 sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots), _mm256_loadu_ps(acc));
    _mm256_storeu_ps(acc, sum);
}
