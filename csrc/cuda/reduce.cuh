// Partial sums added in a fixed order, each thread EACH neighbours: four where sizes and addresses allow.
#pragma once
#include "cuda/activation.cuh"
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

// out[u] = scale * sum of the parts, `size` floats each, of all chunks whose row is u. Rows without a chunk get zeros.
struct GatherArgs {
  const float* parts;
  float* out;
  const int* chunk_rows;  // [n_parts]
  int n_parts;
  int64_t size;
  float scale;
};

template <int THREADS, int EACH>
__global__ void __launch_bounds__(THREADS) gather_kernel(GatherArgs p) {
  using F = Floats<EACH>;
  const int u = int(blockIdx.y), lane = int(threadIdx.x & 31);
  const int64_t i = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH;
  F sum{};
  for (int base = 0; base < p.n_parts; base += 32) {  // whole warps, also where i is past the end
    uint32_t mine = __ballot_sync(~0u, base + lane < p.n_parts && p.chunk_rows[base + lane] == u);
    if (i >= p.size) continue;
    while (mine) {  // chunks of one row follow one another
      const int first = __ffs(int(mine)) - 1, stop = __ffs(int(~(mine >> first)));
      const int n = stop ? stop - 1 : 32;
#pragma unroll 4
      for (int k = 0; k < n; ++k) {
        const F part = *reinterpret_cast<const F*>(p.parts + (base + first + k) * p.size + i);
#pragma unroll
        for (int e = 0; e < EACH; ++e) sum.v[e] += part.v[e];
      }
      mine = first + n < 32 ? mine >> (first + n) << (first + n) : 0;
    }
  }
  if (i >= p.size) return;
#pragma unroll
  for (int e = 0; e < EACH; ++e) sum.v[e] *= p.scale;
  *reinterpret_cast<F*>(p.out + u * p.size + i) = sum;
}

}  // namespace mhr::cuda
