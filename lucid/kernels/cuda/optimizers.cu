// AdamW and LAMB over flat buffers of float. `rounded` is null, or gets the new values as bfloat16.
#include "element.cuh"
#include "reduction.cuh"

// How gradients are folded into the moments, and how Adam's direction follows from these.
#define RATES float first_beta, float first_rest, float second_beta, float second_rest, float gradient_scale
#define FACTORS float epsilon, float first_factor, float root_factor

// Some elements of the buffers, in registers.
struct Elements {
    float values[VECTOR], first_moments[VECTOR], second_moments[VECTOR];

    __device__ Elements(const float *values, const float *first_moments, const float *second_moments) {
        load(values, this->values);
        load(first_moments, this->first_moments);
        load(second_moments, this->second_moments);
    }

    __device__ void advance(const float *gradients, RATES) {
        float gradient[VECTOR];
        load(gradients, gradient);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            gradient[i] *= gradient_scale;
            first_moments[i] = first_moments[i] * first_beta + gradient[i] * first_rest;
            second_moments[i] = second_moments[i] * second_beta + gradient[i] * gradient[i] * second_rest;
        }
    }

    __device__ float direction(int i, FACTORS) const {
        return first_moments[i] / (sqrtf(second_moments[i]) * root_factor + epsilon) * first_factor;
    }
};

__device__ inline void store_values(float *values, bfloat16 *rounded, long long element, const float (&x)[VECTOR]) {
    store(values + element, x);
    if (rounded != nullptr) store(rounded + element, x);
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, bfloat16 *__restrict__ rounded, long long count, float left, float rate, RATES,
    FACTORS) {
    const long long element = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (element >= count) return;
    Elements own(values + element, first_moments + element, second_moments + element);
    own.advance(gradients + element, first_beta, first_rest, second_beta, second_rest, gradient_scale);
    store(first_moments + element, own.first_moments);
    store(second_moments + element, own.second_moments);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        own.values[i] = own.values[i] * left - own.direction(i, epsilon, first_factor, root_factor) * rate;
    }
    store_values(values, rounded, element, own.values);
}

// `squares` [K, 2] gets the sums of the squares of values and of update in each block [bounds[k], bounds[k + 1]).
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) lamb_moments(
    const float *__restrict__ values, const float *__restrict__ gradients, float *__restrict__ first_moments,
    float *__restrict__ second_moments, const long long *__restrict__ bounds, double *__restrict__ squares,
    float weight_decay, RATES, FACTORS) {
    double of_values = 0, of_update = 0;
    const long long stop = bounds[blockIdx.x + 1];
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < stop;
         element += THREADS_OF_BLOCK * VECTOR) {
        Elements own(values + element, first_moments + element, second_moments + element);
        own.advance(gradients + element, first_beta, first_rest, second_beta, second_rest, gradient_scale);
        store(first_moments + element, own.first_moments);
        store(second_moments + element, own.second_moments);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const double value = own.values[i];
            const double update = own.direction(i, epsilon, first_factor, root_factor) + own.values[i] * weight_decay;
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

// Subtracts the update times the rate of its block.
extern "C" __global__ void __launch_bounds__(THREADS_OF_BLOCK) lamb_update(
    float *__restrict__ values, const float *__restrict__ first_moments, const float *__restrict__ second_moments,
    bfloat16 *__restrict__ rounded, const long long *__restrict__ bounds, const double *__restrict__ rates,
    float weight_decay, FACTORS) {
    const float rate = static_cast<float>(rates[blockIdx.x]);
    const long long stop = bounds[blockIdx.x + 1];
    for (long long element = bounds[blockIdx.x] + threadIdx.x * VECTOR; element < stop;
         element += THREADS_OF_BLOCK * VECTOR) {
        Elements own(values + element, first_moments + element, second_moments + element);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const float update = own.direction(i, epsilon, first_factor, root_factor) + own.values[i] * weight_decay;
            own.values[i] -= update * rate;
        }
        store_values(values, rounded, element, own.values);
    }
}
