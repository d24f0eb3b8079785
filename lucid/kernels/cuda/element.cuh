// The elements of rows: ELEMENT is float or bfloat16, and an access reads or writes VECTOR of them. All arithmetic is
// in float.
//
// The compiler's flags define both: -DELEMENT=bfloat16 -DVECTOR=8. No CUDA header is needed.
#pragma once

struct bfloat16 {
    unsigned short bits;
};

__device__ inline float number(float x) { return x; }

__device__ inline float number(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline void store(float &target, float x) { target = x; }

// Rounds to the nearest, ties to even; NaN stays NaN.
__device__ inline void store(bfloat16 &target, float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(target.bits) : "f"(x));
#else
    const unsigned bits = __float_as_uint(x);
    const unsigned nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    target.bits = static_cast<unsigned short>(x == x ? nearest : bits >> 16 | 0x40);
#endif
}

// Returns x rounded as if stored and loaded.
template <class Element>
__device__ inline float as_stored(float x) {
    Element element;
    store(element, x);
    return number(element);
}

// COUNT adjacent numbers; a thread accesses 16 bytes at once.
template <class Element, int COUNT>
struct alignas(sizeof(Element) * COUNT < 16 ? sizeof(Element) * COUNT : 16) Vector {
    Element at[COUNT];
};

template <int COUNT, class Element>
__device__ inline void load(const Element *source, float (&x)[COUNT]) {
    const auto vector = *reinterpret_cast<const Vector<Element, COUNT> *>(source);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = number(vector.at[i]);
}

template <int COUNT, class Element>
__device__ inline void store(Element *target, const float (&x)[COUNT]) {
    Vector<Element, COUNT> vector;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) store(vector.at[i], x[i]);
    *reinterpret_cast<Vector<Element, COUNT> *>(target) = vector;
}

// Loads from `source`, or writes zeros if it is null.
template <int COUNT, class Element>
__device__ inline void load_if_any(const Element *source, float (&x)[COUNT]) {
    if (source != nullptr) {
        load(source, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = 0;
}
