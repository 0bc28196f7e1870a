// The block program that renders (see splat_warp.h).
#pragma once

#include "splat_warp.h"

namespace splat {

// ---- Rendering: one block draws 8 tiles -----------------------------------------------------

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

template <typename T, int C>
struct RenderShared {
    Staged<T, C> staged[kStaged<T>];
    Outlines<T, kStaged<T>> outlines;
    uint8_t list[kWarps][kStaged<T>];  // the Gaussians that touch the warp's tile
};

// Whether a lane's column may be walked by the recurrence from its top sample: with a sample of the
// support at its foot, t is at most sqrt(lift - log2_rim) + fall at the top, and e there must not be
// below what a number can hold (the note on the seed in splat_simd.h). The pre-filter's variance
// makes it so for every opacity up to 1e11; without it, most narrow Gaussians must not walk.
template <typename T>
SPLAT_HD bool walks(const Gaussian<T>& g, const Shape& shape) {
    const T fall = (T(kRowsPerLane) - T(1) / T(shape.per_axis)) * root_steepness(g);
    const T rise = std::sqrt(-log2_rim(g));
    const T deepest = lifted_rim(g, shape) - fall * (T(2) * rise + fall);
    return deepest > T(sizeof(T) == 4 ? -124 : -1000);
}

// Numbers are written in place, one by one, since a row of them would not fit into the registers
// beside a lane's pixels.
template <typename T, int C>
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
    const T down = staged.steep / shape.per_axis;  // t from one sample of a column to the next
    staged.rim = power_of_2(staged.log2_rim);
    staged.bend = walks(g, shape) ? power_of_2(T(-2) * down * down) : T(0);
    staged.lean = power_of_2(T(2) * down * down * g.slope);
    staged.shear = down * g.slope;
    staged.rate = T(-2) * down;
    staged.drop = -down * down;
    const T samples = T(shape.per_axis * shape.per_axis);
    const T scale = (saturates(g, shape) ? T(1) : g.opacity) / samples;
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

template <typename T, int C>
SPLAT_DEVICE void store(
    const Pixels<T, C>& pixels, const Shape& shape, int image, int x, int y, T* images) {
    const int64_t plane = int64_t(shape.height) * shape.width;
    for (int r = 0; r < kRowsPerLane; ++r) {
        if (x >= shape.width || y + r >= shape.height) continue;
        T* to = images + pixel_offset(shape, image, x, y + r);
        for (int c = 0; c < C; ++c)
            if (c < shape.channels) to[c * plane] = pixels.value[r][c];
    }
}

template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void render(
    Numbers<T> params, T* images, const Shape& shape, int block, RenderShared<T, C>& shared) {
    const int tiles = tiles_of(shape), per_image = ceil_div(tiles, kWarps);
    const int image = block / per_image, first_tile = block % per_image * kWarps;
    const int64_t source = shape.source(image);
    const bool there = source >= 0 && source < shape.stored;  // else it is left black
    const int points = there ? shape.points : 0;
    const Numbers<T> rows = params + source * shape.points * shape.row;
    typename Team::template PerThread<Pixels<T, C>> pixels;

    for (int begin = 0; begin < points; begin += kStaged<T>) {
        const int count = points - begin < kStaged<T> ? points - begin : kStaged<T>;

        // 1. Stage: a thread projects one Gaussian.
        Team::threads([&](int thread) {
            if (thread < count)
                stage(rows + int64_t(begin + thread) * shape.row, shape, thread, shared);
        });

        // 2. List those that touch the warp's tile, 3. draw: the lanes of a quarter walk through
        // those that touch it.
        Team::warps([&](int warp) {
            if (first_tile + warp >= tiles) return;
            const Tile<T> tile = tile_at<T, S>(shape, first_tile + warp);
            uint8_t* list = shared.list[warp];
            const int listed = list_touching<Team>(shared.outlines, count, tile, list);
            for (int first = 0; first < listed; first += kLanes) {
                const Masks masks =
                    masks_of<Team>(shared.outlines, list + first, listed - first, tile);
                Team::lanes([&](int lane) {
                    const T x = T(tile.x + lane_column(lane)) + T(0.5 / S);
                    const T y = T(tile.y + lane_row(lane)) + T(0.5 / S);
                    draw<T, C, S>(shared.staged, list + first, masks.of(lane_quarter(lane)), x, y,
                                  pixels[warp * kLanes + lane]);
                });
            }
        });
    }

    // 4. Store: every pixel is written, also where there is no Gaussian.
    Team::threads([&](int thread) {
        const int index = first_tile + thread / kLanes;
        if (index >= tiles) return;
        const Tile<T> tile = tile_at<T, S>(shape, index);
        const int x = tile.x + lane_column(thread % kLanes), y = tile.y + lane_row(thread % kLanes);
        store(pixels[thread], shape, image, x, y, images);
    });
}

}  // namespace splat
