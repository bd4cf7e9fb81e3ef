// Banks as the factors of one call: mixed into its scratch, their gradients taken back.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/adapter_arguments.h"
#include "cuda/mix.h"
#include "linear_checks.h"

namespace mhr::cuda {

// Stands for a place in the scratch of a call, which is not there while its size is asked for: an address so aligned.
inline void* place() { return reinterpret_cast<void*>(uintptr_t(256)); }

// One factor or bias of a call: mixed out of its bank, or, without weights, the bank itself, whose skills are the rows.
struct BankFactor {
  BankShape shape;
  const Tensor& bank;
  const Tensor* weights;  // or null
  Dtype bank_dtype, dtype;
  int64_t rows;
  float scale = 1.0f;
  size_t mixed_at = 0, grad_at = 0;
  Tensor d_bank = {};

  BankFactor(const char* op, const BankShape& shape, const Tensor& bank, const Tensor* weights, const Tensor& x)
      : shape(shape),
        bank(bank),
        weights(weights),
        bank_dtype(dtype_of(op, bank)),
        dtype(weights ? dtype_of(op, x) : bank_dtype),
        rows(weights ? weights->size(0) : shape.skills) {
    check_same_device(op, "every bank", bank, x);
    if (weights) check_same_device(op, "weights", *weights, x);
  }

  int64_t size() const { return rows * shape.mixed_size(); }
  // Of a row of a mixed A that is no multiple of the 16 bytes in which the adapter's kernels read it, else 0. A bias
  // has one row, which stays as it is.
  int64_t stride() const {
    const int64_t vector = 16 / item_size(dtype);
    if (!weights || !shape.joins_rows || shape.p == 1 || shape.q % vector == 0) return 0;
    return (shape.q + vector - 1) / vector * vector;
  }
  void plan_mixed(Plan& plan) {
    if (weights)
      mixed_at = plan.add(size_t(stride() ? size() / shape.q * stride() : size()) * size_t(item_size(dtype)));
  }
  void plan_grad(Plan& plan) {
    if (weights) grad_at = plan.add(size_t(size()) * sizeof(float));
    // Without weights the factor's gradient is the bank's, in the precision of its sums.
    const ScalarType dtype = weights ? bank.scalar_type() : ScalarType::Float;
    d_bank = bank.dim() == 3 ? empty(bank, {bank.size(0), bank.size(1), bank.size(2)}, dtype)
                             : empty(bank, {bank.size(0), bank.size(1), bank.size(2), bank.size(3)}, dtype);
  }
  const void* place() const { return weights ? cuda::place() : bank.const_data_ptr(); }
  const void* data(const Scratch& scratch) const {
    return weights ? scratch.at<void>(mixed_at) : bank.const_data_ptr();
  }
  float* grad(const Scratch& scratch) const { return weights ? scratch.at<float>(grad_at) : floats_of(d_bank); }

  MixItem item() const {
    MixItem i{};
    i.bank = bank.const_data_ptr();
    i.weights = static_cast<const float*>(weights->const_data_ptr());
    i.heads = shape.heads;
    i.skills = shape.skills;
    i.p = shape.p;
    i.q = shape.q;
    i.rows = rows;
    i.joins_rows = shape.joins_rows;
    i.bank_dtype = bank_dtype;
    i.mixed_dtype = dtype;
    i.scale = scale;
    return i;
  }
  MixItem mix_item(const Scratch& scratch) const {
    MixItem i = item();
    i.mixed = scratch.at<void>(mixed_at);
    i.stride = stride();
    if (i.stride) i.zeros = int16_t(i.stride - shape.q);
    return i;
  }
  MixItem grad_item(const Scratch& scratch, const Tensor& d_weights) const {
    MixItem i = item();
    i.mixed_grad = scratch.at<void>(grad_at);
    i.mixed_dtype = Dtype::kFp32;
    i.bank_grad = d_bank.mutable_data_ptr();
    i.weights_grad = floats_of(d_weights);
    return i;
  }
};

template <class... Factors>
inline void mix_factors(const char* op, const Scratch& scratch, void* stream, const Factors&... factors) {
  std::vector<MixItem> items;
  const auto add = [&](const BankFactor& f) {
    if (f.weights) items.push_back(f.mix_item(scratch));
  };
  items.reserve(sizeof...(factors));
  (add(factors), ...);
  if (!items.empty()) check_launch(op, launch_mix(items.data(), items.size(), stream));
}

// The gradients of weights and weights_b: one tensor where both sides have the same weights, none where there are none.
struct WeightsGrads {
  Tensor a, b;
  WeightsGrads(const Tensor& like, const OptionalTensor& weights, const OptionalTensor& weights_b)
      : a(of(like, weights)), b(weights ? of(like, weights_b) : a) {}
  static Tensor of(const Tensor& like, const OptionalTensor& w) {
    return w ? empty(*w, {w->size(0), w->size(1), w->size(2)}, ScalarType::Float) : empty(like, {0}, ScalarType::Float);
  }
};

inline const Tensor* pointer_to(const OptionalTensor& t) { return t ? &*t : nullptr; }

}  // namespace mhr::cuda
