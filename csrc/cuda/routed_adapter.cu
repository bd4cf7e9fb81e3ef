// The routed adapter's entry points: sizes checked, then one of the types compiled in routed_adapter_<type>.cu.
#include <initializer_list>

#include "cuda/routed_adapter.cuh"

namespace mhr::cuda {

MHR_ROUTED_ADAPTER(extern, bf16)
MHR_ROUTED_ADAPTER(extern, fp16)
MHR_ROUTED_ADAPTER(extern, float)

namespace {

template <class Problem, class F>
auto with_dtype(const Problem& p, F f) {
  switch (p.dtype) {
    case Dtype::kBf16:
      return f(bf16());
    case Dtype::kFp16:
      return f(fp16());
    default:
      return f(float());
  }
}

const char* check(Dtype dtype, const Routing& routing, std::initializer_list<int64_t> dimensions) {
  constexpr int64_t kMost = 1 << 30;  // what 32-bit indices of tokens and columns reach
  if (dtype == Dtype::kFp64) return "float64 runs on the CPU only";
  if (routing.n_tokens > kMost || routing.n_segments > kMost || std::max(dimensions) > kMost)
    return "more than 2^30 tokens, segments or features";
  if (routing.blocks_at_once < 1) return "nothing fits on the GPU at once";
  if (std::min(dimensions) < 1) return "a dimension of size 0";
  if (!routing.offsets && routing.n_segments && routing.n_tokens % routing.n_segments != 0)
    return "equal segments need a number of tokens that they divide";
  if (routing.n_segments == 0 && routing.n_tokens != 0) return "tokens without a segment";
  return nullptr;
}

// Rows of A that are apart are those that mix wrote for the kernels' vectors, nothing else.
const char* check_stride(const void* a, int64_t stride, int64_t rank, bool is_float, Dtype dtype) {
  if (!stride) return nullptr;
  const int64_t vector = dtype == Dtype::kFp32 ? 4 : 8;
  if ((is_float && dtype != Dtype::kFp32) || stride < rank || stride % vector != 0 || !is_aligned(a))
    return "rows of A may be apart by multiples of 16 bytes only, from one on, and of the type of x";
  return nullptr;
}

// Only where they are to be checked: see launch.h.
const char* check_routing(const Routing& routing, const int64_t* rows, int64_t n_rows, void* stream) {
  if (!checks_values()) return nullptr;
  const auto st = static_cast<Stream>(stream);
  const std::string in_range = "rows must lie in 0.." + std::to_string(n_rows - 1) + ", or be -1 for no adapter";
  MHR_TRY(check_values(in_range.c_str(), rows, routing.n_segments, st,
                       [&](size_t g, const std::vector<int64_t>& all) { return all[g] < -1 || all[g] >= n_rows; }));
  const std::string rise = "offsets must rise from 0 to N = " + std::to_string(routing.n_tokens);
  return check_values(rise.c_str(), routing.offsets, routing.n_segments + 1, st,
                      [&](size_t g, const std::vector<int64_t>& all) {
                        const bool last = g + 1 == all.size();
                        return all[g] < (g ? all[g - 1] : 0) || (g == 0 && all[g] != 0) || all[g] > routing.n_tokens ||
                               (last && all[g] != routing.n_tokens);
                      });
}

}  // namespace

size_t workspace_bytes(const RoutedAdapterForward& p) {
  return with_dtype(p, [&](auto t) { return scratch_bytes<decltype(t)>(p); });
}
size_t workspace_bytes(const RoutedAdapterBackwardDy& p) {
  return with_dtype(p, [&](auto t) { return scratch_bytes<decltype(t)>(p); });
}
size_t workspace_bytes(const RoutedAdapterBackwardX& p) {
  return with_dtype(p, [&](auto t) { return scratch_bytes<decltype(t)>(p); });
}

const char* launch_routed_adapter_forward(const RoutedAdapterForward& p, void* workspace, void* stream) {
  MHR_TRY(check(p.dtype, p.routing, {p.in_features, p.out_features, p.rank}));
  MHR_TRY(check_stride(p.a, p.a_stride, p.rank, p.factors_are_float, p.dtype));
  MHR_TRY(check_routing(p.routing, p.rows_a, p.n_rows_a, stream));
  MHR_TRY(check_routing(p.routing, p.rows_b, p.n_rows_b, stream));
  return with_dtype(p, [&](auto t) { return launch_pass<decltype(t)>(p, workspace, static_cast<Stream>(stream)); });
}
const char* launch_routed_adapter_backward_dy(const RoutedAdapterBackwardDy& p, void* workspace, void* stream) {
  MHR_TRY(check(p.dtype, p.routing, {p.out_features, p.rank}));
  MHR_TRY(check_routing(p.routing, p.rows_b, p.n_rows_b, stream));
  return with_dtype(p, [&](auto t) { return launch_pass<decltype(t)>(p, workspace, static_cast<Stream>(stream)); });
}
const char* launch_routed_adapter_backward_x(const RoutedAdapterBackwardX& p, void* workspace, void* stream) {
  MHR_TRY(check(p.dtype, p.routing, {p.in_features, p.rank}));
  MHR_TRY(check_stride(p.a, p.a_stride, p.rank, p.factors_are_float, p.dtype));
  MHR_TRY(check_routing(p.routing, p.rows_a, p.n_rows_a, stream));
  return with_dtype(p, [&](auto t) { return launch_pass<decltype(t)>(p, workspace, static_cast<Stream>(stream)); });
}

}  // namespace mhr::cuda
