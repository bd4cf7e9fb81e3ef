// Shapes and dtypes of routed_linear's and routed_bottleneck's banks, the same on every device.
#pragma once

#include <optional>

#include "adapter_checks.h"
#include "problem.h"

namespace mhr {

// A bank [H, S, P, Q]. Without weights it is what a mix would make, [U, P, Q]: as many skills of one head, or rows.
inline BankShape check_bank(const char* op, const char* name, const Tensor& bank, bool joins_rows, bool mixed) {
  check_contiguous(op, name, bank);
  if (mixed && bank.dim() == 3) return {1, bank.size(0), bank.size(1), bank.size(2), joins_rows};
  check_dim(op, name, bank, "H, S, P, Q", 4);
  return {bank.size(0), bank.size(1), bank.size(2), bank.size(3), joins_rows};
}

inline void check_bank_weights(const char* op, const char* name, const Tensor& w, const Tensor& bank) {
  check_dim(op, name, w, "U, H, S", 3);
  check_shape(op, name, w, "U, H, S", {w.size(0), bank.size(0), bank.size(1)});
  check_dtype(op, name, w, accumulator_dtype(bank.scalar_type()));
  check_contiguous(op, name, w);
}

struct LinearSizes {
  int64_t tokens;
  BankShape a, b;
};

// Without weights each skill is a row of its own, which takes one head.
inline LinearSizes check_linear(const char* op, const Tensor& x, const Tensor& bank_a, const Tensor& bank_b,
                                const std::optional<Tensor>& weights, const std::optional<Tensor>& weights_b) {
  const LinearSizes sizes{tokens_of(x), check_bank(op, "bank_a", bank_a, true, !weights),
                          check_bank(op, "bank_b", bank_b, false, !weights)};
  MHR_CHECK(sizes.a.rank() == sizes.b.rank(), "mhr::", op, ": bank_a has rank ", sizes.a.rank(), ", bank_b ",
            sizes.b.rank());
  MHR_CHECK(x.dim() > 0 && x.size(x.dim() - 1) == sizes.a.columns(), "mhr::", op,
            ": x must have I = ", sizes.a.columns(), " columns, as bank_a adapts, got ", shape_of(x));
  check_contiguous(op, "x", x);
  if (weights) {
    check_bank_weights(op, "weights", *weights, bank_a);
    check_bank_weights(op, "weights_b", weights_b ? *weights_b : *weights, bank_b);
    check_dtype(op, "weights", *weights, accumulator_dtype(x.scalar_type()));
  } else {
    MHR_CHECK(!weights_b, "mhr::", op, ": weights_b is given, but not weights");
    MHR_CHECK(sizes.a.heads == 1 && sizes.b.heads == 1, "mhr::", op,
              ": skills are rows, without weights, only where there is one head, got ", sizes.a.heads);
    const ScalarType dtype = bank_a.scalar_type(), wide = accumulator_dtype(x.scalar_type());
    MHR_CHECK((dtype == x.scalar_type() || dtype == wide) && bank_b.scalar_type() == dtype, "mhr::", op,
              ": without weights both banks must be ", torch::headeronly::toString(x.scalar_type()),
              wide == x.scalar_type() ? "" : " or ", wide == x.scalar_type() ? "" : torch::headeronly::toString(wide),
              ", got ", torch::headeronly::toString(dtype), " and ", torch::headeronly::toString(bank_b.scalar_type()));
  }
  return sizes;
}

// dy [..., O], h [N, R], and dx like x.
inline void check_linear_grads(const char* op, const LinearSizes& sizes, const std::optional<Tensor>& dx,
                               const Tensor& dy, const Tensor& x, const Tensor& h) {
  check_beside(op, "dy", dy, "x", x, "O", sizes.b.columns());
  check_low_rank(op, "h", h, sizes.tokens, sizes.a.rank(), x.scalar_type());
  if (dx) check_beside(op, "dx", *dx, "x", x, "I", sizes.a.columns());
}

// y [..., O], and the frozen bias [O] that it begins with where it is not accumulated into.
inline void check_linear_output(const char* op, const LinearSizes& sizes, const Tensor& y, const Tensor& x,
                                const std::optional<Tensor>& bias, bool accumulate) {
  check_beside(op, "y", y, "x", x, "O", sizes.b.columns());
  if (!bias) return;
  MHR_CHECK(!accumulate, "mhr::", op, ": bias is for a y that is not accumulated into");
  check_shape(op, "bias", *bias, "O", {sizes.b.columns()});
  check_dtype(op, "bias", *bias, x.scalar_type());
  check_contiguous(op, "bias", *bias);
}

}  // namespace mhr
