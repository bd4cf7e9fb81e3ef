#include "cpu/panels.h"

#include <algorithm>
#include <cstring>

namespace mhr {
namespace {

// The start of a chunk's columns in a factor's panels.
template <class C>
C* place(C* panels, const BankShape& shape, const Chunk& chunk) {
  const int64_t column = chunk.head * (shape.columns() / shape.heads) + chunk.begin;
  return panels + column / kPanel * shape.rank() * kPanel + column % kPanel;
}

BankRun run_of(const BankShape& shape, const Chunk& chunk) {
  if (shape.joins_rows) return {shape.skills, shape.block(), 1, 0, chunk.width * shape.q};
  return {shape.skills, shape.block(), shape.p, shape.q, chunk.width};
}

template <class T>
T* start_of(T* bank, const BankShape& shape, const Chunk& chunk) {
  return bank + chunk.head * shape.skills * shape.block() + chunk.begin * (shape.joins_rows ? shape.q : 1);
}

}  // namespace

int64_t unmix_scratch(const BankShape& shape, int64_t rows) {
  return shape.joins_rows ? rows * (shape.rank() + 1) * kPanel : 0;
}

std::vector<Chunk> chunks_of(const BankShape& shape) {
  std::vector<Chunk> chunks;
  if (!shape.heads) return chunks;
  const int64_t width = shape.columns() / shape.heads;
  for (int64_t h = 0; h < shape.heads; h++)
    for (int64_t c = 0; c < width;) {
      const int64_t n = std::min(width - c, kPanel - (h * width + c) % kPanel);
      chunks.push_back({h, c, n});
      c += n;
    }
  return chunks;
}

template <class T>
void mix_panel(const T* bank, const BankShape& shape, int64_t panel, const acc_t<T>* w, int64_t rows, acc_t<T>* scratch,
               acc_t<T>* panels, int64_t stride) {
  using C = acc_t<T>;
  const BankKernels<T>& k = bank_kernels<T>();
  const int64_t rank = shape.rank(), width = shape.columns() / shape.heads, w_stride = shape.heads * shape.skills;
  const int64_t begin = panel * kPanel, end = std::min(begin + kPanel, shape.columns());
  for (int64_t column = begin; column < end;) {
    const int64_t head = column / width, within = column % width;
    const Chunk chunk{head, within, std::min(width - within, end - column)};
    const BankRun run = run_of(shape, chunk);
    const T* source = start_of(bank, shape, chunk);
    const C* weight = w + head * shape.skills;
    C* to = panels + column - begin;
    if (shape.joins_rows) {
      k.combine(source, run, weight, scratch, {rows, run.length, 0, w_stride});
      for (int64_t u = 0; u < rows; u++) k.spread(scratch + u * run.length, chunk.width, rank, to + u * stride);
    } else {
      k.combine(source, run, weight, to, {rows, stride, kPanel, w_stride});
    }
    column += chunk.width;
  }
  if (end - begin == kPanel) return;
  for (int64_t u = 0; u < rows; u++)
    for (int64_t r = 0; r < rank; r++) {
      C* row = panels + u * stride + r * kPanel;
      std::fill(row + end - begin, row + kPanel, C(0));
    }
}

template <class F, class C>
void copy_panel(const F* factor, int64_t rank, int64_t columns, bool transposed, int64_t panel, C* scratch, C* to) {
  const int64_t begin = panel * kPanel, width = std::min(kPanel, columns - begin);
  const auto wide = [](const F* from, int64_t n, C* to) {
    if constexpr (std::is_same_v<F, C>)
      std::memcpy(to, from, n * sizeof(C));
    else
      bank_kernels<F>().widen(from, n, to);
  };
  if (transposed) {
    const F* run = factor + begin * rank;
    if constexpr (std::is_same_v<F, C>) {
      bank_kernels<C>().spread(run, width, rank, to);
    } else {
      wide(run, width * rank, scratch);
      bank_kernels<C>().spread(scratch, width, rank, to);
    }
  } else {
    for (int64_t r = 0; r < rank; r++) wide(factor + r * columns + begin, width, to + r * kPanel);
  }
  if (width < kPanel)
    for (int64_t r = 0; r < rank; r++) std::fill(to + r * kPanel + width, to + (r + 1) * kPanel, C(0));
}

template <class T>
void unmix_chunk(const T* bank, const BankShape& shape, const Chunk& chunk, const acc_t<T>* w, int64_t rows,
                 const acc_t<T>* panels, acc_t<T>* scratch, T* d_bank, acc_t<T>* dots) {
  using C = acc_t<T>;
  const int64_t rank = shape.rank(), stride = factor_stride(rank, shape.columns()),
                w_stride = shape.heads * shape.skills;
  const BankRun run = run_of(shape, chunk);
  const C* source = place(panels, shape, chunk);
  MixedRun mixed{rows, stride, kPanel, w_stride};
  if (shape.joins_rows) {
    mixed = {rows, run.length + kPanel, 0, w_stride};  // apart, as factors are, for the cache's sake
    for (int64_t u = 0; u < rows; u++)
      bank_kernels<T>().gather(source + u * stride, chunk.width, rank, scratch + u * mixed.stride);
    source = scratch;
  }
  w += chunk.head * shape.skills;
  bank_kernels<T>().distribute(start_of(d_bank, shape, chunk), run, w, source, mixed);
  std::fill(dots, dots + rows * shape.skills, C(0));
  bank_kernels<T>().dots(start_of(bank, shape, chunk), run, source, mixed, dots);
}

template <class C>
void from_panels(const C* panels, int64_t rank, int64_t columns, bool transposed, C* factor) {
  for (int64_t c = 0; c < columns; c += kPanel, panels += rank * kPanel) {
    const int64_t width = std::min(kPanel, columns - c);
    if (transposed) {
      bank_kernels<C>().gather(panels, width, rank, factor + c * rank);
    } else {
      for (int64_t r = 0; r < rank; r++) std::memcpy(factor + r * columns + c, panels + r * kPanel, width * sizeof(C));
    }
  }
}

#define MHR_INSTANTIATE(T)                                                                                       \
  template void mix_panel(const T*, const BankShape&, int64_t, const acc_t<T>*, int64_t, acc_t<T>*, acc_t<T>*,   \
                          int64_t);                                                                              \
  template void unmix_chunk(const T*, const BankShape&, const Chunk&, const acc_t<T>*, int64_t, const acc_t<T>*, \
                            acc_t<T>*, T*, acc_t<T>*);                                                           \
  template void copy_panel(const T*, int64_t, int64_t, bool, int64_t, acc_t<T>*, acc_t<T>*);
MHR_INSTANTIATE(double)
MHR_INSTANTIATE(float)
MHR_INSTANTIATE(bfloat16)
MHR_INSTANTIATE(float16)
template void from_panels(const double*, int64_t, int64_t, bool, double*);
template void from_panels(const float*, int64_t, int64_t, bool, float*);

}  // namespace mhr
