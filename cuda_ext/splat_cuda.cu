// The operator's CUDA kernels: thin shells around the block programs of splat_render.h and
// splat_gather.h (see splat_call.h for how they are called).
//
// One kernel renders, one differentiates (and a tiny second one where an image has more than one
// part). Nothing is sorted, saved, allocated, synchronized with the host or summed by atomics, so a
// call can be captured in a CUDA graph.

#include <cuda_runtime.h>

#include <climits>

#include "splat_call.h"
#include "splat_gather.h"
#include "splat_render.h"

namespace splat {
namespace {

// ---- 1. The team: a block of hardware threads -----------------------------------------------

struct Block {
    template <typename X>
    struct PerThread {
        X mine = {};
        __device__ X& operator[](int) { return mine; }
    };
    template <typename X>
    using PerLane = PerThread<X>;

    template <typename F>
    static __device__ __forceinline__ void threads(F f) {
        f(int(threadIdx.x));
        __syncthreads();
    }
    template <typename F>
    static __device__ __forceinline__ void warps(F f) {
        f(int(threadIdx.x) / kLanes);
        __syncthreads();
    }
    template <typename F>
    static __device__ __forceinline__ void lanes(F f) {
        f(int(threadIdx.x) % kLanes);
        __syncwarp();
    }
    template <typename F>
    static __device__ __forceinline__ uint32_t ballot(F f) {
        return __ballot_sync(0xffffffffu, f(int(threadIdx.x) % kLanes));
    }
};

// ---- 2. Kernels -----------------------------------------------------------------------------

// Blocks that must fit on a multiprocessor: as many as the registers allow without spilling.
template <typename T, int C>
constexpr int kRenderOccupancy = sizeof(T) == 8 ? 1 : C < 4 ? 5 : 4;
template <typename T>
constexpr int kGatherOccupancy = sizeof(T) == 4 ? 4 : 1;

template <typename T, int C, int S>
__global__ void __launch_bounds__(kThreads, kRenderOccupancy<T, C>)
render_kernel(const Numbers<T> params, T* __restrict__ images, const Shape shape) {
    __shared__ RenderShared<T, C> shared;
    render<Block, T, C, S>(params, images, shape, int(blockIdx.x), shared);
}

template <typename T, int C, int S>
__global__ void __launch_bounds__(kThreads, kGatherOccupancy<T>)
gather_kernel(const T* __restrict__ v_images, const Numbers<T> params, const Numbers<T> v_params,
              T* __restrict__ slots, const Shape shape) {
    __shared__ GatherShared<T, C> shared;
    gather<Block, T, C, S>(v_images, params, v_params, slots, shape, int(blockIdx.x), shared);
}

template <typename T, int C>
__global__ void __launch_bounds__(kThreads, kGatherOccupancy<T>)
add_parts_kernel(const T* __restrict__ slots, const Numbers<T> params, const Numbers<T> v_params,
                 const Shape shape) {
    const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (index < shape.stored * shape.points) add_parts<T, C>(slots, params, v_params, shape, index);
}

// ---- 3. Launches ----------------------------------------------------------------------------

// The device of a call, for as long as it launches.
struct OnDevice {
    int before = 0;
    explicit OnDevice(int64_t device) {
        cudaGetDevice(&before);
        cudaSetDevice(int(device));
    }
    ~OnDevice() { cudaSetDevice(before); }
};

// Numbers of scratch that splat_gather needs: the parts' sums, where an image has several parts.
template <typename T>
int64_t slots_of(const Shape& shape) {
    if (parts_of(shape) == 1) return 0;
    return with_constants<sizeof(T) == 4>(shape, [&](auto channels, auto) {
        return shape.stored * parts_of(shape) * shape.points * kSums<decltype(channels)::value>;
    });
}

int64_t launched() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? kDone : kCuda + int64_t(error);
}

struct Cuda {
    // What the kernels count in ints: an image's tiles, with a part to spare, the slots of an index,
    // and the blocks of a launch.
    static int64_t refuses(const Shape& shape) {
        const int64_t tiles = (int64_t(shape.height) / kTile + 1) * (shape.width / kTile + 1);
        if (tiles >= INT_MAX - kTilesPerPart) return kTooLarge;
        if (shape.indexed && shape.batch >= INT_MAX - kLanes) return kTooLarge;
        const int64_t most = INT_MAX;  // the chunks of double are smaller, hence more
        return render_blocks(shape) > most || gather_blocks<double>(shape) > most ||
               add_parts_blocks(shape) > most ? kTooLarge : kDone;
    }
    template <typename T>
    static int64_t render(Numbers<T> params, T* images, const Shape& shape, const Call& call) {
        if (shape.batch == 0) return kDone;
        const OnDevice guard(call.device);
        const auto stream = pointer<CUstream_st>(call.stream);
        with_constants<sizeof(T) == 4>(shape, [&](auto channels, auto per_axis) {
            constexpr int C = decltype(channels)::value, S = decltype(per_axis)::value;
            render_kernel<T, C, S>
                <<<unsigned(render_blocks(shape)), kThreads, 0, stream>>>(params, images, shape);
        });
        return launched();
    }
    template <typename T>
    static int64_t gather(
        const T* v_images, Numbers<T> params, Numbers<T> v_params, const Shape& shape,
        const Call& call) {
        if (shape.stored == 0 || shape.points == 0) return kDone;
        const OnDevice guard(call.device);
        const auto stream = pointer<CUstream_st>(call.stream);
        T* slots = pointer<T>(call.slots);
        with_constants<sizeof(T) == 4>(shape, [&](auto channels, auto per_axis) {
            constexpr int C = decltype(channels)::value, S = decltype(per_axis)::value;
            gather_kernel<T, C, S><<<unsigned(gather_blocks<T>(shape)), kThreads, 0, stream>>>(
                v_images, params, v_params, slots, shape);
            if (parts_of(shape) == 1) return;
            add_parts_kernel<T, C><<<unsigned(add_parts_blocks(shape)), kThreads, 0, stream>>>(
                slots, params, v_params, shape);
        });
        return launched();
    }
};

}  // namespace
}  // namespace splat

SPLAT_EXPORT(splat::Cuda)

// Numbers, of the type that is computed with, that call->slots must point to.
extern "C" int64_t splat_slots(const splat::Call* call) {
    const splat::Shape shape = splat::shape_of(*call);
    return call->dtype == splat::kFloat64 ? splat::slots_of<double>(shape)
                                          : splat::slots_of<float>(shape);
}

extern "C" const char* splat_cuda_message(int64_t code) {
    return cudaGetErrorString(cudaError_t(code - splat::kCuda));
}
