// Launchers of mix: items into groups that share a launch.
#include "cuda/mix.cuh"

#include <algorithm>
#include <vector>

#include "cuda/launch.h"

namespace mhr::cuda {
namespace {

int64_t runs(const MixItem& item, int run) { return (item.p * item.q + run - 1) / run; }
int64_t dots(const MixItem& item) { return runs(item, kDotRun) * item.rows * item.heads * item.skills; }

int64_t stride(const MixItem& i) { return i.joins_rows && i.stride ? i.stride : i.q; }

// Whether a tensor starts at a multiple of four of its elements.
bool starts_at_four(const void* p, Dtype dtype) { return is_aligned(p, 0, dtype == Dtype::kFp32 ? 16 : 8); }

MixEntry entry(const MixItem& i) {
  void* const mixed = i.mixed ? i.mixed : const_cast<void*>(i.mixed_grad);
  const bool fours = i.q % 4 == 0 && stride(i) % 4 == 0 && starts_at_four(i.bank, i.bank_dtype) &&
                     starts_at_four(i.bank_grad, i.bank_dtype) && starts_at_four(mixed, i.mixed_dtype);
  return {i.bank,         i.weights,
          mixed,          i.bank_grad,
          i.weights_grad, nullptr,
          int(i.heads),   int(i.skills),
          int(i.p * i.q), int(i.q),
          int(stride(i)), int(i.heads * i.p * stride(i)),
          int(i.rows),    0,
          i.joins_rows,   fours,
          i.zeros,        i.bank_dtype,
          i.mixed_dtype,  i.scale};
}

const char* check(const MixItem& i) {
  constexpr int64_t kMost = 1 << 30;
  if (i.bank_dtype == Dtype::kFp64 || i.mixed_dtype == Dtype::kFp64) return "float64 runs on the CPU only";
  if (stride(i) < i.q + i.zeros) return "rows of a mixed factor overlap";
  if (i.heads * i.p * stride(i) > kMost || i.rows > kMost / std::max<int64_t>(1, i.heads * i.skills))
    return "more than 2^30 elements in a factor or in the weights";
  return nullptr;
}

// Starts `kernel` on groups of items; blocks(item) says how many thread blocks each one needs, complete(entry, i) adds
// what else its entry says.
template <class Blocks, class Complete>
const char* launch_groups(void (*kernel)(MixArgs), int threads, const MixItem* items, size_t n, Stream stream,
                          Blocks blocks, Complete complete) {
  MixArgs args{};
  int filled = 0, total = 0;
  const auto flush = [&]() -> const char* {
    if (!total) return nullptr;
    const dim3 grid{unsigned(total)};
    filled = total = 0;
    return MHR_LAUNCH(kernel, grid, dim3(unsigned(threads)), 0, stream, args);
  };
  for (size_t i = 0; i < n; ++i) {
    MHR_TRY(check(items[i]));
    const int64_t wanted = blocks(items[i], i);
    if (wanted > (1 << 30)) return "too large for one launch";
    if (filled == kMixItems || total + wanted > (1 << 30)) MHR_TRY(flush());
    if (!wanted) continue;
    total += int(wanted);
    args.entries[filled] = entry(items[i]);
    complete(args.entries[filled], i);
    args.entries[filled++].end = total;
  }
  return flush();
}

// Where each item's dots lie. Those that go into one weights_grad follow one another, as if one item had all their
// runs: the first of them, which leads.
struct DotsPlan {
  std::vector<int64_t> begin, total_runs;
  std::vector<bool> leads;

  DotsPlan(const MixItem* items, size_t n) : begin(n), total_runs(n), leads(n) {
    std::vector<size_t> leaders, leader_of(n);
    for (size_t i = 0; i < n; ++i) {
      if (!items[i].weights_grad) continue;
      // From the last one back: neighbours share their weights, or all items do.
      auto found = std::find_if(leaders.rbegin(), leaders.rend(),
                                [&](size_t l) { return items[l].weights_grad == items[i].weights_grad; });
      if (found == leaders.rend()) {
        leads[i] = true;
        leaders.push_back(i);
        found = leaders.rbegin();
      }
      leader_of[i] = *found;
      total_runs[*found] += runs(items[i], kDotRun);
    }
    int64_t end = 0;
    std::vector<int64_t> next(n);
    for (size_t i = 0; i < n; ++i) {
      if (!items[i].weights_grad) continue;
      const int64_t each = items[i].rows * items[i].heads * items[i].skills;
      if (leads[i]) {
        next[i] = end;
        end += total_runs[i] * each;
      }
      begin[i] = next[leader_of[i]];
      next[leader_of[i]] += runs(items[i], kDotRun) * each;
    }
  }
};

}  // namespace

size_t mix_backward_workspace_bytes(const MixItem* items, size_t n) {
  int64_t total = 0;
  for (size_t i = 0; i < n; ++i)
    if (items[i].weights_grad) total += dots(items[i]);
  return sizeof(float) * size_t(total);
}

const char* launch_mix(const MixItem* items, size_t n, void* stream) {
  return launch_groups(
      mix_kernel<kMixThreads>, kMixThreads, items, n, static_cast<Stream>(stream),
      [](const MixItem& i, size_t) { return i.heads * runs(i, kMixRun) * ceil_div(i.rows, kMixRows); },
      [](MixEntry&, size_t) {});
}

const char* launch_mix_backward(const MixItem* items, size_t n, void* workspace, void* stream) {
  const auto st = static_cast<Stream>(stream);
  MHR_TRY(launch_groups(
      mix_bank_grad_kernel<kMixThreads>, kMixThreads, items, n, st,
      [](const MixItem& i, size_t) {
        return i.bank_grad ? i.heads * runs(i, kMixRun) * ceil_div(i.skills, kMixRows) : 0;
      },
      [](MixEntry&, size_t) {}));
  const DotsPlan plan(items, n);
  for (const int64_t count : plan.total_runs)
    if (count > (1 << 30) / kDotRun) return "more than 2^30 elements share their weights";
  auto* const scratch = static_cast<float*>(workspace);
  MHR_TRY(launch_groups(
      mix_dots_kernel<kDotThreads>, kDotThreads, items, n, st,
      [](const MixItem& i, size_t) { return i.weights_grad && i.rows && i.skills ? i.heads * runs(i, kDotRun) : 0; },
      [&](MixEntry& e, size_t i) { e.dots = scratch + plan.begin[i]; }));
  return launch_groups(
      mix_weights_grad_kernel<kMixThreads>, kMixThreads, items, n, st,
      [&](const MixItem& i, size_t at) {
        return plan.leads[at] ? int64_t(ceil_div(i.rows * i.heads * i.skills, kMixThreads / kSumLanes)) : 0;
      },
      [&](MixEntry& e, size_t i) {
        e.dots = scratch + plan.begin[i];
        e.block = int(plan.total_runs[i] * kDotRun);
      });
}

}  // namespace mhr::cuda
