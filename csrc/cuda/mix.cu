// Launchers of mix: items into groups that share a launch.
#include "cuda/mix.cuh"

#include "cuda/launch.h"

namespace mhr::cuda {
namespace {

int64_t runs(const MixItem& item, int run) { return (item.p * item.q + run - 1) / run; }
int64_t dots(const MixItem& item) { return runs(item, kDotRun) * item.rows * item.heads * item.skills; }

MixEntry entry(const MixItem& i, float* dots) {
  void* const mixed = i.mixed ? i.mixed : const_cast<void*>(i.mixed_grad);
  return {i.bank,       i.weights,     mixed,          i.bank_grad, i.weights_grad, dots,
          int(i.heads), int(i.skills), int(i.p * i.q), int(i.q),    int(i.rows),    0,
          i.joins_rows, i.bank_dtype,  i.mixed_dtype};
}

const char* check(const MixItem& i) {
  constexpr int64_t kMost = 1 << 30;
  if (i.bank_dtype == Dtype::kFp64 || i.mixed_dtype == Dtype::kFp64) return "float64 runs on the CPU only";
  if (i.heads * i.p * i.q > kMost || i.rows > kMost / std::max<int64_t>(1, i.heads * i.skills))
    return "more than 2^30 elements in a factor or in the weights";
  return nullptr;
}

// Starts `kernel` on groups of items; blocks(item) says how many thread blocks each one needs.
template <class Blocks>
const char* launch_groups(void (*kernel)(MixArgs), const MixItem* items, size_t n, float* workspace, Stream stream,
                          Blocks blocks) {
  MixArgs args{};
  int filled = 0, total = 0;
  const auto flush = [&]() -> const char* {
    if (!total) return nullptr;
    const dim3 grid{unsigned(total)};
    filled = total = 0;
    return MHR_LAUNCH(kernel, grid, dim3(kMixThreads), 0, stream, args);
  };
  for (size_t i = 0; i < n; ++i) {
    MHR_TRY(check(items[i]));
    const int64_t wanted = blocks(items[i]);
    if (wanted > (1 << 30)) return "too large for one launch";
    if (filled == kMixItems || total + wanted > (1 << 30)) MHR_TRY(flush());
    if (wanted) {
      total += int(wanted);
      args.entries[filled] = entry(items[i], workspace);
      args.entries[filled++].end = total;
    }
    if (workspace && items[i].weights_grad) workspace += dots(items[i]);
  }
  return flush();
}

}  // namespace

size_t mix_backward_workspace_bytes(const MixItem* items, size_t n) {
  int64_t total = 0;
  for (size_t i = 0; i < n; ++i)
    if (items[i].weights_grad) total += dots(items[i]);
  return sizeof(float) * size_t(total);
}

const char* launch_mix(const MixItem* items, size_t n, void* stream) {
  return launch_groups(mix_kernel<kMixThreads>, items, n, nullptr, static_cast<Stream>(stream),
                       [](const MixItem& i) { return i.heads * runs(i, kMixRun) * ceil_div(i.rows, kMixRows); });
}

const char* launch_mix_backward(const MixItem* items, size_t n, void* workspace, void* stream) {
  const auto st = static_cast<Stream>(stream);
  MHR_TRY(launch_groups(mix_bank_grad_kernel<kMixThreads>, items, n, nullptr, st, [](const MixItem& i) {
    return i.bank_grad ? i.heads * runs(i, kMixRun) * ceil_div(i.skills, kMixRows) : 0;
  }));
  auto* const scratch = static_cast<float*>(workspace);
  MHR_TRY(launch_groups(mix_dots_kernel<kMixThreads>, items, n, scratch, st, [](const MixItem& i) {
    return i.weights_grad && i.rows && i.skills ? i.heads * runs(i, kDotRun) : 0;
  }));
  return launch_groups(mix_weights_grad_kernel<kMixThreads>, items, n, scratch, st, [](const MixItem& i) {
    return i.weights_grad ? int64_t(ceil_div(i.rows * i.heads * i.skills, kMixThreads)) : 0;
  });
}

}  // namespace mhr::cuda
