// The common parts of attention's kernels: the rows of a block, the keys that count, and the bits that dropout keeps.
//
// A block works on ROWS rows of one sequence and head: part blockIdx.z of tile blockIdx.x of `Sequences.tiles`, at head
// blockIdx.y. It iterates over the rows of the sequence in steps of STEP. Positions are integers from 0 to below the
// sequence's length; there are no rows at other positions.
#pragma once

#include "element.cuh"
#include "philox.cuh"
#include "reduction.cuh"
#include "warp_product.cuh"

constexpr int ROWS = 16 * WARPS;
// Exponentials have base 2.
constexpr float LOG2_E = 1.4426950408889634f;
// So low that its exponential is 0 next to any score, but not so low that its multiples overflow.
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

// Joins the values of the four threads that hold one row.
template <class Join>
__device__ inline float over_four(float x, Join join) {
    x = join(x, opposite(x, 1));
    return join(x, opposite(x, 2));
}

// The positions of a sequence that count as keys. If no position does, attention is uniform: scores are scaled to
// nearly zero, so that they stay above LEAST.
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

    // Replaces the score of a key that does not count. A key that does not exist gets minus infinity, and so no weight
    // even if no other key counts, so that numbers that are not finite stay visible.
    __device__ float score(float x, int key) const {
        return counts(key) ? x : exists(key) ? LEAST : __uint_as_float(0xFF800000u);
    }
};

// Returns how many positions before a sequence's first one the iteration over keys begins, so that it begins with a
// block of random words in every row. `positions` is null if all sequences begin a grid row, or nothing is dropped.
__device__ inline int positions_before(const long long *positions, const Piece &piece) {
    return WHOLE && positions != nullptr ? static_cast<int>(positions[piece.first] % 4) : 0;
}

// Returns the number of a key, counted from where the iteration begins, for a key that begins a block of random words,
// as the first key of each step does.
__device__ inline unsigned number_of(int key) { return static_cast<unsigned>(key + 3) & ~3u; }

// Dropout of a sequence's probabilities: row i and key number j draw element corner + i * grid_length + j.
struct Dropout {
    DropoutKey dropout_key;
    long long sample;
    unsigned long long corner;
    unsigned grid_length;

    __device__ Dropout(
        const long long *samples, const long long *positions, const Piece &piece, int given_grid_length,
        const DropoutKey &given_key)
        : dropout_key(given_key), sample(0), corner(0), grid_length(static_cast<unsigned>(given_grid_length)) {
        if (samples == nullptr) return;
        const long long position = positions == nullptr ? 0 : positions[piece.first];
        sample = samples[piece.first];
        corner = (blockIdx.y * static_cast<unsigned long long>(grid_length) + position) * grid_length + position -
                 positions_before(positions, piece);
    }

    // Returns the bits of four keys, the first of which has a number that is a multiple of 4: bit i is set if key i is
    // kept. If lines are WHOLE, the four keys use exactly one block of random words.
    __device__ unsigned keeps(unsigned row, unsigned key_number) const {
        if (WHOLE) {
            const unsigned first_block = static_cast<unsigned>(corner / 4);
            return bits_of(philox(dropout_key, sample, first_block + row * (grid_length / 4) + key_number / 4));
        }
        const unsigned long long element = corner + row * static_cast<unsigned long long>(grid_length) + key_number;
        const auto block = static_cast<unsigned>(element / 4);
        const unsigned first = bits_of(philox(dropout_key, sample, block));
        const unsigned bits = first | bits_of(philox(dropout_key, sample, block + 1)) << 4;
        return bits >> element % 4 & 15;
    }

    __device__ unsigned bits_of(const Words &words) const {
        return (words.first >= dropout_key.threshold) | (words.second >= dropout_key.threshold) << 1 |
               (words.third >= dropout_key.threshold) << 2 | (words.fourth >= dropout_key.threshold) << 3;
    }
};

// One bit for each probability: whether dropout keeps it. Forward draws and writes the bits, and backward reads them.
// 32 words hold 16 rows and 64 keys; all words are [H, 4K, blocks of keys, 32], where K is the number of tiles. Key
// numbers begin where the iteration does (`positions_before`). Row r of 16 and key k of 64 have bit k / 8 * 4 + k % 4
// of word k / 4 % 2 * 16 + r % 8 * 2 + r / 8, so that the words that a thread needs, of two or four rows, are adjacent.
template <class Word>
struct Kept {
    Word *words;
    unsigned key_blocks, first;

    __device__ Kept(Word *given_words, const Piece &piece, unsigned given_key_blocks)
        : words(given_words), key_blocks(given_key_blocks),
          first((blockIdx.y * gridDim.x + blockIdx.x - piece.begin / 64) * 4 * key_blocks) {}

    __device__ bool drops() const { return words != nullptr; }

    // Returns the words of the 16 rows and 64 keys that include this row and key.
    __device__ Word *of(unsigned row, unsigned key_number) const {
        return words + static_cast<unsigned long long>(first + row / 16 * key_blocks + key_number / 64) * 32;
    }
};

// The type for the bits of a word that one step of forward computes.
template <int BITS>
struct PartOfWord;
template <>
struct PartOfWord<32> { using Type = unsigned; };
template <>
struct PartOfWord<16> { using Type = unsigned short; };
template <>
struct PartOfWord<8> { using Type = unsigned char; };

// Draws and writes the bits of a warp's 16 rows of scores from `row` on and COUNT keys from `key_number` on. A block of
// random words serves the keys of two threads; one of them computes it. Element [j][i] of a thread is kept if bit
// 4j + i % 2 of `words[i / 2]` is set.
template <int COUNT>
__device__ inline void keep_across(
    unsigned (&words)[2], const Dropout &dropout, const Kept<unsigned> &kept, int row, unsigned key_number) {
    const unsigned own_row = row + lane() / 4 + lane() % 2 * 8, own_key = key_number + lane() % 4 / 2 * 4;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < COUNT / 8; ++j) bits |= dropout.keeps(own_row, own_key + 8 * j) << 4 * j;
    using Part = typename PartOfWord<COUNT / 2>::Type;
    unsigned *own = kept.of(row, key_number) + lane() % 4 / 2 * 16 + lane() / 4 * 2 + lane() % 2;
    reinterpret_cast<Part *>(own)[key_number % 64 / COUNT] = static_cast<Part>(bits);
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = __shfl_sync(0xFFFFFFFFu, bits, lane() / 2 * 2 + i) >> lane() % 2 * 2;
}

// Reads the same bits, for any number of keys up to the end of the 64.
__device__ inline void kept_across(
    unsigned (&words)[2], const Kept<const unsigned> &kept, int row, unsigned key_number) {
    const unsigned *own = kept.of(row, key_number) + lane() % 4 / 2 * 16 + lane() / 4 * 2;
    const auto pair = *reinterpret_cast<const Vector<unsigned, 2> *>(own);
#pragma unroll
    for (int i = 0; i < 2; ++i) words[i] = pair.at[i] >> (key_number % 64 / 2 + lane() % 2 * 2);
}

// Reads the bits if the 16 rows are keys and the COUNT columns are rows of scores from `row` on. Element [j][i] of a
// thread is kept if bit i / 2 * 4 of `words[j][i % 2]` is set. If nothing is dropped, all bits are set.
template <int COUNT>
__device__ inline void kept_down(
    unsigned (&words)[COUNT / 8][2], const Kept<const unsigned> &kept, int row, unsigned key_number) {
    if (!kept.drops()) {
#pragma unroll
        for (int j = 0; j < COUNT / 8; ++j) words[j][0] = words[j][1] = ~0u;
        return;
    }
    const unsigned shift = key_number % 64 / 2 + lane() / 4 % 4;
#pragma unroll
    for (int begin = 0; begin < COUNT; begin += 16) {
        const unsigned *own = kept.of(row + begin, key_number) + lane() / 16 * 16 + lane() % 4 * 4;
        const auto four = *reinterpret_cast<const Vector<unsigned, 4> *>(own);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if constexpr (COUNT == 8) {
                words[0][i] = (row / 8 % 2 == 0 ? four.at[2 * i] : four.at[2 * i + 1]) >> shift;
            } else {
                words[begin / 8][i] = four.at[2 * i] >> shift;
                words[begin / 8 + 1][i] = four.at[2 * i + 1] >> shift;
            }
        }
    }
}
