// route and its backward, registered.
#include "cuda/route.h"

#include <vector>

#include "cuda/torch_device.h"
#include "route_checks.h"

namespace mhr::cuda {
namespace {

Route arguments(const char* op, const Tensor& logits, const Tensor& tasks, const std::optional<Tensor>& noise,
                double temperature) {
  const RouteSizes sizes = check_route(op, logits, tasks, noise, temperature);
  MHR_CHECK(logits.scalar_type() == ScalarType::Float, "mhr::", op, ": float64 runs on the CPU only");
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
  check_launch(op, launch_route(&p, 1, call.stream()));
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
  check_launch(op, launch_route_backward(&p, 1, call.stream()));
  return d_logits;
}

// One of several tables, with its part of the noise [N, U, H, S].
Route table(const char* op, const std::vector<Tensor>& logits, size_t i, const Tensor& tasks,
            const std::optional<Tensor>& noise, double temperature) {
  check_same_device(op, "every logits", logits[i], logits[0]);
  Route p = arguments(op, logits[i], tasks, std::nullopt, temperature);
  if (noise) p.noise = static_cast<const float*>(noise->const_data_ptr()) + int64_t(i) * p.rows * p.heads * p.skills;
  return p;
}

void check_noises(const char* op, const std::optional<Tensor>& noise, const std::vector<Tensor>& logits,
                  const Tensor& tasks) {
  check_all_noise(op, noise, logits, tasks);
  if (noise) check_same_device(op, "noise", *noise, logits[0]);
}

std::vector<Tensor> route_all(std::vector<Tensor> logits, Tensor tasks, std::optional<Tensor> noise,
                              double temperature) {
  const char* op = "route_all";
  std::vector<Tensor> found;
  if (logits.empty()) return found;
  check_noises(op, noise, logits, tasks);
  const CallOn call(op, logits[0]);
  std::vector<Route> tables;
  for (size_t i = 0; i < logits.size(); ++i) {
    Route p = table(op, logits, i, tasks, noise, temperature);
    found.push_back(empty(logits[i], {p.rows, p.heads, p.skills}, ScalarType::Float));
    p.out = static_cast<float*>(found[i].mutable_data_ptr());
    tables.push_back(p);
  }
  check_launch(op, launch_route(tables.data(), tables.size(), call.stream()));
  return found;
}

std::vector<Tensor> route_all_backward(std::vector<Tensor> dw, std::vector<Tensor> logits, Tensor tasks,
                                       std::optional<Tensor> noise, double temperature) {
  const char* op = "route_all_backward";
  std::vector<Tensor> found;
  check_count(op, dw, logits);
  if (logits.empty()) return found;
  check_noises(op, noise, logits, tasks);
  const CallOn call(op, logits[0]);
  std::vector<Route> tables;
  for (size_t i = 0; i < logits.size(); ++i) {
    Route p = table(op, logits, i, tasks, noise, temperature);
    check_route_grad(op, dw[i], logits[i], {p.n_tasks, p.heads, p.skills, p.rows});
    check_same_device(op, "dw", dw[i], logits[0]);
    found.push_back(empty(logits[i], {p.n_tasks, p.heads, p.skills}, ScalarType::Float));
    p.dw = static_cast<const float*>(dw[i].const_data_ptr());
    p.out = static_cast<float*>(found[i].mutable_data_ptr());
    tables.push_back(p);
  }
  check_launch(op, launch_route_backward(tables.data(), tables.size(), call.stream()));
  return found;
}

}  // namespace
}  // namespace mhr::cuda

MHR_CUDA_LIBRARY(m) {
  m.impl("route", TORCH_BOX(&mhr::cuda::route));
  m.impl("route_backward", TORCH_BOX(&mhr::cuda::route_backward));
  m.impl("route_all", TORCH_BOX(&mhr::cuda::route_all));
  m.impl("route_all_backward", TORCH_BOX(&mhr::cuda::route_all_backward));
}
