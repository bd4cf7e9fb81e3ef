// Runs launches of the CUDA kernels under the emulator:  driver REQUEST RESPONSE
//
// REQUEST is a sequence of calls: schedule seed, shift of the tensors, name, then that call's numbers (8 bytes each)
// and buffers (size, bytes; size -1 is a null pointer). RESPONSE holds for each call 0 and its output buffers, or 1 and
// the fault's text. Buffers are heap blocks of their exact size, outputs and scratch start as NaN: AddressSanitizer
// sees every step outside, the comparison every element that was not written.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "cuda/mix.h"
#include "cuda/route.h"
#include "cuda/routed_adapter.h"
#include "cuda/weighted_average.h"
#include "emulation/runtime.h"

namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;
struct Unmap {
  size_t bytes;
  void operator()(void* p) const { munmap(p, bytes); }
};

Block allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes ? bytes : 1) != 0) std::abort();
  std::memset(p, 0xff, bytes);
  return Block(p);
}

template <class T>
T read(std::ifstream& in) {
  T v;
  in.read(reinterpret_cast<char*>(&v), sizeof v);
  return v;
}
template <class T>
void write(std::ofstream& out, T v) {
  out.write(reinterpret_cast<const char*>(&v), sizeof v);
}

class Call {
 public:
  // Tensors begin `shift` bytes past a multiple of 256.
  Call(std::ifstream& in, int64_t shift) : in_(in), shift_(size_t(shift)) {}
  int64_t integer() { return read<int64_t>(in_); }
  double real() { return read<double>(in_); }
  // So many tokens come before those that the request holds: tensors that are told how long a token's row is begin with
  // as much memory that nobody touches.
  void leave_out(int64_t tokens) { left_out_ = tokens; }
  template <class T = void>
  T* input(int64_t row_bytes = 0) {
    const int64_t bytes = integer();
    if (bytes < 0) return nullptr;
    char* p = place(size_t(bytes), row_bytes);
    in_.read(p, bytes);
    return reinterpret_cast<T*>(p - left_out_ * row_bytes);
  }
  template <class T = void>
  T* updated(int64_t row_bytes = 0) {  // an input that is also an output
    const auto at = in_.tellg();
    const int64_t bytes = integer();
    in_.seekg(at);
    T* p = input<T>(row_bytes);
    if (p) outputs_.push_back({reinterpret_cast<char*>(p) + left_out_ * row_bytes, size_t(bytes)});
    return p;
  }
  template <class T = void>
  T* output(int64_t row_bytes = 0) {  // its size comes from the request
    const int64_t bytes = integer();
    if (bytes < 0) return nullptr;
    char* p = place(size_t(bytes), row_bytes);
    outputs_.push_back({p, size_t(bytes)});
    return reinterpret_cast<T*>(p - left_out_ * row_bytes);
  }
  void* scratch(size_t bytes) {
    if (left_out_) return reserve(bytes);
    blocks_.push_back(allocate(bytes));
    return blocks_.back().get();
  }
  void write_outputs(std::ofstream& out) const {
    for (auto& o : outputs_) {
      write(out, int64_t(o.bytes));
      out.write(static_cast<const char*>(o.data), std::streamsize(o.bytes));
    }
  }

 private:
  struct Output {
    const void* data;
    size_t bytes;
  };
  char* place(size_t bytes, int64_t row_bytes) {
    if (left_out_ && row_bytes) {
      const size_t before = size_t(left_out_ * row_bytes);
      return static_cast<char*>(reserve(before + bytes)) + before;
    }
    blocks_.push_back(allocate(shift_ + bytes));
    return static_cast<char*>(blocks_.back().get()) + shift_;
  }
  // Addresses without memory behind them until they are written.
  void* reserve(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    reserved_.emplace_back(p, Unmap{bytes});
    return p;
  }

  std::ifstream& in_;
  const size_t shift_;
  int64_t left_out_ = 0;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<void, Unmap>> reserved_;
  std::vector<Output> outputs_;
};

using Launch = const char* (*)(Call&);

int64_t size_of(mhr::cuda::Dtype dtype) { return dtype == mhr::cuda::Dtype::kFp32 ? 4 : 2; }

// A tensor, and at which of its bytes it begins.
const void* given(Call& c, int64_t row_bytes) {
  const char* const p = c.input<char>(row_bytes);
  const int64_t begin = c.integer();
  return p ? p + begin : nullptr;
}

const char* routed_adapter_forward(Call& c) {
  mhr::cuda::RoutedAdapterForward p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  c.leave_out(c.integer());
  p.routing.n_segments = c.integer();
  p.routing.blocks_at_once = int(c.integer());
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
  p.x = c.input(p.in_features * size_of(p.dtype));
  p.a = c.input();
  p.a_stride = c.integer();
  p.b = c.input();
  p.bias_a = c.input();
  p.bias_b = c.input();
  p.y = c.updated(p.out_features * size_of(p.dtype));
  p.writes_y = c.integer();
  p.base = c.input();
  p.given = given(c, p.out_features * size_of(p.dtype));
  p.z = c.output<float>(p.rank * 4);
  return launch_routed_adapter_forward(p, c.scratch(workspace_bytes(p)), nullptr);
}

const char* routed_adapter_backward_dy(Call& c) {
  mhr::cuda::RoutedAdapterBackwardDy p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  c.leave_out(c.integer());
  p.routing.n_segments = c.integer();
  p.routing.blocks_at_once = int(c.integer());
  p.n_rows_b = c.integer();
  p.out_features = c.integer();
  p.rank = c.integer();
  p.activation = mhr::cuda::Activation(c.integer());
  p.scale = float(c.real());
  p.routing.offsets = c.input<int64_t>();
  p.rows_b = c.input<int64_t>();
  p.dy = c.input(p.out_features * size_of(p.dtype));
  p.b = c.input();
  p.z = c.input<float>(p.rank * 4);
  p.dz = c.output<float>(p.rank * 4);
  p.db = c.output<float>();
  p.dbias_b = c.output<float>();
  return launch_routed_adapter_backward_dy(p, c.scratch(workspace_bytes(p)), nullptr);
}

const char* routed_adapter_backward_x(Call& c) {
  mhr::cuda::RoutedAdapterBackwardX p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  c.leave_out(c.integer());
  p.routing.n_segments = c.integer();
  p.routing.blocks_at_once = int(c.integer());
  p.n_rows_a = c.integer();
  p.in_features = c.integer();
  p.rank = c.integer();
  p.accumulate = c.integer();
  p.routing.offsets = c.input<int64_t>();
  p.rows_a = c.input<int64_t>();
  p.x = c.input(p.in_features * size_of(p.dtype));
  p.a = c.input();
  p.a_stride = c.integer();
  p.dz = c.input<float>(p.rank * 4);
  p.dx = c.updated(p.in_features * size_of(p.dtype));
  p.given = given(c, p.in_features * size_of(p.dtype));
  p.da = c.output<float>();
  p.dbias_a = c.output<float>();
  return launch_routed_adapter_backward_x(p, c.scratch(workspace_bytes(p)), nullptr);
}

// Launches of layers that read the same x, as routed_linears makes them.
const char* routed_linears_forward(Call& c) {
  mhr::cuda::RoutedAdapterForward p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  p.routing.n_segments = c.integer();
  p.routing.blocks_at_once = int(c.integer());
  p.n_rows_a = c.integer();
  p.n_rows_b = c.integer();
  p.in_features = c.integer();
  p.z_rank = c.integer();
  p.scale = float(c.real());
  p.writes_y = c.integer();
  p.routing.offsets = c.input<int64_t>();
  p.rows_a = c.input<int64_t>();
  p.rows_b = c.input<int64_t>();
  p.x = c.input();
  p.a = c.input();
  p.a_stride = c.integer();
  p.z = c.output<float>();
  std::vector<mhr::cuda::RoutedAdapterForward> layers(size_t(c.integer()));
  size_t bytes = 0;
  for (auto& layer : layers) {
    p.rank = c.integer();
    p.out_features = c.integer();
    p.b = c.input();
    p.y = c.updated();
    p.base = c.input();
    layer = p;
    bytes = std::max(bytes, workspace_bytes(p));
    p.z_first += p.rank;
    p.shrinks = false;
  }
  void* const workspace = c.scratch(bytes);
  for (auto& layer : layers)
    if (const char* error = launch_routed_adapter_forward(layer, workspace, nullptr)) return error;
  return nullptr;
}

const char* routed_linears_backward_dy(Call& c) {
  mhr::cuda::RoutedAdapterBackwardDy p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.factors_are_float = c.integer();
  p.routing.n_tokens = c.integer();
  p.routing.n_segments = c.integer();
  p.routing.blocks_at_once = int(c.integer());
  p.n_rows_b = c.integer();
  p.z_stride = c.integer();
  p.scale = float(c.real());
  p.routing.offsets = c.input<int64_t>();
  p.rows_b = c.input<int64_t>();
  p.z = c.input<float>();
  p.dz = c.output<float>();
  for (int64_t left = c.integer(); left > 0; --left) {
    p.rank = c.integer();
    p.out_features = c.integer();
    p.dy = c.input();
    p.b = c.input();
    p.db = c.output<float>();
    if (const char* error = launch_routed_adapter_backward_dy(p, c.scratch(workspace_bytes(p)), nullptr)) return error;
    p.z += p.rank;
    p.dz += p.rank;
  }
  return nullptr;
}

std::vector<mhr::cuda::MixItem> mix_items(Call& c, bool backward) {
  std::vector<mhr::cuda::MixItem> items(size_t(c.integer()));
  for (auto& i : items) {
    i.heads = c.integer();
    i.skills = c.integer();
    i.p = c.integer();
    i.q = c.integer();
    i.rows = c.integer();
    i.joins_rows = c.integer();
    i.bank_dtype = mhr::cuda::Dtype(c.integer());
    i.mixed_dtype = mhr::cuda::Dtype(c.integer());
    i.bank = c.input();
    i.weights = c.input<float>();
    i.stride = c.integer();
    if (backward) {
      i.mixed_grad = c.input();
      i.bank_grad = c.output();
      i.weights_grad = c.output<float>();
    } else {
      if (i.stride) i.zeros = int16_t(i.stride - i.q);
      i.mixed = c.output();
    }
  }
  return items;
}

const char* mix(Call& c) {
  const auto items = mix_items(c, false);
  return mhr::cuda::launch_mix(items.data(), items.size(), nullptr);
}

const char* mix_backward(Call& c) {
  const auto items = mix_items(c, true);
  void* const workspace = c.scratch(mhr::cuda::mix_backward_workspace_bytes(items.data(), items.size()));
  return mhr::cuda::launch_mix_backward(items.data(), items.size(), workspace, nullptr);
}

mhr::cuda::Route route_of(Call& c) {
  mhr::cuda::Route p{};
  p.n_tasks = c.integer();
  p.heads = c.integer();
  p.skills = c.integer();
  p.rows = c.integer();
  p.temperature = float(c.real());
  p.logits = c.input<float>();
  p.tasks = c.input<int64_t>();
  p.noise = c.input<float>();
  return p;
}

const char* route(Call& c) {
  mhr::cuda::Route p = route_of(c);
  p.out = c.output<float>();
  return launch_route(&p, 1, nullptr);
}

const char* route_backward(Call& c) {
  mhr::cuda::Route p = route_of(c);
  p.dw = c.input<float>();
  p.out = c.output<float>();
  return launch_route_backward(&p, 1, nullptr);
}

const char* weighted_average(Call& c) {
  mhr::cuda::WeightedAverage p{};
  p.dtype = mhr::cuda::Dtype(c.integer());
  p.size = c.integer();
  p.count = c.integer();
  std::vector<const void*> tensors;
  std::vector<double> weights;
  for (int64_t k = 0; k < p.count; ++k) {
    weights.push_back(c.real());
    tensors.push_back(c.input());
  }
  p.tensors = tensors.data();
  p.weights = weights.data();
  p.out = c.output();
  return launch_weighted_average(p, c.scratch(workspace_bytes(p)), nullptr);
}

constexpr struct {
  const char* name;
  Launch launch;
} kLaunches[] = {
    {"routed_adapter_forward", routed_adapter_forward},
    {"routed_adapter_backward_dy", routed_adapter_backward_dy},
    {"routed_adapter_backward_x", routed_adapter_backward_x},
    {"routed_linears_forward", routed_linears_forward},
    {"routed_linears_backward_dy", routed_linears_backward_dy},
    {"mix", mix},
    {"mix_backward", mix_backward},
    {"route", route},
    {"route_backward", route_backward},
    {"weighted_average", weighted_average},
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
    mhr::emulation::set_schedule(unsigned(read<int64_t>(in)));
    Call call(in, read<int64_t>(in));
    std::string name(size_t(read<int64_t>(in)), ' ');
    in.read(name.data(), std::streamsize(name.size()));
    const std::string error = run(call, name);
    write(out, int64_t(error.empty() ? 0 : 1));
    if (!error.empty()) {
      write(out, int64_t(error.size()));
      out.write(error.data(), std::streamsize(error.size()));
      break;  // the fault may have come before the call's arguments were read
    }
    call.write_outputs(out);
  }
  return 0;
}
