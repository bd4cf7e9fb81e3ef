// The one place where kernels touch the target: PTX under nvcc, the emulator's functions of the same names under g++.
// Everything here has a bitwise conformance test against its emulation (tests/cuda/conformance.cu).
#pragma once

namespace mhr::cuda {

// Bytes of shared memory that every GPU since sm_80 gives a block, those of desktops too.
constexpr int kMostShared = 99 * 1024;

}  // namespace mhr::cuda

#if !defined(__CUDACC__)
#include "emulation/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace mhr::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(fp16 v) { return __half2float(v); }
__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ double to_float(double v) { return v; }
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}

// Two 16-bit values in one register, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ __forceinline__ uint32_t pack2<fp16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack2<bf16>(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack2<fp16>(uint32_t pair) {
  return {to_float(__ushort_as_half(uint16_t(pair))), to_float(__ushort_as_half(uint16_t(pair >> 16)))};
}
__device__ __forceinline__ uint32_t round_tf32(float v) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v));
  return r;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// Copies `bytes` of 16 and zero-fills the rest. Past the first wait that covers it and a barrier, all threads see it.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c (16x8, float32) += a (16xK, rows) b (Kx8, columns).
#define MHR_MMA(shape, types, c, a, b)                          \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." types  \
               ".f32 {%0,%1,%2,%3}, "                           \
               "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"         \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MHR_MMA("m16n8k16", "bf16.bf16", c, a, b);
}
template <>
__device__ __forceinline__ void mma_16x8x16<fp16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MHR_MMA("m16n8k16", "f16.f16", c, a, b);
}
__device__ __forceinline__ void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MHR_MMA("m16n8k8", "tf32.tf32", c, a, b);
}
#undef MHR_MMA

// The only way to shared memory: hands out arrays one after another, 16-byte aligned.
extern __shared__ __align__(16) unsigned char mhr_shared_memory[];
struct SharedCarver {
  int used = 0;
  template <class T>
  __device__ __forceinline__ T* take(int n) {
    T* p = reinterpret_cast<T*>(mhr_shared_memory + used);
    used += (n * int(sizeof(T)) + 15) & ~15;
    return p;
  }
};

// Adds to an integer in shared memory that other threads add to as well: the sum is the same in any order.
__device__ __forceinline__ void add_shared(int* to, int v) { atomicAdd(to, v); }

using Stream = cudaStream_t;

// What a call of the runtime said, which is taken from it: the next one who asks for the last error gets his own.
inline const char* error_text(cudaError_t e) {
  if (e == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(e);
}

// Whether one kernel has its allowance, on each device.
struct SharedAllowance {
  static constexpr int kDevices = 64;
  std::atomic<bool> given[kDevices];
};

// Dynamic shared memory beyond 48 KB must be asked for, and a split of the SM's memory that holds as many blocks as the
// registers do is worth asking for: both once for a kernel and device, and for as much as any launch may take, so that
// it does not matter which of two threads that come here at once is the last.
inline const char* allow_shared(const void* kernel, int bytes, SharedAllowance& allowance) {
  if (bytes == 0) return nullptr;
  int device = 0;
  if (const char* error = error_text(cudaGetDevice(&device))) return error;
  const bool known = device < SharedAllowance::kDevices;
  if (known && allowance.given[device].load(std::memory_order_relaxed)) return nullptr;
  const auto set = [&](cudaFuncAttribute what, int value) {
    return error_text(cudaFuncSetAttribute(kernel, what, value));
  };
  if (const char* error = set(cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared)) return error;
  if (const char* error = set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared))
    return error;
  if (known) allowance.given[device].store(true, std::memory_order_relaxed);
  return nullptr;
}

// cudaLaunchKernel's own answer, not cudaGetLastError's, which may be an older error of somebody else.
template <class... P>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, P... arguments) {
  void* pointers[] = {&arguments...};
  return error_text(
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes, stream));
}

// The only way to start a kernel; evaluates to nullptr or the error's text. Where it asks for shared memory, the line
// must always start the same kernel.
#define MHR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                        \
  [&]() -> const char* {                                                                                  \
    static mhr::cuda::SharedAllowance allowance;                                                          \
    if (const char* error =                                                                               \
            mhr::cuda::allow_shared(reinterpret_cast<const void*>(kernel), int(shared_bytes), allowance)) \
      return error;                                                                                       \
    return mhr::cuda::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__);                     \
  }()

inline const char* clear_async(void* to, size_t bytes, Stream stream) {
  return error_text(cudaMemsetAsync(to, 0, bytes, stream));
}
// Waits for the stream: for checks while debugging.
inline const char* read_back(void* to, const void* from, size_t bytes, Stream stream) {
  const char* const error = error_text(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
  return error ? error : error_text(cudaStreamSynchronize(stream));
}
inline const char* copy_async(void* to, const void* from, size_t bytes, Stream stream) {
  return error_text(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

}  // namespace mhr::cuda
#endif
