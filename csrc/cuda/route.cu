#include "cuda/route.cuh"

#include "cuda/launch.h"

namespace mhr::cuda {
namespace {

const char* launch(void (*kernel)(Route), int64_t warps, const Route& p, void* stream) {
  if (!warps || !p.skills) return nullptr;
  const int64_t blocks = (warps + kRouteWarps - 1) / kRouteWarps;
  if (blocks > 0x7fffffff) return "more heads than one launch reaches";
  return MHR_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kRouteThreads), 0, static_cast<Stream>(stream), p);
}

}  // namespace

const char* launch_route(const Route& p, void* stream) {
  if (checks_values()) {
    const std::string wanted = "tasks must be below T = " + std::to_string(p.n_tasks);
    MHR_TRY(check_values(wanted.c_str(), p.tasks, p.rows, static_cast<Stream>(stream),
                         [&](size_t i, const std::vector<int64_t>& tasks) { return tasks[i] >= p.n_tasks; }));
  }
  return launch(route_kernel, p.rows * p.heads, p, stream);
}

const char* launch_route_backward(const Route& p, void* stream) {
  return launch(route_backward_kernel, p.n_tasks * p.heads, p, stream);
}

}  // namespace mhr::cuda
