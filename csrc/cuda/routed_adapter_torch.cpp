// The routed adapter's CUDA kernels, registered.
#include <string>
#include <tuple>

#include "cuda/adapter_arguments.h"

namespace mhr::cuda {
namespace {

Activation activation_of(const char* op, const std::string& name) {
  MHR_CHECK(name == "none" || name == "gelu", "mhr::", op, ": activation must be 'none' or 'gelu', got '", name, "'");
  return name == "gelu" ? Activation::kGelu : Activation::kNone;
}

Tensor routed_adapter_forward(Tensor y, Tensor x, Tensor A, Tensor B, Tensor rows, std::optional<Tensor> rows_b,
                              std::optional<Tensor> offsets, std::optional<Tensor> bias_a, std::optional<Tensor> bias_b,
                              std::string activation, double scale) {
  const char* op = "routed_adapter";
  const AdapterSizes sizes = check_forward(op, y, x, A, B, rows, rows_b, offsets, bias_a, bias_b);
  for (const Tensor* t : {&y, &A, &B, &rows}) check_same_device(op, "every tensor", *t, x);
  for (const auto* t : {&rows_b, &offsets, &bias_a, &bias_b})
    if (*t) check_same_device(op, "every tensor", **t, x);
  const CallOn call(op, x);
  Tensor z = empty(x, {sizes.tokens, sizes.rank}, ScalarType::Float);
  const RoutedAdapterForward p{dtype_of(op, x),
                               is_float_beside(dtype_of(op, A), dtype_of(op, x)),
                               routing_of(sizes.tokens, rows, offsets),
                               rows_of(rows),
                               rows_of(rows_b ? *rows_b : rows),
                               A.size(0),
                               B.size(0),
                               sizes.n_in,
                               sizes.n_out,
                               sizes.rank,
                               x.const_data_ptr(),
                               A.const_data_ptr(),
                               B.const_data_ptr(),
                               data_of(bias_a),
                               data_of(bias_b),
                               y.mutable_data_ptr(),
                               floats_of(z),
                               float(scale),
                               activation_of(op, activation)};
  const Scratch workspace(x, workspace_bytes(p));
  check_launch(op, launch_routed_adapter_forward(p, workspace.data(), call.stream()));
  return z;
}

std::tuple<Tensor, Tensor, Tensor> routed_adapter_backward_dy(Tensor dy, Tensor z, Tensor B, Tensor rows,
                                                              std::optional<Tensor> offsets, std::string activation,
                                                              double scale, bool need_bias) {
  const char* op = "routed_adapter_backward_dy";
  const AdapterSizes sizes = check_backward_dy(op, dy, z, B, rows, offsets);
  for (const Tensor* t : {&z, &B, &rows}) check_same_device(op, "every tensor", *t, dy);
  if (offsets) check_same_device(op, "offsets", *offsets, dy);
  const CallOn call(op, dy);
  Tensor dz = empty(z, {sizes.tokens, sizes.rank}, ScalarType::Float);
  Tensor db = empty(z, {B.size(0), sizes.rank, sizes.n_out}, ScalarType::Float);
  Tensor dbias = need_bias ? empty(z, {B.size(0), sizes.n_out}, ScalarType::Float) : empty(z, {0}, ScalarType::Float);
  const RoutedAdapterBackwardDy p{dtype_of(op, dy),
                                  is_float_beside(dtype_of(op, B), dtype_of(op, dy)),
                                  routing_of(sizes.tokens, rows, offsets),
                                  rows_of(rows),
                                  B.size(0),
                                  sizes.n_out,
                                  sizes.rank,
                                  dy.const_data_ptr(),
                                  B.const_data_ptr(),
                                  static_cast<const float*>(z.const_data_ptr()),
                                  floats_of(dz),
                                  floats_of(db),
                                  need_bias ? floats_of(dbias) : nullptr,
                                  float(scale),
                                  activation_of(op, activation)};
  const Scratch workspace(dy, workspace_bytes(p));
  check_launch(op, launch_routed_adapter_backward_dy(p, workspace.data(), call.stream()));
  return {dz, db, dbias};
}

std::tuple<Tensor, Tensor> routed_adapter_backward_x(std::optional<Tensor> dx, Tensor x, Tensor dz, Tensor A,
                                                     Tensor rows, std::optional<Tensor> offsets, bool accumulate,
                                                     bool need_bias) {
  const char* op = "routed_adapter_backward_x";
  const AdapterSizes sizes = check_backward_x(op, dx, x, dz, A, rows, offsets);
  for (const Tensor* t : {&dz, &A, &rows}) check_same_device(op, "every tensor", *t, x);
  for (const auto* t : {&dx, &offsets})
    if (*t) check_same_device(op, "every tensor", **t, x);
  const CallOn call(op, x);
  Tensor da = empty(dz, {A.size(0), sizes.n_in, sizes.rank}, ScalarType::Float);
  Tensor dbias = need_bias ? empty(dz, {A.size(0), sizes.rank}, ScalarType::Float) : empty(dz, {0}, ScalarType::Float);
  const RoutedAdapterBackwardX p{dtype_of(op, x),
                                 is_float_beside(dtype_of(op, A), dtype_of(op, x)),
                                 routing_of(sizes.tokens, rows, offsets),
                                 rows_of(rows),
                                 A.size(0),
                                 sizes.n_in,
                                 sizes.rank,
                                 x.const_data_ptr(),
                                 A.const_data_ptr(),
                                 static_cast<const float*>(dz.const_data_ptr()),
                                 dx ? dx->mutable_data_ptr() : nullptr,
                                 accumulate,
                                 floats_of(da),
                                 need_bias ? floats_of(dbias) : nullptr};
  const Scratch workspace(x, workspace_bytes(p));
  check_launch(op, launch_routed_adapter_backward_x(p, workspace.data(), call.stream()));
  return {da, dbias};
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("routed_adapter_forward", TORCH_BOX(&mhr::cuda::routed_adapter_forward));
  m.impl("routed_adapter_backward_dy", TORCH_BOX(&mhr::cuda::routed_adapter_backward_dy));
  m.impl("routed_adapter_backward_x", TORCH_BOX(&mhr::cuda::routed_adapter_backward_x));
}
