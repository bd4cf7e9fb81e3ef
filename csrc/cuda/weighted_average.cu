#include "cuda/weighted_average.cuh"

#include "cuda/launch.h"

namespace mhr::cuda {
namespace {

template <class T>
const char* average(const WeightedAverage& p, void* workspace, Stream stream) {
  auto* const kernel = weighted_average_kernel<T>;
  AverageArgs<T> args{};
  args.size = p.size;
  args.sums = static_cast<typename Sum<T>::Type*>(workspace);
  args.out = static_cast<T*>(p.out);
  args.vectors = is_aligned(p.out);
  for (int64_t k = 0; k < p.count; ++k) args.vectors = args.vectors && is_aligned(p.tensors[k]);
  const int64_t blocks = (p.size + kVector<T> * kAverageThreads - 1) / (kVector<T> * kAverageThreads);
  if (blocks > 0x7fffffff) return "more elements than one launch reaches";
  for (int64_t first = 0; first < p.count; first += kAverageTensors) {
    args.count = int(std::min<int64_t>(kAverageTensors, p.count - first));
    for (int k = 0; k < args.count; ++k) {
      args.tensors[k] = static_cast<const T*>(p.tensors[first + k]);
      args.weights[k] = typename Sum<T>::Type(p.weights[first + k]);
    }
    args.resumes = first > 0;
    args.finishes = first + args.count == p.count;
    MHR_TRY(MHR_LAUNCH(kernel, dim3(unsigned(blocks)), dim3(kAverageThreads), 0, stream, args));
  }
  return nullptr;
}

}  // namespace

size_t workspace_bytes(const WeightedAverage& p) {
  return p.count > kAverageTensors ? size_t(p.size) * (p.dtype == Dtype::kFp64 ? 8 : 4) : 0;
}

const char* launch_weighted_average(const WeightedAverage& p, void* workspace, void* stream) {
  const auto st = static_cast<Stream>(stream);
  const size_t bytes = size_t(p.size) * size_t(item_size(p.dtype));
  if (p.size == 0) return nullptr;
  if (p.count == 0) return clear_async(p.out, bytes, st);
  if (p.count == 1 && p.weights[0] == 1.0)
    return p.tensors[0] == p.out ? nullptr : copy_async(p.out, p.tensors[0], bytes, st);
  switch (p.dtype) {
    case Dtype::kBf16:
      return average<bf16>(p, workspace, st);
    case Dtype::kFp16:
      return average<fp16>(p, workspace, st);
    case Dtype::kFp32:
      return average<float>(p, workspace, st);
    default:
      return average<double>(p, workspace, st);
  }
}

}  // namespace mhr::cuda
