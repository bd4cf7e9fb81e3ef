// Built WITHOUT -fsanitize=thread even in the race build (see fiber.cpp): what the scheduler touches is never watched.
#include "runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace mhr::emulation {

Thread* current = nullptr;

namespace {

constexpr unsigned kCopies = 256, kGroups = 16;
constexpr size_t kGuard = 256, kMaxArrays = 16, kMaxShared = 227 * 1024, kMasksPerWarp = 8;
constexpr uint8_t kNaN = 0xff;  // a NaN in bf16, fp16 and fp32 alike, and an impossible index
// In the race build every block has shared memory of its own, and the first blocks threads of their own, so that
// conflicts between blocks show; new ones and their stacks are dear, hence only for the first ones.
#if defined(MHR_RACE_CHECK)
constexpr bool kRaceCheck = true;
#else
constexpr bool kRaceCheck = false;
#endif
constexpr int kBlocksWithFreshThreads = 3;

// Copies and fills by instructions of their own: the race detector watches calls of memcpy and memset from anywhere.
#if defined(__SANITIZE_ADDRESS__) || defined(MHR_RACE_CHECK)
void copy_unwatched(void* to, const void* from, size_t bytes) {
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
}
void fill_unwatched(void* to, uint8_t value, size_t bytes) {
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
}
#else  // which take less time to begin
void copy_unwatched(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void fill_unwatched(void* to, uint8_t value, size_t bytes) { std::memset(to, value, bytes); }
#endif

class Pages {  // zeroed memory straight from the kernel: no allocator, no false ordering for the race detector
 public:
  explicit Pages(size_t bytes) : bytes_((bytes + 4095) / 4096 * 4096) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(p);
    permit(data_, bytes_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() {
    permit(data_, bytes_);
    munmap(data_, bytes_);
  }
  uint8_t* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_;
  uint8_t* data_;
};

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Worker {
  Thread thread{};
  Fiber fiber;
  State state = State::kReady;
  Site site{"", 0};
  const char* waits_for = "";
  size_t arrays = 0;
  // Group i of the copies ends before copy group_end[i % kGroups]. Fixed arrays: no allocation inside a kernel.
  Copy copies[kCopies];
  unsigned first_copy = 0, end_copy = 0, group_end[kGroups], first_group = 0, end_group = 0;
};

struct Gathering {  // one warp collective in progress
  uint32_t mask = 0, arrived = 0;
  const char* name = nullptr;
  unsigned phase = 0;
  uint8_t* tokens = nullptr;
  uint8_t in[32][kLaneBytes], out[32][kLaneBytes];
};

struct Array {
  uint8_t* data;
  size_t bytes;
};

class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned seed);
  void run();

  void barrier(Site site);
  void collective(const Collective& op, const void* in, int in_bytes, void* out, int out_bytes);
  void* shared_array(size_t bytes);
  [[noreturn]] void stop(std::string message);
  void enter_kernel();
  Worker& running() { return *running_; }

 private:
  void run_block(size_t block);
  void prepare_memory(size_t order);
  void check_guards();
  void make_ready(Worker& w);
  Worker& pick();
  void leave(State state, const char* waits_for, Site site);
  std::string stuck() const;

  const dim3 grid_, block_;
  const size_t n_threads_, n_blocks_, shared_limit_;
  const std::function<void()>& kernel_;
  const unsigned seed_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Pages> stacks_;
  Pages shared_, tokens_;
  uint8_t begin_token_ = 0, end_token_ = 0;
  std::string error_;

  // The block that runs now.
  Worker* running_ = nullptr;
  std::vector<std::vector<Worker*>> ready_;  // per warp
  std::vector<Gathering> gatherings_;
  Gathering* complete_ = nullptr;
  Combine combine_ = nullptr;
  Array arrays_[kMaxArrays];
  size_t n_arrays_ = 0, shared_used_ = 0;
  uint8_t* shared_next_ = nullptr;
  uint8_t* barrier_tokens_ = nullptr;
  uint32_t ready_warps_ = 0;
  int last_warp_ = 0;
  size_t alive_ = 0, at_barrier_ = 0;
  unsigned barrier_phase_ = 0;
  Site barrier_site_{nullptr, 0};
};

Launch* active = nullptr;
unsigned schedule = 0;

size_t arena_bytes(size_t shared_limit) { return shared_limit + kMaxArrays * (kGuard + 16) + kGuard; }

Launch::Launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned seed)
    : grid_(grid),
      block_(block),
      n_threads_(size_t(block.x) * block.y * block.z),
      n_blocks_(size_t(grid.x) * grid.y * grid.z),
      shared_limit_(shared_bytes),
      kernel_(kernel),
      seed_(seed),
      random_(seed),
      stacks_(std::make_unique<Pages>(Fiber::kStackBytes * n_threads_)),
      shared_(arena_bytes(shared_bytes) * (kRaceCheck ? n_blocks_ : 1)),
      tokens_(16 * ((n_threads_ + 31) / 32 * kMasksPerWarp + 1) * n_blocks_) {
  for (size_t t = 0; t < n_threads_; ++t) {
    auto w = std::make_unique<Worker>();
    const auto i = unsigned(t);
    w->thread.thread_index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    w->thread.block_dim = block;
    w->thread.grid_dim = grid;
    w->thread.linear = int(t);
    w->thread.lane = int(t % 32);
    w->thread.warp = int(t / 32);
    workers_.push_back(std::move(w));
  }
  ready_.resize((n_threads_ + 31) / 32);
  for (auto& warp : ready_) warp.reserve(32);
}

void Launch::make_ready(Worker& w) {
  w.state = State::kReady;
  ready_[size_t(w.thread.warp)].push_back(&w);
  ready_warps_ |= 1u << w.thread.warp;
}

Worker& Launch::pick() {
  if (!ready_warps_) throw std::runtime_error(stuck());
  int warp = seed_ == 0 ? __builtin_ctz(ready_warps_) : 31 - __builtin_clz(ready_warps_);
  if (seed_ > 1) {  // mostly stay in one warp: long runs ahead find more than fair turns
    if (ready_warps_ >> last_warp_ & 1u && random_() % 8 != 0) {
      warp = last_warp_;
    } else {
      uint32_t left = ready_warps_;
      for (uint32_t skip = uint32_t(random_()) % uint32_t(__builtin_popcount(left)); skip; --skip) left &= left - 1;
      warp = __builtin_ctz(left);
    }
  }
  last_warp_ = warp;
  auto& lanes = ready_[size_t(warp)];
  if (seed_ == 0) std::swap(lanes.front(), lanes.back());
  if (seed_ > 1) std::swap(lanes[random_() % lanes.size()], lanes.back());
  Worker& w = *lanes.back();
  lanes.pop_back();
  if (lanes.empty()) ready_warps_ &= ~(1u << warp);
  return w;
}

void Launch::leave(State state, const char* waits_for, Site site) {
  Worker& w = *running_;
  w.state = state;
  w.waits_for = waits_for;
  w.site = site;
  w.fiber.leave(state == State::kDone);
}

void Launch::stop(std::string message) {
  const Thread& t = running_->thread;
  const uint3 b = t.block_index;
  error_ = message + " [block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
           " thread " + std::to_string(t.linear) + "]";
  running_->fiber.leave(true);
  __builtin_unreachable();
}

std::string Launch::stuck() const {
  std::string text = "deadlock: some threads of the block, or lanes of the mask, never arrive;";
  int shown = 0;
  for (auto& w : workers_) {
    if (w->state == State::kDone || shown++ >= 4) continue;
    text += " thread " + std::to_string(w->thread.linear) + " waits in " + w->waits_for + " at " + w->site.file + ":" +
            std::to_string(w->site.line) + ";";
  }
  return text;
}

void Launch::barrier(Site site) {
  if (barrier_site_.file && (barrier_site_.line != site.line || std::strcmp(barrier_site_.file, site.file) != 0)) {
    stop(std::string("divergent __syncthreads: ") + site.file + ":" + std::to_string(site.line) +
         ", other threads wait at " + barrier_site_.file + ":" + std::to_string(barrier_site_.line));
  }
  barrier_site_ = site;
  uint8_t* token = barrier_tokens_ + 8 * (barrier_phase_ & 1);
  happens_before(token);
  if (++at_barrier_ == alive_) {
    at_barrier_ = 0;
    barrier_site_ = {nullptr, 0};
    ++barrier_phase_;
    for (auto& w : workers_)
      if (w->state == State::kAtBarrier) make_ready(*w);
    make_ready(*running_);
    leave(State::kReady, "", site);
  } else {
    leave(State::kAtBarrier, "__syncthreads", site);
  }
  happens_after(token);
}

void Launch::collective(const Collective& op, const void* in, int in_bytes, void* out, int out_bytes) {
  Worker& self = *running_;
  const int lane = self.thread.lane;
  const size_t warp = size_t(self.thread.warp), lanes = std::min<size_t>(32, n_threads_ - 32 * warp);
  if (!(op.mask >> lane & 1u)) stop(std::string(op.name) + ": the calling lane is not in its own mask");
  const uint32_t mask = lanes == 32 ? op.mask : op.mask & ((1u << lanes) - 1u);
  Gathering* g = nullptr;
  for (size_t i = warp * kMasksPerWarp; i < (warp + 1) * kMasksPerWarp && !g; ++i) {
    if (gatherings_[i].mask == 0) gatherings_[i].mask = mask;
    if (gatherings_[i].mask == mask) g = &gatherings_[i];
  }
  if (!g) stop("more different masks in one warp than the emulator keeps");
  if (g->arrived && g->name != op.name && std::strcmp(g->name, op.name) != 0) {
    stop(std::string("divergent warp: ") + op.name + " at " + op.site.file + ":" + std::to_string(op.site.line) +
         ", other lanes are in " + g->name);
  }
  g->name = op.name;
  copy_unwatched(g->in[lane], in, size_t(in_bytes));
  g->arrived |= 1u << lane;
  uint8_t* token = g->tokens + 8 * (g->phase & 1);
  if (op.orders_memory) happens_before(token);
  if (g->arrived == mask) {
    complete_ = g;
    combine_ = op.combine;
    g->arrived = 0;
    ++g->phase;
    for (size_t l = 0; l < lanes; ++l)
      if (mask >> l & 1u) make_ready(*workers_[32 * warp + l]);
    leave(State::kReady, "", op.site);
  } else {
    leave(State::kInCollective, op.name, op.site);
  }
  if (op.orders_memory) happens_after(token);
  copy_unwatched(out, g->out[lane], size_t(out_bytes));
}

void* Launch::shared_array(size_t bytes) {
  const size_t index = running_->arrays++;
  if (index < n_arrays_) {
    if (arrays_[index].bytes != bytes) stop("threads disagree on the size of a shared array");
    return arrays_[index].data;
  }
  shared_used_ = (shared_used_ + 15) / 16 * 16 + bytes;
  if (shared_used_ > shared_limit_) {
    stop("the kernel takes " + std::to_string(shared_used_) + " bytes of shared memory, its launch gave " +
         std::to_string(shared_limit_));
  }
  if (n_arrays_ == kMaxArrays) stop("more shared arrays than the emulator keeps");
  uint8_t* data = shared_next_ + kGuard;
  shared_next_ = data + (bytes + 15) / 16 * 16;
  permit(data, bytes);
  arrays_[n_arrays_++] = {data, bytes};
  return data;
}

void Launch::prepare_memory(size_t order) {
  uint8_t* arena = shared_.data() + (kRaceCheck ? order : 0) * arena_bytes(shared_limit_);
  permit(arena, arena_bytes(shared_limit_));
  fill_unwatched(arena, kNaN, arena_bytes(shared_limit_));
  forbid(arena, arena_bytes(shared_limit_));
  shared_next_ = arena;
  n_arrays_ = shared_used_ = 0;
  uint8_t* token = tokens_.data() + 16 * (gatherings_.size() + 1) * order;
  barrier_tokens_ = token;
  for (auto& g : gatherings_) g.tokens = token += 16;
}

void Launch::check_guards() {
  // A block holds its shared memory to the end, whether it takes it or not: too much of it costs blocks on the SM.
  if (shared_limit_ > shared_used_ + 64) {
    throw std::runtime_error("the kernel takes " + std::to_string(shared_used_) +
                             " bytes of shared memory, its launch gave " + std::to_string(shared_limit_));
  }
  for (size_t i = 0; i < n_arrays_; ++i) {
    uint8_t* end = arrays_[i].data + arrays_[i].bytes;
    permit(arrays_[i].data - kGuard, kGuard);
    permit(end, kGuard);
    const auto untouched = [](uint8_t b) { return b == kNaN; };
    const size_t padding = (16 - arrays_[i].bytes % 16) % 16;
    if (!std::all_of(arrays_[i].data - kGuard, arrays_[i].data, untouched) ||
        !std::all_of(end, end + padding, untouched) || !std::all_of(end + padding, end + kGuard, untouched)) {
      throw std::runtime_error("a store went past the end of shared array " + std::to_string(i));
    }
  }
}

void Launch::enter_kernel() {
  happens_after(&begin_token_);
  kernel_();
  happens_before(&end_token_);
  leave(State::kDone, "", {"", 0});
}

void Launch::run_block(size_t block) {
  alive_ = n_threads_;
  at_barrier_ = 0;
  barrier_site_ = {nullptr, 0};
  const auto b = unsigned(block);
  for (auto& warp : ready_) warp.clear();
  ready_warps_ = 0;
  for (auto& w : workers_) {
    w->thread.block_index = {b % grid_.x, b / grid_.x % grid_.y, b / grid_.x / grid_.y};
    w->arrays = 0;
    w->first_copy = w->end_copy = w->first_group = w->end_group = 0;
    w->fiber.start(stacks_->data() + Fiber::kStackBytes * size_t(w->thread.linear), [] {
      Fiber::begin();
      active->enter_kernel();
    });
    make_ready(*w);
  }
  while (alive_) {
    running_ = &pick();
    current = &running_->thread;
    running_->fiber.enter();
    current = nullptr;
    if (!error_.empty()) throw std::runtime_error(error_);
    if (complete_) {  // here, not in a lane: what the lanes handed in is then read by no watched thread
      combine_(complete_->in, complete_->out, complete_->mask);
      complete_ = nullptr;
    }
    if (running_->state == State::kDone && --alive_ && at_barrier_) {
      throw std::runtime_error(std::string("a thread left the kernel while others wait in __syncthreads at ") +
                               barrier_site_.file + ":" + std::to_string(barrier_site_.line));
    }
  }
  check_guards();
}

void Launch::run() {
  gatherings_.resize(ready_.size() * kMasksPerWarp);
  std::vector<size_t> order(n_blocks_);
  for (size_t i = 0; i < n_blocks_; ++i) order[i] = seed_ == 1 ? n_blocks_ - 1 - i : i;
  if (seed_ > 1) std::shuffle(order.begin(), order.end(), random_);
  happens_before(&begin_token_);
  for (size_t i = 0; i < n_blocks_; ++i) {
    for (auto& g : gatherings_) g.mask = g.arrived = 0;
    prepare_memory(i);
    run_block(order[i]);
    if (kRaceCheck && i < kBlocksWithFreshThreads) {
      for (auto& w : workers_) w->fiber.forget();
      stacks_ = std::make_unique<Pages>(Fiber::kStackBytes * n_threads_);  // the old one's history goes with it
    }
  }
  happens_after(&end_token_);
  Fiber::end_of_launch();
}

}  // namespace

void set_schedule(unsigned seed) { schedule = seed; }

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || shared_bytes > kMaxShared) {
    throw std::runtime_error("bad launch: " + std::to_string(threads) + " threads, grid " + std::to_string(grid.x) +
                             "," + std::to_string(grid.y) + "," + std::to_string(grid.z) + ", " +
                             std::to_string(shared_bytes) + " bytes of shared memory");
  }
  Launch run(grid, block, shared_bytes, kernel, schedule);
  active = &run;
  run.run();
}

void fail(Site site, const char* format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof text, format, list);
  va_end(list);
  active->stop(std::string(site.file) + ":" + std::to_string(site.line) + ": " + text);
}

void block_barrier(Site site) { active->barrier(site); }
void* shared_array(size_t bytes) { return active->shared_array(bytes); }
void warp_collective(const Collective& op, const void* in, int in_bytes, void* out, int out_bytes) {
  active->collective(op, in, in_bytes, out, out_bytes);
}

void queue_copy(Copy copy, Site site) {
  Worker& w = active->running();
  if (w.end_copy - w.first_copy == kCopies) fail(site, "more asynchronous copies in flight than the emulator keeps");
  w.copies[w.end_copy++ % kCopies] = copy;
}

void close_copy_group(Site site) {
  Worker& w = active->running();
  if (w.end_group - w.first_group == kGroups) fail(site, "more copy groups in flight than the emulator keeps");
  w.group_end[w.end_group++ % kGroups] = w.end_copy;
}

bool next_landed_copy(int pending_groups, Copy* copy) {
  Worker& w = active->running();
  while (int(w.end_group - w.first_group) > pending_groups) {
    if (w.first_copy != w.group_end[w.first_group % kGroups]) {
      *copy = w.copies[w.first_copy++ % kCopies];
      return true;
    }
    ++w.first_group;
  }
  return false;
}

}  // namespace mhr::emulation
