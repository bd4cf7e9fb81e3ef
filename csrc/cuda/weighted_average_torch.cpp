// weighted_average, registered.
#include "cuda/weighted_average.h"

#include <vector>

#include "cuda/torch_device.h"

namespace mhr::cuda {
namespace {

void weighted_average(Tensor out, std::vector<Tensor> tensors, std::vector<double> weights) {
  const char* op = "weighted_average";
  MHR_CHECK(tensors.size() == weights.size(), "mhr::", op, ": got ", tensors.size(), " tensors and ", weights.size(),
            " weights");
  check_contiguous(op, "out", out);
  std::vector<const void*> data;
  for (const Tensor& t : tensors) {
    bool same = t.dim() == out.dim();
    for (int64_t i = 0; same && i < t.dim(); i++) same = t.size(i) == out.size(i);
    MHR_CHECK(same, "mhr::", op, ": tensors must have the shape ", shape_of(out), ", got ", shape_of(t));
    check_dtype(op, "tensors", t, out.scalar_type());
    check_contiguous(op, "tensors", t);
    check_same_device(op, "tensors", t, out);
    data.push_back(t.const_data_ptr());
  }
  const CallOn call(op, out);
  const WeightedAverage p{dtype_of(op, out), out.numel(),    int64_t(data.size()),
                          data.data(),       weights.data(), out.mutable_data_ptr()};
  const Scratch workspace(out, workspace_bytes(p));
  check_launch(op, launch_weighted_average(p, workspace.data(), call.stream()));
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) { m.impl("weighted_average", TORCH_BOX(&mhr::cuda::weighted_average)); }
