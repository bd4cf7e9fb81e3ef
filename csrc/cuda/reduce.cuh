// Partial sums added in a fixed order, each thread EACH neighbours: four where sizes and addresses allow.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

constexpr int kReduceThreads = 256;

template <int EACH>
struct alignas(4 * EACH) Floats {
  float v[EACH];
};

// dz of the partial ones: out[i] = scale * act'(z[i]) * sum_k parts[k, i]; act' = 1 where z is null. `out` may be the
// only part. Where rows of `out` are longer than the rank, they are `stride` apart.
struct FinishArgs {
  const float* parts;
  const float* z;
  float* out;
  int64_t size;
  int n_parts;
  float scale;
  Activation activation;
  int rank, stride;
};

template <int THREADS, int EACH>
__global__ void __launch_bounds__(THREADS) finish_kernel(FinishArgs p) {
  using F = Floats<EACH>;
  const int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH;
  if (i >= p.size) return;
  F sum{};
#pragma unroll 4
  for (int k = 0; k < p.n_parts; ++k) {
    const F part = *reinterpret_cast<const F*>(p.parts + k * p.size + i);
#pragma unroll
    for (int e = 0; e < EACH; ++e) sum.v[e] += part.v[e];
  }
#pragma unroll
  for (int e = 0; e < EACH; ++e) sum.v[e] *= p.scale * (p.z ? activate_slope(p.z[i + e], p.activation) : 1.0f);
  const int64_t at = p.stride == p.rank ? i : i / p.rank * p.stride + i % p.rank;
  *reinterpret_cast<F*>(p.out + at) = sum;
}

// out[u] = scale * sum of the parts, `size` floats each, of all chunks of all runs whose row is u. Rows without a
// segment get zeros. Wrong offsets may promise more chunks than the n_parts that exist.
struct GatherArgs {
  const float* parts;
  float* out;
  Segments segments;
  int chunk, n_parts;
  int64_t size;
  float scale;
};

template <int THREADS, int EACH>
__global__ void __launch_bounds__(THREADS) gather_kernel(GatherArgs p) {
  using F = Floats<EACH>;
  const int u = int(blockIdx.y);
  const int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH;
  F sum{};
  RunScan scan;
  for (int base = 0; base < p.segments.count; base += 32) {  // whole warps, also where i is past the end
    scan.next(p.segments, p.chunk, base);
    uint32_t mine = __ballot_sync(~0u, scan.tiles && scan.row == u);
    for (; mine; mine &= mine - 1) {
      const int source = __ffs(int(mine)) - 1;
      const int last = __shfl_sync(~0u, scan.through, source), begin = last - __shfl_sync(~0u, scan.tiles, source);
      const int end = last < p.n_parts ? last : p.n_parts;
      if (i >= p.size) continue;
#pragma unroll 4
      for (int k = begin; k < end; ++k) {
        const F part = *reinterpret_cast<const F*>(p.parts + k * p.size + i);
#pragma unroll
        for (int e = 0; e < EACH; ++e) sum.v[e] += part.v[e];
      }
    }
  }
  if (i >= p.size) return;
#pragma unroll
  for (int e = 0; e < EACH; ++e) sum.v[e] *= p.scale;
  *reinterpret_cast<F*>(p.out + u * p.size + i) = sum;
}

}  // namespace mhr::cuda
