#include "cpu/simd.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mhr {
namespace {

struct Level {
  const char* name;
  const Kernels* table;
  bool supported;
};

bool has_avx512() {
#ifdef MHR_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Level choose() {
  const Level levels[] = {
#ifdef MHR_X86
      {"avx512", &avx512_kernels, has_avx512()},
      {"avx2", &avx2_kernels,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
      {"portable", &portable_kernels, true},
  };
  const char* wanted = std::getenv("MHR_SIMD");
  for (const Level& level : levels) {
    if (wanted && *wanted ? std::string(wanted) == level.name : level.supported) {
      if (!level.supported)
        throw std::runtime_error(std::string("MHR_SIMD=") + wanted + ": this machine does not have it");
      return level;
    }
  }
  throw std::runtime_error(std::string("MHR_SIMD must be avx512, avx2 or portable, got ") + wanted);
}

const Level& level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace

const char* simd_level() { return level().name; }
const Kernels& kernels() { return *level().table; }

template <>
const TokenKernels<double>& token_kernels() {
  return kernels().token_f64;
}
template <>
const TokenKernels<float>& token_kernels() {
  return kernels().token_f32;
}
template <>
const TokenKernels<bfloat16>& token_kernels() {
  return kernels().token_bf16;
}
template <>
const TokenKernels<float16>& token_kernels() {
  return kernels().token_f16;
}
template <>
const BankKernels<double>& bank_kernels() {
  return kernels().bank_f64;
}
template <>
const BankKernels<float>& bank_kernels() {
  return kernels().bank_f32;
}
template <>
const BankKernels<bfloat16>& bank_kernels() {
  return kernels().bank_bf16;
}
template <>
const BankKernels<float16>& bank_kernels() {
  return kernels().bank_f16;
}

}  // namespace mhr
