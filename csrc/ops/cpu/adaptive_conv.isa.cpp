// All steps of one channel after another, forward and backward, with taps read from memory.
#include "adaptive_conv_block.h"
#include "adaptive_conv_sweep.h"

namespace tta::TTA_ISA {

template <typename S>
void adaptive_conv_forward(const AdaptiveConvForward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  constexpr bool in_place = sizeof(S) == sizeof(T);
  const AdaptiveConv& conv = args.conv;
  const bool sweep = sweeps<T>(conv);
  const int64_t plane = conv.H * conv.W, rows = block_rows(conv.H, conv.W), capacity = sweep ? 0 : rows * conv.W;
  TapReader<S> reader(conv, capacity);
  Scratch<T> planes(2 * plane), middle(capacity);
  Scratch<S> no_bias(sweep && !args.taps.bias ? plane : 0);
  if (sweep && !args.taps.bias) std::memset(no_bias, 0, size_t(plane) * sizeof(S));
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / conv.C, c = i % conv.C;
    T* spare = planes + plane;
    const T* u = widen(args.x + i * plane, plane, spare);
    for (int64_t n = 0; n < conv.N; ++n) {
      const Taps<const S> taps = locate(args.taps, b, n, c);
      T* z = u == planes ? planes + plane : planes + 0;
      if (n < conv.N - 1 && args.states) z = args.states + ((b * (conv.N - 1) + n) * conv.C + c) * plane;
      if constexpr (in_place)
        if (n == conv.N - 1) z = args.out + i * plane;
      if (sweep)
        sweep_frame<LANES<T>, S, T>(conv, {taps.vertical, conv.own ? taps.horizontal : taps.vertical,
                                 taps.bias ? taps.bias : no_bias, plane}, slope_of<T>(conv, n), u, z);
      else
        each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
          forward_block<T>(block, reader.read(taps, first, pixels), slope_of<T>(conv, n), u, middle, z + first);
        });
      u = z;
    }
    if constexpr (!in_place) put(args.out + i * plane, u, plane, false);
  }
}

template <typename S>
void adaptive_conv_backward(const AdaptiveConvBackward<S>& args, int64_t begin, int64_t end) {
  using T = accumulate_t<S>;
  const AdaptiveConv& conv = args.conv;
  const int64_t plane = conv.H * conv.W, rows = block_rows(conv.H, conv.W), capacity = rows * conv.W;
  const bool wanted = args.grad_taps.vertical != nullptr;
  TapReader<S> reader(conv, capacity);
  TapWriter<S> writer(conv, capacity, wanted, args.stream);
  Scratch<T> planes(3 * plane), again(args.states ? 0 : (conv.N - 1) * plane), rooms(3 * capacity);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / conv.C, c = i % conv.C;
    const T* x = widen(args.x + i * plane, plane, planes);
    const auto state = [&](int64_t n) {  // u_n, the input of step n
      if (n == 0) return x;
      return args.states ? args.states + ((b * (conv.N - 1) + n - 1) * conv.C + c) * plane : again + (n - 1) * plane;
    };
    for (int64_t n = 0; !args.states && n < conv.N - 1; ++n)
      each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
        forward_block<T>(block, reader.read(locate(args.taps, b, n, c), first, pixels), T(conv.slope), state(n),
                             rooms, again + n * plane + first);
      });
    T *g = planes + plane, *g_next = planes + 2 * plane;
    const T* source = widen(args.grad + i * plane, plane, g);
    for (int64_t n = conv.N - 1; n >= 0; --n) {
      const Taps<const S> taps = locate(args.taps, b, n, c);
      const Taps<S> grad_taps = locate(args.grad_taps, b, n, c);
      const T slope = slope_of<T>(conv, n);
      const T* u = state(n);
      // The sign of the last output is made again; where there is no activation any finite values will do.
      const T* output = n < conv.N - 1 ? state(n + 1) : slope == T(1) ? source : nullptr;
      std::memset(g_next, 0, size_t(plane) * sizeof(T));
      each_block(conv, rows, [&](const Block& block, int64_t first, int64_t pixels) {
        const BlockTaps<T> room = writer.room();
        backward_block<T>(block, reader.read(taps, first, pixels), slope, u, output ? output + first : nullptr,
                              source + first, wanted ? &room : nullptr, rooms, g_next);
        if (wanted) writer.write(grad_taps, first, pixels);
      });
      source = g_next;
      g_next = source == planes + plane ? planes + 2 * plane : planes + plane;
    }
    put(args.grad_x + i * plane, source, plane, false);
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
