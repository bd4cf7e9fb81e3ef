// Argument checks shared by the CPU and CUDA registrations, worded like the references in mhr/ops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

// std::runtime_error, which torch makes a RuntimeError, with the parts of its message one behind the other. Torch's own
// macro puts the place in the source before them, on the machine that compiled it.
#define MHR_CHECK(cond, ...)                            \
  if (!(cond)) {                                        \
    throw std::runtime_error(mhr::joined(__VA_ARGS__)); \
  }

namespace mhr {

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); i++) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + (t.dim() == 1 ? ",)" : ")");
}

inline void check_shape(const char* op, const char* name, const Tensor& t, const char* axes,
                        std::initializer_list<int64_t> sizes) {
  bool fits = t.dim() == int64_t(sizes.size());
  int64_t i = 0;
  for (int64_t size : sizes) fits = fits && t.size(i++) == size;
  if (fits) return;
  std::string wanted = "(";
  for (int64_t size : sizes) wanted += (wanted.size() > 1 ? ", " : "") + std::to_string(size);
  wanted += sizes.size() == 1 ? ",)" : ")";
  MHR_CHECK(false, "mhr::", op, ": ", name, " must have shape (", axes, ") = ", wanted, ", got ", shape_of(t));
}

inline void check_dim(const char* op, const char* name, const Tensor& t, const char* axes, int64_t dim) {
  MHR_CHECK(t.dim() == dim, "mhr::", op, ": ", name, " must have shape (", axes, "), got ", shape_of(t));
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
  MHR_CHECK(t.is_contiguous(), "mhr::", op, ": ", name, " must be contiguous");
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType dtype) {
  MHR_CHECK(t.scalar_type() == dtype, "mhr::", op, ": ", name, " must be ", torch::headeronly::toString(dtype),
            ", got ", torch::headeronly::toString(t.scalar_type()));
}

// The dtype in which sums are held: float64 for float64, float32 for every other float.
inline ScalarType accumulator_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace mhr
