// The operator's CUDA kernels: thin shells around the block programs of splat_render.h and
// splat_gather.h.
//
//     gsdd::splat(params [N, M, R], ..., index [B])         -> images [B, C, H, W]
//     gsdd::splat_backward(v_images, params, ..., index)    -> v_params [N, M, R], all written
//
// One kernel renders, one differentiates (and a tiny second one where an image has more than one
// part). Nothing is sorted, saved, synchronized with the host or summed by atomics, and nothing is
// allocated but the outputs and the parts' slots, so a call can be captured in a CUDA graph.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include <climits>
#include <optional>

#include "splat_checks.h"
#include "splat_gather.h"
#include "splat_render.h"

// Declared by torch's shim.h only where USE_CUDA is defined, which extensions do not do.
extern "C" AOTI_TORCH_EXPORT AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

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

// Blocks that shall fit on a multiprocessor: as many as the registers allow without spilling.
template <typename T>
constexpr int kRenderOccupancy = sizeof(T) == 4 ? 4 : 1;
template <typename T>
constexpr int kGatherOccupancy = sizeof(T) == 4 ? 3 : 1;

template <typename T, int C, int S>
__global__ void __launch_bounds__(kThreads, kRenderOccupancy<T>)
render_kernel(const Numbers<T> params, T* __restrict__ images, const Shape shape) {
    __shared__ Staged<T, C> staged[kStaged];
    render<Block, T, C, S>(params, images, shape, int(blockIdx.x), staged);
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
    if (index < shape.stored() * shape.points) add_parts<T, C>(slots, params, v_params, shape, index);
}

// ---- 3. Launches ----------------------------------------------------------------------------

unsigned grid(int64_t blocks) {
    STD_TORCH_CHECK(blocks <= INT_MAX, "splat: the batch is too large for one launch; split it");
    return unsigned(blocks);
}

void check_launch(const char* name) {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, name, ": the kernel could not be launched: ",
                    cudaGetErrorString(error));
}

cudaStream_t current_stream(const Tensor& tensor) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    return static_cast<cudaStream_t>(stream);
}

template <typename T>
void launch_render(const Tensor& params, Tensor& images, const Shape& shape) {
    const Numbers<T> from{params.data_ptr(), shape.half};
    auto* to = static_cast<T*>(images.data_ptr());
    const cudaStream_t stream = current_stream(params);
    with_constants<T>(shape, [&](auto channels, auto per_axis) {
        constexpr int C = decltype(channels)::value, S = decltype(per_axis)::value;
        render_kernel<T, C, S>
            <<<grid(render_blocks(shape)), kThreads, 0, stream>>>(from, to, shape);
    });
    check_launch("splat");
}

template <typename T>
void launch_gather(
    const Tensor& v_images, const Tensor& params, Tensor& v_params, const Shape& shape) {
    const auto* v = static_cast<const T*>(v_images.data_ptr());
    const Numbers<T> from{params.data_ptr(), shape.half};
    const Numbers<T> to{v_params.data_ptr(), shape.half};
    const cudaStream_t stream = current_stream(params);
    with_constants<T>(shape, [&](auto channels, auto per_axis) {
        constexpr int C = decltype(channels)::value, S = decltype(per_axis)::value;
        const int64_t parts = parts_of(shape);
        Tensor slots;  // its memory goes back to the stream's allocator, which keeps the order
        if (parts > 1)
            slots = torch::stable::new_empty(
                v_images, {shape.stored(), parts, shape.points, kSums<C>});
        T* slot = parts > 1 ? static_cast<T*>(slots.data_ptr()) : nullptr;
        gather_kernel<T, C, S>
            <<<grid(gather_blocks<T>(shape)), kThreads, 0, stream>>>(v, from, to, slot, shape);
        check_launch("splat_backward");
        if (parts == 1) return;
        add_parts_kernel<T, C>
            <<<grid(add_parts_blocks(shape)), kThreads, 0, stream>>>(slot, from, to, shape);
        check_launch("splat_backward");
    });
}

// ---- 4. Checks and registration -------------------------------------------------------------

// What the kernels count in ints beside points and sides: an image's tiles, with a part to spare,
// and the slots of an index.
void check_counts(const Shape& shape) {
    STD_TORCH_CHECK((int64_t(shape.height) / kTile + 1) * (shape.width / kTile + 1) <
                        INT_MAX - kTilesPerPart,
                    "splat: more pixels in an image than can be counted");
    STD_TORCH_CHECK(!shape.picks() || shape.batch < INT_MAX - kLanes,
                    "splat: index is too long; split it");
}

Tensor splat_cuda(
    Tensor params, int64_t height, int64_t width, bool opacity, bool saturate, bool prefilter,
    bool supersample, std::optional<Tensor> index) {
    if (index) index = torch::stable::contiguous(*index);
    const Shape shape =
        shape_of(params, height, width, opacity, saturate, prefilter, supersample, index);
    check_counts(shape);
    const bool in_double = params.scalar_type() == ScalarType::Double;
    const torch::stable::accelerator::DeviceGuard guard(params.get_device_index());
    const Tensor rows = torch::stable::contiguous(params);
    Tensor images = torch::stable::new_empty(
        rows, {shape.batch, shape.channels, height, width},
        in_double ? ScalarType::Double : ScalarType::Float);
    if (shape.batch == 0) return images;
    if (in_double) launch_render<double>(rows, images, shape);
    else launch_render<float>(rows, images, shape);
    return images;
}

Tensor splat_backward_cuda(
    Tensor v_images, Tensor params, bool opacity, bool saturate, bool prefilter,
    bool supersample, std::optional<Tensor> index) {
    if (index) index = torch::stable::contiguous(*index);
    const Shape shape =
        shape_of(v_images, params, opacity, saturate, prefilter, supersample, index);
    check_counts(shape);
    const bool in_double = params.scalar_type() == ScalarType::Double;
    const torch::stable::accelerator::DeviceGuard guard(params.get_device_index());
    const Tensor rows = torch::stable::contiguous(params);
    const Tensor v = torch::stable::contiguous(v_images);
    Tensor v_params =
        torch::stable::new_empty(rows, {shape.stored(), shape.points, shape.row});
    if (shape.stored() == 0 || shape.points == 0) return v_params;
    if (in_double) launch_gather<double>(v, rows, v_params, shape);
    else launch_gather<float>(v, rows, v_params, shape);
    return v_params;
}

}  // namespace
}  // namespace splat

STABLE_TORCH_LIBRARY_IMPL(gsdd, CUDA, m) {
    m.impl("splat", TORCH_BOX(&splat::splat_cuda));
    m.impl("splat_backward", TORCH_BOX(&splat::splat_backward_cuda));
}
