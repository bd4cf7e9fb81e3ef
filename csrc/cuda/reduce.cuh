// Partial sums added in a fixed order.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/segments.cuh"

namespace mhr::cuda {

constexpr int kReduceThreads = 256;

// out[i] = scale * act'(z[i]) * sum_k parts[k, i]; act' = 1 where z is null.
struct FinishArgs {
  const float* parts;
  const float* z;
  float* out;
  int64_t size;
  int n_parts;
  float scale;
  Activation activation;
};

template <int THREADS>
__global__ void __launch_bounds__(THREADS) finish_kernel(FinishArgs p) {
  const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (i >= p.size) return;
  float sum = 0.0f;
  for (int k = 0; k < p.n_parts; ++k) sum += p.parts[k * p.size + i];
  const float slope = p.z ? activate_slope(p.z[i], p.activation) : 1.0f;
  p.out[i] = p.scale * slope * sum;
}

// out[u] = scale * sum of the parts of all chunks of all segments whose row is u, a matrix [height, width] each;
// written as it is or transposed. Rows without a segment get zeros. Wrong offsets may promise more chunks than the
// n_parts that exist.
struct GatherArgs {
  const float* parts;
  float* out;
  Segments segments;
  const int64_t* rows;
  int chunk, n_parts, height, width;
  float scale;
  bool transposed;
};

template <int THREADS>
__global__ void __launch_bounds__(THREADS) gather_kernel(GatherArgs p) {
  const int u = int(blockIdx.y), lane = int(threadIdx.x & 31);
  const int64_t size = int64_t(p.height) * p.width, i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  float sum = 0.0f;
  int before = 0;
  for (int base = 0; base < p.segments.count; base += 32) {  // whole warps, also where i is past the end
    const int g = base + lane, chunks = segment_tiles(p.segments, g, p.chunk);
    const int through = before + scan_warp(chunks);
    uint32_t mine = __ballot_sync(~0u, g < p.segments.count && p.rows[g < p.segments.count ? g : 0] == u);
    for (; mine; mine &= mine - 1) {
      const int source = __ffs(int(mine)) - 1;
      const int last = __shfl_sync(~0u, through, source), begin = last - __shfl_sync(~0u, chunks, source);
      const int end = last < p.n_parts ? last : p.n_parts;
      if (i < size)
        for (int k = begin; k < end; ++k) sum += p.parts[k * size + i];
    }
    before = __shfl_sync(~0u, through, 31);
  }
  if (i >= size) return;
  const int64_t row = i / p.width, column = i % p.width;
  p.out[u * size + (p.transposed ? column * p.height + row : i)] = p.scale * sum;
}

}  // namespace mhr::cuda
