// Layer normalisation, alone or fused with the bias, the dropout and the residual sum before it.
//
// The threads of one threadIdx.y hold a whole row in registers, so that they read it once. Each holds SLOTS or
// GRADIENT_SLOTS times VECTOR numbers, at columns threadIdx.x * VECTOR + slot * blockDim.x * VECTOR.
#include "element.cuh"
#include "philox.cuh"
#include "reduction.cuh"

__device__ inline int column_of(int slot) { return (slot * blockDim.x + threadIdx.x) * VECTOR; }

// The sample in which a row draws, and its first element there. Each row of the array has coordinates.
struct DropoutOrigin {
    long long sample, first;

    __device__ DropoutOrigin(const long long *samples, const long long *positions, long long row, int width)
        : sample(samples == nullptr ? 0 : samples[row]), first(positions == nullptr ? 0 : positions[row] * width) {}
};

// Without `bias` and `residual` this normalises x itself, and `total` may be null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) normalise(
    const ELEMENT *__restrict__ x, const float *__restrict__ bias, const ELEMENT *__restrict__ residual,
    const float *__restrict__ weight, const float *__restrict__ shift, float epsilon, ELEMENT *__restrict__ total,
    ELEMENT *__restrict__ y, float *__restrict__ mean, float *__restrict__ reciprocal, long long rows, int width,
    DROPOUT_PARAMETERS) {
    const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
    const bool inside = row < rows;
    const long long start = row * width;
    const DropoutOrigin origin(inside ? samples : nullptr, inside ? positions : nullptr, row, width);
    float values[SLOTS][VECTOR], sum = 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (!inside || column >= width) continue;
        load(x + start + column, values[slot]);
        if (residual != nullptr) {
            float other[VECTOR], factors[VECTOR];
            load(bias + column, other);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) values[slot][i] += other[i];
            if (samples != nullptr) {
                keep_factors(DROPOUT_KEY, origin.sample, origin.first + column, VECTOR % 4 == 0, factors);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) values[slot][i] *= factors[i];
            }
            load(residual + start + column, other);
            // Backward reads the stored sum, so normalise the sum as stored.
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) values[slot][i] = as_stored<ELEMENT>(values[slot][i] + other[i]);
            store(total + start + column, values[slot]);
        }
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum += values[slot][i];
    }
    const float middle = over_row(sum, Sum()) / width;
    float squares = 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        if (!inside || column_of(slot) >= width) continue;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            values[slot][i] -= middle;
            squares += values[slot][i] * values[slot][i];
        }
    }
    const float scale = 1 / sqrtf(over_row(squares, Sum()) / width + epsilon);
    if (!inside) return;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= width) continue;
        float slope[VECTOR], offset[VECTOR];
        load(weight + column, slope);
        load(shift + column, offset);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[slot][i] = values[slot][i] * scale * slope[i] + offset[i];
        store(y + start + column, values[slot]);
    }
    if (threadIdx.x == 0) {
        mean[row] = middle;
        reciprocal[row] = scale;
    }
}

// A thread's sums over the rows, for the columns that it holds.
struct ColumnSums {
    float by_weight[GRADIENT_SLOTS][VECTOR], by_shift[GRADIENT_SLOTS][VECTOR], by_bias[GRADIENT_SLOTS][VECTOR];
};

// Writes to `sums` [3, blocks, C] the sums over each block's rows of the gradients by weight, shift and bias. The
// gradient by bias sums the gradient by x after dropout. If elements are dropped, `by_x` gets this gradient.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) normalise_gradient(
    const ELEMENT *__restrict__ gradient, const ELEMENT *__restrict__ x, const float *__restrict__ weight,
    const float *__restrict__ mean, const float *__restrict__ reciprocal, ELEMENT *__restrict__ by_total,
    ELEMENT *__restrict__ by_x, float *__restrict__ sums, long long rows, int width, DROPOUT_PARAMETERS) {
    const long long first = static_cast<long long>(blockIdx.x) * ROWS;
    ColumnSums columns = {};
    for (int offset = 0; offset < ROWS; offset += blockDim.y) {
        const long long row = first + offset + threadIdx.y;
        const bool inside = offset + threadIdx.y < ROWS && row < rows;
        const long long start = row * width;
        const float middle = inside ? mean[row] : 0, scale = inside ? reciprocal[row] : 0;
        const DropoutOrigin origin(inside ? samples : nullptr, inside ? positions : nullptr, row, width);
        float by_y[GRADIENT_SLOTS][VECTOR], normalised[GRADIENT_SLOTS][VECTOR], total = 0, product = 0;
#pragma unroll
        for (int slot = 0; slot < GRADIENT_SLOTS; ++slot) {
            const int column = column_of(slot);
            if (!inside || column >= width) continue;
            float slope[VECTOR];
            load(gradient + start + column, by_y[slot]);
            load(x + start + column, normalised[slot]);
            load(weight + column, slope);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                normalised[slot][i] = (normalised[slot][i] - middle) * scale;
                columns.by_weight[slot][i] += by_y[slot][i] * normalised[slot][i];
                columns.by_shift[slot][i] += by_y[slot][i];
                by_y[slot][i] *= slope[i];
                total += by_y[slot][i];
                product += by_y[slot][i] * normalised[slot][i];
            }
        }
        const Two along = over_row(Two{total, product}, SumOfTwo());
        total = along.first / width;
        product = along.second / width;
#pragma unroll
        for (int slot = 0; slot < GRADIENT_SLOTS; ++slot) {
            const int column = column_of(slot);
            if (!inside || column >= width) continue;
            float values[VECTOR];
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                values[i] = (by_y[slot][i] - total - normalised[slot][i] * product) * scale;
            }
            store(by_total + start + column, values);
            if (samples != nullptr) {
                float factors[VECTOR];
                keep_factors(DROPOUT_KEY, origin.sample, origin.first + column, VECTOR % 4 == 0, factors);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) values[i] = as_stored<ELEMENT>(values[i]) * factors[i];
                store(by_x + start + column, values);
            }
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) columns.by_bias[slot][i] += values[i];
        }
    }
    const long long plane = static_cast<long long>(gridDim.x) * width;
#pragma unroll
    for (int slot = 0; slot < GRADIENT_SLOTS; ++slot) {
        float *target = sums + static_cast<long long>(blockIdx.x) * width + column_of(slot);
        const bool writes = column_of(slot) < width && threadIdx.y == 0;
        over_groups(columns.by_weight[slot]);
        over_groups(columns.by_shift[slot]);
        over_groups(columns.by_bias[slot]);
        if (!writes) continue;
        store(target, columns.by_weight[slot]);
        store(target + plane, columns.by_shift[slot]);
        store(target + 2 * plane, columns.by_bias[slot]);
    }
}
