// Plain facts about one call: no Tensor, no framework.
#pragma once

#include <cstdint>

namespace mhr {

// A bank [H, S, P, Q] and the place of its heads' blocks in the mixed factor.
struct BankShape {
  int64_t heads, skills, p, q;
  bool joins_rows;  // true: blocks joined along P into [H*P, Q] (factor A); false: along Q into [P, H*Q] (factor B)

  int64_t rank() const { return joins_rows ? q : p; }
  int64_t columns() const { return heads * (joins_rows ? p : q); }  // of the factor stored rank by rank
  int64_t block() const { return p * q; }
  int64_t mixed_size() const { return heads * p * q; }
};

// N tokens cut into G segments, each with its row of a factor.
struct Segments {
  int64_t tokens, count;
  const int64_t* offsets;  // [G + 1], or null for G equal segments

  int64_t begin(int64_t g) const { return offsets ? offsets[g] : tokens / count * g; }
  int64_t end(int64_t g) const { return offsets ? offsets[g + 1] : tokens / count * (g + 1); }
};

}  // namespace mhr
