// The kernels' tables, one per instruction set, and the choice among them at run time.
#pragma once

#include <vector>

#include "cpu/types.h"

namespace mhr {

// What a factor is laid out for: x M^T or h M.
enum class Use { shrink, expand };

// Memory that is wanted soon. The kernels ask for it while they compute, a few lines at a time: what a pass reads next
// arrives under cover of what it does now, in an order that memory likes.
struct Ahead {
  const char* begin;
  int64_t lines;
};

// A factor M [R, D] of which rank r of panel p lies at first + p * step + r * row, and the last panel, where it is not
// full, at `last`, padded. Kernels that pack read it all at `first`.
template <class C>
struct Placed {
  const C* first;
  int64_t row, step;
  const C* last;
};

// Products of up to kBlock tokens with one mixed factor M [R, D], activations of type T.
template <class T>
struct TokenKernels {
  using C = acc_t<T>;
  // Elements of type C in a packed panel, and packing one; null where the kernels read plain panels.
  int64_t (*packed_panel)(int64_t rank, Use use);
  void (*pack)(const C* panel, int64_t rank, Use use, C* packed);
  // h[n, R] = x M^T
  void (*shrink)(const T* x, int64_t n, const C* m, int64_t rank, int64_t columns, C* h, Ahead ahead);
  // y[n, D] = h M, added to what is there unless overwrite; scratch of expand_scratch elements
  void (*expand)(T* y, int64_t n, const C* m, int64_t rank, int64_t columns, const C* h, C* scratch, bool overwrite,
                 Ahead ahead);
  // the same for n tokens of which each is given by the place of its row
  void (*shrink_list)(const T* const* x, int64_t n, Placed<C> m, int64_t rank, int64_t columns, C* h, Ahead ahead);
  void (*expand_list)(T* const* y, int64_t n, Placed<C> m, int64_t rank, int64_t columns, const C* h, C* scratch,
                      Ahead ahead);
  // panels = h^T x, added to what is there unless overwrite
  void (*outer)(const T* x, int64_t n, const C* h, int64_t rank, int64_t columns, C* scratch, C* panels, bool overwrite,
                Ahead ahead);
  // value[i] = gelu(z[i]), slope[i] = gelu'(z[i]) unless null
  void (*gelu)(const C* z, int64_t n, C* value, C* slope);
  // inverse[i] = 1 / sqrt(var(x[i]) + 1e-5)
  void (*inverse_deviations)(const C* x, int64_t n, int64_t columns, C* inverse);
  // Scores |dots[i, s]|, or dots[i, s] * inverse[i] unless null; chosen[i, j], the k highest of S, the first of equal
  // ones first, and shares[i, j], the softmax of score / temperature over these: no numbers where some score is none.
  // Scratch of choice_scratch elements.
  void (*choose)(const C* dots, const C* inverse, int64_t n, int64_t count, int64_t k, C temperature, C* scratch,
                 int64_t* chosen, C* shares);
};

static constexpr int64_t token_scratch(int64_t rank) { return kBlock * (rank + 1); }
static constexpr int64_t choice_scratch(int64_t count, int64_t k) { return 16 * (count + k); }

// `rows` runs of `length` elements, `row_stride` apart within a skill and `skill_stride` apart between skills.
struct BankRun {
  int64_t skills, skill_stride, rows, row_stride, length;
};
// The matching runs on the mixed side, one set for each of `count` routing rows.
struct MixedRun {
  int64_t count, stride, row_stride, weight_stride;
};

// Sums over skills, banks of type T.
template <class T>
struct BankKernels {
  using C = acc_t<T>;
  // mixed[u] = sum_s w[u, s] bank[s]
  void (*combine)(const T* bank, BankRun from, const C* w, C* mixed, MixedRun to);
  // bank[s] = sum_u w[u, s] mixed[u]
  void (*distribute)(T* bank, BankRun to, const C* w, const C* mixed, MixedRun from);
  // dots[u, s] += <mixed[u], bank[s]>
  void (*dots)(const T* bank, BankRun a, const C* mixed, MixedRun b, C* dots);
  // panel[r][c] = run[c][r], and back: between a run [width][rank] and columns of a panel
  void (*spread)(const C* run, int64_t width, int64_t rank, C* panel);
  void (*gather)(const C* panel, int64_t width, int64_t rank, C* run);
  void (*widen)(const T* from, int64_t n, C* to);
  void (*narrow)(const C* from, int64_t n, T* to);
  // out[i] = sum_k w[k] sources[k][i]
  void (*average)(const T* const* sources, const C* w, int64_t count, int64_t n, T* out);
};

struct Kernels {
  TokenKernels<double> token_f64;
  TokenKernels<float> token_f32;
  TokenKernels<bfloat16> token_bf16;
  TokenKernels<float16> token_f16;
  BankKernels<double> bank_f64;
  BankKernels<float> bank_f32;
  BankKernels<bfloat16> bank_bf16;
  BankKernels<float16> bank_f16;
};

extern const Kernels portable_kernels;
#ifdef MHR_X86
extern const Kernels avx2_kernels, avx512_kernels;
#endif

// The levels that the machine has, the best first, and the one in use, chosen once: what MHR_SIMD=avx512|avx2|portable
// names, where the machine has it, otherwise the best.
std::vector<const char*> simd_levels();
const char* simd_level();
const Kernels& kernels();

template <class T>
const TokenKernels<T>& token_kernels();
template <class T>
const BankKernels<T>& bank_kernels();

}  // namespace mhr
