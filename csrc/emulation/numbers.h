// bfloat16 and IEEE half in software: the emulator needs neither a CUDA toolkit nor a compiler that knows the types.
#pragma once
#include <cstdint>
#include <cstring>

namespace mhr::cuda {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

inline uint32_t float_bits(float v) {
  uint32_t b;
  std::memcpy(&b, &v, 4);
  return b;
}
inline float bits_float(uint32_t b) {
  float v;
  std::memcpy(&v, &b, 4);
  return v;
}

inline uint64_t double_bits(double v) {
  uint64_t b;
  std::memcpy(&b, &v, 8);
  return b;
}
inline double power_of_two(int exponent) {  // in -1022..1023
  const uint64_t b = uint64_t(1023 + exponent) << 52;
  double v;
  std::memcpy(&v, &b, 8);
  return v;
}

inline float to_float(bf16 v) { return bits_float(uint32_t(v.bits) << 16); }
inline float to_float(fp16 v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Shifting the exponent into place leaves it 112 too small; the product restores it and normalises subnormals.
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}
inline float to_float(float v) { return v; }
inline double to_float(double v) { return v; }

template <class T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline bf16 from_float<bf16>(float v) {
  uint32_t b = float_bits(v);
  if ((b & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {uint16_t((b + 0x7fffu + (b >> 16 & 1u)) >> 16)};
}
template <>
inline fp16 from_float<fp16>(float v) {
  const uint32_t b = float_bits(v), magnitude = b & 0x7fffffffu;
  const auto sign = uint16_t(b >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                    // subnormal: adding 0.5 rounds at 2^-24
    return {uint16_t(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u))};
  }
  return {uint16_t(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13)};
}

}  // namespace mhr::cuda
