// shrink, expand and outer for bfloat16 with dot products (vdpbf16ps): each lane takes two products, so the sums run
// over pairs of columns (shrink), of ranks (expand) or of tokens (outer). Factors and h are rounded to bfloat16, sums
// are float32.
#pragma once

#include "cpu/token_kernels.h"

namespace mhr {
namespace {
namespace dots16 {

constexpr int kTokens = 4, kRanks = 4;
constexpr int kHalf = 32;               // columns in one vector of bfloat16
constexpr int64_t kPairs = kBlock / 2;  // token pairs in a block

int64_t rank_pairs(int64_t rank) { return (rank + 1) / 2; }
// A packed panel: rows [R][64] for shrink, pairs of ranks [ceil(R / 2)][64][2] for expand.
int64_t packed_panel(int64_t rank, Use use) { return (use == Use::shrink ? rank : 2 * rank_pairs(rank)) * kPanel / 2; }
const bfloat16* as_bf16(const float* packed) { return reinterpret_cast<const bfloat16*>(packed); }

MHR_INLINE __m512bh load_bf16(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
MHR_INLINE __m512bh splat_pair(uint32_t pair) { return (__m512bh)_mm512_set1_epi32(int(pair)); }
// low and high of 16 pairs side by side: [low0, high0, low1, high1, ...]
MHR_INLINE __m512i interleave(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}
// 16 lanes, or as many as there are numbers left.
MHR_INLINE __mmask16 first_lanes(int64_t n) { return n < 16 ? __mmask16((1u << n) - 1) : __mmask16(0xffff); }
MHR_INLINE __m256i round_lanes(__mmask16 mask, const float* from) {
  return (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from));
}

void pack(const float* panel, int64_t rank, Use use, float* packed) {
  bfloat16* to = reinterpret_cast<bfloat16*>(packed);
  if (use == Use::shrink) {
    for (int64_t i = 0; i < rank * kPanel; i += 16) store(to + i, load(panel + i));
    return;
  }
  for (int64_t r = 0; r < rank; r += 2, panel += 2 * kPanel, to += 2 * kPanel)
    for (int64_t c = 0; c < kPanel; c += 16) {
      const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(panel + c));
      const __m256i high =
          r + 1 < rank ? (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(panel + kPanel + c)) : _mm256_setzero_si256();
      _mm512_storeu_si512(to + 2 * c, interleave(low, high));
    }
}

// ---- shrink: pairs of columns
template <int N, int R>
MHR_INLINE void shrink_tile(Tile<const bfloat16, N> x, const bfloat16* m, int64_t rank, int64_t panels, float* h,
                            bool add, Reader& ahead) {
  __m512 acc[N][R] = {};
  for (int64_t at = 0; at < panels * kPanel; at += kPanel, m += rank * kPanel) {
    ahead.step();
#pragma GCC unroll 2
    for (int k = 0; k < kPanel; k += kHalf) {
      __m512bh a[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) a[r] = load_bf16(m + r * kPanel + k);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) {
        const __m512bh v = load_bf16(x.row[n] + at + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) acc[n][r] = _mm512_dpbf16_ps(acc[n][r], v, a[r]);
      }
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; n++) store_sums<R, float>((const vec<float>*)acc[n], h + n * rank, add);
}

template <int N>
MHR_INLINE void shrink_tokens(Tile<const bfloat16, N> x, const bfloat16* m, int64_t rank, int64_t panels, float* h,
                              bool add, Reader& ahead) {
  int64_t r = 0;
  for (; r + kRanks <= rank; r += kRanks) shrink_tile<N, kRanks>(x, m + r * kPanel, rank, panels, h + r, add, ahead);
  for (; r < rank; r++) shrink_tile<N, 1>(x, m + r * kPanel, rank, panels, h + r, add, ahead);
}

template <class Tokens>
void shrink_panels(Tokens x, int64_t n, const bfloat16* m, int64_t rank, int64_t panels, float* h, bool add,
                   Ahead wanted) {
  Reader ahead(wanted, token_tiles(n) * groups(rank, kRanks) * panels);
  int64_t i = 0;
  for (; i + kTokens <= n; i += kTokens) shrink_tokens<kTokens>({x, i}, m, rank, panels, h + i * rank, add, ahead);
  if (i + 2 <= n) {
    shrink_tokens<2>({x, i}, m, rank, panels, h + i * rank, add, ahead);
    i += 2;
  }
  if (i < n) shrink_tokens<1>({x, i}, m, rank, panels, h + i * rank, add, ahead);
}

template <class Tokens>
void shrink_of(Tokens x, int64_t n, const float* packed, int64_t rank, int64_t columns, float* h, Ahead ahead) {
  const bfloat16* rows = as_bf16(packed);
  const int64_t full = columns / kPanel, width = columns % kPanel;
  shrink_panels(x, n, rows, rank, full, h, false, ahead);
  if (!width) return;
  bfloat16 tail[kBlock * kPanel];
  pad_tail(x.from(full * kPanel), n, width, tail);
  shrink_panels(Sequence<const bfloat16>{tail, kPanel}, n, rows + full * rank * kPanel, rank, 1, h, true, kNothing);
}
void shrink(const bfloat16* x, int64_t n, const float* packed, int64_t rank, int64_t columns, float* h, Ahead ahead) {
  shrink_of(Sequence<const bfloat16>{x, columns}, n, packed, rank, columns, h, ahead);
}
void shrink_list(const bfloat16* const* x, int64_t n, Placed<float> packed, int64_t rank, int64_t columns, float* h,
                 Ahead ahead) {
  shrink_of(List<const bfloat16>{x, 0}, n, packed.first, rank, columns, h, ahead);
}

// ---- expand: pairs of ranks
template <int N>
MHR_INLINE void expand_tokens(Tile<bfloat16, N> y, const bfloat16* m, int64_t pairs, int64_t panels, const uint32_t* h,
                              bool overwrite, Reader& ahead) {
  for (int64_t at = 0; at < panels * kPanel; at += kPanel, m += 2 * pairs * kPanel) {
    ahead.step();
    vec<float> acc[N][4] = {};
    if (!overwrite) {
#pragma GCC unroll 8
      for (int n = 0; n < N; n++)
#pragma GCC unroll 8
        for (int k = 0; k < 4; k++) acc[n][k] = load(y.row[n] + at + 16 * k);
    }
    for (int64_t r = 0; r < pairs; r++) {
      __m512bh b[4];
#pragma GCC unroll 8
      for (int k = 0; k < 4; k++) b[k] = load_bf16(m + 2 * (r * kPanel + 16 * k));
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) {
        const __m512bh v = splat_pair(h[n * pairs + r]);
#pragma GCC unroll 8
        for (int k = 0; k < 4; k++) acc[n][k] = (vec<float>)_mm512_dpbf16_ps((__m512)acc[n][k], v, b[k]);
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; n++)
#pragma GCC unroll 8
      for (int k = 0; k < 4; k += 2)
        _mm512_storeu_si512(y.row[n] + at + 16 * k,
                            (__m512i)_mm512_cvtne2ps_pbh((__m512)acc[n][k + 1], (__m512)acc[n][k]));
  }
}

template <class Tokens>
void expand_panels(Tokens y, int64_t n, const bfloat16* m, int64_t pairs, int64_t panels, const uint32_t* h,
                   bool overwrite, Ahead wanted) {
  Reader ahead(wanted, token_tiles(n) * panels);
  int64_t i = 0;
  for (; i + kTokens <= n; i += kTokens)
    expand_tokens<kTokens>({y, i}, m, pairs, panels, h + i * pairs, overwrite, ahead);
  if (i + 2 <= n) {
    expand_tokens<2>({y, i}, m, pairs, panels, h + i * pairs, overwrite, ahead);
    i += 2;
  }
  if (i < n) expand_tokens<1>({y, i}, m, pairs, panels, h + i * pairs, overwrite, ahead);
}

template <class Tokens>
void expand_of(Tokens y, int64_t n, const float* packed, int64_t rank, int64_t columns, const float* h, float* scratch,
               bool overwrite, Ahead ahead) {
  const int64_t pairs = rank_pairs(rank), full = columns / kPanel, width = columns % kPanel;
  uint32_t* paired = reinterpret_cast<uint32_t*>(scratch);
  for (int64_t i = 0; i < n; i++)
    for (int64_t r = 0; r < rank; r += 16)  // an odd last one beside zero
      _mm256_mask_storeu_epi32(paired + i * pairs + r / 2, __mmask8(first_lanes(pairs - r / 2)),
                               round_lanes(first_lanes(rank - r), h + i * rank + r));
  const bfloat16* m = as_bf16(packed);
  expand_panels(y, n, m, pairs, full, paired, overwrite, ahead);
  if (!width) return;
  bfloat16 tail[kBlock * kPanel];
  const Tokens last = y.from(full * kPanel);
  pad_tail(last, n, width, tail);
  expand_panels(Sequence<bfloat16>{tail, kPanel}, n, m + full * 2 * pairs * kPanel, pairs, 1, paired, overwrite,
                kNothing);
  for (int64_t i = 0; i < n; i++) std::memcpy(last(i), tail + i * kPanel, width * sizeof(bfloat16));
}
void expand(bfloat16* y, int64_t n, const float* packed, int64_t rank, int64_t columns, const float* h, float* scratch,
            bool overwrite, Ahead ahead) {
  expand_of(Sequence<bfloat16>{y, columns}, n, packed, rank, columns, h, scratch, overwrite, ahead);
}
void expand_list(bfloat16* const* y, int64_t n, Placed<float> packed, int64_t rank, int64_t columns, const float* h,
                 float* scratch, Ahead ahead) {
  expand_of(List<bfloat16>{y, 0}, n, packed.first, rank, columns, h, scratch, false, ahead);
}

// ---- outer: pairs of tokens
template <int R>
MHR_INLINE void outer_tile(const __m512i (*x)[4], int64_t pairs, const uint32_t* h, int64_t rank, float* out,
                           bool overwrite, Reader& ahead) {
  __m512 acc[R][4] = {};
  if (!overwrite) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int k = 0; k < 4; k++) acc[r][k] = _mm512_loadu_ps(out + r * kPanel + 16 * k);
  }
  for (int64_t i = 0; i < pairs; i++) {
    ahead.step();
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const __m512bh v = splat_pair(h[i * rank + r]);
#pragma GCC unroll 8
      for (int k = 0; k < 4; k++) acc[r][k] = _mm512_dpbf16_ps(acc[r][k], v, (__m512bh)x[i][k]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int k = 0; k < 4; k++) _mm512_storeu_ps(out + r * kPanel + 16 * k, acc[r][k]);
}

void outer_panels(const bfloat16* x, int64_t ldx, int64_t n, const uint32_t* h, int64_t rank, int64_t panels,
                  float* out, bool overwrite, Ahead wanted) {
  alignas(64) static const uint16_t kOrder[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                  8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kOrder), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int64_t pairs = (n + 1) / 2;
  Reader ahead(wanted, panels * pairs * (1 + groups(rank, kRanks)));
  __m512i paired[kPairs][4];
  for (int64_t p = 0; p < panels; p++, x += kPanel, out += rank * kPanel) {
    for (int64_t i = 0; i < pairs; i++) {
      ahead.step();
#pragma GCC unroll 2
      for (int k = 0; k < 2; k++) {
        const bfloat16* at = x + 2 * i * ldx + k * kHalf;
        const __m512i a = _mm512_loadu_si512(at);
        const __m512i b = 2 * i + 1 < n ? _mm512_loadu_si512(at + ldx) : _mm512_setzero_si512();
        paired[i][2 * k] = _mm512_permutex2var_epi16(a, low, b);
        paired[i][2 * k + 1] = _mm512_permutex2var_epi16(a, high, b);
      }
    }
    int64_t r = 0;
    for (; r + kRanks <= rank; r += kRanks)
      outer_tile<kRanks>(paired, pairs, h + r, rank, out + r * kPanel, overwrite, ahead);
    for (; r < rank; r++) outer_tile<1>(paired, pairs, h + r, rank, out + r * kPanel, overwrite, ahead);
  }
}

void outer(const bfloat16* x, int64_t n, const float* h, int64_t rank, int64_t columns, float* scratch, float* panels,
           bool overwrite, Ahead ahead) {
  const int64_t full = columns / kPanel, width = columns % kPanel;
  uint32_t* paired = reinterpret_cast<uint32_t*>(scratch);
  for (int64_t i = 0; i < n; i += 2)
    for (int64_t r = 0; r < rank; r += 16) {
      const float* row = h + i * rank + r;
      const __mmask16 mask = first_lanes(rank - r);
      const __m256i low = round_lanes(mask, row);
      const __m256i high = i + 1 < n ? round_lanes(mask, row + rank) : _mm256_setzero_si256();
      _mm512_mask_storeu_epi32(paired + i / 2 * rank + r, mask, interleave(low, high));
    }
  outer_panels(x, columns, n, paired, rank, full, panels, overwrite, ahead);
  if (!width) return;
  bfloat16 tail[kBlock * kPanel];
  pad_tail(Sequence<const bfloat16>{x + full * kPanel, columns}, n, width, tail);
  outer_panels(tail, kPanel, n, paired, rank, 1, panels + full * rank * kPanel, overwrite, kNothing);
}

constexpr TokenKernels<bfloat16> table() {
  return {&packed_panel,       &pack,  &shrink, &expand, &shrink_list, &expand_list, &outer, &gelu,
          &inverse_deviations, &choose};
}

}  // namespace dots16
}  // namespace
}  // namespace mhr
