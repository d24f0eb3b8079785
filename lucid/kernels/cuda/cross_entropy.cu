// Cross-entropy, and the most probable id, over a wide vocabulary. Each block of threads works on one row.
//
// Rows begin `width` elements apart. Only the first `vocabulary` columns count; the others align the rows.
#include "element.cuh"
#include "reduction.cuh"

constexpr float LEAST = -3.402823466e38f;

// A sum of exponentials of numbers minus the greatest so far.
struct Exponentials {
    float most, sum;
};

struct Join {
    __device__ Exponentials operator()(Exponentials one, Exponentials other) const {
        const float most = fmaxf(one.most, other.most);
        return {most, one.sum * expf(one.most - most) + other.sum * expf(other.most - most)};
    }
};

__device__ inline Exponentials opposite(Exponentials x, int offset) {
    return {opposite(x.most, offset), opposite(x.sum, offset)};
}

// Writes `x` to the columns from `column` on that do not count.
__device__ inline void fill_rest(float (&values)[VECTOR], int column, int vocabulary, float x) {
    if (column + VECTOR <= vocabulary) return;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] = column + i < vocabulary ? values[i] : x;
}

__device__ inline float minus_infinity() { return __uint_as_float(0xFF800000u); }

// Reads the logits once: a greater logit scales down the sum so far.
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(
    const ELEMENT *__restrict__ logits, const long long *__restrict__ labels, long long ignore_index,
    float *__restrict__ losses, float *__restrict__ log_sum, int width, int vocabulary) {
    const long long row = blockIdx.x;
    const ELEMENT *own = logits + row * width;
    Exponentials found = {LEAST, 0};
#pragma unroll 2
    for (int column = threadIdx.x * VECTOR; column < vocabulary; column += THREADS * VECTOR) {
        float values[VECTOR], most = found.most;
        load(own + column, values);
        fill_rest(values, column, vocabulary, minus_infinity());
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) most = fmaxf(most, values[i]);
        found.sum *= expf(found.most - most);
        found.most = most;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) found.sum += expf(values[i] - most);
    }
    found = over_row(found, Join());
    if (threadIdx.x != 0) return;
    const long long label = labels[row];
    const float logarithm = logf(found.sum) + found.most;
    log_sum[row] = logarithm;
    losses[row] = label == ignore_index ? 0 : logarithm - number(own[label]);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_gradient(
    const float *__restrict__ gradient, const ELEMENT *__restrict__ logits, const long long *__restrict__ labels,
    const float *__restrict__ log_sum, long long ignore_index, ELEMENT *__restrict__ y, int width, int vocabulary) {
    const long long row = blockIdx.x, label = labels[row];
    const ELEMENT *own = logits + row * width;
    const float weight = label == ignore_index ? 0 : gradient[row], shift = log_sum[row];
#pragma unroll 2
    for (int column = threadIdx.x * VECTOR; column < width; column += THREADS * VECTOR) {
        float values[VECTOR];
        load(own + column, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[i] = (expf(values[i] - shift) - (column + i == label)) * weight;
        fill_rest(values, column, vocabulary, 0);
        store(y + row * width + column, values);
    }
}

// A number and its column.
struct Entry {
    float x;
    int column;
};

// Prefers the first of equals.
struct Greater {
    __device__ Entry operator()(Entry one, Entry other) const {
        return other.x > one.x || (other.x == one.x && other.column < one.column) ? other : one;
    }
};

__device__ inline Entry opposite(Entry entry, int offset) {
    return {opposite(entry.x, offset), opposite(entry.column, offset)};
}

extern "C" __global__ void __launch_bounds__(THREADS) argmax(
    const ELEMENT *__restrict__ x, long long *__restrict__ columns, int width, int vocabulary) {
    const ELEMENT *own = x + static_cast<long long>(blockIdx.x) * width;
    // A thread without a column must not win over one with a column.
    Entry found = {LEAST, vocabulary};
    for (int column = threadIdx.x * VECTOR; column < vocabulary; column += THREADS * VECTOR) {
        float values[VECTOR];
        load(own + column, values);
        fill_rest(values, column, vocabulary, minus_infinity());
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) found = Greater()(found, {values[i], column + i});
    }
    found = over_row(found, Greater());
    if (threadIdx.x == 0) columns[blockIdx.x] = found.column < vocabulary ? found.column : 0;
}
