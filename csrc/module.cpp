// The Python side of the extension: what it was built with. The ops themselves register with torch's dispatcher.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "checks.h"
#include "cpu/simd.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  using namespace pybind11::literals;
  return pybind11::dict("torch"_a = MHR_TORCH_VERSION, "torch_minimum"_a = MHR_TORCH_MINIMUM, "compiler"_a = compiler(),
                        "simd"_a = mhr::simd_level(), "simd_levels"_a = mhr::simd_levels(),
                        "threads"_a = torch::stable::get_num_threads(), "cuda_archs"_a = MHR_CUDA_ARCHS);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &build_info, "Torch and compiler of the build, CUDA architectures, SIMD levels, threads.");
}
