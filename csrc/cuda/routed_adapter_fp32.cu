#include "cuda/routed_adapter.cuh"

namespace mhr::cuda {
MHR_ROUTED_ADAPTER(, float)
}  // namespace mhr::cuda
