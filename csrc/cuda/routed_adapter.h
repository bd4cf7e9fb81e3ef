// What the binding and the emulator's tests need of the routed adapter's kernels: no torch header, no CUDA header.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/dtype.h"

namespace mhr::cuda {

enum class Activation { kNone, kGelu };

// N tokens in `n_segments` segments; segment g holds tokens [offsets[g], offsets[g + 1]), or N / n_segments of them
// when offsets is null, and uses row rows[g] of the factors: -1 is a row of zeros, one that does not exist makes NaN of
// the segment. All tensors are contiguous, all pointers are on the device. "factor" tensors are of `dtype` or, with
// factors_are_float, float32; accumulated results are always float32.
struct Routing {
  int64_t n_tokens, n_segments;
  const int64_t* offsets;
  int blocks_at_once = 264;  // what the work is cut for: two blocks on each multiprocessor of the largest GPUs
};

// z = x A_u + a_u (float32 [N, R]); y += scale * (act(z) B_v + b_v). With writes_y, y need not hold anything: it
// becomes that, plus `base` where there is one, for a GEMM that then adds to it.
struct RoutedAdapterForward {
  Dtype dtype;
  bool factors_are_float;
  Routing routing;
  const int64_t *rows_a, *rows_b;
  int64_t n_rows_a, n_rows_b, in_features, out_features, rank;
  const void *x, *a, *b, *bias_a, *bias_b;  // biases may be null
  void* y;
  float* z;
  float scale;
  Activation activation;
  bool writes_y = false;
  const void* given = nullptr;  // [N, O], to be added to in place of y, which need not hold anything then
  const void* base = nullptr;   // [O] of `dtype`, only with writes_y
  int64_t a_stride = 0;         // of a row of A, zeros beyond R (see mix.h); 0: R
  // Adapters that read the same x and whose A lie side by side, R_0 + R_1 + ... columns, have z side by side: the first
  // one's launch makes all of it, into the workspace too, which stays as it is for the launches of the others.
  int64_t z_rank = 0;   // columns of z and of A together; 0: R
  int64_t z_first = 0;  // this adapter's first one
  bool shrinks = true;  // makes z
};

// dz = scale * (dy B_v^T) * act'(z); db[v] = scale * sum act(z)^T dy; dbias_b[v] = scale * sum dy.
struct RoutedAdapterBackwardDy {
  Dtype dtype;
  bool factors_are_float;
  Routing routing;
  const int64_t* rows_b;
  int64_t n_rows_b, out_features, rank;
  const void *dy, *b;
  const float* z;
  float *dz, *db, *dbias_b;  // dbias_b may be null
  float scale;
  Activation activation;
  int64_t z_stride = 0;  // of a row of z and dz, without an activation; 0: R
};

// dx (+)= dz A_u^T; da[u] = sum x^T dz; dbias_a[u] = sum dz.
struct RoutedAdapterBackwardX {
  Dtype dtype;
  bool factors_are_float;
  Routing routing;
  const int64_t* rows_a;
  int64_t n_rows_a, in_features, rank;
  const void *x, *a;
  const float* dz;
  void* dx;  // may be null
  bool accumulate;
  float *da, *dbias_a;          // dbias_a may be null
  int64_t a_stride = 0;         // as above
  const void* given = nullptr;  // [N, I], with accumulate, in place of dx
};

// Bytes of scratch that a launch of the same arguments needs: partial sums, which no multiple of [N, O] or [N, I] is
// among, and copies of factors whose type or rows the kernels cannot read. Launches return nullptr or what is wrong;
// `stream` is a cudaStream_t.
size_t workspace_bytes(const RoutedAdapterForward& p);
size_t workspace_bytes(const RoutedAdapterBackwardDy& p);
size_t workspace_bytes(const RoutedAdapterBackwardX& p);
const char* launch_routed_adapter_forward(const RoutedAdapterForward& p, void* workspace, void* stream);
const char* launch_routed_adapter_backward_dy(const RoutedAdapterBackwardDy& p, void* workspace, void* stream);
const char* launch_routed_adapter_backward_x(const RoutedAdapterBackwardX& p, void* workspace, void* stream);

}  // namespace mhr::cuda
