// A stack of its own for every emulated CUDA thread, known to AddressSanitizer and ThreadSanitizer.
#pragma once
#include <cstddef>

namespace mhr::emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 << 10;
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void start(void* stack, void (*entry)());  // the next enter() calls entry on the given stack
  void enter();                              // scheduler -> fiber; returns when the fiber leaves
  void leave(bool for_good);                 // fiber -> scheduler
  void forget();                             // the next start() takes another identity for the race detector

  static void begin();        // called on the fiber's stack before anything else
  static void end_of_launch();  // identities may be taken again: what comes is ordered behind all that was

 private:
  void* stack_pointer_ = nullptr;
  void* stack_ = nullptr;
  void* race_identity_ = nullptr;
  void* address_state_ = nullptr;
};

// Orders memory between fibers for the race detector, as the barrier that owns `token` does on the device.
void happens_before(void* token);
void happens_after(void* token);
// Marks bytes as not accessible / accessible for AddressSanitizer.
void forbid(void* p, size_t bytes);
void permit(void* p, size_t bytes);

}  // namespace mhr::emulation
