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

struct Thread {
    ucontext_t beginning;
    jmp_buf left;
    char *stack = new char[STACK];
    Place3 place;
    bool has_begun = false, waits_for_warp, waits_for_block, done;
    std::uint64_t given;
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

template <class Number>
Number __shfl_xor_sync(unsigned mask, Number x, int offset) {
    using namespace emulation;
    if (mask != 0xFFFFFFFFu) fail("a warp exchanges without some of its threads");
    static_assert(sizeof(Number) <= 8);
    Thread &own = threads[current];
    const std::size_t other = current ^ static_cast<unsigned>(offset);
    if (other >= count) fail("a thread exchanges with one that does not exist");
    std::memcpy(&own.given, &x, sizeof x);
    own.waits_for_warp = true;
    leave();
    std::memcpy(&x, &threads[other].given, sizeof x);
    // Nobody may give the next number before all have taken this one.
    own.waits_for_warp = true;
    leave();
    return x;
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
