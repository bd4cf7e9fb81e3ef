// The CUDA built-ins and the instructions of csrc/cuda/device.cuh, for g++: the same names, done by fibers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "numbers.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (mhr::emulation::current->thread_index)
#define blockIdx (mhr::emulation::current->block_index)
#define blockDim (mhr::emulation::current->block_dim)
#define gridDim (mhr::emulation::current->grid_dim)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads(mhr::emulation::Site site = mhr::emulation::Site::here()) {
  mhr::emulation::block_barrier(site);
}

namespace mhr::emulation {

template <class T>
T exchange(const char* name, uint32_t mask, T value, int source, Site site) {
  struct In {
    T value;
    int source;
  } in{value, source};
  static_assert(sizeof(In) <= kLaneBytes);
  const auto combine = [](Lanes given, Lanes taken, uint32_t lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(lanes >> lane & 1u)) continue;
      In mine, theirs;
      std::memcpy(&mine, given[lane], sizeof mine);
      // A source outside the mask is undefined on the device: hand out bits that no test can take for a value.
      std::memset(taken[lane], 0xff, sizeof(T));
      if (!(lanes >> (mine.source & 31) & 1u)) continue;
      std::memcpy(&theirs, given[mine.source & 31], sizeof theirs);
      std::memcpy(taken[lane], &theirs.value, sizeof(T));
    }
  };
  T result;
  warp_collective({name, mask, false, combine, site}, &in, sizeof in, &result, sizeof result);
  return result;
}

}  // namespace mhr::emulation

inline void __syncwarp(uint32_t mask = ~0u, mhr::emulation::Site site = mhr::emulation::Site::here()) {
  mhr::emulation::warp_collective({"__syncwarp", mask, true, [](auto, auto, uint32_t) {}, site}, nullptr, 0, nullptr,
                                  0);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, mhr::emulation::Site site = mhr::emulation::Site::here()) {
  return mhr::emulation::exchange("__shfl_sync", mask, value, source, site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, mhr::emulation::Site site = mhr::emulation::Site::here()) {
  return mhr::emulation::exchange("__shfl_xor_sync", mask, value, mhr::emulation::current->lane ^ bits, site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int delta, mhr::emulation::Site site = mhr::emulation::Site::here()) {
  const int lane = mhr::emulation::current->lane;
  return mhr::emulation::exchange("__shfl_up_sync", mask, value, lane >= delta ? lane - delta : lane, site);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, mhr::emulation::Site site = mhr::emulation::Site::here()) {
  const auto combine = [](mhr::emulation::Lanes given, mhr::emulation::Lanes taken, uint32_t lanes) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane)
      if ((lanes >> lane & 1u) && given[lane][0]) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane) std::memcpy(taken[lane], &votes, 4);
  };
  const uint8_t vote = predicate != 0;
  uint32_t votes;
  mhr::emulation::warp_collective({"__ballot_sync", mask, false, combine, site}, &vote, 1, &votes, 4);
  return votes;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(unsigned(bits)) : 32; }

namespace mhr::cuda {

template <class T>
uint32_t pack2(float low, float high) {
  return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}
template <class T>
float2 unpack2(uint32_t pair) {
  return {to_float(T{uint16_t(pair)}), to_float(T{uint16_t(pair >> 16)})};
}
inline uint32_t round_tf32(float v) {  // to nearest, ties away from zero: what cvt.rna does
  const uint32_t bits = float_bits(v);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
}

inline void cp_async_16(void* to, const void* from, int bytes, emulation::Site site = emulation::Site::here()) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 != 0)
    emulation::fail(site, "cp_async_16: an address is not a multiple of 16");
  if (bytes < 0 || bytes > 16) emulation::fail(site, "cp_async_16: %d bytes", bytes);
  uint4 probe;  // an address out of bounds shows here, where the copy was asked for
  std::memcpy(&probe, from, size_t(bytes));
  asm volatile("" ::"m"(probe));
  *static_cast<uint4*>(to) = {~0u, ~0u, ~0u, ~0u};  // the copy may land at once ...
  emulation::queue_copy({to, from, bytes}, site);   // ... or as late as the wait: readers in between see NaN
}
inline void cp_async_commit(emulation::Site site = emulation::Site::here()) { emulation::close_copy_group(site); }
template <int PENDING>
void cp_async_wait() {
  emulation::Copy copy;
  while (emulation::next_landed_copy(PENDING, &copy)) {
    uint4 value{0, 0, 0, 0};
    std::memcpy(&value, copy.from, size_t(copy.bytes));
    *static_cast<uint4*>(copy.to) = value;
  }
}

}  // namespace mhr::cuda

namespace mhr::emulation {

// Lane l gives the address of row l % 8 of 8x8 matrix l / 8 and receives, of every matrix, elements (l / 4, 2 (l % 4))
// and (l / 4, 2 (l % 4) + 1); transposed, elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
template <int MATRICES, bool TRANSPOSED>
void load_matrices(uint32_t (&r)[MATRICES], const void* row, Site site) {
  uint4 mine{};
  if (current->lane < 8 * MATRICES) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(site, "ldmatrix: a row address is not a multiple of 16");
    mine = *static_cast<const uint4*>(row);  // read in this lane's name, so that a fault or a race names it
  }
  const auto combine = [](Lanes given, Lanes taken, uint32_t) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < MATRICES; ++matrix)
        for (int e = 0; e < 2; ++e) {
          const int across = lane % 4 * 2 + e, down = lane / 4;
          const int from_row = TRANSPOSED ? across : down, from_column = TRANSPOSED ? down : across;
          std::memcpy(taken[lane] + matrix * 4 + e * 2, given[matrix * 8 + from_row] + from_column * 2, 2);
        }
  };
  warp_collective({"ldmatrix", ~0u, false, combine, site}, &mine, 16, r, MATRICES * 4);
}

template <class T>
struct Halves {
  static float get(uint32_t reg, int e) { return to_float(T{uint16_t(reg >> 16 * e)}); }
};
struct Tf32 {
  static float get(uint32_t reg, int) { return cuda::bits_float(reg & ~0x1fffu); }  // the tensor cores ignore 13 bits
};

// Of a lane, for the product of a warp; `c` first.
struct Fragments {
  float c[4];
  uint32_t a[4], b[2];
};
// c (16x8) += a (16xK) b (Kx8) of all lanes (mma.cpp), on fragments laid out as mma.sync defines them; E holds a
// register's elements.
template <int K, class E>
void multiply_lanes(Lanes given, Lanes taken, uint32_t mask);

template <int K, class E>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments in;
  std::memcpy(in.c, c, sizeof in.c);
  std::memcpy(in.a, a, sizeof in.a);
  std::memcpy(in.b, b, sizeof in.b);
  warp_collective({"mma", ~0u, false, multiply_lanes<K, E>, site}, &in, sizeof in, c, sizeof c);
}

}  // namespace mhr::emulation

namespace mhr::cuda {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::here()) {
  emulation::load_matrices<4, false>(r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, emulation::Site site = emulation::Site::here()) {
  emulation::load_matrices<4, true>(r, row, site);
}
template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 emulation::Site site = emulation::Site::here()) {
  emulation::multiply<16, emulation::Halves<T>>(c, a, b, site);
}
inline void mma_16x8x8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            emulation::Site site = emulation::Site::here()) {
  emulation::multiply<8, emulation::Tf32>(c, a, b, site);
}

struct SharedCarver {
  template <class T>
  T* take(int n) {
    return static_cast<T*>(emulation::shared_array(size_t(n) * sizeof(T)));
  }
};

inline void add_shared(int* to, int v) { __atomic_fetch_add(to, v, __ATOMIC_RELAXED); }

using Stream = void*;
// The emulator has no default limit to raise and reports faults by exceptions: a launch that returns was right.
#define MHR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
  ((void)(stream), mhr::emulation::launch(grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }), \
   static_cast<const char*>(nullptr))

inline const char* clear_async(void* to, size_t bytes, Stream) {
  std::memset(to, 0, bytes);
  return nullptr;
}
inline const char* read_back(void* to, const void* from, size_t bytes, Stream) {
  std::memcpy(to, from, bytes);
  return nullptr;
}
inline const char* copy_async(void* to, const void* from, size_t bytes, Stream) {
  std::memcpy(to, from, bytes);
  return nullptr;
}

}  // namespace mhr::cuda
