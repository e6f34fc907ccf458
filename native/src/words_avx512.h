/*
 * 32 numbers of 16 bits for AVX-512, as attention_int8_body.h lists them; included once the target is
 * set. Packing works inside 128-bit quarters: quarter i holds lanes 4i..4i+3 of one v16 and of another.
 */
typedef __m512i w32;

static EDB_INLINE w32 w_set1(int16_t x) { return _mm512_set1_epi16(x); }
static EDB_INLINE w32 w_load(const int16_t *p) { return _mm512_loadu_si512(p); }
static EDB_INLINE void w_store(int16_t *p, w32 x) { _mm512_storeu_si512(p, x); }

static EDB_INLINE w32 w_round_of(v16 x, v16 y) {
    return _mm512_packs_epi32(_mm512_cvtps_epi32(x), _mm512_cvtps_epi32(y));
}

static EDB_INLINE w32 w_add(w32 x, w32 y) { return _mm512_add_epi16(x, y); }
static EDB_INLINE w32 w_high(w32 x, w32 y) { return _mm512_mulhi_epu16(x, y); }
static EDB_INLINE w32 w_mean(w32 x, w32 y) { return _mm512_avg_epu16(x, y); }
static EDB_INLINE w32 w_multiply(w32 x, w32 y) { return _mm512_mulhrs_epi16(x, y); }
static EDB_INLINE w32 w_double5(w32 x) { return _mm512_slli_epi16(x, 5); }

/* Shifts beyond 15, such as by what is below 0, give 0. */
static EDB_INLINE w32 w_power(w32 u) {
    __m512i by = _mm512_sub_epi16(_mm512_srli_epi16(u, 11), _mm512_set1_epi16(17));
    return _mm512_sllv_epi16(_mm512_set1_epi16(1), by);
}

static EDB_INLINE v16 w_pairs(w32 x) {
    return _mm512_castsi512_ps(_mm512_madd_epi16(x, _mm512_set1_epi16(1)));
}

static EDB_INLINE v16 v_add_apart(v16 x) { return v_add_i32(x, _mm512_permute_ps(x, 0x4e)); }

static EDB_INLINE void w_store_i8(int8_t *p, w32 x, w32 y) {
    __m512i bytes = _mm512_packs_epi16(x, y); /* quarter i: lanes 4i..4i+3 of four vectors */
    __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}

static EDB_INLINE v16 v_of_i32(v16 x) { return _mm512_cvtepi32_ps(_mm512_castps_si512(x)); }
