// shrink, expand and outer for every element type, by multiply-add on widened elements. Register tiles of tokens x
// ranks (shrink, outer) or tokens x columns (expand) over panels; a last panel that is not full goes through a padded
// copy.
#pragma once

#include "cpu/choice.h"
#include "cpu/gelu.h"
#include "cpu/simd.h"
#include "cpu/vector.h"

namespace mhr {
namespace {

// Accumulators in a tile: 16 of 32 registers with 64-byte vectors, 8 of 16 otherwise.
constexpr int kTokens = 4;
constexpr int kRanks = MHR_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kVectors = MHR_VECTOR_BYTES == 64 ? 4 : 2;

// Asks the second-level cache for what is wanted soon, in as many steps as the kernel has.
class Reader {
 public:
  Reader(Ahead ahead, int64_t steps)
      : at_(ahead.begin), end_(at_ + 64 * ahead.lines), each_(64 * ((ahead.lines + steps - 1) / (steps ? steps : 1))) {}
  inline __attribute__((always_inline)) void step() {
    const char* stop = end_ - at_ < each_ ? end_ : at_ + each_;
    for (; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *at_, *end_;
  int64_t each_;
};

template <class C>
constexpr int panel_vectors = kPanel / lanes<C>;
// Tiles of `size` that `n` ranks fall into, what is left over taken one by one.
constexpr int64_t groups(int64_t n, int64_t size) { return n / size + n % size; }
// Tiles that `n` tokens fall into: of kTokens, of two, of one.
constexpr int64_t token_tiles(int64_t n) { return n / kTokens + n % kTokens / 2 + n % 2; }
constexpr Ahead kNothing{nullptr, 0};

// ---- tokens, whose rows lie one after the other or anywhere
template <class T>
struct Sequence {
  T* first;
  int64_t stride;
  inline __attribute__((always_inline)) T* operator()(int64_t i) const { return first + i * stride; }
  Sequence from(int64_t column) const { return {first + column, stride}; }
};
template <class T>
struct List {
  T* const* rows;
  int64_t column;
  inline __attribute__((always_inline)) T* operator()(int64_t i) const { return rows[i] + column; }
  List from(int64_t more) const { return {rows, column + more}; }
};
// N tokens' rows, in registers.
template <class T, int N>
struct Tile {
  template <class Tokens>
  inline __attribute__((always_inline)) Tile(const Tokens& tokens, int64_t first) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) row[n] = tokens(first + n);
  }
  T* row[N];
};

// ---- factors: where rank r of a panel lies, and the next panel
template <class C>
struct Panels {
  const C* first;
  int64_t rank;
  inline __attribute__((always_inline)) const C* operator()(int64_t r) const { return first + r * kPanel; }
  inline __attribute__((always_inline)) Panels from(int64_t r) const { return {first + r * kPanel, rank}; }
  inline __attribute__((always_inline)) void next() { first += rank * kPanel; }
};
template <class C>
struct Strided {
  const C* first;
  int64_t row, step;
  inline __attribute__((always_inline)) const C* operator()(int64_t r) const { return first + r * row; }
  inline __attribute__((always_inline)) Strided from(int64_t r) const { return {first + r * row, row, step}; }
  inline __attribute__((always_inline)) void next() { first += step; }
};

// ---- shrink
template <class T, int N, int R, class Factor>
MHR_INLINE void shrink_tile(Tile<const T, N> x, Factor m, int64_t rank, int64_t panels, acc_t<T>* h, bool add,
                            Reader& ahead) {
  using C = acc_t<T>;
  vec<C> acc[N][R] = {};
  for (int64_t at = 0; at < panels * kPanel; at += kPanel, m.next()) {
    ahead.step();
#pragma GCC unroll 4
    for (int k = 0; k < panel_vectors<C>; k++) {
      vec<C> a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) a[r] = load(m(r) + k * lanes<C>);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) {
        const vec<C> v = load(x.row[n] + at + k * lanes<C>);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[n][r] += v * a[r];
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) store_sums<R, C>(acc[n], h + n * rank, add);
}

template <class T, int N, class Factor>
MHR_INLINE void shrink_tokens(Tile<const T, N> x, Factor m, int64_t rank, int64_t panels, acc_t<T>* h, bool add,
                              Reader& ahead) {
  int64_t r = 0;
  for (; r + kRanks <= rank; r += kRanks) shrink_tile<T, N, kRanks>(x, m.from(r), rank, panels, h + r, add, ahead);
  for (; r < rank; r++) shrink_tile<T, N, 1>(x, m.from(r), rank, panels, h + r, add, ahead);
}

template <class T, class Tokens, class Factor>
void shrink_panels(Tokens x, int64_t n, Factor m, int64_t rank, int64_t panels, acc_t<T>* h, bool add, Ahead wanted) {
  Reader ahead(wanted, token_tiles(n) * groups(rank, kRanks) * panels);
  int64_t i = 0;
  for (; i + kTokens <= n; i += kTokens) shrink_tokens<T, kTokens>({x, i}, m, rank, panels, h + i * rank, add, ahead);
  if (i + 2 <= n) {
    shrink_tokens<T, 2>({x, i}, m, rank, panels, h + i * rank, add, ahead);
    i += 2;
  }
  if (i < n) shrink_tokens<T, 1>({x, i}, m, rank, panels, h + i * rank, add, ahead);
}

// ---- expand
template <class T, int N, int V, bool Overwrite, class Factor>
MHR_INLINE void expand_tile(Tile<T, N> y, int64_t at, Factor m, int64_t k0, int64_t rank, const acc_t<T>* h) {
  using C = acc_t<T>;
  vec<C> acc[N][V] = {};
  if (!Overwrite) {
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
#pragma GCC unroll 8
      for (int k = 0; k < V; k++) acc[n][k] = load(y.row[n] + at + (k0 + k) * lanes<C>);
  }
  for (int64_t r = 0; r < rank; r++, m = m.from(1)) {
    vec<C> b[V];
#pragma GCC unroll 8
    for (int k = 0; k < V; k++) b[k] = load(m(0) + (k0 + k) * lanes<C>);
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      const vec<C> v = splat(h[n * rank + r]);
#pragma GCC unroll 8
      for (int k = 0; k < V; k++) acc[n][k] += v * b[k];
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 8
    for (int k = 0; k < V; k++) store(y.row[n] + at + (k0 + k) * lanes<C>, acc[n][k]);
}

template <class T, int N, bool Overwrite, class Factor>
MHR_INLINE void expand_tokens(Tile<T, N> y, Factor m, int64_t rank, int64_t panels, const acc_t<T>* h, Reader& ahead) {
  using C = acc_t<T>;
  for (int64_t at = 0; at < panels * kPanel; at += kPanel, m.next()) {
    ahead.step();
    for (int k = 0; k < panel_vectors<C>; k += kVectors) expand_tile<T, N, kVectors, Overwrite>(y, at, m, k, rank, h);
  }
}

template <class T, bool Overwrite, class Tokens, class Factor>
void expand_panels(Tokens y, int64_t n, Factor m, int64_t rank, int64_t panels, const acc_t<T>* h, Ahead wanted) {
  Reader ahead(wanted, token_tiles(n) * panels);
  int64_t i = 0;
  for (; i + kTokens <= n; i += kTokens)
    expand_tokens<T, kTokens, Overwrite>({y, i}, m, rank, panels, h + i * rank, ahead);
  if (i + 2 <= n) {
    expand_tokens<T, 2, Overwrite>({y, i}, m, rank, panels, h + i * rank, ahead);
    i += 2;
  }
  if (i < n) expand_tokens<T, 1, Overwrite>({y, i}, m, rank, panels, h + i * rank, ahead);
}

// ---- outer
template <class T, int R, int V>
MHR_INLINE void outer_tile(const T* x, int64_t ldx, int64_t n, const acc_t<T>* h, int64_t rank, acc_t<T>* out,
                           bool overwrite, Reader& ahead) {
  using C = acc_t<T>;
  vec<C> acc[R][V] = {};
  if (!overwrite) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int k = 0; k < V; k++) acc[r][k] = load(out + r * kPanel + k * lanes<C>);
  }
  for (int64_t i = 0; i < n; i++) {
    ahead.step();
    vec<C> v[V];
#pragma GCC unroll 8
    for (int k = 0; k < V; k++) v[k] = load(x + i * ldx + k * lanes<C>);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const vec<C> s = splat(h[i * rank + r]);
#pragma GCC unroll 8
      for (int k = 0; k < V; k++) acc[r][k] += s * v[k];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int k = 0; k < V; k++) store(out + r * kPanel + k * lanes<C>, acc[r][k]);
}

template <class T>
void outer_panels(const T* x, int64_t ldx, int64_t n, const acc_t<T>* h, int64_t rank, int64_t panels, acc_t<T>* out,
                  bool overwrite, Ahead wanted) {
  using C = acc_t<T>;
  Reader ahead(wanted, panels * (panel_vectors<C> / kVectors) * groups(rank, kRanks) * n);
  for (int64_t p = 0; p < panels; p++, x += kPanel, out += rank * kPanel)
    for (int k = 0; k < panel_vectors<C>; k += kVectors) {
      int64_t r = 0;
      const int64_t at = k * lanes<C>;
      for (; r + kRanks <= rank; r += kRanks)
        outer_tile<T, kRanks, kVectors>(x + at, ldx, n, h + r, rank, out + r * kPanel + at, overwrite, ahead);
      for (; r < rank; r++)
        outer_tile<T, 1, kVectors>(x + at, ldx, n, h + r, rank, out + r * kPanel + at, overwrite, ahead);
    }
}

// ---- whole factors: full panels where they lie, the rest through a padded copy
template <class T, class Tokens>
void pad_tail(Tokens x, int64_t n, int64_t width, T* tail) {
  for (int64_t i = 0; i < n; i++) {
    std::memcpy(tail + i * kPanel, x(i), width * sizeof(T));
    std::memset(tail + i * kPanel + width, 0, (kPanel - width) * sizeof(T));
  }
}

// The factor's full panels, and the last one where it is not full.
template <class T, class Tokens, class Factor>
void shrink_of(Tokens x, int64_t n, Factor m, const acc_t<T>* last, int64_t rank, int64_t columns, acc_t<T>* h,
               Ahead ahead) {
  const int64_t full = columns / kPanel, width = columns % kPanel;
  shrink_panels<T>(x, n, m, rank, full, h, false, ahead);
  if (!width) return;
  T tail[kBlock * kPanel];
  pad_tail(x.from(full * kPanel), n, width, tail);
  shrink_panels<T>(Sequence<const T>{tail, kPanel}, n, Panels<acc_t<T>>{last, rank}, rank, 1, h, true, kNothing);
}
template <class T>
void shrink(const T* x, int64_t n, const acc_t<T>* m, int64_t rank, int64_t columns, acc_t<T>* h, Ahead ahead) {
  shrink_of<T>(Sequence<const T>{x, columns}, n, Panels<acc_t<T>>{m, rank}, m + columns / kPanel * rank * kPanel, rank,
               columns, h, ahead);
}
template <class T>
void shrink_list(const T* const* x, int64_t n, Placed<acc_t<T>> m, int64_t rank, int64_t columns, acc_t<T>* h,
                 Ahead ahead) {
  shrink_of<T>(List<const T>{x, 0}, n, Strided<acc_t<T>>{m.first, m.row, m.step}, m.last, rank, columns, h, ahead);
}

template <class T, bool Overwrite, class Tokens, class Factor>
void expand_of(Tokens y, int64_t n, Factor m, const acc_t<T>* last, int64_t rank, int64_t columns, const acc_t<T>* h,
               Ahead ahead) {
  const int64_t full = columns / kPanel, width = columns % kPanel;
  expand_panels<T, Overwrite>(y, n, m, rank, full, h, ahead);
  if (!width) return;
  T tail[kBlock * kPanel];
  const Tokens rest = y.from(full * kPanel);
  pad_tail(rest, n, width, tail);
  expand_panels<T, Overwrite>(Sequence<T>{tail, kPanel}, n, Panels<acc_t<T>>{last, rank}, rank, 1, h, kNothing);
  for (int64_t i = 0; i < n; i++) std::memcpy(rest(i), tail + i * kPanel, width * sizeof(T));
}
template <class T>
void expand(T* y, int64_t n, const acc_t<T>* m, int64_t rank, int64_t columns, const acc_t<T>* h, acc_t<T>*,
            bool overwrite, Ahead ahead) {
  const Sequence<T> tokens{y, columns};
  const Panels<acc_t<T>> panels{m, rank};
  const acc_t<T>* last = m + columns / kPanel * rank * kPanel;
  if (overwrite)
    expand_of<T, true>(tokens, n, panels, last, rank, columns, h, ahead);
  else
    expand_of<T, false>(tokens, n, panels, last, rank, columns, h, ahead);
}
template <class T>
void expand_list(T* const* y, int64_t n, Placed<acc_t<T>> m, int64_t rank, int64_t columns, const acc_t<T>* h,
                 acc_t<T>*, Ahead ahead) {
  expand_of<T, false>(List<T>{y, 0}, n, Strided<acc_t<T>>{m.first, m.row, m.step}, m.last, rank, columns, h, ahead);
}

template <class T>
void outer(const T* x, int64_t n, const acc_t<T>* h, int64_t rank, int64_t columns, acc_t<T>*, acc_t<T>* panels,
           bool overwrite, Ahead ahead) {
  const int64_t full = columns / kPanel, width = columns % kPanel;
  outer_panels<T>(x, columns, n, h, rank, full, panels, overwrite, ahead);
  if (!width) return;
  T tail[kBlock * kPanel];
  pad_tail(Sequence<const T>{x + full * kPanel, columns}, n, width, tail);
  outer_panels<T>(tail, kPanel, n, h, rank, 1, panels + full * rank * kPanel, overwrite, kNothing);
}

template <class T>
constexpr TokenKernels<T> token_table() {
  return {nullptr,         nullptr,   &shrink<T>, &expand<T>,          &shrink_list<T>,
          &expand_list<T>, &outer<T>, &gelu,      &inverse_deviations, &choose};
}

}  // namespace
}  // namespace mhr
