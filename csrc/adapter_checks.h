// Shapes and dtypes of the routed adapter's arguments, the same on every device. Values are looked at on the CPU only.
#pragma once

#include <optional>

#include "checks.h"

namespace mhr {

// Tokens of x [..., I]: the product of its leading dimensions.
inline int64_t tokens_of(const Tensor& x) {
  int64_t n = 1;
  for (int64_t i = 0; i + 1 < x.dim(); i++) n *= x.size(i);
  return n;
}

// A wide tensor [..., columns].
inline void check_wide(const char* op, const char* name, const Tensor& t, const char* axis, int64_t columns) {
  MHR_CHECK(t.dim() > 0 && t.size(t.dim() - 1) == columns, "mhr::", op, ": ", name, " must have ", axis, " = ", columns,
            " columns, got ", shape_of(t));
  check_contiguous(op, name, t);
}

// What is written beside a wide tensor: its leading dimensions, its dtype, and `columns` columns.
inline void check_beside(const char* op, const char* name, const Tensor& t, const char* other_name, const Tensor& other,
                         const char* axis, int64_t columns) {
  bool fits = t.dim() == other.dim() && t.size(t.dim() - 1) == columns;
  for (int64_t i = 0; fits && i + 1 < t.dim(); i++) fits = t.size(i) == other.size(i);
  MHR_CHECK(fits, "mhr::", op, ": ", name, " must have the leading dimensions of ", other_name, " and ", axis, " = ",
            columns, " columns, got ", shape_of(t), " beside ", other_name, " ", shape_of(other));
  check_dtype(op, name, t, other.scalar_type());
  check_contiguous(op, name, t);
}

inline void check_factor(const char* op, const char* name, const Tensor& factor, const char* axes, ScalarType x_dtype) {
  check_dim(op, name, factor, axes, 3);
  check_contiguous(op, name, factor);
  const ScalarType dtype = factor.scalar_type();
  MHR_CHECK(dtype == x_dtype || dtype == accumulator_dtype(x_dtype), "mhr::", op, ": ", name, " must be ",
            torch::headeronly::toString(x_dtype), " or ", torch::headeronly::toString(accumulator_dtype(x_dtype)),
            ", got ", torch::headeronly::toString(dtype));
}

inline void check_bias(const char* op, const char* name, const std::optional<Tensor>& bias, const char* axes,
                       int64_t rows, int64_t columns, ScalarType dtype) {
  if (!bias) return;
  check_shape(op, name, *bias, axes, {rows, columns});
  check_dtype(op, name, *bias, dtype);
  check_contiguous(op, name, *bias);
}

inline void check_low_rank(const char* op, const char* name, const Tensor& t, int64_t tokens, int64_t rank,
                           ScalarType x_dtype) {
  check_shape(op, name, t, "N, R", {tokens, rank});
  check_dtype(op, name, t, accumulator_dtype(x_dtype));
  check_contiguous(op, name, t);
}

inline void check_rows_layout(const char* op, const char* name, const Tensor& rows) {
  check_dim(op, name, rows, "G", 1);
  check_dtype(op, name, rows, ScalarType::Long);
  check_contiguous(op, name, rows);
}

// rows [G] and offsets [G + 1], or G equal segments.
inline void check_layout(const char* op, int64_t tokens, const Tensor& rows, const std::optional<Tensor>& offsets) {
  check_rows_layout(op, "rows", rows);
  const int64_t count = rows.size(0);
  if (!offsets) {
    MHR_CHECK(count > 0 ? tokens % count == 0 : tokens == 0, "mhr::", op, ": ", tokens, " tokens do not divide into ",
              count, " equal segments; pass offsets");
    return;
  }
  check_shape(op, "offsets", *offsets, "G+1", {count + 1});
  check_dtype(op, "offsets", *offsets, ScalarType::Long);
  check_contiguous(op, "offsets", *offsets);
}

struct AdapterSizes {
  int64_t tokens, n_in, n_out, rank;
};

inline AdapterSizes check_forward(const char* op, const Tensor& y, const Tensor& x, const Tensor& A, const Tensor& B,
                                  const Tensor& rows, const std::optional<Tensor>& rows_b,
                                  const std::optional<Tensor>& offsets, const std::optional<Tensor>& bias_a,
                                  const std::optional<Tensor>& bias_b) {
  check_factor(op, "A", A, "U, I, R", x.scalar_type());
  check_factor(op, "B", B, "U, R, O", x.scalar_type());
  check_dtype(op, "B", B, A.scalar_type());
  MHR_CHECK(x.dim() > 0, "mhr::", op, ": x must have at least one dimension");
  const AdapterSizes sizes{tokens_of(x), x.size(x.dim() - 1), B.size(2), A.size(2)};
  check_contiguous(op, "x", x);
  check_shape(op, "A", A, "U, I, R", {A.size(0), sizes.n_in, sizes.rank});
  check_shape(op, "B", B, "U, R, O", {B.size(0), sizes.rank, sizes.n_out});
  check_beside(op, "y", y, "x", x, "O", sizes.n_out);
  check_layout(op, sizes.tokens, rows, offsets);
  if (rows_b) {
    check_shape(op, "rows_b", *rows_b, "G", {rows.numel()});
    check_rows_layout(op, "rows_b", *rows_b);
  }
  check_bias(op, "bias_a", bias_a, "U, R", A.size(0), sizes.rank, A.scalar_type());
  check_bias(op, "bias_b", bias_b, "U, O", B.size(0), sizes.n_out, A.scalar_type());
  return sizes;
}

inline AdapterSizes check_backward_dy(const char* op, const Tensor& dy, const Tensor& z, const Tensor& B,
                                      const Tensor& rows, const std::optional<Tensor>& offsets) {
  check_factor(op, "B", B, "U, R, O", dy.scalar_type());
  const AdapterSizes sizes{tokens_of(dy), 0, B.size(2), B.size(1)};
  check_wide(op, "dy", dy, "O", sizes.n_out);
  check_low_rank(op, "z", z, sizes.tokens, sizes.rank, dy.scalar_type());
  check_layout(op, sizes.tokens, rows, offsets);
  return sizes;
}

inline AdapterSizes check_backward_x(const char* op, const std::optional<Tensor>& dx, const Tensor& x, const Tensor& dz,
                                     const Tensor& A, const Tensor& rows, const std::optional<Tensor>& offsets) {
  check_factor(op, "A", A, "U, I, R", x.scalar_type());
  const AdapterSizes sizes{tokens_of(x), A.size(1), 0, A.size(2)};
  check_wide(op, "x", x, "I", sizes.n_in);
  check_low_rank(op, "dz", dz, sizes.tokens, sizes.rank, x.scalar_type());
  if (dx) check_beside(op, "dx", *dx, "x", x, "I", sizes.n_in);
  check_layout(op, sizes.tokens, rows, offsets);
  return sizes;
}

}  // namespace mhr
