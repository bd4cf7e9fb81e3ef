// Shapes and dtypes of route's arguments, the same on every device. The values of tasks are looked at on the CPU only.
#pragma once

#include <optional>

#include "checks.h"

namespace mhr {

struct RouteSizes {
  int64_t tasks, heads, skills, rows;
};

inline RouteSizes check_route(const char* op, const Tensor& logits, const Tensor& tasks,
                              const std::optional<Tensor>& noise, double temperature) {
  check_dim(op, "logits", logits, "T, H, S", 3);
  check_dim(op, "tasks", tasks, "U", 1);
  check_dtype(op, "tasks", tasks, ScalarType::Long);
  STD_TORCH_CHECK(temperature > 0, "mhr::", op, ": temperature must be positive, got ", temperature);
  const RouteSizes sizes{logits.size(0), logits.size(1), logits.size(2), tasks.size(0)};
  check_dtype(op, "logits", logits, accumulator_dtype(logits.scalar_type()));
  check_contiguous(op, "logits", logits);
  check_contiguous(op, "tasks", tasks);
  if (noise) {
    check_shape(op, "noise", *noise, "U, H, S", {sizes.rows, sizes.heads, sizes.skills});
    check_dtype(op, "noise", *noise, logits.scalar_type());
    check_contiguous(op, "noise", *noise);
  }
  return sizes;
}

// The gradient that backward is given.
inline void check_route_grad(const char* op, const Tensor& dw, const Tensor& logits, const RouteSizes& sizes) {
  check_shape(op, "dw", dw, "U, H, S", {sizes.rows, sizes.heads, sizes.skills});
  check_dtype(op, "dw", dw, logits.scalar_type());
  check_contiguous(op, "dw", dw);
}

}  // namespace mhr
