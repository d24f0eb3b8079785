// Philox4x32-10: the words of lucid.random, bit for bit, computed where they are used.
#pragma once

// The parameters of a kernel with dropout: see dropout_arguments.py. `samples` is null if nothing is dropped. Otherwise
// each number holds the step in its high half and the row's sample in its low half: no other parameter depends on them.
#define DROPOUT_PARAMETERS                                                                             \
    const long long *__restrict__ samples, const long long *__restrict__ positions, unsigned purpose, \
        unsigned low_key, unsigned high_key, unsigned threshold, float keep_scale

struct DropoutKey {
    unsigned purpose, low_key, high_key, threshold;
    float keep_scale;
};

#define DROPOUT_KEY \
    DropoutKey { purpose, low_key, high_key, threshold, keep_scale }

struct Words {
    unsigned first, second, third, fourth;

    // By comparisons: an index known only at run time would move the words out of registers.
    __device__ unsigned at(unsigned index) const {
        return index < 2 ? (index == 0 ? first : second) : (index == 2 ? third : fourth);
    }
};

__device__ inline Words philox(const DropoutKey &key, long long sample, unsigned block) {
    const auto both = static_cast<unsigned long long>(sample);
    Words words = {key.purpose, static_cast<unsigned>(both >> 32), static_cast<unsigned>(both), block};
    unsigned low_key = key.low_key, high_key = key.high_key;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned low = words.first * 0xD2511F53u, other_low = words.third * 0xCD9E8D57u;
        const unsigned high = __umulhi(words.first, 0xD2511F53u), other_high = __umulhi(words.third, 0xCD9E8D57u);
        words = {other_high ^ words.second ^ low_key, other_low, high ^ words.fourth ^ high_key, low};
        low_key += 0x9E3779B9u;
        high_key += 0xBB67AE85u;
    }
    return words;
}

__device__ inline float keep_factor(const DropoutKey &key, unsigned word) {
    return word >= key.threshold ? key.keep_scale : 0.0f;
}

// Writes the dropout factors of elements [first, first + COUNT) of a sample, which is a number of `samples`. `whole`
// says that first and COUNT are multiples of 4, so that the elements use whole blocks of words.
template <int COUNT>
__device__ inline void keep_factors(
    const DropoutKey &key, long long sample, long long first, bool whole, float (&factors)[COUNT]) {
    auto block = static_cast<unsigned>(first / 4);
    const auto shift = static_cast<unsigned>(first % 4);
    Words words = philox(key, sample, block);
    if constexpr (COUNT == 1) {
        factors[0] = keep_factor(key, words.at(shift));
    } else {
        static_assert(COUNT % 4 == 0);
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            // With whole blocks of words, the last step needs no next block.
            const Words next = whole && i + 4 == COUNT ? words : philox(key, sample, ++block);
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                const unsigned index = whole ? j : shift + j;
                factors[i + j] = keep_factor(key, index < 4 ? words.at(index) : next.at(index - 4));
            }
            words = next;
        }
    }
}
