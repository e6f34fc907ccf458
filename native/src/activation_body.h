/*
 * Functions of each element by itself, over the vector layer of ops_body.h and its v_exp. A NaN
 * stays one.
 */

/* x / (1 + e^-z) */
static EDB_INLINE v16 let_through(v16 x, v16 z) {
    return v_div(x, v_add(v_set1(1.0f), v_exp(v_sub(v_set1(0.0f), z))));
}

/* x/2 (1 + tanh u) = x / (1 + e^-2u) with 2u = 2 sqrt(2/pi) (x + 0.044715 x^3). */
static EDB_INLINE v16 gelu_tanh(v16 x) {
    v16 slope = v_fma(v_mul(x, x), v_set1(0x1.2444f2p-4f), v_set1(0x1.988454p0f));
    return let_through(x, v_mul(x, slope));
}

static EDB_INLINE v16 relu(v16 x) { return v_max(v_set1(0.0f), x); }

/*
 * x times the normal distribution: x for x > 0, less |x| times the tail beyond |x|, which is
 * e^(-x^2/2) t p(t) with t = 1 / (1 + |x|/4). p is fitted to the relative error for |x| <= 14, 8e-9;
 * beyond, the tail is nothing. With the rounding of every step: 5e-7 from -3 on.
 */
static EDB_INLINE v16 gelu(v16 x) {
    v16 size = v_abs(x), one = v_set1(1.0f);
    v16 t = v_div(one, v_fma(size, v_set1(0.25f), one));
    v16 p = v_set1(0x1.0fa496p-6f);
    p = v_fma(p, t, v_set1(-0x1.0132f6p-4f));
    p = v_fma(p, t, v_set1(0x1.a72562p-5f));
    p = v_fma(p, t, v_set1(0x1.d1deccp-6f));
    p = v_fma(p, t, v_set1(0x1.a09220p-7f));
    p = v_fma(p, t, v_set1(0x1.62f1fcp-4f));
    p = v_fma(p, t, v_set1(0x1.26e8ecp-4f));
    p = v_fma(p, t, v_set1(0x1.873b7ep-4f));
    p = v_fma(p, t, v_set1(0x1.978582p-4f));
    p = v_fma(p, t, v_set1(0x1.989142p-4f));
    v16 tail = v_mul(v_mul(t, p), v_exp(v_mul(v_mul(size, v_set1(-0.5f)), size)));
    return v_sub(relu(x), v_mul(size, tail));
}

static EDB_INLINE v16 activated(int32_t activation, v16 x) {
    switch (activation) {
    case EDB_OP_GELU_TANH: return gelu_tanh(x);
    case EDB_OP_GELU: return gelu(x);
    case EDB_OP_RELU: return relu(x);
    default: return let_through(x, x); /* EDB_OP_SILU */
    }
}

/* Does `call` with `constant` for the activation, so that each has a loop of its own. */
#define WITH_CONSTANT(value, call) \
    {                              \
        enum { constant = value }; \
        call;                      \
        break;                     \
    }
#define FOR_ACTIVATION(activation, call)                              \
    switch (activation) {                                             \
    case EDB_OP_GELU_TANH: WITH_CONSTANT(EDB_OP_GELU_TANH, call)      \
    case EDB_OP_GELU: WITH_CONSTANT(EDB_OP_GELU, call)                \
    case EDB_OP_RELU: WITH_CONSTANT(EDB_OP_RELU, call)                \
    default: WITH_CONSTANT(EDB_OP_SILU, call)                         \
    }
