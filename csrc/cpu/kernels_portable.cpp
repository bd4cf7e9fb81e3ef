#define MHR_VECTOR_BYTES 16
#include "cpu/bank_kernels.h"
#include "cpu/token_kernels.h"

namespace mhr {

const Kernels portable_kernels = {
    token_table<double>(), token_table<float>(), token_table<bfloat16>(), token_table<float16>(),
    bank_table<double>(),  bank_table<float>(),  bank_table<bfloat16>(),  bank_table<float16>(),
};

}  // namespace mhr
