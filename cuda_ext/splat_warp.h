// The CUDA kernels as block programs: what 256 threads do, written once for the GPU and for tests.
// Here is what they share: teams, tiles, staged Gaussians; splat_render.h and splat_gather.h are the
// programs.
//
// A program runs over a `Team`, which says what its steps mean. On the GPU (splat_cuda.cu) a step
// is one call per hardware thread; in the tests (tests/host_warp.cpp) it is a loop, so that an
// indexing mistake shows on a machine without a GPU. Every step ends in a barrier of those that
// it names:
//
//     Team::threads(f)    f(thread) for each of the block's kThreads threads
//     Team::warps(f)      f(warp) for each of its kWarps warps; f may use the two below
//     Team::lanes(f)      f(lane) for each of the warp's kLanes lanes
//     Team::ballot(f)     the bits f(lane) of the warp's lanes
//     PerThread<X>, PerLane<X>    one X for each, zero at first
//
// Within a step no thread reads what another one writes; that is the whole rule.
//
// An image is cut into tiles of 8x8 pixels, numbered row by row; a tile is one warp's work. Which
// tiles form a block, a part, a slot depends on the image's size alone, and every sum has a fixed
// order: results are the same bit for bit from run to run, whatever else is in the batch.
#pragma once

#include <type_traits>

#include "splat_math.h"

#if defined(__CUDACC__)
#define SPLAT_DEVICE __device__ __forceinline__
#else
#define SPLAT_DEVICE inline
#endif

namespace splat {

constexpr int kLanes = 32, kLaneBits = 5, kWarps = 8, kThreads = kLanes * kWarps;
constexpr int kTile = 8;                              // pixels along a tile's side
constexpr int kRowsPerLane = kTile * kTile / kLanes;  // a lane has one column and this many rows
constexpr int kStaged = kThreads;                     // Gaussians staged at a time to render
constexpr int kTilesPerPart = 64;                     // tiles whose gradients one block sums
// Gaussians of one block of the gradient: as many as fit into 48 KB, the most without opting in.
template <typename T>
constexpr int kChunk = sizeof(T) == 4 ? 96 : 32;
static_assert(kChunk<float> <= 256, "a warp's list holds bytes");

constexpr double kHalfLog2E = 0.72134752044448170368;
constexpr double kRoom = 1.001;   // the culling ellipse's reach over the true one: covers rounding
constexpr double kMargin = 1e-3;  // pixels around a tile's outermost samples, for the same reason

// ---- Work: blocks, parts and tiles ----------------------------------------------------------

// The launcher refuses what does not fit into ints of images, tiles and blocks; an offset into a
// tensor has 64 bits.
SPLAT_HD int ceil_div(int value, int by) { return (value + by - 1) / by; }
SPLAT_HD int tiles_of(const Shape& shape) {
    return ceil_div(shape.width, kTile) * ceil_div(shape.height, kTile);
}
SPLAT_HD int parts_of(const Shape& shape) { return ceil_div(tiles_of(shape), kTilesPerPart); }
SPLAT_HD int64_t render_blocks(const Shape& shape) {
    return shape.batch * ceil_div(tiles_of(shape), kWarps);
}
template <typename T>
SPLAT_HD int64_t gather_blocks(const Shape& shape) {
    return shape.stored() * parts_of(shape) * ceil_div(shape.points, kChunk<T>);
}
SPLAT_HD int64_t add_parts_blocks(const Shape& shape) {
    return (shape.stored() * shape.points + kThreads - 1) / kThreads;
}

// Calls f(C, S) with constants for the channels (rounded up) and the samples per pixel and axis.
// double is for checking gradients, not for speed: one number of channels is enough.
template <typename T, typename F>
void with_constants(const Shape& shape, F f) {
    const auto with_samples = [&](auto channels) {
        if (shape.per_axis == 1) f(channels, std::integral_constant<int, 1>());
        else f(channels, std::integral_constant<int, 2>());
    };
    if constexpr (sizeof(T) == 4) {
        if (shape.channels == 1) return with_samples(std::integral_constant<int, 1>());
        if (shape.channels <= 3) return with_samples(std::integral_constant<int, 3>());
    }
    with_samples(std::integral_constant<int, kMaxChannels>());
}

template <typename T>
struct Tile {
    int x, y;                    // its first pixel
    T left, right, top, bottom;  // its outermost samples inside the image, and the margin
};

template <typename T, int S>
SPLAT_HD Tile<T> tile_at(const Shape& shape, int index) {
    const int columns = ceil_div(shape.width, kTile);
    const int x = index % columns * kTile, y = index / columns * kTile;
    const int end_x = x + kTile < shape.width ? x + kTile : shape.width;
    const int end_y = y + kTile < shape.height ? y + kTile : shape.height;
    const T inset = T(0.5 / S - kMargin);
    return {x, y, T(x) + inset, T(end_x) - inset, T(y) + inset, T(end_y) - inset};
}

// Of an 8x8 tile, a lane has the pixels (lane_column, lane_row) and (lane_column, lane_row + 1).
SPLAT_HD int lane_column(int lane) { return lane % kTile; }
SPLAT_HD int lane_row(int lane) { return lane / kTile * kRowsPerLane; }

// ---- Arithmetic that the two sides spell differently ----------------------------------------

SPLAT_HD int count_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

SPLAT_HD int lowest_bit(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __ffs(int(bits)) - 1;
#else
    return __builtin_ctz(bits);
#endif
}

// 2^x to 2 units in the last place, zero below the smallest normal number, as on the CPU.
SPLAT_HD float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
#else
    return x < -126.0f ? 0.0f : std::exp2(x);
#endif
}
SPLAT_HD double power_of_2(double x) { return std::exp2(x); }

// sqrt(square) / by to a relative 1e-6, for culling, where kRoom covers it.
SPLAT_HD float rough_root_over(float square, float by) {
#if defined(__CUDA_ARCH__)
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(square));
    return __fdividef(root, by);
#else
    return std::sqrt(square) / by;
#endif
}
SPLAT_HD double rough_root_over(double square, double by) { return std::sqrt(square) / by; }

// ---- One Gaussian, staged in shared memory --------------------------------------------------

// With lift = log2(opacity) where the weight saturates, else 0, and t = steep (dy - slope dx),
//     2^min(e, 0),   e = lift - flat dx^2 - t^2,
// is min(1, opacity exp(-sigma)) where it saturates, else exp(-sigma): one formula for both.
//
// Rendering walks down a lane's column of samples by a recurrence (exp of a quadratic has a
// geometric second difference) and reads rim, bend and lean; everything else reads floor.
template <typename T, int C>
struct alignas(16) Staged {
    T x, y, slope, flat, steep, lift;
    T rim;   // 2^floor
    T bend;  // ratio of two successive ratios of samples; 0 where the recurrence is not safe
    T color[C];
    T lean;             // ratio of the first ratios of two neighboring columns
    T floor;            // e at the rim of the support
    T half_width, tip;  // of the support: half its extent along x, and dx of its lowest point
};

template <typename T>
SPLAT_HD bool saturates(const Gaussian<T>& g, const Shape& shape) {
    return shape.saturate && g.opacity > T(1);
}

template <typename T>
SPLAT_HD T steepness(const Gaussian<T>& g) {
    return std::sqrt(T(kHalfLog2E) * g.curvature);
}

// Whether a lane's column may be walked by the recurrence from its top sample: with a sample of the
// support at its foot, t is at most sqrt(lift - floor) + fall at the top, and e there must not be
// below what a number can hold (the note on the seed in splat_simd.h). The pre-filter's variance
// makes it so for every opacity up to 1e11; without it, most narrow Gaussians must not walk.
template <typename T, int C>
SPLAT_HD bool walks(const Staged<T, C>& staged, const Gaussian<T>& g, const Shape& shape) {
    const T fall = (T(kRowsPerLane) - T(shape.spacing())) * staged.steep;
    const T rise = std::sqrt(T(kHalfLog2E) * g.reach);
    const T deepest = staged.floor - fall * (T(2) * rise + fall);
    return deepest > T(sizeof(T) == 4 ? -124 : -1000);
}

// A dead Gaussian's half-width is below zero: it touches nothing, and nothing but its x is looked at.
// Numbers are written in place, one by one, for a row of them would not fit into the registers beside
// a lane's pixels.
template <typename T, int C>
SPLAT_HD void stage(Numbers<T> row, const Shape& shape, bool premultiply, Staged<T, C>& staged) {
    staged.half_width = T(-INFINITY);
    staged.x = T(0);
    const Gaussian<T> g = project<T>(row, shape);
    if (!g.alive) return;
    const bool saturated = saturates(g, shape);
    staged.x = g.x;
    staged.y = g.y;
    staged.slope = g.slope;
    staged.flat = T(kHalfLog2E) / g.a;
    staged.steep = steepness(g);
    staged.lift = saturated ? std::log2(g.opacity) : T(0);
    staged.floor = staged.lift - T(kHalfLog2E) * g.reach;
    const T down = staged.steep / shape.per_axis;  // t from one sample of a column to the next
    staged.rim = power_of_2(staged.floor);
    staged.bend = walks(staged, g, shape) ? power_of_2(T(-2) * down * down) : T(0);
    staged.lean = power_of_2(T(2) * down * down * g.slope);
    staged.half_width = std::sqrt(T(kRoom) * g.reach * g.a);
    staged.tip = g.b * std::sqrt(T(kRoom) * g.reach / g.c);
    T scale = T(1);
    if (premultiply) scale = (saturated ? T(1) : g.opacity) / T(shape.per_axis * shape.per_axis);
    for (int c = 0; c < C; ++c)
        staged.color[c] = c < shape.channels ? scale * T(row[kGeometry + c]) : T(0);
}

// Whether the support may hold a sample of the tile: exact but for kRoom and kMargin. The ellipse
// between the tile's left and right side is convex, so it meets the tile where its heights do.
template <typename T, int C>
SPLAT_HD bool touches(const Staged<T, C>& g, const Tile<T>& tile) {
    const T left = tile.left - g.x, right = tile.right - g.x;
    if (left > g.half_width || right < -g.half_width) return false;
    const T room = T(kRoom) * (g.lift - g.floor);
    const auto height = [&](T peak, T side) {  // of the upper (-) or lower (+) arc
        const T dx = peak < left ? left : (peak > right ? right : peak);
        const T rest = room - g.flat * dx * dx;
        return g.y + g.slope * dx + side * rough_root_over(rest > T(0) ? rest : T(0), g.steep);
    };
    // So written, a height that is not a number counts as touching; the samples' test decides.
    return !(height(-g.tip, T(-1)) > tile.bottom || height(g.tip, T(1)) < tile.top);
}

// A column of samples as a Gaussian sees it: dx, the part of e that it shares, t at its top.
template <typename T>
struct Column {
    T dx, base, t;
};

template <typename T, int C>
SPLAT_HD Column<T> column_at(const Staged<T, C>& g, T x, T y) {
    const T dx = x - g.x;
    return {dx, g.lift - g.flat * dx * dx, g.steep * ((y - g.y) - g.slope * dx)};
}

// The weight over the color's scale, zero outside the support.
template <typename T, int C>
SPLAT_HD T weight_at(const Staged<T, C>& g, T e) {
    return e >= g.floor ? power_of_2(e < T(0) ? e : T(0)) : T(0);
}

}  // namespace splat
