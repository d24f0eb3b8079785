// Runs emulated kernels: one block after the other, and of a block one thread after the other, each until it waits for
// the others.
//
// Threads are contexts of their own (ucontext), switched by a barrier, and kept from block to block. They are switched
// by _setjmp and _longjmp, which leave the signals alone. A shuffle waits for the threads of the warp.
//
// Shared memory is static: it keeps what the block before has left there.
//
// A GPU promises no order between barriers. The one taken here is for EMULATED_ORDER in the environment to say: without
// it, the first thread comes first, and what is copied later is copied as late as may be; "last first" turns both about;
// a number is the seed by which threads come in any order, whole warps late, and copies at once or late.
#include "emulation.hpp"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <random>
#include <string>
#include <vector>

Place3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

namespace {

constexpr std::size_t STACK = 64 * 1024;

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
    unsigned char given[2][MOST_GIVEN];
    unsigned turn;
    std::vector<Copy> copies;
};

enum class Order { first_first, last_first, any };

std::deque<Thread> threads;
std::vector<std::size_t> turns;
std::size_t current, count;
Order order;
std::mt19937 chance;
jmp_buf scheduler;
void (*running)();

void leave() {
    if (_setjmp(threads[current].left) == 0) _longjmp(scheduler, 1);
}

// What a thread's context does: its part of one block after the other.
void live() {
    while (true) {
        running();
        threads[current].done = true;
        leave();
    }
}

void resume(Thread &thread) {
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

// What choose_order has read: a seed, or one of these. It is read where kernels are asked for: a thread that runs them
// on its own could read the environment while it changes.
constexpr long FIRST_FIRST = -1, LAST_FIRST = -2;
std::atomic<long> chosen_order{FIRST_FIRST};

void take_chosen_order() {
    const long chosen = chosen_order;
    order = chosen == FIRST_FIRST ? Order::first_first : chosen == LAST_FIRST ? Order::last_first : Order::any;
    if (order == Order::any) chance.seed(static_cast<unsigned>(chosen));
}

void order_threads() {
    turns.resize(count);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == Order::last_first) std::reverse(turns.begin(), turns.end());
    if (order == Order::any) std::shuffle(turns.begin(), turns.end(), chance);
}

// Lets each thread that does not wait run on until it waits or is done: in any order, those of half of the warps.
// Returns whether one is left that does not wait.
bool run_all() {
    bool left = false;
    const auto late_warps = order == Order::any ? chance() : 0;
    if (order == Order::any) order_threads();
    for (const std::size_t turn : turns) {
        Thread &thread = threads[turn];
        if (thread.done || thread.waits_for_warp || thread.waits_for_block) continue;
        if (late_warps >> turn / WARP & 1) {
            left = true;
            continue;
        }
        current = turn;
        threadIdx = thread.place;
        resume(thread);
    }
    return left;
}

// Frees the threads of each warp all of which wait for it. Returns whether there was one.
bool free_warps() {
    bool freed = false;
    for (std::size_t first = 0; first < count; first += WARP) {
        const std::size_t stop = min<std::size_t>(count, first + WARP);
        bool all = true;
        for (std::size_t i = first; i < stop; ++i) all &= threads[i].waits_for_warp;
        for (std::size_t i = first; all && i < stop; ++i) threads[i].waits_for_warp = false;
        freed |= all;
    }
    return freed;
}

void run_block() {
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
    order_threads();
    while (true) {
        const bool some_are_left = run_all();
        if (free_warps() || some_are_left) continue;
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

}  // namespace

void fail(const char *what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
}

void choose_order() {
    const char *given = std::getenv("EMULATED_ORDER");
    const std::string name = given == nullptr ? "" : given;
    chosen_order = name.empty() ? FIRST_FIRST : name == "last first" ? LAST_FIRST : std::strtol(given, nullptr, 10);
}

void run_grid(void (*body)(), const unsigned *shape) {
    take_chosen_order();
    running = body;
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block();
}

std::size_t number_in_block() { return current; }

unsigned char *room_to_give() {
    Thread &own = threads[current];
    own.turn = 1 - own.turn;
    return own.given[own.turn];
}

const unsigned char *given_by(std::size_t lane) {
    const std::size_t other = current / WARP * WARP + lane;
    if (lane >= WARP || other >= count) fail("a thread exchanges with one that does not exist");
    return threads[other].given[threads[current].turn];
}

void copy_later(void *target, const void *source, std::size_t size, std::size_t read) {
    threads[current].copies.push_back({target, source, size, read});
    if (order == Order::last_first || (order == Order::any && chance() % 2 == 0)) wait_for_copies();
}

}  // namespace emulation

void __syncthreads() {
    emulation::threads[emulation::current].waits_for_block = true;
    emulation::leave();
}

void __syncwarp() {
    emulation::threads[emulation::current].waits_for_warp = true;
    emulation::leave();
}

void wait_for_copies() {
    auto &copies = emulation::threads[emulation::current].copies;
    for (const auto &copy : copies) {
        std::memset(copy.target, 0, copy.size);
        std::memcpy(copy.target, copy.source, copy.read);
    }
    copies.clear();
}
