// What of PTX the kernels use: products of a warp's tensor cores, and copies that go on while threads compute.
//
// A pair of bfloat16 is one unsigned, the first in its low half. Thread 4g + c of a warp holds of a product, 16 x 8, the
// elements at rows g and g + 8 and columns 2c and 2c + 1: the layouts are those of mma.m16n8k16 and ldmatrix in the PTX
// ISA, 9.7.14. tests/stand_in/emulation.hpp has its own version of each function. All from sm_80 on.
#pragma once

#ifdef __CUDA_ARCH__

__device__ inline unsigned shared_address(const void *pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Adds to `sum` the product of rows 16 x 16 and columns 16 x 8.
__device__ inline void mma_16x8x16(float (&sum)[4], const unsigned (&rows)[4], unsigned upper, unsigned lower) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "r"(upper), "r"(lower));
}

// Four matrices of 8 x 8: thread 8m + r brings the address of row r of matrix m, and gets of each, at row g, the pair c.
__device__ inline void load_matrices(unsigned (&pairs)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices: at column g, those of rows 2c and 2c + 1.
__device__ inline void load_matrices_transposed(unsigned (&pairs)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline unsigned pair_of(float first, float second) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// Begins to copy 16 bytes into shared memory, or zeros, where there is nothing to copy.
__device__ inline void copy_later(void *target, const void *source, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(exists ? 16 : 0)
                 : "memory");
}

// The same for one float.
__device__ inline void copy_float_later(float *target, const float *source, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(exists ? 4 : 0)
                 : "memory");
}

// Waits until all that this thread has begun to copy is there.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2 to the power of x, to about 2 spacings; below the normal numbers, 0.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#endif
