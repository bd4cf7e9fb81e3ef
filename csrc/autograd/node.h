// What the nodes share. Internal to autograd.cpp, which is one translation unit.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/matmul.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <optional>
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

// dy W, which an autocast that backward is run under must not make another dtype than dy's.
Tensor product(const Tensor& dy, const Tensor& weight) { return at::matmul(dy, weight).to(dy.scalar_type()); }

// [N, C] of a contiguous [..., C].
Tensor matrix_of(const Tensor& t) { return t.view({-1, t.size(-1)}); }

// Lets a node have gradients of any dtype for one of its outputs, as where the output is rounded and the sums are not.
// A torch that cannot do so rounds them.
template <class AnyNode>
void take_any_dtype(AnyNode& node, size_t output) {
  if constexpr (requires { node.mutable_input_metadata(output).set_grad_dtype(std::nullopt); })
    node.mutable_input_metadata(output).set_grad_dtype(std::nullopt);
}

}  // namespace
}  // namespace mhr
