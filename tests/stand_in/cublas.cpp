// The functions of cuBLAS that CuPy multiplies matrices by, for float32, float64 and bfloat16.
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstdint>
#include <cstring>

#include "order.hpp"

using namespace stand_in;

namespace {

enum Status { success = 0, invalid_value = 7, not_supported = 15 };
enum Operation { plain = 0, transposed = 1 };

struct Handle {
    void *stream = nullptr;
    int math_mode = 0;
};

// By columns, which are `stride` elements apart.
struct Matrix {
    const void *data;
    cudaDataType type;
    std::int64_t stride;
};

double element(const Matrix &of, std::int64_t row, std::int64_t column) {
    const std::int64_t at = row + column * of.stride;
    if (of.type == CUDA_R_64F) return static_cast<const double *>(of.data)[at];
    if (of.type == CUDA_R_32F) return static_cast<double>(static_cast<const float *>(of.data)[at]);
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const std::uint16_t *>(of.data)[at]) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<double>(x);
}

void set(const Matrix &of, std::int64_t row, std::int64_t column, double value) {
    const std::int64_t at = row + column * of.stride;
    void *data = const_cast<void *>(of.data);
    if (of.type == CUDA_R_64F) {
        static_cast<double *>(data)[at] = value;
    } else if (of.type == CUDA_R_32F) {
        static_cast<float *>(data)[at] = static_cast<float>(value);
    } else {
        const float x = static_cast<float>(value);
        std::uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits = x != x ? 0x7FC00000u : bits + 0x7FFF + (bits >> 16 & 1);
        static_cast<std::uint16_t *>(data)[at] = static_cast<std::uint16_t>(bits >> 16);
    }
}

bool is_known(cudaDataType type) { return type == CUDA_R_64F || type == CUDA_R_32F || type == CUDA_R_16BF; }

double factor(const void *at, bool is_double) {
    return is_double ? *static_cast<const double *>(at) : static_cast<double>(*static_cast<const float *>(at));
}

struct Product {
    int left, right;
    std::int64_t rows, columns, length;
    double alpha, beta;
    Matrix a, b, c;

    void compute() const {
        for (std::int64_t column = 0; column < columns; ++column)
            for (std::int64_t row = 0; row < rows; ++row) {
                double sum = 0;
                for (std::int64_t k = 0; k < length; ++k)
                    sum += (left == plain ? element(a, row, k) : element(a, k, row)) *
                           (right == plain ? element(b, k, column) : element(b, column, k));
                // Not 0 times what is there, which may be no number.
                set(c, row, column, alpha * sum + (beta == 0 ? 0 : beta * element(c, row, column)));
            }
    }
};

int multiply(Handle *handle, const Product &product) {
    if (!is_known(product.a.type) || !is_known(product.b.type) || !is_known(product.c.type)) return not_supported;
    Stream *on = stream_at(handle->stream);
    return on != nullptr && submit(on, [product] { product.compute(); }) == cudaSuccess ? success : invalid_value;
}

// Where a matrix of a batch begins.
Matrix moved(Matrix matrix, std::int64_t by, std::int64_t times) {
    const std::int64_t size = matrix.type == CUDA_R_64F ? 8 : matrix.type == CUDA_R_32F ? 4 : 2;
    matrix.data = static_cast<const char *>(matrix.data) + by * times * size;
    return matrix;
}

}  // namespace

extern "C" {

int cublasCreate_v2(Handle **handle) {
    *handle = new Handle;
    return success;
}

int cublasDestroy_v2(Handle *handle) {
    delete handle;
    return success;
}

int cublasSetStream_v2(Handle *handle, void *stream) {
    handle->stream = stream;
    return success;
}

int cublasGetStream_v2(Handle *handle, void **stream) {
    *stream = handle->stream;
    return success;
}

int cublasSetMathMode(Handle *handle, int mode) {
    handle->math_mode = mode;
    return success;
}

int cublasGetMathMode(Handle *handle, int *mode) {
    *mode = handle->math_mode;
    return success;
}

int cublasDgemm_v2(Handle *handle, int left, int right, int m, int n, int k, const double *alpha, const double *a,
                   int a_stride, const double *b, int b_stride, const double *beta, double *c, int c_stride) {
    return multiply(handle, {left, right, m, n, k, *alpha, *beta, {a, CUDA_R_64F, a_stride}, {b, CUDA_R_64F, b_stride},
                             {c, CUDA_R_64F, c_stride}});
}

int cublasGemmStridedBatchedEx(Handle *handle, int left, int right, int m, int n, int k, const void *alpha,
                               const void *a, cudaDataType a_type, int a_stride, long long a_step, const void *b,
                               cudaDataType b_type, int b_stride, long long b_step, const void *beta, void *c,
                               cudaDataType c_type, int c_stride, long long c_step, int batch, int, int) {
    const bool is_double = c_type == CUDA_R_64F;
    for (int i = 0; i < batch; ++i) {
        const int status = multiply(
            handle, {left, right, m, n, k, factor(alpha, is_double), factor(beta, is_double),
                     moved({a, a_type, a_stride}, a_step, i), moved({b, b_type, b_stride}, b_step, i),
                     moved({c, c_type, c_stride}, c_step, i)});
        if (status != success) return status;
    }
    return success;
}

int cublasGemmEx(Handle *handle, int left, int right, int m, int n, int k, const void *alpha, const void *a,
                 cudaDataType a_type, int a_stride, const void *b, cudaDataType b_type, int b_stride, const void *beta,
                 void *c, cudaDataType c_type, int c_stride, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, left, right, m, n, k, alpha, a, a_type, a_stride, 0, b, b_type, b_stride,
                                      0, beta, c, c_type, c_stride, 0, 1, compute, algorithm);
}

int cublasSgemmEx(Handle *handle, int left, int right, int m, int n, int k, const float *alpha, const void *a,
                  cudaDataType a_type, int a_stride, const void *b, cudaDataType b_type, int b_stride,
                  const float *beta, void *c, cudaDataType c_type, int c_stride) {
    return cublasGemmEx(handle, left, right, m, n, k, alpha, a, a_type, a_stride, b, b_type, b_stride, beta, c, c_type,
                        c_stride, 0, 0);
}

}  // extern "C"
