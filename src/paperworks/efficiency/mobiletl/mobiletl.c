/* y = act(a x + b) with the slope of its backward pass kept in one or two bits a value, and that backward pass, one pass
 * each over tensors seen as (outer, channels, inner) with one (a, b) a channel. A plain activation is channels = 1,
 * a = 1, b = 0; channels-last memory is inner = 1.
 *
 * Bits are in the order of memory, eight values a byte, lowest first; the two-bit code has its low and its high bits in
 * planes of their own. d b is summed as float over pieces whose limits depend only on the shape, then as double over
 * the pieces in their order, so it does not depend on the number of threads. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PIECE 4096 /* elements of one partial sum where a row is long; a multiple of 8 */
#define ROWS 64    /* rows of one partial sum where inner = 1 */
#define INLINE static inline __attribute__((always_inline))

enum { RELU, RELU6, HARDSWISH, SILU };
enum { SIGN, CAPPED, TWO_BIT };

typedef uint16_t bf16;

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
INLINE float load_bf16(bf16 value) { return as_float((uint32_t)value << 16); }

INLINE bf16 store_bf16(float value) { /* to nearest, ties to even; a NaN stays one */
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bf16)(value != value ? 0x7fc0u : rounded);
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Written so that a NaN stays one: it is not below 0. */
INLINE float act(float z, int kind) {
    float low = z < 0.0f ? 0.0f : z;
    if (kind == RELU) return low;
    if (kind == RELU6) return low > 6.0f ? 6.0f : low;
    if (kind == HARDSWISH) {
        float gate = z + 3.0f;
        gate = gate < 0.0f ? 0.0f : gate;
        gate = gate > 6.0f ? 6.0f : gate;
        return z * gate * (1.0f / 6.0f);
    }
    return z / (1.0f + expf(-z));
}

INLINE uint8_t code(float z, int rule) {
    if (rule == SIGN) return z > 0.0f;
    if (rule == CAPPED) return (z > 0.0f) & (z < 6.0f);
    return (uint8_t)((z >= -1.5f) + (z >= 0.0f) + (z >= 1.5f));
}

/* Bit `shift` of each of n codes (padded with zeros to a multiple of 8) into ceil(n / 8) bytes. */
static void pack(const uint8_t *codes, uint8_t *bits, int64_t n, int shift) {
    for (int64_t k = 0; k < (n + 7) / 8; k++) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * k, 8);
        eight = (eight >> shift) & 0x0101010101010101u;
        bits[k] = (uint8_t)((eight * 0x0102040810204080u) >> 56);
    }
}

/* Eight bytes of 0 or 1 from each of n bytes. */
static void unpack(const uint8_t *bits, uint8_t *codes, int64_t n) {
    for (int64_t k = 0; k < n; k++) {
        uint64_t eight = ((uint64_t)bits[k] * 0x0101010101010101u) & 0x8040201008040201u;
        eight = ((eight + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 7;
        memcpy(codes + 8 * k, &eight, 8);
    }
}

typedef struct { /* the codes of up to PIECE elements */
    uint8_t low[PIECE + 16], high[PIECE + 16];
    const uint8_t *from_low, *from_high;
} codes_t;

/* The codes of the elements [begin, begin + n), n <= PIECE. */
static void fetch(codes_t *codes, const uint8_t *low, const uint8_t *high, int64_t begin, int64_t n, int rule) {
    int64_t first = begin / 8, count = (begin + n + 7) / 8 - first;
    unpack(low + first, codes->low, count);
    if (rule == TWO_BIT) unpack(high + first, codes->high, count);
    codes->from_low = codes->low + begin % 8;
    codes->from_high = codes->high + begin % 8;
}

INLINE float slope(const codes_t *codes, int64_t i, const float *slopes, int rule) {
    float below = codes->from_low[i] ? slopes[1] : slopes[0];
    if (rule != TWO_BIT) return below;
    float above = codes->from_low[i] ? slopes[3] : slopes[2];
    return codes->from_high[i] ? above : below;
}

/* The kind and the rule as constants, so that the loops have no branches. */
#define CALL_PIECE(T, kind, rule) piece_##T(x, a, b, y, codes, begin, n, channels, inner, kind, rule)
#define PIECE_SWITCH(T, rule)                                                                                          \
    switch (kind) {                                                                                                    \
    case RELU: CALL_PIECE(T, RELU, rule); break;                                                                       \
    case RELU6: CALL_PIECE(T, RELU6, rule); break;                                                                     \
    case HARDSWISH: CALL_PIECE(T, HARDSWISH, rule); break;                                                             \
    default: CALL_PIECE(T, SILU, rule);                                                                                \
    }

#define DEFINE(T)                                                                                                      \
    INLINE void run_##T(const T##_t *x, float a, float b, T##_t *y, uint8_t *codes, int64_t n, int kind, int rule) {   \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float z = a * load_##T(x[i]) + b;                                                                          \
            y[i] = store_##T(act(z, kind));                                                                            \
            codes[i] = code(z, rule);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE void row_##T(const T##_t *x, const float *a, const float *b, T##_t *y, uint8_t *codes, int64_t n, int kind, \
                        int rule) {                                                                                    \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float z = a[i] * load_##T(x[i]) + b[i];                                                                    \
            y[i] = store_##T(act(z, kind));                                                                            \
            codes[i] = code(z, rule);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* The elements [begin, begin + n), in runs of one channel, or of one row of channels. */                          \
    INLINE void piece_##T(const T##_t *x, const float *a, const float *b, T##_t *y, uint8_t *codes, int64_t begin,     \
                          int64_t n, int64_t channels, int64_t inner, int kind, int rule) {                            \
        for (int64_t done = 0, step; done < n; done += step) {                                                         \
            int64_t at = begin + done;                                                                                 \
            if (inner == 1) {                                                                                          \
                int64_t c = at % channels;                                                                             \
                step = smaller(n - done, channels - c);                                                                \
                row_##T(x + at, a + c, b + c, y + at, codes + done, step, kind, rule);                                 \
            } else {                                                                                                   \
                int64_t c = at / inner % channels;                                                                     \
                step = smaller(n - done, inner - at % inner);                                                          \
                run_##T(x + at, a[c], b[c], y + at, codes + done, step, kind, rule);                                   \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void mobiletl_forward_##T(const T##_t *x, const float *a, const float *b, T##_t *y, uint8_t *low, uint8_t *high,   \
                              int64_t outer, int64_t channels, int64_t inner, int kind, int rule, int threads) {       \
        int64_t total = outer * channels * inner, pieces = (total + PIECE - 1) / PIECE;                                \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < pieces; k++) {       \
            int64_t begin = k * PIECE, n = smaller(PIECE, total - begin);                                              \
            uint8_t codes[PIECE + 8];                                                                                  \
            memset(codes + n, 0, 8);                                                                                   \
            if (rule == SIGN) {                                                                                        \
                PIECE_SWITCH(T, SIGN)                                                                                  \
            } else if (rule == CAPPED) {                                                                               \
                PIECE_SWITCH(T, CAPPED)                                                                                \
            } else {                                                                                                   \
                PIECE_SWITCH(T, TWO_BIT)                                                                               \
                pack(codes, high + begin / 8, n, 1);                                                                   \
            }                                                                                                          \
            pack(codes, low + begin / 8, n, 0);                                                                        \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE float back_##T(const T##_t *g, float a, const codes_t *codes, const float *slopes, T##_t *dx, int64_t n,    \
                          int uniform, int rule) {                                                                     \
        float sum = 0.0f;                                                                                              \
        _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < n; i++) {                                       \
            float d = load_##T(g[uniform ? 0 : i]) * slope(codes, i, slopes, rule);                                    \
            dx[i] = store_##T(a * d);                                                                                  \
            sum += d;                                                                                                  \
        }                                                                                                              \
        return sum;                                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    INLINE void back_row_##T(const T##_t *g, const float *a, const codes_t *codes, const float *slopes, T##_t *dx,     \
                             float *sum, int64_t n, int uniform, int rule) {                                           \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                                          \
            float d = load_##T(g[uniform ? 0 : i]) * slope(codes, i, slopes, rule);                                    \
            dx[i] = store_##T(a[i] * d);                                                                               \
            sum[i] += d;                                                                                               \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* `partial` has room for every piece: channels x (blocks of ROWS rows, or outer x pieces). With `uniform` g is one \
     * value. */                                                                                                       \
    void mobiletl_backward_##T(const T##_t *g, const float *a, const uint8_t *low, const uint8_t *high,                \
                               const float *slopes, T##_t *dx, float *partial, float *db, int64_t outer,               \
                               int64_t channels, int64_t inner, int rule, int uniform, int threads) {                  \
        int64_t pieces = inner == 1 ? 1 : (inner + PIECE - 1) / PIECE;                                                 \
        int64_t blocks = inner == 1 ? (outer + ROWS - 1) / ROWS : outer;                                               \
        int64_t items = inner == 1 ? blocks : outer * channels * pieces;                                               \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t k = 0; k < items; k++) {        \
            codes_t codes;                                                                                             \
            if (inner > 1) {                                                                                           \
                int64_t row = k / pieces, begin = k % pieces * PIECE, at = row * inner + begin;                        \
                int64_t n = smaller(PIECE, inner - begin);                                                             \
                float scale = a[row % channels];                                                                       \
                const T##_t *from = uniform ? g : g + at;                                                              \
                fetch(&codes, low, high, at, n, rule);                                                                 \
                if (rule == TWO_BIT) {                                                                                 \
                    partial[k] = uniform ? back_##T(from, scale, &codes, slopes, dx + at, n, 1, TWO_BIT)               \
                                         : back_##T(from, scale, &codes, slopes, dx + at, n, 0, TWO_BIT);              \
                } else {                                                                                               \
                    partial[k] = uniform ? back_##T(from, scale, &codes, slopes, dx + at, n, 1, SIGN)                  \
                                         : back_##T(from, scale, &codes, slopes, dx + at, n, 0, SIGN);                 \
                }                                                                                                      \
                continue;                                                                                              \
            }                                                                                                          \
            float *sum = partial + k * channels;                                                                       \
            memset(sum, 0, (size_t)channels * sizeof *sum);                                                            \
            for (int64_t o = k * ROWS; o < smaller(outer, (k + 1) * ROWS); o++) {                                      \
                for (int64_t c = 0; c < channels; c += PIECE) {                                                        \
                    int64_t at = o * channels + c, n = smaller(PIECE, channels - c);                                   \
                    const T##_t *from = uniform ? g : g + at;                                                          \
                    fetch(&codes, low, high, at, n, rule);                                                             \
                    if (rule == TWO_BIT)                                                                               \
                        back_row_##T(from, a + c, &codes, slopes, dx + at, sum + c, n, uniform, TWO_BIT);              \
                    else                                                                                               \
                        back_row_##T(from, a + c, &codes, slopes, dx + at, sum + c, n, uniform, SIGN);                 \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        for (int64_t c = 0; c < channels; c++) {                                                                       \
            double sum = 0.0;                                                                                          \
            for (int64_t o = 0; o < blocks; o++)                                                                       \
                for (int64_t k = 0; k < pieces; k++) sum += partial[(o * channels + c) * pieces + k];                  \
            db[c] = (float)sum;                                                                                        \
        }                                                                                                              \
    }

typedef float f32_t;
typedef bf16 bf16_t;
DEFINE(f32)
DEFINE(bf16)
