// routed_adapter: factors given as tensors, brought to panels, then the passes over the tokens.
#include "cpu/routed_adapter.h"

#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "cpu/passes.h"
#include "cpu/segments.h"

namespace mhr {
namespace {

Activation activation_of(const char* op, const std::string& name) {
  MHR_CHECK(name == "none" || name == "gelu", "mhr::", op, ": activation must be 'none' or 'gelu', got '", name, "'");
  return name == "gelu" ? Activation::gelu : Activation::none;
}

// The rows that some segment has, in order of their first, and every segment's among these, -1 staying -1: of AdaMix's
// modules, say, one is drawn, and only its factors are read.
struct UsedRows {
  UsedRows(const Tensor& rows, int64_t n_rows) : of_segment(rows.numel()), place(n_rows, -1) {
    for (size_t g = 0; g < of_segment.size(); g++) {
      const int64_t row = pointer<int64_t>(rows)[g];
      if (row < 0) {
        of_segment[g] = row;
        continue;
      }
      if (place[row] < 0) {
        place[row] = count();
        used.push_back(row);
      }
      of_segment[g] = place[row];
    }
  }
  int64_t count() const { return int64_t(used.size()); }

  std::vector<int64_t> used, of_segment, place;  // place: of each row among the used ones, or -1
};

// Factors [U, I, R] (transposed) or [U, R, D] to panels, with `bias` [U, D] as one rank more.
template <class T>
Factors<T> factors_of(const char* op, const Tensor& factor, const UsedRows& rows, bool transposed,
                      const std::optional<Tensor>& bias, Use use) {
  using C = acc_t<T>;
  const int64_t rank = factor.size(transposed ? 2 : 1), columns = factor.size(transposed ? 1 : 2);
  const BankShape shape{1, 1, transposed ? columns : rank, transposed ? rank : columns, transposed};
  const BankShape bias_shape{1, 1, 1, columns, false};
  const C one = 1;
  Factors<T> out(rows.count(), rank + (bias ? 1 : 0), columns, use);
  dispatch_beside<C>(op, factor.scalar_type(), [&](auto tag) {
    using F = typename decltype(tag)::type;
    out.fill(out.rows * rank * kPanel, [&](int64_t panel, int64_t first, int64_t count, C* scratch, C* to,
                                           int64_t stride) {
      for (int64_t i = first; i < first + count; i++, to += stride) {
        const int64_t u = rows.used[i];
        mix_panel(pointer<F>(factor) + u * rank * columns, shape, panel, &one, 1, scratch, to, stride);
        if (bias)
          mix_panel(pointer<F>(*bias) + u * columns, bias_shape, panel, &one, 1, scratch, to + rank * kPanel, stride);
      }
    });
  });
  return out;
}

}  // namespace

Tensor routed_adapter_forward(Tensor y, Tensor x, Tensor A, Tensor B, Tensor rows, std::optional<Tensor> rows_b,
                              std::optional<Tensor> offsets, std::optional<Tensor> bias_a, std::optional<Tensor> bias_b,
                              std::string activation, double scale) {
  const char* op = "routed_adapter";
  const AdapterSizes sizes = check_forward(op, y, x, A, B, rows, rows_b, offsets, bias_a, bias_b);
  const int64_t n = sizes.tokens, rank = sizes.rank;
  check_rows(op, "rows", rows, A.size(0));
  check_rows(op, rows_b ? "rows_b" : "rows", rows_b ? *rows_b : rows, B.size(0));
  const Segments segments = check_segments(op, n, rows, offsets);
  Tensor z = empty(x, {n, rank}, accumulator_dtype(x.scalar_type()));
  const Activation act = activation_of(op, activation);
  dispatch_float(op, x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const UsedRows used_a(rows, A.size(0)), used_b(rows_b ? *rows_b : rows, B.size(0));
    const Factors<T> a = factors_of<T>(op, A, used_a, true, std::nullopt, Use::shrink);
    const Factors<T> b = factors_of<T>(op, B, used_b, false, bias_b, Use::expand);
    Buffer<C> wide_bias(bias_a ? used_a.count() * rank : 0);
    if (bias_a)
      dispatch_beside<C>(op, bias_a->scalar_type(), [&](auto bias_tag) {
        using F = typename decltype(bias_tag)::type;
        for (int64_t i = 0; i < used_a.count(); i++)
          bank_kernels<F>().widen(pointer<F>(*bias_a) + used_a.used[i] * rank, rank, wide_bias.data() + i * rank);
      });
    ForwardPass<T>{segments,
                   used_a.of_segment.data(),
                   used_b.of_segment.data(),
                   &a,
                   &b,
                   bias_a ? wide_bias.data() : nullptr,
                   act,
                   C(scale),
                   pointer<T>(x),
                   mutable_pointer<T>(y),
                   mutable_pointer<C>(z)}
        .run();
  });
  return z;
}

std::tuple<Tensor, Tensor, Tensor> routed_adapter_backward_dy(Tensor dy, Tensor z, Tensor B, Tensor rows,
                                                              std::optional<Tensor> offsets, std::string activation,
                                                              double scale, bool need_bias) {
  const char* op = "routed_adapter_backward_dy";
  const AdapterSizes sizes = check_backward_dy(op, dy, z, B, rows, offsets);
  const int64_t n = sizes.tokens, n_rows = B.size(0), rank = sizes.rank, n_out = sizes.n_out;
  const ScalarType acc = accumulator_dtype(dy.scalar_type());
  check_rows(op, "rows", rows, n_rows);
  const Segments segments = check_segments(op, n, rows, offsets);
  Tensor dz = empty(z, {n, rank}, acc), d_b = empty(z, {n_rows, rank, n_out}, acc);
  Tensor d_bias = need_bias ? empty(z, {n_rows, n_out}, acc) : empty(z, {0}, acc);
  const Activation act = activation_of(op, activation);
  dispatch_float(op, dy.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const UsedRows used(rows, n_rows);
    const Factors<T> b = factors_of<T>(op, B, used, false, std::nullopt, Use::shrink);
    const int64_t width = rank + (need_bias ? 1 : 0);
    Gradients<C> sums(width, n_out);
    BackwardDyPass<T>{segments,      used.of_segment.data(), &b, need_bias, act, C(scale), pointer<T>(dy),
                      pointer<C>(z), mutable_pointer<C>(dz)}
        .run(sums);
    parallel(n_rows, width * n_out, [&](int64_t begin, int64_t end) {
      const Buffer<C> plain(need_bias ? width * n_out : 0);
      for (int64_t u = begin; u < end; u++) {
        C* to = mutable_pointer<C>(d_b) + u * rank * n_out;
        C* to_bias = need_bias ? mutable_pointer<C>(d_bias) + u * n_out : nullptr;
        if (used.place[u] < 0) {
          std::fill(to, to + rank * n_out, C(0));
          if (need_bias) std::fill(to_bias, to_bias + n_out, C(0));
          continue;
        }
        const C* found = sums.row(used.place[u]);
        if (!need_bias) {
          from_panels(found, rank, n_out, false, to);
          continue;
        }
        from_panels(found, width, n_out, false, plain.data());
        std::copy(plain.data(), plain.data() + rank * n_out, to);
        std::copy(plain.data() + rank * n_out, plain.data() + width * n_out, to_bias);
      }
    });
  });
  return {dz, d_b, d_bias};
}

std::tuple<Tensor, Tensor> routed_adapter_backward_x(std::optional<Tensor> dx, Tensor x, Tensor dz, Tensor A,
                                                     Tensor rows, std::optional<Tensor> offsets, bool accumulate,
                                                     bool need_bias) {
  const char* op = "routed_adapter_backward_x";
  const AdapterSizes sizes = check_backward_x(op, dx, x, dz, A, rows, offsets);
  const int64_t n = sizes.tokens, n_rows = A.size(0), n_in = sizes.n_in, rank = sizes.rank;
  const ScalarType acc = accumulator_dtype(x.scalar_type());
  check_rows(op, "rows", rows, n_rows);
  const Segments segments = check_segments(op, n, rows, offsets);
  Tensor d_a = empty(dz, {n_rows, n_in, rank}, acc),
         d_bias = need_bias ? empty(dz, {n_rows, rank}, acc) : empty(dz, {0}, acc);
  dispatch_float(op, x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const UsedRows used(rows, n_rows);
    const Factors<T> a = factors_of<T>(op, A, used, true, std::nullopt, Use::expand);
    Gradients<C> sums(rank, n_in);
    const C* slope = pointer<C>(dz);
    BackwardXPass<T>{
        segments, used.of_segment.data(), &a, pointer<T>(x), slope, dx ? mutable_pointer<T>(*dx) : nullptr, accumulate}
        .run(sums);
    parallel(n_rows, rank * n_in, [&](int64_t begin, int64_t end) {
      for (int64_t u = begin; u < end; u++) {
        C* to = mutable_pointer<C>(d_a) + u * rank * n_in;
        if (used.place[u] < 0)
          std::fill(to, to + rank * n_in, C(0));
        else
          from_panels(sums.row(used.place[u]), rank, n_in, true, to);
      }
    });
    if (!need_bias) return;
    C* to_bias = mutable_pointer<C>(d_bias);
    std::fill(to_bias, to_bias + n_rows * rank, C(0));
    for (int64_t g = 0; g < segments.count; g++) {
      const int64_t row = pointer<int64_t>(rows)[g];
      if (row < 0) continue;
      C* sum = to_bias + row * rank;
      for (int64_t t = segments.begin(g); t < segments.end(g); t++)
        for (int64_t r = 0; r < rank; r++) sum[r] += slope[t * rank + r];
    }
  });
  return {d_a, d_bias};
}

}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) {
  m.impl("routed_adapter_forward", TORCH_BOX(&mhr::routed_adapter_forward));
  m.impl("routed_adapter_backward_dy", TORCH_BOX(&mhr::routed_adapter_backward_dy));
  m.impl("routed_adapter_backward_x", TORCH_BOX(&mhr::routed_adapter_backward_x));
}
