// The CUDA kernels as block programs: what 256 threads do, written once for the GPU and for tests.
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
template <typename T, int C>
struct alignas(16) Staged {
    T x, y, slope, flat, steep, lift;
    T floor;            // e at the rim of the support
    T half_width, tip;  // of the support: half its extent along x, and dx of its lowest point
    T color[C];
};

template <typename T>
SPLAT_HD bool saturates(const Gaussian<T>& g, const Shape& shape) {
    return shape.saturate && g.opacity > T(1);
}

template <typename T>
SPLAT_HD T steepness(const Gaussian<T>& g) {
    return std::sqrt(T(kHalfLog2E) * g.curvature);
}

// A dead Gaussian's half-width is below zero: it touches nothing.
template <typename T, int C>
SPLAT_HD Staged<T, C> stage(Numbers<T> row, const Shape& shape, bool premultiply) {
    Staged<T, C> staged{};
    staged.half_width = T(-INFINITY);
    const Gaussian<T> g = project<T>(row, shape);
    if (!g.alive) return staged;
    const bool saturated = saturates(g, shape);
    staged.x = g.x;
    staged.y = g.y;
    staged.slope = g.slope;
    staged.flat = T(kHalfLog2E) / g.a;
    staged.steep = steepness(g);
    staged.lift = saturated ? std::log2(g.opacity) : T(0);
    staged.floor = staged.lift - T(kHalfLog2E) * g.reach;
    staged.half_width = std::sqrt(T(kRoom) * g.reach * g.a);
    staged.tip = g.b * std::sqrt(T(kRoom) * g.reach / g.c);
    T scale = T(1);
    if (premultiply) scale = (saturated ? T(1) : g.opacity) / T(shape.per_axis * shape.per_axis);
    for (int c = 0; c < C; ++c)
        staged.color[c] = c < shape.channels ? scale * T(row[kGeometry + c]) : T(0);
    return staged;
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

// ---- Rendering: one block draws 8 tiles -----------------------------------------------------

template <typename T, int C>
struct Pixels {
    T value[kRowsPerLane][C];
};

// Adds the Gaussians of the set bits to one lane's pixels, whose first sample is at (x, y).
template <typename T, int C, int S>
SPLAT_DEVICE void draw(
    const Staged<T, C>* staged, uint32_t alive, T x, T y, Pixels<T, C>& pixels) {
    constexpr T step = T(1) / S;
    for (; alive != 0; alive &= alive - 1) {
        const Staged<T, C> g = staged[lowest_bit(alive)];
        T weight[kRowsPerLane] = {};
#pragma unroll
        for (int j = 0; j < S; ++j) {
            const Column<T> column = column_at(g, x + T(j) * step, y);
#pragma unroll
            for (int i = 0; i < kRowsPerLane * S; ++i) {
                const T t = column.t + T(i) * step * g.steep;
                weight[i / S] += weight_at(g, column.base - t * t);
            }
        }
#pragma unroll
        for (int r = 0; r < kRowsPerLane; ++r)
#pragma unroll
            for (int c = 0; c < C; ++c) pixels.value[r][c] += g.color[c] * weight[r];
    }
}

// Offset of a pixel in images [batch, channels, height, width], channel 0.
SPLAT_HD int64_t pixel_offset(const Shape& shape, int image, int x, int y) {
    return (int64_t(image) * shape.channels * shape.height + y) * shape.width + x;
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
    Numbers<T> params, T* images, const Shape& shape, int block, Staged<T, C>* staged) {
    const int tiles = tiles_of(shape), per_image = ceil_div(tiles, kWarps);
    const int image = block / per_image, first_tile = block % per_image * kWarps;
    const int64_t source = shape.source(image);
    const bool there = source >= 0 && source < shape.stored();  // else it is left black
    const int points = there ? shape.points : 0;
    const Numbers<T> rows = params + source * shape.points * shape.row;
    typename Team::template PerThread<Pixels<T, C>> pixels;

    for (int begin = 0; begin < points; begin += kStaged) {
        const int count = points - begin < kStaged ? points - begin : kStaged;

        // 1. Stage: a thread projects one Gaussian.
        Team::threads([&](int thread) {
            if (thread < count)
                staged[thread] =
                    stage<T, C>(rows + int64_t(begin + thread) * shape.row, shape, true);
        });

        // 2. Cull 32 Gaussians at a time, 3. walk those that touch the warp's tile.
        Team::warps([&](int warp) {
            if (first_tile + warp >= tiles) return;
            const Tile<T> tile = tile_at<T, S>(shape, first_tile + warp);
            for (int group = 0; group < count; group += kLanes) {
                const uint32_t alive = Team::ballot([&](int lane) {
                    return group + lane < count && touches(staged[group + lane], tile);
                });
                Team::lanes([&](int lane) {
                    const T x = T(tile.x + lane_column(lane)) + T(0.5 / S);
                    const T y = T(tile.y + lane_row(lane)) + T(0.5 / S);
                    draw<T, C, S>(staged + group, alive, x, y, pixels[warp * kLanes + lane]);
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
            shared.staged[thread] = stage<T, C>(row(thread), shape, false);
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
