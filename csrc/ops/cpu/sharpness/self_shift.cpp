#include "self_shift.h"

#include <array>
#include <vector>

#include "dispatch.h"
#include "library.h"
#include "ops/cpu/layout/layout.h"

namespace {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Pixels that the overlap holds, for each of the four directions.
std::array<double, 4> overlap_sizes(int64_t C, int64_t H, int64_t W) {
  const double diagonal = double(C) * (H - 1) * (W - 1);
  return {diagonal, double(C) * (H - 1) * W, diagonal, double(C) * H * (W - 1)};
}

Tensor self_shift_products(const Tensor& a_in, const Tensor& b_in) {
  TTA_CHECK("self_shift_products", a_in.dim() == 4 && a_in.scalar_type() == b_in.scalar_type(),
            "expected two tensors (B, C, H, W) of one dtype");
  const Tensor a = tta::dense(a_in), b = tta::dense(b_in);
  const int64_t B = a.size(0), C = a.size(1), H = a.size(2), W = a.size(3);
  TTA_CHECK("self_shift_products", b.size(0) == B && b.size(1) == C && b.size(2) == H && b.size(3) == W,
            "expected two tensors of one shape");
  const ScalarType kept = tta::computing_type(a);
  Tensor out = torch::stable::new_empty(a, {B, 4}, kept);
  const auto overlap = overlap_sizes(C, H, W);
  // One slot per row, added up in order afterwards: the same sum for any number of threads.
  std::vector<std::array<double, 4>> sums(B * C * H);
  tta::dispatch("self_shift_products", a.scalar_type(), [&]<typename T>() {
    const T *ap = tta::data<T>(a), *bp = tta::data<T>(b);
    const auto row_sums = TTA_BEST_ISA(self_shift_row<T>);
    torch::stable::parallel_for(0, B * C * H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *a_row = ap + i * W, *b_row = bp + i * W;
        const bool last = i % H == H - 1;
        row_sums(a_row, last ? nullptr : a_row + W, b_row, last ? nullptr : b_row + W, W, sums[i].data());
      }
    });
    auto* op = tta::mutable_data<tta::accumulate_t<T>>(out);
    for (int64_t n = 0; n < B; ++n)
      for (int j = 0; j < 4; ++j) {
        double sum = 0;
        for (int64_t i = n * C * H; i < (n + 1) * C * H; ++i) sum += sums[i][j];
        op[n * 4 + j] = tta::accumulate_t<T>(sum / overlap[j]);
      }
  });
  return out;
}

Tensor self_shift_laplacian(const Tensor& x_in, const Tensor& weights_in) {
  TTA_CHECK("self_shift_laplacian", x_in.dim() == 4 && weights_in.dim() == 2 && weights_in.size(1) == 4,
            "expected x (B, C, H, W) and weights (B, 4)");
  const Tensor x = tta::dense(x_in), weights = tta::dense(weights_in);
  const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const ScalarType kept = tta::computing_type(x);
  TTA_CHECK("self_shift_laplacian", weights.size(0) == B && weights.scalar_type() == kept,
            "expected weights (B, 4) in the type that sums are kept in");
  Tensor out = torch::stable::empty_like(x);
  const auto overlap = overlap_sizes(C, H, W);
  tta::dispatch("self_shift_laplacian", x.scalar_type(), [&]<typename T>() {
    using A = tta::accumulate_t<T>;
    const T* xp = tta::data<T>(x);
    const A* wp = tta::data<A>(weights);
    T* op = tta::mutable_data<T>(out);
    const auto laplacian_row = TTA_BEST_ISA(self_shift_laplacian_row<T>);
    torch::stable::parallel_for(0, B * C * H, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* row = xp + i * W;
        const int64_t y = i % H, n = i / (C * H);
        A w[4];
        for (int j = 0; j < 4; ++j) w[j] = A(wp[n * 4 + j] / overlap[j]);
        laplacian_row(y == 0 ? nullptr : row - W, row, y == H - 1 ? nullptr : row + W, W, w, op + i * W);
      }
    });
  });
  return out;
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("self_shift_products", TORCH_BOX(&self_shift_products));
  m.impl("self_shift_laplacian", TORCH_BOX(&self_shift_laplacian));
}
