// weighted_average: each tensor is read once, 16 bytes a thread, the sums stay in registers.
#pragma once
#include "cuda/device.cuh"
#include "cuda/tiles.cuh"
#include "cuda/weighted_average.h"

namespace mhr::cuda {

constexpr int kAverageThreads = 256;
constexpr int kAverageTensors = 128;  // of one launch; longer lists carry their sums through scratch

template <class T>
struct Sum {
  using Type = float;
};
template <>
struct Sum<double> {
  using Type = double;
};

template <class T>
struct AverageArgs {
  const T* tensors[kAverageTensors];
  typename Sum<T>::Type weights[kAverageTensors];
  int count;
  int64_t size;
  typename Sum<T>::Type* sums;  // scratch, or null where one launch does all
  T* out;
  bool resumes, finishes, vectors;  // sums are read first; out is written
};

template <class T>
__device__ __forceinline__ T narrow(typename Sum<T>::Type v) {
  return from_float<T>(v);
}
template <>
__device__ __forceinline__ double narrow<double>(double v) {
  return v;
}

template <class T>
__global__ void __launch_bounds__(kAverageThreads) weighted_average_kernel(AverageArgs<T> p) {
  using C = typename Sum<T>::Type;
  constexpr int kEach = kVector<T>;
  const int64_t begin = (int64_t(blockIdx.x) * kAverageThreads + threadIdx.x) * kEach;
  if (begin >= p.size) return;
  const int n = p.size - begin < kEach ? int(p.size - begin) : kEach;
  const bool whole = p.vectors && n == kEach;
  C sums[kEach] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (p.resumes && i < n) sums[i] = p.sums[begin + i];
#pragma unroll 4
  for (int k = 0; k < p.count; ++k) {
    const T* const from = p.tensors[k] + begin;
    alignas(16) T values[kEach];
    if (whole) {
      *reinterpret_cast<uint4*>(values) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) values[i] = i < n ? from[i] : T();
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) sums[i] += p.weights[k] * C(to_float(values[i]));
  }
  if (!p.finishes) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i < n) p.sums[begin + i] = sums[i];
    return;
  }
  alignas(16) T values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) values[i] = narrow<T>(sums[i]);
  if (whole) {
    *reinterpret_cast<uint4*>(p.out + begin) = *reinterpret_cast<const uint4*>(values);
  } else {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (i < n) p.out[begin + i] = values[i];
  }
}

}  // namespace mhr::cuda
