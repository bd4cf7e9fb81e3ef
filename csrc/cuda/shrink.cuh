// z[n] = x[n] A_u + a_u: the wide side of a routed adapter down to its rank.
//
// One block takes 64 tokens of one segment, one range of the input dimension and up to RP columns of the rank, and
// streams x and A once; the products stay in registers. With several ranges each writes its own partial sums, which
// finish_kernel adds in order.
#pragma once
#include "cuda/matrix.cuh"
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

struct ShrinkArgs {
  const void* x;     // [N, I]
  Factor a;          // [U, I, R]
  const void* bias;  // [U, R] or null
  float* z;          // [ranges, N, R]
  Segments segments;
  const int64_t* rows;
  int n_rows, in_features, rank, steps_per_range;
  bool x_vectors, bias_is_float;
};

template <class T, int RP>
struct ShrinkShape {
  static constexpr int kTokens = 64, kThreads = 128, kStages = RP == 64 ? 3 : 4;
  static constexpr int kStep = kLine<T>;  // input columns of one pipeline step
  static constexpr int kPitchX = kStep + kPad<T>, kPitchA = RP + kPad<T>;
  static constexpr int kTileX = kTokens * kPitchX, kTileA = kStep * kPitchA;
  static constexpr int kShared = kStages * (kTileX + kTileA) * int(sizeof(T));
};

template <class T, int RP>
__global__ void __launch_bounds__(128, 3) shrink_kernel(ShrinkArgs p) {
  using S = ShrinkShape<T, RP>;
  SharedCarver carve;
  T* const tiles_x = carve.template take<T>(S::kStages * S::kTileX);
  T* const tiles_a = carve.template take<T>(S::kStages * S::kTileA);

  Tile tile;
  if (!find_tile(p.segments, int(blockIdx.x), S::kTokens, tile)) return;
  const int u = factor_row(p.rows, tile.segment, p.n_rows);
  const int first_rank = int(blockIdx.z) * RP, first_step = int(blockIdx.y) * p.steps_per_range;
  const int all_steps = (p.in_features + S::kStep - 1) / S::kStep;
  const int steps = all_steps - first_step < p.steps_per_range ? all_steps - first_step : p.steps_per_range;
  const T* const x = static_cast<const T*>(p.x) + size_t(tile.begin) * p.in_features;
  const int ranks = p.rank - first_rank < RP ? p.rank - first_rank : RP;
  float* const z = p.z + (size_t(blockIdx.y) * p.segments.n_tokens + tile.begin) * p.rank + first_rank;
  if (u < 0) return fill_tile(z, p.rank, tile.tokens, ranks, product_without(u));
  const bool flat = p.a.access == Access::kFlat;

  auto load_step = [&](int s) {
    if (s < steps) {
      const int slot = s % S::kStages, column = (first_step + s) * S::kStep, left = p.in_features - column;
      load_tile<T, S::kTokens, S::kStep, S::kThreads>(tiles_x + slot * S::kTileX, S::kPitchX, x + column, p.in_features,
                                                      tile.tokens, left, p.x_vectors);
      load_factor<T, S::kStep, RP, S::kThreads>(tiles_a + slot * S::kTileA, S::kPitchA, p.a,
                                                (size_t(u) * p.in_features + column) * p.rank + first_rank, p.rank,
                                                left, ranks);
    }
    cp_async_commit();
  };

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
  Accumulator sums[RP / 8] = {};
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_step(s);
  for (int s = 0; s < steps; ++s) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // step s has landed for everybody, and nobody reads the slot that is filled next
    load_step(s + S::kStages - 1);
    const T* const tx = tiles_x + s % S::kStages * S::kTileX + warp * 16 * S::kPitchX;
    const T* const ta = tiles_a + s % S::kStages * S::kTileA;
#pragma unroll
    for (int k = 0; k < S::kStep; k += 16) {
      FragmentA<T> a;
      load_a_rows(a, tx + k, S::kPitchX);
#pragma unroll
      for (int n = 0; n < RP; n += 16) {
        FragmentB<T> b[2];
        if (flat) {
          load_b_columns_flat(b, ta + k * p.rank + n, p.rank, p.rank - n);
        } else {
          load_b_columns(b, ta + k * S::kPitchA + n, S::kPitchA);
        }
        multiply<T>(sums[n / 8], a, b[0]);
        multiply<T>(sums[n / 8 + 1], a, b[1]);
      }
    }
  }

#pragma unroll
  for (int n = 0; n < RP / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int token = warp * 16 + lane / 4 + e / 2 * 8, r = n * 8 + lane % 4 * 2 + e % 2;
      if (token < tile.tokens && r < ranks) {
        float value = sums[n][e];
        if (p.bias && blockIdx.y == 0)
          value += bias_at<T>(p.bias, p.bias_is_float, size_t(u) * p.rank + first_rank + r);
        z[size_t(token) * p.rank + r] = value;
      }
    }
}

}  // namespace mhr::cuda
