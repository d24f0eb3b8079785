// Sums over rows, in two passes: over the rows of each block, and over the blocks. Sums of squares over a flat buffer.
#include "element.cuh"
#include "reduction.cuh"

// Writes to `sums` [blocks, C] the sums of x [N, C] over each block's rows.
extern "C" __global__ void __launch_bounds__(LANES *GROUPS)
    column_sums(const ELEMENT *__restrict__ x, float *__restrict__ sums, long long rows, int width) {
    const int column = (blockIdx.y * LANES + threadIdx.x) * VECTOR;
    const bool inside = column < width;
    const long long first = static_cast<long long>(blockIdx.x) * ROWS, stop = inside ? min(rows, first + ROWS) : 0;
    float total[VECTOR] = {};
#pragma unroll 4
    for (long long row = first + threadIdx.y; row < stop; row += GROUPS) {
        float values[VECTOR];
        load(x + row * width + column, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) total[i] += values[i];
    }
    over_groups(total);
    if (inside && threadIdx.y == 0) store(sums + static_cast<long long>(blockIdx.x) * width + column, total);
}

// Writes to each of three vectors [C], unless null, the sums of its part of `sums` [3, blocks, C] over the blocks, or
// adds them if its bit in `added` is set.
extern "C" __global__ void __launch_bounds__(LANES *BLOCK_GROUPS) block_sums(
    const float *__restrict__ sums, float *__restrict__ first, float *__restrict__ second, float *__restrict__ third,
    int added, int blocks, int width) {
    float *out = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    if (out == nullptr) return;
    const int column = blockIdx.x * LANES + threadIdx.x;
    const float *own = sums + static_cast<long long>(blockIdx.y) * blocks * width + column;
    float total[1] = {};
    if (column < width) {
        for (int block = threadIdx.y; block < blocks; block += BLOCK_GROUPS) {
            total[0] += own[static_cast<long long>(block) * width];
        }
    }
    over_groups(total);
    if (column < width && threadIdx.y == 0) out[column] = added >> blockIdx.y & 1 ? out[column] + total[0] : total[0];
}

// Writes to `sums` [K] the sums of the squares of x in each block [bounds[k], bounds[k + 1]).
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK)
    squared_sums(const ELEMENT *__restrict__ x, const long long *__restrict__ bounds, double *__restrict__ sums) {
    const long long stop = bounds[blockIdx.x + 1];
    double total = 0;
#pragma unroll 4
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < stop;
         element += THREADS_OF_BLOCK * VECTOR) {
        float values[VECTOR];
        load(x + element, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) total += static_cast<double>(values[i]) * values[i];
    }
    total = over_row(total, Sum());
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Writes to `root` the square root of the sum of all sums, of which there are thousands: one block suffices.
extern "C" __global__ void __launch_bounds__(THREADS_OF_ROOT)
    root_of_sum(const double *__restrict__ sums, double *__restrict__ root, long long count) {
    double total = 0;
    for (long long i = threadIdx.x; i < count; i += THREADS_OF_ROOT) total += sums[i];
    total = over_row(total, Sum());
    if (threadIdx.x == 0) *root = sqrt(total);
}
