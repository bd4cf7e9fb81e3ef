// Sums over skills and over checkpoints: streams of multiply-adds on contiguous runs.
#pragma once

#include "cpu/simd.h"
#include "cpu/vector.h"

namespace mhr {
namespace {

// Register tiles: kWide sums of one side at a time, each over kStreams vectors.
constexpr int kWide = 4;
constexpr int kStreams = MHR_VECTOR_BYTES == 64 ? 4 : 2;

// out[j][i .. i + V lanes) = sum_k w[j * w_out + k * w_in] * in[k][i ..), for J outputs and V vectors.
template <int J, int V, class In, class Out, class C>
MHR_INLINE void sum_tile(const In* in, int64_t in_stride, int64_t count, const C* w, int64_t w_out, int64_t w_in,
                         Out* out, int64_t out_stride) {
  vec<C> acc[J][V] = {};
  for (int64_t k = 0; k < count; k++, in += in_stride, w += w_in) {
    vec<C> v[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) v[i] = load(in + i * lanes<C>);
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) {
      const vec<C> s = splat(w[j * w_out]);
#pragma GCC unroll 8
      for (int i = 0; i < V; i++) acc[j][i] += s * v[i];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; j++)
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) store(out + j * out_stride + i * lanes<C>, acc[j][i]);
}

// The same for `outs` outputs, all of them for one stretch of the inputs, which stays in the first-level cache.
template <int V, class In, class Out, class C>
MHR_INLINE void sum_outs(const In* in, int64_t in_stride, int64_t count, const C* w, int64_t w_out, int64_t w_in,
                         Out* out, int64_t out_stride, int64_t outs) {
  int64_t j = 0;
  for (; j + kWide <= outs; j += kWide)
    sum_tile<kWide, V>(in, in_stride, count, w + j * w_out, w_out, w_in, out + j * out_stride, out_stride);
  for (; j < outs; j++) sum_tile<1, V>(in, in_stride, count, w + j * w_out, 0, w_in, out + j * out_stride, 0);
}

// The same for runs of `length` elements.
template <class In, class Out, class C>
MHR_INLINE void sum_runs(const In* in, int64_t in_stride, int64_t count, const C* w, int64_t w_out, int64_t w_in,
                         Out* out, int64_t out_stride, int64_t outs, int64_t length) {
  int64_t i = 0;
  for (; i + kStreams * lanes<C> <= length; i += kStreams * lanes<C>)
    sum_outs<kStreams>(in + i, in_stride, count, w, w_out, w_in, out + i, out_stride, outs);
  for (; i + lanes<C> <= length; i += lanes<C>)
    sum_outs<1>(in + i, in_stride, count, w, w_out, w_in, out + i, out_stride, outs);
  for (; i < length; i++)
    for (int64_t j = 0; j < outs; j++) {
      C acc = 0;
      for (int64_t k = 0; k < count; k++) acc += w[j * w_out + k * w_in] * widen(in[k * in_stride + i]);
      narrow(acc, out[j * out_stride + i]);
    }
}

template <class T>
void combine(const T* bank, BankRun from, const acc_t<T>* w, acc_t<T>* mixed, MixedRun to) {
  for (int64_t row = 0; row < from.rows; row++, bank += from.row_stride, mixed += to.row_stride)
    sum_runs(bank, from.skill_stride, from.skills, w, to.weight_stride, 1, mixed, to.stride, to.count, from.length);
}

template <class T>
void distribute(T* bank, BankRun to, const acc_t<T>* w, const acc_t<T>* mixed, MixedRun from) {
  for (int64_t row = 0; row < to.rows; row++, bank += to.row_stride, mixed += from.row_stride)
    sum_runs(mixed, from.stride, from.count, w, 1, from.weight_stride, bank, to.skill_stride, to.skills, to.length);
}

template <class T>
void widen_all(const T* from, int64_t n, acc_t<T>* to) {
  using C = acc_t<T>;
  int64_t i = 0;
  for (; i + lanes<C> <= n; i += lanes<C>) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = widen(from[i]);
}

// out[u][j] += <a[j], b[u]> for J skills and U routing rows.
template <int J, int U, class A, class C>
MHR_INLINE void dots_tile(const A* a, BankRun run, const C* b, MixedRun other, C* out, int64_t out_stride) {
  vec<C> acc[U][J] = {};
  C rest[U][J] = {};
  for (int64_t row = 0; row < run.rows; row++, a += run.row_stride, b += other.row_stride) {
    int64_t i = 0;
    for (; i + lanes<C> <= run.length; i += lanes<C>) {
      vec<C> v[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; u++) v[u] = load(b + u * other.stride + i);
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) {
        const vec<C> w = load(a + j * run.skill_stride + i);
#pragma GCC unroll 8
        for (int u = 0; u < U; u++) acc[u][j] += w * v[u];
      }
    }
    for (; i < run.length; i++)
      for (int u = 0; u < U; u++)
        for (int j = 0; j < J; j++) rest[u][j] += widen(a[j * run.skill_stride + i]) * b[u * other.stride + i];
  }
#pragma GCC unroll 8
  for (int u = 0; u < U; u++) {
    for (int j = 0; j < J; j++) out[u * out_stride + j] += rest[u][j];
    store_sums<J, C>(acc[u], out + u * out_stride, true);
  }
}

template <int J, class A, class C>
MHR_INLINE void dots_rows(const A* a, BankRun run, const C* b, MixedRun other, C* out, int64_t out_stride) {
  constexpr int U = kStreams;
  int64_t u = 0;
  for (; u + U <= other.count; u += U)
    dots_tile<J, U>(a, run, b + u * other.stride, other, out + u * out_stride, out_stride);
  for (; u < other.count; u++) dots_tile<J, 1>(a, run, b + u * other.stride, other, out + u * out_stride, out_stride);
}

// A piece of the bank's runs that stays in the first-level cache while every routing row passes over it.
constexpr int64_t kDotElements = 512;

// J skills of one piece, widened once for all rows.
template <int J, class T, class C = acc_t<T>>
MHR_INLINE void dots_skills(const T* bank, BankRun a, const C* mixed, MixedRun b, C* out) {
  if constexpr (std::is_same_v<T, C>) {
    dots_rows<J>(bank, a, mixed, b, out, a.skills);
  } else {
    C wide[J * kDotElements];
    for (int j = 0; j < J; j++)
      for (int64_t row = 0; row < a.rows; row++)
        widen_all(bank + j * a.skill_stride + row * a.row_stride, a.length, wide + j * kDotElements + row * a.length);
    dots_rows<J>(wide, {a.skills, kDotElements, a.rows, a.length, a.length}, mixed, b, out, a.skills);
  }
}

template <class T>
void dots(const T* bank, BankRun a, const acc_t<T>* mixed, MixedRun b, acc_t<T>* out) {
  const int64_t rows = a.length < kDotElements && a.length > 0 ? kDotElements / a.length : 1;
  for (int64_t row = 0; row < a.rows; row += rows)
    for (int64_t i = 0; i < a.length; i += kDotElements) {
      BankRun piece = a;
      piece.rows = a.rows - row < rows ? a.rows - row : rows;
      piece.length = a.length - i < kDotElements ? a.length - i : kDotElements;
      const T* from = bank + row * a.row_stride + i;
      const acc_t<T>* other = mixed + row * b.row_stride + i;
      int64_t s = 0;
      for (; s + kWide <= a.skills; s += kWide) dots_skills<kWide>(from + s * a.skill_stride, piece, other, b, out + s);
      for (; s < a.skills; s++) dots_skills<1>(from + s * a.skill_stride, piece, other, b, out + s);
    }
}

// ---- transposes between a run [width][rank] and a panel [rank][kPanel], in blocks of 4 x 4
typedef float quad __attribute__((vector_size(16)));
typedef int quad_order __attribute__((vector_size(16)));

MHR_INLINE void transpose_quad(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  quad v[4], t[4];
  for (int i = 0; i < 4; i++) std::memcpy(&v[i], from + i * from_stride, sizeof(quad));
  for (int i = 0; i < 2; i++) {
    t[2 * i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], quad_order{0, 4, 1, 5});
    t[2 * i + 1] = __builtin_shuffle(v[2 * i], v[2 * i + 1], quad_order{2, 6, 3, 7});
  }
  for (int i = 0; i < 2; i++) {
    const quad even = __builtin_shuffle(t[i], t[i + 2], quad_order{0, 1, 4, 5});
    const quad odd = __builtin_shuffle(t[i], t[i + 2], quad_order{2, 3, 6, 7});
    std::memcpy(to + 2 * i * to_stride, &even, sizeof(quad));
    std::memcpy(to + (2 * i + 1) * to_stride, &odd, sizeof(quad));
  }
}

// to[c][r] = from[r][c]
template <class C>
MHR_INLINE void transpose(const C* from, int64_t from_stride, int64_t rows, int64_t columns, C* to, int64_t to_stride) {
  int64_t r = 0;
  if constexpr (sizeof(C) == sizeof(float)) {
    for (; r + 4 <= rows; r += 4) {
      int64_t c = 0;
      for (; c + 4 <= columns; c += 4)
        transpose_quad(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
      for (; c < columns; c++)
        for (int64_t k = r; k < r + 4; k++) to[c * to_stride + k] = from[k * from_stride + c];
    }
  }
  for (; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

template <class C>
void spread(const C* run, int64_t width, int64_t rank, C* panel) {
  transpose(run, rank, width, rank, panel, kPanel);
}
template <class C>
void gather(const C* panel, int64_t width, int64_t rank, C* run) {
  transpose(panel, kPanel, rank, width, run, rank);
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
  return {&combine<T>,       &distribute<T>, &dots<T>,       &spread<acc_t<T>>,
          &gather<acc_t<T>>, &widen_all<T>,  &narrow_all<T>, &average<T>};
}

}  // namespace
}  // namespace mhr
