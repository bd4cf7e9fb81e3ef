// mix: skills of a bank weighted into one factor per task and head, for many layers in one launch; and its backward.
//
// A layer's problem is too small for a launch of its own, so the items travel in the kernel's arguments and every block
// looks up which one it belongs to. A block stays within one head: its weights are the same for all its threads. Types
// are looked up too; the branch is the same for a whole block.
#pragma once
#include <type_traits>

#include "cuda/device.cuh"
#include "cuda/mix.h"

namespace mhr::cuda {

constexpr int kMixThreads = 256, kMixEach = 4, kMixRun = kMixThreads * kMixEach;  // elements of a block
constexpr int kMixRows = 8;  // rows (or, backward, skills) that a block sums at once
constexpr int kDotThreads = 128;
constexpr int kDotRun = 2048;  // elements of a head that one partial dot product takes
constexpr int kDotTile = 4;    // rows x skills of one warp's dot products
constexpr int kSumLanes = 4;   // that share the sum of one weight's dot products
constexpr int kMixItems = 40;  // of one launch: what 4 KB of kernel arguments hold

struct MixEntry {
  const void* bank;
  const float* weights;
  void* mixed;
  void* bank_grad;
  float* weights_grad;
  float* dots;                                           // [runs of a head, U, H, S]
  int heads, skills, block, q, stride, size, rows, end;  // block = P Q; end = first thread block of the next entry
  bool joins_rows, fours;  // fours: rows are whole fours of elements, and every tensor is aligned to such
  int16_t zeros;           // behind a row
  Dtype bank_dtype, mixed_dtype;
  float scale;
};
struct MixArgs {
  MixEntry entries[kMixItems];
};
static_assert(sizeof(MixArgs) <= 4000);

// Elements of a tensor by fours, their type known to the compiler: loads of several are under way at once.
template <class T>
struct Fours {
  static constexpr int kEach = 4;
  const T* from;
  __device__ __forceinline__ void load(float (&v)[4], int64_t i) const {
    if constexpr (sizeof(T) == 4) {
      const float4 all = *reinterpret_cast<const float4*>(from + i);
      v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
    } else {
      const uint2 all = *reinterpret_cast<const uint2*>(from + i);
      const float2 low = unpack2<T>(all.x), high = unpack2<T>(all.y);
      v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
    }
  }
};
// One by one, of any type.
struct Ones {
  static constexpr int kEach = 1;
  const void* from;
  Dtype dtype;
  __device__ __forceinline__ void load(float (&v)[1], int64_t i) const {
    if (dtype == Dtype::kFp32) {
      v[0] = static_cast<const float*>(from)[i];
    } else if (dtype == Dtype::kBf16) {
      v[0] = to_float(static_cast<const bf16*>(from)[i]);
    } else {
      v[0] = to_float(static_cast<const fp16*>(from)[i]);
    }
  }
};
// Calls f with the tensor as one of these.
template <class F>
__device__ __forceinline__ void with_source(bool fours, const void* from, Dtype dtype, F f) {
  if (!fours) {
    f(Ones{from, dtype});
  } else if (dtype == Dtype::kFp32) {
    f(Fours<float>{static_cast<const float*>(from)});
  } else if (dtype == Dtype::kBf16) {
    f(Fours<bf16>{static_cast<const bf16*>(from)});
  } else {
    f(Fours<fp16>{static_cast<const fp16*>(from)});
  }
}

__device__ __forceinline__ void store_any(void* p, Dtype dtype, int64_t i, const float (&v)[1]) {
  if (dtype == Dtype::kFp32) {
    static_cast<float*>(p)[i] = v[0];
  } else if (dtype == Dtype::kBf16) {
    static_cast<bf16*>(p)[i] = from_float<bf16>(v[0]);
  } else {
    static_cast<fp16*>(p)[i] = from_float<fp16>(v[0]);
  }
}
__device__ __forceinline__ void store_any(void* p, Dtype dtype, int64_t i, const float (&v)[4]) {
  if (dtype == Dtype::kFp32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p) + i) = {v[0], v[1], v[2], v[3]};
    return;
  }
  const bool bf = dtype == Dtype::kBf16;
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p) + i) = {bf ? pack2<bf16>(v[0], v[1]) : pack2<fp16>(v[0], v[1]),
                                                              bf ? pack2<bf16>(v[2], v[3]) : pack2<fp16>(v[2], v[3])};
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

// Elements from e on of a head; after the last one of a row, the row's zeros.
template <int EACH>
__device__ __forceinline__ void store_mixed(const MixEntry& m, int64_t at, int e, const float (&v)[EACH]) {
  store_any(m.mixed, m.mixed_dtype, at, v);
  if (!m.zeros || e % m.q != m.q - EACH) return;
  constexpr float kZeros[EACH] = {};
  for (int past = EACH; past <= m.zeros; past += EACH) store_any(m.mixed, m.mixed_dtype, at + past, kZeros);
}

// What both mix and the gradient of its banks are: sums over `terms` tensors, `apart` elements from one another, for
// kMixRows results at once. A thread takes kMixEach elements of one run of a head: at(e) is where element e lies in the
// first tensor, weight(j, k) what result j takes term k by, store(j, e, sums) gets elements from e on.
template <int THREADS, class Source, class At, class Weight, class Store>
__device__ __forceinline__ void weighted_sums(const MixEntry& m, const Source& source, int run, int terms,
                                              int64_t apart, At at, Weight weight, Store store) {
  constexpr int kEach = Source::kEach;
  for (int i = 0; i < kMixEach; i += kEach) {
    const int e = run * kMixRun + i * THREADS + int(threadIdx.x) * kEach;
    if (e >= m.block) return;
    const int64_t from = at(e);
    float sums[kMixRows][kEach] = {};
#pragma unroll 4
    for (int k = 0; k < terms; ++k) {
      float w[kMixRows], v[kEach];
      source.load(v, from + k * apart);
#pragma unroll
      for (int j = 0; j < kMixRows; ++j) w[j] = weight(j, k);
#pragma unroll
      for (int j = 0; j < kMixRows; ++j)
#pragma unroll
        for (int n = 0; n < kEach; ++n) sums[j][n] += w[j] * v[n];
    }
#pragma unroll
    for (int j = 0; j < kMixRows; ++j) {
#pragma unroll
      for (int n = 0; n < kEach; ++n) sums[j][n] *= m.scale;
      store(j, e, sums[j]);
    }
  }
}

template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int runs = (m.block + kMixRun - 1) / kMixRun, row_blocks = (m.rows + kMixRows - 1) / kMixRows;
  const int row0 = block % row_blocks * kMixRows, run = block / row_blocks % runs, h = block / row_blocks / runs;
  with_source(m.fours, m.bank, m.bank_dtype, [&](const auto& bank) {
    weighted_sums<THREADS>(
        m, bank, run, m.skills, m.block, [&](int e) { return int64_t(h) * m.skills * m.block + e; },
        [&](int j, int s) {
          const int u = row0 + j < m.rows ? row0 + j : m.rows - 1;
          return m.weights[(int64_t(u) * m.heads + h) * m.skills + s];
        },
        [&](int j, int e, const auto& sums) {
          if (row0 + j < m.rows) store_mixed(m, int64_t(row0 + j) * m.size + mixed_index(m, h, e), e, sums);
        });
  });
}

// bank_grad[h, s] = scale * sum_u weights[u, h, s] mixed_grad[u]
template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_bank_grad_kernel(MixArgs args) {
  int block;
  const MixEntry& m = find_entry(args, block);
  const int runs = (m.block + kMixRun - 1) / kMixRun, skill_blocks = (m.skills + kMixRows - 1) / kMixRows;
  const int skill0 = block % skill_blocks * kMixRows, run = block / skill_blocks % runs,
            h = block / skill_blocks / runs;
  with_source(m.fours, m.mixed, m.mixed_dtype, [&](const auto& mixed_grad) {
    weighted_sums<THREADS>(
        m, mixed_grad, run, m.rows, m.size, [&](int e) { return mixed_index(m, h, e); },
        [&](int j, int u) {
          const int s = skill0 + j < m.skills ? skill0 + j : m.skills - 1;
          return m.weights[(int64_t(u) * m.heads + h) * m.skills + s];
        },
        [&](int j, int e, const auto& sums) {
          if (skill0 + j < m.skills)
            store_any(m.bank_grad, m.bank_dtype, (int64_t(h) * m.skills + skill0 + j) * m.block + e, sums);
        });
  });
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
  with_source(m.fours, m.mixed, m.mixed_dtype, [&](const auto& mixed_grad) {
    constexpr int kEach = std::decay_t<decltype(mixed_grad)>::kEach;
    with_source(m.fours, m.bank, m.bank_dtype, [&](const auto& banks) {
      if constexpr (std::decay_t<decltype(banks)>::kEach == kEach) {  // both are by fours, or neither
        for (int tile = warp; tile < row_tiles * skill_tiles; tile += THREADS / 32) {
          const int row0 = tile / skill_tiles * kDotTile, skill0 = tile % skill_tiles * kDotTile;
          float sums[kDotTile][kDotTile] = {};
          for (int e = begin + lane * kEach; e < end; e += 32 * kEach) {
            const int64_t at = mixed_index(m, h, e);
            float grad[kDotTile][kEach], bank[kDotTile][kEach];
#pragma unroll
            for (int j = 0; j < kDotTile; ++j) {  // those that are absent count for nothing
              const int u = row0 + j < m.rows ? row0 + j : m.rows - 1;
              const int s = skill0 + j < m.skills ? skill0 + j : m.skills - 1;
              mixed_grad.load(grad[j], int64_t(u) * m.size + at);
              banks.load(bank[j], (int64_t(h) * m.skills + s) * m.block + e);
            }
#pragma unroll
            for (int j = 0; j < kDotTile; ++j)
#pragma unroll
              for (int k = 0; k < kDotTile; ++k)
#pragma unroll
                for (int i = 0; i < kEach; ++i) sums[j][k] += grad[j][i] * bank[k][i];
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
    });
  });
}

// weights_grad = the dots of all runs, every kSumLanes-th by one lane, in order. Whole warps.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) mix_weights_grad_kernel(MixArgs args) {
  constexpr int kAcross = 32 / kSumLanes;
  int block;
  const MixEntry& m = find_entry(args, block);
  const int lane = int(threadIdx.x & 31), runs = (m.block + kDotRun - 1) / kDotRun;
  const int64_t size = int64_t(m.rows) * m.heads * m.skills;
  const int64_t i = (int64_t(block) * THREADS + threadIdx.x) / 32 * kAcross + lane % kAcross;
  float sum = 0.0f;
  if (i < size) {
#pragma unroll 8
    for (int run = lane / kAcross; run < runs; run += kSumLanes) sum += m.dots[run * size + i];
  }
  for (int step = kAcross; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (i < size && lane < kAcross) m.weights_grad[i] = sum;
}

}  // namespace mhr::cuda
