// What of CUDA C++ the kernels use, on the CPU, so that a C++ compiler can run them. `emulation.cpp` runs the threads.
//
// Each program includes this anew, so that it takes little of the standard library.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

template <class Number>
constexpr const Number &min(const Number &one, const Number &other) {
    return other < one ? other : one;
}

struct Place3 {
    unsigned x, y, z;
};

extern Place3 threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();
void __syncwarp();

namespace emulation {

constexpr unsigned WARP = 32;
// The most bytes that a thread gives the others of its warp at once.
constexpr std::size_t MOST_GIVEN = 32;

[[noreturn]] void fail(const char *what);

// Reads from EMULATED_ORDER in what order the threads of a block are taken from here on.
void choose_order();

// Runs `body` as each thread of each block; `shape` is that of the grid, then that of a block.
void run_grid(void (*body)(), const unsigned *shape);

// The number of the running thread in its block.
std::size_t number_in_block();

// Where the thread that is running leaves what it gives its warp next, and, once it has waited for the others, where
// the thread of a number in the warp has left its own.
unsigned char *room_to_give();
const unsigned char *given_by(std::size_t lane);

void copy_later(void *target, const void *source, std::size_t size, std::size_t read);

template <class... Parameters, std::size_t... Index>
void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<Index...>) {
    kernel(*static_cast<std::remove_cv_t<Parameters> *>(arguments[Index])...);
}

// Gives x to the other threads of the warp, and waits until each has given its own.
template <class Given>
void give(const Given &x) {
    static_assert(sizeof(Given) <= MOST_GIVEN);
    std::memcpy(room_to_give(), &x, sizeof x);
    __syncwarp();
}

// What the thread of this number in the warp has given.
template <class Given>
Given taken(std::size_t lane) {
    Given x;
    std::memcpy(&x, given_by(lane), sizeof x);
    return x;
}

inline unsigned lane() { return static_cast<unsigned>(number_in_block() % WARP); }

inline float half_of(unsigned pair, unsigned which) {
    const unsigned bits = which == 0 ? pair << 16 : pair & 0xFFFF0000u;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace emulation

template <class Number>
Number __shfl_sync(unsigned mask, Number x, int lane) {
    if (mask != 0xFFFFFFFFu) emulation::fail("a warp exchanges without some of its threads");
    emulation::give(x);
    return emulation::taken<Number>(static_cast<unsigned>(lane));
}

template <class Number>
Number __shfl_xor_sync(unsigned mask, Number x, int offset) {
    return __shfl_sync(mask, x, static_cast<int>(emulation::lane()) ^ offset);
}

// tensor_core.cuh: the layouts are written down again here, element by element, as the PTX ISA has them.

inline void mma_16x8x16(float (&sum)[4], const unsigned (&rows)[4], unsigned upper, unsigned lower) {
    struct Fragments {
        unsigned rows[4], columns[2];
    };
    using namespace emulation;
    give(Fragments{{rows[0], rows[1], rows[2], rows[3]}, {upper, lower}});
    const unsigned lane = emulation::lane();
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned row_register = (row < 8 ? 0 : 1) + (k < 8 ? 0 : 2);
            const unsigned left = taken<Fragments>(row % 8 * 4 + k % 8 / 2).rows[row_register];
            const unsigned right = taken<Fragments>(column * 4 + k % 8 / 2).columns[k < 8 ? 0 : 1];
            sum[i] += half_of(left, k % 2) * half_of(right, k % 2);
        }
    }
}

template <bool TRANSPOSED>
inline void load_four_matrices(unsigned (&pairs)[4], const void *row) {
    using namespace emulation;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("a row of a matrix does not begin on 16 bytes");
    give(row);
    const unsigned lane = emulation::lane();
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (unsigned i = 0; i < 2; ++i) {
            const unsigned at = TRANSPOSED ? lane % 4 * 2 + i : lane / 4, column = TRANSPOSED ? lane / 4 : lane % 4 * 2 + i;
            const auto *begin = static_cast<const unsigned char *>(taken<const void *>(8 * matrix + at));
            std::memcpy(&pair[i], begin + 2 * column, 2);
        }
        pairs[matrix] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
}

inline void load_matrices(unsigned (&pairs)[4], const void *row) { load_four_matrices<false>(pairs, row); }

inline void load_matrices_transposed(unsigned (&pairs)[4], const void *row) { load_four_matrices<true>(pairs, row); }

inline unsigned pair_of(float first, float second) {
    const auto rounded = [](float x) {
        unsigned bits;
        std::memcpy(&bits, &x, sizeof bits);
        return x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FFFu;
    };
    return rounded(first) | rounded(second) << 16;
}

inline void copy_of_bytes_later(void *target, const void *source, std::size_t size, bool exists) {
    for (const void *address : {static_cast<const void *>(target), source}) {
        if (reinterpret_cast<std::uintptr_t>(address) % size != 0) emulation::fail("a copy is not on a multiple of its size");
    }
    emulation::copy_later(target, source, size, exists ? size : 0);
}

inline void copy_later(void *target, const void *source, bool exists) { copy_of_bytes_later(target, source, 16, exists); }

inline void copy_float_later(float *target, const float *source, bool exists) {
    copy_of_bytes_later(target, source, sizeof(float), exists);
}

void wait_for_copies();

inline float power_of_two(float x) {
    const float power = std::exp2(x);
    return power < 1.17549435e-38f ? 0 : power;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline unsigned __umulhi(unsigned one, unsigned other) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(one) * other >> 32);
}

inline float normcdff(float x) { return static_cast<float>(0.5 * std::erfc(-static_cast<double>(x) * M_SQRT1_2)); }
