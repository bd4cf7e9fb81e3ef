// What the binding and the emulator's tests need of mix and its backward: no torch header, no CUDA header.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/dtype.h"

namespace mhr::cuda {

// mixed[u] = scale * sum_s weights[u, h, s] bank[h, s] for every head h, bank [H, S, P, Q], weights float32 [U, H, S].
// The heads' blocks are joined along rows, [U, H P, Q] (factor A), or along columns, [U, P, H Q] (factor B). Sums are
// float32.
struct MixItem {
  const void* bank;
  const float* weights;
  void* mixed;             // written by mix
  const void* mixed_grad;  // read by mix_backward, which writes the two below where they are not null
  void* bank_grad;         // of the bank's type
  float* weights_grad;
  int64_t heads, skills, p, q, rows;
  bool joins_rows;
  Dtype bank_dtype, mixed_dtype;
  float scale = 1.0f;
  int64_t stride = 0;  // of a row of `mixed` or `mixed_grad`, where rows are joined; 0: Q
  int16_t zeros = 0;   // that mix writes behind each row
};

// Items that name the same weights_grad (and so the same U, H and S) add up in it, in their order.
//
// Each call takes any number of items and starts few kernels: 40 items share one. Returns nullptr or what is wrong.
size_t mix_backward_workspace_bytes(const MixItem* items, size_t n);
const char* launch_mix(const MixItem* items, size_t n, void* stream);
const char* launch_mix_backward(const MixItem* items, size_t n, void* workspace, void* stream);

}  // namespace mhr::cuda
