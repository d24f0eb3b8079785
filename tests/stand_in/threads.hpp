// What g++ needs to compile a kernel for the stand-in: the words of CUDA C++, and functions that the driver looks up by
// the kernel's name: one that runs it, and the sizes of what it is given.
#pragma once

#define OF_THIS_PROGRAM
#include "../emulated/emulation.hpp"

namespace emulation {

// Runs `body` as each thread, one after the other, none of which waits for another.
inline void run_one_by_one(void (*body)(), const unsigned *shape) {
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    const auto each = [](Place3 &at, const Place3 &end, auto &&rest) {
        for (at.z = 0; at.z < end.z; ++at.z)
            for (at.y = 0; at.y < end.y; ++at.y)
                for (at.x = 0; at.x < end.x; ++at.x) rest();
    };
    each(blockIdx, gridDim, [&] { each(threadIdx, blockDim, body); });
}

template <bool MEET, class... Parameters>
void run_by_name(void (*kernel)(Parameters...), const unsigned *shape, void **arguments) {
    static void (*own_kernel)(Parameters...);
    static void **own_arguments;
    own_kernel = kernel;
    own_arguments = arguments;
    (MEET ? run_grid : run_one_by_one)(
        [] { call(own_kernel, own_arguments, std::index_sequence_for<Parameters...>()); }, shape);
}

// 0 is behind the last.
template <class... Parameters>
const std::size_t *sizes_of(void (*)(Parameters...)) {
    static constexpr std::size_t sizes[] = {sizeof(Parameters)..., 0};
    return sizes;
}

}  // namespace emulation

#define RUNS(kernel, meet)                                                                                       \
    extern "C" void run_##kernel(const unsigned *shape, void **arguments) {                                      \
        emulation::run_by_name<meet>(kernel, shape, arguments);                                                 \
    }                                                                                                            \
    extern "C" const std::size_t *sizes_##kernel() { return emulation::sizes_of(kernel); }
