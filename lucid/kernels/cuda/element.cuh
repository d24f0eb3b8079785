// What rows are made of: ELEMENT, which is float or bfloat16, VECTOR of them in one access. All arithmetic is in float.
//
// The compiler is told both: -DELEMENT=bfloat16 -DVECTOR=8. Nothing here needs a header of CUDA's.
#pragma once

struct bfloat16 {
    unsigned short bits;
};

__device__ inline float number(float x) { return x; }

__device__ inline float number(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline void store(float &target, float x) { target = x; }

// To nearest, ties to even; what is not a number stays so.
__device__ inline void store(bfloat16 &target, float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(target.bits) : "f"(x));
#else
    const unsigned bits = __float_as_uint(x);
    const unsigned nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    target.bits = static_cast<unsigned short>(x == x ? nearest : bits >> 16 | 0x40);
#endif
}

// What x is once it has been stored.
template <class Element>
__device__ inline float as_stored(float x) {
    Element element;
    store(element, x);
    return number(element);
}

// COUNT numbers side by side; a thread reads and writes 16 bytes at once.
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

// Writes zeros where there is nothing to load.
template <int COUNT, class Element>
__device__ inline void load_if_any(const Element *source, float (&x)[COUNT]) {
    if (source != nullptr) {
        load(source, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = 0;
}
