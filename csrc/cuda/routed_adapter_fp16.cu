#include "cuda/routed_adapter.cuh"

namespace mhr::cuda {
MHR_ROUTED_ADAPTER(, fp16)
}  // namespace mhr::cuda
