// Small things that every launcher uses.
#pragma once
#include <algorithm>
#include <cstdint>

#define MHR_TRY(call) \
  if (const char* error = (call)) return error

namespace mhr::cuda {

inline int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

inline bool is_aligned(const void* p, size_t row_bytes = 0) {
  return (reinterpret_cast<uintptr_t>(p) | row_bytes) % 16 == 0;
}

}  // namespace mhr::cuda
