// routed_linears, registered: layers whose factors A lie side by side read x once and write dx once.
#include <algorithm>
#include <vector>

#include "cuda/adapter_arguments.h"

namespace mhr::cuda {
namespace {

struct LinearsSizes {
  int64_t tokens, n_in, ranks;
};

// A [U, I, R_0 + R_1 + ...], which may be columns of a wider one, and B [U', R_i, O_i].
LinearsSizes check(const char* op, const Tensor& x, const Tensor& A, const std::vector<Tensor>& B, const Tensor& rows,
                   const OptionalTensor& rows_b, const OptionalTensor& offsets) {
  MHR_CHECK(!B.empty(), "mhr::", op, ": got no factor B");
  check_dim(op, "A", A, "U, I, R", 3);
  const LinearsSizes sizes{tokens_of(x), A.size(1), A.size(2)};
  MHR_CHECK(x.dim() > 0 && x.size(x.dim() - 1) == sizes.n_in, "mhr::", op, ": x must have I = ", sizes.n_in,
            " columns, as A adapts, got ", shape_of(x));
  check_contiguous(op, "x", x);
  MHR_CHECK(A.scalar_type() == x.scalar_type() || A.scalar_type() == accumulator_dtype(x.scalar_type()), "mhr::", op,
            ": A must be ", torch::headeronly::toString(x.scalar_type()), " or ",
            torch::headeronly::toString(accumulator_dtype(x.scalar_type())), ", got ",
            torch::headeronly::toString(A.scalar_type()));
  MHR_CHECK(A.is_contiguous() || (A.stride(2) == 1 && A.stride(0) == sizes.n_in * A.stride(1)), "mhr::", op,
            ": A must be contiguous, or columns of a contiguous tensor");
  int64_t ranks = 0;
  for (const Tensor& b : B) {
    check_dim(op, "B", b, "U, R, O", 3);
    MHR_CHECK(b.size(0) == B[0].size(0), "mhr::", op, ": every B must have U = ", B[0].size(0), " rows, got ",
              shape_of(b));
    check_dtype(op, "B", b, A.scalar_type());
    check_contiguous(op, "B", b);
    ranks += b.size(1);
  }
  MHR_CHECK(ranks == sizes.ranks, "mhr::", op, ": A has rank ", sizes.ranks, ", the factors B together ", ranks);
  check_same_device(op, "A", A, x);
  for (const Tensor& b : B) check_same_device(op, "B", b, x);
  check_routing(op, sizes.tokens, rows, rows_b, offsets, x);
  return sizes;
}

// Of the rows of A as the kernels read them, 0 where they have to be brought there.
int64_t stride_of(const Tensor& A) { return A.is_contiguous() ? 0 : A.stride(1); }

Tensor routed_linears_forward(std::vector<Tensor> ys, Tensor x, std::vector<OptionalTensor> biases, Tensor A,
                              std::vector<Tensor> B, Tensor rows, OptionalTensor rows_b, OptionalTensor offsets,
                              double scale, bool accumulate) {
  const char* op = "routed_linears";
  const LinearsSizes sizes = check(op, x, A, B, rows, rows_b, offsets);
  MHR_CHECK(ys.size() == B.size() && biases.size() == B.size(), "mhr::", op, ": got ", ys.size(), " y and ",
            biases.size(), " biases for ", B.size(), " factors B");
  for (size_t i = 0; i < B.size(); ++i) {
    check_beside(op, "y", ys[i], "x", x, "O", B[i].size(2));
    check_same_device(op, "y", ys[i], x);
    if (!biases[i]) continue;
    MHR_CHECK(!accumulate, "mhr::", op, ": biases are for a y that is not accumulated into");
    check_shape(op, "bias", *biases[i], "O", {B[i].size(2)});
    check_dtype(op, "bias", *biases[i], x.scalar_type());
    check_contiguous(op, "bias", *biases[i]);
    check_same_device(op, "bias", *biases[i], x);
  }
  const CallOn call(op, x);
  Tensor h = empty(x, {sizes.tokens, sizes.ranks}, ScalarType::Float);
  RoutedAdapterForward p{};
  p.dtype = dtype_of(op, x);
  p.factors_are_float = is_float_beside(dtype_of(op, A), p.dtype);
  p.routing = routing_of(sizes.tokens, rows, offsets);
  p.rows_a = rows_of(rows);
  p.rows_b = rows_of(rows_b ? *rows_b : rows);
  p.n_rows_a = A.size(0);
  p.n_rows_b = B[0].size(0);
  p.in_features = sizes.n_in;
  p.x = x.const_data_ptr();
  p.a = A.const_data_ptr();
  p.a_stride = stride_of(A);
  p.z = floats_of(h);
  p.scale = float(scale);
  p.writes_y = !accumulate;
  p.z_rank = sizes.ranks;
  std::vector<RoutedAdapterForward> each;
  size_t bytes = 0;
  for (size_t i = 0; i < B.size(); ++i) {
    p.rank = B[i].size(1);
    p.out_features = B[i].size(2);
    p.b = B[i].const_data_ptr();
    p.y = ys[i].mutable_data_ptr();
    p.base = data_of(biases[i]);
    each.push_back(p);
    bytes = std::max(bytes, workspace_bytes(p));
    p.z_first += p.rank;
    p.shrinks = false;
  }
  const Scratch workspace(x, bytes);
  for (const RoutedAdapterForward& one : each)
    check_launch(op, launch_routed_adapter_forward(one, workspace.data(), call.stream()));
  return h;
}

Tensor routed_linears_backward(OptionalTensor dx, std::vector<Tensor> d_b, std::vector<Tensor> dys, Tensor x, Tensor h,
                               Tensor A, std::vector<Tensor> B, Tensor rows, OptionalTensor rows_b,
                               OptionalTensor offsets, double scale, bool accumulate) {
  const char* op = "routed_linears_backward";
  const LinearsSizes sizes = check(op, x, A, B, rows, rows_b, offsets);
  MHR_CHECK(dys.size() == B.size() && d_b.size() == B.size(), "mhr::", op, ": got ", dys.size(), " dy and ", d_b.size(),
            " d_b for ", B.size(), " factors B");
  check_low_rank(op, "h", h, sizes.tokens, sizes.ranks, x.scalar_type());
  check_same_device(op, "h", h, x);
  for (size_t i = 0; i < B.size(); ++i) {
    check_beside(op, "dy", dys[i], "x", x, "O", B[i].size(2));
    check_same_device(op, "dy", dys[i], x);
    check_shape(op, "d_b", d_b[i], "U, R, O", {B[i].size(0), B[i].size(1), B[i].size(2)});
    check_dtype(op, "d_b", d_b[i], ScalarType::Float);
    check_contiguous(op, "d_b", d_b[i]);
    check_same_device(op, "d_b", d_b[i], x);
  }
  if (dx) {
    check_beside(op, "dx", *dx, "x", x, "I", sizes.n_in);
    check_same_device(op, "dx", *dx, x);
  }
  const CallOn call(op, x);
  Tensor d_a = empty(x, {A.size(0), sizes.n_in, sizes.ranks}, ScalarType::Float);
  Plan plan;
  const size_t dz = plan.add(sizeof(float) * size_t(sizes.tokens * sizes.ranks));
  RoutedAdapterBackwardDy of_dy{};
  of_dy.dtype = dtype_of(op, x);
  of_dy.factors_are_float = is_float_beside(dtype_of(op, A), of_dy.dtype);
  of_dy.routing = routing_of(sizes.tokens, rows, offsets);
  of_dy.rows_b = rows_of(rows_b ? *rows_b : rows);
  of_dy.n_rows_b = B[0].size(0);
  of_dy.scale = float(scale);
  of_dy.z = floats_of(h);
  of_dy.z_stride = sizes.ranks;
  std::vector<RoutedAdapterBackwardDy> each;
  size_t bytes = 0;
  for (size_t i = 0; i < B.size(); ++i) {
    of_dy.rank = B[i].size(1);
    of_dy.out_features = B[i].size(2);
    of_dy.dy = dys[i].const_data_ptr();
    of_dy.b = B[i].const_data_ptr();
    of_dy.db = floats_of(d_b[i]);
    each.push_back(of_dy);
    bytes = std::max(bytes, workspace_bytes(of_dy));
    of_dy.z += of_dy.rank;
  }
  RoutedAdapterBackwardX of_x{};
  of_x.dtype = of_dy.dtype;
  of_x.factors_are_float = of_dy.factors_are_float;
  of_x.routing = of_dy.routing;
  of_x.rows_a = rows_of(rows);
  of_x.n_rows_a = A.size(0);
  of_x.in_features = sizes.n_in;
  of_x.rank = sizes.ranks;
  of_x.x = x.const_data_ptr();
  of_x.a = A.const_data_ptr();
  of_x.a_stride = stride_of(A);
  of_x.dx = dx ? dx->mutable_data_ptr() : nullptr;
  of_x.accumulate = accumulate;
  of_x.da = floats_of(d_a);
  const size_t parts = plan.add(std::max(bytes, workspace_bytes(of_x)));
  const Scratch scratch(x, plan.bytes());
  float* at = scratch.at<float>(dz);
  for (RoutedAdapterBackwardDy& one : each) {
    one.dz = at;
    check_launch(op, launch_routed_adapter_backward_dy(one, scratch.at<void>(parts), call.stream()));
    at += one.rank;
  }
  of_x.dz = scratch.at<float>(dz);
  check_launch(op, launch_routed_adapter_backward_x(of_x, scratch.at<void>(parts), call.stream()));
  return d_a;
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("routed_linears_forward", TORCH_BOX(&mhr::cuda::routed_linears_forward));
  m.impl("routed_linears_backward", TORCH_BOX(&mhr::cuda::routed_linears_backward));
}
