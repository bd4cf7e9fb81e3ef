// What a launch needs on the CPU: blocks one after another, one fiber per CUDA thread, seeded schedules, barriers,
// warp collectives, guarded shared arrays, and queues of asynchronous copies. A kernel's fault becomes a
// std::runtime_error thrown by launch(), with block, thread and source line.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace mhr::emulation {

struct Site {  // a line of a kernel, for reports
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Thread {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  int linear, lane, warp;
};
extern Thread* current;  // the running CUDA thread

// 0: the lowest warp runs as far ahead as barriers allow; 1: the highest; others: random from that seed.
void set_schedule(unsigned seed);

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

void block_barrier(Site site);
// The n-th call in a block returns the same array to every thread: NaN-filled, with guard zones around it.
void* shared_array(size_t bytes);

// Each lane of `mask` hands in bytes; when the last one arrives `combine` runs once on all of them; each takes its
// part.
constexpr int kLaneBytes = 64;
using Lanes = uint8_t (*)[kLaneBytes];
using Combine = void (*)(Lanes in, Lanes out, uint32_t mask);
struct Collective {
  const char* name;
  uint32_t mask;
  bool orders_memory;
  Combine combine;
  Site site;
};
void warp_collective(const Collective& op, const void* in, int in_bytes, void* out, int out_bytes);

// Asynchronous copies of the running thread, landing no earlier than the wait that covers them.
struct Copy {
  void* to;
  const void* from;
  int bytes;
};
void queue_copy(Copy copy, Site site);
void close_copy_group(Site site);
bool next_landed_copy(int pending_groups, Copy* copy);

}  // namespace mhr::emulation
