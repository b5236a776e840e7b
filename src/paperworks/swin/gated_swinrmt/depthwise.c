/* Depthwise convolutions of channels-last maps (B, H, W, C), stride 1, zero padding K / 2, with what is added to them.
 *
 * Taps are [K K][C]. Channels are taken in blocks of 32, which stay in registers from the first tap to the last; maps
 * are neither copied to another layout nor padded. A row of a map, or in `depthwise_taps` a block of channels, is one
 * thread's from beginning to end, so results do not depend on the number of threads. */
#include <stdint.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));

#define BLOCK 32
#define load(p) (*(const v8 *)(p))
#define store(p, x) (*(v8 *)(p) = (x))

static inline int64_t lower(int64_t at, int64_t half) { return at < half ? half - at : 0; }
static inline int64_t upper(int64_t at, int64_t half, int64_t size, int64_t K) {
    return at + half >= size ? size - at + half : K;
}

/* out = base + bias + taps * x; without `base` or `bias` that is 0. With `flipped` the taps are turned round. */
void depthwise(const float *x, const float *taps, const float *bias, const float *base, float *out, int64_t flipped,
               int64_t B, int64_t H, int64_t W, int64_t C, int64_t K, int threads) {
    int64_t half = K / 2, last = K * K - 1, whole = C / BLOCK * BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < B * H; row++) {
        int64_t r = row % H, top = lower(r, half), bottom = upper(r, half, H, K);
        for (int64_t c = 0; c < whole; c += BLOCK)
            for (int64_t s = 0; s < W; s++) {
                int64_t left = lower(s, half), right = upper(s, half, W, K), to = (row * W + s) * C + c;
                v8 zero = {0}, a0 = zero, a1 = zero, a2 = zero, a3 = zero;
                if (bias) a0 = load(bias + c), a1 = load(bias + c + 8), a2 = load(bias + c + 16), a3 = load(bias + c + 24);
                if (base) a0 += load(base + to), a1 += load(base + to + 8), a2 += load(base + to + 16), a3 += load(base + to + 24);
                for (int64_t i = top; i < bottom; i++)
                    for (int64_t j = left; j < right; j++) {
                        int64_t tap = i * K + j;
                        const float *w = taps + (flipped ? last - tap : tap) * C + c;
                        const float *from = x + ((row + i - half) * W + s + j - half) * C + c;
                        a0 += load(w) * load(from);
                        a1 += load(w + 8) * load(from + 8);
                        a2 += load(w + 16) * load(from + 16);
                        a3 += load(w + 24) * load(from + 24);
                    }
                store(out + to, a0), store(out + to + 8, a1), store(out + to + 16, a2), store(out + to + 24, a3);
            }
        for (int64_t c = whole; c < C; c++)
            for (int64_t s = 0; s < W; s++) {
                int64_t left = lower(s, half), right = upper(s, half, W, K), to = (row * W + s) * C + c;
                float sum = (bias ? bias[c] : 0.0f) + (base ? base[to] : 0.0f);
                for (int64_t i = top; i < bottom; i++)
                    for (int64_t j = left; j < right; j++) {
                        int64_t tap = i * K + j;
                        sum += taps[(flipped ? last - tap : tap) * C + c] *
                               x[((row + i - half) * W + s + j - half) * C + c];
                    }
                out[to] = sum;
            }
    }
}

/* Gradients of taps and bias: d_taps[i K + j] = sum g x moved by (i, j), d_bias = sum g. */
void depthwise_taps(const float *x, const float *g, float *d_taps, float *d_bias, int64_t B, int64_t H, int64_t W,
                    int64_t C, int64_t K, int threads) {
    int64_t half = K / 2;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t block = 0; block < (C + BLOCK - 1) / BLOCK; block++) {
        int64_t c = block * BLOCK, n = C - c < BLOCK ? C - c : BLOCK;
        for (int64_t t = 0; t < K * K; t++)
            for (int64_t e = 0; e < n; e++) d_taps[t * C + c + e] = 0.0f;
        for (int64_t e = 0; e < n; e++) d_bias[c + e] = 0.0f;
        for (int64_t row = 0; row < B * H; row++) {
            int64_t r = row % H;
            for (int64_t s = 0; s < W; s++)
                for (int64_t e = 0; e < n; e++) d_bias[c + e] += g[(row * W + s) * C + c + e];
            for (int64_t i = lower(r, half); i < upper(r, half, H, K); i++)
                for (int64_t j = 0; j < K; j++) {
                    int64_t first = j < half ? half - j : 0, end = W + half - j < W ? W + half - j : W;
                    const float *from = x + ((row + i - half) * W + j - half) * C + c, *at = g + row * W * C + c;
                    float *to = d_taps + (i * K + j) * C + c;
                    if (n == BLOCK) {
                        v8 a0 = load(to), a1 = load(to + 8), a2 = load(to + 16), a3 = load(to + 24);
                        for (int64_t s = first; s < end; s++) {
                            a0 += load(from + s * C) * load(at + s * C);
                            a1 += load(from + s * C + 8) * load(at + s * C + 8);
                            a2 += load(from + s * C + 16) * load(at + s * C + 16);
                            a3 += load(from + s * C + 24) * load(at + s * C + 24);
                        }
                        store(to, a0), store(to + 8, a1), store(to + 16, a2), store(to + 24, a3);
                    } else {
                        for (int64_t s = first; s < end; s++)
                            for (int64_t e = 0; e < n; e++) to[e] += from[s * C + e] * at[s * C + e];
                    }
                }
        }
    }
}
