// Autograd nodes of the hot path in C++: the same as those of mhr/ops in Python (_RoutedLinear and its like), at a
// fraction of the cost of a call. They are written as torch's own are: torch::autograd::Function would demangle its
// name and copy its arguments again and again, at 20 us a step.
//
// libtorch's stable ABI has no autograd, so this file alone, with its headers in autograd/, is compiled against ATen
// and is a library of its own, bound to the torch it was built with. The ops it calls go through the dispatcher: any
// device, native or not. Saved tensors are unpacked before autograd is left out: under gradient checkpointing that runs
// the forward pass again.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "autograd/mix.h"
#include "autograd/route.h"
#include "autograd/routed_bottleneck.h"
#include "autograd/routed_linear.h"
#include "autograd/routed_linears.h"

namespace mhr {
namespace {

// Registers a CPU kernel, unless there is one (an emulated or a stubbed GPU's) already.
template <class Function>
void serve_the_cpu(const char* name, Function* function) {
  static torch::Library library(torch::Library::IMPL, "mhr", c10::DispatchKey::CPU, __FILE__, __LINE__);
  const auto known = c10::Dispatcher::singleton().findOp({name, ""});
  if (!known || !known->hasKernelForDispatchKey(c10::DispatchKey::CPU))
    library.impl(name, torch::CppFunction(function));
}

}  // namespace
}  // namespace mhr

PYBIND11_MODULE(_autograd, m) {
  const pybind11::call_guard<pybind11::gil_scoped_release> without_gil;
  m.def("routed_linear", &mhr::routed_linear, without_gil);
  m.def("routed_bottleneck", &mhr::routed_bottleneck, without_gil);
  m.def("route", &mhr::route, without_gil);
  m.def("mix", [](std::optional<at::ScalarType> out_dtype, std::vector<int64_t> head_dims, std::vector<int64_t> rows,
                  std::vector<int64_t> runs, const pybind11::args& inputs) {
    const auto tensors = inputs.cast<std::vector<at::Tensor>>();
    const pybind11::gil_scoped_release without;
    return mhr::mix(out_dtype, std::move(head_dims), std::move(rows), std::move(runs), tensors);
  });
  m.def("routed_linears",
        [](const at::Tensor& x, const at::Tensor& a, const at::Tensor& rows, const std::optional<at::Tensor>& rows_b,
           const std::optional<at::Tensor>& offsets, double scale, bool first, const pybind11::args& more) {
          const auto tensors = more.cast<std::vector<std::optional<at::Tensor>>>();
          const pybind11::gil_scoped_release without;
          return mhr::routed_linears(x, a, rows, rows_b, offsets, scale, first, tensors);
        });
  mhr::serve_the_cpu("mhr::routed_bottleneck_forward", &mhr::bottleneck_of_parts);
  mhr::serve_the_cpu("mhr::routed_bottleneck_backward", &mhr::bottleneck_grads_of_parts);
  mhr::serve_the_cpu("mhr::mix_beside", &mhr::mix_beside_of_parts);
  mhr::serve_the_cpu("mhr::routed_linears_forward", &mhr::linears_of_parts);
  mhr::serve_the_cpu("mhr::routed_linears_backward", &mhr::linears_grads_of_parts);
}
