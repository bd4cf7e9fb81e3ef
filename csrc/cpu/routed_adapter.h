// The routed adapter's ops, for those that are made of them.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "checks.h"

namespace mhr {

// z [N, R]
Tensor routed_adapter_forward(Tensor y, Tensor x, Tensor A, Tensor B, Tensor rows, std::optional<Tensor> rows_b,
                              std::optional<Tensor> offsets, std::optional<Tensor> bias_a, std::optional<Tensor> bias_b,
                              std::string activation, double scale);
// dz [N, R] and the gradients of B and of its bias
std::tuple<Tensor, Tensor, Tensor> routed_adapter_backward_dy(Tensor dy, Tensor z, Tensor B, Tensor rows,
                                                              std::optional<Tensor> offsets, std::string activation,
                                                              double scale, bool need_bias);
// The gradients of A and of its bias.
std::tuple<Tensor, Tensor> routed_adapter_backward_x(std::optional<Tensor> dx, Tensor x, Tensor dz, Tensor A,
                                                     Tensor rows, std::optional<Tensor> offsets, bool accumulate,
                                                     bool need_bias);

}  // namespace mhr
