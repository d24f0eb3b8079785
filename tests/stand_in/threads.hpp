// What g++ needs to compile a kernel for the stand-in: the words of CUDA C++, and functions that the driver looks up by
// the kernel's name: one that runs it, and one that says what it is given.
#pragma once

#include "emulation.hpp"
#include "parameters.hpp"

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

// One of no size is behind the last.
template <class... Parameters>
const stand_in::Parameter *parameters_of(void (*)(Parameters...)) {
    static constexpr stand_in::Parameter parameters[] = {stand_in::Described<std::remove_cv_t<Parameters>>::value..., {}};
    return parameters;
}

}  // namespace emulation

#define RUNS(kernel, meet)                                                                                    \
    extern "C" void run_##kernel(const unsigned *shape, void **arguments) {                                   \
        emulation::run_by_name<meet>(kernel, shape, arguments);                                               \
    }                                                                                                         \
    extern "C" const stand_in::Parameter *parameters_##kernel() { return emulation::parameters_of(kernel); }
