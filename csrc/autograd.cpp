// Autograd nodes of the hot path in C++: the same as _RoutedLinear and _Route of mhr/ops, at a third of the cost of a
// call.
//
// libtorch's stable ABI has no autograd, so this file alone is compiled against ATen and is a library of its own, bound
// to the torch it was built with. The ops it calls go through the dispatcher: any device, native or not.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <tuple>

namespace mhr {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }
Tensor undefined_or(const OptionalTensor& t) { return t ? *t : Tensor(); }

void refuse_second_order(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), "mhr::", op,
              " is differentiable once: its backward has no gradient, so create_graph cannot be used");
}

struct RoutedLinear : torch::autograd::Function<RoutedLinear> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const Tensor& bank_a, const Tensor& bank_b, const Tensor& weights,
                        const OptionalTensor& weights_b, const Tensor& rows, const OptionalTensor& rows_b,
                        const OptionalTensor& offsets, double scale) {
    static const auto op =
        find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                       const Tensor&, const OptionalTensor&, const OptionalTensor&, double)>(
            "mhr::routed_linear_forward");
    const Tensor dense = x.contiguous();
    const Tensor y = at::linear(dense, weight, bias);
    const Tensor h = op.call(y, dense, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, scale);
    ctx->save_for_backward({dense, weight, bank_a, bank_b, weights, undefined_or(weights_b), rows, undefined_or(rows_b),
                            undefined_or(offsets), h});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["has_bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
        const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, double)>(
        "mhr::routed_linear_backward");
    refuse_second_order("routed_linear");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &weights_b = saved[5];
    const Tensor dy = grads[0].contiguous();
    const Tensor dx = ctx->needs_input_grad(0) ? at::matmul(dy, weight) : Tensor();
    const auto [d_bank_a, d_bank_b, d_weights, d_weights_b] =
        op.call(optional(dx), dy, x, saved[9], saved[2], saved[3], saved[4], optional(weights_b), saved[6],
                optional(saved[7]), optional(saved[8]), ctx->saved_data["scale"].toDouble());
    Tensor d_weight, d_bias;
    if (ctx->needs_input_grad(1))
      d_weight = x.dim() > 1 ? at::matmul(dy.flatten(0, -2).t(), x.flatten(0, -2)) : at::outer(dy, x);
    // Inputs are counted without those that were absent.
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2))
      d_bias = dy.dim() > 1 ? dy.flatten(0, -2).sum(0) : dy;
    return {dx,       d_weight, d_bias,   d_bank_a, d_bank_b, d_weights, weights_b.defined() ? d_weights_b : Tensor(),
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct Route : torch::autograd::Function<Route> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& tasks, const OptionalTensor& noise,
                        double temperature) {
    static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, double)>("mhr::route");
    const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor values = logits.to(dtype).contiguous(), dense_tasks = tasks.contiguous();
    const OptionalTensor dense_noise = noise ? OptionalTensor(noise->to(dtype).contiguous()) : std::nullopt;
    ctx->save_for_backward({values, dense_tasks, undefined_or(dense_noise)});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["dtype"] = logits.scalar_type();
    return op.call(values, dense_tasks, dense_noise, temperature);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double)>(
        "mhr::route_backward");
    refuse_second_order("route");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor d_logits = op.call(grads[0].contiguous(), saved[0], saved[1], optional(saved[2]),
                                    ctx->saved_data["temperature"].toDouble());
    return {d_logits.to(ctx->saved_data["dtype"].toScalarType()), Tensor(), Tensor(), Tensor()};
  }
};

Tensor routed_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& bank_a,
                     const Tensor& bank_b, const Tensor& weights, const OptionalTensor& weights_b, const Tensor& rows,
                     const OptionalTensor& rows_b, const OptionalTensor& offsets, double scale) {
  return RoutedLinear::apply(x, weight, bias, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, scale);
}

Tensor route(const Tensor& logits, const Tensor& tasks, const OptionalTensor& noise, double temperature) {
  return Route::apply(logits, tasks, noise, temperature);
}

}  // namespace
}  // namespace mhr

PYBIND11_MODULE(_autograd, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("routed_linear", &mhr::routed_linear, without_gil);
  m.def("route", &mhr::route, without_gil);
}
