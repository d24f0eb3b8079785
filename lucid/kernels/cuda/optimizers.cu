// AdamW and LAMB over flat buffers of float. `bfloat16_copy`, if not null, gets the new values as bfloat16.
//
// `factors` [4] are the learning rate, the scale of the gradients, and the factors of Adam's direction and of its root.
// If the scale is not finite, nothing changes.
#include "element.cuh"
#include "reduction.cuh"

// The constants by which gradients update the moments and the moments give Adam's direction.
#define RATES float first_beta, float first_rest, float second_beta, float second_rest, float epsilon

struct Factors {
    double learning_rate;
    float gradient, first, root;
    bool are_finite;

    __device__ explicit Factors(const double *factors)
        : learning_rate(factors[0]),
          gradient(static_cast<float>(factors[1])),
          first(static_cast<float>(factors[2])),
          root(static_cast<float>(factors[3])),
          are_finite(factors[1] - factors[1] == 0) {}
};

// Counts an update, unless the gradient's scale is not finite. Runs in one thread.
extern "C" __global__ void __launch_bounds__(1) update_factors(
    const double *__restrict__ learning_rate, const double *__restrict__ gradient_scale,
    long long *__restrict__ updates, double *__restrict__ factors, double first_beta, double second_beta) {
    const double scale = *gradient_scale;
    const bool counts = scale - scale == 0;
    const auto number = static_cast<double>(counts ? ++*updates : 1);
    factors[0] = *learning_rate;
    factors[1] = scale;
    factors[2] = 1 / (1 - pow(first_beta, number));
    factors[3] = 1 / sqrt(1 - pow(second_beta, number));
}

// Elements of the buffers, in registers.
struct Elements {
    float values[VECTOR], first_moments[VECTOR], second_moments[VECTOR];

    __device__ Elements(const float *values, const float *first_moments, const float *second_moments) {
        load(values, this->values);
        load(first_moments, this->first_moments);
        load(second_moments, this->second_moments);
    }

    __device__ void advance(const float *gradients, const Factors &factors, RATES) {
        float gradient[VECTOR];
        load(gradients, gradient);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            gradient[i] *= factors.gradient;
            first_moments[i] = first_moments[i] * first_beta + gradient[i] * first_rest;
            second_moments[i] = second_moments[i] * second_beta + gradient[i] * gradient[i] * second_rest;
        }
    }

    __device__ float direction(int i, const Factors &factors, float epsilon) const {
        return first_moments[i] / (sqrtf(second_moments[i]) * factors.root + epsilon) * factors.first;
    }
};

__device__ inline void store_values(
    float *values, bfloat16 *bfloat16_copy, long long element, const float (&x)[VECTOR]) {
    store(values + element, x);
    if (bfloat16_copy != nullptr) store(bfloat16_copy + element, x);
}

// What AdamW multiplies values and direction by.
struct Step {
    float left, rate;

    __device__ Step(const Factors &factors, double weight_decay)
        : left(static_cast<float>(1 - factors.learning_rate * weight_decay)),
          rate(static_cast<float>(factors.learning_rate)) {}
};

// Sums of squares over the elements of a block: of the change, and of the new values.
struct Squares {
    double of_change = 0, of_values = 0;

    __device__ void add(float before, float after) {
        const double change = before - after, value = after;
        of_change += change * change;
        of_values += value * value;
    }

    // All threads of the block call this; the first writes.
    __device__ void write(double *squares) {
        of_change = over_row(of_change, Sum());
        of_values = over_row(of_values, Sum());
        if (threadIdx.x != 0) return;
        squares[2 * blockIdx.x] = of_change;
        squares[2 * blockIdx.x + 1] = of_values;
    }
};

__device__ inline void advance_by_adamw(
    float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, bfloat16 *__restrict__ bfloat16_copy, long long element,
    const Factors &factors, const Step &step, Squares *squares, RATES) {
    Elements own(values + element, first_moments + element, second_moments + element);
    own.advance(gradients + element, factors, first_beta, first_rest, second_beta, second_rest, epsilon);
    store(first_moments + element, own.first_moments);
    store(second_moments + element, own.second_moments);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const float before = own.values[i];
        own.values[i] = before * step.left - own.direction(i, factors, epsilon) * step.rate;
        if (squares != nullptr) squares->add(before, own.values[i]);
    }
    store_values(values, bfloat16_copy, element, own.values);
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, bfloat16 *__restrict__ bfloat16_copy, const double *__restrict__ given_factors,
    long long count, double weight_decay, RATES) {
    const long long element = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    const Factors factors(given_factors);
    if (element >= count || !factors.are_finite) return;
    advance_by_adamw(
        values, gradients, first_moments, second_moments, bfloat16_copy, element, factors,
        Step(factors, weight_decay), nullptr, first_beta, first_rest, second_beta, second_rest, epsilon);
}

// The same, and the sums of squares of each block [bounds[k], bounds[k + 1]), in `squares` [K, 2].
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) measured_adamw(
    float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, bfloat16 *__restrict__ bfloat16_copy, const long long *__restrict__ bounds,
    double *__restrict__ squares, const double *__restrict__ given_factors, double weight_decay, RATES) {
    const Factors factors(given_factors);
    if (!factors.are_finite) return;
    const Step step(factors, weight_decay);
    Squares own;
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < bounds[blockIdx.x + 1];
         element += THREADS_OF_BLOCK * VECTOR)
        advance_by_adamw(
            values, gradients, first_moments, second_moments, bfloat16_copy, element, factors, step, &own, first_beta,
            first_rest, second_beta, second_rest, epsilon);
    own.write(squares);
}

// Writes to `squares` [K, 2] the sums of the squares of values and update in each block [bounds[k], bounds[k + 1]).
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) lamb_moments(
    const float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, const long long *__restrict__ bounds, double *__restrict__ squares,
    const double *__restrict__ given_factors, float weight_decay, RATES) {
    const Factors factors(given_factors);
    double of_values = 0, of_update = 0;
    const long long stop = factors.are_finite ? bounds[blockIdx.x + 1] : 0;
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < stop;
         element += THREADS_OF_BLOCK * VECTOR) {
        Elements own(values + element, first_moments + element, second_moments + element);
        own.advance(gradients + element, factors, first_beta, first_rest, second_beta, second_rest, epsilon);
        store(first_moments + element, own.first_moments);
        store(second_moments + element, own.second_moments);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const double value = own.values[i];
            const double update = own.direction(i, factors, epsilon) + own.values[i] * weight_decay;
            of_values += value * value;
            of_update += update * update;
        }
    }
    of_values = over_row(of_values, Sum());
    of_update = over_row(of_update, Sum());
    if (threadIdx.x != 0) return;
    squares[2 * blockIdx.x] = of_values;
    squares[2 * blockIdx.x + 1] = of_update;
}

// Each block of threads works on one parameter, whose blocks are [first_blocks[p], first_blocks[p + 1]).
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) lamb_rates(
    const double *__restrict__ squares, const long long *__restrict__ first_blocks,
    const double *__restrict__ given_factors, double *__restrict__ rates, int adapting) {
    const long long first = first_blocks[blockIdx.x], stop = first_blocks[blockIdx.x + 1];
    double of_values = 0, of_update = 0;
    for (long long block = first + threadIdx.x; block < stop; block += THREADS_OF_BLOCK) {
        of_values += squares[2 * block];
        of_update += squares[2 * block + 1];
    }
    of_values = over_row(of_values, Sum());
    of_update = over_row(of_update, Sum());
    const bool adapts = static_cast<int>(blockIdx.x) < adapting && of_values > 0 && of_update > 0;
    const double rate = given_factors[0] * (adapts ? sqrt(of_values) / sqrt(of_update) : 1);
    for (long long block = first + threadIdx.x; block < stop; block += THREADS_OF_BLOCK) rates[block] = rate;
}

// Subtracts the update times the rate of its block. Writes the sums of squares to `squares` [K, 2], if it is not null.
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) lamb_update(
    float *__restrict__ values, const float *__restrict__ first_moments, const float *__restrict__ second_moments,
    bfloat16 *__restrict__ bfloat16_copy, const long long *__restrict__ bounds, const double *__restrict__ rates,
    double *__restrict__ squares, const double *__restrict__ given_factors, float weight_decay, float epsilon) {
    const Factors factors(given_factors);
    if (!factors.are_finite) return;
    const auto rate = static_cast<float>(rates[blockIdx.x]);
    Squares sums;
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < bounds[blockIdx.x + 1];
         element += THREADS_OF_BLOCK * VECTOR) {
        Elements own(values + element, first_moments + element, second_moments + element);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const float before = own.values[i];
            const float update = own.direction(i, factors, epsilon) + before * weight_decay;
            own.values[i] = before - update * rate;
            if (squares != nullptr) sums.add(before, own.values[i]);
        }
        store_values(values, bfloat16_copy, element, own.values);
    }
    if (squares != nullptr) sums.write(squares);
}
