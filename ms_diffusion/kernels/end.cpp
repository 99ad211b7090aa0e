// The end of a step, for a thread that waits for it asleep: MindSpore's own waiting threads spin.
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "core.h"

namespace {

std::mutex mutex;
std::condition_variable changed;
int64_t ended = 0;

}  // namespace

// (token, what must be computed before) -> token
KERNEL(ms_diffusion_end) {
  *floats(data[2]) = *floats(data[0]);
  {
    std::lock_guard<std::mutex> lock(mutex);
    ++ended;
  }
  changed.notify_all();
  return 0;
}

extern "C" {
// How many steps have ended in this process.
__attribute__((visibility("default"))) int64_t ms_diffusion_ended() {
  std::lock_guard<std::mutex> lock(mutex);
  return ended;
}
// Sleeps until that number has reached `count`, but not longer than `seconds`; was it reached?
__attribute__((visibility("default"))) int ms_diffusion_wait(int64_t count, double seconds) {
  std::unique_lock<std::mutex> lock(mutex);
  return changed.wait_for(lock, std::chrono::duration<double>(seconds), [count] { return ended >= count; });
}
}
