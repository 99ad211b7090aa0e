// The norm of all gradients, and Adam and the moving average of all parameters, each in one call: a network has hundreds
// of small ones.
#include <cmath>
#include <vector>

#include "core.h"

namespace {

constexpr int64_t PIECE = 8192;  // numbers that are summed, or updated, at once

struct Piece {
  int64_t array, first, count;
};

std::vector<Piece> pieces_of(int64_t arrays, const int* ranks, int64_t** shapes) {
  std::vector<Piece> pieces;
  for (int64_t array = 0; array < arrays; ++array) {
    const int64_t count = size(shapes[array], ranks[array]);
    for (int64_t first = 0; first < count; first += PIECE) pieces.push_back({array, first, std::min(PIECE, count - first)});
  }
  return pieces;
}

// (gradient, ...) -> their Euclidean norm as one vector
int global_norm(int count, void** data, const int* ranks, int64_t** shapes) {
  const std::vector<Piece> pieces = pieces_of(count - 1, ranks, shapes);
  std::vector<double> sums(pieces.size());
  parallel(pieces.size(), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float* const gradient = floats(data[pieces[i].array]) + pieces[i].first;
      Vector total = {};
      for_vectors(pieces[i].count, [&](int64_t p, int64_t n) {
        const Vector g = load_some(gradient + p, n);
        total += g * g;
      });
      sums[i] = sum(total);
    }
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  *floats(data[count - 1]) = static_cast<float>(std::sqrt(total));
  return 0;
}

// MindSpore's Adam on all parameters, in place, unless `factor` is not finite:
// (parameters, first moments, second moments, gradients, factor of the gradients, learning rate, beta1, beta2, epsilon,
// beta1^t, beta2^t, t) -> t. The last three inputs are moved on first.
int adam(int count, void** data, const int* ranks, int64_t** shapes) {
  const int64_t arrays = (count - 9) / 4;
  void** const scalars = data + 4 * arrays;
  const float factor = *floats(scalars[0]), rate = *floats(scalars[1]), beta1 = *floats(scalars[2]);
  const float beta2 = *floats(scalars[3]), epsilon = *floats(scalars[4]);
  float *const power1 = floats(scalars[5]), *const power2 = floats(scalars[6]);
  int32_t* const steps = static_cast<int32_t*>(scalars[7]);
  if (std::isfinite(factor)) {
    *power1 *= beta1;
    *power2 *= beta2;
    *steps += 1;
    const float step = rate * std::sqrt(1.0f - *power2) / (1.0f - *power1);
    const std::vector<Piece> pieces = pieces_of(arrays, ranks, shapes);
    parallel(pieces.size(), [&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const auto at = [&](int64_t kind) { return floats(data[kind * arrays + pieces[i].array]) + pieces[i].first; };
        float *const weight = at(0), *const moment1 = at(1), *const moment2 = at(2), *const gradient = at(3);
        for_vectors(pieces[i].count, [&](int64_t p, int64_t n) {
          const Vector g = load_some(gradient + p, n) * factor;
          Vector m = load_some(moment1 + p, n), v = load_some(moment2 + p, n);
          m += (g - m) * (1.0f - beta1);
          v += (g * g - v) * (1.0f - beta2);
          store_some(moment1 + p, m, n);
          store_some(moment2 + p, v, n);
          store_some(weight + p, load_some(weight + p, n) - step * m / (square_root(v) + epsilon), n);
        });
      }
    });
  }
  *static_cast<int32_t*>(data[count - 1]) = *steps;
  return 0;
}

// (averages, weights, decay d (1,), t of `adam`) -> t: average <- d average + (1 - d) weight, in place.
int ema(int count, void** data, const int* ranks, int64_t** shapes) {
  const int64_t arrays = (count - 3) / 2;
  const float decay = *floats(data[2 * arrays]);
  const std::vector<Piece> pieces = pieces_of(arrays, ranks, shapes);
  parallel(pieces.size(), [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float* const average = floats(data[pieces[i].array]) + pieces[i].first;
      const float* const weight = floats(data[arrays + pieces[i].array]) + pieces[i].first;
      for_vectors(pieces[i].count, [&](int64_t p, int64_t n) {
        const Vector mixed = load_some(average + p, n) * decay + load_some(weight + p, n) * (1.0f - decay);
        store_some(average + p, mixed, n);
      });
    }
  });
  *static_cast<int32_t*>(data[count - 1]) = *static_cast<const int32_t*>(data[count - 2]);
  return 0;
}

}  // namespace

KERNEL(ms_diffusion_global_norm) { return global_norm(count, data, ranks, shapes); }
KERNEL(ms_diffusion_adam) { return adam(count, data, ranks, shapes); }
KERNEL(ms_diffusion_ema) { return ema(count, data, ranks, shapes); }
