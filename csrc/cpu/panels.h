// Banks to mixed factors in panels, and gradients back.
#pragma once

#include <vector>

#include "cpu/simd.h"
#include "problem.h"

namespace mhr {

// One plain panel of sum_s w[u, s] bank[s], its padding too, for each of `rows` routing rows u: panels[u * stride ..).
// Scratch of the panels' size.
template <class T>
void mix_panel(const T* bank, const BankShape& shape, int64_t panel, const acc_t<T>* w, int64_t rows, acc_t<T>* scratch,
               acc_t<T>* panels, int64_t stride);

// One plain panel of a factor as it lies in memory, [columns][rank] (transposed) or [rank][columns], its padding too.
// Scratch of the panel's size, unless F is C.
template <class F, class C>
void copy_panel(const F* factor, int64_t rank, int64_t columns, bool transposed, int64_t panel, C* scratch, C* to);

// Columns [begin, begin + width) of one head, which lie in one panel of the factor.
struct Chunk {
  int64_t head, begin, width;
};
std::vector<Chunk> chunks_of(const BankShape& shape);

// One chunk of the bank's gradient, and dots[u, s] = the chunk's share of the gradient of w, from gradient panels.
template <class T>
void unmix_chunk(const T* bank, const BankShape& shape, const Chunk& chunk, const acc_t<T>* w, int64_t rows,
                 const acc_t<T>* panels, acc_t<T>* scratch, T* d_bank, acc_t<T>* dots);
// Elements of scratch memory that it wants.
int64_t unmix_scratch(const BankShape& shape, int64_t rows);

// One factor's gradient from panels to where it lies in memory: [I, R] (transposed) or [R, D].
template <class C>
void from_panels(const C* panels, int64_t rank, int64_t columns, bool transposed, C* factor);

}  // namespace mhr
