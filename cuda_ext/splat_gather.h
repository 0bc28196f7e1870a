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

// What a block works on: a chunk of the Gaussians of a stored image, and a part of its tiles. It lies
// in shared memory since the sums need the registers.
template <typename T>
struct Portion {
    int image, begin, count, part, first_tile, end_tile, first_slot, end_slot;
    int64_t plane;  // pixels of an image; from memory, or a compiler multiplies anew for each pixel

    SPLAT_HD void set(const Shape& shape, int block) {
        const int chunks = ceil_div(shape.points, kChunk<T>), tiles = tiles_of(shape);
        image = block / chunks / parts_of(shape);
        begin = block % chunks * kChunk<T>;
        count = shape.points - begin < kChunk<T> ? shape.points - begin : kChunk<T>;
        part = block / chunks % parts_of(shape);
        first_tile = part * kTilesPerPart;
        end_tile = tiles - first_tile < kTilesPerPart ? tiles : first_tile + kTilesPerPart;
        first_slot = shape.indexed ? 0 : image;
        end_slot = shape.indexed ? int(shape.batch) : image + 1;
        plane = int64_t(shape.height) * shape.width;
    }
    // Offset of the row of the chunk's Gaussian number k.
    SPLAT_HD int64_t row(const Shape& shape, int k) const {
        return (int64_t(image) * shape.points + begin + k) * shape.row;
    }
};

template <typename T, int C>
struct GatherShared {
    Portion<T> own;
    Outlines<T, kChunk<T>> outlines;
    T flat[kChunk<T>], steep[kChunk<T>], lift[kChunk<T>], log2_rim[kChunk<T>];
    T color[C][kChunk<T>];  // these are the rest of each brush
    PixelGradient<T, C> pixels[kWarps][kTile * kTile];
    Sums<T, C> sums[kWarps][kChunk<T>];
    Tile<T> tile[kWarps];  // what each warp works on
    uint8_t list[kWarps][kChunk<T>];          // the Gaussians that touch the warp's tile
    uint8_t pairs[kWarps][kQuarters * kLanes];  // listed Gaussian + kLanes times quarter of it
};

template <typename T, int C>
SPLAT_DEVICE void stage(
    Numbers<T> row, const Shape& shape, int k, GatherShared<T, C>& shared) {
    const Gaussian<T> g = outline(row, shape, k, shared.outlines);
    if (!g.alive) return;
    shared.flat[k] = flatness(g);
    shared.steep[k] = root_steepness(g);
    shared.lift[k] = lift_of(g, shape);
    shared.log2_rim[k] = lifted_rim(g, shape);
    for (int c = 0; c < C; ++c)
        shared.color[c][k] = c < shape.channels ? row.load(kGeometry + c) : T(0);
}

template <typename T, int C>
SPLAT_DEVICE Brush<T, C> brush(const GatherShared<T, C>& shared, int k) {
    const auto& all = shared.outlines;
    Brush<T, C> g{all.x[k],        all.y[k],       all.slope[k],      shared.flat[k],
                  shared.steep[k], shared.lift[k], shared.log2_rim[k]};
    for (int c = 0; c < C; ++c) g.color[c] = shared.color[c][k];
    return g;
}

// dL/dpixel of one lane's pixels over the samples per pixel, zero outside the image.
template <typename T, int C, int S>
SPLAT_DEVICE void load_pixels(
    const T* v_images, const Shape& shape, int64_t plane, int image, const Tile<T>& tile, int lane,
    PixelGradient<T, C>* pixels) {
    const int column = lane_column(lane), row = lane_row(lane);
    const int x = tile.x + column, y = tile.y + row;
    const T* from = v_images + pixel_offset(shape, image, x, y);
#pragma unroll
    for (int r = 0; r < kRowsPerLane; ++r) {
        const bool inside = x < shape.width && y + r < shape.height;
#pragma unroll
        for (int c = 0; c < C; ++c)
            pixels[(row + r) * kTile + column].v[c] =
                inside && c < shape.channels ? from[c * plane] / T(S * S) : T(0);
        from += shape.width;
    }
}

// One Gaussian's sums over some columns of a quarter, whose first sample is at (x, y): the moments of
// dL/dw times the staged weight, and the color gradient over the weight's scale (see `finish`).
template <typename T, int C, int S>
SPLAT_DEVICE void gather_columns(
    const Brush<T, C>& g, T x, T y, const PixelGradient<T, C>* pixels, int columns,
    Sums<T, C>& sums) {
    constexpr T step = T(1) / S;
#pragma unroll 1
    for (const auto* end = pixels + columns; pixels != end; ++pixels, x += T(1)) {
        Column<T> column[S];
        T m[S] = {}, mt[S] = {};  // this column's moments in t
#pragma unroll
        for (int j = 0; j < S; ++j) column[j] = column_at(g, x + T(j) * step, y);
#pragma unroll
        for (int r = 0; r < kQuarter; ++r) {
            const PixelGradient<T, C> pixel = pixels[r * kTile];
            T v_weight = g.color[0] * pixel.v[0], total = T(0);
#pragma unroll
            for (int c = 1; c < C; ++c) v_weight += g.color[c] * pixel.v[c];
#pragma unroll
            for (int i = 0; i < S; ++i)
#pragma unroll
                for (int j = 0; j < S; ++j) {
                    const T t = column[j].t + (T(r) + T(i) * step) * g.steep;
                    const T e = column[j].base - t * t;
                    const bool counts = inside(e, g.log2_rim), passes = counts && !held(e, T(0));
                    const T weight = power_of_2(clamped(e, T(0)));
                    const T h = v_weight * weight, ht = h * t;
                    // One by one, so that a GPU adds under a condition and does not branch.
                    if (counts) total += weight;
                    if (passes) m[j] += h;
                    if (passes) mt[j] += ht;
                    if (passes) sums.value[5] += ht * t;
                }
#pragma unroll
            for (int c = 0; c < C; ++c) sums.value[kMoments + c] += total * pixel.v[c];
        }
#pragma unroll
        for (int j = 0; j < S; ++j) {
            const T u = column[j].dx, um = u * m[j];
            sums.value[0] += m[j];
            sums.value[1] += um;
            sums.value[2] += mt[j];
            sums.value[3] += u * um;
            sums.value[4] += u * mt[j];
        }
    }
}

// Lists the pairs of a listed Gaussian and a quarter that it may touch, and counts them. The pairs of
// one quarter follow each other, and so do the lanes' additions to a Gaussian's sums.
template <typename Team>
SPLAT_DEVICE int list_pairs(const Masks& masks, uint8_t* pairs) {
    int paired = 0;
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
        const uint32_t touched = masks.of(quarter);
        Team::lanes([&](int lane) {
            if (touched >> lane & 1u)
                pairs[paired + count_bits(touched & ((1u << lane) - 1))] =
                    uint8_t(quarter * kLanes + lane);
        });
        paired += count_bits(touched);
    }
    return paired;
}

// One warp adds one tile to its sums. Lanes are pairs of a Gaussian and a quarter; where few are left,
// 2 or 4 lanes share one and each takes some of the columns. Lanes that have the same Gaussian add to
// its sums in turns.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void gather_tile(
    const T* v_images, const Shape& shape, int image, int warp, GatherShared<T, C>& shared) {
    const Tile<T>& tile = shared.tile[warp];
    uint8_t *list = shared.list[warp], *pairs = shared.pairs[warp];
    PixelGradient<T, C>* pixels = shared.pixels[warp];

    // 2a. List the Gaussians that touch the tile, 2b. stage its pixels.
    int listed = list_touching<Team>(shared.outlines, shared.own.count, tile, list);
    if (listed == 0) return;
    Team::lanes([&](int lane) {
        load_pixels<T, C, S>(v_images, shape, shared.own.plane, image, tile, lane, pixels);
    });

    // 2c. Sum: `slots` pairs at a time, each shared by kLanes / slots lanes.
    for (; listed > 0; list += kLanes, listed -= kLanes) {
        const Masks masks = masks_of<Team>(shared.outlines, list, listed, tile);
        const int paired = list_pairs<Team>(masks, pairs);
        for (int first = 0; first < paired;) {
            const int left = paired - first;
            const int sharing = left <= kLanes / 4 ? 2 : left <= kLanes / 2 ? 1 : 0;  // log2
            const int slots = kLanes >> sharing, columns = kQuarter >> sharing;
            const int taken = left < slots ? left : slots;
            typename Team::template PerLane<Sums<T, C>> sums;
            typename Team::template PerLane<int> gaussian, turn;
            Team::lanes([&](int lane) {
                const int slot = lane & (slots - 1), share = lane >> (kLaneBits - sharing);
                turn[lane] = -1;
                if (slot >= taken) return;
                const int pair = pairs[first + slot], quarter = pair / kLanes;
                const int column = quarter_x(quarter) + share * columns, row = quarter_y(quarter);
                const T x = T(tile.x + column) + T(0.5 / S), y = T(tile.y + row) + T(0.5 / S);
                gaussian[lane] = list[pair % kLanes];
                turn[lane] = quarter << sharing | share;
                gather_columns<T, C, S>(brush(shared, gaussian[lane]), x, y,
                                        pixels + row * kTile + column, columns, sums[lane]);
            });
            const int from = pairs[first] / kLanes, to = pairs[first + taken - 1] / kLanes;
#pragma unroll 1
            for (int now = from << sharing; now < (to + 1) << sharing; ++now)
                Team::lanes([&](int lane) {
                    if (turn[lane] != now) return;
                    Sums<T, C>& into = shared.sums[warp][gaussian[lane]];
                    for (int i = 0; i < kSums<C>; ++i) into.value[i] += sums[lane].value[i];
                });
            first += slots;
        }
    }
}

// From a Gaussian's sums to the gradient of its row. Where the weight saturates, the staged weight
// was opacity exp(-sigma) and the moments want exp(-sigma); elsewhere it was exp(-sigma) and the
// color wants opacity exp(-sigma). The moments' t was measured in units of 1 / steep.
template <typename T, int C>
SPLAT_DEVICE void finish(Numbers<T> row, const Shape& shape, Sums<T, C>& sums, Numbers<T> v_row) {
    write_gradient<C>(row, shape, sums.value, v_row, [&](const Gaussian<T>& g, T* m) {
        const bool saturated = saturates(g, shape);
        const T scale = saturated ? T(1) / g.opacity : T(1), per_t = scale / root_steepness(g);
        m[0] *= scale;
        m[1] *= scale;
        m[2] *= per_t;
        m[3] *= scale;
        m[4] *= per_t;
        m[5] = m[5] * per_t / root_steepness(g);
        for (int c = 0; c < C; ++c) m[kMoments + c] *= saturated ? T(1) : g.opacity;
    });
}

// Offset of a Gaussian's sums over one part in slots [stored, parts, points, kSums].
template <int C>
SPLAT_HD int64_t slot_offset(const Shape& shape, int image, int part, int k) {
    return ((int64_t(image) * parts_of(shape) + part) * shape.points + k) * kSums<C>;
}

// The first slot of the batch from `slot` on that shows the block's image, or the end.
template <typename Team, typename T>
SPLAT_DEVICE int next_shown(const Shape& shape, const Portion<T>& own, int slot) {
    for (; slot < own.end_slot; slot += kLanes) {
        const uint32_t shown = Team::ballot([&](int lane) {
            return slot + lane < own.end_slot && shape.source(slot + lane) == own.image;
        });
        if (shown != 0) return slot + lowest_bit(shown);
    }
    return own.end_slot;
}

// Writes v_params where one part covers the image, else slots. A block looks through the index for
// where its image is shown: an image shown twice adds up in the batch's order and one that is not
// shown gets zeros, without atomics.
template <typename Team, typename T, int C, int S>
SPLAT_DEVICE void gather(
    const T* v_images, Numbers<T> params, Numbers<T> v_params, T* slots, const Shape& shape,
    int block, GatherShared<T, C>& shared) {
    const Portion<T>& own = shared.own;
    Team::threads([&](int thread) {
        if (thread == 0) shared.own.set(shape, block);
    });

    // 1. Stage, and start every warp's sums at zero.
    Team::threads([&](int thread) {
        if (thread < own.count)
            stage(params + own.row(shape, thread), shape, thread, shared);
        for (int i = thread; i < kWarps * kChunk<T>; i += kThreads)
            shared.sums[i / kChunk<T>][i % kChunk<T>] = Sums<T, C>{};
    });

    // 2. A warp takes every eighth tile of the part.
    Team::warps([&](int warp) {
        for (int slot = next_shown<Team>(shape, own, own.first_slot); slot < own.end_slot;
             slot = next_shown<Team>(shape, own, slot + 1))
            for (int tile = own.first_tile + warp; tile < own.end_tile; tile += kWarps) {
                Team::lanes([&](int lane) {
                    if (lane == 0) shared.tile[warp] = tile_at<T, S>(shape, tile);
                });
                gather_tile<Team, T, C, S>(v_images, shape, slot, warp, shared);
            }
    });

    // 3. Sum over the warps in their order; apply the chain rule or keep the part's slot.
    Team::threads([&](int thread) {
        if (thread >= own.count) return;
        Sums<T, C> total{};
        for (int warp = 0; warp < kWarps; ++warp)
            for (int i = 0; i < kSums<C>; ++i) total.value[i] += shared.sums[warp][thread].value[i];
        if (parts_of(shape) == 1) {
            const int64_t row = own.row(shape, thread);
            finish<T, C>(params + row, shape, total, v_params + row);
        } else {
            T* slot = slots + slot_offset<C>(shape, own.image, own.part, own.begin + thread);
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
