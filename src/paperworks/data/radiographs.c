// Line integrals of a volume along the rays of a cone of X-rays, and their adjoint.
//
// Volumes are padded with one plane of zeros on each side, so that all eight neighbours of a sample exist. A ray goes
// from the source to a pixel; from where it enters the bounding sphere, sample k lies at (k + 1/2) step. Only samples
// inside of the padded box are visited: the others are zero.
//
// view: 12 doubles an image: source, middle of the detector, and the way from one pixel to the next along its two axes,
// in mm. The middle of the volume is the origin.
//
// The adjoint shares the planes of the last axis out between threads: each voxel is written by one thread, in the order
// of the rays, so that the sums do not depend on the number of threads.

#include <math.h>
#include <stdint.h>

typedef struct {
    double at[3], by[3]; // sample k lies at at + k by, in voxels of the padded volume
    int64_t first, last; // samples visited: first <= k < last
} Ray;

static void cut(double at, double by, double low, double high, double *first, double *last) {
    if (by == 0) {
        if (at < low || at > high) *last = -1;
        return;
    }
    double a = (low - at) / by, b = (high - at) / by;
    double begin = a < b ? a : b, end = a < b ? b : a;
    if (begin > *first) *first = begin;
    if (end < *last) *last = end;
}

static Ray ray_of(const double *view, const double *spacing, const int64_t *size, double u, double v, double radius,
                  double step) {
    Ray ray = {.first = 0, .last = 0};
    double way[3], length = 0, along = 0, off = 0;
    for (int i = 0; i < 3; i++) {
        way[i] = view[3 + i] + u * view[6 + i] + v * view[9 + i] - view[i];
        length += way[i] * way[i];
    }
    length = sqrt(length);
    for (int i = 0; i < 3; i++) {
        way[i] /= length;
        along += way[i] * view[i];
    }
    for (int i = 0; i < 3; i++) { // from the middle to the nearest point of the ray
        double nearest = view[i] - along * way[i];
        off += nearest * nearest;
    }
    double inside = radius * radius - off;
    if (inside <= 0) return ray;
    double half = sqrt(inside), entry = -along - half, leave = -along + half;
    if (entry < 0) entry = 0;
    if (leave <= entry) return ray;
    double first = 0, last = ceil((leave - entry) / step) - 1;
    for (int i = 0; i < 3; i++) {
        ray.by[i] = way[i] * step / spacing[i];
        ray.at[i] = (view[i] + (entry + 0.5 * step) * way[i]) / spacing[i] + 0.5 * (double)(size[i] - 1);
        cut(ray.at[i], ray.by[i], 0.0, (double)(size[i] - 1), &first, &last);
    }
    ray.first = (int64_t)ceil(first);
    ray.last = (int64_t)floor(last) + 1;
    return ray;
}

static inline int32_t clamped(int32_t i, int32_t most) { return i < 0 ? 0 : i > most ? most : i; }

#define DEFINE(T, NAME)                                                                                                \
    void project_##NAME(const T *volume, T *out, const double *view, const double *spacing, const int64_t *size,       \
                        double radius, double step, int64_t images, int64_t h, int64_t w, int64_t threads) {           \
        int32_t mx = (int32_t)size[0] - 2, my = (int32_t)size[1] - 2, mz = (int32_t)size[2] - 2;                       \
        int32_t sy = (int32_t)size[2], sx = sy * (int32_t)size[1];                                                     \
        _Pragma("omp parallel for num_threads(threads) schedule(dynamic, 16)") for (int64_t pixel = 0;                 \
                                                                                    pixel < images * h * w; pixel++) { \
            int64_t image = pixel / (h * w), i = pixel / w % h, j = pixel % w;                                         \
            const T *from = volume + image * size[0] * size[1] * size[2];                                              \
            double u = (double)i - 0.5 * (double)(h - 1), v = (double)j - 0.5 * (double)(w - 1);                       \
            Ray ray = ray_of(view + 12 * image, spacing, size, u, v, radius, step);                                    \
            T ax = (T)(ray.at[0] + (double)ray.first * ray.by[0]), dx = (T)ray.by[0];                                  \
            T ay = (T)(ray.at[1] + (double)ray.first * ray.by[1]), dy = (T)ray.by[1];                                  \
            T az = (T)(ray.at[2] + (double)ray.first * ray.by[2]), dz = (T)ray.by[2], sum = 0;                         \
            int32_t n = (int32_t)(ray.last - ray.first);                                                               \
            _Pragma("omp simd reduction(+ : sum)") for (int32_t k = 0; k < n; k++) {                                   \
                T px = ax + (T)k * dx, py = ay + (T)k * dy, pz = az + (T)k * dz;                                       \
                int32_t ix = clamped((int32_t)px, mx), iy = clamped((int32_t)py, my), iz = clamped((int32_t)pz, mz);   \
                T fx = px - (T)ix, fy = py - (T)iy, fz = pz - (T)iz;                                                   \
                int32_t p = ix * sx + iy * sy + iz;                                                                    \
                T a = from[p] + fz * (from[p + 1] - from[p]);                                                          \
                T b = from[p + sy] + fz * (from[p + sy + 1] - from[p + sy]);                                           \
                T c = from[p + sx] + fz * (from[p + sx + 1] - from[p + sx]);                                           \
                T d = from[p + sx + sy] + fz * (from[p + sx + sy + 1] - from[p + sx + sy]);                            \
                a += fy * (b - a);                                                                                     \
                c += fy * (d - c);                                                                                     \
                sum += a + fx * (c - a);                                                                               \
            }                                                                                                          \
            out[pixel] = sum * (T)step;                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static void spread_##NAME(T *to, const Ray *ray, T g, const int64_t *size, int32_t low, int32_t high) {            \
        int32_t mx = (int32_t)size[0] - 2, my = (int32_t)size[1] - 2, mz = (int32_t)size[2] - 2;                       \
        int32_t sy = (int32_t)size[2], sx = sy * (int32_t)size[1];                                                     \
        T ax = (T)(ray->at[0] + (double)ray->first * ray->by[0]), dx = (T)ray->by[0];                                  \
        T ay = (T)(ray->at[1] + (double)ray->first * ray->by[1]), dy = (T)ray->by[1];                                  \
        T az = (T)(ray->at[2] + (double)ray->first * ray->by[2]), dz = (T)ray->by[2];                                  \
        int32_t n = (int32_t)(ray->last - ray->first);                                                                 \
        for (int32_t k = 0; k < n; k++) {                                                                              \
            T px = ax + (T)k * dx, py = ay + (T)k * dy, pz = az + (T)k * dz;                                           \
            int32_t ix = clamped((int32_t)px, mx), iy = clamped((int32_t)py, my), iz = clamped((int32_t)pz, mz);       \
            if (iz + 1 < low || iz >= high) continue;                                                                  \
            T fx = px - (T)ix, fy = py - (T)iy, fz = pz - (T)iz;                                                       \
            T *at = to + ix * (int64_t)sx + iy * (int64_t)sy + iz;                                                     \
            T x0 = g * (1 - fx), x1 = g * fx;                                                                          \
            T a = x0 * (1 - fy), b = x0 * fy, c = x1 * (1 - fy), d = x1 * fy, rest = 1 - fz;                           \
            if (iz >= low) at[0] += a * rest, at[sy] += b * rest, at[sx] += c * rest, at[sx + sy] += d * rest;         \
            if (iz + 1 < high) at[1] += a * fz, at[sy + 1] += b * fz, at[sx + 1] += c * fz, at[sx + sy + 1] += d * fz; \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void spread_back_##NAME(T *volume, const T *given, const double *view, const double *spacing, const int64_t *size, \
                            double radius, double step, int64_t images, int64_t h, int64_t w, int64_t threads) {       \
        _Pragma("omp parallel for num_threads(threads) schedule(static)") for (int64_t part = 0; part < threads;       \
                                                                               part++) {                               \
            int32_t low = (int32_t)(size[2] * part / threads), high = (int32_t)(size[2] * (part + 1) / threads);       \
            for (int64_t pixel = 0; pixel < images * h * w; pixel++) {                                                 \
                int64_t image = pixel / (h * w), i = pixel / w % h, j = pixel % w;                                     \
                if (given[pixel] == 0) continue;                                                                       \
                double u = (double)i - 0.5 * (double)(h - 1), v = (double)j - 0.5 * (double)(w - 1);                   \
                Ray ray = ray_of(view + 12 * image, spacing, size, u, v, radius, step);                                \
                if (ray.last <= ray.first) continue;                                                                   \
                double begin = ray.at[2] + (double)ray.first * ray.by[2];                                              \
                double end = ray.at[2] + (double)(ray.last - 1) * ray.by[2];                                           \
                if ((begin < low - 2 && end < low - 2) || (begin > high + 1 && end > high + 1)) continue;              \
                T *to = volume + image * size[0] * size[1] * size[2];                                                  \
                spread_##NAME(to, &ray, given[pixel] * (T)step, size, low, high);                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE(float, f32)
DEFINE(double, f64)
