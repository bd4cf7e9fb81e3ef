// Element types and the panel layout of mixed factors. Everything is static or a template on unnamed types' sake: the
// translation units of the instruction sets must share no inline symbol, or the linker may pick one that the machine
// lacks.
#pragma once

#include <cstdint>

namespace mhr {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulator<T>::type;

// A mixed factor of rank R and D columns is stored as [ceil(D / kPanel)][R][kPanel], its last panel padded with zeros:
// unit stride whatever the loop order, and no two ranks a power of two apart.
static constexpr int64_t kPanel = 64;
// Tokens that one kernel call takes at most: a block of activations that stays in the second-level cache.
static constexpr int64_t kBlock = 32;

static constexpr int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
static constexpr int64_t panel_size(int64_t rank, int64_t columns) { return panels_of(columns) * rank * kPanel; }

// From one row's factor to the next one's: the extra panel row keeps equal places of all rows out of the same cache
// sets.
static constexpr int64_t factor_stride(int64_t rank, int64_t columns) { return panel_size(rank, columns) + kPanel; }

}  // namespace mhr
