// The gradient of attention, which computes the probabilities again from the scores and the logarithms of their sums.
//
// In one kernel a block has rows of queries and iterates over the keys; in the other it has keys and iterates over the
// queries. So one block computes each sum, in a fixed order. Dao, "FlashAttention-2", 2023, algorithm 2, split in two.
//
// The kernels read the bits of dropout that forward wrote: drawing them again would take half as long again.
#include "attention.cuh"

// The assembler chooses the number of registers of a thread, except for narrow heads, where it would spill some.
constexpr int LEAST_BLOCKS = WIDTH < 48 ? 1 : 0;

// Writes the queries' columns of `by_joined` [N, 3C], and to `along` [H, N], for the other kernel, the inner product of
// `gradient` and `output` (both [N, C]) for each row and head.
extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS) attention_query_gradient(
    const ELEMENT *__restrict__ gradient, const ELEMENT *__restrict__ joined, const ELEMENT *__restrict__ output,
    const float *__restrict__ log_sums, const long long *__restrict__ tiles, const bool *__restrict__ mask, float scale,
    const unsigned *__restrict__ kept_words, unsigned key_blocks, const long long *__restrict__ positions,
    float keep_scale, ELEMENT *__restrict__ by_joined, float *__restrict__ along, long long rows) {
    alignas(16) __shared__ Stored own_queries[ROWS * STRIDE];
    alignas(16) __shared__ Stored own_gradients[ROWS * STRIDE];
    alignas(16) __shared__ Stored key_tiles[STAGES][STEP * STRIDE];
    alignas(16) __shared__ Stored value_tiles[STAGES][STEP * STRIDE];
    const Piece piece(tiles);
    if (piece.empty()) return;
    const Keys keys(mask, piece, scale);
    const Kept<const unsigned> kept(kept_words, piece, key_blocks);
    const int before = positions_before(positions, piece);
    const long long width = static_cast<long long>(gridDim.y) * HEAD;
    const ELEMENT *queries = joined + piece.first * 3 * width + blockIdx.y * HEAD;
    const long long of_output = piece.first * width + blockIdx.y * HEAD;
    const auto load_step = [&](int stage, int begin) {
        load_tile<STEP>(key_tiles[stage], queries + width, 3 * width, begin, piece.length);
        load_tile<STEP>(value_tiles[stage], queries + 2 * width, 3 * width, begin, piece.length);
    };

    load_tile<ROWS>(own_queries, queries, 3 * width, piece.begin, piece.length);
    load_tile<ROWS>(own_gradients, gradient + of_output, width, piece.begin, piece.length);
    wait_for_tiles();
    __syncthreads();
    if (STAGES == 2) load_step(0, -before);
    Stored *query_rows = own_queries + warp() * 16 * STRIDE;
    const Stored *gradient_rows = own_gradients + warp() * 16 * STRIDE;
    const int first_row = piece.begin + warp() * 16;
    const long long of_head = blockIdx.y * rows + piece.first + first_row;
    const float dot = dots_of_rows(
        gradient_rows, output + of_output + first_row * width, width, piece.stop - first_row);
    if (lane() % 2 == 0 && lane() / 2 < piece.stop - first_row) along[of_head + lane() / 2] = dot;
    float dots[2], log_sum[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane() / 4 + 8 * half;
        dots[half] = __shfl_sync(0xFFFFFFFFu, dot, 2 * row);
        log_sum[half] = row < piece.stop - first_row ? log_sums[of_head + row] * LOG2_E : 0;
    }
    const float factor = keys.scale * LOG2_E;
    float by_query[WIDTH / 8][4] = {};
    int stage = 0;
    for (int begin = -before; begin < piece.length; begin += STEP) {
        if (STAGES == 1) load_step(0, begin);
        unsigned stay[2];
        if (kept.drops()) kept_across(stay, kept, first_row, number_of(begin));
        wait_for_tiles();
        __syncthreads();
        if (STAGES == 2 && begin + STEP < piece.length) load_step(1 - stage, begin + STEP);
        float scores[STEP / 8][4], by_probability[STEP / 8][4];
        times_rows<STEP>(scores, factors_of(query_rows), key_tiles[stage]);
        times_rows<STEP>(by_probability, factors_of(gradient_rows), value_tiles[stage]);
        if (kept.drops()) {
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    by_probability[j][i] = stay[i / 2] >> (4 * j + i % 2) & 1 ? by_probability[j][i] * keep_scale : 0;
                }
            }
        }
        const bool all_count = keys.all_count(begin, begin + STEP);
#pragma unroll
        for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool counts = all_count || keys.counts(begin + 8 * j + lane() % 4 * 2 + i % 2);
                const float probability = counts ? power_of_two(scores[j][i] * factor - log_sum[i / 2]) : 0;
                scores[j][i] = probability * (by_probability[j][i] - dots[i / 2]);
            }
        }
        add_times<STEP>(by_query, scores, key_tiles[stage]);
        if (STAGES == 1) __syncthreads();
        if (STAGES == 2) stage = 1 - stage;
    }
    write_rows(
        by_joined + (piece.first + first_row) * 3 * width + blockIdx.y * HEAD, 3 * width, 0, piece.stop - first_row,
        query_rows, by_query, scale, scale);
}

// Writes the columns of keys and values of `by_joined`.
extern "C" __global__ void __launch_bounds__(THREADS, LEAST_BLOCKS) attention_key_value_gradient(
    const ELEMENT *__restrict__ gradient, const ELEMENT *__restrict__ joined, const float *__restrict__ log_sums,
    const float *__restrict__ along, const long long *__restrict__ tiles, const bool *__restrict__ mask, float scale,
    const unsigned *__restrict__ kept_words, unsigned key_blocks, const long long *__restrict__ positions,
    float keep_scale, ELEMENT *__restrict__ by_joined, long long rows) {
    alignas(16) __shared__ Stored own_keys[ROWS * STRIDE];
    alignas(16) __shared__ Stored own_values[ROWS * STRIDE];
    alignas(16) __shared__ Stored query_tiles[STAGES][STEP * STRIDE];
    alignas(16) __shared__ Stored gradient_tiles[STAGES][STEP * STRIDE];
    __shared__ float statistics[STAGES][2][STEP];
    const Piece piece(tiles);
    if (piece.empty()) return;
    const Keys keys(mask, piece, scale);
    const Kept<const unsigned> kept(kept_words, piece, key_blocks);
    const int before = positions_before(positions, piece);
    const long long width = static_cast<long long>(gridDim.y) * HEAD;
    const ELEMENT *queries = joined + piece.first * 3 * width + blockIdx.y * HEAD;
    const ELEMENT *gradients = gradient + piece.first * width + blockIdx.y * HEAD;
    const long long of_head = blockIdx.y * rows + piece.first;
    const auto load_step = [&](int stage, int begin) {
        load_tile<STEP>(query_tiles[stage], queries, 3 * width, begin, piece.length);
        load_tile<STEP>(gradient_tiles[stage], gradients, width, begin, piece.length);
        const int row = begin + static_cast<int>(threadIdx.x);
        if (threadIdx.x >= STEP) return;
        const bool exists = row < piece.length;
        bring_float(&statistics[stage][0][threadIdx.x], exists ? log_sums + of_head + row : log_sums, exists);
        bring_float(&statistics[stage][1][threadIdx.x], exists ? along + of_head + row : along, exists);
    };

    Stored *key_rows = own_keys + warp() * 16 * STRIDE, *value_rows = own_values + warp() * 16 * STRIDE;
    const float factor = keys.scale * LOG2_E;
    // Keys begin where blocks of random words do, so the last tile of a sequence may have more keys than it holds.
    const int stop = piece.stop == piece.length ? piece.length : piece.stop - before;
    for (int first = piece.begin - before; first < stop; first += ROWS) {
        load_tile<ROWS>(own_keys, queries + width, 3 * width, first, piece.length);
        load_tile<ROWS>(own_values, queries + 2 * width, 3 * width, first, piece.length);
        if (STAGES == 2) load_step(0, 0);
        const int first_key = first + warp() * 16;
        const bool counts[2] = {keys.counts(first_key + lane() / 4), keys.counts(first_key + lane() / 4 + 8)};
        float by_key[WIDTH / 8][4] = {}, by_value[WIDTH / 8][4] = {};
        int stage = 0;
        for (int begin = 0; begin < piece.length; begin += STEP) {
            if (STAGES == 1) load_step(0, begin);
            wait_for_tiles();
            __syncthreads();
            if (STAGES == 2 && begin + STEP < piece.length) load_step(1 - stage, begin + STEP);
            float scores[STEP / 8][4], by_probability[STEP / 8][4];
            times_rows<STEP>(scores, factors_of(key_rows), query_tiles[stage]);
            unsigned stay[STEP / 8][2];
            kept_down<STEP>(stay, kept, begin, number_of(first_key));
            times_rows<STEP>(by_probability, factors_of(value_rows), gradient_tiles[stage]);
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float log_sum = statistics[stage][0][8 * j + lane() % 4 * 2 + i % 2] * LOG2_E;
                    scores[j][i] = counts[i / 2] ? power_of_two(scores[j][i] * factor - log_sum) : 0;
                }
            }
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const bool stays = stay[j][i % 2] >> i / 2 * 4 & 1;
                    const float dot = statistics[stage][1][8 * j + lane() % 4 * 2 + i % 2];
                    const float by_kept = stays ? by_probability[j][i] * keep_scale : 0;
                    by_probability[j][i] = scores[j][i] * (by_kept - dot);
                    scores[j][i] = stays ? scores[j][i] : 0;
                }
            }
            add_times<STEP>(by_value, scores, gradient_tiles[stage]);
            add_times<STEP>(by_key, by_probability, query_tiles[stage]);
            if (STAGES == 1) __syncthreads();
            if (STAGES == 2) stage = 1 - stage;
        }
        ELEMENT *target = by_joined + (piece.first + first_key) * 3 * width + blockIdx.y * HEAD;
        const int from = first_key < 0 ? -first_key : 0, to = piece.length - first_key;
        write_rows(target + width, 3 * width, from, to, key_rows, by_key, scale, scale);
        write_rows(target + 2 * width, 3 * width, from, to, value_rows, by_value, keep_scale, keep_scale);
        __syncthreads();
    }
}
