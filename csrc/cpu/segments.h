// rows, rows_b and offsets of a call, checked: on the CPU their values too.
#pragma once

#include <optional>

#include "dispatch.h"
#include "problem.h"

namespace mhr {

inline void check_rows(const char* op, const char* name, const Tensor& rows, int64_t n_rows) {
  check_dtype(op, name, rows, ScalarType::Long);
  check_contiguous(op, name, rows);
  const int64_t* value = pointer<int64_t>(rows);
  for (int64_t g = 0, n = rows.numel(); g < n; g++)
    STD_TORCH_CHECK(value[g] >= 0 && value[g] < n_rows, "mhr::", op, ": ", name, " must lie in 0..", n_rows - 1,
                    ", got ", value[g]);
}

inline Segments check_segments(const char* op, int64_t tokens, const Tensor& rows,
                               const std::optional<Tensor>& offsets) {
  check_dim(op, "rows", rows, "G", 1);
  const int64_t count = rows.size(0);
  if (!offsets) {
    STD_TORCH_CHECK(count > 0 ? tokens % count == 0 : tokens == 0, "mhr::", op, ": ", tokens,
                    " tokens do not divide into ", count, " equal segments; pass offsets");
    return {tokens, count, nullptr};
  }
  check_shape(op, "offsets", *offsets, "G+1", {count + 1});
  check_dtype(op, "offsets", *offsets, ScalarType::Long);
  check_contiguous(op, "offsets", *offsets);
  const int64_t* value = pointer<int64_t>(*offsets);
  bool rises = value[0] == 0 && value[count] == tokens;
  for (int64_t g = 0; g < count; g++) rises = rises && value[g] <= value[g + 1];
  STD_TORCH_CHECK(rises, "mhr::", op, ": offsets must rise from 0 to N = ", tokens, " in G + 1 = ", count + 1,
                  " steps");
  return {tokens, count, value};
}

// Tokens of x [..., I]: the product of its leading dimensions.
inline int64_t tokens_of(const Tensor& x) {
  int64_t n = 1;
  for (int64_t i = 0; i + 1 < x.dim(); i++) n *= x.size(i);
  return n;
}

}  // namespace mhr
