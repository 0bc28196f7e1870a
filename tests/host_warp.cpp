// The CUDA block programs (splat_render.h, splat_gather.h) on the host, block after block as the
// GPU would launch them. As a library it is called like the kernels by tests/splatting/test_warp.py;
// built with a sanitizer and HOST_WARP_MAIN it is a program that renders and differentiates odd
// shapes for the sanitizer to watch.
//
// There are two teams. A `Loop` takes its threads one by one, in either order: within a step no
// thread may depend on another, so both orders must give the same bits. `Hardware` has a real
// thread for each, and real barriers: ThreadSanitizer sees what a missing barrier lets race.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "splat_call.h"
#include "splat_gather.h"
#include "splat_render.h"

namespace {

using namespace splat;

struct Loop {
    static inline bool backwards = false;

    template <typename X>
    struct PerThread {
        std::vector<X> each = std::vector<X>(kThreads);
        X& operator[](int thread) { return each[thread]; }
    };
    template <typename X>
    struct PerLane {
        std::vector<X> each = std::vector<X>(kLanes);
        X& operator[](int lane) { return each[lane]; }
    };
    template <typename F>
    static void loop(int count, F f) {
        for (int i = 0; i < count; ++i) f(backwards ? count - 1 - i : i);
    }
    template <typename F>
    static void threads(F f) { loop(kThreads, f); }
    template <typename F>
    static void warps(F f) { loop(kWarps, f); }
    template <typename F>
    static void lanes(F f) { loop(kLanes, f); }
    template <typename F>
    static uint32_t ballot(F f) {
        uint32_t bits = 0;
        loop(kLanes, [&](int lane) { bits |= uint32_t(f(lane)) << lane; });
        return bits;
    }
    // Runs one block's program.
    template <typename F>
    static void block(F program) { program(); }
};

// Shared memory as a block may find it: every number in it is NaN.
void poison(void* shared, size_t bytes) { std::memset(shared, 0xff, bytes); }

// What the launchers of splat_cuda.cu do, with a loop over the blocks in place of the grid.
template <typename Team, typename T, int C, int S>
void render_all(Numbers<T> params, T* images, const Shape& shape) {
    const auto shared = std::make_unique<RenderShared<T, C>>();
    for (int64_t block = 0; block < render_blocks(shape); ++block) {
        poison(shared.get(), sizeof *shared);
        Team::block([&] { render<Team, T, C, S>(params, images, shape, int(block), *shared); });
    }
}

template <typename Team, typename T, int C, int S>
void gather_all(
    const T* v_images, Numbers<T> params, Numbers<T> v_params, const Shape& shape) {
    const auto shared = std::make_unique<GatherShared<T, C>>();
    const int64_t parts = parts_of(shape);
    std::vector<T> slots(parts > 1 ? shape.stored * parts * shape.points * kSums<C> : 0, T(NAN));
    for (int64_t block = 0; block < gather_blocks<T>(shape); ++block) {
        poison(shared.get(), sizeof *shared);
        Team::block([&] {
            gather<Team, T, C, S>(
                v_images, params, v_params, slots.data(), shape, int(block), *shared);
        });
    }
    if (parts == 1) return;
    for (int64_t index = 0; index < shape.stored * shape.points; ++index)
        add_parts<T, C>(slots.data(), params, v_params, shape, index);
}

// A batch of images with an opacity.
Shape batch_of(int64_t images, int points, int channels, int height, int width, int per_axis) {
    return {images, images, points, channels, 6 + channels, height, width, true, true, true,
            per_axis, false, nullptr};
}

}  // namespace

#if !defined(HOST_WARP_MAIN)

namespace {

struct Host {
    static int64_t refuses(const Shape&) { return kDone; }

    template <typename T>
    static int64_t render(Numbers<T> params, T* images, const Shape& shape, const Call&) {
        with_constants<sizeof(T) == 4>(shape, [&](auto channels, auto per_axis) {
            render_all<Loop, T, channels.value, per_axis.value>(params, images, shape);
        });
        return kDone;
    }
    template <typename T>
    static int64_t gather(
        const T* v_images, Numbers<T> params, Numbers<T> v_params, const Shape& shape,
        const Call&) {
        if (shape.points == 0) return kDone;
        with_constants<sizeof(T) == 4>(shape, [&](auto channels, auto per_axis) {
            gather_all<Loop, T, channels.value, per_axis.value>(v_images, params, v_params, shape);
        });
        return kDone;
    }
};

}  // namespace

SPLAT_EXPORT(Host)

// Offsets of the last pixel of channel 0 and of the last Gaussian's sums, with 3 channels.
extern "C" int64_t pixel_offset_of(int images, int points, int height, int width) {
    const Shape shape = batch_of(images, points, 3, height, width, 2);
    return pixel_offset(shape, images - 1, width - 1, height - 1);
}
extern "C" int64_t slot_offset_of(int images, int points, int height, int width) {
    const Shape shape = batch_of(images, points, 3, height, width, 2);
    return slot_offset<3>(shape, images - 1, parts_of(shape) - 1, points - 1);
}

extern "C" void order(int backwards) { Loop::backwards = backwards != 0; }

#else

#include <barrier>
#include <random>
#include <thread>

namespace {

struct Hardware {
    static inline thread_local int thread = 0;
    static inline std::barrier<> all{kThreads};
    static inline std::vector<std::unique_ptr<std::barrier<>>> of_warp;
    static inline uint32_t votes[kWarps][kLanes];

    template <typename X>
    struct PerThread {
        X mine = {};
        X& operator[](int) { return mine; }
    };
    template <typename X>
    using PerLane = PerThread<X>;

    template <typename F>
    static void threads(F f) {
        f(thread);
        all.arrive_and_wait();
    }
    template <typename F>
    static void warps(F f) {
        f(thread / kLanes);
        all.arrive_and_wait();
    }
    static void sync_warp() { of_warp[thread / kLanes]->arrive_and_wait(); }
    template <typename F>
    static void lanes(F f) {
        f(thread % kLanes);
        sync_warp();
    }
    template <typename F>
    static uint32_t ballot(F f) {
        uint32_t* vote = votes[thread / kLanes];
        vote[thread % kLanes] = f(thread % kLanes);
        sync_warp();
        uint32_t bits = 0;
        for (int lane = 0; lane < kLanes; ++lane) bits |= vote[lane] << lane;
        sync_warp();
        return bits;
    }
    template <typename F>
    static void block(F program) {
        of_warp.clear();
        for (int i = 0; i < kWarps; ++i)
            of_warp.push_back(std::make_unique<std::barrier<>>(kLanes));
        std::vector<std::thread> pool;
        for (int i = 0; i < kThreads; ++i)
            pool.emplace_back([&, i] {
                thread = i;
                program();
            });
        for (auto& one : pool) one.join();
    }
};

std::vector<float> random_rows(const Shape& shape) {
    std::mt19937 source(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> rows(shape.batch * shape.points * shape.row);
    for (float& number : rows) number = 1.5f * uniform(source);
    return rows;
}

// Image and gradient of random Gaussians, one after the other; every number is written.
template <typename Team, int C, int S>
std::vector<float> image_and_gradient(const Shape& shape) {
    std::vector<float> rows = random_rows(shape);
    std::vector<float> images(shape.batch * shape.channels * shape.height * shape.width, NAN);
    std::vector<float> v_rows(rows.size(), NAN);
    const Numbers<float> from{rows.data(), false}, to{v_rows.data(), false};
    render_all<Team, float, C, S>(from, images.data(), shape);
    if (shape.points > 0)
        gather_all<Team, float, C, S>(images.data(), from, to, shape);
    images.insert(images.end(), v_rows.begin(), v_rows.end());
    return images;
}

template <int C, int S>
bool agrees(int batch, int points, int channels, int height, int width) {
    const Shape shape = batch_of(batch, points, channels, height, width, S);
    const auto result = image_and_gradient<Loop, C, S>(shape);
    bool fine = std::none_of(result.begin(), result.end(), [](float x) { return std::isnan(x); });
#if defined(HOST_WARP_THREADS)
    fine = fine && result == image_and_gradient<Hardware, C, S>(shape);
#endif
    std::printf("%d images, %d Gaussians, %d channels, %d x %d: %s\n", batch, points, channels,
                height, width, fine ? "fine" : "WRONG");
    return fine;
}

}  // namespace

int main() {
    bool fine = agrees<3, 2>(1, 40, 2, 13, 37);
    fine = agrees<3, 2>(1, 7, 3, 1, 1) && fine;
#if !defined(HOST_WARP_THREADS)
    fine = agrees<3, 2>(2, 0, 3, 5, 9) && fine;
    fine = agrees<3, 2>(2, 300, 3, 9, 70) && fine;
    fine = agrees<3, 2>(2, 97, 3, 80, 67) && fine;
#endif
    return fine ? 0 : 1;
}

#endif
