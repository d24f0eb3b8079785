// What CuPy's kernels need beside threads.hpp: its headers look for what NVRTC has without being asked.
#pragma once

#include <cassert>
#include <crt/host_defines.h>
// The words have a meaning of their own here.
#undef __global__
#undef __device__
#undef __shared__
#undef __restrict__
#undef __launch_bounds__
// Half and bfloat16 are those of CUDA's headers, whose functions have a form for the host.
#define __CUDACC_VER_MAJOR__ 13

#include "threads.hpp"

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

using std::isfinite, std::isinf, std::isnan, std::signbit;

template <class Number>
constexpr const Number &max(const Number &one, const Number &other) {
    return one < other ? other : one;
}
