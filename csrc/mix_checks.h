// Which weights each bank of mix_backward was mixed by, the same on every device.
#pragma once

#include <vector>

#include "checks.h"

namespace mhr {

// weights[rows[i]] for bank i. Each of them has to serve a bank, or its gradient would hold nothing.
inline std::vector<Tensor> weights_of_banks(const char* op, const std::vector<Tensor>& weights,
                                            const std::vector<int64_t>& rows) {
  std::vector<Tensor> found;
  std::vector<bool> serves(weights.size());
  found.reserve(rows.size());
  for (const int64_t row : rows) {
    MHR_CHECK(row >= 0 && row < int64_t(weights.size()), "mhr::", op, ": rows must lie in 0..",
              int64_t(weights.size()) - 1, ", got ", row);
    serves[row] = true;
    found.push_back(weights[row]);
  }
  for (size_t i = 0; i < serves.size(); i++) MHR_CHECK(serves[i], "mhr::", op, ": weights[", i, "] serves no bank");
  return found;
}

}  // namespace mhr
