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
#include <torch/library.h>

#include <algorithm>
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

bool has_forward_gradient(const OptionalTensor& t) { return torch::autograd::isFwGradDefined(t); }
bool has_forward_gradient(const Tensor& t) { return torch::autograd::isFwGradDefined(t); }
bool has_forward_gradient(const at::TensorList& list) { return torch::autograd::isFwGradDefinedTensorList(list); }

// A node behind the given inputs, or null where none of them wants a gradient.
template <class T, class... Inputs>
NodePointer node_of(const char* op, const Inputs&... inputs) {
  TORCH_CHECK(!(has_forward_gradient(inputs) || ...), "mhr::", op, " has no forward-mode derivative: use backward");
  if (!torch::autograd::compute_requires_grad(inputs...)) return nullptr;
  NodePointer node = new_node<T>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

void refuse_second_order(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), "mhr::", op,
              " is differentiable once: its backward has no gradient, so create_graph cannot be used");
}

// [N, C] of a contiguous [..., C].
Tensor matrix_of(const Tensor& t) { return t.view({-1, t.size(-1)}); }

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
    if (task_should_compute_output(kX)) found[kX] = first ? at::empty_like(given) : at::matmul(dy, frozen);
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

// Lets a node have gradients of any dtype for one of its outputs, as where the output is rounded and the sums are not.
// A torch that cannot do so rounds them.
template <class AnyNode>
void take_any_dtype(AnyNode& node, size_t output) {
  if constexpr (requires { node.mutable_input_metadata(output).set_grad_dtype(std::nullopt); })
    node.mutable_input_metadata(output).set_grad_dtype(std::nullopt);
}

using MixForward = std::vector<Tensor>(at::TensorList, at::TensorList, at::IntArrayRef, std::optional<at::ScalarType>);
using MixBackward = std::vector<Tensor>(at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef,
                                        at::IntArrayRef, bool, bool);

struct Mix : Node {
  std::vector<SavedVariable> tensors;  // the banks, then the weights, of which bank i was mixed by number rows[i]
  std::vector<int64_t> head_dims, rows;

  std::string name() const override { return "Mix"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& v : tensors) v.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op = find_op<MixBackward>("mhr::mix_backward");
    refuse_second_order("mix");
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t n = head_dims.size();
    variable_list found(tensors.size());
    // Factors that nothing was made of have no gradient, and weights that served none of the others.
    std::vector<Tensor> given, banks, weights;
    std::vector<int64_t> dims, row, place(tensors.size() - n, -1);
    std::vector<size_t> of_bank, of_weights;
    bool need_banks = false, need_weights = false;
    for (size_t i = 0; i < n; i++) {
      if (!grads[i].defined()) continue;
      const size_t w = n + size_t(rows[i]);
      if (place[rows[i]] < 0) {
        place[rows[i]] = int64_t(weights.size());
        weights.push_back(tensors[w].unpack());
        of_weights.push_back(w);
        need_weights |= task_should_compute_output(w);
      }
      banks.push_back(tensors[i].unpack());
      of_bank.push_back(i);
      need_banks |= task_should_compute_output(i);
      given.push_back(grads[i]);
      dims.push_back(head_dims[i]);
      row.push_back(place[rows[i]]);
    }
    if (given.empty()) return found;
    const at::AutoDispatchBelowADInplaceOrView below;
    for (Tensor& g : given) g = g.contiguous();
    const std::vector<Tensor> values = op.call(given, banks, weights, row, dims, need_banks, need_weights);
    size_t next = 0;
    if (need_banks)
      for (const size_t i : of_bank) found[i] = values[next++];
    if (need_weights)
      for (const size_t i : of_weights) found[i] = values[next++];
    return found;
  }
};

std::vector<Tensor> mix(std::optional<at::ScalarType> out_dtype, std::vector<int64_t> head_dims,
                        std::vector<int64_t> rows, const std::vector<Tensor>& inputs) {
  static const auto op = find_op<MixForward>("mhr::mix");
  const NodePointer node = node_of<Mix>("mix", at::TensorList(inputs));
  // What is no weights is a bank, however many head_dims there are: the op says what does not fit.
  const size_t n = inputs.size() - size_t(rows.empty() ? 0 : *std::max_element(rows.begin(), rows.end()) + 1);
  std::vector<Tensor> tensors, mixed;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    for (const Tensor& t : inputs) tensors.push_back(t.contiguous());
    std::vector<Tensor> weights;
    for (const int64_t row : rows) weights.push_back(tensors[n + size_t(row)]);
    mixed = op.call(at::TensorList(tensors).slice(0, n), weights, head_dims, out_dtype);
  }
  if (!node) return mixed;
  auto& own = static_cast<Mix&>(*node);
  for (const Tensor& t : tensors) own.tensors.push_back(saved(t));
  own.head_dims = std::move(head_dims);
  own.rows = std::move(rows);
  torch::autograd::set_history(mixed, node);
  for (size_t i = 0; i < mixed.size(); i++) take_any_dtype(own, i);
  return mixed;
}

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

// Registers a CPU kernel, unless there is one (an emulated or a stubbed GPU's) already.
template <class Function>
void serve_the_cpu(const char* name, Function* function) {
  static torch::Library library(torch::Library::IMPL, "mhr", c10::DispatchKey::CPU, __FILE__, __LINE__);
  const auto known = c10::Dispatcher::singleton().findOp({name, ""});
  if (!known || !known->hasKernelForDispatchKey(c10::DispatchKey::CPU))
    library.impl(name, torch::CppFunction(function));
}

}  // namespace
}  // namespace mhr

PYBIND11_MODULE(_autograd, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("routed_linear", &mhr::routed_linear, without_gil);
  m.def("routed_bottleneck", &mhr::routed_bottleneck, without_gil);
  m.def("route", &mhr::route, without_gil);
  m.def("mix", [](std::optional<at::ScalarType> out_dtype, std::vector<int64_t> head_dims, std::vector<int64_t> rows,
                  const pybind11::args& inputs) {
    const auto tensors = inputs.cast<std::vector<at::Tensor>>();
    const pybind11::gil_scoped_release without;
    return mhr::mix(out_dtype, std::move(head_dims), std::move(rows), tensors);
  });
  mhr::serve_the_cpu("mhr::routed_bottleneck_forward", &mhr::bottleneck_of_parts);
  mhr::serve_the_cpu("mhr::routed_bottleneck_backward", &mhr::bottleneck_grads_of_parts);
}
