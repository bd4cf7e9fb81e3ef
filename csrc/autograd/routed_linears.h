// routed_linears: frozen linears that read the same x, in one node.
#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include "autograd/node.h"

namespace mhr {
namespace {

using Tensors = std::vector<Tensor>;

// [..., C] beside x [..., I].
std::vector<int64_t> sizes_beside(const Tensor& x, int64_t columns) {
  auto sizes = x.sizes().vec();
  sizes.back() = columns;
  return sizes;
}

// The CPU has no kernels that do all in one: one adapter after the other, each by its own kernel or reference.
std::vector<int64_t> ranks_of(at::TensorList b) {
  std::vector<int64_t> ranks;
  for (const Tensor& factor : b) {
    TORCH_CHECK(factor.dim() == 3, "mhr::routed_linears: B must have shape (U, R, O), got ", factor.sizes());
    ranks.push_back(factor.size(1));
  }
  return ranks;
}

void check_linears(const Tensor& x, const Tensor& a, const std::vector<int64_t>& ranks) {
  TORCH_CHECK(a.dim() == 3, "mhr::routed_linears: A must have shape (U, I, R), got ", a.sizes());
  int64_t total = 0;
  for (const int64_t rank : ranks) total += rank;
  TORCH_CHECK(a.size(2) == total, "mhr::routed_linears: A has rank ", a.size(2), ", the factors B together ", total);
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == a.size(1), "mhr::routed_linears: x must have I = ", a.size(1),
              " columns, as A adapts, got ", x.sizes());
}

Tensor linears_of_parts(at::TensorList ys, const Tensor& x, const c10::List<OptionalTensor>& biases, const Tensor& a,
                        at::TensorList b, const Tensor& rows, const OptionalTensor& rows_b,
                        const OptionalTensor& offsets, double scale, bool accumulate) {
  static const auto op =
      find_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, c10::string_view, double)>(
          "mhr::routed_adapter_forward");
  const std::vector<int64_t> ranks = ranks_of(b);
  check_linears(x, a, ranks);
  const Tensors parts = a.split_with_sizes(ranks, 2);
  Tensors found;
  for (size_t i = 0; i < ys.size(); i++) {
    const OptionalTensor bias = biases.get(i);
    TORCH_CHECK(!accumulate || !bias, "mhr::routed_linears: biases are for a y that is not accumulated into");
    Tensor y = ys[i];
    if (!accumulate) bias ? y.copy_(*bias) : y.zero_();
    found.push_back(
        op.call(y, x, parts[i].contiguous(), b[i], rows, rows_b, offsets, std::nullopt, std::nullopt, "none", scale));
  }
  return at::cat(found, 1);
}

Tensor linears_grads_of_parts(const OptionalTensor& dx, at::TensorList d_b, at::TensorList dys, const Tensor& x,
                              const Tensor& h, const Tensor& a, at::TensorList b, const Tensor& rows,
                              const OptionalTensor& rows_b, const OptionalTensor& offsets, double scale,
                              bool accumulate) {
  static const auto backward_dy =
      find_op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                 const OptionalTensor&, c10::string_view, double, bool)>(
          "mhr::routed_adapter_backward_dy");
  static const auto backward_x =
      find_op<std::tuple<Tensor, Tensor>(const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, const OptionalTensor&, bool, bool)>(
          "mhr::routed_adapter_backward_x");
  const std::vector<int64_t> ranks = ranks_of(b);
  check_linears(x, a, ranks);
  const Tensors z = h.split_with_sizes(ranks, 1);
  Tensors dz;
  for (size_t i = 0; i < dys.size(); i++) {
    auto [part, of_b, none] =
        backward_dy.call(dys[i], z[i].contiguous(), b[i], rows_b ? *rows_b : rows, offsets, "none", scale, false);
    dz.push_back(part);
    d_b[i].copy_(of_b);
  }
  return std::get<0>(backward_x.call(dx, x, at::cat(dz, 1), a.contiguous(), rows, offsets, accumulate, false));
}

struct RoutedLinears : Node {
  // x, A, then of each layer its weight, then its bias, then its B.
  SavedVariable x, a, h, rows, rows_b, offsets;
  std::vector<SavedVariable> weights, factors_b;
  double scale = 1.0;
  bool first = false;  // the adapters' outputs were written first, the frozen products added to them

  std::string name() const override { return "RoutedLinears"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* v : {&x, &a, &h, &rows, &rows_b, &offsets}) v->reset_data();
    for (auto* list : {&weights, &factors_b})
      for (SavedVariable& v : *list) v.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op =
        find_op<Tensor(const OptionalTensor&, at::TensorList, at::TensorList, const Tensor&, const Tensor&,
                       const Tensor&, at::TensorList, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                       double, bool)>("mhr::routed_linears_backward");
    refuse_second_order("routed_linears");
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t n = weights.size();
    variable_list found(2 + 3 * n);
    bool any = false;
    for (const Tensor& g : grads) any |= g.defined();
    if (!any) return found;
    const Tensor given = x.unpack(), kept = h.unpack(), factor_a = a.unpack(), row = rows.unpack();
    const OptionalTensor row_b = optional(rows_b.unpack()), segments = optional(offsets.unpack());
    Tensors frozen, b;
    for (size_t i = 0; i < n; i++) {
      frozen.push_back(weights[i].unpack());
      b.push_back(factors_b[i].unpack());
    }
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensors dy, d_b;
    for (size_t i = 0; i < n; i++) {
      // What nothing was made of counts as zeros.
      dy.push_back(grads[i].defined() ? grads[i].contiguous()
                                      : at::zeros(sizes_beside(given, b[i].size(2)), given.options()));
      d_b.push_back(at::empty(b[i].sizes(), kept.options()));
    }
    const Tensor flat = matrix_of(given);
    if (task_should_compute_output(0)) found[0] = first ? at::empty_like(given) : product(dy[0], frozen[0]);
    const auto add_products = [&](size_t begin) {
      if (!found[0].defined()) return;
      Tensor dx = matrix_of(found[0]);
      for (size_t i = begin; i < n; i++) dx.addmm_(matrix_of(dy[i]), frozen[i]);
    };
    for (size_t i = 0; i < n; i++) {
      if (task_should_compute_output(2 + i)) found[2 + i] = at::matmul(matrix_of(dy[i]).t(), flat);
      if (task_should_compute_output(2 + n + i)) found[2 + n + i] = matrix_of(dy[i]).sum(0);
    }
    if (!first) add_products(1);
    found[1] = op.call(optional(found[0]), d_b, dy, given, kept, factor_a, b, row, row_b, segments, scale, !first);
    if (first) add_products(0);
    for (size_t i = 0; i < n; i++) found[2 + 2 * n + i] = std::move(d_b[i]);
    return found;
  }
};

std::vector<Tensor> routed_linears(const Tensor& x, const Tensor& factor_a, const Tensor& rows,
                                   const OptionalTensor& rows_b, const OptionalTensor& offsets, double scale,
                                   bool first, const std::vector<OptionalTensor>& more) {
  static const auto op =
      find_op<Tensor(at::TensorList, const Tensor&, const c10::List<OptionalTensor>&, const Tensor&, at::TensorList,
                     const Tensor&, const OptionalTensor&, const OptionalTensor&, double, bool)>(
          "mhr::routed_linears_forward");
  const size_t n = more.size() / 3;
  Tensors edges{x, factor_a};
  for (const OptionalTensor& t : more) edges.push_back(t ? *t : Tensor());
  const NodePointer node = node_of<RoutedLinears>("routed_linears", at::TensorList(edges));
  Tensors ys, b;
  Tensor given, h, row;
  OptionalTensor row_b, segments;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    given = x.contiguous();
    row = rows.contiguous();
    row_b = dense(rows_b);
    segments = dense(offsets);
    c10::List<OptionalTensor> biases;
    for (size_t i = 0; i < n; i++) {
      b.push_back(more[2 * n + i]->contiguous());
      biases.push_back(first ? dense(more[n + i]) : std::nullopt);
      const Tensor& weight = *more[i];
      ys.push_back(first ? at::empty(sizes_beside(given, weight.size(0)), given.options())
                         : at::linear(given, weight, more[n + i]));
    }
    h = op.call(ys, given, biases, factor_a, b, row, row_b, segments, scale, !first);
    if (first)
      for (size_t i = 0; i < n; i++) matrix_of(ys[i]).addmm_(matrix_of(given), more[i]->t());
  }
  if (!node) return ys;
  auto& own = static_cast<RoutedLinears&>(*node);
  own.x = saved(given);
  own.a = saved(factor_a);
  own.h = saved(h);
  own.rows = saved(row);
  own.rows_b = saved(row_b);
  own.offsets = saved(segments);
  for (size_t i = 0; i < n; i++) {
    own.weights.push_back(saved(*more[i]));
    own.factors_b.push_back(saved(b[i]));
  }
  own.scale = scale;
  own.first = first;
  torch::autograd::set_history(ys, node);
  return ys;
}

}  // namespace
}  // namespace mhr
