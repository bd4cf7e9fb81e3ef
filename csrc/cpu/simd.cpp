#include "cpu/simd.h"

#include <cstdlib>
#include <string>

namespace mhr {
namespace {

struct Level {
  const char* name;
  const Kernels* table;
};

// All of what kernels_avx512.cpp is compiled with: a processor with AVX-512 and without its bfloat16 instructions takes
// the AVX2 kernels.
bool has_avx512() {
#ifdef MHR_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// What the machine has, the best first.
std::vector<Level> supported() {
  std::vector<Level> levels;
#ifdef MHR_X86
  if (has_avx512()) levels.push_back({"avx512", &avx512_kernels});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    levels.push_back({"avx2", &avx2_kernels});
#endif
  levels.push_back({"portable", &portable_kernels});
  return levels;
}

// A wish that cannot be granted is no reason to fail in the middle of a step: the best level serves, and Python says
// so.
Level choose() {
  const std::vector<Level> levels = supported();
  const char* wanted = std::getenv("MHR_SIMD");
  for (const Level& level : levels)
    if (wanted && std::string(wanted) == level.name) return level;
  return levels.front();
}

const Level& level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace

const char* simd_level() { return level().name; }
std::vector<const char*> simd_levels() {
  std::vector<const char*> names;
  for (const Level& level : supported()) names.push_back(level.name);
  return names;
}
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
