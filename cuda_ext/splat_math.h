// The mathematics of the splatting operator, once, for host and device.
//
//     image(x) = mean over samples of sum_k w_k(x) color_k,   w = opacity exp(-sigma),
//     sigma = 1/2 d^T Sigma^-1 d,   d = x - center,   Sigma = L L^T + v I     (paper, eq. 2-4)
//
// Conventions, stated here for every backend:
//   - x points right and y down; pixel i spans [i, i + 1]; a position u in [-1, 1] is W (u + 1) / 2.
//   - With supersampling a pixel has 2x2 samples at 0.25 and 0.75, without it one at 0.5.
//   - v is 1/12 with the pre-filter (the variance of a unit box) and 1/256 without it, which keeps
//     Sigma invertible.
//   - A sample is in the support where max(1, |opacity|) exp(-sigma) >= 1/255.
//   - A Gaussian with a non-finite number, or one that overflows, is dead: it renders nothing and its
//     gradient is zero.
//
// No torch, no CUDA runtime and no state in this file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define SPLAT_HD __host__ __device__ __forceinline__
#else
#define SPLAT_HD inline
#endif

namespace splat {

constexpr double kPrefilterVariance = 1.0 / 12.0;
constexpr double kMinimumVariance = 1.0 / 256.0;
constexpr double kInverseSupport = 255.0;
constexpr double kHalfLog2E = 0.72134752044448170368;  // exp(-sigma) = 2^(-kHalfLog2E * 2 sigma)
constexpr int kGeometry = 5;     // u, v, l11, l21, l22 before the colors
constexpr int kMoments = 6;      // of h = dL/dw exp(-sigma): 1, u, t, uu, ut, tt
constexpr int kMaxChannels = 4;

// ---- 1. What is rendered, and where it lies in memory ---------------------------------------

// Shapes and switches of a call. Without an index the rendered images are the stored ones; with it,
// slot i of the batch shows the stored image index[i].
struct Shape {
    int64_t batch, stored;                     // images rendered, images of params
    int points, channels, row, height, width;  // row: numbers per Gaussian, 5 + channels (+ 1)
    bool opacity, saturate, prefilter;
    int per_axis;  // samples per pixel and axis, 1 or 2
    bool indexed;
    const int64_t* index;  // [batch] where indexed

    SPLAT_HD int64_t source(int64_t slot) const { return indexed ? index[slot] : slot; }
};

// Offset of a pixel in images [batch, channels, height, width], channel 0. 64 bits, since ordinary
// batches exceed 2^31 numbers.
SPLAT_HD int64_t pixel_offset(const Shape& shape, int64_t image, int x, int y) {
    return (image * shape.channels * shape.height + y) * shape.width + x;
}

// Numbers in memory that are computed with as T, and stored as T or as bfloat16, the upper half of a
// float. A stored number is rounded to the nearest, ties to even, as torch does.
template <typename T>
struct Numbers {
    void* at;
    bool bfloat16;

    SPLAT_HD T load(int64_t i) const {
        if (!bfloat16) return static_cast<const T*>(at)[i];
        const uint32_t bits = uint32_t(static_cast<const uint16_t*>(at)[i]) << 16;
        float number;
        memcpy(&number, &bits, sizeof number);
        return T(number);
    }
    SPLAT_HD void store(int64_t i, T value) const {
        if (!bfloat16) {
            static_cast<T*>(at)[i] = value;
            return;
        }
        const float number = float(value);
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        static_cast<uint16_t*>(at)[i] = uint16_t(number == number ? rounded : 0x7fc0u);
    }
    SPLAT_HD Numbers operator+(int64_t i) const {
        return {static_cast<char*>(at) + i * int64_t(bfloat16 ? sizeof(uint16_t) : sizeof(T)),
                bfloat16};
    }
};

// One Gaussian's row, read into registers or a few lines of cache.
template <typename T>
struct Row {
    T number[kGeometry + kMaxChannels + 1];

    SPLAT_HD Row(Numbers<T> from, const Shape& shape) {
        for (int i = 0; i < shape.row; ++i) number[i] = from.load(i);
    }
    SPLAT_HD T load(int64_t i) const { return number[i]; }
};

// Calls f(C, S) with constants for the channels (rounded up to 1, 3 or 4) and the samples per pixel
// and axis. Without `every` there is only 4: double on a GPU checks gradients and need not be fast.
template <bool every, typename F>
auto with_constants(const Shape& shape, F f) {
    const auto with_samples = [&](auto channels) {
        if (shape.per_axis == 1) return f(channels, std::integral_constant<int, 1>());
        return f(channels, std::integral_constant<int, 2>());
    };
    if constexpr (every) {
        if (shape.channels == 1) return with_samples(std::integral_constant<int, 1>());
        if (shape.channels <= 3) return with_samples(std::integral_constant<int, 3>());
    }
    return with_samples(std::integral_constant<int, kMaxChannels>());
}

// ---- 2. One Gaussian ------------------------------------------------------------------------

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

// The inverse of the smallest exp(-sigma) inside the support.
template <typename T>
SPLAT_HD T inverse_rim(T opacity) {
    const T strength = std::fabs(opacity);
    return T(kInverseSupport) * (strength > T(1) ? strength : T(1));
}

// The smallest exp(-sigma) inside the support, and its logarithm to base 2.
template <typename T>
SPLAT_HD T rim(const Gaussian<T>& g) {
    return T(1) / inverse_rim(g.opacity);
}
template <typename T>
SPLAT_HD T log2_rim(const Gaussian<T>& g) {
    return T(-kHalfLog2E) * g.reach;
}

// log2(exp(-sigma)) = -(flatness u^2 + steepness t^2).
template <typename T>
SPLAT_HD T flatness(const Gaussian<T>& g) {
    return T(kHalfLog2E) / g.a;
}
template <typename T>
SPLAT_HD T steepness(const Gaussian<T>& g) {
    return T(kHalfLog2E) * g.curvature;
}

// Whether the weight may reach its clamp.
template <typename T>
SPLAT_HD bool saturates(const Gaussian<T>& g, const Shape& shape) {
    return shape.saturate && g.opacity > T(1);
}

template <typename T>
SPLAT_HD T added_variance(const Shape& shape) {
    return T(shape.prefilter ? kPrefilterVariance : kMinimumVariance);
}

// `row` is a Row or Numbers.
template <typename T, typename Source>
SPLAT_HD Gaussian<T> project(const Source& row, const Shape& shape) {
    Gaussian<T> g;
    const T l11 = row.load(2), l21 = row.load(3), l22 = row.load(4);
    const T v = added_variance<T>(shape);
    g.x = T(0.5) * T(shape.width) * (row.load(0) + T(1));
    g.y = T(0.5) * T(shape.height) * (row.load(1) + T(1));
    g.a = l11 * l11 + v;
    g.b = l11 * l21;
    g.c = l21 * l21 + l22 * l22 + v;
    // det = l11^2 l22^2 + v (l11^2 + l21^2 + l22^2 + v), term by term positive
    const T det = l11 * l11 * l22 * l22 + v * (l11 * l11 + g.c);
    g.slope = g.b / g.a;
    g.curvature = g.a / det;
    g.opacity = shape.opacity ? row.load(shape.row - 1) : T(1);
    g.reach = T(2) * std::log(inverse_rim(g.opacity));
    // Every number of the row enters this sum, so one test finds any that is not finite: zero times a
    // finite number is zero, and zero times an infinite one is NaN.
    T probe = g.x + g.y + g.a + g.b + g.c + det + g.reach;
    for (int k = 0; k < shape.channels; ++k)
        probe += T(0) * (g.opacity * row.load(kGeometry + k));
    g.alive = probe - probe == T(0) && g.curvature > T(0);
    return g;
}

// ---- 3. The support: the ellipse 2 sigma <= reach -------------------------------------------

// Half the extent along x, and dx of the lowest point; the highest lies opposite.
template <typename T>
SPLAT_HD T half_width(const Gaussian<T>& g, T reach) {
    return std::sqrt(reach * g.a);
}
template <typename T>
SPLAT_HD T lowest_dx(const Gaussian<T>& g, T reach) {
    return g.b * std::sqrt(reach / g.c);
}

// The outermost dy of the ellipse's upper (side = -1) or lower (side = 1) arc over the columns from
// left to right. The ellipse is convex, so it lies at the column nearest to the arc's extreme point.
// half_chord(dx) is half the ellipse's height at dx.
template <typename T, typename HalfChord>
SPLAT_HD T arc(T slope, T lowest, T side, T left, T right, HalfChord half_chord) {
    const T peak = side * lowest;
    const T dx = peak < left ? left : (peak > right ? right : peak);
    return slope * dx + side * half_chord(dx);
}

// ---- 4. A sample ----------------------------------------------------------------------------

#include "splat_sample.h"

// ---- 5. The chain rule ----------------------------------------------------------------------

// Vector-Jacobian product of `project`: from the moments of h = dL/dw exp(-sigma) over the samples
// of the support, (1, u, t, uu, ut, tt), to the gradient of the row's geometry and opacity.
// With d = S (u, t), M the second moments of opacity h d and Q = Sigma^-1 = S^-T diag(1/a, k) S^-1:
//     dL/dcenter = opacity Q sum(h d),   dL/dL = Q M Q L,   dL/dopacity = sum(h).
// S^-1 L = [[l11, 0], [l21 v / a, l22]]: the shear takes the cancellation out of the product.
template <typename T>
SPLAT_HD void project_vjp(
    const Gaussian<T>& g, Numbers<T> row, const Shape& shape, const T* moments, Numbers<T> v_row) {
    const T l11 = row.load(2), l22 = row.load(4);
    const T sheared = row.load(3) * added_variance<T>(shape) / g.a;
    const T pull_u = g.opacity * moments[1] / g.a, pull_t = g.opacity * moments[2] * g.curvature;
    v_row.store(0, T(0.5) * T(shape.width) * (pull_u - g.slope * pull_t));
    v_row.store(1, T(0.5) * T(shape.height) * pull_t);
    const T uu = g.opacity * moments[3] / (g.a * g.a);
    const T ut = g.opacity * moments[4] * g.curvature / g.a;
    const T tt = g.opacity * moments[5] * g.curvature * g.curvature;
    const T v_sheared = ut * l11 + tt * sheared;
    v_row.store(2, uu * l11 + ut * sheared - g.slope * v_sheared);
    v_row.store(3, v_sheared);
    v_row.store(4, tt * l22);
    if (shape.opacity) v_row.store(shape.row - 1, moments[0]);
}

// The gradient of a whole row from a Gaussian's sums [kMoments + C], its moments and then its color
// gradient; zero where it is dead. scale(g, sums) first brings the sums to those units.
template <int C, typename T, typename Scale>
SPLAT_HD void write_gradient(
    Numbers<T> row, const Shape& shape, T* sums, Numbers<T> v_row, Scale scale) {
    const Gaussian<T> g = project<T>(row, shape);
    if (!g.alive) {
        for (int i = 0; i < shape.row; ++i) v_row.store(i, T(0));
        return;
    }
    scale(g, sums);
    project_vjp(g, row, shape, sums, v_row);
    for (int c = 0; c < C; ++c)  // the bound is a constant, so that a GPU keeps the sums in registers
        if (c < shape.channels) v_row.store(kGeometry + c, sums[kMoments + c]);
}

}  // namespace splat
