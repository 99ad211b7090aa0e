// What every kernel is made of: vectors of the machine's width, a parallel loop, scratch memory, a small matrix product
// and a transposition. Vectors are the compiler's own extension, so the same source serves AVX-512, AVX2, SSE and NEON.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// What the calls of one kernel took since the process began; every kernel has one, which `ms_diffusion_clock` reads.
struct KernelClock {
  explicit KernelClock(const char* name);
  const char* const name;
  std::atomic<int64_t> calls{0}, nanoseconds{0};
  KernelClock* next;
};

// One call, for as long as it lives.
class Timing {
 public:
  explicit Timing(KernelClock& clock) : clock_(clock), began_(std::chrono::steady_clock::now()) {}
  ~Timing() {
    const std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - began_;
    clock_.calls.fetch_add(1, std::memory_order_relaxed);
    clock_.nanoseconds.fetch_add(taken.count(), std::memory_order_relaxed);
  }

 private:
  KernelClock& clock_;
  const std::chrono::steady_clock::time_point began_;
};

// Opens a kernel as MindSpore calls it: `count` arrays in `data`, inputs and then outputs, their ranks and shapes.
// It returns 0, or any other number if it failed.
#define KERNEL_ARGUMENTS                                                                     \
  [[maybe_unused]] int count, [[maybe_unused]] void **data, [[maybe_unused]] int *ranks,     \
      [[maybe_unused]] int64_t **shapes
#define KERNEL(name)                                                                         \
  static int name##_body(KERNEL_ARGUMENTS);                                                  \
  extern "C" __attribute__((visibility("default"))) int name(KERNEL_ARGUMENTS, const char**, void*, void*) { \
    static KernelClock clock(#name);                                                         \
    const Timing timing(clock);                                                              \
    return name##_body(count, data, ranks, shapes);                                          \
  }                                                                                          \
  static int name##_body(KERNEL_ARGUMENTS)

inline float* floats(void* data) { return static_cast<float*>(data); }
inline int64_t size(const int64_t* shape, int rank) {
  int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= shape[i];
  return count;
}

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr int CHANNEL_BLOCK = 8;  // times TILE_VECTORS accumulators fill the registers
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
constexpr int CHANNEL_BLOCK = 4;
#else
constexpr int64_t LANES = 4;
constexpr int CHANNEL_BLOCK = 4;
#endif
constexpr int TILE_VECTORS = 3;
constexpr int64_t TILE = TILE_VECTORS * LANES;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector splat(float value) { return Vector{} + value; }
inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// The first n lanes; the others are zero, and stay unwritten.
inline Vector load_part(const float* from, int64_t n) {
  Vector value = {};
  std::memcpy(&value, from, n * sizeof(float));
  return value;
}
inline void store_part(float* to, Vector value, int64_t n) { std::memcpy(to, &value, n * sizeof(float)); }

inline float sum(Vector value) {
  float total[LANES];
  std::memcpy(total, &value, sizeof total);
  for (int64_t half = LANES / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) total[i] += total[i + half];
  return total[0];
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
inline int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Calls f(vector operations on [i, i + n)) for the whole vectors of [0, count) and once for what is left.
template <class F>
inline void for_vectors(int64_t count, F f) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) f(i, LANES);
  if (i < count) f(i, count - i);
}
inline Vector load_some(const float* from, int64_t n) { return n == LANES ? load(from) : load_part(from, n); }
inline void store_some(float* to, Vector value, int64_t n) {
  if (n == LANES) store(to, value); else store_part(to, value, n);
}

// ---- Threads and memory (threads.cpp) ----

int thread_count();
using Share = void (*)(void* context, int64_t share);
void run_shares(int64_t shares, Share share, void* context);

// Calls f(share, first, last) for equal shares of [0, count), as many as there are threads. Which thread takes which
// share is left open, but the shares are always the same, and so are sums that are taken share by share, bit for bit.
// Who has memory for each share asks for their number once: it may change meanwhile.
template <class F>
void parallel(int64_t count, F f, int64_t most_shares = thread_count()) {
  struct Loop {
    F& f;
    int64_t count, shares;
  } loop{f, count, std::min(most_shares, count)};
  const auto share = [](void* context, int64_t i) {
    const Loop& loop = *static_cast<Loop*>(context);
    loop.f(i, loop.count * i / loop.shares, loop.count * (i + 1) / loop.shares);
  };
  if (loop.shares == 1) share(&loop, 0);
  if (loop.shares > 1) run_shares(loop.shares, share, &loop);
}

// Memory of the calling thread, kept between calls and grown when asked for more: one piece per slot.
enum Slot { PLANES, OTHER_PLANES, TILES, WEIGHTS, SUMS, ROWS, SLOTS };
float* scratch(Slot slot, int64_t count);

// ---- A matrix product and a transposition ----

// out[c][p] = bias[c] + sum over i, k of weights[i][k][c] * in[i][offsets[k] + p], for C channels and V vectors of p.
template <int C, int V>
inline void multiply(const float* in, int64_t in_stride, int64_t channels, const int64_t* offsets, int64_t taps,
                     const float* weights, const float* bias, float* out, int64_t out_stride) {
  Vector total[C][V];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) total[c][v] = splat(bias ? bias[c] : 0.0f);
  for (int64_t i = 0; i < channels; ++i, in += in_stride)
    for (int64_t k = 0; k < taps; ++k, weights += C) {
      const float* from = in + offsets[k];
      Vector x[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) x[v] = load(from + v * LANES);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) total[c][v] += weights[c] * x[v];
    }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + c * out_stride + v * LANES, total[c][v]);
}

template <int N>
struct Size {
  static constexpr int value = N;
};

// Calls f(Size<n>, first) for blocks of LARGEST, and then of smaller powers of two, that fill [first, last).
template <int LARGEST, class F>
inline void for_blocks(int64_t first, int64_t last, F f) {
  for (; last - first >= LARGEST; first += LARGEST) f(Size<LARGEST>{}, first);
  if constexpr (LARGEST > 8) for_blocks<8>(first, last, f);
  else if constexpr (LARGEST > 4) for_blocks<4>(first, last, f);
  else if constexpr (LARGEST > 2) for_blocks<2>(first, last, f);
  else if constexpr (LARGEST > 1) for_blocks<1>(first, last, f);
}

template <int... FROM>
inline Vector shuffle(Vector a, Vector b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, FROM...);
#else
  return __builtin_shuffle(a, b, Integers{FROM...});  // GCC has the other one from 12 on only
#endif
}

// One stage of a transposition: exchanges lanes between two vectors that are S rows apart.
template <int S, int... I>
inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, I...>) {
  const Vector first = shuffle<(I & S ? LANES + I - S : I)...>(a, b);
  b = shuffle<(I & S ? LANES + I : I + S)...>(a, b);
  a = first;
}

template <int S>
inline void exchange_all(Vector* block) {
  if constexpr (S < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & S)) exchange<S>(block[i], block[i + S], std::make_integer_sequence<int, LANES>());
    exchange_all<2 * S>(block);
  }
}

// to[column][row] = from[row][column] for `rows` rows, and zeros from there to `filled`.
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                      int64_t to_stride, int64_t filled) {
  for (int64_t row = 0; row < filled; row += LANES)
    for_vectors(columns, [&](int64_t column, int64_t n) {
      Vector block[LANES];
      for (int i = 0; i < LANES; ++i)
        block[i] = row + i < rows ? load_some(from + (row + i) * from_stride + column, n) : Vector{};
      exchange_all<1>(block);
      for (int i = 0; i < n; ++i) store_some(to + (column + i) * to_stride + row, block[i], std::min(LANES, filled - row));
    });
}

// ---- Functions of a vector ----

inline Vector select(Integers condition, Vector yes, Vector no) {
  return reinterpret_cast<Vector>((condition & reinterpret_cast<Integers>(yes)) |
                                  (~condition & reinterpret_cast<Integers>(no)));
}

inline Vector square_root(Vector x) {
  for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

// e^x with a relative error below 2e-7; below -87 it is 0.
inline Vector exponential(Vector x) {
  const Vector limited = select(x > 88.0f, splat(88.0f), select(x < -87.0f, splat(-87.0f), x));
  const Vector shifted = limited * 1.44269504f + 12582912.0f;  // its last bits are the nearest whole number
  const Vector n = shifted - 12582912.0f;
  const Vector r = (limited - n * 0.693359375f) + n * 2.12194440e-4f;  // x = n ln 2 + r
  Vector p = splat(1.9875691500e-4f);  // Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Integers power = (reinterpret_cast<Integers>(shifted) << 23) + (127 << 23);  // 2^n
  return select(x < -87.0f, Vector{}, p * reinterpret_cast<Vector>(power));
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exponential(-x)); }
