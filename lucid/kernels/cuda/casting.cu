// Rounds float to bfloat16, to the nearest, ties to even.
#include "element.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    round_to_bfloat16(const float *__restrict__ x, bfloat16 *__restrict__ y, long long count) {
    const long long element = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (element >= count) return;
    float values[VECTOR];
    load(x + element, values);
    store(y + element, values);
}
