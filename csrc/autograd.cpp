// Autograd nodes of the hot path in C++: the same as _RoutedLinear and _Route of mhr/ops, at a fraction of the cost of
// a call. They are written as torch's own are: torch::autograd::Function would demangle its name and copy its arguments
// again and again, at 20 us a step.
//
// libtorch's stable ABI has no autograd, so this file alone is compiled against ATen and is a library of its own, bound
// to the torch it was built with. The ops it calls go through the dispatcher: any device, native or not.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>

namespace mhr {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// How this torch holds its nodes: the later versions by an intrusive pointer.
using NodePointer = decltype(torch::autograd::Edge::function);
template <class T>
NodePointer new_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>)
    return NodePointer(new T());
  else
    return c10::make_intrusive<T>();
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

OptionalTensor optional(Tensor t) { return t.defined() ? OptionalTensor(std::move(t)) : std::nullopt; }

// A node behind the given inputs, or null where none of them wants a gradient.
template <class T, class... Inputs>
NodePointer node_of(const char* op, const Inputs&... inputs) {
  TORCH_CHECK(!(torch::autograd::isFwGradDefined(inputs) || ...), "mhr::", op,
              " has no forward-mode derivative: use backward");
  if (!torch::autograd::compute_requires_grad(inputs...)) return nullptr;
  NodePointer node = new_node<T>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

void refuse_second_order(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), "mhr::", op,
              " is differentiable once: its backward has no gradient, so create_graph cannot be used");
}

struct RoutedLinear : Node {
  enum Input { kX, kWeight, kBias, kBankA, kBankB, kWeights, kWeightsB, kInputs };
  SavedVariable x, weight, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, h;
  double scale = 1.0;

  std::string name() const override { return "RoutedLinear"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* v : {&x, &weight, &bank_a, &bank_b, &weights, &weights_b, &rows, &rows_b, &offsets, &h})
      v->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op = find_op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
        const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, double)>(
        "mhr::routed_linear_backward");
    refuse_second_order("routed_linear");
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(kInputs);
    if (!grads[0].defined()) return found;
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor given = x.unpack(), dy = grads[0].contiguous();
    if (task_should_compute_output(kX)) found[kX] = at::matmul(dy, weight.unpack());
    if (task_should_compute_output(kWeight))
      found[kWeight] = given.dim() > 1 ? at::matmul(dy.flatten(0, -2).t(), given.flatten(0, -2)) : at::outer(dy, given);
    if (task_should_compute_output(kBias)) found[kBias] = dy.dim() > 1 ? dy.flatten(0, -2).sum(0) : dy;
    const OptionalTensor apart = optional(weights_b.unpack());
    Tensor d_weights_b;
    std::tie(found[kBankA], found[kBankB], found[kWeights], d_weights_b) =
        op.call(optional(found[kX]), dy, given, h.unpack(), bank_a.unpack(), bank_b.unpack(), weights.unpack(), apart,
                rows.unpack(), optional(rows_b.unpack()), optional(offsets.unpack()), scale);
    if (apart) found[kWeightsB] = d_weights_b;
    return found;
  }
};

Tensor routed_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& bank_a,
                     const Tensor& bank_b, const Tensor& weights, const OptionalTensor& weights_b, const Tensor& rows,
                     const OptionalTensor& rows_b, const OptionalTensor& offsets, double scale) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                     const Tensor&, const OptionalTensor&, const OptionalTensor&, double)>(
          "mhr::routed_linear_forward");
  const NodePointer node = node_of<RoutedLinear>("routed_linear", x, weight, bias, bank_a, bank_b, weights, weights_b);
  Tensor y, h, dense;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    dense = x.contiguous();
    y = at::linear(dense, weight, bias);
    h = op.call(y, dense, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets, scale);
  }
  if (!node) return y;
  const auto saved = [](const OptionalTensor& t) { return SavedVariable(t, false); };
  auto& own = static_cast<RoutedLinear&>(*node);
  own.x = saved(dense);
  own.weight = saved(weight);
  own.bank_a = saved(bank_a);
  own.bank_b = saved(bank_b);
  own.weights = saved(weights);
  own.weights_b = saved(weights_b);
  own.rows = saved(rows);
  own.rows_b = saved(rows_b);
  own.offsets = saved(offsets);
  own.h = saved(h);
  own.scale = scale;
  torch::autograd::set_history(y, node);
  return y;
}

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
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor d_logits =
        op.call(grads[0].contiguous(), logits.unpack(), tasks.unpack(), optional(noise.unpack()), temperature);
    return {d_logits.to(dtype)};
  }
};

Tensor route(const Tensor& logits, const Tensor& tasks, const OptionalTensor& noise, double temperature) {
  static const auto op = find_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, double)>("mhr::route");
  const NodePointer node = node_of<Route>("route", logits);
  Tensor w, values, dense_tasks;
  OptionalTensor dense_noise;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto dtype = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    values = logits.to(dtype).contiguous();
    dense_tasks = tasks.contiguous();
    if (noise) dense_noise = noise->to(dtype).contiguous();
    w = op.call(values, dense_tasks, dense_noise, temperature);
  }
  if (!node) return w;
  auto& own = static_cast<Route&>(*node);
  own.logits = SavedVariable(values, false);
  own.tasks = SavedVariable(dense_tasks, false);
  own.noise = SavedVariable(dense_noise, false);
  own.temperature = temperature;
  own.dtype = logits.scalar_type();
  torch::autograd::set_history(w, node);
  return w;
}

}  // namespace
}  // namespace mhr

PYBIND11_MODULE(_autograd, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("routed_linear", &mhr::routed_linear, without_gil);
  m.def("route", &mhr::route, without_gil);
}
