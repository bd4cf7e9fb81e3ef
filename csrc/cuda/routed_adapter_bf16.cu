#include "cuda/routed_adapter.cuh"

namespace mhr::cuda {
MHR_ROUTED_ADAPTER(, bf16)
}  // namespace mhr::cuda
