// The CPU kernels (see splat_call.h for how they are called).
//
// A unit of work is a band of rows of one image, drawn into a padded scratch plane that stays in
// the second-level cache. How an image is cut into bands depends on its shape alone and the bands'
// sums are added in their order, so the result is the same bit for bit with any number of threads.

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "splat_call.h"

namespace splat {

struct Band {
    int from_row, to_row;
    int64_t stride, plane;  // of the scratch: [channels][to_row - from_row][stride]
};

template <typename T>
struct Kernels {
    void (*draw)(Numbers<T>, const Shape&, const Band&, T*);
    void (*gather)(Numbers<T>, const Shape&, const Band&, const T*, T*);
    int channels;
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
    return portable::kernels<double>(shape);
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
        return x86_64_v4::kernels<float>(shape);
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return x86_64_v3::kernels<float>(shape);
#endif
    return portable::kernels<float>(shape);
}

// Runs work(begin, end) over [0, count) with torch's threads.
template <typename F>
void parallel_for(int64_t count, const F& work) {
    const auto call = [](int64_t begin, int64_t end, void* f) {
        (*static_cast<const F*>(f))(begin, end);
    };
    if (torch_parallel_for(0, count, 1, call, const_cast<F*>(&work)) != 0) throw std::bad_alloc();
}

int64_t threads() {
    uint32_t number = 1;
    torch_get_num_threads(&number);
    return number;
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
    int64_t scratch() const { return kernels.channels * rows_per_band * stride; }
    static constexpr int kMaxLanes = 16;
};

// The Gaussians of a stored image.
template <typename T>
Numbers<T> rows_of(Numbers<T> params, int64_t image, const Shape& shape) {
    return params + image * shape.points * shape.row;
}

template <typename T>
void forward(Numbers<T> params, T* images, const Shape& shape) {
    const Plan<T> plan(shape);
    const int64_t pixels = int64_t(shape.height) * shape.width;
    parallel_for(shape.batch * plan.bands, [&](int64_t begin, int64_t end) {
        std::vector<T> scratch(plan.scratch());
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t image = unit / plan.bands;
            const Band band = plan.band(unit % plan.bands, shape);
            std::fill(scratch.begin(), scratch.end(), T(0));
            const Numbers<T> rows = rows_of(params, shape.source(image), shape);
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

// Where each stored image is shown: a chain of slots of the batch, in their order.
struct Slots {
    std::vector<int64_t> first, next;  // -1 ends a chain; empty without an index

    explicit Slots(const Shape& shape) {
        if (!shape.indexed) return;
        first.assign(shape.stored, -1);
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
void backward(const T* v_images, Numbers<T> params, Numbers<T> v_params, const Shape& shape) {
    constexpr int kSums = kMoments + kMaxChannels;
    const Plan<T> plan(shape);
    const Slots slots(shape);
    const int64_t sums_size = int64_t(shape.points) * kSums;
    const auto gather = [&](Numbers<T> rows, int64_t slot, int64_t index, T* scratch, T* sums) {
        const Band band = plan.band(index, shape);
        pad(v_images + pixel_offset(shape, slot, 0, 0), shape, band, scratch);
        plan.kernels.gather(rows, shape, band, scratch, sums);
    };
    const auto add = [&](std::vector<T>& total, const T* part) {
        for (int64_t i = 0; i < sums_size; ++i) total[i] += part[i];
    };
    const auto finish = [&](int64_t image, std::vector<T>& total) {
        const Numbers<T> rows = rows_of(params, image, shape);
        const Numbers<T> v_rows = rows_of(v_params, image, shape);
        for (int64_t k = 0; k < shape.points; ++k)
            write_gradient<kMaxChannels>(
                rows + k * shape.row, shape, total.data() + k * kSums, v_rows + k * shape.row,
                [](const Gaussian<T>&, T*) {});
    };
    // An image's bands follow one another in one thread, except where there are too few images.
    // Either way each band's sums start from zero and are added in the bands' order.
    if (plan.bands == 1 || shape.stored >= threads()) {
        parallel_for(shape.stored, [&](int64_t begin, int64_t end) {
            std::vector<T> scratch(plan.scratch(), T(0)), total(sums_size), part(sums_size);
            for (int64_t image = begin; image < end; ++image) {
                std::fill(total.begin(), total.end(), T(0));
                for (int64_t slot = slots.begin(image); slot >= 0; slot = slots.after(slot))
                    for (int64_t index = 0; index < plan.bands; ++index) {
                        std::fill(part.begin(), part.end(), T(0));
                        gather(rows_of(params, image, shape), slot, index, scratch.data(),
                               part.data());
                        add(total, part.data());
                    }
                finish(image, total);
            }
        });
        return;
    }
    std::vector<T> parts(plan.bands * sums_size), total(sums_size);
    for (int64_t image = 0; image < shape.stored; ++image) {
        std::fill(total.begin(), total.end(), T(0));
        for (int64_t slot = slots.begin(image); slot >= 0; slot = slots.after(slot)) {
            std::fill(parts.begin(), parts.end(), T(0));
            parallel_for(plan.bands, [&](int64_t begin, int64_t end) {
                std::vector<T> scratch(plan.scratch(), T(0));
                for (int64_t index = begin; index < end; ++index)
                    gather(rows_of(params, image, shape), slot, index, scratch.data(),
                           parts.data() + index * sums_size);
            });
            for (int64_t index = 0; index < plan.bands; ++index)
                add(total, parts.data() + index * sums_size);
        }
        finish(image, total);
    }
}

struct Cpu {
    // An index must name stored images: here it is read before anything is rendered.
    static int64_t refuses(const Shape& shape) {
        for (int64_t slot = 0; shape.indexed && slot < shape.batch; ++slot)
            if (shape.index[slot] < 0 || shape.index[slot] >= shape.stored) return -1 - slot;
        return kDone;
    }
    template <typename T>
    static int64_t render(Numbers<T> params, T* images, const Shape& shape, const Call&) {
        forward(params, images, shape);
        return kDone;
    }
    template <typename T>
    static int64_t gather(
        const T* v_images, Numbers<T> params, Numbers<T> v_params, const Shape& shape,
        const Call&) {
        backward(v_images, params, v_params, shape);
        return kDone;
    }
};

}  // namespace
}  // namespace splat

SPLAT_EXPORT(splat::Cpu)
