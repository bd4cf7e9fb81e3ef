// A warp's 16x16 by 16x8 products for bf16, fp16 and float32 in one vocabulary.
//
// A fragment holds pairs of neighbours along k: pair h of lane (g = lane / 4, t = lane % 4) are elements k = 8h + 2t
// and 8h + 2t + 1. For 16-bit types that is the layout of mma.m16n8k16. For float32 the same pairs feed two tf32
// m16n8k8 products, slot t taking the first of a pair and slot t + 4 the second: a permutation of k, harmless since
// both operands share it, that makes accumulators and A fragments look alike for every type.
//
// float32 keeps its accuracy: each operand is split into two tf32 terms, and three of the four products are added
// (the fourth is below 2^-22 of the result), the small ones first. Tensor cores cut their sums off in place of rounding
// them, which in an accumulator of thousands of terms is an error that grows: they sum 16 terms, and an addition that
// rounds takes these to the rest.
#pragma once
#include "cuda/device.cuh"

namespace mhr::cuda {

using Accumulator = float[4];  // elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of a 16x8 tile

template <class T>
struct Matrix {
  using Pair = uint32_t;
  static __device__ __forceinline__ Pair pack(float a, float b) { return pack2<T>(a, b); }
  static __device__ __forceinline__ float2 unpack(Pair p) { return unpack2<T>(p); }
};
template <>
struct Matrix<float> {
  using Pair = float2;
  static __device__ __forceinline__ Pair pack(float a, float b) { return {a, b}; }
  static __device__ __forceinline__ float2 unpack(Pair p) { return p; }
};

template <class T>
struct FragmentA {
  typename Matrix<T>::Pair pair[2][2];  // [half of k][row g or g + 8]
};
template <class T>
struct FragmentB {
  typename Matrix<T>::Pair pair[2];  // [half of k], column g
};

template <class T>
__device__ __forceinline__ void multiply(Accumulator& c, const FragmentA<T>& a, const FragmentB<T>& b) {
  const uint32_t regs[4] = {a.pair[0][0], a.pair[0][1], a.pair[1][0], a.pair[1][1]};
  mma_16x8x16<T>(c, regs, b.pair);
}

__device__ __forceinline__ void split_tf32(float v, uint32_t& large, uint32_t& small) {
  large = round_tf32(v);
  float rounded;
  memcpy(&rounded, &large, 4);
  small = round_tf32(v - rounded);
}

template <>
__device__ __forceinline__ void multiply<float>(Accumulator& c, const FragmentA<float>& a, const FragmentB<float>& b) {
  Accumulator d = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float av[4] = {a.pair[h][0].x, a.pair[h][1].x, a.pair[h][0].y, a.pair[h][1].y};
    const float bv[2] = {b.pair[h].x, b.pair[h].y};
    uint32_t a_large[4], a_small[4], b_large[2], b_small[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(av[i], a_large[i], a_small[i]);
#pragma unroll
    for (int i = 0; i < 2; ++i) split_tf32(bv[i], b_large[i], b_small[i]);
    mma_16x8x8_tf32(d, a_small, b_large);
    mma_16x8x8_tf32(d, a_large, b_small);
    mma_16x8x8_tf32(d, a_large, b_large);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] += d[i];
}

// The loads. `tile` points at the fragment's first element in shared memory. "Rows" stores m (or n) down and k across;
// "columns" stores k down. A pitch is a multiple of 16 bytes, so ldmatrix can serve the 16-bit types.
template <class T>
__device__ __forceinline__ void load_a_rows(FragmentA<T>& a, const T* tile, int pitch) {
  const int lane = int(threadIdx.x & 31);
  uint32_t r[4];
  ldmatrix_x4(r, tile + lane % 16 * pitch + lane / 16 * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) a.pair[i / 2][i % 2] = r[i];
}
template <>
__device__ __forceinline__ void load_a_rows<float>(FragmentA<float>& a, const float* tile, int pitch) {
  const int lane = int(threadIdx.x & 31), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* p = tile + (g + 8 * i) * pitch + 8 * h + 2 * t;
      a.pair[h][i] = {p[0], p[1]};
    }
}

template <class T>
__device__ __forceinline__ void load_a_columns(FragmentA<T>& a, const T* tile, int pitch) {
  const int lane = int(threadIdx.x & 31);
  uint32_t r[4];
  ldmatrix_x4_trans(r, tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) a.pair[i / 2][i % 2] = r[i];
}
template <>
__device__ __forceinline__ void load_a_columns<float>(FragmentA<float>& a, const float* tile, int pitch) {
  const int lane = int(threadIdx.x & 31), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* p = tile + (8 * h + 2 * t) * pitch + g + 8 * i;
      a.pair[h][i] = {p[0], p[pitch]};
    }
}

// Two B fragments, of columns n..n+7 and n+8..n+15.
template <class T>
__device__ __forceinline__ void load_b_rows(FragmentB<T> (&b)[2], const T* tile, int pitch) {
  const int lane = int(threadIdx.x & 31);
  uint32_t r[4];
  ldmatrix_x4(r, tile + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2].pair[i % 2] = r[i];
}
template <class T>
__device__ __forceinline__ void load_b_columns(FragmentB<T> (&b)[2], const T* tile, int pitch) {
  const int lane = int(threadIdx.x & 31);
  uint32_t r[4];
  ldmatrix_x4_trans(r, tile + lane % 16 * pitch + lane / 16 * 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) b[i / 2].pair[i % 2] = r[i];
}

template <>
__device__ __forceinline__ void load_b_rows<float>(FragmentB<float> (&b)[2], const float* tile, int pitch) {
  const int lane = int(threadIdx.x & 31), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* p = tile + (g + 8 * i) * pitch + 8 * h + 2 * t;
      b[i].pair[h] = {p[0], p[1]};
    }
}
template <>
__device__ __forceinline__ void load_b_columns<float>(FragmentB<float> (&b)[2], const float* tile, int pitch) {
  const int lane = int(threadIdx.x & 31), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* p = tile + (8 * h + 2 * t) * pitch + g + 8 * i;
      b[i].pair[h] = {p[0], p[pitch]};
    }
}

}  // namespace mhr::cuda
