// Gradients of the factors, as partial sums over chunks of tokens, in one pass over a wide tensor D:
//   parts[chunk, r, c] = sum_n t[n, r] D[n, c],   t = act(z) and D = dy for dB,   t = dz and D = x for dA ([chunk, c,
//   r])
// and on the way, for dy, its product with B (partial over groups of columns) and its column sums:
//   inner[group, n, r] = sum_{c in group} D[n, c] B_u[r, c],   column_sums[chunk, c] = sum_n D[n, c]
// or, for x, the sums of dz over the chunk: rank_sums[chunk, r] = sum_n t[n, r].
// A block takes one chunk of one run or, where runs are short beside chunks, of the tokens that have one row in common,
// a group of column blocks one after the other, and up to RP of the rank. A thread
// adds what a column block gives of `inner` to what it wrote itself of the one before, which the L2 cache still has: so
// there are few partial ones. Everything is added later in a fixed order by reduce.cuh: no atomics, the same bits in
// every run.
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
  float* parts;        // [chunks, R, C] with INNER, [chunks, C, R] without
  float* inner;        // [groups, N, R], only with INNER
  float* column_sums;  // [chunks, C] or null, only with INNER
  float* rank_sums;    // [chunks, R] or null, only without INNER
  int* chunk_rows;     // [chunks]: the row that takes the chunk's sums, or -1
  Segments segments;
  int columns, rank, chunk, blocks_per_group;
  Activation activation;
  bool d_vectors, z_vectors, inner_pairs;
  int z_stride;  // of a row of z, R or more
};

// What a chunk of one row's tokens may have, and how many rows there may then be: their counts lie where D comes later.
constexpr int kMostChunkTokens = 1024, kMostChunkRows = 8192;

template <class T, int RP>
struct OuterShape {
  static constexpr int kTokens = 32, kWarps = RP == 64 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kStages = RP == 64 && sizeof(T) == 4 ? 2 : 3;  // of what shared memory holds
  static constexpr int kBlocks = RP == 64 ? 1 : 2;                    // of one multiprocessor
  static constexpr int kColumns = 4 * kLine<T>;                       // of one column block
  static constexpr int kPitchD = kColumns + kPad<T>, kPitchZ = RP + kPad<T>;
  static constexpr int kTileD = kTokens * kPitchD, kTileZ = kTokens * kPitchZ, kTileB = RP * kPitchD;
  static constexpr int kRankTiles = RP / 16, kColumnTiles = kColumns / kWarps / 8;
  static constexpr int kInnerTiles = RP / (kWarps / 2) / 8;  // of one warp: half of the tokens, a part of the rank
  static constexpr int shared_bytes(bool inner) {
    return (kStages * kTileD + 2 * kTileZ + (inner ? kTileB : 0)) * int(sizeof(T));
  }
};

template <class T, int RP, bool INNER, bool BY_ROWS>
__global__ void __launch_bounds__(OuterShape<T, RP>::kThreads, OuterShape<T, RP>::kBlocks) outer_kernel(OuterArgs p) {
  using S = OuterShape<T, RP>;
  using M = Matrix<T>;
  static_assert((kMostChunkRows + 2) * sizeof(int) <= S::kStages * S::kTileD * sizeof(T));
  [[maybe_unused]] constexpr int kUnroll =
      sizeof(T) == 2 ? 2 : 1;  // split float32 fragments are as many registers as there are
  SharedCarver carve;
  T* const tiles_d = carve.template take<T>(S::kStages * S::kTileD);
  T* const tiles_z = carve.template take<T>(2 * S::kTileZ);
  T* tile_b = nullptr;
  if constexpr (INNER) tile_b = carve.template take<T>(S::kTileB);

  // Token i of the chunk is token first_token + i of the tensors, or tokens_of[i].
  int u, chunk_tokens, first_token = 0;
  bool found;
  [[maybe_unused]] int* tokens_of = nullptr;
  if constexpr (BY_ROWS) {
    tokens_of = carve.template take<int>(p.chunk);
    RowChunk chunk;
    found = find_row_chunk(p.segments, int(blockIdx.x), p.chunk, reinterpret_cast<int*>(tiles_d), tokens_of, chunk);
    const int none = chunk.row - p.segments.n_rows;
    u = none < 0 ? chunk.row : none == 0 ? kNoAdapter : kNoSuchRow;
    chunk_tokens = chunk.tokens;
  } else {
    Tile chunk;
    found = find_tile(p.segments, int(blockIdx.x), p.chunk, chunk);
    if (found) u = factor_row(p.segments, chunk.segment);
    chunk_tokens = chunk.tokens;
    first_token = chunk.begin;
  }
  const auto mark = [&](int row) {
    if (threadIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) p.chunk_rows[blockIdx.x] = row;
  };
  if (!found) return mark(-1);
  const auto token_at = [&](int i) {
    if constexpr (BY_ROWS) return size_t(tokens_of[i]);
    return size_t(i);
  };
  const int first_column = int(blockIdx.y) * p.blocks_per_group * S::kColumns, first_rank = int(blockIdx.z) * RP;
  const int all = p.columns - first_column, group = p.blocks_per_group * S::kColumns;
  const int columns = all < group ? all : group, ranks = p.rank - first_rank < RP ? p.rank - first_rank : RP;
  const T* const d = static_cast<const T*>(p.d) + size_t(first_token) * p.columns + first_column;
  const float* const z = p.z + size_t(first_token) * p.z_stride + first_rank;
  float* inner = nullptr;
  if constexpr (INNER) inner = p.inner + (size_t(blockIdx.y) * p.segments.n_tokens + first_token) * p.rank + first_rank;
  if (u < 0) {  // nobody gathers its parts
    if constexpr (INNER)
      for (int q = int(threadIdx.x); q < chunk_tokens * ranks; q += S::kThreads)
        inner[token_at(q / ranks) * p.rank + q % ranks] = product_without(u);
    return mark(-1);
  }

  auto load_b = [&](int column) {
    load_vectors<T, RP, S::kColumns, S::kThreads>(
        tile_b, S::kPitchD,
        static_cast<const T*>(p.b.data) + (size_t(u) * p.rank + first_rank) * p.b.stride + first_column + column,
        p.b.stride, ranks, columns - column);
  };
  int load_token = 0, load_column = 0, fill = 0;
  auto load_next = [&] {
    if (load_column < columns) {
      T* const to = tiles_d + fill * S::kTileD;
      if constexpr (BY_ROWS) {
        load_rows<T, S::kTokens, S::kColumns, S::kThreads>(to, S::kPitchD, d + load_column, p.columns,
                                                           tokens_of + load_token, chunk_tokens - load_token,
                                                           columns - load_column, p.d_vectors);
      } else {
        load_tile<T, S::kTokens, S::kColumns, S::kThreads>(
            to, S::kPitchD, d + size_t(load_token) * p.columns + load_column, p.columns, chunk_tokens - load_token,
            columns - load_column, p.d_vectors);
      }
      load_token += S::kTokens;
      if (load_token >= chunk_tokens) {
        load_token = 0;
        load_column += S::kColumns;
      }
      fill = fill == S::kStages - 1 ? 0 : fill + 1;
    }
    cp_async_commit();
  };
  // t is float32 in memory: the next step's part waits in registers, then goes to shared memory in T.
  constexpr int kFours = S::kTokens * RP / 4 / S::kThreads;
  float next_z[kFours][4];
  auto fetch_z = [&](int first) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int q = int(threadIdx.x) + i * S::kThreads, token = first + q / (RP / 4), r = q % (RP / 4) * 4;
      const bool present = token < chunk_tokens;
      load_four(next_z[i], z + (BY_ROWS && !present ? 0 : token_at(token)) * p.z_stride + r, present ? ranks - r : 0,
                p.z_vectors);
    }
  };
  auto store_z = [&](int slot) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int q = int(threadIdx.x) + i * S::kThreads;
      const float* const v = next_z[i];
      auto* const to = reinterpret_cast<typename M::Pair*>(tiles_z + slot * S::kTileZ + q / (RP / 4) * S::kPitchZ +
                                                           q % (RP / 4) * 4);
      to[0] = M::pack(activate(v[0], p.activation), activate(v[1], p.activation));
      to[1] = M::pack(activate(v[2], p.activation), activate(v[3], p.activation));
    }
  };

  if constexpr (INNER) load_b(0);  // joins the first step's group of copies
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) load_next();
  fetch_z(0);
  store_z(0);

  const int lane = int(threadIdx.x & 31), warp = int(threadIdx.x >> 5), g = lane / 4, t = lane % 4;
  const bool add_columns = INNER && p.column_sums && blockIdx.z == 0;
  const bool add_ranks = !INNER && p.rank_sums && blockIdx.y == 0 && warp == 0;
  const bool even_columns = p.columns % 2 == 0;
  const auto one = M::pack(1.0f, 1.0f);
  const FragmentA<T> ones_a{{{one, one}, {one, one}}};
  const FragmentB<T> ones_b{{one, one}};
  Accumulator rank_sums[INNER ? 1 : S::kRankTiles] = {};
  int slot = 0, slot_z = 0;

  for (int column = 0; column < columns; column += S::kColumns) {
    const bool first_block = column == 0, last_block = column + S::kColumns >= columns;
    Accumulator sums[S::kRankTiles][S::kColumnTiles] = {}, column_sums[INNER ? S::kColumnTiles : 1] = {};
    for (int token = 0; token < chunk_tokens; token += S::kTokens) {
      cp_async_wait<S::kStages - 2>();
      __syncthreads();  // step s is there, t included, and nobody reads the slot that is filled next
      const bool new_b = INNER && token == 0 && !first_block;
      if constexpr (INNER) {
        if (new_b) {
          load_b(column);
          cp_async_commit();
        }
      }
      load_next();
      const int next = token + S::kTokens < chunk_tokens ? token + S::kTokens : 0;
      const bool more = next || !last_block;
      if (more) fetch_z(next);
      const T* const td = tiles_d + slot * S::kTileD;
      const T* const tz = tiles_z + slot_z * S::kTileZ;
      slot = slot == S::kStages - 1 ? 0 : slot + 1;
      slot_z ^= 1;

      // t^T D: each warp its part of the columns.
#pragma unroll kUnroll
      for (int k = 0; k < S::kTokens; k += 16) {
        FragmentA<T> a[S::kRankTiles];
#pragma unroll
        for (int m = 0; m < S::kRankTiles; ++m) load_a_columns(a[m], tz + k * S::kPitchZ + m * 16, S::kPitchZ);
#pragma unroll
        for (int n = 0; n < S::kColumnTiles; n += 2) {
          FragmentB<T> b[2];
          load_b_columns(b, td + k * S::kPitchD + (warp * S::kColumnTiles + n) * 8, S::kPitchD);
#pragma unroll
          for (int m = 0; m < S::kRankTiles; ++m) {
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
          if (add_ranks && first_block) {
#pragma unroll
            for (int m = 0; m < S::kRankTiles; ++m) multiply<T>(rank_sums[m], a[m], ones_b);
          }
        }
      }

      // D B^T over this column block: half of the tokens and a part of the rank for each warp.
      if constexpr (INNER) {
        if (new_b) {
          cp_async_wait<1>();  // all but the step that was asked for after B
          __syncthreads();
        }
        const int row = warp % 2 * 16, first = warp / 2 * S::kInnerTiles * 8;
        float2 earlier[S::kInnerTiles][2] = {};  // what this thread left of the group's earlier column blocks
        if (!first_block) {
#pragma unroll
          for (int n = 0; n < S::kInnerTiles; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int at = token + row + g + half * 8, r = first + n * 8 + 2 * t;
              if (at < chunk_tokens)
                earlier[n][half] = load_two(inner + token_at(at) * p.rank + r, ranks - r, p.inner_pairs);
            }
        }
        Accumulator product[S::kInnerTiles] = {};
#pragma unroll(kUnroll == 1 ? 1 : 4)
        for (int k = 0; k < S::kColumns; k += 16) {
          FragmentA<T> a;
          load_a_rows(a, td + row * S::kPitchD + k, S::kPitchD);
          FragmentB<T> b[2];
          if constexpr (S::kInnerTiles == 1) {  // both fragments are read, the warp uses its own
            load_b_rows(b, tile_b + k, S::kPitchD);
#pragma unroll
            for (int h = 0; h < 2; ++h) b[0].pair[h] = first ? b[1].pair[h] : b[0].pair[h];
            multiply<T>(product[0], a, b[0]);
          } else {
            load_b_rows(b, tile_b + first * S::kPitchD + k, S::kPitchD);
            multiply<T>(product[0], a, b[0]);
            multiply<T>(product[1], a, b[1]);
          }
        }
#pragma unroll
        for (int n = 0; n < S::kInnerTiles; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 v{product[n][2 * half] + earlier[n][half].x, product[n][2 * half + 1] + earlier[n][half].y};
            const int at = token + row + g + half * 8, r = first + n * 8 + 2 * t;
            if (at < chunk_tokens) store_two(inner + token_at(at) * p.rank + r, v.x, v.y, ranks - r, p.inner_pairs);
          }
      }
      if (more) store_z(slot_z);  // into the slot that was read before this step's barrier
    }

    const int left = columns - column;
    if constexpr (INNER) {
      float* const parts = p.parts + (size_t(blockIdx.x) * p.rank + first_rank) * p.columns + first_column + column;
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; ++n) {
        const int c = (warp * S::kColumnTiles + n) * 8 + 2 * t;
#pragma unroll
        for (int m = 0; m < S::kRankTiles; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int r = m * 16 + g + 8 * half;
            if (r < ranks)
              store_two(parts + size_t(r) * p.columns + c, sums[m][n][2 * half], sums[m][n][2 * half + 1], left - c,
                        even_columns);
          }
        if (add_columns && g == 0)
          store_two(p.column_sums + size_t(blockIdx.x) * p.columns + first_column + column + c, column_sums[n][0],
                    column_sums[n][1], left - c, even_columns);
      }
    } else {  // eight lanes have neighbours of the rank: whole sectors
      float* const parts = p.parts + (size_t(blockIdx.x) * p.columns + first_column + column) * p.rank + first_rank;
#pragma unroll
      for (int n = 0; n < S::kColumnTiles; ++n)
#pragma unroll
        for (int m = 0; m < S::kRankTiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int r = m * 16 + g + e / 2 * 8, c = (warp * S::kColumnTiles + n) * 8 + 2 * t + e % 2;
            if (r < ranks && c < left) parts[size_t(c) * p.rank + r] = sums[m][n][e];
          }
    }
  }

  mark(u);
  if constexpr (!INNER) {
    if (add_ranks && t == 0) {
#pragma unroll
      for (int m = 0; m < S::kRankTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = m * 16 + g + 8 * half;
          if (r < ranks) p.rank_sums[size_t(blockIdx.x) * p.rank + first_rank + r] = rank_sums[m][2 * half];
        }
    }
  }
}

}  // namespace mhr::cuda
