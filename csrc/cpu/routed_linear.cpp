// routed_linear: banks mixed straight into panels, the passes over the tokens, gradients taken back to the banks.
// Without weights the banks are factors, of which the routed adapter reads those that some segment has.
#include <cstring>

#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "cpu/passes.h"
#include "cpu/routed_adapter.h"
#include "cpu/segments.h"
#include "linear_checks.h"

namespace mhr {
namespace {

// The checked arguments that forward and backward share.
struct Call {
  const char* op;
  const Tensor &bank_a, &bank_b, &weights_a, &weights_b, &rows_a, &rows_b;
  BankShape a, b;
  Segments segments;

  Call(const char* op, const LinearSizes& sizes, const Tensor& bank_a, const Tensor& bank_b,
       const std::optional<Tensor>& weights, const std::optional<Tensor>& weights_b, const Tensor& rows,
       const std::optional<Tensor>& rows_b, const std::optional<Tensor>& offsets)
      : op(op),
        bank_a(bank_a),
        bank_b(bank_b),
        weights_a(*weights),
        weights_b(weights_b ? *weights_b : *weights),
        rows_a(rows),
        rows_b(rows_b ? *rows_b : rows),
        a(sizes.a),
        b(sizes.b),
        segments(check_segments(op, sizes.tokens, rows, offsets)) {
    check_rows(op, "rows", rows_a, weights_a.size(0));
    check_shape(op, "rows_b", this->rows_b, "G", {rows.numel()});
    check_rows(op, "rows_b", this->rows_b, this->weights_b.size(0));
  }
};

template <class T>
Factors<T> mixed_factors(const char* op, const Tensor& bank, const BankShape& shape, const Tensor& weights, Use use) {
  using C = acc_t<T>;
  Factors<T> out(weights.size(0), shape.rank(), shape.columns(), use);
  dispatch_beside<C>(op, bank.scalar_type(), [&](auto tag) {
    using F = typename decltype(tag)::type;
    const F* from = pointer<F>(bank);
    const C* w = pointer<C>(weights);
    out.fill(out.rows * shape.skills * shape.rank() * kPanel,
             [&](int64_t panel, int64_t first, int64_t count, C* scratch, C* to, int64_t stride) {
               mix_panel(from, shape, panel, w + first * shape.heads * shape.skills, count, scratch, to, stride);
             });
  });
  return out;
}

// The bank's gradient, and that of the weights added to d_weights.
template <class T>
void unmix(const char* op, const Tensor& bank, const BankShape& shape, const Tensor& weights,
           const Gradients<acc_t<T>>& sums, const Tensor& d_bank, const Tensor& d_weights) {
  using C = acc_t<T>;
  const int64_t rows = weights.size(0), pairs = rows * shape.skills;
  const std::vector<Chunk> chunks = chunks_of(shape);
  const Buffer<C> dots(int64_t(chunks.size()) * pairs);
  dispatch_beside<C>(op, bank.scalar_type(), [&](auto tag) {
    using F = typename decltype(tag)::type;
    parallel(chunks.size(), 2 * pairs * shape.rank() * kPanel, [&](int64_t begin, int64_t end) {
      const Buffer<C> scratch(unmix_scratch(shape, rows));
      for (int64_t i = begin; i < end; i++)
        unmix_chunk(pointer<F>(bank), shape, chunks[i], pointer<C>(weights), rows, sums.row(0), scratch.data(),
                    mutable_pointer<F>(d_bank), dots.data() + i * pairs);
    });
  });
  C* out = mutable_pointer<C>(d_weights);
  for (size_t i = 0; i < chunks.size(); i++)
    for (int64_t u = 0; u < rows; u++)
      for (int64_t s = 0; s < shape.skills; s++)
        out[(u * shape.heads + chunks[i].head) * shape.skills + s] += dots.data()[i * pairs + u * shape.skills + s];
}

// What y holds before the adapter is added: the frozen bias, or nothing.
void begin(const Tensor& y, const std::optional<Tensor>& bias) {
  const int64_t row = y.size(y.dim() - 1) * y.element_size();
  auto* const to = static_cast<char*>(y.mutable_data_ptr());
  if (!bias) {
    std::memset(to, 0, y.numel() * y.element_size());
    return;
  }
  for (int64_t n = 0, tokens = tokens_of(y); n < tokens; n++) std::memcpy(to + n * row, bias->const_data_ptr(), row);
}

Tensor routed_linear_forward(Tensor y, Tensor x, std::optional<Tensor> bias, Tensor bank_a, Tensor bank_b,
                             std::optional<Tensor> weights, std::optional<Tensor> weights_b, Tensor rows,
                             std::optional<Tensor> rows_b, std::optional<Tensor> offsets, double scale,
                             bool accumulate) {
  const char* op = "routed_linear";
  const LinearSizes sizes = check_linear(op, x, bank_a, bank_b, weights, weights_b);
  check_linear_output(op, sizes, y, x, bias, accumulate);
  if (!accumulate) begin(y, bias);
  if (!weights) return routed_adapter_forward(y, x, bank_a, bank_b, rows, rows_b, offsets, {}, {}, "none", scale);
  const Call call(op, sizes, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets);
  Tensor h = empty(x, {call.segments.tokens, call.a.rank()}, accumulator_dtype(x.scalar_type()));
  dispatch_float(op, x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const Factors<T> a = mixed_factors<T>(op, bank_a, call.a, call.weights_a, Use::shrink);
    const Factors<T> b = mixed_factors<T>(op, bank_b, call.b, call.weights_b, Use::expand);
    ForwardPass<T>{call.segments,
                   pointer<int64_t>(call.rows_a),
                   pointer<int64_t>(call.rows_b),
                   &a,
                   &b,
                   nullptr,
                   Activation::none,
                   C(scale),
                   pointer<T>(x),
                   mutable_pointer<T>(y),
                   mutable_pointer<C>(h)}
        .run();
  });
  return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> routed_linear_backward(
    std::optional<Tensor> dx, Tensor dy, Tensor x, Tensor h, Tensor bank_a, Tensor bank_b,
    std::optional<Tensor> weights, std::optional<Tensor> weights_b, Tensor rows, std::optional<Tensor> rows_b,
    std::optional<Tensor> offsets, double scale, bool accumulate) {
  const char* op = "routed_linear_backward";
  const LinearSizes sizes = check_linear(op, x, bank_a, bank_b, weights, weights_b);
  const ScalarType acc = accumulator_dtype(x.scalar_type());
  check_linear_grads(op, sizes, dx, dy, x, h);
  if (!weights) {
    const auto [dz, d_b, no_bias] =
        routed_adapter_backward_dy(dy, h, bank_b, rows_b ? *rows_b : rows, offsets, "none", scale, false);
    const Tensor d_a = std::get<0>(routed_adapter_backward_x(dx, x, dz, bank_a, rows, offsets, accumulate, false));
    return {d_a, d_b, empty(x, {0}, acc), empty(x, {0}, acc)};
  }
  const Call call(op, sizes, bank_a, bank_b, weights, weights_b, rows, rows_b, offsets);
  const int64_t n = sizes.tokens, rank = sizes.a.rank();
  Tensor d_bank_a = empty(bank_a, {call.a.heads, call.a.skills, call.a.p, call.a.q}, bank_a.scalar_type());
  Tensor d_bank_b = empty(bank_b, {call.b.heads, call.b.skills, call.b.p, call.b.q}, bank_b.scalar_type());
  Tensor d_weights = empty(*weights, {weights->size(0), call.a.heads, call.a.skills}, acc);
  std::memset(d_weights.mutable_data_ptr(), 0, d_weights.numel() * d_weights.element_size());
  Tensor d_weights_b =
      weights_b ? empty(*weights_b, {weights_b->size(0), call.b.heads, call.b.skills}, acc) : empty(*weights, {0}, acc);
  std::memset(d_weights_b.mutable_data_ptr(), 0, d_weights_b.numel() * d_weights_b.element_size());
  dispatch_float(op, x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const Factors<T> a = mixed_factors<T>(op, bank_a, call.a, call.weights_a, Use::expand);
    const Factors<T> b = mixed_factors<T>(op, bank_b, call.b, call.weights_b, Use::shrink);
    const Buffer<C> dz(n * rank);
    Gradients<C> sums_b(rank, call.b.columns()), sums_a(rank, call.a.columns());
    BackwardDyPass<T>{call.segments,
                      pointer<int64_t>(call.rows_b),
                      &b,
                      false,
                      Activation::none,
                      C(scale),
                      pointer<T>(dy),
                      pointer<C>(h),
                      dz.data()}
        .run(sums_b);
    BackwardXPass<T>{call.segments, pointer<int64_t>(call.rows_a),          &a,        pointer<T>(x),
                     dz.data(),     dx ? mutable_pointer<T>(*dx) : nullptr, accumulate}
        .run(sums_a);
    unmix<T>(op, bank_a, call.a, call.weights_a, sums_a, d_bank_a, d_weights);
    unmix<T>(op, bank_b, call.b, call.weights_b, sums_b, d_bank_b, weights_b ? d_weights_b : d_weights);
  });
  return {d_bank_a, d_bank_b, d_weights, d_weights_b};
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) {
  m.impl("routed_linear_forward", TORCH_BOX(&mhr::routed_linear_forward));
  m.impl("routed_linear_backward", TORCH_BOX(&mhr::routed_linear_backward));
}
