#include "cpu/passes.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"

namespace mhr {
namespace {

struct Block {
  int64_t row_a, row_b, begin, count;
};

std::vector<Block> blocks_of(const Segments& segments, const int64_t* rows_a, const int64_t* rows_b) {
  std::vector<Block> blocks;
  for (int64_t g = 0; g < segments.count;) {
    const int64_t begin = segments.begin(g), a = rows_a[g], b = rows_b[g];
    int64_t end = segments.end(g);
    for (g++; g < segments.count && rows_a[g] == a && rows_b[g] == b; g++) end = segments.end(g);
    for (int64_t t = begin; t < end; t += kBlock) blocks.push_back({a, b, t, std::min(kBlock, end - t)});
  }
  return blocks;
}

// Blocks of one row whose gradient is summed by one thread.
struct Piece {
  int64_t row, slot, first, last;
};

struct Pieces {
  std::vector<Block> blocks;  // sorted by row, in order of their tokens within a row
  std::vector<Piece> pieces;
  std::vector<bool> used;  // rows with tokens
  int64_t slots;           // one for each row, and one more for each further piece of a row

  Pieces(const Segments& segments, const int64_t* rows, int64_t n_rows) : used(n_rows, false), slots(n_rows) {
    blocks = blocks_of(segments, rows, rows);
    std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.row_a < b.row_a; });
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t quota = std::max(kBlock, (segments.tokens + threads - 1) / threads);
    int64_t tokens = 0;
    for (int64_t i = 0; i < int64_t(blocks.size()); i++) {
      const int64_t row = blocks[i].row_a;
      if (pieces.empty() || pieces.back().row != row || tokens >= quota) {
        pieces.push_back({row, used[row] ? slots++ : row, i, i});
        used[row] = true;
        tokens = 0;
      }
      pieces.back().last = i + 1;
      tokens += blocks[i].count;
    }
  }

  // Zeroes the slots of rows that no token uses; the pieces zero their own.
  template <class C>
  void clear_unused(int64_t stride, C* sums) const {
    for (size_t u = 0; u < used.size(); u++)
      if (!used[u]) std::memset(sums + u * stride, 0, stride * sizeof(C));
  }

  // Adds the further pieces of each row to its slot, in order.
  template <class C>
  void reduce(int64_t stride, C* sums) const {
    for (const Piece& piece : pieces) {
      if (piece.slot == piece.row) continue;
      C* to = sums + piece.row * stride;
      const C* from = sums + piece.slot * stride;
      parallel(stride, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) to[i] += from[i];
      });
    }
  }

  int64_t mean_tokens(int64_t tokens) const { return pieces.empty() ? 0 : tokens / int64_t(pieces.size()); }
};

template <class C>
C gelu(C z) {
  return C(0.5) * z * (C(1) + std::erf(z * C(M_SQRT1_2)));
}

template <class C>
C gelu_slope(C z) {
  const C density = std::exp(C(-0.5) * z * z) * C(0.5 * M_2_SQRTPI * M_SQRT1_2);
  return C(0.5) * (C(1) + std::erf(z * C(M_SQRT1_2))) + z * density;
}

// h[n, R'] = scale * act(z[n, R]), with a last column of `scale` where R' = R + 1 carries the bias.
template <class C>
void activate(const C* z, int64_t n, int64_t rank, int64_t width, Activation activation, C scale, C* h) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t r = 0; r < rank; r++)
      h[i * width + r] = scale * (activation == Activation::gelu ? gelu(z[i * rank + r]) : z[i * rank + r]);
    if (width > rank) h[i * width + rank] = scale;
  }
}

}  // namespace

template <class T>
void ForwardPass<T>::run() const {
  const TokenKernels<T>& k = token_kernels<T>();
  const int64_t rank = a->rank, width = b->rank;
  const std::vector<Block> blocks = blocks_of(segments, rows_a, rows_b);
  parallel(blocks.size(), kBlock * (rank * a->columns + width * b->columns), [&](int64_t begin, int64_t end) {
    const Buffer<C> work(kBlock * width + token_scratch(width));
    C *h = work.data(), *scratch = h + kBlock * width;
    for (int64_t i = begin; i < end; i++) {
      const Block& block = blocks[i];
      C* out = z + block.begin * rank;
      k.shrink(x + block.begin * a->columns, block.count, a->row(block.row_a), rank, a->columns, out);
      if (bias_a)
        for (int64_t n = 0; n < block.count; n++)
          for (int64_t r = 0; r < rank; r++) out[n * rank + r] += bias_a[block.row_a * rank + r];
      activate(out, block.count, rank, width, activation, scale, h);
      k.expand(y + block.begin * b->columns, block.count, b->row(block.row_b), width, b->columns, h, scratch, false);
    }
  });
}

template <class T>
void BackwardDyPass<T>::run(Gradients<C>& d_b) const {
  const TokenKernels<T>& k = token_kernels<T>();
  const int64_t width = b->rank, rank = bias ? width - 1 : width;
  const Pieces plan(segments, rows, b->rows);
  d_b.sums = Buffer<C>(plan.slots * d_b.stride);
  plan.clear_unused(d_b.stride, d_b.sums.data());
  parallel(plan.pieces.size(), 2 * plan.mean_tokens(segments.tokens) * width * b->columns,
           [&](int64_t begin, int64_t end) {
             const Buffer<C> work(2 * kBlock * width + token_scratch(width));
             C *h = work.data(), *dh = h + kBlock * width, *scratch = dh + kBlock * width;
             for (int64_t i = begin; i < end; i++) {
               C* sums = d_b.sums.data() + plan.pieces[i].slot * d_b.stride;
               std::memset(sums, 0, d_b.stride * sizeof(C));
               for (int64_t j = plan.pieces[i].first; j < plan.pieces[i].last; j++) {
                 const Block& block = plan.blocks[j];
                 const T* from = dy + block.begin * b->columns;
                 const C* before = z + block.begin * rank;
                 k.shrink(from, block.count, b->row(block.row_a), width, b->columns, dh);
                 for (int64_t n = 0; n < block.count; n++)
                   for (int64_t r = 0; r < rank; r++) {
                     const C slope = activation == Activation::gelu ? gelu_slope(before[n * rank + r]) : C(1);
                     dz[(block.begin + n) * rank + r] = scale * dh[n * width + r] * slope;
                   }
                 activate(before, block.count, rank, width, activation, scale, h);
                 k.outer(from, block.count, h, width, b->columns, scratch, sums);
               }
             }
           });
  plan.reduce(d_b.stride, d_b.sums.data());
}

template <class T>
void BackwardXPass<T>::run(Gradients<C>& d_a) const {
  const TokenKernels<T>& k = token_kernels<T>();
  const int64_t rank = a->rank;
  const Pieces plan(segments, rows, a->rows);
  d_a.sums = Buffer<C>(plan.slots * d_a.stride);
  plan.clear_unused(d_a.stride, d_a.sums.data());
  parallel(plan.pieces.size(), 2 * plan.mean_tokens(segments.tokens) * rank * a->columns,
           [&](int64_t begin, int64_t end) {
             const Buffer<C> scratch(token_scratch(rank));
             for (int64_t i = begin; i < end; i++) {
               C* sums = d_a.sums.data() + plan.pieces[i].slot * d_a.stride;
               std::memset(sums, 0, d_a.stride * sizeof(C));
               for (int64_t j = plan.pieces[i].first; j < plan.pieces[i].last; j++) {
                 const Block& block = plan.blocks[j];
                 const C* dh = dz + block.begin * rank;
                 k.outer(x + block.begin * a->columns, block.count, dh, rank, a->columns, scratch.data(), sums);
                 if (dx)
                   k.expand(dx + block.begin * a->columns, block.count, a->row(block.row_a), rank, a->columns, dh,
                            scratch.data(), !accumulate);
               }
             }
           });
  plan.reduce(d_a.stride, d_a.sums.data());
}

#define MHR_INSTANTIATE(T)           \
  template struct ForwardPass<T>;    \
  template struct BackwardDyPass<T>; \
  template struct BackwardXPass<T>;
MHR_INSTANTIATE(double)
MHR_INSTANTIATE(float)
MHR_INSTANTIATE(bfloat16)
MHR_INSTANTIATE(float16)

}  // namespace mhr
