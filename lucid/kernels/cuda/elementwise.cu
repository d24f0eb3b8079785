// Bias and activation in one pass, and their backward with the bias's gradient in one pass. Dropout.
//
// A block has LANES x GROUPS threads and works on ROWS rows.
#include "element.cuh"
#include "philox.cuh"
#include "reduction.cuh"

constexpr float SQRT_HALF = 0.70710678f;
constexpr float SQRT_TWO_OVER_PI = 0.79788456f;
constexpr float DENSITY_AT_0 = 0.39894228f;
constexpr float CUBIC = 0.044715f;

// The normal distribution. erff loses digits in the lower tail, but bfloat16 does not have these digits.
__device__ inline float distribution(float x, float) { return normcdff(x); }
__device__ inline float distribution(float x, bfloat16) { return 0.5f + 0.5f * erff(x * SQRT_HALF); }

struct Gelu {
    __device__ static float value(float x) { return x * distribution(x, ELEMENT()); }
    __device__ static float slope(float x) {
        return distribution(x, ELEMENT()) + x * (DENSITY_AT_0 * expf(-0.5f * x * x));
    }
};

struct GeluNew {
    __device__ static float tangent(float x) { return tanhf(SQRT_TWO_OVER_PI * (x + CUBIC * x * x * x)); }
    __device__ static float value(float x) { return 0.5f * x * (1 + tangent(x)); }
    __device__ static float slope(float x) {
        const float t = tangent(x);
        // Where tanh is flat, x * x may have overflowed: infinity times 0 is NaN.
        const float rise = t * t == 1 ? 0.0f : (1 - t * t) * (SQRT_TWO_OVER_PI * (1 + 3 * CUBIC * x * x));
        return 0.5f * (1 + t) + 0.5f * x * rise;
    }
};

struct Relu {
    // NaN stays NaN.
    __device__ static float value(float x) { return x < 0 ? 0 : x; }
    __device__ static float slope(float x) { return x > 0 ? 1 : 0; }
};

__device__ inline int own_column() { return (blockIdx.y * LANES + threadIdx.x) * VECTOR; }

template <class Kind>
__device__ inline void activate(
    const ELEMENT *__restrict__ x, const float *__restrict__ bias, ELEMENT *__restrict__ y, long long rows, int width) {
    const int column = own_column();
    if (column >= width) return;
    float shift[VECTOR];
    load_if_any(bias == nullptr ? bias : bias + column, shift);
    const long long first = static_cast<long long>(blockIdx.x) * ROWS, stop = min(rows, first + ROWS);
#pragma unroll 2
    for (long long row = first + threadIdx.y; row < stop; row += GROUPS) {
        float values[VECTOR];
        load(x + row * width + column, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[i] = Kind::value(values[i] + shift[i]);
        store(y + row * width + column, values);
    }
}

// Writes to `sums` [blocks, C] the sums of the gradient over each block's rows.
template <class Kind>
__device__ inline void activate_gradient(
    const ELEMENT *__restrict__ gradient, const ELEMENT *__restrict__ x, const float *__restrict__ bias,
    ELEMENT *__restrict__ y, float *__restrict__ sums, long long rows, int width) {
    const int column = own_column();
    const bool inside = column < width;
    float shift[VECTOR], total[VECTOR] = {};
    load_if_any(bias == nullptr || !inside ? nullptr : bias + column, shift);
    const long long first = static_cast<long long>(blockIdx.x) * ROWS, stop = inside ? min(rows, first + ROWS) : 0;
#pragma unroll 2
    for (long long row = first + threadIdx.y; row < stop; row += GROUPS) {
        float values[VECTOR], by_y[VECTOR];
        load(x + row * width + column, values);
        load(gradient + row * width + column, by_y);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            values[i] = by_y[i] * Kind::slope(values[i] + shift[i]);
            total[i] += values[i];
        }
        store(y + row * width + column, values);
    }
    over_groups(total);
    if (inside && threadIdx.y == 0) store(sums + static_cast<long long>(blockIdx.x) * width + column, total);
}

#define ACTIVATION(name, Kind)                                                                                     \
    extern "C" __global__ void __launch_bounds__(LANES *GROUPS)                                                    \
        name(const ELEMENT *x, const float *bias, ELEMENT *y, long long rows, int width) {                         \
        activate<Kind>(x, bias, y, rows, width);                                                                   \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(LANES *GROUPS)                                                    \
        name##_gradient(                                                                                           \
            const ELEMENT *gradient, const ELEMENT *x, const float *bias, ELEMENT *y, float *sums, long long rows, \
            int width) {                                                                                           \
        activate_gradient<Kind>(gradient, x, bias, y, sums, rows, width);                                          \
    }

ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_new, GeluNew)
ACTIVATION(relu, Relu)

// x has `size` elements in each sample.
extern "C" __global__ void __launch_bounds__(LANES *GROUPS)
    dropout(
        const ELEMENT *__restrict__ x, ELEMENT *__restrict__ y, long long count, long long size, DROPOUT_PARAMETERS) {
    const long long thread = static_cast<long long>(blockIdx.x) * (LANES * GROUPS) + threadIdx.x;
    const long long element = thread * VECTOR;
    if (element >= count) return;
    const long long sample = element / size;
    const long long first = (positions == nullptr ? 0 : positions[sample] * size) + element % size;
    float values[VECTOR], factors[VECTOR];
    load(x + element, values);
    keep_factors(DROPOUT_KEY, samples[sample], first, VECTOR % 4 == 0, factors);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] *= factors[i];
    store(y + element, values);
}
