// route: one warp for the skills of one head, and no sums between warps.
#pragma once
#include "cuda/device.cuh"
#include "cuda/route.h"

namespace mhr::cuda {

constexpr int kRouteThreads = 128, kRouteWarps = kRouteThreads / 32;
constexpr float kRouteEpsilon = 1e-12f;

constexpr int kRouteTables = 100;  // of one launch: what 4 KB of kernel arguments hold

struct RouteTable {
  const float *logits, *noise, *dw;
  float* out;
};
struct RouteArgs {
  Route common;
  RouteTable tables[kRouteTables];
};
static_assert(sizeof(RouteArgs) <= 4000);

// The table that a block works on.
__device__ __forceinline__ Route route_of(const RouteArgs& args) {
  const RouteTable& table = args.tables[blockIdx.y];
  Route p = args.common;
  p.logits = table.logits;
  p.noise = table.noise;
  p.dw = table.dw;
  p.out = table.out;
  return p;
}

// Of one row of logits, and the row of noise that goes with it, or none.
__device__ __forceinline__ float route_sigmoid(const float* logits, const float* noise, float temperature,
                                               int64_t skill) {
  return 1.0f / (1.0f + expf(-(logits[skill] + (noise ? noise[skill] : 0.0f)) / temperature));
}

__device__ __forceinline__ float route_warp_sum(float v) {
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

// A warp for each row and head.
__global__ void __launch_bounds__(kRouteThreads) route_kernel(RouteArgs args) {
  const Route p = route_of(args);
  const int64_t warp = int64_t(blockIdx.x) * kRouteWarps + (threadIdx.x >> 5), row = warp / p.heads,
                head = warp % p.heads;
  const int lane = int(threadIdx.x & 31);
  if (row >= p.rows) return;
  const int64_t task = p.tasks[row];
  float* const w = p.out + warp * p.skills;
  if (task < 0) {
    for (int64_t s = lane; s < p.skills; s += 32) w[s] = 1.0f / float(p.skills);
    return;
  }
  if (task >= p.n_tasks) {  // not a trap, which would end the process's context: nobody takes NaN for weights
    for (int64_t s = lane; s < p.skills; s += 32) w[s] = __builtin_nanf("");
    return;
  }
  const float* const logits = p.logits + (task * p.heads + head) * p.skills;
  const float* const noise = p.noise ? p.noise + warp * p.skills : nullptr;
  float sum = 0.0f;
  for (int64_t s = lane; s < p.skills; s += 32) {
    w[s] = route_sigmoid(logits, noise, p.temperature, s);
    sum += w[s];
  }
  const float total = route_warp_sum(sum) + kRouteEpsilon;
  for (int64_t s = lane; s < p.skills; s += 32) w[s] /= total;
}

// A warp for each task and head looks for its rows, 32 at a time, and adds them up in their order.
__global__ void __launch_bounds__(kRouteThreads) route_backward_kernel(RouteArgs args) {
  const Route p = route_of(args);
  const int64_t warp = int64_t(blockIdx.x) * kRouteWarps + (threadIdx.x >> 5), task = warp / p.heads,
                head = warp % p.heads;
  const int lane = int(threadIdx.x & 31);
  if (task >= p.n_tasks) return;
  float* const out = p.out + warp * p.skills;
  const float* const logits = p.logits + warp * p.skills;
  for (int64_t s = lane; s < p.skills; s += 32) out[s] = 0.0f;
  for (int64_t first = 0; first < p.rows; first += 32) {
    const bool mine = first + lane < p.rows && p.tasks[first + lane] == task;
    for (unsigned found = __ballot_sync(~0u, mine); found; found &= found - 1) {
      const int64_t row = ((first + __ffs(int(found)) - 1) * p.heads + head) * p.skills;
      const float* const dw = p.dw + row;
      const float* const noise = p.noise ? p.noise + row : nullptr;
      float sum = 0.0f, dot = 0.0f;
      for (int64_t s = lane; s < p.skills; s += 32) {
        const float v = route_sigmoid(logits, noise, p.temperature, s);
        sum += v;
        dot += dw[s] * v;
      }
      const float total = route_warp_sum(sum) + kRouteEpsilon, mean = route_warp_sum(dot) / total;
      for (int64_t s = lane; s < p.skills; s += 32) {
        const float v = route_sigmoid(logits, noise, p.temperature, s);
        out[s] += (dw[s] - mean) / total * v * (1.0f - v) / p.temperature;
      }
    }
  }
}

}  // namespace mhr::cuda
