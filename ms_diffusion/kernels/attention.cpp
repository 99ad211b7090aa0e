// Linear attention and attention over the pixels, from q, k and v of all heads in one array to the values that come out.
// Everything between is recomputed for the gradient: it is cheaper than to keep it. Matrices are (row, pixel); pixels
// are filled up with zeros to whole vectors.
#include <cmath>

#include "core.h"

namespace {

// left (rows x n) times right (n x pixels); `left` lies as left[row * row_stride + n * stride].
void product(const float* left, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, float factor,
             const float* right, int64_t pixels, float* out) {
  float* const packed = scratch(WEIGHTS, rows * n);
  const int64_t zero = 0;
  for_blocks<CHANNEL_BLOCK>(0, rows, [&](auto size, int64_t row) {
    constexpr int C = decltype(size)::value;
    float* to = packed;
    for (int64_t i = 0; i < n; ++i)
      for (int c = 0; c < C; ++c) *to++ = factor * left[(row + c) * row_stride + i * stride];
    int64_t p = 0;
    for (; p + TILE <= pixels; p += TILE)
      multiply<C, TILE_VECTORS>(right + p, pixels, n, &zero, 1, packed, nullptr, out + row * pixels + p, pixels);
    for (; p < pixels; p += LANES)
      multiply<C, 1>(right + p, pixels, n, &zero, 1, packed, nullptr, out + row * pixels + p, pixels);
  });
}

// out (rows x columns) = left (rows x pixels) times right (columns x pixels) transposed
void inner_products(const float* left, int64_t rows, const float* right, int64_t columns, int64_t pixels, float* out) {
  const float** const pointers = reinterpret_cast<const float**>(scratch(ROWS, 2 * columns));
  for (int64_t column = 0; column < columns; ++column) pointers[column] = right + column * pixels;
  std::fill(out, out + rows * columns, 0.0f);
  correlate_all(left, pixels, rows, pointers, columns, pixels, out, columns);
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

inline float largest(Vector value) {
  float result = value[0];
  for (int i = 1; i < LANES; ++i) result = std::max(result, value[i]);
  return result;
}

// Each row of `x` to its softmax over the first `count` pixels; the others become zero.
void softmax_rows(float* x, int64_t rows, int64_t count, int64_t pixels) {
  for (int64_t row = 0; row < rows; ++row, x += pixels) {
    Vector top = splat(x[0]);
    for_vectors(count, [&](int64_t p, int64_t n) {
      Vector value = load(x + p);
      if (n < LANES)
        for (int64_t i = n; i < LANES; ++i) value[i] = x[0];
      top = select(value > top, value, top);
    });
    const float highest = largest(top);
    Vector total = {};
    for_vectors(count, [&](int64_t p, int64_t n) {
      const Vector e = exponential(load(x + p) - highest);
      store_part(x + p, e, n);
      total += load_part(x + p, n);
    });
    const float factor = 1.0f / sum(total);
    for (int64_t p = 0; p < count; p += LANES) store(x + p, load(x + p) * factor);
  }
}

// Each pixel's column of `x` to its softmax.
void softmax_columns(float* x, int64_t rows, int64_t pixels) {
  for (int64_t p = 0; p < pixels; p += LANES) {
    Vector top = load(x + p), total = {};
    for (int64_t row = 1; row < rows; ++row) {
      const Vector value = load(x + row * pixels + p);
      top = select(value > top, value, top);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const Vector e = exponential(load(x + row * pixels + p) - top);
      store(x + row * pixels + p, e);
      total += e;
    }
    const Vector factor = 1.0f / total;
    for (int64_t row = 0; row < rows; ++row) store(x + row * pixels + p, load(x + row * pixels + p) * factor);
  }
}

// The gradient dy of a softmax y to that of its argument: y (dy - <y, dy>), by rows or by columns.
void softmax_rows_gradient(const float* y, float* dy, int64_t rows, int64_t pixels, float factor) {
  for (int64_t row = 0; row < rows; ++row, y += pixels, dy += pixels) {
    Vector total = {};
    for (int64_t p = 0; p < pixels; p += LANES) total += load(y + p) * load(dy + p);
    const float mean = sum(total);
    for (int64_t p = 0; p < pixels; p += LANES) store(dy + p, load(y + p) * (load(dy + p) - mean) * factor);
  }
}

void softmax_columns_gradient(const float* y, float* dy, int64_t rows, int64_t pixels) {
  for (int64_t p = 0; p < pixels; p += LANES) {
    Vector mean = {};
    for (int64_t row = 0; row < rows; ++row) mean += load(y + row * pixels + p) * load(dy + row * pixels + p);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = row * pixels + p;
      store(dy + at, load(y + at) * (load(dy + at) - mean));
    }
  }
}

// One head of one image: where its q, k and v begin, and the sizes.
struct Heads {
  int64_t batch, heads, depth, count, pixels;
  explicit Heads(const int64_t* shape)  // (batch, 3 heads, depth, count)
      : batch(shape[0]), heads(shape[1] / 3), depth(shape[2]), count(shape[3]), pixels(round_up(count, LANES)) {}
  int64_t matrix() const { return depth * pixels; }
  // Element `part` (0, 1, 2: q, k, v) of the array of all, or of the output with one part only.
  int64_t at(int64_t task, int64_t part, int64_t parts) const {
    return ((task / heads * parts + part) * heads + task % heads) * depth * count;
  }
};

// (q k v, scale) -> out: out = scale (softmax(k) v^T)^T softmax(q), the softmax of k over pixels and of q over depth
int linear_attention(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]);
  float* const out = floats(data[2]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, pixels = sizes.pixels, matrix = sizes.matrix();
    float *const q = scratch(PLANES, 4 * matrix), *const k = q + matrix, *const v = k + matrix, *const y = v + matrix;
    float* const context = scratch(SUMS, depth * depth);
    for (int64_t task = first; task < last; ++task) {
      for (int part = 0; part < 3; ++part)
        copy_in(qkv + sizes.at(task, part, 3), depth, sizes.count, pixels, q + part * matrix);
      softmax_columns(q, depth, pixels);
      softmax_rows(k, depth, sizes.count, pixels);
      inner_products(k, depth, v, depth, pixels, context);  // [d][e]
      product(context, 1, depth, depth, depth, scale, q, pixels, y);
      copy_out(y, depth, sizes.count, pixels, out + sizes.at(task, 0, 1));
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
    const int64_t depth = sizes.depth, pixels = sizes.pixels, matrix = sizes.matrix();
    float *const q = scratch(PLANES, 5 * matrix), *const k = q + matrix, *const v = k + matrix;
    float *const dy = v + matrix, *const gradient = dy + matrix;
    float *const context = scratch(SUMS, 2 * depth * depth), *const dcontext = context + depth * depth;
    for (int64_t task = first; task < last; ++task) {
      for (int part = 0; part < 3; ++part)
        copy_in(qkv + sizes.at(task, part, 3), depth, sizes.count, pixels, q + part * matrix);
      copy_in(dout + sizes.at(task, 0, 1), depth, sizes.count, pixels, dy);
      softmax_columns(q, depth, pixels);
      softmax_rows(k, depth, sizes.count, pixels);
      inner_products(k, depth, v, depth, pixels, context);
      inner_products(q, depth, dy, depth, pixels, dcontext);
      product(context, depth, 1, depth, depth, scale, dy, pixels, gradient);
      softmax_columns_gradient(q, gradient, depth, pixels);
      copy_out(gradient, depth, sizes.count, pixels, dqkv + sizes.at(task, 0, 3));
      product(dcontext, depth, 1, depth, depth, scale, v, pixels, gradient);
      softmax_rows_gradient(k, gradient, depth, pixels, 1.0f);
      copy_out(gradient, depth, sizes.count, pixels, dqkv + sizes.at(task, 1, 3));
      product(dcontext, 1, depth, depth, depth, scale, k, pixels, gradient);
      copy_out(gradient, depth, sizes.count, pixels, dqkv + sizes.at(task, 2, 3));
    }
  });
  return 0;
}

// (q k v, scale) -> out = v softmax(scale q^T k)^T, the softmax over the pixels of k
int attention(void** data, int64_t** shapes) {
  const Heads sizes(shapes[0]);
  const float *const qkv = floats(data[0]), scale = *floats(data[1]);
  float* const out = floats(data[2]);
  parallel(sizes.batch * sizes.heads, [&](int64_t, int64_t first, int64_t last) {
    const int64_t depth = sizes.depth, count = sizes.count, pixels = sizes.pixels, matrix = sizes.matrix();
    float *const q = scratch(PLANES, 3 * matrix), *const k = q + matrix, *const v = k + matrix;
    float* const weights = scratch(OTHER_PLANES, count * pixels);  // [i of q][j of k]
    float* const y = scratch(SUMS, depth * count);
    for (int64_t task = first; task < last; ++task) {
      for (int part = 0; part < 3; ++part)
        copy_in(qkv + sizes.at(task, part, 3), depth, count, pixels, q + part * matrix);
      product(q, 1, pixels, count, depth, scale, k, pixels, weights);
      softmax_rows(weights, count, count, pixels);
      inner_products(v, depth, weights, count, pixels, y);
      std::copy(y, y + depth * count, out + sizes.at(task, 0, 1));
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
    const int64_t depth = sizes.depth, count = sizes.count, pixels = sizes.pixels, matrix = sizes.matrix();
    float *const q = scratch(PLANES, 4 * matrix), *const k = q + matrix, *const v = k + matrix, *const gradient = v + matrix;
    float *const weights = scratch(OTHER_PLANES, 2 * count * pixels), *const dweights = weights + count * pixels;
    float* const dq = scratch(SUMS, depth * count);
    for (int64_t task = first; task < last; ++task) {
      for (int part = 0; part < 3; ++part)
        copy_in(qkv + sizes.at(task, part, 3), depth, count, pixels, q + part * matrix);
      const float* const dy = dout + sizes.at(task, 0, 1);  // [d][i]
      product(q, 1, pixels, count, depth, scale, k, pixels, weights);
      softmax_rows(weights, count, count, pixels);
      product(dy, 1, count, count, depth, 1.0f, v, pixels, dweights);
      softmax_rows_gradient(weights, dweights, count, pixels, scale);
      inner_products(k, depth, dweights, count, pixels, dq);
      std::copy(dq, dq + depth * count, dqkv + sizes.at(task, 0, 3));
      product(q, pixels, 1, depth, count, 1.0f, dweights, pixels, gradient);
      copy_out(gradient, depth, count, pixels, dqkv + sizes.at(task, 1, 3));
      product(dy, count, 1, depth, count, 1.0f, weights, pixels, gradient);
      copy_out(gradient, depth, count, pixels, dqkv + sizes.at(task, 2, 3));
    }
  });
  return 0;
}

}  // namespace

KERNEL(ms_diffusion_linear_attention) { return linear_attention(data, shapes); }
KERNEL(ms_diffusion_linear_attention_gradient) { return linear_attention_gradient(data, shapes); }
KERNEL(ms_diffusion_attention) { return attention(data, shapes); }
KERNEL(ms_diffusion_attention_gradient) { return attention_gradient(data, shapes); }
