#define MHR_VECTOR_BYTES 64
#include "cpu/bank_kernels.h"
#include "cpu/bf16_kernels.h"
#include "cpu/token_kernels.h"

namespace mhr {

const Kernels avx512_kernels = {
    token_table<double>(), token_table<float>(), dots16::table(),        token_table<float16>(),
    bank_table<double>(),  bank_table<float>(),  bank_table<bfloat16>(), bank_table<float16>(),
};

}  // namespace mhr
