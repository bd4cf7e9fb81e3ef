// The three passes over the tokens: forward, backward over dY, backward over x. Raw pointers, any segment layout.
//
// Work is cut into blocks of at most kBlock tokens that share their rows of the factors. Forward blocks are
// independent. Backward blocks are sorted by row and cut into pieces; each piece sums its share of the factor's
// gradient alone, and pieces of one row are added in order: the result does not depend on scheduling (it may on the
// number of threads). Row -1 stands for factors of zeros: tokens of it are left as they are.
#pragma once

#include "cpu/buffer.h"
#include "cpu/factors.h"
#include "cpu/simd.h"
#include "problem.h"

namespace mhr {

// Gradients of factors in panels: sums of row u in slot u once the pass is over.
template <class C>
struct Gradients {
  Gradients(int64_t rank, int64_t columns) : stride(factor_stride(rank, columns)) {}
  const C* row(int64_t u) const { return sums.data() + u * stride; }

  int64_t stride;
  Buffer<C> sums;
};

enum class Activation { none, gelu };

template <class T>
struct ForwardPass {
  using C = acc_t<T>;
  Segments segments;
  const int64_t *rows_a, *rows_b;
  const Factors<T>*a, *b;  // b has one more rank than a where it carries a bias
  const C* bias_a;         // [U, R] or null
  Activation activation;
  C scale;
  const T* x;
  T* y;
  C* z;  // [N, R]

  void run() const;
};

template <class T>
struct BackwardDyPass {
  using C = acc_t<T>;
  Segments segments;
  const int64_t* rows;
  const Factors<T>* b;
  bool bias;  // the gradient has one rank more than b: the bias's
  Activation activation;
  C scale;
  const T* dy;
  const C* z;
  C* dz;  // [N, R]

  void run(Gradients<C>& d_b) const;
};

template <class T>
struct BackwardXPass {
  using C = acc_t<T>;
  Segments segments;
  const int64_t* rows;
  const Factors<T>* a;
  const T* x;
  const C* dz;
  T* dx;  // or null
  bool accumulate;

  void run(Gradients<C>& d_a) const;
};

}  // namespace mhr
