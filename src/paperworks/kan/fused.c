/* The basis functions of a Kolmogorov-Arnold layer for a block of rows, and what their gradient sends back to the input.
 *
 * x is (rows, width), contiguous. Of each row the `n` inputs in `columns` (all of them, in order, where it is null) are
 * squashed to u and expanded to K functions: tile[(row * width + column) * K + k]. The matrix product with the
 * coefficients is the caller's. Backward takes the gradient of the tile and adds to dx; the functions' slopes are
 * computed again from x, so that nothing but x has to be kept.
 *
 * Work goes in blocks of W inputs, a vector along the inputs and a loop over the functions. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define W 32
#define PI 3.14159265358979324f
#define HAT 0.86732507058407751f /* 2 / (sqrt 3 pi^(1/4)) */

enum { SILU, BSPLINE, CHEBYSHEV, FOURIER, RBF, WAVELET };
enum { TANH, CLAMP };

typedef float vector __attribute__((vector_size(32), aligned(4), may_alias)); /* eight floats, anywhere */

#define EACH _Pragma("omp simd") for (int i = 0; i < W; i++)

/* exp(a) for a <= 0 by 2^n 2^r, |r| <= 1/2, relative error 2e-9; exactly 0 below 2^-126. NaN stays NaN. Written out
 * because `expf` has a vector version on some systems only. */
static inline float decay(float a) {
    float b = a * 1.44269504088896341f;
    float inside = b < -126.0f ? -126.0f : b;
    float n = rintf(inside), r = inside - n;
    float p = 1.5345812425925e-4f;
    p = p * r + 1.3399930903688e-3f;
    p = p * r + 9.6184890717268e-3f;
    p = p * r + 5.5503286421299e-2f;
    p = p * r + 2.4022646248341e-1f;
    p = p * r + 6.9314718246460e-1f;
    p = p * r + 1.0f;
    union { int32_t bits; float value; } power = {((int32_t)n + 127) << 23};
    return b < -126.0f ? 0.0f : power.value * p;
}

/* sin(pi u) and cos(pi u) for |u| <= 1: reduced to |r| <= 1/2, Taylor polynomials of absolute error 7e-9. */
static inline void turn(float u, float *sine, float *cosine) {
    float n = rintf(u), r = u - n, q = r * r, sign = n == 0.0f ? 1.0f : -1.0f;
    float s = 4.663028058e-4f * q - 7.370430946e-3f;
    s = s * q + 8.214588661e-2f;
    s = s * q - 5.992645293e-1f;
    s = s * q + 2.550164040e0f;
    s = s * q - 5.167712780e0f;
    s = s * q + PI;
    float c = -1.046381049e-4f * q + 1.929574309e-3f;
    c = c * q - 2.580689139e-2f;
    c = c * q + 2.353306304e-1f;
    c = c * q - 1.335262769e0f;
    c = c * q + 4.058712126e0f;
    c = c * q - 4.934802201e0f;
    c = c * q + 1.0f;
    *sine = sign * (s * r);
    *cosine = sign * c;
}

static inline float sigmoid(float x) {
    float e = decay(x < 0.0f ? x : -x), larger = 1.0f / (1.0f + e);
    return x < 0.0f ? e * larger : larger;
}

/* u and du/dx. */
static void squashed(const float *x, int squash, float *u, float *slope) {
    if (squash == CLAMP) {
        EACH {
            u[i] = x[i] < -1.0f ? -1.0f : (x[i] > 1.0f ? 1.0f : x[i]);
            slope[i] = x[i] < -1.0f || x[i] > 1.0f ? 0.0f : 1.0f;
        }
        return;
    }
    EACH {
        float e = decay(x[i] < 0.0f ? 2.0f * x[i] : -2.0f * x[i]), t = (1.0f - e) / (1.0f + e);
        u[i] = x[i] < 0.0f ? -t : t;
        slope[i] = 1.0f - t * t;
    }
}

static inline float above(float a) { return a < 0.0f ? 0.0f : a; } /* a NaN stays one */

/* f[k * W + i] = B_k(u[i]); for SILU u is the raw input and K = 1. */
static void functions(int family, int64_t K, const float *u, float *f) {
    if (family == SILU) {
        EACH f[i] = u[i] * sigmoid(u[i]);
    } else if (family == BSPLINE) {
        float scale = 0.5f * (float)(K - 3);
        for (int64_t k = 0; k < K; k++) EACH {
            float v = fabsf((u[i] + 1.0f) * scale - (float)(k - 1)), a = above(2.0f - v), b = above(1.0f - v);
            f[k * W + i] = (a * a * a - 4.0f * b * b * b) * (1.0f / 6.0f);
        }
    } else if (family == CHEBYSHEV) {
        EACH f[i] = 1.0f;
        if (K > 1) EACH f[W + i] = u[i];
        for (int64_t k = 2; k < K; k++) EACH f[k * W + i] = 2.0f * u[i] * f[(k - 1) * W + i] - f[(k - 2) * W + i];
    } else if (family == FOURIER) {
        int64_t H = K / 2;
        float *c = f, *s = f + H * W;
        EACH turn(u[i], &s[i], &c[i]);
        for (int64_t k = 1; k < H; k++) EACH {
            float c1 = c[i], s1 = s[i], c0 = c[(k - 1) * W + i], s0 = s[(k - 1) * W + i];
            c[k * W + i] = c0 * c1 - s0 * s1;
            s[k * W + i] = s0 * c1 + c0 * s1;
        }
    } else {
        float scale = 0.5f * (float)(K - 1);
        int hat = family == WAVELET;
        for (int64_t k = 0; k < K; k++) EACH {
            float t = (u[i] + 1.0f) * scale - (float)k, q = t * t;
            f[k * W + i] = (hat ? HAT * (1.0f - q) : 1.0f) * decay(hat ? -0.5f * q : -q);
        }
    }
}

/* sum[i] = sum_k g[k * W + i] B_k'(u[i]); `f` is room for K W floats. */
static void slopes(int family, int64_t K, const float *u, const float *g, float *f, float *sum) {
    EACH sum[i] = 0.0f;
    if (family == SILU) {
        EACH {
            float s = sigmoid(u[i]);
            sum[i] = g[i] * s * (1.0f + u[i] * (1.0f - s));
        }
    } else if (family == BSPLINE) {
        float scale = 0.5f * (float)(K - 3);
        for (int64_t k = 0; k < K; k++) EACH {
            float t = (u[i] + 1.0f) * scale - (float)(k - 1), v = fabsf(t), a = above(2.0f - v), b = above(1.0f - v);
            float slope = (2.0f * b * b - 0.5f * a * a) * scale;
            sum[i] += g[k * W + i] * (t < 0.0f ? -slope : slope);
        }
    } else if (family == CHEBYSHEV) {
        float t0[W], t1[W], d0[W], d1[W];
        EACH {
            t0[i] = 1.0f, t1[i] = u[i], d0[i] = 0.0f, d1[i] = 1.0f;
        }
        for (int64_t k = 1; k < K; k++) EACH {
            sum[i] += g[k * W + i] * d1[i];
            float t = 2.0f * u[i] * t1[i] - t0[i], d = 2.0f * t1[i] + 2.0f * u[i] * d1[i] - d0[i];
            t0[i] = t1[i], t1[i] = t, d0[i] = d1[i], d1[i] = d;
        }
    } else if (family == FOURIER) {
        int64_t H = K / 2;
        functions(FOURIER, K, u, f);
        for (int64_t k = 0; k < H; k++) EACH {
            float c = f[k * W + i], s = f[(H + k) * W + i];
            sum[i] += PI * (float)(k + 1) * (g[(H + k) * W + i] * c - g[k * W + i] * s);
        }
    } else {
        float scale = 0.5f * (float)(K - 1);
        int hat = family == WAVELET;
        for (int64_t k = 0; k < K; k++) EACH {
            float t = (u[i] + 1.0f) * scale - (float)k, q = t * t;
            float slope = hat ? HAT * (q - 3.0f) * t * decay(-0.5f * q) : -2.0f * t * decay(-q);
            sum[i] += g[k * W + i] * slope * scale;
        }
    }
}

/* Where the inputs of one block lie: positions in x, and how many there are. The rest of the block repeats the last. */
static int64_t positions(int64_t block, int64_t rows, int64_t width, const int32_t *columns, int64_t n, int64_t *at) {
    int64_t first = block * W, left = rows * n - first, count = left < W ? left : W;
    if (!columns) {
        for (int64_t i = 0; i < W; i++) at[i] = first + (i < count ? i : count - 1);
        return count;
    }
    int64_t row = first / n, j = first % n;
    for (int64_t i = 0; i < W; i++) {
        at[i] = i < count ? row * width + columns[j] : at[count - 1];
        if (++j == n) j = 0, row++;
    }
    return count;
}

/* The tile has the K functions of one input side by side, the block has one function of W inputs side by side: eight
 * by eight values are turned at a time where the compiler has vectors for it. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TURN 8
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW2(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH2(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define FRONT(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define BACK(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)

static inline void turned(vector r[8]) {
    vector a[8], b[8];
    for (int i = 0; i < 4; i++) a[2 * i] = LOW(r[2 * i], r[2 * i + 1]), a[2 * i + 1] = HIGH(r[2 * i], r[2 * i + 1]);
    for (int i = 0; i < 2; i++) {
        b[4 * i] = LOW2(a[4 * i], a[4 * i + 2]), b[4 * i + 1] = HIGH2(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = LOW2(a[4 * i + 1], a[4 * i + 3]), b[4 * i + 3] = HIGH2(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) r[i] = FRONT(b[i], b[i + 4]), r[i + 4] = BACK(b[i], b[i + 4]);
}
#endif
#endif

static void to_tile(const float *f, int64_t K, const int64_t *at, int64_t count, float *tile) {
    int64_t done = 0;
#ifdef TURN
    for (; done + 8 <= K; done += 8)
        for (int64_t i = 0; i < count; i += 8) {
            vector r[8];
            for (int k = 0; k < 8; k++) r[k] = *(const vector *)(f + (done + k) * W + i);
            turned(r);
            int64_t here = count - i < 8 ? count - i : 8;
            for (int64_t j = 0; j < here; j++) *(vector *)(tile + at[i + j] * K + done) = r[j];
        }
#endif
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = done; k < K; k++) tile[at[i] * K + k] = f[k * W + i];
}

static void from_tile(float *f, int64_t K, const int64_t *at, const float *tile) {
    int64_t done = 0;
#ifdef TURN
    for (; done + 8 <= K; done += 8)
        for (int64_t i = 0; i < W; i += 8) {
            vector r[8];
            for (int j = 0; j < 8; j++) r[j] = *(const vector *)(tile + at[i + j] * K + done);
            turned(r);
            for (int k = 0; k < 8; k++) *(vector *)(f + (done + k) * W + i) = r[k];
        }
#endif
    for (int64_t i = 0; i < W; i++)
        for (int64_t k = done; k < K; k++) f[k * W + i] = tile[at[i] * K + k];
}

void kan_tile(const float *x, int64_t rows, int64_t width, const int32_t *columns, int64_t n, int family, int squash,
              int64_t K, float *tile, int threads) {
    int64_t blocks = (rows * n + W - 1) / W;
    _Pragma("omp parallel num_threads(threads) if (threads > 1)") {
        float f[K * W], u[W], slope[W], v[W];
        int64_t at[W];
        _Pragma("omp for schedule(static)") for (int64_t block = 0; block < blocks; block++) {
            int64_t count = positions(block, rows, width, columns, n, at);
            for (int i = 0; i < W; i++) v[i] = x[at[i]];
            if (family != SILU) squashed(v, squash, u, slope);
            functions(family, K, family == SILU ? v : u, f);
            to_tile(f, K, at, count, tile);
        }
    }
}

void kan_tile_backward(const float *x, int64_t rows, int64_t width, const int32_t *columns, int64_t n, int family,
                       int squash, int64_t K, const float *gradient, float *dx, int threads) {
    int64_t blocks = (rows * n + W - 1) / W;
    _Pragma("omp parallel num_threads(threads) if (threads > 1)") {
        float f[K * W], g[K * W], u[W], slope[W], v[W], sum[W];
        int64_t at[W];
        _Pragma("omp for schedule(static)") for (int64_t block = 0; block < blocks; block++) {
            int64_t count = positions(block, rows, width, columns, n, at);
            for (int i = 0; i < W; i++) v[i] = x[at[i]], slope[i] = 1.0f;
            if (family != SILU) squashed(v, squash, u, slope);
            from_tile(g, K, at, gradient);
            slopes(family, K, family == SILU ? v : u, g, f, sum);
            for (int64_t i = 0; i < count; i++) dx[at[i]] += sum[i] * slope[i];
        }
    }
}

/* The whole sum for layers that are too small for matrix products to pay: W rows at a time, no tile.
 *
 * Of term t, input d has the family families[t * D + d], K[t] functions and the weights w[t][(o * D + d) * K[t] + k]. */
static int64_t gathered(const float *x, int64_t rows, int64_t stride, int64_t first, float *v) {
    int64_t count = rows - first < W ? rows - first : W;
    for (int64_t i = 0; i < W; i++) v[i] = x[(first + (i < count ? i : count - 1)) * stride];
    return count;
}

static int64_t largest(const int64_t *K, int64_t T) {
    int64_t found = 1;
    for (int64_t t = 0; t < T; t++) found = K[t] > found ? K[t] : found;
    return found;
}

void kan_sum(const float *x, int64_t rows, int64_t D, int squash, int64_t T, const int64_t *K, const int32_t *families,
             const float *const *w, int64_t O, float *y) {
    float f[largest(K, T) * W], sums[O * W], v[W], u[W], slope[W];
    for (int64_t first = 0; first < rows; first += W) {
        int64_t count = 0;
        memset(sums, 0, sizeof sums);
        for (int64_t d = 0; d < D; d++) {
            count = gathered(x + d, rows, D, first, v);
            squashed(v, squash, u, slope);
            for (int64_t t = 0; t < T; t++) {
                int family = families[t * D + d];
                functions(family, K[t], family == SILU ? v : u, f);
                for (int64_t o = 0; o < O; o++) {
                    const float *c = w[t] + (o * D + d) * K[t];
                    vector *s = (vector *)(sums + o * W), s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3];
                    for (int64_t k = 0; k < K[t]; k++) {
                        const vector *b = (const vector *)(f + k * W);
                        s0 += c[k] * b[0], s1 += c[k] * b[1], s2 += c[k] * b[2], s3 += c[k] * b[3];
                    }
                    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3;
                }
            }
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t o = 0; o < O; o++) y[(first + i) * O + o] = sums[o * W + i];
    }
}

/* dx where it is not null, and the gradients of all weights, one after the other in dw. `room` has eight zeros for
 * each weight: the sum over rows runs in eight lanes that are added at the end. */
void kan_sum_backward(const float *x, const float *g, int64_t rows, int64_t D, int squash, int64_t T, const int64_t *K,
                      const int32_t *families, const float *const *w, int64_t O, float *dx, float *room, float *dw) {
    int64_t most = largest(K, T), weights = 0;
    float f[most * W], back[most * W], gradient[O * W], v[W], u[W], slope[W], sum[W], total[W];
    for (int64_t first = 0; first < rows; first += W) {
        int64_t count = 0;
        for (int64_t o = 0; o < O; o++) {
            count = gathered(g + o, rows, O, first, gradient + o * W);
            for (int64_t i = count; i < W; i++) gradient[o * W + i] = 0.0f;
        }
        for (int64_t d = 0; d < D; d++) {
            gathered(x + d, rows, D, first, v);
            squashed(v, squash, u, slope);
            EACH total[i] = 0.0f;
            vector *lanes = (vector *)room;
            for (int64_t t = 0; t < T; lanes += O * D * K[t], t++) {
                int family = families[t * D + d];
                const float *input = family == SILU ? v : u;
                functions(family, K[t], input, f);
                memset(back, 0, (size_t)(K[t] * W) * sizeof *back);
                for (int64_t o = 0; o < O; o++) {
                    const float *c = w[t] + (o * D + d) * K[t];
                    vector *lane = lanes + (o * D + d) * K[t];
                    const vector *q = (const vector *)(gradient + o * W);
                    vector q0 = q[0], q1 = q[1], q2 = q[2], q3 = q[3];
                    for (int64_t k = 0; k < K[t]; k++) {
                        const vector *b = (const vector *)(f + k * W);
                        lane[k] += (q0 * b[0] + q1 * b[1]) + (q2 * b[2] + q3 * b[3]);
                        vector *to = (vector *)(back + k * W);
                        to[0] += c[k] * q0, to[1] += c[k] * q1, to[2] += c[k] * q2, to[3] += c[k] * q3;
                    }
                }
                if (!dx) continue;
                slopes(family, K[t], input, back, f, sum);
                if (family == SILU) EACH total[i] += sum[i];
                else EACH total[i] += sum[i] * slope[i];
            }
            if (dx)
                for (int64_t i = 0; i < count; i++) dx[(first + i) * D + d] = total[i];
        }
    }
    for (int64_t t = 0; t < T; t++) weights += O * D * K[t];
    for (int64_t i = 0; i < weights; i++) {
        dw[i] = 0.0f;
        for (int64_t j = 0; j < 8; j++) dw[i] += room[8 * i + j];
    }
}
