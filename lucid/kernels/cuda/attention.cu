// Forward attention of all sequences and heads, which never stores the scores: a block computes the scores of its rows
// with some keys, normalises them as far as is known, multiplies them by the values, and discards them.
//
// Dao et al., "FlashAttention", 2022; Dao, "FlashAttention-2", 2023. Query, key and value lie side by side in `joined`
// [N, 3C].
#include "attention.cuh"

// Writes `output` [N, C], the logarithm of the sum of exponentials of each row and head to `log_sums` [H, N], and, with
// dropout, the bits of `Kept`.
extern "C" __global__ void __launch_bounds__(THREADS, TENSOR_CORES ? 3 : 1) attention(
    const ELEMENT *__restrict__ joined, const long long *__restrict__ tiles, const bool *__restrict__ mask, float scale,
    ELEMENT *__restrict__ output, float *__restrict__ log_sums, unsigned *__restrict__ kept_words, unsigned key_blocks,
    long long rows, int grid_length, DROPOUT_PARAMETERS) {
    alignas(16) __shared__ Stored own[ROWS * STRIDE];
    alignas(16) __shared__ Stored key_tiles[STAGES][STEP * STRIDE];
    alignas(16) __shared__ Stored value_tiles[STAGES][STEP * STRIDE];
    const Piece piece(tiles);
    if (piece.empty()) return;
    const Keys keys(mask, piece, scale);
    const Dropout dropout(samples, positions, piece, grid_length, DROPOUT_KEY);
    const Kept<unsigned> kept(kept_words, piece, key_blocks);
    const int before = positions_before(positions, piece);
    const long long width = static_cast<long long>(gridDim.y) * HEAD;
    const ELEMENT *queries = joined + piece.first * 3 * width + blockIdx.y * HEAD;
    const auto load_step = [&](int stage, int begin) {
        load_tile<STEP>(key_tiles[stage], queries + width, 3 * width, begin, piece.length);
        load_tile<STEP>(value_tiles[stage], queries + 2 * width, 3 * width, begin, piece.length);
    };

    load_tile<ROWS>(own, queries, 3 * width, piece.begin, piece.length);
    if (STAGES == 2) load_step(0, -before);
    Stored *own_rows = own + warp() * 16 * STRIDE;
    const int first_row = piece.begin + warp() * 16;
    const float factor = keys.scale * LOG2_E;
    float sums[WIDTH / 8][4] = {}, most[2] = {LEAST, LEAST}, total[2] = {};
    int stage = 0;
    for (int begin = -before; begin < piece.length; begin += STEP) {
        if (STAGES == 1) load_step(0, begin);
        wait_for_tiles();
        __syncthreads();
        if (STAGES == 2 && begin + STEP < piece.length) load_step(1 - stage, begin + STEP);
        float scores[STEP / 8][4];
        times_rows<STEP>(scores, factors_of(own_rows), key_tiles[stage]);
        const bool all_count = keys.all_count(begin, begin + STEP);
        float correction[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float greatest = LEAST;
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    if (!all_count) scores[j][i] = keys.score(scores[j][i], begin + 8 * j + lane() % 4 * 2 + i % 2);
                    greatest = fmaxf(greatest, scores[j][i]);
                }
            }
            greatest = over_four(greatest, Greatest());
            const float before = most[half];
            most[half] = fmaxf(before, greatest);
            correction[half] = power_of_two((before - most[half]) * factor);
            // The product below is fused into the difference, which for LEAST would be a rounding error, not 0.
            const float offset = most[half] == LEAST ? 0 : most[half] * factor;
            float sum = 0;
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    scores[j][i] = power_of_two(scores[j][i] * factor - offset);
                    sum += scores[j][i];
                }
            }
            total[half] = total[half] * correction[half] + sum;
        }
#pragma unroll
        for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[j][i] *= correction[i / 2];
        }
        if (kept.drops()) {
            unsigned stay[2];
            keep_across<STEP>(stay, dropout, kept, first_row, number_of(begin));
#pragma unroll
            for (int j = 0; j < STEP / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) scores[j][i] = stay[i / 2] >> (4 * j + i % 2) & 1 ? scores[j][i] : 0;
            }
        }
        add_times<STEP>(sums, scores, value_tiles[stage]);
        if (STAGES == 1) __syncthreads();
        if (STAGES == 2) stage = 1 - stage;
    }

    float reciprocal[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] = over_four(total[half], Sum());
        reciprocal[half] = dropout.dropout_key.keep_scale / total[half];
        const int row = first_row + lane() / 4 + 8 * half;
        if (lane() % 4 != 0 || row >= piece.stop) continue;
        log_sums[blockIdx.y * rows + piece.first + row] = most[half] * keys.scale + logf(total[half]);
    }
    write_rows(
        output + (piece.first + first_row) * width + blockIdx.y * HEAD, width, 0, piece.stop - first_row, own_rows,
        sums, reciprocal[0], reciprocal[1]);
}
