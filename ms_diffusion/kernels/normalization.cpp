// Group normalisation, and normalisation of each pixel over its channels.
#include <cmath>

#include "core.h"

namespace {

constexpr float EPSILON = 1e-5f;

float sum_of(const float* x, int64_t count) {
  Vector total[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    for (int v = 0; v < 4; ++v) total[v] += load(x + i + v * LANES);
  for_vectors(count - i, [&](int64_t j, int64_t n) { total[0] += load_some(x + i + j, n); });
  return sum((total[0] + total[1]) + (total[2] + total[3]));
}

float sum_of_squares(const float* x, int64_t count, float mean) {
  Vector total[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    for (int v = 0; v < 4; ++v) {
      const Vector centred = load(x + i + v * LANES) - mean;
      total[v] += centred * centred;
    }
  float rest = 0.0f;
  for (; i < count; ++i) rest += (x[i] - mean) * (x[i] - mean);
  return sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

// (x, gain, bias) -> y, (mean, 1 / standard deviation) of each group; the statistics are (batch, groups, 2)
int group_norm(void** data, int64_t** shapes) {
  const float *const x = floats(data[0]), *const gain = floats(data[1]), *const bias = floats(data[2]);
  float *const y = floats(data[3]), *const statistics = floats(data[4]);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
  const int64_t groups = shapes[4][1], width = channels / groups, count = width * pixels;
  parallel(batch * groups, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      const float* const from = x + group * count;
      float* const to = y + group * count;
      const float mean = sum_of(from, count) / count;
      const float scale = 1.0f / std::sqrt(sum_of_squares(from, count, mean) / count + EPSILON);
      statistics[2 * group] = mean;
      statistics[2 * group + 1] = scale;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t channel = group % groups * width + c;
        const float factor = scale * gain[channel], shift = bias[channel];
        for_vectors(pixels, [&](int64_t p, int64_t n) {
          const int64_t at = c * pixels + p;
          store_some(to + at, (load_some(from + at, n) - mean) * factor + shift, n);
        });
      }
    }
  });
  return 0;
}

// (x, gain, statistics, dy) -> dx, dgain, dbias
int group_norm_gradient(void** data, int64_t** shapes) {
  const float *const x = floats(data[0]), *const gain = floats(data[1]), *const statistics = floats(data[2]);
  const float* const dy = floats(data[3]);
  float *const dx = floats(data[4]), *const dgain = floats(data[5]), *const dbias = floats(data[6]);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
  const int64_t groups = shapes[2][1], width = channels / groups, count = width * pixels;
  float* const sums = scratch(SUMS, batch * channels * 2);  // of dy and of dy x-hat, for each image and channel
  parallel(batch * groups, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group) {
      const float mean = statistics[2 * group], scale = statistics[2 * group + 1];
      float total = 0.0f, total_normed = 0.0f;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t at = group * count + c * pixels;
        Vector ones = {}, normed = {};
        for_vectors(pixels, [&](int64_t p, int64_t n) {
          const Vector d = load_some(dy + at + p, n);
          ones += d;
          normed += d * (load_some(x + at + p, n) - mean);
        });
        float* const here = sums + 2 * (group * width + c);
        here[0] = sum(ones);
        here[1] = sum(normed) * scale;
        const float factor = gain[group % groups * width + c];
        total += factor * here[0];
        total_normed += factor * here[1];
      }
      const float shift = scale * total / count, slope = scale * scale * total_normed / count;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t at = group * count + c * pixels;
        const float factor = scale * gain[group % groups * width + c];
        for_vectors(pixels, [&](int64_t p, int64_t n) {
          const Vector centred = load_some(x + at + p, n) - mean;
          store_some(dx + at + p, load_some(dy + at + p, n) * factor - shift - centred * slope, n);
        });
      }
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    float of_gain = 0.0f, of_bias = 0.0f;
    for (int64_t b = 0; b < batch; ++b) {
      of_bias += sums[2 * (b * channels + c)];
      of_gain += sums[2 * (b * channels + c) + 1];
    }
    dgain[c] = of_gain;
    dbias[c] = of_bias;
  }
  return 0;
}

// Calls f(share, image, pixel, n) for every vector of pixels of every image.
template <class F>
void for_pixels(int64_t batch, int64_t pixels, F f, int64_t most_shares = thread_count()) {
  const int64_t vectors = divide_up(pixels, LANES);
  parallel(batch * vectors, [&](int64_t share, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t p = task % vectors * LANES;
      f(share, task / vectors, p, std::min(LANES, pixels - p));
    }
  }, most_shares);
}

// (x, gain) -> y, (mean, 1 / standard deviation) of each pixel; the statistics are (batch, 2, height, width)
int layer_norm(void** data, int64_t** shapes) {
  const float *const x = floats(data[0]), *const gain = floats(data[1]);
  float *const y = floats(data[2]), *const statistics = floats(data[3]);
  const int64_t channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3];
  for_pixels(shapes[0][0], pixels, [&](int64_t, int64_t image, int64_t p, int64_t n) {
    const float* const from = x + image * channels * pixels + p;
    float* const to = y + image * channels * pixels + p;
    Vector mean = {}, variance = {};
    for (int64_t c = 0; c < channels; ++c) mean += load_some(from + c * pixels, n);
    mean /= static_cast<float>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector centred = load_some(from + c * pixels, n) - mean;
      variance += centred * centred;
    }
    variance = variance / static_cast<float>(channels) + EPSILON;
    const Vector scale = 1.0f / square_root(variance);
    store_some(statistics + 2 * image * pixels + p, mean, n);
    store_some(statistics + (2 * image + 1) * pixels + p, scale, n);
    for (int64_t c = 0; c < channels; ++c)
      store_some(to + c * pixels, (load_some(from + c * pixels, n) - mean) * scale * gain[c], n);
  });
  return 0;
}

// (x, gain, statistics, dy) -> dx, dgain
int layer_norm_gradient(void** data, int64_t** shapes) {
  const float *const x = floats(data[0]), *const gain = floats(data[1]), *const statistics = floats(data[2]);
  const float* const dy = floats(data[3]);
  float *const dx = floats(data[4]), *const dgain = floats(data[5]);
  const int64_t channels = shapes[0][1], pixels = shapes[0][2] * shapes[0][3], shares = thread_count();
  float* const sums = scratch(SUMS, shares * channels * LANES);
  std::fill(sums, sums + shares * channels * LANES, 0.0f);
  for_pixels(shapes[0][0], pixels, [&](int64_t share, int64_t image, int64_t p, int64_t n) {
    const int64_t at = image * channels * pixels + p;
    const Vector mean = load_some(statistics + 2 * image * pixels + p, n);
    const Vector scale = load_some(statistics + (2 * image + 1) * pixels + p, n);
    Vector total = {}, total_normed = {};
    for (int64_t c = 0; c < channels; ++c) {
      const Vector normed = (load_some(x + at + c * pixels, n) - mean) * scale;
      const Vector d = load_some(dy + at + c * pixels, n);
      float* const sum = sums + (share * channels + c) * LANES;
      store(sum, load(sum) + d * normed);
      total += d * gain[c];
      total_normed += d * gain[c] * normed;
    }
    total /= static_cast<float>(channels);
    total_normed /= static_cast<float>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const Vector normed = (load_some(x + at + c * pixels, n) - mean) * scale;
      const Vector d = load_some(dy + at + c * pixels, n) * gain[c];
      store_some(dx + at + c * pixels, (d - total - normed * total_normed) * scale, n);
    }
  }, shares);
  for (int64_t c = 0; c < channels; ++c) {
    Vector total = {};
    for (int64_t share = 0; share < shares; ++share) total += load(sums + (share * channels + c) * LANES);
    dgain[c] = sum(total);
  }
  return 0;
}

}  // namespace

KERNEL(ms_diffusion_group_norm) { return group_norm(data, shapes); }
KERNEL(ms_diffusion_group_norm_gradient) { return group_norm_gradient(data, shapes); }
KERNEL(ms_diffusion_layer_norm) { return layer_norm(data, shapes); }
KERNEL(ms_diffusion_layer_norm_gradient) { return layer_norm_gradient(data, shapes); }
