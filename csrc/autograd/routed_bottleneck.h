#pragma once

#include <array>
#include <tuple>

#include "autograd/mix.h"

namespace mhr {
namespace {

// The banks of a bottleneck: of A, a, B and b, each [H, S, P, Q].
using Banks = std::array<Tensor, 4>;
constexpr std::array<int64_t, 4> kHeadDims{1, 1, 2, 2}, kOwnWeights{0, 1, 2, 3};

std::array<Tensor, 4> weights_of(const Tensor& weights, const OptionalTensor& weights_b) {
  const Tensor& b = weights_b ? *weights_b : weights;
  return {weights, weights, b, b};
}

// A [U, O, R], a [U, R], B [U', R, O] and b [U', O]: without weights the skills of a single head, else mixed for x.
Banks rows_of(const Tensor& x, const Banks& banks, const OptionalTensor& weights, const OptionalTensor& weights_b) {
  static const auto mix = find_op<MixForward>("mhr::mix");
  if (!weights)
    return {banks[0].squeeze(0), banks[1].squeeze(0).squeeze(1), banks[2].squeeze(0), banks[3].squeeze(0).squeeze(1)};
  const auto sums = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::vector<Tensor> mixed = mix.call(banks, weights_of(*weights, weights_b), kHeadDims, sums);
  return {mixed[0], mixed[1].mean(1), mixed[2], mixed[3].squeeze(1)};
}

// The CPU has no kernel that does all in one: its parts, each by its own kernel or reference.
std::tuple<Tensor, Tensor> bottleneck_of_parts(const Tensor& x, const Tensor& bank_a, const Tensor& bias_a,
                                               const Tensor& bank_b, const Tensor& bias_b,
                                               const OptionalTensor& weights, const OptionalTensor& weights_b,
                                               const Tensor& rows, const OptionalTensor& rows_b,
                                               const OptionalTensor& offsets) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, c10::string_view, double)>(
          "mhr::routed_adapter_forward");
  const auto [a, down, b, up] = rows_of(x, {bank_a, bias_a, bank_b, bias_b}, weights, weights_b);
  Tensor y = x.clone();
  Tensor z = op.call(y, x, a, b, rows, rows_b, offsets, down, up, "gelu", 1.0);
  return {y, z};
}

// Of x (empty where it is not asked for), of the banks in their order, of weights and of weights_b.
using BottleneckGrads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

BottleneckGrads bottleneck_grads_of_parts(const Tensor& dy, const Tensor& x, const Tensor& z, const Tensor& bank_a,
                                          const Tensor& bias_a, const Tensor& bank_b, const Tensor& bias_b,
                                          const OptionalTensor& weights, const OptionalTensor& weights_b,
                                          const Tensor& rows, const OptionalTensor& rows_b,
                                          const OptionalTensor& offsets, bool need_x) {
  static const auto backward_dy =
      find_op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                 const OptionalTensor&, c10::string_view, double, bool)>(
          "mhr::routed_adapter_backward_dy");
  static const auto backward_x =
      find_op<std::tuple<Tensor, Tensor>(const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, const OptionalTensor&, bool, bool)>(
          "mhr::routed_adapter_backward_x");
  static const auto mix_backward = find_op<MixBackward>("mhr::mix_backward");
  const Banks banks{bank_a, bias_a, bank_b, bias_b};
  const auto [a, down, b, up] = rows_of(x, banks, weights, weights_b);
  const auto [dz, d_b, d_up] = backward_dy.call(dy, z, b, rows_b ? *rows_b : rows, offsets, "gelu", 1.0, true);
  // The gradient of the residual, which the adapter's is added to.
  OptionalTensor dx;
  if (need_x) dx = dy.clone();
  const auto [d_a, d_down] = backward_x.call(dx, x, dz, a, rows, offsets, true, true);
  const auto none = [&] { return at::empty({0}, d_a.options()); };
  if (!dx) dx = at::empty({0}, x.options());
  if (!weights)
    return {*dx,   d_a.view_as(bank_a), d_down.view_as(bias_a), d_b.view_as(bank_b), d_up.view_as(bias_b), none(),
            none()};
  const int64_t heads = bank_a.size(0);
  const Banks d{d_a, d_down.div(heads).unsqueeze(1).repeat({1, heads, 1}), d_b, d_up.unsqueeze(1)};
  const std::vector<Tensor> found =
      mix_backward.call(d, banks, weights_of(*weights, weights_b), kOwnWeights, kHeadDims, true, true);
  const Tensor d_weights = found[4].add(found[5]), d_weights_b = found[6].add(found[7]);
  return {*dx,
          found[0],
          found[1],
          found[2],
          found[3],
          weights_b ? d_weights : d_weights.add(d_weights_b),
          weights_b ? d_weights_b : none()};
}

struct RoutedBottleneck : Node {
  enum Input { kX, kBankA, kBiasA, kBankB, kBiasB, kWeights, kWeightsB, kInputs };
  SavedVariable x, weights, weights_b, rows, rows_b, offsets, z;
  std::array<SavedVariable, 4> banks;

  std::string name() const override { return "RoutedBottleneck"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* v : {&x, &weights, &weights_b, &rows, &rows_b, &offsets, &z}) v->reset_data();
    for (SavedVariable& v : banks) v.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op =
        find_op<BottleneckGrads(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                const Tensor&, const OptionalTensor&, const OptionalTensor&, bool)>(
            "mhr::routed_bottleneck_backward");
    refuse_second_order("routed_bottleneck");
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(kInputs);
    if (!grads[0].defined()) return found;
    const Banks bank{banks[0].unpack(), banks[1].unpack(), banks[2].unpack(), banks[3].unpack()};
    const Tensor given = x.unpack(), row = rows.unpack(), kept = z.unpack();
    const OptionalTensor w = optional(weights.unpack()), w_b = optional(weights_b.unpack());
    const OptionalTensor row_b = optional(rows_b.unpack()), segments = optional(offsets.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    const bool need_x = task_should_compute_output(kX);
    std::tie(found[kX], found[kBankA], found[kBiasA], found[kBankB], found[kBiasB], found[kWeights], found[kWeightsB]) =
        op.call(grads[0].contiguous(), given, kept, bank[0], bank[1], bank[2], bank[3], w, w_b, row, row_b, segments,
                need_x);
    if (!need_x) found[kX].reset();
    if (!w) found[kWeights].reset();
    if (!w_b) found[kWeightsB].reset();
    return found;
  }
};

Tensor routed_bottleneck(const Tensor& x, const Tensor& bank_a, const Tensor& bias_a, const Tensor& bank_b,
                         const Tensor& bias_b, const OptionalTensor& weights, const OptionalTensor& weights_b,
                         const Tensor& rows, const OptionalTensor& rows_b, const OptionalTensor& offsets) {
  static const auto op = find_op<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
      const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&)>(
      "mhr::routed_bottleneck_forward");
  const NodePointer node =
      node_of<RoutedBottleneck>("routed_bottleneck", x, bank_a, bias_a, bank_b, bias_b, weights, weights_b);
  Banks banks;
  Tensor given, row, y, z;
  OptionalTensor w, w_b, row_b, segments;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    banks = {bank_a.contiguous(), bias_a.contiguous(), bank_b.contiguous(), bias_b.contiguous()};
    given = x.contiguous();
    row = rows.contiguous();
    w = dense(weights);
    w_b = dense(weights_b);
    row_b = dense(rows_b);
    segments = dense(offsets);
    std::tie(y, z) = op.call(given, banks[0], banks[1], banks[2], banks[3], w, w_b, row, row_b, segments);
  }
  if (!node) return y;
  auto& own = static_cast<RoutedBottleneck&>(*node);
  own.x = saved(given);
  for (size_t i = 0; i < banks.size(); i++) own.banks[i] = saved(banks[i]);
  own.weights = saved(w);
  own.weights_b = saved(w_b);
  own.rows = saved(row);
  own.rows_b = saved(row_b);
  own.offsets = saved(segments);
  own.z = saved(z);
  torch::autograd::set_history(y, node);
  return y;
}

}  // namespace
}  // namespace mhr
