// token_routed_adapter: each token chooses k of S adapters by its scores, and each adapter computes on its tokens of a
// tile, wherever their rows lie. A tile stays in the second-level cache: x and y come from memory once, whatever k is.
#include <atomic>
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

template <class F>
Ahead all_of(const F* begin, int64_t count) {
  return {reinterpret_cast<const char*>(begin), count * int64_t(sizeof(F)) / 64};
}

// Factors [S, R, D], or [S, D, R] where they are transposed, each made ready for the kernels when it is asked for.
// Those that lie as the kernels read them are left there, but for a last panel that is not full.
template <class T>
class ReadyFactors {
 public:
  using C = acc_t<T>;

  // At most `most` of them will be asked for.
  ReadyFactors(const char* op, const Tensor& factor, int64_t rank, int64_t columns, bool transposed, int64_t most,
               Use use)
      : op_(op),
        factor_(factor),
        rank_(rank),
        columns_(columns),
        transposed_(transposed),
        left_(!transposed && !token_kernels<T>().packed_panel && factor.element_size() == int64_t(sizeof(C))),
        made_(most, rank_, left_ ? columns_ % kPanel : columns_, use) {}

  // Factor s, by slot `u` of those that are made.
  Placed<C> make(int64_t s, int64_t u) {
    const int64_t full = left_ ? columns_ / kPanel : 0;  // panels that are left where they are
    dispatch_beside<C>(op_, factor_.scalar_type(), [&](auto tag) {
      using F = typename decltype(tag)::type;
      const F* from = pointer<F>(factor_) + s * rank_ * columns_;
      made_.fill(
          u, 1, rank_ * kPanel,
          [&](int64_t panel, int64_t, int64_t, C* scratch, C* to, int64_t) {
            copy_panel(from, rank_, columns_, transposed_, full + panel, scratch, to);
          },
          !std::is_same_v<F, C>);
    });
    if (!left_) return made_.placed(u);
    return {pointer<C>(factor_) + s * rank_ * columns_, columns_, kPanel, made_.row(u)};
  }

  Ahead memory(int64_t s) const {
    const int64_t size = rank_ * columns_ * factor_.element_size();
    return all_of(static_cast<const char*>(factor_.const_data_ptr()) + s * size, size);
  }

 private:
  const char* op_;
  const Tensor& factor_;
  int64_t rank_, columns_;
  bool transposed_, left_;
  Factors<T> made_;
};

// The adapters that tokens chose, each made ready by the first thread that wants it.
template <class T>
class Adapters {
 public:
  using C = acc_t<T>;
  struct Adapter {
    Placed<C> a, b;
  };

  // At most `most` of them will be asked for.
  Adapters(const char* op, const Tensor& A, const Tensor& B, int64_t most)
      : a(op, A, A.size(2), A.size(1), true, most, Use::shrink),
        b(op, B, B.size(1), B.size(2), false, most, Use::expand),
        slots_(A.size(0)) {}

  const Adapter& of(int64_t s) {
    Slot& slot = slots_[s];
    if (!slot.ready.load(std::memory_order_acquire)) {
      const std::lock_guard<std::mutex> lock(slot.making);  // std::call_once would ask the kernel whether one waits
      if (!ready(s)) {
        const int64_t u = used_++;
        slot.adapter = {a.make(s, u), b.make(s, u)};
        slot.ready.store(true, std::memory_order_release);
      }
    }
    return slot.adapter;
  }
  bool ready(int64_t s) const { return slots_[s].ready.load(std::memory_order_relaxed); }

  ReadyFactors<T> a, b;

 private:
  struct Slot {
    std::mutex making;
    std::atomic<bool> ready{false};
    Adapter adapter;
  };
  std::vector<Slot> slots_;
  std::atomic<int64_t> used_{0};
};

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
    Placed<C> directions;
    Adapters<T>& adapters;
  };

  Tiles(const Call& call, int64_t most)
      : call_(call),
        places_(2 * call.count + 1 + most * call.k),
        from_(most * call.k),
        to_(most * call.k),
        memory_(2 * most * call.k + kBlock * (call.count + 1 + call.rank) + choice_scratch(call.count, call.k) +
                token_scratch(call.rank) + (sizeof(T) != sizeof(C) ? kBlock * call.n_in : 0)) {
    next_ = first_ = places_.data();
    next_ += call.count + 1;
    chosen_ = next_ + call.count;
    const int64_t pairs = most * call.k;
    C* at = memory_.data();
    const auto take = [&](int64_t size) { return (at += size) - size; };
    shares_ = take(pairs);
    sorted_ = take(pairs);
    dots_ = take(kBlock * call.count);
    inverse_ = take(kBlock);
    h_ = take(kBlock * call.rank);
    choice_ = take(choice_scratch(call.count, call.k));
    scratch_ = take(token_scratch(call.rank));
    wide_ = at;
  }

  void add(int64_t begin, int64_t n) {
    for (int64_t t = 0; t < n; t += kBlock) route(begin + t, t, std::min(kBlock, n - t));
    sort(begin, n);
    for (int64_t s = next_wanted(0); s < call_.count;) {
      const typename Adapters<T>::Adapter& adapter = call_.adapters.of(s);
      const int64_t after = next_wanted(s + 1), first = first_[s], last = first_[s + 1];
      // What is read next is asked for while this one computes: an adapter, or else the next tile.
      const bool known = after == call_.count || call_.adapters.ready(after);
      for (int64_t p = first; p < last; p += kBlock) {
        const int64_t block = std::min(kBlock, last - p);
        const bool asks = p == first && !known;
        compute(adapter, p, block, asks ? call_.adapters.a.memory(after) : next_tile(begin + n, p, block),
                asks ? call_.adapters.b.memory(after) : Ahead{});
      }
      s = after;
    }
  }

 private:
  // The first adapter from s on that a token of the tile chose.
  int64_t next_wanted(int64_t s) const {
    while (s < call_.count && first_[s] == first_[s + 1]) s++;
    return s;
  }

  // The part of x in the next tile, which begins with token t, that pairs p .. p + n are of this one.
  Ahead next_tile(int64_t t, int64_t p, int64_t n) const {
    const int64_t begin = std::min(t + p / call_.k, call_.tokens), end = std::min(t + (p + n) / call_.k, call_.tokens);
    return all_of(call_.x + begin * call_.n_in, (end - begin) * call_.n_in);
  }

  // Chosen and shares of the tokens t .. t + n, which stand in place `at` of the tile.
  void route(int64_t t, int64_t at, int64_t n) {
    const TokenKernels<C>& kernel = token_kernels<C>();
    const int64_t n_in = call_.n_in, count = call_.count, k = call_.k;
    const T* x = call_.x + t * n_in;
    const C* wide = wide_;
    if constexpr (sizeof(T) != sizeof(C))  // scores are those of x in the precision of sums
      bank_kernels<T>().widen(x, n * n_in, wide_);
    else
      wide = x;
    const C* rows[kBlock];
    for (int64_t i = 0; i < n; i++) rows[i] = wide + i * n_in;
    kernel.shrink_list(rows, n, call_.directions, count, n_in, dots_,
                       all_of(call_.y + t * call_.n_out, n * call_.n_out));
    if (call_.normalised) kernel.inverse_deviations(wide, n, n_in, inverse_);
    kernel.choose(dots_, call_.normalised ? inverse_ : nullptr, n, count, k, call_.temperature, choice_,
                  &chosen_[at * k], &shares_[at * k]);
  }

  void sort(int64_t begin, int64_t n) {
    const int64_t k = call_.k, pairs = n * k;
    std::fill(first_, next_, 0);
    for (int64_t i = 0; i < pairs; i++) first_[chosen_[i] + 1]++;
    for (int64_t s = 0; s < call_.count; s++) first_[s + 1] += first_[s];
    std::copy(first_, next_ - 1, next_);
    for (int64_t i = 0, pair = 0; i < n; i++)
      for (int64_t j = 0; j < k; j++, pair++) {
        const int64_t place = next_[chosen_[pair]]++;
        from_.data()[place] = call_.x + (begin + i) * call_.n_in;
        to_.data()[place] = call_.y + (begin + i) * call_.n_out;
        sorted_[place] = call_.scale * shares_[pair];
      }
  }

  // One adapter on n pairs from the p-th on.
  void compute(const typename Adapters<T>::Adapter& adapter, int64_t p, int64_t n, Ahead shrinking, Ahead expanding) {
    const TokenKernels<T>& kernel = token_kernels<T>();
    const int64_t rank = call_.rank;
    kernel.shrink_list(from_.data() + p, n, adapter.a, rank, call_.n_in, h_, shrinking);
    for (int64_t i = 0; i < n; i++)
      for (int64_t r = 0; r < rank; r++) h_[i * rank + r] *= sorted_[p + i];
    kernel.expand_list(to_.data() + p, n, adapter.b, rank, call_.n_out, h_, scratch_, expanding);
  }

  const Call& call_;
  // Of each adapter the first of its pairs, and the end; its next free place; and what each token chose.
  Buffer<int64_t> places_;
  int64_t *first_, *next_, *chosen_;
  // The pairs' rows of x and y, by adapter.
  Buffer<const T*> from_;
  Buffer<T*> to_;
  Buffer<C> memory_;
  C *shares_, *sorted_, *dots_, *inverse_, *h_, *choice_, *scratch_, *wide_;
};

void token_routed_adapter(Tensor y, Tensor x, Tensor directions, Tensor A, Tensor B, int64_t top_k, double temperature,
                          bool normalised, double scale) {
  const char* op = "token_routed_adapter";
  const ScalarType dtype = x.scalar_type();
  MHR_CHECK(x.dim() > 0, "mhr::", op, ": x must have at least one dimension");
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
  MHR_CHECK(top_k >= 1 && top_k <= count, "mhr::", op, ": top_k must lie in 1..", count, ", got ", top_k);
  MHR_CHECK(temperature > 0, "mhr::", op, ": temperature must be positive, got ", temperature);
  if (n == 0) return;
  dispatch_float(op, dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using C = acc_t<T>;
    ReadyFactors<C> scored(op, directions, count, n_in, false, 1, Use::shrink);
    Adapters<T> adapters(op, A, B, std::min(count, n * top_k));
    const typename Tiles<T>::Call call{
        pointer<T>(x), mutable_pointer<T>(y), n,       n_in, n_out, count, top_k, rank, C(temperature), C(scale),
        normalised,    scored.make(0, 0),     adapters};
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
