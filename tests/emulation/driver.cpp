// Runs launches of the CUDA kernels under the emulator:  driver REQUEST RESPONSE
//
// REQUEST is a sequence of calls: schedule seed, name, then that call's numbers (8 bytes each) and buffers (size,
// bytes; size -1 is a null pointer). RESPONSE holds for each call 0 and its output buffers, or 1 and the fault's text.
// Buffers are heap blocks of their exact size, outputs and scratch start as NaN: AddressSanitizer sees every step
// outside, the comparison every element that was not written.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "cuda/routed_adapter.h"
#include "emulation/runtime.h"

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;

Block allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes ? bytes : 1) != 0) std::abort();
  std::memset(p, 0xff, bytes);
  return Block(p);
}

class Call {
 public:
  explicit Call(std::ifstream& in) : in_(in) {}
  int64_t integer() {
    int64_t v;
    in_.read(reinterpret_cast<char*>(&v), sizeof v);
    return v;
  }
  double real() {
    double v;
    in_.read(reinterpret_cast<char*>(&v), sizeof v);
    return v;
  }
  template <class T = void>
  T* input() {
    const int64_t bytes = integer();
    if (bytes < 0) return nullptr;
    blocks_.push_back(allocate(size_t(bytes)));
    in_.read(static_cast<char*>(blocks_.back().get()), bytes);
    return static_cast<T*>(blocks_.back().get());
  }
  template <class T = void>
  T* updated() {  // an input that is also an output
    const auto at = in_.tellg();
    const int64_t bytes = integer();
    in_.seekg(at);
    T* p = input<T>();
    if (p) outputs_.push_back({p, size_t(bytes)});
    return p;
  }
  template <class T = void>
  T* output() {  // its size comes from the request
    const int64_t bytes = integer();
    if (bytes < 0) return nullptr;
    T* p = static_cast<T*>(scratch(size_t(bytes)));
    outputs_.push_back({p, size_t(bytes)});
    return p;
  }
  void* scratch(size_t bytes) {
    blocks_.push_back(allocate(bytes));
    return blocks_.back().get();
  }
  void write_outputs(std::ofstream& out) const {
    for (auto& o : outputs_) {
      const auto bytes = int64_t(o.bytes);
      out.write(reinterpret_cast<const char*>(&bytes), sizeof bytes);
      out.write(static_cast<const char*>(o.data), bytes);
    }
  }

 private:
  struct Output {
    const void* data;
    size_t bytes;
  };
  std::ifstream& in_;
  std::vector<Block> blocks_;
  std::vector<Output> outputs_;
};

using Launch = const char* (*)(Call&);

const char* routed_adapter_forward(Call& c) {
  mhr::cuda::RoutedAdapterForward p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  p.routing.n_segments = c.integer();
  p.n_rows_a = c.integer();
  p.n_rows_b = c.integer();
  p.in_features = c.integer();
  p.out_features = c.integer();
  p.rank = c.integer();
  p.activation = mhr::cuda::Activation(c.integer());
  p.scale = float(c.real());
  p.routing.offsets = c.input<int64_t>();
  p.rows_a = c.input<int64_t>();
  p.rows_b = c.input<int64_t>();
  p.x = c.input();
  p.a = c.input();
  p.b = c.input();
  p.bias_a = c.input();
  p.bias_b = c.input();
  p.y = c.updated();
  p.z = c.output<float>();
  return launch_routed_adapter_forward(p, c.scratch(workspace_bytes(p)), nullptr);
}

const char* routed_adapter_backward_dy(Call& c) {
  mhr::cuda::RoutedAdapterBackwardDy p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  p.routing.n_segments = c.integer();
  p.n_rows_b = c.integer();
  p.out_features = c.integer();
  p.rank = c.integer();
  p.activation = mhr::cuda::Activation(c.integer());
  p.scale = float(c.real());
  p.routing.offsets = c.input<int64_t>();
  p.rows_b = c.input<int64_t>();
  p.dy = c.input();
  p.b = c.input();
  p.z = c.input<float>();
  p.dz = c.output<float>();
  p.db = c.output<float>();
  p.dbias_b = c.output<float>();
  return launch_routed_adapter_backward_dy(p, c.scratch(workspace_bytes(p)), nullptr);
}

const char* routed_adapter_backward_x(Call& c) {
  mhr::cuda::RoutedAdapterBackwardX p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  p.routing.n_segments = c.integer();
  p.n_rows_a = c.integer();
  p.in_features = c.integer();
  p.rank = c.integer();
  p.accumulate = c.integer();
  p.routing.offsets = c.input<int64_t>();
  p.rows_a = c.input<int64_t>();
  p.x = c.input();
  p.a = c.input();
  p.dz = c.input<float>();
  p.dx = c.updated();
  p.da = c.output<float>();
  p.dbias_a = c.output<float>();
  return launch_routed_adapter_backward_x(p, c.scratch(workspace_bytes(p)), nullptr);
}

constexpr struct {
  const char* name;
  Launch launch;
} kLaunches[] = {
    {"routed_adapter_forward", routed_adapter_forward},
    {"routed_adapter_backward_dy", routed_adapter_backward_dy},
    {"routed_adapter_backward_x", routed_adapter_backward_x},
};

std::string run(Call& call, const std::string& name) {
  for (auto& l : kLaunches) {
    if (name != l.name) continue;
    try {
      const char* error = l.launch(call);
      return error ? error : "";
    } catch (const std::exception& fault) {
      return fault.what();
    }
  }
  return "no launch of that name: " + name;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: driver REQUEST RESPONSE\n"), 2;
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  while (in.peek() != EOF) {
    Call call(in);
    mhr::emulation::set_schedule(unsigned(call.integer()));
    std::string name(size_t(call.integer()), ' ');
    in.read(name.data(), std::streamsize(name.size()));
    const std::string error = run(call, name);
    const int64_t status = error.empty() ? 0 : 1, length = int64_t(error.size());
    out.write(reinterpret_cast<const char*>(&status), sizeof status);
    if (status) {
      out.write(reinterpret_cast<const char*>(&length), sizeof length);
      out.write(error.data(), length);
      break;  // the fault may have come before the call's arguments were read
    }
    call.write_outputs(out);
  }
  return 0;
}
