/* Gated retention between its projections, forward and backward, one (window, head) at a time: offsets of queries, keys,
 * values and gate, rotation, the two passes, the depthwise convolution of the values, and the gate.
 *
 * A pair of one window and one head is a few thousand numbers, which stay in the cache from the first to the last step:
 * maps are read where the projections wrote them and written once. The backward pass computes the weights again. Tokens
 * are rows of E = D rounded up to 8 channels. Sums over windows are made in `chunks`, each one thread's from beginning
 * to end, so results do not depend on the number of threads.
 *
 * Tables of a pass are [head][L][P], masks [window][line or 1][L][P], P = L rounded up to 8: both are added to the
 * scores and are -inf in the columns from L on. With `factor` the weights are sigmoid(score) factor over their sum where
 * that is above 1, without it they are softmax(score). */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
#define load(p) (*(const v8 *)(p))
#define store(p, x) (*(v8 *)(p) = (x))
#define INLINE static inline __attribute__((always_inline))
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t v8i __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (v8i){__VA_ARGS__})
#endif
#define SWAP(a) SHUFFLE(a, a, 1, 0, 3, 2, 5, 4, 7, 6)

/* Null where there is none: offsets, gate, taps, rotation, factors, masks. Taps are [K K][H][E], offsets [H][E]. */
typedef struct {
    const float *q, *k, *v, *gate, *q_offset, *k_offset, *v_offset, *gate_offset; /* tokens of q .. gate `step` apart */
    const float *taps, *taps_offset, *cosine, *sine; /* angles [h w][E]; sines with the signs of (e, o) -> (-o, e) */
    const float *row_add, *row_factor, *row_mask, *column_add, *column_factor, *column_mask;
    float *room; /* `each` floats a thread: 12 h w E + 4 h w P + 2 h w + P P, P of the longer axis */
    int64_t each, step, row_lines, column_lines, windows, of_values, chunks, threads; /* of_values: SiLU gate of v */
    int64_t B, h, w, H, D, K;
    double scale;
} attention;

typedef struct {
    const float *add, *factor, *mask;
    int64_t lines, L, P, line_gap, gap, mask_step;
} axis;

static inline int64_t padded(int64_t n) { return (n + 7) / 8 * 8; }

/* e^x by 2^n 2^r, |r| <= 1/2, of relative error 2e-7; 0 below 2^-126, infinite from 2^127.5. */
static inline float power(float x) {
    float a = x * 1.44269504f;
    float inside = a < -126.0f ? -126.0f : (a > 128.0f ? 128.0f : a);
    float n = rintf(inside), r = inside - n;
    float p = 1.5345812425925e-4f;
    p = p * r + 1.3399930903688e-3f;
    p = p * r + 9.6184890717268e-3f;
    p = p * r + 5.5503286421299e-2f;
    p = p * r + 2.4022646248341e-1f;
    p = p * r + 6.9314718246460e-1f;
    p = p * r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return a < -126.0f ? 0.0f : (x != x ? x : scale * p);
}

static void sigmoid(float *x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] = 1.0f / (1.0f + power(-x[i]));
}

/* The first of `left` numbers, zeros behind them. */
INLINE v8 fetch(const float *from, int64_t left) {
    if (left >= 8) return load(from);
    v8 x = {0};
    memcpy(&x, from, (size_t)left * sizeof(float));
    return x;
}

INLINE void put(float *to, v8 x, int64_t left) {
    if (left >= 8)
        store(to, x);
    else
        memcpy(to, &x, (size_t)left * sizeof(float));
}

INLINE v8 total(v8 x) {
    x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x + SWAP(x);
}

/* The sums of eight vectors. */
INLINE v8 totals(const v8 *x) {
    v8 y[4], z[2];
    for (int i = 0; i < 4; i++)
        y[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13) +
               SHUFFLE(x[2 * i], x[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    for (int i = 0; i < 2; i++)
        z[i] = SHUFFLE(y[2 * i], y[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
               SHUFFLE(y[2 * i], y[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return SHUFFLE(z[0], z[1], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(z[0], z[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* One head of a window into rows of E, turned by its angles where `turned`. */
static void read_rows(const attention *a, const float *from, int64_t step, const float *offset, int turned, float scale,
                      float *to) {
    int64_t n = a->h * a->w, E = padded(a->D);
    for (int64_t t = 0; t < n; t++)
        for (int64_t d = 0; d < E; d += 8) {
            v8 x = fetch(from + t * step + d, a->D - d);
            if (offset) x += load(offset + d);
            if (turned && a->cosine) x = x * load(a->cosine + t * E + d) + SWAP(x) * load(a->sine + t * E + d);
            store(to + t * E + d, scale * x);
        }
}

/* The transpose, which also adds all rows to `sum`. */
static void write_rows(const attention *a, const float *from, int turned, float scale, float *to, float *sum) {
    int64_t n = a->h * a->w, E = padded(a->D);
    for (int64_t t = 0; t < n; t++)
        for (int64_t d = 0; d < E; d += 8) {
            v8 x = scale * load(from + t * E + d);
            if (turned && a->cosine) x = x * load(a->cosine + t * E + d) - SWAP(x) * load(a->sine + t * E + d);
            put(to + t * a->step + d, x, a->D - d);
            store(sum + d, load(sum + d) + x);
        }
}

/* s[i][j] = a_i b_j along one line. */
static void products(const float *a, const float *b, float *s, const axis *t, int64_t E) {
    for (int64_t j = 0; j < t->P; j += 8) {
        const float *r[8];
        for (int64_t e = 0; e < 8; e++) r[e] = b + (j + e < t->L ? j + e : t->L - 1) * t->gap;
        for (int64_t i = 0; i < t->L; i++) {
            v8 x[8] = {{0}};
            for (int64_t d = 0; d < E; d += 8) {
                v8 y = load(a + i * t->gap + d);
                for (int e = 0; e < 8; e++) x[e] += y * load(r[e] + d);
            }
            store(s + i * t->P + j, totals(x));
        }
    }
}

/* y_i (+)= sum_j m[i][j] x_j for R rows and 8 V channels. */
INLINE void tile(const int R, const int V, const float *m, int64_t mi, int64_t mj, const float *x, float *y,
                 const axis *t, int add) {
    v8 sum[2][4];
    for (int r = 0; r < R; r++)
        for (int e = 0; e < V; e++) sum[r][e] = add ? load(y + r * t->gap + 8 * e) : (v8){0};
    for (int64_t j = 0; j < t->L; j++)
        for (int r = 0; r < R; r++)
            for (int e = 0; e < V; e++) sum[r][e] += m[r * mi + j * mj] * load(x + j * t->gap + 8 * e);
    for (int r = 0; r < R; r++)
        for (int e = 0; e < V; e++) store(y + r * t->gap + 8 * e, sum[r][e]);
}

/* y (+)= m x along one line, or m^T x. */
static void combine(const float *m, int transposed, const float *x, float *y, const axis *t, int64_t E, int add) {
    int64_t mi = transposed ? 1 : t->P, mj = transposed ? t->P : 1, whole = E / 32 * 32;
    for (int64_t i = 0; i < t->L; i += 2) {
        const float *mr = m + i * mi;
        float *to = y + i * t->gap;
        int pair = i + 1 < t->L;
        for (int64_t d = 0; d < whole; d += 32)
            pair ? tile(2, 4, mr, mi, mj, x + d, to + d, t, add) : tile(1, 4, mr, mi, mj, x + d, to + d, t, add);
        for (int64_t d = whole; d < E; d += 8)
            pair ? tile(2, 1, mr, mi, mj, x + d, to + d, t, add) : tile(1, 1, mr, mi, mj, x + d, to + d, t, add);
    }
}

/* Weights of all lines of a pass, [line][L][P]. With factors `slope` receives dA / dS, and `sums` the row sums. */
static void weigh(const float *q, const float *k, const axis *t, float *p, float *slope, float *sums, int64_t E) {
    int64_t square = t->L * t->P, all = t->lines * square;
    for (int64_t line = 0; line < t->lines; line++) {
        float *s = p + line * square;
        const float *mask = t->mask ? t->mask + line * t->mask_step : 0;
        products(q + line * t->line_gap, k + line * t->line_gap, s, t, E);
        for (int64_t i = 0; i < square; i += 8) store(s + i, load(s + i) + load(t->add + i));
        for (int64_t i = 0; mask && i < square; i += 8) store(s + i, load(s + i) + load(mask + i));
        for (int64_t i = 0; !t->factor && i < t->L; i++) {
            float *row = s + i * t->P, most = row[0];
            for (int64_t j = 1; j < t->L; j++) most = row[j] > most ? row[j] : most;
            for (int64_t j = 0; j < t->P; j += 8) store(row + j, load(row + j) - most);
        }
    }
    if (t->factor) {
        sigmoid(p, all);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < all; i++) p[i] = power(p[i]);
    }
    for (int64_t line = 0; line < t->lines; line++)
        for (int64_t i = 0; i < t->L; i++) {
            float *row = p + line * square + i * t->P;
            v8 sum = {0};
            for (int64_t j = 0; j < t->P; j += 8) {
                v8 x = load(row + j);
                if (t->factor) {
                    v8 f = load(t->factor + i * t->P + j);
                    if (slope) store(slope + line * square + i * t->P + j, f * x * (1.0f - x));
                    x *= f;
                    store(row + j, x);
                }
                sum += x;
            }
            float whole = total(sum)[0], over = t->factor && whole <= 1.0f ? 1.0f : 1.0f / whole;
            if (sums) sums[line * t->L + i] = whole;
            for (int64_t j = 0; j < t->P; j += 8) store(row + j, load(row + j) * over);
        }
}

/* y (+)= P x in all lines. */
static void mix(const float *p, const float *x, float *y, const axis *t, int64_t E, int add) {
    for (int64_t line = 0; line < t->lines; line++)
        combine(p + line * t->L * t->P, 0, x + line * t->line_gap, y + line * t->line_gap, t, E, add);
}

/* Backward of one pass: dx from dy, and what it adds to dq and dk (`add`) or sets them to. `ds` is one line's. */
static void unmix(const float *p, const float *slope, const float *sums, const float *q, const float *k, const float *x,
                  const float *dy, float *dx, float *dq, float *dk, float *ds, const axis *t, int64_t E, int add) {
    for (int64_t line = 0; line < t->lines; line++) {
        int64_t at = line * t->line_gap, square = line * t->L * t->P;
        products(dy + at, x + at, ds, t, E);
        for (int64_t i = 0; i < t->L; i++) {
            const float *pi = p + square + i * t->P, *steep = t->factor ? slope + square + i * t->P : pi;
            float *row = ds + i * t->P, sum = t->factor ? sums[line * t->L + i] : 1.0f;
            v8 inner = {0};
            for (int64_t j = 0; j < t->P; j += 8) inner += load(pi + j) * load(row + j);
            float less = !t->factor || sum > 1.0f ? total(inner)[0] : 0.0f, over = sum > 1.0f ? 1.0f / sum : 1.0f;
            for (int64_t j = 0; j < t->P; j += 8) store(row + j, load(steep + j) * ((load(row + j) - less) * over));
        }
        combine(p + square, 1, dy + at, dx + at, t, E, 0);
        combine(ds, 0, k + at, dq + at, t, E, add);
        combine(ds, 1, q + at, dk + at, t, E, add);
    }
}

static inline int64_t lower(int64_t at, int64_t half) { return at < half ? half - at : 0; }
static inline int64_t upper(int64_t at, int64_t half, int64_t size, int64_t K) {
    return at + half >= size ? size - at + half : K;
}

INLINE void convolved(const int V, const attention *a, const float *x, const float *taps, const float *offset,
                      float *out, int flipped) {
    int64_t half = a->K / 2, last = a->K * a->K - 1, E = padded(a->D), apart = a->H * E;
    for (int64_t r = 0; r < a->h; r++)
        for (int64_t s = 0; s < a->w; s++) {
            int64_t left = lower(s, half), right = upper(s, half, a->w, a->K), bottom = upper(r, half, a->h, a->K);
            v8 sum[4];
            float *to = out + (r * a->w + s) * E;
            for (int e = 0; e < V; e++) sum[e] = offset ? load(offset + 8 * e) : load(to + 8 * e);
            for (int64_t i = lower(r, half); i < bottom; i++)
                for (int64_t j = left; j < right; j++) {
                    int64_t tap = i * a->K + j;
                    const float *w = taps + (flipped ? last - tap : tap) * apart;
                    const float *from = x + ((r + i - half) * a->w + s + j - half) * E;
                    for (int e = 0; e < V; e++) sum[e] += load(w + 8 * e) * load(from + 8 * e);
                }
            for (int e = 0; e < V; e++) store(to + 8 * e, sum[e]);
        }
}

/* out = offset + taps * x, or without an offset out += taps * x; `flipped` turns the taps round. */
static void convolve(const attention *a, const float *x, const float *taps, const float *offset, float *out,
                     int flipped) {
    int64_t E = padded(a->D), d = 0;
    for (; d + 32 <= E; d += 32) convolved(4, a, x + d, taps + d, offset ? offset + d : 0, out + d, flipped);
    for (; d < E; d += 8) convolved(1, a, x + d, taps + d, offset ? offset + d : 0, out + d, flipped);
}

INLINE void tap_sum(const int V, const attention *a, const float *x, const float *g, float *to, int64_t i, int64_t j) {
    int64_t half = a->K / 2, E = padded(a->D);
    int64_t top = lower(i, half), bottom = a->h - lower(a->K - 1 - i, half);
    int64_t left = lower(j, half), right = a->w - lower(a->K - 1 - j, half);
    v8 sum[4];
    for (int e = 0; e < V; e++) sum[e] = load(to + 8 * e);
    for (int64_t r = top; r < bottom; r++)
        for (int64_t s = left; s < right; s++) {
            const float *from = x + ((r + i - half) * a->w + s + j - half) * E, *at = g + (r * a->w + s) * E;
            for (int e = 0; e < V; e++) sum[e] += load(from + 8 * e) * load(at + 8 * e);
        }
    for (int e = 0; e < V; e++) store(to + 8 * e, sum[e]);
}

/* Adds the gradients of the offset and of the taps to `to`, [1 + K K][E]. */
static void tap_sums(const attention *a, const float *x, const float *g, float *to) {
    int64_t E = padded(a->D);
    for (int64_t t = 0; t < a->h * a->w; t++)
        for (int64_t d = 0; d < E; d += 8) store(to + d, load(to + d) + load(g + t * E + d));
    for (int64_t tap = 0; tap < a->K * a->K; tap++) {
        int64_t d = 0;
        for (; d + 32 <= E; d += 32) tap_sum(4, a, x + d, g + d, to + (1 + tap) * E + d, tap / a->K, tap % a->K);
        for (; d < E; d += 8) tap_sum(1, a, x + d, g + d, to + (1 + tap) * E + d, tap / a->K, tap % a->K);
    }
}

static axis along(const attention *a, int columns, int64_t b, int64_t head) {
    int64_t L = columns ? a->h : a->w, E = padded(a->D), P = padded(L), given = columns ? a->column_lines : a->row_lines;
    const float *add = columns ? a->column_add : a->row_add, *factor = columns ? a->column_factor : a->row_factor;
    const float *mask = columns ? a->column_mask : a->row_mask;
    if (factor) factor += head * L * P;
    if (mask) mask += (b % a->windows) * given * L * P;
    axis t = {add + head * L * P, factor, mask, columns ? a->w : a->h, L, P, E, a->w * E, given > 1 ? L * P : 0};
    if (!columns) t.line_gap = a->w * E, t.gap = E;
    return t;
}

static const float *of_head(const float *table, int64_t head, int64_t E) { return table ? table + head * E : 0; }

/* Queries, keys, gated values and the sigmoid of the gate of one window and head; `raw` keeps the gate of values and the
 * values before it. */
static void read_all(const attention *a, int64_t b, int64_t head, float *q, float *k, float *v, float *gate,
                     float *raw) {
    int64_t E = padded(a->D), n = a->h * a->w * E, from = b * a->h * a->w * a->step + head * a->D;
    read_rows(a, a->q + from, a->step, of_head(a->q_offset, head, E), 1, 1.0f, q);
    read_rows(a, a->k + from, a->step, of_head(a->k_offset, head, E), 1, (float)a->scale, k);
    read_rows(a, a->v + from, a->step, of_head(a->v_offset, head, E), 0, 1.0f, v);
    if (!a->gate) return;
    read_rows(a, a->gate + from, a->step, of_head(a->gate_offset, head, E), 0, 1.0f, gate);
    if (a->of_values) {
        memcpy(raw, gate, (size_t)n * sizeof(float));
        memcpy(raw + n, v, (size_t)n * sizeof(float));
    }
    sigmoid(gate, n);
    for (int64_t i = 0; a->of_values && i < n; i += 8) store(v + i, load(v + i) * load(raw + i) * load(gate + i));
}

/* out (B, h w, H, D). */
void passes_forward(const attention *a, float *out) {
    int64_t E = padded(a->D), n = a->h * a->w, m = n * E, step = a->H * a->D;
#pragma omp parallel num_threads(a->threads)
    {
        float *q = a->room + omp_get_thread_num() * a->each, *k = q + m, *v = k + m, *first = v + m, *o = first + m;
        float *gate = o + m, *raw = gate + m, *p = raw + 2 * m;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < a->B * a->H; item++) {
            int64_t b = item / a->H, head = item % a->H, to = b * n * step + head * a->D;
            axis rows = along(a, 0, b, head), columns = along(a, 1, b, head);
            read_all(a, b, head, q, k, v, gate, raw);
            if (a->taps) convolve(a, v, a->taps + head * E, a->taps_offset + head * E, o, 0);
            weigh(q, k, &rows, p, 0, 0, E);
            mix(p, v, first, &rows, E, 0);
            weigh(q, k, &columns, p, 0, 0, E);
            mix(p, first, o, &columns, E, a->taps != 0);
            for (int64_t t = 0; t < n; t++)
                for (int64_t d = 0; d < E; d += 8) {
                    v8 x = load(o + t * E + d);
                    if (a->gate && !a->of_values) x *= load(gate + t * E + d);
                    put(out + to + t * step + d, x, a->D - d);
                }
        }
    }
}

/* What the gate on the output makes of the gradient g of its product `out`: of its argument, and of the input (in g). */
static void ungate(const attention *a, const float *out, const float *gate, float *g, float *d_gate, float *sum) {
    int64_t E = padded(a->D);
    for (int64_t t = 0; t < a->h * a->w; t++)
        for (int64_t d = 0; d < E; d += 8) {
            v8 s = load(gate + t * E + d), x = load(g + t * E + d);
            v8 y = x * fetch(out + t * a->H * a->D + d, a->D - d) * (1.0f - s);
            put(d_gate + t * a->step + d, y, a->D - d);
            store(sum + d, load(sum + d) + y);
            store(g + t * E + d, x * s);
        }
}

/* The same of the gate on the values: v = SiLU(raw[0]) raw[1], the sigmoid in `gate`. */
static void ungate_values(const attention *a, const float *raw, const float *gate, float *g, float *d_gate,
                          float *sum) {
    int64_t E = padded(a->D), m = a->h * a->w * E;
    for (int64_t i = 0; i < m; i += 8) {
        v8 x = load(raw + i), s = load(gate + i), y = load(g + i) * load(raw + m + i) * s * (1.0f + x * (1.0f - s));
        put(d_gate + i / E * a->step + i % E, y, a->D - i % E);
        store(sum + i % E, load(sum + i % E) + y);
        store(g + i, load(g + i) * x * s);
    }
}

/* Gradients dq, dk, dv and d_gate, laid out as q, k, v and gate, from g and what `passes_forward` wrote. `sums` is
 * [chunk][head][5 + K K][E]: of the offsets of q, k, v and gate, of the taps' offset, and of the taps. */
void passes_backward(const attention *a, const float *out, const float *g, float *dq, float *dk, float *dv,
                     float *d_gate, float *sums) {
    int64_t E = padded(a->D), n = a->h * a->w, m = n * E, step = a->H * a->D, parts = (5 + a->K * a->K) * E;
    int64_t weights = n * padded(a->w > a->h ? a->w : a->h);
#pragma omp parallel num_threads(a->threads)
    {
        float *q = a->room + omp_get_thread_num() * a->each, *k = q + m, *v = k + m, *first = v + m, *tg = first + m;
        float *gate = tg + m, *raw = gate + m, *gq = raw + 2 * m, *gk = gq + m, *gv = gk + m, *gfirst = gv + m;
        float *pr = gfirst + m, *pc = pr + weights, *sr = pc + weights, *sc = sr + weights;
        float *row_sums = sc + weights, *column_sums = row_sums + n, *ds = column_sums + n;
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < a->chunks * a->H; unit++) {
            int64_t chunk = unit / a->H, head = unit % a->H;
            float *sum = sums + unit * parts;
            memset(sum, 0, (size_t)parts * sizeof(float));
            for (int64_t b = chunk * a->B / a->chunks; b < (chunk + 1) * a->B / a->chunks; b++) {
                int64_t from = b * n * step + head * a->D, to = b * n * a->step + head * a->D;
                axis rows = along(a, 0, b, head), columns = along(a, 1, b, head);
                read_all(a, b, head, q, k, v, gate, raw);
                read_rows(a, g + from, step, 0, 0, 1.0f, tg);
                if (a->gate && !a->of_values) ungate(a, out + from, gate, tg, d_gate + to, sum + 3 * E);
                weigh(q, k, &rows, pr, sr, row_sums, E);
                mix(pr, v, first, &rows, E, 0);
                weigh(q, k, &columns, pc, sc, column_sums, E);
                unmix(pc, sc, column_sums, q, k, first, tg, gfirst, gq, gk, ds, &columns, E, 0);
                unmix(pr, sr, row_sums, q, k, v, gfirst, gv, gq, gk, ds, &rows, E, 1);
                if (a->taps) {
                    convolve(a, tg, a->taps + head * E, 0, gv, 1);
                    tap_sums(a, v, tg, sum + 4 * E);
                }
                if (a->of_values) ungate_values(a, raw, gate, gv, d_gate + to, sum + 3 * E);
                write_rows(a, gq, 1, 1.0f, dq + to, sum);
                write_rows(a, gk, 1, (float)a->scale, dk + to, sum + E);
                write_rows(a, gv, 0, 1.0f, dv + to, sum + 2 * E);
            }
        }
    }
}
