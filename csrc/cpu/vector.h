// One vector type for every instruction set, on the compiler's vector extensions. MHR_VECTOR_BYTES is its width.
// Included by the kernels' translation units only, inside whose anonymous namespace all of it lives.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/types.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define MHR_INLINE static inline __attribute__((always_inline))

namespace mhr {
namespace {

template <class C>
struct vector_of {
  typedef C type __attribute__((vector_size(MHR_VECTOR_BYTES)));
};
template <class C>
using vec = typename vector_of<C>::type;
template <class C>
constexpr int lanes = MHR_VECTOR_BYTES / sizeof(C);

typedef uint32_t bits32 __attribute__((vector_size(MHR_VECTOR_BYTES)));
typedef uint16_t bits16 __attribute__((vector_size(MHR_VECTOR_BYTES / 2)));

template <class To, class From>
MHR_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- one element
MHR_INLINE double widen(double v) { return v; }
MHR_INLINE float widen(float v) { return v; }
MHR_INLINE float widen(bfloat16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
MHR_INLINE float widen(float16 v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // A half's exponent and mantissa moved into a float's and rescaled by 2^112: exact for subnormals too.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
}

MHR_INLINE void narrow(double v, double& to) { to = v; }
MHR_INLINE void narrow(float v, float& to) { to = v; }
MHR_INLINE void narrow(float v, bfloat16& to) {
  const uint32_t u = bit_cast<uint32_t>(v);
  to.bits = uint16_t(v != v ? u >> 16 | 0x40u : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
MHR_INLINE void narrow(float v, float16& to) {
  const uint32_t u = bit_cast<uint32_t>(v), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  uint32_t rounded;
  if (magnitude > 0x7f800000u) {
    rounded = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // what rounds to 65536 and beyond
    rounded = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the float adder rounds at the half's last place
    rounded = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to.bits = uint16_t(sign | rounded);
}

// ---- vectors of the accumulator's type, loaded from and stored to any element type, unaligned
MHR_INLINE vec<double> load(const double* p) {
  vec<double> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
MHR_INLINE vec<float> load(const float* p) {
  vec<float> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
MHR_INLINE vec<float> load(const bfloat16* p) {
  bits16 half;
  std::memcpy(&half, p, sizeof(half));
  return (vec<float>)(__builtin_convertvector(half, bits32) << 16);
}
MHR_INLINE vec<float> load(const float16* p) {
#if MHR_VECTOR_BYTES == 64
  return (vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif MHR_VECTOR_BYTES == 32
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vec<float> v;
  for (int i = 0; i < lanes<float>; i++) v[i] = widen(p[i]);
  return v;
#endif
}

MHR_INLINE void store(double* p, vec<double> v) { std::memcpy(p, &v, sizeof(v)); }
MHR_INLINE void store(float* p, vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
MHR_INLINE void store(bfloat16* p, vec<float> v) {
#if MHR_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
  const bits32 u = (bits32)v;
  const bits32 rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  const bits32 is_nan = (bits32)(v != v);
  const bits16 half = __builtin_convertvector((is_nan & (u >> 16 | 0x40u)) | (~is_nan & rounded), bits16);
  std::memcpy(p, &half, sizeof(half));
#endif
}
MHR_INLINE void store(float16* p, vec<float> v) {
#if MHR_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif MHR_VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < lanes<float>; i++) narrow(v[i], p[i]);
#endif
}

template <class C>
MHR_INLINE vec<C> splat(C value) {
  return value - vec<C>{};
}

// Sums in pairs, halving the width each time.
template <class V>
MHR_INLINE auto pairwise_sum(V v) -> std::decay_t<decltype(v[0])> {
  std::decay_t<decltype(v[0])> part[sizeof(v) / sizeof(v[0])];
  std::memcpy(part, &v, sizeof(v));
  for (int width = sizeof(v) / sizeof(v[0]) / 2; width; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}
#if MHR_VECTOR_BYTES == 64
MHR_INLINE float sum(vec<float> v) { return _mm512_reduce_add_ps((__m512)v); }
MHR_INLINE double sum(vec<double> v) { return _mm512_reduce_add_pd((__m512d)v); }
#else
MHR_INLINE float sum(vec<float> v) { return pairwise_sum(v); }
MHR_INLINE double sum(vec<double> v) { return pairwise_sum(v); }
#endif

// h[r] = the sum over lanes of acc[r], added to what is there if `add`.
template <int R, class C>
MHR_INLINE void store_sums(const vec<C>* acc, C* h, bool add) {
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) h[r] = sum(acc[r]) + (add ? h[r] : C(0));
}
#if MHR_VECTOR_BYTES == 64
// Four sums at once: a transpose on the way down halves the shuffles.
template <>
inline __attribute__((always_inline)) void store_sums<4, float>(const vec<float>* acc, float* h, bool add) {
  const __m512 a = (__m512)acc[0], b = (__m512)acc[1], c = (__m512)acc[2], d = (__m512)acc[3];
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  const __m128 total = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(h, add ? _mm_add_ps(total, _mm_loadu_ps(h)) : total);
}
#endif

}  // namespace
}  // namespace mhr
