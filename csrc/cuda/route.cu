#include "cuda/route.cuh"

#include "cuda/launch.h"

namespace mhr::cuda {
namespace {

// Tables that share a launch: those of the same sizes, one after the other.
bool fits(const Route& a, const Route& b) {
  return a.n_tasks == b.n_tasks && a.heads == b.heads && a.skills == b.skills && a.rows == b.rows;
}

template <class Warps>
const char* launch(void (*kernel)(RouteArgs), const Route* tables, size_t n, Stream stream, Warps warps_of) {
  for (size_t first = 0, next = 0; first < n; first = next) {
    RouteArgs args{};
    args.common = tables[first];
    for (; next < n && next - first < size_t(kRouteTables) && fits(tables[first], tables[next]); ++next)
      args.tables[next - first] = {tables[next].logits, tables[next].noise, tables[next].dw, tables[next].out};
    const int64_t warps = warps_of(tables[first]);
    if (!warps || !tables[first].skills) continue;
    const int64_t blocks = (warps + kRouteWarps - 1) / kRouteWarps;
    if (blocks > 0x7fffffff) return "more heads than one launch reaches";
    const dim3 grid(unsigned(blocks), unsigned(next - first));
    MHR_TRY(MHR_LAUNCH(kernel, grid, dim3(kRouteThreads), 0, stream, args));
  }
  return nullptr;
}

}  // namespace

const char* launch_route(const Route* tables, size_t n, void* stream) {
  for (size_t i = 0; i < n && checks_values(); ++i) {
    const Route& p = tables[i];
    const std::string wanted = "tasks must be below T = " + std::to_string(p.n_tasks);
    MHR_TRY(check_values(wanted.c_str(), p.tasks, p.rows, static_cast<Stream>(stream),
                         [&](size_t u, const std::vector<int64_t>& tasks) { return tasks[u] >= p.n_tasks; }));
  }
  return launch(route_kernel, tables, n, static_cast<Stream>(stream), [](const Route& p) { return p.rows * p.heads; });
}

const char* launch_route_backward(const Route* tables, size_t n, void* stream) {
  return launch(route_backward_kernel, tables, n, static_cast<Stream>(stream),
                [](const Route& p) { return p.n_tasks * p.heads; });
}

}  // namespace mhr::cuda
