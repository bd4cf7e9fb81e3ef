// Arguments of the adapter's launches out of tensors.
#pragma once

#include <optional>

#include "adapter_checks.h"
#include "cuda/routed_adapter.h"
#include "cuda/torch_device.h"

namespace mhr::cuda {

using OptionalTensor = std::optional<Tensor>;

inline Routing routing_of(int64_t tokens, const Tensor& rows, const OptionalTensor& offsets) {
  return {tokens, rows.size(0), offsets ? static_cast<const int64_t*>(offsets->const_data_ptr()) : nullptr};
}
inline const int64_t* rows_of(const Tensor& rows) { return static_cast<const int64_t*>(rows.const_data_ptr()); }
inline const void* data_of(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }
inline float* floats_of(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline bool is_float_beside(Dtype factor, Dtype x) { return factor == Dtype::kFp32 && x != Dtype::kFp32; }

inline void check_routing(const char* op, int64_t tokens, const Tensor& rows, const OptionalTensor& rows_b,
                          const OptionalTensor& offsets, const Tensor& x) {
  check_layout(op, tokens, rows, offsets);
  check_same_device(op, "rows", rows, x);
  if (offsets) check_same_device(op, "offsets", *offsets, x);
  if (!rows_b) return;
  check_shape(op, "rows_b", *rows_b, "G", {rows.numel()});
  check_rows_layout(op, "rows_b", *rows_b);
  check_same_device(op, "rows_b", *rows_b, x);
}

}  // namespace mhr::cuda
