// How Python calls the kernels: two C functions, the same for the CPU, the CUDA and the tests' build.
//
//     splat_render(call)    params [N, M, R], index [B]              -> out, images [B, C, H, W]
//     splat_gather(call)    v_images [B, C, H, W], params, index     -> out, v_params [N, M, R]
//
// Every number of `out` is written. No exception crosses this boundary, and nothing is allocated here
// that a caller can see: a refusal is a code, and Python, which checked the shapes, owns all memory.
#pragma once

#include <climits>

#include "splat_math.h"

namespace splat {

// Pointers and numbers of a call, in the order of cuda_ext.Call. Tensors are contiguous.
struct Call {
    int64_t params, index, v_images, out;  // index: 0 without one
    int64_t slots;                         // splat_slots(call) numbers of scratch, for CUDA
    int64_t stored, points, row, batch, height, width;
    int64_t dtype;                         // of params: float32, float64, bfloat16
    int64_t opacity, saturate, prefilter, supersample;
    int64_t device, stream;                // for CUDA
};

enum Dtype : int64_t { kFloat32, kFloat64, kBFloat16 };

// What a call returns: kDone, the slot of an index that names no stored image as -1 - slot, kTooLarge,
// kNoMemory, or kCuda plus CUDA's own code.
enum Code : int64_t { kDone = 0, kTooLarge = 1, kNoMemory = 2, kCuda = 1000 };

template <typename X>
X* pointer(int64_t address) {
    return reinterpret_cast<X*>(address);
}

inline Shape shape_of(const Call& call) {
    const bool opacity = call.opacity != 0;
    return {call.batch, call.stored, int(call.points), int(call.row - kGeometry - opacity),
            int(call.row), int(call.height), int(call.width), opacity,
            opacity && call.saturate != 0, call.prefilter != 0, call.supersample != 0 ? 2 : 1,
            call.index != 0 || call.batch != call.stored, pointer<const int64_t>(call.index)};
}

// Kernels count points, and pixels along a side, in ints by up to 256 at a time.
inline bool countable(const Call& call) {
    constexpr int64_t most = INT_MAX - 256;
    return call.points < most && call.height < most && call.width < most;
}

// Backend::run<T>(...) is the work, in the type that is computed with.
template <typename Backend, typename F>
int64_t guarded(const Call& call, F run) {
    if (!countable(call)) return kTooLarge;
    const Shape shape = shape_of(call);
    if (const int64_t refused = Backend::refuses(shape); refused != kDone) return refused;
    try {
        return call.dtype == kFloat64 ? run(shape, double()) : run(shape, float());
    } catch (...) {  // nothing here throws but the allocation of scratch on the host
        return kNoMemory;
    }
}

template <typename Backend>
int64_t render_call(const Call& call) {
    return guarded<Backend>(call, [&](const Shape& shape, auto type) -> int64_t {
        using T = decltype(type);
        const Numbers<T> params{pointer<void>(call.params), call.dtype == kBFloat16};
        return Backend::render(params, pointer<T>(call.out), shape, call);
    });
}

template <typename Backend>
int64_t gather_call(const Call& call) {
    return guarded<Backend>(call, [&](const Shape& shape, auto type) -> int64_t {
        using T = decltype(type);
        const bool bfloat16 = call.dtype == kBFloat16;
        const Numbers<T> params{pointer<void>(call.params), bfloat16};
        const Numbers<T> v_params{pointer<void>(call.out), bfloat16};
        return Backend::gather(pointer<const T>(call.v_images), params, v_params, shape, call);
    });
}

}  // namespace splat

#define SPLAT_EXPORT(Backend)                                                                 \
    extern "C" int64_t splat_render(const splat::Call* call) {                                \
        return splat::render_call<Backend>(*call);                                            \
    }                                                                                         \
    extern "C" int64_t splat_gather(const splat::Call* call) {                                \
        return splat::gather_call<Backend>(*call);                                            \
    }
