// torch's own thread pool, so that no second OpenMP runtime comes in.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace mhr {

// Multiply-adds below which waking another thread costs more than it saves.
constexpr int64_t kParallelWork = 1 << 16;

// f(begin, end) over `count` items of `work` multiply-adds each.
template <class F>
void parallel(int64_t count, int64_t work, const F& f) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, kParallelWork / std::max<int64_t>(1, work)), f);
}

}  // namespace mhr
