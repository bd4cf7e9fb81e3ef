// Scratch memory that is not cleared first, as std::vector's is.
#pragma once

#include <cstdint>
#include <memory>

namespace mhr {

template <class C>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) : memory_(size ? new C[size] : nullptr) {}
  C* data() const { return memory_.get(); }

 private:
  std::unique_ptr<C[]> memory_;
};

}  // namespace mhr
