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
// An image is cut into tiles of 8x8 pixels, numbered row by row; a tile is one warp's work, and its
// quarters of 4x4 pixels are what a Gaussian must touch to be looked at (figures/gpu/kernels.md). Which
// tiles form a part, a slot depends on the image's size alone, and every sum has a fixed order:
// results are the same bit for bit from run to run, whatever else is in the batch.
#pragma once

#include "splat_math.h"

#if defined(__CUDACC__)
#define SPLAT_DEVICE __device__ __forceinline__
#else
#define SPLAT_DEVICE inline
#endif

namespace splat {

constexpr int kLanes = 32, kLaneBits = 5, kWarps = 8, kThreads = kLanes * kWarps;
constexpr int kTile = 8;                              // pixels along a tile's side
constexpr int kQuarter = kTile / 2, kQuarters = 4;
constexpr int kRowsPerLane = kTile * kTile / kLanes;  // a lane has one column and this many rows
constexpr int kTilesPerPart = 64;                     // tiles whose gradients one block sums
// Gaussians staged at a time to render, and those of one block of the gradient: as many as fit into
// 48 KB, the most without opting in.
template <typename T>
constexpr int kStaged = sizeof(T) == 4 ? 256 : 128;
template <typename T>
constexpr int kChunk = sizeof(T) == 4 ? 96 : 32;
static_assert(kStaged<float> <= 256 && kChunk<float> <= 256, "a warp's list holds bytes");

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
// Tiles that a block renders: more of them share one staging, where that leaves blocks enough.
SPLAT_HD int tiles_per_block(const Shape& shape) {
    int tiles = 4 * kWarps;
    while (tiles > kWarps && shape.batch * tiles_of(shape) / tiles < 4096) tiles /= 2;
    return tiles;
}
SPLAT_HD int64_t render_blocks(const Shape& shape) {
    return shape.batch * ceil_div(tiles_of(shape), tiles_per_block(shape));
}
template <typename T>
SPLAT_HD int64_t gather_blocks(const Shape& shape) {
    return shape.stored * parts_of(shape) * ceil_div(shape.points, kChunk<T>);
}
SPLAT_HD int64_t add_parts_blocks(const Shape& shape) {
    return (shape.stored * shape.points + kThreads - 1) / kThreads;
}

template <typename T>
struct Tile {
    int x, y;                    // its first pixel
    T left, right, top, bottom;  // its outermost samples inside the image, and the margin
    T center_x, center_y, gap;   // where its quarters meet; from there to samples, and the margin
};

template <typename T, int S>
SPLAT_HD Tile<T> tile_at(const Shape& shape, int index) {
    const int columns = ceil_div(shape.width, kTile);
    const int x = index % columns * kTile, y = index / columns * kTile;
    const int end_x = x + kTile < shape.width ? x + kTile : shape.width;
    const int end_y = y + kTile < shape.height ? y + kTile : shape.height;
    const T inset = T(0.5 / S - kMargin);
    return {x, y, T(x) + inset, T(end_x) - inset, T(y) + inset, T(end_y) - inset,
            T(x + kQuarter), T(y + kQuarter), inset};
}

// Quarters 0 to 3 of a tile are its upper left, upper right, lower left and lower right one.
SPLAT_HD int quarter_x(int quarter) { return (quarter & 1) * kQuarter; }
SPLAT_HD int quarter_y(int quarter) { return (quarter >> 1) * kQuarter; }

// Eight lanes share a quarter. Of the tile, a lane has the pixels (lane_column, lane_row) and
// (lane_column, lane_row + 1).
SPLAT_HD int lane_quarter(int lane) { return lane >> 3; }
SPLAT_HD int lane_column(int lane) { return quarter_x(lane_quarter(lane)) + (lane & 3); }
SPLAT_HD int lane_row(int lane) {
    return quarter_y(lane_quarter(lane)) + (lane >> 2 & 1) * kRowsPerLane;
}

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

// The square root to a relative 1e-6, for culling, where kRoom covers it.
SPLAT_HD float rough_root(float square) {
#if defined(__CUDA_ARCH__)
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(square));
    return root;
#else
    return std::sqrt(square);
#endif
}
SPLAT_HD double rough_root(double square) { return std::sqrt(square); }

// ---- Gaussians, staged in shared memory -----------------------------------------------------

// What culling reads of N Gaussians, an array for each number: the lanes of a warp cull different
// Gaussians, and neighbors in an array lie in different banks of shared memory.
template <typename T, int N>
struct Outlines {
    T x[N], y[N], slope[N];
    T room[N], bend[N];  // the square of half the support's height at dx is room - bend dx^2
    T half_width[N];  // half the support's extent along x
    T lowest[N];      // dx of its lowest point
};

// With lift = log2(opacity) where the weight saturates, else 0, and t = steep (dy - slope dx),
//     2^min(e, 0),   e = lift - flat dx^2 - t^2,
// is min(1, opacity exp(-sigma)) where it saturates, else exp(-sigma): one formula for both.
template <typename T, int C>
struct Brush {
    T x, y, slope, flat, steep, lift;
    T log2_rim;  // e at the rim of the support
    T color[C];
};

template <typename T>
SPLAT_HD T root_steepness(const Gaussian<T>& g) {
    return std::sqrt(steepness(g));
}
template <typename T>
SPLAT_HD T lift_of(const Gaussian<T>& g, const Shape& shape) {
    return saturates(g, shape) ? std::log2(g.opacity) : T(0);
}
template <typename T>
SPLAT_HD T lifted_rim(const Gaussian<T>& g, const Shape& shape) {
    return lift_of(g, shape) + log2_rim(g);
}

// Projects a Gaussian and outlines it as number k. A dead one has an infinitely negative half-width,
// which no tile touches, and nothing else of it is read but its x.
template <typename T, int N>
SPLAT_HD Gaussian<T> outline(Numbers<T> row, const Shape& shape, int k, Outlines<T, N>& all) {
    all.half_width[k] = T(-INFINITY);
    all.x[k] = T(0);
    const Gaussian<T> g = project<T>(row, shape);
    if (!g.alive) return g;
    all.x[k] = g.x;
    all.y[k] = g.y;
    all.slope[k] = g.slope;
    all.room[k] = T(kRoom) * g.reach / g.curvature;
    all.bend[k] = T(1) / (g.a * g.curvature);
    all.half_width[k] = half_width(g, T(kRoom) * g.reach);
    all.lowest[k] = lowest_dx(g, T(kRoom) * g.reach);
    return g;
}

// From the lowest to the highest y that the support of a Gaussian may reach between two columns.
template <typename T>
struct Span {
    T top, bottom;

    // Written so that a NaN counts as touching; the samples' own test decides.
    SPLAT_HD bool misses(T from, T to) const { return (top > to) | (bottom < from); }
};

// That of Gaussian k: exact but for kRoom and kMargin, and empty where it lies left or right of them.
// The ellipse between two columns is convex, so it meets a tile where its heights do.
template <typename T, int N>
SPLAT_HD Span<T> span(const Outlines<T, N>& all, int k, T from, T to) {
    const T left = from - all.x[k], right = to - all.x[k];
    const auto half_chord = [&](T dx) {
        const T square = all.room[k] - all.bend[k] * dx * dx;
        return rough_root(square < T(0) ? T(0) : square);
    };
    const auto end = [&](T side) {
        return all.y[k] + arc(all.slope[k], all.lowest[k], side, left, right, half_chord);
    };
    const bool beside = (left > all.half_width[k]) | (right < -all.half_width[k]);
    const T top = end(T(-1)), bottom = end(T(1));
    return {beside ? T(INFINITY) : top, bottom};
}

template <typename T, int N>
SPLAT_HD bool touches(const Outlines<T, N>& all, int k, const Tile<T>& tile) {
    return !span(all, k, tile.left, tile.right).misses(tile.top, tile.bottom);
}

// The quarters of the tile that the support of Gaussian k may touch, as bits.
template <typename T, int N>
SPLAT_HD uint32_t quarters(const Outlines<T, N>& all, int k, const Tile<T>& tile) {
    uint32_t touched = 0;
    for (int half = 0; half < 2; ++half) {
        const Span<T> at = half == 0 ? span(all, k, tile.left, tile.center_x - tile.gap)
                                     : span(all, k, tile.center_x + tile.gap, tile.right);
        touched |= uint32_t(!at.misses(tile.top, tile.center_y - tile.gap)) << half;
        touched |= uint32_t(!at.misses(tile.center_y + tile.gap, tile.bottom)) << (half + 2);
    }
    return touched;
}

// Lists, in their order, those of `count` Gaussians that may touch the tile, and counts them.
template <typename Team, typename T, int N>
SPLAT_DEVICE int list_touching(
    const Outlines<T, N>& all, int count, const Tile<T>& tile, uint8_t* list) {
    int listed = 0;
#pragma unroll 1
    for (int group = 0; group < count; group += kLanes) {
        const uint32_t alive = Team::ballot([&](int lane) {
            return (group + lane < count) & touches(all, group + lane, tile);
        });
        Team::lanes([&](int lane) {
            if (alive >> lane & 1u)
                list[listed + count_bits(alive & ((1u << lane) - 1))] = uint8_t(group + lane);
        });
        listed += count_bits(alive);
    }
    return listed;
}

// Of each quarter, which of the first kLanes Gaussians of a list may touch it, as bits.
struct Masks {
    uint32_t upper_left, upper_right, lower_left, lower_right;

    SPLAT_HD uint32_t of(int quarter) const {  // no array, which a GPU would keep in slow memory
        return quarter < 2 ? (quarter == 0 ? upper_left : upper_right)
                           : (quarter == 2 ? lower_left : lower_right);
    }
};

template <typename Team, typename T, int N>
SPLAT_DEVICE Masks masks_of(
    const Outlines<T, N>& all, const uint8_t* list, int listed, const Tile<T>& tile) {
    typename Team::template PerLane<uint32_t> touched;
    Team::lanes([&](int lane) {
        if (lane < listed) touched[lane] = quarters(all, list[lane], tile);
    });
    const auto vote = [&](int quarter) {
        return Team::ballot([&](int lane) { return touched[lane] >> quarter & 1u; });
    };
    const uint32_t first = vote(0), second = vote(1), third = vote(2);
    return {first, second, third, vote(3)};
}

// A column of samples as a Gaussian sees it: dx, the part of e that it shares, t at its top.
template <typename T>
struct Column {
    T dx, base, t;
};

template <typename T, int C>
SPLAT_HD Column<T> column_at(const Brush<T, C>& g, T x, T y) {
    const T dx = x - g.x;
    return {dx, g.lift - g.flat * dx * dx, g.steep * ((y - g.y) - g.slope * dx)};
}

// The weight over the color's scale, zero outside the support.
template <typename T, int C>
SPLAT_HD T weight_at(const Brush<T, C>& g, T e) {
    return inside(e, g.log2_rim) ? power_of_2(clamped(e, T(0))) : T(0);
}

}  // namespace splat
