// Attention inside windows, read from and written to the map itself: no rolled, padded or partitioned copy is made.
//
// A window holds n tokens; index[w * n + i] is the row of the map that token i of window w is, or -1 for padding, which
// is zero. A row of qkv is [3][heads][d]; the row `offset`, the bias of the projection, is added to each, padding
// included. Tokens attend to one another where their labels agree; without labels all do. One task is one head of one
// window of one image; its keys and values are packed once, and four queries at a time meet them.

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));


#define ROWS 4
#define MASKED (-1e30f)

static inline v8 load(const float *p) { return *(const v8 *)p; }
static inline void store(float *p, v8 x) { *(v8 *)p = x; }
static inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// exp of a number that is not positive, within 2 ulp; 0 below -87. Plain arithmetic, so that loops over it vectorise.
static inline float exponential(float x) {
    int32_t kept = -(int32_t)!(x <= -87.0f), bits; // all ones, or zero; NaN is kept
    float y;
    memcpy(&bits, &x, sizeof bits);
    bits &= kept;
    memcpy(&y, &bits, sizeof y);
    int32_t whole = (int32_t)(y * 1.44269504f - 0.5f); // towards zero: the nearest whole number
    float n = (float)whole, r = (y - n * 0.693359375f) + n * 2.12194440e-4f, scale;
    int32_t power = (whole + 127) << 23;
    memcpy(&scale, &power, sizeof scale);
    y = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666655f + r * (4.16657962e-2f + r * (8.33345205e-3f + r * 1.39349362e-3f)))));
    y *= scale;
    memcpy(&bits, &y, sizeof bits);
    bits &= kept;
    memcpy(&y, &bits, sizeof y);
    return y;
}

typedef struct {
    const float *qkv, *offset, *bias;
    const int32_t *index, *labels;
    int64_t tokens, windows, heads, n, d; // d: width of a head
    int64_t np, dp;                       // n and d rounded up to whole tiles
    float scale;
} Shape;

// Packs one of query, key and value of a window: [np][dp], and where asked its transpose [d][np]; zeros beyond.
static void pack(const Shape *s, int64_t image, int64_t window, int64_t part, int64_t head, float *rows, float *columns) {
    int64_t d = s->d, width = s->heads * d;
    const float *base = s->qkv + image * s->tokens * 3 * width + part * width + head * d;
    const float *offset = s->offset + part * width + head * d;
    for (int64_t i = 0; i < s->n; i++) {
        int32_t at = s->index[window * s->n + i];
        const float *from = base + (int64_t)at * 3 * width;
        if (rows)
            for (int64_t e = 0; e < d; e++) rows[i * s->dp + e] = offset[e] + (at < 0 ? 0 : from[e]);
        if (columns)
            for (int64_t e = 0; e < d; e++) columns[e * s->np + i] = offset[e] + (at < 0 ? 0 : from[e]);
    }
}

// out[r][j] = sum_e a[r * stride + e] b[e][j] over e < depth, j < width (a multiple of 16)
static void rows_times(const float *a, int64_t stride, const float *b, int64_t depth, int64_t width, float *out) {
    for (int64_t j = 0; j < width; j += 16) {
        v8 c00 = {0}, c01 = {0}, c10 = {0}, c11 = {0}, c20 = {0}, c21 = {0}, c30 = {0}, c31 = {0};
        const float *p = b + j;
        for (int64_t e = 0; e < depth; e++, p += width) {
            v8 b0 = load(p), b1 = load(p + 8);
            float a0 = a[e], a1 = a[stride + e], a2 = a[2 * stride + e], a3 = a[3 * stride + e];
            c00 += a0 * b0, c01 += a0 * b1, c10 += a1 * b0, c11 += a1 * b1;
            c20 += a2 * b0, c21 += a2 * b1, c30 += a3 * b0, c31 += a3 * b1;
        }
        store(out + j, c00), store(out + j + 8, c01);
        store(out + width + j, c10), store(out + width + j + 8, c11);
        store(out + 2 * width + j, c20), store(out + 2 * width + j + 8, c21);
        store(out + 3 * width + j, c30), store(out + 3 * width + j + 8, c31);
    }
}

// As rows_times with a of rows [ROWS][stride] and b [depth][width], width a multiple of 8.
static void rows_times_narrow(const float *a, int64_t stride, const float *b, int64_t depth, int64_t width, float *out) {
    int64_t j = 0;
    for (; j + 16 <= width; j += 16) {
        v8 c00 = {0}, c01 = {0}, c10 = {0}, c11 = {0}, c20 = {0}, c21 = {0}, c30 = {0}, c31 = {0};
        const float *p = b + j;
        for (int64_t e = 0; e < depth; e++, p += width) {
            v8 b0 = load(p), b1 = load(p + 8);
            float a0 = a[e], a1 = a[stride + e], a2 = a[2 * stride + e], a3 = a[3 * stride + e];
            c00 += a0 * b0, c01 += a0 * b1, c10 += a1 * b0, c11 += a1 * b1;
            c20 += a2 * b0, c21 += a2 * b1, c30 += a3 * b0, c31 += a3 * b1;
        }
        store(out + j, c00), store(out + j + 8, c01);
        store(out + width + j, c10), store(out + width + j + 8, c11);
        store(out + 2 * width + j, c20), store(out + 2 * width + j + 8, c21);
        store(out + 3 * width + j, c30), store(out + 3 * width + j + 8, c31);
    }
    for (; j < width; j += 8) {
        v8 c0 = {0}, c1 = {0}, c2 = {0}, c3 = {0};
        const float *p = b + j;
        for (int64_t e = 0; e < depth; e++, p += width) {
            v8 b0 = load(p);
            c0 += a[e] * b0, c1 += a[stride + e] * b0, c2 += a[2 * stride + e] * b0, c3 += a[3 * stride + e] * b0;
        }
        store(out + j, c0), store(out + width + j, c1), store(out + 2 * width + j, c2), store(out + 3 * width + j, c3);
    }
}

// to[j][:] += sum_r a[r][j] b[r][:] over j < n; b is [ROWS][dp]
static void add_outer(const float *a, int64_t np, const float *b, int64_t dp, int64_t n, float *to) {
    for (int64_t e = 0; e < dp; e += 8) {
        v8 b0 = load(b + e), b1 = load(b + dp + e), b2 = load(b + 2 * dp + e), b3 = load(b + 3 * dp + e);
        for (int64_t j = 0; j < n; j++) {
            float *p = to + j * dp + e;
            store(p, load(p) + a[j] * b0 + a[np + j] * b1 + a[2 * np + j] * b2 + a[3 * np + j] * b3);
        }
    }
}

// Scores of four queries to probabilities, in place; beyond n they are 0.
static void softmax_rows(const Shape *s, int64_t window, int64_t head, int64_t first, float *scores) {
    for (int64_t r = 0; r < ROWS; r++) {
        float *p = scores + r * s->np;
        int64_t i = first + r;
        if (i >= s->n) {
            memset(p, 0, s->np * sizeof(float));
            continue;
        }
        const float *bias = s->bias ? s->bias + (head * s->n + i) * s->n : NULL;
        if (bias)
            for (int64_t j = 0; j < s->n; j++) p[j] += bias[j];
        if (s->labels) {
            const int32_t *label = s->labels + window * s->n;
            int32_t own = label[i];
            for (int64_t j = 0; j < s->n; j++) p[j] = label[j] == own ? p[j] : MASKED;
        }
        for (int64_t j = s->n; j < s->np; j++) p[j] = MASKED;
        float top = MASKED, sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t j = 0; j < s->np; j++) top = p[j] > top ? p[j] : top;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < s->np; j++) {
            p[j] = exponential(p[j] - top);
            sum += p[j];
        }
        float inverse = 1.0f / sum;
        for (int64_t j = 0; j < s->np; j++) p[j] *= inverse;
    }
}

// Four rows of a packed part, scaled; rows beyond n are 0.
static void take_rows(const Shape *s, const float *packed, int64_t first, float scale, float *out) {
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t e = 0; e < s->dp; e++)
            out[r * s->dp + e] = first + r < s->n ? scale * packed[(first + r) * s->dp + e] : 0;
}

static int skipped(const Shape *s, int64_t window, int64_t first) {
    for (int64_t i = first; i < first + ROWS && i < s->n; i++)
        if (s->index[window * s->n + i] >= 0) return 0;
    return 1;
}

static float *room(int64_t floats) {
    float *found = NULL;
    if (posix_memalign((void **)&found, 64, floats * sizeof(float))) abort();
    memset(found, 0, floats * sizeof(float));
    return found;
}

static Shape shape(const float *qkv, const float *offset, const float *bias, const int32_t *index, const int32_t *labels,
                   int64_t tokens, int64_t windows, int64_t heads, int64_t n, int64_t d) {
    Shape s = {qkv, offset, bias, index, labels, tokens, windows, heads, n, d, up(n, 16), up(d, 8), 1.0f / sqrtf((float)d)};
    return s;
}

void window_attention(const float *qkv, const float *offset, const float *bias, const int32_t *index,
                      const int32_t *labels, float *out, int64_t images, int64_t tokens, int64_t windows, int64_t heads,
                      int64_t n, int64_t d, int64_t threads) {
    Shape s = shape(qkv, offset, bias, index, labels, tokens, windows, heads, n, d);
    int64_t np = s.np, dp = s.dp, tasks = images * windows * heads;
#pragma omp parallel num_threads(threads)
    {
        float *q = room(np * dp), *kt = room(d * np), *v = room(np * dp);
        float *scores = room(ROWS * np), *four = room(ROWS * dp), *found = room(ROWS * dp);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; task++) {
            int64_t head = task % heads, window = task / heads % windows, image = task / heads / windows;
            pack(&s, image, window, 0, head, q, NULL);
            pack(&s, image, window, 1, head, NULL, kt);
            pack(&s, image, window, 2, head, v, NULL);
            for (int64_t i = 0; i < n; i += ROWS) {
                if (skipped(&s, window, i)) continue;
                take_rows(&s, q, i, s.scale, four);
                rows_times(four, dp, kt, d, np, scores);
                softmax_rows(&s, window, head, i, scores);
                rows_times_narrow(scores, np, v, n, dp, found);
                for (int64_t r = 0; r < ROWS && i + r < n; r++) {
                    int32_t at = index[window * n + i + r];
                    if (at >= 0) memcpy(out + ((image * tokens + at) * heads + head) * d, found + r * dp, d * sizeof(float));
                }
            }
        }
        free(q), free(kt), free(v), free(scores), free(four), free(found);
    }
}

// Gradients: d_qkv as qkv, d_offset as offset and d_bias as bias, the last two one buffer a thread (summed by the caller).
void window_attention_backward(const float *qkv, const float *offset, const float *bias, const int32_t *index,
                               const int32_t *labels, const float *d_out, float *d_qkv, float *d_offset, float *d_bias,
                               int64_t images, int64_t tokens, int64_t windows, int64_t heads, int64_t n, int64_t d,
                               int64_t threads) {
    Shape s = shape(qkv, offset, bias, index, labels, tokens, windows, heads, n, d);
    int64_t np = s.np, dp = s.dp, tasks = images * windows * heads, width = heads * d;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t part = 0; part < threads; part++) {
        float *q = room(np * dp), *k = room(np * dp), *kt = room(d * np), *vt = room(d * np);
        float *dq = room(np * dp), *dk = room(np * dp), *dv = room(np * dp), *go = room(np * dp);
        float *p = room(ROWS * np), *ds = room(ROWS * np), *four = room(ROWS * dp), *grad = room(ROWS * dp);
        float *offsets = d_offset + part * 3 * width, *biases = d_bias ? d_bias + part * heads * n * n : NULL;
        for (int64_t task = tasks * part / threads; task < tasks * (part + 1) / threads; task++) {
            int64_t head = task % heads, window = task / heads % windows, image = task / heads / windows;
            pack(&s, image, window, 0, head, q, NULL);
            pack(&s, image, window, 1, head, k, kt);
            pack(&s, image, window, 2, head, NULL, vt);
            for (int64_t i = 0; i < n; i++) {
                int32_t at = index[window * n + i];
                if (at < 0)
                    memset(go + i * dp, 0, d * sizeof(float));
                else
                    memcpy(go + i * dp, d_out + (image * tokens + at) * width + head * d, d * sizeof(float));
            }
            memset(dk, 0, np * dp * sizeof(float)), memset(dv, 0, np * dp * sizeof(float));
            for (int64_t i = 0; i < n; i += ROWS) {
                if (skipped(&s, window, i)) {
                    for (int64_t r = 0; r < ROWS && i + r < n; r++) memset(dq + (i + r) * dp, 0, dp * sizeof(float));
                    continue;
                }
                take_rows(&s, q, i, s.scale, four);
                take_rows(&s, go, i, 1.0f, grad);
                rows_times(four, dp, kt, d, np, p);
                softmax_rows(&s, window, head, i, p);
                rows_times(grad, dp, vt, d, np, ds);
                for (int64_t r = 0; r < ROWS; r++) {
                    float *pr = p + r * np, *dr = ds + r * np, delta = 0;
                    for (int64_t j = 0; j < np; j++) delta += pr[j] * dr[j];
                    for (int64_t j = 0; j < np; j++) dr[j] = pr[j] * (dr[j] - delta);
                    if (biases && i + r < n) {
                        float *to = biases + (head * n + i + r) * n;
                        for (int64_t j = 0; j < n; j++) to[j] += dr[j];
                    }
                }
                add_outer(p, np, grad, dp, n, dv);
                add_outer(ds, np, four, dp, n, dk);
                rows_times_narrow(ds, np, k, n, dp, four);
                for (int64_t r = 0; r < ROWS && i + r < n; r++)
                    for (int64_t e = 0; e < dp; e++) dq[(i + r) * dp + e] = s.scale * four[r * dp + e];
            }
            for (int64_t i = 0; i < n; i++) {
                int32_t at = index[window * n + i];
                float *sum = offsets + head * d, *to = d_qkv + (image * tokens + at) * 3 * width + head * d;
                const float *parts[3] = {dq + i * dp, dk + i * dp, dv + i * dp};
                for (int64_t part = 0; part < 3; part++) {
                    for (int64_t e = 0; e < d; e++) sum[part * width + e] += parts[part][e];
                    if (at >= 0) memcpy(to + part * width, parts[part], d * sizeof(float));
                }
            }
        }
        free(q), free(k), free(kt), free(vt), free(dq), free(dk), free(dv), free(go);
        free(p), free(ds), free(four), free(grad);
    }
}

// GELU and its gradient. Phi(-|x|) = exp(-x^2 / 2) (a1 t + ... + a5 t^5) / 2 with t = 1 / (1 + 0.2316419 |x|), which
// keeps its relative precision in the tail (Abramowitz and Stegun 26.2.17).
static inline float tail(float x, float density) {
    float t = 1.0f / (1.0f + 0.2316419f * fabsf(x));
    return density * t * (0.319381530f + t * (-0.356563782f + t * (1.781477937f + t * (-1.821255978f + t * 1.330274429f))));
}

// Phi(x) from q = Phi(-|x|)
static inline float upper(float x, float q) {
    float positive = (float)(x > 0);
    return positive + (1.0f - 2.0f * positive) * q;
}

// out = GELU(x + offset) for rows of `width`
void gelu(const float *x, const float *offset, float *out, int64_t rows, int64_t width, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float a = x[row * width + i] + offset[i], q = tail(a, 0.3989422804f * exponential(-0.5f * a * a));
            out[row * width + i] = a * upper(a, q);
        }
}

// d_x from d_out, which may be the same
void gelu_backward(const float *x, const float *offset, const float *d_out, float *d_x, int64_t rows, int64_t width,
                   int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float a = x[row * width + i] + offset[i], density = 0.3989422804f * exponential(-0.5f * a * a);
            d_x[row * width + i] = d_out[row * width + i] * (upper(a, tail(a, density)) + a * density);
        }
}
