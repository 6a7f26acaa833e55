#include "adaptive_conv.h"

#include <optional>
#include <tuple>

#include "dispatch.h"
#include "huge_pages.h"
#include "library.h"
#include "ops/cpu/layout/layout.h"

namespace {
using tta::AdaptiveConv;
using tta::Taps;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Whether large results are written past the cache: they are not read again before it has forgotten them.
bool streams(const Tensor& result, size_t item) { return result.numel() * int64_t(item) > (int64_t(8) << 20); }

Tensor empty_contiguous(const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, like.sizes());
  tta::prefer_huge_pages(out.mutable_data_ptr(), out.numel() * int64_t(out.element_size()));
  return out;
}

// Channels that a thread takes at least, so that small planes are not spread thinner than waking a thread costs.
int64_t grain(const AdaptiveConv& conv) {
  const int64_t work = conv.H * conv.W * conv.N * (2 * conv.K + 1);
  return work > 32768 ? 1 : 32768 / work;
}

// Filters (B, channels, H, W) in memory whose rows are contiguous
struct Strides {
  int64_t batch, channel, row;

  explicit Strides(const Tensor& filters)
      : batch(filters.stride(0)), channel(filters.stride(1)), row(filters.size(2) == 1 ? filters.size(3) : filters.stride(2)) {}
};

template <typename S>
Taps<S> filter_taps(S* filters, const AdaptiveConv& conv, const Strides& strides) {
  if (filters == nullptr) return {nullptr, nullptr, nullptr, {}, {}};
  const int64_t taps = conv.C * conv.K * strides.channel;
  return {filters,
          filters + taps,
          filters + conv.N * 2 * taps,
          {strides.batch, 2 * taps, conv.K * strides.channel, strides.channel, strides.row},
          {strides.batch, conv.C * strides.channel, strides.channel, 0, strides.row}};
}

template <typename S>
Taps<S> separate_taps(S* vertical, S* horizontal, const AdaptiveConv& conv, const Strides& strides) {
  return {vertical, horizontal, nullptr, {strides.batch, 0, conv.K * strides.channel, strides.channel, strides.row}, {}};
}

bool has_contiguous_rows(const Tensor& filters) {
  return filters.size(3) > 1 && filters.stride(3) == 1 && filters.stride(2) >= filters.size(3);
}

// The filters where they are, if the kernels can read them there, or a contiguous copy.
Tensor readable(const Tensor& filters) { return has_contiguous_rows(filters) ? filters : tta::dense(filters); }

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < 4; ++i)
    if (a.stride(i) != b.stride(i)) return false;
  return true;
}

AdaptiveConv single_step(const char* op, const Tensor& x, const Tensor& vertical, const Tensor& horizontal) {
  STD_TORCH_CHECK(x.dim() == 4 && tta::same_shape(vertical, horizontal) && vertical.dim() == 4 && x.size(1) > 0, op,
                  ": expected x (B, C, H, W), vertical and horizontal (B, C*K, H, W)");
  const AdaptiveConv conv{x.size(0), x.size(1), x.size(2), x.size(3), 1, vertical.size(1) / x.size(1), 1, false, true};
  STD_TORCH_CHECK(x.scalar_type() == vertical.scalar_type() && vertical.size(0) == conv.B && conv.K % 2 == 1 &&
                      vertical.size(1) == conv.C * conv.K && vertical.size(2) == conv.H && vertical.size(3) == conv.W,
                  op, ": expected vertical and horizontal of shape (B, C*K, H, W), K odd, and the dtype of x");
  return conv;
}

AdaptiveConv all_steps(const char* op, const Tensor& x, const Tensor& filters, int64_t num_steps, int64_t kernel_size,
                       double slope, bool activate_last, bool own) {
  STD_TORCH_CHECK(x.dim() == 4 && filters.dim() == 4 && x.scalar_type() == filters.scalar_type(), op,
                  ": expected x (B, C, H, W) and filters (B, N*C*(2K+1), H, W) of one dtype");
  const AdaptiveConv conv{x.size(0), x.size(1), x.size(2), x.size(3), num_steps, kernel_size, slope, activate_last, own};
  STD_TORCH_CHECK(num_steps >= 1 && kernel_size >= 1 && kernel_size % 2 == 1 && filters.size(0) == conv.B &&
                      filters.size(1) == conv.N * conv.C * (2 * conv.K + 1) && filters.size(2) == conv.H &&
                      filters.size(3) == conv.W,
                  op, ": expected filters of shape (B, N*C*(2K+1), H, W), N >= 1, K odd");
  return conv;
}

template <typename S>
void forward(const tta::AdaptiveConvForward<S>& args) {
  const auto kernel = TTA_BEST_ISA(adaptive_conv_forward<S>);
  torch::stable::parallel_for(0, args.conv.B * args.conv.C, grain(args.conv),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// Whether gradients of filters and states have their channels adjacent; schema.py: is_channels_last.
bool is_channels_last(const Tensor& filters) { return !filters.is_contiguous() && tta::is_channels_last(filters); }

// Whether channels_last filters are read where they are, because a contiguous copy costs more than the op.
bool reads_channels_last(const AdaptiveConv& conv, const Tensor& filters) {
  return is_channels_last(filters) && (conv.K == 3 || conv.K == 5 || conv.K == 7) &&
         conv.C >= 16 / (filters.scalar_type() == ScalarType::Double ? 8 : 4);
}

// The number of groups of channels that are computed together. Wide ones read long runs of memory; every thread needs one.
template <typename S>
int64_t channel_groups(const AdaptiveConv& conv) {
  constexpr int64_t WIDEST = 512 / sizeof(tta::accumulate_t<S>), NARROWEST = 64 / sizeof(tta::accumulate_t<S>);
  const int64_t threads = torch::stable::get_num_threads();
  int64_t group = (conv.B * conv.C + threads - 1) / threads;
  group = group < NARROWEST ? NARROWEST : group > WIDEST ? WIDEST : group;
  return (conv.C + group - 1) / group;
}

// In memory (B, N-1, H, W, C)
Tensor empty_states_channels_last(const AdaptiveConv& conv, const Tensor& x, int64_t count) {
  const Tensor states = torch::stable::new_empty(x, {conv.B, count, conv.H, conv.W, conv.C}, tta::computing_type(x));
  return tta::channels_to_front(states);
}

// A gradient of filters in the memory format that those have
Tensor in_format_of(const Tensor& filters, const Tensor& grad) {
  if (grad.dim() != 4 || !is_channels_last(filters)) return grad;
  return torch::stable::contiguous(grad, torch::headeronly::MemoryFormat::ChannelsLast);
}

template <typename S>
void forward_channels_last(const AdaptiveConv& conv, const S* x, const Taps<const S>& taps, int64_t pixel, S* out,
                           tta::accumulate_t<S>* states) {
  const int64_t groups = channel_groups<S>(conv);
  const tta::AdaptiveConvForwardChannelsLast<S> args{conv, x, taps, pixel, groups, out, states};
  const auto kernel = TTA_BEST_ISA(adaptive_conv_forward_channels_last<S>);
  torch::stable::parallel_for(0, conv.B * groups, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

template <typename S>
void backward_channels_last(const tta::AdaptiveConvBackwardChannelsLast<S>& args) {
  const auto kernel = TTA_BEST_ISA(adaptive_conv_backward_channels_last<S>);
  torch::stable::parallel_for(0, args.conv.B * args.groups, 1,
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

template <typename S>
void backward(const tta::AdaptiveConvBackward<S>& args) {
  const auto kernel = TTA_BEST_ISA(adaptive_conv_backward<S>);
  torch::stable::parallel_for(0, args.conv.B * args.conv.C, grain(args.conv),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

Tensor sac(const Tensor& x_in, const Tensor& vertical_in, const Tensor& horizontal_in) {
  const AdaptiveConv conv = single_step("sac", x_in, vertical_in, horizontal_in);
  const Tensor x = tta::dense(x_in);
  Tensor out = empty_contiguous(x);
  if (out.numel() == 0) return out;
  const bool alike = same_strides(vertical_in, horizontal_in);
  if (alike && reads_channels_last(conv, vertical_in)) {
    tta::dispatch("sac", x.scalar_type(), [&]<typename S>() {
      forward_channels_last<S>(
          conv, tta::data<S>(x), separate_taps(tta::data<S>(vertical_in), tta::data<S>(horizontal_in), conv, Strides(vertical_in)),
          vertical_in.stride(3), tta::mutable_data<S>(out), nullptr);
    });
    return out;
  }
  const Tensor vertical = alike ? readable(vertical_in) : tta::dense(vertical_in);
  const Tensor horizontal = alike ? readable(horizontal_in) : tta::dense(horizontal_in);
  tta::dispatch("sac", x.scalar_type(), [&]<typename S>() {
    forward<S>({conv, tta::data<S>(x),
                separate_taps(tta::data<S>(vertical), tta::data<S>(horizontal), conv, Strides(vertical)),
                tta::mutable_data<S>(out), nullptr});
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> sac_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& vertical_in,
                                                const Tensor& horizontal_in, bool need_taps) {
  const AdaptiveConv conv = single_step("sac_backward", x_in, vertical_in, horizontal_in);
  STD_TORCH_CHECK(tta::same_shape(grad_in, x_in), "sac_backward: expected grad like x");
  const bool alike = same_strides(vertical_in, horizontal_in);
  const Tensor grad = tta::dense(grad_in), x = tta::dense(x_in);
  Tensor grad_x = empty_contiguous(x);
  if (alike && reads_channels_last(conv, vertical_in)) {
    const auto result = [&] {
      return need_taps ? tta::empty_channels_last(x, conv.B, conv.C * conv.K, conv.H, conv.W) : torch::stable::new_empty(x, {0});
    };
    Tensor grad_vertical = result(), grad_horizontal = result();
    if (x.numel() == 0) return {grad_x, grad_vertical, grad_horizontal};
    tta::dispatch("sac_backward", x.scalar_type(), [&]<typename S>() {
      Taps<S> grad_taps{};
      if (need_taps)
        grad_taps = separate_taps(tta::mutable_data<S>(grad_vertical), tta::mutable_data<S>(grad_horizontal), conv,
                                  Strides(grad_vertical));
      backward_channels_last<S>(
          {conv, tta::data<S>(grad), tta::data<S>(x),
           separate_taps(tta::data<S>(vertical_in), tta::data<S>(horizontal_in), conv, Strides(vertical_in)),
           vertical_in.stride(3), channel_groups<S>(conv), nullptr, tta::mutable_data<S>(grad_x), grad_taps,
           conv.C * conv.K, streams(grad_vertical, sizeof(S))});
    });
    return {grad_x, grad_vertical, grad_horizontal};
  }
  const Tensor vertical = alike ? readable(vertical_in) : tta::dense(vertical_in);
  const Tensor horizontal = alike ? readable(horizontal_in) : tta::dense(horizontal_in);
  Tensor grad_vertical = need_taps ? empty_contiguous(vertical) : torch::stable::new_empty(x, {0});
  Tensor grad_horizontal = need_taps ? empty_contiguous(horizontal) : torch::stable::new_empty(x, {0});
  if (x.numel() > 0)
    tta::dispatch("sac_backward", x.scalar_type(), [&]<typename S>() {
      S* none = nullptr;
      backward<S>({conv, tta::data<S>(grad), tta::data<S>(x),
                   separate_taps(tta::data<S>(vertical), tta::data<S>(horizontal), conv, Strides(vertical)), nullptr,
                   tta::mutable_data<S>(grad_x),
                   separate_taps(need_taps ? tta::mutable_data<S>(grad_vertical) : none,
                                 need_taps ? tta::mutable_data<S>(grad_horizontal) : none, conv,
                                 Strides(need_taps ? grad_vertical : vertical)),
                   streams(grad_vertical, sizeof(S))});
    });
  return {grad_x, in_format_of(vertical_in, grad_vertical), in_format_of(horizontal_in, grad_horizontal)};
}

std::tuple<Tensor, Tensor> iac(const Tensor& x_in, const Tensor& filters_in, int64_t num_steps, int64_t kernel_size,
                               double slope, bool activate_last, bool own, bool save_states) {
  const AdaptiveConv conv = all_steps("iac", x_in, filters_in, num_steps, kernel_size, slope, activate_last, own);
  const Tensor x = tta::dense(x_in);
  const bool last = reads_channels_last(conv, filters_in);
  const int64_t count = save_states ? conv.N - 1 : 0;
  Tensor out = empty_contiguous(x);
  Tensor states = last ? empty_states_channels_last(conv, x, count)
                       : torch::stable::new_empty(x, {conv.B, count, conv.C, conv.H, conv.W}, tta::computing_type(x));
  tta::prefer_huge_pages(states.mutable_data_ptr(), states.numel() * int64_t(states.element_size()));
  if (out.numel() == 0) return {out, states};
  const Tensor filters = last ? filters_in : readable(filters_in);
  tta::dispatch("iac", x.scalar_type(), [&]<typename S>() {
    using T = tta::accumulate_t<S>;
    const Taps<const S> taps = filter_taps(tta::data<S>(filters), conv, Strides(filters));
    T* kept = save_states ? tta::mutable_data<T>(states) : nullptr;
    if (last)
      forward_channels_last<S>(conv, tta::data<S>(x), taps, filters.stride(3), tta::mutable_data<S>(out), kept);
    else
      forward<S>({conv, tta::data<S>(x), taps, tta::mutable_data<S>(out), kept});
  });
  if (last || !is_channels_last(filters_in)) return {out, states};
  const Tensor moved = empty_states_channels_last(conv, x, count);
  Tensor to = moved;
  torch::stable::copy_(to, states);
  return {out, moved};
}

std::tuple<Tensor, Tensor> iac_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& filters_in,
                                        const Tensor& states_in, int64_t num_steps, int64_t kernel_size, double slope,
                                        bool activate_last, bool own, bool need_filters) {
  const AdaptiveConv conv =
      all_steps("iac_backward", x_in, filters_in, num_steps, kernel_size, slope, activate_last, own);
  STD_TORCH_CHECK(tta::same_shape(grad_in, x_in) && states_in.scalar_type() == tta::computing_type(x_in),
                  "iac_backward: expected grad like x, and states in the computing type");
  const Tensor grad = tta::dense(grad_in), x = tta::dense(x_in);
  const bool saved = states_in.numel() == (conv.N - 1) * x.numel();
  Tensor grad_x = empty_contiguous(x);
  if (reads_channels_last(conv, filters_in)) {
    Tensor grad_filters =
        need_filters ? tta::empty_channels_last(x, conv.B, filters_in.size(1), conv.H, conv.W) : torch::stable::new_empty(x, {0});
    if (x.numel() == 0) return {grad_x, grad_filters};
    // Of another memory format where the filters' was another in the forward pass
    const bool usable = saved && states_in.dim() == 5 && tta::channels_to_back(states_in).is_contiguous();
    tta::dispatch("iac_backward", x.scalar_type(), [&]<typename S>() {
      using T = tta::accumulate_t<S>;
      Taps<S> grad_taps{};
      if (need_filters) grad_taps = filter_taps(tta::mutable_data<S>(grad_filters), conv, Strides(grad_filters));
      backward_channels_last<S>({conv, tta::data<S>(grad), tta::data<S>(x),
                                 filter_taps(tta::data<S>(filters_in), conv, Strides(filters_in)), filters_in.stride(3),
                                 channel_groups<S>(conv), usable ? tta::data<T>(states_in) : nullptr,
                                 tta::mutable_data<S>(grad_x), grad_taps, filters_in.size(1),
                                 streams(grad_filters, sizeof(S))});
    });
    return {grad_x, grad_filters};
  }
  const Tensor filters = readable(filters_in), states = tta::dense(states_in);
  Tensor grad_filters = need_filters ? empty_contiguous(filters) : torch::stable::new_empty(x, {0});
  if (x.numel() > 0)
    tta::dispatch("iac_backward", x.scalar_type(), [&]<typename S>() {
      using T = tta::accumulate_t<S>;
      S* none = nullptr;
      backward<S>({conv, tta::data<S>(grad), tta::data<S>(x), filter_taps(tta::data<S>(filters), conv, Strides(filters)),
                   saved ? tta::data<T>(states) : nullptr, tta::mutable_data<S>(grad_x),
                   filter_taps(need_filters ? tta::mutable_data<S>(grad_filters) : none, conv,
                               Strides(need_filters ? grad_filters : filters)),
                   streams(grad_filters, sizeof(S))});
    });
  return {grad_x, in_format_of(filters_in, grad_filters)};
}

// Second derivatives are rare and short: half types are converted before and after, not in the loops.
Tensor widened(const Tensor& tensor) { return torch::stable::to(tensor, tta::computing_type(tensor)); }

std::tuple<Tensor, Tensor, Tensor> iac_double_backward(const std::optional<Tensor>& dx_in,
                                                       const std::optional<Tensor>& dfilters_in, const Tensor& grad_in,
                                                       const Tensor& x_in, const Tensor& filters_in, int64_t num_steps,
                                                       int64_t kernel_size, double slope, bool activate_last, bool own) {
  const AdaptiveConv conv =
      all_steps("iac_double_backward", x_in, filters_in, num_steps, kernel_size, slope, activate_last, own);
  STD_TORCH_CHECK(tta::same_shape(grad_in, x_in) && (!dx_in || tta::same_shape(*dx_in, x_in)) &&
                      (!dfilters_in || tta::same_shape(*dfilters_in, filters_in)),
                  "iac_double_backward: expected grad and dx like x, and dfilters like filters");
  const auto dense = [](const Tensor& tensor) { return widened(tta::dense(tensor)); };
  const Tensor grad = dense(grad_in), x = dense(x_in), filters = dense(filters_in);
  const Tensor dx = dx_in ? dense(*dx_in) : x, dfilters = dfilters_in ? dense(*dfilters_in) : filters;
  Tensor grad_grad = empty_contiguous(grad), grad_x = empty_contiguous(x), grad_filters = empty_contiguous(filters);
  const auto run = [&]<typename S>() {
    const S* none = nullptr;
    const tta::AdaptiveConvDoubleBackward<S> args{conv,
                                                  dx_in ? tta::data<S>(dx) : none,
                                                  tta::data<S>(grad),
                                                  tta::data<S>(x),
                                                  filter_taps(dfilters_in ? tta::data<S>(dfilters) : none, conv, Strides(filters)),
                                                  filter_taps(tta::data<S>(filters), conv, Strides(filters)),
                                                  tta::mutable_data<S>(grad_grad),
                                                  tta::mutable_data<S>(grad_x),
                                                  filter_taps(tta::mutable_data<S>(grad_filters), conv, Strides(grad_filters)),
                                                  streams(grad_filters, sizeof(S))};
    const auto kernel = TTA_BEST_ISA(adaptive_conv_double_backward<S>);
    torch::stable::parallel_for(0, conv.B * conv.C, grain(conv),
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  };
  if (x.numel() > 0) {
    if (x.scalar_type() == ScalarType::Double)
      run.template operator()<double>();
    else
      run.template operator()<float>();
  }
  const auto kept = [&](const Tensor& tensor) { return torch::stable::to(tensor, x_in.scalar_type()); };
  return {kept(grad_grad), kept(grad_x), kept(grad_filters)};
}
}  // namespace

TTA_CPU_KERNELS(m) {
  m.impl("sac", TORCH_BOX(&sac));
  m.impl("sac_backward", TORCH_BOX(&sac_backward));
  m.impl("iac", TORCH_BOX(&iac));
  m.impl("iac_backward", TORCH_BOX(&iac_backward));
  m.impl("iac_double_backward", TORCH_BOX(&iac_double_backward));
}
