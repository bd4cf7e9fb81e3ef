// Built WITHOUT -fsanitize=thread even in the race build: only kernels are to be watched. MHR_RACE_CHECK names that
// build.
#include "fiber.h"

#include <vector>

#if !defined(__x86_64__)
#error "the CUDA emulator switches stacks with x86-64 instructions"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MHR_RACE_CHECK)
#include <sanitizer/tsan_interface.h>
#endif

namespace mhr::emulation {
namespace {

void* scheduler_pointer = nullptr;
[[maybe_unused]] void* scheduler_race_identity = nullptr;
[[maybe_unused]] void* scheduler_address_state = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_stack_bytes = 0;

#if defined(MHR_RACE_CHECK)
// Identities of the race detector, which are dear to make.
std::vector<void*> idle, taken;

void* take_race_identity() {
  if (idle.empty()) idle.push_back(__tsan_create_fiber(0));
  taken.push_back(idle.back());
  idle.pop_back();
  return taken.back();
}
#endif

// Saves the callee-saved registers of the System V ABI on the old stack and takes them from the new one. It jumps where it
// returns to, as processors guess that a return goes back to the caller.
__attribute__((naked, noinline)) void switch_stacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n popq %rcx\n jmp *%rcx\n");
}

}  // namespace

void Fiber::start(void* stack, void (*entry)()) {
  stack_ = stack;
  address_state_ = nullptr;
  permit(stack, kStackBytes);
  auto top = reinterpret_cast<void**>(static_cast<char*>(stack) + kStackBytes);
  *--top = nullptr;  // the ABI wants rsp % 16 == 8 at a function's first instruction
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  stack_pointer_ = top;
#if defined(MHR_RACE_CHECK)
  if (!race_identity_) race_identity_ = take_race_identity();
#endif
}

void Fiber::enter() {
#if defined(MHR_RACE_CHECK)
  scheduler_race_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_identity_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_address_state, stack_, kStackBytes);
#endif
  switch_stacks(&scheduler_pointer, stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_address_state, nullptr, nullptr);
#endif
}

void Fiber::leave([[maybe_unused]] bool for_good) {
#if defined(MHR_RACE_CHECK)
  __tsan_switch_to_fiber(scheduler_race_identity, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &address_state_, scheduler_stack, scheduler_stack_bytes);
#endif
  switch_stacks(&stack_pointer_, scheduler_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(address_state_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fiber::forget() { race_identity_ = nullptr; }

void Fiber::end_of_launch() {
#if defined(MHR_RACE_CHECK)
  idle.insert(idle.end(), taken.begin(), taken.end());
  taken.clear();
#endif
}

void Fiber::begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void happens_before([[maybe_unused]] void* token) {
#if defined(MHR_RACE_CHECK)
  __tsan_release(token);
#endif
}
void happens_after([[maybe_unused]] void* token) {
#if defined(MHR_RACE_CHECK)
  __tsan_acquire(token);
#endif
}
void forbid([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(p, bytes);
#endif
}
void permit([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(p, bytes);
#endif
}

}  // namespace mhr::emulation
