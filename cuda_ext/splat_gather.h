// The block programs that differentiate (see splat_warp.h).
#pragma once

#include "splat_warp.h"

namespace splat {

// ---- Gradient: one block sums a chunk of Gaussians over a part of the tiles -----------------

template <int C>
constexpr int kSums = kMoments + C;  // of one Gaussian: its moments, then its color gradient

template <typename T, int C>
struct alignas(C == 1 ? sizeof(T) : 16) PixelGradient {
    T v[C];
};

template <typename T, int C>
struct Sums {
    T value[kSums<C>];
};

template <typename T, int C>
struct GatherShared {
    Staged<T, C> staged[kChunk<T>];
    PixelGradient<T, C> pixels[kWarps][kTile * kTile];
    Sums<T, C> sums[kWarps][kChunk<T>];
    uint8_t list[kWarps][kChunk<T>];  // the Gaussians that touch the warp's tile
};

// dL/dpixel of one lane's pixels over the samples per pixel, zero outside the image.
template <typename T, int C, int S>
SPLAT_DEVICE void load_pixels(
    const T* v_images, const Shape& shape, int image, const Tile<T>& tile, int lane,
    PixelGradient<T, C>* pixels) {
    const int64_t plane = int64_t(shape.height) * shape.width;
    const int column = lane_column(lane), x = tile.x + column;
    for (int r = lane_row(lane); r < lane_row(lane) + kRowsPerLane; ++r) {
        const bool inside = x < shape.width && tile.y + r < shape.height;
        const T* from = v_images + pixel_offset(shape, image, x, tile.y + r);
        for (int c = 0; c < C; ++c)
            pixels[r * kTile + column].v[c] =
                inside && c < shape.channels ? from[c * plane] / T(S * S) : T(0);
    }
}

// One Gaussian's sums over some rows of a tile: the moments of dL/dw times the staged weight, and
// the color gradient over the weight's scale (see `finish`).
template <typename T, int C, int S>
SPLAT_DEVICE void gather_rows(
    const Staged<T, C>& g, const Tile<T>& tile, const PixelGradient<T, C>* pixels, int from_row,
    int rows, Sums<T, C>& sums) {
    constexpr T step = T(1) / S;
    const T x = T(tile.x) + T(0.5 / S), y = T(tile.y + from_row) + T(0.5 / S);
    const PixelGradient<T, C>* first = pixels + from_row * kTile;
#pragma unroll 1
    for (int at = 0; at < kTile; ++at, ++first) {
        Column<T> column[S];
        T m[S] = {}, mt[S] = {}, mtt[S] = {};  // this column's moments in t
#pragma unroll
        for (int j = 0; j < S; ++j) column[j] = column_at(g, x + T(at) + T(j) * step, y);
        T below = T(0);  // rows below the first; a float, for the conversion would cost more
#pragma unroll 1
        for (const auto* from = first; from != first + rows * kTile; from += kTile, below += T(1)) {
            const PixelGradient<T, C> pixel = *from;
            T v_weight = g.color[0] * pixel.v[0], total = T(0);
#pragma unroll
            for (int c = 1; c < C; ++c) v_weight += g.color[c] * pixel.v[c];
#pragma unroll
            for (int i = 0; i < S; ++i)
#pragma unroll
                for (int j = 0; j < S; ++j) {
                    const T t = column[j].t + (below + T(i) * step) * g.steep;
                    const T e = column[j].base - t * t;
                    const T weight = weight_at(g, e);
                    const T h = e > T(0) ? T(0) : v_weight * weight;  // at the clamp nothing moves
                    total += weight;
                    m[j] += h;
                    mt[j] += h * t;
                    mtt[j] += h * t * t;
                }
#pragma unroll
            for (int c = 0; c < C; ++c) sums.value[kMoments + c] += total * pixel.v[c];
        }
#pragma unroll
        for (int j = 0; j < S; ++j) {
            const T u = column[j].dx;
            sums.value[0] += m[j];
            sums.value[1] += u * m[j];
            sums.value[2] += mt[j];
            sums.value[3] += u * u * m[j];
            sums.value[4] += u * mt[j];
            sums.value[5] += mtt[j];
        }
    }
}

// One warp adds one tile to its sums. Lanes are Gaussians; where few are left, 2 or 4 lanes share
// one and each takes some of the tile's rows, and they add to its sums in turns.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void gather_tile(
    const T* v_images, const Shape& shape, int image, const Tile<T>& tile, int count,
    int warp, GatherShared<T, C>& shared) {
    uint8_t* list = shared.list[warp];
    PixelGradient<T, C>* pixels = shared.pixels[warp];

    // 2a. List the Gaussians that touch the tile, in their order.
    int listed = 0;
    for (int group = 0; group < count; group += kLanes) {
        const uint32_t alive = Team::ballot([&](int lane) {
            return group + lane < count && touches(shared.staged[group + lane], tile);
        });
        Team::lanes([&](int lane) {
            if (alive >> lane & 1u)
                list[listed + count_bits(alive & ((1u << lane) - 1))] = uint8_t(group + lane);
        });
        listed += count_bits(alive);
    }
    if (listed == 0) return;

    // 2b. Stage the tile's pixels.
    Team::lanes([&](int lane) {
        load_pixels<T, C, S>(v_images, shape, image, tile, lane, pixels);
    });

    // 2c. Sum: `slots` Gaussians at a time, the rows shared by the kLanes / slots lanes of each.
    for (int first = 0; first < listed;) {
        const int left = listed - first;
        const int sharing = left <= kLanes / 4 ? 2 : left <= kLanes / 2 ? 1 : 0;  // log2 of lanes
        const int slots = kLanes >> sharing, rows = kTile >> sharing;
        typename Team::template PerLane<Sums<T, C>> sums;
        Team::lanes([&](int lane) {
            const int slot = lane & (slots - 1), from_row = (lane >> (kLaneBits - sharing)) * rows;
            if (slot < left)
                gather_rows<T, C, S>(shared.staged[list[first + slot]], tile, pixels, from_row,
                                     rows, sums[lane]);
        });
        for (int turn = 0; turn < 1 << sharing; ++turn)
            Team::lanes([&](int lane) {
                const int slot = lane & (slots - 1);
                if (lane >> (kLaneBits - sharing) != turn || slot >= left) return;
                Sums<T, C>& into = shared.sums[warp][list[first + slot]];
                for (int i = 0; i < kSums<C>; ++i) into.value[i] += sums[lane].value[i];
            });
        first += slots;
    }
}

// The chain rule: from a Gaussian's sums to the gradient of its row. Where the weight saturates,
// the staged weight was opacity exp(-sigma) and the moments want exp(-sigma); elsewhere it was
// exp(-sigma) and the color wants opacity exp(-sigma). The moments' t was steep times theirs.
template <typename T, int C>
SPLAT_DEVICE void finish(
    Numbers<T> row, const Shape& shape, const Sums<T, C>& sums, Numbers<T> v_row) {
    const Gaussian<T> g = project<T>(row, shape);
    if (!g.alive) {
        for (int i = 0; i < shape.row; ++i) v_row[i] = T(0);
        return;
    }
    const bool saturated = saturates(g, shape);
    const T scale = saturated ? T(1) / g.opacity : T(1), per_t = scale / steepness(g);
    const T color_scale = saturated ? T(1) : g.opacity;
    const T* m = sums.value;
    const T moments[kMoments] = {m[0] * scale, m[1] * scale, m[2] * per_t, m[3] * scale,
                                 m[4] * per_t, m[5] * per_t / steepness(g)};
    project_vjp(g, row, shape, moments, v_row);
    for (int c = 0; c < C; ++c)
        if (c < shape.channels) v_row[kGeometry + c] = color_scale * sums.value[kMoments + c];
}

// Offset of a Gaussian's sums over one part in slots [stored, parts, points, kSums].
template <int C>
SPLAT_HD int64_t slot_offset(const Shape& shape, int image, int part, int k) {
    return ((int64_t(image) * parts_of(shape) + part) * shape.points + k) * kSums<C>;
}

// Writes v_params where one part covers the image, else slots. A block belongs to a stored image
// and looks through the index for where it is shown, 32 slots of the batch at a time: an image
// shown twice adds up in the batch's order and one that is not shown gets zeros, without atomics.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void gather(
    const T* v_images, Numbers<T> params, Numbers<T> v_params, T* slots, const Shape& shape,
    int block, GatherShared<T, C>& shared) {
    const int chunks = ceil_div(shape.points, kChunk<T>), parts = parts_of(shape);
    const int part = block / chunks % parts, image = block / chunks / parts;
    const int begin = block % chunks * kChunk<T>;
    const int count = shape.points - begin < kChunk<T> ? shape.points - begin : kChunk<T>;
    const int64_t first_row = int64_t(image) * shape.points + begin;
    const auto row = [&](int k) { return params + (first_row + k) * shape.row; };

    // 1. Stage, and start every warp's sums at zero.
    Team::threads([&](int thread) {
        if (thread < count)
            stage(row(thread), shape, false, shared.staged[thread]);
        for (int i = thread; i < kWarps * kChunk<T>; i += kThreads)
            shared.sums[i / kChunk<T>][i % kChunk<T>] = Sums<T, C>{};
    });

    // 2. A warp takes every eighth tile of the part.
    const int first = part * kTilesPerPart, tiles = tiles_of(shape);
    const int last = tiles - first < kTilesPerPart ? tiles : first + kTilesPerPart;
    const int begin_slot = shape.picks() ? 0 : image;
    const int end_slot = shape.picks() ? int(shape.batch) : image + 1;
    Team::warps([&](int warp) {
        for (int group = begin_slot; group < end_slot; group += kLanes) {
            uint32_t shown = Team::ballot([&](int lane) {
                return group + lane < end_slot && shape.source(group + lane) == image;
            });
            for (; shown != 0; shown &= shown - 1)
                for (int tile = first + warp; tile < last; tile += kWarps)
                    gather_tile<Team, T, C, S>(v_images, shape, group + lowest_bit(shown),
                                               tile_at<T, S>(shape, tile), count, warp, shared);
        }
    });

    // 3. Sum over the warps in their order; apply the chain rule or keep the part's slot.
    Team::threads([&](int thread) {
        if (thread >= count) return;
        Sums<T, C> total{};
        for (int warp = 0; warp < kWarps; ++warp)
            for (int i = 0; i < kSums<C>; ++i) total.value[i] += shared.sums[warp][thread].value[i];
        if (parts == 1) {
            finish<T, C>(
                row(thread), shape, total, v_params + (first_row + thread) * shape.row);
        } else {
            T* slot = slots + slot_offset<C>(shape, image, part, begin + thread);
            for (int i = 0; i < kSums<C>; ++i) slot[i] = total.value[i];
        }
    });
}

// Adds one Gaussian's slots in the parts' order and applies the chain rule. `index` counts the
// Gaussians that are stored.
template <typename T, int C>
SPLAT_DEVICE void add_parts(
    const T* slots, Numbers<T> params, Numbers<T> v_params, const Shape& shape, int64_t index) {
    const int image = int(index / shape.points), k = int(index % shape.points);
    Sums<T, C> total{};
    for (int part = 0; part < parts_of(shape); ++part) {
        const T* slot = slots + slot_offset<C>(shape, image, part, k);
        for (int i = 0; i < kSums<C>; ++i) total.value[i] += slot[i];
    }
    finish<T, C>(params + index * shape.row, shape, total, v_params + index * shape.row);
}

}  // namespace splat
