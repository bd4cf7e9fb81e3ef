// Small things that every launcher uses.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/device.cuh"

#define MHR_TRY(...) \
  if (const char* error = (__VA_ARGS__)) return error

namespace mhr::cuda {

inline int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

// Whether all rows start at multiples of `to` bytes.
inline bool is_aligned(const void* p, size_t row_bytes = 0, size_t to = 16) {
  return (reinterpret_cast<uintptr_t>(p) | row_bytes) % to == 0;
}

// MHR_CHECK_VALUES=1: launches read rows, offsets and tasks back first, wait for the stream, and refuse wrong ones.
inline bool checks_values() {
  static const bool checks = [] {
    const char* const wanted = std::getenv("MHR_CHECK_VALUES");
    return wanted && std::strcmp(wanted, "1") == 0;
  }();
  return checks;
}

// Refuses a value for which is_wrong(index, values) holds, by `what` and what it is.
template <class F>
const char* check_values(const char* what, const int64_t* on_device, int64_t n, Stream stream, F is_wrong) {
  if (!on_device || n < 1) return nullptr;
  std::vector<int64_t> values(static_cast<size_t>(n));
  MHR_TRY(read_back(values.data(), on_device, values.size() * sizeof(int64_t), stream));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!is_wrong(i, values)) continue;
    static thread_local std::string message;
    message = std::string(what) + ", got " + std::to_string(values[i]) + " at index " + std::to_string(i);
    return message.c_str();
  }
  return nullptr;
}

}  // namespace mhr::cuda
