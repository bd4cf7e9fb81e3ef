// Sums over skills and over checkpoints: streams of multiply-adds on contiguous runs.
#pragma once

#include "cpu/simd.h"
#include "cpu/vector.h"

namespace mhr {
namespace {

template <class T>
void combine(const T* bank, BankRun from, const acc_t<T>* w, acc_t<T>* mixed, MixedRun to) {
  using C = acc_t<T>;
  for (int64_t u = 0; u < to.count; u++)
    for (int64_t row = 0; row < from.rows; row++) {
      const T* source = bank + row * from.row_stride;
      C* out = mixed + u * to.stride + row * to.row_stride;
      const C* weight = w + u * to.weight_stride;
      int64_t i = 0;
      for (; i + lanes<C> <= from.length; i += lanes<C>) {
        vec<C> acc = {};
        for (int64_t s = 0; s < from.skills; s++) acc += splat(weight[s]) * load(source + s * from.skill_stride + i);
        store(out + i, acc);
      }
      for (; i < from.length; i++) {
        C acc = 0;
        for (int64_t s = 0; s < from.skills; s++) acc += weight[s] * widen(source[s * from.skill_stride + i]);
        out[i] = acc;
      }
    }
}

template <class T>
void distribute(T* bank, BankRun to, const acc_t<T>* w, const acc_t<T>* mixed, MixedRun from) {
  using C = acc_t<T>;
  for (int64_t s = 0; s < to.skills; s++)
    for (int64_t row = 0; row < to.rows; row++) {
      T* out = bank + s * to.skill_stride + row * to.row_stride;
      const C* source = mixed + row * from.row_stride;
      int64_t i = 0;
      for (; i + lanes<C> <= to.length; i += lanes<C>) {
        vec<C> acc = {};
        for (int64_t u = 0; u < from.count; u++)
          acc += splat(w[u * from.weight_stride + s]) * load(source + u * from.stride + i);
        store(out + i, acc);
      }
      for (; i < to.length; i++) {
        C acc = 0;
        for (int64_t u = 0; u < from.count; u++) acc += w[u * from.weight_stride + s] * source[u * from.stride + i];
        narrow(acc, out[i]);
      }
    }
}

template <class T>
void dots(const T* bank, BankRun a, const acc_t<T>* mixed, MixedRun b, acc_t<T>* out) {
  using C = acc_t<T>;
  constexpr int kChains = 4;  // independent sums: they hide the adder's latency and round less
  for (int64_t u = 0; u < b.count; u++)
    for (int64_t s = 0; s < a.skills; s++) {
      vec<C> acc[kChains] = {};
      C rest = 0;
      for (int64_t row = 0; row < a.rows; row++) {
        const T* p = bank + s * a.skill_stride + row * a.row_stride;
        const C* q = mixed + u * b.stride + row * b.row_stride;
        int64_t i = 0;
        for (; i + kChains * lanes<C> <= a.length; i += kChains * lanes<C>)
#pragma GCC unroll 4
          for (int k = 0; k < kChains; k++) acc[k] += load(p + i + k * lanes<C>) * load(q + i + k * lanes<C>);
        for (; i + lanes<C> <= a.length; i += lanes<C>) acc[0] += load(p + i) * load(q + i);
        for (; i < a.length; i++) rest += widen(p[i]) * q[i];
      }
      out[u * a.skills + s] += sum((acc[0] + acc[1]) + (acc[2] + acc[3])) + rest;
    }
}

template <class T>
void widen_all(const T* from, int64_t n, acc_t<T>* to) {
  using C = acc_t<T>;
  int64_t i = 0;
  for (; i + lanes<C> <= n; i += lanes<C>) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = widen(from[i]);
}

template <class T>
void narrow_all(const acc_t<T>* from, int64_t n, T* to) {
  using C = acc_t<T>;
  int64_t i = 0;
  for (; i + lanes<C> <= n; i += lanes<C>) store(to + i, load(from + i));
  for (; i < n; i++) narrow(from[i], to[i]);
}

template <class T>
void average(const T* const* sources, const acc_t<T>* w, int64_t count, int64_t n, T* out) {
  using C = acc_t<T>;
  int64_t i = 0;
  for (; i + lanes<C> <= n; i += lanes<C>) {
    vec<C> acc = {};
    for (int64_t k = 0; k < count; k++) acc += splat(w[k]) * load(sources[k] + i);
    store(out + i, acc);
  }
  for (; i < n; i++) {
    C acc = 0;
    for (int64_t k = 0; k < count; k++) acc += w[k] * widen(sources[k][i]);
    narrow(acc, out[i]);
  }
}

template <class T>
constexpr BankKernels<T> bank_table() {
  return {&combine<T>, &distribute<T>, &dots<T>, &widen_all<T>, &narrow_all<T>, &average<T>};
}

}  // namespace
}  // namespace mhr
