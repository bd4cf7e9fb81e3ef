// rows, rows_b and offsets of a call, checked: on the CPU their values too.
#pragma once

#include <optional>

#include "adapter_checks.h"
#include "dispatch.h"
#include "problem.h"

namespace mhr {

inline void check_rows(const char* op, const char* name, const Tensor& rows, int64_t n_rows) {
  check_rows_layout(op, name, rows);
  const int64_t* value = pointer<int64_t>(rows);
  for (int64_t g = 0, n = rows.numel(); g < n; g++)
    MHR_CHECK(value[g] >= -1 && value[g] < n_rows, "mhr::", op, ": ", name, " must lie in 0..", n_rows - 1,
              ", or be -1 for no adapter, got ", value[g]);
}

inline Segments check_segments(const char* op, int64_t tokens, const Tensor& rows,
                               const std::optional<Tensor>& offsets) {
  check_layout(op, tokens, rows, offsets);
  const int64_t count = rows.size(0);
  if (!offsets) return {tokens, count, nullptr};
  const int64_t* value = pointer<int64_t>(*offsets);
  bool rises = value[0] == 0 && value[count] == tokens;
  for (int64_t g = 0; g < count; g++) rises = rises && value[g] <= value[g + 1];
  MHR_CHECK(rises, "mhr::", op, ": offsets must rise from 0 to N = ", tokens, " in G + 1 = ", count + 1, " steps");
  return {tokens, count, value};
}

}  // namespace mhr
