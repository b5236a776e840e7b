// Instance norm of one or two maps, their sum, and LeakyReLU, channels last: rows of `width` channels, `rows` an image.
//
//   out = leaky(norm(a) + norm(b)), or leaky(norm(a) + b), or leaky(norm(a));  norm(x) = (x - mean) inverse
//
// `moments` reads a map once, `residual` reads the maps and writes the result, and the gradient reads twice.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 64

static double *room(int64_t doubles) {
    double *found = calloc((size_t)(doubles > 0 ? doubles : 1), sizeof(double));
    if (!found) abort();
    return found;
}

// mean and 1 / deviation of each channel of each image. Sums of a block of rows are of x less the image's first row.
void moments(const float *x, float *mean, float *inverse, double eps, int64_t images, int64_t rows, int64_t width,
             int64_t threads) {
    double *sums = room(threads * 2 * width);
    for (int64_t image = 0; image < images; image++) {
        const float *from = x + image * rows * width;
        memset(sums, 0, (size_t)(threads * 2 * width) * sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < threads; part++) {
            float *one = malloc((size_t)(2 * width) * sizeof(float)), *two = one + width;
            if (!one) abort();
            double *to = sums + part * 2 * width;
            int64_t end = rows * (part + 1) / threads;
            for (int64_t first = rows * part / threads; first < end; first += BLOCK) {
                memset(one, 0, (size_t)(2 * width) * sizeof(float));
                int64_t last = first + BLOCK < end ? first + BLOCK : end;
                for (int64_t row = first; row < last; row++)
#pragma omp simd
                    for (int64_t c = 0; c < width; c++) {
                        float y = from[row * width + c] - from[c];
                        one[c] += y;
                        two[c] += y * y;
                    }
                for (int64_t c = 0; c < 2 * width; c++) to[c] += one[c];
            }
            free(one);
        }
        for (int64_t c = 0; c < width; c++) {
            double one = 0, two = 0;
            for (int64_t part = 0; part < threads; part++) {
                one += sums[part * 2 * width + c];
                two += sums[part * 2 * width + width + c];
            }
            one /= (double)rows, two = two / (double)rows - one * one;
            mean[image * width + c] = (float)(from[c] + one);
            inverse[image * width + c] = (float)(1.0 / sqrt((two > 0 ? two : 0) + eps));
        }
    }
    free(sums);
}

// statistics: [4][images][width]: mean and inverse of a, then of b (0 and 1 where b is added as it is); b may be NULL
void residual(const float *a, const float *b, const float *statistics, float *out, double slope, int64_t images,
              int64_t rows, int64_t width, int64_t threads) {
    int64_t all = images * width;
    float s = (float)slope;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < images * rows; row++) {
        const float *ma = statistics + row / rows * width, *ia = ma + all, *mb = ia + all, *ib = mb + all;
        const float *x = a + row * width, *y = b ? b + row * width : NULL;
        float *to = out + row * width;
        if (y)
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float z = (x[c] - ma[c]) * ia[c] + (y[c] - mb[c]) * ib[c];
                to[c] = z > 0 ? z : s * z;
            }
        else
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float z = (x[c] - ma[c]) * ia[c];
                to[c] = z > 0 ? z : s * z;
            }
    }
}

// Gradients of `residual`: d_a and, unless b is NULL, d_b. normed: whether b has a norm. The sign of out gives the slope.
void residual_backward(const float *a, const float *b, const float *statistics, const float *out, const float *d_out,
                       float *d_a, float *d_b, double slope, int64_t normed, int64_t images, int64_t rows,
                       int64_t width, int64_t threads) {
    int64_t all = images * width;
    float s = (float)slope;
    double *sums = room(threads * 3 * width);
    float *means = malloc((size_t)(3 * width) * sizeof(float));
    if (!means) abort();
    for (int64_t image = 0; image < images; image++) {
        const float *ma = statistics + image * width, *ia = ma + all, *mb = ia + all, *ib = mb + all;
        int64_t at = image * rows * width;
        memset(sums, 0, (size_t)(threads * 3 * width) * sizeof(double));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t part = 0; part < threads; part++) {
            float *one = malloc((size_t)(3 * width) * sizeof(float)), *two = one + width, *three = two + width;
            if (!one) abort();
            double *to = sums + part * 3 * width;
            int64_t end = rows * (part + 1) / threads;
            for (int64_t first = rows * part / threads; first < end; first += BLOCK) {
                memset(one, 0, (size_t)(3 * width) * sizeof(float));
                int64_t last = first + BLOCK < end ? first + BLOCK : end;
                for (int64_t row = first; row < last; row++) {
                    int64_t k = at + row * width;
                    const float *x = a + k, *y = b + (b ? k : 0), *o = out + k, *g = d_out + k;
                    if (normed)
#pragma omp simd
                        for (int64_t c = 0; c < width; c++) {
                            float dz = o[c] > 0 ? g[c] : s * g[c];
                            one[c] += dz;
                            two[c] += dz * (x[c] - ma[c]) * ia[c];
                            three[c] += dz * (y[c] - mb[c]) * ib[c];
                        }
                    else
#pragma omp simd
                        for (int64_t c = 0; c < width; c++) {
                            float dz = o[c] > 0 ? g[c] : s * g[c];
                            one[c] += dz;
                            two[c] += dz * (x[c] - ma[c]) * ia[c];
                        }
                }
                for (int64_t c = 0; c < 3 * width; c++) to[c] += one[c];
            }
            free(one);
        }
        for (int64_t c = 0; c < 3 * width; c++) {
            double sum = 0;
            for (int64_t part = 0; part < threads; part++) sum += sums[part * 3 * width + c];
            means[c] = (float)(sum / (double)rows);
        }
        const float *one = means, *two = means + width, *three = means + 2 * width;
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            int64_t k = at + row * width;
            const float *x = a + k, *y = b + (b ? k : 0), *o = out + k, *g = d_out + k;
            float *to_a = d_a + k, *to_b = d_b + (b ? k : 0);
            if (normed)
#pragma omp simd
                for (int64_t c = 0; c < width; c++) {
                    float dz = o[c] > 0 ? g[c] : s * g[c];
                    to_a[c] = ia[c] * (dz - one[c] - (x[c] - ma[c]) * ia[c] * two[c]);
                    to_b[c] = ib[c] * (dz - one[c] - (y[c] - mb[c]) * ib[c] * three[c]);
                }
            else if (b)
#pragma omp simd
                for (int64_t c = 0; c < width; c++) {
                    float dz = o[c] > 0 ? g[c] : s * g[c];
                    to_a[c] = ia[c] * (dz - one[c] - (x[c] - ma[c]) * ia[c] * two[c]);
                    to_b[c] = dz;
                }
            else
#pragma omp simd
                for (int64_t c = 0; c < width; c++) {
                    float dz = o[c] > 0 ? g[c] : s * g[c];
                    to_a[c] = ia[c] * (dz - one[c] - (x[c] - ma[c]) * ia[c] * two[c]);
                }
        }
    }
    free(sums), free(means);
}
