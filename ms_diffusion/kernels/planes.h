// Images on planes with a border of zeros, one image after another, on which each tap of a kernel is a constant offset.
// Stride 2 splits an image into four planes by the parity of row and column, on which the stride is 1.
#pragma once

#include <vector>

#include "core.h"

// The plane: `pad` columns of zeros after each row serve its right border and the next row's left one.
struct Grid {
  int64_t height, width, pad, row, image, origin;
  Grid(int64_t height, int64_t width, int64_t pad)
      : height(height), width(width), pad(pad), row(width + pad), image((height + pad) * row), origin(pad * row + pad) {}
  int64_t used(int64_t images) const { return round_up(images * image, TILE); }
  int64_t length(int64_t images) const { return round_up(used(images) + 2 * origin, LANES) + LANES; }
};

// One side of a convolution, (channels, height, width) an image; step 2 means four planes a channel.
struct Side {
  int64_t channels, height, width;
  int step;
  int64_t phases() const { return step * step; }
  int64_t image() const { return channels * height * width; }
  int64_t rows(int64_t phase) const { return (height - phase / step + step - 1) / step; }
  int64_t columns(int64_t phase) const { return (width - phase % step + step - 1) / step; }
  int64_t first(int64_t phase) const { return phase / step * width + phase % step; }
};

// A tap reads plane `phase` at `offset` and has the weight at `index` of its k x k.
struct Tap {
  int64_t phase, offset, index;
};

template <int STEP>
inline void copy_in(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * STEP];
}
template <int STEP>
inline void copy_out(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i * STEP] = from[i];
}

// The planes of one channel of `images` images.
inline void fill(const Grid& grid, const Side& side, int64_t images, const float* from, float* to, int64_t length) {
  for (int64_t phase = 0; phase < side.phases(); ++phase, to += length) {
    const int64_t rows = side.rows(phase), columns = side.columns(phase);
    std::fill(to, to + grid.origin, 0.0f);
    float* out = to + grid.origin;
    for (int64_t image = 0; image < images; ++image) {
      const float* in = from + image * side.image() + side.first(phase);
      for (int64_t y = 0; y < rows; ++y, out += grid.row, in += side.step * side.width) {
        if (side.step == 1) copy_in<1>(out, in, columns); else copy_in<2>(out, in, columns);
        for (int64_t x = columns; x < grid.row; ++x) out[x] = 0.0f;
      }
      float* const next = out + (grid.height + grid.pad - rows) * grid.row;
      std::fill(out, next, 0.0f);
      out = next;
    }
    std::fill(out, to + length, 0.0f);
  }
}

// Back from a plane without border to one phase of one channel.
inline void drain(const Grid& grid, const Side& side, int64_t phase, int64_t images, const float* from, float* to) {
  for (int64_t image = 0; image < images; ++image) {
    const float* in = from + image * grid.image;
    float* out = to + image * side.image() + side.first(phase);
    for (int64_t y = 0; y < side.rows(phase); ++y, in += grid.row, out += side.step * side.width) {
      if (side.step == 1) copy_out<1>(out, in, side.columns(phase)); else copy_out<2>(out, in, side.columns(phase));
    }
  }
}

// The k x k taps of stride 1; `sign` -1 turns the kernel round, as the gradient wants it.
inline std::vector<Tap> dense_taps(const Grid& grid, int64_t k, int sign) {
  std::vector<Tap> taps;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      taps.push_back({0, sign * ((i - grid.pad) * grid.row + (j - grid.pad)), i * k + j});
  return taps;
}

inline void sum_channels(int64_t batch, const Side& side, const float* x, float* sums) {
  const int64_t pixels = side.height * side.width;
  parallel(side.channels, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      Vector total = {};
      for (int64_t b = 0; b < batch; ++b)
        for_vectors(pixels, [&](int64_t p, int64_t n) { total += load_some(x + b * side.image() + c * pixels + p, n); });
      sums[c] = sum(total);
    }
  });
}

inline Side side_of(const int64_t* shape, int step) { return {shape[1], shape[2], shape[3], step}; }

// MindSpore confuses operators that share a symbol: each of stride, depth and bias has one of its own.
#define KERNELS(name, function)                                                                    \
  KERNEL(ms_diffusion_##name) { return function(count, data, shapes); }                             \
  KERNEL(ms_diffusion_##name##_bias) { return function(count, data, shapes); }                      \
  KERNEL(ms_diffusion_##name##_gradient) { return function##_gradient(count, data, shapes); }       \
  KERNEL(ms_diffusion_##name##_bias_gradient) { return function##_gradient(count, data, shapes); }
