// Which tokens and which rows of the factors a block works on, found on the device: no tile list, no host sync.
#pragma once
#include "cuda/device.cuh"

namespace mhr::cuda {

// Segment g holds tokens [offsets[g], offsets[g + 1]) and uses row rows[g] of the factors; without offsets all segments
// hold `length` tokens. Neighbours of one row are a run, which is cut into tiles as one: a tile is then short only at
// the end of a run, and there are no more partial sums than that takes.
struct Segments {
  const int64_t *offsets, *rows;
  int count, length, n_tokens, n_rows;
};

// Equal segments of whole tiles gain nothing from runs, and need no search.
__host__ __device__ __forceinline__ bool whole_tiles(const Segments& s, int size) {
  return !s.offsets && s.length % size == 0;
}

// Upper bound of the tiles of `size` tokens that the runs fall into; surplus blocks leave at once.
inline int max_tiles(const Segments& s, int size) {
  const int most = s.n_tokens / size + s.count;
  if (s.offsets) return most;
  const int64_t apart = int64_t(s.count) * ((s.length + size - 1) / size);
  return int(apart < most ? apart : most);
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

// Sum of `v` over the lanes up to and including this one.
__device__ __forceinline__ int scan_warp(int v) {
  const int lane = int(threadIdx.x & 31);
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, v, step);
    if (lane >= step) v += below;
  }
  return v;
}

// Walks the segments, 32 at a time and one for each lane; a run's tiles are counted at its last segment. Whole warps.
struct RunScan {
  int64_t row;
  int begin, end;      // tokens of the run up to this lane's segment
  int tiles, through;  // of the run that ends with this lane's segment, or 0; of all up to it

  int before = 0, run_begin = 0;  // what earlier segments leave
  uint32_t starts = 1;            // bit 0: the next 32 segments begin with a new run

  __device__ __forceinline__ void next(const Segments& s, int size, int base) {
    const int lane = int(threadIdx.x & 31), g = base + lane;
    const bool present = g < s.count;
    int first = 0;
    end = 0;
    if (present) segment_bounds(s, g, first, end);
    row = present ? s.rows[g] : 0;
    const bool last = present && (g + 1 == s.count || s.rows[g + 1] != row);
    const uint32_t ends = __ballot_sync(~0u, last);
    starts |= ends << 1;
    const uint32_t mine = starts & ((2u << lane) - 1u);
    const int source = mine ? 31 - __clz(int(mine)) : 0;
    const int found = __shfl_sync(~0u, first, source);
    begin = mine ? found : run_begin;
    tiles = last && end > begin ? (end - begin + size - 1) / size : 0;
    through = before + scan_warp(tiles);
    before = __shfl_sync(~0u, through, 31);
    run_begin = __shfl_sync(~0u, begin, 31);
    starts = ends >> 31;
  }
};

struct Tile {
  int segment, begin, tokens;  // one segment of the run
};

// Tile number `index` of all runs cut into tiles of `size` tokens; false when there are fewer. Whole warps call it.
__device__ __forceinline__ bool find_tile(const Segments& s, int index, int size, Tile& tile) {
  if (whole_tiles(s, size)) {
    tile = {index / (s.length / size), index * size, size};
    return true;
  }
  RunScan scan;
  for (int base = 0; base < s.count; base += 32) {
    scan.next(s, size, base);
    const uint32_t found = __ballot_sync(~0u, scan.through > index);
    if (!found) continue;
    const int source = __ffs(int(found)) - 1;
    const int within = index - __shfl_sync(~0u, scan.through - scan.tiles, source);
    const int end = __shfl_sync(~0u, scan.end, source);
    tile.segment = base + source;
    tile.begin = __shfl_sync(~0u, scan.begin, source) + within * size;
    tile.tokens = end - tile.begin < size ? end - tile.begin : size;
    return true;
  }
  return false;
}

// The row of a factor that a segment uses, or one of the negative ones. A trap would end the process's whole context
// for one bad row: what comes of a row that does not exist is NaN instead, which nothing downstream can take for a
// result.
constexpr int kNoAdapter = -1, kNoSuchRow = -2;
__device__ __forceinline__ int factor_row(const Segments& s, int segment) {
  const int64_t row = s.rows[segment];
  return row >= 0 && row < s.n_rows ? int(row) : row == kNoAdapter ? kNoAdapter : kNoSuchRow;
}
// What a product with such a row gives: row -1 is a factor of zeros.
__device__ __forceinline__ float product_without(int row) { return row == kNoAdapter ? 0.0f : __builtin_nanf(""); }

}  // namespace mhr::cuda
