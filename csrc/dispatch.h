// From a tensor's dtype to a C++ type, and typed pointers.
#pragma once

#include "checks.h"
#include "cpu/types.h"
#include "empty.h"

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
      MHR_CHECK(false, "mhr::", op, ": float64, float32, bfloat16 or float16 expected, got ",
                torch::headeronly::toString(dtype));
  }
}

// The same for what stands beside sums of type C: float64 only with itself.
template <class C, class F>
void dispatch_beside(const char* op, ScalarType dtype, F&& f) {
  if constexpr (sizeof(C) == 8) {
    MHR_CHECK(dtype == ScalarType::Double, "mhr::", op, ": float64 expected beside float64, got ",
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
        MHR_CHECK(false, "mhr::", op, ": float32, bfloat16 or float16 expected, got ",
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

}  // namespace mhr
