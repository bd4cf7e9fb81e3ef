// Launchers of the routed adapter: how the work is cut into blocks, and which kernels run in which order.
//   forward       shrink -> (finish, when the input dimension was split) -> expand
//   backward, dy  outer with dy B^T -> finish dz -> gather dB (and the bias)
//   backward, x   outer -> gather dA (and the bias) -> expand with A^T into dx
// Every size below follows from the problem's sizes alone, never from the device: the same bits on every GPU.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cuda/expand.cuh"
#include "cuda/launch.h"
#include "cuda/outer.cuh"
#include "cuda/reduce.cuh"
#include "cuda/routed_adapter.h"
#include "cuda/shrink.cuh"

namespace mhr::cuda {

constexpr int kBlocksWanted = 264;  // two for each multiprocessor of the largest GPUs

inline Segments segments_of(const Routing& r) {
  return {r.offsets, int(r.n_segments), int(r.n_segments ? r.n_tokens / r.n_segments : 0), int(r.n_tokens)};
}

// Cuts `steps` pipeline steps into ranges for separate blocks: none shorter than four steps, no more than are useful.
inline int steps_per_range(int steps, int blocks) {
  const int ranges = std::max(1, std::min(ceil_div(kBlocksWanted, std::max(blocks, 1)), steps / 4));
  return std::max(1, ceil_div(steps, ranges));
}

// Tokens of one chunk of the outer products: enough blocks to fill a GPU, yet few partial sums beside the tensor read.
inline int chunk_tokens(int64_t n_tokens, int column_blocks) {
  const int64_t even = n_tokens * column_blocks / (2 * kBlocksWanted);
  return int(std::max<int64_t>(256, std::min<int64_t>(1024, (even + 31) / 32 * 32)));
}

// B [U, R, O]; A [U, I, R] may also be copied flat while one tile holds the whole rank.
template <class T>
Factor factor_of(const void* data, bool is_float, int64_t row, int64_t rows, bool may_be_flat) {
  if (is_float && sizeof(T) == 2) return {data, Access::kConvert};
  if (is_aligned(data, size_t(row) * sizeof(T))) return {data, Access::kVectors};
  if (may_be_flat && row <= 64 && is_aligned(data, size_t(row * rows) * sizeof(T))) return {data, Access::kFlat};
  return {data, Access::kElements};
}

inline int padded_rank(int64_t rank) { return rank <= 16 ? 16 : rank <= 32 ? 32 : 64; }
inline int rank_tiles(int64_t rank) { return ceil_div(rank, 64); }

// Calls f with the padded rank as a compile-time constant.
template <class F>
const char* with_padded_rank(int64_t rank, F f) {
  switch (padded_rank(rank)) {
    case 16:
      return f(std::integral_constant<int, 16>());
    case 32:
      return f(std::integral_constant<int, 32>());
    default:
      return f(std::integral_constant<int, 64>());
  }
}

template <class T>
struct ForwardPlan {
  int steps, per_range, ranges;
  explicit ForwardPlan(const RoutedAdapterForward& p)
      : steps(ceil_div(p.in_features, kLine<T>)),
        per_range(steps_per_range(steps, max_tiles(segments_of(p.routing), 64) * rank_tiles(p.rank))),
        ranges(ceil_div(steps, per_range)) {}
};

template <class T>
struct OuterPlan {
  int column_blocks, chunk, chunks;
  OuterPlan(const Routing& routing, int64_t columns, int64_t rank)
      : column_blocks(ceil_div(columns, (padded_rank(rank) == 64 ? 2 : 4) * kLine<T>)),
        chunk(chunk_tokens(routing.n_tokens, column_blocks * rank_tiles(rank))),
        chunks(routing.n_tokens ? max_tiles(segments_of(routing), chunk) : 0) {}
};

inline const char* finish(const FinishArgs& p, Stream stream) {
  auto* const kernel = finish_kernel<kReduceThreads>;
  return MHR_LAUNCH(kernel, dim3(unsigned(ceil_div(p.size, kReduceThreads))), dim3(kReduceThreads), 0, stream, p);
}

inline const char* gather(const GatherArgs& p, int64_t n_rows, Stream stream) {
  if (n_rows == 0) return nullptr;
  if (n_rows > 65535) return "at most 65535 rows of factors can take gradients in one call";
  auto* const kernel = gather_kernel<kReduceThreads>;
  const dim3 grid(unsigned(ceil_div(int64_t(p.height) * p.width, kReduceThreads)), unsigned(n_rows));
  return MHR_LAUNCH(kernel, grid, dim3(kReduceThreads), 0, stream, p);
}

template <class T, int RP, bool TRANSPOSED>
const char* expand(ExpandArgs p, Stream stream) {
  using S = ExpandShape<T, RP, TRANSPOSED>;
  auto* const kernel = expand_kernel<T, RP, TRANSPOSED>;
  const int tiles = max_tiles(p.segments, S::kTokens), steps = ceil_div(p.columns, S::kStep);
  p.steps_per_range = steps_per_range(steps, tiles);
  const dim3 grid(unsigned(tiles), unsigned(ceil_div(steps, p.steps_per_range)));
  for (p.first_rank = 0; p.first_rank < p.rank; p.first_rank += S::kMaxRanks) {
    p.ranks = std::min(S::kMaxRanks, p.rank - p.first_rank);
    const int shared = S::shared_bytes(ceil_div(p.ranks, RP));
    MHR_TRY(MHR_LAUNCH(kernel, grid, dim3(S::kThreads), shared, stream, p));
    p.bias = nullptr;
    p.accumulate = true;
  }
  return nullptr;
}

template <class T, int RP, bool INNER>
const char* outer(const OuterArgs& p, const OuterPlan<T>& plan, Stream stream) {
  using S = OuterShape<T, RP>;
  auto* const kernel = outer_kernel<T, RP, INNER>;
  const dim3 grid(unsigned(plan.chunks), unsigned(plan.column_blocks), unsigned(ceil_div(p.rank, RP)));
  return MHR_LAUNCH(kernel, grid, dim3(S::kThreads), S::shared_bytes(INNER), stream, p);
}

template <class T>
size_t forward_workspace(const RoutedAdapterForward& p) {
  const ForwardPlan<T> plan(p);
  return plan.ranges > 1 ? sizeof(float) * size_t(plan.ranges) * size_t(p.routing.n_tokens * p.rank) : 0;
}

template <class T>
const char* forward(const RoutedAdapterForward& p, float* workspace, Stream stream) {
  if (p.routing.n_tokens == 0) return nullptr;
  const Segments segments = segments_of(p.routing);
  const ForwardPlan<T> plan(p);
  const bool convert = p.factors_are_float;
  return with_padded_rank(p.rank, [&](auto rp) -> const char* {
    constexpr int RP = decltype(rp)::value;
    using S = ShrinkShape<T, RP>;
    const ShrinkArgs shrink{p.x,
                            factor_of<T>(p.a, convert, p.rank, p.in_features, true),
                            p.bias_a,
                            plan.ranges > 1 ? workspace : p.z,
                            segments,
                            p.rows_a,
                            int(p.n_rows_a),
                            int(p.in_features),
                            int(p.rank),
                            plan.per_range,
                            is_aligned(p.x, size_t(p.in_features) * sizeof(T)),
                            convert};
    auto* const kernel = shrink_kernel<T, RP>;
    const dim3 grid(unsigned(max_tiles(segments, S::kTokens)), unsigned(plan.ranges), unsigned(ceil_div(p.rank, RP)));
    MHR_TRY(MHR_LAUNCH(kernel, grid, dim3(S::kThreads), S::kShared, stream, shrink));
    if (plan.ranges > 1) {
      MHR_TRY(
          finish({workspace, nullptr, p.z, p.routing.n_tokens * p.rank, plan.ranges, 1.0f, Activation::kNone}, stream));
    }
    return expand<T, RP, false>(
        {p.z, factor_of<T>(p.b, convert, p.out_features, p.rank, false), p.bias_b, p.y, segments, p.rows_b,
         int(p.n_rows_b), int(p.out_features), int(p.rank), 0, 0, 0, p.scale, p.activation,
         is_aligned(p.y, size_t(p.out_features) * sizeof(T)), convert, true},
        stream);
  });
}

// Scratch of an outer product: parts, then the sums for the bias, then the partial dz.
struct OuterScratch {
  size_t parts, sums, inner;
  size_t bytes() const { return sizeof(float) * (parts + sums + inner); }
};

template <class T>
OuterScratch backward_dy_scratch(const RoutedAdapterBackwardDy& p) {
  const OuterPlan<T> plan(p.routing, p.out_features, p.rank);
  const auto chunks = size_t(plan.chunks);
  return {chunks * size_t(p.rank * p.out_features), p.dbias_b ? chunks * size_t(p.out_features) : 0,
          size_t(plan.column_blocks) * size_t(p.routing.n_tokens * p.rank)};
}

template <class T>
const char* backward_dy(const RoutedAdapterBackwardDy& p, float* workspace, Stream stream) {
  const Segments segments = segments_of(p.routing);
  const OuterPlan<T> plan(p.routing, p.out_features, p.rank);
  const OuterScratch scratch = backward_dy_scratch<T>(p);
  float *const parts = workspace, *const sums = parts + scratch.parts, *const inner = sums + scratch.sums;
  const int rank = int(p.rank), columns = int(p.out_features);
  if (plan.chunks) {
    const OuterArgs args{p.dy,
                         p.z,
                         factor_of<T>(p.b, p.factors_are_float, p.out_features, p.rank, false),
                         parts,
                         inner,
                         p.dbias_b ? sums : nullptr,
                         nullptr,
                         segments,
                         p.rows_b,
                         int(p.n_rows_b),
                         columns,
                         rank,
                         plan.chunk,
                         p.activation,
                         is_aligned(p.dy, size_t(columns) * sizeof(T))};
    MHR_TRY(with_padded_rank(p.rank, [&](auto rp) { return outer<T, decltype(rp)::value, true>(args, plan, stream); }));
    MHR_TRY(finish({inner, p.activation == Activation::kNone ? nullptr : p.z, p.dz, p.routing.n_tokens * p.rank,
                    plan.column_blocks, p.scale, p.activation},
                   stream));
  }
  if (p.dbias_b) {
    MHR_TRY(gather({sums, p.dbias_b, segments, p.rows_b, plan.chunk, plan.chunks, 1, columns, p.scale, false},
                   p.n_rows_b, stream));
  }
  return gather({parts, p.db, segments, p.rows_b, plan.chunk, plan.chunks, rank, columns, p.scale, false}, p.n_rows_b,
                stream);
}

template <class T>
OuterScratch backward_x_scratch(const RoutedAdapterBackwardX& p) {
  const auto chunks = size_t(OuterPlan<T>(p.routing, p.in_features, p.rank).chunks);
  return {chunks * size_t(p.rank * p.in_features), p.dbias_a ? chunks * size_t(p.rank) : 0, 0};
}

template <class T>
const char* backward_x(const RoutedAdapterBackwardX& p, float* workspace, Stream stream) {
  const Segments segments = segments_of(p.routing);
  const OuterPlan<T> plan(p.routing, p.in_features, p.rank);
  float *const parts = workspace, *const sums = parts + backward_x_scratch<T>(p).parts;
  const int rank = int(p.rank), columns = int(p.in_features);
  if (plan.chunks) {
    const OuterArgs args{p.x,
                         p.dz,
                         {},
                         parts,
                         nullptr,
                         nullptr,
                         p.dbias_a ? sums : nullptr,
                         segments,
                         p.rows_a,
                         int(p.n_rows_a),
                         columns,
                         rank,
                         plan.chunk,
                         Activation::kNone,
                         is_aligned(p.x, size_t(columns) * sizeof(T))};
    MHR_TRY(
        with_padded_rank(p.rank, [&](auto rp) { return outer<T, decltype(rp)::value, false>(args, plan, stream); }));
  }
  if (p.dbias_a) {
    MHR_TRY(gather({sums, p.dbias_a, segments, p.rows_a, plan.chunk, plan.chunks, 1, rank, 1.0f, false}, p.n_rows_a,
                   stream));
  }
  MHR_TRY(gather({parts, p.da, segments, p.rows_a, plan.chunk, plan.chunks, rank, columns, 1.0f, true}, p.n_rows_a,
                 stream));
  if (!p.dx || !plan.chunks) return nullptr;
  const ExpandArgs args{p.dz,
                        factor_of<T>(p.a, p.factors_are_float, p.rank, p.in_features, true),
                        nullptr,
                        p.dx,
                        segments,
                        p.rows_a,
                        int(p.n_rows_a),
                        columns,
                        rank,
                        0,
                        0,
                        0,
                        1.0f,
                        Activation::kNone,
                        is_aligned(p.dx, size_t(columns) * sizeof(T)),
                        false,
                        p.accumulate};
  return with_padded_rank(p.rank, [&](auto rp) { return expand<T, decltype(rp)::value, true>(args, stream); });
}

// The three types are compiled apart (routed_adapter_<type>.cu) so that they compile side by side.
#define MHR_ROUTED_ADAPTER(declaration, T)                                                         \
  declaration template size_t forward_workspace<T>(const RoutedAdapterForward&);                   \
  declaration template const char* forward<T>(const RoutedAdapterForward&, float*, Stream);        \
  declaration template OuterScratch backward_dy_scratch<T>(const RoutedAdapterBackwardDy&);        \
  declaration template const char* backward_dy<T>(const RoutedAdapterBackwardDy&, float*, Stream); \
  declaration template OuterScratch backward_x_scratch<T>(const RoutedAdapterBackwardX&);          \
  declaration template const char* backward_x<T>(const RoutedAdapterBackwardX&, float*, Stream);

}  // namespace mhr::cuda
