// Convolutions of stride 1 and 2, and the transposed one, with their gradients. Of large images a chunk is copied onto
// planes (planes.h), and the convolution is one matrix product over long vectors of pixels; of small ones vectors are made
// of the same pixel of many images.
#include "planes.h"

namespace {

// Floats that a thread works on at once, so that they stay in its L2 cache.
constexpr int64_t CHUNK = 96 * 1024, IMAGES_CHUNK = 192 * 1024;

// ---- Large images: vectors of pixels ----

int64_t images_at_once(int64_t batch, int64_t floats_of_image) {
  return std::max<int64_t>(1, std::min(divide_up(batch, thread_count()), CHUNK / floats_of_image));
}

// out = bias + in * weights, where weights[o * out_stride + i * in_stride + tap.index], by the taps of each out phase.
void convolve(int64_t batch, const Grid& grid, const Side& in, const float* x, const Side& out, float* y,
              const std::vector<std::vector<Tap>>& taps, const float* weights, int64_t out_stride, int64_t in_stride,
              const float* bias) {
  const int64_t inputs = in.channels, outputs = out.channels, count = taps[0].size();
  float* const packed = scratch(WEIGHTS, out.phases() * outputs * inputs * count);
  const int64_t blocks = divide_up(outputs, CHANNEL_BLOCK);
  parallel(blocks, [&](int64_t, int64_t first, int64_t last) {
    const int64_t begin = first * CHANNEL_BLOCK, end = std::min(outputs, last * CHANNEL_BLOCK);
    for (int64_t phase = 0; phase < out.phases(); ++phase)
      for_blocks<CHANNEL_BLOCK>(begin, end, [&](auto size, int64_t o) {
        constexpr int C = decltype(size)::value;
        float* to = packed + (phase * outputs + o) * inputs * count;
        for (int64_t i = 0; i < inputs; ++i)
          for (const Tap& tap : taps[phase])
            for (int c = 0; c < C; ++c) *to++ = weights[(o + c) * out_stride + i * in_stride + tap.index];
      });
  });

  const bool in_place = grid.pad == 0 && in.step == 1 && grid.image >= TILE;
  const int64_t images = in_place ? 1 : images_at_once(batch, in.phases() * inputs * grid.image);
  const int64_t chunks = divide_up(batch, images);
  const int64_t parts = chunks >= thread_count() ? 1 : std::min(blocks, divide_up(thread_count(), chunks));
  const int64_t length = grid.length(images), pixels = grid.used(images);
  std::vector<std::vector<int64_t>> offsets(out.phases());
  for (int64_t phase = 0; phase < out.phases(); ++phase)
    for (const Tap& tap : taps[phase]) offsets[phase].push_back(tap.phase * length + tap.offset);

  parallel(chunks * parts, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t chunk = task / parts, part = task % parts;
      const int64_t begin = blocks * part / parts * CHANNEL_BLOCK;
      const int64_t end = std::min(outputs, blocks * (part + 1) / parts * CHANNEL_BLOCK);
      const int64_t here = std::min(images, batch - chunk * images);
      const float* const from = x + chunk * images * in.image();
      float* const to = y + chunk * images * out.image();
      if (in_place) {
        const int64_t zero = 0;
        for (int64_t p = 0; p < grid.image; p += TILE) {
          const int64_t start = std::min(p, grid.image - TILE);  // the last tile computes some pixels again
          for_blocks<CHANNEL_BLOCK>(begin, end, [&](auto size, int64_t o) {
            multiply<decltype(size)::value, TILE_VECTORS>(from + start, grid.image, inputs, &zero, 1,
                                                          packed + o * inputs, bias ? bias + o : nullptr,
                                                          to + o * grid.image + start, grid.image);
          });
        }
        continue;
      }
      float* const planes = scratch(PLANES, length * in.phases() * inputs);
      for (int64_t i = 0; i < inputs; ++i)
        fill(grid, in, here, from + i * in.height * in.width, planes + i * in.phases() * length, length);
      float* const tiles = scratch(TILES, CHANNEL_BLOCK * pixels);
      for (int64_t phase = 0; phase < out.phases(); ++phase)
        for_blocks<CHANNEL_BLOCK>(begin, end, [&](auto size, int64_t o) {
          constexpr int C = decltype(size)::value;
          for (int64_t p = 0; p < grid.used(here); p += TILE)
            multiply<C, TILE_VECTORS>(planes + grid.origin + p, in.phases() * length, inputs, offsets[phase].data(),
                                      count, packed + (phase * outputs + o) * inputs * count,
                                      bias ? bias + o : nullptr, tiles + p, pixels);
          for (int c = 0; c < C; ++c)
            drain(grid, out, phase, here, tiles + c * pixels, to + (o + c) * out.height * out.width);
        });
    }
  });
}

// ---- Small images: a vector is one pixel of as many images as it has lanes, so no border is multiplied ----

// What an output pixel reads: an input pixel, and the weight at `index` of the k x k.
struct Reach {
  int64_t pixel, index;
};

// in[channel][pixel][image] -> out[channel][pixel][image] for C channels; `weights` is [input][index][C].
template <int C>
void multiply_images(const float* in, int64_t in_pixels, int64_t inputs, const std::vector<std::vector<Reach>>& reaches,
                     const float* weights, int64_t area, const float* bias, float* out) {
  const int64_t out_pixels = reaches.size();
  for (int64_t p = 0; p < out_pixels; ++p) {
    Vector total[C];
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) total[c] = splat(bias ? bias[c] : 0.0f);
    const float *from = in, *factors = weights;
    for (int64_t i = 0; i < inputs; ++i, from += in_pixels * LANES, factors += area * C)
      for (const Reach& reach : reaches[p]) {
        const Vector x = load(from + reach.pixel * LANES);
        const float* const factor = factors + reach.index * C;
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) total[c] += factor[c] * x;
      }
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) store(out + (c * out_pixels + p) * LANES, total[c]);
  }
}

// `convolve` by `reaches` of each pixel of `out`.
void convolve_images(int64_t batch, const Side& in, const float* x, const Side& out, float* y,
                     const std::vector<std::vector<Reach>>& reaches, int64_t area, const float* weights,
                     int64_t out_stride, int64_t in_stride, const float* bias) {
  constexpr int BLOCK = 2 * CHANNEL_BLOCK;
  const int64_t inputs = in.channels, outputs = out.channels;
  const int64_t in_pixels = in.height * in.width, out_pixels = out.height * out.width;
  const int64_t blocks = divide_up(outputs, BLOCK), chunks = divide_up(batch, LANES);
  const int64_t parts = chunks >= thread_count() ? 1 : std::min(blocks, divide_up(thread_count(), chunks));
  float* const packed = scratch(WEIGHTS, outputs * inputs * area);
  parallel(blocks, [&](int64_t, int64_t first, int64_t last) {
    for_blocks<BLOCK>(first * BLOCK, std::min(outputs, last * BLOCK), [&](auto size, int64_t o) {
      constexpr int C = decltype(size)::value;
      float* to = packed + o * inputs * area;
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t index = 0; index < area; ++index)
          for (int c = 0; c < C; ++c) *to++ = weights[(o + c) * out_stride + i * in_stride + index];
    });
  });
  parallel(chunks * parts, [&](int64_t, int64_t first, int64_t last) {
    float* const planes = scratch(PLANES, inputs * in_pixels * LANES);
    float* const tiles = scratch(TILES, BLOCK * out_pixels * LANES);
    int64_t filled = -1;
    for (int64_t task = first; task < last; ++task) {
      const int64_t chunk = task / parts, part = task % parts, here = std::min(LANES, batch - chunk * LANES);
      if (chunk != filled)
        transpose(x + chunk * LANES * in.image(), in.image(), here, in.image(), planes, LANES, LANES);
      filled = chunk;
      float* const to = y + chunk * LANES * out.image();
      for_blocks<BLOCK>(blocks * part / parts * BLOCK, std::min(outputs, blocks * (part + 1) / parts * BLOCK),
                        [&](auto size, int64_t o) {
        constexpr int C = decltype(size)::value;
        multiply_images<C>(planes, in_pixels, inputs, reaches, packed + o * inputs * area, area,
                           bias ? bias + o : nullptr, tiles);
        transpose(tiles, LANES, C * out_pixels, here, to + o * out_pixels, out.image(), C * out_pixels);
      });
    }
  });
}

// ---- Gradients of the weights ----

// sums[r * K + k][a] += sum over images, y and x of right[runs[r]][y][x + k] * left[y][x][a], for V vectors of a.
template <int R, int K, int V>
void accumulate(const float* left, int64_t left_stride, const float* right, const int64_t* runs, int64_t images,
                int64_t image, int64_t rows, int64_t row, int64_t columns, float* sums) {
  Vector total[R * K][V] = {};
  for (int64_t i = 0; i < images; ++i)
    for (int64_t y = 0; y < rows; ++y) {
      const float* from[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) from[r] = right + runs[r] + i * image + y * row;
      for (int64_t x = 0; x < columns; ++x, left += left_stride) {
        Vector a[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) a[v] = load(left + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int k = 0; k < K; ++k) {
            const float b = from[r][x + k];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) total[r * K + k][v] += a[v] * b;
          }
      }
    }
  for (int t = 0; t < R * K; ++t)
    for (int v = 0; v < V; ++v) {
      float* const sum = sums + t * left_stride + v * LANES;
      store(sum, load(sum) + total[t][v]);
    }
}

// `accumulate` for all runs and all of `left`.
template <int R, int K>
void accumulate_all(const float* left, int64_t left_stride, const float* right, const std::vector<int64_t>& runs,
                    int64_t images, int64_t image, int64_t rows, int64_t row, int64_t columns, float* sums) {
  for_blocks<R>(0, runs.size(), [&](auto r, int64_t run) {
    for (int64_t a = 0; a < left_stride; a += 2 * LANES) {
      float* const to = sums + run * K * left_stride + a;
      constexpr int B = decltype(r)::value;
      if (a + 2 * LANES <= left_stride)
        accumulate<B, K, 2>(left + a, left_stride, right, &runs[run], images, image, rows, row, columns, to);
      else
        accumulate<B, K, 1>(left + a, left_stride, right, &runs[run], images, image, rows, row, columns, to);
    }
  });
}

// gradient[a * left_stride + b * right_stride + tap.index] = sum over images and pixels of left[a] * right[b] at a tap.
// The taps come in runs of `run` neighbours.
void correlate_sides(int64_t batch, const Grid& grid, const Side& left, const float* x, const Side& right,
                     const float* y, const std::vector<Tap>& taps, int64_t run, float* gradient, int64_t left_stride,
                     int64_t right_stride) {
  const int64_t count = taps.size();
  const int64_t rows = round_up(left.channels, LANES), columns = right.channels * count;
  const bool in_place = count == 1;
  const int64_t area = left.height * left.width;
  const int64_t images = images_at_once(batch, rows * area + right.channels * right.phases() * grid.image);
  const int64_t chunks = divide_up(batch, images), length = grid.length(images);
  const int64_t shares = std::min<int64_t>(thread_count(), chunks);
  float* const sums = scratch(SUMS, shares * rows * columns);

  parallel(chunks, [&](int64_t share, int64_t first, int64_t last) {
    float* const mine = sums + share * rows * columns;
    std::fill(mine, mine + rows * columns, 0.0f);
    float* const lefts = scratch(ROWS, images * area * rows);
    float* const planes = in_place ? nullptr : scratch(PLANES, right.channels * right.phases() * length);
    std::vector<int64_t> runs;
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t here = std::min(images, batch - chunk * images);
      const float* rights = y + chunk * images * right.image();
      for (int64_t i = 0; i < here; ++i)
        transpose(x + (chunk * images + i) * left.image(), area, left.channels, area, lefts + i * area * rows, rows, rows);
      const int64_t plane = in_place ? area : length;
      if (!in_place) {
        for (int64_t b = 0; b < right.channels; ++b)
          fill(grid, right, here, rights + b * right.height * right.width, planes + b * right.phases() * length, length);
        rights = planes + grid.origin;
      }
      runs.clear();
      for (int64_t b = 0; b < right.channels; ++b)
        for (int64_t k = 0; k < count; k += run)
          runs.push_back((b * right.phases() + taps[k].phase) * plane + taps[k].offset);
      const auto all = [&](auto function) {
        if (in_place)  // the pixels of an image are one long row
          function(lefts, rows, rights, runs, here, right.image(), 1, 0, area, mine);
        else
          function(lefts, rows, rights, runs, here, grid.image, left.height, grid.row, left.width, mine);
      };
      if (run == 3) all(accumulate_all<3, 3>);
      else if (run == 7) all(accumulate_all<1, 7>);
      else if (run == 2) all(accumulate_all<4, 2>);
      else all(accumulate_all<8, 1>);
    }
  }, shares);
  parallel(left.channels, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t a = first; a < last; ++a)
      for (int64_t b = 0; b < right.channels; ++b)
        for (int64_t k = 0; k < count; ++k) {
          float total = 0.0f;
          for (int64_t share = 0; share < shares; ++share)
            total += sums[(share * columns + b * count + k) * rows + a];
          gradient[a * left_stride + b * right_stride + taps[k].index] = total;
        }
  });
}

// The 4 x 4 taps of stride 2, phase by phase: row 2 y + i - 1 of the large side is row y of the plane of its parity, or
// a neighbour of it.
std::vector<Tap> halving_taps(const Grid& grid) {
  std::vector<Tap> taps;
  const int64_t parity[] = {1, 0, 1, 0}, shift[] = {-1, 0, 0, 1};
  for (int64_t phase = 0; phase < 4; ++phase)
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 4; ++j)
        if (phase == parity[i] * 2 + parity[j]) taps.push_back({phase, shift[i] * grid.row + shift[j], i * 4 + j});
  return taps;
}

// The same read backwards: the 2 x 2 taps that reach each of the four phases of the large side.
std::vector<std::vector<Tap>> doubling_taps(const Grid& grid) {
  std::vector<std::vector<Tap>> taps(4);
  for (const Tap& tap : halving_taps(grid)) taps[tap.phase].push_back({0, -tap.offset, tap.index});
  return taps;
}

// A convolution and its gradients between a small and a large side, which are alike at stride 1.
struct Convolution {
  int64_t kernel;
  Side small, large;
  Grid grid;
  Convolution(const int64_t* small_shape, const int64_t* large_shape, int64_t kernel, int stride)
      : kernel(kernel), small(side_of(small_shape, 1)), large(side_of(large_shape, stride)),
        grid(divide_up(large.height, stride), divide_up(large.width, stride), stride == 1 ? kernel / 2 : 1) {}
  int64_t stride() const { return large.step; }
  int64_t pad() const { return stride() == 1 ? kernel / 2 : 1; }

  // Of each pixel of the small side (`shrinking`) or of the large one, what it reads of the other: pixel p of the small
  // side touches pixel stride p + i - pad of the large one by tap i.
  std::vector<std::vector<Reach>> reaches(bool shrinking) const {
    const Side &out = shrinking ? small : large, &in = shrinking ? large : small;
    const auto touched = [&](int64_t p, int64_t i, int64_t size) -> int64_t {  // -1: none
      const int64_t at = shrinking ? stride() * p + i - pad() : p + pad() - i;
      const int64_t pixel = shrinking ? at : at / stride();
      return at >= 0 && (shrinking || at % stride() == 0) && pixel < size ? pixel : -1;
    };
    std::vector<std::vector<Reach>> all;
    for (int64_t y = 0; y < out.height; ++y)
      for (int64_t x = 0; x < out.width; ++x) {
        all.emplace_back();
        for (int64_t i = 0; i < kernel; ++i)
          for (int64_t j = 0; j < kernel; ++j) {
            const int64_t row = touched(y, i, in.height), column = touched(x, j, in.width);
            if (row >= 0 && column >= 0) all.back().push_back({row * in.width + column, i * kernel + j});
          }
      }
    return all;
  }
  // Are fewer products needed if vectors are made of images, and do they fit into the cache?
  bool by_images(int64_t batch, const Side& in, const Side& out) const {
    if (kernel == 1 || LANES * (in.image() + 2 * CHANNEL_BLOCK * out.height * out.width) > IMAGES_CHUNK) return false;
    const auto touching = [&](int64_t small, int64_t large) {
      int64_t count = 0;
      for (int64_t p = 0; p < small; ++p)
        for (int64_t i = 0; i < kernel; ++i) {
          const int64_t at = stride() * p + i - pad();
          count += at >= 0 && at < large;
        }
      return count;
    };
    const int64_t pairs = touching(small.height, large.height) * touching(small.width, large.width);
    return round_up(batch, LANES) * pairs < batch * grid.image * kernel * kernel;
  }

  std::vector<Tap> taps() const { return large.step == 1 ? dense_taps(grid, kernel, 1) : halving_taps(grid); }

  void shrink(int64_t batch, const float* x, const float* weight, const float* bias, float* y) const {
    const int64_t area = kernel * kernel;
    if (by_images(batch, large, small))
      return convolve_images(batch, large, x, small, y, reaches(true), area, weight, large.channels * area, area, bias);
    convolve(batch, grid, large, x, small, y, {taps()}, weight, large.channels * area, area, bias);
  }
  void grow(int64_t batch, const float* y, const float* weight, const float* bias, float* x) const {
    const int64_t area = kernel * kernel;
    if (by_images(batch, small, large))
      return convolve_images(batch, small, y, large, x, reaches(false), area, weight, area, large.channels * area, bias);
    const auto turned = large.step == 1 ? std::vector<std::vector<Tap>>{dense_taps(grid, kernel, -1)} : doubling_taps(grid);
    convolve(batch, grid, small, y, large, x, turned, weight, area, large.channels * area, bias);
  }
  void weights(int64_t batch, const float* y, const float* x, float* gradient) const {
    const int64_t area = kernel * kernel;
    if (kernel == 1 && small.channels > large.channels)  // the shorter side is turned round
      return correlate_sides(batch, grid, large, x, small, y, taps(), 1, gradient, 1, large.channels);
    const int64_t run = large.step == 2 ? 2 : kernel == 3 || kernel == 7 ? kernel : 1;
    correlate_sides(batch, grid, small, y, large, x, taps(), run, gradient, large.channels * area, area);
  }
};

// (x, weight[, bias]) -> y; weight (out, in, k, k); the stride, 1 or 2, follows from the sizes of x and y.
int convolution(int count, void** data, int64_t** shapes) {
  const int64_t* const shape = shapes[count - 1];
  const Convolution geometry(shape, shapes[0], shapes[1][2], shape[2] == shapes[0][2] ? 1 : 2);
  geometry.shrink(shape[0], floats(data[0]), floats(data[1]), count == 4 ? floats(data[2]) : nullptr,
                  floats(data[count - 1]));
  return 0;
}

// (x, weight, dy) -> dx, dweight[, dbias]
int convolution_gradient(int count, void** data, int64_t** shapes) {
  const Convolution geometry(shapes[2], shapes[0], shapes[1][2], shapes[2][2] == shapes[0][2] ? 1 : 2);
  const int64_t batch = shapes[0][0];
  geometry.grow(batch, floats(data[2]), floats(data[1]), nullptr, floats(data[3]));
  geometry.weights(batch, floats(data[2]), floats(data[0]), floats(data[4]));
  if (count == 6) sum_channels(batch, geometry.small, floats(data[2]), floats(data[5]));
  return 0;
}

// (x, weight[, bias]) -> y of twice the height and width; weight (in, out, 4, 4)
int doubling(int count, void** data, int64_t** shapes) {
  const Convolution geometry(shapes[0], shapes[count - 1], 4, 2);
  geometry.grow(shapes[0][0], floats(data[0]), floats(data[1]), count == 4 ? floats(data[2]) : nullptr,
                floats(data[count - 1]));
  return 0;
}

// (x, weight, dy) -> dx, dweight[, dbias]
int doubling_gradient(int count, void** data, int64_t** shapes) {
  const Convolution geometry(shapes[0], shapes[2], 4, 2);
  const int64_t batch = shapes[0][0];
  geometry.shrink(batch, floats(data[2]), floats(data[1]), nullptr, floats(data[3]));
  geometry.weights(batch, floats(data[0]), floats(data[2]), floats(data[4]));
  if (count == 6) sum_channels(batch, geometry.large, floats(data[2]), floats(data[5]));
  return 0;
}

}  // namespace

KERNELS(convolution, convolution)
KERNELS(halving, convolution)
KERNELS(doubling, doubling)
