// route and its backward, registered.
#include "cuda/route.h"

#include "cuda/torch_device.h"
#include "route_checks.h"

namespace mhr::cuda {
namespace {

Route arguments(const char* op, const Tensor& logits, const Tensor& tasks, const std::optional<Tensor>& noise,
                double temperature) {
  const RouteSizes sizes = check_route(op, logits, tasks, noise, temperature);
  STD_TORCH_CHECK(logits.scalar_type() == ScalarType::Float, "mhr::", op, ": float64 runs on the CPU only");
  check_same_device(op, "tasks", tasks, logits);
  if (noise) check_same_device(op, "noise", *noise, logits);
  Route p{};
  p.logits = static_cast<const float*>(logits.const_data_ptr());
  p.tasks = static_cast<const int64_t*>(tasks.const_data_ptr());
  p.noise = noise ? static_cast<const float*>(noise->const_data_ptr()) : nullptr;
  p.n_tasks = sizes.tasks;
  p.heads = sizes.heads;
  p.skills = sizes.skills;
  p.rows = sizes.rows;
  p.temperature = float(temperature);
  return p;
}

Tensor route(Tensor logits, Tensor tasks, std::optional<Tensor> noise, double temperature) {
  const char* op = "route";
  Route p = arguments(op, logits, tasks, noise, temperature);
  const CallOn call(op, logits);
  Tensor w = empty(logits, {p.rows, p.heads, p.skills}, ScalarType::Float);
  p.out = static_cast<float*>(w.mutable_data_ptr());
  check_launch(op, launch_route(p, call.stream()));
  return w;
}

Tensor route_backward(Tensor dw, Tensor logits, Tensor tasks, std::optional<Tensor> noise, double temperature) {
  const char* op = "route_backward";
  Route p = arguments(op, logits, tasks, noise, temperature);
  check_route_grad(op, dw, logits, {p.n_tasks, p.heads, p.skills, p.rows});
  check_same_device(op, "dw", dw, logits);
  const CallOn call(op, logits);
  Tensor d_logits = empty(logits, {p.n_tasks, p.heads, p.skills}, ScalarType::Float);
  p.dw = static_cast<const float*>(dw.const_data_ptr());
  p.out = static_cast<float*>(d_logits.mutable_data_ptr());
  check_launch(op, launch_route_backward(p, call.stream()));
  return d_logits;
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("route", TORCH_BOX(&mhr::cuda::route));
  m.impl("route_backward", TORCH_BOX(&mhr::cuda::route_backward));
}
