// mix and its backward, registered: all layers of a call in few launches.
#include "cuda/mix.h"

#include <optional>
#include <vector>

#include "cuda/torch_device.h"
#include "mix_checks.h"

namespace mhr::cuda {
namespace {

std::vector<MixItem> items_of(const char* op, const std::vector<Tensor>& banks, const std::vector<Tensor>& weights,
                              const std::vector<int64_t>& head_dims) {
  MHR_CHECK(banks.size() == weights.size() && banks.size() == head_dims.size(), "mhr::", op, ": got ", banks.size(),
            " banks, ", weights.size(), " weights and ", head_dims.size(), " head_dims");
  std::vector<MixItem> items;
  for (size_t i = 0; i < banks.size(); ++i) {
    const Tensor &bank = banks[i], &w = weights[i];
    check_dim(op, "banks", bank, "H, S, P, Q", 4);
    MHR_CHECK(head_dims[i] == 1 || head_dims[i] == 2, "mhr::", op, ": head_dims must be 1 or 2, got ", head_dims[i]);
    const int64_t rows = w.dim() ? w.size(0) : 0;
    check_shape(op, "weights", w, "U, H, S", {rows, bank.size(0), bank.size(1)});
    check_dtype(op, "weights", w, accumulator_dtype(bank.scalar_type()));
    check_contiguous(op, "banks", bank);
    check_contiguous(op, "weights", w);
    check_same_device(op, "banks", bank, banks[0]);
    check_same_device(op, "weights", w, banks[0]);
    MixItem item{};
    item.bank = bank.const_data_ptr();
    item.weights = static_cast<const float*>(w.const_data_ptr());
    item.heads = bank.size(0);
    item.skills = bank.size(1);
    item.p = bank.size(2);
    item.q = bank.size(3);
    item.rows = rows;
    item.joins_rows = head_dims[i] == 1;
    item.bank_dtype = item.mixed_dtype = dtype_of(op, bank);
    items.push_back(item);
  }
  return items;
}

struct MixedShape {
  int64_t rows, columns;
};
MixedShape mixed_shape(const MixItem& i) {
  return {i.joins_rows ? i.heads * i.p : i.p, i.joins_rows ? i.q : i.heads * i.q};
}

std::vector<Tensor> mix(std::vector<Tensor> banks, std::vector<Tensor> weights, std::vector<int64_t> head_dims,
                        std::optional<ScalarType> out_dtype) {
  const char* op = "mix";
  std::vector<MixItem> items = items_of(op, banks, weights, head_dims);
  std::vector<Tensor> mixed;
  if (items.empty()) return mixed;
  const CallOn call(op, banks[0]);
  for (size_t i = 0; i < items.size(); ++i) {
    const auto [rows, columns] = mixed_shape(items[i]);
    mixed.push_back(empty(banks[i], {items[i].rows, rows, columns}, out_dtype.value_or(banks[i].scalar_type())));
    items[i].mixed = mixed[i].mutable_data_ptr();
    items[i].mixed_dtype = dtype_of(op, mixed[i]);
  }
  check_launch(op, launch_mix(items.data(), items.size(), call.stream()));
  return mixed;
}

// The factors of run i side by side into mixed[i] [U, P, C], zeros into the columns that are left.
void mix_beside(std::vector<Tensor> mixed, std::vector<Tensor> banks, std::vector<Tensor> weights,
                std::vector<int64_t> head_dims, std::vector<int64_t> runs) {
  const char* op = "mix_beside";
  std::vector<MixItem> items = items_of(op, banks, weights, head_dims);
  int64_t total = 0;
  for (const int64_t each : runs) {
    MHR_CHECK(each > 0, "mhr::", op, ": a run of ", each, " banks");
    total += each;
  }
  MHR_CHECK(total == int64_t(items.size()) && runs.size() == mixed.size(), "mhr::", op, ": got ", items.size(),
            " banks and ", mixed.size(), " results for runs of ", total, " banks");
  if (items.empty()) return;
  const CallOn call(op, banks[0]);
  size_t i = 0;
  for (size_t run = 0; run < runs.size(); ++run) {
    const Tensor& room = mixed[run];
    check_dim(op, "mixed", room, "U, P, C", 3);
    check_contiguous(op, "mixed", room);
    check_same_device(op, "mixed", room, banks[0]);
    const int64_t width = room.size(2);
    int64_t column = 0;
    for (int64_t k = 0; k < runs[run]; ++k, ++i) {
      MixItem& item = items[i];
      const auto [rows, columns] = mixed_shape(item);
      MHR_CHECK(runs[run] == 1 || item.joins_rows, "mhr::", op, ": only factors A lie side by side");
      MHR_CHECK(room.size(0) == item.rows && room.size(1) == rows && column + columns <= width &&
                    (item.joins_rows || columns == width),
                "mhr::", op, ": mixed has room for ", shape_of(room), ", bank ", i, " gives ", item.rows, " x ", rows,
                " x ", columns, " from column ", column, " on");
      item.mixed_dtype = dtype_of(op, room);
      item.mixed = static_cast<char*>(room.mutable_data_ptr()) + column * item_size(item.mixed_dtype);
      item.stride = item.joins_rows ? width : 0;
      column += columns;
      if (k + 1 < runs[run]) continue;
      MHR_CHECK(width - column <= 64, "mhr::", op, ": mixed has ", width, " columns for ", column);
      item.zeros = int16_t(width - column);
    }
  }
  check_launch(op, launch_mix(items.data(), items.size(), call.stream()));
}

// Of a gradient [U, P, Q], which may be columns of a wider one: from one row to the next.
int64_t row_stride(const char* op, const Tensor& grad, const MixItem& item) {
  if (grad.is_contiguous() || !item.joins_rows) {
    check_contiguous(op, "grads", grad);
    return 0;
  }
  MHR_CHECK((grad.stride(2) == 1 || grad.size(2) == 1) && grad.stride(1) >= grad.size(2) &&
                (grad.stride(0) == grad.size(1) * grad.stride(1) || grad.size(0) == 1),
            "mhr::", op, ": grads must be contiguous, or columns of a contiguous tensor");
  return grad.stride(1);
}

std::vector<Tensor> mix_backward(std::vector<Tensor> grads, std::vector<Tensor> banks, std::vector<Tensor> weights,
                                 std::vector<int64_t> rows, std::vector<int64_t> head_dims, bool need_banks,
                                 bool need_weights) {
  const char* op = "mix_backward";
  std::vector<MixItem> items = items_of(op, banks, weights_of_banks(op, weights, rows), head_dims);
  MHR_CHECK(grads.size() == banks.size(), "mhr::", op, ": got ", grads.size(), " grads for ", banks.size(), " banks");
  std::vector<Tensor> d_banks, d_weights;
  if (items.empty()) return d_banks;
  const CallOn call(op, banks[0]);
  if (need_weights)
    for (const Tensor& w : weights) d_weights.push_back(empty(w, {w.size(0), w.size(1), w.size(2)}, ScalarType::Float));
  for (size_t i = 0; i < items.size(); ++i) {
    MixItem& item = items[i];
    const auto [height, columns] = mixed_shape(item);
    check_shape(op, "grads", grads[i], "U, P, Q", {item.rows, height, columns});
    item.stride = row_stride(op, grads[i], item);
    check_same_device(op, "grads", grads[i], banks[0]);
    item.mixed_grad = grads[i].const_data_ptr();
    item.mixed_dtype = dtype_of(op, grads[i]);
    if (need_banks) {
      d_banks.push_back(empty(banks[i], {item.heads, item.skills, item.p, item.q}, banks[i].scalar_type()));
      item.bank_grad = d_banks[i].mutable_data_ptr();
    }
    if (need_weights) item.weights_grad = static_cast<float*>(d_weights[rows[i]].mutable_data_ptr());
  }
  const Scratch workspace(weights[0], mix_backward_workspace_bytes(items.data(), items.size()));
  check_launch(op, launch_mix_backward(items.data(), items.size(), workspace.data(), call.stream()));
  d_banks.insert(d_banks.end(), d_weights.begin(), d_weights.end());
  return d_banks;
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("mix", TORCH_BOX(&mhr::cuda::mix));
  m.impl("mix_beside", TORCH_BOX(&mhr::cuda::mix_beside));
  m.impl("mix_backward", TORCH_BOX(&mhr::cuda::mix_backward));
}
