// Attention inside windows, read from and written to the map itself: no rolled, padded or partitioned copy is made.
//
// A window holds n tokens; index[w * n + i] is the row of the map that token i of window w is, or -1 for padding, which
// is zero. A row of qkv is [3][heads][d]; the row `offset`, the bias of the projection, is added to each, padding
// included. Tokens attend to one another where their labels agree; without labels all do. One task is one head of one
// window of one image. Its keys and values are packed once; the queries that are no padding meet them in blocks, in
// tiles of six by sixteen products, whose sums stay in registers.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t v8i __attribute__((vector_size(32)));

#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else // GCC before 12
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (v8i){__VA_ARGS__})
#endif

#define TILE 6
#define STRIP 16
#define BLOCK 48 // queries that meet the keys at a time
#define MASKED (-1e30f)
#define LOG2_E 1.44269504f

static inline v8 load(const float *p) { return *(const v8 *)p; }
static inline void store(float *p, v8 x) { *(v8 *)p = x; }
static inline int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// 2^x of a number that is not positive, within 3 ulp; 0 below -125. Plain arithmetic, so that loops over it vectorise.
static inline float power_of_two(float x) {
    int32_t kept = -(int32_t)!(x <= -125.0f), bits; // all ones, or zero; NaN is kept
    float y;
    memcpy(&bits, &x, sizeof bits);
    bits &= kept;
    memcpy(&y, &bits, sizeof y);
    int32_t whole = (int32_t)(y - 0.5f); // towards zero: the nearest whole number
    float r = y - (float)whole, scale;
    int32_t power = (whole + 127) << 23;
    memcpy(&scale, &power, sizeof scale);
    y = 1.0f + r * (0.693147004f + r * (0.240222424f + r * (0.0555073358f + r * (9.67151299e-3f + r * 1.32647273e-3f))));
    y *= scale;
    memcpy(&bits, &y, sizeof bits);
    bits &= kept;
    memcpy(&y, &bits, sizeof y);
    return y;
}

// A matrix read by tiles: element (row, k) at from[row * down + k * along], one of down and along being 1.
typedef struct {
    const float *from;
    int64_t down, along;
} Rows;

// A matrix read by strips: row k of strip s at from[s * next + k * along], STRIP floats.
typedef struct {
    const float *from;
    int64_t next, along;
} Strips;

// out[r][0 : 8 * wide] (+)= sum_k a(r, k) b[k], for `count` rows
static inline __attribute__((always_inline)) void tile(int count, int wide, const float *a, int64_t down, int64_t along,
                                                       const float *b, int64_t next, int64_t depth, float *out,
                                                       int64_t stride, int add) {
    v8 sum[TILE][2];
#pragma GCC unroll 6
    for (int r = 0; r < count; r++) sum[r][0] = sum[r][1] = (v8){0};
    for (int64_t k = 0; k < depth; k++, b += next) {
        v8 b0 = load(b), b1 = wide == 2 ? load(b + 8) : b0;
#pragma GCC unroll 6
        for (int r = 0; r < count; r++) {
            float x = a[r * down + k * along];
            sum[r][0] += x * b0;
            if (wide == 2) sum[r][1] += x * b1;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < count; r++) {
        float *to = out + r * stride;
        if (add) sum[r][0] += load(to);
        store(to, sum[r][0]);
        if (wide == 1) continue;
        if (add) sum[r][1] += load(to + 8);
        store(to + 8, sum[r][1]);
    }
}

#define TILES(name, wide, down, along)                                                                            \
    static void name(int64_t count, const float *a, int64_t stride_a, const float *b, int64_t next, int64_t depth, \
                     float *out, int64_t stride, int add) {                                                       \
        switch (count) {                                                                                          \
        case 1: tile(1, wide, a, down, along, b, next, depth, out, stride, add); break;                           \
        case 2: tile(2, wide, a, down, along, b, next, depth, out, stride, add); break;                           \
        case 3: tile(3, wide, a, down, along, b, next, depth, out, stride, add); break;                           \
        case 4: tile(4, wide, a, down, along, b, next, depth, out, stride, add); break;                           \
        case 5: tile(5, wide, a, down, along, b, next, depth, out, stride, add); break;                           \
        default: tile(6, wide, a, down, along, b, next, depth, out, stride, add);                                 \
        }                                                                                                         \
    }
TILES(row_tile, 2, stride_a, 1)
TILES(row_tile_half, 1, stride_a, 1)
TILES(column_tile, 2, 1, stride_a)
TILES(column_tile_half, 1, 1, stride_a)

// out[i][j] (+)= sum_k a(i, k) b(k, j) over i < rows, j < width (a multiple of 8), k < depth
static void multiply(Rows a, Strips b, int64_t rows, int64_t width, int64_t depth, float *out, int64_t stride, int add) {
    int across = a.along == 1;
    for (int64_t j = 0; j < width; j += STRIP, b.from += b.next)
        for (int64_t i = 0; i < rows; i += TILE) {
            const float *from = a.from + i * a.down;
            float *to = out + i * stride + j;
            int64_t count = least(TILE, rows - i);
            if (width - j >= STRIP)
                (across ? row_tile : column_tile)(count, from, across ? a.down : a.along, b.from, b.along, depth, to, stride, add);
            else
                (across ? row_tile_half : column_tile_half)(count, from, across ? a.down : a.along, b.from, b.along, depth, to, stride, add);
        }
}

typedef struct {
    const float *qkv, *offset, *bias;
    const int32_t *index, *labels;
    int64_t tokens, windows, heads, n, d; // d: width of a head
    int64_t np, dp, block;                // n and d rounded up to whole vectors; queries in a block
    float scale;                          // of the scores, which are in units of log 2
} Shape;

// A window of an image under a head: the task, and its queries, the tokens that are no padding.
typedef struct {
    int64_t head, window, image, queries;
    const int32_t *index;
    int32_t *query, *labels; // labels: [np], those beyond n unlike all others
    float *bias;             // [np], room for a row of the bias
} Task;

static float *room(int64_t floats) {
    float *found = NULL;
    if (posix_memalign((void **)&found, 64, floats * sizeof(float))) abort();
    memset(found, 0, floats * sizeof(float));
    return found;
}

static Task new_task(const Shape *s) {
    Task t = {.query = (int32_t *)room(s->n), .labels = (int32_t *)room(s->np), .bias = room(s->np)};
    for (int64_t j = s->n; j < s->np; j++) t.labels[j] = INT32_MIN;
    return t;
}

static void free_task(Task *t) { free(t->query), free(t->labels), free(t->bias); }

static void set_task(const Shape *s, Task *t, int64_t number) {
    t->head = number % s->heads, t->window = number / s->heads % s->windows, t->image = number / s->heads / s->windows;
    t->index = s->index + t->window * s->n, t->queries = 0;
    for (int64_t i = 0; i < s->n; i++)
        if (t->index[i] >= 0) t->query[t->queries++] = i;
    if (s->labels) memcpy(t->labels, s->labels + t->window * s->n, s->n * sizeof(int32_t));
}

// Rows of one of query, key and value: [count][dp], of the tokens named or, without names, of all; zeros beyond d.
static void pack_rows(const Shape *s, const Task *t, int64_t part, const int32_t *names, int64_t count, float scale, float *to) {
    int64_t d = s->d, width = s->heads * d;
    const float *base = s->qkv + t->image * s->tokens * 3 * width + part * width + t->head * d;
    const float *offset = s->offset + part * width + t->head * d;
    int64_t ahead = t->head + 1 < s->heads ? d : 0; // of the next head, whose turn it is next
    for (int64_t i = 0; i < count; i++, to += s->dp) {
        int64_t at = t->index[names ? names[i] : i];
        const float *from = base + at * 3 * width;
        if (at >= 0)
            for (int64_t e = 0; e < ahead; e += 16) __builtin_prefetch(from + d + e, 0, 2);
        if (at < 0)
            for (int64_t e = 0; e < d; e++) to[e] = scale * offset[e];
        else
            for (int64_t e = 0; e < d; e++) to[e] = scale * (offset[e] + from[e]);
    }
}

static inline void transpose(const float *from, int64_t stride, float *to, int64_t to_stride) {
    v8 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = load(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        b[i] = SHUFFLE(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[i + 1] = SHUFFLE(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = SHUFFLE(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + 2 * j + 1] = SHUFFLE(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        store(to + i * to_stride, SHUFFLE(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(to + (i + 4) * to_stride, SHUFFLE(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

// Rows [up(n, STRIP)][dp] to strips [.][dp][STRIP], token j being column j % STRIP of strip j / STRIP.
static void to_strips(const Shape *s, const float *rows, float *strips) {
    for (int64_t j = 0; j < s->np; j += 8)
        for (int64_t e = 0; e < s->dp; e += 8)
            transpose(rows + j * s->dp + e, s->dp, strips + j / STRIP * STRIP * s->dp + e * STRIP + j % STRIP, STRIP);
}

// Scores of a query, in units of log 2, to exponentials over their sum, whose inverse it returns; beyond n they are 0.
static float exponentials(const Shape *s, const Task *t, int64_t query, float *p) {
    const int32_t *label = t->labels, own = label[query];
    const float *bias = t->bias;
    if (s->bias) {
        int64_t row = (t->head * s->n + query) * s->n;
        bias = s->bias + row;
        if (row + s->np > s->heads * s->n * s->n) bias = memcpy(t->bias, bias, s->n * sizeof(float));
    }
    float top = MASKED, sum = 0;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < s->np; j++) {
        float x = label[j] == own ? p[j] + LOG2_E * bias[j] : MASKED;
        p[j] = x;
        top = x > top ? x : top;
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < s->np; j++) {
        p[j] = power_of_two(p[j] - top);
        sum += p[j];
    }
    return 1.0f / sum;
}

static Shape shape(const float *qkv, const float *offset, const float *bias, const int32_t *index, const int32_t *labels,
                   int64_t tokens, int64_t windows, int64_t heads, int64_t n, int64_t d) {
    Shape s = {qkv, offset, bias, index, labels, tokens, windows, heads, n, d, up(n, 8), up(d, 8), 0, LOG2_E / sqrtf((float)d)};
    s.block = n <= 2 * BLOCK ? n : BLOCK;
    return s;
}

void window_attention(const float *qkv, const float *offset, const float *bias, const int32_t *index,
                      const int32_t *labels, float *out, int64_t images, int64_t tokens, int64_t windows, int64_t heads,
                      int64_t n, int64_t d, int64_t threads) {
    Shape s = shape(qkv, offset, bias, index, labels, tokens, windows, heads, n, d);
    int64_t np = s.np, dp = s.dp, all = up(n, STRIP), tasks = images * windows * heads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float *rows = room(all * dp), *q = room(n * dp), *kt = room(all * dp), *v = room(n * dp);
        float *scores = room(s.block * np), *found = room(s.block * dp);
        Task t = new_task(&s);
#pragma omp for schedule(static)
        for (int64_t number = 0; number < tasks; number++) {
            set_task(&s, &t, number);
            pack_rows(&s, &t, 0, t.query, t.queries, s.scale, q);
            pack_rows(&s, &t, 1, NULL, n, 1.0f, rows);
            pack_rows(&s, &t, 2, NULL, n, 1.0f, v);
            to_strips(&s, rows, kt);
            for (int64_t first = 0; first < t.queries; first += s.block) {
                int64_t count = least(s.block, t.queries - first);
                float inverse[2 * BLOCK];
                multiply((Rows){q + first * dp, dp, 1}, (Strips){kt, STRIP * dp, STRIP}, count, np, dp, scores, np, 0);
                for (int64_t i = 0; i < count; i++) inverse[i] = exponentials(&s, &t, t.query[first + i], scores + i * np);
                multiply((Rows){scores, np, 1}, (Strips){v, STRIP, dp}, count, dp, n, found, dp, 0);
                for (int64_t i = 0; i < count; i++) {
                    float *to = out + ((t.image * tokens + t.index[t.query[first + i]]) * heads + t.head) * d;
                    for (int64_t e = 0; e < d; e++) to[e] = inverse[i] * found[i * dp + e];
                }
            }
        }
        free(rows), free(q), free(kt), free(v), free(scores), free(found), free_task(&t);
    }
}

// Gradients: d_qkv as qkv, d_offset as offset and d_bias as bias, the last two one buffer a thread (summed by the caller).
void window_attention_backward(const float *qkv, const float *offset, const float *bias, const int32_t *index,
                               const int32_t *labels, const float *d_out, float *d_qkv, float *d_offset, float *d_bias,
                               int64_t images, int64_t tokens, int64_t windows, int64_t heads, int64_t n, int64_t d,
                               int64_t threads) {
    Shape s = shape(qkv, offset, bias, index, labels, tokens, windows, heads, n, d);
    int64_t np = s.np, dp = s.dp, all = up(n, STRIP), tasks = images * windows * heads, width = heads * d;
    float scale = s.scale / LOG2_E;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t part = 0; part < threads; part++) {
        float *q = room(n * dp), *k = room(all * dp), *v = room(all * dp), *go = room(n * dp);
        float *kt = room(all * dp), *vt = room(all * dp), *dq = room(n * dp), *dk = room(np * dp), *dv = room(np * dp);
        float *p = room(s.block * np), *ds = room(s.block * np);
        float *offsets = d_offset + part * 3 * width, *biases = d_bias ? d_bias + part * heads * n * n : NULL;
        Task t = new_task(&s);
        for (int64_t number = tasks * part / threads; number < tasks * (part + 1) / threads; number++) {
            set_task(&s, &t, number);
            pack_rows(&s, &t, 0, t.query, t.queries, s.scale, q);
            pack_rows(&s, &t, 1, NULL, n, 1.0f, k);
            pack_rows(&s, &t, 2, NULL, n, 1.0f, v);
            to_strips(&s, k, kt), to_strips(&s, v, vt);
            for (int64_t i = 0; i < t.queries; i++)
                memcpy(go + i * dp, d_out + (t.image * tokens + t.index[t.query[i]]) * width + t.head * d, d * sizeof(float));
            for (int64_t first = 0; first < t.queries; first += s.block) {
                int64_t count = least(s.block, t.queries - first);
                Strips q_strips = {q + first * dp, STRIP, dp}, go_strips = {go + first * dp, STRIP, dp};
                multiply((Rows){q + first * dp, dp, 1}, (Strips){kt, STRIP * dp, STRIP}, count, np, dp, p, np, 0);
                multiply((Rows){go + first * dp, dp, 1}, (Strips){vt, STRIP * dp, STRIP}, count, np, dp, ds, np, 0);
                for (int64_t i = 0; i < count; i++) {
                    float *pi = p + i * np, *di = ds + i * np, delta = 0, inverse = exponentials(&s, &t, t.query[first + i], pi);
                    for (int64_t j = 0; j < np; j++) {
                        pi[j] *= inverse;
                        delta += pi[j] * di[j];
                    }
                    for (int64_t j = 0; j < np; j++) di[j] = pi[j] * (di[j] - delta);
                    if (biases) {
                        float *to = biases + (t.head * n + t.query[first + i]) * n;
                        for (int64_t j = 0; j < n; j++) to[j] += di[j];
                    }
                }
                multiply((Rows){p, 1, np}, go_strips, n, dp, count, dv, dp, first > 0);
                multiply((Rows){ds, 1, np}, q_strips, n, dp, count, dk, dp, first > 0);
                multiply((Rows){ds, np, 1}, (Strips){k, STRIP, dp}, count, dp, n, dq + first * dp, dp, 0);
            }
            if (!t.queries) continue; // a window of padding alone: nothing looks at its keys
            float *sum = offsets + t.head * d, *to = d_qkv + t.image * tokens * 3 * width + t.head * d;
            for (int64_t i = 0; i < t.queries; i++)
                for (int64_t e = 0; e < d; e++) {
                    float g = scale * dq[i * dp + e];
                    sum[e] += g;
                    to[t.index[t.query[i]] * 3 * width + e] = g;
                }
            for (int64_t i = 0; i < n; i++)
                for (int64_t e = 0; e < d; e++) {
                    dk[i * dp + e] /= LOG2_E;
                    sum[width + e] += dk[i * dp + e], sum[2 * width + e] += dv[i * dp + e];
                }
            for (int64_t i = 0; i < t.queries; i++) {
                float *key = to + t.index[t.query[i]] * 3 * width + width;
                memcpy(key, dk + t.query[i] * dp, d * sizeof(float));
                memcpy(key + width, dv + t.query[i] * dp, d * sizeof(float));
            }
        }
        free(q), free(k), free(v), free(go), free(kt), free(vt), free(dq), free(dk), free(dv), free(p), free(ds), free_task(&t);
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
            float a = x[row * width + i] + offset[i], q = tail(a, 0.3989422804f * power_of_two(-0.5f * LOG2_E * a * a));
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
            float a = x[row * width + i] + offset[i], density = 0.3989422804f * power_of_two(-0.5f * LOG2_E * a * a);
            d_x[row * width + i] = d_out[row * width + i] * (upper(a, tail(a, density)) + a * density);
        }
}
