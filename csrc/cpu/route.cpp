// route and its backward: sigmoid, optional noise and normalisation in one step.
#include <algorithm>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "route_checks.h"

namespace mhr {
namespace {

constexpr double kEpsilon = 1e-12;

RouteSizes check(const char* op, const Tensor& logits, const Tensor& tasks, const std::optional<Tensor>& noise,
                 double temperature) {
  const RouteSizes sizes = check_route(op, logits, tasks, noise, temperature);
  const int64_t* task = pointer<int64_t>(tasks);
  for (int64_t u = 0; u < sizes.rows; u++)
    MHR_CHECK(task[u] < sizes.tasks, "mhr::", op, ": tasks must be below T = ", sizes.tasks, ", got ", task[u]);
  return sizes;
}

// p[s] = sigmoid((z[s] + noise[s]) / temperature); returns their sum, kept from zero.
template <class C>
C sigmoids(const C* z, const C* noise, int64_t n, C temperature, C* p) {
  C total = C(kEpsilon);
  for (int64_t s = 0; s < n; s++) {
    p[s] = C(1) / (C(1) + std::exp(-(z[s] + (noise ? noise[s] : C(0))) / temperature));
    total += p[s];
  }
  return total;
}

template <class C>
void forward(const RouteSizes& shape, const C* logits, const int64_t* tasks, const C* noise, C temperature, C* w) {
  const int64_t n = shape.heads * shape.skills;
  for (int64_t u = 0; u < shape.rows; u++, w += n) {
    if (tasks[u] < 0) {
      std::fill(w, w + n, C(1) / C(std::max<int64_t>(shape.skills, 1)));
      continue;
    }
    for (int64_t at = 0; at < n; at += shape.skills) {
      const C total =
          sigmoids(logits + tasks[u] * n + at, noise ? noise + u * n + at : nullptr, shape.skills, temperature, w + at);
      for (int64_t s = 0; s < shape.skills; s++) w[at + s] /= total;
    }
  }
}

template <class C>
void backward(const RouteSizes& shape, const C* dw, const C* logits, const int64_t* tasks, const C* noise,
              C temperature, C* d_logits) {
  const int64_t n = shape.heads * shape.skills;
  std::fill(d_logits, d_logits + shape.tasks * n, C(0));
  const std::unique_ptr<C[]> p(new C[shape.skills]);
  for (int64_t u = 0; u < shape.rows; u++, dw += n) {
    if (tasks[u] < 0) continue;
    for (int64_t at = 0; at < n; at += shape.skills) {
      const C total = sigmoids(logits + tasks[u] * n + at, noise ? noise + u * n + at : nullptr, shape.skills,
                               temperature, p.get());
      C mean = 0;
      for (int64_t s = 0; s < shape.skills; s++) mean += dw[at + s] * p[s] / total;
      C* out = d_logits + tasks[u] * n + at;
      for (int64_t s = 0; s < shape.skills; s++)
        out[s] += (dw[at + s] - mean) / total * p[s] * (C(1) - p[s]) / temperature;
    }
  }
}

// Calls f with the accumulator's type, which is that of the logits.
template <class F>
void dispatch_logits(const Tensor& logits, F&& f) {
  if (logits.scalar_type() == ScalarType::Double)
    f(type_tag<double>{});
  else
    f(type_tag<float>{});
}

// `part` of the noise is the first element that these logits take.
Tensor route_part(const Tensor& logits, const Tensor& tasks, const std::optional<Tensor>& noise, int64_t part,
                  double temperature, const RouteSizes& shape) {
  Tensor w = empty(logits, {shape.rows, shape.heads, shape.skills}, logits.scalar_type());
  dispatch_logits(logits, [&](auto tag) {
    using C = typename decltype(tag)::type;
    forward(shape, pointer<C>(logits), pointer<int64_t>(tasks), noise ? pointer<C>(*noise) + part : nullptr,
            C(temperature), mutable_pointer<C>(w));
  });
  return w;
}

Tensor route_backward_part(const char* op, const Tensor& dw, const Tensor& logits, const Tensor& tasks,
                           const std::optional<Tensor>& noise, int64_t part, double temperature,
                           const RouteSizes& shape) {
  check_route_grad(op, dw, logits, shape);
  Tensor d_logits = empty(logits, {shape.tasks, shape.heads, shape.skills}, logits.scalar_type());
  dispatch_logits(logits, [&](auto tag) {
    using C = typename decltype(tag)::type;
    backward(shape, pointer<C>(dw), pointer<C>(logits), pointer<int64_t>(tasks),
             noise ? pointer<C>(*noise) + part : nullptr, C(temperature), mutable_pointer<C>(d_logits));
  });
  return d_logits;
}

Tensor route(Tensor logits, Tensor tasks, std::optional<Tensor> noise, double temperature) {
  return route_part(logits, tasks, noise, 0, temperature, check("route", logits, tasks, noise, temperature));
}

Tensor route_backward(Tensor dw, Tensor logits, Tensor tasks, std::optional<Tensor> noise, double temperature) {
  const char* op = "route_backward";
  return route_backward_part(op, dw, logits, tasks, noise, 0, temperature,
                             check(op, logits, tasks, noise, temperature));
}

std::vector<Tensor> route_all(std::vector<Tensor> logits, Tensor tasks, std::optional<Tensor> noise,
                              double temperature) {
  const char* op = "route_all";
  check_all_noise(op, noise, logits, tasks);
  std::vector<Tensor> found;
  for (size_t i = 0; i < logits.size(); i++) {
    const RouteSizes shape = check(op, logits[i], tasks, std::nullopt, temperature);
    const int64_t part = int64_t(i) * shape.rows * shape.heads * shape.skills;
    found.push_back(route_part(logits[i], tasks, noise, part, temperature, shape));
  }
  return found;
}

std::vector<Tensor> route_all_backward(std::vector<Tensor> dw, std::vector<Tensor> logits, Tensor tasks,
                                       std::optional<Tensor> noise, double temperature) {
  const char* op = "route_all_backward";
  check_count(op, dw, logits);
  check_all_noise(op, noise, logits, tasks);
  std::vector<Tensor> found;
  for (size_t i = 0; i < logits.size(); i++) {
    const RouteSizes shape = check(op, logits[i], tasks, std::nullopt, temperature);
    const int64_t part = int64_t(i) * shape.rows * shape.heads * shape.skills;
    found.push_back(route_backward_part(op, dw[i], logits[i], tasks, noise, part, temperature, shape));
  }
  return found;
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) {
  m.impl("route", TORCH_BOX(&mhr::route));
  m.impl("route_backward", TORCH_BOX(&mhr::route_backward));
  m.impl("route_all", TORCH_BOX(&mhr::route_all));
  m.impl("route_all_backward", TORCH_BOX(&mhr::route_all_backward));
}
