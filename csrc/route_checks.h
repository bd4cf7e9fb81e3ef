// Shapes and dtypes of route's arguments, the same on every device. The values of tasks are looked at on the CPU only.
#pragma once

#include <optional>
#include <vector>

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
  MHR_CHECK(temperature > 0, "mhr::", op, ": temperature must be positive, got ", temperature);
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

// The noise [N, U, H, S] of N tables, which then share H and S and a dtype.
inline void check_all_noise(const char* op, const std::optional<Tensor>& noise, const std::vector<Tensor>& logits,
                            const Tensor& tasks) {
  if (!noise) return;
  for (const Tensor& z : logits) {
    check_dim(op, "logits", z, "T, H, S", 3);
    check_dtype(op, "noise", *noise, z.scalar_type());
    check_shape(op, "noise", *noise, "N, U, H, S", {int64_t(logits.size()), tasks.numel(), z.size(1), z.size(2)});
  }
  check_contiguous(op, "noise", *noise);
}

inline void check_count(const char* op, const std::vector<Tensor>& dw, const std::vector<Tensor>& logits) {
  MHR_CHECK(dw.size() == logits.size(), "mhr::", op, ": got ", dw.size(), " dw for ", logits.size(), " logits");
}

}  // namespace mhr
