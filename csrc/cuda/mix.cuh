// mix: skills of a bank weighted into one factor per task and head, for many layers in one launch; and its backward.
//
// A layer's problem is too small for a launch of its own, so the items travel in the kernel's arguments and every block
// looks up which one it belongs to. A block stays within one head: its weights are the same for all its threads. Types
// are looked up too; the branch is the same for a whole block.
#pragma once
#include "cuda/device.cuh"
#include "cuda/mix.h"

namespace mhr::cuda {

constexpr int kMixThreads = 256, kMixEach = 4, kMixRun = kMixThreads * kMixEach;  // elements of a block
constexpr int kMixRows = 8;    // rows (or, backward, skills) that a block sums at once
constexpr int kDotRun = 2048;  // elements of a head that one partial dot product takes
constexpr int kDotTile = 4;    // rows x skills of one warp's dot products
constexpr int kMixItems = 40;  // of one launch: what 4 KB of kernel arguments hold

struct MixEntry {
  const void* bank;
  const float* weights;
  void* mixed;
  void* bank_grad;
  float* weights_grad;
  float* dots;                                           // [runs of a head, U, H, S]
  int heads, skills, block, q, stride, size, rows, end;  // block = P Q; end = first thread block of the next entry
  bool joins_rows;
  Dtype bank_dtype, mixed_dtype;
  float scale;
};
struct MixArgs {
  MixEntry entries[kMixItems];
};
static_assert(sizeof(MixArgs) <= 4000);

__device__ __forceinline__ float load_any(const void* p, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kFp32) return static_cast<const float*>(p)[i];
  if (dtype == Dtype::kBf16) return to_float(static_cast<const bf16*>(p)[i]);
  return to_float(static_cast<const fp16*>(p)[i]);
}
__device__ __forceinline__ void store_any(void* p, Dtype dtype, int64_t i, float v) {
  if (dtype == Dtype::kFp32) {
    static_cast<float*>(p)[i] = v;
  } else if (dtype == Dtype::kBf16) {
    static_cast<bf16*>(p)[i] = from_float<bf16>(v);
  } else {
    static_cast<fp16*>(p)[i] = from_float<fp16>(v);
  }
}

// The entry this thread block works on, and the block's number within it.
__device__ __forceinline__ const MixEntry& find_entry(const MixArgs& args, int& block) {
  int i = 0;
  while (int(blockIdx.x) >= args.entries[i].end) ++i;
  block = int(blockIdx.x) - (i ? args.entries[i - 1].end : 0);
  return args.entries[i];
}

// Where element e of head h lies in one row of a mixed factor.
__device__ __forceinline__ int64_t mixed_index(const MixEntry& m, int h, int e) {
  if (m.joins_rows) return m.stride == m.q ? h * m.block + e : (h * m.block + e) / m.q * m.stride + e % m.q;
  return int64_t(e / m.q) * m.heads * m.q + h * m.q + e % m.q;
}
__device__ __forceinline__ int64_t mixed_size(const MixEntry& m) { return m.size; }

// Element e of a head; after the last one of a row that is longer, the row's zeros.
__device__ __forceinline__ void store_mixed(const MixEntry& m, int64_t at, int e, float v) {
  store_any(m.mixed, m.mixed_dtype, at, v);
  if (m.stride != m.q && e % m.q == m.q - 1)
    for (int zero = 1; zero <= m.stride - m.q; ++zero) store_any(m.mixed, m.mixed_dtype, at + zero, 0.0f);
}

template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int runs = (m.block + kMixRun - 1) / kMixRun, row_blocks = (m.rows + kMixRows - 1) / kMixRows;
  const int row0 = block % row_blocks * kMixRows, run = block / row_blocks % runs, h = block / row_blocks / runs;
  float sums[kMixEach][kMixRows] = {};
  for (int s = 0; s < m.skills; ++s) {
    float w[kMixRows];
#pragma unroll
    for (int j = 0; j < kMixRows; ++j) {
      const int u = row0 + j < m.rows ? row0 + j : m.rows - 1;
      w[j] = m.weights[(int64_t(u) * m.heads + h) * m.skills + s];
    }
#pragma unroll
    for (int i = 0; i < kMixEach; ++i) {
      const int e = run * kMixRun + i * THREADS + int(threadIdx.x);
      if (e >= m.block) continue;
      const float v = load_any(m.bank, m.bank_dtype, (int64_t(h) * m.skills + s) * m.block + e);
#pragma unroll
      for (int j = 0; j < kMixRows; ++j) sums[i][j] += w[j] * v;
    }
  }
#pragma unroll
  for (int i = 0; i < kMixEach; ++i) {
    const int e = run * kMixRun + i * THREADS + int(threadIdx.x);
    if (e >= m.block) continue;
#pragma unroll
    for (int j = 0; j < kMixRows; ++j)
      if (row0 + j < m.rows) store_mixed(m, (row0 + j) * mixed_size(m) + mixed_index(m, h, e), e, m.scale * sums[i][j]);
  }
}

// bank_grad[h, s] = scale * sum_u weights[u, h, s] mixed_grad[u]
template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_bank_grad_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int runs = (m.block + kMixRun - 1) / kMixRun, skill_blocks = (m.skills + kMixRows - 1) / kMixRows;
  const int skill0 = block % skill_blocks * kMixRows, run = block / skill_blocks % runs,
            h = block / skill_blocks / runs;
  float sums[kMixEach][kMixRows] = {};
  for (int u = 0; u < m.rows; ++u) {
    float w[kMixRows];
#pragma unroll
    for (int j = 0; j < kMixRows; ++j) {
      const int s = skill0 + j < m.skills ? skill0 + j : m.skills - 1;
      w[j] = m.weights[(int64_t(u) * m.heads + h) * m.skills + s];
    }
#pragma unroll
    for (int i = 0; i < kMixEach; ++i) {
      const int e = run * kMixRun + i * THREADS + int(threadIdx.x);
      if (e >= m.block) continue;
      const float v = load_any(m.mixed, m.mixed_dtype, u * mixed_size(m) + mixed_index(m, h, e));
#pragma unroll
      for (int j = 0; j < kMixRows; ++j) sums[i][j] += w[j] * v;
    }
  }
#pragma unroll
  for (int i = 0; i < kMixEach; ++i) {
    const int e = run * kMixRun + i * THREADS + int(threadIdx.x);
    if (e >= m.block) continue;
#pragma unroll
    for (int j = 0; j < kMixRows; ++j)
      if (skill0 + j < m.skills)
        store_any(m.bank_grad, m.bank_dtype, (int64_t(h) * m.skills + skill0 + j) * m.block + e, m.scale * sums[i][j]);
  }
}

// dots[run, u, h, s] = scale * <mixed_grad[u], bank[h, s]> over one run of elements of head h.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_dots_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int h = block % m.heads, run = block / m.heads;
  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
  const int begin = run * kDotRun, end = m.block - begin < kDotRun ? m.block : begin + kDotRun;
  const int row_tiles = (m.rows + kDotTile - 1) / kDotTile, skill_tiles = (m.skills + kDotTile - 1) / kDotTile;
  for (int tile = warp; tile < row_tiles * skill_tiles; tile += THREADS / 32) {
    const int row0 = tile / skill_tiles * kDotTile, skill0 = tile % skill_tiles * kDotTile;
    float sums[kDotTile][kDotTile] = {};
    for (int e = begin + lane; e < end; e += 32) {
      const int64_t at = mixed_index(m, h, e);
      float grad[kDotTile], bank[kDotTile];
#pragma unroll
      for (int j = 0; j < kDotTile; ++j) {
        grad[j] = row0 + j < m.rows ? load_any(m.mixed, m.mixed_dtype, (row0 + j) * mixed_size(m) + at) : 0.0f;
        bank[j] = skill0 + j < m.skills
                      ? load_any(m.bank, m.bank_dtype, (int64_t(h) * m.skills + skill0 + j) * m.block + e)
                      : 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kDotTile; ++j)
#pragma unroll
        for (int k = 0; k < kDotTile; ++k) sums[j][k] += grad[j] * bank[k];
    }
#pragma unroll
    for (int j = 0; j < kDotTile; ++j)
#pragma unroll
      for (int k = 0; k < kDotTile; ++k) {
        float sum = sums[j][k];
        for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        const int u = row0 + j, s = skill0 + k;
        if (lane == 0 && u < m.rows && s < m.skills)
          m.dots[((int64_t(run) * m.rows + u) * m.heads + h) * m.skills + s] = m.scale * sum;
      }
  }
}

// weights_grad = the dots of all runs, in order.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_weights_grad_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int64_t size = int64_t(m.rows) * m.heads * m.skills, i = int64_t(block) * THREADS + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int run = 0; run < (m.block + kDotRun - 1) / kDotRun; ++run) sum += m.dots[run * size + i];
  m.weights_grad[i] = sum;
}

}  // namespace mhr::cuda
