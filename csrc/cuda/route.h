// What the binding and the emulator's tests need of route and its backward: no torch header, no CUDA header.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mhr::cuda {

// w[u, h, s] = p / (sum_s p + 1e-12) with p = sigmoid((logits[tasks[u], h, s] + noise[u, h, s]) / temperature), all
// float32; 1 / S where tasks[u] < 0, NaN where tasks[u] >= T. Backward sums, in the order of u, what every row adds to
// its task's logits.
struct Route {
  const float* logits;   // [T, H, S]
  const int64_t* tasks;  // [U]
  const float* noise;    // [U, H, S] or null
  const float* dw;       // [U, H, S]: read by backward
  float* out;            // the weights [U, H, S], or the gradient of all logits [T, H, S]
  int64_t n_tasks, heads, skills, rows;
  float temperature;
};

// The routes of any number of tables of the same sizes, tasks and temperature, in few kernels: 100 share one. Each
// returns nullptr or what is wrong.
const char* launch_route(const Route* tables, size_t n, void* stream);
const char* launch_route_backward(const Route* tables, size_t n, void* stream);

}  // namespace mhr::cuda
