// The CPU kernels for one instruction set. No include guard: splat_cpu.cpp includes this file once
// per set, with SPLAT_TARGET naming the namespace and SPLAT_VECTOR_BYTES the width of a register.
//
// Gaussian by Gaussian, its support is walked in vertical strips one register wide. Lanes are
// pixels in x, so a strip needs no gather, and a sample below another follows from it by two
// products (exp of a quadratic has a geometric second difference):
//     G(y + h) = G(y) R(y),   R(y + h) = R(y) Q,   Q = exp(-h^2 curvature).
// The seed must not underflow while a later sample of its chunk is inside the support, which bounds
// how many rows one seed may serve (`rows_per_seed`); one row means that every sample has its own exp.
// A column with no sample of its chunk in the support is set to zero at its seed: its products
// would sink below the smallest normal number, where a processor takes a hundred times as long.

namespace splat {
namespace SPLAT_TARGET {

#include "splat_sample.h"

template <typename T>
struct Lanes {
    static constexpr int count = SPLAT_VECTOR_BYTES / sizeof(T);
    typedef T V __attribute__((vector_size(SPLAT_VECTOR_BYTES)));
    typedef T Unaligned __attribute__((vector_size(SPLAT_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};
typedef int32_t Bits __attribute__((vector_size(SPLAT_VECTOR_BYTES)));

template <typename T>
inline typename Lanes<T>::V load(const T* from) {
    return *reinterpret_cast<const typename Lanes<T>::Unaligned*>(from);
}

template <typename T>
inline void store(T* to, typename Lanes<T>::V value) {
    *reinterpret_cast<typename Lanes<T>::Unaligned*>(to) = value;
}

template <typename T>
inline T sum_lanes(typename Lanes<T>::V value) {
    T total = 0;
    for (int lane = 0; lane < Lanes<T>::count; ++lane) total += value[lane];
    return total;
}

// 2^x, flushed to zero below the smallest normal number and saturated above 2^126.
inline Lanes<float>::V exp2_lanes(Lanes<float>::V x) {
    using V = Lanes<float>::V;
    const V zero = {};
    const V capped = x > 126.0f ? zero + 126.0f : x;
    const V safe = capped < -126.0f ? zero - 126.0f : capped;
    const V shifted = safe + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
    const V f = safe - (shifted - 12582912.0f);
    V p = zero + 0.00015353361959569156f;  // minimax on [-1/2, 1/2], relative error 2e-9
    p = p * f + 0.0013398875016719103f;
    p = p * f + 0.00961843691766262f;
    p = p * f + 0.055503323674201965f;
    p = p * f + 0.24022647738456726f;
    p = p * f + 0.6931471824645996f;
    p = p * f + 1.0f;
    const Bits scaled = Bits(p) + (Bits(shifted) << 23);  // same bits, not the same numbers
    return x < -126.0f ? zero : V(scaled);
}

inline Lanes<double>::V exp2_lanes(Lanes<double>::V x) {
    Lanes<double>::V value;
    for (int lane = 0; lane < Lanes<double>::count; ++lane)
        value[lane] = x[lane] < -1022.0 ? 0.0 : std::exp2(x[lane] > 1022.0 ? 1022.0 : x[lane]);
    return value;
}

// How many pixel rows one seed may serve: the exponent at the seed, for a sample of the support at
// the far end of the chunk, is at most D/2 (span + sqrt(reach / D))^2 and must stay above underflow.
template <typename T>
inline int rows_per_seed(const Gaussian<T>& g, T step) {
    const T limit = sizeof(T) == 4 ? T(80) : T(600);
    for (int rows = 4; rows > 1; rows /= 2) {
        const T far = T(rows) - step + std::sqrt(g.reach / g.curvature);
        if (T(0.5) * g.curvature * far * far < limit) return rows;
    }
    return 1;
}

// First and last pixel whose samples may lie in [low, high], clamped to [from, to).
struct Span {
    int first, last;
};

template <typename T>
inline Span pixels_between(T low, T high, T first_sample, int from, int to) {
    const T slack = T(1e-3);  // rounding may not lose a sample; the support test is exact
    const T first = std::ceil(low - (T(1) - first_sample) - slack);
    const T last = std::floor(high - first_sample + slack);
    return {first > T(from) ? (first < T(to) ? int(first) : to) : from,
            last < T(to) ? (last >= T(from) ? int(last) : from - 1) : to - 1};
}

// Calls body.enter(x, dx, line), body(y, G) for each pixel row of a strip, then body.leave(), where
// dx and line (the height where t = 0) belong to the strip's left samples and
// G[i][j] holds exp(-sigma) at sub-row i and sub-column j of the strip's pixels.
template <typename T, int S, typename Body>
inline void walk(const Gaussian<T>& g, int from_row, int to_row, int width, Body& body) {
    using V = typename Lanes<T>::V;
    constexpr int lanes = Lanes<T>::count;
    constexpr T step = T(1) / S, first_sample = T(0.5) / S;
    const T slope = g.slope, curve = steepness(g), flat = flatness(g);
    const V second = V{} + T(T(2) * curve * step * step);
    const V ratio_step = exp2_lanes(-second);
    const int chunk = rows_per_seed(g, step);
    const T lowest = lowest_dx(g, g.reach), reach_x = half_width(g, g.reach);
    const Span columns = pixels_between(g.x - reach_x, g.x + reach_x, first_sample, 0, width);

    const T rim_exponent = log2_rim(g) - T(0.01);  // with room to round
    // Whether a product may sink: how deep the exponent is where a strip goes furthest out.
    const T far_u = reach_x + T(lanes);
    const T far_t = std::sqrt(g.reach / g.curvature) + std::fabs(slope) * T(lanes) + T(chunk + 2);
    const bool sinks = flat * far_u * far_u + curve * far_t * far_t > T(sizeof(T) == 4 ? 120 : 1000);

    V lane_index;
    for (int lane = 0; lane < lanes; ++lane) lane_index[lane] = T(lane);

    for (int x = columns.first; x <= columns.last; x += lanes) {
        const int right = x + lanes - 1 < columns.last ? x + lanes - 1 : columns.last;
        const T dx_left = T(x) + first_sample - g.x, dx_right = T(right + 1) - first_sample - g.x;
        const auto half_chord = [&](T dx) {
            const T left = g.reach - dx * dx / g.a;
            return std::sqrt((left > 0 ? left : T(0)) / g.curvature);
        };
        const auto end = [&](T side) {
            return g.y + arc(slope, lowest, side, dx_left, dx_right, half_chord);
        };
        const Span rows = pixels_between(end(T(-1)), end(T(1)), first_sample, from_row, to_row);
        if (rows.first > rows.last) continue;

        V dx[S], base[S], line[S];
        for (int j = 0; j < S; ++j) {
            dx[j] = lane_index + (dx_left + T(j) * step);
            base[j] = -flat * dx[j] * dx[j];
            line[j] = slope * dx[j] + g.y;
        }
        body.enter(x, dx[0], line[0]);
        V G[S][S];
        for (int y = rows.first; y <= rows.last; y += chunk) {
            if (chunk == 1) {
                for (int i = 0; i < S; ++i)
                    for (int j = 0; j < S; ++j) {
                        const V off = (T(y) + first_sample + T(i) * step) - line[j];
                        G[i][j] = exp2_lanes(base[j] - curve * off * off);
                    }
                body(y, G);
                continue;
            }
            V value[S], ratio[S];
            for (int j = 0; j < S; ++j) {
                const V off = (T(y) + first_sample) - line[j];
                value[j] = exp2_lanes(base[j] - curve * off * off);
                ratio[j] = exp2_lanes(-curve * step * (T(2) * off + step));
                if (!sinks) continue;
                const V zero = {}, past = off + (T(chunk) - step);  // the chunk's last sample
                const V nearest = off > T(0) ? off : (past < T(0) ? past : zero);
                const auto dead = base[j] - curve * nearest * nearest < rim_exponent;
                value[j] = dead ? zero : value[j];
                ratio[j] = dead ? zero : ratio[j];
            }
            const int last = y + chunk - 1 < rows.last ? y + chunk - 1 : rows.last;
            for (int row = y; row <= last; ++row) {
                for (int i = 0; i < S; ++i)
                    for (int j = 0; j < S; ++j) {
                        G[i][j] = value[j];
                        value[j] *= ratio[j];
                        ratio[j] *= ratio_step;
                    }
                body(row, G);
            }
        }
        body.leave();
    }
}

// Adds one Gaussian to the padded planes of a band.
template <typename T, int C, int S>
struct Draw {
    using V = typename Lanes<T>::V;
    T* planes;            // [C][rows][stride], first row is the band's
    int64_t plane, stride;
    int from_row, x = 0;
    V color[C];
    V threshold, opacity;
    bool saturated;

    inline void enter(int column, V, V) { x = column; }
    inline void leave() {}
    inline void operator()(int y, const V (&G)[S][S]) {
        const V zero = {}, one = zero + T(1);
        V weight = zero;
        for (int i = 0; i < S; ++i)
            for (int j = 0; j < S; ++j) {
                V w = G[i][j];
                if (saturated) w = clamped(opacity * w, one);
                weight += inside(G[i][j], threshold) ? w : zero;
            }
        T* at = planes + (y - from_row) * stride + x;
        for (int k = 0; k < C; ++k) store(at + k * plane, load(at + k * plane) + color[k] * weight);
    }
};

// Sums the moments and the color gradient of one Gaussian over a band.
template <typename T, int C, int S>
struct Gather {
    using V = typename Lanes<T>::V;
    const T* planes;      // dL/dimage divided by the samples per pixel, padded with zeros
    int64_t plane, stride;
    int from_row, x = 0;
    T slope;
    V color[C];
    V threshold, opacity;
    bool saturated;
    V total[kMoments] = {}, v_color[C] = {};
    V dx, line;                          // of one strip's left sub-column, and its sums:
    V m0, m0_right, mt, mt_right, mtt;   // moments in t as seen from the left sub-column

    inline void enter(int column, V left_dx, V left_line) {
        x = column;
        dx = left_dx;
        line = left_line;
        m0 = m0_right = mt = mt_right = mtt = V{};
    }
    inline void operator()(int y, const V (&G)[S][S]) {
        constexpr T step = T(1) / S;
        const V zero = {}, one = zero + T(1);
        const T* at = planes + (y - from_row) * stride + x;
        V image[C], v_weight = zero;
        for (int k = 0; k < C; ++k) {
            image[k] = load(at + k * plane);
            v_weight += color[k] * image[k];
        }
        V weight = zero, s0 = zero, s0_right = zero, st = zero, st_right = zero, stt = zero;
        for (int i = 0; i < S; ++i) {
            const V t = (T(y) + T(0.5) / S + T(i) * step) - line;
            V both = zero, rightmost = zero;
            for (int j = 0; j < S; ++j) {
                const V alive = inside(G[i][j], threshold) ? G[i][j] : zero;
                const V w = opacity * alive;
                weight += saturated ? clamped(w, one) : w;
                const V h = saturated ? (held(w, one) ? zero : alive) : alive;
                both += h;
                if (j > 0) rightmost = h;
            }
            s0 += both;
            st += t * both;
            stt += t * t * both;
            s0_right += rightmost;
            st_right += t * rightmost;
        }
        m0 += v_weight * s0;
        mt += v_weight * st;
        mtt += v_weight * stt;
        if (S > 1) {
            m0_right += v_weight * s0_right;
            mt_right += v_weight * st_right;
        }
        for (int k = 0; k < C; ++k) v_color[k] += weight * image[k];
    }
    inline void leave() {  // a right sample has dx + step and t - slope step
        constexpr T step = T(1) / S;
        const T drop = slope * step;
        const V t_right = mt_right - drop * m0_right;
        const V t = mt - drop * m0_right;
        total[0] += m0;
        total[1] += dx * m0 + step * m0_right;
        total[2] += t;
        total[3] += dx * dx * m0 + (T(2) * step * dx + step * step) * m0_right;
        total[4] += dx * t + step * t_right;
        total[5] += mtt - drop * (mt_right + t_right);
    }
};

// One band of one image, C channels (fewer in the data are padded by black).
template <typename T, int C, int S>
void draw_band(Numbers<T> rows, const Shape& shape, const Band& band, T* planes) {
    const T per_sample = T(1) / (S * S);
    Draw<T, C, S> draw;
    draw.planes = planes;
    draw.plane = band.plane;
    draw.stride = band.stride;
    draw.from_row = band.from_row;
    for (int k = 0; k < shape.points; ++k) {
        const Row<T> row(rows + int64_t(k) * shape.row, shape);
        const Gaussian<T> g = project<T>(row, shape);
        if (!g.alive) continue;
        draw.saturated = saturates(g, shape);
        draw.opacity = typename Lanes<T>::V{} + g.opacity;
        draw.threshold = typename Lanes<T>::V{} + rim(g);
        const T scale = per_sample * (draw.saturated ? T(1) : g.opacity);
        for (int c = 0; c < C; ++c)
            draw.color[c] = typename Lanes<T>::V{} +
                            (c < shape.channels ? scale * row.load(kGeometry + c) : T(0));
        walk<T, S>(g, band.from_row, band.to_row, shape.width, draw);
    }
}

// Moments and color gradients of every Gaussian over one band: sums[points][kMoments + kMaxChannels].
template <typename T, int C, int S>
void gather_band(
    Numbers<T> rows, const Shape& shape, const Band& band, const T* planes, T* sums) {
    for (int k = 0; k < shape.points; ++k) {
        const Row<T> row(rows + int64_t(k) * shape.row, shape);
        const Gaussian<T> g = project<T>(row, shape);
        T* out = sums + int64_t(k) * (kMoments + kMaxChannels);
        if (!g.alive) continue;
        Gather<T, C, S> gather;
        gather.planes = planes;
        gather.plane = band.plane;
        gather.stride = band.stride;
        gather.from_row = band.from_row;
        gather.slope = g.slope;
        gather.saturated = saturates(g, shape);
        gather.opacity = typename Lanes<T>::V{} + g.opacity;
        gather.threshold = typename Lanes<T>::V{} + rim(g);
        for (int c = 0; c < C; ++c)
            gather.color[c] = typename Lanes<T>::V{} +
                              (c < shape.channels ? row.load(kGeometry + c) : T(0));
        walk<T, S>(g, band.from_row, band.to_row, shape.width, gather);
        for (int m = 0; m < kMoments; ++m) out[m] += sum_lanes<T>(gather.total[m]);
        for (int c = 0; c < shape.channels; ++c) out[kMoments + c] += sum_lanes<T>(gather.v_color[c]);
    }
}

template <typename T>
Kernels<T> kernels(const Shape& shape) {
    return with_constants<true>(shape, [](auto channels, auto per_axis) {
        constexpr int C = decltype(channels)::value, S = decltype(per_axis)::value;
        return Kernels<T>{draw_band<T, C, S>, gather_band<T, C, S>, C};
    });
}

}  // namespace SPLAT_TARGET
}  // namespace splat
