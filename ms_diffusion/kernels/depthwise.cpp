// Convolutions of each channel by a kernel of its own.
#include <cstdlib>

#include "planes.h"

namespace {

// ---- Large images: vectors of pixels ----

// out[t] += sum over p of left[p] * right[t][p], p < count, a whole number of vectors.
template <int T>
void correlate(const float* left, const float* const* right, int64_t count, float* out) {
  Vector total[T] = {};
  for (int64_t p = 0; p < count; p += LANES) {
    const Vector x = load(left + p);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) total[t] += x * load(right[t] + p);
  }
  for (int t = 0; t < T; ++t) out[t] += sum(total[t]);
}

struct Depthwise {
  int64_t batch, channels, kernel;
  Side side;
  Grid grid;
  int64_t images, chunks, length, pixels;
  std::vector<Tap> taps;
  Depthwise(const int64_t* shape, int64_t kernel)
      : batch(shape[0]), channels(shape[1]), kernel(kernel), side{shape[1], shape[2], shape[3], 1},
        grid(shape[2], shape[3], kernel / 2),
        images(std::max<int64_t>(1, std::min<int64_t>(batch, 8192 / grid.image))), chunks(divide_up(batch, images)),
        length(grid.length(images) + TILE), pixels(round_up(images * grid.image, 8 * LANES)),
        taps(dense_taps(grid, kernel, 1)) {}
  int64_t here(int64_t chunk) const { return std::min(images, batch - chunk * images); }
  int64_t at(int64_t chunk, int64_t c) const { return chunk * images * side.image() + c * side.height * side.width; }
  int64_t planes() const { return length + 8 * LANES; }

  // y = bias + x * weight; `sign` -1 turns the kernel round.
  void apply(const float* x, const float* weight, const float* bias, int sign, float* y) const {
    parallel(channels * chunks, [&](int64_t, int64_t first, int64_t last) {
      float* const plane = scratch(PLANES, planes());
      float* const tiles = scratch(TILES, pixels);
      for (int64_t task = first; task < last; ++task) {
        const int64_t chunk = task / channels, c = task % channels;
        fill(grid, side, here(chunk), x + at(chunk, c), plane, planes());
        const int64_t count = here(chunk) * grid.image;
        for (int64_t p = 0; p < count; p += 8 * LANES)
          convolve_tile(plane + grid.origin + p, weight + c * kernel * kernel, bias ? bias[c] : 0.0f, sign, tiles + p);
        drain(grid, side, 0, here(chunk), tiles, y + at(chunk, c));
      }
    });
  }

  void convolve_tile(const float* in, const float* weight, float bias, int sign, float* out) const {
    Vector total[8];
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) total[v] = splat(bias);
    for (const Tap& tap : taps) {
      const Vector factor = splat(weight[tap.index]);
      const float* const from = in + sign * tap.offset;
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) total[v] += factor * load(from + v * LANES);
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) store(out + v * LANES, total[v]);
  }

  void weights(const float* y, const float* x, float* gradient) const {
    const int64_t area = kernel * kernel;
    parallel(channels, [&](int64_t, int64_t first, int64_t last) {
      float* const plane = scratch(PLANES, planes());
      float* const other = scratch(OTHER_PLANES, planes());
      std::vector<const float*> pointers;
      for (const Tap& tap : taps) pointers.push_back(plane + grid.origin + tap.offset);
      std::fill(gradient + first * area, gradient + last * area, 0.0f);
      for (int64_t c = first; c < last; ++c)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          fill(grid, side, here(chunk), x + at(chunk, c), plane, planes());
          fill(grid, side, here(chunk), y + at(chunk, c), other, planes());
          for_blocks<8>(0, area, [&](auto taps, int64_t tap) {
            correlate<decltype(taps)::value>(other + grid.origin, pointers.data() + tap,
                                             round_up(here(chunk) * grid.image, LANES), gradient + c * area + tap);
          });
        }
    });
  }
};

// ---- Small images: a vector holding one pixel of as many images as it has lanes ----

constexpr int64_t KERNEL_SIZE = 7, PAD = 3;

// A row of W pixels of the input adds to one of the output by a row of the kernel.
template <int W>
inline void add_row(const float* in, const float* weight, int sign, Vector* total) {
  Vector x[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) x[i] = load(in + i * LANES);
#pragma GCC unroll 8
  for (int o = 0; o < W; ++o)
#pragma GCC unroll 8
    for (int i = 0; i < W; ++i)
      if (std::abs(i - o) <= PAD) total[o] += weight[PAD + sign * (i - o)] * x[i];
}

// The gradient of that row of the kernel.
template <int W>
inline void correlate_row(const float* y, const float* x, Vector* total) {
  Vector d[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) d[i] = load(y + i * LANES);
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) {
    const Vector value = load(x + i * LANES);
#pragma GCC unroll 8
    for (int o = 0; o < W; ++o)
      if (std::abs(i - o) <= PAD) total[PAD + i - o] += d[o] * value;
  }
}

struct DepthwiseImages {
  int64_t batch, channels, height, area, chunks;
  explicit DepthwiseImages(const int64_t* shape)
      : batch(shape[0]), channels(shape[1]), height(shape[2]), area(shape[2] * shape[3]), chunks(divide_up(batch, LANES)) {}
  int64_t at(int64_t chunk, int64_t c) const { return (chunk * LANES * channels + c) * area; }
  int64_t here(int64_t chunk) const { return std::min(LANES, batch - chunk * LANES); }
  void read(const float* from, int64_t chunk, int64_t c, float* to) const {
    transpose(from + at(chunk, c), channels * area, here(chunk), area, to, LANES, LANES);
  }

  // y = bias + x * weight; `sign` -1 turns the kernel round.
  template <int W>
  void apply(const float* x, const float* weight, const float* bias, int sign, float* y) const {
    parallel(channels * chunks, [&](int64_t, int64_t first, int64_t last) {
      float *const in = scratch(PLANES, area * LANES), *const out = scratch(TILES, area * LANES);
      for (int64_t task = first; task < last; ++task) {
        const int64_t chunk = task / channels, c = task % channels;
        read(x, chunk, c, in);
        for (int64_t row = 0; row < height; ++row) {
          Vector total[W];
          for (int i = 0; i < W; ++i) total[i] = splat(bias ? bias[c] : 0.0f);
          for (int64_t other = std::max<int64_t>(0, row - PAD); other < std::min(height, row + PAD + 1); ++other)
            add_row<W>(in + other * W * LANES,
                       weight + (c * KERNEL_SIZE + PAD + sign * (other - row)) * KERNEL_SIZE, sign, total);
          for (int i = 0; i < W; ++i) store(out + (row * W + i) * LANES, total[i]);
        }
        transpose(out, LANES, area, here(chunk), y + at(chunk, c), channels * area, area);
      }
    });
  }

  template <int W>
  void weights(const float* y, const float* x, float* gradient) const {
    parallel(channels, [&](int64_t, int64_t first, int64_t last) {
      float *const left = scratch(PLANES, area * LANES), *const right = scratch(OTHER_PLANES, area * LANES);
      for (int64_t c = first; c < last; ++c) {
        Vector total[KERNEL_SIZE][KERNEL_SIZE] = {};
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          read(y, chunk, c, left);
          read(x, chunk, c, right);
          for (int64_t shift = std::max(-PAD, 1 - height); shift <= std::min(PAD, height - 1); ++shift)
            for (int64_t row = std::max<int64_t>(0, -shift); row < std::min(height, height - shift); ++row)
              correlate_row<W>(left + row * W * LANES, right + (row + shift) * W * LANES, total[PAD + shift]);
        }
        for (int64_t i = 0; i < KERNEL_SIZE; ++i)
          for (int64_t j = 0; j < KERNEL_SIZE; ++j)
            gradient[(c * KERNEL_SIZE + i) * KERNEL_SIZE + j] = sum(total[i][j]);
      }
    });
  }
};

// Calls f(Size<width>) if images of `shape` under kernels of size `kernel` go by images; was it called?
template <class F>
bool by_images(const int64_t* shape, int64_t kernel, F f) {
  if (kernel != KERNEL_SIZE || 2 * shape[0] < LANES || shape[2] > 16) return false;
  switch (shape[3]) {
    case 4: f(Size<4>{}); return true;
    case 7: f(Size<7>{}); return true;
    case 8: f(Size<8>{}); return true;
    default: return false;
  }
}

// (x, weight[, bias]) -> y; weight (channels, 1, k, k)
int depthwise(int count, void** data, int64_t** shapes) {
  const float* const bias = count == 4 ? floats(data[2]) : nullptr;
  const bool done = by_images(shapes[0], shapes[1][2], [&](auto width) {
    DepthwiseImages(shapes[0]).apply<decltype(width)::value>(floats(data[0]), floats(data[1]), bias, 1, floats(data[count - 1]));
  });
  if (!done) Depthwise(shapes[0], shapes[1][2]).apply(floats(data[0]), floats(data[1]), bias, 1, floats(data[count - 1]));
  return 0;
}

// (x, weight, dy) -> dx, dweight[, dbias]
int depthwise_gradient(int count, void** data, int64_t** shapes) {
  const float *const x = floats(data[0]), *const weight = floats(data[1]), *const dy = floats(data[2]);
  const bool done = by_images(shapes[0], shapes[1][2], [&](auto width) {
    const DepthwiseImages geometry(shapes[0]);
    geometry.apply<decltype(width)::value>(dy, weight, nullptr, -1, floats(data[3]));
    geometry.weights<decltype(width)::value>(dy, x, floats(data[4]));
  });
  if (!done) {
    const Depthwise geometry(shapes[0], shapes[1][2]);
    geometry.apply(dy, weight, nullptr, -1, floats(data[3]));
    geometry.weights(dy, x, floats(data[4]));
  }
  if (count == 6) sum_channels(shapes[0][0], side_of(shapes[0], 1), dy, floats(data[5]));
  return 0;
}

}  // namespace

KERNELS(depthwise, depthwise)
