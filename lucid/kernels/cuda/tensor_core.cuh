// The PTX instructions of the kernels: products of a warp's tensor cores, and asynchronous copies. From sm_80 on.
//
// A pair of bfloat16 is one unsigned, with the first in its low half. Thread 4g + c of a warp holds the elements of a
// 16 x 8 product at rows g and g + 8 and columns 2c and 2c + 1: see the layouts of mma.m16n8k16 and ldmatrix in the PTX
// ISA, 9.7.14. tests/stand_in/emulation.hpp has its own version of each function.
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

// Loads four 8 x 8 matrices. Thread 8m + r passes the address of row r of matrix m, and gets pair c of row g of each.
__device__ inline void load_matrices(unsigned (&pairs)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Loads the transposed matrices: each thread gets the elements at column g of rows 2c and 2c + 1.
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

// Begins to copy 16 bytes into shared memory, or zeros if the source does not exist.
__device__ inline void copy_later(void *target, const void *source, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(exists ? 16 : 0)
                 : "memory");
}

// Begins to copy one float, or zero.
__device__ inline void copy_float_later(float *target, const float *source, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(target)), "l"(source),
                 "r"(exists ? 4 : 0)
                 : "memory");
}

// Waits for all copies that this thread has begun.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Returns 2 to the power of x, to about 2 spacings, and 0 in place of subnormal results.
__device__ inline float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#endif
