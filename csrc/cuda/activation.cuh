// The bottleneck's activation: none (LoRA, Poly, MHR) or GELU in its exact erf form (AdaMix).
#pragma once
#include "cuda/device.cuh"
#include "cuda/routed_adapter.h"

namespace mhr::cuda {

__device__ __forceinline__ float activate(float z, Activation a) {
  return a == Activation::kNone ? z : 0.5f * z * (1.0f + erff(z * 0.70710678f));
}
__device__ __forceinline__ float activate_slope(float z, Activation a) {
  return a == Activation::kNone ? 1.0f : 0.5f * (1.0f + erff(z * 0.70710678f)) + z * 0.39894228f * expf(-0.5f * z * z);
}

}  // namespace mhr::cuda
