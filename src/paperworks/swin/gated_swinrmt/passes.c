/* The two passes of retention, forward and backward, one (window, head) at a time: q, k and v are (B, h, w, H, D).
 *
 * A pair of one window and one head is a few thousand numbers, which stay in the cache from the rotation of q and k to
 * the last product. The backward pass computes the weights again. Each pair is one thread's from beginning to end, so
 * results do not depend on the number of threads.
 * `room` has `each` floats for each thread: 4 n D + n L forward, 9 n D + 4 n L + 2 n + L backward, n = h w, L the
 * longer axis.
 *
 * Tables of a pass: `add` is added to the scores; with `factor` the weights are sigmoid(score + add) factor over their
 * sum where that is above 1, without it they are softmax(score + add). Both are [window][line][head][L][L], with steps
 * of 0 where windows or lines share them. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

typedef struct {
    const float *add, *factor;
    int64_t windows, window_step, line_step;
} tables;

/* e^x by 2^n 2^r, |r| <= 1/2, of relative error 2e-7; 0 below 2^-126. */
static inline float power(float x) {
    float a = x * 1.44269504f;
    float inside = a < -126.0f ? -126.0f : (a > 126.0f ? 126.0f : a);
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

static inline float dot(const float *a, const float *b, int64_t n) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static inline void add_to(float *y, float a, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

/* One head of a window into n rows of D, turned by its angles (where there are any) and scaled. */
static void read_turned(const float *from, const float *cosine, const float *sine, float scale, float *to, int64_t n,
                        int64_t step, int64_t D) {
    for (int64_t t = 0; t < n; t++) {
        const float *x = from + t * step;
        float *y = to + t * D;
        if (cosine) {
            const float *c = cosine + t * (D / 2), *s = sine + t * (D / 2);
            for (int64_t m = 0; m < D / 2; m++) {
                float e = x[2 * m], o = x[2 * m + 1];
                y[2 * m] = scale * (e * c[m] - o * s[m]);
                y[2 * m + 1] = scale * (o * c[m] + e * s[m]);
            }
        } else {
            for (int64_t d = 0; d < D; d++) y[d] = scale * x[d];
        }
    }
}

/* The transpose of `read_turned`. */
static void write_turned(const float *from, const float *cosine, const float *sine, float scale, float *to, int64_t n,
                         int64_t step, int64_t D) {
    for (int64_t t = 0; t < n; t++) {
        const float *y = from + t * D;
        float *x = to + t * step;
        if (cosine) {
            const float *c = cosine + t * (D / 2), *s = sine + t * (D / 2);
            for (int64_t m = 0; m < D / 2; m++) {
                float e = y[2 * m], o = y[2 * m + 1];
                x[2 * m] = scale * (e * c[m] + o * s[m]);
                x[2 * m + 1] = scale * (o * c[m] - e * s[m]);
            }
        } else {
            for (int64_t d = 0; d < D; d++) x[d] = scale * y[d];
        }
    }
}

/* Weights of all lines of a pass, [line][L][L]. Token i of a line is row line * line_gap + i * gap of q and k. With
 * factors `slope` receives dA / dS, and `sums` the row sums. */
static void weigh(const float *q, const float *k, const tables *t, const float *add, const float *factor, float *p,
                  float *slope, float *sums, int64_t lines, int64_t L, int64_t line_gap, int64_t gap, int64_t D) {
    for (int64_t line = 0; line < lines; line++) {
        const float *bias = add + line * t->line_step;
        for (int64_t i = 0; i < L; i++) {
            const float *qi = q + (line * line_gap + i * gap) * D;
            float *row = p + (line * L + i) * L;
            for (int64_t j = 0; j < L; j++) row[j] = bias[i * L + j] + dot(qi, k + (line * line_gap + j * gap) * D, D);
            if (!factor) {
                float most = row[0];
                for (int64_t j = 1; j < L; j++) most = row[j] > most ? row[j] : most;
                for (int64_t j = 0; j < L; j++) row[j] -= most;
            }
        }
    }
    int64_t n = lines * L * L;
    if (!factor) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) p[i] = power(p[i]);
    } else {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) p[i] = 1.0f / (1.0f + power(-p[i]));
    }
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < L; i++) {
            float *row = p + (line * L + i) * L, sum = 0.0f;
            if (factor) {
                const float *f = factor + line * t->line_step + i * L;
                if (slope)
                    for (int64_t j = 0; j < L; j++) slope[(line * L + i) * L + j] = f[j] * row[j] * (1.0f - row[j]);
                for (int64_t j = 0; j < L; j++) row[j] *= f[j];
            }
            for (int64_t j = 0; j < L; j++) sum += row[j];
            if (sums) sums[line * L + i] = sum;
            float over = !factor ? 1.0f / sum : (sum > 1.0f ? 1.0f / sum : 1.0f);
            for (int64_t j = 0; j < L; j++) row[j] *= over;
        }
}

/* y of token i: the sum of p[i][j] x of token j along its line. */
static void mix(const float *p, const float *x, float *y, int64_t lines, int64_t L, int64_t line_gap, int64_t gap,
                int64_t D, int64_t y_step) {
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < L; i++) {
            float *to = y + (line * line_gap + i * gap) * y_step;
            for (int64_t d = 0; d < D; d++) to[d] = 0.0f;
            for (int64_t j = 0; j < L; j++)
                add_to(to, p[(line * L + i) * L + j], x + (line * line_gap + j * gap) * D, D);
        }
}

/* Backward of one pass: from dy adds to dx, dq and dk. */
static void unmix(const float *p, const float *slope, const float *sums, const float *q, const float *k, const float *x,
                  const float *dy, float *dx, float *dq, float *dk, float *row, int64_t lines, int64_t L,
                  int64_t line_gap, int64_t gap, int64_t D) {
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < L; i++) {
            int64_t at = line * line_gap + i * gap;
            const float *pi = p + (line * L + i) * L;
            float inner = 0.0f;
            for (int64_t j = 0; j < L; j++) {
                int64_t other = line * line_gap + j * gap;
                row[j] = dot(dy + at * D, x + other * D, D);
                inner += pi[j] * row[j];
                add_to(dx + other * D, pi[j], dy + at * D, D);
            }
            float sum = sums ? sums[line * L + i] : 1.0f;
            for (int64_t j = 0; j < L; j++) {
                int64_t other = line * line_gap + j * gap;
                float ds;
                if (slope)
                    ds = slope[(line * L + i) * L + j] * (sum > 1.0f ? (row[j] - inner) / sum : row[j]);
                else
                    ds = pi[j] * (row[j] - inner);
                add_to(dq + at * D, ds, k + other * D, D);
                add_to(dk + other * D, ds, q + at * D, D);
            }
        }
}

static tables shared(const float *add, const float *factor, int64_t windows, int64_t lines, int64_t heads, int64_t L) {
    int64_t square = heads * L * L;
    tables t = {add, factor, windows, lines * square, lines > 1 ? square : 0};
    return t;
}

static const float *at(const float *table, const tables *t, int64_t b, int64_t head, int64_t L) {
    return table ? table + (b % t->windows) * t->window_step + head * L * L : 0;
}

void passes_forward(const float *q, const float *k, const float *v, const float *cosine, const float *sine, float scale,
                    const float *row_add, const float *row_factor, const float *column_add, const float *column_factor,
                    int64_t windows, int64_t row_lines, int64_t column_lines, float *room, int64_t each, float *out,
                    int64_t B, int64_t h, int64_t w, int64_t H, int64_t D, int threads) {
    tables rows = shared(row_add, row_factor, windows, row_lines, H, w);
    tables columns = shared(column_add, column_factor, windows, column_lines, H, h);
    int64_t n = h * w, step = H * D;
#pragma omp parallel num_threads(threads)
    {
        float *tq = room + omp_get_thread_num() * each, *tk = tq + n * D, *tv = tk + n * D, *first = tv + n * D, *p = first + n * D;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < B * H; item++) {
            int64_t b = item / H, head = item % H, from = (b * n * H + head) * D;
            read_turned(q + from, cosine, sine, 1.0f, tq, n, step, D);
            read_turned(k + from, cosine, sine, scale, tk, n, step, D);
            read_turned(v + from, 0, 0, 1.0f, tv, n, step, D);
            weigh(tq, tk, &rows, at(row_add, &rows, b, head, w), at(row_factor, &rows, b, head, w), p, 0, 0, h, w, w, 1,
                  D);
            mix(p, tv, first, h, w, w, 1, D, D);
            weigh(tq, tk, &columns, at(column_add, &columns, b, head, h), at(column_factor, &columns, b, head, h), p, 0,
                  0, w, h, 1, w, D);
            mix(p, first, out + from, w, h, 1, w, D, step);
        }
    }
}

void passes_backward(const float *q, const float *k, const float *v, const float *cosine, const float *sine, float scale,
                     const float *row_add, const float *row_factor, const float *column_add,
                     const float *column_factor, int64_t windows, int64_t row_lines, int64_t column_lines, float *room,
                     int64_t each, const float *g, float *dq, float *dk, float *dv, int64_t B, int64_t h, int64_t w, int64_t H,
                     int64_t D, int threads) {
    tables rows = shared(row_add, row_factor, windows, row_lines, H, w);
    tables columns = shared(column_add, column_factor, windows, column_lines, H, h);
    int64_t n = h * w, step = H * D, weights = n * (w > h ? w : h);
#pragma omp parallel num_threads(threads)
    {
        float *tq = room + omp_get_thread_num() * each, *tk = tq + n * D, *tv = tk + n * D, *first = tv + n * D, *tg = first + n * D;
        float *gq = tg + n * D, *gk = gq + n * D, *gv = gk + n * D, *gfirst = gv + n * D;
        float *pr = gfirst + n * D, *pc = pr + weights, *sr = pc + weights, *sc = sr + weights;
        float *rsums = sc + weights, *csums = rsums + n, *row = csums + n;
        float *row_slope = row_factor ? sr : 0, *column_slope = column_factor ? sc : 0;
#pragma omp for schedule(static)
        for (int64_t item = 0; item < B * H; item++) {
            int64_t b = item / H, head = item % H, from = (b * n * H + head) * D;
            read_turned(q + from, cosine, sine, 1.0f, tq, n, step, D);
            read_turned(k + from, cosine, sine, scale, tk, n, step, D);
            read_turned(v + from, 0, 0, 1.0f, tv, n, step, D);
            read_turned(g + from, 0, 0, 1.0f, tg, n, step, D);
            memset(gq, 0, (size_t)(4 * n * D) * sizeof(float));
            weigh(tq, tk, &rows, at(row_add, &rows, b, head, w), at(row_factor, &rows, b, head, w), pr, row_slope,
                  rsums, h, w, w, 1, D);
            mix(pr, tv, first, h, w, w, 1, D, D);
            weigh(tq, tk, &columns, at(column_add, &columns, b, head, h), at(column_factor, &columns, b, head, h), pc,
                  column_slope, csums, w, h, 1, w, D);
            unmix(pc, column_slope, csums, tq, tk, first, tg, gfirst, gq, gk, row, w, h, 1, w, D);
            unmix(pr, row_slope, rsums, tq, tk, tv, gfirst, gv, gq, gk, row, h, w, w, 1, D);
            write_turned(gq, cosine, sine, 1.0f, dq + from, n, step, D);
            write_turned(gk, cosine, sine, scale, dk + from, n, step, D);
            write_turned(gv, 0, 0, 1.0f, dv + from, n, step, D);
        }
    }
}
