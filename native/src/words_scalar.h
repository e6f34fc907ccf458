/* 32 numbers of 16 bits as attention_int8_body.h lists them, in order and in plain C. */
enum { WORDS = 2 * EDB_LANES };

typedef struct {
    int16_t lane[WORDS];
} w32;

#define EACH_WORD(expression)                                          \
    w32 y;                                                             \
    for (int l = 0; l < WORDS; l++) y.lane[l] = (int16_t)(expression); \
    return y

static inline w32 w_set1(int16_t a) { EACH_WORD(a); }

static inline w32 w_load(const int16_t *p) {
    w32 a;
    memcpy(a.lane, p, sizeof a.lane);
    return a;
}

static inline void w_store(int16_t *p, w32 a) { memcpy(p, a.lane, sizeof a.lane); }

static inline int16_t rounded_word(float x) {
    if (!(x > -32768.0f)) return -32768; /* so is NaN */
    return x >= 32767.0f ? 32767 : (int16_t)rintf(x);
}

static inline w32 w_round_of(v16 a, v16 b) {
    EACH_WORD(rounded_word(l < EDB_LANES ? a.lane[l] : b.lane[l - EDB_LANES]));
}

/* Without a sign. */
static inline uint32_t word(w32 a, int l) { return (uint16_t)a.lane[l]; }

static inline w32 w_add(w32 a, w32 b) { EACH_WORD(word(a, l) + word(b, l)); }
static inline w32 w_high(w32 a, w32 b) { EACH_WORD(word(a, l) * word(b, l) >> 16); }
static inline w32 w_mean(w32 a, w32 b) { EACH_WORD((word(a, l) + word(b, l) + 1) >> 1); }
static inline w32 w_multiply(w32 a, w32 b) { EACH_WORD((a.lane[l] * b.lane[l] + (1 << 14)) >> 15); }
static inline w32 w_double5(w32 a) { EACH_WORD(word(a, l) << 5); }
static inline w32 w_power(w32 u) { EACH_WORD(word(u, l) >> 11 > 16 ? 1 << ((word(u, l) >> 11) - 17) : 0); }

static inline float bits_of_sum(int32_t a, int32_t b) { return bits_float((uint32_t)(a + b)); }

static inline v16 w_pairs(w32 a) { EACH_LANE(bits_of_sum(a.lane[2 * l], a.lane[2 * l + 1])); }

static inline v16 v_add_apart(v16 a) {
    const int half = EDB_LANES / 2;
    EACH_LANE(bits_float(edb_float_bits(a.lane[l]) + edb_float_bits(a.lane[(l + half) % EDB_LANES])));
}

static inline void w_store_i8(int8_t *p, w32 a, w32 b) {
    for (int l = 0; l < WORDS; l++) {
        p[l] = (int8_t)a.lane[l];
        p[WORDS + l] = (int8_t)b.lane[l];
    }
}

static inline v16 v_of_i32(v16 a) { EACH_LANE((float)(int32_t)edb_float_bits(a.lane[l])); }
