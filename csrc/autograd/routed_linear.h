#pragma once

#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>

#include <tuple>

#include "autograd/node.h"

namespace mhr {
namespace {

struct RoutedLinear : Node {
  enum Input { kX, kWeight, kBias, kBankA, kBankB, kWeights, kWeightsB, kInputs };
  SavedVariable x, weight, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, h;
  double scale = 1.0;
  bool first = false;  // the adapter's output was written first, the frozen product added to it

  std::string name() const override { return "RoutedLinear"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* v : {&x, &weight, &bank_a, &bank_b, &weights, &weights_b, &rows, &rows_b, &offsets, &h})
      v->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op = find_op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
        const OptionalTensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
        double, bool)>("mhr::routed_linear_backward");
    refuse_second_order("routed_linear");
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(kInputs);
    if (!grads[0].defined()) return found;
    const Tensor given = x.unpack(), frozen = weight.unpack(), a = bank_a.unpack(), b = bank_b.unpack();
    const Tensor row = rows.unpack(), kept = h.unpack();
    const OptionalTensor w = optional(weights.unpack()), w_b = optional(weights_b.unpack());
    const OptionalTensor row_b = optional(rows_b.unpack()), segments = optional(offsets.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor dy = grads[0].contiguous();
    if (task_should_compute_output(kX)) found[kX] = first ? at::empty_like(given) : product(dy, frozen);
    if (task_should_compute_output(kWeight))
      found[kWeight] = given.dim() > 1 ? at::matmul(dy.flatten(0, -2).t(), given.flatten(0, -2)) : at::outer(dy, given);
    if (task_should_compute_output(kBias)) found[kBias] = dy.dim() > 1 ? dy.flatten(0, -2).sum(0) : dy;
    Tensor d_weights, d_weights_b;
    std::tie(found[kBankA], found[kBankB], d_weights, d_weights_b) =
        op.call(optional(found[kX]), dy, given, kept, a, b, w, w_b, row, row_b, segments, scale, !first);
    if (first && found[kX].defined()) matrix_of(found[kX]).addmm_(matrix_of(dy), frozen);
    if (w) found[kWeights] = d_weights;
    if (w_b) found[kWeightsB] = d_weights_b;
    return found;
  }
};

Tensor routed_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& bank_a,
                     const Tensor& bank_b, const OptionalTensor& weights, const OptionalTensor& weights_b,
                     const Tensor& rows, const OptionalTensor& rows_b, const OptionalTensor& offsets, double scale,
                     bool first) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor&,
                     const OptionalTensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, double, bool)>("mhr::routed_linear_forward");
  const NodePointer node = node_of<RoutedLinear>("routed_linear", x, weight, bias, bank_a, bank_b, weights, weights_b);
  Tensor y, h, given, a, b, row;
  OptionalTensor w, w_b, row_b, segments;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    given = x.contiguous();
    a = bank_a.contiguous();
    b = bank_b.contiguous();
    row = rows.contiguous();
    w = dense(weights);
    w_b = dense(weights_b);
    row_b = dense(rows_b);
    segments = dense(offsets);
    if (first) {
      auto sizes = given.sizes().vec();
      sizes.back() = weight.size(0);
      y = at::empty(sizes, given.options());
      h = op.call(y, given, dense(bias), a, b, w, w_b, row, row_b, segments, scale, false);
      matrix_of(y).addmm_(matrix_of(given), weight.t());
    } else {
      y = at::linear(given, weight, bias);
      h = op.call(y, given, std::nullopt, a, b, w, w_b, row, row_b, segments, scale, true);
    }
  }
  if (!node) return y;
  auto& own = static_cast<RoutedLinear&>(*node);
  own.x = saved(given);
  own.weight = saved(weight);
  own.bank_a = saved(a);
  own.bank_b = saved(b);
  own.weights = saved(w);
  own.weights_b = saved(w_b);
  own.rows = saved(row);
  own.rows_b = saved(row_b);
  own.offsets = saved(segments);
  own.h = saved(h);
  own.scale = scale;
  own.first = first;
  torch::autograd::set_history(y, node);
  return y;
}

}  // namespace
}  // namespace mhr
