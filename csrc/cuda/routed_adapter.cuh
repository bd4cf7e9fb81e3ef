// Launchers of the routed adapter: how the work is cut into blocks, and which kernels run in which order.
//   forward       (pad A and B) -> shrink -> expand
//   backward, dy  (pad B) -> outer with dy B^T -> finish dz -> gather dB (and the bias)
//   backward, x   outer -> gather dA (and the bias) -> (pad A) -> expand with A^T into dx
// Every size below follows from the problem's sizes alone, never from the device: the same bits on every GPU.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/expand.cuh"
#include "cuda/launch.h"
#include "cuda/outer.cuh"
#include "cuda/pad.cuh"
#include "cuda/reduce.cuh"
#include "cuda/routed_adapter.h"
#include "cuda/shrink.cuh"

namespace mhr::cuda {

inline Segments segments_of(const Routing& r, const int64_t* rows, int64_t n_rows) {
  const int64_t length = r.n_segments ? r.n_tokens / r.n_segments : 0;
  return {r.offsets, rows, int(r.n_segments), int(length), int(r.n_tokens), int(n_rows)};
}

// Whether each row of a float32 matrix can be taken in twos or fours.
inline bool are_pairs(const float* p, int64_t columns) { return is_aligned(p, size_t(columns) * sizeof(float), 8); }
inline bool are_fours(const float* p, int64_t columns) { return is_aligned(p, size_t(columns) * sizeof(float)); }

// Cuts `steps` pipeline steps of so many lines into ranges, so that `blocks` times as many reach those wanted: none
// shorter than four lines, no more than are useful.
inline int steps_per_range(int steps, int lines, int blocks, int wanted) {
  const int ranges = std::max(1, std::min(ceil_div(wanted, std::max(blocks, 1)), steps * lines / 4));
  return std::max(1, ceil_div(steps, ranges));
}

// Of rows in any order U - 1 of U segments begin a run: tiles are short where runs of that mean length fill no more
// than one.
inline int tile_tokens(const Segments& s) {
  return s.n_tokens * int64_t(s.n_rows) <= kShortTile * int64_t(s.count) * (s.n_rows - 1) ? kShortTile : kLongTile;
}

// Workspace, handed out in multiples of 16 bytes. A pass plans with it first, without memory to learn how much it
// takes.
struct Workspace {
  char* memory;
  size_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* const p = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 15) / 16 * 16;
    return p;
  }
};

// Factors on their way to the kernels: as they are where those can read them, else copies made by one launch.
template <class T>
class AdapterFactors {
 public:
  AdapterFactors(Workspace& workspace, const Routing& routing)
      : workspace_(workspace), segments_(int(routing.n_segments)) {}

  // [U, height, width], of T or float32, or rows `given` apart.
  Factor add(const void* data, bool is_float, const int64_t* rows, int64_t n_rows, int64_t height, int64_t width,
             int64_t given = 0) {
    const bool converts = is_float && sizeof(T) == 2;
    const int64_t apart = given ? given : width;
    if (!converts && is_aligned(data, size_t(apart) * sizeof(T))) return {data, int(apart)};
    const int64_t across = (width + kVector<T> - 1) / kVector<T>, stride = across * kVector<T>;
    T* const copy = workspace_.template take<T>(n_rows * height * stride);
    const int64_t blocks = n_rows * ceil_div(height * across, kPadThreads);
    blocks_ = std::max(blocks_, blocks);
    args_.entries[n_++] = {data, copy, rows, height * across, int(width), int(stride), int(blocks), converts};
    return {copy, int(stride)};
  }
  const char* make(Stream stream) {
    if (!blocks_) return nullptr;
    if (blocks_ > kMostBlocks) return "too many factors that are to be converted or padded for one launch";
    args_.segments = segments_;
    auto* const kernel = pad_kernel<T, kPadThreads>;
    return MHR_LAUNCH(kernel, dim3(unsigned(blocks_), unsigned(n_)), dim3(kPadThreads), 0, stream, args_);
  }

 private:
  static constexpr int64_t kMostBlocks = 0x7fffffff;
  Workspace& workspace_;
  const int segments_;
  int n_ = 0;
  int64_t blocks_ = 0;  // of the larger one
  PadArgs args_{};
};

inline int padded_rank(int64_t rank) { return rank <= 16 ? 16 : rank <= 32 ? 32 : 64; }
inline int rank_tiles(int64_t rank) { return ceil_div(rank, 64); }

// Calls f with the padded rank, or with it and the tokens of a tile, as compile-time constants.
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

template <class F>
const char* with_shape(int64_t rank, const Segments& segments, F f) {
  return with_padded_rank(rank, [&](auto rp) {
    return tile_tokens(segments) == kShortTile ? f(rp, std::integral_constant<int, kShortTile>())
                                               : f(rp, std::integral_constant<int, kLongTile>());
  });
}

inline int64_t z_rank(const RoutedAdapterForward& p) { return p.z_rank ? p.z_rank : p.rank; }

template <class T>
struct ForwardPlan {
  int lines, steps, per_range, ranges;
  ForwardPlan(const RoutedAdapterForward& p, const Segments& segments)
      : lines(lines_per_step(padded_rank(z_rank(p)), tile_tokens(segments))),
        steps(ceil_div(p.in_features, kLine<T> * lines)),
        per_range(steps_per_range(steps, lines, max_tiles(segments, tile_tokens(segments)) * rank_tiles(z_rank(p)),
                                  p.routing.blocks_at_once)),
        ranges(ceil_div(steps, per_range)) {}
};

// About `tokens`, in whole steps of 32, such that `parts` of n tokens of mean length each fall into equal pieces.
inline int even_pieces(int64_t tokens, int64_t n, int64_t parts) {
  const int64_t mean = parts ? n / parts : 0;
  if (mean > tokens) tokens = ceil_div(mean, (mean + tokens / 2) / tokens);
  return int((std::min<int64_t>(tokens, 1 << 29) + 31) / 32 * 32);
}

// How an outer product is cut: tokens into chunks, columns into groups of column blocks. Chunks are of runs or, where
// that makes a quarter of them less, of all tokens of a row.
struct OuterPlan {
  int column_blocks, chunk, chunks, blocks_per_group = 1, groups;
  bool by_rows = false;

  OuterPlan(const Segments& segments, int block, int64_t columns, int64_t rank, bool inner, int blocks_at_once)
      : column_blocks(ceil_div(columns, block)) {
    const int64_t tiles = rank_tiles(rank), n = segments.n_tokens, work = n * column_blocks * tiles;
    const int64_t at_once = rank > 32 ? std::max(1, blocks_at_once / 2) : blocks_at_once;
    // Partial sums are chunks * columns * rank and, with `inner`, groups * n * rank; chunks * groups are blocks. Both
    // kinds are least together at this length, and the first alone where there are just enough blocks to fill a GPU
    // twice.
    const int64_t wanted =
        inner ? int64_t(std::sqrt(double(n) * double(columns) / double(at_once))) : work / (2 * at_once);
    // Short chunks only where there would else be less than a block for each multiprocessor.
    const int64_t least = std::clamp<int64_t>(2 * work / blocks_at_once, 64, 256);
    const int64_t tokens = std::max(wanted, least);
    chunk = even_pieces(tokens, n, segments.count);
    chunks = n ? max_tiles(segments, chunk) : 0;
    if (tokens <= kMostChunkTokens && segments.n_rows <= kMostChunkRows) {
      const int of_a_row = std::min(even_pieces(tokens, n, segments.n_rows), kMostChunkTokens);
      const int64_t most = n / of_a_row + std::min(segments.n_rows + 2, segments.count);
      if (4 * most <= 3 * int64_t(chunks)) {
        by_rows = true;
        chunk = of_a_row;
        chunks = int(most);
      }
    }
    if (inner) {  // The longest way of a block, in column blocks; of nearly equal ways the one with the fewest groups.
      const int64_t full = ceil_div(n, chunk) * tiles;
      const auto way = [&](int each) {
        return each * ((full * ceil_div(column_blocks, each) + at_once - 1) / at_once);
      };
      int64_t shortest = way(1);
      for (int each = 2; each <= column_blocks; ++each) shortest = std::min(shortest, way(each));
      for (int each = 1; each <= column_blocks; ++each)
        if (3 * way(each) <= 4 * shortest) blocks_per_group = each;
    }
    groups = ceil_div(column_blocks, blocks_per_group);
  }
};

inline const char* finish(const FinishArgs& p, Stream stream) {
  const bool flat = p.stride == p.rank, whole = flat ? p.size % 4 == 0 : p.rank % 4 == 0 && p.stride % 4 == 0;
  const bool fours = whole && is_aligned(p.parts) && is_aligned(p.out);
  auto* const kernel = fours ? finish_kernel<kReduceThreads, 4> : finish_kernel<kReduceThreads, 1>;
  const dim3 grid(unsigned(ceil_div(p.size, int64_t(kReduceThreads) * (fours ? 4 : 1))));
  return MHR_LAUNCH(kernel, grid, dim3(kReduceThreads), 0, stream, p);
}

inline const char* gather(const GatherArgs& p, int64_t n_rows, Stream stream) {
  if (n_rows == 0) return nullptr;
  if (n_rows > 65535) return "at most 65535 rows of factors can take gradients in one call";
  const bool fours = p.size % 4 == 0 && is_aligned(p.parts) && is_aligned(p.out);
  auto* const kernel = fours ? gather_kernel<kReduceThreads, 4> : gather_kernel<kReduceThreads, 1>;
  const dim3 grid(unsigned(ceil_div(p.size, int64_t(kReduceThreads) * (fours ? 4 : 1))), unsigned(n_rows));
  return MHR_LAUNCH(kernel, grid, dim3(kReduceThreads), 0, stream, p);
}

template <class T, int RP, int TOKENS, bool TRANSPOSED, bool ACCUMULATE, bool BIASED>
const char* expand_once(const ExpandArgs& p, Stream stream) {
  using S = ExpandShape<T, RP, TOKENS, TRANSPOSED>;
  auto* const kernel = expand_kernel<T, RP, TOKENS, TRANSPOSED, ACCUMULATE, BIASED>;
  const int tiles = max_tiles(p.segments, S::kTokens), steps = ceil_div(p.columns, S::kStep);
  const dim3 grid(unsigned(tiles), unsigned(ceil_div(steps, p.steps_per_range)));
  return MHR_LAUNCH(kernel, grid, dim3(S::kThreads), S::shared_bytes(ceil_div(p.ranks, RP)), stream, p);
}

// Ranks beyond what shared memory holds are added by further launches, each to what the one before left. Short tiles
// have one kernel for biases that are there and that are not.
template <class T, int RP, int TOKENS, bool TRANSPOSED>
const char* expand(ExpandArgs p, bool accumulate, int blocks_wanted, Stream stream) {
  using S = ExpandShape<T, RP, TOKENS, TRANSPOSED>;
  p.steps_per_range = steps_per_range(ceil_div(p.columns, S::kStep), lines_per_step(RP, TOKENS),
                                      max_tiles(p.segments, S::kTokens), blocks_wanted);
  for (p.first_rank = 0; p.first_rank < p.rank; p.first_rank += S::kMaxRanks) {
    p.ranks = std::min(S::kMaxRanks, p.rank - p.first_rank);
    if (accumulate) {
      if constexpr (TRANSPOSED || S::kShort) {
        MHR_TRY((expand_once<T, RP, TOKENS, TRANSPOSED, true, !TRANSPOSED>(p, stream)));
      } else {
        MHR_TRY(p.bias ? expand_once<T, RP, TOKENS, false, true, true>(p, stream)
                       : expand_once<T, RP, TOKENS, false, true, false>(p, stream));
      }
    } else {
      MHR_TRY((expand_once<T, RP, TOKENS, TRANSPOSED, false, !TRANSPOSED>(p, stream)));
    }
    p.bias = nullptr;
    p.base = p.y;
    accumulate = true;
  }
  return nullptr;
}

template <class T, int RP, bool INNER, bool BY_ROWS>
const char* outer_once(const OuterArgs& p, const OuterPlan& plan, Stream stream) {
  using S = OuterShape<T, RP>;
  static_assert(S::shared_bytes(true) + kMostChunkTokens * int(sizeof(int)) <= kMostShared);
  auto* const kernel = outer_kernel<T, RP, INNER, BY_ROWS>;
  const dim3 grid(unsigned(plan.chunks), unsigned(plan.groups), unsigned(ceil_div(p.rank, RP)));
  const int shared = S::shared_bytes(INNER) + (BY_ROWS ? plan.chunk * int(sizeof(int)) : 0);
  return MHR_LAUNCH(kernel, grid, dim3(S::kThreads), shared, stream, p);
}
template <class T, bool INNER>
const char* outer(const OuterArgs& p, const OuterPlan& plan, Stream stream) {
  return with_padded_rank(p.rank, [&](auto rp) {
    return plan.by_rows ? outer_once<T, decltype(rp)::value, INNER, true>(p, plan, stream)
                        : outer_once<T, decltype(rp)::value, INNER, false>(p, plan, stream);
  });
}

// What one call does, planned: `workspace.used` bytes of it, then run().
template <class T>
struct ForwardPass {
  const RoutedAdapterForward& p;
  Workspace workspace;
  Segments segments_a, segments_b;
  ForwardPlan<T> plan;
  float* parts;
  AdapterFactors<T> factors;
  Factor a, b;

  ForwardPass(const RoutedAdapterForward& p, void* memory)
      : p(p),
        workspace{static_cast<char*>(memory)},
        segments_a(segments_of(p.routing, p.rows_a, p.n_rows_a)),
        segments_b(segments_of(p.routing, p.rows_b, p.n_rows_b)),
        plan(p, segments_a),
        parts(plan.ranges > 1 ? workspace.take<float>(plan.ranges * p.routing.n_tokens * z_rank(p)) : p.z),
        factors(workspace, p.routing),
        a(p.shrinks ? factors.add(p.a, p.factors_are_float, p.rows_a, p.n_rows_a, p.in_features, z_rank(p), p.a_stride)
                    : Factor{}),
        b(factors.add(p.b, p.factors_are_float, p.rows_b, p.n_rows_b, p.rank, p.out_features)) {}

  const char* run(Stream stream) {
    if (p.routing.n_tokens == 0) return nullptr;
    MHR_TRY(factors.make(stream));
    if (p.shrinks)
      MHR_TRY(with_shape(z_rank(p), segments_a, [&](auto rp, auto tokens) {
        return shrink<decltype(rp)::value, decltype(tokens)::value>(stream);
      }));
    return with_shape(p.rank, segments_b, [&](auto rp, auto tokens) {
      return expand_z<decltype(rp)::value, decltype(tokens)::value>(stream);
    });
  }

 private:
  template <int RP, int TOKENS>
  const char* shrink(Stream stream) {
    using S = ShrinkShape<T, RP, TOKENS>;
    const int rank = int(z_rank(p)), n_in = int(p.in_features);
    const ShrinkArgs args{p.x,
                          a,
                          p.bias_a,
                          parts,
                          segments_a,
                          n_in,
                          rank,
                          plan.per_range,
                          is_aligned(p.x, size_t(n_in) * sizeof(T)),
                          are_pairs(parts, rank),
                          p.factors_are_float};
    auto* const kernel = shrink_kernel<T, RP, TOKENS>;
    const dim3 grid(unsigned(max_tiles(segments_a, S::kTokens)), unsigned(plan.ranges), unsigned(ceil_div(rank, RP)));
    return MHR_LAUNCH(kernel, grid, dim3(S::kThreads), S::kShared, stream, args);
  }

  template <int RP, int TOKENS>
  const char* expand_z(Stream stream) {
    const int rank = int(p.rank), z_stride = int(z_rank(p)), n_out = int(p.out_features);
    const void* const base = p.writes_y ? p.base : p.given ? p.given : p.y;
    const bool y_vectors = is_aligned(p.y, size_t(n_out) * sizeof(T)) && (p.writes_y || is_aligned(base));
    const bool split = plan.ranges > 1;
    const float* const from = parts ? parts + p.z_first : nullptr;
    float* const z = p.z + p.z_first;
    const bool z_vectors = are_fours(z, z_stride) && are_fours(from, z_stride);
    const ExpandArgs args{from,
                          split ? z : nullptr,
                          b,
                          p.bias_b,
                          base,
                          p.y,
                          segments_b,
                          plan.ranges,
                          n_out,
                          rank,
                          0,
                          0,
                          0,
                          p.scale,
                          p.activation,
                          y_vectors,
                          z_vectors,
                          p.factors_are_float,
                          z_stride};
    return expand<T, RP, TOKENS, false>(args, !p.writes_y, p.routing.blocks_at_once, stream);
  }
};

template <class T>
struct BackwardDyPass {
  const RoutedAdapterBackwardDy& p;
  Workspace workspace;
  Segments segments;
  OuterPlan plan;
  AdapterFactors<T> factors;
  Factor b;
  float *parts, *sums, *inner;
  int* chunk_rows;

  BackwardDyPass(const RoutedAdapterBackwardDy& p, void* memory)
      : p(p),
        workspace{static_cast<char*>(memory)},
        segments(segments_of(p.routing, p.rows_b, p.n_rows_b)),
        plan(segments, 4 * kLine<T>, p.out_features, p.rank, true, p.routing.blocks_at_once),
        factors(workspace, p.routing),
        b(factors.add(p.b, p.factors_are_float, p.rows_b, p.n_rows_b, p.rank, p.out_features)),
        parts(workspace.take<float>(plan.chunks * p.rank * p.out_features)),
        sums(p.dbias_b ? workspace.take<float>(plan.chunks * p.out_features) : nullptr),
        inner(plan.groups > 1 || stride() != p.rank ? workspace.take<float>(plan.groups * p.routing.n_tokens * p.rank)
                                                    : p.dz),
        chunk_rows(workspace.take<int>(plan.chunks)) {}

  int64_t stride() const { return p.z_stride ? p.z_stride : p.rank; }

  const char* run(Stream stream) {
    if (plan.chunks) {
      MHR_TRY(factors.make(stream));
      const OuterArgs args{p.dy,
                           p.z,
                           b,
                           parts,
                           inner,
                           sums,
                           nullptr,
                           chunk_rows,
                           segments,
                           int(p.out_features),
                           int(p.rank),
                           plan.chunk,
                           plan.blocks_per_group,
                           p.activation,
                           is_aligned(p.dy, size_t(p.out_features) * sizeof(T)),
                           are_fours(p.z, stride()),
                           are_pairs(inner, p.rank),
                           int(stride())};
      MHR_TRY((outer<T, true>(args, plan, stream)));
      const float* const z = p.activation == Activation::kNone ? nullptr : p.z;
      MHR_TRY(finish(
          {inner, z, p.dz, p.routing.n_tokens * p.rank, plan.groups, p.scale, p.activation, int(p.rank), int(stride())},
          stream));
    }
    if (p.dbias_b)
      MHR_TRY(gather({sums, p.dbias_b, chunk_rows, plan.chunks, p.out_features, p.scale}, p.n_rows_b, stream));
    return gather({parts, p.db, chunk_rows, plan.chunks, p.rank * p.out_features, p.scale}, p.n_rows_b, stream);
  }
};

template <class T>
struct BackwardXPass {
  const RoutedAdapterBackwardX& p;
  Workspace workspace;
  Segments segments;
  OuterPlan plan;
  AdapterFactors<T> factors;
  Factor a;
  float *parts, *sums;
  int* chunk_rows;

  BackwardXPass(const RoutedAdapterBackwardX& p, void* memory)
      : p(p),
        workspace{static_cast<char*>(memory)},
        segments(segments_of(p.routing, p.rows_a, p.n_rows_a)),
        plan(segments, 4 * kLine<T>, p.in_features, p.rank, false, p.routing.blocks_at_once),
        factors(workspace, p.routing),
        a(p.dx ? factors.add(p.a, p.factors_are_float, p.rows_a, p.n_rows_a, p.in_features, p.rank, p.a_stride)
               : Factor{}),
        parts(workspace.take<float>(plan.chunks * p.rank * p.in_features)),
        sums(p.dbias_a ? workspace.take<float>(plan.chunks * p.rank) : nullptr),
        chunk_rows(workspace.take<int>(plan.chunks)) {}

  const char* run(Stream stream) {
    const int columns = int(p.in_features), rank = int(p.rank);
    if (plan.chunks) {
      const OuterArgs args{p.x,
                           p.dz,
                           {},
                           parts,
                           nullptr,
                           nullptr,
                           sums,
                           chunk_rows,
                           segments,
                           columns,
                           rank,
                           plan.chunk,
                           1,
                           Activation::kNone,
                           is_aligned(p.x, size_t(columns) * sizeof(T)),
                           are_fours(p.dz, rank),
                           false,
                           rank};
      MHR_TRY((outer<T, false>(args, plan, stream)));
    }
    if (p.dbias_a) MHR_TRY(gather({sums, p.dbias_a, chunk_rows, plan.chunks, p.rank, 1.0f}, p.n_rows_a, stream));
    MHR_TRY(gather({parts, p.da, chunk_rows, plan.chunks, p.rank * p.in_features, 1.0f}, p.n_rows_a, stream));
    if (!p.dx || !plan.chunks) return nullptr;
    MHR_TRY(factors.make(stream));
    const void* const given = p.accumulate ? p.given ? p.given : p.dx : nullptr;
    const bool dx_vectors = is_aligned(p.dx, size_t(columns) * sizeof(T)) && is_aligned(given);
    const ExpandArgs args{p.dz,
                          nullptr,
                          a,
                          nullptr,
                          given,
                          p.dx,
                          segments,
                          1,
                          columns,
                          rank,
                          0,
                          0,
                          0,
                          1.0f,
                          Activation::kNone,
                          dx_vectors,
                          are_fours(p.dz, rank),
                          false,
                          rank};
    return with_shape(p.rank, segments, [&](auto rp, auto tokens) {
      return expand<T, decltype(rp)::value, decltype(tokens)::value, true>(args, p.accumulate, p.routing.blocks_at_once,
                                                                           stream);
    });
  }
};

// The three types are compiled apart (routed_adapter_<type>.cu) so that they compile side by side.
template <class T>
size_t scratch_bytes(const RoutedAdapterForward& p) {
  return ForwardPass<T>(p, nullptr).workspace.used;
}
template <class T>
size_t scratch_bytes(const RoutedAdapterBackwardDy& p) {
  return BackwardDyPass<T>(p, nullptr).workspace.used;
}
template <class T>
size_t scratch_bytes(const RoutedAdapterBackwardX& p) {
  return BackwardXPass<T>(p, nullptr).workspace.used;
}
template <class T>
const char* launch_pass(const RoutedAdapterForward& p, void* workspace, Stream stream) {
  return ForwardPass<T>(p, workspace).run(stream);
}
template <class T>
const char* launch_pass(const RoutedAdapterBackwardDy& p, void* workspace, Stream stream) {
  return BackwardDyPass<T>(p, workspace).run(stream);
}
template <class T>
const char* launch_pass(const RoutedAdapterBackwardX& p, void* workspace, Stream stream) {
  return BackwardXPass<T>(p, workspace).run(stream);
}

#define MHR_ROUTED_ADAPTER(declaration, T)                                                        \
  declaration template size_t scratch_bytes<T>(const RoutedAdapterForward&);                      \
  declaration template size_t scratch_bytes<T>(const RoutedAdapterBackwardDy&);                   \
  declaration template size_t scratch_bytes<T>(const RoutedAdapterBackwardX&);                    \
  declaration template const char* launch_pass<T>(const RoutedAdapterForward&, void*, Stream);    \
  declaration template const char* launch_pass<T>(const RoutedAdapterBackwardDy&, void*, Stream); \
  declaration template const char* launch_pass<T>(const RoutedAdapterBackwardX&, void*, Stream);

}  // namespace mhr::cuda
