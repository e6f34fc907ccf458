/*
 * 32 numbers of 16 bits for AVX2, as attention_int8_body.h lists them; included once the target is set.
 * Packing works inside 128-bit halves, so each register holds lanes 0-3, 8-11 | 4-7, 12-15 of a v16.
 */
typedef struct {
    __m256i a, b; /* of the first v16, of the second */
} w32;

#define BOTH_WORDS(operation, x, y) BOTH_OF(w32, operation, x, y)

static EDB_INLINE w32 w_set1(int16_t x) { return (w32){_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
static EDB_INLINE w32 w_load(const int16_t *p) {
    return (w32){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 16))};
}
static EDB_INLINE void w_store(int16_t *p, w32 x) {
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)(p + 16), x.b);
}

static EDB_INLINE __m256i round_16(v16 x) {
    return _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
}
static EDB_INLINE w32 w_round_of(v16 x, v16 y) { return (w32){round_16(x), round_16(y)}; }

static EDB_INLINE w32 w_add(w32 x, w32 y) { return BOTH_WORDS(_mm256_add_epi16, x, y); }
static EDB_INLINE w32 w_high(w32 x, w32 y) { return BOTH_WORDS(_mm256_mulhi_epu16, x, y); }
static EDB_INLINE w32 w_mean(w32 x, w32 y) { return BOTH_WORDS(_mm256_avg_epu16, x, y); }
static EDB_INLINE w32 w_multiply(w32 x, w32 y) { return BOTH_WORDS(_mm256_mulhrs_epi16, x, y); }
static EDB_INLINE w32 w_double5(w32 x) {
    return (w32){_mm256_slli_epi16(x.a, 5), _mm256_slli_epi16(x.b, 5)};
}

/* With m = n + 16: 2^(m - 1) is in the low byte for m of 1 to 8, then in the high one. */
static EDB_INLINE __m256i power_16(__m256i u) {
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0));
    __m256i twice = _mm256_mullo_epi16(_mm256_srli_epi16(u, 11), _mm256_set1_epi16(0x0101));
    /* 16 + m in both bytes, m - 8 in the high one: below 0 there is 0 */
    return _mm256_shuffle_epi8(bytes, _mm256_sub_epi16(twice, _mm256_set1_epi16(24 << 8)));
}
static EDB_INLINE w32 w_power(w32 u) { return (w32){power_16(u.a), power_16(u.b)}; }

static EDB_INLINE __m256 pairs_16(__m256i x) {
    return _mm256_castsi256_ps(_mm256_madd_epi16(x, _mm256_set1_epi16(1)));
}
static EDB_INLINE v16 w_pairs(w32 x) { return (v16){pairs_16(x.a), pairs_16(x.b)}; }

static EDB_INLINE v16 v_add_apart(v16 x) {
    __m256 sum = add_i32(x.a, x.b);
    return (v16){sum, sum};
}

static EDB_INLINE __m256i bytes_of(w32 x) {
    __m256i bytes = _mm256_packs_epi16(x.a, x.b); /* 0-3 8-11 16-19 24-27 | 4-7 12-15 20-23 28-31 */
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
static EDB_INLINE void w_store_i8(int8_t *p, w32 x, w32 y) {
    _mm256_storeu_si256((__m256i *)p, bytes_of(x));
    _mm256_storeu_si256((__m256i *)(p + 32), bytes_of(y));
}

static EDB_INLINE v16 v_of_i32(v16 x) {
    return (v16){_mm256_cvtepi32_ps(_mm256_castps_si256(x.a)),
                 _mm256_cvtepi32_ps(_mm256_castps_si256(x.b))};
}
