/* The AF-KAN layer up to its matrix, z = a(LayerNorm(s)), s the G normalised terms of each input reduced to one number,
 * and its gradient, in two stages. Nothing of shape (rows, D, G) is ever written.
 *
 * terms:  x -> L_d = sum_j w_j F_dj, S_d = sum_j F_dj, and least and largest F of every row and j.
 * finish: min-max normalisation is affine, so with m, M of F
 *             l_d = (L_d - m sum_j w_j) / (M - m) + b,   sum_j N_dj = (S_d - G m) / (M - m),
 *         then attention over d, layer normalisation and activation, all within the row.
 *
 * Terms are evaluated over pieces of a row that stay in the first cache, one j at a time. A piece is padded to a
 * multiple of LANES, so the same machine code computes an element's term every time: the backward pass, which computes
 * the terms again, finds the elements that attained m or M by equality, and shares that gradient among them.
 *
 * Sums over rows are made per block of rows; blocks depend on the shape only, so results do not depend on threads. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PIECE 1024
#define LANES 16
#define NOINLINE __attribute__((noinline))
#define SIMD _Pragma("omp simd")

enum { SILU, RELU, LEAKY_RELU, ELU, GELU, SELU, SOFTPLUS, SIGMOID, TANH };
enum { SUM, PROD, SUM_PROD, QUAD1, QUAD2, CUBIC1, CUBIC2 };

typedef struct { /* as in fused.py */
    int64_t rows, features, terms, activation, function, attention, layer_norm;
    int64_t normalised, shared; /* whether F is normalised at all, and with one m and M for all rows */
    int64_t blocks, threads;
    double bias, temperature, epsilon;
    const float *low, *high, *weight; /* (G) each */
    const float *factors;             /* set here */
} call;

typedef struct { /* one piece of a row, and what the terms at it share */
    float x[PIECE], grow[PIECE], shrink[PIECE]; /* e^x and e^-x where `factored` */
    float term[PIECE], by_low[PIECE], by_high[PIECE], gradient[PIECE];
    float u[PIECE], v[PIECE], du[PIECE], dv[PIECE], spare[PIECE], unwanted[PIECE];
    const float *row; /* what was begun last: 0 at first */
    int64_t from, count, padded;
    int factored;
} piece;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* e^x by 2^n 2^r, |r| <= 1/2: relative error 2e-7, with x held to +-87. Written out because `expf` has a vector version
 * on some systems only. */
static inline float exponential(float x) {
    float held = x < -87.0f ? -87.0f : (x > 87.0f ? 87.0f : x);
    float n = rintf(held * 1.4426950408889634f);
    float r = (held - n * 0.693359375f) + n * 2.12194440e-4f; /* ln 2 in two parts */
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * as_float((uint32_t)((int32_t)n + 127) << 23);
}

static inline float logistic(float t) { return t < -87.0f ? 0.0f : 1.0f / (1.0f + exponential(-t)); }

#define ALPHA 1.6732632423543772f
#define SCALE 1.0507009873554805f

/* Each activation over n numbers, and its slope where wanted. */
#define ACTIVATION(NAME, VALUE, SLOPE)                                                                                 \
    static NOINLINE void NAME(const float *restrict from, int64_t n, float *restrict y, float *restrict dy) {          \
        for (int64_t i = 0; !dy && i < n; i++) {                                                                       \
            float t = from[i];                                                                                         \
            y[i] = VALUE;                                                                                              \
        }                                                                                                              \
        for (int64_t i = 0; dy && i < n; i++) {                                                                        \
            float t = from[i];                                                                                         \
            y[i] = VALUE;                                                                                              \
            dy[i] = SLOPE;                                                                                             \
        }                                                                                                              \
    }

static inline float silu_slope(float t) {
    float s = logistic(t);
    return s * (1.0f + t * (1.0f - s));
}
static inline float negative(float t) { return t > 0.0f ? 0.0f : t; }
static inline float hyperbolic(float t) {
    float e = exponential(-2.0f * fabsf(t)), a = t * t;
    float small = t * (1.0f + a * (-0.33333333f + a * (0.13333333f - a * 0.05396825f))); /* no cancellation near 0 */
    float large = copysignf((1.0f - e) / (1.0f + e), t);
    return a < 0.01f ? small : large;
}
static inline float expm1_(float t) { /* for t <= 0 */
    float small = t * (1.0f + t * (0.5f + t * (0.16666667f + t * (0.041666667f + t * 0.0083333333f))));
    return t > -0.1f ? small : exponential(t) - 1.0f;
}

ACTIVATION(silu, t *logistic(t), silu_slope(t))
ACTIVATION(relu, t < 0.0f ? 0.0f : t, t > 0.0f ? 1.0f : 0.0f)
ACTIVATION(leaky_relu, t > 0.0f ? t : 0.01f * t, t > 0.0f ? 1.0f : 0.01f)
ACTIVATION(elu, t > 0.0f ? t : expm1_(negative(t)), t > 0.0f ? 1.0f : exponential(negative(t)))
ACTIVATION(gelu, 0.5f * t * (1.0f + erff(t * 0.70710678f)),
           0.5f * (1.0f + erff(t * 0.70710678f)) + t * 0.39894228f * exponential(-0.5f * t * t))
ACTIVATION(selu, SCALE *(t > 0.0f ? t : ALPHA * expm1_(negative(t))),
           SCALE *(t > 0.0f ? 1.0f : ALPHA * exponential(negative(t))))
ACTIVATION(softplus, t > 20.0f ? t : log1pf(exponential(t)), t > 20.0f ? 1.0f : logistic(t))
ACTIVATION(sigmoid, logistic(t), logistic(t) * (1.0f - logistic(t)))
ACTIVATION(tangent, hyperbolic(t), 1.0f - hyperbolic(t) * hyperbolic(t))

typedef void (*activate)(const float *restrict, int64_t, float *restrict, float *restrict);
static const activate ACTIVATIONS[] = {silu, relu, leaky_relu, elu, gelu, selu, softplus, sigmoid, tangent};

/* Each way to combine u = a(x - low) and v = a(high - x): the term and its derivatives by `low` and by `high`. */
#define COMBINATION(NAME, TERM, BY_U, BY_V)                                                                            \
    static NOINLINE void NAME(piece *p) {                                                                              \
        SIMD for (int64_t i = 0; i < p->padded; i++) {                                                                 \
            float u = p->u[i], v = p->v[i];                                                                            \
            p->term[i] = TERM;                                                                                         \
            p->by_low[i] = -p->du[i] * (BY_U);                                                                         \
            p->by_high[i] = p->dv[i] * (BY_V);                                                                         \
        }                                                                                                              \
    }

COMBINATION(sum, u + v, 1.0f, 1.0f)
COMBINATION(prod, u *v, v, u)
COMBINATION(sum_prod, u + v + u * v, 1.0f + v, 1.0f + u)
COMBINATION(quad1, (u * v) * (u * v), 2.0f * u * v * v, 2.0f * u * u * v)
COMBINATION(quad2, u *v + u * u + v * v, v + 2.0f * u, u + 2.0f * v)
COMBINATION(cubic1, (u + v) * (u * u + v * v), u * u + v * v + 2.0f * u * (u + v), u * u + v * v + 2.0f * v * (u + v))
COMBINATION(cubic2, (u * v) * (u * v) * (u * v), 3.0f * u * u * v * v * v, 3.0f * u * u * u * v * v)

typedef void (*combine)(piece *);
static const combine COMBINATIONS[] = {sum, prod, sum_prod, quad1, quad2, cubic1, cubic2};

/* SiLU with quad1, the paper's choice, in one exponential for all terms of an input:
 *     u v = (x - low)(high - x) / D,   D = (1 + e^-(x - low)) (1 + e^-(high - x)) = 1 + e^(low - high) + A + B,
 *     A = e^-x e^low,   B = e^x e^-high.
 * With |x| and the phases within TAME everything is finite, so division may be by an estimate and a Newton step. */
#define TAME 20.0f
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FAST_DIVISION NOINLINE __attribute__((optimize("finite-math-only"), target("recip")))
#else
#define FAST_DIVISION NOINLINE
#endif

FAST_DIVISION static void silu_quad1(piece *p, float low, float high, const float *factors) {
    float rise = factors[0], fall = factors[1], one = 1.0f + factors[2];
    SIMD for (int64_t i = 0; i < p->padded; i++) {
        float product = (p->x[i] - low) * (high - p->x[i]) / (one + p->shrink[i] * rise + p->grow[i] * fall);
        p->term[i] = product * product;
    }
}

/* d term: p->gradient. Adds d low, d high, d w to `sums` (`step` apart) and d x to `to`. */
FAST_DIVISION static void silu_quad1_backward(const piece *p, float low, float high, const float *factors,
                                              const float *restrict l, float *restrict to, float *sums, int64_t step) {
    float rise = factors[0], fall = factors[1], both = factors[2], one = 1.0f + both;
    float by_low = 0.0f, by_high = 0.0f, by_w = 0.0f;
    _Pragma("omp simd reduction(+ : by_low, by_high, by_w)") for (int64_t i = 0; i < p->count; i++) {
        float left = p->x[i] - low, right = high - p->x[i], a = p->shrink[i] * rise, b = p->grow[i] * fall;
        float inverse = 1.0f / (one + a + b), product = left * right * inverse;
        float twice = 2.0f * product * inverse * p->gradient[i];
        float at_low = -twice * (right + product * (a + both)), at_high = twice * (left + product * (b + both));
        by_low += at_low;
        by_high += at_high;
        by_w += l[i] * (product * product);
        to[i] -= at_low + at_high;
    }
    sums[0] += by_low, sums[step] += by_high, sums[2 * step] += by_w;
}

static void begin(const call *c, const float *row, int64_t from, piece *p) {
    int64_t n = c->features - from < PIECE ? c->features - from : PIECE;
    float wild = 0.0f;
    if (p->row == row && p->from == from) return;
    p->row = row, p->from = from, p->count = n, p->padded = (n + LANES - 1) / LANES * LANES;
    memcpy(p->x, row + from, (size_t)n * sizeof *row);
    for (int64_t i = n; i < p->padded; i++) p->x[i] = p->x[n - 1];
    if (c->factors) {
        _Pragma("omp simd reduction(+ : wild)") for (int64_t i = 0; i < p->padded; i++) {
            wild += fabsf(p->x[i]) <= TAME ? 0.0f : 1.0f;
            p->grow[i] = exponential(p->x[i]);
            p->shrink[i] = 1.0f / p->grow[i];
        }
    }
    p->factored = c->factors && wild == 0.0f;
}

/* c with its factors of SiLU and quad1 in `room` (3 G), where the phases allow them. */
static call with_factors(const call *c, float *room) {
    call found = *c;
    found.factors = c->activation == SILU && c->function == QUAD1 ? room : NULL;
    for (int64_t j = 0; j < c->terms; j++) {
        room[3 * j] = expf(c->low[j]), room[3 * j + 1] = expf(-c->high[j]);
        room[3 * j + 2] = expf(c->low[j] - c->high[j]);
        if (!(fabsf(c->low[j]) <= TAME && fabsf(c->high[j]) <= TAME)) found.factors = NULL;
    }
    return found;
}

/* p->term for the j-th pair of phases; where not factored with `slopes` its derivatives by the phases too. */
static void evaluate(const call *c, piece *p, int64_t j, int slopes) {
    float low = c->low[j], high = c->high[j], *shifted = p->spare;
    if (p->factored) {
        silu_quad1(p, low, high, c->factors + 3 * j);
        return;
    }
    SIMD for (int64_t i = 0; i < p->padded; i++) shifted[i] = p->x[i] - low;
    ACTIVATIONS[c->activation](shifted, p->padded, p->u, slopes ? p->du : NULL);
    SIMD for (int64_t i = 0; i < p->padded; i++) shifted[i] = high - p->x[i];
    ACTIVATIONS[c->activation](shifted, p->padded, p->v, slopes ? p->dv : NULL);
    COMBINATIONS[c->function](p);
}

/* x (rows, D) -> L and S (rows, D), extremes (rows, G, 2). A NaN in a row makes all its extremes NaN. */
void af_kan_terms(const call *given, const float *x, float *weighted, float *sums, float *extremes) {
    float factors[3 * given->terms];
    const call own = with_factors(given, factors), *c = &own;
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t b = 0; b < c->rows; b++) {
        piece room, *p = &room;
        p->row = NULL;
        float *e = extremes + 2 * b * c->terms, all = 0.0f;
        for (int64_t j = 0; j < c->terms; j++) e[2 * j] = INFINITY, e[2 * j + 1] = -INFINITY;
        for (int64_t at = 0; at < c->features; at += PIECE) {
            begin(c, x + b * c->features, at, p);
            float *l = weighted + b * c->features + at, *s = sums + b * c->features + at;
            memset(l, 0, (size_t)p->count * sizeof *l);
            memset(s, 0, (size_t)p->count * sizeof *s);
            for (int64_t j = 0; j < c->terms; j++) {
                float w = c->weight[j], least = e[2 * j], largest = e[2 * j + 1];
                evaluate(c, p, j, 0);
                _Pragma("omp simd reduction(min : least) reduction(max : largest)")
                for (int64_t i = 0; i < p->count; i++) {
                    float term = p->term[i];
                    l[i] += w * term;
                    s[i] += term;
                    least = term < least ? term : least;
                    largest = term > largest ? term : largest;
                }
                e[2 * j] = least, e[2 * j + 1] = largest;
            }
            _Pragma("omp simd reduction(+ : all)") for (int64_t i = 0; i < p->count; i++) all += s[i];
        }
        if (all != all)
            for (int64_t j = 0; j < 2 * c->terms; j++) e[j] = all;
    }
}

/* How often a row attains its m and M (`extent`). */
static void count_extremes(const call *c, const float *x, const float *extremes, const float *extent, int64_t found[2],
                           piece *p) {
    for (int64_t at = 0; at < c->features; at += PIECE) {
        for (int64_t j = 0; j < c->terms; j++) {
            if (extremes[2 * j] != extent[0] && extremes[2 * j + 1] != extent[1]) continue;
            begin(c, x, at, p);
            evaluate(c, p, j, 0);
            float low = 0.0f, top = 0.0f;
            _Pragma("omp simd reduction(+ : low, top)") for (int64_t i = 0; i < p->count; i++) {
                low += p->term[i] == extent[0] ? 1.0f : 0.0f;
                top += p->term[i] == extent[1] ? 1.0f : 0.0f;
            }
            found[0] += (int64_t)low, found[1] += (int64_t)top;
        }
    }
}

/* One row, from the gradients of L, S and of each term at m and at M, to dx; adds to `sums` (3 G): d low, d high, d w. */
static void terms_backward(const call *c, const float *x, const float *by_weighted, const float *by_sums,
                           const float *extremes, const float *extent, const float at[2], float *dx, float *sums,
                           piece *p) {
    int64_t g = c->terms;
    for (int64_t from = 0; from < c->features; from += PIECE) {
        begin(c, x, from, p);
        const float *l = by_weighted + from, *s = by_sums + from;
        float *to = dx ? dx + from : p->unwanted, *d = p->gradient;
        for (int64_t j = 0; j < g; j++) {
            float w = c->weight[j], by_w = 0.0f, by_low = 0.0f, by_high = 0.0f;
            SIMD for (int64_t i = 0; i < p->count; i++) d[i] = l[i] * w + s[i];
            if (c->normalised && (extremes[2 * j] == extent[0] || extremes[2 * j + 1] == extent[1])) {
                evaluate(c, p, j, 0);
                SIMD for (int64_t i = 0; i < p->count; i++) {
                    d[i] += (p->term[i] == extent[0] ? at[0] : 0.0f) + (p->term[i] == extent[1] ? at[1] : 0.0f);
                }
            }
            if (j == 0) memset(to, 0, (size_t)p->count * sizeof *to);
            if (p->factored) {
                silu_quad1_backward(p, c->low[j], c->high[j], c->factors + 3 * j, l, to, sums + j, g);
                continue;
            }
            evaluate(c, p, j, 1);
            _Pragma("omp simd reduction(+ : by_w, by_low, by_high)") for (int64_t i = 0; i < p->count; i++) {
                float low = d[i] * p->by_low[i], high = d[i] * p->by_high[i];
                by_w += l[i] * p->term[i];
                by_low += low;
                by_high += high;
                to[i] -= low + high;
            }
            sums[j] += by_low, sums[g + j] += by_high, sums[2 * g + j] += by_w;
        }
    }
}

static int64_t first_row(const call *c, int64_t block) { return c->rows * block / c->blocks; }

static void sum_blocks(const call *c, const float *partial, int64_t width, float *out) {
    memset(out, 0, (size_t)width * sizeof *out);
    for (int64_t block = 0; block < c->blocks; block++)
        for (int64_t i = 0; i < width; i++) out[i] += partial[block * width + i];
}

/* Gradients of L, S (rows, D) and of m, M (`pull`: rows, 2) -> dx (rows, D; may be NULL), `out` (3 G): d low,
 * d high, d w.
 * `partial` is room for 3 G numbers a block. */
void af_kan_terms_backward(const call *given, const float *x, const float *by_weighted, const float *by_sums,
                           const float *extremes, const float *extent, const float *pull, float *dx, float *partial,
                           float *out) {
    float factors[3 * given->terms];
    const call own = with_factors(given, factors), *c = &own;
    int64_t n = c->features, g = c->terms;
    int64_t low = 0, top = 0;
    double least = 0.0, largest = 0.0;
    memset(partial, 0, (size_t)(c->blocks * 3 * g) * sizeof *partial);
    if (c->shared) {
        for (int64_t b = 0; b < c->rows; b++) least += pull[2 * b], largest += pull[2 * b + 1];
#pragma omp parallel for num_threads(c->threads) schedule(static) reduction(+ : low, top)
        for (int64_t b = 0; b < c->rows; b++) {
            piece room;
            room.row = NULL;
            int64_t found[2] = {0, 0};
            count_extremes(c, x + b * n, extremes + 2 * b * g, extent + 2 * b, found, &room);
            low += found[0], top += found[1];
        }
    }
#pragma omp parallel for num_threads(c->threads) schedule(static)
    for (int64_t block = 0; block < c->blocks; block++) {
        piece room;
        room.row = NULL;
        for (int64_t b = first_row(c, block); b < first_row(c, block + 1); b++) {
            int64_t found[2] = {low, top};
            double whole[2] = {least, largest};
            if (c->normalised && !c->shared) {
                whole[0] = pull[2 * b], whole[1] = pull[2 * b + 1];
                count_extremes(c, x + b * n, extremes + 2 * b * g, extent + 2 * b, found, &room);
            }
            float at[2] = {(float)(whole[0] / (double)(found[0] ? found[0] : 1)),
                           (float)(whole[1] / (double)(found[1] ? found[1] : 1))};
            terms_backward(c, x + b * n, by_weighted + b * n, by_sums + b * n, extremes + 2 * b * g, extent + 2 * b, at,
                           dx ? dx + b * n : NULL, partial + block * 3 * g, &room);
        }
    }
    sum_blocks(c, partial, 3 * g, out);
}

typedef struct { /* what a row's L and S are brought to m, M by, and room of length D */
    float from, lowest, inverse; /* l = (L - from) inverse + b, sum_j N = (S - lowest) inverse */
    float deviation;             /* 1 / sqrt(variance of s + epsilon) */
    float *attention, *total, *normal, *inner, *slope;
} row_room;

/* Attention (or l) in r->attention, sum_j N in r->total, s after its normalisation in r->normal. */
static void finish(const call *c, const float *weighted, const float *sums, const float *extent, row_room *r) {
    int64_t n = c->features;
    float *restrict attention = r->attention, *restrict total = r->total, *restrict normal = r->normal;
    float range = extent[1] - extent[0], weights = 0.0f, bias = (float)c->bias;
    for (int64_t j = 0; j < c->terms; j++) weights += c->weight[j];
    r->inverse = 1.0f / (range < 1e-8f ? 1e-8f : range);
    r->from = extent[0] * weights, r->lowest = extent[0] * (float)c->terms;
    float from = r->from, lowest = r->lowest, inverse = r->inverse;
    SIMD for (int64_t i = 0; i < n; i++) {
        attention[i] = (weighted[i] - from) * inverse + bias;
        total[i] = (sums[i] - lowest) * inverse;
    }
    if (c->attention) {
        float top = -INFINITY, all = 0.0f, cooler = (float)(1.0 / c->temperature);
        _Pragma("omp simd reduction(max : top)") for (int64_t i = 0; i < n; i++) {
            top = attention[i] > top ? attention[i] : top;
        }
        _Pragma("omp simd reduction(+ : all)") for (int64_t i = 0; i < n; i++) {
            attention[i] = exponential((attention[i] - top) * cooler);
            all += attention[i];
        }
        float share = 1.0f / all;
        SIMD for (int64_t i = 0; i < n; i++) {
            attention[i] *= share;
            normal[i] = total[i] * attention[i];
        }
    } else {
        memcpy(normal, attention, (size_t)n * sizeof(float));
    }
    if (!c->layer_norm) return;
    float mean = 0.0f, variance = 0.0f;
    _Pragma("omp simd reduction(+ : mean)") for (int64_t i = 0; i < n; i++) mean += normal[i];
    mean /= (float)n;
    _Pragma("omp simd reduction(+ : variance)") for (int64_t i = 0; i < n; i++) {
        variance += (normal[i] - mean) * (normal[i] - mean);
    }
    float deviation = r->deviation = 1.0f / sqrtf(variance / (float)n + (float)c->epsilon);
    SIMD for (int64_t i = 0; i < n; i++) normal[i] = (normal[i] - mean) * deviation;
}

/* z = a(gain * normal + offset), its slope in r->slope. */
static void activate_row(const call *c, const float *gain, const float *offset, float *z, row_room *r, int wants_slope) {
    float *restrict inner = r->inner, *restrict normal = r->normal;
    if (c->layer_norm) {
        SIMD for (int64_t i = 0; i < c->features; i++) inner[i] = gain[i] * normal[i] + offset[i];
    }
    ACTIVATIONS[c->activation](c->layer_norm ? inner : normal, c->features, z, wants_slope ? r->slope : NULL);
}

static float *room_for(const call *c, row_room *r) {
    int64_t n = c->features;
    float *memory = malloc((size_t)(6 * n) * sizeof *memory);
    r->attention = memory, r->total = memory + n, r->normal = memory + 2 * n;
    r->inner = memory + 3 * n, r->slope = memory + 4 * n;
    return memory;
}

/* L, S (rows, D) and the m, M of every row (`extent`: rows, 2; 0 and 1 where F is not normalised) -> z (rows, D). */
void af_kan_finish(const call *c, const float *weighted, const float *sums, const float *extent, const float *gain,
                   const float *offset, float *z) {
#pragma omp parallel num_threads(c->threads)
    {
        row_room r;
        float *memory = room_for(c, &r);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < c->rows; b++) {
            finish(c, weighted + b * c->features, sums + b * c->features, extent + 2 * b, &r);
            activate_row(c, gain, offset, z + b * c->features, &r, 0);
        }
        free(memory);
    }
}

/* One row, from dz to the gradients of L, S and of m, M (`pull`); adds to `own`: d b, d temperature, what every d w_j
 * has in common, d gain, d offset (D each). */
static void finish_backward(const call *c, const float *weighted, const float *sums, const float *extent,
                            const float *dz, const float *gain, const float *offset, float *by_weighted, float *by_sums,
                            float pull[2], float *own, row_room *r) {
    int64_t n = c->features;
    float *restrict d = by_weighted, *restrict by_gain = own + 3, *restrict by_offset = own + 3 + n;
    finish(c, weighted, sums, extent, r);
    activate_row(c, gain, offset, by_sums, r, 1);
    const float *restrict attention = r->attention, *restrict total = r->total, *restrict normal = r->normal;
    const float *restrict slope = r->slope;
    SIMD for (int64_t i = 0; i < n; i++) d[i] = dz[i] * slope[i];
    if (c->layer_norm) {
        float mean = 0.0f, along = 0.0f;
        _Pragma("omp simd reduction(+ : mean, along)") for (int64_t i = 0; i < n; i++) {
            by_gain[i] += d[i] * normal[i];
            by_offset[i] += d[i];
            d[i] *= gain[i];
            mean += d[i];
            along += d[i] * normal[i];
        }
        mean /= (float)n, along /= (float)n;
        float deviation = r->deviation;
        SIMD for (int64_t i = 0; i < n; i++) d[i] = deviation * (d[i] - mean - normal[i] * along);
    }
    int attends = c->attention != 0;
    float inverse = r->inverse, from = r->from, bias = (float)c->bias;
    float cooler = attends ? (float)(1.0 / c->temperature) : 0.0f;
    float mean = 0.0f, all = 0.0f, totals = 0.0f, stretch = 0.0f, warm = 0.0f;
    if (attends) {
        _Pragma("omp simd reduction(+ : mean)") for (int64_t i = 0; i < n; i++) {
            mean += attention[i] * d[i] * total[i];
        }
    }
    _Pragma("omp simd reduction(+ : all, totals, stretch, warm)") for (int64_t i = 0; i < n; i++) {
        float l = (weighted[i] - from) * inverse;
        float score = attends ? attention[i] * (d[i] * total[i] - mean) : 0.0f;
        float to_l = attends ? score * cooler : d[i], to_total = attends ? d[i] * attention[i] : 0.0f;
        warm += score * (l + bias);
        stretch += to_l * l + to_total * total[i];
        all += to_l;
        totals += to_total;
        d[i] = to_l * inverse;
        by_sums[i] = to_total * inverse;
    }
    float weights = 0.0f;
    for (int64_t j = 0; j < c->terms; j++) weights += c->weight[j];
    own[0] += attends || c->layer_norm ? 0.0f : all; /* softmax and normalisation are blind to a shift */
    own[1] -= warm * cooler * cooler, own[2] -= extent[0] * inverse * all;
    pull[1] = extent[1] - extent[0] >= 1e-8f ? -stretch * inverse : 0.0f;
    pull[0] = -(weights * all + (float)c->terms * totals) * inverse - pull[1];
}

/* dz (rows, D) -> gradients of L and S (rows, D), of m and M (`pull`: rows, 2) and `out` (3 + 2 D), see above. */
void af_kan_finish_backward(const call *c, const float *weighted, const float *sums, const float *extent,
                            const float *dz, const float *gain, const float *offset, float *by_weighted, float *by_sums,
                            float *pull, float *partial, float *out) {
    int64_t n = c->features, width = 3 + 2 * n;
    memset(partial, 0, (size_t)(c->blocks * width) * sizeof *partial);
#pragma omp parallel num_threads(c->threads)
    {
        row_room r;
        float *memory = room_for(c, &r);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < c->blocks; block++) {
            for (int64_t b = first_row(c, block); b < first_row(c, block + 1); b++)
                finish_backward(c, weighted + b * n, sums + b * n, extent + 2 * b, dz + b * n, gain, offset,
                                by_weighted + b * n, by_sums + b * n, pull + 2 * b, partial + block * width, &r);
        }
        free(memory);
    }
    sum_blocks(c, partial, width, out);
}
