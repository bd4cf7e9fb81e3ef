// Factors brought to what the tensor cores' loads reach: the kernel's type, rows a multiple of 16 bytes apart. Only for
// factors that are not like this already, as those of mix are with a padded rank, and only for rows that a segment
// uses.
#pragma once
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

constexpr int kPadThreads = 256;

struct PadEntry {
  const void* from;     // [U, height, width] of T or float32
  void* to;             // [U, height, stride] of T; past a row's end zeros
  const int64_t* rows;  // [segments]
  int64_t vectors;      // of one U, 16 bytes each
  int width, stride, blocks;
  bool is_float;
};
struct PadArgs {
  PadEntry entries[2];
  int segments;
};

template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS) pad_kernel(PadArgs p) {
  const PadEntry e = blockIdx.y ? p.entries[1] : p.entries[0];
  if (int(blockIdx.x) >= e.blocks) return;
  const int each = int((e.vectors + THREADS - 1) / THREADS), u = int(blockIdx.x) / each, lane = int(threadIdx.x & 31);
  uint32_t users = 0;
  for (int base = 0; base < p.segments && !users; base += 32) {
    const int g = base + lane;
    users = __ballot_sync(~0u, g < p.segments && e.rows[g < p.segments ? g : 0] == u);
  }
  const int64_t i = int64_t(int(blockIdx.x) % each) * THREADS + threadIdx.x;
  if (!users || i >= e.vectors) return;
  const int across = e.stride / kVector<T>, col = int(i % across) * kVector<T>;
  const size_t row = size_t(u) * size_t(e.vectors / across) + size_t(i / across);
  alignas(16) T values[kVector<T>];
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k)
    values[k] = from_float<T>(
        col + k < e.width ? bias_at<T>(e.from, e.is_float, row * size_t(e.width) + size_t(col + k)) : 0.0f);
  *reinterpret_cast<uint4*>(static_cast<T*>(e.to) + row * size_t(e.stride) + col) =
      *reinterpret_cast<const uint4*>(values);
}

}  // namespace mhr::cuda
