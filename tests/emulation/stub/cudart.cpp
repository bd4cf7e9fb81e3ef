// A CUDA runtime without a GPU: what nvcc's host code asks of libcudart, and what the registrations ask of a libtorch
// with CUDA, recorded and refused as the driver would refuse it. Linked into one library with the real objects of nvcc,
// whose kernels it never runs (-Bsymbolic: these definitions come before torch's of the same names).
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t kStaticLimit = 48 * 1024;  // without cudaFuncAttributeMaxDynamicSharedMemorySize
constexpr size_t kOptInLimit = 163 * 1024;  // with it, on sm_80, the least of the architectures
constexpr unsigned kMostThreads = 1024, kMostBlocksX = 0x7fffffff, kMostBlocksYZ = 65535;

struct Kernel {
  std::string name;
  int raised = -1;  // cudaFuncAttributeMaxDynamicSharedMemorySize
};
struct Record {
  const Kernel* kernel;  // null: a copy or a fill
  dim3 grid, block;
  size_t bytes;  // of dynamic shared memory; of a copy or a fill
  const void* stream;
  int device, raised;
};

std::unordered_map<const void*, Kernel>& kernels() {
  static std::unordered_map<const void*, Kernel> known;
  return known;
}
std::vector<Record> records;
dim3 next_grid, next_block;
size_t next_shared;
cudaStream_t next_stream;
cudaError_t last = cudaSuccess;
void* current_stream = nullptr;
int guarded = -2;  // the device a guard makes current; -2 outside of all guards

cudaError_t refuse(cudaError_t error) { return last = error; }

cudaError_t launch(const Kernel* kernel, dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > kMostBlocksX || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ ||
      !threads || threads > kMostThreads)
    return refuse(cudaErrorInvalidConfiguration);
  if (shared > kStaticLimit && int64_t(shared) > kernel->raised) return refuse(cudaErrorInvalidValue);
  records.push_back({kernel, grid, block, shared, stream, guarded, kernel->raised});
  return cudaSuccess;
}

cudaError_t move(size_t bytes, cudaStream_t stream) {
  records.push_back({nullptr, {}, {}, bytes, stream, guarded, -1});
  return cudaSuccess;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* device_name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernels()[host].name = device_name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  next_grid = grid;
  next_block = block;
  next_shared = shared;
  next_stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = next_grid;
  *block = next_block;
  *shared = next_shared;
  *static_cast<cudaStream_t*>(stream) = next_stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(&kernels().at(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
  return launch(reinterpret_cast<const Kernel*>(kernel), grid, block, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void**, size_t shared, cudaStream_t stream) {
  return launch(&kernels().at(host), grid, block, shared, stream);
}
cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || size_t(value) > kOptInLimit) return refuse(cudaErrorInvalidValue);
  kernels().at(host).raised = value;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last; }
cudaError_t cudaGetDevice(int* device) {
  *device = std::max(guarded, 0);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
         : error == cudaErrorInvalidValue       ? "invalid argument"
                                                : "unknown error";
}
cudaError_t cudaMemsetAsync(void*, int, size_t bytes, cudaStream_t stream) { return move(bytes, stream); }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return move(bytes, stream);
}

// libtorch's, as the registrations see them.
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = current_stream;
  return 0;
}
int32_t aoti_torch_create_device_guard(int32_t device, void** guard) {
  *guard = new int(guarded);
  guarded = device;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void* guard) {
  const auto* before = static_cast<int*>(guard);
  guarded = *before;
  delete before;
  return 0;
}

// For Python: the stream that torch calls current, and everything since the last call, a line each.
void stub_begin(void* stream) {
  current_stream = stream;
  records.clear();
}
int64_t stub_count() { return int64_t(records.size()); }
const char* stub_records() {
  static std::string text;
  std::ostringstream out;
  for (const Record& r : records)
    out << (r.kernel ? r.kernel->name : "-") << ' ' << r.grid.x << ' ' << r.grid.y << ' ' << r.grid.z << ' '
        << r.block.x * r.block.y * r.block.z << ' ' << r.bytes << ' ' << r.raised << ' '
        << reinterpret_cast<uintptr_t>(r.stream) << ' ' << r.device << '\n';
  text = out.str();
  return text.c_str();
}

}  // extern "C"
