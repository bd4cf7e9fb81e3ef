#include "cpu/panels.h"

#include <algorithm>
#include <cstring>

#include "cpu/buffer.h"

namespace mhr {
namespace {

constexpr int64_t kRowGroup = 8;  // mixed runs of factor A that are held at once before they are turned into panels

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

template <class C>
void clear_padding(C* panels, int64_t rank, int64_t columns) {
  if (columns % kPanel == 0) return;
  C* last = panels + columns / kPanel * rank * kPanel;
  for (int64_t r = 0; r < rank; r++) std::fill(last + r * kPanel + columns % kPanel, last + (r + 1) * kPanel, C(0));
}

}  // namespace

int64_t mix_scratch(const BankShape& shape, int64_t rows) {
  return shape.joins_rows ? std::min(kRowGroup, rows) * kPanel * shape.rank() : 0;
}

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
void mix_chunk(const T* bank, const BankShape& shape, const Chunk& chunk, const acc_t<T>* w, int64_t rows,
               acc_t<T>* scratch, acc_t<T>* panels) {
  using C = acc_t<T>;
  const int64_t rank = shape.rank(), stride = factor_stride(rank, shape.columns()),
                w_stride = shape.heads * shape.skills;
  const T* source = start_of(bank, shape, chunk);
  C* out = place(panels, shape, chunk);
  w += chunk.head * shape.skills;
  if (!shape.joins_rows) {
    bank_kernels<T>().combine(source, run_of(shape, chunk), w, out, {rows, stride, kPanel, w_stride});
  } else {
    const BankRun run = run_of(shape, chunk);
    for (int64_t first = 0; first < rows; first += kRowGroup) {
      const int64_t count = std::min(kRowGroup, rows - first);
      bank_kernels<T>().combine(source, run, w + first * w_stride, scratch, {count, run.length, 0, w_stride});
      for (int64_t u = 0; u < count; u++)
        bank_kernels<T>().spread(scratch + u * run.length, chunk.width, rank, out + (first + u) * stride);
    }
  }
  if (chunk.head == shape.heads - 1 && chunk.begin + chunk.width == shape.columns() / shape.heads)
    for (int64_t u = 0; u < rows; u++) clear_padding(panels + u * stride, rank, shape.columns());
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

template <class T>
void to_panels(const T* factor, int64_t rank, int64_t columns, bool transposed, acc_t<T>* panels) {
  const BankShape shape{1, 1, transposed ? columns : rank, transposed ? rank : columns, transposed};
  const acc_t<T> one = 1;
  const Buffer<acc_t<T>> scratch(mix_scratch(shape, 1));
  for (const Chunk& chunk : chunks_of(shape)) mix_chunk(factor, shape, chunk, &one, 1, scratch.data(), panels);
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

#define MHR_INSTANTIATE(T)                                                                                           \
  template void mix_chunk(const T*, const BankShape&, const Chunk&, const acc_t<T>*, int64_t, acc_t<T>*, acc_t<T>*); \
  template void unmix_chunk(const T*, const BankShape&, const Chunk&, const acc_t<T>*, int64_t, const acc_t<T>*,     \
                            acc_t<T>*, T*, acc_t<T>*);                                                               \
  template void to_panels(const T*, int64_t, int64_t, bool, acc_t<T>*);
MHR_INSTANTIATE(double)
MHR_INSTANTIATE(float)
MHR_INSTANTIATE(bfloat16)
MHR_INSTANTIATE(float16)
template void from_panels(const double*, int64_t, int64_t, bool, double*);
template void from_panels(const float*, int64_t, int64_t, bool, float*);

}  // namespace mhr
