// routed_bottleneck, registered: one call a direction, with one piece of scratch for all that it launches.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cuda/bank_factors.h"

namespace mhr::cuda {
namespace {

// The four factors A, a, B and b of a call.
struct Bottleneck {
  LinearSizes sizes;
  BankFactor a, bias_a, b, bias_b;

  Bottleneck(const char* op, const Tensor& x, const Tensor& bank_a, const Tensor& bank_bias_a, const Tensor& bank_b,
             const Tensor& bank_bias_b, const Tensor* weights_a, const Tensor* weights_b, const LinearSizes& sizes)
      : sizes(sizes),
        a(op, sizes.a, bank_a, weights_a, x),
        // The mean over the heads too is a weighted sum: of H S skills of one head.
        bias_a(op, {1, sizes.a.heads * sizes.a.skills, 1, sizes.a.rank(), true}, bank_bias_a, weights_a, x),
        b(op, sizes.b, bank_b, weights_b, x),
        bias_b(op, {sizes.b.heads, sizes.b.skills, 1, sizes.b.q, false}, bank_bias_b, weights_b, x) {
    bias_a.scale = 1.0f / float(sizes.a.heads);
  }

  void plan_mixed(Plan& plan) {
    for (BankFactor* f : {&a, &bias_a, &b, &bias_b}) f->plan_mixed(plan);
  }
  void plan_grads(Plan& plan) {
    for (BankFactor* f : {&a, &bias_a, &b, &bias_b}) f->plan_grad(plan);
  }
};

LinearSizes check(const char* op, const Tensor& x, const Tensor& bank_a, const Tensor& bias_a, const Tensor& bank_b,
                  const Tensor& bias_b, const OptionalTensor& weights, const OptionalTensor& weights_b,
                  const Tensor& rows, const OptionalTensor& rows_b, const OptionalTensor& offsets) {
  const LinearSizes sizes = check_linear(op, x, bank_a, bank_b, weights, weights_b);
  const BankShape &a = sizes.a, &b = sizes.b;
  MHR_CHECK(b.columns() == a.columns(), "mhr::", op, ": bank_b must lead to O = ", a.columns(), " columns, got ",
            shape_of(bank_b));
  check_shape(op, "bias_a", bias_a, "H, S, 1, R", {a.heads, a.skills, 1, a.rank()});
  check_shape(op, "bias_b", bias_b, "H, S, 1, O/H", {b.heads, b.skills, 1, b.q});
  for (const Tensor* t : {&bias_a, &bank_b, &bias_b}) {
    check_dtype(op, "every bank", *t, bank_a.scalar_type());
    check_contiguous(op, "every bank", *t);
  }
  check_routing(op, sizes.tokens, rows, rows_b, offsets, x);
  return sizes;
}

// y = x + the adapter; z [N, R] is what backward wants.
std::tuple<Tensor, Tensor> routed_bottleneck_forward(Tensor x, Tensor bank_a, Tensor bias_a, Tensor bank_b,
                                                     Tensor bias_b, OptionalTensor weights, OptionalTensor weights_b,
                                                     Tensor rows, OptionalTensor rows_b, OptionalTensor offsets) {
  const char* op = "routed_bottleneck";
  const LinearSizes sizes = check(op, x, bank_a, bias_a, bank_b, bias_b, weights, weights_b, rows, rows_b, offsets);
  Bottleneck f(op, x, bank_a, bias_a, bank_b, bias_b, pointer_to(weights), pointer_to(weights_b ? weights_b : weights),
               sizes);
  const CallOn call(op, x);
  Tensor y = torch::stable::empty_like(x);
  Tensor z = empty(x, {sizes.tokens, sizes.a.rank()}, ScalarType::Float);
  RoutedAdapterForward p{};
  p.dtype = dtype_of(op, x);
  p.factors_are_float = is_float_beside(f.a.dtype, p.dtype);
  p.routing = routing_of(sizes.tokens, rows, offsets);
  p.rows_a = rows_of(rows);
  p.rows_b = rows_of(rows_b ? *rows_b : rows);
  p.n_rows_a = f.a.rows;
  p.n_rows_b = f.b.rows;
  p.in_features = p.out_features = sizes.a.columns();
  p.rank = sizes.a.rank();
  p.x = x.const_data_ptr();
  p.given = x.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.a = f.a.place();
  p.a_stride = f.a.stride();
  p.b = f.b.place();
  p.bias_a = f.bias_a.place();
  p.bias_b = f.bias_b.place();
  p.z = floats_of(z);
  p.scale = 1.0f;
  p.activation = Activation::kGelu;
  Plan plan;
  f.plan_mixed(plan);
  const size_t parts = plan.add(workspace_bytes(p));
  const Scratch scratch(x, plan.bytes());
  mix_factors(op, scratch, call.stream(), f.a, f.bias_a, f.b, f.bias_b);
  p.a = f.a.data(scratch);
  p.b = f.b.data(scratch);
  p.bias_a = f.bias_a.data(scratch);
  p.bias_b = f.bias_b.data(scratch);
  check_launch(op, launch_routed_adapter_forward(p, scratch.at<void>(parts), call.stream()));
  return {y, z};
}

// The gradients of x (empty unless it is asked for), of the banks in their order, of weights and of weights_b.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> routed_bottleneck_backward(
    Tensor dy, Tensor x, Tensor z, Tensor bank_a, Tensor bias_a, Tensor bank_b, Tensor bias_b, OptionalTensor weights,
    OptionalTensor weights_b, Tensor rows, OptionalTensor rows_b, OptionalTensor offsets, bool need_x) {
  const char* op = "routed_bottleneck_backward";
  const LinearSizes sizes = check(op, x, bank_a, bias_a, bank_b, bias_b, weights, weights_b, rows, rows_b, offsets);
  check_linear_grads(op, sizes, std::nullopt, dy, x, z);
  for (const Tensor* t : {&dy, &z}) check_same_device(op, "every tensor", *t, x);
  Bottleneck f(op, x, bank_a, bias_a, bank_b, bias_b, pointer_to(weights), pointer_to(weights_b ? weights_b : weights),
               sizes);
  const CallOn call(op, x);
  Tensor dx = need_x ? torch::stable::empty_like(x) : empty(x, {0}, x.scalar_type());
  Plan plan;
  f.plan_mixed(plan);
  f.plan_grads(plan);
  const WeightsGrads d_weights(bank_a, weights, weights_b);
  const size_t dz = plan.add(sizeof(float) * size_t(sizes.tokens * sizes.a.rank()));
  RoutedAdapterBackwardDy of_dy{};
  of_dy.dtype = dtype_of(op, x);
  of_dy.factors_are_float = is_float_beside(f.b.dtype, of_dy.dtype);
  of_dy.routing = routing_of(sizes.tokens, rows, offsets);
  of_dy.rows_b = rows_of(rows_b ? *rows_b : rows);
  of_dy.n_rows_b = f.b.rows;
  of_dy.out_features = sizes.b.columns();
  of_dy.rank = sizes.b.rank();
  of_dy.dy = dy.const_data_ptr();
  of_dy.b = f.b.place();
  of_dy.z = floats_of(z);
  of_dy.dz = of_dy.db = of_dy.dbias_b = static_cast<float*>(place());
  of_dy.scale = 1.0f;
  of_dy.activation = Activation::kGelu;
  RoutedAdapterBackwardX of_x{};
  of_x.dtype = of_dy.dtype;
  of_x.factors_are_float = is_float_beside(f.a.dtype, of_dy.dtype);
  of_x.routing = of_dy.routing;
  of_x.rows_a = rows_of(rows);
  of_x.n_rows_a = f.a.rows;
  of_x.in_features = sizes.a.columns();
  of_x.rank = sizes.a.rank();
  of_x.x = x.const_data_ptr();
  of_x.a = f.a.place();
  of_x.a_stride = f.a.stride();
  of_x.dz = of_x.da = of_x.dbias_a = static_cast<float*>(place());
  of_x.dx = need_x ? dx.mutable_data_ptr() : nullptr;
  of_x.accumulate = true;
  of_x.given = dy.const_data_ptr();  // the gradient of the residual
  std::vector<MixItem> grads;
  if (weights) grads = {f.a.item(), f.bias_a.item(), f.b.item(), f.bias_b.item()};
  for (MixItem& i : grads) i.weights_grad = floats_of(d_weights.a);
  const size_t parts = plan.add(std::max(
      {workspace_bytes(of_dy), workspace_bytes(of_x), mix_backward_workspace_bytes(grads.data(), grads.size())}));
  const Scratch scratch(x, plan.bytes());
  void* const workspace = scratch.at<void>(parts);
  mix_factors(op, scratch, call.stream(), f.a, f.bias_a, f.b, f.bias_b);
  of_dy.b = f.b.data(scratch);
  of_dy.dz = scratch.at<float>(dz);
  of_dy.db = f.b.grad(scratch);
  of_dy.dbias_b = f.bias_b.grad(scratch);
  check_launch(op, launch_routed_adapter_backward_dy(of_dy, workspace, call.stream()));
  of_x.a = f.a.data(scratch);
  of_x.dz = of_dy.dz;
  of_x.da = f.a.grad(scratch);
  of_x.dbias_a = f.bias_a.grad(scratch);
  check_launch(op, launch_routed_adapter_backward_x(of_x, workspace, call.stream()));
  if (weights) {
    const Tensor &of_a = d_weights.a, &of_b = weights_b ? d_weights.b : d_weights.a;
    grads = {f.a.grad_item(scratch, of_a), f.bias_a.grad_item(scratch, of_a), f.b.grad_item(scratch, of_b),
             f.bias_b.grad_item(scratch, of_b)};
    check_launch(op, launch_mix_backward(grads.data(), grads.size(), workspace, call.stream()));
  }
  return {dx, f.a.d_bank, f.bias_a.d_bank, f.b.d_bank, f.bias_b.d_bank, d_weights.a, d_weights.b};
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("routed_bottleneck_forward", TORCH_BOX(&mhr::cuda::routed_bottleneck_forward));
  m.impl("routed_bottleneck_backward", TORCH_BOX(&mhr::cuda::routed_bottleneck_backward));
}
