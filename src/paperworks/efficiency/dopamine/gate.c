/* h = gain phi(z) g(z), g = 1 / (1 + exp(-s (z - tau))) or 1[z > tau], and its gradients, one pass each over tensors
 * seen as (outer, channels, inner). tau and gain are (rows, channels): the outer index is cut into `rows` equal runs,
 * one a sample where every sample has its own mode. Activations that are not computed here are given as `phi`.
 *
 * d tau and d gain are summed in float over blocks whose limits depend only on the shape and then in double over the
 * blocks in their order, so the result does not depend on the number of threads. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define ROWS 64 /* rows of one partial sum where inner = 1 */

enum { GIVEN, RELU, GELU, GELU_TANH, SILU };

typedef float f32_t;
typedef uint16_t bf16_t;

#define INLINE static inline __attribute__((always_inline))

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float load_f32(float value) { return value; }
INLINE float store_f32(float value) { return value; }
INLINE float load_bf16(bf16_t value) { return as_float((uint32_t)value << 16); }

INLINE bf16_t store_bf16(float value) { /* to nearest, ties to even; a NaN stays one */
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bf16_t)(value != value ? 0x7fc0u : rounded);
}

/* 2^n 2^r with |r| <= 1/2, the second factor a polynomial: written out because `expf` has a vector version on some
 * systems only. Ends at 2^-126 and 2^127. */
INLINE float exponential(float x) {
    float a = x * 1.4426950408889634f;
    a = a < -126.0f ? -126.0f : a;
    a = a > 127.0f ? 127.0f : a;
    float n = rintf(a), r = a - n;
    float p = 1.5345812425925e-4f;
    p = p * r + 1.3399930903688e-3f;
    p = p * r + 9.6184890717268e-3f;
    p = p * r + 5.5503286421299e-2f;
    p = p * r + 2.4022646248341e-1f;
    p = p * r + 6.9314718246460e-1f;
    p = p * r + 1.0f;
    return as_float((uint32_t)((int32_t)n + 127) << 23) * p;
}

INLINE float logistic(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* phi(z), and its derivative where it is wanted. `kind` is a constant at every call, so one branch is left. */
INLINE float activation(int kind, float z, float given, float *slope) {
    if (kind == RELU) {
        *slope = z > 0.0f ? 1.0f : 0.0f;
        return z < 0.0f ? 0.0f : z;
    }
    if (kind == SILU) {
        float c = logistic(z);
        *slope = c + z * c * (1.0f - c);
        return z * c;
    }
    if (kind == GELU_TANH) { /* (1 + tanh u) / 2 is the logistic function of 2 u */
        float near = z < -20.0f ? -20.0f : (z > 20.0f ? 20.0f : z), square = near * near;
        float c = logistic(1.5957691216057308f * near * (1.0f + 0.044715f * square));
        *slope = c + near * c * (1.0f - c) * 1.5957691216057308f * (1.0f + 0.134145f * square);
        return z * c;
    }
    if (kind == GELU) { /* erfc by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7 */
        float size = z < 0.0f ? -z : z, bell = exponential(-0.5f * z * z);
        float t = 1.0f / (1.0f + 0.23164188f * size);
        float p = 1.061405429f;
        p = p * t - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        float tail = 0.5f * p * t * bell;
        float c = z < 0.0f ? tail : 1.0f - tail;
        *slope = c + (size > 40.0f ? 0.0f : z * bell * 0.3989422804014327f);
        return z * c;
    }
    *slope = 0.0f;
    return given;
}

INLINE float gate(int hard, float z, float tau, float s, float *slope) {
    if (hard) {
        *slope = 0.0f;
        return z > tau ? 1.0f : 0.0f;
    }
    float g = logistic(s * (z - tau));
    *slope = s * g * (1.0f - g);
    return g;
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* dphi is written for GIVEN only. Gradients of tau and gain are added to sums of the channel. */
#define DEFINE_LOOPS(T)                                                                                                \
    INLINE void forward_loop_##T(int kind, int hard, const T##_t *z, const T##_t *phi, const float *tau,               \
                                 const float *gain, int64_t step, float s, T##_t *y, int64_t n) {                      \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float v = load_##T(z[i]), unused;                                                                          \
            float a = activation(kind, v, kind == GIVEN ? load_##T(phi[i]) : 0.0f, &unused);                           \
            y[i] = store_##T(gain[i * step] * a * gate(hard, v, tau[i * step], s, &unused));                           \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE void backward_loop_##T(int kind, int hard, const T##_t *z, const T##_t *phi, const T##_t *g,                \
                                  const float *tau, const float *gain, float s, T##_t *dz, T##_t *dphi, float *dtau,   \
                                  float *dgain, int64_t n) {                                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float v = load_##T(z[i]), u = load_##T(g[i]), slope, steep;                                                \
            float a = activation(kind, v, kind == GIVEN ? load_##T(phi[i]) : 0.0f, &slope);                            \
            float open = gate(hard, v, tau[i], s, &steep);                                                             \
            float w = u * gain[i], through = w * a * steep;                                                            \
            dgain[i] += u * a * open;                                                                                  \
            dtau[i] -= through;                                                                                        \
            dz[i] = store_##T(w * slope * open + through);                                                             \
            if (kind == GIVEN) dphi[i] = store_##T(w * open);                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE void channel_loop_##T(int kind, int hard, const T##_t *z, const T##_t *phi, const T##_t *g, float tau,      \
                                 float gain, float s, T##_t *dz, T##_t *dphi, float *dtau, float *dgain, int64_t n) {  \
        float by_tau = 0.0f, by_gain = 0.0f;                                                                           \
        _Pragma("omp simd reduction(+ : by_tau, by_gain)") for (int64_t i = 0; i < n; i++) {                           \
            float v = load_##T(z[i]), u = load_##T(g[i]), slope, steep;                                                \
            float a = activation(kind, v, kind == GIVEN ? load_##T(phi[i]) : 0.0f, &slope);                            \
            float open = gate(hard, v, tau, s, &steep);                                                                \
            float w = u * gain, through = w * a * steep;                                                               \
            by_gain += u * a * open;                                                                                   \
            by_tau -= through;                                                                                         \
            dz[i] = store_##T(w * slope * open + through);                                                             \
            if (kind == GIVEN) dphi[i] = store_##T(w * open);                                                          \
        }                                                                                                              \
        *dtau = by_tau, *dgain = by_gain;                                                                              \
    }

/* The loops are inlined here, once for each constant kind and gate, so that none branches inside. */
#define EACH(LOOP, ...)                                                                                                \
    switch (what) {                                                                                                    \
        CASE(LOOP, GIVEN, __VA_ARGS__)                                                                                 \
        CASE(LOOP, RELU, __VA_ARGS__)                                                                                  \
        CASE(LOOP, GELU, __VA_ARGS__)                                                                                  \
        CASE(LOOP, GELU_TANH, __VA_ARGS__)                                                                             \
        CASE(LOOP, SILU, __VA_ARGS__)                                                                                  \
    }

#define CASE(LOOP, KIND, ...)                                                                                          \
    case 2 * KIND: LOOP(KIND, 0, __VA_ARGS__); break;                                                                  \
    case 2 * KIND + 1: LOOP(KIND, 1, __VA_ARGS__); break;

#define DEFINE(T)                                                                                                      \
    DEFINE_LOOPS(T)                                                                                                    \
                                                                                                                       \
    static void forward_line_##T(int what, const T##_t *z, const T##_t *phi, const float *tau, const float *gain,      \
                                 int64_t step, float s, T##_t *y, int64_t n) {                                         \
        if (step) EACH(forward_loop_##T, z, phi, tau, gain, 1, s, y, n)                                                \
        else EACH(forward_loop_##T, z, phi, tau, gain, 0, s, y, n)                                                     \
    }                                                                                                                  \
                                                                                                                       \
    static void backward_line_##T(int what, const T##_t *z, const T##_t *phi, const T##_t *g, const float *tau,        \
                                  const float *gain, float s, T##_t *dz, T##_t *dphi, float *dtau, float *dgain,       \
                                  int64_t n) {                                                                         \
        EACH(backward_loop_##T, z, phi, g, tau, gain, s, dz, dphi, dtau, dgain, n)                                     \
    }                                                                                                                  \
                                                                                                                       \
    static void backward_channel_##T(int what, const T##_t *z, const T##_t *phi, const T##_t *g, float tau, float gain, \
                                     float s, T##_t *dz, T##_t *dphi, float *dtau, float *dgain, int64_t n) {          \
        EACH(channel_loop_##T, z, phi, g, tau, gain, s, dz, dphi, dtau, dgain, n)                                      \
    }                                                                                                                  \
                                                                                                                       \
    void gate_forward_##T(int kind, int hard, const T##_t *z, const T##_t *phi, const float *tau, const float *gain,   \
                          T##_t *y, int64_t rows, int64_t outer, int64_t channels, int64_t inner, float s,             \
                          int threads) {                                                                               \
        int64_t items = inner == 1 ? outer : outer * channels, n = inner == 1 ? channels : inner;                      \
        int64_t run = outer / rows, given = kind == GIVEN;                                                             \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < items; k++) {        \
            int64_t o = inner == 1 ? k : k / channels, c = inner == 1 ? 0 : k % channels, at = k * n;                  \
            const float *t = tau + o / run * channels + c, *a = gain + o / run * channels + c;                         \
            forward_line_##T(2 * kind + hard, z + at, phi + given * at, t, a, inner == 1, s, y + at, n);               \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void gate_backward_##T(int kind, int hard, const T##_t *z, const T##_t *phi, const T##_t *g, const float *tau,     \
                           const float *gain, T##_t *dz, T##_t *dphi, float *partial, float *dtau, float *dgain,       \
                           int64_t rows, int64_t outer, int64_t channels, int64_t inner, float s, int threads) {       \
        int64_t run = outer / rows, blocks = inner == 1 ? (run + ROWS - 1) / ROWS : run;                               \
        int64_t items = rows * blocks, given = kind == GIVEN;                                                          \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < items; k++) {        \
            int64_t row = k / blocks, b = k % blocks;                                                                  \
            const float *t = tau + row * channels, *a = gain + row * channels;                                         \
            float *by_tau = partial + 2 * k * channels, *by_gain = by_tau + channels;                                  \
            if (inner == 1) {                                                                                          \
                memset(by_tau, 0, 2 * (size_t)channels * sizeof *by_tau);                                              \
                for (int64_t o = b * ROWS; o < smaller(run, (b + 1) * ROWS); o++) {                                    \
                    int64_t at = (row * run + o) * channels, at_phi = given * at;                                      \
                    backward_line_##T(2 * kind + hard, z + at, phi + at_phi, g + at, t, a, s, dz + at, dphi + at_phi,  \
                                      by_tau, by_gain, channels);                                                      \
                }                                                                                                      \
            } else {                                                                                                   \
                for (int64_t c = 0; c < channels; c++) {                                                               \
                    int64_t at = (k * channels + c) * inner, at_phi = given * at;                                      \
                    backward_channel_##T(2 * kind + hard, z + at, phi + at_phi, g + at, t[c], a[c], s, dz + at,        \
                                         dphi + at_phi, by_tau + c, by_gain + c, inner);                               \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (int64_t row = 0; row < rows; row++)                                                                       \
            for (int64_t c = 0; c < channels; c++) {                                                                   \
                double by_tau = 0.0, by_gain = 0.0;                                                                    \
                for (int64_t b = 0; b < blocks; b++) {                                                                 \
                    const float *sums = partial + 2 * (row * blocks + b) * channels;                                   \
                    by_tau += sums[c], by_gain += sums[channels + c];                                                  \
                }                                                                                                      \
                dtau[row * channels + c] = (float)by_tau, dgain[row * channels + c] = (float)by_gain;                  \
            }                                                                                                          \
    }

DEFINE(f32)
DEFINE(bf16)
