// y[n] (+)= scale * (act(z[n]) W_u + b_u): from the rank back to a wide side, added in place.
//
// Forward: W = B [U, R, O]. Backward: dx (+)= dz A^T, W = the transpose of A [U, I, R]. One block takes 64 tokens of
// one segment and a range of output columns; act(z) of its tokens lies in shared memory for good, y and W stream
// through. Ranks beyond 64 are summed in registers, tile after tile, before y is touched once.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/matrix.cuh"
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

struct ExpandArgs {
  const float* z;    // [N, R]
  Factor w;          // [U, R, C], or [U, C, R] to be transposed
  const void* bias;  // [U, C] or null
  void* y;           // [N, C]
  Segments segments;
  const int64_t* rows;
  int n_rows, columns, rank, first_rank, ranks, steps_per_range;  // ranks [first_rank, first_rank + ranks) are added
  float scale;
  Activation activation;
  bool y_vectors, bias_is_float, accumulate;
};

template <class T, int RP, bool TRANSPOSED>
struct ExpandShape {
  static constexpr int kTokens = 64, kThreads = 128, kStages = 3;
  static constexpr int kStep = kLine<T>;  // output columns of one pipeline step
  static constexpr int kPitchY = kStep + kPad<T>, kPitchW = (TRANSPOSED ? RP : kStep) + kPad<T>;
  static constexpr int kTileY = kTokens * kPitchY, kTileW = (TRANSPOSED ? kStep : RP) * kPitchW;
  static constexpr int kMaxRanks = 512 / int(sizeof(T));  // of one launch: what shared memory holds for 64 tokens
  static constexpr __host__ __device__ int pitch_z(int rank_tiles) { return rank_tiles * RP + kPad<T>; }
  static constexpr __host__ __device__ int shared_bytes(int rank_tiles) {
    return (kTokens * pitch_z(rank_tiles) + kStages * (kTileY + kTileW)) * int(sizeof(T));
  }
};

template <class T, int RP, bool TRANSPOSED>
__global__ void __launch_bounds__(128, 3) expand_kernel(ExpandArgs p) {
  using S = ExpandShape<T, RP, TRANSPOSED>;
  using M = Matrix<T>;
  const int rank_tiles = (p.ranks + RP - 1) / RP, pitch_z = S::pitch_z(rank_tiles);
  SharedCarver carve;
  T* const tile_z = carve.template take<T>(S::kTokens * pitch_z);
  T* const tiles_y = carve.template take<T>(S::kStages * S::kTileY);
  T* const tiles_w = carve.template take<T>(S::kStages * S::kTileW);

  Tile tile;
  if (!find_tile(p.segments, int(blockIdx.x), S::kTokens, tile)) return;
  const int u = factor_row(p.rows, tile.segment, p.n_rows);
  const int first_column = int(blockIdx.y) * p.steps_per_range * S::kStep;
  const int columns_left = p.columns - first_column;
  const int all_column_steps = (columns_left + S::kStep - 1) / S::kStep;
  const int steps = rank_tiles * (all_column_steps < p.steps_per_range ? all_column_steps : p.steps_per_range);
  T* const y = static_cast<T*>(p.y) + size_t(tile.begin) * p.columns + first_column;
  if (u < 0) {
    const int left = p.steps_per_range * S::kStep;
    if (u == kNoSuchRow || !p.accumulate)
      fill_tile(y, p.columns, tile.tokens, columns_left < left ? columns_left : left, product_without(u));
    return;
  }
  const bool flat = p.w.access == Access::kFlat;

  auto load_step = [&](int s) {  // step s: rank tile s % rank_tiles of column step s / rank_tiles
    if (s < steps) {
      const int slot = s % S::kStages, column = s / rank_tiles * S::kStep, r = s % rank_tiles * RP;
      const int rank = p.first_rank + r, columns = columns_left - column, ranks = p.ranks - r;
      T* const w = tiles_w + slot * S::kTileW;
      if constexpr (TRANSPOSED) {
        load_factor<T, S::kStep, RP, S::kThreads>(w, S::kPitchW, p.w,
                                                  (size_t(u) * p.columns + first_column + column) * p.rank + rank,
                                                  p.rank, columns, ranks);
      } else {
        load_factor<T, RP, S::kStep, S::kThreads>(w, S::kPitchW, p.w,
                                                  (size_t(u) * p.rank + rank) * p.columns + first_column + column,
                                                  p.columns, ranks, columns);
      }
      if (p.accumulate && s % rank_tiles == rank_tiles - 1) {
        load_tile<T, S::kTokens, S::kStep, S::kThreads>(tiles_y + slot * S::kTileY, S::kPitchY, y + column, p.columns,
                                                        tile.tokens, columns, p.y_vectors);
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_step(s);

  const float* const z = p.z + size_t(tile.begin) * p.rank + p.first_rank;
  for (int q = int(threadIdx.x); q < S::kTokens * rank_tiles * RP; q += S::kThreads) {
    const int token = q / (rank_tiles * RP), r = q % (rank_tiles * RP);
    const float value =
        token < tile.tokens && r < p.ranks ? activate(z[size_t(token) * p.rank + r], p.activation) : 0.0f;
    tile_z[token * pitch_z + r] = from_float<T>(value);
  }

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), g = lane / 4, t = lane % 4;
  Accumulator sums[S::kStep / 8] = {};
  for (int s = 0; s < steps; ++s) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // step s (and act(z), the first time) is there, and nobody reads the slot that is filled next
    load_step(s + S::kStages - 1);
    const T* const tz = tile_z + warp * 16 * pitch_z + s % rank_tiles * RP;
    const T* const tw = tiles_w + s % S::kStages * S::kTileW;
#pragma unroll
    for (int k = 0; k < RP; k += 16) {
      FragmentA<T> a;
      load_a_rows(a, tz + k, pitch_z);
#pragma unroll
      for (int n = 0; n < S::kStep; n += 16) {
        FragmentB<T> b[2];
        if constexpr (TRANSPOSED) {
          if (flat) {
            load_b_rows_flat(b, tw + n * p.rank + k, p.rank, p.rank - k);
          } else {
            load_b_rows(b, tw + n * S::kPitchW + k, S::kPitchW);
          }
        } else {
          load_b_columns(b, tw + k * S::kPitchW + n, S::kPitchW);
        }
        multiply<T>(sums[n / 8], a, b[0]);
        multiply<T>(sums[n / 8 + 1], a, b[1]);
      }
    }
    if (s % rank_tiles != rank_tiles - 1) continue;

    // This warp's 16 tokens: add in shared memory, then write whole lines.
    const int column = s / rank_tiles * S::kStep, columns = columns_left - column;
    T* const ty = tiles_y + s % S::kStages * S::kTileY + warp * 16 * S::kPitchY;
#pragma unroll
    for (int n = 0; n < S::kStep / 8; ++n) {
      const int c = n * 8 + 2 * t;
      float2 bias{0.0f, 0.0f};
      if (p.bias) {
        const size_t at = size_t(u) * p.columns + first_column + column + c;
        if (c < columns) bias.x = bias_at<T>(p.bias, p.bias_is_float, at);
        if (c + 1 < columns) bias.y = bias_at<T>(p.bias, p.bias_is_float, at + 1);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        auto* const cell = reinterpret_cast<typename M::Pair*>(ty + (g + 8 * half) * S::kPitchY + c);
        float2 value{0.0f, 0.0f};
        if (p.accumulate) value = M::unpack(*cell);
        *cell = M::pack(value.x + p.scale * (sums[n][2 * half] + bias.x),
                        value.y + p.scale * (sums[n][2 * half + 1] + bias.y));
        sums[n][2 * half] = sums[n][2 * half + 1] = 0.0f;
      }
    }
    __syncwarp();
    const int tokens = tile.tokens - warp * 16;
    T* const out = y + size_t(warp * 16) * p.columns + column;
    if (p.y_vectors) {
      constexpr int kAcross = S::kStep / kVector<T>;
#pragma unroll
      for (int q = lane; q < 16 * kAcross; q += 32) {
        const int row = q / kAcross, c = q % kAcross * kVector<T>;
        if (row < tokens && c < columns)
          *reinterpret_cast<uint4*>(out + size_t(row) * p.columns + c) =
              *reinterpret_cast<const uint4*>(ty + row * S::kPitchY + c);
      }
    } else {
      for (int q = lane; q < 16 * S::kStep; q += 32) {
        const int row = q / S::kStep, c = q % S::kStep;
        if (row < tokens && c < columns) out[size_t(row) * p.columns + c] = ty[row * S::kPitchY + c];
      }
    }
  }
}

}  // namespace mhr::cuda
