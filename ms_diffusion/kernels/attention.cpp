// Linear attention and attention over the pixels, from q, k and v of all heads in one array to the values that come out.
// Everything between is recomputed for the gradient: it is cheaper than to keep it. Sums and softmaxes always run down the
// columns of a matrix, so that no vector is ever summed up; what lies the other way round is turned first.
#include <cmath>

#include "core.h"

namespace {

// C rows and V vectors of columns of `product`.
template <int C, int V>
inline void product_block(const float* left, int64_t row_stride, int64_t stride, int64_t n, float factor,
                          const float* right, int64_t columns, float* out) {
  Vector total[C][V] = {};
  for (int64_t i = 0; i < n; ++i, left += stride, right += columns) {
    Vector x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) x[v] = load(right + v * LANES);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total[c][v] += left[c * row_stride] * x[v];
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + c * columns + v * LANES, factor * total[c][v]);
}

// out (rows x columns) = factor * left (rows x n) times right (n x columns), where `left` lies as
// left[row * row_stride + n * stride], and the columns are a whole number of vectors.
void product(const float* left, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, float factor,
             const float* right, int64_t columns, float* out) {
  for_blocks<CHANNEL_BLOCK>(0, rows, [&](auto size, int64_t row) {
    constexpr int C = decltype(size)::value;
    const float* const from = left + row * row_stride;
    float* const to = out + row * columns;
    int64_t p = 0;
    for (; p + TILE <= columns; p += TILE)
      product_block<C, TILE_VECTORS>(from, row_stride, stride, n, factor, right + p, columns, to + p);
    for (; p + 2 * LANES <= columns; p += 2 * LANES)
      product_block<C, 2>(from, row_stride, stride, n, factor, right + p, columns, to + p);
    if (p < columns) product_block<C, 1>(from, row_stride, stride, n, factor, right + p, columns, to + p);
  });
}

// The matrix of `rows` rows of `count` pixels, filled up to `pixels`.
void copy_in(const float* from, int64_t rows, int64_t count, int64_t pixels, float* to) {
  for (int64_t row = 0; row < rows; ++row, from += count, to += pixels) {
    std::copy(from, from + count, to);
    std::fill(to + count, to + pixels, 0.0f);
  }
}

void copy_out(const float* from, int64_t rows, int64_t count, int64_t pixels, float* to) {
  for (int64_t row = 0; row < rows; ++row, from += pixels, to += count) std::copy(from, from + count, to);
}

// Each column of `x` to its softmax.
void softmax(float* x, int64_t rows, int64_t columns) {
  for (int64_t p = 0; p < columns; p += LANES) {
    Vector top = load(x + p), total = {};
    for (int64_t row = 1; row < rows; ++row) {
      const Vector value = load(x + row * columns + p);
      top = select(value > top, value, top);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const Vector e = exponential(load(x + row * columns + p) - top);
      store(x + row * columns + p, e);
      total += e;
    }
    const Vector factor = 1.0f / total;
    for (int64_t row = 0; row < rows; ++row) store(x + row * columns + p, load(x + row * columns + p) * factor);
  }
}

// The gradient dy of a softmax y of columns to that of its argument: y (dy - <y, dy>).
void softmax_gradient(const float* y, float* dy, int64_t rows, int64_t columns) {
  for (int64_t p = 0; p < columns; p += LANES) {
    Vector mean = {};
    for (int64_t row = 0; row < rows; ++row) mean += load(y + row * columns + p) * load(dy + row * columns + p);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * columns + p;
      store(dy + at, load(y + at) * (load(dy + at) - mean));
    }
  }
}

// One head of one image: where its q, k and v begin, and the sizes. A matrix is (row, column), its columns filled up with
// zeros to whole vectors: (depth, pixel) as it comes, or turned, (pixel, depth).
struct Heads {
  int64_t batch, heads, depth, count, pixels, depths;
  explicit Heads(const int64_t* shape)  // (batch, 3 heads, depth, count)
      : batch(shape[0]), heads(shape[1] / 3), depth(shape[2]), count(shape[3]), pixels(round_up(count, LANES)),
        depths(round_up(depth, LANES)) {}
  int64_t matrix() const { return depths * pixels; }  // holds either
  // Element `part` (0, 1, 2: q, k, v) of the array of all, or of the output with one part only.
  int64_t at(int64_t task, int64_t part, int64_t parts) const {
    return ((task / heads * parts + part) * heads + task % heads) * depth * count;
  }
  void read(const float* from, float* to) const { copy_in(from, depth, count, pixels, to); }
  void read_turned(const float* from, float* to) const { transpose(from, count, depth, count, to, depths, depths); }
  void write(const float* from, float* to) const { copy_out(from, depth, count, pixels, to); }
  void write_turned(const float* from, float* to) const { transpose(from, depths, count, depth, to, count, count); }
};

// (q k v, scale) -> out: out = scale (softmax(k) v^T)^T softmax(q), the softmax of k over pixels and of q over depth
int linear_attention(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]);
  float* const out = floats(data[2]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, depths = sizes.depths, count = sizes.count, pixels = sizes.pixels;
    float *const q = scratch(PLANES, 4 * sizes.matrix()), *const k = q + sizes.matrix(), *const v = k + sizes.matrix();
    float *const y = v + sizes.matrix(), *const context = scratch(SUMS, depth * depths);
    for (int64_t task = first; task < last; ++task) {
      sizes.read(qkv + sizes.at(task, 0, 3), q);
      sizes.read_turned(qkv + sizes.at(task, 1, 3), k);
      sizes.read_turned(qkv + sizes.at(task, 2, 3), v);
      softmax(q, depth, pixels);
      softmax(k, count, depths);
      product(k, 1, depths, depth, count, scale, v, depths, context);  // [d of k][d of v]
      product(context, 1, depths, depth, depth, 1.0f, q, pixels, y);
      sizes.write(y, out + sizes.at(task, 0, 1));
    }
  });
  return 0;
}

// (q k v, scale, dout) -> d(q k v)
int linear_attention_gradient(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]), *const dout = floats(data[2]);
  float* const dqkv = floats(data[3]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, depths = sizes.depths, count = sizes.count, pixels = sizes.pixels;
    float *const q = scratch(PLANES, 6 * sizes.matrix()), *const k = q + sizes.matrix(), *const v = k + sizes.matrix();
    float *const dy = v + sizes.matrix(), *const dy_turned = dy + sizes.matrix(), *const gradient = dy_turned + sizes.matrix();
    float *const context = scratch(SUMS, 3 * depth * depths), *const dcontext = context + depth * depths;
    float* const dcontext_turned = dcontext + depth * depths;
    for (int64_t task = first; task < last; ++task) {
      sizes.read(qkv + sizes.at(task, 0, 3), q);
      sizes.read_turned(qkv + sizes.at(task, 1, 3), k);
      sizes.read_turned(qkv + sizes.at(task, 2, 3), v);
      sizes.read(dout + sizes.at(task, 0, 1), dy);
      sizes.read_turned(dout + sizes.at(task, 0, 1), dy_turned);
      softmax(q, depth, pixels);
      softmax(k, count, depths);
      product(k, 1, depths, depth, count, scale, v, depths, context);
      product(q, pixels, 1, depth, count, scale, dy_turned, depths, dcontext);
      transpose(dcontext, depths, depth, depth, dcontext_turned, depths, depths);
      product(context, depths, 1, depth, depth, 1.0f, dy, pixels, gradient);
      softmax_gradient(q, gradient, depth, pixels);
      sizes.write(gradient, dqkv + sizes.at(task, 0, 3));
      product(v, depths, 1, count, depth, 1.0f, dcontext_turned, depths, gradient);
      softmax_gradient(k, gradient, count, depths);
      sizes.write_turned(gradient, dqkv + sizes.at(task, 1, 3));
      product(k, depths, 1, count, depth, 1.0f, dcontext, depths, gradient);
      sizes.write_turned(gradient, dqkv + sizes.at(task, 2, 3));
    }
  });
  return 0;
}

// (q k v, scale) -> out = v softmax(scale k^T q), the softmax over the pixels of k
int attention(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]);
  float* const out = floats(data[2]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, count = sizes.count, pixels = sizes.pixels;
    float *const q = scratch(PLANES, 2 * sizes.matrix()), *const y = q + sizes.matrix();
    float* const weights = scratch(OTHER_PLANES, count * pixels);  // [pixel of k][pixel of q]
    for (int64_t task = first; task < last; ++task) {
      const float *const k = qkv + sizes.at(task, 1, 3), *const v = qkv + sizes.at(task, 2, 3);
      sizes.read(qkv + sizes.at(task, 0, 3), q);
      product(k, 1, count, count, depth, scale, q, pixels, weights);
      softmax(weights, count, pixels);
      product(v, count, 1, depth, count, 1.0f, weights, pixels, y);
      sizes.write(y, out + sizes.at(task, 0, 1));
    }
  });
  return 0;
}

// (q k v, scale, dout) -> d(q k v)
int attention_gradient(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]), *const dout = floats(data[2]);
  float* const dqkv = floats(data[3]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, depths = sizes.depths, count = sizes.count, pixels = sizes.pixels;
    float *const q = scratch(PLANES, 5 * sizes.matrix()), *const q_turned = q + sizes.matrix();
    float *const dy = q_turned + sizes.matrix(), *const dy_turned = dy + sizes.matrix(), *const gradient = dy_turned + sizes.matrix();
    float *const weights = scratch(OTHER_PLANES, 2 * count * pixels), *const dweights = weights + count * pixels;
    for (int64_t task = first; task < last; ++task) {
      const float *const k = qkv + sizes.at(task, 1, 3), *const v = qkv + sizes.at(task, 2, 3);
      sizes.read(qkv + sizes.at(task, 0, 3), q);
      sizes.read_turned(qkv + sizes.at(task, 0, 3), q_turned);
      sizes.read(dout + sizes.at(task, 0, 1), dy);
      sizes.read_turned(dout + sizes.at(task, 0, 1), dy_turned);
      product(k, 1, count, count, depth, scale, q, pixels, weights);
      softmax(weights, count, pixels);
      product(v, 1, count, count, depth, 1.0f, dy, pixels, dweights);
      softmax_gradient(weights, dweights, count, pixels);
      product(k, count, 1, depth, count, scale, dweights, pixels, gradient);
      sizes.write(gradient, dqkv + sizes.at(task, 0, 3));
      product(dweights, pixels, 1, count, count, scale, q_turned, depths, gradient);
      sizes.write_turned(gradient, dqkv + sizes.at(task, 1, 3));
      product(weights, pixels, 1, count, count, 1.0f, dy_turned, depths, gradient);
      sizes.write_turned(gradient, dqkv + sizes.at(task, 2, 3));
    }
  });
  return 0;
}

}  // namespace

KERNEL(ms_diffusion_linear_attention) { return linear_attention(data, shapes); }
KERNEL(ms_diffusion_linear_attention_gradient) { return linear_attention_gradient(data, shapes); }
KERNEL(ms_diffusion_attention) { return attention(data, shapes); }
KERNEL(ms_diffusion_attention_gradient) { return attention_gradient(data, shapes); }
