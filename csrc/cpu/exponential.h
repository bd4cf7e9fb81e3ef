// exp(-t) of vectors, t >= 0, to a unit in the last place, down to the subnormal.
#pragma once

#include "cpu/vector.h"

namespace mhr {
namespace {

// Least largest relative error, 4e-9, of exp(-r) for r in [-0.36, 0.42].
constexpr float kExponential[] = {1.0f,          -1.00000005f,    0.499999527f,  -0.166663587f,
                                  0.0416764558f, -0.00837941084f, 0.00134144848f};

// c[0] + c[1] v + c[2] v^2 + ...
template <int N>
MHR_INLINE vec<float> polynomial(const float (&c)[N], vec<float> v) {
  vec<float> sum = splat(c[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; i--) sum = sum * v + c[i];
  return sum;
}

// mantissa * step1 * step2: a power of two in two steps, for what is subnormal.
struct Exponential {
  vec<float> mantissa, step1, step2;
};

// exp(-a - rest) = 2^-m exp(-r), for a in [0, 128] and a small rest. Adding kRound rounds to an integer and leaves it
// in the last bits.
MHR_INLINE Exponential exponential_of_minus(vec<float> a, vec<float> rest) {
  constexpr float kRound = 0x1.8p23f, kLog2E = 1.44269504f, kLn2High = 0x1.63p-1f, kLn2Low = -2.12194440e-4f;
  const vec<float> shifted = a * kLog2E + kRound, m = shifted - kRound;
  const vec<float> mantissa = polynomial(kExponential, a - m * kLn2High - m * kLn2Low + rest);
  const bits32 power = (bits32)shifted - 0x4b400000u, half = power >> 1;
  return {mantissa, (vec<float>)((127u - half) << 23), (vec<float>)((127u - power + half) << 23)};
}

}  // namespace
}  // namespace mhr
