// z[n] = x[n] A_u + a_u: the wide side of a routed adapter down to its rank.
//
// One block takes 64 tokens of one run (16 where runs are short), one range of the input dimension and up to RP columns
// of the rank, and streams x and A once; the products stay in registers. With several ranges each writes its own
// partial sums, which the expand that follows adds in order; those of a short tile's warps are added at the end, in
// their order.
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
  int in_features, rank, steps_per_range;
  bool x_vectors, z_pairs, bias_is_float;
};

template <class T, int RP, int TOKENS>
struct ShrinkShape {
  static constexpr bool kShort = TOKENS == kShortTile;
  static constexpr int kTokens = TOKENS, kThreads = 128, kStages = RP == 64 || kShort ? 3 : 4;
  static constexpr int kStep = kLine<T> * lines_per_step(RP, TOKENS);  // input columns of one pipeline step
  static constexpr int kWarpStep = kShort ? kStep / 4 : kStep;         // of one warp
  static constexpr int kPitchX = kStep + kPad<T>, kPitchA = RP + kPad<T>;
  static constexpr int kTileX = kTokens * kPitchX, kTileA = kStep * kPitchA;
  static constexpr int kShared = kStages * (kTileX + kTileA) * int(sizeof(T));
};

template <class T, int RP, int TOKENS>
__global__ void __launch_bounds__(128, 3) shrink_kernel(ShrinkArgs p) {
  using S = ShrinkShape<T, RP, TOKENS>;
  SharedCarver carve;
  T* const tiles_x = carve.template take<T>(S::kStages * S::kTileX);
  T* const tiles_a = carve.template take<T>(S::kStages * S::kTileA);

  Tile tile;
  if (!find_tile(p.segments, int(blockIdx.x), S::kTokens, tile)) return;
  const int u = factor_row(p.segments, tile.segment);
  const int first_rank = int(blockIdx.z) * RP, first_step = int(blockIdx.y) * p.steps_per_range;
  const int all_steps = (p.in_features + S::kStep - 1) / S::kStep;
  const int steps = all_steps - first_step < p.steps_per_range ? all_steps - first_step : p.steps_per_range;
  const int ranks = p.rank - first_rank < RP ? p.rank - first_rank : RP;
  float* const z = p.z + (size_t(blockIdx.y) * p.segments.n_tokens + tile.begin) * p.rank + first_rank;
  if (u < 0) return fill_tile(z, p.rank, tile.tokens, ranks, product_without(u));

  // What is loaded next: x and A from here on, of which `left` columns of x are there, into this slot.
  const T* x = static_cast<const T*>(p.x) + size_t(tile.begin) * p.in_features + first_step * S::kStep;
  const T* a =
      static_cast<const T*>(p.a.data) + (size_t(u) * p.in_features + first_step * S::kStep) * p.a.stride + first_rank;
  int left = p.in_features - first_step * S::kStep, loads = steps, fill = 0;
  auto load_next = [&] {
    if (loads > 0) {
      load_tile<T, S::kTokens, S::kStep, S::kThreads>(tiles_x + fill * S::kTileX, S::kPitchX, x, p.in_features,
                                                      tile.tokens, left, p.x_vectors);
      load_vectors<T, S::kStep, RP, S::kThreads>(tiles_a + fill * S::kTileA, S::kPitchA, a, p.a.stride, left, ranks);
      x += S::kStep;
      a += S::kStep * size_t(p.a.stride);
      left -= S::kStep;
      --loads;
      fill = fill == S::kStages - 1 ? 0 : fill + 1;
    }
    cp_async_commit();
  };

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5);
  Accumulator sums[RP / 8] = {};
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_next();
  int slot = 0;
  for (int s = 0; s < steps; ++s) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // step s has landed for everybody, and nobody reads the slot that is filled next
    load_next();
    const T* const tx = tiles_x + slot * S::kTileX + warp * (S::kShort ? S::kWarpStep : 16 * S::kPitchX);
    const T* const ta = tiles_a + slot * S::kTileA + (S::kShort ? warp * S::kWarpStep * S::kPitchA : 0);
    slot = slot == S::kStages - 1 ? 0 : slot + 1;
#pragma unroll
    for (int k = 0; k < S::kWarpStep; k += 16) {
      FragmentA<T> fragment;
      load_a_rows(fragment, tx + k, S::kPitchX);
#pragma unroll
      for (int n = 0; n < RP; n += 16) {
        FragmentB<T> b[2];
        load_b_columns(b, ta + k * S::kPitchA + n, S::kPitchA);
        multiply<T>(sums[n / 8], fragment, b[0]);
        multiply<T>(sums[n / 8 + 1], fragment, b[1]);
      }
    }
  }

  // Two neighbours along the rank, with the bias.
  auto put = [&](int token, int r, float2 v) {
    if (p.bias && blockIdx.y == 0) {
      const size_t at = size_t(u) * p.rank + first_rank + r;
      if (r < ranks) v.x += bias_at<T>(p.bias, p.bias_is_float, at);
      if (r + 1 < ranks) v.y += bias_at<T>(p.bias, p.bias_is_float, at + 1);
    }
    if (token < tile.tokens) store_two(z + size_t(token) * p.rank + r, v.x, v.y, ranks - r, p.z_pairs);
  };
  if constexpr (S::kShort) {
    static_assert(4 * 16 * RP * int(sizeof(float)) <= S::kStages * S::kTileA * int(sizeof(T)));
    // [warps, 16, RP / 2]
    auto* const partial = reinterpret_cast<float2*>(tiles_a);

    __syncthreads();  // nobody reads A anymore
#pragma unroll
    for (int n = 0; n < RP / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        partial[(warp * 16 + lane / 4 + half * 8) * (RP / 2) + n * 4 + lane % 4] = {sums[n][2 * half],
                                                                                    sums[n][2 * half + 1]};
    __syncthreads();  // the warps' sums are there
#pragma unroll
    for (int q = int(threadIdx.x); q < 16 * RP / 2; q += S::kThreads) {
      float2 sum = partial[q];
#pragma unroll
      for (int w = 1; w < 4; ++w) {
        const float2 more = partial[w * 16 * (RP / 2) + q];
        sum.x += more.x;
        sum.y += more.y;
      }
      put(q / (RP / 2), q % (RP / 2) * 2, sum);
    }
  } else {
#pragma unroll
    for (int n = 0; n < RP / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        put(warp * 16 + lane / 4 + half * 8, n * 8 + lane % 4 * 2, {sums[n][2 * half], sums[n][2 * half + 1]});
  }
}

}  // namespace mhr::cuda
