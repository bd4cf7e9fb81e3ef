// Mixed factors as the token kernels read them: one for each routing row, written panel by panel.
#pragma once

#include <algorithm>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace mhr {

// Routing rows whose panels are made together, from one reading of the bank.
constexpr int64_t kRowGroup = 8;

template <class T>
class Factors {
 public:
  using C = acc_t<T>;

  Factors(int64_t rows, int64_t rank, int64_t columns, Use use)
      : rows(rows), rank(rank), columns(columns), use_(use), panel_(rank * kPanel) {
    const auto packed_panel = token_kernels<T>().packed_panel;
    packs_ = packed_panel != nullptr;
    if (packs_) panel_ = packed_panel(rank, use);
    stride_ = panels_of(columns) * panel_ + kPanel;  // apart from a power of two, or rows would share cache sets
    memory_ = Buffer<C>(rows * stride_);
  }

  const C* row(int64_t u) const { return memory_.data() + u * stride_; }
  Placed<C> placed(int64_t u) const { return {row(u), kPanel, panel_, row(u) + columns / kPanel * panel_}; }

  // write(panel, first, count, scratch, to, stride) fills one plain panel [rank][kPanel], its padding too, of each of
  // the rows first .. first + count, `stride` apart, with `scratch` of the same size at hand. `work` is the cost of a
  // panel.
  template <class Write>
  void fill(int64_t work, const Write& write) {
    fill(0, rows, work, write, true);
  }
  // The same for rows row .. row + n alone, without scratch where it is not wanted.
  template <class Write>
  void fill(int64_t row, int64_t n, int64_t work, const Write& write, bool wants_scratch) {
    const int64_t group = std::min(kRowGroup, n), plain = rank * kPanel;
    parallel(panels_of(columns), work, [&](int64_t begin, int64_t end) {
      const Buffer<C> scratch(wants_scratch ? group * plain : 0), panels(packs_ ? group * plain : 0);
      for (int64_t p = begin; p < end; p++)
        for (int64_t first = row; first < row + n; first += kRowGroup) {
          const int64_t count = std::min(kRowGroup, row + n - first);
          C* to = memory_.data() + first * stride_ + p * panel_;
          if (!packs_) {
            write(p, first, count, scratch.data(), to, stride_);
            continue;
          }
          write(p, first, count, scratch.data(), panels.data(), plain);
          for (int64_t u = 0; u < count; u++)
            token_kernels<T>().pack(panels.data() + u * plain, rank, use_, to + u * stride_);
        }
    });
  }

  const int64_t rows, rank, columns;

 private:
  Use use_;
  bool packs_;
  int64_t panel_, stride_;
  Buffer<C> memory_;
};

}  // namespace mhr
