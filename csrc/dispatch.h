// From a tensor's dtype to a C++ type, and typed pointers.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "cpu/types.h"

namespace mhr {

template <class T>
struct type_tag {
  using type = T;
};

// Calls f(type_tag<T>) with the element type of `dtype`.
template <class F>
void dispatch_float(const char* op, ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(type_tag<double>{});
    case ScalarType::Float:
      return f(type_tag<float>{});
    case ScalarType::BFloat16:
      return f(type_tag<bfloat16>{});
    case ScalarType::Half:
      return f(type_tag<float16>{});
    default:
      STD_TORCH_CHECK(false, "mhr::", op, ": float64, float32, bfloat16 or float16 expected, got ",
                      torch::headeronly::toString(dtype));
  }
}

// The same for what stands beside sums of type C: float64 only with itself.
template <class C, class F>
void dispatch_beside(const char* op, ScalarType dtype, F&& f) {
  if constexpr (sizeof(C) == 8) {
    STD_TORCH_CHECK(dtype == ScalarType::Double, "mhr::", op, ": float64 expected beside float64, got ",
                    torch::headeronly::toString(dtype));
    f(type_tag<double>{});
  } else {
    switch (dtype) {
      case ScalarType::Float:
        return f(type_tag<float>{});
      case ScalarType::BFloat16:
        return f(type_tag<bfloat16>{});
      case ScalarType::Half:
        return f(type_tag<float16>{});
      default:
        STD_TORCH_CHECK(false, "mhr::", op, ": float32, bfloat16 or float16 expected, got ",
                        torch::headeronly::toString(dtype));
    }
  }
}

template <class T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_pointer(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

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
