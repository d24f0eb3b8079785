// Products of a warp's 16 rows with a tile in shared memory: with tensor cores on bfloat16 if TENSOR_CORES is 1, and
// with fused multiply-add on float otherwise. Both accumulate in float.
//
// A tile has HEAD columns, a block WARPS warps. A thread's part of a result of 16 rows and 8n columns is float [n][4]:
// thread 4g + c holds at [j] columns 8j + 2c and 8j + 2c + 1 of row g, and then of row g + 8.
#pragma once

#include "element.cuh"
#include "tensor_core.cuh"

constexpr int THREADS = 32 * WARPS;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % 32); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x / 32); }

#if TENSOR_CORES

using Stored = bfloat16;
constexpr int WIDTH = HEAD;
// Rows begin an odd multiple of 16 bytes apart, so that eight rows that are read at once are in different banks.
constexpr int STRIDE = WIDTH + 8;
constexpr int PIECES = WIDTH / 8;
// Double buffering: the next tile is loaded during the work on this one.
constexpr int STAGES = 2;

// Sixteen rows as left factors.
struct Factors {
    unsigned at[WIDTH / 16][4];
};

__device__ inline Factors factors_of(const Stored *rows) {
    Factors factors;
#pragma unroll
    for (int step = 0; step < WIDTH / 16; ++step) {
        load_matrices(factors.at[step], rows + lane() % 16 * STRIDE + 16 * step + lane() / 16 * 8);
    }
    return factors;
}

// Begins to load rows [first, first + COUNT) of `source` into a tile; rows outside of [0, length) become zeros.
template <int COUNT>
__device__ inline void load_tile(Stored *tile, const ELEMENT *source, long long stride, int first, int length) {
#pragma unroll
    for (int begin = 0; begin < COUNT * PIECES; begin += THREADS) {
        const int slot = begin + static_cast<int>(threadIdx.x), row = slot / PIECES, piece = slot % PIECES;
        if (COUNT * PIECES % THREADS != 0 && slot >= COUNT * PIECES) break;
        const bool exists = first + row >= 0 && first + row < length;
        copy_later(
            tile + row * STRIDE + piece * 8, exists ? source + (first + row) * stride + piece * 8 : source, exists);
    }
}

__device__ inline void bring_float(float *target, const float *source, bool exists) {
    copy_float_later(target, source, exists);
}

__device__ inline void wait_for_tiles() { wait_for_copies(); }

// result = the rows of `factors` times the transposed tile of COUNT rows.
template <int COUNT>
__device__ inline void times_rows(float (&result)[COUNT / 8][4], const Factors &factors, const Stored *tile) {
    static_assert(COUNT % 16 == 0);
    const Stored *row = tile + (lane() / 16 * 8 + lane() % 8) * STRIDE + lane() / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result[j][i] = 0;
    }
#pragma unroll
    for (int step = 0; step < WIDTH / 16; ++step) {
#pragma unroll
        for (int j = 0; j < COUNT / 8; j += 2) {
            unsigned pairs[4];
            load_matrices(pairs, row + j * 8 * STRIDE + 16 * step);
            mma_16x8x16(result[j], factors.at[step], pairs[0], pairs[1]);
            mma_16x8x16(result[j + 1], factors.at[step], pairs[2], pairs[3]);
        }
    }
}

// sum += x, rounded to bfloat16, times the tile of COUNT rows.
template <int COUNT>
__device__ inline void add_times(float (&sum)[WIDTH / 8][4], const float (&x)[COUNT / 8][4], const Stored *tile) {
    static_assert(COUNT % 16 == 0);
    const Stored *row = tile + lane() % 16 * STRIDE + lane() / 16 * 8;
#pragma unroll
    for (int step = 0; step < COUNT / 16; ++step) {
        const unsigned factors[4] = {
            pair_of(x[2 * step][0], x[2 * step][1]), pair_of(x[2 * step][2], x[2 * step][3]),
            pair_of(x[2 * step + 1][0], x[2 * step + 1][1]), pair_of(x[2 * step + 1][2], x[2 * step + 1][3])};
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j += 2) {
            unsigned pairs[4];
            load_matrices_transposed(pairs, row + 16 * step * STRIDE + j * 8);
            mma_16x8x16(sum[j], factors, pairs[0], pairs[1]);
            mma_16x8x16(sum[j + 1], factors, pairs[2], pairs[3]);
        }
    }
}

#else

using Stored = float;
constexpr int WIDTH = (HEAD + 7) / 8 * 8;
// Odd, so that rows begin in different banks.
constexpr int STRIDE = WIDTH + 1;
constexpr int STAGES = 1;

struct Factors {
    const Stored *rows;
};

__device__ inline Factors factors_of(const Stored *rows) { return {rows}; }

template <int COUNT>
__device__ inline void load_tile(Stored *tile, const ELEMENT *source, long long stride, int first, int length) {
    for (int slot = static_cast<int>(threadIdx.x); slot < COUNT * WIDTH; slot += THREADS) {
        const int row = slot / WIDTH, column = slot % WIDTH;
        const bool exists = first + row >= 0 && first + row < length && column < HEAD;
        tile[row * STRIDE + column] = exists ? number(source[(first + row) * stride + column]) : 0.0f;
    }
}

__device__ inline void bring_float(float *target, const float *source, bool exists) {
    *target = exists ? *source : 0.0f;
}

__device__ inline void wait_for_tiles() {}

template <int COUNT>
__device__ inline void times_rows(float (&result)[COUNT / 8][4], const Factors &factors, const Stored *tile) {
    const Stored *upper = factors.rows + lane() / 4 * STRIDE, *lower = upper + 8 * STRIDE;
    const Stored *row = tile + lane() % 4 * 2 * STRIDE;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) result[j][i] = 0;
    }
#pragma unroll 4
    for (int column = 0; column < WIDTH; ++column) {
#pragma unroll
        for (int j = 0; j < COUNT / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float factor = row[(8 * j + i) * STRIDE + column];
                result[j][i] += upper[column] * factor;
                result[j][2 + i] += lower[column] * factor;
            }
        }
    }
}

template <int COUNT>
__device__ inline void add_times(float (&sum)[WIDTH / 8][4], const float (&x)[COUNT / 8][4], const Stored *tile) {
    __shared__ float room[WARPS][16][COUNT + 1];
    auto &own = room[warp()];
    const int row = lane() / 4, pair = lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) own[row + i / 2 * 8][8 * j + pair + i % 2] = x[j][i];
    }
    __syncwarp();
#pragma unroll 2
    for (int column = 0; column < COUNT; ++column) {
        const float upper = own[row][column], lower = own[row + 8][column];
#pragma unroll
        for (int j = 0; j < WIDTH / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float factor = tile[column * STRIDE + 8 * j + pair + i];
                sum[j][i] += upper * factor;
                sum[j][2 + i] += lower * factor;
            }
        }
    }
    __syncwarp();
}

#endif

// Writes x to rows [begin, stop) of the 16 rows of `target`, with row g multiplied by `upper` and row g + 8 by `lower`.
// Overwrites `rows`, the warp's buffer in shared memory.
__device__ inline void write_rows(
    ELEMENT *target, long long stride, int begin, int stop, Stored *rows, const float (&x)[WIDTH / 8][4], float upper,
    float lower) {
    Stored *own = rows + lane() / 4 * STRIDE + lane() % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j) {
#if TENSOR_CORES
        *reinterpret_cast<unsigned *>(own + 8 * j) = pair_of(x[j][0] * upper, x[j][1] * upper);
        *reinterpret_cast<unsigned *>(own + 8 * STRIDE + 8 * j) = pair_of(x[j][2] * lower, x[j][3] * lower);
#else
#pragma unroll
        for (int i = 0; i < 4; ++i) own[i / 2 * 8 * STRIDE + 8 * j + i % 2] = x[j][i] * (i < 2 ? upper : lower);
#endif
    }
    __syncwarp();
#if TENSOR_CORES
    using Piece = Vector<bfloat16, 8>;
    for (int slot = lane(); slot < 16 * PIECES; slot += 32) {
        const int row = slot / PIECES, piece = slot % PIECES;
        if (row < begin || row >= stop) continue;
        *reinterpret_cast<Piece *>(target + row * stride + piece * 8) =
            *reinterpret_cast<const Piece *>(rows + row * STRIDE + piece * 8);
    }
#else
    for (int slot = lane(); slot < 16 * HEAD; slot += 32) {
        const int row = slot / HEAD, column = slot % HEAD;
        if (row >= begin && row < stop) store(target[row * stride + column], rows[row * STRIDE + column]);
    }
#endif
}

// Returns inner products of the warp's 16 rows in shared memory with the rows of `others`: threads 2r and 2r + 1 get
// the product of row r, which is zero from row `stop` on.
__device__ inline float dots_of_rows(const Stored *rows, const ELEMENT *others, long long stride, int stop) {
    const int row = lane() / 2;
    const Stored *own = rows + row * STRIDE;
    float sum = 0;
    if (row < stop) {
#if TENSOR_CORES
        for (int piece = lane() % 2; piece < PIECES; piece += 2) {
            float x[8], y[8];
            load(own + piece * 8, x);
            load(others + row * stride + piece * 8, y);
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += x[i] * y[i];
        }
#else
        for (int column = lane() % 2; column < HEAD; column += 2) {
            sum += own[column] * number(others[row * stride + column]);
        }
#endif
    }
    return sum + __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
}
