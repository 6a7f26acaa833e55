// Checks kernels without libtorch, for CPUs other than the one that the tests run on: all float16 values, and all steps of
// iac in every dtype and memory format against a plain loop in double. Exits with the number of failures.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ops/cpu/adaptive_conv/adaptive_conv.isa.cpp"
#undef INSTANTIATE
#include "ops/cpu/adaptive_conv/channels_last.isa.cpp"
#undef INSTANTIATE
#include "ops/cpu/adaptive_conv/step.isa.cpp"

namespace kernels = tta::TTA_ISA;
using tta::AdaptiveConv;

static int failures = 0;
static void expect(bool right, const char* what) {
  if (!right) {
    std::printf("FAILED %s\n", what);
    ++failures;
  }
}

static double random_value() { return std::rand() / double(RAND_MAX); }

static void check_float16() {
  std::vector<tta::Float16> half(65536), back(65536);
  std::vector<float> wide(65536);
  for (int i = 0; i < 65536; ++i) half[i].bits = uint16_t(i);
  tta::load_values(half.data(), 65536, wide.data());
  tta::store_values(wide.data(), 65536, back.data());
  for (int i = 0; i < 65536; ++i) {
    const float exact = tta::float16_value<float>(uint32_t(i));
    const bool nan = exact != exact;
    expect(nan ? wide[i] != wide[i] : wide[i] == exact, "float16 to float");
    expect(nan || back[i].bits == i, "float to float16");
  }
}

// Output of one channel, by the definition
static std::vector<double> expected(const AdaptiveConv& conv, std::vector<double> u, const std::vector<double>& filters,
                                    int64_t c) {
  const int64_t H = conv.H, W = conv.W, P = H * W, K = conv.K;
  for (int64_t n = 0; n < conv.N; ++n) {
    const double* vertical = &filters[(n * 2 * conv.C * K + c * K) * P];
    const double* horizontal = vertical + conv.C * K * P;
    const double* bias = &filters[(conv.N * 2 * conv.C * K + n * conv.C + c) * P];
    std::vector<double> v(P, 0), z(P);
    for (int64_t i = 0; i < P; ++i)
      for (int64_t t = 0; t < K; ++t) v[i] += vertical[t * P + i] * u[kernels::clamp(i / W + t - K / 2, H - 1) * W + i % W];
    for (int64_t i = 0; i < P; ++i) {
      z[i] = bias[i];
      for (int64_t t = 0; t < K; ++t) z[i] += horizontal[t * P + i] * v[i / W * W + kernels::clamp(i % W + t - K / 2, W - 1)];
      if (z[i] <= 0) z[i] *= conv.slope;
    }
    u = z;
  }
  return u;
}

template <typename S>
static void check_iac(const char* name, int64_t H, int64_t W, int64_t K, double tolerance) {
  const AdaptiveConv conv{1, 37, H, W, 3, K, 0.1, true, true};
  const int64_t P = H * W, channels = conv.N * conv.C * (2 * K + 1), taps = conv.C * K * P;
  std::vector<S> x(conv.C * P), filters(channels * P), last(channels * P), out(conv.C * P), out_last(conv.C * P);
  std::vector<double> wide(channels * P);
  for (S& value : x) tta::store(tta::accumulate_t<S>(random_value()), value);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t p = 0; p < P; ++p) {
      tta::store(tta::accumulate_t<S>(random_value() - 0.3), filters[c * P + p]);
      last[p * channels + c] = filters[c * P + p];
      wide[c * P + p] = double(tta::load(filters[c * P + p]));
    }
  kernels::adaptive_conv_forward<S>({conv, x.data(),
                                     {filters.data(), filters.data() + taps, filters.data() + conv.N * 2 * taps,
                                      {channels * P, 2 * taps, K * P, P, W}, {channels * P, conv.C * P, P, 0, W}},
                                     out.data(), nullptr}, 0, conv.C);
  for (int64_t c = 0; c < conv.C; ++c) {
    std::vector<double> u(P);
    for (int64_t p = 0; p < P; ++p) u[p] = double(tta::load(x[c * P + p]));
    const std::vector<double> want = expected(conv, u, wide, c);
    for (int64_t p = 0; p < P; ++p)
      expect(std::abs(double(tta::load(out[c * P + p])) - want[p]) <= tolerance * (1 + std::abs(want[p])), name);
  }
  if (K > 7) return;
  const int64_t groups = 2;
  kernels::adaptive_conv_forward_channels_last<S>({conv, x.data(),
                                                   {last.data(), last.data() + conv.C * K, last.data() + conv.N * 2 * conv.C * K,
                                                    {channels * P, 2 * conv.C * K}, {channels * P, conv.C}},
                                                   channels, groups, out_last.data(), nullptr}, 0, groups);
  for (int64_t i = 0; i < conv.C * P; ++i)
    expect(std::abs(double(tta::load(out_last[i])) - double(tta::load(out[i]))) <= tolerance, "channels_last");
}

int main() {
  check_float16();
  for (int64_t K : {3, 5, 9})
    for (int64_t W : {1, 7, 53}) {
      check_iac<float>("float32", 11, W, K, 1e-5);
      check_iac<double>("float64", 11, W, K, 1e-13);
      check_iac<tta::Float16>("float16", 11, W, K, 2e-3);
      check_iac<tta::BFloat16>("bfloat16", 11, W, K, 2e-2);
    }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
