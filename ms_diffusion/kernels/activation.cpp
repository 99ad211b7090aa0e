// GELU in both forms and SiLU, with their derivatives.
#include "core.h"

namespace {

// Phi(x), the normal distribution function; Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
inline Vector normal_cdf(Vector x, Vector gauss) {  // gauss = e^(-x^2 / 2)
  const Vector size = select(x < 0.0f, -x, x);
  const Vector t = 1.0f / (1.0f + 0.23164189f * size);  // 0.3275911 / sqrt 2
  Vector p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector tail = 0.5f * p * t * gauss;
  return select(x < 0.0f, tail, 1.0f - tail);
}

struct GeluErf {
  static Vector value(Vector x) { return x * normal_cdf(x, exponential(-0.5f * x * x)); }
  static Vector slope(Vector x) {
    const Vector gauss = exponential(-0.5f * x * x);
    return normal_cdf(x, gauss) + x * gauss * 0.39894228f;
  }
};

// x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
struct GeluTanh {
  static Vector twice_u(Vector x) { return x * (1.5957691216f + 0.0713548163f * x * x); }
  static Vector value(Vector x) { return x * sigmoid(twice_u(x)); }
  static Vector slope(Vector x) {
    const Vector s = sigmoid(twice_u(x));
    return s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * x * x);
  }
};

struct Silu {
  static Vector value(Vector x) { return x * sigmoid(x); }
  static Vector slope(Vector x) {
    const Vector s = sigmoid(x);
    return s + x * s * (1.0f - s);
  }
};

template <class F>
void for_each(int64_t count, F f) {
  const int64_t pieces = divide_up(count, 4096);
  parallel(pieces, [&](int64_t, int64_t first, int64_t last) {
    const int64_t begin = first * 4096;
    for_vectors(std::min(count, last * 4096) - begin, [&](int64_t i, int64_t n) { f(begin + i, n); });
  });
}

// x -> y
template <class Function>
int forward(void** data, int* ranks, int64_t** shapes) {
  const float* const x = floats(data[0]);
  float* const y = floats(data[1]);
  for_each(size(shapes[0], ranks[0]), [&](int64_t i, int64_t n) { store_some(y + i, Function::value(load_some(x + i, n)), n); });
  return 0;
}

// (x, dy) -> dx
template <class Function>
int gradient(void** data, int* ranks, int64_t** shapes) {
  const float *const x = floats(data[0]), *const dy = floats(data[1]);
  float* const dx = floats(data[2]);
  for_each(size(shapes[0], ranks[0]), [&](int64_t i, int64_t n) {
    store_some(dx + i, load_some(dy + i, n) * Function::slope(load_some(x + i, n)), n);
  });
  return 0;
}

}  // namespace

KERNEL(ms_diffusion_gelu_erf) { return forward<GeluErf>(data, ranks, shapes); }
KERNEL(ms_diffusion_gelu_erf_gradient) { return gradient<GeluErf>(data, ranks, shapes); }
KERNEL(ms_diffusion_gelu_tanh) { return forward<GeluTanh>(data, ranks, shapes); }
KERNEL(ms_diffusion_gelu_tanh_gradient) { return gradient<GeluTanh>(data, ranks, shapes); }
KERNEL(ms_diffusion_silu) { return forward<Silu>(data, ranks, shapes); }
KERNEL(ms_diffusion_silu_gradient) { return gradient<Silu>(data, ranks, shapes); }
