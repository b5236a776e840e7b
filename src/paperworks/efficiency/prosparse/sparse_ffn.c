/* The gated feed-forward network of a few tokens at once, reading only the rows of W_up and W_down^T that a token needs:
 *
 *     h_j = g_j (<x, up_j> + b_j)  where not g_j < t_j;      y = sum_j h_j down_j
 *
 * and a matrix-vector product over all rows or over listed ones. One token is bound by the time the rows take to arrive
 * from memory, and a core gets them about twice as fast when it reads four rows at once, hence groups of four.
 *
 * The rows in use are cut into pieces that depend on nothing but their number. Threads only decide who does which
 * piece, and the sums of the pieces are added in order, so the result does not depend on the threads. */
#include <stdint.h>
#include <string.h>

#define PIECES 64 /* at most; the caller makes room for them */
#define LEAST 32  /* rows of a piece, at least; a multiple of 4 */

typedef float f32;
typedef double f64;
typedef uint16_t bf16;
typedef uint32_t __attribute__((aligned(2), may_alias)) bf16_pair;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A bfloat16 is the upper half of a float. Two neighbours are read as one word and the vectors they meet are kept with
 * the even elements first and the odd ones after, so that a shift and a mask are all it takes to unpack them. */
static inline float even(uint32_t word) { return as_float(word << 16); }
static inline float odd(uint32_t word) { return as_float(word & 0xffff0000u); }
static inline float single(bf16 value) { return as_float((uint32_t)value << 16); }

static void pack_bf16(const float *x, float *to, int64_t d) {
    int64_t half = d / 2;
    for (int64_t i = 0; i < half; i++) to[i] = x[2 * i], to[half + i] = x[2 * i + 1];
    if (d % 2) to[d - 1] = x[d - 1];
}

static void unpack_bf16(const float *x, float *to, int64_t d) {
    int64_t half = d / 2;
    for (int64_t i = 0; i < half; i++) to[2 * i] = x[i], to[2 * i + 1] = x[half + i];
    if (d % 2) to[d - 1] = x[d - 1];
}

static void dot4_bf16(const float *x, const bf16 *const *w, int64_t d, float *sums) {
    const bf16_pair *w0 = (const bf16_pair *)w[0], *w1 = (const bf16_pair *)w[1];
    const bf16_pair *w2 = (const bf16_pair *)w[2], *w3 = (const bf16_pair *)w[3];
    const float *a = x, *b = x + d / 2;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < d / 2; i++) {
        s0 += a[i] * even(w0[i]) + b[i] * odd(w0[i]);
        s1 += a[i] * even(w1[i]) + b[i] * odd(w1[i]);
        s2 += a[i] * even(w2[i]) + b[i] * odd(w2[i]);
        s3 += a[i] * even(w3[i]) + b[i] * odd(w3[i]);
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
    if (d % 2)
        for (int q = 0; q < 4; q++) sums[q] += x[d - 1] * single(w[q][d - 1]);
}

static void add4_bf16(float *y, const float *h, const bf16 *const *w, int64_t d) {
    const bf16_pair *w0 = (const bf16_pair *)w[0], *w1 = (const bf16_pair *)w[1];
    const bf16_pair *w2 = (const bf16_pair *)w[2], *w3 = (const bf16_pair *)w[3];
    float *a = y, *b = y + d / 2, h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];
#pragma omp simd
    for (int64_t i = 0; i < d / 2; i++) {
        a[i] += h0 * even(w0[i]) + h1 * even(w1[i]) + h2 * even(w2[i]) + h3 * even(w3[i]);
        b[i] += h0 * odd(w0[i]) + h1 * odd(w1[i]) + h2 * odd(w2[i]) + h3 * odd(w3[i]);
    }
    if (d % 2)
        for (int q = 0; q < 4; q++) y[d - 1] += h[q] * single(w[q][d - 1]);
}

static void add1_bf16(float *y, float h, const bf16 *w, int64_t d) {
    const bf16_pair *pairs = (const bf16_pair *)w;
    float *a = y, *b = y + d / 2;
#pragma omp simd
    for (int64_t i = 0; i < d / 2; i++) {
        a[i] += h * even(pairs[i]);
        b[i] += h * odd(pairs[i]);
    }
    if (d % 2) y[d - 1] += h * single(w[d - 1]);
}

#define DEFINE_PLAIN(T)                                                                                                \
    static void pack_##T(const T *x, T *to, int64_t d) { memcpy(to, x, (size_t)d * sizeof *x); }                       \
    static void unpack_##T(const T *x, T *to, int64_t d) { memcpy(to, x, (size_t)d * sizeof *x); }                     \
                                                                                                                       \
    static void dot4_##T(const T *x, const T *const *w, int64_t d, T *sums) {                                          \
        const T *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];                                                        \
        T s0 = 0, s1 = 0, s2 = 0, s3 = 0;                                                                              \
        _Pragma("omp simd reduction(+ : s0, s1, s2, s3)") for (int64_t i = 0; i < d; i++) {                            \
            s0 += x[i] * w0[i];                                                                                        \
            s1 += x[i] * w1[i];                                                                                        \
            s2 += x[i] * w2[i];                                                                                        \
            s3 += x[i] * w3[i];                                                                                        \
        }                                                                                                              \
        sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;                                                        \
    }                                                                                                                  \
                                                                                                                       \
    static void add4_##T(T *y, const T *h, const T *const *w, int64_t d) {                                             \
        const T *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];                                                        \
        T h0 = h[0], h1 = h[1], h2 = h[2], h3 = h[3];                                                                  \
        _Pragma("omp simd") for (int64_t i = 0; i < d; i++) y[i] +=                                                    \
            h0 * w0[i] + h1 * w1[i] + h2 * w2[i] + h3 * w3[i];                                                         \
    }                                                                                                                  \
                                                                                                                       \
    static void add1_##T(T *y, T h, const T *w, int64_t d) {                                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < d; i++) y[i] += h * w[i];                                          \
    }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* T is the type of the weights, A that of everything else. `rows_T` fills out[token, index[k]] for k < n (index NULL:
 * all rows) with <x, w_j> + bias_j; its room is tokens x d. `ffn_T` takes room for tokens x d x (1 + PIECES), and for f
 * indices. `step` is 0 for one threshold, 1 for one a row. up_bias may be NULL. With x, threshold and up NULL, h is the
 * gate itself: step 3 alone. */
#define DEFINE(T, A)                                                                                                   \
    void rows_##T(const A *x, const T *w, const A *bias, const int32_t *index, A *out, A *room, int64_t tokens,        \
                  int64_t n, int64_t d, int64_t f, int threads) {                                                      \
        for (int64_t r = 0; r < tokens; r++) pack_##T(x + r * d, room + r * d, d);                                     \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < n; k += 4) {         \
            const T *four[4];                                                                                          \
            int64_t row[4], count = smaller(4, n - k);                                                                 \
            A sums[4];                                                                                                 \
            for (int64_t q = 0; q < 4; q++) {                                                                          \
                int64_t at = k + smaller(q, count - 1);                                                                \
                row[q] = index ? index[at] : at;                                                                       \
                four[q] = w + row[q] * d;                                                                              \
            }                                                                                                          \
            for (int64_t r = 0; r < tokens; r++) {                                                                     \
                dot4_##T(room + r * d, four, d, sums);                                                                 \
                for (int64_t q = 0; q < count; q++) out[r * f + row[q]] = sums[q] + (bias ? bias[row[q]] : 0);         \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* y += the share of `count` <= 4 active rows */                                                                   \
    static void group_##T(const A *x, const A *gate, const T *up, const A *up_bias, const T *down, A *y,               \
                          const int32_t *row, int count, int64_t d) {                                                  \
        const T *four[4];                                                                                              \
        A h[4];                                                                                                        \
        if (up) {                                                                                                      \
            for (int q = 0; q < 4; q++) four[q] = up + row[q < count ? q : count - 1] * d;                             \
            dot4_##T(x, four, d, h);                                                                                   \
        }                                                                                                              \
        for (int q = 0; q < count; q++) {                                                                              \
            h[q] = gate[row[q]] * (up ? h[q] + (up_bias ? up_bias[row[q]] : 0) : 1);                                   \
            four[q] = down + row[q] * d;                                                                               \
        }                                                                                                              \
        if (count == 4)                                                                                                \
            add4_##T(y, h, four, d);                                                                                   \
        else                                                                                                           \
            for (int q = 0; q < count; q++) add1_##T(y, h[q], four[q], d);                                             \
    }                                                                                                                  \
                                                                                                                       \
    /* threshold NULL: what is not 0 is active; a NaN always is */                                                     \
    static inline int idle_##T(A gate, const A *threshold, int64_t at) {                                               \
        return threshold ? gate < threshold[at] : gate == 0;                                                           \
    }                                                                                                                  \
                                                                                                                       \
    static int64_t union_##T(const A *gate, const A *threshold, int64_t step, int32_t *index, int64_t tokens,          \
                             int64_t f) {                                                                              \
        int64_t n = 0;                                                                                                 \
        for (int64_t j = 0; j < f; j++) {                                                                              \
            int any = 0;                                                                                               \
            for (int64_t r = 0; r < tokens; r++) any |= !idle_##T(gate[r * f + j], threshold, step * j);               \
            index[n] = (int32_t)j;                                                                                     \
            n += any;                                                                                                  \
        }                                                                                                              \
        return n;                                                                                                      \
    }                                                                                                                  \
                                                                                                                       \
    void ffn_##T(const A *x, const A *gate, const A *threshold, int64_t step, const T *up, const A *up_bias,           \
                 const T *down, A *y, int32_t *index, A *room, int64_t tokens, int64_t d, int64_t f, int threads) {    \
        int64_t n = union_##T(gate, threshold, step, index, tokens, f), size = tokens * d;                             \
        int64_t length = (n + PIECES - 1) / PIECES;                                                                    \
        length = length < LEAST ? LEAST : (length + 3) / 4 * 4;                                                        \
        int64_t pieces = (n + length - 1) / length;                                                                    \
        A *packed = room, *sums = room + size;                                                                         \
        for (int64_t r = 0; up && r < tokens; r++) pack_##T(x + r * d, packed + r * d, d);                             \
        _Pragma("omp parallel for num_threads(threads) schedule(dynamic)") for (int64_t p = 0; p < pieces; p++) {      \
            memset(sums + p * size, 0, (size_t)size * sizeof *sums);                                                   \
            for (int64_t r = 0; r < tokens; r++) {                                                                     \
                const A *from = packed + r * d, *g = gate + r * f;                                                     \
                A *to = sums + p * size + r * d;                                                                       \
                int32_t row[4];                                                                                        \
                int count = 0;                                                                                         \
                for (int64_t k = p * length; k < smaller(n, (p + 1) * length); k++) {                                  \
                    if (idle_##T(g[index[k]], threshold, step * index[k])) continue;                                   \
                    row[count++] = index[k];                                                                           \
                    if (count < 4) continue;                                                                           \
                    group_##T(from, g, up, up_bias, down, to, row, count, d);                                          \
                    count = 0;                                                                                         \
                }                                                                                                      \
                if (count) group_##T(from, g, up, up_bias, down, to, row, count, d);                                   \
            }                                                                                                          \
        }                                                                                                              \
        memset(packed, 0, (size_t)size * sizeof *packed); /* x is done with: its room takes the sum of the pieces */   \
        for (int64_t p = 0; p < pieces; p++)                                                                           \
            for (int64_t i = 0; i < size; i++) packed[i] += sums[p * size + i];                                        \
        for (int64_t r = 0; r < tokens; r++) unpack_##T(packed + r * d, y + r * d, d);                                 \
    }

DEFINE_PLAIN(f32)
DEFINE_PLAIN(f64)
DEFINE(f32, f32)
DEFINE(f64, f64)
DEFINE(bf16, f32)
