// Gradients of the factors, as partial sums over chunks of tokens, in one pass over a wide tensor D:
//   parts[chunk, r, c] = sum_n t[n, r] D[n, c],   t = act(z) and D = dy for dB,   t = dz and D = x for dA
// and on the way, for dy, its product with B (partial over blocks of columns) and its column sums:
//   inner[block, n, r] = sum_{c in block} D[n, c] B_u[r, c],   column_sums[chunk, c] = sum_n D[n, c]
// or, for x, the sums of dz over the chunk: rank_sums[chunk, r] = sum_n t[n, r].
// A block takes one chunk of one segment, one block of columns, and up to RP of the rank. Everything is added later in
// a fixed order by reduce.cuh: no atomics, the same bits in every run.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/matrix.cuh"
#include "cuda/segments.cuh"
#include "cuda/tiles.cuh"

namespace mhr::cuda {

struct OuterArgs {
  const void* d;       // [N, C]
  const float* z;      // [N, R]
  Factor b;            // [U, R, C], only with INNER
  float* parts;        // [chunks, R, C]
  float* inner;        // [column blocks, N, R], only with INNER
  float* column_sums;  // [chunks, C] or null, only with INNER
  float* rank_sums;    // [chunks, R] or null, only without INNER
  Segments segments;
  const int64_t* rows;
  int n_rows, columns, rank, chunk;
  Activation activation;
  bool d_vectors;
};

template <class T, int RP>
struct OuterShape {
  static constexpr int kTokens = 32, kThreads = 128, kWarps = 4, kStages = 3;
  static constexpr int kColumns = (RP == 64 ? 2 : 4) * kLine<T>;  // of one block
  static constexpr int kPitchD = kColumns + kPad<T>, kPitchZ = RP + kPad<T>;
  static constexpr int kTileD = kTokens * kPitchD, kTileZ = kTokens * kPitchZ, kTileB = RP * kPitchD;
  static constexpr int shared_bytes(bool inner) {
    return (kStages * kTileD + 2 * kTileZ + (inner ? kTileB : 0)) * int(sizeof(T));
  }
};

template <class T, int RP, bool INNER>
__global__ void __launch_bounds__(128, 2) outer_kernel(OuterArgs p) {
  using S = OuterShape<T, RP>;
  constexpr int kRankTiles = RP / 16, kColumnTiles = S::kColumns / S::kWarps / 8;
  [[maybe_unused]] constexpr int kUnroll =
      sizeof(T) == 2 ? 2 : 1;  // split float32 fragments are as many registers as there are
  SharedCarver carve;
  T* const tiles_d = carve.template take<T>(S::kStages * S::kTileD);
  T* const tiles_z = carve.template take<T>(2 * S::kTileZ);
  T* tile_b = nullptr;
  if constexpr (INNER) tile_b = carve.template take<T>(S::kTileB);

  Tile chunk;
  if (!find_tile(p.segments, int(blockIdx.x), p.chunk, chunk)) return;
  const int first_column = int(blockIdx.y) * S::kColumns, first_rank = int(blockIdx.z) * RP;
  const int columns = p.columns - first_column < S::kColumns ? p.columns - first_column : S::kColumns;
  const int ranks = p.rank - first_rank < RP ? p.rank - first_rank : RP;
  const int steps = (chunk.tokens + S::kTokens - 1) / S::kTokens;
  const T* const d = static_cast<const T*>(p.d) + size_t(chunk.begin) * p.columns + first_column;
  const float* const z = p.z + size_t(chunk.begin) * p.rank + first_rank;

  const int u = factor_row(p.rows, chunk.segment, p.n_rows);
  float* inner = nullptr;
  if constexpr (INNER) inner = p.inner + (size_t(blockIdx.y) * p.segments.n_tokens + chunk.begin) * p.rank + first_rank;
  if (u < 0) {  // nobody gathers its parts
    if constexpr (INNER) fill_tile(inner, p.rank, chunk.tokens, ranks, product_without(u));
    return;
  }
  if constexpr (INNER) {  // joins the first step's group of copies
    load_factor<T, RP, S::kColumns, S::kThreads>(tile_b, S::kPitchD, p.b,
                                                 (size_t(u) * p.rank + first_rank) * p.columns + first_column,
                                                 p.columns, ranks, columns);
  }
  auto load_step = [&](int s) {
    if (s < steps) {
      const int token = s * S::kTokens;
      load_tile<T, S::kTokens, S::kColumns, S::kThreads>(tiles_d + s % S::kStages * S::kTileD, S::kPitchD,
                                                         d + size_t(token) * p.columns, p.columns, chunk.tokens - token,
                                                         columns, p.d_vectors);
    }
    cp_async_commit();
  };
  // t is float32 in memory: the next step's part waits in registers, then goes to shared memory in T.
  constexpr int kEach = S::kTokens * RP / S::kThreads;
  float next_z[kEach];
  auto fetch_z = [&](int s) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int q = int(threadIdx.x) + i * S::kThreads, token = s * S::kTokens + q / RP, r = q % RP;
      next_z[i] = token < chunk.tokens && r < ranks ? z[size_t(token) * p.rank + r] : 0.0f;
    }
  };
  auto store_z = [&](int s) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int q = int(threadIdx.x) + i * S::kThreads;
      tiles_z[s % 2 * S::kTileZ + q / RP * S::kPitchZ + q % RP] = from_float<T>(activate(next_z[i], p.activation));
    }
  };

#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_step(s);
  fetch_z(0);
  store_z(0);

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), g = lane / 4, t = lane % 4;
  const bool add_columns = INNER && p.column_sums && blockIdx.z == 0;
  const bool add_ranks = !INNER && p.rank_sums && blockIdx.y == 0 && warp == 0;
  const auto one = Matrix<T>::pack(1.0f, 1.0f);
  const FragmentA<T> ones_a{{{one, one}, {one, one}}};
  const FragmentB<T> ones_b{{one, one}};
  Accumulator sums[kRankTiles][kColumnTiles] = {};
  Accumulator column_sums[INNER ? kColumnTiles : 1] = {}, rank_sums[INNER ? 1 : kRankTiles] = {};

  for (int s = 0; s < steps; ++s) {
    cp_async_wait<S::kStages - 2>();
    __syncthreads();  // step s is there, t included, and nobody reads the slot that is filled next
    load_step(s + S::kStages - 1);
    const bool more = s + 1 < steps;
    if (more) fetch_z(s + 1);
    const T* const td = tiles_d + s % S::kStages * S::kTileD;
    const T* const tz = tiles_z + s % 2 * S::kTileZ;

    // t^T D: each warp a quarter of the columns.
#pragma unroll kUnroll
    for (int k = 0; k < S::kTokens; k += 16) {
      FragmentA<T> a[kRankTiles];
#pragma unroll
      for (int m = 0; m < kRankTiles; ++m) load_a_columns(a[m], tz + k * S::kPitchZ + m * 16, S::kPitchZ);
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        FragmentB<T> b[2];
        load_b_columns(b, td + k * S::kPitchD + (warp * kColumnTiles + n) * 8, S::kPitchD);
#pragma unroll
        for (int m = 0; m < kRankTiles; ++m) {
          multiply<T>(sums[m][n], a[m], b[0]);
          multiply<T>(sums[m][n + 1], a[m], b[1]);
        }
        if constexpr (INNER) {
          if (add_columns) {
            multiply<T>(column_sums[n], ones_a, b[0]);
            multiply<T>(column_sums[n + 1], ones_a, b[1]);
          }
        }
      }
      if constexpr (!INNER) {
        if (add_ranks) {
#pragma unroll
          for (int m = 0; m < kRankTiles; ++m) multiply<T>(rank_sums[m], a[m], ones_b);
        }
      }
    }

    // D B^T over this block's columns: warp = half of the tokens, half of the rank.
    if constexpr (INNER) {
      constexpr int kTiles = RP / 16;  // n8 tiles of half the rank
      const int tokens = warp % 2 * 16, first = warp / 2 * (RP / 2);
      Accumulator product[kTiles] = {};
#pragma unroll(kUnroll == 1 ? 1 : 4)
      for (int k = 0; k < S::kColumns; k += 16) {
        FragmentA<T> a;
        load_a_rows(a, td + tokens * S::kPitchD + k, S::kPitchD);
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          FragmentB<T> b[2];
          if constexpr (kTiles == 1) {  // both fragments are read, the warp uses its own
            load_b_rows(b, tile_b + k, S::kPitchD);
#pragma unroll
            for (int h = 0; h < 2; ++h) b[0].pair[h] = first ? b[1].pair[h] : b[0].pair[h];
            multiply<T>(product[0], a, b[0]);
          } else {
            load_b_rows(b, tile_b + (first + n * 8) * S::kPitchD + k, S::kPitchD);
            multiply<T>(product[n], a, b[0]);
            multiply<T>(product[n + 1], a, b[1]);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int token = s * S::kTokens + tokens + g + e / 2 * 8, r = first + n * 8 + 2 * t + e % 2;
          if (token < chunk.tokens && r < ranks) inner[size_t(token) * p.rank + r] = product[n][e];
        }
    }
    if (more) store_z(s + 1);  // into the slot that was read before this step's barrier
  }

  float* const parts = p.parts + (size_t(blockIdx.x) * p.rank + first_rank) * p.columns + first_column;
#pragma unroll
  for (int m = 0; m < kRankTiles; ++m)
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = m * 16 + g + e / 2 * 8, c = (warp * kColumnTiles + n) * 8 + 2 * t + e % 2;
        if (r < ranks && c < columns) parts[size_t(r) * p.columns + c] = sums[m][n][e];
      }
  if constexpr (INNER) {
    if (add_columns && g == 0) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = (warp * kColumnTiles + n) * 8 + 2 * t + e;
          if (c < columns) p.column_sums[size_t(blockIdx.x) * p.columns + first_column + c] = column_sums[n][e];
        }
    }
  } else {
    if (add_ranks && t == 0) {
#pragma unroll
      for (int m = 0; m < kRankTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = m * 16 + g + 8 * half;
          if (r < ranks) p.rank_sums[size_t(blockIdx.x) * p.rank + first_rank + r] = rank_sums[m][2 * half];
        }
    }
  }
}

}  // namespace mhr::cuda
