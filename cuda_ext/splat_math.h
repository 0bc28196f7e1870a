// The mathematics of the splatting operator, once, for host and device.
//
//     image(x) = mean over samples of sum_k w_k(x) color_k,   w = opacity exp(-sigma),
//     sigma = 1/2 d^T Sigma^-1 d,   d = x - center,   Sigma = L L^T + v I     (paper, eq. 2-4)
//
// Conventions, stated here for every backend:
//   - x points right and y down; pixel i spans [i, i + 1]; a position u in [-1, 1] is W (u + 1) / 2.
//   - With supersampling a pixel has 2x2 samples at 0.25 and 0.75, without it one at 0.5.
//   - v is 1/12 with the pre-filter (the variance of a unit box) and 1/256 without it, a floor
//     that keeps Sigma invertible.
//   - A sample is in the support where max(1, |opacity|) exp(-sigma) >= 1/255.
//   - A Gaussian with a number that is not finite, or that overflows, is dead: it renders nothing
//     and its gradient is zero.
//
// No torch, no CUDA runtime and no state in this file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SPLAT_HD __host__ __device__ __forceinline__
#else
#define SPLAT_HD inline
#endif

namespace splat {

constexpr double kPrefilterVariance = 1.0 / 12.0;
constexpr double kFloorVariance = 1.0 / 256.0;
constexpr double kInverseSupport = 255.0;
constexpr int kGeometry = 5;     // u, v, l11, l21, l22 before the colors
constexpr int kMoments = 6;      // of h = dL/dw exp(-sigma): 1, u, t, uu, ut, tt
constexpr int kMaxChannels = 4;

// What an operator call renders: shapes and switches. Without an index the rendered images are the
// stored ones; with it, slot i of the batch shows the stored image index[i].
struct Shape {
    int64_t batch;  // images rendered
    int points, channels, row, height, width;  // row: numbers per Gaussian, 5 + channels (+ 1)
    bool opacity, saturate, prefilter;
    int per_axis;  // samples per pixel and axis, 1 or 2
    bool half = false;               // rows are bfloat16, computed in float
    const int64_t* index = nullptr;  // [batch]
    int64_t indexed = -1;            // stored images, where there is an index

    SPLAT_HD bool picks() const { return indexed >= 0; }
    SPLAT_HD int64_t stored() const { return picks() ? indexed : batch; }
    SPLAT_HD int64_t source(int64_t slot) const { return picks() ? index[slot] : slot; }
    SPLAT_HD double spacing() const { return 1.0 / per_axis; }
    SPLAT_HD double first_sample() const { return 0.5 / per_axis; }
};

// Offset of a pixel in images [batch, channels, height, width], channel 0: past 2^31 in batches that
// are usual, so 64 bits whatever the numbers are.
SPLAT_HD int64_t pixel_offset(const Shape& shape, int64_t image, int x, int y) {
    return (image * shape.channels * shape.height + y) * shape.width + x;
}

// Numbers in memory, of type T or bfloat16 (the upper half of a float); indexed like a pointer.
// What is written is rounded to the nearest, ties to even, as torch does.
template <typename T>
struct Numbers {
    void* at;
    bool half;

    SPLAT_HD operator T() const {
        if (!half) return *static_cast<const T*>(at);
        const uint32_t bits = uint32_t(*static_cast<const uint16_t*>(at)) << 16;
        float number;
        memcpy(&number, &bits, sizeof number);
        return T(number);
    }
    SPLAT_HD void operator=(T value) const {
        if (!half) {
            *static_cast<T*>(at) = value;
            return;
        }
        const float number = float(value);
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        *static_cast<uint16_t*>(at) = uint16_t(number == number ? rounded : 0x7fc0u);
    }
    SPLAT_HD Numbers operator+(int64_t i) const {
        return {static_cast<char*>(at) + i * int64_t(half ? sizeof(uint16_t) : sizeof(T)), half};
    }
    SPLAT_HD Numbers operator[](int64_t i) const { return *this + i; }
};

// One Gaussian in pixels. Sigma = S diag(a, 1 / curvature) S^T with the shear S = [[1, 0], [slope, 1]],
// so that in the coordinates u = dx, t = dy - slope dx
//     2 sigma = u^2 / a + curvature t^2,
// a sum of squares that loses no digits to cancellation, however thin and tilted the ellipse.
template <typename T>
struct Gaussian {
    T x, y;          // center
    T a, b, c;       // Sigma = [[a, b], [b, c]]
    T slope;         // b / a
    T curvature;     // a / det, the second diagonal entry of Sigma^-1
    T opacity;
    T reach;         // 2 sigma at the rim of the support: 2 ln(255 max(1, |opacity|))
    bool alive;
};

// `row` is a pointer or Numbers.
template <typename T, typename Row>
SPLAT_HD Gaussian<T> project(Row row, const Shape& shape) {
    Gaussian<T> g;
    const T l11 = row[2], l21 = row[3], l22 = row[4];
    const T v = T(shape.prefilter ? kPrefilterVariance : kFloorVariance);
    g.x = T(0.5) * T(shape.width) * (T(row[0]) + T(1));
    g.y = T(0.5) * T(shape.height) * (T(row[1]) + T(1));
    g.a = l11 * l11 + v;
    g.b = l11 * l21;
    g.c = l21 * l21 + l22 * l22 + v;
    // det = l11^2 l22^2 + v (l11^2 + l21^2 + l22^2 + v), term by term positive
    const T det = l11 * l11 * l22 * l22 + v * (l11 * l11 + g.c);
    g.slope = g.b / g.a;
    g.curvature = g.a / det;
    g.opacity = shape.opacity ? T(row[shape.row - 1]) : T(1);
    const T strength = std::fabs(g.opacity);
    g.reach = T(2) * std::log(T(kInverseSupport) * (strength > T(1) ? strength : T(1)));
    // Every number of the row enters this sum, so one test finds any that is not finite;
    // zero times a finite number is zero, zero times any other is not a number.
    T probe = g.x + g.y + g.a + g.b + g.c + det + g.reach;
    for (int k = 0; k < shape.channels; ++k) probe += T(0) * (g.opacity * T(row[kGeometry + k]));
    g.alive = probe - probe == T(0) && g.curvature > T(0);
    return g;
}

// Half the extent of the support along an axis with variance a (or c).
template <typename T>
SPLAT_HD T extent(const Gaussian<T>& g, T variance) {
    return std::sqrt(g.reach * variance);
}

// exp(-sigma) at one sample, before any support test.
template <typename T>
SPLAT_HD T falloff(const Gaussian<T>& g, T sample_x, T sample_y) {
    const T dx = sample_x - g.x, dy = sample_y - g.y;
    const T t = dy - g.slope * dx;
    return std::exp(T(-0.5) * (dx * dx / g.a + g.curvature * t * t));
}

// Smallest exp(-sigma) inside the support.
template <typename T>
SPLAT_HD T support_threshold(T opacity) {
    const T strength = std::fabs(opacity);
    return T(1) / (T(kInverseSupport) * (strength > T(1) ? strength : T(1)));
}

// Vector-Jacobian product of `project`: from the moments of h = dL/dw exp(-sigma) over the samples
// of the support, (1, u, t, uu, ut, tt), to the gradient of the row's geometry and opacity.
// With d = S (u, t), M the second moments of opacity h d and Q = Sigma^-1 = S^-T diag(1/a, k) S^-1:
//     dL/dcenter = opacity Q sum(h d),   dL/dL = Q M Q L,   dL/dopacity = sum(h).
// S^-1 L = [[l11, 0], [l21 v / a, l22]]: the shear takes the cancellation out of the product.
template <typename T, typename Row, typename Gradient>
SPLAT_HD void project_vjp(
    const Gaussian<T>& g, Row row, const Shape& shape, const T* moments, Gradient v_row) {
    const T l11 = row[2], l22 = row[4];
    const T v = T(shape.prefilter ? kPrefilterVariance : kFloorVariance);
    const T sheared = T(row[3]) * v / g.a;
    const T pull_u = g.opacity * moments[1] / g.a, pull_t = g.opacity * moments[2] * g.curvature;
    v_row[0] = T(0.5) * T(shape.width) * (pull_u - g.slope * pull_t);
    v_row[1] = T(0.5) * T(shape.height) * pull_t;
    const T uu = g.opacity * moments[3] / (g.a * g.a);
    const T ut = g.opacity * moments[4] * g.curvature / g.a;
    const T tt = g.opacity * moments[5] * g.curvature * g.curvature;
    const T v_sheared = ut * l11 + tt * sheared;
    v_row[2] = uu * l11 + ut * sheared - g.slope * v_sheared;
    v_row[3] = v_sheared;
    v_row[4] = tt * l22;
    if (shape.opacity) v_row[shape.row - 1] = moments[0];
}

}  // namespace splat
