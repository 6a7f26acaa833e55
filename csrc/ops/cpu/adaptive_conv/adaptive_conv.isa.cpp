// All steps of one channel after another, forward and backward, with taps read from memory.
#include "step.h"
#include "step_fused.h"

namespace tta::TTA_ISA {

namespace {

// Runs steps forward, each over its whole frame.
template <typename S>
class Steps {
 public:
  using T = accumulate_t<S>;

  Steps(const AdaptiveConv& conv, bool biased)
      : conv_(conv),
        fused_(can_fuse<T>(conv)),
        rows_(block_rows(conv.H, conv.W)),
        reader_(conv, rows_ * conv.W),
        middle_(rows_ * conv.W),
        no_bias_(fused_ && !biased ? conv.H * conv.W : 0) {
    if (fused_ && !biased) std::memset(no_bias_, 0, size_t(conv.H * conv.W) * sizeof(S));
  }

  // u -> z, which must not overlap; `next` are the taps that are read after these.
  void run(const Taps<const S>& taps, const Taps<const S>& next, T slope, const T* u, T* z) {
    if (fused_) {
      const RowStrides rows{taps.layout.row, taps.bias ? taps.layout.row : 0};
      return fused_frame<LANES<T>>(conv_, in_place(taps), in_place(next), rows, slope, u, z);
    }
    for_each_block(conv_, rows_, [&](const Block& block, int64_t first, int64_t pixels) {
      forward_block<T>(block, reader_.read(taps, first, pixels), slope, u, middle_, z + first);
    });
  }

 private:
  BlockTaps<const S> in_place(const Taps<const S>& taps) const {
    return {taps.vertical, conv_.own ? taps.horizontal : taps.vertical, taps.bias ? taps.bias : no_bias_,
            taps.layout.tap};
  }

  const AdaptiveConv& conv_;
  bool fused_;
  int64_t rows_;
  TapReader<S> reader_;
  Scratch<T> middle_;
  Scratch<S> no_bias_;
};

}  // namespace

template <typename S>
void adaptive_conv_forward(const AdaptiveConvForward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  constexpr bool in_place = sizeof(S) == sizeof(T);
  const AdaptiveConv& conv = args.conv;
  const int64_t plane = conv.H * conv.W;
  Steps<S> steps(conv, args.taps.bias != nullptr);
  Scratch<T> planes(2 * plane);
  const auto taps = [&](int64_t i, int64_t n) { return locate(args.taps, i / conv.C, n, i % conv.C); };
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / conv.C, c = i % conv.C;
    const T* u = widen(args.x + i * plane, plane, planes + plane);
    for (int64_t n = 0; n < conv.N; ++n) {
      T* z = u == planes ? planes + plane : planes + 0;
      if (n < conv.N - 1 && args.states) z = args.states + ((b * (conv.N - 1) + n) * conv.C + c) * plane;
      if constexpr (in_place)
        if (n == conv.N - 1) z = args.out + i * plane;
      const Taps<const S> next = n < conv.N - 1 ? taps(i, n + 1) : taps(i + 1 < end ? i + 1 : i, 0);
      steps.run(taps(i, n), next, slope_of<T>(conv, n), u, z);
      u = z;
    }
    if constexpr (!in_place) copy_narrowed(args.out + i * plane, u, plane, false);
  }
}

template <typename S>
void adaptive_conv_backward(const AdaptiveConvBackward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const AdaptiveConv& conv = args.conv;
  const int64_t plane = conv.H * conv.W, rows = block_rows(conv.H, conv.W), capacity = rows * conv.W;
  const bool wanted = args.grad_taps.vertical != nullptr;
  Steps<S> steps(conv, args.taps.bias != nullptr);
  TapReader<S> reader(conv, capacity);
  TapWriter<S> writer(conv, capacity, wanted, args.stream);
  Scratch<T> planes(3 * plane), again(args.states ? 0 : (conv.N - 1) * plane), scratch(3 * capacity);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / conv.C, c = i % conv.C;
    const auto taps = [&](int64_t n) { return locate(args.taps, b, n, c); };
    const T* x = widen(args.x + i * plane, plane, planes);
    const auto state = [&](int64_t n) {  // u_n, the input of step n
      if (n == 0) return x;
      return args.states ? args.states + ((b * (conv.N - 1) + n - 1) * conv.C + c) * plane : again + (n - 1) * plane;
    };
    for (int64_t n = 0; !args.states && n < conv.N - 1; ++n)
      steps.run(taps(n), taps(n + 1), T(conv.slope), state(n), again + n * plane);
    T *g = planes + plane, *g_next = planes + 2 * plane;
    const T* source = widen(args.grad + i * plane, plane, g);
    for (int64_t n = conv.N - 1; n >= 0; --n) {
      const Taps<S> grad_taps = locate(args.grad_taps, b, n, c);
      const T slope = slope_of<T>(conv, n);
      const T* u = state(n);
      // The sign of the last output is made again; where there is no activation any finite values will do.
      const T* output = n < conv.N - 1 ? state(n + 1) : slope == T(1) ? source : nullptr;
      std::memset(g_next, 0, size_t(plane) * sizeof(T));
      for_each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
        const BlockTaps<T> block_grads = writer.block();
        backward_block<T>(block, reader.read(taps(n), first, pixels), slope, u, output ? output + first : nullptr,
                              source + first, wanted ? &block_grads : nullptr, scratch, g_next);
        if (wanted) writer.write(grad_taps, first, pixels);
      });
      source = g_next;
      g_next = source == planes + plane ? planes + 2 * plane : planes + plane;
    }
    copy_narrowed(args.grad_x + i * plane, source, plane, false);
  }
  if (args.stream) stream_fence();
}

#define INSTANTIATE(S)                                                                              \
  template void adaptive_conv_forward<S>(const AdaptiveConvForward<S>&, int64_t, int64_t);           \
  template void adaptive_conv_backward<S>(const AdaptiveConvBackward<S>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(Float16)
INSTANTIATE(BFloat16)

}  // namespace tta::TTA_ISA
