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

// Tokens of a tile, of long runs and of short ones. Of long tiles each of four warps takes 16 tokens and all columns of
// a step; of short ones each takes all tokens and its part of a step's columns, which is so many lines wide.
constexpr int kLongTile = 64, kShortTile = 16;
constexpr int lines_per_step(int rp, int tokens) { return tokens == kLongTile ? 1 : rp == 16 ? 4 : 2; }

// A factor as kernels read it: of their type, rows a multiple of 16 bytes apart and zero past their end (pad.cuh).
struct Factor {
  const void* data;
  int stride;
};

// A ROWS x COLS tile of a row-major matrix whose valid part is rows x cols (either may be negative: nothing is valid).
// Arrives asynchronously: a commit, a wait and a barrier cover it. Every thread keeps its column, so that a copy costs
// an addition and a comparison; of an absent one the address is never looked at.
template <class T, int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_vectors(T* to, int pitch, const T* from, size_t stride, int rows, int cols) {
  constexpr int kAcross = COLS / kVector<T>, kDown = THREADS / kAcross;
  static_assert(THREADS % kAcross == 0);
  const int first = int(threadIdx.x) / kAcross, col = int(threadIdx.x) % kAcross * kVector<T>;
  to += first * pitch + col;
  from += size_t(first) * stride + col;
  const int valid = col < cols ? rows : 0;
#pragma unroll
  for (int i = 0; i < ROWS; i += kDown) {
    const int row = first + i;
    if (ROWS % kDown != 0 && row >= ROWS) break;
    cp_async_16(to + i * pitch, from + i * stride, row < valid ? 16 : 0);
  }
}

// The same of rows that lie anywhere: row i of the tile is row rows_of[i] of the matrix.
template <class T, int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_rows(T* to, int pitch, const T* from, size_t stride, const int* rows_of, int rows,
                                          int cols, bool vectors) {
  constexpr int kAcross = COLS / kVector<T>, kDown = THREADS / kAcross;
  static_assert(THREADS % kAcross == 0 && ROWS % kDown == 0);
  if (vectors) {
    const int first = int(threadIdx.x) / kAcross, col = int(threadIdx.x) % kAcross * kVector<T>;
    const int valid = col < cols ? rows : 0;
    to += first * pitch + col;
#pragma unroll
    for (int i = 0; i < ROWS; i += kDown) {
      const bool present = first + i < valid;
      cp_async_16(to + i * pitch, from + (present ? size_t(rows_of[first + i]) * stride + col : 0), present ? 16 : 0);
    }
    return;
  }
#pragma unroll 4
  for (int i = 0; i < ROWS * COLS / THREADS; ++i) {
    const int q = int(threadIdx.x) + i * THREADS, row = q / COLS, col = q % COLS;
    to[row * pitch + col] = row < rows && col < cols ? from[size_t(rows_of[row]) * stride + col] : from_float<T>(0.0f);
  }
}

// The first, or element by element and at once where rows do not start at multiples of 16 bytes.
template <class T, int ROWS, int COLS, int THREADS>
__device__ __forceinline__ void load_tile(T* to, int pitch, const T* from, size_t stride, int rows, int cols,
                                          bool vectors) {
  if (vectors) return load_vectors<T, ROWS, COLS, THREADS>(to, pitch, from, stride, rows, cols);
#pragma unroll 4
  for (int i = 0; i < ROWS * COLS / THREADS; ++i) {
    const int q = int(threadIdx.x) + i * THREADS, row = q / COLS, col = q % COLS;
    to[row * pitch + col] = row < rows && col < cols ? from[row * stride + col] : from_float<T>(0.0f);
  }
}

// Four neighbours of a row of which `left` exist, at once where they lie at a multiple of 16 bytes; zero past the end.
__device__ __forceinline__ void load_four(float (&v)[4], const float* from, int left, bool vectors) {
  if (vectors && left >= 4) {
    const float4 all = *reinterpret_cast<const float4*>(from);
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = i < left ? from[i] : 0.0f;
  }
}
__device__ __forceinline__ void store_four(float* to, const float (&v)[4], int left, bool vectors) {
  if (vectors && left >= 4) {
    *reinterpret_cast<float4*>(to) = {v[0], v[1], v[2], v[3]};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < left) to[i] = v[i];
  }
}
__device__ __forceinline__ float2 load_two(const float* from, int left, bool vectors) {
  if (vectors && left >= 2) return *reinterpret_cast<const float2*>(from);
  return {left > 0 ? from[0] : 0.0f, left > 1 ? from[1] : 0.0f};
}
// Two neighbours of a row of which `left` exist, at once where they lie at a multiple of 8 bytes.
__device__ __forceinline__ void store_two(float* to, float a, float b, int left, bool vectors) {
  if (vectors && left >= 2) {
    *reinterpret_cast<float2*>(to) = {a, b};
  } else {
    if (left > 0) to[0] = a;
    if (left > 1) to[1] = b;
  }
}

// Fills the valid rows x cols of a matrix; what a block does whose row of the factors is not there.
template <class T>
__device__ __forceinline__ void fill_tile(T* to, size_t stride, int rows, int cols, float value) {
  for (int q = int(threadIdx.x); q < rows * cols; q += int(blockDim.x))
    to[size_t(q / cols) * stride + q % cols] = from_float<T>(value);
}

// An element of a bias: of the kernel's type or, beside factors in float32, float32.
template <class T>
__device__ __forceinline__ float bias_at(const void* bias, bool is_float, size_t i) {
  return is_float ? static_cast<const float*>(bias)[i] : to_float(static_cast<const T*>(bias)[i]);
}

}  // namespace mhr::cuda
