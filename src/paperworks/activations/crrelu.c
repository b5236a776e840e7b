/* CRReLU(x) = max(0, x) + eps x exp(-x^2 / 2) and its gradient, one pass each over tensors seen as (outer, channels,
 * inner) with one eps a channel. A single eps is channels = 1; channels-last memory is inner = 1.
 *
 * d eps is summed in two stages: float sums over pieces whose limits depend only on the shape, then double sums over
 * the pieces in their order. The threads only decide who does which piece, so the result does not depend on them. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PIECE 4096 /* elements of one partial sum where a row is long */
#define ROWS 64    /* rows of one partial sum where inner = 1 */

typedef uint16_t bf16;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float load_f32(float value) { return value; }
static inline float store_f32(float value) { return value; }
static inline float load_bf16(bf16 value) { return as_float((uint32_t)value << 16); }

static inline bf16 store_bf16(float value) { /* to nearest, ties to even; a NaN stays one */
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bf16)(value != value ? 0x7fc0u : rounded);
}

/* exp(-x^2 / 2) by 2^n 2^r, |r| <= 1/2, the second factor a polynomial of relative error 2e-9. Exactly 0 where the
 * value would be below 2^-126 (|x| > 13.2). Written out because `expf` has a vector version on some systems only. */
static inline float bell(float x) {
    float a = x * x * -0.72134752044448170f; /* -log2(e) / 2 */
    float inside = a < -126.0f ? -126.0f : a;
    float n = rintf(inside);
    float r = inside - n;
    float p = 1.5345812425925e-4f;
    p = p * r + 1.3399930903688e-3f;
    p = p * r + 9.6184890717268e-3f;
    p = p * r + 5.5503286421299e-2f;
    p = p * r + 2.4022646248341e-1f;
    p = p * r + 6.9314718246460e-1f;
    p = p * r + 1.0f;
    float scaled = as_float((uint32_t)((int32_t)n + 127) << 23) * p;
    return a < -126.0f ? 0.0f : (x != x ? x : scaled);
}

/* Where the bell is 0 its product with x is 0 too, infinite x included. */
static inline float correction(float x, float e) { return e == 0.0f ? 0.0f : x * e; }
static inline float slope(float x, float e) { return e == 0.0f ? 0.0f : (1.0f - x * x) * e; }

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* In the backward pass `partial` has room for every piece: channels x (blocks of ROWS rows, or outer x pieces). With
 * `uniform` g is one value, repeated over a piece (or a row of channels). */
#define DEFINE(T)                                                                                                      \
    static void row_forward_##T(const T##_t *x, float eps, T##_t *y, int64_t n) {                                      \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float v = load_##T(x[i]);                                                                                  \
            y[i] = store_##T((v > 0.0f ? v : 0.0f) + eps * correction(v, bell(v)));                                    \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static float row_backward_##T(const T##_t *x, const T##_t *g, float eps, T##_t *dx, int64_t n) {                   \
        float sum = 0.0f;                                                                                              \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) {                                       \
            float v = load_##T(x[i]), u = load_##T(g[i]), e = bell(v);                                                 \
            dx[i] = store_##T(u * ((v > 0.0f ? 1.0f : 0.0f) + eps * slope(v, e)));                                     \
            sum += u * correction(v, e);                                                                               \
        }                                                                                                              \
        return sum;                                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    void crrelu_forward_##T(const T##_t *x, const float *eps, T##_t *y, int64_t outer, int64_t channels,               \
                            int64_t inner, int threads) {                                                              \
        if (inner == 1) {                                                                                              \
            _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t o = 0; o < outer; o++) {    \
                const T##_t *from = x + o * channels;                                                                  \
                T##_t *to = y + o * channels;                                                                          \
                _Pragma("omp simd") for (int64_t c = 0; c < channels; c++) {                                           \
                    float v = load_##T(from[c]);                                                                       \
                    to[c] = store_##T((v > 0.0f ? v : 0.0f) + eps[c] * correction(v, bell(v)));                        \
                }                                                                                                      \
            }                                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        int64_t pieces = (inner + PIECE - 1) / PIECE, items = outer * channels * pieces;                               \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < items; k++) {        \
            int64_t row = k / pieces, begin = k % pieces * PIECE, at = row * inner + begin;                            \
            row_forward_##T(x + at, eps[row % channels], y + at, smaller(PIECE, inner - begin));                       \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void crrelu_backward_##T(const T##_t *x, const T##_t *g, const float *eps, T##_t *dx, float *partial, float *deps, \
                             int64_t outer, int64_t channels, int64_t inner, int uniform, int threads) {               \
        int64_t pieces = inner == 1 ? 1 : (inner + PIECE - 1) / PIECE;                                                 \
        int64_t blocks = inner == 1 ? (outer + ROWS - 1) / ROWS : outer;                                               \
        if (inner == 1) {                                                                                              \
            _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t b = 0; b < blocks; b++) {   \
                float *sum = partial + b * channels;                                                                   \
                memset(sum, 0, (size_t)channels * sizeof *sum);                                                        \
                for (int64_t o = b * ROWS; o < smaller(outer, (b + 1) * ROWS); o++) {                                  \
                    int64_t at = o * channels, g_at = uniform ? 0 : at;                                                \
                    _Pragma("omp simd") for (int64_t c = 0; c < channels; c++) {                                       \
                        float v = load_##T(x[at + c]), u = load_##T(g[g_at + c]), e = bell(v);                         \
                        dx[at + c] = store_##T(u * ((v > 0.0f ? 1.0f : 0.0f) + eps[c] * slope(v, e)));                 \
                        sum[c] += u * correction(v, e);                                                                \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        } else {                                                                                                       \
            int64_t items = outer * channels * pieces;                                                                 \
            _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < items; k++) {    \
                int64_t row = k / pieces, begin = k % pieces * PIECE, at = row * inner + begin;                        \
                partial[k] = row_backward_##T(x + at, uniform ? g : g + at, eps[row % channels], dx + at,              \
                                              smaller(PIECE, inner - begin));                                          \
            }                                                                                                          \
        }                                                                                                              \
        for (int64_t c = 0; c < channels; c++) {                                                                       \
            double sum = 0.0;                                                                                          \
            for (int64_t b = 0; b < blocks; b++)                                                                       \
                for (int64_t k = 0; k < pieces; k++) sum += partial[(b * channels + c) * pieces + k];                  \
            deps[c] = (float)sum;                                                                                      \
        }                                                                                                              \
    }

typedef float f32_t;
typedef bf16 bf16_t;
DEFINE(f32)
DEFINE(bf16)
