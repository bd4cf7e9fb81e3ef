#pragma once

#include "autograd/node.h"

namespace mhr {
namespace {

struct Route : Node {
  SavedVariable logits, tasks, noise;
  double temperature = 1.0;
  at::ScalarType dtype = at::kFloat;

  std::string name() const override { return "Route"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* v : {&logits, &tasks, &noise}) v->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, double)>(
        "mhr::route_backward");
    refuse_second_order("route");
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return {Tensor()};
    const Tensor values = logits.unpack(), chosen = tasks.unpack();
    const OptionalTensor added = optional(noise.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor d_logits = op.call(grads[0].contiguous(), values, chosen, added, temperature);
    return {d_logits.to(dtype)};
  }
};

Tensor route(const Tensor& logits, const Tensor& tasks, const OptionalTensor& noise, double temperature) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, double)>("mhr::route");
  const NodePointer node = node_of<Route>("route", logits);
  Tensor w, values, chosen;
  OptionalTensor added;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    values = logits.to(dtype).contiguous();
    chosen = tasks.contiguous();
    if (noise) added = noise->to(dtype).contiguous();
    w = op.call(values, chosen, added, temperature);
  }
  if (!node) return w;
  auto& own = static_cast<Route&>(*node);
  own.logits = saved(values);
  own.tasks = saved(chosen);
  own.noise = saved(added);
  own.temperature = temperature;
  own.dtype = logits.scalar_type();
  torch::autograd::set_history(w, node);
  return w;
}

}  // namespace
}  // namespace mhr
