// routed_linear, registered: one call a direction, with one piece of scratch for all that it launches.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/bank_factors.h"

namespace mhr::cuda {
namespace {

Tensor routed_linear_forward(Tensor y, Tensor x, OptionalTensor bias, Tensor bank_a, Tensor bank_b,
                             OptionalTensor weights, OptionalTensor weights_b, Tensor rows, OptionalTensor rows_b,
                             OptionalTensor offsets, double scale, bool accumulate) {
  const char* op = "routed_linear";
  const LinearSizes sizes = check_linear(op, x, bank_a, bank_b, weights, weights_b);
  check_linear_output(op, sizes, y, x, bias, accumulate);
  check_routing(op, sizes.tokens, rows, rows_b, offsets, x);
  check_same_device(op, "y", y, x);
  if (bias) check_same_device(op, "bias", *bias, x);
  BankFactor a(op, sizes.a, bank_a, pointer_to(weights), x);
  BankFactor b(op, sizes.b, bank_b, pointer_to(weights_b ? weights_b : weights), x);
  const CallOn call(op, x);
  Tensor h = empty(x, {sizes.tokens, sizes.a.rank()}, ScalarType::Float);
  const Dtype dtype = dtype_of(op, x);
  RoutedAdapterForward p{};
  p.dtype = dtype;
  p.factors_are_float = is_float_beside(a.dtype, dtype);
  p.routing = routing_of(sizes.tokens, rows, offsets);
  p.rows_a = rows_of(rows);
  p.rows_b = rows_of(rows_b ? *rows_b : rows);
  p.n_rows_a = a.rows;
  p.n_rows_b = b.rows;
  p.in_features = sizes.a.columns();
  p.out_features = sizes.b.columns();
  p.rank = sizes.a.rank();
  p.x = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.a = a.place();
  p.a_stride = a.stride();
  p.b = b.place();
  p.z = floats_of(h);
  p.scale = float(scale);
  p.writes_y = !accumulate;
  p.base = data_of(bias);
  Plan plan;
  a.plan_mixed(plan);
  b.plan_mixed(plan);
  const size_t parts = plan.add(workspace_bytes(p));
  const Scratch scratch(x, plan.bytes());
  mix_factors(op, scratch, call.stream(), a, b);
  p.a = a.data(scratch);
  p.b = b.data(scratch);
  check_launch(op, launch_routed_adapter_forward(p, scratch.at<void>(parts), call.stream()));
  return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> routed_linear_backward(OptionalTensor dx, Tensor dy, Tensor x, Tensor h,
                                                                  Tensor bank_a, Tensor bank_b, OptionalTensor weights,
                                                                  OptionalTensor weights_b, Tensor rows,
                                                                  OptionalTensor rows_b, OptionalTensor offsets,
                                                                  double scale, bool accumulate) {
  const char* op = "routed_linear_backward";
  const LinearSizes sizes = check_linear(op, x, bank_a, bank_b, weights, weights_b);
  check_linear_grads(op, sizes, dx, dy, x, h);
  check_routing(op, sizes.tokens, rows, rows_b, offsets, x);
  for (const Tensor* t : {&dy, &h}) check_same_device(op, "every tensor", *t, x);
  if (dx) check_same_device(op, "dx", *dx, x);
  BankFactor a(op, sizes.a, bank_a, pointer_to(weights), x);
  BankFactor b(op, sizes.b, bank_b, pointer_to(weights_b ? weights_b : weights), x);
  const CallOn call(op, x);
  const Dtype dtype = dtype_of(op, x);
  Plan plan;
  for (BankFactor* f : {&a, &b}) {
    f->plan_mixed(plan);
    f->plan_grad(plan);
  }
  const WeightsGrads d_weights(bank_a, weights, weights_b);
  const size_t dz = plan.add(sizeof(float) * size_t(sizes.tokens * sizes.a.rank()));
  RoutedAdapterBackwardDy of_dy{};
  of_dy.dtype = dtype;
  of_dy.factors_are_float = is_float_beside(b.dtype, dtype);
  of_dy.routing = routing_of(sizes.tokens, rows, offsets);
  of_dy.rows_b = rows_of(rows_b ? *rows_b : rows);
  of_dy.n_rows_b = b.rows;
  of_dy.out_features = sizes.b.columns();
  of_dy.rank = sizes.b.rank();
  of_dy.dy = dy.const_data_ptr();
  of_dy.b = b.place();
  of_dy.z = floats_of(h);
  of_dy.dz = of_dy.db = static_cast<float*>(place());
  of_dy.scale = float(scale);
  RoutedAdapterBackwardX of_x{};
  of_x.dtype = dtype;
  of_x.factors_are_float = is_float_beside(a.dtype, dtype);
  of_x.routing = of_dy.routing;
  of_x.rows_a = rows_of(rows);
  of_x.n_rows_a = a.rows;
  of_x.in_features = sizes.a.columns();
  of_x.rank = sizes.a.rank();
  of_x.x = x.const_data_ptr();
  of_x.a = a.place();
  of_x.a_stride = a.stride();
  of_x.dz = of_x.da = static_cast<float*>(place());
  of_x.dx = dx ? dx->mutable_data_ptr() : nullptr;
  of_x.accumulate = accumulate;
  // The passes follow one another, so that they share their scratch.
  std::vector<MixItem> grads;
  if (weights) grads = {a.item(), b.item()};
  for (MixItem& i : grads) i.weights_grad = floats_of(d_weights.a);
  const size_t parts = plan.add(std::max(
      {workspace_bytes(of_dy), workspace_bytes(of_x), mix_backward_workspace_bytes(grads.data(), grads.size())}));
  const Scratch scratch(x, plan.bytes());
  void* const workspace = scratch.at<void>(parts);
  mix_factors(op, scratch, call.stream(), a, b);
  of_dy.b = b.data(scratch);
  of_dy.dz = scratch.at<float>(dz);
  of_dy.db = b.grad(scratch);
  check_launch(op, launch_routed_adapter_backward_dy(of_dy, workspace, call.stream()));
  of_x.a = a.data(scratch);
  of_x.dz = of_dy.dz;
  of_x.da = a.grad(scratch);
  check_launch(op, launch_routed_adapter_backward_x(of_x, workspace, call.stream()));
  if (weights) {
    grads = {a.grad_item(scratch, d_weights.a), b.grad_item(scratch, weights_b ? d_weights.b : d_weights.a)};
    check_launch(op, launch_mix_backward(grads.data(), grads.size(), workspace, call.stream()));
  }
  return {a.d_bank, b.d_bank, d_weights.a, d_weights.b};
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("routed_linear_forward", TORCH_BOX(&mhr::cuda::routed_linear_forward));
  m.impl("routed_linear_backward", TORCH_BOX(&mhr::cuda::routed_linear_backward));
}
