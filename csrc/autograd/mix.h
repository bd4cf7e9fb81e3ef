#pragma once

#include <algorithm>
#include <vector>

#include "autograd/node.h"

namespace mhr {
namespace {

using MixForward = std::vector<Tensor>(at::TensorList, at::TensorList, at::IntArrayRef, std::optional<at::ScalarType>);
using MixBackward = std::vector<Tensor>(at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef,
                                        at::IntArrayRef, bool, bool);

struct Mix : Node {
  std::vector<SavedVariable> tensors;  // the banks, then the weights, of which bank i was mixed by number rows[i]
  std::vector<int64_t> head_dims, rows, runs, widths;  // widths: columns of each bank, where there are runs

  std::string name() const override { return "Mix"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& v : tensors) v.reset_data();
  }

  // The gradient of each bank's factor, out of those of the runs: views, where a run is longer than one.
  variable_list by_bank(variable_list&& grads) const {
    const at::AutoDispatchBelowADInplaceOrView below;
    variable_list each;
    for (size_t run = 0; run < runs.size(); run++) {
      const Tensor whole = grads[run].defined() ? grads[run].contiguous() : Tensor();
      int64_t column = 0;
      for (int64_t k = 0; k < runs[run]; k++) {
        if (runs[run] == 1 || !whole.defined()) {
          each.push_back(whole);
          continue;
        }
        const int64_t width = widths[each.size()];
        each.push_back(whole.narrow(2, column, width));
        column += width;
      }
    }
    return each;
  }

  variable_list apply(variable_list&& grads) override {
    static const auto op = find_op<MixBackward>("mhr::mix_backward");
    refuse_second_order("mix");
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t n = head_dims.size();
    variable_list found(tensors.size());
    if (!runs.empty()) grads = by_bank(std::move(grads));
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
    for (Tensor& g : given)
      if (runs.empty() || !g.is_cuda()) g = g.contiguous();
    const std::vector<Tensor> values = op.call(given, banks, weights, row, dims, need_banks, need_weights);
    size_t next = 0;
    if (need_banks)
      for (const size_t i : of_bank) found[i] = values[next++];
    if (need_weights)
      for (const size_t i : of_weights) found[i] = values[next++];
    return found;
  }
};

// How many banks there are in all runs.
int64_t banks_of(const char* op, at::IntArrayRef runs) {
  int64_t total = 0;
  for (const int64_t each : runs) {
    TORCH_CHECK(each > 0, "mhr::", op, ": a run of ", each, " banks");
    total += each;
  }
  return total;
}

// Room for the factors of a run, [U, P, C]; where there are several of them its rows begin at multiples of 16 bytes.
Tensor room(const Tensor& bank, const Tensor& weights, int64_t head_dim, int64_t columns, bool several,
            std::optional<at::ScalarType> out_dtype) {
  const auto options = bank.options().dtype(out_dtype.value_or(bank.scalar_type()));
  const int64_t vector = several ? 16 / int64_t(options.dtype().itemsize()) : 1;
  const int64_t rows = (head_dim == 1 ? bank.size(0) : 1) * bank.size(2);
  return at::empty({weights.size(0), rows, (columns + vector - 1) / vector * vector}, options);
}

// Of the CPU, whose kernel makes one factor a tensor.
void mix_beside_of_parts(at::TensorList mixed, at::TensorList banks, at::TensorList weights, at::IntArrayRef head_dims,
                         at::IntArrayRef runs) {
  static const auto op = find_op<MixForward>("mhr::mix");
  const int64_t total = banks_of("mix_beside", runs);
  TORCH_CHECK(total == int64_t(banks.size()) && runs.size() == mixed.size(), "mhr::mix_beside: got ", banks.size(),
              " banks and ", mixed.size(), " results for runs of ", total, " banks");
  size_t i = 0;
  for (size_t run = 0; run < runs.size(); run++) {
    const size_t n = size_t(runs[run]);
    const Tensor& room = mixed[run];
    const std::vector<Tensor> parts =
        op.call(banks.slice(i, n), weights.slice(i, n), head_dims.slice(i, n), room.scalar_type());
    int64_t column = 0;
    for (const Tensor& part : parts) {
      TORCH_CHECK(n == 1 || head_dims[i] == 1, "mhr::mix_beside: only factors A lie side by side");
      TORCH_CHECK(room.dim() == 3 && room.size(0) == part.size(0) && room.size(1) == part.size(1) &&
                      column + part.size(2) <= room.size(2),
                  "mhr::mix_beside: mixed has room for ", room.sizes(), ", bank ", i, " gives ", part.sizes(),
                  " from column ", column, " on");
      room.narrow(2, column, part.size(2)).copy_(part);
      column += part.size(2);
      i++;
    }
    room.narrow(2, column, room.size(2) - column).zero_();
  }
}

// `runs` says how many banks lie side by side in one result each; none: every bank has its own.
std::vector<Tensor> mix(std::optional<at::ScalarType> out_dtype, std::vector<int64_t> head_dims,
                        std::vector<int64_t> rows, std::vector<int64_t> runs, const std::vector<Tensor>& inputs) {
  static const auto op = find_op<MixForward>("mhr::mix");
  static const auto beside =
      find_op<void(at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef, at::IntArrayRef)>(
          "mhr::mix_beside");
  const NodePointer node = node_of<Mix>("mix", at::TensorList(inputs));
  // What is no weights is a bank, however many head_dims there are: the op says what does not fit.
  const size_t n = inputs.size() - size_t(rows.empty() ? 0 : *std::max_element(rows.begin(), rows.end()) + 1);
  std::vector<Tensor> tensors, mixed;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    for (const Tensor& t : inputs) tensors.push_back(t.contiguous());
    const at::TensorList banks = at::TensorList(tensors).slice(0, n);
    std::vector<Tensor> weights;
    for (const int64_t row : rows) weights.push_back(tensors[n + size_t(row)]);
    if (runs.empty()) {
      mixed = op.call(banks, weights, head_dims, out_dtype);
    } else {
      const int64_t total = banks_of("mix", runs);
      TORCH_CHECK(total == int64_t(n) && head_dims.size() == n && weights.size() == n,
                  "mhr::mix: runs must add up to the ", n, " banks, got ", total, " with ", head_dims.size(),
                  " head_dims");
      std::vector<int64_t> columns;
      size_t i = 0;
      for (const int64_t each : runs) {
        columns.push_back(0);
        for (int64_t k = 0; k < each; k++)
          columns.back() += banks[i + k].size(3) * (head_dims[i + k] == 1 ? 1 : banks[i + k].size(0));
        mixed.push_back(room(banks[i], weights[i], head_dims[i], columns.back(), each > 1, out_dtype));
        i += size_t(each);
      }
      beside.call(mixed, banks, weights, head_dims, runs);
      for (size_t k = 0; k < mixed.size(); k++) mixed[k] = mixed[k].narrow(2, 0, columns[k]);
    }
  }
  if (!node) return mixed;
  auto& own = static_cast<Mix&>(*node);
  for (const Tensor& t : tensors) own.tensors.push_back(saved(t));
  own.head_dims = std::move(head_dims);
  own.rows = std::move(rows);
  own.runs = std::move(runs);
  if (!own.runs.empty())
    for (size_t i = 0; i < n; i++) own.widths.push_back(tensors[i].size(3));
  torch::autograd::set_history(mixed, node);
  for (size_t i = 0; i < mixed.size(); i++) take_any_dtype(own, i);
  return mixed;
}

}  // namespace
}  // namespace mhr
