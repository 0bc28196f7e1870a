// The operator's schema and its CPU kernels.
//
//     gsdd::splat(params [N, M, R], ..., index [B])         -> images [B, C, H, W]
//     gsdd::splat_backward(v_images, params, ..., index)    -> v_params [N, M, R], all written
//
// Without an index, B = N. bfloat16 params are widened an image at a time; their gradient is
// summed in float and rounded once.
//
// A unit of work is a band of rows of one image, drawn into a padded scratch plane that stays in
// the second-level cache. How an image is cut into bands depends on its shape alone and the bands'
// sums are added in their order, so the result is the same bit for bit with any number of threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "splat_checks.h"
#include "splat_math.h"

namespace splat {

struct Band {
    int from_row, to_row;
    int64_t stride, plane;  // of the scratch: [channels][to_row - from_row][stride]
};

template <typename T>
struct Kernels {
    void (*draw)(const T*, const Shape&, const Band&, T*);
    void (*gather)(const T*, const Shape&, const Band&, const T*, T*);
    int channels, lanes;
};

}  // namespace splat

#define SPLAT_TARGET portable
#define SPLAT_VECTOR_BYTES 16
#include "splat_simd.h"
#undef SPLAT_TARGET
#undef SPLAT_VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPLAT_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt")
#define SPLAT_TARGET x86_64_v3
#define SPLAT_VECTOR_BYTES 32
#include "splat_simd.h"
#undef SPLAT_TARGET
#undef SPLAT_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512")
#define SPLAT_TARGET x86_64_v4
#define SPLAT_VECTOR_BYTES 64
#include "splat_simd.h"
#undef SPLAT_TARGET
#undef SPLAT_VECTOR_BYTES
#pragma GCC pop_options
#endif

namespace splat {
namespace {

// double is for gradcheck, not for speed: one set is enough, and builds faster.
Kernels<double> pick(const Shape& shape, double) {
    return portable::kernels<double>(shape.channels, shape.per_axis);
}

// The widest set this processor has, or the one named by GSDD_CPU (portable, v3, v4) if narrower.
Kernels<float> pick(const Shape& shape, float) {
#if defined(SPLAT_X86)
    const char* asked = std::getenv("GSDD_CPU");
    const bool portable = asked && !std::strcmp(asked, "portable");
    const bool at_most_v3 = asked && !std::strcmp(asked, "v3");
    if (!portable && !at_most_v3 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return x86_64_v4::kernels<float>(shape.channels, shape.per_axis);
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return x86_64_v3::kernels<float>(shape.channels, shape.per_axis);
#endif
    return portable::kernels<float>(shape.channels, shape.per_axis);
}

constexpr int64_t kScratchBytes = 192 * 1024;

template <typename T>
struct Plan {
    Kernels<T> kernels;
    int64_t stride, rows_per_band, bands;

    explicit Plan(const Shape& shape) : kernels(pick(shape, T())) {
        stride = shape.width + kMaxLanes;  // the last strip may hang over; same for every set
        const int64_t row_bytes = stride * kernels.channels * int64_t(sizeof(T));
        rows_per_band = std::max<int64_t>(8, kScratchBytes / row_bytes / 8 * 8);
        rows_per_band = std::min<int64_t>(rows_per_band, std::max(1, shape.height));
        bands = (shape.height + rows_per_band - 1) / rows_per_band;
    }
    Band band(int64_t index, const Shape& shape) const {
        const int from = int(index * rows_per_band);
        const int to = int(std::min<int64_t>(from + rows_per_band, shape.height));
        return {from, to, stride, (to - from) * stride};
    }
    static constexpr int kMaxLanes = 16;
};

// The stored image that a slot shows, as rows of T: in place, or widened from bfloat16 into `into`.
template <typename T>
const T* rows_of(void* params, int64_t image, const Shape& shape, std::vector<T>& into) {
    const int64_t size = int64_t(shape.points) * shape.row;
    if (!shape.half) return static_cast<const T*>(params) + image * size;
    const Numbers<T> from = Numbers<T>{params, true} + image * size;
    into.resize(size);
    for (int64_t i = 0; i < size; ++i) into[i] = from[i];
    return into.data();
}

template <typename T>
void forward(void* params, T* images, const Shape& shape) {
    const Plan<T> plan(shape);
    const int64_t pixels = int64_t(shape.height) * shape.width;
    torch::stable::parallel_for(0, shape.batch * plan.bands, 1, [&](int64_t begin, int64_t end) {
        std::vector<T> scratch(plan.kernels.channels * plan.rows_per_band * plan.stride), widened;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t image = unit / plan.bands;
            const Band band = plan.band(unit % plan.bands, shape);
            std::fill(scratch.begin(), scratch.end(), T(0));
            const T* rows = rows_of<T>(params, shape.source(image), shape, widened);
            plan.kernels.draw(rows, shape, band, scratch.data());
            for (int c = 0; c < shape.channels; ++c)
                for (int y = band.from_row; y < band.to_row; ++y)
                    std::copy_n(
                        scratch.data() + c * band.plane + (y - band.from_row) * band.stride,
                        shape.width,
                        images + pixel_offset(shape, image, 0, y) + c * pixels);
        }
    });
}

// Copies dL/dimage of a band into the padded planes, divided by the samples per pixel.
template <typename T>
void pad(const T* v_image, const Shape& shape, const Band& band, T* planes) {
    const T scale = T(1) / (shape.per_axis * shape.per_axis);
    for (int c = 0; c < shape.channels; ++c)
        for (int y = band.from_row; y < band.to_row; ++y) {
            const T* from = v_image + (int64_t(c) * shape.height + y) * shape.width;
            T* to = planes + c * band.plane + (y - band.from_row) * band.stride;
            for (int x = 0; x < shape.width; ++x) to[x] = scale * from[x];
        }
}

template <typename T>
void write_gradient(const T* rows, const T* sums, const Shape& shape, Numbers<T> v_rows) {
    constexpr int kSums = kMoments + kMaxChannels;
    for (int k = 0; k < shape.points; ++k) {
        const T* row = rows + int64_t(k) * shape.row;
        const T* sum = sums + int64_t(k) * kSums;
        const Numbers<T> v_row = v_rows + int64_t(k) * shape.row;
        const Gaussian<T> g = project<T>(row, shape);
        if (!g.alive) {
            for (int i = 0; i < shape.row; ++i) v_row[i] = T(0);
            continue;
        }
        project_vjp(g, row, shape, sum, v_row);
        for (int c = 0; c < shape.channels; ++c) v_row[kGeometry + c] = sum[kMoments + c];
    }
}

// Where each stored image is shown: a chain of slots of the batch, in their order.
struct Slots {
    std::vector<int64_t> first, next;  // -1 ends a chain; empty without an index

    explicit Slots(const Shape& shape) {
        if (!shape.picks()) return;
        first.assign(shape.indexed, -1);
        next.resize(shape.batch);
        for (int64_t slot = shape.batch - 1; slot >= 0; --slot) {
            next[slot] = first[shape.index[slot]];
            first[shape.index[slot]] = slot;
        }
    }
    int64_t begin(int64_t image) const { return first.empty() ? image : first[image]; }
    int64_t after(int64_t slot) const { return next.empty() ? -1 : next[slot]; }
};

template <typename T>
void backward(const T* v_images, void* params, void* v_params, const Shape& shape) {
    const Plan<T> plan(shape);
    const Slots slots(shape);
    const int64_t params_size = int64_t(shape.points) * shape.row;
    const int64_t sums_size = int64_t(shape.points) * (kMoments + kMaxChannels);
    const int64_t scratch_size = plan.kernels.channels * plan.rows_per_band * plan.stride;
    const auto gather = [&](const T* rows, int64_t slot, int64_t index, T* scratch, T* sums) {
        const Band band = plan.band(index, shape);
        pad(v_images + pixel_offset(shape, slot, 0, 0), shape, band, scratch);
        plan.kernels.gather(rows, shape, band, scratch, sums);
    };
    const auto finish = [&](const T* rows, int64_t image, const std::vector<T>& total) {
        write_gradient(rows, total.data(), shape,
                       Numbers<T>{v_params, shape.half} + image * params_size);
    };
    // An image's bands follow one another in one thread, except where there are too few images.
    // Either way each band's sums start from zero and are added in the bands' order.
    const bool split = plan.bands > 1 && shape.stored() < int64_t(torch::stable::get_num_threads());
    const auto add = [&](std::vector<T>& total, const T* part) {
        for (int64_t i = 0; i < sums_size; ++i) total[i] += part[i];
    };
    if (!split) {
        torch::stable::parallel_for(0, shape.stored(), 1, [&](int64_t begin, int64_t end) {
            std::vector<T> scratch(scratch_size, T(0)), total(sums_size), part(sums_size), widened;
            for (int64_t image = begin; image < end; ++image) {
                const T* rows = rows_of<T>(params, image, shape, widened);
                std::fill(total.begin(), total.end(), T(0));
                for (int64_t slot = slots.begin(image); slot >= 0; slot = slots.after(slot))
                    for (int64_t index = 0; index < plan.bands; ++index) {
                        std::fill(part.begin(), part.end(), T(0));
                        gather(rows, slot, index, scratch.data(), part.data());
                        add(total, part.data());
                    }
                finish(rows, image, total);
            }
        });
        return;
    }
    std::vector<T> parts(plan.bands * sums_size), total(sums_size), widened;
    for (int64_t image = 0; image < shape.stored(); ++image) {
        const T* rows = rows_of<T>(params, image, shape, widened);
        std::fill(total.begin(), total.end(), T(0));
        for (int64_t slot = slots.begin(image); slot >= 0; slot = slots.after(slot)) {
            std::fill(parts.begin(), parts.end(), T(0));
            torch::stable::parallel_for(0, plan.bands, 1, [&](int64_t begin, int64_t end) {
                std::vector<T> scratch(scratch_size, T(0));
                for (int64_t index = begin; index < end; ++index)
                    gather(rows, slot, index, scratch.data(), parts.data() + index * sums_size);
            });
            for (int64_t index = 0; index < plan.bands; ++index)
                add(total, parts.data() + index * sums_size);
        }
        finish(rows, image, total);
    }
}

// An index must name stored images; on the CPU it is read before anything is rendered.
void check_index(const Shape& shape) {
    for (int64_t slot = 0; shape.picks() && slot < shape.batch; ++slot)
        STD_TORCH_CHECK(shape.index[slot] >= 0 && shape.index[slot] < shape.indexed,
                        "splat: index ", shape.index[slot], " is not one of the ", shape.indexed,
                        " images, 0 to ", shape.indexed - 1);
}

Tensor splat_cpu(
    Tensor params, int64_t height, int64_t width, bool opacity, bool saturate, bool prefilter,
    bool supersample, std::optional<Tensor> index) {
    if (index) index = torch::stable::contiguous(*index);
    const Shape shape =
        shape_of(params, height, width, opacity, saturate, prefilter, supersample, index);
    check_index(shape);
    const bool in_double = params.scalar_type() == ScalarType::Double;
    const Tensor rows = torch::stable::contiguous(params);
    Tensor images = torch::stable::new_empty(
        rows, {shape.batch, shape.channels, height, width},
        in_double ? ScalarType::Double : ScalarType::Float);
    if (in_double) forward(rows.data_ptr(), static_cast<double*>(images.data_ptr()), shape);
    else forward(rows.data_ptr(), static_cast<float*>(images.data_ptr()), shape);
    return images;
}

Tensor splat_backward_cpu(
    Tensor v_images, Tensor params, bool opacity, bool saturate, bool prefilter,
    bool supersample, std::optional<Tensor> index) {
    if (index) index = torch::stable::contiguous(*index);
    const Shape shape =
        shape_of(v_images, params, opacity, saturate, prefilter, supersample, index);
    check_index(shape);
    const bool in_double = params.scalar_type() == ScalarType::Double;
    const Tensor rows = torch::stable::contiguous(params);
    const Tensor v = torch::stable::contiguous(v_images);
    Tensor v_params =
        torch::stable::new_empty(rows, {shape.stored(), shape.points, shape.row});
    if (in_double)
        backward(static_cast<const double*>(v.data_ptr()), rows.data_ptr(), v_params.data_ptr(), shape);
    else
        backward(static_cast<const float*>(v.data_ptr()), rows.data_ptr(), v_params.data_ptr(), shape);
    return v_params;
}

}  // namespace
}  // namespace splat

STABLE_TORCH_LIBRARY(gsdd, m) {
    m.def("splat(Tensor params, int height, int width, bool opacity, bool saturate, bool prefilter, "
          "bool supersample, Tensor? index=None) -> Tensor");
    m.def("splat_backward(Tensor v_images, Tensor params, bool opacity, bool saturate, "
          "bool prefilter, bool supersample, Tensor? index=None) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gsdd, CPU, m) {
    m.impl("splat", TORCH_BOX(&splat::splat_cpu));
    m.impl("splat_backward", TORCH_BOX(&splat::splat_backward_cpu));
}
