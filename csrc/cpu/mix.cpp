// mix and its backward: banks to mixed factors in their natural layout, all layers in one call.
#include <algorithm>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dispatch.h"
#include "mix_checks.h"
#include "problem.h"

namespace mhr {
namespace {

constexpr int64_t kRun = 4096;  // elements of one skill that one step of the loops takes

struct Item {
  BankShape shape;
  int64_t rows;  // U
};

std::vector<Item> check_banks(const char* op, const std::vector<Tensor>& banks, const std::vector<Tensor>& weights,
                              const std::vector<int64_t>& head_dims) {
  MHR_CHECK(banks.size() == weights.size() && banks.size() == head_dims.size(), "mhr::", op, ": got ", banks.size(),
            " banks, ", weights.size(), " weights and ", head_dims.size(), " head_dims");
  std::vector<Item> items;
  for (size_t i = 0; i < banks.size(); i++) {
    const Tensor &bank = banks[i], &w = weights[i];
    check_dim(op, "banks", bank, "H, S, P, Q", 4);
    MHR_CHECK(head_dims[i] == 1 || head_dims[i] == 2, "mhr::", op, ": head_dims must be 1 or 2, got ", head_dims[i]);
    const int64_t rows = w.dim() ? w.size(0) : 0;
    check_shape(op, "weights", w, "U, H, S", {rows, bank.size(0), bank.size(1)});
    check_dtype(op, "weights", w, accumulator_dtype(bank.scalar_type()));
    check_contiguous(op, "banks", bank);
    check_contiguous(op, "weights", w);
    items.push_back({{bank.size(0), bank.size(1), bank.size(2), bank.size(3), head_dims[i] == 1}, rows});
  }
  return items;
}

// A piece of one head: rows [first, first + count) of its [P, Q] block.
struct Step {
  int64_t head, first, count;
};

std::vector<Step> steps_of(const BankShape& shape) {
  std::vector<Step> steps;
  if (!shape.block()) return steps;
  const int64_t count = std::max<int64_t>(1, kRun / shape.q);
  for (int64_t h = 0; h < shape.heads; h++)
    for (int64_t first = 0; first < shape.p; first += count)
      steps.push_back({h, first, std::min(count, shape.p - first)});
  return steps;
}

// One step's runs in the bank, and where they lie in a mixed factor: at `offset`, `row_stride` apart.
struct Runs {
  BankRun bank;
  int64_t bank_offset, offset, row_stride;
};

Runs runs_of(const BankShape& shape, const Step& step) {
  const int64_t bank_offset = step.head * shape.skills * shape.block() + step.first * shape.q;
  if (shape.joins_rows)
    return {{shape.skills, shape.block(), 1, 0, step.count * shape.q},
            bank_offset,
            step.head * shape.block() + step.first * shape.q,
            0};
  const int64_t width = shape.heads * shape.q;
  return {{shape.skills, shape.block(), step.count, shape.q, shape.q},
          bank_offset,
          step.first * width + step.head * shape.q,
          width};
}

template <class T, class O>
void mix_one(const T* bank, const Item& item, const acc_t<T>* w, O* out) {
  using C = acc_t<T>;
  const BankShape& shape = item.shape;
  const std::vector<Step> steps = steps_of(shape);
  parallel(steps.size(), item.rows * shape.skills * kRun, [&](int64_t begin, int64_t end) {
    Buffer<C> mixed(std::is_same_v<O, C> ? 0 : item.rows * std::max(kRun, shape.q));
    for (int64_t i = begin; i < end; i++) {
      const Runs runs = runs_of(shape, steps[i]);
      const C* weight = w + steps[i].head * shape.skills;
      const int64_t w_stride = shape.heads * shape.skills, length = runs.bank.length;
      if constexpr (std::is_same_v<O, C>) {
        bank_kernels<T>().combine(bank + runs.bank_offset, runs.bank, weight, out + runs.offset,
                                  {item.rows, shape.mixed_size(), runs.row_stride, w_stride});
      } else {
        const int64_t size = runs.bank.rows * length;
        bank_kernels<T>().combine(bank + runs.bank_offset, runs.bank, weight, mixed.data(),
                                  {item.rows, size, length, w_stride});
        for (int64_t u = 0; u < item.rows; u++)
          for (int64_t row = 0; row < runs.bank.rows; row++)
            bank_kernels<O>().narrow(mixed.data() + u * size + row * length, length,
                                     out + u * shape.mixed_size() + runs.offset + row * runs.row_stride);
      }
    }
  });
}

std::vector<Tensor> mix(std::vector<Tensor> banks, std::vector<Tensor> weights, std::vector<int64_t> head_dims,
                        std::optional<ScalarType> out_dtype) {
  const std::vector<Item> items = check_banks("mix", banks, weights, head_dims);
  std::vector<Tensor> mixed;
  for (size_t i = 0; i < banks.size(); i++) {
    const BankShape& shape = items[i].shape;
    const ScalarType dtype = out_dtype.value_or(banks[i].scalar_type());
    const int64_t p = shape.joins_rows ? shape.heads * shape.p : shape.p,
                  q = shape.joins_rows ? shape.q : shape.heads * shape.q;
    mixed.push_back(empty(banks[i], {items[i].rows, p, q}, dtype));
    dispatch_float("mix", banks[i].scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto* w = pointer<acc_t<T>>(weights[i]);
      dispatch_beside<acc_t<T>>("mix", dtype, [&](auto out_tag) {
        mix_one(pointer<T>(banks[i]), items[i], w, mutable_pointer<typename decltype(out_tag)::type>(mixed[i]));
      });
    });
  }
  return mixed;
}

template <class T, class G>
void mix_backward_one(const G* grad, const T* bank, const Item& item, const acc_t<T>* w, T* d_bank,
                      acc_t<T>* d_weights) {
  using C = acc_t<T>;
  const BankShape& shape = item.shape;
  const std::vector<Step> steps = steps_of(shape);
  const int64_t w_stride = shape.heads * shape.skills, pairs = item.rows * shape.skills;
  const Buffer<C> dots(d_weights ? int64_t(steps.size()) * pairs : 0);
  parallel(steps.size(), 2 * item.rows * shape.skills * kRun, [&](int64_t begin, int64_t end) {
    Buffer<C> wide(std::is_same_v<G, C> ? 0 : item.rows * std::max(kRun, shape.q));
    for (int64_t i = begin; i < end; i++) {
      const Runs runs = runs_of(shape, steps[i]);
      const int64_t length = runs.bank.length, size = runs.bank.rows * length;
      const C* source = nullptr;
      MixedRun mixed{item.rows, shape.mixed_size(), runs.row_stride, w_stride};
      if constexpr (std::is_same_v<G, C>) {
        source = grad + runs.offset;
      } else {
        for (int64_t u = 0; u < item.rows; u++)
          for (int64_t row = 0; row < runs.bank.rows; row++)
            bank_kernels<G>().widen(grad + u * shape.mixed_size() + runs.offset + row * runs.row_stride, length,
                                    wide.data() + u * size + row * length);
        source = wide.data();
        mixed = {item.rows, size, length, w_stride};
      }
      if (d_bank)
        bank_kernels<T>().distribute(d_bank + runs.bank_offset, runs.bank, w + steps[i].head * shape.skills, source,
                                     mixed);
      if (!d_weights) continue;
      std::fill(dots.data() + i * pairs, dots.data() + (i + 1) * pairs, C(0));
      bank_kernels<T>().dots(bank + runs.bank_offset, runs.bank, source, mixed, dots.data() + i * pairs);
    }
  });
  if (!d_weights) return;
  std::fill(d_weights, d_weights + item.rows * w_stride, C(0));
  for (size_t i = 0; i < steps.size(); i++)
    for (int64_t u = 0; u < item.rows; u++)
      for (int64_t s = 0; s < shape.skills; s++)
        d_weights[u * w_stride + steps[i].head * shape.skills + s] += dots.data()[i * pairs + u * shape.skills + s];
}

std::vector<Tensor> mix_backward(std::vector<Tensor> grads, std::vector<Tensor> banks, std::vector<Tensor> weights,
                                 std::vector<int64_t> rows, std::vector<int64_t> head_dims, bool need_banks,
                                 bool need_weights) {
  const char* op = "mix_backward";
  const std::vector<Tensor> of_banks = weights_of_banks(op, weights, rows);
  const std::vector<Item> items = check_banks(op, banks, of_banks, head_dims);
  MHR_CHECK(grads.size() == banks.size(), "mhr::", op, ": got ", grads.size(), " grads for ", banks.size(), " banks");
  std::vector<Tensor> d_banks, d_weights;
  if (need_weights)
    for (const Tensor& w : weights) d_weights.push_back(empty(w, {w.size(0), w.size(1), w.size(2)}, w.scalar_type()));
  std::vector<bool> holds(weights.size());  // the gradient by banks before this one
  for (size_t i = 0; i < banks.size(); i++) {
    const BankShape& shape = items[i].shape;
    const int64_t p = shape.joins_rows ? shape.heads * shape.p : shape.p,
                  q = shape.joins_rows ? shape.q : shape.heads * shape.q;
    check_shape(op, "grads", grads[i], "U, P, Q", {items[i].rows, p, q});
    check_contiguous(op, "grads", grads[i]);
    if (need_banks)
      d_banks.push_back(empty(banks[i], {shape.heads, shape.skills, shape.p, shape.q}, banks[i].scalar_type()));
    dispatch_float(op, banks[i].scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using C = acc_t<T>;
      C* const sum = need_weights ? mutable_pointer<C>(d_weights[rows[i]]) : nullptr;
      const bool adds = sum && holds[rows[i]];
      const Buffer<C> own(adds ? of_banks[i].numel() : 0);
      dispatch_beside<C>(op, grads[i].scalar_type(), [&](auto grad_tag) {
        mix_backward_one(pointer<typename decltype(grad_tag)::type>(grads[i]), pointer<T>(banks[i]), items[i],
                         pointer<C>(of_banks[i]), need_banks ? mutable_pointer<T>(d_banks[i]) : nullptr,
                         adds ? own.data() : sum);
      });
      if (adds)
        for (int64_t e = 0, n = of_banks[i].numel(); e < n; e++) sum[e] += own.data()[e];
    });
    holds[rows[i]] = true;
  }
  d_banks.insert(d_banks.end(), d_weights.begin(), d_weights.end());
  return d_banks;
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) {
  m.impl("mix", TORCH_BOX(&mhr::mix));
  m.impl("mix_backward", TORCH_BOX(&mhr::mix_backward));
}
