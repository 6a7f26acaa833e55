// Filters are made, used and forgotten: products with the predictor's weight between the steps of a group of channels.
#include "from_features.h"

#include "step.h"
#include "gemm_panel.h"

namespace tta::TTA_ISA {
namespace {

// One step's share of the predictor, for a group of channels.
template <typename S>
class Predictor {
 public:
  using T = accumulate_t<S>;

  Predictor(const FromFeatures<S>& args, const FeaturesLayout& layout)
      : args_(args),
        layout_(layout),
        most_rows_(padded_rows(args.group * (2 * args.conv.K + 1))),
        panels_(most_rows_ * args.D),
        start_(most_rows_),
        tile_(most_rows_ * layout.columns) {}

  const GroupChannels& rows() const { return rows_; }

  void take_step(int64_t n, int64_t c, int64_t count) {
    rows_ = filter_channels(args_.conv, n, c, count);
    count_ = count;
    const auto panel_row = [&](int64_t i) {
      return panels_ + i / PANEL_ROWS * PANEL_ROWS * args_.D + i % PANEL_ROWS;
    };
    for_each_row(rows_, [&](int64_t i, int64_t row) {
      T* to = panel_row(i);
      const S* from = args_.weight + row * args_.D;
      for (int64_t d = 0; d < args_.D; ++d) to[d * PANEL_ROWS] = load(from[d]);
      start_[i] = load(args_.bias[row]);
    });
    for (int64_t i = rows_.total; i % PANEL_ROWS; ++i) {
      for (int64_t d = 0; d < args_.D; ++d) panel_row(i)[d * PANEL_ROWS] = 0;
      start_[i] = 0;
    }
  }

  // Makes the filters of a chunk of rows of frame b.
  void predict(int64_t b, int64_t chunk) {
    const T* features = args_.packed + b * layout_.features + chunk * layout_.columns * args_.D;
    gemm_packed<T>(panels_, rows_.total, args_.D, features, args_.D * PANEL_COLUMNS<T>, PANEL_COLUMNS<T>, layout_.columns,
                start_, tile_, layout_.columns);
  }

  BlockTaps<const T> taps(int64_t c) const {
    const BlockTaps<T> found = tile_taps<T>(args_.conv, tile_, c, count_, layout_.columns);
    return {found.vertical, found.horizontal, found.bias, found.stride};
  }

 private:
  const FromFeatures<S>& args_;
  const FeaturesLayout& layout_;
  int64_t most_rows_, count_ = 0;
  GroupChannels rows_{};
  Scratch<T> panels_, start_, tile_;
};

template <typename Call>
void for_each_chunk(const AdaptiveConv& conv, const FeaturesLayout& layout, Call call) {
  for (int64_t chunk = 0; chunk < layout.chunks; ++chunk) {
    const int64_t y = chunk * layout.rows, end = y + layout.rows < conv.H ? y + layout.rows : conv.H;
    call(chunk, Block{conv.H, conv.W, y, end, conv.K}, y * conv.W);
  }
}

}  // namespace

template <typename T>
FeaturesLayout features_layout(const AdaptiveConv& conv, int64_t D) {
  // Chunks of some hundreds of pixels, of the height that wastes least on padding.
  int64_t best = 1;
  const auto waste = [&](int64_t rows) { return double(padded<T>(rows * conv.W)) / double(rows * conv.W); };
  for (int64_t rows = 1; rows <= conv.H && rows * conv.W <= 1024; ++rows)
    if (rows * conv.W <= 256 || waste(rows) <= waste(best)) best = rows;
  const int64_t chunks = (conv.H + best - 1) / best, columns = padded<T>(best * conv.W);
  return {best, chunks, columns, padded<T>(D + 1), chunks * columns * padded_rows(D)};
}

template <typename S>
void pack_features(const AdaptiveConv& conv, int64_t D, const S* features, accumulate_t<S>* packed,
                   accumulate_t<S>* transposed, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const FeaturesLayout layout = features_layout<T>(conv, D);
  const int64_t plane = conv.H * conv.W;
  for_each_chunk(conv, layout, [&](int64_t chunk, const Block& block, int64_t first) {
    if (chunk < begin || chunk >= end) return;
    const int64_t pixels = (block.y1 - block.y0) * conv.W;
    for (int64_t j = 0; j < layout.columns; j += PANEL_COLUMNS<T>)
      for (int64_t d = 0; d < D; ++d) {
        T* to = packed + (chunk * layout.columns + j) * D + d * PANEL_COLUMNS<T>;
        const S* from = features + d * plane + first + j;
        for (int64_t l = 0; l < PANEL_COLUMNS<T>; ++l) to[l] = j + l < pixels ? load(from[l]) : T(0);
      }
    for (int64_t d = 0; transposed && d < layout.depth; ++d)
      for (int64_t j = first; j < first + pixels; ++j)
        transposed[j * layout.depth + d] = d < D ? load(features[d * plane + j]) : T(d == D);
  });
}

template <typename S>
void unpack_features(const AdaptiveConv& conv, int64_t D, const accumulate_t<S>* packed, int64_t count, int64_t apart,
                     S* out, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const FeaturesLayout layout = features_layout<T>(conv, D);
  const int64_t plane = conv.H * conv.W;
  for_each_chunk(conv, layout, [&](int64_t chunk, const Block& block, int64_t first) {
    if (chunk < begin || chunk >= end) return;
    for (int64_t d = 0; d < D; ++d)
      for (int64_t j = 0; j < (block.y1 - block.y0) * conv.W; ++j) {
        T sum = 0;
        for (int64_t k = 0; k < count; ++k) sum += packed[k * apart + (chunk * padded_rows(D) + d) * layout.columns + j];
        store(sum, out[d * plane + first + j]);
      }
  });
}

template <typename S>
void from_features_forward(const FromFeatures<S>& args, S* out, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const AdaptiveConv& conv = args.conv;
  const FeaturesLayout layout = features_layout<T>(conv, args.D);
  const int64_t plane = conv.H * conv.W, groups = (conv.C + args.group - 1) / args.group;
  // Every step writes its rows K/2 rows higher than it read them: a chunk then overwrites only rows that the chunks
  // below do not read, and one plane per channel is enough.
  const int64_t rise = conv.K / 2 * conv.W, plane_stride = plane + conv.N * rise;
  Predictor<S> predictor(args, layout);
  Scratch<T> planes(args.group * plane_stride), middle(layout.columns);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / groups, c = i % groups * args.group;
    const int64_t count = conv.C - c < args.group ? conv.C - c : args.group;
    const int64_t first_plane = (b * conv.C + c) * plane;
    for (int64_t k = 0; k < count; ++k)
      load_values(args.x + first_plane + k * plane, plane, planes + k * plane_stride + conv.N * rise);
    for (int64_t n = 0; n < conv.N; ++n) {
      predictor.take_step(n, c, count);
      for_each_chunk(conv, layout, [&](int64_t chunk, const Block& block, int64_t first) {
        predictor.predict(b, chunk);
        for (int64_t k = 0; k < count; ++k) {
          T* u = planes + k * plane_stride + (conv.N - n) * rise;
          forward_block<T>(block, predictor.taps(k), slope_of<T>(conv, n), u, middle, u - rise + first);
        }
      });
    }
    for (int64_t k = 0; k < count; ++k) copy_narrowed(out + first_plane + k * plane, planes + k * plane_stride, plane, false);
  }
}

template <typename S>
void from_features_backward(const FromFeaturesBackward<S>& args, accumulate_t<S>* grad_features, int64_t first_group,
                        int64_t group_stride) {
  using T = accumulate_t<S>;
  const FromFeatures<S>& forward = args.forward;
  const AdaptiveConv& conv = forward.conv;
  const FeaturesLayout layout = features_layout<T>(conv, forward.D);
  const int64_t plane = conv.H * conv.W, D = forward.D, b = args.frame, group = forward.group;
  const int64_t groups = (conv.C + group - 1) / group, most_rows = padded_rows(group * (2 * conv.K + 1));
  const bool wanted = args.grad_weight || grad_features;
  Predictor<S> predictor(forward, layout);
  // u_n of channel k, and the gradients in the outputs and inputs of a step
  Scratch<T> states(conv.N * group * plane), grads(2 * group * plane), scratch(3 * layout.columns);
  Scratch<T> grad_tile(wanted ? most_rows * layout.columns : 0);
  Scratch<T> grad_rows(args.grad_weight ? most_rows * layout.depth : 0);  // of weight and bias, in this step
  Scratch<T> columns(grad_features ? most_rows * padded_rows(D) : 0);     // of weight: its transpose in panels
  for (int64_t j = 0; wanted && j < most_rows * layout.columns; ++j) grad_tile[j] = 0;
  const auto state = [&](int64_t n, int64_t k) { return states + (n * group + k) * plane; };
  for (int64_t i = first_group; i < groups; i += group_stride) {
    const int64_t c = i * group, count = conv.C - c < group ? conv.C - c : group;
    T *grad = grads, *grad_next = grads + group * plane;
    for (int64_t k = 0; k < count; ++k) {
      load_values(forward.x + (b * conv.C + c + k) * plane, plane, state(0, k));
      load_values(args.grad + (b * conv.C + c + k) * plane, plane, grad + k * plane);
    }
    for (int64_t n = 0; n < conv.N - 1; ++n) {
      predictor.take_step(n, c, count);
      for_each_chunk(conv, layout, [&](int64_t chunk, const Block& block, int64_t first) {
        predictor.predict(b, chunk);
        for (int64_t k = 0; k < count; ++k)
          forward_block<T>(block, predictor.taps(k), slope_of<T>(conv, n), state(n, k), scratch,
                               state(n + 1, k) + first);
      });
    }
    for (int64_t n = conv.N - 1; n >= 0; --n) {
      const T slope = slope_of<T>(conv, n);
      predictor.take_step(n, c, count);
      const GroupChannels& rows = predictor.rows();
      if (grad_features)
        for (int64_t d = 0; d < D; d += PANEL_ROWS)
          for_each_row(rows, [&](int64_t r, int64_t row) {
            for (int64_t e = 0; e < PANEL_ROWS; ++e)
              columns[d * rows.total + r * PANEL_ROWS + e] = d + e < D ? load(forward.weight[row * D + d + e]) : T(0);
          });
      if (args.grad_weight) std::memset(grad_rows, 0, size_t(padded_rows(rows.total) * layout.depth) * sizeof(T));
      std::memset(grad_next, 0, size_t(count * plane) * sizeof(T));
      for_each_chunk(conv, layout, [&](int64_t chunk, const Block& block, int64_t first) {
        const int64_t pixels = (block.y1 - block.y0) * conv.W;
        predictor.predict(b, chunk);
        for (int64_t k = 0; k < count; ++k) {
          const BlockTaps<T> grad_taps = tile_taps<T>(conv, grad_tile, k, count, layout.columns);
          const T* g = grad + k * plane;
          const T* output = n < conv.N - 1 ? state(n + 1, k) : slope == T(1) ? g : nullptr;
          backward_block<T>(block, predictor.taps(k), slope, state(n, k), output ? output + first : nullptr,
                                g + first, wanted ? &grad_taps : nullptr, scratch, grad_next + k * plane);
        }
        if (args.grad_weight)
          gemm_row_major<T>(grad_tile, rows.total, pixels, layout.columns, args.transposed + first * layout.depth,
                           layout.depth, layout.depth, grad_rows, layout.depth);
        if (grad_features)
          gemm_packed<T>(columns, D, rows.total, grad_tile, PANEL_COLUMNS<T>, layout.columns, layout.columns, nullptr,
                      grad_features + chunk * layout.columns * padded_rows(D), layout.columns);
      });
      if (args.grad_weight)
        for_each_row(rows, [&](int64_t r, int64_t row) {
          for (int64_t d = 0; d < D; ++d) args.grad_weight[row * D + d] += grad_rows[r * layout.depth + d];
          args.grad_bias[row] += grad_rows[r * layout.depth + D];
        });
      T* const done = grad;
      grad = grad_next;
      grad_next = done;
    }
    copy_narrowed(args.grad_x + (b * conv.C + c) * plane, grad, count * plane, false);
  }
}

template FeaturesLayout features_layout<float>(const AdaptiveConv&, int64_t);
template FeaturesLayout features_layout<double>(const AdaptiveConv&, int64_t);
#define INSTANTIATE(S)                                                                                               \
  template void pack_features<S>(const AdaptiveConv&, int64_t, const S*, accumulate_t<S>*, accumulate_t<S>*, int64_t, \
                                 int64_t);                                                                           \
  template void unpack_features<S>(const AdaptiveConv&, int64_t, const accumulate_t<S>*, int64_t, int64_t, S*,        \
                                   int64_t, int64_t);                                                                \
  template void from_features_forward<S>(const FromFeatures<S>&, S*, int64_t, int64_t);                                     \
  template void from_features_backward<S>(const FromFeaturesBackward<S>&, accumulate_t<S>*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
