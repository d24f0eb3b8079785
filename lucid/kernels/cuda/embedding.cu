// Look-ups in a table, and the table's gradient in a fixed order: rows are summed sorted by id, in chunks of ROWS. The
// gradient has the type OUT: float for a table of parameters, ELEMENT for a table of activations (rows with labels).
//
// If all rows of an id are in one chunk, their sum is written at once. If an id continues into the next chunk, each
// chunk leaves a sum in `parts` [chunks, 2, C]: the first chunk at index 1, the later ones at index 0.
#include "element.cuh"

#if OUT_IS_FLOAT
using Out = float;
#else
using Out = ELEMENT;
#endif

__device__ inline int own_column() { return (blockIdx.y * THREADS + threadIdx.x) * VECTOR; }

__device__ inline void add_to(Out *target, const float (&sum)[VECTOR]) {
    float values[VECTOR];
    load(target, values);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) values[i] += sum[i];
    store(target, values);
}

// `order` [N] has the rows of `gradient` sorted by id, and `ids` [N] the sorted ids.
extern "C" __global__ void __launch_bounds__(THREADS) add_within_chunks(
    const ELEMENT *__restrict__ gradient, const long long *__restrict__ ids, const long long *__restrict__ order,
    long long padding_id, Out *__restrict__ out, float *__restrict__ parts, long long rows, int width) {
    const int column = own_column();
    if (column >= width) return;
    const long long first = static_cast<long long>(blockIdx.x) * ROWS, stop = min(rows, first + ROWS);
    bool starts_here = first == 0 || ids[first - 1] != ids[first];
    float sum[VECTOR] = {};
    for (long long position = first; position < stop; ++position) {
        float values[VECTOR];
        const long long id = ids[position];
        load(gradient + order[position] * width + column, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum[i] += values[i];
        const bool ends_here = position + 1 == rows || ids[position + 1] != id;
        if (!ends_here && position + 1 < stop) continue;
        if (!starts_here || !ends_here) {
            store(parts + (2 * static_cast<long long>(blockIdx.x) + starts_here) * width + column, sum);
        } else if (id != padding_id) {
            add_to(out + id * width + column, sum);
        }
        starts_here = true;
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum[i] = 0;
    }
}

// Adds up the sums of the id that begins in this chunk and continues into the next, if there is one.
extern "C" __global__ void __launch_bounds__(THREADS) add_across_chunks(
    const long long *__restrict__ ids, long long padding_id, Out *__restrict__ out, const float *__restrict__ parts,
    long long rows, int width) {
    const int column = own_column();
    if (column >= width) return;
    const long long first = static_cast<long long>(blockIdx.x) * ROWS;
    long long next = first + ROWS;
    if (next >= rows) return;
    const long long id = ids[next - 1];
    const bool began_before = ids[first] == id && first > 0 && ids[first - 1] == id;
    if (ids[next] != id || began_before || id == padding_id) return;
    float sum[VECTOR];
    load(parts + (2 * static_cast<long long>(blockIdx.x) + 1) * width + column, sum);
    for (; next < rows && ids[next] == id; next += ROWS) {
        float values[VECTOR];
        load(parts + 2 * (next / ROWS) * width + column, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum[i] += values[i];
    }
    add_to(out + id * width + column, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) look_up(
    const ELEMENT *__restrict__ table, const long long *__restrict__ ids, const ELEMENT *__restrict__ addend,
    ELEMENT *__restrict__ y, int width) {
    const int column = own_column();
    if (column >= width) return;
    const long long row = blockIdx.x, element = row * width + column;
    float values[VECTOR];
    load(table + ids[row] * width + column, values);
    if (addend != nullptr) {
        float others[VECTOR];
        load(addend + element, others);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[i] += others[i];
    }
    store(y + element, values);
}
