// What tokens choose by their scores, as many tokens at once as a vector has lanes.
#pragma once

#include <math.h>

#include "cpu/bank_kernels.h"
#include "cpu/exponential.h"
#include "cpu/simd.h"

namespace mhr {
namespace {

template <class C>
MHR_INLINE C inverse_deviation(const C* x, int64_t columns) {
  constexpr int V = 4;
  const int64_t whole = columns / (V * lanes<C>)*(V * lanes<C>);
  C mean = 0, squares = 0;
  vec<C> sums[V] = {};
  for (int64_t i = 0; i < whole; i += V * lanes<C>)
#pragma GCC unroll 4
    for (int k = 0; k < V; k++) sums[k] += load(x + i + k * lanes<C>);
  for (int64_t i = whole; i < columns; i++) mean += x[i];
  mean = (mean + sum((sums[0] + sums[1]) + (sums[2] + sums[3]))) / C(columns);
#pragma GCC unroll 4
  for (int k = 0; k < V; k++) sums[k] = vec<C>{};
  for (int64_t i = 0; i < whole; i += V * lanes<C>)
#pragma GCC unroll 4
    for (int k = 0; k < V; k++) {
      const vec<C> from_mean = load(x + i + k * lanes<C>) - mean;
      sums[k] += from_mean * from_mean;
    }
  for (int64_t i = whole; i < columns; i++) squares += (x[i] - mean) * (x[i] - mean);
  squares += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return C(1 / ::sqrt(double(squares / C(columns)) + 1e-5));
}

void inverse_deviations(const double* x, int64_t n, int64_t columns, double* inverse) {
  for (int64_t i = 0; i < n; i++) inverse[i] = inverse_deviation(x + i * columns, columns);
}
void inverse_deviations(const float* x, int64_t n, int64_t columns, float* inverse) {
  for (int64_t i = 0; i < n; i++) inverse[i] = inverse_deviation(x + i * columns, columns);
}

// exp(-t), t >= 0
MHR_INLINE vec<float> decay(vec<float> t) {
  const Exponential e = exponential_of_minus(t < 120.0f ? t : splat(120.0f), vec<float>{});
  return e.mantissa * e.step1 * e.step2;
}
MHR_INLINE vec<double> decay(vec<double> t) {
  for (int i = 0; i < lanes<double>; i++) t[i] = ::exp(-t[i]);
  return t;
}

// Of up to lanes<C> tokens. Scores lie in scratch [S][lanes].
template <class C>
MHR_INLINE void choose_lanes(const C* dots, const C* inverse, int64_t n, int64_t count, int64_t k, C temperature,
                             C* scratch, int64_t* chosen, C* shares) {
  constexpr int L = lanes<C>;
  using index = std::decay_t<decltype(vec<C>{} > vec<C>{})>;  // integers of the lanes' size
  using integer = std::decay_t<decltype(index{}[0])>;
  C *scores = scratch, *taken = scratch + count * L;
  if (n < L) std::memset(scores, 0, count * L * sizeof(C));
  transpose(dots, count, n, count, scores, L);
  vec<C> scale = {}, wrong = {};
  if (inverse) std::memcpy(&scale, inverse, n * sizeof(C));
  for (int64_t s = 0; s < count; s++) {
    const vec<C> v = load(scores + s * L), score = inverse ? v * scale : v < C(0) ? -v : v;
    wrong = score == score ? wrong : score;
    store(scores + s * L, score);
  }
  for (int64_t j = 0; j < k; j++) {
    vec<C> best = load(scores);
    index place = {};
    for (int64_t s = 1; s < count; s++) {
      const vec<C> v = load(scores + s * L);
      const index higher = v > best, at = index{} + integer(s);
      best = higher ? v : best;
      place = higher ? at : place;
    }
    store(taken + j * L, best);
    for (int i = 0; i < n; i++) {
      chosen[i * k + j] = place[i];
      scores[place[i] * L + i] = -C(INFINITY);
    }
  }
  const vec<C> highest = load(taken);
  vec<C> total = C(1) + (highest - highest) + wrong;
  store(taken, total);
  for (int64_t j = 1; j < k; j++) {
    const vec<C> share = decay((highest - load(taken + j * L)) / temperature);
    total += share;
    store(taken + j * L, share);
  }
  for (int64_t j = 0; j < k; j++) {
    const vec<C> share = load(taken + j * L) / total;
    for (int i = 0; i < n; i++) shares[i * k + j] = share[i];
  }
}

template <class C>
MHR_INLINE void choose_all(const C* dots, const C* inverse, int64_t n, int64_t count, int64_t k, C temperature,
                           C* scratch, int64_t* chosen, C* shares) {
  for (int64_t i = 0; i < n; i += lanes<C>)
    choose_lanes(dots + i * count, inverse ? inverse + i : nullptr, n - i < lanes<C> ? n - i : int64_t(lanes<C>), count,
                 k, temperature, scratch, chosen + i * k, shares + i * k);
}
void choose(const double* dots, const double* inverse, int64_t n, int64_t count, int64_t k, double temperature,
            double* scratch, int64_t* chosen, double* shares) {
  choose_all(dots, inverse, n, count, k, temperature, scratch, chosen, shares);
}
void choose(const float* dots, const float* inverse, int64_t n, int64_t count, int64_t k, float temperature,
            float* scratch, int64_t* chosen, float* shares) {
  choose_all(dots, inverse, n, count, k, temperature, scratch, chosen, shares);
}

}  // namespace
}  // namespace mhr
