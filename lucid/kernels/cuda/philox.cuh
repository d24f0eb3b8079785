// Philox4x32-10: the words of lucid.random, bit for bit, made where they are used.
#pragma once

// The parameters by which a kernel draws: what `draws` in draws.py returns. `samples` is null where nothing is dropped;
// else a row's sample is the low half of its number there, and the step the high half: no parameter changes with it.
#define DRAWS                                                                                                   \
    const long long *__restrict__ samples, const long long *__restrict__ positions, unsigned stream,            \
        unsigned low_key, unsigned high_key, unsigned threshold, float keep_scale

struct Place {
    unsigned stream, low_key, high_key, threshold;
    float keep_scale;
};

#define PLACE \
    Place { stream, low_key, high_key, threshold, keep_scale }

struct Words {
    unsigned first, second, third, fourth;

    // By comparisons: an index that is known at run time only would move the words out of registers.
    __device__ unsigned at(unsigned index) const {
        return index < 2 ? (index == 0 ? first : second) : (index == 2 ? third : fourth);
    }
};

__device__ inline Words philox(const Place &place, long long sample, unsigned block) {
    const auto both = static_cast<unsigned long long>(sample);
    Words words = {place.stream, static_cast<unsigned>(both >> 32), static_cast<unsigned>(both), block};
    unsigned low_key = place.low_key, high_key = place.high_key;
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

__device__ inline float keep_factor(const Place &place, unsigned word) {
    return word >= place.threshold ? place.keep_scale : 0.0f;
}

// What dropout multiplies elements [first, first + COUNT) of a sample, given as in `samples`, by. `whole`: first and
// COUNT are multiples of 4, so that words come in whole blocks.
template <int COUNT>
__device__ inline void keep_factors(
    const Place &place, long long sample, long long first, bool whole, float (&factors)[COUNT]) {
    auto block = static_cast<unsigned>(first / 4);
    const auto shift = static_cast<unsigned>(first % 4);
    Words words = philox(place, sample, block);
    if constexpr (COUNT == 1) {
        factors[0] = keep_factor(place, words.at(shift));
    } else {
        static_assert(COUNT % 4 == 0);
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            // The last block is one too many where words come whole.
            const Words next = whole && i + 4 == COUNT ? words : philox(place, sample, ++block);
#pragma unroll
            for (unsigned j = 0; j < 4; ++j) {
                const unsigned index = whole ? j : shift + j;
                factors[i + j] = keep_factor(place, index < 4 ? words.at(index) : next.at(index - 4));
            }
            words = next;
        }
    }
}
