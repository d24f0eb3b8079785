// Sums among the threads of a block, in an order that depends only on the block's shape, without atomics.
//
// The threads with one threadIdx.y work on one row of an array; blockDim.x is a multiple of 32. All threads of a block
// must call these functions together.
#pragma once

constexpr int MOST_WARPS = 32;
constexpr int MOST_GROUPED_THREADS = 512;

struct Sum {
    template <class Number>
    __device__ Number operator()(Number x, Number y) const { return x + y; }
};

// Two sums at once, which need half the barriers.
struct Two {
    float first, second;
};

struct SumOfTwo {
    __device__ Two operator()(Two x, Two y) const { return {x.first + y.first, x.second + y.second}; }
};

struct Greatest {
    __device__ float operator()(float x, float y) const { return fmaxf(x, y); }
};

// Returns the x of the thread in this warp whose number differs in the bit `offset`.
template <class Number>
__device__ inline Number opposite(Number x, int offset) { return __shfl_xor_sync(0xFFFFFFFFu, x, offset); }

__device__ inline Two opposite(Two x, int offset) { return {opposite(x.first, offset), opposite(x.second, offset)}; }

template <class Number, class Join>
__device__ inline Number over_warp(Number x, Join join) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = join(x, opposite(x, offset));
    return x;
}

// Joins the values of the threads of a row; all of them get the result.
template <class Number, class Join>
__device__ inline Number over_row(Number x, Join join) {
    x = over_warp(x, join);
    if (blockDim.x == 32) return x;
    __shared__ Number room[MOST_WARPS];
    const unsigned warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Number *own = room + threadIdx.y * warps;
    __syncthreads();
    if (lane == 0) own[warp] = x;
    __syncthreads();
    // Each thread joins the same numbers in the same order.
    x = own[0];
    for (unsigned other = 1; other < warps; ++other) x = join(x, own[other]);
    return x;
}

// Adds the values of the threads with one threadIdx.x; the thread with threadIdx.y 0 gets the sum.
template <int COUNT>
__device__ inline void over_groups(float (&sums)[COUNT]) {
    __shared__ float room[COUNT][MOST_GROUPED_THREADS];
    const unsigned own = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) room[i][own] = sums[i];
    __syncthreads();
    if (threadIdx.y != 0) return;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        for (unsigned group = 1; group < blockDim.y; ++group) sums[i] += room[i][group * blockDim.x + own];
    }
}
