// What the binding and the emulator's tests need of weighted_average: no torch header, no CUDA header.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/dtype.h"

namespace mhr::cuda {

// out = sum_k weights[k] tensors[k], in the order given; sums in float32 (float64 for float64). One tensor of weight 1
// is copied bit for bit.
struct WeightedAverage {
  Dtype dtype;
  int64_t size, count;
  const void* const* tensors;  // the list itself is on the host
  const double* weights;
  void* out;
};

size_t workspace_bytes(const WeightedAverage& p);
const char* launch_weighted_average(const WeightedAverage& p, void* workspace, void* stream);

}  // namespace mhr::cuda
