// The block program that renders (see splat_warp.h).
#pragma once

#include "splat_warp.h"

namespace splat {

// ---- Rendering: one block draws 8 tiles or more ---------------------------------------------

template <typename T, int C>
struct Pixels {
    T value[kRowsPerLane][C];
};

// What drawing reads of one Gaussian, the same for all lanes of a warp. It walks down a lane's column
// of samples by a recurrence: exp of a quadratic has a geometric second difference.
template <typename T, int C>
struct alignas(16) Staged : Brush<T, C> {
    T rim;         // 2^log2_rim
    T bend;        // ratio of two successive ratios of samples; 0 where the recurrence is not safe
    T lean;        // ratio of the first ratios of two neighboring columns
    T shear;       // fall of t from one column of samples to the next
    T rate, drop;  // log2 of a column's first ratio is rate t + drop
};

// What a block works on. It lies in shared memory since drawing needs the registers.
struct Region {
    int64_t row;  // offset of the first Gaussian's row
    int image, points, first_tile, end_tile;

    SPLAT_HD void set(const Shape& shape, int block) {
        const int tiles = tiles_of(shape), own = tiles_per_block(shape);
        const int per_image = ceil_div(tiles, own);
        image = block / per_image;
        first_tile = block % per_image * own;
        end_tile = tiles - first_tile < own ? tiles : first_tile + own;
        const int64_t source = shape.source(image);
        const bool there = source >= 0 && source < shape.stored;  // else it is left black
        points = there ? shape.points : 0;
        row = there ? source * shape.points * shape.row : 0;
    }
};

template <typename T, int C>
struct RenderShared {
    Region own;
    Staged<T, C> staged[kStaged<T>];
    Outlines<T, kStaged<T>> outlines;
    uint8_t list[kWarps][kStaged<T>];  // the Gaussians that touch the warp's tile
};

// Whether a lane's column may be walked by the recurrence from its top sample: with a sample of the
// support at its foot, t is at most sqrt(lift - log2_rim) + fall at the top, and e there must not be
// below what a number can hold (the note on the seed in splat_simd.h). The pre-filter's variance
// makes it so for every opacity up to 1e11; without it, most narrow Gaussians must not walk.
template <int S, typename T>
SPLAT_HD bool walks(const Gaussian<T>& g, const Shape& shape) {
    const T fall = (T(kRowsPerLane) - T(1) / S) * root_steepness(g);
    const T rise = std::sqrt(-log2_rim(g));
    const T deepest = lifted_rim(g, shape) - fall * (T(2) * rise + fall);
    return deepest > T(sizeof(T) == 4 ? -124 : -1000);
}

// Numbers are written in place, one by one, since a row of them would not fit into the registers
// beside a lane's pixels.
template <int S, typename T, int C>
SPLAT_DEVICE void stage(
    Numbers<T> row, const Shape& shape, int k, RenderShared<T, C>& shared) {
    const Gaussian<T> g = outline(row, shape, k, shared.outlines);
    if (!g.alive) return;
    Staged<T, C>& staged = shared.staged[k];
    staged.x = g.x;
    staged.y = g.y;
    staged.slope = g.slope;
    staged.flat = flatness(g);
    staged.steep = root_steepness(g);
    staged.lift = lift_of(g, shape);
    staged.log2_rim = lifted_rim(g, shape);
    const T down = staged.steep * (T(1) / S);  // t from one sample of a column to the next
    staged.rim = power_of_2(staged.log2_rim);
    staged.bend = walks<S>(g, shape) ? power_of_2(T(-2) * down * down) : T(0);
    staged.lean = power_of_2(T(2) * down * down * g.slope);
    staged.shear = down * g.slope;
    staged.rate = T(-2) * down;
    staged.drop = -down * down;
    const T scale = (saturates(g, shape) ? T(1) : g.opacity) * (T(1) / (S * S));
    for (int c = 0; c < C; ++c)
        staged.color[c] = c < shape.channels ? scale * row.load(kGeometry + c) : T(0);
}

// One Gaussian's weights over a lane's pixels, whose first sample is at (x, y), an exponential for
// every sample.
template <typename T, int C, int S>
SPLAT_DEVICE void sample_columns(
    const Staged<T, C>& g, T x, T y, T (&weight)[kRowsPerLane]) {
    constexpr T step = T(1) / S;
#pragma unroll
    for (int j = 0; j < S; ++j) {
        const Column<T> column = column_at(g, x + T(j) * step, y);
#pragma unroll
        for (int i = 0; i < kRowsPerLane * S; ++i) {
            const T t = column.t + T(i) * step * g.steep;
            weight[i / S] += weight_at(g, column.base - t * t);
        }
    }
}

// The same by the recurrence down each column: a third of the exponentials, which the GPU computes
// at an eighth of the rate of a product. A column that the support misses may end in infinity
// times zero; that is NaN, and fails the test at the rim as zero would.
template <typename T, int C, int S>
SPLAT_DEVICE void walk_columns(const Staged<T, C>& g, T x, T y, T (&weight)[kRowsPerLane]) {
    T dx = x - g.x, t = g.steep * ((y - g.y) - g.slope * dx);
    T first_ratio = power_of_2(g.rate * t + g.drop);
#pragma unroll
    for (int j = 0; j < S; ++j) {
        T value = power_of_2(g.lift - g.flat * dx * dx - t * t), ratio = first_ratio;
#pragma unroll
        for (int i = 0; i < kRowsPerLane * S; ++i) {
            if (inside(value, g.rim)) weight[i / S] += clamped(value, T(1));
            value *= ratio;
            ratio *= g.bend;
        }
        dx += T(1) / S;
        t -= g.shear;
        first_ratio *= g.lean;
    }
}

// Adds the listed Gaussians of the set bits to one lane's pixels, whose first sample is at (x, y).
template <typename T, int C, int S>
SPLAT_DEVICE void draw(
    const Staged<T, C>* staged, const uint8_t* list, uint32_t alive, T x, T y,
    Pixels<T, C>& pixels) {
    for (; alive != 0; alive &= alive - 1) {
        const Staged<T, C> g = staged[list[lowest_bit(alive)]];
        T weight[kRowsPerLane] = {};
        if (g.bend > T(0)) walk_columns<T, C, S>(g, x, y, weight);
        else sample_columns<T, C, S>(g, x, y, weight);
#pragma unroll
        for (int r = 0; r < kRowsPerLane; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) pixels.value[r][c] += g.color[c] * weight[r];
    }
}

// Writes a lane's pixels, or adds them to what is there.
template <typename T, int C>
SPLAT_DEVICE void store(
    const Pixels<T, C>& pixels, const Shape& shape, int image, int x, int y, bool add, T* images) {
    const int64_t plane = int64_t(shape.height) * shape.width;
    for (int r = 0; r < kRowsPerLane; ++r) {
        if (x >= shape.width || y + r >= shape.height) continue;
        T* to = images + pixel_offset(shape, image, x, y + r);
        for (int c = 0; c < C; ++c)
            if (c < shape.channels)
                to[c * plane] = add ? to[c * plane] + pixels.value[r][c] : pixels.value[r][c];
    }
}

// One warp draws one tile, from `count` staged Gaussians.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void draw_tile(
    const Shape& shape, int image, const Tile<T>& tile, int count, bool add, uint8_t* list,
    const RenderShared<T, C>& shared, T* images) {
    typename Team::template PerLane<Pixels<T, C>> pixels;
    const int listed = list_touching<Team>(shared.outlines, count, tile, list);
    for (int first = 0; first < listed; first += kLanes) {
        const Masks masks = masks_of<Team>(shared.outlines, list + first, listed - first, tile);
        Team::lanes([&](int lane) {
            const T x = T(tile.x + lane_column(lane)) + T(0.5 / S);
            const T y = T(tile.y + lane_row(lane)) + T(0.5 / S);
            draw<T, C, S>(shared.staged, list + first, masks.of(lane_quarter(lane)), x, y,
                          pixels[lane]);
        });
    }
    Team::lanes([&](int lane) {
        store(pixels[lane], shape, image, tile.x + lane_column(lane), tile.y + lane_row(lane), add,
              images);
    });
}

// Every pixel is written, also where there is no Gaussian.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void render(
    Numbers<T> params, T* images, const Shape& shape, int block, RenderShared<T, C>& shared) {
    const Region& own = shared.own;
    Team::threads([&](int thread) {
        if (thread == 0) shared.own.set(shape, block);
    });

    int begin = 0;
    do {
        const int left = own.points - begin, count = left < kStaged<T> ? left : kStaged<T>;

        // 1. Stage: a thread projects one Gaussian.
        Team::threads([&](int thread) {
            const int64_t row = own.row + int64_t(begin + thread) * shape.row;
            if (thread < count) stage<S>(params + row, shape, thread, shared);
        });

        // 2. A warp takes every eighth tile: it lists those that touch it, and the lanes of each
        // quarter walk through those that touch the quarter.
        Team::warps([&](int warp) {
            for (int tile = own.first_tile + warp; tile < own.end_tile; tile += kWarps)
                draw_tile<Team, T, C, S>(shape, own.image, tile_at<T, S>(shape, tile), count,
                                         begin > 0, shared.list[warp], shared, images);
        });
        begin += kStaged<T>;
    } while (begin < own.points);
}

}  // namespace splat
