// What the operator's arguments must be, once for the CPU and the CUDA kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <climits>
#include <optional>

#include "splat_math.h"

namespace splat {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool together(const Tensor& a, const Tensor& b) {
    return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// The shapes and switches of a call. `index` is contiguous; whether its numbers are those of stored
// images is for the kernels to see.
inline Shape shape_of(
    const Tensor& params, int64_t height, int64_t width, bool opacity, bool saturate,
    bool prefilter, bool supersample, const std::optional<Tensor>& index) {
    STD_TORCH_CHECK(params.dim() == 3, "splat: params must be [images, points, numbers]");
    const int64_t channels = params.size(2) - kGeometry - (opacity ? 1 : 0);
    STD_TORCH_CHECK(channels >= 1 && channels <= kMaxChannels, "splat: 1 to 4 channels");
    STD_TORCH_CHECK(height >= 1 && width >= 1, "splat: height and width must be positive");
    const ScalarType type = params.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                    type == ScalarType::BFloat16,
                    "splat: params must be float32, float64 or bfloat16");
    // The kernels count points and pixels along a side in ints, by up to 256 at a time.
    STD_TORCH_CHECK(params.size(1) < INT_MAX - 256 && height < INT_MAX - 256 && width < INT_MAX - 256,
                    "splat: more points or pixels in an image than can be counted");
    Shape shape{params.size(0), int(params.size(1)), int(channels), int(params.size(2)),
                int(height), int(width), opacity, saturate && opacity, prefilter,
                supersample ? 2 : 1, type == ScalarType::BFloat16};
    if (!index) return shape;
    STD_TORCH_CHECK(index->dim() == 1 && index->scalar_type() == ScalarType::Long &&
                    index->is_contiguous() && together(*index, params),
                    "splat: index must be int64 [n] on the device of params");
    shape.batch = index->size(0);
    shape.index = static_cast<const int64_t*>(index->data_ptr());
    shape.indexed = params.size(0);
    return shape;
}

// The same for the gradient `v_images` [batch, channels, height, width] of what was rendered.
inline Shape shape_of(
    const Tensor& v_images, const Tensor& params, bool opacity, bool saturate, bool prefilter,
    bool supersample, const std::optional<Tensor>& index) {
    STD_TORCH_CHECK(
        v_images.dim() == 4, "splat: v_images must be [images, channels, height, width]");
    const Shape shape = shape_of(params, v_images.size(2), v_images.size(3), opacity, saturate,
                                 prefilter, supersample, index);
    const ScalarType type = params.scalar_type() == ScalarType::Double ? ScalarType::Double
                                                                       : ScalarType::Float;
    STD_TORCH_CHECK(
        v_images.size(0) == shape.batch && v_images.size(1) == shape.channels &&
            v_images.scalar_type() == type && together(v_images, params),
        "splat: v_images must have the images, channels, dtype and device of what was rendered");
    return shape;
}

}  // namespace splat
