// Tiles of global matrices into shared memory, zero-filled where the matrix ends.
#pragma once
#include "cuda/device.cuh"

namespace mhr::cuda {

template <class T>
constexpr int kVector = 16 / int(sizeof(T));  // elements of one 16-byte access
template <class T>
constexpr int kLine = 128 / int(sizeof(T));  // elements of one 128-byte line
template <class T>
constexpr int kPad = kVector<T>;  // keeps a column's rows in different banks

// How a factor's tile can be reached.
enum class Access {
  kVectors,   // rows start at multiples of 16 bytes
  kFlat,      // only the whole tile does: it is copied as it lies, rows `rank` elements apart
  kElements,  // one element at a time
  kConvert,   // one at a time, from float32 to the kernel's 16-bit type
};
struct Factor {
  const void* data;
  Access access;
};

// A ROWS x COLS tile of a row-major matrix whose valid part is rows x cols (either may be negative: nothing is valid).
// Vectors arrive asynchronously, elements at once; a commit, a wait and a barrier cover both.
template <class T, int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_tile(T* to, int pitch, const T* from, size_t stride, int rows, int cols,
                                          bool vectors) {
  if (vectors) {
    constexpr int kAcross = COLS / kVector<T>;
#pragma unroll
    for (int q = int(threadIdx.x); q < ROWS * kAcross; q += THREADS) {
      const int row = q / kAcross, col = q % kAcross * kVector<T>;
      const bool valid = row < rows && col < cols;
      cp_async_16(to + row * pitch + col, valid ? from + row * stride + col : from, valid ? 16 : 0);
    }
  } else {
    for (int q = int(threadIdx.x); q < ROWS * COLS; q += THREADS) {
      const int row = q / COLS, col = q % COLS;
      to[row * pitch + col] = row < rows && col < cols ? from[row * stride + col] : from_float<T>(0.0f);
    }
  }
}

// The same of a factor, from element `begin` on.
template <class T, int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_factor(T* to, int pitch, const Factor& factor, size_t begin, size_t stride,
                                            int rows, int cols) {
  if (factor.access == Access::kConvert) {
    const float* from = static_cast<const float*>(factor.data) + begin;
    for (int q = int(threadIdx.x); q < ROWS * COLS; q += THREADS) {
      const int row = q / COLS, col = q % COLS;
      to[row * pitch + col] = from_float<T>(row < rows && col < cols ? from[row * stride + col] : 0.0f);
    }
  } else if (factor.access == Access::kFlat) {
    const T* from = static_cast<const T*>(factor.data) + begin;
    const int all = ROWS * int(stride), valid = rows < ROWS ? rows * int(stride) : all;
    for (int q = int(threadIdx.x) * kVector<T>; q < all; q += THREADS * kVector<T>) {
      const int left = valid - q, bytes = (left < 0 ? 0 : left > kVector<T> ? kVector<T> : left) * int(sizeof(T));
      cp_async_16(to + q, bytes ? from + q : from, bytes);
    }
  } else {
    load_tile<T, ROWS, COLS, THREADS>(to, pitch, static_cast<const T*>(factor.data) + begin, stride, rows, cols,
                                      factor.access == Access::kVectors);
  }
}

// Fills the valid rows x cols of a matrix; what a block does whose row of the factors is not there.
template <class T>
__device__ __forceinline__ void fill_tile(T* to, size_t stride, int rows, int cols, float value) {
  for (int q = int(threadIdx.x); q < rows * cols; q += int(blockDim.x))
    to[size_t(q / cols) * stride + q % cols] = from_float<T>(value);
}

// An element of a bias: of the kernel's type or, beside converted factors, float32.
template <class T>
__device__ __forceinline__ float bias_at(const void* bias, bool is_float, size_t i) {
  return is_float ? static_cast<const float*>(bias)[i] : to_float(static_cast<const T*>(bias)[i]);
}

}  // namespace mhr::cuda
