// Autograd nodes of the hot path in C++: the same as _RoutedLinear, _RoutedBottleneck and _Route of mhr/ops, at a
// fraction of the cost of a call. They are written as torch's own are: torch::autograd::Function would demangle its
// name and copy its arguments again and again, at 20 us a step.
//
// libtorch's stable ABI has no autograd, so this file alone is compiled against ATen and is a library of its own, bound
// to the torch it was built with. The ops it calls go through the dispatcher: any device, native or not. Saved tensors
// are unpacked before autograd is left out: under gradient checkpointing that runs the forward pass again.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/outer.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

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
OptionalTensor dense(const OptionalTensor& t) { return t ? OptionalTensor(t->contiguous()) : std::nullopt; }
SavedVariable saved(const OptionalTensor& t) { return SavedVariable(t, false); }

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
    const Tensor given = x.unpack(), frozen = weight.unpack(), a = bank_a.unpack(), b = bank_b.unpack();
    const Tensor w = weights.unpack(), row = rows.unpack(), kept = h.unpack();
    const OptionalTensor w_b = optional(weights_b.unpack()), row_b = optional(rows_b.unpack());
    const OptionalTensor segments = optional(offsets.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor dy = grads[0].contiguous();
    if (task_should_compute_output(kX)) found[kX] = at::matmul(dy, frozen);
    if (task_should_compute_output(kWeight))
      found[kWeight] = given.dim() > 1 ? at::matmul(dy.flatten(0, -2).t(), given.flatten(0, -2)) : at::outer(dy, given);
    if (task_should_compute_output(kBias)) found[kBias] = dy.dim() > 1 ? dy.flatten(0, -2).sum(0) : dy;
    Tensor d_weights_b;
    std::tie(found[kBankA], found[kBankB], found[kWeights], d_weights_b) =
        op.call(optional(found[kX]), dy, given, kept, a, b, w, w_b, row, row_b, segments, scale);
    if (w_b) found[kWeightsB] = d_weights_b;
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
  Tensor y, h, given, a, b, w, row;
  OptionalTensor w_b, row_b, segments;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    given = x.contiguous();
    a = bank_a.contiguous();
    b = bank_b.contiguous();
    w = weights.contiguous();
    row = rows.contiguous();
    w_b = dense(weights_b);
    row_b = dense(rows_b);
    segments = dense(offsets);
    y = at::linear(given, weight, bias);
    h = op.call(y, given, a, b, w, w_b, row, row_b, segments, scale);
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
  torch::autograd::set_history(y, node);
  return y;
}

// The banks of a bottleneck: of A, a, B and b, each [H, S, P, Q].
using Banks = std::array<Tensor, 4>;
constexpr std::array<int64_t, 4> kHeadDims{1, 1, 2, 2};

std::array<Tensor, 4> weights_of(const Tensor& weights, const OptionalTensor& weights_b) {
  const Tensor& b = weights_b ? *weights_b : weights;
  return {weights, weights, b, b};
}

// A [U, O, R], a [U, R], B [U', R, O] and b [U', O]: without weights the skills of a single head, else mixed for x.
Banks rows_of(const Tensor& x, const Banks& banks, const OptionalTensor& weights, const OptionalTensor& weights_b) {
  static const auto mix =
      find_op<std::vector<Tensor>(at::TensorList, at::TensorList, at::IntArrayRef, std::optional<at::ScalarType>)>(
          "mhr::mix");
  if (!weights)
    return {banks[0].squeeze(0), banks[1].squeeze(0).squeeze(1), banks[2].squeeze(0), banks[3].squeeze(0).squeeze(1)};
  const auto sums = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::vector<Tensor> mixed = mix.call(banks, weights_of(*weights, weights_b), kHeadDims, sums);
  return {mixed[0], mixed[1].mean(1), mixed[2], mixed[3].squeeze(1)};
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
    static const auto backward_dy =
        find_op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                   const OptionalTensor&, c10::string_view, double, bool)>(
            "mhr::routed_adapter_backward_dy");
    static const auto backward_x =
        find_op<std::tuple<Tensor, Tensor>(const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
                                           const Tensor&, const OptionalTensor&, bool, bool)>(
            "mhr::routed_adapter_backward_x");
    static const auto mix_backward =
        find_op<std::vector<Tensor>(at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef, bool, bool)>(
            "mhr::mix_backward");
    refuse_second_order("routed_bottleneck");
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list found(kInputs);
    if (!grads[0].defined()) return found;
    const Banks bank{banks[0].unpack(), banks[1].unpack(), banks[2].unpack(), banks[3].unpack()};
    const Tensor given = x.unpack(), row = rows.unpack(), kept = z.unpack();
    const OptionalTensor w = optional(weights.unpack()), w_b = optional(weights_b.unpack());
    const OptionalTensor row_b = optional(rows_b.unpack()), segments = optional(offsets.unpack());
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor dy = grads[0].contiguous();
    const auto [a, bias_a, b, bias_b] = rows_of(given, bank, w, w_b);
    const auto [dz, d_b, d_bias_b] = backward_dy.call(dy, kept, b, row_b ? *row_b : row, segments, "gelu", 1.0, true);
    // The gradient of the residual, which the adapter's is added to.
    if (task_should_compute_output(kX)) found[kX] = dy.clone();
    const auto [d_a, d_bias_a] = backward_x.call(optional(found[kX]), given, dz, a, row, segments, true, true);
    if (!w) {
      const Banks d{d_a, d_bias_a, d_b, d_bias_b};
      for (size_t i = 0; i < d.size(); i++) found[kBankA + i] = d[i].view_as(bank[i]).to(bank[i].scalar_type());
      return found;
    }
    const int64_t heads = bank[0].size(0);
    const Banks d{d_a, d_bias_a.div(heads).unsqueeze(1).repeat({1, heads, 1}), d_b, d_bias_b.unsqueeze(1)};
    const std::vector<Tensor> d_mixed = mix_backward.call(d, bank, weights_of(*w, w_b), kHeadDims, true, true);
    for (size_t i = 0; i < d.size(); i++) found[kBankA + i] = d_mixed[i];
    const Tensor d_weights = d_mixed[4].add(d_mixed[5]), d_weights_b = d_mixed[6].add(d_mixed[7]);
    found[kWeights] = w_b ? d_weights : d_weights.add(d_weights_b);
    if (w_b) found[kWeightsB] = d_weights_b;
    return found;
  }
};

Tensor routed_bottleneck(const Tensor& x, const Tensor& bank_a, const Tensor& bias_a, const Tensor& bank_b,
                         const Tensor& bias_b, const OptionalTensor& weights, const OptionalTensor& weights_b,
                         const Tensor& rows, const OptionalTensor& rows_b, const OptionalTensor& offsets) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, c10::string_view, double)>(
          "mhr::routed_adapter_forward");
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
    const auto [a, down, b, up] = rows_of(given, banks, w, w_b);
    y = given.clone();
    z = op.call(y, given, a, b, row, row_b, segments, down, up, "gelu", 1.0);
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

PYBIND11_MODULE(_autograd, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("routed_linear", &mhr::routed_linear, without_gil);
  m.def("routed_bottleneck", &mhr::routed_bottleneck, without_gil);
  m.def("route", &mhr::route, without_gil);
}
