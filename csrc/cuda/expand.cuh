// y[n] (+)= base + scale * (act(z[n]) W_u + b_u): from the rank back to a wide side, added in place or written.
//
// Forward: W = B [U, R, O]. Backward: dx (+)= dz A^T, W = the transpose of A [U, I, R]. One block takes 64 tokens of
// one run (16 where runs are short) and a range of output columns; act(z) of its tokens lies in shared memory for good,
// y and W stream through. Ranks beyond 64 are summed in registers, tile after tile, before y is touched once. Partial
// sums of z, where the shrink was split, are added here in order, and written once.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/matrix.cuh"
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

// Of at most 128 bytes: larger ones nvcc copies, and the kernel's loops grow by a fifth.
struct ExpandArgs {
  const float* z;    // [n_parts, N, R]
  float* whole_z;    // [N, R], or null where z is whole
  Factor w;          // [U, R, C], or [U, C, R] to be transposed
  const void* bias;  // [U, C] or null
  const void* base;  // ACCUMULATE: [N, C], y or what takes its place; else [C] or null
  void* y;           // [N, C]
  Segments segments;
  int n_parts, columns, rank, first_rank, ranks, steps_per_range;  // ranks [first_rank, first_rank + ranks) are added
  float scale;
  Activation activation;
  bool y_vectors, z_vectors, bias_is_float;
  int z_stride;  // of a row of z, R or more
};
static_assert(sizeof(ExpandArgs) <= 128);

template <class T, int RP, int TOKENS, bool TRANSPOSED>
struct ExpandShape {
  static constexpr bool kShort = TOKENS == kShortTile;
  static constexpr int kTokens = TOKENS, kThreads = 128, kStages = 3;
  static constexpr int kStep = kLine<T> * lines_per_step(RP, TOKENS);  // output columns of one pipeline step
  static constexpr int kWarpStep = kShort ? kStep / 4 : kStep;         // of one warp
  static constexpr int kPitchY = kStep + kPad<T>, kPitchW = (TRANSPOSED ? RP : kStep) + kPad<T>;
  static constexpr int kTileY = kTokens * kPitchY, kTileW = (TRANSPOSED ? kStep : RP) * kPitchW;
  static constexpr int kMaxRanks = 512 / int(sizeof(T));  // of one launch: what shared memory holds for 64 tokens
  static constexpr __host__ __device__ int pitch_z(int rank_tiles) { return rank_tiles * RP + kPad<T>; }
  static constexpr __host__ __device__ int shared_bytes(int rank_tiles) {
    return (kTokens * pitch_z(rank_tiles) + kStages * (kTileY + kTileW)) * int(sizeof(T));
  }
};

// base + scale * bias of two neighbouring columns, of which `left` exist.
template <class T, bool BASED>
__device__ __forceinline__ float2 biases_at(const ExpandArgs& p, int u, int column, int left) {
  float v[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i >= left) continue;
    if (p.bias) v[i] = p.scale * bias_at<T>(p.bias, p.bias_is_float, size_t(u) * p.columns + column + i);
    if (BASED && p.base) v[i] += to_float(static_cast<const T*>(p.base)[column + i]);
  }
  return {v[0], v[1]};
}

// ACCUMULATE: a tensor is read and added to. BIASED: there is a bias, a base or both.
template <class T, int RP, int TOKENS, bool TRANSPOSED, bool ACCUMULATE, bool BIASED>
__global__ void __launch_bounds__(128, 3) expand_kernel(ExpandArgs p) {
  using S = ExpandShape<T, RP, TOKENS, TRANSPOSED>;
  using M = Matrix<T>;
  const int rank_tiles = RP == 64 ? (p.ranks + RP - 1) / RP : 1, pitch_z = S::pitch_z(rank_tiles);
  SharedCarver carve;
  T* const tile_z = carve.template take<T>(S::kTokens * pitch_z);
  T* const tiles_y = carve.template take<T>(S::kStages * S::kTileY);
  T* const tiles_w = carve.template take<T>(S::kStages * S::kTileW);

  Tile tile;
  if (!find_tile(p.segments, int(blockIdx.x), S::kTokens, tile)) return;
  const int u = factor_row(p.segments, tile.segment);
  const int first_column = int(blockIdx.y) * p.steps_per_range * S::kStep;
  const int columns_left = p.columns - first_column, range = p.steps_per_range * S::kStep;
  const int columns = columns_left < range ? columns_left : range;
  T* const y = static_cast<T*>(p.y) + size_t(tile.begin) * p.columns + first_column;
  const T* given = y;
  if constexpr (ACCUMULATE) given = static_cast<const T*>(p.base) + size_t(tile.begin) * p.columns + first_column;

  // Calls use(token, r, v) for four neighbours v of z, from rank r on, zeros past the end.
  auto take_z = [&](auto use) {
    const size_t at = size_t(tile.begin) * p.z_stride + p.first_rank, part = size_t(p.segments.n_tokens) * p.z_stride;
    constexpr int kFours = S::kTokens * RP / 4;
    for (int first = 0; first < rank_tiles * RP; first += RP)
#pragma unroll
      for (int i = 0; i < (kFours + S::kThreads - 1) / S::kThreads; ++i) {
        const int q = int(threadIdx.x) + i * S::kThreads, token = q / (RP / 4), r = first + q % (RP / 4) * 4;
        if (kFours % S::kThreads != 0 && q >= kFours) break;
        const int left = token < tile.tokens ? p.ranks - r : 0;
        const float* z = p.z + at + size_t(token) * p.z_stride + r;
        float v[4];
        load_four(v, z, left, p.z_vectors);
        for (int k = 1; k < p.n_parts; ++k) {
          float more[4];
          load_four(more, z += part, left, p.z_vectors);
#pragma unroll
          for (int e = 0; e < 4; ++e) v[e] += more[e];
        }
        if (p.whole_z && blockIdx.y == 0)
          store_four(p.whole_z + at + size_t(token) * p.z_stride + r, v, left, p.z_vectors);
        use(token, r, v);
      }
  };

  if (u < 0) {
    if (p.whole_z && blockIdx.y == 0) take_z([](int, int, const float (&)[4]) {});
    const T* const base = u == kNoAdapter ? static_cast<const T*>(p.base) : nullptr;
    if (ACCUMULATE && u == kNoAdapter) {
      for (int c = int(threadIdx.x); given != y && c < columns; c += S::kThreads)
        for (int token = 0; token < tile.tokens; ++token)
          y[size_t(token) * p.columns + c] = given[size_t(token) * p.columns + c];
      return;
    }
    if (!base) return fill_tile(y, p.columns, tile.tokens, columns, product_without(u));
    for (int c = int(threadIdx.x); c < columns; c += S::kThreads)
      for (int token = 0; token < tile.tokens; ++token) y[size_t(token) * p.columns + c] = base[first_column + c];
    return;
  }

  // What is loaded next: W from here on and y at this column, into this slot.
  const T* w = static_cast<const T*>(p.w.data);
  if constexpr (TRANSPOSED) {
    w += (size_t(u) * p.columns + first_column) * p.w.stride + p.first_rank;
  } else {
    w += (size_t(u) * p.rank + p.first_rank) * p.w.stride + first_column;
  }
  int load_rank = 0, load_column = 0, fill = 0;
  auto load_next = [&] {
    if (load_column < columns) {
      T* const to = tiles_w + fill * S::kTileW;
      if constexpr (TRANSPOSED) {
        load_vectors<T, S::kStep, RP, S::kThreads>(to, S::kPitchW, w + load_rank, p.w.stride,
                                                   columns_left - load_column, p.ranks - load_rank);
      } else {
        load_vectors<T, RP, S::kStep, S::kThreads>(to, S::kPitchW, w + load_rank * size_t(p.w.stride), p.w.stride,
                                                   p.ranks - load_rank, columns_left - load_column);
      }
      load_rank += RP;
      if (RP < 64 || load_rank >= p.ranks) {
        if constexpr (ACCUMULATE)
          load_tile<T, S::kTokens, S::kStep, S::kThreads>(tiles_y + fill * S::kTileY, S::kPitchY, given + load_column,
                                                          p.columns, tile.tokens, columns_left - load_column,
                                                          p.y_vectors);
        w += TRANSPOSED ? S::kStep * size_t(p.w.stride) : size_t(S::kStep);
        load_column += S::kStep;
        load_rank = 0;
      }
      fill = fill == S::kStages - 1 ? 0 : fill + 1;
    }
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_next();

  take_z([&](int token, int r, const float (&v)[4]) {
    auto* const to = reinterpret_cast<typename M::Pair*>(tile_z + token * pitch_z + r);
    to[0] = M::pack(activate(v[0], p.activation), activate(v[1], p.activation));
    to[1] = M::pack(activate(v[2], p.activation), activate(v[3], p.activation));
  });

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), g = lane / 4, t = lane % 4;
  // What is this warp's own: 16 tokens from here on, columns of a step from there on.
  const int first_token = S::kShort ? 0 : warp * 16, tokens = tile.tokens - first_token;
  const int own_column = S::kShort ? warp * S::kWarpStep : 0;
  Accumulator sums[S::kWarpStep / 8] = {};
  int slot = 0, rank = 0, column = 0;
  while (column < columns) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // step s (and act(z), the first time) is there, and nobody reads the slot that is filled next
    load_next();
    const T* const tz = tile_z + first_token * pitch_z + rank;
    const T* const tw = tiles_w + slot * S::kTileW + own_column * (TRANSPOSED ? S::kPitchW : 1);
    T* const ty = tiles_y + slot * S::kTileY + first_token * S::kPitchY + own_column;
    slot = slot == S::kStages - 1 ? 0 : slot + 1;
#pragma unroll
    for (int k = 0; k < RP; k += 16) {
      FragmentA<T> a;
      load_a_rows(a, tz + k, pitch_z);
#pragma unroll
      for (int n = 0; n < S::kWarpStep; n += 16) {
        FragmentB<T> b[2];
        if constexpr (TRANSPOSED) {
          load_b_rows(b, tw + n * S::kPitchW + k, S::kPitchW);
        } else {
          load_b_columns(b, tw + k * S::kPitchW + n, S::kPitchW);
        }
        multiply<T>(sums[n / 8], a, b[0]);
        multiply<T>(sums[n / 8 + 1], a, b[1]);
      }
    }
    rank += RP;
    if (RP == 64 && rank < p.ranks) continue;
    rank = 0;

    // Add in shared memory, then write whole lines.
    const int left = columns_left - column - own_column;
#pragma unroll
    for (int n = 0; n < S::kWarpStep / 8; ++n) {
      const int c = n * 8 + 2 * t;
      float2 bias{0.0f, 0.0f};
      if constexpr (BIASED) bias = biases_at<T, !ACCUMULATE>(p, u, first_column + column + own_column + c, left - c);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        auto* const cell = reinterpret_cast<typename M::Pair*>(ty + (g + 8 * half) * S::kPitchY + c);
        float2 value = bias;
        if constexpr (ACCUMULATE) {
          const float2 given = M::unpack(*cell);
          value.x += given.x;
          value.y += given.y;
        }
        *cell = M::pack(value.x + p.scale * sums[n][2 * half], value.y + p.scale * sums[n][2 * half + 1]);
        sums[n][2 * half] = sums[n][2 * half + 1] = 0.0f;
      }
    }
    __syncwarp();
    T* const out = y + size_t(first_token) * p.columns + column + own_column;
    if (p.y_vectors) {
      constexpr int kAcross = S::kWarpStep / kVector<T>, kDown = 32 / kAcross;
      const int first = lane / kAcross, c = lane % kAcross * kVector<T>, valid = c < left ? tokens : 0;
#pragma unroll
      for (int i = 0; i < 16; i += kDown)
        if (first + i < valid)
          *reinterpret_cast<uint4*>(out + size_t(first + i) * p.columns + c) =
              *reinterpret_cast<const uint4*>(ty + (first + i) * S::kPitchY + c);
    } else {
      for (int q = lane; q < 16 * S::kWarpStep; q += 32) {
        const int row = q / S::kWarpStep, c = q % S::kWarpStep;
        if (row < tokens && c < left) out[size_t(row) * p.columns + c] = ty[row * S::kPitchY + c];
      }
    }
    column += S::kStep;
  }
}

}  // namespace mhr::cuda
