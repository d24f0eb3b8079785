// What attention's kernels share: which rows a block works on, which keys count, and what dropout keeps.
//
// A block has ROWS rows of one sequence and head: a part, blockIdx.z, of piece blockIdx.x of `Sequences.tiles`, at head
// blockIdx.y. It goes over the sequence's other rows STEP by STEP. Positions in a sequence are integers from 0 to below
// its length; those outside stand for nothing.
#pragma once

#include "element.cuh"
#include "philox.cuh"
#include "reduction.cuh"
#include "warp_product.cuh"

constexpr int ROWS = 16 * WARPS;
// Scores are taken to base 2.
constexpr float LOG2_E = 1.4426950408889634f;
// So low that it counts for nothing beside any score, but not so low that a multiple of it overflows.
constexpr float LEAST = -1e38f;

struct Piece {
    long long first;
    int begin, stop, length;

    __device__ explicit Piece(const long long *tiles) {
        const long long *tile = tiles + 4 * blockIdx.x;
        const int within = static_cast<int>(blockIdx.z) * ROWS, rows = static_cast<int>(tile[1]);
        first = tile[2];
        length = static_cast<int>(tile[3]);
        begin = static_cast<int>(tile[0] - first) + within;
        stop = begin + (rows - within < ROWS ? rows - within : ROWS);
    }

    __device__ bool empty() const { return begin >= stop; }
};

struct AnyOf {
    __device__ unsigned operator()(unsigned x, unsigned y) const { return x | y; }
};

// Joins what the four threads have that hold one row.
template <class Join>
__device__ inline float over_four(float x, Join join) {
    x = join(x, opposite(x, 1));
    return join(x, opposite(x, 2));
}

// Which positions of a sequence count as keys. Where none does, all count alike: scores are then multiplied by next to
// nothing, by which LEAST still is low enough.
struct Keys {
    const bool *mask;
    int length;
    float scale;

    __device__ Keys(const bool *whole_mask, const Piece &piece, float given_scale)
        : mask(nullptr), length(piece.length), scale(given_scale) {
        if (whole_mask == nullptr) return;
        mask = whole_mask + piece.first;
        unsigned any = 0;
        for (int key = lane(); key < length; key += 32) any |= mask[key] ? 1 : 0;
        if (over_warp(any, AnyOf()) != 0) return;
        mask = nullptr;
        scale = 1e-30f;
    }

    __device__ bool all_count(int begin, int stop) const { return mask == nullptr && begin >= 0 && stop <= length; }

    __device__ bool exists(int key) const { return key >= 0 && key < length; }

    __device__ bool counts(int key) const { return exists(key) && (mask == nullptr || mask[key]); }

    // The score that stands for that of a key which does not count. One that does not exist has no weight even where
    // nothing else has any, so that what is not finite is seen.
    __device__ float score(float x, int key) const {
        return counts(key) ? x : exists(key) ? LEAST : __uint_as_float(0xFF800000u);
    }
};

// What dropout draws for the rows and keys of a sequence: at row i and key j element corner + i * grid_length + j.
struct Dropout {
    Place place;
    long long sample, corner;
    int grid_length, before;
    bool drops;

    // `before`: so many positions in front of the first lies the beginning of a Philox block, in every row.
    __device__ Dropout(
        const long long *samples, const long long *positions, const Piece &piece, int given_grid_length,
        const Place &given_place)
        : place(given_place), sample(0), corner(0), grid_length(given_grid_length), before(0),
          drops(samples != nullptr) {
        if (!drops) return;
        const long long position = positions == nullptr ? 0 : positions[piece.first];
        sample = samples[piece.first];
        corner = (blockIdx.y * static_cast<long long>(grid_length) + position) * grid_length + position;
        if (WHOLE) before = static_cast<int>(position % 4);
    }

    // For four keys from `key` on, which begin a block where lines are WHOLE: bit i is set if key + i is kept.
    __device__ unsigned keeps(int row, int key) const {
        const auto element = static_cast<unsigned long long>(corner + row * static_cast<long long>(grid_length) + key);
        const auto block = static_cast<unsigned>(element / 4);
        unsigned bits = bits_of(philox(place, sample, block));
        if (!WHOLE) bits = (bits | bits_of(philox(place, sample, block + 1)) << 4) >> element % 4;
        return bits & 15;
    }

    __device__ unsigned bits_of(const Words &words) const {
        return (words.first >= place.threshold) | (words.second >= place.threshold) << 1 |
               (words.third >= place.threshold) << 2 | (words.fourth >= place.threshold) << 3;
    }
};

// Finds out what is kept of a warp's 16 rows of scores, from `row` on, and COUNT columns, which are keys from `key` on.
// Each block of words is made by one thread for the two whose keys it is for. Element [j][i] of a thread is kept if bit
// 4j + i % 2 of `words[i / 2]` is set.
template <int COUNT>
__device__ inline void keep_across(unsigned (&words)[2], const Dropout &dropout, int row, int key) {
    static_assert(COUNT <= 64);
    const int own_row = row + lane() / 4 + lane() % 2 * 8, own_key = key + lane() % 4 / 2 * 4;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) bits |= dropout.keeps(own_row, own_key + 8 * j) << 4 * j;
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = __shfl_sync(0xFFFFFFFFu, bits, lane() / 2 * 2 + i) >> lane() % 2 * 2;
}

// The same where the 16 rows are keys, from `key` on, and the columns are rows of scores, from `row` on: each block of
// words is made by one thread for four. Element [j][i] of a thread is kept if bit 4j of `words[i]` is set.
template <int COUNT>
__device__ inline void keep_down(unsigned (&words)[4], const Dropout &dropout, int row, int key) {
    static_assert(COUNT <= 64);
    const int turn = lane() / 4 % 4;
    const int own_row = row + lane() % 4 * 2 + turn % 2, own_key = key + lane() / 16 * 4 + turn / 2 * 8;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) bits |= dropout.keeps(own_row + 8 * j, own_key) << 4 * j;
    const int source = lane() % 4 + lane() / 16 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = __shfl_sync(0xFFFFFFFFu, bits, source + 4 * i) >> turn;
}
