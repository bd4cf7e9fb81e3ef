// GELU in its exact erf form, z Phi(z), and its slope, Phi(z) + z phi(z), to four units in the last place everywhere.
//
// With t = |z| and Q = Phi(-t), z Phi(z) = max(z, 0) - t Q and the slope is Q - t phi(t) left of zero, one minus that
// on the right: no tail is a difference of what is nearly equal. Both limits are reached: gelu(-inf) = 0, where the
// formula says infinity times zero.
#pragma once

#include <math.h>

#include "cpu/exponential.h"
#include "cpu/simd.h"

namespace mhr {
namespace {

constexpr double kDensityAtZero = 0.3989422804014327;  // phi(0)
// Least largest relative error, 1e-8, of S / w for t in [0, 16].
constexpr float kCentre = 3.5f;
constexpr float kTail[] = {0.212690306f,   0.323178131f,   0.360485926f,  0.265264927f,  0.0795641306f,
                           -0.0593799218f, -0.0579280277f, 0.0180933741f, 0.0301140347f, -0.0153404662f};

void gelu(const double* z, int64_t n, double* value, double* slope) {
  for (int64_t i = 0; i < n; i++) {
    const double size = ::fabs(z[i]), t = size < 40 ? size : 40;
    const double q = 0.5 * ::erfc(t * M_SQRT1_2), left = q - t * kDensityAtZero * ::exp(-0.5 * t * t);
    value[i] = (z[i] < 0 ? 0 : z[i]) - t * q;
    if (slope) slope[i] = z[i] != z[i] ? z[i] : z[i] < 0 ? left : 1 - left;
  }
}

// Q = S exp(-t^2 / 2), where S = erfcx(t / sqrt 2) / 2 falls slowly: w P(w - 1/2), w = kCentre / (t + kCentre).
MHR_INLINE void gelu_vector(vec<float> z, vec<float>& value, vec<float>& slope) {
  const vec<float> size = z < 0.0f ? -z : z, t = size < 16.0f ? size : splat(16.0f);
  const vec<float> w = kCentre / (t + kCentre), s = w * polynomial(kTail, w - 0.5f);
  // t^2 / 2 = a + rest, an `a` of few bits without error, or t^2 roundings would end up in the exponential.
  const vec<float> high = (vec<float>)((bits32)t & 0xfffff000u);
  const vec<float> a = 0.5f * (high * high), rest = 0.5f * ((t - high) * (t + high));
  const Exponential e = exponential_of_minus(a, rest);
  const vec<float> left = (s - t * float(kDensityAtZero)) * e.mantissa * e.step1 * e.step2;
  value = (z < 0.0f ? vec<float>{} : z) - t * s * e.mantissa * e.step1 * e.step2;
  slope = z != z ? z : z < 0.0f ? left : 1.0f - left;
}

void gelu(const float* z, int64_t n, float* value, float* slope) {
  vec<float> v, d;
  int64_t i = 0;
  for (; i + lanes<float> <= n; i += lanes<float>) {
    gelu_vector(load(z + i), v, d);
    store(value + i, v);
    if (slope) store(slope + i, d);
  }
  if (i == n) return;
  vec<float> last = {};
  std::memcpy(&last, z + i, (n - i) * sizeof(float));
  gelu_vector(last, v, d);
  std::memcpy(value + i, &v, (n - i) * sizeof(float));
  if (slope) std::memcpy(slope + i, &d, (n - i) * sizeof(float));
}

}  // namespace
}  // namespace mhr
