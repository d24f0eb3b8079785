// Where sequences lie, as cuDNN is told: for each its length, and how many elements are before its first row, in arrays
// of two widths; the latter also for the end of the last.
extern "C" __global__ void __launch_bounds__(THREADS) ragged_tables(
    const long long *__restrict__ bounds, int sequences, long long width, long long other_width,
    int *__restrict__ lengths, long long *__restrict__ offsets, long long *__restrict__ other_offsets) {
    const int sequence = static_cast<int>(blockIdx.x * THREADS + threadIdx.x);
    if (sequence > sequences) return;
    const long long first = bounds[sequence];
    offsets[sequence] = first * width;
    other_offsets[sequence] = first * other_width;
    if (sequence < sequences) lengths[sequence] = static_cast<int>(bounds[sequence + 1] - first);
}
