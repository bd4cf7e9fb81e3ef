// What the registrations share: the device and stream of a call, scratch, and types. Compiled by g++ against libtorch's
// stable ABI. MHR_EMULATED registers the same code for the CPU, with the emulator's kernels behind it; MHR_STUB does so
// too, with a runtime that records launches.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "checks.h"
#include "cuda/dtype.h"
#include "empty.h"

// Part of libtorch's C interface, absent from builds without CUDA: weak, so that the library loads there too.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

#if defined(MHR_EMULATED) || defined(MHR_STUB)
#define MHR_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mhr, CPU, m)
#else
#define MHR_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(mhr, CUDA, m)
#endif

namespace mhr::cuda {

// Makes a tensor's device the current one while it lives, and knows that device's current stream.
class CallOn {
 public:
#if defined(MHR_EMULATED)
  CallOn(const char*, const Tensor&) {}
#else
  CallOn(const char* op, const Tensor& t) : guard_(t.get_device_index()) {
    MHR_CHECK(
        aoti_torch_get_current_cuda_stream && aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_) == 0,
        "mhr::", op, ": this torch has no CUDA stream for device ", t.get_device_index());
  }
#endif
  void* stream() const { return stream_; }

 private:
#if !defined(MHR_EMULATED)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

// Where the pieces of a call's scratch lie, each aligned for any access.
class Plan {
 public:
  size_t add(size_t bytes) {
    const size_t at = bytes_;
    bytes_ += (bytes + 255) & ~size_t(255);
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// Scratch that torch's allocator takes back, in stream order, when this goes.
class Scratch {
 public:
  Scratch(const Tensor& like, size_t bytes)
      : tensor_(empty(like, {int64_t((bytes + 3) / 4)}, ScalarType::Float)),
        data_(static_cast<char*>(tensor_.mutable_data_ptr())) {}
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }
  void* data() const { return data_; }

 private:
  Tensor tensor_;
  char* data_;
};

inline Dtype dtype_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16:
      return Dtype::kBf16;
    case ScalarType::Half:
      return Dtype::kFp16;
    case ScalarType::Float:
      return Dtype::kFp32;
    case ScalarType::Double:
      return Dtype::kFp64;
    default:
      MHR_CHECK(false, "mhr::", op, ": float32, bfloat16 or float16 expected, got ",
                torch::headeronly::toString(t.scalar_type()));
  }
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& first) {
  MHR_CHECK(t.device() == first.device(), "mhr::", op, ": ", name, " must be on the device of the other tensors");
}

inline void check_launch(const char* op, const char* error) {
  MHR_CHECK(!error, "mhr::", op, ": ", error ? error : "");
}

}  // namespace mhr::cuda
