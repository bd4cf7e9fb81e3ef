// token_routed_adapter: each token chooses k of S adapters by its scores, and each adapter computes on its tokens of a
// tile. The tile's rows are gathered into blocks, so that x and y come from memory once, whatever k is.
#include <cmath>
#include <cstring>
#include <vector>

#include "adapter_checks.h"
#include "cpu/factors.h"
#include "cpu/panels.h"
#include "cpu/parallel.h"
#include "dispatch.h"

namespace mhr {
namespace {

// Tokens whose pairs with adapters are sorted together: few enough for x and y to stay in the second-level cache.
constexpr int64_t kTile = 4 * kBlock;
// Rank up to which gathering tokens costs more than it saves: an adapter's factors stay in the first-level cache.
constexpr int64_t kAlone = 4;

// What stands in a tensor [rows][rank][columns], or [rows][columns][rank] where it is transposed, for the rows in
// `used`.
template <class T>
Factors<T> factors_of(const char* op, const Tensor& factor, int64_t rank, int64_t columns, bool transposed,
                      const std::vector<int64_t>& used, Use use) {
  using C = acc_t<T>;
  const BankShape shape{1, 1, transposed ? columns : rank, transposed ? rank : columns, transposed};
  const C one = 1;
  Factors<T> out(int64_t(used.size()), rank, columns, use);
  dispatch_beside<C>(op, factor.scalar_type(), [&](auto tag) {
    using F = typename decltype(tag)::type;
    out.fill(out.rows * rank * kPanel,
             [&](int64_t panel, int64_t first, int64_t count, C* scratch, C* to, int64_t stride) {
               for (int64_t i = first; i < first + count; i++, to += stride)
                 mix_panel(pointer<F>(factor) + used[i] * rank * columns, shape, panel, &one, 1, scratch, to, stride);
             });
  });
  return out;
}

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
// -inf.
template <class C>
void choose(C* scores, int64_t count, int64_t k, C temperature, int64_t* chosen, C* shares) {
  for (int64_t j = 0; j < k; j++) {
    int64_t best = 0;
    for (int64_t s = 1; s < count; s++)
      if (scores[s] > scores[best]) best = s;
    chosen[j] = best;
    shares[j] = scores[best];
    scores[best] = -INFINITY;
  }
  C sum = 0;
  const C highest = shares[0];
  for (int64_t j = 0; j < k; j++) sum += shares[j] = std::exp((shares[j] - highest) / temperature);
  for (int64_t j = 0; j < k; j++) shares[j] /= sum;
}

// The pairs of a tile's tokens with adapters, by adapter.
template <class C>
struct Pairs {
  Pairs(int64_t adapters, int64_t k) : first(adapters + 1), tokens(kTile * k), shares(kTile * k) {}

  void sort(const int64_t* chosen, const C* share, int64_t begin, int64_t n, int64_t k) {
    std::fill(first.begin(), first.end(), 0);
    for (int64_t i = begin * k; i < (begin + n) * k; i++) first[chosen[i] + 1]++;
    for (size_t s = 1; s < first.size(); s++) first[s] += first[s - 1];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = begin * k; i < (begin + n) * k; i++) {
      const int64_t place = next[chosen[i]]++;
      tokens[place] = i / k;
      shares[place] = share[i];
    }
  }

  std::vector<int64_t> first, tokens;
  std::vector<C> shares;
};

// What one thread adds to y: of used adapter u, for up to kBlock tokens.
template <class T>
struct Work {
  using C = acc_t<T>;
  Work(const T* x, T* y, C scale, const Factors<T>& a, const Factors<T>& b)
      : x(x),
        y(y),
        scale(scale),
        a(a),
        b(b),
        rows(kBlock * a.columns),
        out(kBlock * b.columns),
        h(kBlock * a.rank),
        scratch(token_scratch(a.rank)) {}

  void add(int64_t u, const int64_t* tokens, const C* shares, int64_t n) const {
    const TokenKernels<T>& kernel = token_kernels<T>();
    const int64_t n_in = a.columns, n_out = b.columns, rank = a.rank;
    const T* from = x + tokens[0] * n_in;  // a token alone is read and written where it is
    T* to = y + tokens[0] * n_out;
    if (n > 1) {
      from = rows.data();
      to = out.data();
      for (int64_t i = 0; i < n; i++) {
        std::memcpy(rows.data() + i * n_in, x + tokens[i] * n_in, n_in * sizeof(T));
        std::memcpy(out.data() + i * n_out, y + tokens[i] * n_out, n_out * sizeof(T));
      }
    }
    kernel.shrink(from, n, a.row(u), rank, n_in, h.data(), Ahead{});
    for (int64_t i = 0; i < n; i++)
      for (int64_t r = 0; r < rank; r++) h.data()[i * rank + r] *= scale * shares[i];
    kernel.expand(to, n, b.row(u), rank, n_out, h.data(), scratch.data(), false, Ahead{});
    for (int64_t i = 0; n > 1 && i < n; i++) std::memcpy(y + tokens[i] * n_out, to + i * n_out, n_out * sizeof(T));
  }

  const T* x;
  T* y;
  C scale;
  const Factors<T>&a, &b;
  Buffer<T> rows, out;
  Buffer<C> h, scratch;
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
    const bool wider = sizeof(T) != sizeof(C);  // scores are those of x in the precision of sums
    const T* from = pointer<T>(x);
    T* to = mutable_pointer<T>(y);
    std::vector<int64_t> chosen(n * top_k);
    std::vector<C> shares(n * top_k);
    const Factors<C> v = factors_of<C>(op, directions, count, n_in, false, {0}, Use::shrink);
    parallel((n + kBlock - 1) / kBlock, kBlock * count * n_in, [&](int64_t begin, int64_t end) {
      const Buffer<C> scores(kBlock * count), wide(wider ? kBlock * n_in : 0);
      for (int64_t t = begin * kBlock; t < std::min(end * kBlock, n); t += kBlock) {
        const int64_t block = std::min(kBlock, n - t);
        if (wider) bank_kernels<T>().widen(from + t * n_in, block * n_in, wide.data());
        const C* tokens = wider ? wide.data() : reinterpret_cast<const C*>(from + t * n_in);
        token_kernels<C>().shrink(tokens, block, v.row(0), count, n_in, scores.data(), Ahead{});
        for (int64_t i = 0; i < block; i++) {
          C* own = scores.data() + i * count;
          const C inverse = normalised ? inverse_deviation(tokens + i * n_in, n_in) : C(1);
          for (int64_t s = 0; s < count; s++) own[s] = normalised ? own[s] * inverse : std::abs(own[s]);
          choose(own, count, top_k, C(temperature), &chosen[(t + i) * top_k], &shares[(t + i) * top_k]);
        }
      }
    });
    std::vector<int64_t> place(count, -1), used;
    for (int64_t s : chosen)
      if (place[s] < 0) {
        place[s] = int64_t(used.size());
        used.push_back(s);
      }
    const Factors<T> a = factors_of<T>(op, A, rank, n_in, true, used, Use::shrink);
    const Factors<T> b = factors_of<T>(op, B, rank, n_out, false, used, Use::expand);
    parallel((n + kTile - 1) / kTile, kTile * top_k * rank * (n_in + n_out), [&](int64_t begin, int64_t end) {
      const Work<T> work{from, to, C(scale), a, b};
      Pairs<C> pairs(count, top_k);
      for (int64_t t = begin * kTile; t < std::min(end * kTile, n); t += kTile) {
        pairs.sort(chosen.data(), shares.data(), t, std::min(kTile, n - t), top_k);
        for (size_t u = 0; u < used.size(); u++) {
          const int64_t first = pairs.first[used[u]], last = pairs.first[used[u] + 1];
          const int64_t step = rank <= kAlone ? 1 : kBlock;
          for (int64_t p = first; p < last; p += step)
            work.add(u, &pairs.tokens[p], &pairs.shares[p], std::min(step, last - p));
        }
      }
    });
  });
}

}  // namespace
}  // namespace mhr

STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m) { m.impl("token_routed_adapter", TORCH_BOX(&mhr::token_routed_adapter)); }
