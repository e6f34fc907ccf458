/* How rows of an int8 cache are packed (attention_body.h), for AVX2 and AVX-512; included once the target is set. */
#define OWN_PACKING

static inline __m128i row16(const int8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

/* Rows i and i + 4, sixteen bytes of each. */
static inline __m256i rows_of(const int8_t *rows, int64_t stride, int i) {
    __m256i first = _mm256_castsi128_si256(row16(rows + i * stride));
    return _mm256_inserti128_si256(first, row16(rows + (i + 4) * stride), 1);
}

/* The dwords of eight rows: unpacking inside the two lanes leaves rows 0..3 and 4..7 in order. */
static inline void transpose_8_keys(const int8_t *rows, int64_t stride, int8_t *codes) {
    for (int column = 0; column < EDB_GROUP; column += 16, rows += 16) {
        __m256i a = rows_of(rows, stride, 0), b = rows_of(rows, stride, 1);
        __m256i c = rows_of(rows, stride, 2), d = rows_of(rows, stride, 3);
        __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
        __m256i *out = (__m256i *)(void *)(codes + EDB_TILE * column);
        _mm256_storeu_si256(out, _mm256_unpacklo_epi64(ab, cd));
        _mm256_storeu_si256(out + 8, _mm256_unpackhi_epi64(ab, cd));
        ab = _mm256_unpackhi_epi32(a, b);
        cd = _mm256_unpackhi_epi32(c, d);
        _mm256_storeu_si256(out + 16, _mm256_unpacklo_epi64(ab, cd));
        _mm256_storeu_si256(out + 24, _mm256_unpackhi_epi64(ab, cd));
    }
}

static inline void transpose_16_keys(const int8_t *rows, int64_t stride, int8_t *codes) {
    transpose_8_keys(rows, stride, codes);
    transpose_8_keys(rows + 8 * stride, stride, codes + 32);
}

#ifndef OWN_INTERLEAVING
static inline void interleave_4_values(const int8_t *rows, int64_t stride, int8_t *codes) {
    for (int column = 0; column < EDB_GROUP; column += 16, rows += 16, codes += 64) {
        __m128i a = row16(rows), b = row16(rows + stride);
        __m128i c = row16(rows + 2 * stride), d = row16(rows + 3 * stride);
        __m128i *out = (__m128i *)(void *)codes;
        __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
        _mm_storeu_si128(out, _mm_unpacklo_epi16(ab, cd));
        _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(ab, cd));
        ab = _mm_unpackhi_epi8(a, b);
        cd = _mm_unpackhi_epi8(c, d);
        _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(ab, cd));
        _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(ab, cd));
    }
}
#endif
