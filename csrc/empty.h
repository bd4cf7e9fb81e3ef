// Outputs and scratch of a call.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "checks.h"

namespace mhr {

// MHR_POISON=1 (tests): memory that a kernel is to write holds NaN first, so that what it forgets shows.
inline bool poisons() {
  static const char* const wanted = std::getenv("MHR_POISON");
  return wanted && *wanted == '1';
}

// An uninitialised contiguous tensor on the device of `like`. Not through the dispatcher, which costs 2 us each time.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  std::array<int64_t, 4> strides{};
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(1, sizes.begin()[i])) strides[i] = stride;
  int32_t device = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides.data(), code, device,
                                                  like.get_device(), &handle));
  Tensor out(handle);
  if (poisons() && like.is_cpu()) std::memset(out.mutable_data_ptr(), 0xff, out.numel() * out.element_size());
  return out;
}

}  // namespace mhr
