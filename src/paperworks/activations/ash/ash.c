// ASH on the CPU: statistics and gate, and the closed-form backward. Each reads a sample from memory once and a second
// time from cache.
//
//   u = A (x - mean - z sigma),  A = 2 alpha,  s = 1 / (1 + exp(-u)),  y = x (leak + (1 - leak) s)
//   t = (1 - leak) g x s (1 - s),  T = sum A t,  Z = sum A z t
//   dx_j = g_j (leak + (1 - leak) s_j) + A_j t_j - (T + Z (x_j - mean) / sigma) / n
//   dalpha_c = 2 sum t (x - mean - z_c sigma),  dz_c = -A_c sum t sigma     (over all samples' elements of channel c)
//
// A sample is n consecutive elements; element j has the parameters of channel (j / inner) % channels, where inner is H*W
// for NCHW and 1 for NHWC. Sums are taken over tiles in float32, then in one fixed order in double precision: no result
// depends on the number of threads.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 2048          // elements that stay in the first-level cache
#define PART (16 * TILE)   // what one thread takes of a sample, where there are fewer samples than threads
#define GROUPS 64          // sets of samples whose parameter gradients are added up separately
#define LANES 32           // independent partial sums, so that additions do not wait for one another
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define INLINE static inline __attribute__((always_inline))

// A fused product also keeps the compiler from turning (x - mean) - rest into x - (mean + rest), which would lose rest.
#ifdef FP_FAST_FMAF
#define FMA(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

typedef struct {
  int64_t rows, n, channels, inner, bfloat16, threads;
  const float *alpha, *z;
  float leak;
  double eps;
} Problem;

typedef struct {
  float mean, rest, sigma;  // mean + rest is the mean to more digits than float32 has
} Moments;

static double *allocate(int64_t count) {
  double *memory = calloc(MAX(count, 1), sizeof(double));
  if (!memory) abort();
  return memory;
}

// ---- float32 or bfloat16 in memory, float32 in arithmetic ----------------------------------------------------------

static const float *load(const Problem *p, const void *array, int64_t from, int64_t count, float *buffer) {
  if (!p->bfloat16) return (const float *)array + from;
  const uint16_t *source = (const uint16_t *)array + from;
#pragma omp simd
  for (int64_t j = 0; j < count; j++) {
    uint32_t bits = (uint32_t)source[j] << 16;
    memcpy(buffer + j, &bits, 4);
  }
  return buffer;
}

static float *target(const Problem *p, void *array, int64_t from, float *buffer) {
  return p->bfloat16 ? buffer : (float *)array + from;
}

static void store(const Problem *p, void *array, int64_t from, int64_t count, const float *buffer) {
  if (!p->bfloat16) return;  // written in place
  uint16_t *out = (uint16_t *)array + from;
#pragma omp simd
  for (int64_t j = 0; j < count; j++) {
    uint32_t bits;
    memcpy(&bits, buffer + j, 4);
    uint32_t nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
    out[j] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : nearest);
  }
}

// ---- one element ---------------------------------------------------------------------------------------------------

// s = 1 / (1 + 2^w), in operations that every compiler vectorises: 2^w is 2^k by its exponent bits, k the nearest whole
// number, times a minimax polynomial (2e-9) of the rest. s is 0 from w = 128 on and 1 up to -127; NaN gives NaN.
INLINE float logistic(float w) {
  w = w > 128.0f ? 128.0f : w;
  float k = rintf(w), r = w - k;
  int32_t exponent = MAX((int32_t)k, -127) + 127;
  float e = FMA(r, 1.53533518e-4f, 1.33988878e-3f);
  e = FMA(e, r, 9.61843785e-3f);
  e = FMA(e, r, 5.55033237e-2f);
  e = FMA(e, r, 2.40226477e-1f);
  e = FMA(e, r, 6.93147182e-1f);
  e = FMA(e, r, 1.0f);
  uint32_t bits = (uint32_t)exponent << 23;
  float power;
  memcpy(&power, &bits, 4);
  return 1.0f / FMA(e, power, 1.0f);
}

// s of one element; its constants carry the factor 1 / log 2.
INLINE float gate(float x, float alpha, float z, Moments m) {
  float a = -2.88539008f * alpha;
  return logistic(FMA(a, x - m.mean, -a * FMA(z, m.sigma, m.rest)));
}

// ---- runs of elements whose parameters are one pair (step 0) or one pair an element (step 1) -----------------------

INLINE int64_t run_end(const Problem *p, int64_t from, int64_t to) {
  if (p->channels == 1) return to;
  int64_t period = p->inner > 1 ? p->inner : p->channels;
  return MIN(to, (from / period + 1) * period);
}

INLINE void gate_run(const float *restrict x, float *restrict y, int64_t count, const float *alpha, const float *z,
                     int step, Moments m, float leak) {
#pragma omp simd
  for (int64_t j = 0; j < count; j++)
    y[j] = x[j] * FMA(1.0f - leak, gate(x[j], alpha[step * j], z[step * j], m), leak);
}

INLINE void gradient_run(const float *restrict x, const float *restrict g, float *restrict dx, int64_t count,
                         const float *alpha, const float *z, int step, Moments m, float leak, float shift, float slope) {
#pragma omp simd
  for (int64_t j = 0; j < count; j++) {
    float s = gate(x[j], alpha[step * j], z[step * j], m);
    float t = (1.0f - leak) * x[j] * s * (1.0f - s);
    float direct = FMA(2.0f * alpha[step * j], t, FMA(1.0f - leak, s, leak));
    dx[j] = FMA(g[j], direct, -FMA(slope, x[j] - m.mean, shift));
  }
}

INLINE void sum_lanes(const float *x, const float *g, int64_t count, float alpha, float z, Moments m, float leak,
                      float *sum_t, float *sum_td) {
#pragma omp simd
  for (int64_t l = 0; l < count; l++) {
    float s = gate(x[l], alpha, z, m);
    float t = (1.0f - leak) * g[l] * x[l] * s * (1.0f - s);
    sum_t[l] += t;
    sum_td[l] = FMA(t, x[l] - m.mean, sum_td[l]);
  }
}

// Adds sum t and sum t (x - m.mean), of one channel.
static void sum_run(const float *x, const float *g, int64_t count, float alpha, float z, Moments m, float leak,
                    double *sum_t, double *sum_td) {
  float lane_t[LANES] = {0}, lane_td[LANES] = {0};
  int64_t from = 0;
  for (; from + LANES <= count; from += LANES) sum_lanes(x + from, g + from, LANES, alpha, z, m, leak, lane_t, lane_td);
  sum_lanes(x + from, g + from, count - from, alpha, z, m, leak, lane_t, lane_td);
  for (int l = 0; l < LANES; l++) *sum_t += lane_t[l], *sum_td += lane_td[l];
}

// The same with a channel an element.
static void sum_channels(const float *restrict x, const float *restrict g, int64_t count, const float *restrict alpha,
                         const float *restrict z, Moments m, float leak, double *restrict sum_t,
                         double *restrict sum_td) {
#pragma omp simd
  for (int64_t j = 0; j < count; j++) {
    float s = gate(x[j], alpha[j], z[j], m);
    float t = (1.0f - leak) * g[j] * x[j] * s * (1.0f - s);
    sum_t[j] += t;
    sum_td[j] += t * (x[j] - m.mean);
  }
}

// ---- one part of a sample: [from, to) ------------------------------------------------------------------------------

// Count, mean and sum of squared deviations of what has been seen.
typedef struct {
  double count, mean, squares;
} Seen;

static Seen merge(Seen a, Seen b) {
  double count = a.count + b.count, delta = b.mean - a.mean;
  if (count == 0.0) return a;
  return (Seen){count, a.mean + delta * b.count / count, a.squares + b.squares + delta * delta * a.count * b.count / count};
}

INLINE void moment_lanes(const float *x, int64_t count, float centre, float *sum, float *squares) {
#pragma omp simd
  for (int64_t l = 0; l < count; l++) {
    float d = x[l] - centre;
    sum[l] += d;
    squares[l] = FMA(d, d, squares[l]);
  }
}

// Deviations are taken from a centre near the mean: what cancels is then never much more than the variance itself.
static Seen tile_moments(const float *x, int64_t count, float centre) {
  float sum[LANES] = {0}, squares[LANES] = {0};
  int64_t from = 0;
  for (; from + LANES <= count; from += LANES) moment_lanes(x + from, LANES, centre, sum, squares);
  moment_lanes(x + from, count - from, centre, sum, squares);
  double total = 0.0, total_squares = 0.0;
  for (int l = 0; l < LANES; l++) total += sum[l], total_squares += squares[l];
  double mean = total / count;
  return (Seen){count, centre + mean, total_squares - total * mean};
}

static Seen part_moments(const Problem *p, const void *x, int64_t from, int64_t to) {
  float buffer[TILE];
  Seen seen = {0.0, 0.0, 0.0};
  for (; from < to; from += TILE) {
    int64_t count = MIN(TILE, to - from);
    const float *tile = load(p, x, from, count, buffer);
    if (seen.count == 0.0) seen.mean = tile_moments(tile, count, tile[0]).mean;
    seen = merge(seen, tile_moments(tile, count, (float)seen.mean));
  }
  return seen;
}

static void part_forward(const Problem *p, const void *x, void *y, int64_t sample, int64_t from, int64_t to, Moments m) {
  float in[TILE], out[TILE];
  for (; from < to; from += TILE) {
    int64_t stop = MIN(from + TILE, to);
    const float *source = load(p, x, sample + from, stop - from, in);
    float *result = target(p, y, sample + from, out);
    for (int64_t run = from, end; run < stop; run = end) {
      end = run_end(p, run, stop);
      const float *alpha = p->alpha + run / p->inner % p->channels, *z = p->z + run / p->inner % p->channels;
      if (p->channels > 1 && p->inner == 1)
        gate_run(source + run - from, result + run - from, end - run, alpha, z, 1, m, p->leak);
      else
        gate_run(source + run - from, result + run - from, end - run, alpha, z, 0, m, p->leak);
    }
    store(p, y, sample + from, stop - from, result);
  }
}

static void part_sums(const Problem *p, const void *x, const void *g, int64_t sample, int64_t from, int64_t to,
                      Moments m, double *sum_t, double *sum_td) {
  float x_buffer[TILE], g_buffer[TILE];
  for (; from < to; from += TILE) {
    int64_t stop = MIN(from + TILE, to);
    const float *source = load(p, x, sample + from, stop - from, x_buffer);
    const float *incoming = load(p, g, sample + from, stop - from, g_buffer);
    for (int64_t run = from, end; run < stop; run = end) {
      end = run_end(p, run, stop);
      int64_t channel = run / p->inner % p->channels, at = run - from;
      if (p->channels > 1 && p->inner == 1)
        sum_channels(source + at, incoming + at, end - run, p->alpha + channel, p->z + channel, m, p->leak,
                     sum_t + channel, sum_td + channel);
      else
        sum_run(source + at, incoming + at, end - run, p->alpha[channel], p->z[channel], m, p->leak, sum_t + channel,
                sum_td + channel);
    }
  }
}

static void part_gradient(const Problem *p, const void *x, const void *g, void *dx, int64_t sample, int64_t from,
                          int64_t to, Moments m, float shift, float slope) {
  float x_buffer[TILE], g_buffer[TILE], out[TILE];
  for (; from < to; from += TILE) {
    int64_t stop = MIN(from + TILE, to);
    const float *source = load(p, x, sample + from, stop - from, x_buffer);
    const float *incoming = load(p, g, sample + from, stop - from, g_buffer);
    float *result = target(p, dx, sample + from, out);
    for (int64_t run = from, end; run < stop; run = end) {
      end = run_end(p, run, stop);
      int64_t channel = run / p->inner % p->channels, at = run - from;
      if (p->channels > 1 && p->inner == 1)
        gradient_run(source + at, incoming + at, result + at, end - run, p->alpha + channel, p->z + channel, 1, m,
                     p->leak, shift, slope);
      else
        gradient_run(source + at, incoming + at, result + at, end - run, p->alpha + channel, p->z + channel, 0, m,
                     p->leak, shift, slope);
    }
    store(p, dx, sample + from, stop - from, result);
  }
}

// ---- one sample ----------------------------------------------------------------------------------------------------

#define PARTS(p) (((p)->n + PART - 1) / PART)
// Does `work` for each part, with the `threads` in scope. One thread has its own loop: an inner parallel region costs
// as much as a hundred elements even if nobody joins it.
#define FOR_PARTS(p, work)                                \
  if (threads == 1) {                                     \
    for (int64_t part = 0; part < PARTS(p); part++) work; \
  } else {                                                \
    _Pragma("omp parallel for num_threads(threads)")      \
    for (int64_t part = 0; part < PARTS(p); part++) work; \
  }

static void row_forward(const Problem *p, const void *x, void *y, int64_t row, Moments *m, Seen *seen, int threads) {
  int64_t sample = row * p->n;
  FOR_PARTS(p, seen[part] = part_moments(p, x, sample + part * PART, sample + MIN(p->n, (part + 1) * PART)))
  Seen all = seen[0];
  for (int64_t part = 1; part < PARTS(p); part++) all = merge(all, seen[part]);
  m->mean = (float)all.mean;
  m->rest = (float)(all.mean - m->mean);
  m->sigma = (float)sqrt(all.squares / all.count + p->eps);
  FOR_PARTS(p, part_forward(p, x, y, sample, part * PART, MIN(p->n, (part + 1) * PART), *m))
}

// Adds this sample's part of dalpha and dz to `gradients`, one pair a channel.
static void row_backward(const Problem *p, const void *x, const void *g, void *dx, int64_t row, Moments m, double *sums,
                         double *gradients, int threads) {
  int64_t sample = row * p->n;
  double rest = m.rest, sigma = m.sigma, total = 0.0, total_z = 0.0;
  memset(sums, 0, sizeof(double) * 2 * p->channels * PARTS(p));
  FOR_PARTS(p, part_sums(p, x, g, sample, part * PART, MIN(p->n, (part + 1) * PART), m,
                         sums + 2 * p->channels * part, sums + p->channels * (2 * part + 1)))
  for (int64_t channel = 0; channel < p->channels; channel++) {
    double t = 0.0, td = 0.0, a = 2.0 * p->alpha[channel], z = p->z[channel];
    for (int64_t part = 0; part < PARTS(p); part++) {
      t += sums[p->channels * 2 * part + channel];
      td += sums[p->channels * (2 * part + 1) + channel];
    }
    gradients[2 * channel] += 2.0 * (td - t * (rest + z * sigma));
    gradients[2 * channel + 1] -= a * t * sigma;
    total += a * t;
    total_z += a * z * t;
  }
  float slope = (float)(total_z / sigma / p->n), shift = (float)(total / p->n - total_z / sigma / p->n * rest);
  FOR_PARTS(p, part_gradient(p, x, g, dx, sample, part * PART, MIN(p->n, (part + 1) * PART), m, shift, slope))
}

// ---- all samples ---------------------------------------------------------------------------------------------------

// Samples are shared among the threads; where there are fewer of them than threads, each sample is.
static int across(const Problem *p) { return p->rows >= p->threads ? (int)p->threads : 1; }
static int within(const Problem *p) { return p->rows >= p->threads ? 1 : (int)p->threads; }

void ash_forward(const Problem *p, const void *x, void *y, Moments *m) {
#pragma omp parallel num_threads(across(p))
  {
    Seen *seen = (Seen *)allocate(3 * PARTS(p));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < p->rows; row++) row_forward(p, x, y, row, m + row, seen, within(p));
    free(seen);
  }
}

// The gate at a constant threshold p->z, elements in one row.
void ash_frozen(const Problem *p, const void *x, void *y) {
  int threads = (int)p->threads;
  Moments none = {0.0f, 0.0f, 1.0f};
  FOR_PARTS(p, part_forward(p, x, y, 0, part * PART, MIN(p->n, (part + 1) * PART), none))
}

void ash_backward(const Problem *p, const void *x, const void *g, const Moments *m, void *dx, float *dalpha,
                  float *dz) {
  int64_t groups = MIN(p->rows, GROUPS);
  double *gradients = allocate(2 * p->channels * groups);
#pragma omp parallel num_threads(across(p))
  {
    double *sums = allocate(2 * p->channels * PARTS(p));
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; group++)
      for (int64_t row = group * p->rows / groups; row < (group + 1) * p->rows / groups; row++)
        row_backward(p, x, g, dx, row, m[row], sums, gradients + 2 * p->channels * group, within(p));
    free(sums);
  }
  for (int64_t channel = 0; channel < p->channels; channel++) {
    double alpha_sum = 0.0, z_sum = 0.0;
    for (int64_t group = 0; group < groups; group++) {
      alpha_sum += gradients[2 * (p->channels * group + channel)];
      z_sum += gradients[2 * (p->channels * group + channel) + 1];
    }
    dalpha[channel] = (float)alpha_sum;
    dz[channel] = (float)z_sum;
  }
  free(gradients);
}
