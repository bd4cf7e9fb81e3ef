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

// Tokens of one row of the factors, wherever they lie: its segments one after the other, cut into chunks as one.
struct RowChunk {
  int row, tokens;  // n_rows: those that have no adapter, n_rows + 1: those whose row does not exist
};

// Chunk number `index` of all rows cut into chunks of `size` tokens, and in `tokens_of` [size] which tokens they are;
// false when there are fewer. `counts` [n_rows + 2] is used on the way; both are shared memory. Whole blocks call it.
__device__ __forceinline__ bool find_row_chunk(const Segments& s, int index, int size, int* counts, int* tokens_of,
                                               RowChunk& chunk) {
  const int n_counts = s.n_rows + 2, lane = int(threadIdx.x & 31);
  const auto count_of = [&](int g) {
    const int64_t row = s.rows[g];
    return row >= 0 && row < s.n_rows ? int(row) : s.n_rows + (row == -1 ? 0 : 1);
  };
  for (int r = int(threadIdx.x); r < n_counts; r += int(blockDim.x)) counts[r] = 0;
  __syncthreads();
  for (int g = int(threadIdx.x); g < s.count; g += int(blockDim.x)) {
    int begin, end;
    segment_bounds(s, g, begin, end);
    add_shared(&counts[count_of(g)], end - begin);
  }
  __syncthreads();

  int first = -1;  // of the row's tokens
  for (int base = 0, before = 0; base < n_counts && first < 0; base += 32) {
    // Wrong offsets may count tokens more than once.
    const int given = base + lane < n_counts ? counts[base + lane] : 0;
    const int tokens = given < 0 ? 0 : given > s.n_tokens ? s.n_tokens : given, chunks = (tokens + size - 1) / size;
    const int through = before + scan_warp(chunks);
    const uint32_t found = __ballot_sync(~0u, through > index);
    before = __shfl_sync(~0u, through, 31);
    if (!found) continue;
    const int source = __ffs(int(found)) - 1;
    first = (index - __shfl_sync(~0u, through - chunks, source)) * size;
    const int left = __shfl_sync(~0u, tokens, source) - first;
    chunk = {base + source, left < size ? left : size};
  }
  if (first < 0) return false;

  const int last = first + chunk.tokens;
  for (int base = 0, before = 0; base < s.count && before < last; base += 32) {
    int begin = 0, end = 0;
    if (base + lane < s.count && count_of(base + lane) == chunk.row) segment_bounds(s, base + lane, begin, end);
    const int through = before + scan_warp(end - begin), start = through - (end - begin);
    before = __shfl_sync(~0u, through, 31);
    uint32_t mine = __ballot_sync(~0u, end > begin && start < last && through > first);
    for (; mine; mine &= mine - 1) {
      const int source = __ffs(int(mine)) - 1;
      const int from = __shfl_sync(~0u, start, source), to = __shfl_sync(~0u, through, source);
      const int token = __shfl_sync(~0u, begin, source) - from;
      const int stop = to < last ? to : last;
      for (int i = (from > first ? from : first) + int(threadIdx.x); i < stop; i += int(blockDim.x))
        tokens_of[i - first] = token + i;
    }
  }
  __syncthreads();
  return true;
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
