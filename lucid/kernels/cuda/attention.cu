// The softmax of attention, with the keys' mask before it and dropout behind it, of all sequences and heads at once.
//
// Sequence s has rows [first, first + length) and heads x length x length scores, which begin at heads * area. Its rows
// each have (first, length, area) in `places` [N, 3]. The threads of one threadIdx.y hold a row of scores in registers,
// SLOTS times WIDTH numbers each.
#include "element.cuh"
#include "philox.cuh"
#include "reduction.cuh"

// Four columns at least, as many as one Philox block has words, even where they are read one by one.
constexpr int WIDTH = VECTOR < 4 ? 4 : VECTOR;
constexpr float LEAST = -3.402823466e38f;

__device__ inline int column_of(int slot) { return (slot * blockDim.x + threadIdx.x) * WIDTH; }

__device__ inline void load_some(const ELEMENT *row, int column, int length, float (&x)[WIDTH]) {
    if constexpr (VECTOR == WIDTH) {
        load(row + column, x);
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) x[i] = column + i < length ? number(row[column + i]) : 0;
    }
}

__device__ inline void store_some(ELEMENT *row, int column, int length, const float (&x)[WIDTH]) {
    if constexpr (VECTOR == WIDTH) {
        store(row + column, x);
    } else {
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            if (column + i < length) store(row[column + i], x[i]);
        }
    }
}

// One row of scores: of row `row` of the sequences and of head blockIdx.y.
struct Row {
    long long first, start, sample, element;
    int length;
    bool inside;

    __device__ Row(
        const long long *places, const long long *samples, const long long *positions, long long rows, int heads,
        int grid_length) {
        const long long row = static_cast<long long>(blockIdx.x) * blockDim.y + threadIdx.y;
        inside = row < rows;
        first = start = sample = element = length = 0;
        if (!inside) return;
        first = places[3 * row];
        length = static_cast<int>(places[3 * row + 1]);
        start = heads * places[3 * row + 2] + (blockIdx.y * static_cast<long long>(length) + row - first) * length;
        if (samples == nullptr) return;
        const long long position = positions == nullptr ? 0 : positions[first];
        sample = samples[first];
        element = (blockIdx.y * static_cast<long long>(grid_length) + position + row - first) * grid_length + position;
    }
};

// `scores` [P] times `scale` become probabilities; where something is dropped, `scores` gets what is kept of them.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) masked_softmax(
    ELEMENT *__restrict__ scores, const bool *__restrict__ mask, float scale, ELEMENT *__restrict__ probabilities,
    const long long *__restrict__ places, long long rows, int heads, int grid_length, DRAWS) {
    const Row row(places, samples, positions, rows, heads, grid_length);
    float values[SLOTS][WIDTH], most = LEAST;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= row.length) continue;
        load_some(scores + row.start, column, row.length, values[slot]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const bool exists = column + i < row.length;
            const bool counts = exists && (mask == nullptr || mask[row.first + column + i]);
            values[slot][i] = counts ? values[slot][i] * scale : LEAST;
            if (exists) most = fmaxf(most, values[slot][i]);
        }
    }
    most = over_row(most, Greatest());
    float sum = 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= row.length) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            values[slot][i] = expf(values[slot][i] - most);
            if (column + i < row.length) sum += values[slot][i];
        }
    }
    const float reciprocal = 1 / over_row(sum, Sum());
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= row.length) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) values[slot][i] = as_stored<ELEMENT>(values[slot][i] * reciprocal);
        store_some(probabilities + row.start, column, row.length, values[slot]);
        if (samples == nullptr) continue;
        float factors[WIDTH];
        keep_factors(PLACE, row.sample, row.element + column, row.element % 4 == 0, factors);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) values[slot][i] *= factors[i];
        store_some(scores + row.start, column, row.length, values[slot]);
    }
}

// The gradient by what was kept becomes that by the scores, in place; `kept` is made again unless it is null.
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) masked_softmax_gradient(
    ELEMENT *__restrict__ gradient, const ELEMENT *__restrict__ probabilities, float scale, ELEMENT *__restrict__ kept,
    const long long *__restrict__ places, long long rows, int heads, int grid_length, DRAWS) {
    const Row row(places, samples, positions, rows, heads, grid_length);
    float values[SLOTS][WIDTH], by_probability[SLOTS][WIDTH], along = 0;
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= row.length) continue;
        load_some(probabilities + row.start, column, row.length, values[slot]);
        load_some(gradient + row.start, column, row.length, by_probability[slot]);
        if (samples != nullptr) {
            float factors[WIDTH], made[WIDTH];
            keep_factors(PLACE, row.sample, row.element + column, row.element % 4 == 0, factors);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                made[i] = values[slot][i] * factors[i];
                by_probability[slot][i] *= factors[i];
            }
            store_some(kept + row.start, column, row.length, made);
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) along += by_probability[slot][i] * values[slot][i];
    }
    along = over_row(along, Sum());
#pragma unroll
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int column = column_of(slot);
        if (column >= row.length) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            values[slot][i] *= (by_probability[slot][i] - along) * scale;
        }
        store_some(gradient + row.start, column, row.length, values[slot]);
    }
}
