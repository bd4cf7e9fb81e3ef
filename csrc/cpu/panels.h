// Banks to mixed factors in panels, and gradients back.
#pragma once

#include <vector>

#include "cpu/simd.h"
#include "problem.h"

namespace mhr {

// Columns [begin, begin + width) of one head, which lie in one panel of the factor.
struct Chunk {
  int64_t head, begin, width;
};
std::vector<Chunk> chunks_of(const BankShape& shape);

// Elements of scratch memory that the two functions below want.
int64_t mix_scratch(const BankShape& shape, int64_t rows);
int64_t unmix_scratch(const BankShape& shape, int64_t rows);

// One chunk of panels[u] = sum_s w[u, s] bank[s], for all `rows` routing rows u; the panels' padding is written too.
template <class T>
void mix_chunk(const T* bank, const BankShape& shape, const Chunk& chunk, const acc_t<T>* w, int64_t rows,
               acc_t<T>* scratch, acc_t<T>* panels);

// One chunk of the bank's gradient, and dots[u, s] = the chunk's share of the gradient of w, from gradient panels.
template <class T>
void unmix_chunk(const T* bank, const BankShape& shape, const Chunk& chunk, const acc_t<T>* w, int64_t rows,
                 const acc_t<T>* panels, acc_t<T>* scratch, T* d_bank, acc_t<T>* dots);

// A factor as it lies in memory, [I, R] (transposed) or [R, D], to panels and back.
template <class T>
void to_panels(const T* factor, int64_t rank, int64_t columns, bool transposed, acc_t<T>* panels);
template <class C>
void from_panels(const C* panels, int64_t rank, int64_t columns, bool transposed, C* factor);

}  // namespace mhr
