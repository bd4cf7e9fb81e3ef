// Types of elements as the launchers' callers name them.
#pragma once

namespace mhr::cuda {

enum class Dtype { kBf16, kFp16, kFp32, kFp64 };

inline int item_size(Dtype dtype) { return dtype == Dtype::kFp64 ? 8 : dtype == Dtype::kFp32 ? 4 : 2; }

}  // namespace mhr::cuda
