// A stable sort of ids by digits of 8 bits, the lowest first, without atomics. Each digit takes a pass of two kernels.
//
// A block works on CHUNK ids. Its thread d handles digit d, and reads the chunk's ids one by one, in their order.
#include "element.cuh"

constexpr int DIGITS = 256;

__device__ inline int digit_of(long long id, int shift) { return static_cast<int>(id >> shift) & (DIGITS - 1); }

// Loads the digits of the block's ids into shared memory, and returns their number.
__device__ inline int load_digits(const long long *ids, long long count, int shift, int (&digits)[CHUNK]) {
    const long long first = static_cast<long long>(blockIdx.x) * CHUNK;
    const int here = static_cast<int>(min(count - first, static_cast<long long>(CHUNK)));
    for (int i = threadIdx.x; i < here; i += DIGITS) digits[i] = digit_of(ids[first + i], shift);
    __syncthreads();
    return here;
}

// Writes to `counts` [blocks, DIGITS] how often each digit occurs in each block's ids [N].
extern "C" __global__ void __launch_bounds__(DIGITS)
    count_digits(const long long *__restrict__ ids, int *__restrict__ counts, long long count, int shift) {
    __shared__ int digits[CHUNK];
    const int here = load_digits(ids, count, shift, digits), own = threadIdx.x;
    int total = 0;
    for (int i = 0; i < here; ++i) total += digits[i] == own;
    counts[static_cast<long long>(blockIdx.x) * DIGITS + own] = total;
}

// Moves each id, and the number of its row, behind all ids with a lower digit and the earlier ids with the same digit.
// Without `rows` [N] the rows are numbered in order.
extern "C" __global__ void __launch_bounds__(DIGITS) place_by_digit(
    const long long *__restrict__ ids, const long long *__restrict__ rows, const int *__restrict__ counts,
    long long *__restrict__ sorted_ids, long long *__restrict__ sorted_rows, long long count, int shift) {
    __shared__ int digits[CHUNK];
    __shared__ long long ends[DIGITS];
    const int here = load_digits(ids, count, shift, digits), own = threadIdx.x;
    long long before = 0, total = 0;
#pragma unroll 8
    for (unsigned block = 0; block < gridDim.x; ++block) {
        const int found = counts[static_cast<long long>(block) * DIGITS + own];
        total += found;
        before += block < blockIdx.x ? found : 0;
    }
    // Prefix sums of the digits' totals.
    ends[own] = total;
    __syncthreads();
    for (int distance = 1; distance < DIGITS; distance *= 2) {
        const long long lower = own >= distance ? ends[own - distance] : 0;
        __syncthreads();
        ends[own] += lower;
        __syncthreads();
    }
    long long place = ends[own] - total + before;
    const long long first = static_cast<long long>(blockIdx.x) * CHUNK;
    for (int i = 0; i < here; ++i) {
        if (digits[i] != own) continue;
        sorted_ids[place] = ids[first + i];
        sorted_rows[place] = rows == nullptr ? first + i : rows[first + i];
        ++place;
    }
}
