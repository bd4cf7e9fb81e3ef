// token_routed_adapter: each token chooses k of S adapters by its scores, and each adapter computes on its tokens of a
// tile, wherever their rows lie. A tile stays in the second-level cache: x and y come from memory once, whatever k is.
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "adapter_checks.h"
#include "cpu/factors.h"
#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "dispatch.h"

namespace mhr {
namespace {

// Tokens of a tile: as many as have rows of so many bytes in x and y, half of a small second-level cache.
constexpr int64_t kTileBytes = 1 << 18, kLeastTile = 16, kMostTile = 4 * kBlock;

int64_t tile_of(int64_t n, int64_t bytes) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t fitting = std::min({kTileBytes / std::max<int64_t>(bytes, 1), kMostTile, (n + threads - 1) / threads});
  return std::max(kLeastTile, fitting / kLeastTile * kLeastTile);
}

// One factor in panels.
template <class T>
Factors<T> factor_of(const char* op, const Tensor& factor, int64_t row, int64_t rank, int64_t columns, bool transposed,
                     Use use) {
  using C = acc_t<T>;
  Factors<T> out(1, rank, columns, use);
  dispatch_beside<C>(op, factor.scalar_type(), [&](auto tag) {
    using F = typename decltype(tag)::type;
    const F* from = pointer<F>(factor) + row * rank * columns;
    out.fill(rank * kPanel, [&](int64_t panel, int64_t, int64_t, C* scratch, C* to, int64_t) {
      copy_panel(from, rank, columns, transposed, panel, scratch, to);
    });
  });
  return out;
}

// The adapters that tokens chose, each brought to panels by the first thread that wants it.
template <class T>
class Adapters {
 public:
  struct Adapter {
    Factors<T> a, b;
  };

  Adapters(const char* op, const Tensor& A, const Tensor& B)
      : op_(op), a_(A), b_(B), once_(A.size(0)), made_(A.size(0)) {}

  const Adapter& of(int64_t s) {
    std::call_once(once_[s], [&] {
      const int64_t rank = a_.size(2);
      made_[s].reset(new Adapter{factor_of<T>(op_, a_, s, rank, a_.size(1), true, Use::shrink),
                                 factor_of<T>(op_, b_, s, rank, b_.size(2), false, Use::expand)});
    });
    return *made_[s];
  }

 private:
  const char* op_;
  const Tensor &a_, &b_;
  std::vector<std::once_flag> once_;
  std::vector<std::unique_ptr<const Adapter>> made_;
};

// 1 / sqrt(var + 1e-5) of n values.
template <class C>
C inverse_deviation(const C* x, int64_t n) {
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < n; i++) sum += double(x[i]);
  const double mean = sum / double(n);
  for (int64_t i = 0; i < n; i++) squares += (double(x[i]) - mean) * (double(x[i]) - mean);
  return C(1 / std::sqrt(squares / double(n) + 1e-5));
}

// The k highest of `count` scores, the first of equal ones first, and the softmax over them; what is taken becomes
// -inf. A score that is no number makes the shares none.
template <class C>
void choose(C* scores, int64_t count, int64_t k, C temperature, int64_t* chosen, C* shares) {
  C wrong = 0;
  for (int64_t s = 0; s < count; s++) wrong = scores[s] == scores[s] ? wrong : scores[s];
  for (int64_t j = 0; j < k; j++) {
    int64_t best = 0;
    C highest = scores[0];
    for (int64_t s = 1; s < count; s++) {
      const bool higher = scores[s] > highest;
      best = higher ? s : best;
      highest = higher ? scores[s] : highest;
    }
    chosen[j] = best;
    shares[j] = highest;
    scores[best] = -INFINITY;
  }
  const C highest = shares[0];
  C sum = shares[0] = 1 + (highest - highest) + wrong;
  for (int64_t j = 1; j < k; j++) sum += shares[j] = std::exp((shares[j] - highest) / temperature);
  for (int64_t j = 0; j < k; j++) shares[j] /= sum;
}

// What one thread does for a tile of tokens after the other: scores, choice, pairs of tokens and adapters sorted by
// adapter, and each adapter on its tokens.
template <class T>
class Tiles {
 public:
  using C = acc_t<T>;
  struct Call {
    const T* x;
    T* y;
    int64_t tokens, n_in, n_out, count, k, rank;
    C temperature, scale;
    bool normalised;
    const Factors<C>& directions;
    Adapters<T>& adapters;
  };

  Tiles(const Call& call, int64_t most)
      : call_(call),
        first_(call.count + 1),
        next_(call.count),
        chosen_(most * call.k),
        from_(most * call.k),
        to_(most * call.k),
        shares_(most * call.k),
        sorted_(most * call.k),
        scores_(kBlock * call.count),
        wide_(sizeof(T) != sizeof(C) ? kBlock * call.n_in : 0),
        h_(kBlock * call.rank),
        scratch_(token_scratch(call.rank)) {}

  void add(int64_t begin, int64_t n) {
    for (int64_t t = 0; t < n; t += kBlock) route(begin + t, t, std::min(kBlock, n - t));
    sort(begin, n);
    // What the next tile reads first is asked for while this one computes.
    const int64_t after = std::min(n, call_.tokens - begin - n), pairs = n * call_.k;
    const char* wanted = reinterpret_cast<const char*>(call_.x + (begin + n) * call_.n_in);
    const int64_t lines = after * call_.n_in * int64_t(sizeof(T)) / 64;
    for (int64_t s = 0; s < call_.count; s++)
      for (int64_t p = first_[s]; p < first_[s + 1]; p += kBlock) {
        const int64_t block = std::min(kBlock, first_[s + 1] - p), line = lines * p / pairs;
        compute(call_.adapters.of(s), p, block, {wanted + 64 * line, lines * (p + block) / pairs - line});
      }
  }

 private:
  // Chosen and shares of the tokens t .. t + n, which stand in place `at` of the tile.
  void route(int64_t t, int64_t at, int64_t n) {
    const int64_t n_in = call_.n_in, count = call_.count, k = call_.k;
    const T* x = call_.x + t * n_in;
    const C* wide = wide_.data();
    if constexpr (sizeof(T) != sizeof(C))  // scores are those of x in the precision of sums
      bank_kernels<T>().widen(x, n * n_in, wide_.data());
    else
      wide = x;
    const Ahead y{reinterpret_cast<const char*>(call_.y + t * call_.n_out), n * call_.n_out * int64_t(sizeof(T)) / 64};
    token_kernels<C>().shrink(wide, n, call_.directions.row(0), count, n_in, scores_.data(), y);
    for (int64_t i = 0; i < n; i++) {
      C* own = scores_.data() + i * count;
      const C inverse = call_.normalised ? inverse_deviation(wide + i * n_in, n_in) : C(1);
      for (int64_t s = 0; s < count; s++) own[s] = call_.normalised ? own[s] * inverse : std::abs(own[s]);
      choose(own, count, k, call_.temperature, &chosen_[(at + i) * k], &shares_[(at + i) * k]);
    }
  }

  void sort(int64_t begin, int64_t n) {
    const int64_t k = call_.k, pairs = n * k;
    std::fill(first_.begin(), first_.end(), 0);
    for (int64_t i = 0; i < pairs; i++) first_[chosen_[i] + 1]++;
    for (size_t s = 1; s < first_.size(); s++) first_[s] += first_[s - 1];
    std::copy(first_.begin(), first_.end() - 1, next_.begin());
    for (int64_t i = 0, pair = 0; i < n; i++)
      for (int64_t j = 0; j < k; j++, pair++) {
        const int64_t place = next_[chosen_[pair]]++;
        from_[place] = call_.x + (begin + i) * call_.n_in;
        to_[place] = call_.y + (begin + i) * call_.n_out;
        sorted_[place] = call_.scale * shares_[pair];
      }
  }

  // One adapter on n pairs from the p-th on.
  void compute(const typename Adapters<T>::Adapter& adapter, int64_t p, int64_t n, Ahead ahead) {
    const TokenKernels<T>& kernel = token_kernels<T>();
    const int64_t rank = call_.rank;
    C* h = h_.data();
    kernel.shrink_list(&from_[p], n, adapter.a.row(0), rank, call_.n_in, h, ahead);
    for (int64_t i = 0; i < n; i++)
      for (int64_t r = 0; r < rank; r++) h[i * rank + r] *= sorted_[p + i];
    kernel.expand_list(&to_[p], n, adapter.b.row(0), rank, call_.n_out, h, scratch_.data(), Ahead{});
  }

  const Call& call_;
  std::vector<int64_t> first_, next_, chosen_;  // first_: of each adapter's pairs, and the end
  std::vector<const T*> from_;
  std::vector<T*> to_;
  std::vector<C> shares_, sorted_;
  Buffer<C> scores_, wide_, h_, scratch_;
};

void token_routed_adapter(Tensor y, Tensor x, Tensor directions, Tensor A, Tensor B, int64_t top_k, double temperature,
                          bool normalised, double scale) {
  const char* op = "token_routed_adapter";
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(x.dim() > 0, "mhr::", op, ": x must have at least one dimension");
  check_contiguous(op, "x", x);
  check_factor(op, "A", A, "S, I, R", dtype);
  check_factor(op, "B", B, "S, R, O", dtype);
  check_dtype(op, "B", B, A.scalar_type());
  const int64_t n = tokens_of(x), n_in = x.size(x.dim() - 1), count = A.size(0), rank = A.size(2), n_out = B.size(2);
  check_shape(op, "A", A, "S, I, R", {count, n_in, rank});
  check_shape(op, "B", B, "S, R, O", {count, rank, n_out});
  check_shape(op, "directions", directions, "S, I", {count, n_in});
  check_dtype(op, "directions", directions, accumulator_dtype(dtype));
  check_contiguous(op, "directions", directions);
  check_beside(op, "y", y, "x", x, "O", n_out);
  STD_TORCH_CHECK(top_k >= 1 && top_k <= count, "mhr::", op, ": top_k must lie in 1..", count, ", got ", top_k);
  if (n == 0) return;
  dispatch_float(op, dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    const Factors<C> scored = factor_of<C>(op, directions, 0, count, n_in, false, Use::shrink);
    Adapters<T> adapters(op, A, B);
    const typename Tiles<T>::Call call{
        pointer<T>(x), mutable_pointer<T>(y), n,        n_in,       n_out,  count,   top_k,
        rank,          C(temperature),        C(scale), normalised, scored, adapters};
    const int64_t tile = tile_of(n, (n_in + n_out) * int64_t(sizeof(T)));
    const int64_t work = tile * (count * n_in + top_k * rank * (n_in + n_out));
    parallel((n + tile - 1) / tile, work, [&](int64_t begin, int64_t end) {
      Tiles<T> tiles(call, std::min(tile, n));
      for (int64_t t = begin * tile; t < std::min(end * tile, n); t += tile) tiles.add(t, std::min(tile, n - t));
    });
  });
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) { m.impl("token_routed_adapter", TORCH_BOX(&mhr::token_routed_adapter)); }
