// What of CUDA C++ the kernels use, on the CPU, so that a C++ compiler can run them: one block after the other, and of
// a block one thread after the other, each until it waits for the others.
//
// Threads are contexts of their own (ucontext), switched by a barrier, and kept from block to block. They are switched
// by _setjmp and _longjmp, which leave the signals alone. A shuffle waits for the threads of the warp.
//
// Shared memory is static: it keeps what the block before has left there.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <deque>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

using std::min;

struct Place3 {
    unsigned x, y, z;
};

static Place3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr std::size_t STACK = 64 * 1024;
constexpr unsigned WARP = 32;

// What is to be copied when the thread waits for it.
struct Copy {
    void *target;
    const void *source;
    std::size_t size, read;
};

struct Thread {
    ucontext_t beginning;
    jmp_buf left;
    char *stack = new char[STACK];
    Place3 place;
    bool has_begun = false, waits_for_warp, waits_for_block, done;
    // What the thread gives the others of its warp: in turns, so that all can take it before it is written again.
    unsigned char given[2][32];
    unsigned turn;
    std::vector<Copy> copies;
};

static std::deque<Thread> threads;
static std::size_t current, count;
static jmp_buf scheduler;
static void (*body)();

inline void leave() {
    if (_setjmp(threads[current].left) == 0) _longjmp(scheduler, 1);
}

// What a thread's context does: its part of one block after the other.
inline void live() {
    while (true) {
        body();
        threads[current].done = true;
        leave();
    }
}

inline void resume(Thread &thread) {
    if (_setjmp(scheduler) != 0) return;
    if (thread.has_begun) _longjmp(thread.left, 1);
    thread.has_begun = true;
    getcontext(&thread.beginning);
    thread.beginning.uc_stack.ss_sp = thread.stack;
    thread.beginning.uc_stack.ss_size = STACK;
    thread.beginning.uc_link = nullptr;
    makecontext(&thread.beginning, live, 0);
    setcontext(&thread.beginning);
}

[[noreturn]] inline void fail(const std::string &what) {
    std::fprintf(stderr, "emulation: %s\n", what.c_str());
    std::abort();
}

// Lets each thread that does not wait run on until it waits or is done.
inline void run_all() {
    for (current = 0; current < count; ++current) {
        Thread &thread = threads[current];
        if (thread.done || thread.waits_for_warp || thread.waits_for_block) continue;
        threadIdx = thread.place;
        resume(thread);
    }
}

// Frees the threads of each warp all of which wait for it. Returns whether there was one.
inline bool free_warps() {
    bool freed = false;
    for (std::size_t first = 0; first < count; first += WARP) {
        const std::size_t stop = std::min(count, first + WARP);
        bool all = true;
        for (std::size_t i = first; i < stop; ++i) all &= threads[i].waits_for_warp;
        for (std::size_t i = first; all && i < stop; ++i) threads[i].waits_for_warp = false;
        freed |= all;
    }
    return freed;
}

inline void run_block() {
    count = blockDim.x * blockDim.y * blockDim.z;
    while (threads.size() < count) threads.emplace_back();
    for (std::size_t i = 0; i < count; ++i) {
        Thread &thread = threads[i];
        const unsigned number = static_cast<unsigned>(i);
        thread.place = {number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y};
        thread.waits_for_warp = thread.waits_for_block = thread.done = false;
        thread.turn = 0;
        thread.copies.clear();
    }
    while (true) {
        run_all();
        if (free_warps()) continue;
        std::size_t waiting = 0, done = 0;
        for (std::size_t i = 0; i < count; ++i) {
            waiting += threads[i].waits_for_block;
            done += threads[i].done;
        }
        if (done == count) return;
        if (waiting != count) fail("some threads of a block wait for others that do not come");
        for (std::size_t i = 0; i < count; ++i) threads[i].waits_for_block = false;
    }
}

template <class... Parameters, std::size_t... Index>
void call(void (*kernel)(Parameters...), void **arguments, std::index_sequence<Index...>) {
    kernel(*static_cast<std::remove_cv_t<Parameters> *>(arguments[Index])...);
}

// What the launcher calls a parameter's type: NumPy's name, with a * for the address of such.
template <class Type>
std::string name_of(Type *) {
    if (std::is_pointer_v<Type>) {
        using Target = std::remove_cv_t<std::remove_pointer_t<Type>>;
        return name_of<Target>(nullptr) + "*";
    }
    if (std::is_same_v<Type, bool>) return "bool";
    const char *kind = std::is_floating_point_v<Type> ? "float" : std::is_signed_v<Type> ? "int" : "uint";
    return (std::is_class_v<Type> ? "bfloat" : kind) + std::to_string(8 * sizeof(Type));
}

inline void check_types(const std::vector<std::string> &expected, const std::string &given) {
    std::size_t begin = 0;
    for (const auto &type : expected) {
        const std::size_t end = std::min(given.find(' ', begin), given.size());
        const std::string name = begin < given.size() ? given.substr(begin, end - begin) : "";
        if (name != type && (name != "?" || type.back() != '*')) fail(type + " is expected in " + given);
        begin = end + 1;
    }
    if (begin < given.size()) fail("too many arguments: " + given);
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), const unsigned *shape, void **arguments, const char *types) {
    check_types({name_of<std::remove_cv_t<Parameters>>(nullptr)...}, types);
    static void (*own_kernel)(Parameters...);
    static void **own_arguments;
    own_kernel = kernel;
    own_arguments = arguments;
    body = [] { call(own_kernel, own_arguments, std::index_sequence_for<Parameters...>()); };
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

}  // namespace emulation

// A function that the launcher finds by the kernel's name.
#define EMULATED(kernel)                                                                         \
    extern "C" void run_##kernel(const unsigned *shape, void **arguments, const char *types) {   \
        emulation::run(kernel, shape, arguments, types);                                         \
    }

inline void __syncthreads() {
    emulation::threads[emulation::current].waits_for_block = true;
    emulation::leave();
}

inline void __syncwarp() {
    emulation::threads[emulation::current].waits_for_warp = true;
    emulation::leave();
}

namespace emulation {

// Gives x to the other threads of the warp, and waits until each has given its own.
template <class Given>
void give(const Given &x) {
    static_assert(sizeof(Given) <= sizeof threads[0].given[0]);
    Thread &own = threads[current];
    own.turn = 1 - own.turn;
    std::memcpy(own.given[own.turn], &x, sizeof x);
    __syncwarp();
}

// What the thread of this number in the warp has given.
template <class Given>
Given taken(std::size_t lane) {
    const std::size_t other = current / WARP * WARP + lane;
    if (lane >= WARP || other >= count) fail("a thread exchanges with one that does not exist");
    Given x;
    std::memcpy(&x, threads[other].given[threads[current].turn], sizeof x);
    return x;
}

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
    return __shfl_sync(mask, x, static_cast<int>(emulation::current % emulation::WARP) ^ offset);
}

// tensor_core.cuh: the layouts are written down again here, element by element, as the PTX ISA has them.

inline void mma_16x8x16(float (&sum)[4], const unsigned (&rows)[4], unsigned upper, unsigned lower) {
    struct Fragments {
        unsigned rows[4], columns[2];
    };
    using namespace emulation;
    give(Fragments{{rows[0], rows[1], rows[2], rows[3]}, {upper, lower}});
    const unsigned lane = current % WARP;
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
    const unsigned lane = current % WARP;
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
    emulation::threads[emulation::current].copies.push_back({target, source, size, exists ? size : 0});
}

inline void copy_later(void *target, const void *source, bool exists) { copy_of_bytes_later(target, source, 16, exists); }

inline void copy_float_later(float *target, const float *source, bool exists) {
    copy_of_bytes_later(target, source, sizeof(float), exists);
}

inline void wait_for_copies() {
    auto &copies = emulation::threads[emulation::current].copies;
    for (const auto &copy : copies) {
        std::memset(copy.target, 0, copy.size);
        std::memcpy(copy.target, copy.source, copy.read);
    }
    copies.clear();
}

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
