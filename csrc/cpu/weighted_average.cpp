// weighted_average: K tensors to one in a single pass.
#include <cstring>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "dispatch.h"

namespace mhr {
namespace {

void weighted_average(Tensor out, std::vector<Tensor> tensors, std::vector<double> weights) {
  const char* op = "weighted_average";
  MHR_CHECK(tensors.size() == weights.size(), "mhr::", op, ": got ", tensors.size(), " tensors and ", weights.size(),
            " weights");
  check_contiguous(op, "out", out);
  const int64_t n = out.numel();
  for (const Tensor& t : tensors) {
    bool same = t.dim() == out.dim();
    for (int64_t i = 0; same && i < t.dim(); i++) same = t.size(i) == out.size(i);
    MHR_CHECK(same, "mhr::", op, ": tensors must have the shape ", shape_of(out), ", got ", shape_of(t));
    check_dtype(op, "tensors", t, out.scalar_type());
    check_contiguous(op, "tensors", t);
  }
  dispatch_float(op, out.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    T* to = mutable_pointer<T>(out);
    const bool copies = tensors.size() == 1 && weights[0] == 1.0;
    const std::vector<C> w(weights.begin(), weights.end());
    std::vector<const T*> sources;
    for (const Tensor& t : tensors) sources.push_back(pointer<T>(t));
    parallel(n, tensors.size(), [&](int64_t begin, int64_t end) {
      if (copies) {
        std::memmove(to + begin, sources[0] + begin, (end - begin) * sizeof(T));
        return;
      }
      std::vector<const T*> from;
      for (const T* source : sources) from.push_back(source + begin);
      bank_kernels<T>().average(from.data(), w.data(), from.size(), end - begin, to + begin);
    });
  });
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) { m.impl("weighted_average", TORCH_BOX(&mhr::weighted_average)); }
