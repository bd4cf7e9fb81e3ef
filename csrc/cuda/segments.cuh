// Which tokens and which rows of the factors a block works on, found on the device: no tile list, no host sync.
#pragma once
#include "cuda/device.cuh"

namespace mhr::cuda {

// Segment g holds tokens [offsets[g], offsets[g + 1]); without offsets all segments hold `length` tokens.
struct Segments {
  const int64_t* offsets;
  int count;
  int length;
  int n_tokens;
};

// Upper bound of the tiles of `size` tokens that the segments fall into; surplus blocks leave at once.
inline int max_tiles(const Segments& s, int size) {
  if (!s.offsets) return s.count * ((s.length + size - 1) / size);
  return s.n_tokens / size + s.count;
}

// Offsets are clamped to the tokens that exist, so that a wrong one cannot make a kernel leave its tensors.
__device__ __forceinline__ void segment_bounds(const Segments& s, int g, int& begin, int& end) {
  if (!s.offsets) {
    begin = g * s.length;
    end = begin + s.length;
    return;
  }
  const int64_t lo = s.offsets[g], hi = s.offsets[g + 1], n = s.n_tokens;
  begin = int(lo < 0 ? 0 : lo > n ? n : lo);
  end = int(hi < begin ? begin : hi > n ? n : hi);
}

__device__ __forceinline__ int segment_tiles(const Segments& s, int g, int size) {
  int begin = 0, end = 0;
  if (g < s.count) segment_bounds(s, g, begin, end);
  return (end - begin + size - 1) / size;
}

// Sum of `v` over the lanes up to and including this one.
__device__ __forceinline__ int scan_warp(int v) {
  const int lane = int(threadIdx.x & 31);
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, v, step);
    if (lane >= step) v += below;
  }
  return v;
}

struct Tile {
  int segment, begin, tokens;
};

// Tile number `index` of all segments cut into tiles of `size` tokens; false when there are fewer. Whole warps call it.
__device__ __forceinline__ bool find_tile(const Segments& s, int index, int size, Tile& tile) {
  int begin, end, within;
  if (!s.offsets) {
    const int each = (s.length + size - 1) / size;
    tile.segment = index / each;
    within = index % each;
    segment_bounds(s, tile.segment, begin, end);
  } else {
    const int lane = int(threadIdx.x & 31);
    int before = 0, base = 0;
    uint32_t found = 0;
    int tiles = 0, through = 0;
    for (; base < s.count; base += 32) {
      tiles = segment_tiles(s, base + lane, size);
      through = before + scan_warp(tiles);
      found = __ballot_sync(~0u, through > index);
      if (found) break;
      before = __shfl_sync(~0u, through, 31);
    }
    if (!found) return false;
    const int source = __ffs(int(found)) - 1;
    tile.segment = base + source;
    within = index - __shfl_sync(~0u, through - tiles, source);
    segment_bounds(s, tile.segment, begin, end);
  }
  tile.begin = begin + within * size;
  tile.tokens = end - tile.begin < size ? end - tile.begin : size;
  return true;
}

// The row of a factor that a segment uses, or one of the negative ones. A trap would end the process's whole context
// for one bad row: what comes of a row that does not exist is NaN instead, which nothing downstream can take for a
// result.
constexpr int kNoAdapter = -1, kNoSuchRow = -2;
__device__ __forceinline__ int factor_row(const int64_t* rows, int segment, int n_rows) {
  const int64_t row = rows[segment];
  return row >= 0 && row < n_rows ? int(row) : row == kNoAdapter ? kNoAdapter : kNoSuchRow;
}
// What a product with such a row gives: row -1 is a factor of zeros.
__device__ __forceinline__ float product_without(int row) { return row == kNoAdapter ? 0.0f : __builtin_nanf(""); }

}  // namespace mhr::cuda
