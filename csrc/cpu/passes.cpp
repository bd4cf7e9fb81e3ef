#include "cpu/passes.h"

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
  std::vector<Block> blocks;   // sorted by row, in order of their tokens within a row
  std::vector<Block> without;  // those of row -1, which no piece has
  std::vector<Piece> pieces;
  std::vector<bool> used;  // rows with tokens
  int64_t slots;           // one for each row, and one more for each further piece of a row

  Pieces(const Segments& segments, const int64_t* rows, int64_t n_rows) : used(n_rows, false), slots(n_rows) {
    for (const Block& block : blocks_of(segments, rows, rows)) (block.row_a < 0 ? without : blocks).push_back(block);
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

  // Zeroes the slots of rows that no token uses; the first block of a piece overwrites.
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
      parallel(stride - kPanel, 1, [&](int64_t begin, int64_t end) {  // without what keeps rows apart
        for (int64_t i = begin; i < end; i++) to[i] += from[i];
      });
    }
  }

  // The block that the thread with pieces up to `end_piece` takes after block j, or null.
  const Block* next(int64_t j, int64_t end_piece) const {
    return j + 1 < pieces[end_piece - 1].last ? &blocks[j + 1] : nullptr;
  }

  int64_t mean_tokens(int64_t tokens) const { return pieces.empty() ? 0 : tokens / int64_t(pieces.size()); }
};

// Rows of a wide tensor, to be asked for ahead of their use.
template <class T>
Ahead rows_of(const T* t, int64_t columns, int64_t begin, int64_t count) {
  return {reinterpret_cast<const char*>(t + begin * columns), int64_t(count * columns * sizeof(T)) / 64};
}
template <class T>
Ahead rows_of(const T* t, int64_t columns, const Block& block) {
  return rows_of(t, columns, block.begin, block.count);
}

// h[n, R'] = scale * value[n, R], with a last column of `scale` where R' = R + 1 carries the bias.
template <class C>
void scale_rows(const C* value, int64_t n, int64_t rank, int64_t width, C scale, C* h) {
  for (int64_t i = 0; i < n; i++) {
    for (int64_t r = 0; r < rank; r++) h[i * width + r] = scale * value[i * rank + r];
    if (width > rank) h[i * width + rank] = scale;
  }
}

}  // namespace

template <class T>
void ForwardPass<T>::run() const {
  const TokenKernels<T>& k = token_kernels<T>();
  const int64_t rank = a->rank, width = b->rank;
  const bool gelu = activation == Activation::gelu;
  const std::vector<Block> blocks = blocks_of(segments, rows_a, rows_b);
  parallel(blocks.size(), kBlock * (rank * a->columns + width * b->columns), [&](int64_t begin, int64_t end) {
    const Buffer<C> work(2 * kBlock * width + token_scratch(width));
    C *h = work.data(), *value = h + kBlock * width, *scratch = value + kBlock * width;
    for (int64_t i = begin; i < end; i++) {
      const Block& block = blocks[i];
      C* out = z + block.begin * rank;
      if (block.row_a < 0)
        std::fill(out, out + block.count * rank, C(0));
      else
        k.shrink(x + block.begin * a->columns, block.count, a->row(block.row_a), rank, a->columns, out,
                 rows_of(y, b->columns, block));
      if (bias_a && block.row_a >= 0)
        for (int64_t n = 0; n < block.count; n++)
          for (int64_t r = 0; r < rank; r++) out[n * rank + r] += bias_a[block.row_a * rank + r];
      if (block.row_b < 0) continue;
      if (gelu) k.gelu(out, block.count * rank, value, nullptr);
      scale_rows(gelu ? value : out, block.count, rank, width, scale, h);
      k.expand(y + block.begin * b->columns, block.count, b->row(block.row_b), width, b->columns, h, scratch, false,
               i + 1 < end ? rows_of(x, a->columns, blocks[i + 1]) : Ahead{});
    }
  });
}

template <class T>
void BackwardDyPass<T>::run(Gradients<C>& d_b) const {
  const TokenKernels<T>& k = token_kernels<T>();
  const int64_t rank = b->rank, width = rank + (bias ? 1 : 0);
  const bool gelu = activation == Activation::gelu;
  const Pieces plan(segments, rows, b->rows);
  d_b.sums = Buffer<C>(plan.slots * d_b.stride);
  plan.clear_unused(d_b.stride, d_b.sums.data());
  for (const Block& block : plan.without) std::fill_n(dz + block.begin * rank, block.count * rank, C(0));
  parallel(plan.pieces.size(), 2 * plan.mean_tokens(segments.tokens) * width * b->columns,
           [&](int64_t begin, int64_t end) {
             const Buffer<C> work(4 * kBlock * width + token_scratch(width));
             C *h = work.data(), *dh = h + kBlock * width, *value = dh + kBlock * width;
             C *slope = value + kBlock * width, *scratch = slope + kBlock * width;
             for (int64_t i = begin; i < end; i++) {
               C* sums = d_b.sums.data() + plan.pieces[i].slot * d_b.stride;
               for (int64_t j = plan.pieces[i].first; j < plan.pieces[i].last; j++) {
                 const Block &block = plan.blocks[j], *next = plan.next(j, end);
                 const T* from = dy + block.begin * b->columns;
                 const C* before = z + block.begin * rank;
                 const int64_t half = next ? next->count / 2 : 0;
                 k.shrink(from, block.count, b->row(block.row_a), rank, b->columns, dh,
                          next ? rows_of(dy, b->columns, next->begin, half) : Ahead{});
                 C* to = dz + block.begin * rank;
                 for (int64_t i = 0; i < block.count * rank; i++) to[i] = scale * dh[i];
                 if (gelu) {
                   k.gelu(before, block.count * rank, value, slope);
                   for (int64_t i = 0; i < block.count * rank; i++) to[i] *= slope[i];
                 }
                 scale_rows(gelu ? value : before, block.count, rank, width, scale, h);
                 k.outer(from, block.count, h, width, b->columns, scratch, sums, j == plan.pieces[i].first,
                         next ? rows_of(dy, b->columns, next->begin + half, next->count - half) : Ahead{});
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
  if (dx && !accumulate)
    for (const Block& block : plan.without)
      std::memset(dx + block.begin * a->columns, 0, block.count * a->columns * sizeof(T));
  parallel(plan.pieces.size(), 2 * plan.mean_tokens(segments.tokens) * rank * a->columns,
           [&](int64_t begin, int64_t end) {
             const Buffer<C> scratch(token_scratch(rank));
             for (int64_t i = begin; i < end; i++) {
               C* sums = d_a.sums.data() + plan.pieces[i].slot * d_a.stride;
               for (int64_t j = plan.pieces[i].first; j < plan.pieces[i].last; j++) {
                 const Block &block = plan.blocks[j], *next = plan.next(j, end);
                 const C* dh = dz + block.begin * rank;
                 const Ahead next_x = next ? rows_of(x, a->columns, *next) : Ahead{};
                 k.outer(x + block.begin * a->columns, block.count, dh, rank, a->columns, scratch.data(), sums,
                         j == plan.pieces[i].first, dx ? rows_of(dx, a->columns, block) : next_x);
                 if (dx)
                   k.expand(dx + block.begin * a->columns, block.count, a->row(block.row_a), rank, a->columns, dh,
                            scratch.data(), !accumulate, next_x);
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
