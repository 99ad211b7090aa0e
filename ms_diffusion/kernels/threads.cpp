// One pool of threads for all kernels of the process, and the memory that each thread keeps.
//
// OpenMP would give every thread of MindSpore that calls a kernel a team of its own, and they would fight for the cores.
// Here a loop that finds the pool busy runs on the thread that called it.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "core.h"

namespace {

using Clock = std::chrono::steady_clock;

class Pool {
 public:
  void run(int64_t shares, Share share, void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock() || thread_count() == 1) {
      for (int64_t i = 0; i < shares; ++i) share(context, i);
      return;
    }
    for (; workers_ < thread_count() - 1; ++workers_) std::thread([this] { work(); }).detach();
    share_ = share;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(loop << 32 | static_cast<uint64_t>(shares) << 16);
    if (sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take_shares();
    for (int spins = 0; finished_.load(std::memory_order_acquire) < shares; ++spins)
      if (spins < 1000) pause(); else std::this_thread::yield();
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // A ticket is the number of the loop, its number of shares and the next share: a share that was drawn belongs to a loop
  // that cannot end before it is finished, so what `share_` and `context_` hold is its own.
  void take_shares() {
    uint64_t ticket = ticket_.load();
    while (static_cast<int64_t>(ticket & 0xffff) < static_cast<int64_t>(ticket >> 16 & 0xffff)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      share_(context_, ticket & 0xffff);
      finished_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load();
    }
  }

  // Waits actively for a moment, because the next loop is mostly near, and then asleep.
  void work() {
    pthread_setname_np(pthread_self(), "ms_diffusion");
    uint64_t seen = 0;
    for (;;) {
      const auto end = Clock::now() + std::chrono::microseconds(SPIN);
      while (ticket_.load() >> 32 == seen && Clock::now() < end)
        for (int i = 0; i < 16; ++i) pause();
      if (ticket_.load() >> 32 == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleeping_;
        wake_.wait(lock, [&] { return ticket_.load() >> 32 != seen; });
        --sleeping_;
      }
      seen = ticket_.load() >> 32;
      take_shares();
    }
  }

  static constexpr int SPIN = 50;  // microseconds
  std::mutex owner_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> finished_{0};
  std::atomic<int> sleeping_{0};
  Share share_ = nullptr;
  void* context_ = nullptr;
  int workers_ = 0;
};

Pool& pool() {
  static Pool* const only = new Pool;  // never destroyed: its threads outlive main()
  return *only;
}

std::atomic<int> threads{0};

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};
struct Memory {
  std::unique_ptr<float, Free> data;
  int64_t count = 0;
};
thread_local Memory memory[SLOTS];

}  // namespace

int thread_count() {
  const int chosen = threads.load(std::memory_order_relaxed);
  if (chosen > 0) return chosen;
  static const int cores = std::max(1u, std::thread::hardware_concurrency());
  return cores;
}

void run_shares(int64_t shares, Share share, void* context) { pool().run(shares, share, context); }

float* scratch(Slot slot, int64_t count) {
  Memory& piece = memory[slot];
  int64_t bytes = round_up(count * sizeof(float), 4096);
#ifdef __SANITIZE_ADDRESS__  // a new piece each time, exactly as long as asked for: whoever leaves it is found out
  piece.count = -1;
  bytes = count * sizeof(float);
#endif
  if (piece.count < count) {
    void* fresh = nullptr;
    if (posix_memalign(&fresh, 64, bytes) != 0) throw std::bad_alloc();
    piece.data.reset(static_cast<float*>(fresh));
    piece.count = count;
  }
  return piece.data.get();
}

extern "C" {
__attribute__((visibility("default"))) int ms_diffusion_abi() { return 1; }
// 0 means one for each core.
__attribute__((visibility("default"))) void ms_diffusion_set_threads(int count) { threads = count; }
}
